"""Weights that cannot be edited in place, refused before any compute."""

from collections.abc import Mapping

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from ..adapters import tuner_layers
from ..batches import Batch
from ..errors import UnlearningError
from ..evaluation import to_model

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
