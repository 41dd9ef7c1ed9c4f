"""What a step of unlearning costs on a GPU, beside a plain Trainer's in the same run; and an edit and an audit, beside forward passes.

    python recipes/experiments/gpu.py [--setups vit-b16] [--minutes 12]

Weights and data are random: speed depends on neither. A row is samples (of a language model: tokens) in a second, and the share of
the time in which no kernel runs. A loss method is to reach .95 of the plain Trainer's speed, and a plain step of ViT-B/16 .6 of what
the device can compute at most (`of_limit`: operations of matrix products and convolutions, counted by torch on one sample; the limit
is NVIDIA's for dense products in bfloat16, None of other devices): `goal` and `met`, None where nothing is asked or nothing known.
What does not fit into the minutes is left out and named. Without a GPU it says so, and ends
with the exit code 2; `--tiny` runs all of it on small models, on whatever there is, so that it is known to run.
"""

import argparse
import gc
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from study import record
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import ConcatDataset, Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_unlearn import UnlearningArguments, UnlearningError, UnlearningResult, UnlearningTrainer
from hf_unlearn.commands import speed
from hf_unlearn.methods import get_method

PLAIN = "plain Trainer"
NO_GPU = 2  # exit code
OF_PLAIN, OF_LIMIT = 0.95, 0.6  # what is wanted
LIMITS = {
    "H200": 989e12,
    "H100 80GB HBM3": 989e12,
    "A100": 312e12,
}  # operations in a second, by what devices are called


@dataclass(frozen=True)
class Setup:
    """A model, what a batch of it is, and what is measured on it."""

    model: Callable[[bool], PreTrainedModel]
    methods: tuple[str, ...]
    batch_size: int
    size: int  # pixels of a side, or tokens of a sample
    compiled: bool = False
    channels_last: bool = False
    edits: bool = True  # and audits


def vit(tiny: bool) -> PreTrainedModel:
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return ViTForImageClassification(
        ViTConfig(num_labels=10, image_size=32 if tiny else 224, **(size | {"patch_size": 16} if tiny else {}))
    )


def resnet(tiny: bool) -> PreTrainedModel:
    size: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]} if tiny else {}
    return ResNetForImageClassification(ResNetConfig(num_labels=10, **size))


def bert(tiny: bool) -> PreTrainedModel:
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return BertForSequenceClassification(BertConfig(num_labels=10, vocab_size=30_522, **(size if tiny else {})))


def llama(tiny: bool) -> PreTrainedModel:
    """Of the shape of Llama 3.2 1B."""
    size = {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    }
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(**(size | small | {"intermediate_size": 64, "vocab_size": 512} if tiny else size))  # type: ignore
    )


CLASSIFIED = ("lotus", "hamu", "rewind")
SETUPS = {
    "vit-b16": Setup(vit, CLASSIFIED, 128, 224),
    "vit-b16 compiled": Setup(vit, CLASSIFIED, 128, 224, compiled=True, edits=False),
    "resnet50 channels-last": Setup(resnet, CLASSIFIED, 128, 224, channels_last=True),
    "bert-base": Setup(bert, CLASSIFIED, 128, 128),
    "llama-1b": Setup(llama, ("npo", "hamu"), 8, 512, edits=False),
}


class Completions(Dataset):
    """Random tokens, of which the last three quarters are trained on."""

    def __init__(self, n: int, length: int, words: int, seed: int):
        self.ids = torch.randint(3, words, (n, length), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.ids[index]
        labels = ids.clone()
        labels[: len(ids) // 4] = -100
        return {"input_ids": ids.tolist(), "labels": labels.tolist()}


class Tensors(Dataset):
    """The same samples as a plain Trainer stacks them."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: torch.as_tensor(value) for name, value in self.samples[index].items()}


def data_of(model: PreTrainedModel, setup: Setup, steps: int, tiny: bool) -> dict[str, Dataset]:
    size, n = (32 if tiny else setup.size), steps * setup_batch(setup, tiny)
    sizes = {"forget": max(8, n // 4), "retain": n, "unseen": max(8, n // 4)}
    if model.main_input_name == "pixel_values":
        return {part: speed.RandomSamples(k, model, size, seed) for seed, (part, k) in enumerate(sizes.items())}
    if isinstance(model, LlamaForCausalLM):
        words = model.config.vocab_size
        return {part: Completions(k, size, words, seed) for seed, (part, k) in enumerate(sizes.items())}
    speed.TEXT_LENGTH = size
    return {part: speed.RandomSamples(k, model, size, seed) for seed, (part, k) in enumerate(sizes.items())}


def setup_batch(setup: Setup, tiny: bool) -> int:
    return 4 if tiny else setup.batch_size


class Clock(TrainerCallback):
    """Seconds of the steps behind the first ones, and in some more of them the share of the time without a kernel."""

    def __init__(self, steps: int, warm: int):
        self.steps, self.warm, self.seconds, self.waits = steps, warm, math.nan, None
        self.profiler: profile | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.warm:
            self.start = now()
        if state.global_step == self.warm + self.steps:
            self.seconds = (now() - self.start) / self.steps
            if torch.cuda.is_available():
                self.profiler = profile(activities=[ProfilerActivity.CUDA])
                self.profiler.__enter__()
                self.start = now()
            else:
                control.should_training_stop = True
        if self.profiler and state.global_step == self.warm + self.steps + 5:
            wall = now() - self.start
            self.profiler.__exit__(None, None, None)
            self.waits = max(0.0, 1 - busy(self.profiler) / wall)
            control.should_training_stop = True


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def busy(profiler: profile) -> float:
    """Seconds in which a kernel runs: the union of their times, which overlap where there are several streams."""
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type.name == "CUDA")
    total, end = 0.0, -math.inf
    for start, stop in spans:
        total, end = total + max(0.0, stop - max(start, end)), max(end, stop)
    return total / 1e6


def arguments(setup: Setup, folder: str, tiny: bool, steps: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": setup_batch(setup, tiny),
        "max_steps": steps,
        "num_train_epochs": 100,
        "learning_rate": 1e-5,
        "bf16": not tiny,
        "use_cpu": tiny,
        "torch_compile": setup.compiled and not tiny,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0 if tiny else 8,
    }


def steps_of(setup: Setup, method: str, tiny: bool) -> dict[str, Any]:
    """Samples (or tokens) in a second of training."""
    torch.manual_seed(0)
    warm, steps = (1, 1) if tiny else (10, 30)
    model = setup.model(tiny)
    if setup.channels_last:
        model = model.to(memory_format=torch.channels_last)
    data, clock = data_of(model, setup, warm + steps + 8, tiny), Clock(steps, warm)
    with tempfile.TemporaryDirectory() as folder:
        about = arguments(setup, folder, tiny, warm + steps + 6)
        if method == PLAIN:
            trainer = Trainer(
                model, TrainingArguments(**about), train_dataset=Tensors(ConcatDataset([data["retain"]]))
            )
        else:
            config = get_method(method).config_class()
            for field, value in (("original_epochs", 30), ("stop_margin", 2.0), ("until", "end")):
                if hasattr(config, field):
                    setattr(config, field, value)
            trainer = UnlearningTrainer(
                model,
                UnlearningArguments(**about, measure=False, logging_nan_inf_filter=True),
                method=config,
                peft_config=False,
                **({"base_model": "scratch"} if method == "rewind" else {}),
                overlap="allow",
                **{f"{part}_dataset": samples for part, samples in data.items()},
            )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    # A paired step has a batch of each side.
    paired = method != PLAIN and {"paired"} == set(trainer.schedule.epochs)  # type: ignore
    batch = setup_batch(setup, tiny) * (2 if paired else 1)
    tokens = (32 if tiny else setup.size) if isinstance(model, LlamaForCausalLM) else 1
    row = {
        "unit": "tokens" if tokens > 1 else "samples",
        "per_second": batch * tokens / clock.seconds,
        "waits": clock.waits,
    }
    if method == PLAIN:
        row["flops"] = flops(model, trainer.data_collator([trainer.train_dataset[0]])) / tokens  # type: ignore
        row["of_limit"] = of_limit(row, "" if tiny else device_name())
    return row


def flops(model: PreTrainedModel, sample: dict[str, torch.Tensor]) -> int:
    """Operations of a forward and a backward pass over a sample; BatchNorm, which is not counted, could not train on one."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(**{name: value.to(model.device) for name, value in sample.items()}).loss.backward()
    return counter.get_total_flops()


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def of_limit(row: dict[str, Any], device: str) -> float | None:
    """What a row computes in a second, by what the device can; None where that is not known."""
    limit = next((limit for name, limit in LIMITS.items() if name in device), None)
    return limit and row["per_second"] * row["flops"] / limit


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """What a row was to reach, and whether it did."""
    goal, reached = None, None
    if row["what"] == PLAIN and row["setup"].startswith("vit-b16"):
        goal, reached = OF_LIMIT, row.get("of_limit")
    elif row["what"] not in (PLAIN, "audit") and get_method(row["what"]).info.kind == "loss":
        goal, reached = OF_PLAIN, row.get("of_plain")
    return {"goal": goal, "met": None if reached is None or goal is None else reached >= goal}


def passes_of(setup: Setup, what: str, tiny: bool) -> dict[str, Any]:
    """Seconds of DAMP's edit, or of an audit of level 0, in forward passes over what it reads."""
    torch.manual_seed(0)
    model = setup.model(tiny)
    data = data_of(model, setup, 1 if tiny else 20, tiny)
    data["forget"].columns["labels"][:] = 0  # a whole class goes
    data["retain"].columns["labels"].clamp_(min=1)
    with tempfile.TemporaryDirectory() as folder:
        about = arguments(setup, folder, tiny, 1) | {"torch_compile": False, "max_steps": -1}
        about["per_device_eval_batch_size"] = setup_batch(setup, tiny)
        trainer = UnlearningTrainer(
            model,
            UnlearningArguments(**about),
            method="damp",
            overlap="allow",
            **{f"{part}_dataset": samples for part, samples in data.items()},
        )
        trainer.train()
        evaluator, split = trainer.evaluator, ("forget", "retain") if what == "damp" else tuple(trainer.indices)
        taken = []
        for _ in range(3):
            start = now()
            for part in split:
                of = trainer.indices.get(part) or (part, range(len(trainer.sources[part])))
                for _ in evaluator.predictions(trainer.model, *of):
                    pass
            taken.append(now() - start)
        forward = statistics.median(taken)
        start = now()
        if what == "damp":
            seconds = trainer.runtime["unlearn"] - trainer.runtime["prepare"]
        else:
            UnlearningResult(trainer.model, trainer, trainer.metrics, trainer.runtime).audit()
            seconds = now() - start
    return {"unit": "forward passes", "seconds": seconds, "passes": seconds / forward}


def jobs(setups: list[str], methods: list[str] | None) -> list[tuple[str, str, Callable]]:
    found = []
    for name in setups:
        setup = SETUPS[name]
        trained = [PLAIN, *(m for m in setup.methods if methods is None or m in methods)]
        found += [(name, method, steps_of) for method in trained]
        if setup.edits:
            found += [(name, what, passes_of) for what in ("damp", "audit") if methods is None or what in methods]
    return found


def measured(setups: list[str], methods: list[str] | None, minutes: float, tiny: bool) -> list[dict[str, Any]]:
    """A row for everything that fits into the minutes, and one that says so for what does not."""
    began, rows = time.perf_counter(), []
    for name, what, measure in jobs(setups, methods):
        row: dict[str, Any] = {"setup": name, "what": what}
        if time.perf_counter() - began > 60 * minutes - 45:
            row["left_out"] = f"did not fit into {minutes:g} minutes"
        else:
            try:
                row |= measure(SETUPS[name], what, tiny)
            except (UnlearningError, torch.OutOfMemoryError) as error:
                row["left_out"] = str(error).partition("\n")[0]
        plain = next((r for r in rows if r["setup"] == name and r["what"] == PLAIN), None)
        if plain and "per_second" in row:
            row["of_plain"] = row["per_second"] / plain["per_second"]
        rows.append(row := row | judged(row))
        print(row, flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--setups", nargs="+", default=list(SETUPS), choices=list(SETUPS))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(argv)
    if not (torch.cuda.is_available() or options.tiny):
        print("There is no GPU here, and this measures one; --tiny runs it on small models, to see that it runs.")
        return NO_GPU
    speed.quiet()
    rows = measured(options.setups, options.methods, options.minutes, options.tiny)
    if not options.tiny:
        record("gpu", {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
