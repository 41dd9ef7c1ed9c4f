"""Unlearning metrics: pure functions (a file for each family), some of them as `evaluate` modules too."""

from pathlib import Path

from ..errors import UnlearningError
from .closeness import memory
from .divergence import activation_distance, class_means, jsd, jsd_rows, rf_jsd, rf_jsd_from_means, zrf
from .gaps import avg_gap, tow
from .interference import interference, uis
from .membership import MatchedAUC, called_members, forget_quality, matched_auc, mia, mia_attack
from .signals import accuracy, rows_at_once, sample_statistics, token_statistics

__all__ = [
    "MatchedAUC",
    "accuracy",
    "activation_distance",
    "avg_gap",
    "class_means",
    "forget_quality",
    "interference",
    "jsd",
    "jsd_rows",
    "matched_auc",
    "memory",
    "mia",
    "mia_attack",
    "path",
    "rf_jsd",
    "rf_jsd_from_means",
    "sample_statistics",
    "token_statistics",
    "tow",
    "uis",
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
