"""What the processes of a run send each other in a step, for each method, beside a plain Trainer.

    python recipes/experiments/communication.py [--models vit] [--methods lotus hamu]

Two processes on this machine (gloo) train a small ViT and a small Llama, as DDP does it and with weights that FSDP2 cuts up. Every
collective of torch between the second update and the third is counted: calls, and the bytes of what is reduced or gathered.
"""

import argparse
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

import accelerate.state
import torch
from accelerate.utils import DistributedType
from study import record
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_unlearn import UnlearningArguments, UnlearningError, UnlearningTrainer, list_methods
from hf_unlearn.commands import speed
from hf_unlearn.methods import get_method

PLAIN = "plain Trainer"
WITHOUT = (
    "multitask",
    "auto",
    "idk_dpo",
)  # another kind of model; rewind, or rmu on a language model; and dpo with texts
SIZES = {"forget": 16, "retain": 48, "unseen": 32}
ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "num_train_epochs": 3,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}
LARGE = {"ViT-B/16": 86_567_656, "BERT-base": 109_482_240, "Llama 3.2 1B": 1_235_814_400}  # parameters
LINK = 50e9  # bytes in a second
SHARDED = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
BLOCKS = {
    "vit": "ViTLayer",
    "llama": "LlamaDecoderLayer",
}  # accelerate's own choice cuts a ViT's embeddings twice, and fails


def shard_on_cpus() -> None:
    """Let accelerate cut weights up (FSDP2) on CPUs too, where it would take that for plain data parallelism."""
    make = accelerate.state.AcceleratorState.__init__

    def made(self, *args, **kwargs):
        make(self, *args, **kwargs)
        if (plugin := kwargs.get("fsdp_plugin")) is not None:
            self.fsdp_plugin, self.distributed_type = plugin, DistributedType.FSDP
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = made


def nbytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(nbytes, value)) if isinstance(value, (list, tuple)) else 0


class Collectives(TorchDispatchMode):
    """Calls and bytes by kind. A reduction counts what is reduced, a gathering what it comes to."""

    def __init__(self):
        super().__init__()
        self.found: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            entry = self.found.setdefault(func._schema.name.removeprefix("c10d::").strip("_"), [0, 0])
            entry[0] += 1
            entry[1] += max(map(nbytes, args), default=0)
        return func(*args, **(kwargs or {}))


class Between(TrainerCallback):
    """Counts from the second update to the third."""

    def __init__(self):
        self.collectives, self.stack = Collectives(), ExitStack()

    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.stack.enter_context(self.collectives)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.stack.close()


def model_of(name: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    size: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    if name == "vit":
        return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=4, **size))
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=4, max_position_embeddings=64, **size))


def rows(model: PreTrainedModel, size: int, seed: int) -> Any:
    if model.main_input_name == "pixel_values":
        return speed.RandomSamples(size, model, 32, seed)
    ids = torch.randint(3, 256, (size, 16), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{"input_ids": row, "labels": [-100] * 4 + row[4:], "alternative": row[:3:-1]} for row in ids]


def trainer_of(name: str, method: str, folder: str, arguments: dict[str, Any]) -> Trainer:
    model = model_of(name)
    data = {part: rows(model, size, seed) for seed, (part, size) in enumerate(SIZES.items())}
    if method == PLAIN:
        batches = data["retain"]
        if name == "llama":
            batches = [{key: torch.tensor(row[key]) for key in ("input_ids", "labels")} for row in batches]
        if "fsdp_config" in arguments:
            cut = arguments["fsdp_config"] | {"transformer_layer_cls_to_wrap": [BLOCKS[name]]}
            arguments = arguments | {"fsdp_config": cut}
        return Trainer(model, TrainingArguments(folder, **arguments), train_dataset=batches)
    config = get_method(method).config_class()
    for field, value in (
        ("original_epochs", 30),
        ("stop_margin", 2.0),
        ("until", "end"),
    ):  # none ends before the third step
        if hasattr(config, field):
            setattr(config, field, value)
    args = UnlearningArguments(folder, **arguments, measure=False, logging_nan_inf_filter=False)
    datasets = {f"{part}_dataset": found for part, found in data.items()}
    about: dict[str, Any] = {"base_model": lambda: model_of(name, seed=1), "peft_config": False, "overlap": "allow"}
    return UnlearningTrainer(model, args, method=config, **about, **datasets)


def worker(rank: int, sharded: bool, jobs: list[tuple[str, str]], folder: str, queue: Any) -> None:
    shard_on_cpus()
    for name, method in jobs:
        row: dict[str, Any] = {"model": name, "method": method, "sharded": sharded}
        try:
            trainer = trainer_of(name, method, f"{folder}/{name}-{method}", ARGUMENTS | (SHARDED if sharded else {}))
            trainer.add_callback(between := Between())
            trainer.train()
        except UnlearningError as error:
            row["refused"] = str(error)
        else:
            row["weights"] = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
            row["collectives"] = between.collectives.found
        if rank == 0:
            print(
                name, method, "FSDP2" if sharded else "DDP", row.get("collectives") or row.get("refused"), flush=True
            )
            queue.put(row)


def begin(target: Callable, rank: int, size: int, port: int, *about: Any) -> None:
    """In a new process, which is one of `size`."""
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    speed.quiet()
    target(rank, *about)


def in_processes(size: int, target: Callable, about: Any, jobs: list, answers: int) -> list[dict[str, Any]]:
    """So many answers of `target(rank, about, jobs, folder, queue)` in new processes."""
    context = get_context("spawn")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        given = size, port, about, jobs, folder, queue
        processes = [context.Process(target=begin, args=(target, rank, *given), daemon=True) for rank in range(size)]
        for process in processes:
            process.start()
        found = [queue.get(timeout=900) for _ in range(answers)]
        for process in processes:
            process.join()
    return found


def run(sharded: bool, jobs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return in_processes(2, worker, sharded, jobs, len(jobs))


def jobs_of(models: list[str], methods: list[str] | None) -> list[tuple[str, str]]:
    found = []
    for name, task in (("vit", "image-classification"), ("llama", "causal-lm")):
        known = [
            one for one in list_methods(task=task) if one not in WITHOUT and get_method(one).info.kind != "surgery"
        ]
        if name not in models:
            continue
        found += [(name, one) for one in (PLAIN, *(one for one in known if methods is None or one in methods))]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _sent(row: dict[str, Any]) -> tuple[int, float]:
    """Calls, and what is sent, where 1 is a gathering of all weights."""
    kinds = row["collectives"].items()
    sent = sum((2 if "allreduce" in name else 1) * size for name, (_, size) in kinds)
    return sum(calls for _, (calls, _) in kinds), sent / row["weights"]


def table(rows: list[dict[str, Any]]) -> str:
    """What each method sends in a step, beside the plain Trainer of the same model."""
    lines = ["| model | method | DDP: calls, × plain | FSDP2: calls, × plain |", "|---|---|---|---|"]
    found = {(row["model"], row["method"], row["sharded"]): row for row in rows}
    for model, method in dict.fromkeys((row["model"], row["method"]) for row in rows):
        cells = []
        for sharded in (False, True):
            row, plain = found[model, method, sharded], found[model, PLAIN, sharded]
            if "refused" in row:
                cells.append("refused")
                continue
            calls, units = _sent(row)
            cells.append(f"{calls}, {units / _sent(plain)[1]:.2f}")
        lines.append(f"| {model} | {method} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def arithmetic(rows: list[dict[str, Any]]) -> str:
    """What a plain step would send from each of 8 and 64 devices, by the units counted in two processes."""
    units = {row["sharded"]: _sent(row)[1] for row in rows if row["method"] == PLAIN and row["model"] == "vit"}
    lines = ["| model, in float32 | | 8 devices | 64 devices |", "|---|---|---|---|"]
    for name, parameters in LARGE.items():
        for sharded, unit in units.items():
            cells = []
            for devices in (8, 64):
                sent = unit * 4 * parameters * (devices - 1) / devices
                cells.append(f"{sent / 1e9:.2f} GB, {1e3 * sent / LINK:.0f} ms")
            lines.append(f"| {name} | {'FSDP2' if sharded else 'DDP'} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["vit", "llama"])
    parser.add_argument("--methods", nargs="+")
    options = parser.parse_args()
    chosen = jobs_of(options.models, options.methods)
    record("communication", {"rows": [row for sharded in (False, True) for row in run(sharded, chosen)]})
