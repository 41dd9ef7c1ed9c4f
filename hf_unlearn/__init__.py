"""Machine unlearning for the Hugging Face ecosystem."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names by the module that defines them. They are imported on first use, so that `import hf_unlearn` is quick.
_MODULES = {
    "api": ["UnlearningResult", "UnlearningTrainer", "choose", "measure_hardness", "unlearn"],
    "training.arguments": ["UnlearningArguments"],
    "audits.audit": ["audit"],
    "audits.hardness": ["HardnessReport"],
    "audits.report": ["AuditReport"],
    "commands.request_queue": ["RequestQueue"],
    "errors": ["UnlearningError"],
    "methods": [
        *("AmunConfig", "AutoConfig", "CtConfig", "DeleteConfig", "MsgConfig", "RegunConfig", "RewindConfig"),
        *("BadTeacherConfig", "FinetuneConfig", "GradDiffConfig", "GradientAscentConfig", "GruConfig"),
        *("HamuConfig", "L1SparseConfig", "LocalTeacherConfig", "LotusConfig", "NeggradPlusConfig", "NpoConfig"),
        *("OrthogradConfig", "PcgradConfig", "RandomLabelConfig", "RetrainConfig", "RmuConfig", "SalunConfig"),
        *("ScrubConfig", "SimnpoConfig", "UnsirConfig", "get_method", "list_methods"),
        *("AltpoConfig", "CeUConfig", "DpoConfig", "IdkDpoConfig", "PduConfig", "SatimpConfig", "TaskVectorConfig"),
        *("UndialConfig", "WgaConfig"),
    ],
    "methods.look": ["Look"],
    "methods.multitask": ["Multitask", "MultitaskConfig"],
    "models.multitask": ["MultiTaskModelConfig", "MultiTaskModel"],
    "data.splits": ["split_dataset"],
    "surgery.damp": ["DampConfig"],
    "surgery.ssd": ["SsdConfig"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .api import UnlearningResult, UnlearningTrainer, choose, measure_hardness, unlearn
    from .audits.audit import audit
    from .audits.hardness import HardnessReport
    from .audits.report import AuditReport
    from .commands.request_queue import RequestQueue
    from .data.splits import split_dataset
    from .errors import UnlearningError
    from .methods import (
        AltpoConfig,
        AmunConfig,
        AutoConfig,
        BadTeacherConfig,
        CeUConfig,
        CtConfig,
        DeleteConfig,
        DpoConfig,
        FinetuneConfig,
        GradDiffConfig,
        GradientAscentConfig,
        GruConfig,
        HamuConfig,
        IdkDpoConfig,
        L1SparseConfig,
        LocalTeacherConfig,
        LotusConfig,
        MsgConfig,
        NeggradPlusConfig,
        NpoConfig,
        OrthogradConfig,
        PcgradConfig,
        PduConfig,
        RandomLabelConfig,
        RegunConfig,
        RetrainConfig,
        RewindConfig,
        RmuConfig,
        SalunConfig,
        SatimpConfig,
        ScrubConfig,
        SimnpoConfig,
        TaskVectorConfig,
        UndialConfig,
        UnsirConfig,
        WgaConfig,
        get_method,
        list_methods,
    )
    from .methods.look import Look
    from .methods.multitask import Multitask, MultitaskConfig
    from .models.multitask import MultiTaskModel, MultiTaskModelConfig
    from .surgery.damp import DampConfig
    from .surgery.ssd import SsdConfig
    from .training.arguments import UnlearningArguments


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in ("audits", "hub", "methods", "metrics", "surgery"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
