"""The questions of TOFU: from a folder, from the cache, or from the Hub."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..audits.tofu import Questions, check_order
from ..errors import UnlearningError
from .sets import read_dataset

HUB = "locuslab/TOFU"
PLAIN = {"retain_perturbed": "retain90"}  # which questions a perturbed set asks, where its name does not say so


def read_tofu(forget: str, folder: str | None = None, limit: int | None = None) -> dict[str, Questions]:
    """The four sets of the evaluation, each with at most `limit` questions.

    Args:
        forget: which authors were to be forgotten: forget01, forget05 or forget10.
        folder: with TOFU's json files; default: `tofu` in the cache folder (~/.cache/hf_unlearn, or HF_UNLEARN_CACHE),
            else the Hub.
    """
    names = {"forget": f"{forget}_perturbed", "retain": "retain_perturbed"}
    names |= {"authors": "real_authors_perturbed", "facts": "world_facts_perturbed"}
    place = _place(folder)
    sets = {}
    for key, name in names.items():
        rows, of = _read(place, name), PLAIN.get(name, name.removesuffix("_perturbed"))
        if place is None or (place / f"{of}.json").exists():
            check_order(rows, _read(place, of), name, of)
        sets[key] = Questions.of_rows(rows, name, limit)
    return sets


def _place(folder: str | None) -> Path | None:
    """The folder to read; None: the Hub."""
    if folder is not None:
        if not Path(folder).is_dir():
            raise UnlearningError(
                f"--data is {folder!r}, which is no folder; expected one with the json files of TOFU."
            )
        return Path(folder)
    cached = Path(os.environ.get("HF_UNLEARN_CACHE", "~/.cache/hf_unlearn")).expanduser() / "tofu"
    return cached if cached.is_dir() else None


def _read(place: Path | None, name: str) -> list[Mapping[str, Any]]:
    if place is None:
        try:
            return read_dataset(HUB, name)["train"].to_list()
        except UnlearningError as error:
            raise UnlearningError(
                f"TOFU is not in the cache folder, and {HUB} cannot be had from the Hub: check the connection, or give --data, a "
                "folder with its json files."
            ) from error
    path = place / f"{name}.json"
    try:
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line]
        )
        if all(isinstance(row, dict) for row in rows):
            return rows
    except (OSError, ValueError) as error:
        if not path.is_file():
            raise UnlearningError(f"{place} has no {path.name}; expected the json files of TOFU.") from error
    raise UnlearningError(f"{path} cannot be read; expected a json list of questions, or one question a line.")
