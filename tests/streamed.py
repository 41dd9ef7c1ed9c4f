"""Streams of retained samples in shards, which note who opens them, and trainers on them."""

import os
from pathlib import Path
from typing import Any

import datasets

from hf_unlearn.training.trainer import UnlearningTrainer
from tests.runs import make_trainer, request, rows

SHARDS = {"even": [6, 6, 6, 6], "uneven": [9, 3, 8, 4]}
# Batches of 8, and of 4 in each of two processes.
CASES: dict[str, dict[str, Any]] = {
    "mixed": {"method": "finetune", "family": "vit"},
    "paired": {"method": "neggrad_plus", "family": "vit"},
    "teacher": {"method": "bad_teacher", "family": "vit"},  # whose table is of the retained samples too
    "uneven": {"method": "finetune", "family": "vit", "shards": "uneven", "dataloader_num_workers": 2},
    "completions": {"method": "grad_diff", "family": "llama", "dataloader_num_workers": 1},
    "one": {"method": "finetune", "family": "vit", "shards": None},
}


def read(shards: list[tuple[int, int]], family: str, folder: str):
    """The rows from `first` to `last` of every shard."""
    kept = rows(family)["retain"]
    for first, last in shards:
        with open(Path(folder) / f"opened-{os.environ.get('RANK', 0)}", "a") as file:
            file.write(f"{first}\n")
        for place, row in enumerate(kept[first:last]):
            if place == 2 and (Path(folder) / "unplugged").exists():
                raise ConnectionResetError("Connection reset by peer")
            yield {name: value if isinstance(value, (int, list)) else value.numpy() for name, value in row.items()}


def opened(folder: Path, rank: int) -> set[int]:
    """The first rows of the shards that a process has opened since it was asked."""
    path = folder / f"opened-{rank}"
    found = set(map(int, path.read_text().split())) if path.exists() else set()
    path.unlink(missing_ok=True)
    return found


def stream_of(folder: Path, family: str, shards: str | None = "even") -> datasets.IterableDataset:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = SHARDS[shards] if shards else [24]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    given = {"shards": [(end - size, end) for size, end in zip(sizes, ends, strict=True)]}
    return datasets.IterableDataset.from_generator(read, gen_kwargs=given | {"family": family, "folder": str(folder)})


def trainer_of(
    folder: Path, method: str, family: str, shards: str | None = "even", **settings: Any
) -> UnlearningTrainer:
    data = request(family) | {"retain": stream_of(folder, family, shards)}
    settings = {"dtype": "float64", "retain_size": 24, "measure": False} | settings
    return make_trainer(method, family, folder / "run", data=data, **settings)
