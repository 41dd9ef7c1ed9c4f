"""What a report is written from: figures of its content by their places, and the tables and plots that point to them.

A cell is a text, or an `At`: the place of a figure in the content. Whoever writes a table looks the figure up there and
writes it with `number`, so that every figure shown is one of the content and is written the same everywhere.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

MODELS = ("original", "unlearned", "retrained")
SETS = ("forget", "retain", "unseen")
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NO_VALUE = "–"
IN_MEMORY = "a model in memory"  # the name of one that has none


class At(tuple):
    """The keys that lead to a figure: `At(("figures", "unlearned", "auc"))`."""

    def __truediv__(self, key: str | int) -> "At":
        return At((*self, key))

    @property
    def pointer(self) -> str:
        """As a JSON pointer (RFC 6901)."""
        return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in self)


@dataclass(frozen=True)
class Range:
    """A figure and the ends of its interval."""

    value: At
    low: At
    high: At


Cell = str | At | Range
Line = str | tuple[Cell, ...]  # a sentence, with figures between its parts


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its name; a row of one cell heads those that follow."""

    head: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture of figures of the content, for `plots.picture`; series are (label, look, places of the values)."""

    name: str
    title: str
    x: list[At] | list[str]  # names stand for themselves: the places are then 1, 2, 3 ...
    series: list[tuple[str, str, list[At]]]
    x_label: str
    y_label: str
    kind: str = "line"
    same_height: tuple[At, ...] = ()  # lists of the content up to whose highest value the y axis goes
    minor: bool = False  # folded away
    named: bool = False  # the names in `x` are short enough to stand below the axis

    def table(self) -> Table:
        """The same figures."""
        columns = [places for _, _, places in self.series]
        if self.kind in ("steps", "middles"):
            head, x = ("from", "to"), list(zip(self.x, self.x[1:], strict=False))
        else:
            head, x = (self.x_label,), [(one,) for one in self.x]
        rows = [(*here, *values) for here, *values in zip(x, *columns, strict=True)]
        return Table((*head, *(label for label, _, _ in self.series)), rows)


@dataclass(frozen=True)
class Section:
    """A part of the report; `lines` are sentences about the content, `text` says how it is read."""

    name: str
    title: str
    text: str
    lines: Sequence[Line] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    brief: bool = True  # short enough for a model card


def value(content: dict[str, Any], at: At) -> Any:
    """What stands at a place; None where there is none."""
    here: Any = content
    for key in at:
        if isinstance(here, dict):
            here = here.get(key)
        elif isinstance(here, list) and isinstance(key, int) and key < len(here):
            here = here[key]
        else:
            return None
    return here


def number(figure: float | None, at: At) -> str:
    """A figure as it is written everywhere: three digits, or what suits its kind.

    >>> number(0.53, At(("figures", "unlearned", "auc"))), number(10000, At(("cost", "forward_passes")))
    ('0.530', '10,000')
    >>> number(0.00004, At(("verdict", "findings", 0, "p"))), number(None, At(("figures",)))
    ('< 0.001', '–')
    """
    if figure is None:
        return NO_VALUE
    if isinstance(figure, int):
        return f"{figure:,}"
    name = str(at[-1])
    if name in ("p", "p_corrected", "forget_quality") and figure < 0.001:
        return "< 0.001"
    if "seconds" in at:
        return f"{figure:,.1f}"
    if abs(figure) >= 1000:
        return f"{figure:,.0f}"
    if 0 < abs(figure) < 0.001:
        return f"{figure:.1e}"
    return f"{figure:.{4 if name.endswith('jsd') else 3}f}"


def plain(text: object) -> str:
    """Text in one line, without what would move a terminal's cursor, turn the direction of writing or break an encoding."""
    return UNSAFE.sub("\ufffd", " ".join(str(text).split()))


def class_name(content: dict[str, Any], row: dict[str, Any]) -> str:
    """A class by its number and, where it has one, its name."""
    return f"{row['class']}" if row.get("name") is None else f"{row['class']} {row['name']}"


def places(content: dict[str, Any], at: At) -> list[At]:
    """The places of a list's items."""
    return [at / i for i in range(len(value(content, at) or []))]


def in_words(head: tuple[str, ...], row: tuple[Cell, ...]) -> Line:
    """A row of a table as a sentence, where it is the only one."""
    return (f"{row[0]}:", *(part for pair in zip(head[1:], row[1:], strict=True) for part in pair))


def samples(content: dict[str, Any]) -> Iterator[tuple[str, At]]:
    """How many samples each set has."""
    for name in SETS:
        if value(content, At(("request", "samples", name))) is not None:
            yield name, At(("request", "samples", name))
