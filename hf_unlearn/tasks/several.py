"""Several tasks on the same inputs: labels by task, which of them a request names, and losses and scores of each."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..data.batches import Batch
from ..data.collator import Collator
from ..data.layout import CLASSES, Layout
from ..data.source import Source
from ..errors import UnlearningError
from ..models.multitask import MultiTaskModel
from ..models.multitask_labels import IGNORED, missing, sample_counts, sample_losses, score, stack_labels

Losses = Callable[[nn.Module, Batch], Mapping[str, Tensor | tuple[Tensor, Tensor]]]


class Tasks:
    """The tasks of a model.

    Attributes:
        names: of the tasks, and of the columns that hold their labels.
        kinds: classification, regression, segmentation, depth or normals; None for a task of the user's own.

    A `MultiTaskModel` says all of it. Any other model comes with a function of its own, for the loss of each sample, or
    for a pair of its loss and its score. Without scores, that of a task is exp(−mean loss). Its labels are stacked as
    float32, with NaN for a missing one; those of kind classification as int64, with -100.
    """

    def __init__(
        self,
        model: nn.Module,
        own_losses: Losses | None = None,
        own_tasks: Sequence[str] | Mapping[str, str] | None = None,
    ):
        base = models.base_of(model)
        self._own_losses, self._scored = own_losses, set()
        self._specs: dict[str, Any]
        if own_losses is not None:
            if not own_tasks or isinstance(own_tasks, str):
                raise UnlearningError(
                    f"Multitask(losses=...) was given the tasks {own_tasks!r}; expected a list of the names of their label columns."
                )
            self._specs = dict.fromkeys(own_tasks)
        elif isinstance(base, MultiTaskModel):
            self._specs = base.config.tasks
        else:
            raise UnlearningError(
                f"The model is a {type(base).__name__}; expected a MultiTaskModel, or for a model of your own "
                "method=Multitask(losses=..., tasks=[...])."
            )
        self.names = list(self._specs)
        self.kinds: dict[str, Any] = {name: spec and spec["kind"] for name, spec in self._specs.items()}
        if isinstance(own_tasks, Mapping):
            self.kinds = dict(own_tasks)

    @property
    def layout(self) -> Layout:
        """Inputs as a classifier has them, and a column of labels for each task."""
        return dataclasses.replace(CLASSES, has_classes=False, task_columns=tuple(self.names))

    def losses(self, model: nn.Module, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
        """The loss of each sample on some tasks, 0 where it has no label."""
        if self._own_losses:
            return {k: losses for k, (losses, _) in self._own(self._own_losses, model, batch).items()}
        logits = model(**batch.inputs).logits
        return {k: sample_losses(logits[k], batch["labels"][k], self.kinds[k]) for k in names}

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses, and what `score` adds up, of each sample on each task."""
        if self._own_losses:
            found = self._own(self._own_losses, model, batch)
            self._scored |= {k for k, (_, scores) in found.items() if scores is not None}
            values = {k: (losses if scores is None else scores).detach() for k, (losses, scores) in found.items()}
            counts = {k: torch.stack([value, torch.ones_like(value)], dim=1) for k, value in values.items()}
            return {k: losses for k, (losses, _) in found.items()}, counts
        logits = model(**batch.inputs).logits
        return (
            {k: sample_losses(logits[k], batch["labels"][k], self.kinds[k]) for k in self.names},
            {k: sample_counts(logits[k], batch["labels"][k], self._specs[k]) for k in self.names},
        )

    def _own(self, own_losses: Losses, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
        found = own_losses(model, batch)
        if set(found) != set(self.names):
            raise UnlearningError(
                f"The losses function gave losses of {', '.join(found)}; expected {', '.join(self.names)}."
            )
        return {k: value if isinstance(value, tuple) else (value, None) for k, value in found.items()}

    def score(self, name: str, total: Tensor) -> float:
        """Higher is better and positive, from the sum over samples of what `evaluate` gives."""
        if self._own_losses:
            mean = total[0] / total[1]
            return float(mean if name in self._scored else torch.exp(-mean))
        return score(total, self._specs[name])

    def stack(self, name: str, values: list[Any]) -> Tensor:
        """The labels of a batch."""
        if self._specs[name]:
            return stack_labels(values, self._specs[name], name)
        shape = next((np.shape(value) for value in values if value is not None), ())
        blank = np.full(shape, np.nan)
        stacked = torch.as_tensor(np.stack([blank if value is None else np.asarray(value) for value in values]))
        if self.kinds[name] == "classification":
            return stacked.nan_to_num(nan=IGNORED["classification"]).long()
        return stacked.float()

    def labelled(self, source: Source) -> np.ndarray:
        """Which samples have a label for which task: bool [n, tasks]. Reads all labels, and refuses impossible ones."""
        absent = [name for name in self.names if name not in source.column_names]
        if absent:
            raise UnlearningError(
                f"{source.name} has the columns {', '.join(source.column_names)}, and none for the task {absent[0]!r}; "
                "expected a column of labels for each task, with None where a sample has no label."
            )
        found = np.zeros((len(source), len(self.names)), bool)
        for start in range(0, len(source), 256):
            rows = source.label_rows(self.names, range(start, min(start + 256, len(source))))
            for i, name in enumerate(self.names):
                for j, row in enumerate(rows):
                    found[start + j, i] = self._has_label(name, row[name])
        return found

    def _has_label(self, name: str, value: Any) -> bool:
        if value is None:
            return False
        if self._specs[name]:
            return not missing(stack_labels([value], self._specs[name], name), self.kinds[name]).item()
        try:
            return not np.isnan(np.asarray(value, dtype=np.float64)).all()
        except (TypeError, ValueError):
            raise UnlearningError(
                f"A label of the task {name!r} is {str(value)[:40]!r}; expected a number, an array of numbers, or None."
            ) from None


class TaskCollator(Collator):
    """Rows to a `Batch` whose labels map each task to the labels of the samples."""

    def __init__(self, tasks: Tasks, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.tasks = tasks

    def _labels(self, rows: list[dict]) -> dict[str, Tensor]:
        return {name: self.tasks.stack(name, [row.get(name) for row in rows]) for name in self.tasks.names}

    def _collate(self, rows: list[dict]) -> dict:
        inputs = [{key: value for key, value in row.items() if key not in self.tasks.names} for row in rows]
        collate = self.data_collator or self._processed
        return {**collate(inputs), "labels": self._labels(rows)}


def request_mask(tasks: Any, names: Sequence[str], n_forget: int) -> np.ndarray:
    """Which supervision must go: bool [forget samples, tasks].

    Args:
        tasks: None for all tasks; the names of some; or for each sample and task whether it is to be forgotten, as a
            table, or as a dictionary with a column for each task it names.
    """
    if tasks is None:
        return np.ones((n_forget, len(names)), bool)
    if hasattr(tasks, "columns"):  # a pandas table, over which one iterates by names
        given = {name: tasks[name] for name in tasks.columns}
    else:
        given = {tasks} if isinstance(tasks, str) else tasks
    if not isinstance(given, Collection):
        raise UnlearningError(
            f"tasks is a {type(tasks).__name__}; expected names of tasks, or which tasks of which forget samples: a table, "
            "or a dictionary of columns."
        )
    if isinstance(given, Mapping) or all(isinstance(name, str) for name in given):
        if unknown := [name for name in given if name not in names]:
            raise UnlearningError(
                f"tasks names {unknown[0]!r}, which the model does not have; its tasks are {', '.join(names)}."
            )
        columns = given if isinstance(given, Mapping) else dict.fromkeys(given, np.ones(n_forget, bool))
        mask = np.zeros((n_forget, len(names)), bool)
        for name, column in columns.items():
            expected = f"one truth value for each of the {n_forget} forget samples"
            mask[:, names.index(name)] = _truth(column, f"tasks[{name!r}]", (n_forget,), expected)
    else:
        shape = n_forget, len(names)
        expected = f"{shape}: a row for each forget sample and a column for each task ({', '.join(names)})"
        mask = _truth(given, "tasks", shape, expected)
    if len(idle := np.flatnonzero(~mask.any(axis=1))):
        raise UnlearningError(
            f"tasks asks nothing of {len(idle)} of the {n_forget} forget samples (the first is row {idle[0]}); expected at "
            "least one task for each. Leave the others out of forget."
        )
    return mask


def _truth(values: Any, what: str, shape: tuple[int, ...], expected: str) -> np.ndarray:
    try:
        table = np.asarray(values)
    except ValueError:
        raise UnlearningError(f"{what} has rows of different lengths; expected {expected}.") from None
    if table.shape != shape:
        raise UnlearningError(f"{what} has the shape {table.shape}; expected {expected}.")
    if len(odd := [value for value in table.flat if value not in (0, 1)]):
        raise UnlearningError(f"{what} holds {odd[0]!s:.20}; expected true or false only.")
    return table.astype(bool)
