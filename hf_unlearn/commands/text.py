"""What the commands share of their texts: parsers, columns, and values as a recipe has them."""

import argparse
import enum
import re
import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from ..errors import UnlearningError

DATA = "a Hub id, a folder or a csv, json, jsonl or parquet file; NAME:SPLIT for one split or a slice, as train[:10%%]"
COLUMNS = ("image", "text", "text_pair", "label")  # of a set, as `Columns` calls them


# An argument of the functions -> what it is begun with on the command line, of this command.
_spoken: dict[str, str] = {}


def speak(words: Mapping[str, str]) -> None:
    """From now on errors name these arguments as the command line has them: {"overlap": "--overlap "}."""
    _spoken.clear()
    _spoken.update(words)


def in_its_words(sentence: str) -> str:
    """A sentence of a function, with its arguments as the command has them: `overlap="allow"` as `--overlap allow`."""
    if not _spoken:
        return sentence

    def said(found: re.Match[str]) -> str:
        begun, value = _spoken[found[1]], found[2].strip("\"'")
        value = {"True": "true", "False": "false", "None": "null"}.get(value, value)
        return begun + value if value else begun.rstrip(" =")

    return re.sub(rf"\b({'|'.join(_spoken)})=(\"[^\"]*\"|'[^']*'|\w*)", said, sentence)


class Parser(argparse.ArgumentParser):
    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As ever; errors that come later name the options as they are here."""
        speak({action.dest: f"{action.option_strings[-1]} " for action in self._actions if action.option_strings})
        return super().parse_args(*args, **kwargs)


def command_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """The parser of a command; `about` is the docstring of its file."""
    return Parser(prog=f"hf-unlearn {name}", description=about)


def add_columns(parser: argparse.ArgumentParser) -> None:
    """An option for each column of the sets, and for the length of texts."""
    parser.add_argument("--max-length", type=int, metavar="N", help="of texts, in tokens: longer ones are cut off")
    for column in COLUMNS:
        parser.add_argument(f"--{column.replace('_', '-')}-column", metavar="NAME", help="if it has an unusual name")


def add_request(parser: argparse.ArgumentParser) -> None:
    """The model and the three sets of a request that is looked at or tried out, and how the original was trained."""
    parser.add_argument("model", help="the original: a Hub id or a local folder")
    parser.add_argument("--forget", metavar="DATA", required=True, help=f"what must go: {DATA}")
    parser.add_argument("--retain", metavar="DATA", required=True, help="what must stay, named in the same way")
    parser.add_argument("--unseen", metavar="DATA", required=True, help="what the model was never trained on")
    parser.add_argument(
        "--budget", type=float, default=0.2, help="share of the original's training, in samples; default 0.2"
    )
    parser.add_argument("--original-epochs", type=float, metavar="N", help="of the original's training, if known")
    parser.add_argument("--original-learning-rate", type=float, metavar="RATE", help="of it, at its peak, if known")
    parser.add_argument("--base-model", metavar="MODEL", help='what the original was trained from, or "scratch"')
    parser.add_argument(
        "--overlap", choices=("error", "allow"), default="error", help="allow: samples may be in two sets"
    )
    parser.add_argument("--batch-size", type=int, help="samples of one training step")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    add_columns(parser)


def check_options(options: argparse.Namespace, **least: int) -> None:
    """Refuse numbers on the command line that are too small."""
    for name, bound in least.items():
        if (value := getattr(options, name)) is not None and value < bound:
            raise UnlearningError(f"--{name.replace('_', '-')} is {value}; expected {bound} or more.")


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """A line for each row, its cells under those of the others."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def wrapped(text: str, indent: str = "", begin: str | None = None) -> list[str]:
    """Lines that fit into the terminal, or into 80 columns of a file; after the first, whose `begin` may be another, indented."""
    width = max(min(shutil.get_terminal_size().columns, 110), len(indent) + 40)
    begin = indent if begin is None else begin
    return textwrap.wrap(
        text, width, initial_indent=begin, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def listed(rows: list[tuple[str, ...]], indent: str = "") -> list[str]:
    """Columns of which the last is a text that may take several lines."""
    lines = columns([(*row[:-1], "|") for row in rows])
    return [
        line
        for begin, row in zip(lines, rows, strict=True)
        for line in wrapped(row[-1], " " * (len(indent + begin) - 1), indent + begin[:-1])
        or [indent + begin[:-1].rstrip()]
    ]


def show(value: Any) -> str:
    """A value as a recipe has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, enum.Enum) else value)
