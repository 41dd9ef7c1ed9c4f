"""What a method may ask, answered by the trainer."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from .. import models
from ..data.batches import Batch, to_model
from ..data.samples import seeded
from ..data.schedule import Draw, Schedule
from ..errors import UnlearningError
from ..methods import base
from ..methods.frozen import OnlineTeacher
from ..models.modes import evaluating
from ..tasks.alternatives import Alternatives
from ..tasks.figures import Measurement
from ..tasks.multitask_evaluation import TaskMeasurement
from ..tasks.several import Tasks
from .disk import check_room
from .masters import finest
from .parts import Parts
from .past import Start
from .sharding import pieces
from .teacher import TableTeacher


class Context(base.Context):
    """The run of one trainer, as a method sees it; what each member means is said in `methods.base`."""

    def __init__(self, trainer: Parts):
        self._trainer = trainer
        request = trainer.request
        self.seed = trainer.args.seed
        self.task, self.tasks, self.targets = trainer.task, trainer.tasks, trainer.targets
        self.num_labels = trainer.num_labels
        self.forget_classes, self.is_class_request, self.kept = request.forget_classes, request.is_class, request.kept
        self.parameter_names = [name for name, _ in trainer.trained()]
        self.is_deterministic = trainer.deterministic
        self.given_teacher = trainer.given_teacher

    @property
    def model(self) -> nn.Module:
        return self._trainer.model

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self._trainer.trained()]

    @property
    def fine_parameters(self) -> list[Tensor]:
        masters = {id(weight): master for weight, master in self._trainer.masters}
        return [
            finest(p.detach(), masters[id(p)].detach()) if id(p) in masters else p.detach().to(_wide(p))
            for p in self.parameters
        ]

    @property
    def schedule(self) -> Schedule:
        return self._trainer.planned

    @property
    def learning_rate(self) -> float:
        return cast(Optimizer, self._trainer.optimizer).param_groups[0]["lr"]

    @property
    def peak_learning_rate(self) -> float:
        return cast(float, self._trainer.args.learning_rate)  # which `with_defaults` has filled in

    # -- What the model as it is now says

    def has(self, split: str) -> bool:
        return split in self._trainer.indices

    def accuracy(self, split: str) -> float:
        return self._trainer.looks.accuracy(split)

    def measure(self, split: str, at_most: int | None = None) -> Measurement | TaskMeasurement:
        looks = self._trainer.looks
        source, rows = looks.indices[split]
        if at_most is None or len(rows) <= at_most:
            return looks.measure(split)
        drawn = np.random.default_rng([self.seed, 5]).choice(rows, at_most, replace=False)
        return looks.evaluator.measure(looks.model(), source, np.sort(drawn))

    def probabilities(self, split: str) -> Tensor:
        trainer = self._trainer
        return trainer.evaluator.probabilities(trainer.looks.model(), *trainer.indices[split])

    def features(self, source: str) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        trainer = self._trainer
        of = trainer.indices[source] if source == "control" else (source, np.arange(len(trainer.sources[source])))
        yield from trainer.evaluator.features(trainer.looks.model(), *of)

    # -- Samples

    def supervised(self, source: str, task: str) -> np.ndarray:
        sizes = cast(np.ndarray, self._trainer.sizes)[:, cast(Tasks, self.tasks).names.index(task)]
        n_forget = len(self._trainer.sources["forget"])
        return np.flatnonzero(sizes[:n_forget] if source == "forget" else sizes[n_forget:])

    def step_samples(self, group: str) -> list[tuple[str, int]]:
        draws = self.schedule.step(self._trainer.state.global_step)[group]
        return [(draw.source, draw.index) for draw in draws]

    def batch(self, samples: list[tuple[str, int]], epoch: int | None = None) -> Batch:
        return self._batch(self._draws(samples), epoch)

    def _draws(self, samples: list[tuple[str, int]]) -> list[Draw]:
        return self.schedule.weighted([Draw("group", source, index, 0) for source, index in samples])

    def _batch(self, draws: list[Draw], epoch: int | None = None) -> Batch:
        trainer = self._trainer
        samples = trainer.evaluator.samples
        if epoch is not None:
            samples, draws = trainer.train_dataset, [draw._replace(epoch=epoch) for draw in draws]
        batch = cast(Batch, trainer.reading.collator()(samples.__getitems__(draws)))  # one group
        return to_model(batch, self.model, trainer.args.device)

    def alternatives(self, batch: Batch) -> Batch:
        reading = self._trainer.reading
        others = cast(Alternatives, reading.alternatives)
        rows = others.drawn(batch.sample_index, batch.epoch)
        found = to_model(reading.collate.read(others.source, rows), self.model, self._trainer.args.device)
        found["sample_index"], found["rows"] = torch.tensor(rows), np.array(rows)
        return found

    def over_processes(self, value: Tensor) -> float:
        return cast(Tensor, self._trainer.accelerator.reduce(value, "mean")).item()

    # -- Gradients

    def gradients(
        self, loss: Callable[[nn.Module, Batch], Tensor], groups: list[list[tuple[str, int]]]
    ) -> list[list[Tensor]]:
        args, accelerator, parameters = self._trainer.args, self._trainer.accelerator, self.parameters
        wide = [_wide(parameter) for parameter in parameters]
        totals = [[torch.zeros_like(p, dtype=d) for p, d in zip(parameters, wide, strict=True)] for _ in groups]
        pieces = [
            (total, draws[i : i + args.train_batch_size])
            for total, draws in zip(totals, map(self._draws, groups), strict=True)
            for i in range(0, len(draws), args.train_batch_size)
        ]
        with self.evaluating():
            for total, draws in pieces[args.process_index :: args.world_size]:
                with accelerator.autocast():
                    value = loss(self.model, self._batch(draws))
                found = torch.autograd.grad(value, parameters, allow_unused=True)
                for column, gradient in zip(total, found, strict=True):
                    if gradient is not None:
                        column += gradient
                del found, gradient  # or they would be there beside the next ones
        if args.world_size > 1:
            for total in totals:
                flat = cast(Tensor, accelerator.reduce(torch.cat([column.flatten() for column in total]), "sum"))
                parts = flat.split([column.numel() for column in total])
                total[:] = [part.view_as(column) for part, column in zip(parts, total, strict=True)]
        return totals

    def uses(self, loss: Callable[[nn.Module, Batch], Tensor], sample: tuple[str, int]) -> list[bool]:
        value = loss(self.model, self.batch([sample]))
        return [g is not None for g in torch.autograd.grad(value, self.parameters, allow_unused=True)]

    def is_same_in_training(self, loss: Callable[[nn.Module, Batch], Tensor]) -> bool:
        frozen = self._trainer.frozen_batchnorm
        if set(models.batchnorm_modules(self.model)) - set(frozen):
            return False
        batch = self.batch([("forget", 0)])
        with torch.no_grad(), torch.random.fork_rng(), self.evaluating():
            value = loss(self.model, batch)
            self.model.train()
            for module in frozen:
                module.eval()
            return torch.allclose(loss(self.model, batch), value, rtol=1e-5)

    def evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self.model)

    @contextmanager
    def training(self) -> Iterator[None]:
        kept = [(module, copy.deepcopy(module.state_dict())) for module in self._trainer.frozen_batchnorm]
        with evaluating(self.model):
            self.model.train()
            yield
            self.model.eval()
        for module, state in kept:
            module.load_state_dict(state)

    @property
    def clipped(self) -> dict[str, Tensor]:
        return self._trainer.named_gradients.clipped

    # -- Other models

    def teacher(self, cache: str = "auto") -> TableTeacher | OnlineTeacher:
        if cache == "always" and not self.is_deterministic:
            raise UnlearningError(
                'cache_teacher is "always", but reading a sample twice gives different inputs (a random transform); '
                'use "auto" or "never", or remove the transform.'
            )
        if cache != "never" and self.is_deterministic:
            return self._table()
        if adapter := self._trainer.adapter:
            return OnlineTeacher(self.model, adapter.disabled)
        if sharding := self._trainer.sharding:
            return OnlineTeacher(sharding.twin(self.model))
        return OnlineTeacher(copy.deepcopy(self.model).eval().requires_grad_(False))

    def _table(self) -> TableTeacher:
        trainer = self._trainer
        used, n_forget = self.schedule.used(), len(trainer.sources["forget"])
        forget, retain = used[used < n_forget], used[used >= n_forget] - n_forget
        n_retain = len(trainer.sources["retain"]) if "retain" in trainer.sources else 0
        check_room(trainer.args, 4 * len(used) * self.num_labels)  # a full disk under a memory map kills the process
        about = trainer.private / "teacher", forget, retain, n_forget, n_retain
        table = TableTeacher(trainer.evaluator, trainer.looks.model(), *about)
        if len(forget):
            trainer.looks.accuracies["forget"] = table.forget_accuracy
        return table

    def untrained_model(self) -> nn.Module:
        model = cast(PreTrainedModel, models.base_of(self.model))
        with seeded(self.seed):
            untrained = cast(nn.Module, type(model)(copy.deepcopy(model.config)))
        if sharding := self._trainer.sharding:
            return sharding.of_whole(untrained.to(model.dtype))
        return untrained.to(model.device, model.dtype).eval().requires_grad_(False)

    def start_weights(self) -> dict[str, Tensor]:
        weights = cast(Start, self._trainer.start).take()
        return pieces(weights, self.model) if self._trainer.sharding else weights

    def look_again(self) -> None:
        self._trainer.looks.forget()

    def restore_original(self) -> None:
        self._trainer.looks.forget()
        with self._trainer.original_model() as original:
            self.model.load_state_dict(original.state_dict())

    def forget_momentum(self) -> None:
        cast(Optimizer, self._trainer.optimizer).state.clear()

    def start_from_base(self) -> None:
        trainer = self._trainer
        if trainer.adapter:
            raise UnlearningError(
                f"{trainer.method.info.name} trains all weights from base_model on; leave out peft_config."
            )
        trainer.looks.forget()
        torch.manual_seed(self.seed)
        self.model.load_state_dict(self.start_weights())

    # -- Logs

    def log(self, values: dict[str, float]) -> None:
        self._trainer.watch.pending.update(values)

    def log_step(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._trainer.watch.add(name, value)


def _wide(weight: Tensor) -> torch.dtype:
    """What is reckoned in."""
    return torch.promote_types(weight.dtype, torch.float32)
