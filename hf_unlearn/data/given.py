"""The user's datasets as they come, made into what rows are read from."""

from collections.abc import Mapping
from typing import Any, cast

import datasets
import pandas as pd

from ..errors import UnlearningError
from .layout import Layout
from .reasons import reason
from .types import Data


def as_dataset(data: Data, name: str) -> Data:
    """A pandas table as a `datasets.Dataset`, a `DatasetDict` of one split as that; anything else as it is, unless it is
    several sets, or columns."""
    if isinstance(data, datasets.DatasetDict) and len(data) == 1:
        (data,) = data.values()
    if isinstance(data, pd.DataFrame):
        try:
            return datasets.Dataset.from_pandas(data, preserve_index=False)
        except Exception as error:  # of arrow, one for each kind of column
            raise UnlearningError(
                f"{name} is a table that cannot be made a datasets.Dataset ({reason(error)}); pass a datasets.Dataset, or a list "
                "of dicts."
            ) from error
    if isinstance(data, datasets.Dataset) and data.format["type"] in ("arrow", "pandas", "polars"):
        return data.with_format(None)  # rows of tables are no dicts
    if isinstance(data, Mapping):
        held = f"{name} is a {type(data).__name__} with {', '.join(map(str, data))}"
        if any(isinstance(part, (datasets.Dataset, datasets.IterableDataset)) for part in data.values()):
            raise UnlearningError(f"{held}; pass one of them.")
        raise UnlearningError(f"{held}; expected rows. Make it a dataset with datasets.Dataset.from_dict().")
    return data


def renamed(data: Data, name: str, layout: Layout) -> Data:
    """A dataset or a list of dicts with its columns called as the layout has them, if it has all of those that it names."""
    names = dict(layout.renamed)
    rows = cast(list[Any], data) if isinstance(data, list) and data and isinstance(data[0], Mapping) else None
    columns = set(rows[0] if rows else getattr(data, "column_names", None) or ())
    found, missing = sorted(names.keys() & columns), sorted(names.keys() - columns)
    if columns & set(names.values()):
        return data  # which are read as they are
    if found and missing:
        raise UnlearningError(
            f"{name} has the column {found[0]} and no {missing[0]}; expected both answers of a preference, or {layout.expected}"
        )
    if not found:
        return data
    if rows:
        return cast(Data, [{names.get(key, key): value for key, value in row.items()} for row in rows])
    return cast(datasets.Dataset, data).rename_columns(names)
