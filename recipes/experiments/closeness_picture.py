"""Distance to retraining over its cost, every method a point: `python recipes/experiments/closeness_picture.py`.

Writes docs/pictures/closeness.svg and what goes with it, from `results/closeness.json`. `tables.py` does it too.
"""

import html
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from outcomes import BUDGET, REQUESTS, SHORT, TITLES, Group, groups, read, shared

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
WIDTH, HEIGHT = 440, 400  # of a panel, in CSS pixels: one is as wide as a phone
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 46
SIZE, LETTER = 11.5, 0.6  # of a label's letters, and their mean width
COSTS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
RATIOS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
LOUD = ("auto", "rewind")
BAND = "no farther than two retrained models are apart"
STYLE = """
  svg { --paper: #fff; --band: #d9ecf7; --rule: #e4e7eb; --quiet: #59636e; --ink: #1f2328; --auto: #0072b2; --rewind: #b0480f; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #14171a; --band: #17364a; --rule: #2c3238; --quiet: #a3acb6; --ink: #e8eaed; --auto: #56b4e9; --rewind: #ff9c66; }
  }
  text { font: 11.5px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--quiet); }
  .title { font-weight: 600; font-size: 13px; fill: var(--ink); }
  .tick { font-size: 11px; }
  .paper { fill: var(--paper); } .band { fill: var(--band); }
  .rule { stroke: var(--rule); } .lead { stroke: var(--quiet); stroke-width: 0.6; }
  .original { stroke: var(--quiet); stroke-dasharray: 5 3; }
  .dot { fill: var(--quiet); stroke: var(--paper); }
  .retrained { fill: var(--paper); stroke: var(--ink); stroke-width: 1.5; }
  .auto { fill: var(--auto); } .rewind { fill: var(--rewind); }
  text.auto, text.rewind { font-weight: 700; font-size: 13px; } text.retrained { fill: var(--ink); stroke: none; }
"""


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: "Box") -> float:
        wide = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        high = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(0.0, wide) * max(0.0, high)


@dataclass(frozen=True)
class Label:
    """A point with its name: `box` is where the name stands."""

    name: str
    look: str
    x: float
    y: float
    box: Box = Box(0, 0, 0, 0)

    @property
    def dot(self) -> Box:
        r = 6 if self.look in LOUD else 4
        return Box(self.x - r, self.y - r, 2 * r, 2 * r)

    def places(self) -> Iterator[tuple[float, "Label"]]:
        """Where the name could stand, each with how little that is wanted: the farther away the less."""
        scale = 1.2 if self.look in LOUD else 1
        wide, high = len(self.name) * SIZE * LETTER * scale, (SIZE + 1) * scale
        for far in (7, 12, 19, 28, 39, 53, 70):
            for i in range(16):
                cos, sin = math.cos(i * math.pi / 8), math.sin(i * math.pi / 8)
                x = self.x + far * cos + (cos - 1) * wide / 2
                y = self.y + far * sin + (sin - 1) * high / 2
                yield far + 3 * abs(sin), replace(self, box=Box(x, y, wide, high))


def placed(labels: list[Label], room: Box, taken: Iterable[Box]) -> list[Label]:
    """The labels, each where it covers least of the others, of all points and of what is `taken`; in three rounds."""
    taken = [*taken, *(label.dot for label in labels)]

    def alone(far: float, box: Box) -> float:
        outside = box.width * box.height - box.overlap(room)
        return far + 5 * outside + 2 * sum(map(box.overlap, taken))

    places = [
        sorted(((alone(far, place.box), place) for far, place in label.places()), key=lambda found: found[0])
        for label in labels
    ]
    found: dict[int, Label] = {}
    for _ in range(3):
        for i, those in enumerate(places):
            others = [other.box for j, other in found.items() if j != i]
            least = math.inf
            for cost, place in those:
                if cost >= least:
                    break
                cost += 4 * sum(map(place.box.overlap, others))
                if cost < least:
                    least, found[i] = cost, place
    return [found[i] for i in range(len(labels))]


def picture(panels: list[Group], columns: int, marked: str | None = None) -> str:
    """All panels as one SVG, readable on light and on dark pages. With a `marked` method no other one has its name."""
    rows = -(-len(panels) // columns)
    wide, high = WIDTH * min(columns, len(panels)), HEIGHT * rows
    about = "; ".join(f"{panel.title}: {_said(panel)}" for panel in panels)
    body = "".join(
        f'<g transform="translate({WIDTH * (i % columns)} {HEIGHT * (i // columns)})">\n{_panel(panel, marked)}</g>\n'
        for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="img">\n'
        f"<title>Distance to a retrained model over the cost of every method</title>\n<desc>{html.escape(about)}</desc>\n"
        f'<style>{STYLE}</style>\n<rect class="paper" width="{wide}" height="{high}"/>\n{body}</svg>\n'
    )


def _said(panel: Group) -> str:
    return ", ".join(f"{one.name} {one['ratio']:.2f}" for one in [panel.original, *panel.methods])


def _panel(panel: Group, marked: str | None) -> str:
    room = Box(LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    methods = [one for one in panel.methods if one.budget == BUDGET]
    x = _axis([one["share_of_training"] for one in methods] + [1], room.x, room.x + room.width)
    ratios = [one["ratio"] for one in [panel.original, *methods]] + [1]
    y = _axis([*ratios, 0.88 * min(ratios)], room.y + room.height, room.y)
    floor, original = y(1), y(panel.original["ratio"])
    title = f"{SHORT[panel.case]}, {REQUESTS[panel.request]}" if marked else TITLES[panel.case]
    parts = [f'<text class="title" x="{LEFT}" y="20">{html.escape(title)}</text>']
    parts += [
        f'<rect class="band" x="{LEFT}" y="{floor:.1f}" width="{room.width}" height="{room.y + room.height - floor:.1f}"/>'
    ]
    for ticks, axis in ((COSTS, x), (RATIOS, y)):
        for tick in ticks:
            at, is_x = axis(tick), axis is x
            if is_x and room.x <= at <= room.x + room.width:
                parts.append(f'<path class="rule" d="M{at:.1f} {TOP}v{room.height}"/>')
                parts.append(
                    f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick * 100:g} %</text>'
                )
            elif not is_x and room.y <= at <= room.y + room.height:
                parts.append(f'<path class="rule" d="M{LEFT} {at:.1f}h{room.width}"/>')
                parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g} ×</text>')
    labels = [Label("retrained", "retrained", x(1), floor)]
    labels += [
        Label(one.name, _look(one.method, marked), x(one["share_of_training"]), y(one["ratio"]))
        for one in sorted(methods, key=lambda one: one.method not in LOUD)
    ]
    unnamed = [replace(label, name="") for label in labels if marked and label.name not in ("retrained", marked)]
    labels = [label for label in labels if not marked or label.name in ("retrained", marked)]
    name = _free(Box(WIDTH - RIGHT - 52, original - 16, 52, 14), room, [one.dot for one in (*labels, *unnamed)])
    parts += [
        f'<path class="original" d="M{LEFT} {original:.1f}h{room.width}"/>',
        f'<text x="{name.x + 48:.1f}" y="{original - 5:.1f}" text-anchor="end">original</text>',
        f'<text x="{LEFT + 6}" y="{HEIGHT - BOTTOM - 6}">{BAND}</text>',
        f'<text x="{LEFT + room.width / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle">cost, as a share of retraining</text>',
        f'<text transform="translate(12 {TOP + room.height / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "distance to a retrained model</text>",
    ]
    taken = [
        name,
        Box(LEFT, HEIGHT - BOTTOM - 18, len(BAND) * SIZE * LETTER, 16),
        Box(LEFT, original - 1, room.width, 2),
        *(label.dot for label in unnamed),
    ]
    return "\n".join([*parts, *_marks([*placed(labels, room, taken), *unnamed])]) + "\n"


def _look(method: str, marked: str | None) -> str:
    if marked:
        return LOUD[0] if method == marked else "dot"
    return method if method in LOUD else "dot"


def _free(box: Box, room: Box, dots: list[Box]) -> Box:
    """The box, moved to the left along its line until it covers no dot."""
    places = [replace(box, x=box.x - step) for step in range(0, int(box.x - room.x), 4)]
    return next((place for place in places if not any(map(place.overlap, dots))), box)


def _axis(values: list[float], first: float, last: float):
    """Log scale: where a value stands between `first` and `last`, with a little room at both ends."""
    low, high = math.log(min(values)), math.log(max(values))
    edge = 0.06 * max(high - low, 0.5)
    return lambda value: first + (last - first) * (math.log(value) - low + edge) / (high - low + 2 * edge)


def _marks(labels: list[Label]) -> Iterator[str]:
    """Lines from points to names that stand apart, then points, then names, those that matter most on top."""
    for label in labels:
        box = label.box if label.name else label.dot
        x, y = min(max(label.x, box.x), box.x + box.width), min(max(label.y, box.y), box.y + box.height)
        if math.hypot(x - label.x, y - label.y) > 10:
            yield f'<path class="lead" d="M{label.x:.1f} {label.y:.1f}L{x:.1f} {y:.1f}"/>'
    for label in reversed(labels):
        if label.look == "retrained":
            yield f'<path class="retrained" d="M{label.x:.1f} {label.y - 6:.1f}l6 6l-6 6l-6-6z"/>'
        else:
            yield f'<circle class="dot {label.look}" cx="{label.x:.1f}" cy="{label.y:.1f}" r="{label.dot.width / 2:g}"/>'
    for label in filter(lambda label: label.name, labels):
        look = "" if label.look == "dot" else f' class="{label.look}"'
        base = label.box.y + 0.8 * label.box.height
        middle = label.box.x + label.box.width / 2
        yield f'<text{look} x="{middle:.1f}" y="{base:.1f}" text-anchor="middle">{html.escape(label.name)}</text>'


def pictures(found: list[Group]) -> dict[str, str]:
    """The files: of samples at random, for wide pages and for phones, and of the other requests."""
    by_request = {request: [g for g in found if g.request == request] for request in REQUESTS}
    files = {"closeness": ("scattered", 2), "closeness-narrow": ("scattered", 1)}
    files |= {f"closeness-{request}": (request, 2) for request in ("part", "class")}
    return {
        f"{name}.svg": picture(by_request[request], columns)
        for name, (request, columns) in files.items()
        if by_request[request]
    }


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, svg in pictures(groups(shared(read()))).items():
        (FOLDER / name).write_text(svg)


if __name__ == "__main__":
    write()
