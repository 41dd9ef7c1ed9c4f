"""What a step of two processes takes beside that of one, in processor time, for some methods and a plain Trainer.

    python recipes/experiments/scaling.py [--models resnet18]

Strong scaling: the two share a batch of 32. Weak scaling: each has 32 of its own. Counted is the time that each process has a
processor for, from one update to the next: reading, both passes, its part of the sums over the processes (gloo), the
optimizer. Waiting for the other one is not in it, so that the figures hold on a machine that other work shares; nor is what
two processes on two cores take from each other, such as the way to memory.
"""

import argparse
import json
import statistics
import time
from typing import Any

import communication
import torch
from study import RESULTS, commit, record
from torch.utils.data import ConcatDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.commands import speed
from hf_unlearn.methods import get_method

PLAIN = communication.PLAIN
METHODS = (PLAIN, "finetune", "lotus", "hamu")
BATCH, WARM, STEPS = 32, 2, 8
SIZES = {"forget": 2 * BATCH * STEPS, "retain": 2 * BATCH * STEPS, "unseen": BATCH}
WAYS = {"one": (1, BATCH), "strong": (2, BATCH // 2), "weak": (2, BATCH)}  # processes, and the batch of each
ARGUMENTS = communication.ARGUMENTS | {"max_steps": STEPS}
WITHOUT_END = {"stop_margin": 2.0, "until": "end"}


class Clock(TrainerCallback):
    """The processor time of this process, all its threads together, at the end of each step."""

    def __init__(self):
        self.at: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.at.append(time.process_time())

    @property
    def seconds(self) -> float:
        """Of a step, the median of those after the first ones."""
        return statistics.median(b - a for a, b in zip(self.at[WARM - 1 :], self.at[WARM:], strict=False))


def trainer_of(name: str, method: str, folder: str, batch: int) -> Trainer:
    model = speed.build(name, 32)
    data = {part: speed.RandomSamples(size, model, 32, seed) for seed, (part, size) in enumerate(SIZES.items())}
    arguments = ARGUMENTS | {"per_device_train_batch_size": batch}
    if method == PLAIN:
        samples = ConcatDataset([data["forget"], data["retain"]])
        return Trainer(model, TrainingArguments(folder, **arguments), train_dataset=samples)
    config = get_method(method).config_class()
    for field, value in WITHOUT_END.items():
        if hasattr(config, field):
            setattr(config, field, value)
    datasets = {f"{part}_dataset": found for part, found in data.items()}
    args = UnlearningArguments(folder, **arguments, measure=False)
    return UnlearningTrainer(model, args, method=config, overlap="allow", **datasets)


def worker(rank: int, way: str, jobs: list[tuple[str, str]], folder: str, queue: Any) -> None:
    processes, batch = WAYS[way]
    for name, method in jobs:
        trainer = trainer_of(name, method, f"{folder}/{name}-{method}", batch)
        trainer.add_callback(clock := Clock())
        trainer.train()
        joined = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        assert joined == trainer.args.world_size == processes and len(clock.at) == STEPS
        about = {"model": name, "method": method, "way": way, "processes": joined, "batch": batch}
        queue.put(about | {"rank": rank, "seconds": clock.seconds})


def run(way: str, jobs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row for each job, with the seconds of each process."""
    answers = communication.in_processes(WAYS[way][0], worker, way, jobs, WAYS[way][0] * len(jobs))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for found in sorted(answers, key=lambda found: found.pop("rank")):
        seconds = found.pop("seconds")
        rows.setdefault((found["model"], found["method"]), found | {"seconds": []})["seconds"].append(seconds)
    for row in rows.values():
        print(row, flush=True)
    return [rows[job] for job in jobs]


def efficiency(rows: list[dict[str, Any]], model: str, method: str, way: str) -> float:
    """Of what one process takes for the same samples, by the process that takes longer."""
    of = {row["way"]: max(row["seconds"]) for row in rows if (row["model"], row["method"]) == (model, method)}
    return of["one"] / (of[way] * (WAYS["strong"][0] if way == "strong" else 1))


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | method | one process, s | strong: s of each | efficiency | weak: s of each | efficiency |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, method in dict.fromkeys((row["model"], row["method"]) for row in rows):
        of = {row["way"]: row["seconds"] for row in rows if (row["model"], row["method"]) == (model, method)}
        cells = [f"{of['one'][0]:.3f}"]
        for way in ("strong", "weak"):
            cells += [", ".join(f"{s:.3f}" for s in of[way]), f"{efficiency(rows, model, method, way):.2f}"]
        lines.append(f"| {model} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit"])
    options = parser.parse_args()
    path = RESULTS / "scaling.json"
    rows = json.loads(path.read_text())["results"]["rows"] if path.exists() else []
    rows = [row for row in rows if row["model"] not in options.models]  # those of other models stay
    chosen = [(name, method) for name in options.models for method in METHODS]
    record("scaling", {"rows": rows + [row | {"commit": commit()} for way in WAYS for row in run(way, chosen)]})
