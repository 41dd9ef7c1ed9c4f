"""Small pictures as SVG: made by matplotlib, the same bytes each time, text left as text.

A picture is narrow enough to be read on a phone without being scaled down; a page shows several side by side. Each thing
shown has one look everywhere, and no two looks differ by colour alone. Colours are of Okabe and Ito's palette, which people
who confuse red and green can tell apart.
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

COLOURS = {
    "ink": "#1f2328",
    "faint": "#8b929c",
    "blue": "#0072b2",
    "orange": "#d98200",
    "red": "#d55e00",
    "purple": "#b0588f",
}
LOOKS = {  # what is shown -> colour, line, marker
    "original": ("faint", "solid", "s"),
    "unlearned": ("blue", "solid", "o"),
    "retrained": ("orange", (0, (5, 2)), "^"),
    "control": ("purple", (0, (1, 1.5)), "D"),
    "forget": ("red", "solid", "o"),
    "unseen": ("ink", (0, (5, 2)), "^"),
    "retain": ("faint", (0, (1, 1.5)), "D"),
}
STYLE = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it, so that places are the same everywhere
    "font.size": 8.5,
    "text.parse_math": False,  # a dollar is a dollar
    "path.simplify": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.45,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "legend.borderpad": 0,
}
PER_INCH = 96  # CSS pixels
ROW = 10  # of a label, in points, of which a pixel is 0.75
NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # of a file's metadata: a date would change its bytes


@dataclass(frozen=True)
class Series:
    """One line: a value for each place, None where there is none; `look` is a key of `LOOKS`."""

    label: str
    values: Sequence[float | None]
    look: str


def picture(
    name: str,
    places: Sequence[float],
    series: Sequence[Series],
    *,
    title: str,
    kind: str = "line",
    x_label: str = "",
    y_label: str = "",
    ticks: Sequence[str] | None = None,
    highest: float | None = None,
    width: int = 340,
    height: int = 230,
) -> str:
    """An SVG element whose ids begin with `name`, so that several can stand in one document.

    Args:
        places: along x; for the kinds `steps` and `middles` the edges of the bins, one more than there are values.
        kind: `line`; `middles`, a line through the middles of bins; `steps`, a histogram whose first series is filled; or
            `bars`.
        ticks: what stands below the places instead of numbers.
        highest: of the y axis, for pictures that are compared.
    """
    with _figure(name, width, height) as (figure, axes):
        for i, one in enumerate(series):
            _draw(axes, kind, places, one, first=i == 0)
        if ticks is not None:
            axes.set_xticks(places, ticks)
        if kind != "bars" and len(places) > 1:
            axes.set_xlim(*_with_margin(places[0], places[-1], 0 if kind == "steps" else 0.03))
        axes.set_ylim(top=highest)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=len(series) if len(series) < 4 else 2)
        text = _saved(figure)
    shown = ", ".join(one.label for one in series)
    return _element(text, name, title, f"{y_label or 'value'} by {x_label or 'place'}: {shown}.")


def points(
    name: str,
    places: dict[str, tuple[float, float]],
    level: tuple[str, float] | None = None,
    *,
    title: str,
    x_label: str,
    y_label: str,
    width: int = 480,
    height: int = 300,
) -> str:
    """An SVG element with a point at each (x, y), its label beside it, and a line across at a labelled `level`.

    Labels that would cover each other are moved apart.
    """
    right = max((x for x, _ in places.values()), default=0.0) or 1.0
    top = 1.15 * max([y for _, y in places.values()] + [level[1] if level else 0.0]) or 1.0
    columns: dict[int, list[str]] = {}  # of labels that could cover each other
    for label in sorted(places, key=lambda label: places[label][1]):
        columns.setdefault(int(3 * places[label][0] / right), []).append(label)
    with _figure(name, width, height) as (figure, axes):
        if level:
            colour, line, _ = LOOKS["original"]
            axes.axhline(level[1], color=COLOURS[colour], linestyle=line).set_gid("level")
            axes.annotate(level[0], (0, level[1]), (0, 3), textcoords="offset points", va="bottom")
        colour, _, marker = LOOKS["unlearned"]
        for labels in columns.values():
            heights = _apart(np.array([places[label][1] for label in labels]), top * ROW / (0.75 * height - 40), top)
            for label, free in zip(labels, heights, strict=True):
                x, y = places[label]
                (drawn,) = axes.plot([x], [y], color=COLOURS[colour], marker=marker, markersize=5)
                drawn.set_gid(f"point-{label}")
                axes.annotate(label, (x + right / 30, free), va="center", annotation_clip=False)
        axes.set_xlim(-right / 30, right * 1.4)
        axes.set_ylim(0, top)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        text = _saved(figure)
    shown = [f"{label} ({y:.3g} at {x:.3g})" for label, (x, y) in places.items()]
    shown += [f"a line for {level[0]} ({level[1]:.3g})"] if level else []
    return _element(text, name, title, f"{y_label} by {x_label}: {', '.join(shown)}.")


@dataclass(frozen=True)
class Point:
    """A place of `plane`; with a `state` a fainter one, of what `label` has become."""

    label: str
    x: float
    y: float
    look: str
    state: str | None = None


LEAST = 1e-6  # of a probability on a log axis


def plane(
    name: str,
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    level: tuple[str, float] | None = None,
    width: int = 620,
    height: int = 420,
) -> str:
    """An SVG element with labelled points, their height on a log scale down to `LEAST`, and fainter ones without a label, tied to
    the point that they come from."""
    with _figure(name, width, height) as (figure, axes):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if level:
            axes.axhline(level[1], color=COLOURS["faint"], linestyle=(0, (1, 1.5))).set_gid("level")
            axes.annotate(level[0], (1, level[1]), (-2, 3), ("axes fraction", "data"), "offset points", ha="right")
        states = list(dict.fromkeys(one.state for one in points if one.state))
        markers = dict(zip(states, ("v", "D", "x", "s"), strict=False))
        homes = {one.label: (one.x, max(one.y, LEAST)) for one in points if one.state is None}
        for one in points:
            colour, _, marker = LOOKS[one.look]
            place = one.x, max(one.y, LEAST)
            if one.state:
                if one.label in homes:
                    axes.plot(
                        *zip(homes[one.label], place, strict=True), color=COLOURS[colour], linewidth=0.5, alpha=0.3
                    )
                look = {"marker": markers[one.state], "markersize": 4, "alpha": 0.45}
            else:
                look = {"marker": marker, "markersize": 6.5}
            (drawn,) = axes.plot(*([value] for value in place), color=COLOURS[colour], linestyle="none", **look)
            drawn.set_gid(f"point-{one.label}-{one.state or ''}".rstrip("-").replace(" ", "-"))
        span = max((x for x, _ in homes.values()), default=1.0) - min((x for x, _ in homes.values()), default=0.0)
        for label, y in _spread(homes, span).items():
            axes.annotate(label, (homes[label][0] + (span or 1.0) / 40, y), va="center", annotation_clip=False)
        for state in states:
            marker = {"marker": markers[state], "markersize": 4, "alpha": 0.6, "linestyle": "none"}
            axes.plot([], [], color=COLOURS["ink"], label=state, **marker)
        axes.margins(x=0.14, y=0.06)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if states:
            figure.legend(loc="outside upper left", ncols=len(states))
        text = _saved(figure)
    shown = "; ".join(
        f"{one.label}{f', {one.state}' if one.state else ''} ({one.y:.2g} at {one.x:.2g})" for one in points
    )
    return _element(text, name, title, f"{y_label} by {x_label}: {shown}.")


def _spread(homes: dict[str, tuple[float, float]], span: float) -> dict[str, float]:
    """How high the labels of points on a log scale stand: those that would cover each other a little higher or lower."""
    columns: list[list[str]] = []
    for label, (x, _) in sorted(homes.items(), key=lambda home: home[1][0]):
        if not columns or x > homes[columns[-1][0]][0] + span / 4:
            columns.append([])
        columns[-1].append(label)
    found = {}
    for labels in columns:
        labels.sort(key=lambda label: homes[label][1])
        logs = np.log10([homes[label][1] / LEAST for label in labels])
        apart = _apart(logs, 0.25, 1 - np.log10(LEAST))
        found |= {label: float(LEAST * 10**free) for label, free in zip(labels, apart, strict=True)}
    return found


def _apart(places: np.ndarray, row: float, top: float) -> np.ndarray:
    """Places in rising order, moved as little as it takes to be `row` apart and between 0 and the top."""
    from sklearn.isotonic import isotonic_regression  # here: it takes long to import

    steps = row * np.arange(len(places))
    return np.clip(isotonic_regression(places - steps), 0, max(0.0, top - row * (len(places) - 1))) + steps


@contextmanager
def _figure(name: str, width: int, height: int) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, in our style inside."""
    from matplotlib import rc_context, style
    from matplotlib.figure import Figure

    ink, faint = COLOURS["ink"], COLOURS["faint"]
    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), ink)
    colours |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), faint)
    with rc_context(), style.context(["default", STYLE | colours | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(width / PER_INCH, height / PER_INCH), layout="constrained")
        yield figure, figure.subplots()


def _saved(figure: Any) -> str:
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, metadata=NOTHING)
    return target.getvalue()


def _draw(axes: Any, kind: str, places: Sequence[float], one: Series, first: bool) -> None:
    values = [float("nan") if value is None else value for value in one.values]
    name, line, marker = LOOKS[one.look]
    colour = COLOURS[name]
    if kind == "steps" and first:
        drawn = axes.stairs(values, places, fill=True, facecolor=colour, edgecolor=colour, alpha=0.5, label=one.label)
    elif kind == "steps":
        drawn = axes.stairs(values, places, color=colour, linestyle=line, linewidth=1.4, label=one.label)
    elif kind == "bars":
        drawn = axes.vlines(places, 0, values, color=colour, linewidth=max(1.2, min(9, 150 / len(places))))
    else:
        if kind == "middles":
            places = [(a + b) / 2 for a, b in zip(places, places[1:], strict=False)]
        (drawn,) = axes.plot(places, values, color=colour, linestyle=line, marker=marker, label=one.label)
    drawn.set_gid(f"series-{one.look}")


def _with_margin(low: float, high: float, share: float) -> tuple[float, float]:
    margin = (high - low) * share or 1e-9
    return low - margin, high + margin


def _element(text: str, name: str, title: str, description: str) -> str:
    """Without the prologue of a file and rules for other elements; with a name and a description."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    about = f'role="img" aria-labelledby="{name}-title {name}-desc" stroke-linejoin="round"'
    words = f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(description)}</desc>'
    return re.sub(r"<svg ([^>]*)>", lambda found: f"<svg {found[1]} {about}>{words}", text, count=1)
