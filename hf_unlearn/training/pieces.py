"""Long texts as several samples each."""

import datasets
import numpy as np

from ..data.source import Columns, Cut, Source
from ..data.types import ProcessingClass
from ..errors import UnlearningError
from ..tasks.base import Task


def in_pieces(
    source: Source, task: Task, processing_class: ProcessingClass | None, length: int | None, stride: int | None
) -> Source:
    """A set with each text as token ids, in as many samples of `length` as it takes; as it is without `stride`."""
    if stride is None:
        return source
    if length is None or stride >= length:
        raise UnlearningError(
            f"stride is {stride}, and max_length is {length}; expected a max_length above it, the length of the pieces that a text is "
            "cut into."
        )
    if source.is_stream:
        raise UnlearningError(
            f"{source.name} is a stream, and with stride a text becomes several samples, whose number is not known then; leave stride "
            "out, or make it a datasets.Dataset."
        )
    pieces = task.pieces(source, processing_class, length, stride)
    rows = np.repeat(np.arange(len(pieces)), [len(of_text) for of_text in pieces])
    tokens = datasets.Dataset.from_list([row for of_text in pieces for row in of_text])
    cut = Source(tokens, source.name, Columns(max_length=length), layout=task.layout)
    cut.cut = Cut(source, length, stride, rows)
    return cut
