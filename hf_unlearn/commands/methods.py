"""list the methods, or show the datasheet of one: methods [--task TASK] [PATTERN]"""

from collections.abc import Sequence

from ..methods import METHODS, get_method, list_methods
from ..methods.datasheets import Datasheet, datasheets
from .text import columns, command_parser, listed, show, wrapped

SHORT = {"image-classification": "image", "text-classification": "text", "causal-lm": "lm", "multi-task": "tasks"}


def main(argv: Sequence[str]) -> None:
    parser = command_parser("methods", __doc__)
    parser.add_argument(
        "pattern", nargs="?", help="a method's name, for its datasheet, or a pattern such as '*label*'"
    )
    tasks = dict.fromkeys(task for sheet in datasheets().values() for task in sheet.applies_to)
    parser.add_argument("--task", choices=tuple(tasks), help="only methods for this task")
    options = parser.parse_args(argv)

    if options.pattern in METHODS and options.task is None:
        print(text_of(datasheets()[options.pattern]))
        return
    names = list_methods(options.pattern, options.task)
    if not names and options.pattern and options.task is None:
        get_method(options.pattern)  # raises, with the nearest name
    sheets = [datasheets()[name] for name in names]
    rows = [("method", "kind", "cost", "needs", "for")]
    for sheet in sheets:
        tasks = " ".join(SHORT.get(task, task) for task in sheet.applies_to)
        rows += [(sheet.name, sheet.kind, f"{sheet.cost:g}", ", ".join(sheet.needs), tasks)]
    lines = columns(rows)
    print(lines[0])
    for line, sheet in zip(lines[1:], sheets, strict=True):
        print(line, *wrapped(sheet.summary + " (kept for comparison)" * sheet.comparison, "    "), sep="\n")
    print("\nCost is in epochs of fine-tuning. In full: hf-unlearn methods NAME")


def text_of(sheet: Datasheet) -> str:
    """What a method is and what it takes, its defaults beside the paper's values."""
    lines = [*wrapped(f"{sheet.name}: {sheet.summary}"), ""]
    for paragraph in sheet.description.split("\n\n"):
        is_prose = not any(line.startswith((" ", "-", "|")) for line in paragraph.splitlines())
        lines += [*(wrapped(paragraph) if is_prose else paragraph.splitlines()), ""]
    rows = [("kind", sheet.kind), ("needs", ", ".join(sheet.needs)), ("applies to", ", ".join(sheet.applies_to))]
    rows += [("cost", f"{sheet.cost:g} epochs of fine-tuning")]
    if sheet.memory:
        rows += [("memory", sheet.memory)]
    if sheet.comparison:
        rows += [("kept for", "comparison: when measured, it came no nearer to retrained models than the original")]
    if sheet.paper:
        rows += [("paper", sheet.paper["title"]), ("", sheet.paper["url"])]
    lines += listed(rows)

    lines += ["", f"Settings ({sheet.config}):" if sheet.settings else "No settings of its own."]
    for setting in sheet.settings:
        differs = f"; paper {show(setting['paper'])}" if "paper" in setting else ""
        lines.append(f"  {setting['name']}: default {show(setting['default'])}{differs}")
        lines += wrapped(setting["help"], " " * 6)

    names = list(dict.fromkeys(name for values in sheet.arguments.values() for name in values))
    if names:
        table = [("", *sheet.arguments)]
        table += [
            (name, *(show(values[name]) if name in values else "-" for values in sheet.arguments.values()))
            for name in names
        ]
        lines += ["", "Training arguments, unless you set them:", *("  " + line for line in columns(table))]
    if sheet.presets:
        lines += ["", "Settings of the paper (preset: paper, or paper:SETTING):"]
        lines += wrapped(sheet.presets, "  ")
    return "\n".join(lines)
