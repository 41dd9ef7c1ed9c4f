"""Forget, retain and unseen data: from the user's datasets to batches of model inputs.

A dataset is a `datasets.Dataset`, a torch `Dataset` of dicts, or (retained data only) a `datasets.IterableDataset`. Its
rows hold raw columns (an image, or a text or a pair of texts, and a label), or are processed already.
"""

import hashlib
import io
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .errors import UnlearningError
from .schedule import Draw

IMAGE_COLUMNS = ("image", "img")
TEXT_COLUMNS = ("text", "sentence", "content", "review")
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
)
LABEL_COLUMNS = ("labels", "label")
MODEL_INPUTS = ("pixel_values", "input_ids", "inputs_embeds")


class Batch(dict):
    """Model inputs, with what unlearning needs to know about each sample beside them."""

    EXTRAS = ("labels", "is_forget", "sample_index", "epoch", "weight")

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        return {key: value for key, value in self.items() if key not in self.EXTRAS}

    def __getattr__(self, name: str) -> Tensor:
        if name in self.EXTRAS and name in self:
            return self[name]
        raise AttributeError(name)

    def mean(self, per_sample: Tensor) -> Tensor:
        """The mean over the whole global batch of the step, of which this micro-batch is a part.

        Summed over micro-batches and averaged over processes it gives the same loss however the batch is split.
        """
        return (per_sample * self.weight.to(per_sample.dtype)).sum()


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
) -> datasets.DatasetDict:
    """Split `dataset` into `forget` and `retain`.

    Args:
        indices: rows to forget.
        labels: forget all rows with this label, or one of these labels (numbers or class names).
        where: forget the rows where this column is true, or where this function of a row is.
        fraction: forget this share of the rows, drawn at random; together with `labels` or `where`, this share of the
            rows they choose.
        seed: seed of that draw.
    """
    given = [name for name, value in (("indices", indices), ("labels", labels), ("where", where)) if value is not None]
    if len(given) > 1 or (not given and fraction is None):
        raise UnlearningError(
            f"split_dataset got {' and '.join(given) or 'no choice of rows'}; expected one of indices, labels, where "
            "(with a fraction of them, if you like), or a fraction alone."
        )
    if indices is not None:
        chosen = np.unique(np.asarray(indices, dtype=np.int64))
        if len(chosen) and not (0 <= chosen[0] and chosen[-1] < len(dataset)):
            bad = chosen[(chosen < 0) | (chosen >= len(dataset))][0]
            raise UnlearningError(f"Row {bad} is asked for, but the dataset has rows 0 to {len(dataset) - 1}.")
    elif labels is not None:
        chosen = np.flatnonzero(np.isin(Source(dataset, "the dataset").labels, _label_ids(dataset, labels)))
    elif isinstance(where, str):
        if where not in dataset.column_names:
            raise UnlearningError(f"There is no column {where!r}; the dataset has {', '.join(dataset.column_names)}.")
        chosen = np.flatnonzero(np.asarray(dataset.with_format(None)[where]).astype(bool))
    elif where is not None:
        chosen = np.flatnonzero([bool(where(row)) for row in dataset])
    else:
        chosen = np.arange(len(dataset))
    if fraction is not None:
        if not 0 < fraction < 1:
            raise UnlearningError(f"fraction is {fraction}; expected a share between 0 and 1.")
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, round(fraction * len(chosen)), replace=False))
    if len(chosen) == 0:
        raise UnlearningError("No row is chosen to be forgotten: check the labels, rows, column or fraction given.")
    rest = np.setdiff1d(np.arange(len(dataset)), chosen)
    return datasets.DatasetDict(forget=dataset.select(chosen), retain=dataset.select(rest))


def _label_ids(dataset: datasets.Dataset, labels: Any) -> list[int]:
    feature = dataset.features.get(Source(dataset, "the dataset").label_column)
    labels = [labels] if isinstance(labels, (int, str)) else list(labels)
    names = getattr(feature, "names", None)
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
    """One of the user's datasets: rows by index, labels, and what identifies a row."""

    def __init__(self, dataset: Any, name: str, columns: Columns | None = None, size: int | None = None):
        self.dataset, self.name, self.given = dataset, name, columns or Columns()
        self.is_stream = isinstance(dataset, (datasets.IterableDataset, torch.utils.data.IterableDataset))
        if isinstance(dataset, (datasets.DatasetDict, Mapping)):
            raise UnlearningError(f"{name} is a {type(dataset).__name__} with {', '.join(dataset)}; pass one of them.")
        if not self.is_stream and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise UnlearningError(
                f"{name} is a {type(dataset).__name__}; expected a datasets.Dataset or a torch Dataset of dicts."
            )
        self._size, self._reader = size, (StreamReader(dataset) if self.is_stream else None)

    def __len__(self) -> int:
        return self._size if self.is_stream else len(self.dataset)

    def rows(self, indices: Sequence[int], epoch: int = 0) -> list[dict]:
        if self.is_stream:
            return [self._reader.row(epoch, index) for index in indices]
        if isinstance(self.dataset, datasets.Dataset):
            columns = self.dataset[list(indices)]
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return [self.dataset[int(index)] for index in indices]

    @cached_property
    def first_row(self) -> dict:
        row = next(iter(self.dataset)) if self.is_stream else self.rows([0])[0]
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
        return self._find(self.given.label, LABEL_COLUMNS, self.column_names, "label", "label_column")

    @cached_property
    def input_columns(self) -> list[str]:
        """The stored columns that hold what the model sees: an image, a text or a pair, or processed inputs."""
        names, given = self.column_names, self.given
        if given.image or given.text:
            wanted = [name for name in (given.image or given.text, given.text_pair) if name]
            return [self._find(name, (), names, "input", "image_column or text_column") for name in wanted]
        for choice in [(n,) for n in MODEL_INPUTS + IMAGE_COLUMNS] + list(PAIR_COLUMNS) + [(n,) for n in TEXT_COLUMNS]:
            if set(choice) <= set(names):
                return list(choice)
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

    @cached_property
    def labels(self) -> np.ndarray:
        """All labels as integers; -1 where a label is missing."""
        column = self.label_column
        if isinstance(self.dataset, datasets.Dataset):
            values = self.dataset.with_format(None)[column][:]
        else:
            values = [self.dataset[i][column] for i in range(len(self))]
        if any(isinstance(value, str) for value in values[:1]):
            raise UnlearningError(
                f"The labels of {self.name} are text ({values[0]!r}, ...); expected class numbers. Use "
                f"dataset.class_encode_column({column!r}) or map them with model.config.label2id."
            )
        if any(isinstance(value, float) and value != int(value) for value in values if value is not None):
            raise UnlearningError(f"The labels of {self.name} are fractions; expected class numbers, one a sample.")
        try:
            return np.asarray([-1 if value is None else int(value) for value in values], dtype=np.int64)
        except (TypeError, ValueError):
            raise UnlearningError(
                f"The labels of {self.name} are not one class number a sample ({values[0]!r}); tasks with several "
                "labels a sample are not supported."
            ) from None

    def digests(self) -> np.ndarray:
        """A hash of the stored bytes of every sample's input. Also opens each stored image, to find broken ones."""
        if not isinstance(self.dataset, datasets.Dataset):
            inputs = ([self.dataset[i][c] for c in self.input_columns] for i in range(len(self)))
        else:
            stored = self.dataset.with_format(None).select_columns(self.input_columns)
            for column, feature in stored.features.items():
                if isinstance(feature, datasets.Image):
                    stored = stored.cast_column(column, datasets.Image(decode=False))
            inputs = (list(row.values()) for row in stored)
        return np.asarray([self._digest(values, i) for i, values in enumerate(inputs)])

    def _digest(self, values: list, index: int) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for value in values:
            if isinstance(value, dict):  # a stored image
                content = value["bytes"] or _read_file(value["path"], self.name, index)
                _check_image(content, self.name, index)
                digest.update(content)
            elif isinstance(value, str):
                digest.update(value.encode() + b"\0")
            elif isinstance(value, Image.Image):
                digest.update(repr((value.mode, value.size)).encode() + value.tobytes())
            else:
                array = np.ascontiguousarray(value)
                digest.update(repr(array.shape).encode() + array.tobytes())
        return digest.digest()


def _read_file(path: str, name: str, index: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UnlearningError(f"The image of row {index} of {name} cannot be read: {error.strerror}.") from None


def _check_image(content: bytes, name: str, index: int) -> None:
    try:
        Image.open(io.BytesIO(content)).verify()
    except Exception as error:  # PIL raises a different type for every file format
        raise UnlearningError(
            f"The image of row {index} of {name} cannot be read ({error}); remove the row or replace its file."
        ) from None


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


# ---------------------------------------------------------------------------------------------------------------------
# Batches


class Collator:
    """Rows to a `Batch`: raw columns through the processing class, processed ones through the data collator."""

    def __init__(
        self, example: Source, processing_class: Any, data_collator: Callable | None, image_channels: int = 3
    ):
        self.processing_class, self.data_collator, self.image_channels = (
            processing_class,
            data_collator,
            image_channels,
        )
        self.raw_columns, self.label_column = None, example.label_column
        if not any(name in example.first_row for name in MODEL_INPUTS) and data_collator is None:
            self.raw_columns = example.input_columns
            if processing_class is None:
                raise UnlearningError(
                    f"The data has raw columns ({', '.join(self.raw_columns)}) but there is no processing class to make "
                    "model inputs of them: pass processing_class=AutoImageProcessor or AutoTokenizer.from_pretrained(...)."
                )

    def __call__(self, rows: list[dict]) -> Batch:
        if self.raw_columns is None:
            return Batch(self._labelled(self._collate(rows)))
        values = [[row[column] for row in rows] for column in self.raw_columns]
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            longest = min(self.processing_class.model_max_length, 2**15)
            inputs = self.processing_class(
                *values, padding=True, truncation=longest < 2**15, max_length=longest, return_tensors="pt"
            )
        else:
            inputs = self.processing_class([self._image(image) for image in values[0]], return_tensors="pt")
        labels = torch.tensor([int(row[self.label_column]) for row in rows])
        return Batch(inputs, labels=labels)

    def _collate(self, rows: list[dict]) -> dict:
        if self.data_collator is not None:
            return dict(self.data_collator(rows))
        if "input_ids" in rows[0] and isinstance(self.processing_class, PreTrainedTokenizerBase):
            keep = set(self.processing_class.model_input_names)
            inputs = self.processing_class.pad(
                [{k: row[k] for k in keep & set(row)} for row in rows], return_tensors="pt"
            )
            return {**inputs, "labels": torch.tensor([int(row[self.label_column]) for row in rows])}
        keep = [key for key in rows[0] if key == self.label_column or not isinstance(rows[0][key], str)]
        return default_collate([{key: _tensor(row[key]) for key in keep} for row in rows])

    def _labelled(self, batch: dict) -> dict:
        if self.label_column != "labels" and self.label_column in batch:
            batch["labels"] = batch.pop(self.label_column)
        return batch

    def _image(self, image: Any) -> Any:
        if isinstance(image, Image.Image):
            mode = "L" if self.image_channels == 1 else "RGB"
            return image if image.mode == mode else image.convert(mode)
        return image


def _tensor(value: Any) -> Any:
    return torch.as_tensor(np.asarray(value)) if isinstance(value, (list, np.ndarray)) else value


class DrawnSamples(torch.utils.data.Dataset):
    """A map-style dataset over `Draw`s: a list of draws gives rows, with what the batch must know about each of them.

    `augment` is a transform of the raw image or text. It, and any other randomness in reading a sample, is seeded by
    (seed, epoch, sample), so that every layout of batches and every resumed run sees the same augmented samples.
    """

    def __init__(
        self, sources: dict[str, Source], augment: Callable | None = None, seed: int = 0, seeded: bool = False
    ):
        self.sources, self.augment, self.seed = sources, augment, seed
        self.seeded = seeded or augment is not None

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources.values())

    def __getitems__(self, draws: list[Draw]) -> list[tuple[Draw, int, dict]]:
        if self.seeded:
            rows = [self._seeded_row(draw) for draw in draws]
        else:
            rows = [None] * len(draws)
            for name, source in self.sources.items():
                places = [i for i, draw in enumerate(draws) if draw.source == name]
                read = source.rows([draws[i].index for i in places], draws[places[0]].epoch) if places else []
                for i, row in zip(places, read, strict=True):
                    rows[i] = row
        return [(draw, self.sample_index(draw), row) for draw, row in zip(draws, rows, strict=True)]

    def sample_index(self, draw: Draw) -> int:
        """One number for each sample: forget samples first, the others behind them."""
        return draw.index if draw.source == "forget" else len(self.sources["forget"]) + draw.index

    def _seeded_row(self, draw: Draw) -> dict:
        source = self.sources[draw.source]
        with seeded(self.seed, draw.epoch, self.sample_index(draw)):
            row = source.rows([draw.index], draw.epoch)[0]
            if self.augment is None:
                return row
            column = source.input_columns[0]
            return {**row, column: self.augment(row[column])}


@contextmanager
def seeded(*key: int):
    """Python, NumPy and torch (CPU) random numbers that depend on `key` only; the generators are put back after."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seed = int(np.random.SeedSequence([k % 2**32 for k in key]).generate_state(1)[0])
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0]), np.random.set_state(states[1]), torch.random.set_rng_state(states[2])


class TrainingCollator:
    """`DrawnSamples` to what a method's `losses` gets: one `Batch`, or one for each group of a paired step."""

    def __init__(self, collator: Collator):
        self.collator = collator

    def __call__(self, samples: list[tuple[Draw, int, dict]]) -> Batch | dict[str, Batch]:
        groups = {}
        for sample in samples:
            groups.setdefault(sample[0].group, []).append(sample)
        batches = {group: self._batch(members) for group, members in groups.items()}
        return batches if len(batches) > 1 else next(iter(batches.values()))

    def _batch(self, samples: list[tuple[Draw, int, dict]]) -> Batch:
        batch = self.collator([row for _, _, row in samples])
        batch["is_forget"] = torch.tensor([draw.source == "forget" for draw, _, _ in samples])
        batch["sample_index"] = torch.tensor([index for _, index, _ in samples])
        batch["epoch"] = torch.tensor([draw.epoch for draw, _, _ in samples])
        batch["weight"] = torch.tensor([draw.weight for draw, _, _ in samples], dtype=torch.float64)
        return batch


def is_deterministic(source: Source, collator: Collator, samples: int = 4) -> bool:
    """Whether reading a sample twice gives the same inputs (a random transform on the dataset does not)."""
    indices = list(range(min(samples, len(source))))
    first, second = (collator(source.rows(indices)).inputs for _ in range(2))
    return all(torch.equal(first[key], second[key]) for key in first)
