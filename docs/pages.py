"""What the site has beyond the pages in this folder: its front page, the methods and the reference. A hook of mkdocs.

The front page is README.md. Each method has a page of its datasheet and of the committed results. Links that lead out of this folder
lead to the repository.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE.parent / "recipes" / "experiments")]

import closeness_picture  # noqa: E402
from links import DOCS, ROOT, relinked  # noqa: E402
from outcomes import BUDGET, SHORT, groups, read, shared  # noqa: E402

from hf_unlearn.methods.datasheets import Datasheet, datasheets  # noqa: E402

STUDIES = {  # of a method, where more is said of it
    **dict.fromkeys(("auto", "rewind"), "closeness.md"),
    "lotus": "lotus.md",
    **dict.fromkeys(("hamu", "pcgrad", "gru", "orthograd"), "hamu.md"),
    **dict.fromkeys(("grad_diff", "npo", "simnpo", "rmu"), "language-models.md"),
    **dict.fromkeys(("damp", "ssd"), "surgery.md"),
    "multitask": "multitask.md",
    "local_teacher": "locality.md",
}
FAMILIES = {
    "image-classification": "images",
    "text-classification": "texts",
    "causal-lm": "language models",
    "multi-task": "models of several tasks",
}
REFERENCE = {
    "Unlearning": [
        "hf_unlearn." + name
        for name in (
            *("unlearn", "UnlearningResult", "choose", "UnlearningArguments", "training.trainer.UnlearningTrainer"),
            *("split_dataset", "UnlearningError"),
        )
    ],
    "Audits": [
        "hf_unlearn." + name
        for name in ("audit", "AuditReport", "audits.verdict.Verdict", "audits.locality.locality", "measure_hardness")
    ],
    "Methods": [
        "hf_unlearn." + name for name in ("list_methods", "get_method", "methods.Method", "methods.MethodInfo")
    ],
    "Formulas": [
        "hf_unlearn." + name
        for name in (
            *("methods.lotus.temperature", "methods.lotus.targets", "methods.hamu.hamu_update"),
            *(
                "methods.local_teacher.similarity",
                "methods.local_teacher.truncate_targets",
                "methods.multitask.project_out",
            ),
            *("surgery.damp.forget_directions", "surgery.damp.remove_directions", "surgery.damp.depth_coefficient"),
            *("surgery.ssd.dampen", "surgery.damp_edit", "surgery.ssd_edit", "surgery.find_plan"),
        )
    ],
    "Metrics": ["hf_unlearn.metrics"],
    "Releases": [
        "hf_unlearn.hub." + name
        for name in (
            "prepare",
            "verify",
            "Verification",
            "push",
            "list_revisions",
            "tag",
            "rollback",
            "purge_plan",
            "purge",
        )
        + ("make_card", "make_receipt", "prove", "check_inclusion", "push_metric", "Parent", "Pushed")
    ],
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The nav, with what is made here and without pages that are not there; a page that it does not name goes to Results."""
    made = {
        "METHODS": [
            "methods/index.md",
            {"All in one table": "methods.md"},
            *({f"{name}": f"methods/{name}.md"} for name in datasheets()),
        ],
        "REFERENCE": [{title: f"reference/{title.lower()}.md"} for title in REFERENCE],
    }
    nav = [
        {title: made.get(part, part)} if isinstance(part, str) else {title: part} for title, part in _parts(config.nav)
    ]
    there = {"index.md", *(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))}
    for _, parts in _parts(nav):
        if isinstance(parts, list) and parts not in made.values():
            parts[:] = [part for part in parts if _path(part) in there]
    named = {_path(part) for _, parts in _parts(nav) for part in (parts if isinstance(parts, list) else [parts])}
    next(parts for title, parts in _parts(nav) if title == "Results").extend(sorted(there - named))
    config.nav = nav
    return config


def _parts(nav: Any) -> list[tuple[str, Any]]:
    return [pair for part in nav for pair in part.items()]


def _path(part: Any) -> str:
    return part if isinstance(part, str) else next(iter(part.values()))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = {"index.md": relinked((ROOT / "README.md").read_text(), ROOT, DOCS)}
    made |= dict(method_pages())
    made |= {f"reference/{title.lower()}.md": reference(title) for title in REFERENCE}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = (DOCS / page.file.src_uri).parent
    return relinked(markdown, here, here).replace("<details>", '<details markdown="1">')  # GitHub needs no such word


def reference(title: str) -> str:
    return f"# {title}\n\n" + "\n\n".join(f"::: {name}" for name in REFERENCE[title]) + "\n"


def method_pages() -> Iterator[tuple[str, str]]:
    """Of each method its page and its pictures, and an overview."""
    found = groups(shared(read()))
    yield "methods/index.md", overview()
    for name, sheet in datasheets().items():
        panels = [group for group in found if any(one.name == name for one in group.methods)]
        yield f"methods/{name}.md", method_page(sheet, panels)
        if panels:
            yield f"methods/pictures/{name}.svg", closeness_picture.picture(panels, 2, name)
            yield f"methods/pictures/{name}-narrow.svg", closeness_picture.picture(panels, 1, name)


def overview() -> str:
    lines = ["# Methods", "", "One page each, made of the method's datasheet and of the committed results."]
    lines += ["[Which one for which request](../index.md#which-method-for-which-request)."]
    for kind, sheets in _by_family().items():
        lines += ["", f"## {kind}", "", "| method | what it does | cost in epochs |", "|---|---|---:|"]
        for sheet in sheets:
            note = " (kept for comparison)" * sheet.comparison
            lines.append(f"| [`{sheet.name}`]({sheet.name}.md) | {sheet.summary}{note} | {sheet.cost:g} |")
    return "\n".join(lines) + "\n"


def _by_family() -> dict[str, list[Datasheet]]:
    titles = {"image-classification": "Classifiers", "causal-lm": "Language models", "multi-task": "Several tasks"}
    return {
        title: [one for one in datasheets().values() if family in one.applies_to] for family, title in titles.items()
    }


def method_page(sheet: Datasheet, panels: list[closeness_picture.Group]) -> str:
    needs = ", ".join(f"`{need}=`" for need in sheet.needs)
    facts = {
        "applies to": ", ".join(FAMILIES.get(task, task) for task in sheet.applies_to),
        "needs": needs,
        "kind": sheet.kind,
        "cost": f"{sheet.cost:g} epochs of fine-tuning",
        "memory": sheet.memory,
        "paper": sheet.paper and f"[{sheet.paper['title']}]({sheet.paper['url']})",
        "paper's values": sheet.presets and f"`{sheet.config}.paper(…)`: {_cell(sheet.presets)}",
        "more": sheet.name in STUDIES and f"[{STUDIES[sheet.name].removesuffix('.md')}](../{STUDIES[sheet.name]})",
    }
    call = ", ".join(
        f"{need}={'validation' if need == 'unseen' else need}" for need in sheet.needs if need != "labels"
    )
    parts = [f"# `{sheet.name}`", f"{sheet.summary[0].upper()}{sheet.summary[1:]}."]
    if sheet.comparison:
        parts.append("Kept for comparison: at its best it came no nearer to retrained models than the original does.")
    parts.append("\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items() if value)]))
    parts.append(f'```python\nresult = unlearn(model, {call}, method="{sheet.name}")\n```')
    parts += ["## What it does", sheet.description]
    parts += [
        "## How close it comes, at what cost",
        *(measured(sheet.name, panels) if panels else [_unmeasured(sheet)]),
    ]
    if sheet.settings:
        parts += ["## Settings", f"Fields of `{sheet.config}`.", _settings(sheet)]
    if any(sheet.arguments.values()):
        parts += ["## Training arguments", "What `UnlearningArguments` leave unset.", _arguments(sheet)]
    return "\n\n".join(parts) + "\n"


def _unmeasured(sheet: Datasheet) -> str:
    if sheet.name in STUDIES and STUDIES[sheet.name] != "closeness.md":
        more = f"[{STUDIES[sheet.name]}](../{STUDIES[sheet.name]})"
        return f"Not part of [the study of closeness](../closeness.md); what was measured is in {more}."
    if sheet.name == "retrain":
        return "It is what the others are held against."
    return "Not measured in [the study of closeness](../closeness.md)."


def measured(name: str, panels: list[closeness_picture.Group]) -> Iterator[str]:
    picture = f"pictures/{name}"
    yield (
        f'<picture><source media="(max-width: 700px)" srcset="{picture}-narrow.svg">'
        f'<img src="{picture}.svg" alt="Distance to a retrained model over cost, with {name} marked; the figures are below"></picture>'
    )
    lines = ["| | distance | of the original | cost, of retraining | seeds |", "|---|---:|---:|---:|---:|"]
    for group in panels:
        one = next(one for one in group.methods if one.name == name)
        cost = f"{100 * one['share_of_training']:.0f} %"
        title = f"{SHORT[group.case]}, {closeness_picture.REQUESTS[group.request]}"
        lines.append(f"| {title} | {one['ratio']:.2f} | {group.original['ratio']:.2f} | {cost} | {one.seeds} |")
    yield "\n".join(lines)
    yield (
        "Distance is the mean JSD of answers on forget samples to retrained models; 1 is what two of these are apart. All at defaults"
        + (f" and a budget of {BUDGET:g}" if name in closeness_picture.LOUD else "")
        + "; grey points are the other methods. [The study](../closeness.md)."
    )


def _settings(sheet: Datasheet) -> str:
    paper = any("paper" in setting for setting in sheet.settings)
    lines = [f"| setting | default |{' paper |' * paper} what it is |", f"|---|---|{'---|' * paper}---|"]
    for one in sheet.settings:
        there = f" `{one['paper']!r}` |" if "paper" in one else " |"
        lines.append(f"| `{one['name']}` | `{one['default']!r}` |{there * paper} {_cell(one['help'])} |")
    return "\n".join(lines)


def _arguments(sheet: Datasheet) -> str:
    families = [family for family, those in sheet.arguments.items() if those]
    names = list(dict.fromkeys(name for family in families for name in sheet.arguments[family]))
    lines = [f"| | {' | '.join(families)} |", "|---" * (len(families) + 1) + "|"]
    for name in names:
        cells = (sheet.arguments[family].get(name) for family in families)
        lines.append(f"| `{name}` | {' | '.join('' if cell is None else _number(cell) for cell in cells)} |")
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"`{value:.3g}`" if isinstance(value, float) else f"`{value!r}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
