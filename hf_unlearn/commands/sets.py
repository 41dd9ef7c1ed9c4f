"""The sets that a command or a recipe names: from the Hub, from a folder, or from a file."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import config as datasets_config
from datasets.exceptions import DatasetsError
from huggingface_hub.utils import httpx

from .. import models
from ..data.splits import split_name
from ..errors import UnlearningError
from ..methods import AutoConfig
from ..models.find import check_no_revision
from ..training.arguments import UnlearningArguments
from .text import COLUMNS, check_options

FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def read_dataset(name: str, config: str | None = None, revision: str | None = None) -> datasets.DatasetDict:
    """All splits of a dataset of the Hub, of a folder, or of a file."""
    path = Path(name)
    for what, value in (("dataset_config", config), ("dataset_revision", revision)):
        if value is not None and path.exists():
            raise UnlearningError(
                f"{what} is {value!r}, and the dataset {name!r} is a local file or folder, which has none; leave it out."
            )
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            data = datasets.load_from_disk(name)
        elif path.is_file():
            if path.suffix not in FILE_FORMATS:
                raise UnlearningError(f"dataset is the file {name!r}; expected one of {', '.join(FILE_FORMATS)}.")
            data = datasets.load_dataset(FILE_FORMATS[path.suffix], data_files=name)
        else:
            if not path.exists():
                models.check_token(None)
            with _reading_cache_only(not path.exists() and not models.hub_is_reachable()):
                data = datasets.load_dataset(name, config, revision=revision)
    except UnlearningError:
        raise
    except (DatasetsError, OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
        check = "its files" if path.exists() else "its name and the connection, or give a local folder or file"
        raise UnlearningError(f"The dataset {name!r} cannot be loaded: {reason}. Check {check}.") from error
    return data if isinstance(data, datasets.DatasetDict) else datasets.DatasetDict({"train": data})


@contextmanager
def _reading_cache_only(offline: bool) -> Iterator[None]:
    """What `HF_HUB_OFFLINE=1` does for datasets: they ask the Hub many times, and wait, before they look into the cache."""
    before = datasets_config.HF_HUB_OFFLINE
    datasets_config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets_config.HF_HUB_OFFLINE = before


def take_split(splits: datasets.DatasetDict, name: str, key: str) -> datasets.Dataset:
    """A split, or slices of splits such as `train[:90%]`."""
    if name in splits:
        return splits[name]
    try:
        slices = datasets.ReadInstruction.from_spec(name).to_absolute({split: len(splits[split]) for split in splits})
    except (ValueError, AssertionError):
        raise UnlearningError(
            f"{key} is {name!r}; the dataset has {', '.join(map(str, splits))} (a slice such as {next(iter(splits))}[:90%] works too)."
        ) from None
    return datasets.concatenate_datasets([splits[s.splitname].select(range(s.from_, s.to)) for s in slices])


def read_set(data: str, key: str) -> datasets.Dataset:
    """A set named on the command line: NAME, or NAME:SPLIT where the split may be a slice such as `train[:10%]`."""
    name, split = split_name(data)
    splits = read_dataset(name)
    if split is None and len(splits) > 1:
        raise UnlearningError(
            f"{key} is {data!r}, which has the splits {', '.join(map(str, splits))}; say which one, as in {data}:{next(iter(splits))}."
        )
    return take_split(splits, split or str(next(iter(splits))), key)


def read_request(options: argparse.Namespace) -> dict[str, Any]:
    """What `choose()` takes, from the options that `add_request` adds; numbers are checked before anything is read."""
    check_options(options, batch_size=1)
    known = {name: getattr(options, name) for name in ("budget", "original_epochs", "original_learning_rate")}
    AutoConfig(**known)
    check_no_revision(options.model, options.revision)
    args = UnlearningArguments(
        per_device_train_batch_size=options.batch_size,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{f"{name}_column": getattr(options, f"{name}_column") for name in COLUMNS},
        max_length=options.max_length,
    )
    return known | {
        "model": options.model if options.revision is None else f"{options.model}@{options.revision}",
        **{name: read_set(getattr(options, name), name) for name in ("forget", "retain", "unseen")},
        "base_model": options.base_model,
        "overlap": options.overlap,
        "args": args,
    }


def drawn(data: datasets.Dataset, size: int | None, seed: int = 0) -> datasets.Dataset:
    """At most `size` rows, drawn at random, in their own order."""
    if size is None or size >= len(data):
        return data
    return data.select(np.sort(np.random.default_rng(seed).choice(len(data), size, replace=False)))
