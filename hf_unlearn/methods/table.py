"""The method table. A new method is a file, here or in `surgery`, and a line in `CLASSES`."""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..errors import UnlearningError

if TYPE_CHECKING:
    from .base import Method, MethodConfig

CLASSES = {
    "auto": "methods.auto:Auto",
    "rewind": "methods.rewind:Rewind",
    "lotus": "methods.lotus:Lotus",
    "hamu": "methods.hamu:Hamu",
    "damp": "surgery.damp:Damp",
    "local_teacher": "methods.local_teacher:LocalTeacher",
    "multitask": "methods.multitask:Multitask",
    "retrain": "methods.retrain:Retrain",
    "finetune": "methods.finetune:Finetune",
    "random_label": "methods.random_label:RandomLabel",
    "l1_sparse": "methods.l1_sparse:L1Sparse",
    "gradient_ascent": "methods.gradient_ascent:GradientAscent",
    "neggrad_plus": "methods.neggrad_plus:NeggradPlus",
    "bad_teacher": "methods.bad_teacher:BadTeacher",
    "scrub": "methods.scrub:Scrub",
    "unsir": "methods.unsir:Unsir",
    "salun": "methods.salun:Salun",
    "ssd": "surgery.ssd:Ssd",
    "msg": "methods.msg:Msg",
    "ct": "methods.ct:Ct",
    "amun": "methods.amun:Amun",
    "delete": "methods.delete:Delete",
    "regun": "methods.regun:Regun",
    "pcgrad": "methods.pcgrad:Pcgrad",
    "gru": "methods.gru:Gru",
    "orthograd": "methods.orthograd:Orthograd",
    "grad_diff": "methods.grad_diff:GradDiff",
    "npo": "methods.npo:Npo",
    "simnpo": "methods.simnpo:Simnpo",
    "dpo": "methods.dpo:Dpo",
    "idk_dpo": "methods.idk_dpo:IdkDpo",
    "altpo": "methods.altpo:Altpo",
    "undial": "methods.undial:Undial",
    "wga": "methods.wga:Wga",
    "satimp": "methods.satimp:Satimp",
    "ce_u": "methods.ce_u:CeU",
    "pdu": "methods.pdu:Pdu",
    "task_vector": "methods.task_vector:TaskVector",
    "rmu": "methods.rmu:Rmu",
}


class MethodTable(Mapping[str, "type[Method]"]):
    """The classes of the methods by name, each imported when it is asked for: a room below cannot name those of `surgery`,
    and a name alone should not cost the import of torch."""

    def __getitem__(self, name: str) -> "type[Method]":
        module, _, cls = CLASSES[name].partition(":")
        return getattr(importlib.import_module(f"..{module}", __package__), cls)

    def __contains__(self, name: object) -> bool:
        return name in CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(CLASSES)

    def __len__(self) -> int:
        return len(CLASSES)


METHODS = MethodTable()


def get_method(name: str) -> "type[Method]":
    """The class of the method called `name`."""
    if name not in METHODS:
        near = difflib.get_close_matches(name.lower(), METHODS, n=1)
        hint = f"did you mean {near[0]!r}? The" if near else "the"
        raise UnlearningError(f"There is no method {name!r}; {hint} methods are {', '.join(METHODS)}.")
    return METHODS[name]


def create_method(method: "str | MethodConfig | Method") -> "Method":
    """A `Method` from a name, a config or a method."""
    from .base import Method, MethodConfig

    if isinstance(method, Method):
        return method
    if isinstance(method, MethodConfig):
        return get_method(method.method)(method)
    if not isinstance(method, str):
        raise UnlearningError(f"method is {method!r}; expected a name, a config such as LotusConfig(), or a Method.")
    return get_method(method)()
