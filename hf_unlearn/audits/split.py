"""Which of the unseen samples an audit reads: the half that the run it judges was not steered by."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.utils import httpx
from torch import nn

from .. import models
from ..data.source import Source
from ..data.splits import SPLIT_SEED
from ..errors import UnlearningError
from ..training.fingerprint import fingerprint
from ..training.output import METRICS


@dataclass(frozen=True)
class Split:
    """How the unseen samples were split for an audit.

    Attributes:
        seed: of the halves; None where a test set is read whole.
        doubt: why these samples may have steered the run all the same; None where they cannot.
    """

    seed: int | None
    doubt: str | None = None

    def __str__(self) -> str:
        if self.seed is None:
            return "the test set, all of it"
        if self.doubt is None:
            return f"their evidence half (split seed {self.seed}, as in the run), which no method may use"
        return f"one half of them (split seed {self.seed}); {self.doubt}, so it is not known whether they steered it"


def split_of(unlearned: nn.Module | str | Path, given: int | None, sources: Mapping[str, Source]) -> Split:
    """The split of the run that made the model, if its folder or repository tells of it; else `given`, or the default.

    Args:
        unlearned: of a model that was loaded from a folder, that is where its run is looked for.
        sources: the sets of the audit.
    """
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 0):
        raise UnlearningError(f"split_seed is {given!r}; expected a whole number from 0 on.")
    if "test" in sources or "unseen" not in sources:
        return Split(None)
    name = _folder_of(unlearned) if isinstance(unlearned, nn.Module) else unlearned
    run = None if name is None else recorded_run(name)
    if run is None:
        return Split(SPLIT_SEED if given is None else given, "no record of the run was found beside the model")
    samples, seeds = run["request"]["samples"], run["seeds"]
    if "unseen" in samples and "test" in samples:
        raise UnlearningError(
            f"{name} was unlearned with a test set, so that all of its unseen samples may have steered it; pass the test "
            "set, or other samples that the run did not have, as test=."
        )
    if "unseen" not in samples:
        return Split(SPLIT_SEED if given is None else given)
    seed = seeds.get("split", seeds["unlearning"])  # before it had a seed of its own, the run's split them
    if given not in (None, seed):
        raise UnlearningError(
            f"split_seed is {given}, and the run of {name} split its unseen samples by {seed}; leave split_seed out, or "
            "pass samples that the run did not have as test=."
        )
    return Split(seed, _doubt(run, sources["unseen"]))


def _doubt(run: dict[str, Any], unseen: Source) -> str | None:
    """Why the halves of these samples may not be those of the run; None if it had the same ones in the same order."""
    size, noted = run["request"]["samples"]["unseen"], run["request"].get("unseen")
    if size != len(unseen):
        return f"the run had {size} unseen samples and this audit {len(unseen)}"
    if not noted:
        return "the record of the run does not say which samples these were, nor their order"
    if noted != {"salt": noted["salt"], **fingerprint(unseen, noted["salt"])}:
        return "these are not the samples of the run, or they are in another order, or stored in another way"
    return None


def _folder_of(model: nn.Module) -> str | None:
    """The folder that a model was loaded from, if it has these very weights still."""
    folder = models.folder_of(model)
    if folder is None or recorded_run(folder) is None:
        return None
    return folder if models.weights_digest(models.load_model(folder)) == models.weights_digest(model) else None


def recorded_run(name: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `metrics.json` beside a model says of the run that made it; None where there is none."""
    repo, revision = models.split_revision(name)
    try:
        path = models.find_file(repo, METRICS, {"revision": revision})
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise UnlearningError(models.explain(error, repo, revision)) from error
    if path is None:
        return None
    try:
        run = json.loads(Path(path).read_text())["run"]
        known = isinstance(run["request"]["samples"], dict) and isinstance(run["seeds"]["unlearning"], int)
        if known and isinstance((run["request"].get("unseen") or {"salt": ""})["salt"], str):
            return run
    except (ValueError, KeyError, TypeError):
        pass
    return None  # somebody else's metrics.json
