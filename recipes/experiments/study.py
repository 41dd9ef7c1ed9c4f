"""What every experiment does: for several seeds, an original, two retrained models, and methods beside them."""

import copy
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import ConcatDataset, Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

import hf_unlearn
from hf_unlearn import UnlearningArguments, unlearn
from hf_unlearn.methods import MethodConfig

RESULTS = Path(__file__).parent / "results"


def train(model: PreTrainedModel, dataset: Dataset, seed: int, **arguments: Any) -> PreTrainedModel:
    """Plain training with transformers."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, seed=seed, save_strategy="no", logging_strategy="no", disable_tqdm=True, **arguments
        )
        Trainer(model, args, train_dataset=dataset).train()
    return model.eval()


def study(
    data: Callable[[int], dict[str, Dataset]],
    fit: Callable[[Dataset, int], PreTrainedModel],
    methods: dict[str, tuple[str | MethodConfig, dict[str, Any]]],
    peft_config: Callable[[str], Any] = lambda row: None,
    seeds: int = 3,
) -> dict[str, Any]:
    """Figures of the original, a retrained model and every method, for each seed, with mean and deviation.

    Two models are retrained with seeds of their own. `jsd` is the mean distance to the two, for a retrained model the
    distance to the other one (the floor); `closed` is the share of the way from the original's to that floor.

    Args:
        data: seed -> forget, retain and unseen samples, processed.
        fit: (samples, seed) -> a trained model.
        methods: row -> method and training arguments.
        peft_config: row -> what `unlearn` is given as that.
    """
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        parts = data(seed)
        original = fit(ConcatDataset([parts["forget"], parts["retain"]]), seed)
        since = time.perf_counter()
        retrained = [fit(parts["retain"], seed + 100), fit(parts["retain"], seed + 200)]
        seconds = (time.perf_counter() - since) / 2
        for row, (method, arguments) in methods.items():
            with tempfile.TemporaryDirectory() as folder:
                args = UnlearningArguments(
                    folder, seed=seed, save_strategy="no", logging_strategy="no", disable_tqdm=True, **arguments
                )
                about = {"method": method, "args": args, "overlap": "allow", "peft_config": peft_config(row)}
                result = unlearn(copy.deepcopy(original), **parts, **about)
                pair = [result.compare(model) for model in retrained]
            rows = {name: mean([p[name] for p in pair]) for name in ("original", "unlearned")}
            # To itself a model has no distance: what counts is that between the two.
            rows["retrained"] = pair[0]["retrained"] | {"avg_gap": None, "tow": None, "seconds": seconds}
            rows["retrained"]["jsd"] = _between(result, retrained)
            floor, top = rows["retrained"]["jsd"], rows["original"]["jsd"]
            rows["unlearned"]["closed"] = (top - rows["unlearned"]["jsd"]) / (top - floor)
            rows["unlearned"]["seconds"] = result.runtime["unlearn"]
            for name, label in (("original", "original"), ("retrained", "retrained"), ("unlearned", row)):
                runs.setdefault(label, [])
                if len(runs[label]) == seed:
                    runs[label].append(rows[name])
            print(seed, row, {k: round(v, 3) for k, v in rows["unlearned"].items() if v is not None}, flush=True)
    return {row: {"mean": mean(values), "std": std(values), "runs": values} for row, values in runs.items()}


def _between(result: Any, models: list[PreTrainedModel]) -> float:
    forget = result.trainer.indices["forget"]
    return result.trainer.evaluator.compare(*models, *forget)["jsd"]


def mean(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    return {
        key: None if any(row[key] is None for row in rows) else float(np.mean([row[key] for row in rows]))
        for key in rows[0]
    }


def std(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    return {
        key: None
        if any(row[key] is None for row in rows)
        else float(np.std([row[key] for row in rows], ddof=1))
        if len(rows) > 1
        else None
        for key in rows[0]
    }


def commit() -> str:
    """The one that is checked out."""
    here = Path(__file__).parent
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True).stdout.strip()


def record(name: str, results: Any) -> None:
    """Write `results/NAME.json`, with the command and the commit that made it."""
    about = {
        "command": " ".join(["python", f"recipes/experiments/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit(),
        "versions": {
            "hf_unlearn": hf_unlearn.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": f"{os.cpu_count()} CPU cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    print(f"wrote results/{name}.json")
