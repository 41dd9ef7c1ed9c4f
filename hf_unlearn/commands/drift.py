"""How far a model has drifted in a row of requests, as far as that can be known without retraining, and how far is too far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ..api import UnlearningResult
from ..audits.plots import Series, picture
from ..errors import UnlearningError


@dataclass
class Budget:
    """Beyond either of these, retraining is due."""

    drift_budget: float = field(
        default=0.05,
        metadata={
            "help": "mean JSD of the answers to unseen samples from those of the first original, from 0 to ln 2"
        },
    )
    accuracy_budget: float = field(
        default=0.02, metadata={"help": "how much lower than the first original's the accuracy on unseen samples is"}
    )

    def __post_init__(self):
        for name in ("drift_budget", "accuracy_budget"):
            if getattr(self, name) <= 0:
                raise UnlearningError(f"{name} is {getattr(self, name)}; expected a number above 0.")

    def exceeded(self, drift: Mapping[str, Any]) -> str | None:
        """Why retraining is due; None while it is not, or while nothing is known of the drift."""
        if drift["jsd"] is None:
            return None
        lost = drift["first"] - drift["now"]
        if drift["jsd"] > self.drift_budget:
            why = (
                f"answers to unseen samples are {drift['jsd']:.4f} (JSD) from the first original's, and the budget is "
            )
            return f"Retraining is due: {why}{self.drift_budget}."
        if lost > self.accuracy_budget:
            why = f"accuracy on unseen samples is {lost:.3f} below the first original's, and the budget is "
            return f"Retraining is due: {why}{self.accuracy_budget}."
        return None


def drift_of(result: UnlearningResult, first: nn.Module) -> dict[str, Any]:
    """Mean JSD between the answers of the first original and of the model now, and the accuracy of both, on unseen samples
    that steered nothing.

    Samples of a class that nothing of is left to retain do not count: their answers were to change. Where no sample is left,
    all is None.
    """
    run = result.run
    name, rows = run.indices.get("evidence", ("", np.zeros(0, int)))
    if len(rows) and run.task.has_classes and "retain" in run.sources:
        rows = rows[np.isin(run.sources[name].labels[rows], run.sources["retain"].labels)]
    if len(rows) == 0:
        return {"jsd": None, "first": None, "now": None, "samples": 0}
    first = first.to(run.device).eval()
    return {
        "jsd": run.evaluator.compare(first, result.model, name, rows)["jsd"],
        "first": run.evaluator.accuracy(first, name, rows),
        "now": run.evaluator.accuracy(result.model, name, rows),
        "samples": len(rows),
    }


def drift_picture(
    batches: Sequence[tuple[int, Mapping[str, Any]]], budget: Budget, another: float | None = None, **about: Any
) -> str:
    """The drift after each batch of so many requests, beside the budget, as an SVG element.

    Args:
        another: how far another training on the same data is from the first original, where that is known.
    """
    places = [0, *np.cumsum([requests for requests, _ in batches]).tolist()]
    levels = {"budget": (budget.drift_budget, "control"), "another training": (another, "retrained")}
    lines = [Series("drift", [0.0, *(drift["jsd"] for _, drift in batches)], "unlearned")]
    lines += [Series(name, [y] * len(places), look) for name, (y, look) in levels.items() if y is not None]
    axes = {"x_label": "requests done", "y_label": "JSD on unseen samples"}
    return picture("drift", places, lines, title="Drift from the first original", **axes, **about)
