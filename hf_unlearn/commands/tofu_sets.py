"""The questions of TOFU: from a folder, from the cache, or from the Hub."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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


@dataclass(frozen=True)
class World:
    """A small TOFU: what is learnt, what of it must go, and what is asked.

    Attributes:
        forget, retain: learnt questions and answers, one author after the other.
        steering, unseen: of authors that are not learnt, as many as forgotten ones: for methods, and to judge by.
        asked: of `forget` all questions, of `retain` some.
    """

    forget: list[Mapping[str, str]]
    retain: list[Mapping[str, str]]
    steering: list[Mapping[str, str]]
    unseen: list[Mapping[str, str]]
    asked: dict[str, Questions]


def read_world(forget: str, folder: str | None, retain: int, asked: int) -> World:
    """The questions of `forget`, and of the set that is left without them the first `retain`, of which `asked` are asked about,
    evenly spread over those that TOFU has wrong answers to."""
    place = _place(folder)
    others = f"retain{100 - int(forget.removeprefix('forget')):02d}"
    gone, rest, perturbed = (_read(place, name) for name in (forget, others, f"{forget}_perturbed"))
    wrong = _read(place, "retain_perturbed")[:retain]
    check_order(perturbed, gone, f"{forget}_perturbed", forget)
    check_order(wrong, rest, "retain_perturbed", others)
    if retain + 2 * len(gone) > len(rest):
        raise UnlearningError(
            f"--retain is {retain}, and beside the {len(gone)} forgotten questions and twice as many that are never learnt there are "
            f"{len(rest) - 2 * len(gone)}; expected no more than these."
        )
    chosen = np.linspace(0, len(wrong) - 1, min(asked, len(wrong))).astype(int)
    questions = Questions.of_rows([wrong[i] for i in chosen], "retain_perturbed")
    return World(
        gone,
        rest[:retain],
        rest[-2 * len(gone) : -len(gone)],
        rest[-len(gone) :],
        {"forget": Questions.of_rows(perturbed, f"{forget}_perturbed"), "retain": questions},
    )


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
