"""How far a model is from a retrained one: average gap and tug of war."""

from collections.abc import Mapping

import numpy as np

from .checks import number

# ---- Scores that sum up a run ---------------------------------------------------------------------------------------


def _gaps(unlearned: Mapping[str, float], retrained: Mapping[str, float], keys: tuple[str, ...]) -> np.ndarray:
    values = np.array(
        [[number(d, k, n) for k in keys] for d, n in ((unlearned, "unlearned"), (retrained, "retrained"))]
    )
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"{', '.join(keys)} must be fractions between 0 and 1, but one is outside: divide percentages by 100."
        )
    return np.abs(values[0] - values[1])


def avg_gap(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean absolute difference to the retrained model over forget, retain and unseen accuracy and the MIA score.

        AvgGap = mean over m in {forget_accuracy, retain_accuracy, unseen_accuracy, mia} of |m_unlearned - m_retrained|

    Fractions in, a fraction out; 0 is best. Other keys are ignored.

    References:
        Fan et al., *SalUn*, ICLR 2024, arXiv 2310.12508.

    Example:
        >>> unlearned = {"forget_accuracy": 0.99, "retain_accuracy": 0.99, "unseen_accuracy": 0.91, "mia": 0.83}
        >>> retrained = {"forget_accuracy": 0.91, "retain_accuracy": 0.99, "unseen_accuracy": 0.91, "mia": 0.76}
        >>> round(avg_gap(unlearned, retrained), 4)
        0.0375
    """
    keys = ("forget_accuracy", "retain_accuracy", "unseen_accuracy", "mia")
    return float(_gaps(unlearned, retrained, keys).mean())


def tow(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Tug of war: forgetting and utility in one number, relative to the retrained model.

        ToW = Π over forget, retain and unseen accuracy of (1 - |unlearned - retrained|)

    In [0, 1] for accuracies given as fractions; 1 is best. Other keys are ignored.

    References:
        Zhao et al., *What makes unlearning hard and what to do about it*, NeurIPS 2024, arXiv 2406.01257.

    Example:
        >>> unlearned = {"forget_accuracy": 0.8, "retain_accuracy": 0.9, "unseen_accuracy": 0.7}
        >>> retrained = {"forget_accuracy": 0.7, "retain_accuracy": 1.0, "unseen_accuracy": 0.7}
        >>> round(tow(unlearned, retrained), 6)
        0.81
    """
    keys = ("forget_accuracy", "retain_accuracy", "unseen_accuracy")
    return float((1 - _gaps(unlearned, retrained, keys)).prod())
