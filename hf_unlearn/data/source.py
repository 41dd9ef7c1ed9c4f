"""Forget, retain and unseen data: from the user's datasets to batches of model inputs.

A dataset is a `datasets.Dataset` (or a `DatasetDict` with one split), a pandas table, a list or a torch `Dataset` of dicts, or (retained data only) a
`datasets.IterableDataset`. Its rows hold raw columns (an image, or a text or a pair of texts, and a label; for a language model a prompt and a
completion, messages, or a text), or are processed already.
"""

import copy
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ..errors import UnlearningError
from . import arrow
from .given import as_dataset, renamed
from .labels import Numbering
from .layout import CLASSES, IMAGE_COLUMNS, LABEL_COLUMNS, MODEL_INPUTS, TEXT_COLUMNS, Columns, Layout
from .randomness import seeded
from .reasons import unreadable
from .streams import StreamReader, in_turn, lane_starts
from .types import Data

# ---------------------------------------------------------------------------------------------------------------------
# Reading


class Cut(NamedTuple):
    """What a set of pieces was cut from, by pieces of which length and overlap, and the row there of each piece."""

    source: "Source"
    length: int
    overlap: int
    rows: np.ndarray


class Source:
    """One of the user's datasets: rows by index, labels, and what identifies a row.

    Only the samples of a classifier have classes; elsewhere their `labels` are all 0.
    """

    cut: Cut | None = None  # of samples that are pieces

    def __init__(
        self,
        dataset: Data,
        name: str,
        columns: Columns | None = None,
        size: int | None = None,
        layout: Layout = CLASSES,
    ):
        self._as_given = as_dataset(dataset, name)
        self.dataset: Any = renamed(self._as_given, name, layout)
        self.is_renamed = self.dataset is not self._as_given
        self.name, self.given, self.layout = name, columns or Columns(), layout
        self.has_classes, self.task_columns = layout.has_classes, layout.task_columns
        self.is_stream = isinstance(dataset, (datasets.IterableDataset, torch.utils.data.IterableDataset))
        if not self.is_stream and not (hasattr(self.dataset, "__len__") and hasattr(self.dataset, "__getitem__")):
            raise UnlearningError(
                f"{name} is a {type(dataset).__name__}; expected a datasets.Dataset or a torch Dataset of dicts."
            )
        self._size, self._share = size, ((0, 1), 0)
        self._told: set[int] = set()  # of a stream: its lanes that are shorter than they should be
        self._digests: np.ndarray | None = None
        self.numbering: Numbering | None = None  # of the classes, as the model numbers them

    def __getstate__(self) -> dict[str, Any]:
        """Without what is read anew: a worker that is not forked would be sent all that is stored a second time."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("columns", "_stored_labels", "_reader", "_as_given", "cut")
        }

    def __len__(self) -> int:
        return cast(int, self._size) if self.is_stream else len(self.dataset)  # a stream comes with its size

    @property
    def as_given(self) -> tuple[Any, list[str]]:
        """The set as its owner has it, and the columns that hold the input there: of pieces the texts, nothing renamed."""
        if self.cut:
            return self.cut.source.as_given
        names = {new: old for old, new in self.layout.renamed} if self.is_renamed else {}
        return self._as_given, [names.get(column, column) for column in self.input_columns]

    def count(self, rows: np.ndarray | None = None) -> int:
        """How many samples, as they were given, these rows are of (default: all rows)."""
        if self.cut is None:
            return len(self) if rows is None else len(rows)
        return len(np.unique(self.cut.rows if rows is None else self.cut.rows[rows]))

    @cached_property
    def lane_starts(self) -> list[int]:
        """The first sample of each lane of a stream, see `streams`; of other sets, and of a stream of unknown size, 0."""
        return lane_starts(self.dataset, self._size) if self.is_stream and self._size else [0]

    def splits_over(self, processes: int) -> bool:
        """Whether each process can read lanes of its own."""
        return len(self.lane_starts) % processes == 0

    def read_by(self, rank: int, processes: int, workers: int) -> "Source":
        """A stream that is read by itself, from its beginning, with lanes for this process, which workers read ahead."""
        other = copy.copy(self)
        other._share = (rank, processes), workers
        return other

    @cached_property
    def _reader(self) -> StreamReader:
        (rank, processes), workers = self._share
        lanes = range(len(self.lane_starts))
        mine = list(lanes[rank::processes]) if self.splits_over(processes) else list(lanes)
        return StreamReader(self.dataset, self.lane_starts, mine, workers, self._told)

    def first(self, count: int) -> list[int]:
        """So many samples, those that a stream gives first."""
        count = min(count, len(self))
        if not self.is_stream:
            return list(range(count))
        ends = [*self.lane_starts[1:], len(self)]
        near = [np.arange(start, min(end, start + count)) for start, end in zip(self.lane_starts, ends, strict=True)]
        return in_turn(self.lane_starts, np.concatenate(near))[:count].tolist()

    def rows(self, indices: Sequence[int], epoch: int = 0) -> list[dict]:
        rows = self._read(indices, epoch)
        if self.numbering and (self.is_stream or self.numbering.are_text or not self.numbering.is_identity):
            return [self._numbered(row, self.numbering) for row in rows]
        return rows

    def _read(self, indices: Sequence[int], epoch: int) -> list[dict]:
        if self.is_stream:
            rows = [self._reader.row(epoch, index) for index in indices]
        else:
            try:
                rows = self._stored(indices)
            except Exception as error:  # of a file that is no image, of a transform of the user's, ...
                if len(indices) > 1:
                    return [self._read([index], epoch)[0] for index in indices]
                raise unreadable(indices[0], self.name, error) from error
        if odd := [row for row in rows if not isinstance(row, Mapping)]:
            raise UnlearningError(
                f"A row of {self.name} is a {type(odd[0]).__name__}; expected a dict such as {{'image': ..., 'label': ...}}."
            )
        return rows

    def _stored(self, indices: Sequence[int]) -> list[dict]:
        if not isinstance(self.dataset, datasets.Dataset):
            return [self.dataset[int(index)] for index in indices]
        columns = self.dataset[list(indices)]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _numbered(self, row: dict, numbering: Numbering) -> dict:
        """With the model's class as its label. Labels of a stream can only be checked as they come."""
        column = self.label_column if self.label_column in row else "labels"
        number = numbering.number(row.get(column))
        if self.is_stream and not 0 <= number < numbering.classes.size:
            raise UnlearningError(
                f"A sample of {self.name} has the label {row.get(column)!r}; expected {numbering.classes}."
            )
        return {**row, column: number}

    @cached_property
    def first_row(self) -> dict:
        with seeded(0):  # the same in every run, whatever transform draws random numbers
            return self._read([0], 0)[0]

    @cached_property
    def column_names(self) -> list[str]:
        """Stored columns; a transform set on the dataset may give others."""
        stored = getattr(self.dataset, "column_names", None)
        return list(stored) if stored else list(self.first_row)

    @cached_property
    def label_column(self) -> str:
        if not self.has_classes:
            return "labels"
        return self._find(self.given.label, LABEL_COLUMNS, self.column_names, "label", "label_column")

    @property
    def processed_inputs(self) -> list[str]:
        """The model inputs that a row holds; none for raw columns. A model of the user's own may have any."""
        known = [name for name in MODEL_INPUTS if name in self.first_row]
        if known or not self.task_columns or set(self.first_row) & {*IMAGE_COLUMNS, *TEXT_COLUMNS}:
            return known
        return [name for name in self.first_row if name not in self.task_columns]

    @cached_property
    def class_names(self) -> list[str] | None:
        """The names of a `datasets.ClassLabel`, or of labels that are text; None of numbers alone."""
        features = getattr(self.dataset, "features", None) or {}
        names = getattr(features.get(self.label_column), "names", None)
        return names if names or self.is_stream else self._text_labels or None

    @cached_property
    def _text_labels(self) -> list[str]:
        values = self._stored_labels
        if isinstance(values, pa.ChunkedArray):
            return sorted(values.unique().drop_null().to_pylist()) if arrow.is_text(values.type) else []
        return sorted({str(label) for label in values if isinstance(label, str)})

    @property
    def has_text_labels(self) -> bool:
        return not self.is_stream and bool(self._text_labels)

    @cached_property
    def input_columns(self) -> list[str]:
        """The stored columns that hold what the model sees: an image, a text or a pair, a prompt and a completion, or
        processed inputs."""
        names, given = self.column_names, self.given
        if given.image or given.text:
            wanted = [name for name in (given.image or given.text, given.text_pair) if name]
            return [self._find(name, (), names, "input", "image_column or text_column") for name in wanted]
        for choice in self.layout.inputs:
            if set(choice) <= set(names):
                return list(choice)
        if self.task_columns and self.processed_inputs:
            return self.processed_inputs
        raise UnlearningError(f"{self.name} has the columns {', '.join(names)}; expected {self.layout.expected}")

    def _find(self, given: str | None, usual: Sequence[str], names: list[str], what: str, argument: str) -> str:
        for name in [given] if given else usual:
            if name in names:
                return name
        raise UnlearningError(
            f"{self.name} has the columns {', '.join(names)}, and no {what} column "
            f"{repr(given) if given else '(' + ' or '.join(usual) + ')'}. Name yours with {argument}=."
        )

    def label_rows(self, columns: Sequence[str], indices: Sequence[int]) -> list[dict]:
        """Only these columns of the rows, where the others need not be read."""
        if not isinstance(self.dataset, datasets.Dataset) or not set(columns) <= set(self.dataset.column_names):
            return self._read(indices, 0)
        read = self.dataset.with_format("numpy").select_columns(list(columns))[list(indices)]
        return [dict(zip(read, row, strict=True)) for row in zip(*read.values(), strict=True)]

    @cached_property
    def _stored_labels(self) -> Any:
        """As they are: numbers or texts in Arrow stay there. Two columns that may both be the labels have to be the same."""
        column = self.label_column
        other = next(
            (c for c in LABEL_COLUMNS if c != column and c in self.column_names and not self.given.label), None
        )
        columns = [column, other] if other else [column]
        if isinstance(self.dataset, datasets.Dataset):
            stored = [arrow.column(self.dataset, c) for c in columns]
            if arrow.is_plain(stored[0].type) and (not other or stored[0].equals(stored[1])):
                return stored[0]
            found = [values.to_pylist() for values in stored]
        else:
            found = [[] for _ in columns]
            for i in range(len(self)):  # nothing else of a row is kept
                row = self._read([i], 0)[0]
                for values, c in zip(found, columns, strict=True):
                    values.append(row.get(c))
        if (
            other
            and (odd := next((i for i, pair in enumerate(zip(*found, strict=True)) if _differ(*pair)), None))
            is not None
        ):
            raise UnlearningError(
                f"{self.name} has the columns {column} and {other}, which differ (row {odd}: {found[0][odd]!r} and "
                f"{found[1][odd]!r}); remove one of them, or say which is meant with label_column=."
            )
        return found[0]

    @cached_property
    def positions(self) -> np.ndarray:
        """All labels as integers, by their own numbers or their place in `class_names`; -1 where one is missing."""
        values = self._stored_labels
        if self.has_text_labels:
            names = self.class_names or []
            if isinstance(values, pa.ChunkedArray):
                return (
                    arrow.compute.index_in(values, pa.array(names, values.type))
                    .fill_null(-1)
                    .to_numpy()
                    .astype(np.int64)
                )
            places = {name: i for i, name in enumerate(names)}
            odd = next((value for value in values if value is not None and not isinstance(value, str)), None)
            if odd is not None:
                raise UnlearningError(
                    f"The labels of {self.name} are partly text ({names[0]!r}) and partly not ({odd!r}); expected "
                    "class numbers, or names."
                )
            return np.asarray([-1 if value is None else places[value] for value in values], np.int64)
        try:
            if isinstance(values, pa.ChunkedArray):
                numbers = np.array(values.cast(pa.float64(), safe=False).to_numpy())  # missing ones are NaN
            else:
                numbers = np.asarray([-1 if value is None else value for value in values], dtype=np.float64)
        except (TypeError, ValueError, RuntimeError):  # nothing, or not the same number of labels, for every sample
            numbers = np.empty((0, 0))
        if numbers.ndim != 1:
            raise UnlearningError(
                f"The labels of {self.name} are not one class number a sample ({str(values[0])[:60]}); tasks with several "
                "labels a sample are not supported."
            )
        numbers[np.isnan(numbers)] = -1
        if (numbers != np.round(numbers)).any() or np.isinf(numbers).any():
            raise UnlearningError(f"The labels of {self.name} are fractions; expected class numbers, one a sample.")
        return numbers.astype(np.int64)

    @cached_property
    def labels(self) -> np.ndarray:
        """All labels as integers, as the model numbers its classes if it has been asked; -1 where a label is missing."""
        if not self.has_classes:
            return np.zeros(len(self), np.int64)
        return self.positions if self.numbering is None else self.numbering.apply(self.positions)

    def digests(self) -> np.ndarray:
        """A hash of the stored bytes of every sample's input. Also opens each stored image, to find broken ones.

        All samples are read for it, once. Receipts of format 1 commit to these (see `hub.records`), so they stay as they are.
        """
        if self._digests is None:
            with seeded(0):  # a torch Dataset with a random transform gives the same samples in every run
                self._digests = np.asarray([self._digest(values, i) for i, values in enumerate(self.stored())])
        return self._digests

    def digests_of(self, rows: np.ndarray) -> np.ndarray:
        """The same of some rows, of which alone more than the length is read if they stand in Arrow."""
        if self._digests is not None or not isinstance(self.dataset, datasets.Dataset):
            return self.digests()[rows]
        return np.asarray([self._digest(v, i) for i, v in zip(rows.tolist(), self.stored(rows), strict=True)], "S16")

    @cached_property
    def columns(self) -> list[arrow.Values] | None:
        """The input columns, if they stand in Arrow so that rows can be told apart without reading them."""
        if not isinstance(self.dataset, datasets.Dataset):
            return None
        found = [arrow.Values.of(self.dataset, name) for name in self.input_columns]
        for column in found:
            if column is not None and column.missing is not None:
                next(self.stored(np.asarray([column.missing])))  # which says what is wrong with it
        return None if None in found else cast(list[arrow.Values], found)

    def stored(self, rows: np.ndarray | None = None, **numpy: Any) -> Iterator[list]:
        """What is stored of every sample's input, a value for each input column; of an image the bytes of its file.

        Args:
            rows: of these samples alone.
            numpy: what `with_format("numpy")` is given: `dtype=None` keeps floats of more than 32 bits.
        """
        if not isinstance(self.dataset, datasets.Dataset):
            read = (self._read([i], 0)[0] for i in (range(len(self)) if rows is None else rows.tolist()))
            inputs = ([row.get(column) for column in self.input_columns] for row in read)
        else:
            stored = self.dataset.with_format(None).select_columns(self.input_columns)
            stored = stored if rows is None else stored.select(rows)
            for column, feature in stored.features.items():
                if isinstance(feature, datasets.Image):
                    stored = stored.cast_column(column, datasets.Image(decode=False))
                elif not (isinstance(feature, datasets.Value) or self._holds_conversations(column)):
                    stored = stored.with_format("numpy", **numpy)  # nested lists would be much slower
            inputs = (list(row) for batch in stored.iter(100) for row in zip(*cast(dict, batch).values(), strict=True))
        for index, values in zip(count() if rows is None else rows.tolist(), inputs, strict=False):
            try:
                values = [_image_bytes(value) if isinstance(value, dict) else value for value in values]
            except Exception as error:  # PIL raises a different type for every file format
                raise unreadable(index, self.name, error) from error
            if any(value is None for value in values):
                raise unreadable(index, self.name, UnlearningError("nothing is stored"))
            yield values

    def _holds_conversations(self, column: str) -> bool:
        return is_conversation(self.dataset.with_format(None).select_columns([column])[0][column])

    def _digest(self, values: list, index: int) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        try:
            for value in values:
                digest.update(_stored_bytes(value))
        except Exception as error:
            raise unreadable(index, self.name, error) from error
        return digest.digest()


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages such as `[{"role": "user", "content": "Hello"}]`."""
    return isinstance(value, list) and len(value) > 0 and isinstance(value[0], Mapping)


def _stored_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):  # of a stored image
        return value
    if is_conversation(value):
        return json.dumps(value, sort_keys=True).encode()
    if isinstance(value, str):
        return value.encode() + b"\0"
    if isinstance(value, Image.Image):
        return repr((value.mode, value.size)).encode() + value.tobytes()
    array = np.ascontiguousarray(value)
    if array.dtype == object:
        raise UnlearningError(f"it is a {type(value).__name__}, and no array of numbers")
    return repr(array.shape).encode() + array.tobytes()


def _image_bytes(stored: dict) -> bytes:
    if not {"bytes", "path"} & set(stored):
        raise UnlearningError(f"it is a dictionary of {', '.join(map(str, stored))}, and no picture")
    if not (stored.get("bytes") or stored.get("path")):
        raise UnlearningError("nothing is stored")
    content = stored.get("bytes") or Path(stored["path"]).read_bytes()
    image = Image.open(io.BytesIO(content))
    image.verify()  # reads the checksums of a PNG, and of other formats hardly more than the header
    whole = image.format == "PNG" or (image.format == "JPEG" and content.rstrip(b"\0").endswith(b"\xff\xd9"))
    if not whole and not (image.format == "WEBP" and len(content) >= int.from_bytes(content[4:8], "little") + 8):
        Image.open(io.BytesIO(content)).load()
    return content


def _differ(a: Any, b: Any) -> bool:
    """Whether two labels are not the same; a missing one is like another."""
    if a is None or b is None:
        return a is not b
    a, b = np.asarray(a), np.asarray(b)
    return not np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
