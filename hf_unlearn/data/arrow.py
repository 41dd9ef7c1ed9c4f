"""Columns that stand in Arrow, as arrays: labels, lengths and a few bytes of every row, without a pass over rows in Python."""

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute

compute: Any = pyarrow.compute  # whose functions are made when it is imported

PIECE, FED = 2**16, 2**12  # rows that are looked at, and read, together
HEAD, TAIL = 8, 24  # bytes; the last ones differ most: a PNG ends in a checksum, a JPEG in pixels
MIXERS = np.random.default_rng(0).integers(1, 2**63, HEAD + TAIL, dtype=np.uint64) | np.uint64(1)


def row_numbers(dataset: datasets.Dataset) -> np.ndarray | None:
    """Which rows of its table a dataset has, in its order; None: all of them as they stand."""
    mapping = dataset._indices  # of which there is no public name
    return None if mapping is None else mapping.column(0).to_numpy().astype(np.int64)


def column(dataset: datasets.Dataset, name: str, rows: np.ndarray | None = None) -> pa.ChunkedArray:
    """What is stored in a column, in the order of the dataset; of these rows only, if they are given.

    They are taken from each chunk by itself: Arrow would put all chunks together first.
    """
    stored, numbers = dataset.data.column(name), row_numbers(dataset)
    if rows is not None:
        numbers = rows if numbers is None else numbers[rows]
    if numbers is None or not len(numbers):
        return stored if numbers is None else stored.slice(0, 0)
    ends = np.cumsum([len(chunk) for chunk in stored.chunks])
    chunk_of = np.searchsorted(ends, numbers, side="right")
    order = np.argsort(chunk_of, kind="stable")
    parts = []
    for group in np.split(order, np.flatnonzero(np.diff(chunk_of[order])) + 1):
        chunk = stored.chunk(int(chunk_of[group[0]]))
        parts.append(chunk.take(pa.array(numbers[group] - (ends[chunk_of[group[0]]] - len(chunk)))))
    taken = pa.chunked_array(parts)
    if (np.diff(order) == 1).all():
        return taken
    return pa.chunked_array([taken.combine_chunks()]).take(pa.array(np.argsort(order)))


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_plain(kind: pa.DataType) -> bool:
    """Whether it is a text or a number, which can be read as an array."""
    return is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class Values:
    """An input column whose rows can be told apart before they are read.

    Attributes:
        kind: "bytes", "text", or of numbers "i" or "f".
        lengths: bytes or numbers of every row, in the order of the dataset.
        missing: the first row of which nothing is stored, or whose file is not there; None if there is none.
    """

    def __init__(self, dataset: datasets.Dataset, name: str, kind: str):
        self.kind, self.dataset, self.name = kind, dataset, name
        self.numbers = row_numbers(dataset)
        stored = dataset.data.column(name)
        self.is_picture = pa.types.is_struct(stored.type)
        self.paths = compute.struct_field(stored, "path") if self.is_picture else None
        self.chunks = (compute.struct_field(stored, "bytes") if self.is_picture else stored).chunks
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks])
        spans = [_spans(chunk) for chunk in self.chunks]
        lengths = np.concatenate([stops - starts for starts, stops, _ in spans] or [np.zeros(0, np.int64)])
        valid = np.concatenate([_valid(chunk) for chunk in self.chunks] or [np.zeros(0, bool)])
        if self.is_picture:
            valid &= lengths > 0  # else the file counts
        self.lengths = lengths if self.numbers is None else lengths[self.numbers]
        self.valid = valid if self.numbers is None else valid[self.numbers]
        self.missing = self._look_at_files()

    def _look_at_files(self) -> int | None:
        """The lengths of pictures that are files of their own."""
        for row in np.flatnonzero(~self.valid).tolist():
            if self.paths is None or not (path := self._path(row)) or not os.path.isfile(path):
                return row
            self.lengths[row] = os.path.getsize(path)
        return None

    def _path(self, row: int) -> str:
        return self._paths[row if self.numbers is None else self.numbers[row]]

    @cached_property
    def _paths(self) -> list[str]:
        return cast(Any, self.paths).to_pylist()

    @classmethod
    def of(cls, dataset: datasets.Dataset, name: str) -> "Values | None":
        """None where only reading the rows tells what they are: conversations, texts in lists, truths, ..."""
        kind, feature = dataset.data.column(name).type, dataset.features[name]
        if isinstance(feature, datasets.Image):
            return (
                cls(dataset, name, "bytes")
                if pa.types.is_struct(kind) and _is_bytes(kind.field("bytes").type)
                else None
            )
        if is_text(kind) or _is_bytes(kind):
            return cls(dataset, name, "text" if is_text(kind) else "bytes")
        leaf = _leaf(kind)
        if leaf == kind or not (pa.types.is_integer(leaf) or pa.types.is_floating(leaf)):
            return None
        if any(_has_gaps(chunk) for chunk in dataset.data.column(name).chunks):
            return None
        return cls(dataset, name, "i" if pa.types.is_integer(leaf) else "f")

    def probes(self, rows: np.ndarray) -> np.ndarray:
        """A number for each of these rows, the same for the same content: of its first and last bytes, or of 32 of its numbers
        at even distances."""
        found = np.zeros(len(rows), np.uint64)
        numbers = rows if self.numbers is None else self.numbers[rows]
        chunk_of = np.searchsorted(self.ends, numbers, side="right")
        order = np.argsort(chunk_of, kind="stable")
        cuts = np.flatnonzero(np.diff(chunk_of[order])) + 1
        for group in np.split(order, cuts) if len(order) else []:
            chunk = chunk_of[group[0]]
            first = self.ends[chunk] - len(self.chunks[chunk])
            starts, stops, values = _spans(self.chunks[chunk])
            for piece in np.split(group, range(PIECE, len(group), PIECE)):
                places = numbers[piece] - first
                found[piece] = self._mixed(values, starts[places], stops[places])
        for place in np.flatnonzero(~self.valid[rows]):
            if self.lengths[rows[place]]:
                content = np.memmap(self._path(rows[place]), np.uint8, "r")
                found[place] = self._mixed(content, np.zeros(1, np.int64), np.asarray([len(content)]))[0]
        return found

    def _mixed(self, values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        last = (stops - starts - 1)[:, None]
        if self.kind in ("bytes", "text"):
            places = np.concatenate([np.minimum(np.arange(HEAD), last), np.maximum(last - np.arange(TAIL), 0)], axis=1)
        else:
            places = last * np.arange(len(MIXERS)) // (len(MIXERS) - 1)
        found, filled = np.zeros(len(starts), np.uint64), last[:, 0] >= 0
        read = values[starts[filled, None] + places[filled]]
        if self.kind == "f":
            read = read.astype(np.float32).view(np.uint32)  # as digests read it
        found[filled] = (read.astype(np.uint64) * MIXERS).sum(axis=1)
        return found


def _leaf(kind: pa.DataType) -> pa.DataType:
    while not pa.types.is_primitive(kind):
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        else:
            break
    return kind


def _inner(array: Any) -> Any:
    """What is inside lists, or an extension type; None of values."""
    if isinstance(array, pa.ExtensionArray):
        return array.storage
    return array.flatten() if isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)) else None


def _has_gaps(array: Any) -> bool:
    """Whether a list, or a number in it, is missing inside a row."""
    inside = _inner(array)
    while inside is not None:
        if inside.null_count:
            return True
        inside = _inner(inside)
    return False


def _valid(array: pa.Array) -> np.ndarray:
    if not array.null_count:
        return np.ones(len(array), bool)
    return array.is_valid().to_numpy(zero_copy_only=False)


def _spans(array: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the content of each row begins and ends in one flat array, and that array, of which nothing is read."""
    starts, stops = np.arange(len(array)), np.arange(1, len(array) + 1)
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif isinstance(array, (pa.ListArray, pa.LargeListArray)):
            offsets = array.offsets.to_numpy().astype(np.int64)
            starts, stops, array = offsets[starts], offsets[stops], array.values
        elif isinstance(array, pa.FixedSizeListArray):
            size = array.type.list_size
            starts, stops, array = (array.offset + starts) * size, (array.offset + stops) * size, array.values
        else:
            break
    if not (is_text(array.type) or _is_bytes(array.type)):
        return starts, stops, array.to_numpy(zero_copy_only=True)
    is_large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, offsets, content = array.buffers()
    begin = array.offset
    if offsets is None or not len(array):
        return starts * 0, stops * 0, np.zeros(0, np.uint8)
    offsets = np.frombuffer(offsets, np.int64 if is_large else np.int32, begin + len(array) + 1)[begin:].astype(
        np.int64
    )
    return offsets[:-1], offsets[1:], np.zeros(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# All that is stored


def feed(update: Callable[[bytes], Any], dataset: datasets.Dataset, name: str, rows: np.ndarray | None = None) -> None:
    """Give what a column holds, or these rows of it, to a digest, however it is cut into pieces and laid out in memory."""
    rows = np.arange(len(dataset)) if rows is None else rows
    for start in range(0, len(rows), FED):
        stored = column(dataset, name, rows[start : start + FED])
        if pa.types.is_struct(stored.type) and isinstance(dataset.features[name], datasets.Image):
            stored = compute.struct_field(stored, "bytes")  # wherever it was read from
        _feed(update, stored.combine_chunks())


def _feed(update: Callable[[bytes], Any], array: Any) -> None:
    update(len(array).to_bytes(8, "little"))
    if array.null_count:
        update(b"missing" + np.packbits(_valid(array)).tobytes())
    if isinstance(array, pa.ChunkedArray):
        for chunk in array.chunks:
            _feed(update, chunk)
    elif isinstance(array, pa.DictionaryArray):
        _feed(update, array.dictionary_decode())
    elif isinstance(array, pa.StructArray):
        for part in array.flatten():
            _feed(update, part)
    elif (inside := _inner(array)) is not None:
        if isinstance(array, (pa.ListArray, pa.LargeListArray)):
            update(compute.list_value_length(array).fill_null(0).to_numpy().astype(np.int64).tobytes())
        _feed(update, inside)
    elif is_text(array.type) or _is_bytes(array.type):
        starts, stops, content = _spans(array.drop_null())
        update((stops - starts).tobytes())
        update(content[starts[0] : stops[-1]].tobytes() if len(starts) else b"")
    else:
        values = array.to_numpy(zero_copy_only=False)
        update(str(values.dtype).encode())
        update(repr(values.tolist()).encode() if values.dtype == object else np.ascontiguousarray(values).tobytes())
