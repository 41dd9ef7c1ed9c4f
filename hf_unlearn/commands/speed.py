"""What unlearning costs: LoTUS beside a plain `transformers.Trainer` on the same samples, in time and in memory.

Speed depends neither on what a model has learned nor on what is in the data, so both are random and nothing is
downloaded. A machine's speed drifts by more than the differences looked for. Therefore the training loops that are
compared are alive together and take turns of a few steps, and what counts is the median of the ratios of turns that
followed each other.
"""

import importlib.metadata
import math
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

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

from .. import __version__
from ..methods import LotusConfig
from ..training.arguments import UnlearningArguments
from ..training.trainer import UnlearningTrainer

FORGET, RETAIN = 0.1, 0.3  # shares: of all samples that are forgotten, of the retained ones that LoTUS uses
TURN = 3  # steps in a row
SETUPS = 4  # loops differ by a percent or two in how their memory lies, so each side is set up several times
TEXT_LENGTH, VOCABULARY = 64, 30_522
WANTED = {"step, cached teacher": 1.05, "step, online teacher": 1.4, "whole run": 1.2}
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
COLUMNS = ("model", "measured", "plain", "LoTUS", "ratio", "min", "max", "wanted", "met")


def resnet18(image_size: int, classes: int) -> PreTrainedModel:
    """timm's ResNet-18."""
    about: dict[str, Any] = {"architecture": "resnet18", "num_labels": classes}
    return TimmWrapperForImageClassification(TimmWrapperConfig(**about))


def vit(image_size: int, classes: int) -> PreTrainedModel:
    """The width and depth of ViT-Tiny, on 16 patches."""
    size: dict[str, Any] = {
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "num_labels": classes,
    }
    return ViTForImageClassification(ViTConfig(image_size=image_size, patch_size=image_size // 4, **size))


def bert(image_size: int, classes: int, layers: int = 4, width: int = 128) -> PreTrainedModel:
    """A small BERT."""
    size: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
        "num_labels": classes,
    }
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **size))


MODELS: dict[str, Callable[[int, int], PreTrainedModel]] = {"resnet18": resnet18, "vit": vit, "bert": bert}


def build(name: str, image_size: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name](image_size, 10)


class RandomSamples(Dataset):
    """Dicts of ready tensors, so that reading a sample costs the same for everyone."""

    def __init__(self, n: int, model: PreTrainedModel, image_size: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        if model.main_input_name == "pixel_values":
            self.columns = {"pixel_values": torch.randn(n, 3, image_size, image_size, generator=generator)}
        else:
            ids = torch.randint(VOCABULARY, (n, TEXT_LENGTH), generator=generator)
            self.columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.columns["labels"] = torch.randint(cast(int, model.config.num_labels), (n,), generator=generator)

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def random_data(model: PreTrainedModel, used: int, image_size: int) -> dict[str, RandomSamples]:
    """Forget, retained and unseen samples, of which LoTUS trains on `used` in an epoch."""
    forget = round(used * FORGET / (FORGET + RETAIN * (1 - FORGET)))
    sizes = {"forget": forget, "retain": math.ceil((used - forget) / RETAIN), "unseen": forget}
    return {name: RandomSamples(n, model, image_size, seed) for seed, (name, n) in enumerate(sizes.items())}


def make_trainer(
    side: str, model: PreTrainedModel, data: dict[str, RandomSamples], folder: str, batch_size: int, epochs: int = 1
) -> Trainer:
    """The trainer of one side: `plain`, or LoTUS with a `cached` or an `online` teacher.

    All have the same samples and optimizer and BatchNorm in training mode; none of them clips, saves or measures.
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
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    if side == "plain":
        retained = Subset(data["retain"], range(int(RETAIN * len(data["retain"]))))
        trainer = Trainer(model, TrainingArguments(**shared), train_dataset=ConcatDataset([data["forget"], retained]))
    else:
        trainer = UnlearningTrainer(
            model,
            UnlearningArguments(**shared, freeze_batchnorm=False, measure=False),
            # No accuracy can fall by more than this margin, so no run ends early.
            method=LotusConfig(
                retain_fraction=RETAIN, cache_teacher="always" if side == "cached" else "never", stop_margin=2.0
            ),
            forget_dataset=data["forget"],
            retain_dataset=data["retain"],
            unseen_dataset=data["unseen"],
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


# ---------------------------------------------------------------------------------------------------------------------
# Time


class Lane(TrainerCallback):
    """A training loop in a thread of its own, which runs while it has the turn.

    `seconds` has the time of every step, from the end of the one before, so that reading its batch is part of it.
    """

    def __init__(self, trainer: Trainer, now: Callable[[], float], turn: int = TURN):
        self.turn_length = turn
        self.trainer, self.now, self.seconds, self.error, self.closing = trainer, now, [], None, False
        self.turn, self.waiting = threading.Semaphore(0), threading.Semaphore(0)
        trainer.add_callback(self)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._wait()

    def take_turn(self) -> float:
        """Run the steps of a turn; their median time."""
        self.turn.release()
        self._wait()
        return statistics.median(self.seconds[-self.turn_length :])

    def close(self) -> None:
        self.closing = True
        self.turn.release()
        self.thread.join()

    def _wait(self) -> None:
        self.waiting.acquire()
        if self.error:
            raise self.error

    def _run(self) -> None:
        try:
            self.trainer.train()
        except Exception as error:
            self.error = error
        self.waiting.release()

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
        if state.global_step % self.turn_length == 0:
            self._pause()
        control.should_training_stop |= self.closing


def compare_steps(
    name: str, *, batch_size: int = 64, image_size: int = 32, steps: int = 60, clock: str = "wall"
) -> list[dict[str, Any]]:
    """One row each for LoTUS's steps with a cached and an online teacher, and for a second plain Trainer: the noise."""
    sides = {"cached": "step, cached teacher", "online": "step, online teacher", "again": "step, plain again (noise)"}
    times = {side: [] for side in ("plain", *sides)}
    turns = max(1, steps // (TURN * SETUPS))
    data = random_data(build(name, image_size), (turns + 1) * TURN * batch_size, image_size)
    for setup in range(SETUPS):
        lanes, order = {}, [*times][setup:] + [*times][:setup]
        with tempfile.TemporaryDirectory() as folder:
            try:
                for side in order:
                    kind = "plain" if side == "again" else side
                    trainer = make_trainer(kind, build(name, image_size), data, f"{folder}/{side}", batch_size)
                    lanes[side] = Lane(trainer, _clock(clock))
                    lanes[side].take_turn()  # warms up
                for _ in range(turns):
                    for side, lane in lanes.items():
                        times[side].append(lane.take_turn())
            finally:
                for lane in lanes.values():
                    lane.close()
    return [
        _row(name, what, times["plain"], times[side], steps=len(times[side]) * TURN, batch_size=batch_size)
        for side, what in sides.items()
    ]


def compare_runs(
    name: str,
    *,
    batch_size: int = 64,
    image_size: int = 32,
    epochs: int = 10,
    steps: int = 10,
    runs: int = 3,
    clock: str = "wall",
) -> dict[str, Any]:
    """A row for whole runs of `epochs` epochs of `steps` steps, from making the trainer to the end of `train()`.

    In LoTUS's are the checks of the data, keeping the original, the teacher's pass, and the forget accuracy before
    every epoch; measuring before and after is not.
    """
    now, times = _clock(clock), {"plain": [], "cached": []}
    data = random_data(build(name, image_size), steps * batch_size, image_size)
    for _ in range(runs):
        for side in times:
            model = build(name, image_size)
            with tempfile.TemporaryDirectory() as folder:
                start = now()
                make_trainer(side, model, data, folder, batch_size, epochs).train()
                times[side].append(now() - start)
    return _row(name, "whole run", times["plain"], times["cached"], steps=epochs * steps, batch_size=batch_size)


def _clock(name: str) -> Callable[[], float]:
    """A clock that is read when a GPU has done what it was given."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return CLOCKS[name]()

    return now


def _row(name: str, measured: str, plain: list[float], lotus: list[float], **about: int) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(plain, lotus, strict=True)]
    wanted, ratio = WANTED.get(measured), statistics.median(ratios)
    met = None if wanted is None else ratio <= wanted
    medians = {"plain": statistics.median(plain), "LoTUS": statistics.median(lotus), "ratio": ratio}
    spread = {"min": min(ratios), "max": max(ratios), "pairs": len(ratios)}
    return {"model": name, "measured": measured, **medians, **spread, "wanted": wanted, "met": met, **about}


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def compare_memory(samples: int = 5_000, classes: int = 1_000) -> list[dict[str, int]] | None:
    """Bytes of the teacher's table, and by how many a run's own memory grew, for `samples` samples and for 4 times as
    many; None where the system does not tell. Each in a new process, which has no freed memory to use again."""
    if not Path("/proc/self/status").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return list(pool.map(_memory, (samples, 4 * samples), (classes, classes)))


def _memory(samples: int, classes: int) -> dict[str, int]:
    quiet()
    model = bert(0, classes, layers=1, width=16)
    data = random_data(model, round(samples * (FORGET + RETAIN * (1 - FORGET))), 0)
    memory = [_own_memory()]
    model.register_forward_hook(lambda *_: memory.append(_own_memory()))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer("cached", model, data, folder, batch_size=64)
        trainer.train()
    table = cast(Any, trainer).method.teacher.table
    return {"samples": len(table), "classes": classes, "table": table.nbytes, "growth": max(memory) - memory[0]}


class Peak:
    """The most memory that this process holds inside, sampled every millisecond, or on a GPU what torch has used of it; `growth`
    is how much that is beyond what was held before, None where the system does not tell."""

    growth: int | None = None

    def __enter__(self) -> "Peak":
        self.on_gpu, self.known = torch.cuda.is_available(), Path("/proc/self/status").exists()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        elif self.known:
            self.start = self.most = _own_memory()
            self.over = threading.Event()
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.001):
            self.most = max(self.most, _own_memory())

    def __exit__(self, *_: object) -> None:
        if self.on_gpu:
            self.growth = torch.cuda.max_memory_allocated() - self.start
        elif self.known:
            self.over.set()
            self.thread.join()
            self.growth = self.most - self.start


def _own_memory() -> int:
    """Resident bytes of this process without pages of files: those of a memory-mapped table can be dropped any time."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


# ---------------------------------------------------------------------------------------------------------------------
# What is said of it


def report(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""

    def cell(column: str, value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        formats = {"plain": "{:.4f} s", "LoTUS": "{:.4f} s", "ratio": "{:.3f}", "min": "{:.3f}", "max": "{:.3f}"}
        return formats.get(column, "{}").format(value)

    lines = [COLUMNS, ["---"] * len(COLUMNS), *([cell(name, row[name]) for name in COLUMNS] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    others = ("torch", "transformers", "accelerate", "timm", "numpy")
    return {"hf_unlearn": __version__} | {name: importlib.metadata.version(name) for name in others}


def quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
