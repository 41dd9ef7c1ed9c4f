"""What unlearning costs: LoTUS beside a plain `transformers.Trainer` on the same samples, in time and in memory.

Speed depends neither on what a model has learned nor on what is in the data, so both are random and nothing is
downloaded. A machine's speed drifts by more than the differences looked for. Therefore the training loops that are
compared are alive together and take turns of a few steps, and what counts is the median of the ratios of turns that
followed each other.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from . import __version__
from .arguments import UnlearningArguments
from .methods import LotusConfig
from .trainer import UnlearningTrainer

FORGET, RETAIN = 0.1, 0.3  # shares: of all samples that are forgotten, of the retained ones that LoTUS uses
TURN = 3  # steps in a row; the first turn of every loop warms up
TEXT_LENGTH, VOCABULARY = 64, 30_522
WANTED = {"step, cached teacher": 1.05, "step, online teacher": 1.4, "whole run": 1.2}
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
COLUMNS = ("model", "measured", "plain", "LoTUS", "ratio", "min", "max", "wanted", "met")


def resnet18(image_size: int, classes: int = 10) -> PreTrainedModel:
    """timm's ResNet-18, 11 million parameters."""
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=classes))


def vit(image_size: int, classes: int = 10) -> PreTrainedModel:
    """The width and depth of ViT-Tiny, on 16 patches."""
    size = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    return ViTForImageClassification(
        ViTConfig(image_size=image_size, patch_size=image_size // 4, num_labels=classes, **size)
    )


def bert(image_size: int, classes: int = 10, layers: int = 4, width: int = 128) -> PreTrainedModel:
    """A small BERT on texts of 64 tokens; it ignores the image size."""
    size = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
    }
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=classes, **size))


MODELS: dict[str, Callable[..., PreTrainedModel]] = {"resnet18": resnet18, "vit": vit, "bert": bert}


class RandomSamples(Dataset):
    """Dicts of ready tensors, so that reading a sample costs the same for everyone."""

    def __init__(self, n: int, input_name: str, image_size: int = 32, classes: int = 10, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        if input_name == "pixel_values":
            self.columns = {input_name: torch.randn(n, 3, image_size, image_size, generator=generator)}
        else:
            ids = torch.randint(VOCABULARY, (n, TEXT_LENGTH), generator=generator)
            self.columns = {input_name: ids, "attention_mask": torch.ones_like(ids)}
        self.columns["labels"] = torch.randint(classes, (n,), generator=generator)

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def random_data(model: PreTrainedModel, used: int, image_size: int = 32) -> dict[str, Dataset]:
    """Forget, retained and unseen samples, of which LoTUS trains on `used` in an epoch."""
    forget = round(used * FORGET / (FORGET + RETAIN * (1 - FORGET)))
    sizes = {"forget": forget, "retain": round((used - forget) / RETAIN), "unseen": forget}
    classes = model.config.num_labels
    return {
        name: RandomSamples(n, model.main_input_name, image_size, classes, seed)
        for seed, (name, n) in enumerate(sizes.items())
    }


def make_trainer(
    side: str, model: PreTrainedModel, data: dict[str, Dataset], folder: str, batch_size: int, epochs: int = 1
) -> Trainer:
    """The trainer of one side: `plain`, or LoTUS with a `cached` or an `online` teacher.

    All of them have the same samples, optimizer and BatchNorm in training mode, and neither clip nor save nor measure.
    """
    shared = {
        "output_dir": folder,
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": epochs,
        "learning_rate": 1e-4,
        "weight_decay": 5e-4,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    if side == "plain":
        retained = Subset(data["retain"], range(int(RETAIN * len(data["retain"]))))
        trainer = Trainer(model, TrainingArguments(**shared), train_dataset=ConcatDataset([data["forget"], retained]))
    else:
        method = LotusConfig(
            retain_fraction=RETAIN,
            cache_teacher={"cached": "always", "online": "never"}[side],
            stop_margin=2.0,  # more than any accuracy can fall: all epochs are run
        )
        trainer = UnlearningTrainer(
            model,
            UnlearningArguments(**shared, freeze_batchnorm=False, measure=False),
            method=method,
            **{f"{name}_dataset": dataset for name, dataset in data.items()},
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


# ---------------------------------------------------------------------------------------------------------------------
# Time


class Lane(TrainerCallback):
    """A training loop in a thread of its own that runs while it has the turn; `seconds` has the time of every step.

    A step is timed from the end of the one before, so that reading its batch is part of it.
    """

    def __init__(self, trainer: Trainer, now: Callable[[], float]):
        self.now, self.seconds, self.error, self.closing = now, [], None, False
        self.turn, self.waiting = threading.Semaphore(0), threading.Semaphore(0)
        trainer.add_callback(self)
        self.thread = threading.Thread(target=self._run, args=(trainer,), daemon=True)
        self.thread.start()
        self._join_turn()

    def take_turn(self) -> float:
        """Run `TURN` steps; their median time."""
        self.turn.release()
        self._join_turn()
        return statistics.median(self.seconds[-TURN:])

    def close(self) -> None:
        self.closing = True
        self.turn.release()
        self.thread.join()

    def _run(self, trainer: Trainer) -> None:
        try:
            trainer.train()
        except Exception as error:
            self.error = error
        finally:
            self.waiting.release()

    def _join_turn(self) -> None:
        self.waiting.acquire()
        if self.error:
            raise self.error

    def _pause(self) -> None:
        self.waiting.release()
        self.turn.acquire()
        self.start = self.now()

    def on_train_begin(self, args, state, control, **kwargs):
        self._pause()

    def on_step_end(self, args, state, control, **kwargs):
        end = self.now()
        self.seconds.append(end - self.start)
        self.start = end
        if len(self.seconds) % TURN == 0:
            self._pause()
        control.should_training_stop |= self.closing


def compare_steps(
    name: str, batch_size: int = 64, steps: int = 45, clock: str = "wall", image_size: int = 32
) -> list[dict[str, Any]]:
    """Times of a LoTUS step with a cached and with an online teacher, and of a second plain Trainer: the noise."""
    turns = max(1, steps // TURN)
    measured = {
        "cached": "step, cached teacher",
        "online": "step, online teacher",
        "again": "step, plain again (noise)",
    }
    lanes, times = {}, {side: [] for side in ("plain", *measured)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for side in times:
                model = _build(name, image_size)
                data = random_data(model, (turns + 1) * TURN * batch_size, image_size)
                kind = "plain" if side == "again" else side
                trainer = make_trainer(kind, model, data, f"{folder}/{side}", batch_size)
                lanes[side] = Lane(trainer, _synchronized(CLOCKS[clock]))
                lanes[side].take_turn()
            for _ in range(turns):
                for side, lane in lanes.items():
                    times[side].append(lane.take_turn())
        finally:
            for lane in lanes.values():
                lane.close()
    return [
        _row(name, what, times["plain"], times[side], steps=turns * TURN, batch_size=batch_size)
        for side, what in measured.items()
    ]


def compare_runs(
    name: str,
    batch_size: int = 64,
    epochs: int = 10,
    steps: int = 10,
    runs: int = 3,
    clock: str = "wall",
    image_size: int = 32,
) -> dict[str, Any]:
    """Time of whole runs of `epochs` epochs of `steps` steps, from the making of the trainer to the end of `train()`.

    In LoTUS's are the checks of the data, keeping the original, the teacher's pass, and the forget accuracy before
    every epoch; measuring before and after is not.
    """
    now, times = _synchronized(CLOCKS[clock]), {"plain": [], "cached": []}
    for _ in range(runs):
        for side in times:
            model = _build(name, image_size)
            data = random_data(model, steps * batch_size, image_size)
            with tempfile.TemporaryDirectory() as folder:
                start = now()
                trainer = make_trainer(side, model, data, folder, batch_size, epochs)
                trainer.train()
                times[side].append(now() - start)
    return _row(name, "whole run", *times.values(), steps=trainer.state.global_step, batch_size=batch_size)


def _build(name: str, image_size: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name](image_size)


def _synchronized(clock: Callable[[], float]) -> Callable[[], float]:
    """The clock, read when a GPU has done what it was given."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return clock()

    return now


def _row(name: str, measured: str, plain: list[float], lotus: list[float], **about: int) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(plain, lotus, strict=True)]
    wanted, ratio = WANTED.get(measured), statistics.median(ratios)
    return {
        "model": name,
        "measured": measured,
        "plain": statistics.median(plain),
        "LoTUS": statistics.median(lotus),
        "ratio": ratio,
        "min": min(ratios),
        "max": max(ratios),
        "wanted": wanted,
        "met": None if wanted is None else ratio <= wanted,
        "pairs": len(ratios),
        **about,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def compare_memory(samples: int = 5_000, classes: int = 1_000) -> list[dict[str, float]] | None:
    """Size of the teacher's table, and growth of the process's own memory, for `samples` samples and for 4 times as
    many; None where the system does not tell. Measured in a new process, where no freed memory is used again."""
    if not Path("/proc/self/status").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_memory, samples, classes).result()


def _memory(samples: int, classes: int) -> list[dict[str, float]]:
    _quiet()
    results = []
    for n in (256, samples, 4 * samples):  # the first one warms up
        model = bert(0, classes, layers=1, width=16)
        data = random_data(model, round(n * (FORGET + RETAIN * (1 - FORGET))))
        with tempfile.TemporaryDirectory() as folder:
            before, peak = _own_memory(), _Peak()
            with peak:
                trainer = make_trainer("cached", model, data, folder, batch_size=64)
                trainer.args.measure = True
                trainer.train()
            table = trainer.method.teacher.table
            results.append({"samples": len(table), "table": table.nbytes, "growth": peak.bytes - before})
    return results[1:]


def _own_memory() -> int:
    """Resident bytes of this process that are not pages of a file: those of a memory-mapped table can go at any time."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


class _Peak(threading.Thread):
    """Looks at the memory every few milliseconds inside a `with`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.stop = 0, threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.005):
            self.bytes = max(self.bytes, _own_memory())

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: Any) -> None:
        self.stop.set()
        self.join()


# ---------------------------------------------------------------------------------------------------------------------
# The command


def report(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; times in milliseconds."""

    def cell(name: str, value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if name in ("plain", "LoTUS"):
            return f"{1000 * value:,.1f} ms"
        return f"≤ {value}" if name == "wanted" else f"{value:.3f}" if isinstance(value, float) else value

    lines = [COLUMNS, ["---"] * len(COLUMNS)] + [[cell(name, row[name]) for name in COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """What was measured on, without names."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hf-unlearn benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=45, help="timed steps of every loop")
    parser.add_argument("--whole-run", action="store_true", help="also time whole runs of ten epochs")
    parser.add_argument("--runs", type=int, default=3, help="pairs of whole runs")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure the memory")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time of one thread, for a busy machine"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.threads or args.clock == "cpu":
        torch.set_num_threads(1 if args.clock == "cpu" else args.threads)
    _quiet()
    shared = {"batch_size": args.batch_size, "clock": args.clock, "image_size": args.image_size}
    rows = []
    for name in args.models:
        rows += compare_steps(name, steps=args.steps, **shared)
        if args.whole_run:
            rows.append(compare_runs(name, runs=args.runs, **shared))
    print(report(rows))
    memory = compare_memory() if args.memory else None
    for size in memory or []:
        print(
            f"{size['samples']:,} samples: {size['table'] / 1e6:.1f} MB of teacher's table on disk, memory grew by "
            f"{size['growth'] / 1e6:.1f} MB"
        )
    if args.json:
        content = {
            "command": shlex.join(["hf-unlearn", "benchmark", *(argv or [])]),
            "machine": machine(),
            "versions": {"hf_unlearn": __version__}
            | {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate", "timm")},
            "settings": {**shared, "batchnorm": "training mode on both sides"},
            "rows": rows,
            "memory": memory,
        }
        args.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0
