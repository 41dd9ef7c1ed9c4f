"""The methods, one file each. `table` has their names; classes and configs are imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

from .datasheets import list_methods
from .table import CLASSES, METHODS, create_method, get_method

if TYPE_CHECKING:
    from .altpo import Altpo, AltpoConfig
    from .amun import Amun, AmunConfig
    from .auto import Auto, AutoConfig
    from .bad_teacher import BadTeacher, BadTeacherConfig
    from .base import Method, MethodConfig, MethodInfo, Paper
    from .ce_u import CeU, CeUConfig
    from .ct import Ct, CtConfig
    from .delete import Delete, DeleteConfig
    from .dpo import Dpo, DpoConfig
    from .finetune import Finetune, FinetuneConfig
    from .grad_diff import GradDiff, GradDiffConfig
    from .gradient_ascent import GradientAscent, GradientAscentConfig
    from .gru import Gru, GruConfig
    from .hamu import Hamu, HamuConfig
    from .idk_dpo import IdkDpo, IdkDpoConfig
    from .l1_sparse import L1Sparse, L1SparseConfig
    from .local_teacher import LocalTeacher, LocalTeacherConfig
    from .lotus import Lotus, LotusConfig
    from .msg import Msg, MsgConfig
    from .multitask import Multitask, MultitaskConfig
    from .neggrad_plus import NeggradPlus, NeggradPlusConfig
    from .npo import Npo, NpoConfig
    from .orthograd import Orthograd, OrthogradConfig
    from .pcgrad import Pcgrad, PcgradConfig
    from .pdu import Pdu, PduConfig
    from .random_label import RandomLabel, RandomLabelConfig
    from .regun import Regun, RegunConfig
    from .retrain import Retrain, RetrainConfig
    from .rewind import Rewind, RewindConfig
    from .rmu import Rmu, RmuConfig
    from .salun import Salun, SalunConfig
    from .satimp import Satimp, SatimpConfig
    from .scrub import Scrub, ScrubConfig
    from .simnpo import Simnpo, SimnpoConfig
    from .task_vector import TaskVector, TaskVectorConfig
    from .undial import Undial, UndialConfig
    from .unsir import Unsir, UnsirConfig
    from .wga import Wga, WgaConfig

_HOME: dict[str, str] = dict.fromkeys(("Method", "MethodConfig", "MethodInfo", "Paper"), "methods.base")
for _module, _, _class in (place.partition(":") for place in CLASSES.values()):
    _HOME |= {_class: _module, f"{_class}Config": _module}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"..{_HOME[name]}", __name__), name)
    if f"methods.{name}" in _HOME.values():
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
