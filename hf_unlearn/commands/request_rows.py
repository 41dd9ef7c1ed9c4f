"""Which rows of a dataset requests ask for."""

from collections.abc import Container, Mapping
from typing import Any

import datasets
import numpy as np

from ..errors import UnlearningError
from .request_files import RECIPE


class Rows:
    """The rows of a dataset that requests ask for."""

    def __init__(self, train: datasets.Dataset, dataset: dict[str, str | None]):
        self.size, self.dataset, self.column = len(train), dataset, dataset["id_column"]
        self.places: dict[str, list[int]] = {}
        if self.column is None:
            return
        if self.column not in train.column_names:
            raise UnlearningError(f"id_column is {self.column!r}; the dataset has {', '.join(train.column_names)}.")
        for row, value in enumerate(train.with_format(None)[self.column][:]):
            self.places.setdefault(str(value), []).append(row)

    def of_all(
        self, requests: Mapping[str, Mapping[str, Any]], may_be_gone: bool | Container[str] = False
    ) -> np.ndarray:
        found = [self.of(name, request, may_be_gone) for name, request in requests.items()]
        return np.unique(np.concatenate([np.zeros(0, int), *found]))

    def of(self, name: str, request: Mapping[str, Any], may_be_gone: bool | Container[str] = False) -> np.ndarray:
        """Those of one request; an id that is not in the dataset is refused, unless it (or any id) may be gone since."""
        if request["dataset"] != self.dataset:
            named = {key: value for key, value in request["dataset"].items() if value != self.dataset.get(key)}
            raise UnlearningError(
                f"The request {name!r} is of {named}, and {RECIPE} says otherwise; put that back, or begin a new queue."
            )
        if "rows" in request:
            if request["size"] != self.size:
                raise UnlearningError(
                    f"The dataset has {self.size} rows, and had {request['size']} when the request {name!r} came, so its row numbers "
                    "may mean other samples; bring the dataset back as it was, or use ids (id_column)."
                )
            if request["rows"][-1] >= self.size:
                raise UnlearningError(
                    f"The request {name!r} asks for row {request['rows'][-1]}; expected 0 to {self.size - 1}, as "
                    f"{self.dataset['train_split']} of {self.dataset['dataset']} has them."
                )
            return np.array(request["rows"], int)
        if self.column is None:
            raise UnlearningError(
                f"The request {name!r} has ids, and {RECIPE} does not say of which column; expected id_column there."
            )
        gone = () if isinstance(may_be_gone, bool) else may_be_gone
        missing = [value for value in request["ids"] if value not in self.places and value not in gone]
        if missing and may_be_gone is not True:
            raise UnlearningError(
                f"The request {name!r} asks for {missing[0]!r}, which is not in the column {self.column!r}; expected ids that are there "
                "until their batch is done."
            )
        return np.array([row for value in request["ids"] for row in self.places.get(value, [])], int)
