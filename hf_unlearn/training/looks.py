"""What the model as it is now says about its sets, asked at most once a step."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from ..tasks.evaluation import Evaluator
from ..tasks.figures import Measurement
from ..tasks.multitask_evaluation import TaskMeasurement

# Split -> what the task's own evaluator has measured there, and reads again: a `Measurement` or a `TaskMeasurement`.
Measured: TypeAlias = dict[str, Any]


class Looks:
    """Measurements and accuracies by split, kept until the weights change.

    Args:
        indices: split -> (source, indices), as a request has them.
        model: gives what a forward pass goes through.
    """

    def __init__(
        self, evaluator: Evaluator, indices: dict[str, tuple[str, np.ndarray]], model: Callable[[], nn.Module]
    ):
        self.evaluator, self.indices, self.model = evaluator, indices, model
        self.forget()

    def forget(self) -> None:
        """The weights have changed."""
        self.accuracies: dict[str, float] = {}
        self.measured: Measured = {}

    def remember(self, measured: Measured) -> None:
        """Of the model as it is now."""
        self.accuracies = {split: found.accuracy for split, found in measured.items()}
        self.measured = dict(measured)

    def accuracy(self, split: str) -> float:
        if split not in self.accuracies:
            self.accuracies[split] = self.evaluator.accuracy(self.model(), *self.indices[split])
        return self.accuracies[split]

    def measure(self, split: str) -> Measurement | TaskMeasurement:
        if split not in self.measured:
            self.measured[split] = self.evaluator.measure(self.model(), *self.indices[split])
        return self.measured[split]
