"""How far a model is from one that never saw the forget samples, as far as that shows without such a model."""

import numpy as np
from numpy.typing import ArrayLike

from .checks import checked


def memory(
    forget_scores: ArrayLike, forget_labels: ArrayLike, unseen_scores: ArrayLike, unseen_labels: ArrayLike
) -> float:
    """The Wasserstein distance between the scores of forget samples and those of unseen ones, which count by class as forget
    samples do; over the classes that both have.

    Example:
        >>> memory([0.9, 0.8], [0, 0], [0.5, 0.4], [0, 0])
        0.4
    """
    from scipy.stats import wasserstein_distance  # here: it takes longer to import than the rest of this file

    f, u = checked(forget_scores, "forget_scores", "scores"), checked(unseen_scores, "unseen_scores", "scores")
    f_class = checked(forget_labels, "forget_labels", "labels", length=len(f))
    u_class = checked(unseen_labels, "unseen_labels", "labels", length=len(u))
    matched = np.intersect1d(f_class, u_class)
    if not matched.size:
        raise ValueError("none of the forget classes has an unseen sample to be compared with")
    f, mine = f[np.isin(f_class, matched)], f_class[np.isin(f_class, matched)]
    u, theirs = u[np.isin(u_class, matched)], u_class[np.isin(u_class, matched)]
    weights = [(mine == c).sum() / (theirs == c).sum() for c in theirs]
    return float(wasserstein_distance(f, u, v_weights=weights))
