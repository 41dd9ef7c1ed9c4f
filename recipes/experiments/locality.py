"""Who pays when half of a class is forgotten: CIFAR-10, 5,000 training images, a timm ResNet-18, every method, 3 seeds.

    python recipes/experiments/locality.py [--train | --smoke]

250 of the 500 cats go. `avg_gap` is the mean distance to a retrained model in forget, retain and unseen accuracy and in MIA;
`affected_gap` the same in the accuracy on retained, forgotten and unseen cats alone, which an average over all classes hides.
`near` and `far` are the total variation to the retrained model on unseen images, over the nearest 5 % to the forgotten ones and
over the farthest half; `near_retain` and `far_retain` on retained images; `near_confidence` is the confidence lost in the true
class, near. The row `retrained` holds what two retrained models have of each: the floor. `interval` is half of a 95 % interval
of the mean over seeds, with Student's t.

What the tests compare and then the cheapest methods come first, and what is complete in all seeds is recorded at once. The nine models are trained once; they and
every row are kept in the cache of `real_data.py`, so that a run that was stopped goes on; a row names the commit that made it.
All of it takes several hours of one core. `--train` only trains; `--smoke` runs two methods on 300 images and writes nothing.
"""

import copy
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_data import cache_folder, cifar10
from scipy.stats import t as student
from study import mean, record, std, train
from torch.utils.data import ConcatDataset, Dataset
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification

from hf_unlearn import LocalTeacherConfig, UnlearningArguments, list_methods, unlearn
from hf_unlearn.audits import locality
from hf_unlearn.digits import Samples
from hf_unlearn.methods import METHODS, MethodConfig

SMOKE = "--smoke" in sys.argv
SEEDS, TRAIN, UNSEEN = (1, 300, 200) if SMOKE else (3, 5_000, 5_000)
CAT = 3
FIT = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 64}
FIT |= {"num_train_epochs": 1 if SMOKE else 12}
MARK = hashlib.sha256(json.dumps([FIT, TRAIN, UNSEEN, CAT]).encode()).hexdigest()[:8]
Row = dict[str, float | None]


def methods() -> dict[str, str | MethodConfig]:
    """Every method for images; of the one that is made for this case, the paper's values too."""
    if SMOKE:
        return {name: name for name in ("finetune", "local_teacher")}
    first = ("local_teacher", "random_label", "gradient_ascent")  # which the tests compare
    names = sorted(list_methods(task="image-classification"), key=lambda n: (n not in first, METHODS[n].info.cost))
    names = [name for name in names if name not in ("retrain", "damp", "unsir")]  # the last two are for whole classes
    rows: dict[str, str | MethodConfig] = {}
    for name in names:
        rows[name] = name
        if name == "local_teacher":
            rows["local_teacher (paper)"] = LocalTeacherConfig.paper()
    return rows


@functools.cache
def pixels(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = cifar10()[split]
    stacked = np.stack([np.asarray(image) for image in images["image"]]).transpose(0, 3, 1, 2)
    return torch.tensor(stacked), torch.tensor(images["label"][:])


def samples(split: str, rows: np.ndarray) -> Samples:
    x, y = pixels(split)
    return Samples(pixel_values=x[rows] / 127.5 - 1, labels=y[rows])


def data(seed: int) -> dict[str, Samples]:
    """As many training images of every class; half of the cats are to be forgotten."""
    rng, labels = np.random.default_rng(seed), pixels("train")[1].numpy()
    chosen = {c: rng.permutation(np.flatnonzero(labels == c))[: TRAIN // 10] for c in range(10)}
    forget = chosen[CAT][: TRAIN // 20]
    retain = np.setdiff1d(np.concatenate(list(chosen.values())), forget)
    unseen = rng.permutation(10_000)[:UNSEEN]
    return {"forget": samples("train", forget), "retain": samples("train", retain), "unseen": samples("test", unseen)}


def trained(dataset: Dataset, what: str, data_seed: int, seed: int) -> PreTrainedModel:
    """The kept model where there is one with these settings."""
    folder = cache_folder() / "trained" / f"locality-{what}-data{data_seed}-seed{seed}-{MARK}"
    if (folder / "config.json").exists():
        return TimmWrapperForImageClassification.from_pretrained(folder).eval()
    since = time.process_time()
    torch.manual_seed(seed)
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=10))
    model = train(model, dataset, seed, **FIT)
    print(what, data_seed, seed, f"{time.process_time() - since:.0f} s", flush=True)
    if not SMOKE:
        model.save_pretrained(folder)
    return model


@torch.no_grad()
def cats(model: PreTrainedModel, parts: dict[str, Samples]) -> np.ndarray:
    """The accuracy on forgotten, retained and unseen cats."""
    found, training = [], model.training
    model.eval()
    for part in parts.values():
        x = part.columns["pixel_values"][part.columns["labels"] == CAT]
        answers = torch.cat([model(pixel_values=rows).logits.argmax(dim=1) for rows in x.split(500)])
        found.append((answers == CAT).double().mean().item())
    model.train(training)
    return np.array(found)


def changes(about: dict[str, Any]) -> dict[str, float]:
    """What is kept of a report on unseen and on retained samples."""
    unseen, retain = about["unseen"], about["retain"]
    return {
        "near": unseen.near["total_variation"],
        "far": unseen.far["total_variation"],
        "near_retain": retain.near["total_variation"],
        "far_retain": retain.far["total_variation"],
        "near_confidence": unseen.near["confidence"],
    }


@functools.cache
def scene(seed: int) -> tuple[dict[str, Samples], PreTrainedModel, list[PreTrainedModel]]:
    """The samples, the original, and two retrained models."""
    parts = data(seed)
    original = trained(ConcatDataset([parts["forget"], parts["retain"]]), "original", seed, seed)
    return parts, original, [trained(parts["retain"], "retrained", seed, seed + more) for more in (100, 200)]


def rows_of(seed: int, method: str | MethodConfig) -> dict[str, Row]:
    """A row for what the method made, one for the original, and one for the retrained models."""
    parts, original, retrained = scene(seed)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        args = UnlearningArguments(folder, seed=seed, **quiet, **({"max_steps": 5} if SMOKE else {}))
        result = unlearn(copy.deepcopy(original), **parts, method=method, args=args, overlap="allow")
        pair = [result.compare(model) for model in retrained]
        reports = [locality(result, *retrained), locality(result, *retrained[::-1])]
    known = [cats(model, parts) for model in retrained]

    def affected(model: PreTrainedModel) -> dict[str, float]:
        own = cats(model, parts)
        return {"affected_gap": float(np.mean([np.abs(own - k).mean() for k in known]))}

    unlearned = mean([p["unlearned"] for p in pair]) | mean([changes(r) for r in reports]) | affected(result.model)
    between = changes({split: report.floor for split, report in reports[0].items()})
    floors = between | {
        "avg_gap": None,
        "tow": None,
        "jsd": None,
        "affected_gap": float(np.abs(known[0] - known[1]).mean()),
    }
    return {
        "original": mean([p["original"] for p in pair]) | dict.fromkeys(between) | affected(original),
        "retrained": pair[0]["retrained"] | floors,
        "unlearned": unlearned | {"seconds": result.runtime["unlearn"]},
    }


def kept(seed: int, row: str, method: str | MethodConfig) -> dict[str, Any]:
    """What an earlier run has kept of it, or else what is measured now."""
    file = cache_folder() / "locality" / f"{row}-seed{seed}-{MARK}.json"
    if file.exists() and not SMOKE:
        return json.loads(file.read_text())
    head = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    rows = rows_of(seed, method) | {"commit": commit}
    if not SMOKE:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(rows))
    shown = ("forget_accuracy", "avg_gap", "affected_gap", "near", "far", "seconds")
    print(seed, row, {k: round(rows["unlearned"][k], 3) for k in shown}, flush=True)
    return rows


def summarised(runs: list[Row]) -> dict[str, Any]:
    spread = std(runs)
    factor = student.ppf(0.975, len(runs) - 1) / np.sqrt(len(runs)) if len(runs) > 1 else None
    interval = {key: None if value is None else float(factor * value) for key, value in spread.items()}
    return {"mean": mean(runs), "std": spread, "interval": interval, "runs": runs}


if __name__ == "__main__":
    results: dict[str, Any] = {}
    for seed in range(SEEDS):
        scene(seed)
    for row, method in ({} if "--train" in sys.argv else methods()).items():
        seeds = [kept(seed, row, method) for seed in range(SEEDS)]
        for name in ("original", "retrained"):
            results.setdefault(name, summarised([s[name] for s in seeds]))
        results[row] = summarised([s["unlearned"] for s in seeds]) | {"commits": sorted({s["commit"] for s in seeds})}
        if not SMOKE:
            record("locality", {"resnet18-half-a-class": results})
