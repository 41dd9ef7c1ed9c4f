"""Weights, layers and samples that no edit can be made with, refused before any compute."""

import math
from collections.abc import Mapping

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from ..data.batches import Batch, to_model
from ..errors import UnlearningError
from ..models.adapters import tuner_layers
from .plan import LinearMap, Plan

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_weights(model: nn.Module, method: str) -> None:
    """Refuse weights that are not all here, or not what the model computes with."""
    kind = type(model).__name__
    if isinstance(model, PeftModel) or tuner_layers(model):
        raise UnlearningError(
            f"{method} edits the weights themselves, and {kind} has adapters; pass model.merge_and_unload()."
        )
    parameters = dict(model.named_parameters())
    shards = [name for name, p in parameters.items() if isinstance(p, DTensor) or p.is_meta]
    if shards or any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise UnlearningError(
            f"{method} needs all weights in each process, and those of {kind} are sharded, offloaded or on the meta device; "
            "load it whole on one device, or run DDP."
        )
    other = [name for name, p in parameters.items() if p.dtype not in FLOATS or type(p.data) is not Tensor]
    if other or getattr(model, "is_quantized", False):
        raise UnlearningError(
            f"{method} edits floating-point weights, and those of {kind} are quantised; pass model.dequantize()."
        )
    if len({p.device for p in parameters.values()}) > 1:
        raise UnlearningError(f"{method} edits a model on one device, and {kind} is on several; load it on one.")
    group = torch.distributed.is_initialized() and torch.distributed.get_world_size()
    if group and group != PartialState().num_processes:
        raise UnlearningError(
            f"There are {group} processes, and accelerate knows of {PartialState().num_processes}, so {method} cannot add up what "
            "they find; make accelerate.PartialState(cpu=True) first on CPUs."
        )


def ready(batch: Mapping, model: nn.Module) -> Batch:
    """A batch of anybody's loader, where the model is, with one class number a sample as labels."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        found = "missing" if labels is None else f"a {type(labels).__name__}"
        if isinstance(labels, Tensor):
            found = f"{labels.dtype} of shape {list(labels.shape)}"
        raise UnlearningError(
            f"A batch has the columns {', '.join(batch)}, and its labels are {found}; expected a tensor `labels` with one class "
            "number a sample."
        )
    return to_model(Batch(batch, labels=labels.long()), model, next(model.parameters()).device)


def check_labels(labels: Tensor, num_labels: int) -> None:
    if len(outside := labels[(labels < 0) | (labels >= num_labels)]):
        raise UnlearningError(
            f"A sample has the label {outside[0].item()}; expected 0 to {num_labels - 1}, the classes of the model's head."
        )


def check_operators(model: nn.Module, plan: Plan, as_adapter: bool) -> None:
    """Refuse operators of which an edit of the weight would be something else, or more."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for operator in (operator for reading in plan.readings for operator in reading.operators):
        module, norm = operator.module, operator.norm
        changed = {f"weight of {operator.name}": module.weight, f"bias of {operator.name}": module.bias}
        changed |= {f"bias of {operator.norm_name}": norm.bias} if norm else {}
        for what, tensor in changed.items():
            owning = owners.get(id(tensor), [])
            if tensor is not None and len(owning) != 1:
                why = (
                    f"is shared by {' and '.join(owning)}" if owning else "is computed from others (a parametrization)"
                )
                raise UnlearningError(
                    f"The {what} {why}, so editing it would change more than what reads the stage; give each module one of its own."
                )
        if not _is_linear_in_its_weight(module):
            raise UnlearningError(
                f"{operator.name} is a {type(module).__name__}, which does not compute with its weight as it is (standardised or "
                "scaled), so an edit of the weight would not be what it does; give the stages by hand, without it."
            )
        is_plain = not isinstance(module, nn.Conv2d) or (module.dilation == (1, 1) and module.padding_mode == "zeros")
        if as_adapter and not is_plain:
            raise UnlearningError(
                f"{operator.name} has dilation {module.dilation} and padding mode {module.padding_mode!r}, which PEFT leaves out "
                "of its layers; edit the weights themselves."
            )


@torch.no_grad()
def _is_linear_in_its_weight(module: LinearMap) -> bool:
    """Twice the weight must give twice as much, exactly, as 2 is a power of 2."""
    weight, size = module.weight, ()
    if isinstance(module, nn.Conv2d):
        size = tuple(2 * d * k for d, k in zip(module.dilation, module.kernel_size, strict=True))
    channels = weight.shape[0 if isinstance(module, Conv1D) else 1]
    x = torch.linspace(-1, 1, channels * math.prod(size), dtype=weight.dtype, device=weight.device)

    def given(scale: float) -> Tensor:
        weights = {name: scale * p if p is weight else 0 * p for name, p in module.named_parameters()}
        return functional_call(module, weights, (x.view(1, channels, *size),))

    return torch.allclose(given(1.0), given(0.5) * 2, rtol=1e-3, equal_nan=True)
