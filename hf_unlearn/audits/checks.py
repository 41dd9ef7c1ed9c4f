"""What an audit refuses before any compute: levels and models that it cannot judge by."""

from pathlib import Path
from types import NoneType
from typing import Any

from torch import nn

from ..data.source import Columns
from ..errors import UnlearningError
from ..tasks import TASKS, task_of
from ..tasks.base import Task
from . import passes

AUDITED = tuple(name for name, kind in TASKS.items() if kind.is_audited)


def check_level(
    level: int,
    reference: nn.Module | str | Path | None = None,
    base_model: str | None = None,
    minutes: float | None = None,
) -> None:
    if level not in (0, 1, 2):
        raise UnlearningError(
            f"level is {level!r}; expected 0 (forward passes), 1 (probes, relearning) or 2 (attacks)."
        )
    if reference is not None and level < 2:
        raise UnlearningError(
            f"level is {level}, which reads no reference model; pass level=2, or leave reference out."
        )
    if base_model is not None and (level < 2 or reference is not None):
        raise UnlearningError(
            "base_model is what a reference model of level 2 is trained from, and none is trained here; pass level=2 without "
            "reference, or leave base_model out."
        )

    if minutes is not None and not (isinstance(minutes, (int, float)) and minutes > 0):
        raise UnlearningError(f"minutes is {minutes!r}; expected a number above 0, or none.")
    if minutes is not None and level == 0:
        raise UnlearningError(
            f"minutes is {minutes:g}, and level 0 has forward passes only, of which none is left out; pass level=1 or 2, or leave "
            "minutes out."
        )


def check_settings(seed: Any, batch_size: Any, columns: Any, overlap: Any) -> None:
    if overlap not in ("error", "allow"):
        raise UnlearningError(f"overlap is {overlap!r}; expected 'error' or 'allow'.")
    for name, value, least in (("seed", seed, 0), ("batch_size", batch_size, 1)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and value >= least or name == "batch_size" and value is None):
            raise UnlearningError(f"{name} is {value!r}; expected a whole number of {least} or more.")
    if not isinstance(columns, (Columns, NoneType)):
        raise UnlearningError(
            f"columns is a {type(columns).__name__}; expected a Columns, as Columns(label=...), or nothing."
        )


def check_models(loaded: dict[str, nn.Module]) -> None:
    """Refuses models that do not say the same kind of thing about a sample, and a stand-in for retraining that is none."""
    original = loaded["original"]
    task = task_of(original)
    if not task.is_audited:
        raise UnlearningError(
            f"The original is for {task.name}, which cannot be audited; expected {', '.join(AUDITED)}."
        )
    if "reference" in loaded and 2 not in task.audit_parts:
        raise UnlearningError(
            f"reference is for attacks on classifiers, and the original is {task.noun}; leave it out."
        )
    for name, model in loaded.items():
        check_alike(task, task_of(model), name)
        if name in ("retrained", "reference"):
            apart = passes.distance(original, model)
            if apart is not None and apart["total"] == 0:
                raise UnlearningError(
                    f"{name} has the weights of the original, which was trained on the forget samples; expected a model that "
                    "was trained without them."
                )


def check_alike(task: Task, other: Task, name: str) -> None:
    """Refuses a model that does not say the same kind of thing about a sample as the original: by the tasks of the two."""
    if other.name != task.name:
        raise UnlearningError(
            f"original is for {task.name} and {name} for {other.name}; expected two models for one task."
        )
    if other.num_outputs != task.num_outputs:
        raise UnlearningError(
            f"original has a head of {task.num_outputs} {task.outputs} and {name} one of {other.num_outputs}; expected the "
            "same in both."
        )
    mine, theirs = task.class_names, other.class_names
    if mine and theirs and mine != theirs:
        row = next(i for i, (one, two) in enumerate(zip(mine, theirs, strict=True)) if one != two)
        raise UnlearningError(
            f"Class {row} is {mine[row]!r} in original and {theirs[row]!r} in {name}; expected one label map "
            "(config.id2label) in both."
        )
