"""The plainest attacks: is the model right on forget samples, and is its loss on them as low as on what it was trained on?

Against unseen samples of the same class, each attack calls a share of either side members, and if both sides are alike the
number of forget samples among those called is a matter of which side each sample is on:

    X = Σ_c X_c,   X_c ~ hypergeometric(N_c samples, R_c of them called members, n_c forget samples)
    p = 2 min(P(X ≤ x), P(X ≥ x)), exact

Beside a model retrained without the forget samples, on the same samples: whether one is right where the other is wrong, and
whether its loss has fallen further below the other's than on unseen samples.

References:
    Yeom et al., *Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting*, CSF 2018, arXiv 1709.01604 (a
    member is whom the model is right about; or whose loss is below the mean loss of the training samples).
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import hypergeom

from ..tasks.base import Task
from ..tasks.figures import Measurement
from .context import AuditContext
from .membership import Matched, matched_mean, matched_test, paired_drop
from .verdict import Finding, Kind

SEEDS_APART = 0.05  # accuracy on the forget samples, by which two models retrained with different seeds may differ
CALLED = {
    "accuracy": "are classified right",
    "loss": "have a loss below the mean of the retained ones",
}
ASKED = {
    "accuracy": "Is the model right on more forget samples than unseen ones, or on fewer?",
    "loss": "Is the loss of more forget samples, or of fewer, as low as that of retained ones?",
}
CONVENTION = (
    "Plainest attacks: shares of forget and of unseen samples that are classified right, and whose loss is at most the mean of "
    "the retained ones, classes weighted by forget samples; exact within classes (hypergeometric)."
)
BESIDE = (
    f"Beside the retrained model: on the same forget samples, an accuracy more than {100 * SEEDS_APART:.0f} points apart, as "
    "two seeds are fewer; and by how much its loss is undercut, against unseen samples of the same class (van Elteren)."
)


@dataclass(frozen=True)
class Shares:
    """Shares of forget and unseen samples that an attack calls members, classes counting by their forget samples.

    Attributes:
        p: exact, two-sided, of a number as far from what is expected if both sides are alike.
    """

    forget: float
    unseen: float
    p: float


def matched_shares(
    forget: ArrayLike, forget_labels: ArrayLike, unseen: ArrayLike, unseen_labels: ArrayLike
) -> Shares | None:
    """Compares the shares of forget and unseen samples that are true, within each class; None where no class has both.

    With one class it is Fisher's exact test, twice its smaller tail; the numbers of several classes are independent, and
    their sum has the convolution of their distributions.

    Example:
        >>> found = matched_shares([1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0])
        >>> found.forget, found.unseen, round(found.p, 4)
        (1.0, 0.25, 0.1429)
    """
    forget, unseen = (np.asarray(side, dtype=bool) for side in (forget, unseen))
    forget_labels, unseen_labels = np.asarray(forget_labels), np.asarray(unseen_labels)
    classes = np.intersect1d(forget_labels, unseen_labels)
    if not len(classes):
        return None
    counts = []  # of each side: samples and those that are true, class by class
    for side, labels in ((forget, forget_labels), (unseen, unseen_labels)):
        kept = np.isin(labels, classes)
        place = np.searchsorted(classes, labels[kept])
        counts.append([np.bincount(place, weights, len(classes)) for weights in (None, side[kept])])
    (n, right), (m, others) = ([of.astype(int) for of in side] for side in counts)
    lowest, highest = np.maximum(0, right + others - m), np.minimum(n, right + others)
    sizes = highest - lowest + 1
    starts = np.cumsum(sizes) - sizes
    numbers = np.arange(sizes.sum()) - np.repeat(starts - lowest, sizes)
    of_each = (np.repeat(counted, sizes) for counted in (n + m, right + others, n))
    likely = np.ones(1)  # of each number of true forget samples, above the least that there can be
    for chances in np.split(hypergeom.pmf(numbers, *of_each), starts[1:]):
        likely = np.convolve(likely, chances)
    at = right.sum() - lowest.sum()
    p = 2 * min(likely[: at + 1].sum(), likely[at:].sum())
    return Shares(float(right.sum() / n.sum()), float((n / n.sum() * others / m).sum()), float(min(1.0, p)))


def attack(of: dict[str, Measurement], task: Task, forget: Measurement | None = None) -> dict[str, Shares]:
    """What the attacks call members, of what one model says about its sets; `forget` in the place of its forget samples.

    Where there are no retained samples, the loss is held against the mean of the forget and unseen ones together, which does
    not depend on which is which either. The accuracy of a language model is no yes or no, and is left out.
    """
    forget, unseen = forget or of["forget"], of["unseen"]
    losses = [of["retain"]] if "retain" in of else [forget, unseen]
    limit = np.concatenate([side.signals["loss"] for side in losses]).mean()
    called = {"loss": [side.signals["loss"] <= limit for side in (forget, unseen)]}
    if task.right_or_wrong:
        called = {"accuracy": [side.signals["correct"] > 0 for side in (forget, unseen)]} | called
    found = {
        name: matched_shares(mine, forget.labels, theirs, unseen.labels) for name, (mine, theirs) in called.items()
    }
    return {name: shares for name, shares in found.items() if shares is not None}


def matched_findings(found: dict[str, Shares], side: Kind) -> list[Finding]:
    """Of forget against unseen samples; `side` is the kind of fault that all comparisons with unseen samples tell of."""
    return [
        Finding(
            name,
            ASKED[name],
            f"{shares.forget:.1%} of the forget samples {CALLED[name]}, and {shares.unseen:.1%} of the unseen ones like them.",
            shares.forget - shares.unseen,
            p=shares.p,
            kind=side,
        )
        for name, shares in found.items()
    ]


def retrained_findings(ctx: AuditContext, control: bool) -> list[Finding]:
    """Of the unlearned against the retrained model, on the same forget samples.

    Two models retrained with different seeds differ in accuracy, on all samples at once: a difference counts beyond
    `SEEDS_APART`. They differ in scale too, so what counts of the losses is by how much more the one's are below the other's
    on forget samples than on unseen ones of their class; to two models that have seen neither, these can change places.
    That needs unseen samples that are a `control`.
    """
    of = {model: ctx.measured[model] for model in ("retrained", "unlearned")}
    before, after = (of[model]["forget"].signals["correct"] for model in of)
    gained, lost = paired_drop(after, before, SEEDS_APART), paired_drop(before, after, SEEDS_APART)
    more, fewer = int((after > before).sum()), int((after < before).sum())
    found = [
        Finding(
            "paired_accuracy",
            "Is the model right on forget samples that the retrained one gets wrong?",
            f"The accuracy on forget samples is {100 * abs(gained.value):.1f} points {'above' if gained.value >= 0 else 'below'} the "
            f"retrained model's: {more} samples are more right, {fewer} less (more than {100 * SEEDS_APART:.0f} points count).",
            gained.value,
            gained.low,
            gained.high,
            min(1.0, 2 * min(gained.p, lost.p)),
            kind="residual" if gained.value >= 0 else "over",
        )
    ]
    if not control:
        return found
    below = {
        name: of["retrained"][name].signals["loss"] - of["unlearned"][name].signals["loss"]
        for name in ("forget", "unseen")
    }
    labels = ctx.labels["forget"], ctx.labels["unseen"]
    tested = cast(Matched, matched_test(below["forget"], labels[0], below["unseen"], labels[1]))
    others = matched_mean(below["unseen"], labels[1], like=labels[0])
    mine = matched_mean(below["forget"], labels[0], like=labels[0][np.isin(labels[0], labels[1])])
    found.append(
        Finding(
            "paired_loss",
            "Is the loss below the retrained model's by more on forget samples than on unseen ones?",
            f"The loss is lower than the retrained model's by {mine:.3f} on forget samples and by {others:.3f} on unseen ones; the "
            f"former is the larger in {tested.auc:.1%} of pairs.",
            tested.auc,
            p=tested.p,
            kind="residual" if tested.auc >= 0.5 else "over",
        )
    )
    return found
