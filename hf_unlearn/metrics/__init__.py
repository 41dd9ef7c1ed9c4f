"""Unlearning metrics: pure functions (a file for each family), some of them as `evaluate` modules too."""

from pathlib import Path

from ..errors import UnlearningError
from .closeness import memory
from .divergence import activation_distance, class_means, jsd, jsd_rows, rf_jsd, rf_jsd_from_means, zrf
from .gaps import avg_gap, tow
from .interference import interference, uis
from .language import (
    answer_probability,
    model_utility,
    rouge_l,
    truth_ratio,
    truth_score,
    verbatim_memorisation,
)
from .membership import MatchedAUC, called_members, forget_quality, ks_distance, matched_auc, mia, mia_attack
from .signals import accuracy, rows_at_once, sample_statistics, token_statistics
from .text_membership import (
    gradient_norm_score,
    loss_score,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    reference_score,
    zlib_score,
)
from .tokens import (
    exact_memorisation,
    exact_memorisation_rows,
    extraction_strength,
    extraction_strength_rows,
    token_mean,
)

__all__ = [
    "MatchedAUC",
    "accuracy",
    "activation_distance",
    "answer_probability",
    "avg_gap",
    "class_means",
    "exact_memorisation",
    "exact_memorisation_rows",
    "extraction_strength",
    "extraction_strength_rows",
    "forget_quality",
    "gradient_norm_score",
    "interference",
    "jsd",
    "jsd_rows",
    "ks_distance",
    "loss_score",
    "matched_auc",
    "membership_auc",
    "memory",
    "mia",
    "mia_attack",
    "min_k_plus_plus_score",
    "min_k_score",
    "model_utility",
    "path",
    "privleak",
    "reference_score",
    "rf_jsd",
    "rf_jsd_from_means",
    "rouge_l",
    "sample_statistics",
    "token_mean",
    "token_statistics",
    "tow",
    "truth_ratio",
    "truth_score",
    "uis",
    "verbatim_memorisation",
    "zlib_score",
    "zrf",
]

_MODULES = Path(__file__).with_name("modules")


def path(name: str) -> str:
    """The folder of an `evaluate` module, which `evaluate.load()` takes: avg_gap, jsd, rf_jsd, uis or unlearning_mia.

    Example:
        >>> path("rf_jsd")[-14:]
        'modules/rf_jsd'
    """
    known = sorted(folder.name for folder in _MODULES.iterdir() if (folder / f"{folder.name}.py").is_file())
    if name not in known:
        raise UnlearningError(f"There is no evaluate module {name!r}; expected one of {', '.join(known)}.")
    return str(_MODULES / name)
