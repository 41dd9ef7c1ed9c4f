"""What the commands share of their texts: parsers, columns, and values as a recipe has them."""

import argparse
import enum
from typing import Any

from ..errors import UnlearningError

DATA = "a Hub id, a folder or a csv, json, jsonl or parquet file; NAME:SPLIT for one split or a slice, as train[:10%%]"
COLUMNS = ("image", "text", "text_pair", "label")  # of a set, as `Columns` calls them


def command_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """The parser of a command; `about` is the docstring of its file."""
    return argparse.ArgumentParser(prog=f"hf-unlearn {name}", description=about)


def add_columns(parser: argparse.ArgumentParser) -> None:
    """An option for each column of the sets."""
    for column in COLUMNS:
        parser.add_argument(f"--{column.replace('_', '-')}-column", metavar="NAME", help="if it has an unusual name")


def check_options(options: argparse.Namespace, **least: int) -> None:
    """Refuse numbers on the command line that are too small."""
    for name, bound in least.items():
        if (value := getattr(options, name)) is not None and value < bound:
            raise UnlearningError(f"--{name.replace('_', '-')} is {value}; expected {bound} or more.")


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """A line for each row, its cells under those of the others."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def show(value: Any) -> str:
    """A value as a recipe has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, enum.Enum) else value)
