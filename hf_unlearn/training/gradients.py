"""The gradients of a gradient method's losses, each by itself, while the micro-batches of a step are added up."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..methods.gradients import clip_


class NamedGradients:
    """A gradient for each named loss. While a loss is at work, `.grad` holds its gradient alone.

    Attributes:
        clipped: by which factor clipping has shortened each of those that were given last.
    """

    def __init__(self, max_norm: float | None):
        self.max_norm = max_norm or 0.0
        self.by_name: dict[str, list[Tensor | None]] = {}
        self.clipped: dict[str, Tensor] = {}

    @contextmanager
    def of(self, name: str, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Inside, `.grad` of the parameters is that of the loss `name`."""
        gradient = self.by_name.setdefault(name, [None] * len(parameters))
        _swap(parameters, gradient)
        yield
        _swap(parameters, gradient)

    def whole(self, parameters: list[nn.Parameter]) -> dict[str, list[Tensor]]:
        """What the micro-batches have added up to, each gradient clipped by itself; the next step begins without."""
        added, self.by_name = self.by_name, {}
        whole = {
            name: [torch.zeros_like(p) if g is None else g for g, p in zip(gradient, parameters, strict=True)]
            for name, gradient in added.items()
        }
        self.clipped = dict.fromkeys(whole, torch.ones(()))
        if self.max_norm > 0:
            self.clipped = {name: clip_(gradient, self.max_norm) for name, gradient in whole.items()}
        return whole


def reduce_every_micro_batch(model: nn.Module) -> None:
    """Undo the Trainer's `no_sync` of FSDP2, which would add up gradients out of reach, those of all names together."""
    cast(FSDPModule, model).set_requires_gradient_sync(True)


def _swap(parameters: list[nn.Parameter], gradients: list[Tensor | None]) -> None:
    for i, parameter in enumerate(parameters):
        parameter.grad, gradients[i] = gradients[i], parameter.grad
