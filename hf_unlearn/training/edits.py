"""One edit of the weights, in the place of training."""

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from torch import nn

from ..data.batches import Batch, to_model
from ..methods import Method
from ..models import adapters
from ..tasks.evaluation import Evaluator


class Share:
    """This process's share of a set, in batches on the model's device, as often as it is iterated."""

    def __init__(self, evaluator: Evaluator, model: nn.Module, name: str):
        self.evaluator, self.model, self.name = evaluator, model, name

    def __iter__(self) -> Iterator[Batch]:
        evaluator, name = self.evaluator, self.name
        indices = np.arange(len(evaluator.samples.sources[name]))
        for _, batch in evaluator.batches(name, indices, evaluator.shard, name):
            yield to_model(batch, self.model, evaluator.accelerator.device)


def edit(method: Method, model: nn.Module, evaluator: Evaluator, as_adapter: bool) -> adapters.Adapter | None:
    """Edit the unwrapped model, the same on every process; in an adapter, the model with that is in what is given back."""
    model.eval()
    shares = [Share(evaluator, model, name) for name in ("forget", "retain")]
    if not as_adapter:
        method.edit(model, *shares)
        return None
    config, fill = cast(Callable, method.edit_as_adapter)(model, *shares)  # see `check_surgery`
    adapter = adapters.attach(model, config)
    fill(adapter.model.eval(), adapters.NAME)
    return adapter
