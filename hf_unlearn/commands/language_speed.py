"""What a step of a method for language models costs, in memory and time, beside a plain `transformers.Trainer`.

The model is a small Llama of random weights with the vocabulary of a large one, since what a head says of every word is the most
that a step holds. A plain step has two forget and two retained texts in one batch; a method's has the same four, or four of one
group. Memory is what a process of its own comes to hold beyond the model and the texts; time is of the processor, of one thread,
where both loops take turns. `altpo` and `idk_dpo` take `dpo`'s step, with other answers, and `rewind` that of `finetune`.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from ..errors import UnlearningError
from ..methods import get_method
from ..training.arguments import UnlearningArguments
from ..training.trainer import UnlearningTrainer
from .speed import CLOCKS, Lane, Peak, machine, quiet, versions

VOCABULARY, LAYERS, WIDTH, TOKENS, TEXTS = 128_256, 4, 512, 256, 2  # texts of a group in a step
PROMPT = 0.25  # the share of a text that is asked, and not learnt
WARM = 1  # steps before a loop is timed
MEASURED_STEPS = 2  # of a loop whose memory is measured: the optimizer's state is there from the second on
PLAIN, EVALUATION = "plain", "evaluation"


@dataclass(frozen=True)
class Side:
    """A method with settings of its own, in all weights or in an adapter; and what is wanted of its memory, as a share of the plain
    step's. A method that is given one group `alone` has as many texts of it as others of two."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    adapter: bool = False
    checkpointing: bool = False
    wanted: float | None = None
    alone: bool = False


KL = (("retain", "kl"),)
SIDES = {
    "grad_diff": Side("grad_diff", wanted=0.5),
    "npo": Side("npo", wanted=0.5),
    "npo, KL": Side("npo", KL, wanted=0.6),
    "simnpo": Side("simnpo", wanted=0.5),
    "rmu": Side("rmu"),
    "hamu": Side("hamu"),
    "undial": Side("undial"),
    "wga": Side("wga"),
    "satimp": Side("satimp"),
    "ce_u": Side("ce_u"),
    "pdu": Side("pdu"),
    "dpo": Side("dpo"),
    "gradient_ascent": Side("gradient_ascent", alone=True),
    "finetune": Side("finetune", alone=True),
    "task_vector": Side("task_vector", (("scale", 1.0),), alone=True),
    "npo, LoRA": Side("npo", adapter=True, wanted=0.35),
    "npo, LoRA, checkpointing": Side("npo", adapter=True, checkpointing=True, wanted=0.35),
    EVALUATION: Side(EVALUATION),
}
WANTED_TIME, WANTED_BYTES = {EVALUATION: 1.2}, {EVALUATION: 64e6}  # beside a plain forward pass


class RandomTexts(Dataset):
    """Texts, and with `answers` another one to each, as long as its own."""

    def __init__(self, n: int, vocabulary: int, tokens: int, seed: int, answers: bool = False):
        self.answers = answers
        self.ids = torch.randint(vocabulary, (n, tokens), generator=torch.Generator().manual_seed(seed))
        self.labels = self.ids.clone()
        self.labels[:, : int(PROMPT * tokens)] = -100

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.ids[index]
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": self.labels[index]}
        return row | ({"alternative": ids[row["labels"] != -100].flip(0).tolist()} if self.answers else {})


def build(vocabulary: int, tokens: int) -> PreTrainedModel:
    torch.manual_seed(0)
    size = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
    }
    shared = {"max_position_embeddings": tokens, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **size, **shared))


def make_trainer(
    side: Side | None,
    vocabulary: int,
    tokens: int,
    steps: int,
    folder: str,
    model: PreTrainedModel | None = None,
    group: int = TEXTS,
    **arguments: Any,
) -> Trainer:
    """The trainer of a side, None being the plain one; with AdamW on both, no measuring and no saving.

    Args:
        model: instead of the small one.
        group: texts of a group in a step.
        arguments: further training arguments of both.
    """
    model = build(vocabulary, tokens) if model is None else model
    shared: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": steps,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        **arguments,
    }
    asks = side is not None and get_method(side.method).takes_alternatives
    texts = {
        "forget": RandomTexts(group * steps, vocabulary, tokens, 0, answers=asks),
        "retain": RandomTexts(group * steps, vocabulary, tokens, 1),
    }
    if side is None:
        args = TrainingArguments(**shared, per_device_train_batch_size=2 * group)
        trainer = Trainer(model, args, train_dataset=ConcatDataset([*texts.values()]))
    else:
        method = get_method(side.method)
        if method.info.kind == "gradient":
            shared |= {"optim": "sgd"}  # which such a method demands
        config = method.config_class(**dict(side.settings))
        if hasattr(config, "until"):
            config.until = "end"  # pyright: ignore[reportAttributeAccessIssue]
        args = UnlearningArguments(
            **shared,
            per_device_train_batch_size=group * (2 if side.alone else 1),
            per_device_eval_batch_size=2 * group,
            gradient_checkpointing=side.checkpointing,
            measure=False,
        )
        if "unseen" in method.info.needs:
            texts["unseen"] = RandomTexts(group, vocabulary, tokens, 2)
        sets: dict[str, Any] = {f"{name}_dataset": data for name, data in texts.items()}
        trainer = UnlearningTrainer(model, args, method=config, **sets, peft_config=side.adapter)
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def evaluations(vocabulary: int, tokens: int) -> Iterator[dict[str, Callable[[], Any]]]:
    """A plain forward pass over four texts, and our measurement of the same."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Side("npo"), vocabulary, tokens, 2, folder)
        assert isinstance(trainer, UnlearningTrainer)
        model, rows = trainer.model.eval(), [trainer.sources["forget"].rows(range(2 * TEXTS))]
        inputs = {
            name: torch.stack([torch.as_tensor(row[name]) for row in rows[0]]) for name in ("input_ids", "labels")
        }

        def plain() -> None:
            with torch.no_grad():
                model(**{name: tensor.to(trainer.args.device) for name, tensor in inputs.items()})

        yield {PLAIN: plain, EVALUATION: lambda: trainer.evaluator.measure(model, *trainer.indices["forget"])}


# ---------------------------------------------------------------------------------------------------------------------
# Each in a process of its own


def memory(job: tuple[str, int, int]) -> int | None:
    """Bytes that a side (`plain`, or a name of `SIDES`) comes to hold."""
    name, vocabulary, tokens = job
    quiet()
    torch.set_num_threads(1)
    if name.startswith(EVALUATION):
        with evaluations(vocabulary, tokens) as sides, Peak() as peak:
            sides[EVALUATION if name == EVALUATION else PLAIN]()
        return peak.growth
    with tempfile.TemporaryDirectory() as folder:
        side = None if name == PLAIN else SIDES[name]
        trainer = make_trainer(side, vocabulary, tokens, MEASURED_STEPS, folder)
        with Peak() as peak:
            trainer.train()
    return peak.growth


def seconds(job: tuple[str, int, int, int]) -> dict[str, list[float]]:
    """Processor time of steps of a side and of plain ones, in turns."""
    name, vocabulary, tokens, steps = job
    quiet()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {PLAIN: [], name: []}
    if name == EVALUATION:
        with evaluations(vocabulary, tokens) as sides:
            for _ in range(WARM + steps):
                for side, call in sides.items():
                    began = CLOCKS["cpu"]()
                    call()
                    times[side].append(CLOCKS["cpu"]() - began)
        return {side: values[WARM:] for side, values in times.items()}
    lanes: dict[str, Lane] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for side in times:
                of = None if side == PLAIN else SIDES[side]
                trainer = make_trainer(of, vocabulary, tokens, WARM + steps, f"{folder}/{len(lanes)}")
                lanes[side] = Lane(trainer, CLOCKS["cpu"], turn=1)
                lanes[side].take_turn()
            for _ in range(steps):
                for side, lane in lanes.items():
                    times[side].append(lane.take_turn())
        finally:
            for lane in lanes.values():
                lane.close()
    return times


def trained(side: Side | None, vocabulary: int, tokens: int) -> int:
    """Bytes of gradients and of AdamW's two means, which a step in all weights holds whatever its loss is."""
    if side is not None and (side.adapter or get_method(side.method).info.kind == "gradient" or side.method == "rmu"):
        return 0
    return 12 * sum(p.numel() for p in build(vocabulary, tokens).parameters())


def compare(names: Sequence[str], vocabulary: int, tokens: int, steps: int) -> dict[str, Any]:
    """A row for each side, beside the plain step."""
    if unknown := [name for name in names if name not in SIDES]:
        raise UnlearningError(f"--sides has {unknown[0]!r}; expected one of {', '.join(SIDES)}.")
    # What is freed is given back to the system, so that the most that is held is the most that is needed.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        plain = dict.fromkeys((PLAIN, f"{EVALUATION}, plain"))
        for kind in plain:
            if any((name == EVALUATION) == (kind != PLAIN) for name in names):
                plain[kind] = pool.submit(memory, (kind, vocabulary, tokens)).result()
        rows = []
        for name in names:
            is_evaluation = name == EVALUATION
            beside = plain[f"{EVALUATION}, plain" if is_evaluation else PLAIN]
            held = pool.submit(memory, (name, vocabulary, tokens)).result()
            times = pool.submit(seconds, (name, vocabulary, tokens, steps)).result()
            base = 0 if is_evaluation else trained(None, vocabulary, tokens)
            own = 0 if is_evaluation else trained(SIDES[name], vocabulary, tokens)
            rows.append(_row(name, held, beside, own, base, times))
            print(f"{name}: done", flush=True)
    size = {"vocabulary": vocabulary, "layers": LAYERS, "width": WIDTH, "texts": 2 * TEXTS, "tokens": tokens}
    return {"machine": machine(), "versions": versions(), "size": size | {"prompt": PROMPT}, "rows": rows}


def _row(
    name: str, held: int | None, beside: int | None, own: int, base: int, times: dict[str, list[float]]
) -> dict[str, Any]:
    ratios = [of / plain for plain, of in zip(times[PLAIN], times[name], strict=True)]
    row: dict[str, Any] = {
        "side": name,
        "bytes": held,
        "plain_bytes": beside,
        "share": None,
        "without_optimizer": None,
    }
    if held is not None and beside:
        row |= {"share": held / beside}
        if name != EVALUATION:
            row["without_optimizer"] = (held - own) / (beside - base)
    medians = {"seconds": statistics.median(times[name]), "plain_seconds": statistics.median(times[PLAIN])}
    row |= medians | {"time": statistics.median(ratios), "wanted": SIDES[name].wanted, "met": None}
    if row["wanted"] is not None and row["share"] is not None:
        row["met"] = row["share"] <= row["wanted"]
    elif name == EVALUATION and held is not None and beside is not None:
        row["met"] = row["time"] <= WANTED_TIME[name] and held - beside <= WANTED_BYTES[name]
    return row


def report(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""

    def shown(value: float | None, scale: float = 1, digits: int = 2) -> str:
        return "-" if value is None else f"{value / scale:.{digits}f}"

    heads = ("side", "MB", "plain MB", "memory", "without gradients and AdamW", "time", "wanted", "met")
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        wanted = shown(row["wanted"]) if row["wanted"] else "+64 MB, 1.20" if row["side"] == EVALUATION else "-"
        met = {None: "-", True: "yes", False: "no"}[row["met"]]
        sizes = [shown(row[key], 1e6, 0) for key in ("bytes", "plain_bytes")]
        lines.append(
            [row["side"], *sizes, *(shown(row[key]) for key in ("share", "without_optimizer", "time")), wanted, met]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
