"""A frozen model beside the student."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data.batches import Batch
from ..models import heads
from ..models.modes import evaluating, gather


class OnlineTeacher:
    """A model run on every batch, in eval mode and without gradients; for inputs that differ from one reading to the next.

    Args:
        frozen: under an adapter, what switches it off.
    """

    def __init__(self, model: nn.Module, frozen: Callable[[], contextlib.AbstractContextManager] | None = None):
        self.model = model
        self.frozen = frozen or contextlib.nullcontext

    def logits(self, batch: Batch) -> Tensor:
        with torch.no_grad(), self.frozen(), evaluating(self.model):
            logits = self.model(**batch.inputs).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def places(self, batch: Batch, places: Tensor) -> heads.Places:
        """Of a language model, what its logits at these places are made of."""
        with torch.no_grad(), self.frozen(), evaluating(self.model):
            _, found = heads.read(self.model, batch.inputs, places, heads.states)

        def logits(states: Tensor) -> Tensor:
            gather(heads.head_of(self.model))  # it answers outside of a forward pass
            with torch.no_grad(), self.frozen():
                return found.logits(states)

        return heads.Places(found.states, logits)
