"""Who pays when half of a class is forgotten: CIFAR-10, 10,000 training images, a timm ResNet-18, every method, 3 seeds.

    python recipes/experiments/locality.py [--train | --smoke]

500 of the 1,000 cats go. `avg_gap` is the mean distance to a retrained model in forget, retain and unseen accuracy and in MIA;
`affected_gap` the same in the accuracy on retained, forgotten and unseen cats alone, which an average over all classes hides.
`near` and `far` are the total variation to the retrained model on unseen images, over the nearest 5 % to the forgotten ones and
over the farthest half; `near_retain` and `far_retain` on retained images; `near_confidence` is the confidence lost in the true
class, near. The row `retrained` holds what two retrained models have of each: the floor. `interval` is half of a 95 % interval
of the mean over seeds, with Student's t.

The nine models are trained once and kept in the cache of `real_data.py`, about 40 minutes on one core; `--train` does no
more than that. `--smoke` runs two methods on 300 images and writes nothing.
"""

import copy
import functools
import hashlib
import json
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from real_data import cache_folder, cifar10
from scipy.stats import t as student
from study import mean, record, std, train
from torch.utils.data import ConcatDataset, Dataset
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification

from hf_unlearn import LocalTeacherConfig, UnlearningArguments, UnlearningError, list_methods, unlearn
from hf_unlearn.audits import locality
from hf_unlearn.digits import Samples
from hf_unlearn.methods import MethodConfig

SMOKE = "--smoke" in sys.argv
SEEDS, TRAIN, UNSEEN = (1, 300, 200) if SMOKE else (3, 10_000, 5_000)
CAT = 3
FIT = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 64}
FIT |= {"num_train_epochs": 1 if SMOKE else 12}


def methods() -> dict[str, str | MethodConfig]:
    """Every method for images; of the one that is made for this case, the paper's values too."""
    names = ["finetune", "local_teacher"] if SMOKE else list_methods(task="image-classification")
    rows: dict[str, str | MethodConfig] = {name: name for name in names if name != "retrain"}
    return rows if SMOKE else rows | {"local_teacher (paper)": LocalTeacherConfig.paper()}


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
    mark = hashlib.sha256(json.dumps([FIT, TRAIN, CAT]).encode()).hexdigest()[:8]
    folder = cache_folder() / "trained" / f"locality-{what}-data{data_seed}-seed{seed}-{mark}"
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


def one_seed(seed: int) -> dict[str, dict[str, float | None]]:
    """A row for the original, one for the retrained models, and one for every method."""
    parts = data(seed)
    original = trained(ConcatDataset([parts["forget"], parts["retain"]]), "original", seed, seed)
    retrained = [trained(parts["retain"], "retrained", seed, seed + more) for more in (100, 200)]
    rows: dict[str, dict[str, float | None]] = {}
    if "--train" in sys.argv:
        return rows
    known = [cats(model, parts) for model in retrained]

    def affected(model: PreTrainedModel) -> float:
        return float(np.mean([np.abs(cats(model, parts) - k).mean() for k in known]))

    for row, method in methods().items():
        with tempfile.TemporaryDirectory() as folder:
            quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
            args = UnlearningArguments(folder, seed=seed, **quiet, **({"max_steps": 5} if SMOKE else {}))
            try:
                result = unlearn(copy.deepcopy(original), **parts, method=method, args=args, overlap="allow")
            except UnlearningError as error:  # such as a method for whole classes, or for transformers
                print(seed, row, error, flush=True)
                continue
            pair = [result.compare(model) for model in retrained]
            reports = [locality(result, *retrained), locality(result, *retrained[::-1])]
            unlearned = mean([p["unlearned"] for p in pair]) | {"affected_gap": affected(result.model)}
            rows[row] = unlearned | mean([changes(r) for r in reports]) | {"seconds": result.runtime["unlearn"]}
            if "retrained" not in rows:
                before = {"affected_gap": affected(original), "seconds": None}
                rows["original"] = mean([p["original"] for p in pair]) | dict.fromkeys(changes(reports[0])) | before
                other = pair[0]["retrained"] | {"avg_gap": None, "tow": None, "jsd": None, "seconds": None}
                floors = {split: report.floor for split, report in reports[0].items()}
                between = float(np.abs(known[0] - known[1]).mean())
                rows["retrained"] = other | {"affected_gap": between} | changes(floors)
        shown = ("forget_accuracy", "avg_gap", "affected_gap", "near", "far")
        print(seed, row, {k: round(rows[row][k], 3) for k in shown}, flush=True)
    return {row: rows[row] for row in ("original", "retrained", *rows)}


def summarised(runs: list[dict[str, float | None]]) -> dict[str, Any]:
    spread = std(runs)
    factor = student.ppf(0.975, len(runs) - 1) / np.sqrt(len(runs)) if len(runs) > 1 else None
    interval = {key: None if value is None else float(factor * value) for key, value in spread.items()}
    return {"mean": mean(runs), "std": spread, "interval": interval, "runs": runs}


if __name__ == "__main__":
    seeds = [one_seed(seed) for seed in range(SEEDS)]
    everywhere = [row for row in seeds[0] if all(row in rows for rows in seeds)]
    results = {row: summarised([rows[row] for rows in seeds]) for row in everywhere}
    if results and not SMOKE:
        record("locality", {"resnet18-half-a-class": results})
