"""What tells whether a set is the one that it was: digests of its samples, under a key without which they say nothing."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..data import arrow
from ..data.source import Source

WHOLE = 2**28  # bytes of pictures, or of tokens, that are read whole
SPREAD = 256  # rows that are read of more


def fingerprint(source: Source, key: str) -> dict[str, Any]:
    """The size, and digests of inputs and labels in their order; of a stream, which can only be read on, of its first
    sample and its shards."""
    size, lanes = len(source), source.lane_starts
    if source.is_stream:
        source = Source([source.first_row], source.name, source.given, layout=source.layout)
    inputs, labels = (hashlib.blake2b(key=key.encode(), digest_size=16) for _ in range(2))
    inputs.update(source.digests().astype("S16").tobytes())
    if len(lanes) > 1:  # in which a stream is read
        inputs.update(str(lanes).encode())
    for value in _labels(source):
        labels.update(value)
    return {"samples": size, "inputs": inputs.hexdigest(), "labels": labels.hexdigest()}


def outline(source: Source, key: str) -> dict[str, Any]:
    """As `fingerprint`, of a set of any size: what stands in Arrow is read column by column.

    Of more than 256 MB of pictures or tokens, that is the length of every row, and 256 rows spread over the set.
    """
    if source.is_stream or not source.columns:
        return fingerprint(source, key)
    inputs, labels = (hashlib.blake2b(key=key.encode(), digest_size=16) for _ in range(2))
    for column in source.columns:
        inputs.update(f"{column.kind} ".encode() + column.lengths.astype(np.int64).tobytes())
        size, rows = column.lengths.sum() * (1 if column.kind == "bytes" else 4), np.arange(len(source))
        if column.kind != "text" and size > WHOLE:
            rows = np.unique(np.linspace(0, len(source) - 1, SPREAD).astype(np.int64))
        if column.valid[rows].all():
            arrow.feed(inputs.update, source.dataset, column.name, rows)
        else:  # pictures that are files of their own
            inputs.update(source.digests_of(rows).tobytes())
    if source.has_classes:
        labels.update(source.labels.tobytes())
    else:
        for name in _label_columns(source):
            arrow.feed(labels.update, source.dataset, name)
    return {"samples": len(source), "inputs": inputs.hexdigest(), "labels": labels.hexdigest()}


def _label_columns(source: Source) -> list[str]:
    return [name for name in source.task_columns or ["labels"] if name in source.column_names]


def _labels(source: Source) -> Iterator[bytes]:
    if source.has_classes:
        yield source.labels.tobytes()
        return
    columns = _label_columns(source)
    for start in range(0, len(source) if columns else 0, 256):
        for row in source.label_rows(columns, range(start, min(start + 256, len(source)))):
            for name in columns:
                array = np.asarray(row[name])
                yield f"{array.dtype}{array.shape}".encode()
                yield repr(row[name]).encode() if array.dtype == object else array.tobytes()
