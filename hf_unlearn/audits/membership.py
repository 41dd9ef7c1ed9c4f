"""Do forget samples stand out from unseen ones of their class, in either direction? From numbers of each sample alone.

To a model that was never trained on the forget samples they are unseen samples like others: drawn alike, within a class.
Every test here is of that, and so needs no second model and no calibration; its errors follow from the numbers of samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import kolmogorov
from scipy.stats import norm


@dataclass(frozen=True)
class Matched:
    """Forget against unseen scores within classes.

    Attributes:
        auc: P(forget > unseen) + ½ P(equal), the mean over the classes by their forget samples.
        error: its standard error if both sides are alike.
        p: two-sided, of an AUC as far from ½.
        ks: the largest distance between the two distribution functions, classes weighted as in the AUC.
        ks_p: of a distance as large.
        n_forget, n_unseen: samples compared, of classes that both sides have.
        unmatched: forget classes without unseen samples.
        by_class: the AUC of each class.
    """

    auc: float
    error: float
    p: float
    ks: float
    ks_p: float
    n_forget: int
    n_unseen: int
    unmatched: list[int]
    by_class: dict[int, float]


def matched_test(
    forget: ArrayLike, forget_labels: ArrayLike, unseen: ArrayLike, unseen_labels: ArrayLike
) -> Matched | None:
    """Compares forget and unseen scores within each class; None where no class has both.

    With ranks in the pooled scores of a class, n_c forget and m_c unseen samples of N_c, and w_c = n_c / Σ n:

        AUC = Σ w_c AUC_c,   Var = Σ w_c² (N_c + 1) / (12 n_c m_c), less for ties
        D   = max over t of |Σ w_c (F_c(t) − U_c(t))|,   t = rank / N_c,   Var at t = t (1 − t) Σ w_c² N_c² / (n_c m_c (N_c − 1))

    The AUC is a stratified Mann-Whitney test. F_c − U_c at a rank is a Brownian bridge in t in every class, so their
    weighted sum is one too, and D has Kolmogorov's distribution.

    References:
        van Elteren, *On the combination of independent two-sample tests of Wilcoxon*, 1960. The sum of KS bridges is ours.

    Example:
        >>> found = matched_test([3.0, 4.0], [0, 0], [1.0, 2.0], [0, 0])
        >>> found.auc, found.ks, round(found.error, 3)
        (1.0, 1.0, 0.323)
    """
    scores = np.concatenate([np.asarray(forget, np.float64), np.asarray(unseen, np.float64)])
    labels = np.concatenate([np.asarray(forget_labels), np.asarray(unseen_labels)])
    is_forget = np.arange(len(scores)) < len(np.asarray(forget))
    classes = np.intersect1d(labels[is_forget], labels[~is_forget])
    unmatched = np.setdiff1d(labels[is_forget], classes).tolist()
    if not len(classes):
        return None
    kept = np.isin(labels, classes)
    scores, side, place = scores[kept], is_forget[kept], np.searchsorted(classes, labels[kept])
    ranks, ties = midranks(scores, place)
    n, m = (np.bincount(place[of], minlength=len(classes)) for of in (side, ~side))
    size, weight = n + m, n / n.sum()
    aucs = (np.bincount(place, ranks * side) - n * (n + 1) / 2) / (n * m)
    shared = np.bincount(place, ties**2 - 1) / (size * (size - 1))  # Σ (t³ − t) over the values, t samples each
    error = float(np.sqrt((weight**2 * (size + 1 - shared) / (12 * n * m)).sum()))
    bridge = (weight**2 * size**2 / (n * m * (size - 1))).sum()
    highest = (ranks + (ties - 1) / 2) / size[place]  # of the samples that share a value, the last one's
    where = np.argsort(highest, kind="stable")
    walk = np.cumsum(np.where(side, 1 / n.sum(), -(weight / m)[place])[where])
    ks = float(np.abs(walk[np.append(np.diff(highest[where]) > 0, True)]).max())
    auc = float((weight * aucs).sum())
    return Matched(
        auc=auc,
        error=error,
        p=float(2 * norm.sf(abs(auc - 0.5) / error)) if error else 1.0,
        ks=ks,
        ks_p=float(kolmogorov(ks / np.sqrt(bridge))),
        n_forget=int(n.sum()),
        n_unseen=int(m.sum()),
        unmatched=unmatched,
        by_class=dict(zip(classes.tolist(), aucs.tolist(), strict=True)),
    )


def midranks(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each sample its rank within its group, samples of one value sharing the mean of theirs, and how many these are.

    >>> midranks(np.array([0.3, 0.1, 0.3, 7.0]), np.array([0, 0, 0, 1]))
    (array([2.5, 1. , 2.5, 1. ]), array([2, 1, 2, 1]))
    """
    order = np.lexsort((scores, groups))
    new_group = np.append(True, np.diff(groups[order]) != 0)
    new_value = new_group | np.append(True, np.diff(scores[order]) != 0)
    starts, value = np.flatnonzero(new_value), np.cumsum(new_value) - 1
    before = np.flatnonzero(new_group)[np.cumsum(new_group) - 1]
    counts = np.diff(np.append(starts, len(order)))[value]
    ranks, ties = np.empty(len(order)), np.empty(len(order), int)
    ranks[order], ties[order] = starts[value] - before + (counts + 1) / 2, counts
    return ranks, ties


@dataclass(frozen=True)
class Difference:
    """A difference with its 95% interval, and the p-value of what was asked of it."""

    value: float
    low: float
    high: float
    p: float


def paired_drop(before: ArrayLike, after: ArrayLike, margin: float = 0.0) -> Difference:
    """The mean drop from `before` to `after` of the same samples, and the p-value of one of more than `margin`.

    Example:
        >>> paired_drop([1, 1, 1, 1], [1, 1, 0, 1]).value
        0.25
    """
    drop = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    mean, size = float(drop.mean()), len(drop)
    error = np.sqrt((drop.var() + 1 / size) / size)  # one sample more or less, where all are alike
    reach = float(norm.ppf(0.975) * error)
    return Difference(mean, mean - reach, mean + reach, float(norm.sf((mean - margin) / error)))


def share_above(values: ArrayLike, expected: float, margin: float = 0.0) -> Difference:
    """The mean of shares of single samples, and the p-value of one of more than `expected + margin`.

    >>> share_above([1, 0, 1, 1], expected=0.0).value
    0.75
    """
    values = np.asarray(values, np.float64)
    mean, size = float(values.mean()), len(values)
    error = np.sqrt((values.var() + 1 / size) / size)
    reach = float(norm.ppf(0.975) * error)
    p = float(norm.sf((mean - expected - margin) / error))
    return Difference(mean, max(0.0, mean - reach), min(1.0, mean + reach), p)


def paired_auc(
    one: tuple[ArrayLike, ArrayLike], other: tuple[ArrayLike, ArrayLike], labels: tuple[ArrayLike, ArrayLike]
) -> Difference | None:
    """The matched AUC of one model minus that of another on the same samples, and its two-sided p-value.

    `one` and `other` are (forget, unseen) scores. The variance is DeLong's, of the differences of placements: the share of
    a sample's class on the other side that it beats. None where no class has both sides.

    References:
        DeLong, DeLong and Clarke-Pearson, *Comparing the areas under two or more correlated ROC curves*, 1988.

    Example:
        >>> scores = [3.0, 1.0, 4.0], [2.0, 0.0]
        >>> paired_auc(scores, scores, ([0, 0, 0], [0, 0])).value
        0.0
    """
    forget_labels, unseen_labels = (np.asarray(side) for side in labels)
    classes = np.intersect1d(forget_labels, unseen_labels)
    if not len(classes):
        return None
    kept = [np.isin(side, classes) for side in (forget_labels, unseen_labels)]
    places = [
        np.searchsorted(classes, side[of]) for side, of in zip((forget_labels, unseen_labels), kept, strict=True)
    ]
    n, m = (np.bincount(place) for place in places)
    a, b = (
        _placements(*(np.asarray(x, np.float64)[of] for x, of in zip(model, kept, strict=True)), *places)
        for model in (one, other)
    )
    # What each sample adds to the AUCs' difference, and what it would add if all added the same. Around that, and not around
    # the mean of its class: a class of a single sample has no spread of its own.
    weights = np.full(n.sum(), 1 / n.sum()), (n / n.sum() / m)[places[1]]
    parts = [(x - y) * weight for x, y, weight in zip(a, b, weights, strict=True)]
    value = float(parts[0].sum())
    # And one sample more on each side, on which the models agree: where all others add the same, they are not certain.
    variance = sum(
        ((part - value * weight) ** 2).sum() * len(part) / max(1, len(part) - 1) + (value / len(part)) ** 2
        for part, weight in zip(parts, weights, strict=True)
    )
    error = float(np.sqrt(variance))
    reach = float(norm.ppf(0.975)) * error
    p = float(2 * norm.sf(abs(value) / error)) if error else 1.0
    return Difference(value, value - reach, value + reach, p)


def _placements(
    forget: np.ndarray, unseen: np.ndarray, forget_classes: np.ndarray, unseen_classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Within its class, of each forget sample the share of unseen ones below it; of each unseen one the share of forget
    ones above it."""
    n, m = np.bincount(forget_classes), np.bincount(unseen_classes)
    pooled, _ = midranks(np.append(forget, unseen), np.append(forget_classes, unseen_classes))
    below = (pooled[: len(forget)] - midranks(forget, forget_classes)[0]) / m[forget_classes]
    above = 1 - (pooled[len(forget) :] - midranks(unseen, unseen_classes)[0]) / n[unseen_classes]
    return below, above


def matched_mean(values: ArrayLike, labels: ArrayLike, like: ArrayLike) -> float | None:
    """The mean of values with every class counting as often as in `like`; None where none of its classes is there."""
    values, labels, like = np.asarray(values, np.float64), np.asarray(labels), np.asarray(like)
    classes, counts = np.unique(like[np.isin(like, labels)], return_counts=True)
    if not len(classes):
        return None
    return float(np.average([values[labels == c].mean() for c in classes], weights=counts))
