"""What Local Teacher Distillation costs, and what each thing that makes it cheaper does: half of a class forgotten.

    python recipes/experiments/local_teacher.py [--cases digits cifar10-small resnet] [--seeds 0 1] [--rows defaults]

The small ResNet of `cases.py` and a small ViT on digits with wrong labels, a small ResNet on 2,000 images of CIFAR-10, and a ResNet-18
on 5,000. `none of it` is ten epochs of all samples and all layers at a third of the rate, and a ResNet-8 at 32 px as the teacher. A share is of the processor time of the original's whole training, as in `closeness.py`; `teacher` is the teacher's part in it.
`affected_gap` is the mean distance in the accuracy on forgotten, retained and unseen samples of the class to two retrained models.
What is recorded of other cases stays.
"""

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import cases
import closeness
import numpy as np
import torch
from study import RESULTS, mean, record, std

from hf_unlearn import LocalTeacherConfig, UnlearningArguments, unlearn
from hf_unlearn.data.splits import SPLIT_SEED
from hf_unlearn.methods import LocalTeacher
from hf_unlearn.models import load_model
from hf_unlearn.models.small import small_resnet, small_vit

RETRAINED = 2
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "patches as the teacher": ({"teacher": "patches"}, {}),
    "a ResNet-8 as the teacher": ({"teacher": "resnet8"}, {}),
    "8 retained for each": ({"retain_per_forget": 8.0}, {}),
    "none of it": (
        {"teacher": "resnet8", "frozen": 0.0, "teacher_pixels": 32, "until": "end"},
        {"rate": 0.3},
    ),
}
CASES = {
    "digits": cases.CASES["digits"],
    "digits-vit": replace(cases.CASES["digits"], model=lambda: small_vit(drawn()), rate=2e-3, sgd=False),
    "cifar10-small": cases.Case(
        cases.images, lambda: small_resnet(drawn()), size=2_000, epochs=15, rate=0.1, batch_size=64, unseen=2_000
    ),
    "resnet": cases.CASES["resnet"],
}
cases.CASES |= CASES


def drawn() -> int:
    return int(torch.randint(2**31, ()))


def affected_gap(found: dict, retrained: list[dict], data: dict) -> float:
    """Of the accuracy on the class alone, in the three sets."""
    gaps = []
    for part in closeness.SETS:
        labels = data[part]["labels"].numpy()
        of_class = labels == cases.CLASS
        theirs, ours = (
            np.mean([(one[part].argmax(-1) == labels)[of_class].mean() for one in those])
            for those in (retrained, [found])
        )
        gaps.append(abs(theirs - ours))
    return float(np.mean(gaps))


def figures(found: dict, retrained: list[dict], data: dict) -> dict[str, float]:
    keys = ("forget_accuracy", "retain_accuracy", "unseen_accuracy", "jsd", "avg_gap")
    beside = closeness.beside(found, retrained, data)
    return {key: beside[key] for key in keys} | {"affected_gap": affected_gap(found, retrained, data)}


def run(name: str, seed: int, variant: str, data: dict, retrained: list[dict]) -> dict[str, float]:
    """One run, with the seconds of steps of the original's training right before and after it."""
    case, (config, arguments) = cases.CASES[name], VARIANTS[variant]
    model, taught, plain = load_model(cases.model_of(name, seed)), [], LocalTeacher.trained_teacher
    rate = LocalTeacher().arguments(*(("convolutional",) if case.sgd else ("transformer", 64)))["learning_rate"]
    arguments = dict(arguments)
    arguments["learning_rate"] = rate * arguments.pop("rate", 1.0)

    def timed(*about: Any) -> Any:
        since = time.process_time()
        found = plain(*about)
        taught.append(time.process_time() - since)
        return found

    before, since = closeness.step_seconds(name, data), time.process_time()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(LocalTeacher, "trained_teacher", timed):
        args = UnlearningArguments(
            folder, seed=seed, save_strategy="no", report_to="none", disable_tqdm=True, measure=False,
            split_seed=SPLIT_SEED, **arguments,
        )  # fmt: skip
        method = LocalTeacherConfig(**config)
        result = unlearn(model, **closeness.sets(data), method=method, args=args, overlap="allow")
    seconds = time.process_time() - since
    steps = case.epochs * -(-case.size // case.batch_size)
    whole = steps * (before + closeness.step_seconds(name, data)) / 2
    return figures(closeness.outputs(result.model, data), retrained, data) | {
        "teacher_forget_accuracy": result.trainer.method.report["teacher_forget_accuracy"],
        "share_of_training": seconds / whole,
        "teacher": sum(taught) / whole,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--rows", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.nn.Conv2d._conv_forward = cases.convolve_small
    runs: dict[str, dict[str, list[dict]]] = {name: {} for name in options.cases}
    for name, seed in itertools.product(options.cases, options.seeds):
        data = cases.parts(name, "part", seed)
        of = [load_model(cases.model_of(name, seed, "part", again)) for again in range(RETRAINED)]
        retrained = [closeness.outputs(model, data) for model in of]
        rows = {"original": figures(closeness.outputs(load_model(cases.model_of(name, seed)), data), retrained, data)}
        rows["retrained"] = figures(retrained[0], retrained[1:], data)
        for row in [*rows, *options.rows]:
            found = rows[row] if row in rows else run(name, seed, row, data, retrained)
            runs[name].setdefault(row, []).append(found)
            print(name, seed, row, json.dumps({key: round(value, 3) for key, value in found.items()}), flush=True)
    file = RESULTS / "local_teacher.json"
    results = json.loads(file.read_text())["results"] if file.exists() else {}
    for name, rows in runs.items():
        results[name] = {row: {"mean": mean(v), "std": std(v), "runs": v} for row, v in rows.items()}
    record("local_teacher", results)
