"""The report of an audit: as a summary, as JSON, as part of a model card and as a page.

All are written from one dictionary, the content, which is what the JSON file holds.
"""

import html
import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, cast, overload

from ..errors import UnlearningError
from ..metrics.tables import Summarised
from ..training.output import check_file
from . import plots
from .content import NO_VALUE, At, Cell, Line, Plot, Range, Section, Table, number, plain, samples, value
from .junit import junit
from .sections import figures, sections
from .verdict import Verdict

FORMAT = 1
WIDTH = 80  # of the summary
AUC = "AUC: in how many pairs of a forget and an unseen sample the model is surer of the forgotten one; half of them where there is no trace."
INTERVAL = "95% interval"
SHOWN_ROWS = 20  # of a long table; the others are folded away
BESIDE = 4  # columns of a table that finds room beside a plot
NEEDED = ("version", "level", "seed", "task", "request", "models", "verdict")
SAID = ("plain", "headline", "tested")  # of a verdict; older reports have the headline only
WITHHELD = "Ask whoever made this model for the audit, which is not published."
TITLE_CLASSES = 5  # that are named in a title
COMMIT = re.compile("(?<=@)([0-9a-f]{8})[0-9a-f]{32}$")
GOOD, OPEN = ("no evidence",), ("cannot judge",)  # outcomes; all others are failures


@dataclass(repr=False)
class AuditReport(Summarised):
    """What an audit has found.

    Attributes:
        content: everything the report says, as values that JSON can hold.

    Example:
        >>> print(report.summary())  # doctest: +SKIP
        >>> report.to_html("audit.html")  # doctest: +SKIP
    """

    content: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        """What the audit comes to, as an object."""
        return Verdict.from_dict(self.content["verdict"])

    def in_a_line(self) -> str:
        """The verdict, and what to do about it if there is anything."""
        verdict = self.content["verdict"]
        return plain(verdict["headline"]) + ("" if verdict["outcome"] in GOOD else f" {self._next()}")

    @property
    def next_step(self) -> str:
        """What to do now."""
        return (
            WITHHELD
            if self.content["verdict"].get("withheld")
            else self.verdict.next_step(self.content["level"], self.content.get("method"))
        )

    def _next(self) -> str:
        return f"What now: {self.next_step}"

    def summary(self) -> str:
        """The verdict, the figures, the findings and what cannot be judged, for a terminal."""
        verdict, table = self.content["verdict"], figures(self.content)
        said = [_wrap(verdict[key], "") for key in SAID if key in verdict]
        said += [_wrap(self._next(), "")]
        parts = ["\n".join([f"Verdict: {plain(verdict['outcome'])}", *said])]
        if table:
            parts.append(_text_table(self.content, table.tables[0]))
        findings = [f"[{_mark(one)}] {one['sentence']}{_measure(self.content, at)}" for at, one in self._findings()]
        for title, lines in (
            ("Findings", findings),
            (
                "Self-test",
                [self.content["canary"]["sentence"]] if self.content.get("canary", {}).get("sentence") else [],
            ),
            ("What cannot be judged", verdict.get("cannot", [])),
            ("What was not measured", sections(self.content)[1]),
        ):
            if lines:
                parts.append("\n".join([title, *(_wrap(line, "- ") for line in lines)]))
        return "\n\n".join(parts)

    @overload
    def to_json(self) -> str: ...
    @overload
    def to_json(self, path: str | Path) -> Path: ...
    def to_json(self, path: str | Path | None = None) -> str | Path:
        """The content as JSON; written to `path`, which is then given back, where there is one."""
        text = json.dumps(self.content, indent=1, allow_nan=False) + "\n"
        return text if path is None else _write(path, text)

    def to_junit(self, path: str | Path) -> Path:
        """As a report of tests in JUnit's format, which continuous integration shows; gives the path."""
        return _write(path, junit(self.content, self.verdict))

    @classmethod
    def from_json(cls, path: str | Path) -> "AuditReport":
        """What `to_json` has written."""
        try:
            content = json.loads(Path(path).read_text())
        except ValueError as error:
            raise UnlearningError(f"{path} is not JSON ({error}); give the file that an audit has written.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise UnlearningError(
                f"{path} is not an audit of format {FORMAT} but of {found}; make it again with this version of hf_unlearn."
            )
        missing = [key for key in NEEDED if key not in content]
        if missing:
            raise UnlearningError(f"{path} lacks {', '.join(missing)} and is not whole; make the audit again.")
        return cls(content)

    def to_markdown(self) -> str:
        """The body of a section of a model card; its headings are of level 3."""
        content, verdict = self.content, self.content["verdict"]
        found, absent = sections(content)
        parts = [f"**{_escape(verdict['headline'])}**"]
        parts += [" ".join(_escape(verdict[key]) for key in SAID if key != "headline" and key in verdict)]
        parts = [part for part in parts if part]
        parts += [] if verdict["outcome"] in GOOD else [_escape(self._next().replace("`", '"'))]
        findings = [
            f"- **{_mark(one)}**: {_escape(one['sentence'])}{_measure(self.content, at)}"
            for at, one in self._findings()
        ]
        parts += ["\n".join(findings)] if findings else []
        if verdict.get("cannot"):
            parts += ["### What cannot be judged", _bullets(verdict["cannot"])]
        for section in found:
            if section.brief:
                parts += [f"### {section.title}", section.text]
                parts += [_bullets([_line(content, line) for line in section.lines])] if section.lines else []
                parts += [_markdown_table(self.content, table) for table in section.tables]
        if absent:
            parts += ["### What was not measured", _bullets(absent)]
        return "\n\n".join(parts) + "\n"

    def to_html(self, path: str | Path) -> Path:
        """One page, complete in itself: no script, no font, nothing from the network; gives the path."""
        content, (found, absent) = self.content, sections(self.content)
        verdict, models = content["verdict"], content["models"]
        outcome, canary = verdict["outcome"], content.get("canary") or {}
        unsure = canary.get("noticed") is False
        findings = {fails: [] for fails in (True, False)}
        for at, one in self._findings():
            findings[one["fails"]].append(_finding(content, at, one))
        parts = {section.name: (section.title, _section(content, section)) for section in found}
        first = {name: parts.pop(name) for name in ("figures",) if name in parts}
        if findings[False]:
            title = "What else was asked" if findings[True] else "What was asked"
            first["findings"] = (title, _list(title, findings[False], "findings"))
        parts = first | parts
        contents = [(name, title) for name, (title, _) in parts.items()] + [("reading", "How to read it")]
        template = Template(resources.files(cast(str, __package__)).joinpath("templates/page.html").read_text())
        page = template.substitute(
            title=_text(_title(content, lambda at: _plain_cell(content, at))),
            heading=_title(content, lambda at: _data(content, at), _text),
            about=" · ".join(
                [
                    f"{_text(content['task'])}",
                    f"level {_data(content, At(('level',)))}",
                    f"seed {_data(content, At(('seed',)))}",
                ]
            ),
            samples=" · ".join(f"{_data(content, at)} {name}" for name, at in samples(content)),
            models="<br>".join(_model(content, name) for name in models if models[name]),
            state="open" if outcome in OPEN or (unsure and outcome in GOOD) else "good" if outcome in GOOD else "bad",
            next=_code(_text(self.next_step)),
            canary=f"<b>Self-test</b> {_text(canary['sentence'])}" if canary.get("sentence") else "",
            outcome=_text(outcome),
            plain=_text(verdict.get("plain", verdict["headline"])),
            headline=_text(verdict["headline"]) if "plain" in verdict else "",
            explained=AUC if "an AUC above" in verdict["headline"] else "",
            tested=_text(verdict.get("tested", "")),
            date=f" · {_text(content['date'])}" if "date" in content else "",
            failures=_list("What fails", findings[True], "failures"),
            cannot=_list("What cannot be judged", _items(verdict.get("cannot", [])), "cannot"),
            contents="\n".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in contents),
            sections="\n".join(part for _, part in parts.values()),
            absent=_list("What was not measured", _items(absent), "absent"),
            version=_text(content["version"]),
        )
        return _write(path, page)

    def _findings(self) -> list[tuple[At, dict[str, Any]]]:
        """With their places; failures come first."""
        found = self.content["verdict"].get("findings", [])
        at = At(("verdict", "findings"))
        return sorted(((at / i, one) for i, one in enumerate(found)), key=lambda pair: not pair[1]["fails"])


def _write(path: str | Path, text: str) -> Path:
    check_file(path, "path").write_text(text, encoding="utf-8")
    return Path(path)


def _title(content: dict[str, Any], show: Callable[[At], str], text: Callable[[str], str] = plain) -> str:
    """The request and the two models, each with what pins its weights."""
    asked, about = At(("request",)), content["request"]
    at, classes = asked / "samples" / "forget", about.get("forget_classes") or []
    count = "" if value(content, at) is None else f"{show(at)} "
    kind = {"class": " of whole classes", "mixed": ", whole classes among them", "instance": " scattered among others"}
    which = kind.get(about["kind"], "")
    if about["kind"] == "class" and classes:
        names = [f" {text(about['class_names'][one])}" if about.get("class_names") else "" for one in classes]
        shown = [show(asked / "forget_classes" / i) + name for i, name in enumerate(names[:TITLE_CLASSES])]
        more = " and others" if len(classes) > TITLE_CLASSES else ""
        which = f" of {'class' if len(classes) == 1 else 'classes'} {', '.join(shown)}{more}"
    unlearned, original = (_title_name(content, name, text) for name in ("unlearned", "original"))
    return f"Audit of {count}forgotten samples{which}: {unlearned}, unlearned from {original}"


def _title_name(content: dict[str, Any], name: str, text: Callable[[str], str]) -> str:
    """Repository and revision, a commit by its first digits, and those of the weights."""
    given, digest = content["models"].get(name), value(content, At(("weights", name)))
    given = COMMIT.sub(r"\1", f"the {name}" if given in (None, name) else given)
    return text(f"{given} (weights {digest[:8]})" if digest else given)


def _model(content: dict[str, Any], name: str) -> str:
    digest = value(content, At(("weights", name)))
    weights = f' <span class="digest">weights {_text(digest[:16])}…</span>' if digest else ""
    return f"{_text(name)}: <b>{_text(content['models'][name])}</b>{weights}"


def _code(text: str) -> str:
    """`words` of a sentence as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def _mark(finding: dict[str, Any]) -> str:
    return "fails" if finding["fails"] else "note" if finding["kind"] == "info" else "no evidence"


def _wrap(text: str, mark: str) -> str:
    return textwrap.fill(plain(text), WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark))


def _measure(content: dict[str, Any], at: At, show: Callable[[Cell], str] | None = None) -> str:
    """The figures of a finding that its sentence lacks, in brackets after it."""
    show = show or (lambda cell: _plain_cell(content, cell))
    parts = []
    ends = at / "low", at / "high"
    if None not in (value(content, end) for end in ends) and INTERVAL not in value(content, at / "sentence"):
        parts.append(f"{INTERVAL} {show(ends[0])} to {show(ends[1])}")
    if value(content, at / "p") is not None:
        parts.append(f"p {show(at / 'p')}")
    if value(content, at / "p_corrected") is not None:
        parts.append(f"corrected {show(at / 'p_corrected')}")
    return f" ({'; '.join(parts)})" if parts else ""


def _plain_cell(content: dict[str, Any], cell: Cell, text: Callable[[str], str] = plain) -> str:
    if isinstance(cell, str):
        return text(cell)
    if isinstance(cell, Range):
        one, low, high = (number(value(content, at), at) for at in (cell.value, cell.low, cell.high))
        return one if value(content, cell.low) is None else f"{one} [{low}, {high}]"
    return number(value(content, cell), cell)


def _line(content: dict[str, Any], line: Line, show: Callable[[Cell], str] | None = None) -> str:
    show = show or (lambda cell: _plain_cell(content, cell))
    return " ".join(map(show, line)) if isinstance(line, tuple) else line


def _text_table(content: dict[str, Any], table: Table) -> str:
    rows = [table.head, *table.rows]
    cells = [[_plain_cell(content, cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in cells if i < len(line)) for i in range(len(table.head))]
    lines = []
    for name, *others in cells:
        indent = "" if not others else "  "
        figures = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=False))
        lines.append("  ".join([(indent + name).ljust(widths[0] + 2), *figures]).rstrip())
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Text that Markdown takes as it is."""
    return re.sub(r"([\\`*_{}\[\]|~#$])", r"\\\1", html.escape(plain(text), quote=False))


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _markdown_table(content: dict[str, Any], table: Table) -> str:
    rows = [row if len(row) > 1 else (*row, *[""] * (len(table.head) - 1)) for row in table.rows]
    left = max(0, len(rows) - SHOWN_ROWS)
    cells = [[_plain_cell(content, cell, _escape) for cell in row] for row in (table.head, *rows[: len(rows) - left])]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    lines.insert(1, "|" + "|".join(["---"] + ["---:"] * (len(table.head) - 1)) + "|")
    text = f"{_escape(table.caption)}:\n\n" if table.caption else ""
    return text + "\n".join(lines) + (f"\n\n{left:,} more rows are in the full report." if left else "")


def _text(text: object) -> str:
    return html.escape(plain(text))


def _data(content: dict[str, Any], at: At) -> str:
    """A figure, with its exact value and its place in the content."""
    figure = value(content, at)
    if figure is None:
        return f'<span title="not measured">{NO_VALUE}</span>'
    return f'<data value="{json.dumps(figure)}" data-at="{_text(at.pointer)}">{_text(number(figure, at))}</data>'


def _cell(content: dict[str, Any], cell: Cell) -> str:
    """A text may be broken after its dots and underscores, which names of layers have."""
    if isinstance(cell, Range):
        if value(content, cell.low) is None:
            return _data(content, cell.value)
        low, high = _data(content, cell.low), _data(content, cell.high)
        return f'{_data(content, cell.value)} <span class="range">[{low}, {high}]</span>'
    return re.sub(r"([._/])(?=\w)", r"\1<wbr>", _text(cell)) if isinstance(cell, str) else _data(content, cell)


def _table(content: dict[str, Any], table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' if name else "<td></td>" for name in table.head)
    lines = []
    for name, *others in table.rows:
        if others:
            figures = "".join(f"<td>{_cell(content, cell)}</td>" for cell in others)
            lines.append(f'<tr><th scope="row">{_cell(content, name)}</th>{figures}</tr>')
        else:
            lines.append(
                f'</tbody><tbody><tr><th scope="rowgroup" colspan="{len(table.head)}">{_text(name)}</th></tr>'
            )
    caption = f"<caption>{_text(table.caption)}</caption>" if table.caption else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _folded(summary: str, body: str, kind: str = "plots") -> str:
    return f'<details class="{kind}"><summary>{summary}</summary>{body}</details>'


def _figure(content: dict[str, Any], plot: Plot) -> str:
    names = [name for name in plot.x if isinstance(name, str)]
    places = list(range(1, len(plot.x) + 1)) if names else [value(content, at) for at in plot.x if isinstance(at, At)]
    numbers = [str(place) for place in places] if names and len(places) <= 12 else None
    heights = [height for at in plot.same_height for height in value(content, at)]
    drawn = plots.picture(
        plot.name,
        places,
        [plots.Series(label, [value(content, at) for at in cells], look) for label, look, cells in plot.series],
        title=plot.title,
        kind=plot.kind,
        x_label=plot.x_label,
        y_label=plot.y_label,
        ticks=names if plot.named else numbers,
        highest=1.05 * max(heights) if heights else None,
    )
    for name, colour in plots.COLOURS.items():  # the page has them for light and for dark
        drawn = drawn.replace(colour, f"var(--{name})")
    data = _folded("The figures", _table(content, plot.table()))
    return f"<figure><figcaption>{_text(plot.title)}</figcaption>{drawn}{data}</figure>"


def _section(content: dict[str, Any], section: Section) -> str:
    parts = [f'<section id="{section.name}"><h2>{section.title}</h2><p>{section.text}</p>']
    if section.lines:
        lines = (
            _line(content, line if isinstance(line, tuple) else (line,), lambda cell: _cell(content, cell))
            for line in section.lines
        )
        parts.append(f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>")
    drawn = [(plot.minor, _figure(content, plot)) for plot in section.plots]
    shown = [figure for minor, figure in drawn if not minor]
    for table in section.tables:
        top, left = table.rows[:SHOWN_ROWS], table.rows[SHOWN_ROWS:]
        block = _table(content, Table(table.head, top, table.caption))
        if left:
            block += _folded(f"{len(left):,} more", _table(content, Table(table.head, left)), "rows")
        shown.append(f'<div class="{"wide" if len(table.head) > BESIDE else "beside"}">{block}</div>')
    parts.append(f'<div class="{"figures" if drawn else ""}">{"".join(shown)}</div>')
    more = "".join(figure for minor, figure in drawn if minor)
    if more:
        parts.append(_folded("More plots", f'<div class="figures">{more}</div>'))
    return "".join([*parts, "</section>"])


def _items(lines: list[str]) -> list[str]:
    return [f"<li>{_text(line)}</li>" for line in lines]


def _list(title: str, items: list[str], name: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2><ul>{"".join(items)}</ul></section>' if items else ""


def _finding(content: dict[str, Any], at: At, finding: dict[str, Any]) -> str:
    mark = _mark(finding)
    measure = re.sub(
        r"(p|corrected) <data", r"\1&nbsp;<data", _measure(content, at, lambda cell: _cell(content, cell))
    )
    return (
        f'<li class="{mark.split()[0]}"><h3><span class="mark">{mark}</span> {_text(finding["question"])}</h3>'
        f"<p>{_text(finding['sentence'])}<small>{measure}</small></p></li>"
    )
