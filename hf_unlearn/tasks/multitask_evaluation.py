"""Forward passes of a multi-task model, and the figures that are read off them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import metrics
from ..data.batches import to_model
from ..models.modes import evaluating
from .evaluation import Evaluator
from .figures import Figures
from .several import Tasks


@dataclass
class TaskMeasurement:
    """What one model says about one set of samples.

    Attributes:
        scores: of each task, higher is better; NaN where no sample has a label.
        losses: the mean loss of each task.
        sample_losses: the loss of each labelled sample on each task.
    """

    scores: dict[str, float]
    losses: dict[str, float]
    sample_losses: dict[str, np.ndarray]

    @property
    def accuracy(self) -> float:
        """The mean score over tasks."""
        return float(np.nanmean(list(self.scores.values())))


class TaskEvaluator(Evaluator):
    """An `Evaluator` for several tasks. Of a forget sample, only the labels that must go count on the target tasks.

    Args:
        counted: for each source, which labels of which samples count: bool [samples, tasks].
        targets: the tasks of which something must be forgotten.
    """

    def __init__(self, *args: Any, tasks: Tasks, counted: dict[str, np.ndarray], targets: list[str], **kwargs: Any):
        super().__init__(*args, num_labels=0, **kwargs)
        self.tasks, self.counted, self.targets = tasks, counted, targets

    def measure(self, model: nn.Module, name: str, indices: np.ndarray) -> TaskMeasurement:
        device, names = self.accelerator.device, self.tasks.names
        counted = torch.as_tensor(self.counted[name][indices], device=device)
        losses = torch.zeros(len(indices), len(names), dtype=torch.float64, device=device)
        totals: dict[str, Any] = {}
        with evaluating(model):
            for positions, batch in self.batches(name, indices, self.shard, name):
                batch = to_model(batch, model, device)
                with torch.no_grad(), self.accelerator.autocast():
                    found, counts = self.tasks.evaluate(model, batch)
                places = torch.as_tensor(positions, device=device)
                real = batch.weight > 0
                for i, task in enumerate(names):
                    shown = (counted[places, i] & real)[:, None]
                    losses[places[real], i] = found[task].double()[real]
                    totals[task] = totals.get(task, 0) + torch.where(shown, counts[task].double(), 0.0).sum(dim=0)
        losses = self.total(losses)  # every sample is with one process
        totals = {task: self.total(total) for task, total in totals.items()}
        by_task = {task: losses[counted[:, i], i].cpu().numpy() for i, task in enumerate(names)}
        return TaskMeasurement(
            scores={task: self.tasks.score(task, total) for task, total in totals.items()},
            losses={task: float(values.mean()) if len(values) else float("nan") for task, values in by_task.items()},
            sample_losses=by_task,
        )

    def accuracy(self, model: nn.Module, name: str, indices: np.ndarray) -> float:
        return self.measure(model, name, indices).accuracy

    def compare(self, model: nn.Module, other: nn.Module, name: str, indices: np.ndarray) -> dict[str, float]:
        """Multi-task models are compared by their scores; see `figures`."""
        return {}

    def figures(
        self,
        model: dict[str, TaskMeasurement],
        original: dict[str, TaskMeasurement],
        *,
        class_request: bool = False,
        bootstrap: int = 0,
    ) -> Figures:
        """Scores by split and task, UIS and interference, and for each target the AUC of forget against unseen losses."""
        values: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for label, split in (("forget", "forget"), ("retain", "retain"), ("unseen", "evidence")):
            for task in self.tasks.names if split in model else ():
                score = model[split].scores[task]
                values[f"{label}_{task}"] = None if np.isnan(score) else score
        if "evidence" not in model:
            return values, {"uis": "no unseen samples were given"}
        try:
            about = {"targets": self.targets, "class_unlearning": class_request}
            values |= metrics.uis(_by_task(model), _by_task(original), **about)
            values |= metrics.interference(_by_task(model), _by_task(original), self.targets)
        except ValueError as error:
            reasons["uis"] = str(error)
        for task in self.targets:
            forget, unseen = (-model[split].sample_losses[task] for split in ("forget", "evidence"))
            if len(forget) and len(unseen):
                zeros = np.zeros(len(forget), int), np.zeros(len(unseen), int)
                result = metrics.matched_auc(forget, zeros[0], unseen, zeros[1], bootstrap=bootstrap)
                values |= {f"auc_{task}": result.auc, f"auc_{task}_low": result.low, f"auc_{task}_high": result.high}
        return values, reasons

    def beside(self, row: dict, reference: dict, measured: dict, retrained: dict) -> dict[str, float | None]:
        """The UIS that is held against a retrained model."""
        try:
            found = metrics.uis(_by_task(measured), _by_task(retrained), self.targets, convention="retrain")
        except ValueError:
            return {}
        return {f"{key}_retrained": value for key, value in found.items()}


def _by_task(measured: dict[str, TaskMeasurement]) -> dict[str, dict[str, float]]:
    splits = {"test": "evidence", "forget": "forget", "retain": "retain"}
    return {
        task: {key: measured[split].scores[task] for key, split in splits.items() if split in measured}
        for task in measured["forget"].scores
    }
