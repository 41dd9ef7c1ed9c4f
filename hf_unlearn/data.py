"""Forget, retain and unseen data: from the user's datasets to batches of model inputs.

A dataset is a `datasets.Dataset`, a torch `Dataset` of dicts, or (retained data only) a `datasets.IterableDataset`. Its
rows hold raw columns (an image, or a text or a pair of texts, and a label; for a language model a prompt and a
completion, or a text), or are processed already.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from .errors import UnlearningError

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img")
TEXT_COLUMNS = ("text", "sentence", "content", "review")
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
)
PROMPT_COLUMNS = ("prompt", "completion")
LABEL_COLUMNS = ("labels", "label")
MODEL_INPUTS = ("pixel_values", "input_ids", "inputs_embeds")


# ---------------------------------------------------------------------------------------------------------------------
# Splitting


def split_dataset(
    dataset: datasets.Dataset,
    *,
    indices: Sequence[int] | None = None,
    labels: int | str | Sequence[int | str] | None = None,
    where: str | Callable[[dict], bool] | None = None,
    fraction: float | None = None,
    seed: int = 0,
    label_column: str | None = None,
) -> datasets.DatasetDict:
    """Split `dataset` into `forget` and `retain`.

    Args:
        indices: rows to forget.
        labels: forget all rows with this label, or one of these labels (numbers or class names).
        where: forget the rows where this column is true, or where this function of a row is.
        fraction: forget this share of the rows, drawn at random; together with `labels` or `where`, this share of the
            rows they choose.
        seed: seed of that draw.
        label_column: name of the label column, if it is not label or labels.
    """
    given = [name for name, value in (("indices", indices), ("labels", labels), ("where", where)) if value is not None]
    if len(given) > 1 or (not given and fraction is None):
        raise UnlearningError(
            f"split_dataset got {' and '.join(given) or 'no choice of rows'}; expected one of indices, labels, where "
            "or a fraction, alone or beside labels or where."
        )
    source = Source(dataset, "the dataset", Columns(label=label_column))
    if not isinstance(dataset, datasets.Dataset):
        raise UnlearningError(f"split_dataset got a {type(dataset).__name__}; expected a datasets.Dataset.")
    if indices is not None:
        chosen = np.unique(np.asarray(indices))
        if len(chosen) and chosen.dtype.kind not in "iu":
            raise UnlearningError(f"indices are of type {chosen.dtype}; expected row numbers.")
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= len(dataset)):
            bad = chosen[(chosen < 0) | (chosen >= len(dataset))][0]
            raise UnlearningError(f"Row {bad} is asked for, but the dataset has rows 0 to {len(dataset) - 1}.")
    elif labels is not None:
        chosen = np.flatnonzero(np.isin(source.labels, _label_ids(source, labels)))
    elif isinstance(where, str):
        if where not in dataset.column_names:
            raise UnlearningError(f"There is no column {where!r}; the dataset has {', '.join(dataset.column_names)}.")
        values = dataset.with_format(None)[where][:]
        if texts := [value for value in values if isinstance(value, str)]:
            raise UnlearningError(f"The column {where!r} holds text ({texts[0]!r}, ...); expected true or false.")
        chosen = np.flatnonzero(np.asarray(values).astype(bool))
    elif where is not None:
        chosen = np.flatnonzero([bool(where(row)) for row in dataset])
    else:
        chosen = np.arange(len(dataset))
    if fraction is not None:
        if indices is not None:
            raise UnlearningError(
                "Both indices and a fraction are given; the rows named by indices are forgotten whole."
            )
        if not 0 < fraction < 1:
            raise UnlearningError(f"fraction is {fraction}; expected a share between 0 and 1.")
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, round(fraction * len(chosen)), replace=False))
    if len(chosen) == 0:
        raise UnlearningError("No row is chosen to be forgotten: check the labels, rows, column or fraction given.")
    rest = np.setdiff1d(np.arange(len(dataset)), chosen)
    return datasets.DatasetDict(forget=dataset.select(chosen), retain=dataset.select(rest))


def _label_ids(source: "Source", labels: Any) -> list[int]:
    labels = [labels] if isinstance(labels, str) or np.ndim(labels) == 0 else list(labels)
    names = source.class_names
    for label in labels:
        if isinstance(label, str) and (names is None or label not in names):
            raise UnlearningError(f"There is no class named {label!r}; the dataset knows {names or 'numbers only'}.")
    return [names.index(label) if isinstance(label, str) else int(label) for label in labels]


def split_unseen(labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint halves of the unseen samples, balanced class by class: control (for methods), evidence (metrics)."""
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[0::2]), np.sort(order[1::2])


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass
class Columns:
    """Names of the columns, where they are not the usual ones."""

    image: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


class Source:
    """One of the user's datasets: rows by index, labels, and what identifies a row.

    Only the samples of a classifier have classes; elsewhere their `labels` are all 0.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        columns: Columns | None = None,
        size: int | None = None,
        task: str = "image-classification",
    ):
        self.dataset, self.name, self.given, self.task = dataset, name, columns or Columns(), task
        self.has_classes = task.endswith("classification")
        self.is_stream = isinstance(dataset, (datasets.IterableDataset, torch.utils.data.IterableDataset))
        if isinstance(dataset, (datasets.DatasetDict, Mapping)):
            raise UnlearningError(f"{name} is a {type(dataset).__name__} with {', '.join(dataset)}; pass one of them.")
        if not self.is_stream and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise UnlearningError(
                f"{name} is a {type(dataset).__name__}; expected a datasets.Dataset or a torch Dataset of dicts."
            )
        self._size, self._reader = size, (StreamReader(dataset) if self.is_stream else None)
        self.num_labels: int | None = None  # of the model
        self.task_columns: list[str] = []  # the labels of a multi-task model
        self._class_numbers: np.ndarray | None = None  # the model's number of each of the dataset's classes

    def __len__(self) -> int:
        return self._size if self.is_stream else len(self.dataset)

    def rows(self, indices: Sequence[int], epoch: int = 0) -> list[dict]:
        rows = self._read(indices, epoch)
        if self.is_stream and self.num_labels is not None:
            for row in rows:
                self._check_label(row)
        return rows if self._class_numbers is None else [self._renumbered(row) for row in rows]

    def _read(self, indices: Sequence[int], epoch: int) -> list[dict]:
        if self.is_stream:
            return [self._reader.row(epoch, index) for index in indices]
        if not isinstance(self.dataset, datasets.Dataset):
            return [self.dataset[int(index)] for index in indices]
        try:
            columns = self.dataset[list(indices)]
        except (OSError, SyntaxError) as error:  # what PIL raises for a file that is no image, or half of one
            if len(indices) > 1:
                return [self._read([index], epoch)[0] for index in indices]
            raise _unreadable(indices[0], self.name, error) from None
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def align_labels(self, label2id: Mapping[str, int]) -> None:
        """Number the classes as the model does, if the dataset has the very same names in another order."""
        names = self.class_names
        if names is None or set(names) != set(label2id) or set(label2id.values()) != set(range(len(names))):
            return
        numbers = np.asarray([label2id[name] for name in names])
        if (numbers != np.arange(len(names))).any():
            self._class_numbers = numbers
            logger.warning(
                f"The classes of {self.name} are numbered in another order than the model's ({names[0]!r} is 0 there and "
                f"{numbers[0]} in model.config.label2id): its labels are matched by name."
            )

    def _check_label(self, row: dict) -> None:
        """Labels of a stream can only be checked as they come."""
        label = row[self.label_column]
        if label is None or isinstance(label, str) or not 0 <= int(label) < self.num_labels:
            raise UnlearningError(
                f"A sample of {self.name} has the label {label!r}; expected 0 to {self.num_labels - 1}, the classes of the "
                "model's head."
            )

    def _renumbered(self, row: dict) -> dict:
        column = self.label_column if self.label_column in row else "labels"
        return {**row, column: int(self._class_numbers[int(row[column])])}

    @cached_property
    def first_row(self) -> dict:
        row = next(iter(self.dataset)) if self.is_stream else self._read([0], 0)[0]
        if not isinstance(row, Mapping):
            raise UnlearningError(
                f"A row of {self.name} is a {type(row).__name__}; expected a dict such as {{'image': ..., 'label': ...}}."
            )
        return row

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

    @property
    def class_names(self) -> list[str] | None:
        features = getattr(self.dataset, "features", None) or {}
        return getattr(features.get(self.label_column), "names", None)

    @cached_property
    def input_columns(self) -> list[str]:
        """The stored columns that hold what the model sees: an image, a text or a pair, a prompt and a completion, or
        processed inputs."""
        names, given = self.column_names, self.given
        if given.image or given.text:
            wanted = [name for name in (given.image or given.text, given.text_pair) if name]
            return [self._find(name, (), names, "input", "image_column or text_column") for name in wanted]
        if self.task != "causal-lm":
            choices = [(n,) for n in MODEL_INPUTS + IMAGE_COLUMNS] + list(PAIR_COLUMNS) + [(n,) for n in TEXT_COLUMNS]
        else:
            choices = [("input_ids",), PROMPT_COLUMNS] + [(n,) for n in TEXT_COLUMNS]
        for choice in choices:
            if set(choice) <= set(names):
                return list(choice)
        if self.task_columns and self.processed_inputs:
            return self.processed_inputs
        if self.task == "causal-lm":
            raise UnlearningError(
                f"{self.name} has the columns {', '.join(names)}; expected {' and '.join(PROMPT_COLUMNS)}, a text "
                f"({', '.join(TEXT_COLUMNS)}) or input_ids. Name yours with text_column= (the prompt, or the whole text) "
                "and text_pair_column= (the completion)."
            )
        raise UnlearningError(
            f"{self.name} has the columns {', '.join(names)}; expected an image ({', '.join(IMAGE_COLUMNS)}), a text "
            f"({', '.join(TEXT_COLUMNS)}) or processed inputs ({', '.join(MODEL_INPUTS)}). Name yours with "
            "image_column= or text_column=."
        )

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
    def labels(self) -> np.ndarray:
        """All labels as integers; -1 where a label is missing."""
        if not self.has_classes:
            return np.zeros(len(self), np.int64)
        column = self.label_column
        if isinstance(self.dataset, datasets.Dataset):
            values = self.dataset.with_format(None)[column][:]
        else:
            values = [self.dataset[i][column] for i in range(len(self))]
        if texts := [value for value in values if isinstance(value, str)]:
            raise UnlearningError(
                f"The labels of {self.name} are text ({texts[0]!r}, ...); expected class numbers. Use "
                f"dataset.class_encode_column({column!r}) or map them with model.config.label2id."
            )
        try:
            numbers = np.asarray([-1 if value is None else value for value in values], dtype=np.float64)
        except (TypeError, ValueError):  # nothing, or not the same number of labels, for every sample
            numbers = np.empty((0, 0))
        if numbers.ndim != 1:
            raise UnlearningError(
                f"The labels of {self.name} are not one class number a sample ({values[0]!r}); tasks with several "
                "labels a sample are not supported."
            )
        numbers[np.isnan(numbers)] = -1
        if (numbers != np.round(numbers)).any():
            raise UnlearningError(f"The labels of {self.name} are fractions; expected class numbers, one a sample.")
        labels = numbers.astype(np.int64)
        if self._class_numbers is not None:
            known = (labels >= 0) & (labels < len(self._class_numbers))
            labels[known] = self._class_numbers[labels[known]]
        return labels

    def digests(self) -> np.ndarray:
        """A hash of the stored bytes of every sample's input. Also opens each stored image, to find broken ones.

        Receipts of format 1 commit to these (see `hub.records`), so they stay as they are.
        """
        return np.asarray([self._digest(values) for values in self.stored()])

    def stored(self, **numpy: Any) -> Iterator[list]:
        """What is stored of every sample's input, a value for each input column; of an image the bytes of its file.

        Args:
            numpy: what `with_format("numpy")` is given: `dtype=None` keeps floats of more than 32 bits.
        """
        if not isinstance(self.dataset, datasets.Dataset):
            inputs = ([self.dataset[i][c] for c in self.input_columns] for i in range(len(self)))
        else:
            stored = self.dataset.with_format(None).select_columns(self.input_columns)
            for column, feature in stored.features.items():
                if isinstance(feature, datasets.Image):
                    stored = stored.cast_column(column, datasets.Image(decode=False))
                elif not (isinstance(feature, datasets.Value) or self._holds_conversations(column)):
                    stored = stored.with_format("numpy", **numpy)  # nested lists would be much slower
            inputs = (list(row) for batch in stored.iter(100) for row in zip(*batch.values(), strict=True))
        for index, values in enumerate(inputs):
            if any(value is None for value in values):
                raise _unreadable(index, self.name, "nothing is stored")
            yield [_image_bytes(v, index, self.name) if isinstance(v, dict) else v for v in values]

    def _holds_conversations(self, column: str) -> bool:
        return is_conversation(self.dataset.with_format(None).select_columns([column])[0][column])

    def _digest(self, values: list) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for value in values:
            if isinstance(value, bytes):  # of a stored image
                digest.update(value)
            elif is_conversation(value):
                digest.update(json.dumps(value, sort_keys=True).encode())
            elif isinstance(value, str):
                digest.update(value.encode() + b"\0")
            elif isinstance(value, Image.Image):
                digest.update(repr((value.mode, value.size)).encode() + value.tobytes())
            else:
                array = np.ascontiguousarray(value)
                digest.update(repr(array.shape).encode() + array.tobytes())
        return digest.digest()


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages such as `[{"role": "user", "content": "Hello"}]`."""
    return isinstance(value, list) and len(value) > 0 and isinstance(value[0], Mapping)


def _image_bytes(stored: dict, index: int, name: str) -> bytes:
    try:
        content = stored["bytes"] or Path(stored["path"]).read_bytes()
        Image.open(io.BytesIO(content)).verify()
    except Exception as error:  # PIL raises a different type for every file format
        raise _unreadable(index, name, error) from None
    return content


def _unreadable(index: int, name: str, why: Any) -> UnlearningError:
    return UnlearningError(f"Row {index} of {name} cannot be read ({why}); remove the row or replace its file.")


class StreamReader:
    """Forward-only access by position to an iterable dataset: `row(epoch, position)` with positions increasing."""

    def __init__(self, stream: Any):
        self.stream, self.epoch, self.position, self.iterator = stream, None, 0, None

    def row(self, epoch: int, position: int) -> dict:
        if epoch != self.epoch or position < self.position:
            if hasattr(self.stream, "set_epoch"):
                self.stream.set_epoch(epoch)
            self.epoch, self.position, self.iterator = epoch, 0, iter(self.stream)
        for row in self.iterator:
            self.position += 1
            if self.position > position:
                return row
        raise UnlearningError(
            f"The stream of retained samples ended after {self.position} samples, but retain_size says that there are "
            f"more than {position}; pass its true size."
        )


def check_overlap(forget: Source, others: Sequence[Source]) -> None:
    """Refuse forget samples whose stored bytes stand in another set as well."""
    forgotten = forget.digests()
    for other in others:
        shared = np.flatnonzero(np.isin(forgotten, other.digests()))
        if len(shared):
            rows = ", ".join(map(str, shared[:10])) + (", ..." if len(shared) > 10 else "")
            raise UnlearningError(
                f"{len(shared)} of the {len(forget)} forget samples stand in {other.name} too (rows {rows} of forget); "
                f'remove them from {other.name}, or pass overlap="allow" if you mean it.'
            )
