"""Small teachers: made, trained, and checked that they have not seen what must go."""

import copy
import inspect
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .. import models
from ..errors import UnlearningError
from ..models.adapters import NAME, is_adapted, merged, own_adapters, tuner_layers
from ..models.modes import evaluating, single_values
from ..models.small import PatchNet, ResNet8, small_transformer
from ..tasks.base import Task
from ..tasks.losses import cross_entropy


def new_teacher(given: Any, original: nn.Module, task: Task, pixels: int = 32, small: bool = False) -> nn.Module:
    """A fresh teacher: from scratch by its name ("auto": by what the original reads, and of images by whether its training set is
    `small`; of images at about so many `pixels`), a checkpoint, a copy of a model, or from a function."""
    channels = models.image_channels(original)
    kinds = {"patches": PatchNet, "resnet8": ResNet8} if channels else {}
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    if not isinstance(given, str):
        found = given() if callable(given) else given
        if not isinstance(found, nn.Module):
            raise UnlearningError(
                f"local_teacher: teacher= gave a {type(found).__name__}; expected a model, or a function that returns one."
            )
        return found
    if given == "auto":
        given = "transformer" if not channels else "patches" if small else "resnet8"
    if given in kinds:
        return kinds[given](task.num_labels, channels, pixels)
    if given == "transformer" and not channels:
        words = models.embedding_of(original).num_embeddings
        return small_transformer(task.num_labels, words, models.max_tokens(original) or 512)
    if given in ("patches", "resnet8", "transformer"):
        own = " or ".join(map(repr, kinds)) or "'transformer'"
        raise UnlearningError(f"local_teacher: teacher is {given!r}, and the model is for {task.name}; use {own}.")
    teacher = models.load_model(given, task=task.name, num_labels=task.num_labels)
    words, theirs = (None if channels else models.embedding_of(m).num_embeddings for m in (original, teacher))
    if theirs != words:
        raise UnlearningError(
            f"local_teacher: teacher is {given!r} with {theirs} tokens, and the model has {words}; expected a checkpoint with "
            "the same tokenizer, such as the one that the model was trained from."
        )
    return teacher


def new_optimizer(model: nn.Module, kind: str, rate: float | None, decay: float) -> torch.optim.Optimizer:
    """`sgd` with momentum, `adamw`, or `auto`: AdamW for what attends over tokens."""
    attends = any(models.attends(module) for module in model.modules())
    about: dict[str, Any] = {"lr": rate or (0.05 / models.width(model) if attends else 0.05), "weight_decay": decay}
    if kind == "adamw" or (kind == "auto" and attends):
        return torch.optim.AdamW(model.parameters(), **about)
    return torch.optim.SGD(model.parameters(), momentum=0.9, **about)


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[tuple[dict[str, Tensor], Tensor]]],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    accuracy: float,
) -> float:
    """Plain cross-entropy until the running accuracy of an epoch is enough; that accuracy is given back.

    `batches` gives the inputs and labels of an epoch. In the last fifth of the epochs the learning rate is a tenth.
    """
    model.train()
    for epoch in range(epochs):
        if epoch == -(-4 * epochs // 5):
            for group in optimizer.param_groups:
                group["lr"] /= 10
        right = total = 0
        for inputs, labels in batches(epoch):
            with single_values(model):
                logits = model(**inputs).logits
            optimizer.zero_grad()
            cross_entropy(logits, labels).mean().backward()
            optimizer.step()
            right, total = right + (logits.argmax(dim=-1) == labels).sum(), total + len(labels)
        reached = float(right) / total
        if reached >= accuracy:
            break
    return reached


def readable(teacher: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the teacher takes of the inputs, in its own precision."""
    dtype, takes = next(teacher.parameters()).dtype, inspect.signature(teacher.forward).parameters
    return {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items() if key in takes}


def check_teacher(
    teacher: nn.Module,
    original: nn.Module,
    inputs: dict[str, Tensor],
    num_labels: int,
    held: Container[str] = (),
) -> bool:
    """Refuse a teacher that calls the original or has its weights, and one that does not answer as a classifier does.

    Its weights are those it holds and those of all modules that run when it answers, which may hide in a closure. They are
    too many of the original's where they are more than half of those, or more than half of its own. Not found out are copies
    that have been changed a little, and those that no module holds: a table of features, or weights that a function is given.

    Weights that the original's training has left frozen are no reason; whether the teacher has those is given back. Those that
    are `held` are only frozen by the method itself.
    """
    called: list[nn.Module] = []
    try:
        with torch.no_grad(), evaluating(teacher), register_module_forward_pre_hook(lambda m, _: called.append(m)):
            logits = getattr(teacher(**inputs), "logits", None) if inputs else None
    except Exception as error:
        shapes = ", ".join(f"{key} of {'x'.join(map(str, x.shape[1:]))}" for key, x in inputs.items())
        raise UnlearningError(
            f"local_teacher: the teacher is a {type(teacher).__name__} that fails on the model's inputs, {shapes} "
            f"({str(error).partition(chr(10))[0].rstrip('.')}); expected a model that reads what the original does."
        ) from error
    learned, frozen = _matrices(original, held)
    used = {id(w): w for module in (*teacher.modules(), *called) for w in module.parameters(recurse=False)}
    own = [w for w in used.values() if _is_whole_matrix(w)]
    does, advice = "calls" if not set(called).isdisjoint(original.modules()) else "", ""
    for theirs in learned:
        copied = sum(_among(w, theirs) for w in own), sum(_among(w, own) for w in theirs)
        if not does and (2 * copied[0] > len(own) or 2 * copied[1] > len(theirs)):
            does = f"has {copied[1]} of {len(theirs)} weight matrices of"
            advice = (
                " (where the original's training has left just these as they are in one, freeze them in the original with "
                "requires_grad_(False), and leave out peft_config)"
            )
    if does:
        raise UnlearningError(
            f"local_teacher: the teacher {does} the original, whose features have seen the forget samples, so that nothing would "
            f"be forgotten; expected a model from scratch, or a public checkpoint{advice}."
        )
    if logits is None or logits.shape[-1] != num_labels:
        found = "no .logits" if logits is None else f"{logits.shape[-1]} logits"
        raise UnlearningError(
            f"local_teacher: the teacher is a {type(teacher).__name__} that gives {found}; expected .logits of {num_labels} "
            "classes, from the inputs of the original."
        )
    return 2 * sum(_among(w, frozen) for w in own) > len(own)


def _matrices(original: nn.Module, held: Container[str]) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Those that the original's training may have changed, as they are and with its adapters merged; and all others."""
    known: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, weight in original.named_parameters():
        ours = is_adapted(original) and f".{NAME}." in name
        if _is_whole_matrix(weight) and not ours:
            known[name in held or _may_have_learned(original, name, weight)].append(weight)
    learned = [known[True]]
    if (
        is_adapted(original) and own_adapters(original) and tuner_layers(original) and any(known.values())
    ):  # not sharded
        weights = filter(_is_whole_matrix, merged(original).parameters())
        learned.append([w for w in weights if not _among(w, known[False])])
    return learned, known[False]


def _is_whole_matrix(weight: Tensor) -> bool:
    """Neither quantised nor a piece of a sharded one."""
    return weight.ndim > 1 and weight.is_floating_point() and not hasattr(weight, "full_tensor")


def _may_have_learned(original: nn.Module, name: str, weight: Tensor) -> bool:
    """Whether the original's training may have changed a weight: of a `PeftModel` its adapters, else what is not frozen."""
    if not is_adapted(original):
        return weight.requires_grad
    own = own_adapters(original)  # under an adapter of ours alone, everything is frozen
    return not own or any(f".{adapter}." in name for adapter in own)


def _among(weight: Tensor, others: Iterable[Tensor]) -> bool:
    return any(weight.shape == other.shape and _same(weight, other) for other in others)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two weights are the same in the coarser one of their precisions, up to the rounding of a merge in float32."""
    coarser = max(a.dtype, b.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    a, b = a.to(coarser), b.to(a.device, coarser)
    return torch.allclose(a, b, rtol=0, atol=4 * torch.finfo(torch.float32).eps * b.abs().max().item())
