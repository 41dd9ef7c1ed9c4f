"""What every part of an audit works on: the models, the samples and what the models say about them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..data.batches import Batch, to_model
from ..data.collator import Collator
from ..data.samples import TrainingCollator
from ..data.schedule import Draw
from ..tasks.base import Task
from ..tasks.evaluation import Evaluator
from ..tasks.figures import Measurement
from .split import Split


@dataclass
class AuditContext:
    """Models and sets of one audit.

    Attributes:
        models: `original`, `unlearned` and, where one was given, `retrained`; on the device, in eval mode. They are the
            caller's: whoever trains or rounds one copies it first.
        evaluator: reads the samples and runs forward passes.
        sets: `forget`, `retain` and `unseen` -> (name of the source, row indices), as the evaluator's methods take them.
        labels: of these rows; all 0 for a language model.
        measured: model -> set -> its measurement.
        is_class: whether whole classes are forgotten: none of them is among the retained samples.
        task, num_labels: of the models; 0 labels where they are no classifiers.
        seed: of whatever is drawn.
        collator: rows to model inputs.
        reference: a model that has never seen the forget samples, if one was given.
        base_model: what the original was fine-tuned from, by its name; a reference model is trained from it.
        split: how the unseen samples were split.
        passes: samples that have gone forward through a model so far, see `count`.
    """

    models: dict[str, nn.Module]
    evaluator: Evaluator
    sets: dict[str, tuple[str, np.ndarray]]
    labels: dict[str, np.ndarray]
    is_class: bool
    task: Task
    num_labels: int
    collator: Collator
    seed: int = 0
    reference: nn.Module | None = None
    measured: dict[str, dict[str, Measurement]] = field(default_factory=dict)
    base_model: str | None = None
    split: Split = Split(None)
    passes: int = 0

    def given(self, name: str) -> int:
        """How many samples of a set are measured, as they were given: of pieces of texts, the texts."""
        source, rows = self.sets[name]
        return self.evaluator.samples.sources[source].count(rows)

    def count(self, model: nn.Module) -> RemovableHandle:
        """From now on every sample that goes through the model, or through a copy of it, is counted in `passes`."""

        def add(module: nn.Module, args: tuple, inputs: dict[str, Tensor]) -> None:
            self.passes += len(next(iter(inputs.values())))

        return model.register_forward_pre_hook(add, with_kwargs=True)

    def batches(
        self,
        name: str,
        rows: np.ndarray | None = None,
        shuffle_seed: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Batch]:
        """One pass over a set in batches on the device; `batch.mean(losses)` is the mean over the batch.

        Args:
            rows: only these places of the set (0 is its first sample), in this order.
            shuffle_seed: in an order that is drawn with this seed.
            batch_size: default: the evaluator's.
        """
        source, indices = self.sets[name]
        chosen = indices if rows is None else indices[rows]
        if shuffle_seed is not None:
            chosen = np.random.default_rng(shuffle_seed).permutation(chosen)
        size, collate = batch_size or self.evaluator.batch_size, TrainingCollator(self.evaluator.collator.collator)
        model = next(iter(self.models.values()))
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            draws = [Draw("group", source, int(row), 0, 1 / len(part), 1 / len(part)) for row in part]
            batch = cast(Batch, collate(self.evaluator.samples.__getitems__(draws)))  # one group
            yield to_model(batch, model, self.evaluator.accelerator.device)
