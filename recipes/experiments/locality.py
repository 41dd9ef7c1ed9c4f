"""Who pays when half of a class is forgotten: CIFAR-10, 2,000 training images, a timm ResNet-18, every method, 3 seeds.

    python recipes/experiments/locality.py [--train | --backwards | --smoke] [METHOD ...]

100 of the 200 cats go. `avg_gap` is the mean distance to a retrained model in forget, retain and unseen accuracy and in MIA;
`affected_gap` the same in the accuracy on retained, forgotten and unseen cats alone, which an average over all classes hides.
`near` and `far` are the total variation to the retrained model on unseen images, over the nearest 5 % to the forgotten ones and
over the farthest half; `near_retain` and `far_retain` on retained images; `near_confidence` is the confidence lost in the true
class, near. The row `retrained` holds what a second retrained model has of each: the floor. `interval` is half of a 95 % interval
of the mean over seeds, with Student's t. `seconds` are the processor time of one thread, teachers, measurements that steer and
embeddings included, and for `retrained` that of retraining.

What the tests compare and then the cheapest methods come first, and what is complete in all seeds is recorded at once. The nine models
are trained once; they and every row are kept in the cache of `real_data.py`, so that a run that was stopped goes on, and so that two
runs can share the work (`--backwards` begins with the last method); a row names the commit that made it. All of it takes about two
hours of one core, in bfloat16 where PyTorch's autocast has it. `--train` only trains; `--smoke` runs two methods on 300 images and
writes nothing. Rows of the record that are not in the cache stay.
"""

import copy
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from real_data import cache_folder, cifar10
from scipy.stats import t as student
from study import RESULTS, mean, record, std, train
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification

from hf_unlearn import LocalTeacherConfig, UnlearningArguments, list_methods, unlearn
from hf_unlearn.audits.locality import compare_locally
from hf_unlearn.data.digits import Samples
from hf_unlearn.methods import METHODS, MethodConfig
from hf_unlearn.methods.local_teacher import similarity

SMOKE = "--smoke" in sys.argv
SEEDS, TRAIN, UNSEEN = (1, 300, 200) if SMOKE else (3, 2_000, 3_000)
CAT = 3
PRECISION = {"bf16": True, "use_cpu": not torch.cuda.is_available()}
FIT = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 64}
FIT |= {"num_train_epochs": 1 if SMOKE else 15}
MARK = hashlib.sha256(json.dumps([FIT, TRAIN, UNSEEN, CAT]).encode()).hexdigest()[:8]
Row = dict[str, float | None]


def methods() -> dict[str, str | MethodConfig]:
    """Every method for images; of the one that is made for this case, the paper's values too."""
    if SMOKE:
        return {name: name for name in ("finetune", "local_teacher")}
    first = ("local_teacher", "random_label", "gradient_ascent")  # which the tests compare
    names = sorted(list_methods(task="image-classification"), key=lambda n: (n not in first, METHODS[n].info.cost))
    # Not the reference, nor what is for whole classes (damp) or for transformers (rmu) only.
    names = [name for name in names if name not in ("retrain", "damp", "rmu")]
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
    control, evidence = np.split(rng.permutation(10_000)[:UNSEEN], 2)
    train = {"forget": samples("train", forget), "retain": samples("train", retain)}
    return train | {"unseen": samples("test", control), "test": samples("test", evidence)}


def trained(dataset: Dataset, what: str, data_seed: int, seed: int) -> PreTrainedModel:
    """The kept model where there is one with these settings."""
    folder = cache_folder() / "trained" / f"locality-{what}-data{data_seed}-seed{seed}-{MARK}"
    if not (folder / "training.json").exists():
        torch.manual_seed(seed)
        model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=10))
        since = time.process_time()
        train(model, dataset, seed, **FIT, **PRECISION).save_pretrained(folder)
        about = {"seconds": time.process_time() - since}
        (folder / "training.json").write_text(json.dumps(about))
        print(what, data_seed, seed, about, flush=True)
    return TimmWrapperForImageClassification.from_pretrained(folder).eval()


@torch.no_grad()
def outputs(model: PreTrainedModel, part: Samples) -> tuple[Tensor, Tensor]:
    """Probabilities, and what the head reads for them."""
    read: list[Tensor] = []
    hook = model.timm_model.fc.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    training = model.training
    model.eval()
    logits = [model(pixel_values=x).logits for x in part.columns["pixel_values"].split(500)]
    model.train(training)
    hook.remove()
    return torch.cat(logits).double().softmax(-1), torch.cat(read)


@dataclass
class Scene:
    """The samples of a seed, its models, and what is compared with."""

    parts: dict[str, Samples]
    original: PreTrainedModel
    retrained: PreTrainedModel
    similarities: dict[str, Tensor]
    known: list[dict[str, Tensor]]  # probabilities of two retrained models, for each set
    seconds: float  # of retraining


@functools.cache
def scene(seed: int) -> Scene:
    parts = data(seed)
    original = trained(ConcatDataset([parts["forget"], parts["retain"]]), "original", seed, seed)
    retrained = [trained(parts["retain"], "retrained", seed, seed + more) for more in (100, 200)]
    features = {name: outputs(original, parts[name])[1] for name in ("forget", "retain", "test")}
    similarities = {name: similarity(features[name], features["forget"]) for name in ("retain", "test")}
    known = [probabilities(model, parts) for model in retrained]
    folders = [cache_folder() / "trained" / f"locality-retrained-data{seed}-seed{seed + m}-{MARK}" for m in (100, 200)]
    seconds = [json.loads((folder / "training.json").read_text())["seconds"] for folder in folders]
    return Scene(parts, original, retrained[0], similarities, known, float(np.mean(seconds)))


def probabilities(model: PreTrainedModel, parts: dict[str, Samples]) -> dict[str, Tensor]:
    return {name: outputs(model, parts[name])[0] for name in ("forget", "retain", "test")}


def distance(about: Scene, model: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """From one model's probabilities to another's: of the class that is affected, near, and far."""
    gaps, found = [], {}
    for name, p in model.items():
        q, labels = reference[name], about.parts[name].columns["labels"]
        right, right_q = ((x.argmax(-1) == labels).double() for x in (p, q))
        gaps.append(abs((right - right_q)[labels == CAT].mean().item()))
        if name == "forget":
            continue
        lost = (q - p).gather(1, labels[:, None])[:, 0]
        columns = {"accuracy": right_q - right, "confidence": lost, "total_variation": (q - p).abs().sum(-1) / 2}
        places = compare_locally(about.similarities[name], columns)
        end = "_retain" if name == "retain" else ""
        found |= {f"near{end}": places.near["total_variation"], f"far{end}": places.far["total_variation"]}
        if name == "test":
            found["near_confidence"] = places.near["confidence"]
    return {"affected_gap": float(np.mean(gaps))} | found


def rows_of(seed: int, method: str | MethodConfig) -> dict[str, Row]:
    """A row for what the method made, one for the original, and one for the retrained models."""
    about = scene(seed)
    with tempfile.TemporaryDirectory() as folder, mock.patch("time.perf_counter", time.process_time):
        quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        args = UnlearningArguments(folder, seed=seed, **quiet, **PRECISION, **({"max_steps": 5} if SMOKE else {}))
        about_run = {"method": method, "args": args, "overlap": "allow"}
        result = unlearn(copy.deepcopy(about.original), **about.parts, **about_run)
        compared = result.compare(about.retrained)
    known, second = about.known
    floor = distance(about, second, known)
    unlearned = distance(about, probabilities(result.model, about.parts), known)
    original = distance(about, probabilities(about.original, about.parts), known)
    seconds = {"seconds": result.runtime["unlearn"], "seconds_before_training": result.runtime["prepare"]}
    nothing = {"avg_gap": None, "tow": None, "jsd": None, "seconds": about.seconds}
    return {
        "original": compared["original"] | original,
        "retrained": compared["retrained"] | floor | nothing,
        "unlearned": compared["unlearned"] | unlearned | seconds,
    }


def file_of(seed: int, row: str) -> Path:
    return cache_folder() / ("locality-smoke" if SMOKE else "locality") / f"{row}-seed{seed}-{MARK}.json"


def keep(seed: int, row: str, method: str | MethodConfig) -> None:
    """Measure what no earlier run has measured."""
    file = file_of(seed, row)
    if file.exists() and not SMOKE:
        return
    head = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    rows = rows_of(seed, method) | {"commit": commit}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(rows))
    shown = ("forget_accuracy", "avg_gap", "affected_gap", "near", "far", "seconds")
    print(seed, row, {k: round(rows["unlearned"][k], 3) for k in shown}, flush=True)


def summarised(runs: list[Row]) -> dict[str, Any]:
    spread = std(runs)
    factor = student.ppf(0.975, len(runs) - 1) / np.sqrt(len(runs)) if len(runs) > 1 else None
    interval = {key: None if value is None else float(factor * value) for key, value in spread.items()}
    return {"mean": mean(runs), "std": spread, "interval": interval, "runs": runs}


def complete(names: list[str]) -> dict[str, Any]:
    """Of the methods that are measured in all seeds."""
    results: dict[str, Any] = {}
    for name in names:
        files = [file_of(seed, name) for seed in range(SEEDS)]
        if not all(file.exists() for file in files):
            continue
        seeds = [json.loads(file.read_text()) for file in files]
        for other in ("original", "retrained"):
            results.setdefault(other, summarised([s[other] for s in seeds]))
        results[name] = summarised([s["unlearned"] for s in seeds]) | {"commits": sorted({s["commit"] for s in seeds})}
    return results


if __name__ == "__main__":
    for seed in range(SEEDS):
        scene(seed)
    every, asked = methods(), [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    for name in () if "--train" in sys.argv else (asked or list(every))[:: -1 if "--backwards" in sys.argv else 1]:
        for seed in range(SEEDS):
            keep(seed, name, every[name])
        if not SMOKE:
            before = json.loads((RESULTS / "locality.json").read_text())["results"]["resnet18-half-a-class"]
            record("locality", {"resnet18-half-a-class": before | complete(list(every))})
