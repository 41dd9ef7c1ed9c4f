"""Batches of model inputs, with what unlearning needs to know about each sample."""

import torch
from torch import Tensor, nn


class Batch(dict):
    """Model inputs, with what unlearning needs to know about each sample beside them.

    `rows` is `sample_index` as an array, for which no device has to be asked.
    """

    EXTRAS = ("labels", "is_forget", "sample_index", "rows", "epoch", "weight", "sample_weight")

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        return {key: value for key, value in self.items() if key not in self.EXTRAS}

    def __getattr__(self, name: str) -> Tensor:
        if name in self.EXTRAS and name in self:
            return self[name]
        raise AttributeError(name)

    def mean(self, per_sample: Tensor, column: int | None = None) -> Tensor:
        """The mean over the whole global batch of the step, of which this micro-batch is a part.

        Summed over micro-batches and averaged over processes it gives the same loss however the batch is split. Samples
        count as the schedule's `sizes` say: those of a language model by their completion tokens, so that of means over
        each sample's own tokens this is the mean over all tokens. `column` chooses one of several sizes a sample.
        """
        weight = self.weight if column is None else self.weight[:, column]
        return (per_sample * weight.to(per_sample.dtype)).sum()

    def mean_over_samples(self, per_sample: Tensor) -> Tensor:
        """The same mean with every sample counting the same, however many tokens it has."""
        return (per_sample * self.sample_weight.to(per_sample.dtype)).sum()


def to_model(batch: Batch, model: nn.Module, device: torch.device) -> Batch:
    """The batch on the device, with floating-point inputs in the model's precision."""
    dtype = next(model.parameters()).dtype
    moved = Batch({key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)})
    if isinstance(batch.get("labels"), dict):  # of several tasks
        moved["labels"] = {task: labels.to(device) for task, labels in batch["labels"].items()}
    if "rows" in batch:
        moved["rows"] = batch["rows"]
    for key, value in moved.inputs.items():
        if value.is_floating_point():
            moved[key] = value.to(dtype)
    return moved
