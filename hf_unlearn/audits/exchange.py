"""Would a model that has never seen the forget samples score them like this? A test that needs no other model.

To such a model forget samples and unseen samples of the same class are the same: drawn alike, and neither trained on. So
whatever is computed of a sample without knowing which side it is from, its scores can change sides within a class without
changing their distribution. The share of such exchanges that part the sides as far as the true ones do is an exact
p-value, for any score: a margin, a margin at four bits, one after fine-tuning, one from a probe. It says nothing of what
both sides share, such as knowledge of a whole class.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from ..metrics.membership import matched_auc
from .verdict import Finding

AT_ONCE = 2**22  # exchanged places worked on together
CONVENTION = (
    "Tests below the outputs: forget and unseen samples of a class are exchanged 1,000 times; p is the share of exchanges with "
    "as high an AUC. Of several stages, precisions or steps the AUC that is the most standard deviations above 0.5 counts."
)


@dataclass(frozen=True)
class Exchange:
    """Result of `exchange`.

    Attributes:
        auc: of forget over unseen, matched by group, for each kind of score.
        worst: the kind whose AUC is the most standard deviations above ½.
        low, high: 95% interval of that AUC.
        p: the share of exchanges in which some kind is as many above ½.
    """

    auc: list[float]
    worst: int
    low: float
    high: float
    p: float


def exchange(
    forget: ArrayLike,
    forget_groups: ArrayLike,
    unseen: ArrayLike,
    unseen_groups: ArrayLike,
    permutations: int = 1000,
    seed: int = 0,
) -> Exchange | None:
    """Tests whether forget samples score higher than unseen ones of their group; None where no group has both.

        AUC = Σ_g n_g AUC_g / Σ_g n_g,   n_g forget samples of group g

    Args:
        forget, unseen: one row for each kind of score, higher for what is remembered, a column for each sample. All kinds
            are tested as one, by the largest of their AUCs in standard deviations.
        forget_groups, unseen_groups: samples of one group may change sides: the class of each sample, or a number for its
            class and half of the data.

    Example:
        >>> found = exchange([3.0, 4.0], [0, 0], [1.0, 2.0], [0, 0])
        >>> found.auc, 0.1 < found.p < 0.25  # one exchange in six is like this one
        ([1.0], True)
    """
    values = np.concatenate([np.atleast_2d(forget), np.atleast_2d(unseen)], axis=1).astype(np.float64)
    groups = np.concatenate([forget_groups, unseen_groups])
    is_forget = np.arange(len(groups)) < len(np.asarray(forget_groups))
    rng = np.random.default_rng([seed, 6])
    found, null, total = np.zeros(len(values)), np.zeros((permutations, len(values))), 0
    for group in np.intersect1d(groups[is_forget], groups[~is_forget]):
        member = groups == group
        side, n = is_forget[member], int(is_forget[member].sum())
        # The AUC is linear in who is on the forget side: the sum of its ranks, less the least that it can be.
        ranks = rankdata(values[:, member], axis=1) / (len(side) - n)
        least = n * (n + 1) / 2 / (len(side) - n)
        found += ranks[:, side].sum(axis=1) - least
        rows = max(1, AT_ONCE // len(side))
        for start in range(0, permutations, rows):
            part = null[start : start + rows]
            part += rng.permuted(np.tile(side, (len(part), 1)), axis=1) @ ranks.T - least
        total += n
    if not total:
        return None
    spread = null.std(axis=0)
    spread[spread < 1e-9] = 1  # all scores are the same
    far, exchanged = (found - total / 2) / spread, ((null - total / 2) / spread).max(axis=1)
    worst = int(far.argmax())
    (mine, its), (theirs, of_theirs) = ((values[worst, side], groups[side]) for side in (is_forget, ~is_forget))
    interval = matched_auc(mine, its, theirs, of_theirs, seed=seed)
    p = (1 + (exchanged >= far[worst] - 1e-9).sum()) / (1 + permutations)
    return Exchange((found / total).tolist(), worst, cast(float, interval.low), cast(float, interval.high), float(p))


def stands_out(name: str, question: str, found: Exchange | None, kinds: list[str]) -> Finding:
    """What `exchange` has found, `kinds` naming its rows of scores; whether that is much is for the verdict to say."""
    if found is None:
        sentence = "None of the forget classes has unseen samples to be compared with, so this cannot be judged."
        return Finding(name, question, sentence)
    auc = found.auc[found.worst]
    most = ", where it is most" if len(kinds) > 1 else ""
    sentence = (
        f"The AUC of forget over unseen samples is {auc:.2f} (95% interval {found.low:.2f} to {found.high:.2f}) "
        f"{kinds[found.worst]}{most}."
    )
    return Finding(name, question, sentence, value=auc, low=found.low, high=found.high, p=found.p, kind="residual")
