"""Modes of a model for the length of a block."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from .kinds import batchnorm_modules


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


@contextlib.contextmanager
def single_values(model: nn.Module) -> Iterator[None]:
    """Inside, a BatchNorm in training that is given one value a channel takes its running statistics: the last sample of an epoch may
    be alone in its batch, a single value has no variance, and torch refuses it."""
    switched: set[nn.Module] = set()

    def settle(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if module.training and given[0].numel() == given[0].shape[1]:
            switched.add(module.eval())

    def resume(module: nn.Module, *_: object) -> None:
        if module in switched:
            switched.remove(module.train())

    alone = [module for module in batchnorm_modules(model) if not isinstance(module, nn.SyncBatchNorm)]
    hooks = [
        hook
        for m in alone
        for hook in (m.register_forward_pre_hook(settle), m.register_forward_hook(resume, always_call=True))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in switched:
            module.train()
