"""Long texts as several samples each."""

import copy
from collections.abc import Mapping

import datasets

from ..data.source import Source
from ..data.types import Data, ProcessingClass
from ..errors import UnlearningError
from ..tasks.base import Task
from .arguments import UnlearningArguments


def in_pieces(
    sets: Mapping[str, Data | None], task: Task, processing_class: ProcessingClass | None, args: UnlearningArguments
) -> tuple[Mapping[str, Data | None], UnlearningArguments]:
    """The sets with each text as token ids, in as many samples of `max_length` as it takes, and the arguments that read them; as
    they are without `stride`."""
    stride, length = args.stride, args.max_length
    if stride is None:
        return sets, args
    if length is None or stride >= length:
        raise UnlearningError(
            f"stride is {stride}, and max_length is {length}; expected a max_length above it, the length of the pieces that a text is "
            "cut into."
        )
    cut: dict[str, Data | None] = dict(sets)
    for name, data in sets.items():
        if data is not None:
            source = Source(data, name, args.columns, layout=task.layout)
            if source.is_stream:
                raise UnlearningError(
                    f"{name} is a stream, and with stride a text becomes several samples, whose number is not known then; leave stride "
                    "out, or make it a datasets.Dataset."
                )
            cut[name] = datasets.Dataset.from_list(task.pieces(source, processing_class, length, stride))
    if sets.get("unseen") is not None and sets.get("test") is None:
        raise UnlearningError(
            "unseen would be halved by pieces, so that both halves had pieces of one text; with stride, pass other texts as test too."
        )
    args = copy.copy(args)
    args.text_column = None  # of the texts, which are token ids now
    return cut, args
