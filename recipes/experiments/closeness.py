"""How close each method comes to a retrained model at its defaults, and at what share of retraining's cost.

    python recipes/experiments/closeness.py [--cases digits vit] [--requests scattered] [--seeds 0 1] [--methods rewind] [--again]

Cases, requests, originals and retrained models are those of `cases.py`. Every run is kept in the cache and is not run again
(but with `--again`), so a study that was broken off goes on; what is there is written to `results/closeness.json`.

`jsd` is the mean over forget samples of the Jensen-Shannon divergence to a retrained model's probabilities, `jsd_p95` its 95th
percentile, both means over three retrained models with seeds of their own, none of them the original's; `jsd_unseen` the same
on unseen samples, which no model has seen. The floor is what two of the retrained models are apart. The cost is processor time
of one thread, measuring left out, over that of the original's whole training, which is told from steps of it that are timed
right before and after, in the same process.
"""

import argparse
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cases
import numpy as np
import torch
from study import RESULTS, record
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from hf_unlearn import UnlearningArguments, UnlearningError, UnlearningResult, list_methods, unlearn
from hf_unlearn.data.splits import SPLIT_SEED
from hf_unlearn.methods import get_method
from hf_unlearn.metrics import jsd_rows, matched_auc, memory, rf_jsd
from hf_unlearn.models import base_of, load_model

WITHOUT = ("multitask", "retrain")  # other models; and the reference itself
SETS = ("forget", "retain", "test")
IDENTITY = ("case", "request", "seed", "method", "budget")


class Rows(Dataset):
    def __init__(self, columns: cases.Columns):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {name: column[i] for name, column in self.columns.items()}


@torch.no_grad()
def probabilities(model: PreTrainedModel, columns: cases.Columns) -> np.ndarray:
    model = base_of(model).eval()
    inputs = {name: column for name, column in columns.items() if name != "labels"}
    batches = torch.arange(len(columns["labels"])).split(500)
    found = [model(**{name: column[rows] for name, column in inputs.items()}).logits.softmax(-1) for rows in batches]
    return torch.cat(found).double().numpy()


def outputs(model: PreTrainedModel, data: dict[str, cases.Columns]) -> dict[str, np.ndarray]:
    return {name: probabilities(model, data[name]) for name in SETS}


def beside(found: dict[str, np.ndarray], retrained: list[dict[str, np.ndarray]], data: dict) -> dict[str, float]:
    """The figures of a model from its probabilities, beside those of retrained ones."""
    labels = {name: data[name]["labels"].numpy() for name in SETS}
    right = {name: found[name].argmax(-1) == labels[name] for name in SETS}
    of_class = np.isin(labels["test"], labels["forget"])
    kept = ~of_class if set(labels["forget"]).isdisjoint(labels["retain"]) else np.ones_like(of_class)
    rows = [jsd_rows(found["forget"], other["forget"]) for other in retrained]
    p = {name: np.take_along_axis(found[name], labels[name][:, None], 1)[:, 0] for name in SETS}
    accuracy = {name: float(right[name].mean()) for name in SETS} | {"test": float(right["test"][kept].mean())}
    gaps = []
    for other in retrained:
        theirs = {name: other[name].argmax(-1) == labels[name] for name in SETS}
        theirs["test"] = theirs["test"][kept]
        gaps.append(np.mean([abs(theirs[name].mean() - accuracy[name]) for name in SETS]))
    auc = matched_auc(p["forget"], labels["forget"], p["test"], labels["test"], bootstrap=200)
    return {
        "jsd": float(np.mean([row.mean() for row in rows])),
        "jsd_p95": float(np.mean([np.quantile(row, 0.95) for row in rows])),
        "jsd_unseen": float(np.mean([jsd_rows(found["test"], other["test"]).mean() for other in retrained])),
        "avg_gap": float(np.mean(gaps)),
        "auc": auc.auc,
        "auc_low": auc.low,
        "auc_high": auc.high,
        **{f"{'unseen' if name == 'test' else name}_accuracy": value for name, value in accuracy.items()},
    }


def estimates(
    found: dict[str, np.ndarray],
    original: dict[str, np.ndarray],
    data: dict,
    weights: tuple[PreTrainedModel, PreTrainedModel],
) -> dict[str, float]:
    """What can be had without a retrained model, and may tell how far from one this model is."""
    labels = {name: data[name]["labels"].numpy() for name in SETS}
    p, before = (
        {name: np.take_along_axis(one[name], labels[name][:, None], 1)[:, 0].clip(1e-12) for name in SETS}
        for one in (found, original)
    )
    pairs = zip(weights[0].parameters(), weights[1].parameters(), strict=True)
    return {
        "rf_jsd": rf_jsd(found["forget"], labels["forget"], original["test"], labels["test"], missing="skip"),
        "memory": memory(p["forget"], labels["forget"], p["test"], labels["test"]),
        "lost_unseen_loss": float(np.mean(np.log(before["test"])) - np.mean(np.log(p["test"]))),
        "lost_retain_loss": float(np.mean(np.log(before["retain"])) - np.mean(np.log(p["retain"]))),
        "jsd_to_original_unseen": float(jsd_rows(found["test"], original["test"]).mean()),
        "jsd_to_original_forget": float(jsd_rows(found["forget"], original["forget"]).mean()),
        "distance_to_original": float(sum(((a - b) ** 2).sum() for a, b in pairs).detach().sqrt()),
    }


def step_seconds(name: str, data: dict[str, cases.Columns], steps: int = 4) -> float:
    """Processor seconds of one step of the original's training."""
    case = cases.CASES[name]
    model = case.model().train()
    optimizer = (torch.optim.SGD if case.sgd else torch.optim.AdamW)(model.parameters(), lr=1e-4)
    times = []
    for rows in torch.randperm(len(data["retain"]["labels"])).split(case.batch_size)[: steps + 1]:
        since = time.process_time()
        model(**{key: column[rows] for key, column in data["retain"].items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - since)
    return float(np.median(times[1:]))


def references(name: str, request: str, seed: int, data: dict) -> dict[str, dict[str, float]]:
    """The figures of the original and of retrained models, each beside the (other) retrained ones."""
    models = [load_model(cases.model_of(name, seed, request, again)) for again in range(cases.RETRAINED)]
    retrained = [outputs(model, data) for model in models]
    original = outputs(load_model(cases.model_of(name, seed)), data)
    others = [beside(one, [other for other in retrained if other is not one], data) for one in retrained]
    floor = {key: float(np.mean([row[key] for row in others])) for key in others[0]}
    return {
        "original": beside(original, retrained, data),
        "retrained": floor,
        "outputs": {"original": original, "retrained": retrained},
    }


@contextmanager
def unlearned(name: str, seed: int, method: str, budget: float, data: dict) -> Iterator[UnlearningResult]:
    """A method's result at its defaults; what goes back to the start is told how the original was trained."""
    case = cases.CASES[name]
    model = load_model(cases.model_of(name, seed))
    config = get_method(method).config_class()
    if hasattr(config, "budget"):
        config.budget, config.original_epochs, config.original_learning_rate = budget, case.epochs, case.rate
    about = {"base_model": str(cases.minilm())} if name == "minilm" and hasattr(config, "budget") else {}
    arguments = {"per_device_train_batch_size": case.batch_size} if hasattr(config, "budget") else {}
    with tempfile.TemporaryDirectory() as folder:
        args = UnlearningArguments(
            folder, seed=seed, save_strategy="no", report_to="none", disable_tqdm=True, measure=False,
            split_seed=SPLIT_SEED, **arguments,
        )  # fmt: skip
        yield unlearn(model, **sets(data), method=config, args=args, overlap="allow", **about)


def sets(data: dict[str, cases.Columns]) -> dict[str, Rows]:
    return {key: Rows(data[key]) for key in ("forget", "retain", "unseen", "test")}


def run(name: str, request: str, seed: int, method: str, budget: float, data: dict, known: dict) -> dict[str, Any]:
    case = cases.CASES[name]
    before, since = step_seconds(name, data), time.process_time()
    with unlearned(name, seed, method, budget, data) as result:
        seconds = time.process_time() - since
    steps = case.epochs * -(-(len(data["forget"]["labels"]) + len(data["retain"]["labels"])) // case.batch_size)
    whole = steps * (before + step_seconds(name, data)) / 2
    said = outputs(result.model, data)
    weights = base_of(result.model), load_model(cases.model_of(name, seed))
    figures = beside(said, known["retrained"], data) | estimates(said, known["original"], data, weights)
    return figures | {
        "share_of_training": seconds / whole,
        "notes": result.trainer.method.notes,
        "report": json.loads(
            json.dumps(result.trainer.method.report, default=str).replace(str(cases.cache_folder()), "~")
        ),
        "commit": commit(),
    }


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def is_trained(name: str, request: str, seed: int) -> bool:
    folder = cases.cache_folder() / "closeness" / name / f"seed{seed}"
    names = ["original"] + [f"{request}-retrained{again}" for again in range(cases.RETRAINED)]
    return all((folder / one / "training.json").exists() for one in names)


def methods_for(name: str, request: str) -> list[str]:
    task = "text-classification" if name == "minilm" else "image-classification"
    found = [one for one in list_methods(task=task) if one not in WITHOUT]
    return [one for one in found if request == "class" or not get_method(one).whole_classes]


def write() -> None:
    """One record of all runs that are kept, and of those that stand in the record and are kept elsewhere."""
    folder, record_of = cases.cache_folder() / "closeness" / "runs", RESULTS / "closeness.json"
    before = json.loads(record_of.read_text())["results"]["rows"] if record_of.exists() else []
    kept = [json.loads(path.read_text()) for path in folder.rglob("*.json")]
    rows = {tuple(row[key] for key in IDENTITY): row for row in before + kept}
    record("closeness", {"rows": [rows[key] for key in sorted(rows)]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(cases.CASES), choices=list(cases.CASES))
    parser.add_argument("--requests", nargs="+", default=list(cases.REQUESTS), choices=list(cases.REQUESTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(cases.SEEDS)))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--again", action="store_true", help="run again what is kept")
    parser.add_argument("--trained", action="store_true", help="leave out cases whose models are not trained yet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.nn.Conv2d._conv_forward = cases.convolve_small
    failed = []
    for seed, name, request in itertools.product(options.seeds, options.cases, options.requests):
        if not cases.CASES[name].has(request, seed) or (options.trained and not is_trained(name, request, seed)):
            continue
        data, found = cases.parts(name, request, seed), None
        place = cases.cache_folder() / "closeness" / "runs" / name / request / f"seed{seed}"
        place.mkdir(parents=True, exist_ok=True)
        for method in [*(options.methods or methods_for(name, request)), "original", "retrained"]:
            if method not in [*methods_for(name, request), "original", "retrained"]:
                continue
            file = place / (f"{method}.json" if options.budget == 0.2 else f"{method}-{options.budget:g}.json")
            if file.exists() and not (options.again and method in (options.methods or ())):
                continue
            found = found or references(name, request, seed, data)
            about = {"case": name, "request": request, "seed": seed, "method": method, "budget": options.budget}
            if method in found:
                row = found[method] | {"share_of_training": float(method == "retrained")}
            else:
                try:
                    row = run(name, request, seed, method, options.budget, data, found["outputs"])
                except UnlearningError as error:  # such as a method for transformers, of a convolutional network
                    failed.append(f"{name} {request} {seed} {method}: {error}")
                    continue
            file.write_text(json.dumps(about | row, indent=1))
            ratio = row["jsd"] / found["retrained"]["jsd"]
            print(
                name, request, seed, method, f"jsd {row['jsd']:.4f} ({ratio:.2f} of the floor), gap {row['avg_gap']:.3f},",
                f"auc {row['auc']:.3f}, cost {row['share_of_training']:.2f}", flush=True,
            )  # fmt: skip
    write()
    if failed:
        raise SystemExit("\n".join(["There is no row of", *failed]))
