"""Labels of several tasks: stacking them, losses of every sample, and scores."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnlearningError

# The smallest label of each kind, and what stands in it for "not labelled".
SHAPES = {"classification": (), "regression": (), "segmentation": (1, 1), "depth": (1, 1), "normals": (3, 1, 1)}
DENSE, WITH_CLASSES = ("segmentation", "depth", "normals"), ("classification", "segmentation")
IGNORED = {kind: -100 if kind in WITH_CLASSES else math.nan for kind in SHAPES}
DELTA, WITHIN = 1.25, math.cos(math.radians(30))  # thresholds of the scores of depth and normals


# Labels


def missing(labels: Tensor, kind: str) -> Tensor:
    """Which samples have no label: a bool for each."""
    ignored = _ignored(labels, kind)
    return ignored if ignored.dim() == 1 else ignored.flatten(1).all(1)


def _ignored(labels: Tensor, kind: str) -> Tensor:
    """Where a sample, or a pixel of a dense label, has no label."""
    if kind in WITH_CLASSES:
        return labels == IGNORED[kind]
    return labels.isnan().any(1) if kind == "normals" else labels.isnan()


def stack_labels(values: Sequence[Any], task: Mapping[str, Any], name: str | None = None) -> Tensor:
    """The labels of a batch as one tensor; None, and whatever stands for a missing label, becomes one.

    Args:
        values: A number, an array or None for each sample. Arrays of one batch have one size; if there are none, a
            dense label is one pixel that is not labelled.
        task: Its `kind` and `size`.
        name: Of the task, for what an error says.
    """
    kind, what = task["kind"], f"the task {name!r}" if name else f"a {task['kind']} task"
    # asarray also reads pictures, and None inside a list as NaN; in float64 no class changes
    try:
        arrays = [value if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64) for value in values]
    except (TypeError, ValueError):
        odd = next(value for value in values if isinstance(value, (str, bytes, list, dict)))
        raise UnlearningError(
            f"A label of {what} is {str(odd)[:40]!r}: expected a number, an array of numbers, or None where there is none."
        ) from None
    tensors = [torch.as_tensor(array).detach().cpu().double() for array in arrays]
    if kind in WITH_CLASSES:
        tensors = [tensor.nan_to_num(nan=IGNORED[kind]) for tensor in tensors]
    # Only a scalar can stand for a whole dense label that is missing.
    absent = [tensor.dim() == 0 and (tensor.isnan() | (tensor == -100)).item() for tensor in tensors]
    shape = next((tensor.shape for tensor, none in zip(tensors, absent, strict=True) if not none), SHAPES[kind])
    if kind in DENSE:
        blank = torch.full(tuple(shape), float(IGNORED[kind]), dtype=torch.float64)
        tensors = [blank if none else tensor for tensor, none in zip(tensors, absent, strict=True)]
    odd = next((tensor.shape for tensor in tensors if tensor.shape != shape), shape)
    if odd != shape or len(shape) != len(SHAPES[kind]) or shape[:-2] != SHAPES[kind][:-2]:
        expected = "(3, H, W)" if kind == "normals" else "(H, W)" if kind in DENSE else "one number"
        raise UnlearningError(
            f"A label of {what} has the shape {tuple(odd)}: expected {expected}, and the same for all labels of a "
            "batch; resize them with the images."
        )
    labels = torch.stack(tensors)
    if kind == "depth" and (labels <= 0).any():
        raise UnlearningError(
            f"A label of {what} is {labels[labels <= 0][0].item():g}: expected depths above 0, and NaN where there is none."
        )
    if kind not in WITH_CLASSES:
        return labels.float()
    wrong = ((labels < 0) | (labels >= task["size"]) | (labels != labels.floor())) & (labels != IGNORED[kind])
    if wrong.any():
        raise UnlearningError(
            f"A label of {what} is {labels[wrong][0].item():g}: expected one of its {task['size']} classes (0 to "
            f"{task['size'] - 1}), or {IGNORED[kind]} where there is none; map the labels, or give the task "
            "more classes."
        )
    return labels.long()


# Losses and scores


def sample_losses(output: Tensor, labels: Tensor, kind: str) -> Tensor:
    """The loss of each sample, the mean over its labelled pixels, and 0 where the label is missing."""
    output, labels, ignored = _aligned(output, labels, kind)
    # Replaced before anything is computed: a NaN that is only multiplied by 0 afterwards stays one in the gradient.
    if kind in WITH_CLASSES:
        output = torch.where(ignored.unsqueeze(1), 0.0, output)
        losses = F.cross_entropy(output, labels.masked_fill(ignored, 0), reduction="none")
    elif kind == "normals":
        output, labels = (torch.where(ignored.unsqueeze(1), 1.0, tensor) for tensor in (output, labels))
        losses = 1 - F.cosine_similarity(output, labels, dim=1)
    else:
        error = torch.where(ignored, 0.0, output) - torch.where(ignored, 0.0, labels)
        losses = error.abs() if kind == "depth" else error.square()
    losses = losses.masked_fill(ignored, 0.0)
    return losses.sum((1, 2)) / (~ignored).sum((1, 2)).clamp(min=1) if kind in DENSE else losses


@torch.no_grad()
def sample_counts(output: Tensor, labels: Tensor, task: Mapping[str, Any]) -> Tensor:
    """What `score` adds up, int64: hits and labelled; of segmentation the intersection and union of each class."""
    kind = task["kind"]
    output, labels, ignored = _aligned(output, labels, kind)
    if kind == "segmentation":
        shown = (~ignored).flatten(1).long()
        said, true = output.argmax(1).flatten(1), labels.masked_fill(ignored, 0).flatten(1)
        zeros = shown.new_zeros(len(output), task["size"])
        intersection = zeros.scatter_add(1, true, shown * (said == true))
        union = zeros.scatter_add(1, said, shown).scatter_add(1, true, shown) - intersection
        return torch.cat([intersection, union], dim=1)
    if kind == "classification":
        hits = output.argmax(1) == labels
    elif kind == "regression":
        hits = (output - labels).abs() <= task.get("tolerance", 0.1)
    elif kind == "depth":
        hits = (output < DELTA * labels) & (labels < DELTA * output)  # max(p/t, t/p) < 1.25, without a division
    else:
        hits = F.cosine_similarity(output, labels, dim=1) >= WITHIN
    counts = torch.stack([hits & ~ignored, ~ignored], dim=1).long()
    return counts.sum((2, 3)) if kind in DENSE else counts


def score(counts_sum: Tensor, task: Mapping[str, Any]) -> float:
    """The share of hits, or the mean IoU over the classes that occur; higher is better, NaN if nothing is labelled."""
    if task["kind"] == "segmentation":
        intersection, union = counts_sum.cpu().double().chunk(2)
        return (intersection / union)[union > 0].mean().item()
    hits, labelled = counts_sum.cpu().double()
    return (hits / labelled).item()


def _aligned(output: Tensor, labels: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Both in float32 at least and of one size, and where there is no label."""
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if kind not in WITH_CLASSES:
        labels = labels.to(output.dtype)
    if kind in DENSE and labels.shape[-2:] == (1, 1):  # a batch without labels
        labels = labels.expand(*labels.shape[:-2], *output.shape[-2:])
    expected = output.shape[:1] + output.shape[2:] if kind in WITH_CLASSES else output.shape
    if labels.shape != expected:
        raise UnlearningError(
            f"Labels of {kind} have the shape {tuple(labels.shape)}, and the model's outputs ask for "
            f"{tuple(expected)}: stack them with stack_labels, and resize maps with the images."
        )
    return output, labels, _ignored(labels, kind)
