"""How much memory each method takes beside plain fine-tuning, in copies of the weights.

    python recipes/experiments/memory.py [--models resnet18 vit bert] [--methods rewind auto] [--add]

Every run is a process of its own, on random data whose labels are the model's answers, so that there is something to forget: a
few steps at a batch of 8 (measuring, too), through `unlearn()` with everything it does before, between and after the steps. Counted is what the
process holds at most, files left out, beyond what it held when the model and the data stood ready. A method that trains and ends
before its first step has no row: the measurement breaks off. What a method refuses is kept with its reason. With --add, rows
that are there stay, but for those of the --methods that are named, and a new row says which commit made it.
"""

import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from study import RESULTS, commit, record
from torch.utils.data import ConcatDataset, Subset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_unlearn import UnlearningArguments, UnlearningError, list_methods, unlearn
from hf_unlearn.commands import speed
from hf_unlearn.methods import get_method

WITHOUT = ("multitask", "retrain")  # other models; and training itself, on fewer samples
FROM_SCRATCH = ("auto", "rewind")  # go back to the model before training: here weights drawn anew
PLAIN = "plain Trainer"
SIZES = {"forget": 32, "retain": 96, "unseen": 64}
ARGUMENTS = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,  # not 128, of a library that measures before and after
    "num_train_epochs": 1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


def model_of(name: str) -> PreTrainedModel:
    if name == "bert":
        return speed.bert(0, 10, layers=4, width=256)
    return speed.resnet18(32, 10) if name == "resnet18" else speed.vit(32, 10)


def sets(model: PreTrainedModel, whole_class: bool) -> dict[str, Any]:
    found = {part: speed.RandomSamples(n, model, 32, seed) for seed, (part, n) in enumerate(SIZES.items())}
    for part in ("forget", "retain"):  # what the model says is right there, and hardly ever of the unseen samples
        inputs = {name: column for name, column in found[part].columns.items() if name != "labels"}
        with torch.no_grad():
            found[part].columns["labels"] = model.eval()(**inputs).logits.argmax(-1)
    if whole_class:
        gone = found["forget"].columns["labels"].mode().values
        for part in ("forget", "retain"):
            forgotten = (found[part].columns["labels"] == gone) == (part == "forget")
            found[part] = Subset(found[part], forgotten.nonzero().flatten().tolist())
    return found


def run(job: tuple[str, str]) -> dict[str, Any]:
    name, method = job
    speed.quiet()
    model = model_of(name)
    data = sets(model, method != PLAIN and get_method(method).whole_classes)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder, speed.Peak() as peak:
        if method == PLAIN:
            args = TrainingArguments(folder, **ARGUMENTS)
            trainer = Trainer(model, args, train_dataset=ConcatDataset([data["forget"], data["retain"]]))
            trainer.train()
        else:
            config = get_method(method).config_class()
            if hasattr(config, "original_epochs"):
                config.original_epochs = 30
            if getattr(config, "until", "end") == "unseen":
                config.until = "end"  # a model of random weights may know forget samples no better than unseen ones
            about = {"args": UnlearningArguments(folder, **ARGUMENTS), "overlap": "allow"}
            base = "scratch" if method in FROM_SCRATCH else None
            trainer = unlearn(model, **data, method=config, base_model=base, **about).trainer
    steps = trainer.state.global_step
    check_steps(method, steps)
    row = {
        "model": name,
        "method": method,
        "weights": weights,
        "peak": peak.growth,
        "steps": steps,
        "commit": commit(),
    }
    print(*job, f"{row['peak'] / weights:.2f} times the weights, {steps} steps", flush=True)
    return row


def trains(method: str) -> bool:
    return method == PLAIN or get_method(method).info.kind != "surgery"


def check_steps(method: str, steps: int) -> None:
    if trains(method) and not steps:
        raise RuntimeError(f"{method} ended before its first step, so that its peak is not one of training.")


if __name__ == "__main__":
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # what is freed is given back
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit", "bert"])
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--add", action="store_true", help="keep the rows that are there, and make those that are not")
    options = parser.parse_args()
    found = json.loads((RESULTS / "memory.json").read_text())["results"] if options.add else {}
    kept, refused = (
        [
            r
            for r in found.get(of, [])
            if r["model"] not in options.models or r["method"] not in (options.methods or ())
        ]
        for of in ("rows", "refused")
    )
    jobs = []
    for name in options.models:
        task = "text-classification" if name == "bert" else "image-classification"
        known = [one for one in list_methods(task=task) if one not in WITHOUT]
        jobs += [(name, one) for one in (PLAIN, *(options.methods or known))]
    jobs = [job for job in jobs if job not in {(row["model"], row["method"]) for row in kept + refused}]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for job in jobs:
            try:
                kept.append(pool.submit(run, job).result())
            except UnlearningError as error:  # which a method has for models that it cannot change
                refused.append({"model": job[0], "method": job[1], "reason": str(error)})
            record("memory", {"rows": kept, "refused": refused})  # after each, so that none is lost
    for row in refused:
        print("refused:", row["model"], row["method"], row["reason"])
