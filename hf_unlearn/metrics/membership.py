"""Telling forget samples from unseen ones: attacks, class-matched AUC, forget quality."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike

from .checks import checked


def mia_attack(
    retain: ArrayLike,
    unseen: ArrayLike,
    forget: ArrayLike,
    signal_name: str = "entropy",
    attack: Literal["logistic", "svc"] = "logistic",
    seed: int = 0,
) -> dict[str, float]:
    """Population membership inference on one scalar signal, with a check of whether the attack works at all.

    Members are `retain` (the positive class), non-members `unseen`. Both are split at random into two halves; an attack
    is fitted on one half and tested on the other, then the halves are swapped, and both results are averaged.

    Attacks:
        `"logistic"`: logistic regression on the standardised signal, classes weighted to balance.
        `"svc"`: RBF support vector machine (C = 3, γ = 1) on the signal as it is, the larger side subsampled to the
        size of the smaller. Meant for the confidence; the paper that uses it reports 1 - score.

    Args:
        retain, unseen, forget: the signal of each sample (see `sample_statistics`), one value per sample.
        signal_name: what the signal is, for error messages.

    Returns:
        `score`: share of `forget` called member. Good is close to the retrained model's, not low.
        `attack_accuracy`: balanced accuracy on the held-out halves. Near 0.5 the attack cannot tell members from
        non-members, and the score is where its threshold happens to fall.

    References:
        Yeom et al., *Privacy Risk in Machine Learning*, CSF 2018, arXiv 1709.01604 (attacks on a population's loss).

    Example:
        >>> mia_attack(retain=[0.1, 0.2, 0.1, 0.2], unseen=[0.8, 0.9, 0.8, 0.9], forget=[0.1, 0.9, 0.9, 0.9])
        {'score': 0.25, 'attack_accuracy': 1.0}
    """
    if attack not in ("logistic", "svc"):
        raise ValueError(f"`attack` is {attack!r}: pass 'logistic' or 'svc'.")
    members = checked(retain, f"retain {signal_name}", "signal")
    others = checked(unseen, f"unseen {signal_name}", "signal")
    forget = checked(forget, f"forget {signal_name}", "signal")
    if min(len(members), len(others)) < 4:
        raise ValueError(
            f"the membership attack got {len(members)} retain and {len(others)} unseen samples, but needs at least 4 of "
            "each to fit and test on separate halves: pass more samples."
        )
    rng = np.random.default_rng(seed)
    members, others = rng.permutation(members), rng.permutation(others)
    if attack == "svc":
        smaller = min(len(members), len(others))
        members, others = members[:smaller], others[:smaller]
    members, others, forget = called_members(members, others, forget, attack)
    return {"score": float(forget.mean()), "attack_accuracy": float((members.mean() + 1 - others.mean()) / 2)}


def called_members(
    members: np.ndarray, others: np.ndarray, forget: np.ndarray, attack: Literal["logistic", "svc"] = "logistic"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often the attack of `mia_attack` calls each sample a member.

    It is fitted to every other sample of `members` and `others`, which are in random order, and asked about those in
    between; then the halves are swapped: none of them is judged by an attack that knows it. Forget samples are judged by
    both.

    Returns:
        `(members, others, forget)`: 0 or 1, and for forget samples the mean of two answers.

    References:
        The swap: Tu et al., *A Reliable Cryptographic Framework for Empirical Machine Unlearning Evaluation*,
        arXiv 2404.11577.

    Example:
        >>> members, others, forget = called_members(*map(np.array, ([0.1, 0.2] * 4, [0.8, 0.9] * 4, [0.1, 0.9])))
        >>> float(members.mean()), float(others.mean()), forget.tolist()
        (1.0, 0.0, [1.0, 0.0])
    """
    from sklearn.linear_model import LogisticRegression  # here: it takes long to import
    from sklearn.svm import SVC

    called, answers = (np.empty(len(members)), np.empty(len(others))), []
    for i in (0, 1):
        x = np.concatenate([members[i::2], others[i::2]])
        is_member = np.arange(len(x)) < len(members[i::2])
        model, centre, spread = SVC(C=3, gamma=cast(Any, 1.0)), 0.0, 1.0
        if attack == "logistic":
            model, centre, spread = (
                LogisticRegression(class_weight="balanced", solver="newton-cholesky"),
                x.mean(),
                x.std() or 1.0,
            )
        model.fit((x[:, None] - centre) / spread, is_member)
        for answer, side in zip(called, (members, others), strict=True):
            answer[1 - i :: 2] = model.predict((side[1 - i :: 2, None] - centre) / spread)
        answers.append(model.predict((forget[:, None] - centre) / spread))
    return *called, np.mean(answers, axis=0)


def mia(
    retain: ArrayLike,
    unseen: ArrayLike,
    forget: ArrayLike,
    signal_name: str = "entropy",
    attack: Literal["logistic", "svc"] = "logistic",
    seed: int = 0,
) -> float:
    """Share of the forget set that a population membership attack calls member: the score of `mia_attack`.

    Example:
        >>> mia(retain=[0.1, 0.2, 0.1, 0.2], unseen=[0.8, 0.9, 0.8, 0.9], forget=[0.1, 0.9, 0.9, 0.9])
        0.25
    """
    return mia_attack(retain, unseen, forget, signal_name, attack, seed)["score"]


@dataclass(frozen=True)
class MatchedAUC:
    """Result of `matched_auc`. `auc` is None when no forget class has an unseen sample, and `reason` then says so."""

    auc: float | None
    low: float | None
    high: float | None
    n_forget: int  # samples compared, of classes present on both sides
    n_unseen: int
    unmatched_classes: list[int]  # forget classes without an unseen sample, left out
    reason: str | None = None


def matched_auc(
    forget_scores: ArrayLike,
    forget_labels: ArrayLike,
    unseen_scores: ArrayLike,
    unseen_labels: ArrayLike,
    bootstrap: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> MatchedAUC:
    """AUC of forget against unseen scores, compared only within a class.

        AUC_c = P(forget score > unseen score) + ½ P(equal),   both of class c
        AUC   = Σ_c n_c AUC_c / Σ_c n_c,   n_c forget samples, over the classes present on both sides

    With scores that are higher for members (margin, confidence): 0.5 when forget looks like unseen data, above when the
    model still knows it, below when forgetting left a trace of its own. Without matching, a perfectly retrained model
    scores far below 0.5 once a class was deleted, because other classes' unseen samples are the easier ones.

    The interval is the percentile bootstrap at `level`, resampling forget and unseen samples within each class; a side
    with a single sample in a class adds no width. `bootstrap=0` leaves it out.

    Example:
        >>> result = matched_auc([0.9, 0.4, 0.7], [0, 0, 1], [0.5, 0.1, 0.3], [0, 0, 2], bootstrap=0)
        >>> result.auc, result.n_forget, result.n_unseen, result.unmatched_classes
        (0.75, 2, 2, [1])
    """
    if bootstrap < 0 or not 0 < level < 1:
        raise ValueError(
            f"`bootstrap` is {bootstrap} and `level` {level}: pass at least 0 and a share between 0 and 1."
        )
    f, u = checked(forget_scores, "forget_scores", "scores"), checked(unseen_scores, "unseen_scores", "scores")
    f_class = checked(forget_labels, "forget_labels", "labels", length=len(f))
    u_class = checked(unseen_labels, "unseen_labels", "labels", length=len(u))

    matched = np.intersect1d(f_class, u_class)
    unmatched = np.setdiff1d(f_class, matched).tolist()
    if not matched.size:
        reason = f"none of the forget classes {unmatched} has an unseen sample to be compared with"
        return MatchedAUC(None, None, None, 0, 0, unmatched, reason)

    sides = _Matched(f, f_class, u, u_class, matched)
    low = high = None
    if bootstrap:
        replicates = sides.replicates(bootstrap, np.random.default_rng(seed))
        low, high = (float(end) for end in np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2]))
    return MatchedAUC(sides.auc(), low, high, len(sides.f_bin), len(sides.u_bin), unmatched)


class _Matched:
    """Scores of the matched classes. Every distinct (class, score) is one bin, and all bins lie on one line, class after
    class. The mass of unseen samples below a bin is then one running sum, and since n_c of the weights cancels n_c of the mean
    within a class, the weighted AUC is simply the mean over forget samples of the share of its class's unseen samples
    below it."""

    def __init__(self, f: np.ndarray, f_class: np.ndarray, u: np.ndarray, u_class: np.ndarray, matched: np.ndarray):
        (f, f_class), (u, u_class) = _in_blocks(f, f_class, matched), _in_blocks(u, u_class, matched)
        scores, classes = np.concatenate([f, u]), np.concatenate([f_class, u_class])
        order = np.lexsort((scores, classes))
        starts_bin = (np.diff(classes[order]) > 0) | (scores[order][1:] != scores[order][:-1])
        bins = np.empty(len(order), dtype=np.int64)
        bins[order] = np.concatenate([[0], np.cumsum(starts_bin)])
        self.f_bin, self.u_bin, self.n_bins = bins[: len(f)], bins[len(f) :], bins.max() + 1
        self.f_count, self.u_count = np.bincount(f_class), np.bincount(u_class)  # resampling keeps them
        self.f_start, self.u_start = np.cumsum(self.f_count) - self.f_count, np.cumsum(self.u_count) - self.u_count
        self.before, self.beside = self.u_start[f_class], self.u_count[f_class]  # of each forget sample's class

    def auc(self) -> float:
        counts = np.bincount(self.u_bin, minlength=self.n_bins)
        return float(self._mean_share_below(counts[None], self.f_bin[None])[0])

    def replicates(self, bootstrap: int, rng: np.random.Generator) -> np.ndarray:
        """The AUC of samples drawn with replacement within each class."""
        found = []
        at_once = max(1, 200_000 // (len(self.f_bin) + len(self.u_bin)))  # keeps the tables in the processor's cache
        for done in range(0, bootstrap, at_once):
            rows = min(at_once, bootstrap - done)
            drawn = self.u_bin[_resample(self.u_count, self.u_start, rows, rng)]
            drawn = drawn + np.arange(rows)[:, None] * self.n_bins
            counts = np.bincount(drawn.ravel(), minlength=rows * self.n_bins).reshape(rows, self.n_bins)
            forget = self.f_bin[_resample(self.f_count, self.f_start, rows, rng)]
            found.append(self._mean_share_below(counts, forget))
        return np.concatenate(found)

    def _mean_share_below(self, counts: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """From the unseen samples in each bin, and the bins of forget ones, a row for each replicate."""
        places = drawn + np.arange(len(counts))[:, None] * self.n_bins
        below = np.cumsum(counts, axis=1).ravel()[places] - counts.ravel()[places] / 2
        return ((below - self.before) / self.beside).mean(axis=1)


def _in_blocks(scores: np.ndarray, labels: np.ndarray, matched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples of matched classes, these as 0 to C-1 in contiguous blocks."""
    order = np.argsort(labels, kind="stable")
    order = order[np.isin(labels[order], matched)]
    return scores[order], np.searchsorted(matched, labels[order])


def _resample(count: np.ndarray, start: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of samples drawn with replacement within each class's block."""
    count, start = np.repeat(count, count), np.repeat(start, count)
    return (rng.random((rows, len(count))) * count).astype(np.int64) + start


def forget_quality(unlearned: ArrayLike, retrained: ArrayLike) -> float:
    """Two-sided, two-sample Kolmogorov-Smirnov p-value of a per-sample statistic on D_f, unlearned against retrained model.

    TOFU's statistic is the `truth_ratio`. High means that the two cannot be told apart, which also happens when there are
    few samples: compare p-values only at equal sample sizes, and look at `ks_distance` beside it.

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, COLM 2024, arXiv 2401.06121.

    Example:
        >>> forget_quality([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
        1.0
    """
    return float(_ks(unlearned, retrained).pvalue)


def ks_distance(unlearned: ArrayLike, retrained: ArrayLike) -> float:
    """The Kolmogorov-Smirnov distance, the largest one between two distributions: sup_x |F_unlearned(x) − F_retrained(x)|.

    In [0, 1], 0 is best. Unlike the p-value of `forget_quality` it does not go to 0 where samples are only many.

    Example:
        >>> ks_distance([0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.5, 0.6])
        0.5
    """
    return float(_ks(unlearned, retrained).statistic)


def _ks(unlearned: ArrayLike, retrained: ArrayLike) -> Any:
    from scipy.stats import ks_2samp  # here: it takes longer to import than the rest of this file

    return cast(Any, ks_2samp(checked(unlearned, "unlearned", "scores"), checked(retrained, "retrained", "scores")))
