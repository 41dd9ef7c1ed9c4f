"""The method table. A new method is a file here, one import line and its place in `METHODS`."""

import difflib
from fnmatch import fnmatch

from ..errors import UnlearningError
from ..surgery.damp import Damp, DampConfig
from ..surgery.ssd import Ssd, SsdConfig
from .bad_teacher import BadTeacher, BadTeacherConfig
from .base import Method, MethodConfig, MethodInfo, Paper
from .finetune import Finetune, FinetuneConfig
from .grad_diff import GradDiff, GradDiffConfig
from .gradient_ascent import GradientAscent, GradientAscentConfig
from .gru import Gru, GruConfig
from .hamu import Hamu, HamuConfig
from .l1_sparse import L1Sparse, L1SparseConfig
from .local_teacher import LocalTeacher, LocalTeacherConfig
from .lotus import Lotus, LotusConfig
from .multitask import Multitask, MultitaskConfig
from .neggrad_plus import NeggradPlus, NeggradPlusConfig
from .npo import Npo, NpoConfig
from .orthograd import Orthograd, OrthogradConfig
from .pcgrad import Pcgrad, PcgradConfig
from .random_label import RandomLabel, RandomLabelConfig
from .retrain import Retrain, RetrainConfig
from .rmu import Rmu, RmuConfig
from .salun import Salun, SalunConfig
from .scrub import Scrub, ScrubConfig
from .simnpo import Simnpo, SimnpoConfig
from .unsir import Unsir, UnsirConfig

METHODS: dict[str, type[Method]] = {
    method.info.name: method
    for method in (
        Lotus,
        Hamu,
        Damp,
        LocalTeacher,
        Multitask,
        Retrain,
        Finetune,
        RandomLabel,
        L1Sparse,
        GradientAscent,
        NeggradPlus,
        BadTeacher,
        Scrub,
        Unsir,
        Salun,
        Ssd,
        Pcgrad,
        Gru,
        Orthograd,
        GradDiff,
        Npo,
        Simnpo,
        Rmu,
    )
}


def list_methods(filter: str | None = None, task: str | None = None) -> list[str]:
    """Names of the methods, those matching a pattern such as `"*label*"` or applying to a task if given."""
    return [
        name
        for name, method in METHODS.items()
        if fnmatch(name, filter or "*") and (task is None or task in method.info.applies_to)
    ]


def get_method(name: str) -> type[Method]:
    """The class of the method called `name`."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnlearningError(f"There is no method {name!r}; {hint}The methods are {', '.join(METHODS)}.")
    return METHODS[name]


def create_method(method: "str | MethodConfig | Method") -> Method:
    """A `Method` from a name, a config or a method."""
    if isinstance(method, Method):
        return method
    if isinstance(method, MethodConfig):
        return get_method(method.method)(method)
    if not isinstance(method, str):
        raise UnlearningError(f"method is {method!r}; expected a name, a config such as LotusConfig(), or a Method.")
    return get_method(method)()
