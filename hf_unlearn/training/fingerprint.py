"""What tells whether a set is the one that it was: digests of its samples, under a key without which they say nothing."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..data.source import Source


def fingerprint(source: Source, key: str) -> dict[str, Any]:
    """The size, and digests of inputs and labels in their order; of a stream, which can only be read on, of its first
    sample."""
    size = len(source)
    if source.is_stream:
        source = Source([source.first_row], source.name, source.given, layout=source.layout)
    inputs, labels = (hashlib.blake2b(key=key.encode(), digest_size=16) for _ in range(2))
    inputs.update(source.digests().astype("S16").tobytes())
    for value in _labels(source):
        labels.update(value)
    return {"samples": size, "inputs": inputs.hexdigest(), "labels": labels.hexdigest()}


def _labels(source: Source) -> Iterator[bytes]:
    if source.has_classes:
        yield source.labels.tobytes()
        return
    columns = [name for name in source.task_columns or ["labels"] if name in source.column_names]
    for start in range(0, len(source) if columns else 0, 256):
        for row in source.label_rows(columns, range(start, min(start + 256, len(source)))):
            for name in columns:
                array = np.asarray(row[name])
                yield f"{array.dtype}{array.shape}".encode()
                yield repr(row[name]).encode() if array.dtype == object else array.tobytes()
