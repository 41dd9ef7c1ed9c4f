"""What the tests of the training loop share: small requests, trainers for them, and runs in processes of their own."""

import functools
import gc
import importlib
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback

import hf_unlearn.training.checkpoints as checkpoints
from hf_unlearn import models
from hf_unlearn.methods import METHODS, Method, MethodConfig, MethodInfo, Multitask, MultitaskConfig, ScrubConfig
from hf_unlearn.models.multitask import MultiTaskModel
from hf_unlearn.models.multitask_labels import sample_losses, stack_labels
from hf_unlearn.tasks.losses import IGNORED, cross_entropy
from hf_unlearn.training.arguments import UnlearningArguments
from hf_unlearn.training.trainer import UnlearningTrainer
from tests.tiny import (
    PAD,
    SPECIAL_TOKENS,
    VOCABULARY,
    WORDS,
    tiny_bert,
    tiny_distilbert,
    tiny_gpt2_classifier,
    tiny_llama_lm,
    tiny_resnet,
    tiny_tokenizer,
    tiny_vit,
)

HEADS = {
    "colour": {"kind": "classification", "size": 3},
    "shape": {"kind": "classification", "size": 4},
    "size": {"kind": "regression", "tolerance": 0.5},
}


def tiny_multitask(num_labels: int = 3, seed: int = 0) -> MultiTaskModel:
    backbone = tiny_vit(seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultiTaskModel.from_backbone(backbone, HEADS)


def tiny_llama(num_labels: int = 0, seed: int = 0) -> PreTrainedModel:
    return tiny_llama_lm(seed)


BUILDERS = {
    "resnet": tiny_resnet,
    "vit": tiny_vit,
    "bert": tiny_bert,
    "distilbert": tiny_distilbert,
    "gpt2": tiny_gpt2_classifier,
    "llama": tiny_llama,
    "multitask": tiny_multitask,
}
TEXTS = ("bert", "distilbert", "gpt2")  # that classify texts
TRAINED = [
    name
    for name, method in METHODS.items()
    if method.info.kind != "surgery" and "image-classification" in method.info.applies_to
]

# Odd numbers, so that two processes never have the same share: of what is measured (unseen samples are halved), and of
# what is trained on. In steps of 8, an epoch ends with one or two samples: of 33 retained ones, of 9 to forget, of both,
# or of LoTUS's 9 + ⌊0.3 · 33⌋.
SIZES = {"forget": 9, "retain": 33, "unseen": 26}
LABELS = 3


# ---------------------------------------------------------------------------------------------------------------------
# Models and data


def rows(family: str, dtype: torch.dtype = torch.float32) -> dict[str, list[dict]]:
    """Processed images, raw texts of different lengths, or processed completions; every class in every set."""
    rng = np.random.default_rng(0)
    sets = {}
    for name, size in SIZES.items():
        labels = rng.permutation(np.arange(size) % LABELS)
        if family == "llama":
            sets[name] = [_completion(rng) for _ in labels]
            if name == "forget":
                others = np.random.default_rng(1)
                sets[name] = [row | {"alternative": _completion(others)["input_ids"]} for row in sets[name]]
            continue
        if family in TEXTS:
            inputs = [{"text": " ".join(rng.choice(WORDS, rng.integers(2, 20)))} for _ in labels]
        else:
            inputs = [{"pixel_values": torch.from_numpy(rng.standard_normal((3, 16, 16))).to(dtype)} for _ in labels]
        sets[name] = [{**values, "labels": int(label)} for values, label in zip(inputs, labels, strict=True)]
        if family == "multitask":
            sets[name] = [_of_tasks(row, i, rng) for i, row in enumerate(sets[name])]
    return sets


def _completion(rng: np.random.Generator) -> dict[str, list[int]]:
    prompt, completion = (
        rng.integers(len(SPECIAL_TOKENS), len(VOCABULARY), rng.integers(*size)).tolist() for size in ((1, 6), (1, 12))
    )
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def _of_tasks(row: dict, i: int, rng: np.random.Generator) -> dict:
    """A label for every task, but that every fourth sample has no size."""
    size = None if i % 4 == 1 else float(rng.normal())
    return {"pixel_values": row["pixel_values"], "colour": row["labels"], "shape": int(rng.integers(4)), "size": size}


def request(family: str) -> dict[str, list[dict] | datasets.Dataset]:
    """`rows` as the user has them: texts in a `datasets.Dataset`, images in a torch dataset."""
    return {name: as_given(family, samples) for name, samples in rows(family).items()}


def as_given(family: str, samples: list[dict]) -> list[dict] | datasets.Dataset:
    return datasets.Dataset.from_list(samples) if family in (*TEXTS, "llama") else samples


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, dropout: float = 0.0) -> PreTrainedModel:
    model = BUILDERS[family](num_labels=LABELS, seed=seed).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


@functools.cache
def _fitted(family: str) -> dict[str, Tensor]:
    model, sets = build(family), rows(family)
    samples = sets["forget"] + sets["retain"]
    tasks = {name: stack_labels([sample.get(name) for sample in samples], task) for name, task in HEADS.items()}
    if family != "llama":
        labels = torch.tensor([sample.get("labels", 0) for sample in samples])
    if family == "llama":
        ids, labels = (
            pad_sequence([torch.tensor(sample[key]) for sample in samples], batch_first=True, padding_value=padding)
            for key, padding in (("input_ids", PAD), ("labels", IGNORED))
        )
        inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    elif family in TEXTS:
        inputs = tiny_tokenizer()([sample["text"] for sample in samples], padding=True, return_tensors="pt")
    else:
        inputs = {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        logits = model(**inputs).logits
        if family == "multitask":
            sum(sample_losses(logits[k], tasks[k], HEADS[k]["kind"]).mean() for k in HEADS).backward()
        else:
            cross_entropy(logits, labels).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def original(family: str, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> PreTrainedModel:
    """A model that knows its training samples by heart, so that there is something to forget."""
    model = build(family, dropout=dropout)
    model.load_state_dict(_fitted(family))
    return model.to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Methods of a user's own


@dataclass
class OwnConfig(MethodConfig):
    method = "own"


class OwnDifference(Method):
    """A gradient method: g = g_retain − g_forget / 2."""

    info = MethodInfo("own_difference", "gradient", "the difference of two gradients", needs=("forget", "retain"))
    config_class = OwnConfig

    def arguments(self, family, width):
        return {"learning_rate": 3e-3, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}

    def epochs(self, epochs):
        return ["paired"] * epochs

    def losses(self, model, batch):
        for name in ("forget", "retain"):
            part = batch[name]
            yield name, part.mean(cross_entropy(model(**part.inputs).logits, part.labels))

    def combine(self, gradients):
        return [r - 0.5 * f for r, f in zip(gradients["retain"], gradients["forget"], strict=True)]


class OwnDifferenceAsLoss(OwnDifference):
    """The same rule as one loss, since a gradient is linear in it."""

    info = MethodInfo("own_difference_as_loss", "loss", "the difference of two losses", needs=("forget", "retain"))

    def losses(self, model, batch):
        losses = dict(super().losses(model, batch))
        return {"loss": losses["retain"] - 0.5 * losses["forget"]}


class OwnPhases(Method):
    """A loss method: one epoch up on forget samples, one down on retained ones, and a part that is only logged."""

    info = MethodInfo("own_phases", "loss", "ascent, then descent", needs=("forget", "retain"))
    config_class = OwnConfig

    def arguments(self, family, width):
        return {"learning_rate": 0.1, "optim": "sgd", "weight_decay": 0.0}

    def epochs(self, epochs):
        return ["forget", "retain"] * epochs

    def losses(self, model, batch):
        losses = cross_entropy(model(**batch.inputs).logits, batch.labels)
        signs = 1 - 2 * batch.is_forget.to(losses.dtype)
        return {"loss": batch.mean(signs * losses), "plain": batch.mean(losses)}


class OwnStopping(OwnPhases):
    """Fine-tuning that stops before epoch `last`."""

    def __init__(self, last: int):
        super().__init__()
        self.last = last

    def epochs(self, epochs):
        return ["retain"] * epochs

    def on_epoch_begin(self, epoch):
        return epoch < self.last


OWN = {
    "own_difference": OwnDifference,
    "own_difference_as_loss": OwnDifferenceAsLoss,
    "own_phases": OwnPhases,
    "own_stopping": functools.partial(OwnStopping, last=1),
    "own_never": functools.partial(OwnStopping, last=0),
    "own_descent": functools.partial(OwnStopping, last=1000),
    "scrub_rewind": lambda: METHODS["scrub"](ScrubConfig(rewind=True)),
    "multitask_often": lambda: Multitask(
        MultitaskConfig(refresh=3, batches=7, basis_batch_size=5, class_unlearning=True)
    ),
    "multitask_within": lambda: Multitask(
        MultitaskConfig(
            refresh=3,
            batches=20,
            basis_batch_size=1,
            samples=1,
            class_unlearning=True,
            mode="within",
            block="global",
            restore=3.0,
        )
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def make_trainer(
    method: str | MethodConfig | Method,
    family: str,
    folder: str | Path,
    *,
    batch: int = 8,
    accumulation: int = 1,
    dtype: str = "float32",
    dropout: float = 0.0,
    lora: bool | None = False,
    patience: int | None = None,
    callbacks: list[TrainerCallback] | None = None,
    model: PreTrainedModel | None = None,
    data: dict | None = None,
    tasks: dict | list | None = None,
    **arguments,
) -> UnlearningTrainer:
    """A trainer with the method's own defaults, but for what makes a run short, quiet and comparable.

    `lora` is None: no adapter, not even where the method has one by default.
    """
    dtype, adapter = getattr(torch, dtype), False if lora is None else None
    settings = {"num_train_epochs": 2, "freeze_batchnorm": True, "save_strategy": "no", "logging_strategy": "no"}
    settings |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none"} | arguments
    callbacks = list(callbacks or [])
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience))
    torch.seed()  # nothing may depend on the state in which the user left the global generator
    return UnlearningTrainer(
        model or original(family, dtype, dropout),
        UnlearningArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **settings,
        ),
        method=OWN[method]() if isinstance(method, str) and method in OWN else method,
        **{f"{name}_dataset": dataset for name, dataset in (data or request(family)).items()},
        processing_class=tiny_tokenizer() if family in TEXTS else None,
        peft_config=LoraConfig(r=2, lora_dropout=dropout, target_modules="all-linear") if lora else adapter,
        base_model=functools.partial(build, family, dtype, seed=1),
        tasks=tasks,
        callbacks=callbacks,
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class StopAt(TrainerCallback):
    """Stands for a kill at the beginning of a step, in this process."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("killed")


class Record(TrainerCallback):
    """The weights before every step, and after the last one, with the learning rate of each."""

    def __init__(self):
        self.weights, self.rates = [], []

    def on_step_begin(self, args, state, control, model, lr_scheduler, **kwargs):
        self.weights.append(weights(model))
        self.rates.append(lr_scheduler.get_last_lr()[0])

    def on_train_end(self, args, state, control, model, **kwargs):
        self.weights.append(weights(model))


def distance(a: dict[str, Tensor], b: dict[str, Tensor], start: dict[str, Tensor] | None = None) -> float:
    """‖a − b‖ / ‖b − start‖ over all weights together; without a start, ‖a − b‖ / ‖b‖."""
    assert a.keys() == b.keys()
    names = [name for name, tensor in b.items() if tensor.is_floating_point()]

    def norm(x: dict[str, Tensor], y: dict[str, Tensor] | None) -> float:
        return sum((x[k].double() - (y[k].double() if y else 0)).square().sum() for k in names).sqrt().item()

    return norm(a, b) / norm(b, start)


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------------------------------
# Processes of their own, for runs that are killed and for runs of two processes. They are forked off a server that has
# imported everything once, and leave without the end of the interpreter, at which a thread of gloo or of autograd that still
# holds a Python object would abort them.

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.runs"])


def _start(target: Callable, processes: int, *args: Any) -> list:
    """`target(*args, rank)` in so many processes; `rank` is what a launcher would put into the environment of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        group = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        group |= {"MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1]}
    started = []
    for number in range(processes):
        rank = {"RANK": number, "LOCAL_RANK": number} | group if processes > 1 else {}
        rank = {key: str(value) for key, value in rank.items()}
        started.append(_processes.Process(target=target, args=(*args, rank)))
        started[-1].start()
    return started


def _wait(processes: list) -> list[int]:
    """The exit codes. As a launcher does, kill the others when the first process has died."""
    processes[0].join(300)
    failed = processes[0].exitcode != 0
    for process in processes:
        if failed:
            process.kill()
        process.join(120)
    return [process.exitcode for process in processes]


def launch(script: str, folder: Path) -> None:
    """`main(folder)` of a script of `tests/distributed` in two processes."""
    codes = _wait(_start(_launched, 2, script, folder))
    assert codes == [0, 0], "\n".join((folder / f"output-{number}").read_text() for number in range(2))


def _launched(script: str, folder: Path, rank: dict[str, str]) -> None:
    os.environ.update(rank)
    torch.set_num_threads(1)
    with open(folder / f"output-{rank['RANK']}", "w") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    importlib.import_module(f"tests.distributed.{script}").main(folder)
    gc.collect()  # DDP's threads end before the process groups do
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # or the process that ends first may take the other one down


class Result(NamedTuple):
    weights: dict[str, Tensor]
    first_step: int  # where the run began: 0, or at the step of a checkpoint
    last_step: int
    logs: list[dict]


class Watch(TrainerCallback):
    """Says on disk how far the run is, and slows it down."""

    def __init__(self, folder: Path, pause: float):
        self.folder, self.pause, self.first_step = folder, pause, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        (self.folder / f"step-{state.global_step}").touch()
        time.sleep(self.pause)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _KillBetweenBackwardAndStep(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            _die()


def _kill(trainer: UnlearningTrainer, moment: str, step: int) -> None:
    """Make this process kill itself at a moment of saving `checkpoint-step`, or in that step."""
    name = f"checkpoint-{step}"

    def half_written(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)
        _die()

    if moment == "step":
        trainer.add_callback(_KillBetweenBackwardAndStep(step))
    elif moment == "weights":
        save_model = models.save_model

        def save_half_of_the_model(model, folder, *args):
            save_model(model, folder, *args)
            if Path(folder).name == name:
                half_written(next(Path(folder).rglob("*model.safetensors")))

        models.save_model = save_half_of_the_model
    elif moment == "optimizer":
        save = torch.save

        def save_half_of_the_optimizer(content, path, *args, **kwargs):
            save(content, path, *args, **kwargs)
            if Path(path).parent.name == name and Path(path).name == "optimizer.pt":
                half_written(Path(path))

        torch.save = save_half_of_the_optimizer
    elif moment == "marker":
        write = checkpoints._write_last
        checkpoints._write_last = lambda path, content: _die() if path.parent.name == name else write(path, content)
    elif moment == "rotation":
        remove = checkpoints.shutil.rmtree

        def remove_one_file(folder, **kwargs):
            if not Path(folder).name.startswith("checkpoint-"):
                return remove(folder, **kwargs)
            next(Path(folder).rglob("*model.safetensors")).unlink()
            _die()

        checkpoints.shutil.rmtree = remove_one_file
    else:
        raise ValueError(moment)


def _run(
    settings: dict, folder: Path, resume: bool | str, kill: tuple[str, int] | None, pause: float, rank: dict
) -> None:
    os.environ.update(rank)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore of the system, which a killed process leaves behind
    watch = Watch(folder, pause)
    with open(folder / f"output-{rank.get('RANK', 0)}", "w", buffering=1) as output, redirect_stdout(output):
        trainer = make_trainer(folder=folder / "run", callbacks=[watch], **settings)
        if kill and trainer.is_world_process_zero():
            _kill(trainer, *kill)
        trainer.train(resume_from_checkpoint=resume)
    if rank:
        assert trainer.accelerator.num_processes == int(rank["WORLD_SIZE"])
    if trainer.is_world_process_zero():
        save_file(weights(trainer.model), folder / "result.safetensors")
        about = {
            "first_step": watch.first_step,
            "last_step": trainer.state.global_step,
            "logs": trainer.state.log_history,
        }
        (folder / "result.json").write_text(json.dumps(about))


class Runs:
    """Runs of the same settings in one folder, one after the other."""

    def __init__(self, folder: Path, processes: int = 1, **settings):
        self.folder, self.processes, self.settings = Path(folder), processes, settings
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(self, resume: bool | str = False, kill: tuple[str, int] | None = None, pause: float = 0.0) -> list:
        for path in (*self.folder.glob("result.*"), *self.folder.glob("step-*")):
            path.unlink()
        return _start(_run, self.processes, self.settings, self.folder, resume, kill, pause)

    def killed(self, moment: str, step: int, resume: bool | str = False) -> None:
        assert _wait(self.start(resume, kill=(moment, step)))[0] == -signal.SIGKILL

    def finish(self, resume: bool | str = False) -> Result:
        assert _wait(self.start(resume))[0] == 0, self.output
        return self.result

    @property
    def result(self) -> Result:
        about = json.loads((self.folder / "result.json").read_text())
        return Result(load_file(self.folder / "result.safetensors"), **about)

    @property
    def output(self) -> str:
        return (self.folder / "output-0").read_text()

    @property
    def checkpoints(self) -> list[str]:
        return sorted((path.name for path in self.folder.glob("run/checkpoint-*")), key=lambda n: int(n.split("-")[1]))

    @property
    def complete(self) -> list[str]:
        return [name for name in self.checkpoints if (self.folder / "run" / name / checkpoints.COMPLETE).exists()]
