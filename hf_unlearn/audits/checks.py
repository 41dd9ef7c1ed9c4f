"""What an audit refuses before any compute: levels and models that it cannot judge by."""

from torch import nn

from .. import models
from ..errors import UnlearningError
from . import passes
from .words import class_names

TASKS = ("image-classification", "text-classification", "causal-lm")


def check_level(level: int, reference: nn.Module | str | None = None, base_model: str | None = None) -> None:
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


def check_models(loaded: dict[str, nn.Module]) -> None:
    """Refuses models that do not say the same kind of thing about a sample, and a stand-in for retraining that is none."""
    original = loaded["original"]
    task = models.task_of(original)
    if task not in TASKS:
        raise UnlearningError(f"The original is for {task}, which cannot be audited; expected {', '.join(TASKS)}.")
    models.check_single_label(original)
    if task == "causal-lm" and "reference" in loaded:
        raise UnlearningError(
            "reference is for attacks on classifiers, and the original is a language model; leave it out."
        )
    for name, model in loaded.items():
        if (other := models.task_of(model)) != task:
            raise UnlearningError(f"original is for {task} and {name} for {other}; expected two models for one task.")
        sizes = [_outputs(m) for m in (original, model)]
        if sizes[0] != sizes[1]:
            what = "words" if task == "causal-lm" else "classes"
            raise UnlearningError(
                f"original has a head of {sizes[0]} {what} and {name} one of {sizes[1]}; expected the same in both."
            )
        maps = [class_names(m) for m in (original, model)]
        if all(maps) and maps[0] != maps[1]:
            row = next(i for i in range(sizes[0]) if maps[0][i] != maps[1][i])
            raise UnlearningError(
                f"Class {row} is {maps[0][row]!r} in original and {maps[1][row]!r} in {name}; expected one label map "
                "(config.id2label) in both."
            )
        if name in ("retrained", "reference"):
            apart = passes.distance(original, model)
            if apart is not None and apart["total"] == 0:
                raise UnlearningError(
                    f"{name} has the weights of the original, which was trained on the forget samples; expected a model that "
                    "was trained without them."
                )


def _outputs(model: nn.Module) -> int:
    config = models.base_of(model).config
    return models.num_labels(model) or config.get_text_config().vocab_size
