"""Splitting a dataset into what must go and what must stay, and the unseen samples into two halves."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, cast

import datasets
import numpy as np

from ..errors import UnlearningError
from .given import as_dataset
from .labels import Classes
from .reasons import reason
from .source import Columns, Source
from .types import Data

SPLIT_SEED = 42  # of the halves of unseen samples: the same in all runs and audits, whatever else is drawn anew


# ---------------------------------------------------------------------------------------------------------------------
# Splitting


def split_unseen(labels: np.ndarray, seed: int = SPLIT_SEED) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint halves of the unseen samples, balanced class by class: control (for methods), evidence (metrics)."""
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[0::2]), np.sort(order[1::2])


def split_name(data: str) -> tuple[str, str | None]:
    """The name and the split of `NAME:SPLIT`, where the split may be a slice; of what is there as a whole, no split.

    >>> split_name("me/cifar10:train[:10%]")
    ('me/cifar10', 'train[:10%]')
    """
    named = None if os.path.exists(data) else re.fullmatch(r"(.+?):(\w.*)", data)
    return (named[1], named[2]) if named else (data, None)


def split_dataset(
    dataset: Data,
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
    dataset = as_dataset(dataset, "the dataset")
    if isinstance(dataset, list):
        try:
            dataset = datasets.Dataset.from_list(cast(list[dict], dataset))
        except Exception as error:  # of arrow, one for each kind of value
            raise UnlearningError(f"The list cannot be made a datasets.Dataset ({reason(error)}).") from error
    if not isinstance(dataset, datasets.Dataset):
        raise UnlearningError(f"split_dataset got a {type(dataset).__name__}; expected a datasets.Dataset.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UnlearningError(f"seed is {seed!r}; expected a whole number of 0 or more.")
    if indices is not None:
        chosen = _rows(indices, len(dataset))
    elif labels is not None:
        source = Source(dataset, "the dataset", Columns(label=label_column))
        chosen = np.flatnonzero(np.isin(source.labels, _label_ids(source, labels)))
    elif where is not None:
        chosen = _where(dataset, where)
    else:
        chosen = np.arange(len(dataset))
    if fraction is not None:
        if indices is not None:
            raise UnlearningError(
                "Both indices and a fraction are given; the rows named by indices are forgotten whole."
            )
        if not isinstance(fraction, Real) or not 0 < fraction < 1:
            raise UnlearningError(f"fraction is {fraction!r}; expected a share between 0 and 1.")
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, round(fraction * len(chosen)), replace=False))
    if len(chosen) == 0:
        raise UnlearningError("No row is chosen to be forgotten: check the labels, rows, column or fraction given.")
    rest = np.setdiff1d(np.arange(len(dataset)), chosen)
    return datasets.DatasetDict({"forget": dataset.select(chosen), "retain": dataset.select(rest)})


def _rows(indices: Any, size: int) -> np.ndarray:
    try:
        given = np.atleast_1d(np.asarray(indices))
    except ValueError:
        given = np.empty((0, 0))
    if given.ndim != 1:
        raise UnlearningError("indices are nested; expected a list of row numbers.")
    if len(given) and given.dtype.kind not in "iu":
        raise UnlearningError(f"indices are of type {given.dtype}; expected row numbers.")
    chosen = np.unique(given)
    if len(chosen) and (chosen[0] < 0 or chosen[-1] >= size):
        bad = chosen[(chosen < 0) | (chosen >= size)][0]
        raise UnlearningError(f"Row {bad} is asked for, but the dataset has rows 0 to {size - 1}.")
    return chosen


def _where(dataset: datasets.Dataset, where: str | Callable[[dict], bool]) -> np.ndarray:
    if callable(where):
        return np.flatnonzero(_truths(_answers(dataset, where), "where gives"))
    if where not in dataset.column_names:
        raise UnlearningError(f"There is no column {where!r}; the dataset has {', '.join(dataset.column_names)}.")
    return np.flatnonzero(_truths(dataset.with_format(None)[where][:], f"The column {where!r} holds"))


def _answers(dataset: Iterable[Any], where: Callable[[dict], bool]) -> Iterable[Any]:
    for i, row in enumerate(dataset):
        try:
            yield where(row)
        except Exception as error:  # of the user's function
            raise UnlearningError(
                f"where cannot be asked about row {i} ({reason(error)}); mend the function."
            ) from error


def _truths(values: Iterable[Any], what: str) -> list[bool]:
    truths = []
    for i, value in enumerate(values):
        if np.ndim(value) or isinstance(value, (str, bytes)) or value not in (0, 1):
            shown = f"text ({value!r}, ...)" if isinstance(value, str) else f"{str(value)[:40]} in row {i}"
            raise UnlearningError(f"{what} {shown}; expected true or false.")
        truths.append(bool(value))
    return truths


def _label_ids(source: Source, labels: Any) -> list[int]:
    labels = (
        [labels] if isinstance(labels, str) or np.ndim(labels) == 0 and not isinstance(labels, set) else list(labels)
    )
    names, present = source.class_names, set(source.labels.tolist())
    classes = Classes([(name, i) for i, name in enumerate(names or [])], len(names or []))
    return [_label_id(label, source, classes, present) for label in labels]


def _label_id(label: Any, source: Source, classes: Classes, present: set[int]) -> int:
    names = source.class_names or []
    if isinstance(label, str):
        find = classes.called if source.has_text_labels else classes.find
        number = names.index(label) if label in names else find(label)
        if number in (None, -1):
            raise UnlearningError(f"There is no class named {label!r}; the dataset knows {names or 'numbers only'}.")
    elif not isinstance(label, (Real, np.bool_)) or label != label // 1:  # of infinity that is NaN
        raise UnlearningError(f"labels holds {label!r}; expected class numbers or names.")
    elif source.has_text_labels:
        raise UnlearningError(
            f"labels holds {label!r}, and the dataset's are text; expected names among {names[:10]}."
        )
    else:
        number = int(cast(float, label))
    if number not in present:
        raise UnlearningError(
            f"No row is chosen by the label {label!r}: no sample has it; expected labels that there are."
        )
    return number
