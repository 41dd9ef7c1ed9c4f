"""What a method may ask of the run."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..data.batches import Batch
from ..data.samples import seeded
from ..data.schedule import Schedule
from ..models.modes import evaluating
from ..tasks.base import Task
from ..tasks.figures import Measurement
from ..tasks.multitask_evaluation import TaskMeasurement
from ..tasks.several import Tasks
from .teacher import OnlineTeacher, TableTeacher


class Context:
    """What a method may ask of the trainer."""

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self.seed: int = trainer.args.seed
        self.num_labels: int = trainer.num_labels
        self.forget_classes: list[int] = trainer.request.forget_classes
        self.is_class_request: bool = trainer.request.is_class
        self.parameter_names: list[str] = [name for name, _ in trainer.trained()]
        self.tasks: Tasks | None = trainer.tasks  # of a multi-task model
        self.targets: list[str] = trainer.targets  # where something must be forgotten
        self.kept: dict[int, int] = trainer.request.kept  # forget sample -> its place in `retain`, if it keeps a label
        self.task: Task = trainer.task
        self.is_deterministic: bool = trainer.deterministic  # whether training reads a sample the same in every epoch
        self.given_teacher: Any = trainer.given_teacher

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in the order of every gradient."""
        return [parameter for _, parameter in self._trainer.trained()]

    @property
    def model(self) -> nn.Module:
        """The unwrapped model."""
        return self._trainer.model

    def accuracy(self, split: str) -> float:
        """Accuracy of the model as it is now, in eval mode, on `forget`, `retain` or the `control` half of unseen."""
        return self._trainer.accuracy(split)

    def supervised(self, source: str, task: str) -> np.ndarray:
        """The samples of `forget` whose label on a task must go, or those of `retain` that have one that stays."""
        sizes = self._trainer.sizes[:, self.tasks.names.index(task)]
        n_forget = len(self._trainer.sources["forget"])
        return np.flatnonzero(sizes[:n_forget] if source == "forget" else sizes[n_forget:])

    @property
    def is_sharded(self) -> bool:
        return self._trainer.is_fsdp_enabled

    def has(self, split: str) -> bool:
        """Whether there are samples of `retain` or `control`."""
        return split in self._trainer.indices

    def measure(self, split: str) -> Measurement | TaskMeasurement:
        """What the model as it is now says about each sample of `forget`, `retain` or `control`."""
        return self._trainer.measure_split(split)

    def gradients(
        self, loss: Callable[[nn.Module, Batch], Tensor], groups: list[list[tuple[str, int]]]
    ) -> list[list[Tensor]]:
        """The whole gradient of `loss(model, batch)` over each group of samples, given as (source, index).

        The loss is made with `batch.mean`, here a mean over the group. The model is in eval mode. Groups are cut to the
        batch size and shared out over the processes, and every process gets all gradients.
        """
        return self._trainer.gradients(loss, groups)

    def is_same_in_training(self, loss: Callable[[nn.Module, Batch], Tensor]) -> bool:
        """Whether the model in training mode gives the loss of eval mode: no dropout, and BatchNorm frozen."""
        return self._trainer.is_same_in_training(loss)

    def evaluating(self) -> AbstractContextManager[None]:
        """The model in eval mode inside."""
        return evaluating(self.model)

    def uses(self, loss: Callable[[nn.Module, Batch], Tensor], sample: tuple[str, int]) -> list[bool]:
        """Which parameters the loss of a sample depends on."""
        trainer = self._trainer
        value = loss(self.model, trainer._batch(trainer._draws([sample])))
        return [g is not None for g in torch.autograd.grad(value, self.parameters, allow_unused=True)]

    def step_samples(self, group: str) -> list[tuple[str, int]]:
        """The samples of the coming step, of all processes."""
        draws = self._trainer.schedule.step(self._trainer.state.global_step)[group]
        return [(draw.source, draw.index) for draw in draws]

    @property
    def learning_rate(self) -> float:
        """Of the coming update."""
        return self._trainer.optimizer.param_groups[0]["lr"]

    def teacher(self, cache: str = "auto") -> TableTeacher | OnlineTeacher:
        """The frozen original: `teacher.logits(batch)`."""
        return self._trainer.make_teacher(cache)

    def start_from_base(self) -> None:
        """Replace the weights by those the original was trained from."""
        self._trainer.start_from_base()

    def untrained_model(self) -> nn.Module:
        """A model of the original's architecture with random weights, drawn by the seed, in eval mode and frozen."""
        model = models.base_of(self.model)
        with seeded(self.seed):
            untrained = type(model)(copy.deepcopy(model.config))
        return untrained.to(model.device, model.dtype).eval().requires_grad_(False)

    @property
    def schedule(self) -> Schedule:
        """What each step trains on."""
        return self._trainer.schedule

    def batch(self, samples: list[tuple[str, int]], epoch: int | None = None) -> Batch:
        """One batch of these samples, given as (source, index); with an epoch, as training reads them then."""
        return self._trainer._batch(self._trainer._draws(samples), epoch)

    def features(self, source: str) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        """(indices, labels, what the head of the model reads as it is now), batch by batch, of all samples of `forget` or
        `retain`, on every process."""
        trainer = self._trainer
        yield from trainer.evaluator.features(trainer._forward_model, source, np.arange(len(trainer.sources[source])))

    def log(self, values: dict[str, float]) -> None:
        """Log `values` together with the next losses."""
        self._trainer.pending_logs.update(values)

    def log_step(self, values: dict[str, Tensor]) -> None:
        """Log the means of these over processes and over the steps since the last log, as the losses are logged."""
        for name, value in values.items():
            self._trainer._add_part(name, value)
