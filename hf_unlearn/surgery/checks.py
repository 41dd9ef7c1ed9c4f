"""Weights that cannot be edited in place, refused before any compute."""

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from ..adapters import tuner_layers
from ..errors import UnlearningError

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


def check_labels(labels: Tensor, num_labels: int) -> None:
    if len(outside := labels[(labels < 0) | (labels >= num_labels)]):
        raise UnlearningError(
            f"A sample has the label {outside[0].item()}; expected 0 to {num_labels - 1}, the classes of the model's head."
        )
