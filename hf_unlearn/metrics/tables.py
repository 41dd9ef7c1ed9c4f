"""How figures are shown: as tables of text and Markdown, in a line, in a notebook."""

import html
import re
import shutil
import textwrap

NAMES = {
    "forget_accuracy": "forget acc.",
    "retain_accuracy": "retain acc.",
    "unseen_accuracy": "unseen acc.",
    "kept_accuracy": "unseen acc., kept classes",
    "mia": "MIA",
    "auc": "AUC forget/unseen",
    "jsd": "JSD to retrained",
    "closed": "JSD gap closed",
    "rf_jsd": "RF-JSD",
    "memory": "memory",
    "share": "share of training",
    "avg_gap": "Avg Gap",
    "affected_gap": "Avg Gap, affected class",
    "near": "TV near",
    "far": "TV far",
    "uis": "UIS",
    "uis_target": "UIS, targets",
    "uis_nontarget": "UIS, other tasks",
    "uis_retrained": "UIS to retrained",
    "task_interference": "task interference",
    "instance_interference": "instance interference",
    "seconds": "seconds",
}
# Of one task, or a further one of a language model.
SCORES = re.compile(r"(forget|retain|unseen)_(?!accuracy$|loss$)(.+)")


class Rows(dict[str, dict[str, float | None]]):
    """Figures by model and name; printed, they are a table."""

    def __str__(self) -> str:
        return upright(self)

    __repr__ = __str__


def table(
    rows: dict[str, dict[str, float | None]], deviations: dict[str, dict[str, float | None]] | None = None
) -> str:
    """A Markdown table with a row for each model; columns that no row has are left out, missing values are dashes."""
    names = _named(rows)
    columns = list(names)
    cells = [["", *(names[key] for key in columns)]]
    for name, row in rows.items():
        spread = deviations[name] if deviations else {}
        cells.append([name, *(_format(key, row.get(key), spread.get(key)) for key in columns)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def upright(rows: dict[str, dict[str, float | None]]) -> str:
    """The same as plain text with a row for each figure, which fits a terminal.

    >>> print(upright({"original": {"mia": 0.75}, "unlearned": {"mia": None}}))
         original  unlearned
    MIA     0.750          -
    """
    names = _named(rows)
    width = max((len(name) for name in names.values()), default=0)
    lines = [" " * width + "".join(f"  {name}" for name in rows)]
    for key, name in names.items():
        figures = (_format(key, row.get(key), None).rjust(len(model)) for model, row in rows.items())
        lines.append(f"{name.ljust(width)}  {'  '.join(figures)}")
    return "\n".join(lines)


def _named(rows: dict[str, dict[str, float | None]]) -> dict[str, str]:
    """The figures that any row has, with their names."""
    scores = dict.fromkeys(key for row in rows.values() for key in row if SCORES.fullmatch(key))
    names = {key: key.replace("_", " ", 1) for key in scores} | NAMES
    return {key: name for key, name in names.items() if any(row.get(key) is not None for row in rows.values())}


def _format(key: str, value: float | None, deviation: float | None) -> str:
    if value is None:
        return "-"
    digits = 1 if key == "seconds" else 4 if key.endswith("jsd") else 3
    return f"{value:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def wrapped(text: str, indent: str = "") -> str:
    """A sentence in lines that fit into the terminal, or into 80 columns where there is none; a path stays whole."""
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


class Summarised:
    """What has a `summary()` for a terminal, which a notebook shows too, and prints as one line."""

    def summary(self) -> str:
        raise NotImplementedError

    def in_a_line(self) -> str:
        return self.summary().partition("\n")[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_a_line()})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"
