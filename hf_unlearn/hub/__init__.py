"""Releases on the Hub: revisions, model cards and receipts."""

import importlib
from typing import TYPE_CHECKING, Any

# By the module that defines them, imported on first use: most of them need the client of the Hub.
_MODULES = {
    "card": ["make_card"],
    "metrics": ["push_metric"],
    "purging": ["purge", "purge_plan"],
    "receipt": ["make_receipt"],
    "records": ["check_inclusion", "prove"],
    "release": ["prepare"],
    "repository": ["Parent"],
    "revisions": ["Pushed", "list_revisions", "push", "rollback", "tag"],
    "sequence": ["evaluate_earlier"],
    "verification": ["Verification", "verify"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .card import make_card
    from .metrics import push_metric
    from .purging import purge, purge_plan
    from .receipt import make_receipt
    from .records import check_inclusion, prove
    from .release import prepare
    from .repository import Parent
    from .revisions import Pushed, list_revisions, push, rollback, tag
    from .sequence import evaluate_earlier
    from .verification import Verification, verify


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
