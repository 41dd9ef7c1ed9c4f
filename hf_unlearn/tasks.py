"""Several tasks on the same inputs: labels by task, which of them a request names, and losses and scores of each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import models
from .batches import Batch, Collator
from .data import Source
from .errors import UnlearningError
from .multitask_model import MultiTaskModel, missing, sample_counts, sample_losses, score, stack_labels

Losses = Callable[[nn.Module, Batch], Mapping[str, Tensor]]


class Tasks:
    """The tasks of a model.

    Attributes:
        names: of the tasks, and of the columns that hold their labels.
        kinds: classification, regression, segmentation, depth or normals; None for a task of the user's own.

    A `MultiTaskModel` says all of it. Any other model comes with a function of its own for the losses; its tasks have
    the score exp(−mean loss), labels that are stacked as they are, and None or NaN where one is missing.
    """

    def __init__(self, model: nn.Module, own_losses: Losses | None = None, own_names: Sequence[str] | None = None):
        base = models.base_of(model)
        self._own_losses = own_losses
        if own_losses is None and not isinstance(base, MultiTaskModel):
            raise UnlearningError(
                f"The model is a {type(base).__name__}; expected a MultiTaskModel, or for a model of your own "
                "method=Multitask(losses=..., tasks=[...])."
            )
        if own_losses is not None and not own_names:
            raise UnlearningError("Multitask(losses=...) was given no tasks; expected the names of their label columns.")
        self._specs = dict.fromkeys(own_names) if own_losses else base.config.tasks
        self.names = list(self._specs)
        self.kinds = {name: spec and spec["kind"] for name, spec in self._specs.items()}

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The loss of each sample on each task, 0 where it has no label."""
        return self.evaluate(model, batch)[0]

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
        """Losses, and what `score` adds up, of each sample on each task."""
        if self._own_losses:
            losses = self._own_losses(model, batch)
            if set(losses) != set(self.names):
                raise UnlearningError(
                    f"The losses function gave losses of {', '.join(losses)}; expected {', '.join(self.names)}."
                )
            return losses, {k: torch.stack([x.detach(), torch.ones_like(x)], dim=1) for k, x in losses.items()}
        logits = model(**batch.inputs).logits
        return (
            {k: sample_losses(logits[k], batch.labels[k], self.kinds[k]) for k in self.names},
            {k: sample_counts(logits[k], batch.labels[k], self._specs[k]) for k in self.names},
        )

    def score(self, name: str, total: Tensor) -> float:
        """Higher is better and positive, from the sum over samples of what `evaluate` gives."""
        if self._own_losses:
            return float(torch.exp(-total[0] / total[1]))
        return score(total, self._specs[name])

    def stack(self, name: str, values: list[Any]) -> Tensor:
        """The labels of a batch."""
        if self._specs[name]:
            return stack_labels(values, self._specs[name], name)
        shape = next((np.shape(value) for value in values if value is not None), ())
        blank = np.full(shape, np.nan)
        stacked = torch.as_tensor(np.stack([blank if value is None else np.asarray(value) for value in values]))
        return stacked.float() if stacked.dtype == torch.float64 else stacked

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
        return not np.isnan(np.asarray(value, dtype=np.float64)).all()


class TaskCollator(Collator):
    """Rows to a `Batch` whose labels map each task to the labels of the samples."""

    def __init__(self, tasks: Tasks, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.tasks = tasks

    def _labels(self, rows: list[dict]) -> dict[str, Tensor]:
        return {name: self.tasks.stack(name, [row.get(name) for row in rows]) for name in self.tasks.names}

    def _collate(self, rows: list[dict]) -> dict:
        inputs = [{key: value for key, value in row.items() if key not in self.tasks.names} for row in rows]
        return {**super()._collate(inputs), "labels": self._labels(rows)}


def request_mask(tasks: Any, names: Sequence[str], n_forget: int) -> np.ndarray:
    """Which supervision must go: bool [forget samples, tasks].

    Args:
        tasks: None for all tasks; the names of some; or for each sample and task whether it is to be forgotten, as a
            table, or as a dictionary with a column for each task it names.
    """
    if tasks is None:
        return np.ones((n_forget, len(names)), bool)
    given = {tasks} if isinstance(tasks, str) else tasks
    if isinstance(given, Mapping) or all(isinstance(name, str) for name in given):
        if unknown := [name for name in given if name not in names]:
            raise UnlearningError(
                f"tasks names {unknown[0]!r}, which the model does not have; its tasks are {', '.join(names)}."
            )
        columns = given if isinstance(given, Mapping) else dict.fromkeys(given, np.ones(n_forget, bool))
        for name, column in columns.items():
            if np.shape(column) != (n_forget,):
                raise UnlearningError(
                    f"tasks[{name!r}] has the shape {np.shape(column)}; expected one truth value for each of the {n_forget} "
                    "forget samples."
                )
        mask = np.stack([np.asarray(columns.get(name, np.zeros(n_forget))).astype(bool) for name in names], axis=1)
    else:
        mask = np.asarray(tasks)
        if mask.shape != (n_forget, len(names)):
            raise UnlearningError(
                f"tasks has the shape {mask.shape}; expected {(n_forget, len(names))}: a row for each forget sample and a "
                f"column for each task ({', '.join(names)})."
            )
        mask = mask.astype(bool)
    if len(idle := np.flatnonzero(~mask.any(axis=1))):
        raise UnlearningError(
            f"tasks asks nothing of {len(idle)} of the {n_forget} forget samples (the first is row {idle[0]}); expected at "
            "least one task for each. Leave the others out of forget."
        )
    return mask
