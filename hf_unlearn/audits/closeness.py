"""What can be said of the distance to a retrained model without one: what is measured, and no estimate."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .. import metrics
from ..errors import UnlearningError
from ..tasks.figures import Measurement

DRAWS = 200  # of the bootstrap
WHY_NO_ESTIMATE = (
    "No estimate of the distance to a retrained model is given: of those that were tried none holds for all kinds of models and "
    "requests. compare() measures it where there is a retrained model."
)


@dataclass(frozen=True)
class Closeness:
    """Two things in which a retrained model and this one can be compared without the first.

    Attributes:
        memory: how far the confidence on forget samples is from that on unseen ones of their class (Wasserstein distance of
            p(true class), 0 to 1), with a 95 % interval from `memory_low` to `memory_high`. Of two sets that are alike it is
            not 0 either, but `memory_by_chance` on average.
        harm: what was lost of the original's accuracy on unseen samples; None where there are only some of classes that were
            forgotten whole.
    """

    memory: float
    memory_low: float
    memory_high: float
    memory_by_chance: float
    harm: float | None

    def summary(self) -> str:
        lost = "" if self.harm is None else f"On unseen samples {self.harm:+.1%} of accuracy was lost. "
        return (
            f"Confidence on forget samples is {self.memory:.3f} away from that on unseen ones of their class (95% interval "
            f"{self.memory_low:.3f} to {self.memory_high:.3f}; {self.memory_by_chance:.3f} between sets that are alike). "
            f"{lost}{WHY_NO_ESTIMATE}"
        )


def closeness(
    before: Mapping[str, Measurement], after: Mapping[str, Measurement], is_class: bool, seed: int = 0
) -> Closeness:
    """From the measurements of the original and of the unlearned model; of the unseen samples only the evidence half.

    Where whole classes were forgotten, `harm` is on the other ones.
    """
    if "evidence" not in after or not np.isin(after["forget"].labels, after["evidence"].labels).any():
        raise UnlearningError(
            "closeness() compares with unseen samples of the forget classes, and there are none; pass some."
        )
    forget, unseen = after["forget"], after["evidence"]
    p = [np.exp(-one.signals["loss"]) for one in (forget, unseen)]
    labels = [forget.labels, unseen.labels]
    rng = np.random.default_rng(seed)
    drawn, alike = [], []
    for _ in range(DRAWS):
        rows = [_redrawn(one, rng) for one in labels]
        drawn.append(metrics.memory(p[0][rows[0]], labels[0][rows[0]], p[1][rows[1]], labels[1][rows[1]]))
        halves = _like(labels[0], labels[1], rng), rows[1]
        alike.append(metrics.memory(p[1][halves[0]], labels[1][halves[0]], p[1][halves[1]], labels[1][halves[1]]))
    counted = ~np.isin(unseen.labels, forget.labels) if is_class else np.ones(len(unseen.labels), bool)
    lost = before["evidence"].signals["correct"][counted] - after["evidence"].signals["correct"][counted]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Closeness(
        memory=metrics.memory(p[0], labels[0], p[1], labels[1]),
        memory_low=float(low),
        memory_high=float(high),
        memory_by_chance=float(np.mean(alike)),
        harm=float(lost.mean()) if len(lost) else None,
    )


def _redrawn(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn with replacement, as many of each class."""
    return np.concatenate(
        [rng.choice(rows, len(rows)) for c in np.unique(labels) for rows in [np.flatnonzero(labels == c)]]
    )


def _like(forget: np.ndarray, unseen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of unseen samples, as many of each class as there are forget samples."""
    classes = np.intersect1d(forget, unseen)
    return np.concatenate([rng.choice(np.flatnonzero(unseen == c), (forget == c).sum()) for c in classes])
