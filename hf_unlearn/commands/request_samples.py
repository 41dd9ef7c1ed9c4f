"""Which samples the batches of a queue forget, retain, and have forgotten."""

import functools
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from .. import models
from ..data.overlap import copies
from ..data.source import Source
from ..errors import UnlearningError
from ..hub.receipt import SECRETS
from ..hub.records import Secrets, record_digests
from ..hub.withholding import FEWEST
from ..tasks import TASKS
from ..tasks.base import Task
from ..training.arguments import UnlearningArguments
from . import steps
from .recipe import RecipeArguments
from .request_files import RECIPE, Batch, Folder
from .request_rows import Rows

DATASET = ("dataset", "dataset_config", "dataset_revision", "train_split", "id_column")


class QueuedSamples:
    """The samples of a queue's dataset, by the requests and batches in its folder."""

    def __init__(self, folder: Folder, recipe: RecipeArguments, args: UnlearningArguments):
        self.folder, self.recipe, self.args = folder, recipe, args
        self._found: dict[int, np.ndarray] = {}  # the rows of batches that are done

    @functools.cached_property
    def splits(self) -> tuple[datasets.Dataset, datasets.Dataset | None, datasets.Dataset | None]:
        splits = steps.load_splits(self.recipe, self.args)
        if splits[1] is None and splits[2] is None:
            raise UnlearningError(
                f"The dataset {self.recipe.dataset!r} has no split of samples that the model was not trained on, on which a queue "
                f"measures drift; name one in {RECIPE} with unseen_split, which may be a slice such as train[90%:]."
            )
        return splits

    @functools.cached_property
    def rows(self) -> Rows:
        return Rows(self.splits[0], self.about())

    def about(self) -> dict[str, str | None]:
        """What a request keeps of the dataset that it is of."""
        return {key: getattr(self.recipe, key) for key in DATASET}

    def requested(self) -> np.ndarray:
        """The rows of all requests, and those that hold copies of them."""
        asked = self.rows.of_all(self.folder.requests(), may_be_gone=True)
        if not len(asked):
            return asked
        model = models.load_model(self.recipe.model, revision=self.recipe.revision, task=self.recipe.task)
        return np.union1d(asked, self._copies(asked, TASKS[models.task_of(model)]))

    def of_batch(self, batch: Batch, task: type[Task]) -> tuple[steps.Sets, int]:
        """What `unlearn()` is given, and how many copies were left out of the retained samples, which they would bring back."""
        train, unseen, test = self.splits
        known = self._known_rows(batch)
        copied = np.setdiff1d(self._copies(known, task), known)
        kept = np.setdiff1d(np.arange(len(train)), np.union1d(known, copied))
        forget = train.select(self.new_rows(self._known(batch), batch.requests))
        return steps.Sets(forget=forget, retain=train.select(kept), unseen=unseen, test=test), len(copied)

    def _copies(self, asked: np.ndarray, task: type[Task]) -> np.ndarray:
        """The rows that hold the same as one of these."""
        train = self.splits[0]
        one, other = (
            Source(data, "the dataset", self.args.columns, layout=task.layout) for data in (train.select(asked), train)
        )
        return copies(one, other)

    def _known(self, batch: Batch) -> dict[str, dict[str, Any]]:
        """The requests that were there when a batch began."""
        return {name: item for name, item in self.folder.requests().items() if item["number"] <= batch.known}

    def earlier(self) -> list[dict[str, Any]]:
        """The samples of earlier batches: all of them together, and of each one that is large enough for its figures to be
        published."""
        train, earlier, gone = self.splits[0], [], np.zeros(0, int)
        for past in self.folder.released():
            rows = np.setdiff1d(self._forgotten(past), gone)
            size = self._check_samples(past, train, rows)
            gone = np.union1d(gone, rows)
            if len(rows) == size >= FEWEST:  # of a part, beside the whole, figures would tell of the others
                earlier.append({"name": f"batch-{past.number}", "forget": train.select(rows)})
        if len(gone):
            earlier.insert(0, {"name": "all", "forget": train.select(gone)})
        return earlier

    def _known_rows(self, batch: Batch) -> np.ndarray:
        """The rows of all requests that were there when a batch began."""
        return self.rows.of_all(self._known(batch), may_be_gone=True)

    def new_rows(self, requests: Mapping[str, Mapping[str, Any]], chosen: list[str]) -> np.ndarray:
        """The rows of the chosen requests that no batch has forgotten."""
        rows = self.rows.of_all({name: requests[name] for name in chosen}, may_be_gone=self.taken())
        return np.setdiff1d(rows, self._gone())

    def _gone(self) -> np.ndarray:
        return np.unique(np.concatenate([np.zeros(0, int), *map(self._forgotten, self.folder.released())]))

    def taken(self) -> set[str]:
        """The ids of batches that are done, which the dataset need not have any more."""
        requests, done = self.folder.requests(), [batch for batch in self.folder.batches() if batch.done]
        return {value for batch in done for name in batch.requests for value in requests[name].get("ids", ())}

    def unnamed(self) -> int:
        """How many rows have come since of ids that are done, which no request after that names: they are in no set."""
        requests = self.folder.requests()
        done = {name for past in self.folder.batches() if past.done for name in past.requests}
        rows, others = (
            self.rows.of_all({name: requests[name] for name in requests if (name in done) == which}, may_be_gone=True)
            for which in (True, False)
        )
        return len(np.setdiff1d(rows, np.union1d(self._gone(), others)))

    def _forgotten(self, past: Batch) -> np.ndarray:
        """The rows that a batch has forgotten, as far as they are there; of an id, those that the secrets of the batch know,
        since others may have come later."""
        if past.number not in self._found:
            train, requests = self.splits[0], self.folder.requests()
            asked = [
                {name: requests[name] for name in past.requests if key in requests[name]} for key in ("rows", "ids")
            ]
            numbered, named = (self.rows.of_all(of, may_be_gone=True) for of in asked)
            if len(named):
                secrets = Secrets.load(past.folder / SECRETS)
                digests = record_digests(train.select(named), secrets.columns, secrets.version)
                named = named[[secrets.place(digest) is not None for digest in digests]]
            self._found[past.number] = np.union1d(numbered, named)
        return self._found[past.number]

    def _check_samples(self, batch: Batch, train: datasets.Dataset, rows: np.ndarray) -> int:
        """The rows of a batch are still the samples that it has forgotten, as far as they are there; gives how many it has."""
        secrets = Secrets.load(batch.folder / SECRETS)
        digests = record_digests(train.select(rows), secrets.columns, secrets.version) if len(rows) else []
        if strange := sum(secrets.place(digest) is None for digest in digests):
            raise UnlearningError(
                f"{strange} of the {len(rows)} rows of batch {batch.number} hold other samples in {self.recipe.dataset} than those "
                "that it has forgotten, so row numbers mean other samples now; bring back the dataset as it was. (Ids stay "
                "what they are: id_column.)"
            )
        return len(secrets.records)
