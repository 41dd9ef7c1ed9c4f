"""Do forget samples stand out from unseen ones of their class, in either direction? From numbers of each sample alone.

To a model that was never trained on the forget samples they are unseen samples like others: drawn alike, within a class.
Every test here is of that, and so needs no second model and no calibration; its errors follow from the numbers of samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import kolmogorov
from scipy.stats import norm, rankdata


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
    """

    auc: float
    error: float
    p: float
    ks: float
    ks_p: float
    n_forget: int
    n_unseen: int
    unmatched: list[int]


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
    is_forget = np.arange(len(scores)) < len(forget)
    classes = np.intersect1d(labels[is_forget], labels[~is_forget])
    unmatched = np.setdiff1d(labels[is_forget], classes).tolist()
    if not len(classes):
        return None
    kept = np.isin(labels, classes)
    order = np.flatnonzero(kept)[np.argsort(labels[kept], kind="stable")]
    total = int((kept & is_forget).sum())
    auc, variance, bridge, places, steps = 0.0, 0.0, 0.0, [], []
    for part in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        side, size = is_forget[part], len(part)
        n, m = int(side.sum()), int((~side).sum())
        ranks, weight = rankdata(scores[part]), n / total
        ties = np.unique(scores[part], return_counts=True)[1]
        auc += weight * (ranks[side].sum() - n * (n + 1) / 2) / (n * m)
        variance += weight**2 * (size + 1 - (ties**3 - ties).sum() / (size * (size - 1))) / (12 * n * m)
        bridge += weight**2 * size**2 / (n * m * (size - 1))
        places.append(rankdata(scores[part], method="max") / size)
        steps.append(np.where(side, weight / n, -weight / m))
    place, step = np.concatenate(places), np.concatenate(steps)
    where = np.argsort(place, kind="stable")
    walk, last = np.cumsum(step[where]), np.append(np.diff(place[where]) > 0, True)
    ks, error = float(np.abs(walk[last]).max()), float(np.sqrt(variance))
    return Matched(
        auc=float(auc),
        error=error,
        p=float(2 * norm.sf(abs(auc - 0.5) / error)) if error else 1.0,
        ks=ks,
        ks_p=float(kolmogorov(ks / np.sqrt(bridge))),
        n_forget=total,
        n_unseen=len(order) - total,
        unmatched=unmatched,
    )


@dataclass(frozen=True)
class Difference:
    """A difference with its 95 % interval, and the p-value of what was asked of it."""

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


def share_above(
    values: ArrayLike, expected: float, margin: float = 0.0, interval: float = float(norm.ppf(0.975))
) -> Difference:
    """The mean of shares of single samples, and the p-value of one of more than `expected + margin`.

    >>> share_above([1, 0, 1, 1], expected=0.0).value
    0.75
    """
    values = np.asarray(values, np.float64)
    mean, size = float(values.mean()), len(values)
    error = np.sqrt((values.var() + 1 / size) / size)
    reach = float(interval * error)
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
    total = int(np.isin(forget_labels, classes).sum())
    forget_parts, unseen_parts = [], []  # what each sample adds to the difference of the AUCs
    for c in classes:
        f, u = forget_labels == c, unseen_labels == c
        a, b = (_placements(np.asarray(x)[f], np.asarray(y)[u]) for x, y in (one, other))
        forget_parts.append((a[0] - b[0]) / total)
        unseen_parts.append((a[1] - b[1]) * f.sum() / total / u.sum())
    if not total:
        return None
    forget_parts, unseen_parts = np.concatenate(forget_parts), np.concatenate(unseen_parts)
    value = float(forget_parts.sum())
    # Around the mean of all and not that of its class: a class of a single sample has no spread of its own.
    weights = [np.full(total, 1 / total), _weights(unseen_labels, forget_labels, classes)]
    variance = sum(
        ((part - value * weight) ** 2).sum() * len(part) / max(1, len(part) - 1)
        for part, weight in zip((forget_parts, unseen_parts), weights, strict=True)
    )
    error = float(np.sqrt(variance))
    reach = float(norm.ppf(0.975)) * error
    p = float(2 * norm.sf(abs(value) / error)) if error else 1.0
    return Difference(value, value - reach, value + reach, p)


def _placements(forget: np.ndarray, unseen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each forget sample the share of unseen ones below it; of each unseen one the share of forget ones above it."""
    ranks = rankdata(np.concatenate([forget, unseen]))
    below = (ranks[: len(forget)] - rankdata(forget)) / len(unseen)
    above = 1 - (ranks[len(forget) :] - rankdata(unseen)) / len(forget)
    return below, above


def _weights(unseen_labels: np.ndarray, forget_labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """What each unseen sample counts, class by class in the order of `classes`: each class as many as the forget set's."""
    counts = np.array([[(labels == c).sum() for c in classes] for labels in (forget_labels, unseen_labels)], float)
    share = counts[0] / counts[0].sum()
    return np.repeat(share / counts[1], counts[1].astype(int))


def matched_mean(values: ArrayLike, labels: ArrayLike, like: ArrayLike) -> float | None:
    """The mean of values with every class counting as often as in `like`; None where none of its classes is there."""
    values, labels, like = np.asarray(values, np.float64), np.asarray(labels), np.asarray(like)
    classes, counts = np.unique(like[np.isin(like, labels)], return_counts=True)
    if not len(classes):
        return None
    return float(np.average([values[labels == c].mean() for c in classes], weights=counts))


def called_members(
    retain: ArrayLike, unseen: ArrayLike, forget: ArrayLike, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """How often a population attack calls each unseen and each forget sample a member.

    A logistic regression on one signal is fitted on half of the retained and of the unseen samples and asked about the
    other half of the unseen ones, then the halves are swapped: no unseen sample is judged by an attack that knows it.
    Forget samples are judged by both.

    Returns:
        `(unseen, forget)`: 0 or 1, and the mean of the two answers.

    References:
        The swap: Tu et al., *A Reliable Cryptographic Framework for Empirical Machine Unlearning Evaluation*,
        arXiv 2404.11577.

    Example:
        >>> unseen, forget = called_members([0.1, 0.2] * 4, [0.8, 0.9] * 4, [0.1, 0.9])
        >>> unseen.mean(), forget.tolist()
        (0.0, [1.0, 0.0])
    """
    from sklearn.linear_model import LogisticRegression  # here: it takes long to import

    members, others = np.asarray(retain, np.float64), np.asarray(unseen, np.float64)
    forget = np.asarray(forget, np.float64)
    rng = np.random.default_rng(seed)
    halves = [np.arange(len(side)) % 2 for side in (members, others)]
    halves = [rng.permutation(half) for half in halves]
    centre, spread = np.mean(np.append(members, others)), np.std(np.append(members, others)) or 1.0
    called, answers = np.empty(len(others)), []
    for i in (0, 1):
        x = np.concatenate([members[halves[0] == i], others[halves[1] == i]])
        is_member = np.arange(len(x)) < (halves[0] == i).sum()
        model = LogisticRegression(class_weight="balanced").fit((x[:, None] - centre) / spread, is_member)
        held_out = halves[1] != i
        called[held_out] = model.predict((others[held_out, None] - centre) / spread)
        answers.append(model.predict((forget[:, None] - centre) / spread))
    return called, np.mean(answers, axis=0)
