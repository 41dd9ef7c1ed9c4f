"""Modes of a model for the length of a block."""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.distributed.fsdp import FSDPModule


def gather(module: nn.Module | None) -> None:
    """Weights that FSDP2 has cut up are whole from here on, until a block of `evaluating` their model ends; others always are."""
    if isinstance(module, FSDPModule):
        module.unshard()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode back after; weights that FSDP2 has gathered for it are let go again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # it keeps those of the outermost module for a backward pass that does not come
