"""Methods for language models on invented authors: an original that has learnt all of them, two models retrained without some,
and what each method leaves of these. Kept in a folder that a later call goes on from."""

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import get_linear_schedule_with_warmup

from .. import __version__, metrics, models
from ..api import unlearn
from ..audits import tofu
from ..audits.quantization import quantized
from ..audits.relearning import ADAPTER_RATE, in_adapter, taught
from ..data.batches import Batch, to_model
from ..data.source import Source
from ..errors import UnlearningError
from ..methods import METHODS, create_method
from ..methods.rewind import BudgetConfig, spending
from ..models.adapters import is_adapted
from ..tasks.answers import Answers, language_task
from ..tasks.completions import ALTERNATIVE, writer
from ..tasks.losses import sample_losses
from ..training.arguments import UnlearningArguments
from .speed import Peak
from .tofu_sets import read_world

RESULTS, PICTURE, MODELS = "benchmark.json", "benchmark.svg", "models"
ORIGINAL, RETRAINED, AGAIN = "original", "retrained", "retrained again"
TRAINED = {ORIGINAL: 0, RETRAINED: 100, AGAIN: 200}  # what is added to the seed
METHODS_BY_DEFAULT = ("finetune", "rewind", "grad_diff", "npo", "simnpo", "rmu", "hamu")
STEPS, SAMPLES, BITS = 20, 10, 4  # of relearning, and of rounding
AS_IS = "as is"
AFTER = {f"relearned {name}": name for name in ("forget", "retain")} | {"4 bits": None}
MIN_K = 0.4  # of PrivLeak, as MUSE has it

JUDGED_BY = (
    "trained on the wrong answers by which truth ratios are measured, so that its ratio, p, KS and reading do not tell whether it has "
    "forgotten"
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What results must share to stand in one table."""

    model: str
    forget: str = "forget01"
    retain: int = 360
    asked: int = 40
    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 16
    max_new_tokens: int = 80
    bf16: bool = False


class Benchmark:
    """The results by seed and row, of this call and of those before it.

    Args:
        folder: of the results; of other settings, it is refused.
        data: with TOFU's json files.
    """

    def __init__(self, folder: str | Path, settings: Settings, data: str | None = None):
        self.folder, self.settings = Path(folder), settings
        self.world = read_world(settings.forget, data, settings.retain, settings.asked)
        asked = {name: tofu.digest(questions) for name, questions in self.world.asked.items()}
        self.about = {"settings": asdict(settings), "version": __version__, "asked": asked}
        self.rows: dict[str, dict[str, Row]] = {}  # seed -> name -> row
        kept = read_results(self.folder / RESULTS)
        if kept:
            if unlike := [name for name in self.about if kept["about"].get(name) != self.about[name]]:
                raise UnlearningError(
                    f"{folder} holds a benchmark of other {unlike[0]}: {kept['about'].get(unlike[0])}; expected those that it was "
                    "made with, or another --output."
                )
            self.rows = kept["rows"]
        self.device = Accelerator().device

    # -- Pieces

    def work(self, methods: Sequence[str], seeds: int, minutes: float | None = None) -> int:
        """All that is still to do, or what is begun within some minutes, and at least one model; how many are left."""
        pieces = [(seed, name) for seed in range(seeds) for name in (*TRAINED, *methods)]
        left = [(seed, name) for seed, name in pieces if "seconds" not in self.rows.get(str(seed), {}).get(name, {})]
        began = time.monotonic()
        for i, (seed, name) in enumerate(left):
            if i and minutes is not None and time.monotonic() - began > 60 * minutes:
                return len(left) - i
            row = self.run(seed, name)
            print(f"seed {seed}, {name}: {row.get('error') or format(row['seconds'], '.0f') + ' s'}", flush=True)
        return 0

    def run(self, seed: int, name: str) -> Row:
        """One model: trained or unlearned, and examined; its row is in the folder afterwards."""
        try:
            row = self._trained(seed, name) if name in TRAINED else self._unlearned(seed, name)
        except UnlearningError as error:
            if name in TRAINED:
                raise
            row = {"error": str(error)}
        self.rows.setdefault(str(seed), {})[name] = row
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"{RESULTS}.part"
        part.write_text(json.dumps({"about": self.about, "rows": self.rows}) + "\n", encoding="utf-8")
        part.replace(self.folder / RESULTS)
        return row

    def _trained(self, seed: int, name: str) -> Row:
        world, settings = self.world, self.settings
        model, tokenizer = self._load(settings.model)
        rows = [*world.retain, *world.forget] if name == ORIGINAL else world.retain
        began = time.perf_counter()
        with Peak() as peak:
            fine_tune(model, tokenizer, rows, settings, seed + TRAINED[name])
        row = {"seconds": time.perf_counter() - began, "peak": peak.growth}
        if name == ORIGINAL:
            self._save(model, tokenizer, seed)
        return row | self._examined(model, tokenizer, seed)

    def _unlearned(self, seed: int, name: str) -> Row:
        settings = self.settings
        model, tokenizer = self._load(str(self._kept(seed)))
        method = create_method(name).for_task(language_task(model))
        given: dict[str, Any] = {"method": method}
        if isinstance(method.config, BudgetConfig):
            about = {"original_epochs": settings.epochs, "original_learning_rate": settings.learning_rate}
            given = {"method": spending(method, **about), "base_model": settings.model}
        elif "base_model" in method.info.needs:
            given["base_model"] = settings.model
        sets, told = {name: _dataset(rows) for name, rows in self._sets().items()}, []
        if method.takes_alternatives and not method.alternatives({}):  # and brings none of its own
            sets["forget"] = sets["forget"].add_column(ALTERNATIVE, self.world.asked["forget"].perturbed)
            told = [JUDGED_BY]
        with tempfile.TemporaryDirectory() as folder, Peak() as peak:
            args = UnlearningArguments(
                folder,
                seed=seed,
                measure=False,
                per_device_eval_batch_size=32,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            about = given | {"args": args, "processing_class": tokenizer, "overlap": "allow"}
            with contextlib.redirect_stdout(sys.stderr):  # what it says of its steps
                result = unlearn(model, **sets, **about)
            about = {"seconds": result.runtime["unlearn"], "steps": result.trainer.state.global_step}
            notes, model = told + result.trainer.method.notes, result.model
            del result
        if is_adapted(model):
            model = cast(nn.Module, model.merge_and_unload())  # in place: it is nobody else's
        return about | {"peak": peak.growth, "notes": notes} | self._examined(model, tokenizer, seed)

    def _sets(self) -> dict[str, list[Mapping[str, str]]]:
        return {"forget": self.world.forget, "retain": self.world.retain, "unseen": self.world.steering}

    # -- Models

    def _kept(self, seed: int) -> Path:
        return self.folder / MODELS / f"original-{seed}"

    def _load(self, name: str) -> tuple[nn.Module, Any]:
        repo, revision = models.split_revision(name)
        model = models.load_model(repo, revision=revision)
        models.own_memory(model)
        language_task(model)
        tokenizer = models.load_processor(repo, model, revision)
        if tokenizer is None:
            raise UnlearningError(f"{name!r} has no tokenizer, which reads the questions; save it beside the model.")
        return model.float().to(self.device).eval(), tokenizer

    def _save(self, model: nn.Module, tokenizer: Any, seed: int) -> None:
        """Whole or not at all."""
        kept = self._kept(seed)
        part = kept.with_name(f"{kept.name}.part")
        models.save_model(model, part)
        tokenizer.save_pretrained(part)
        shutil.rmtree(kept, ignore_errors=True)
        part.rename(kept)

    # -- What is asked of each

    def _examined(self, model: nn.Module, tokenizer: Any, seed: int) -> Row:
        """As it is; fine-tuned on a few forget samples or retained ones; and rounded. Of forget samples that it was fine-tuned on
        it is not asked; they are no more than a quarter."""
        world = self.world
        size = max(1, min(SAMPLES, len(world.forget) // 4))
        shots = np.sort(np.random.default_rng([seed, 16]).permutation(len(world.forget))[:size])
        few = {
            "forget": [world.forget[i] for i in shots],
            "retain": [world.retain[i] for i in np.linspace(0, len(world.retain) - 1, size).astype(int)],
        }
        found = {AS_IS: self._figures(model, tokenizer)}
        for name, group in AFTER.items():
            if group is None:
                with quantized(model, BITS):
                    found[name] = self._figures(model, tokenizer)
                continue
            read, lora = reader(model, tokenizer, few[group]), language_task(model).lora
            with in_adapter(model, cast(Any, lora), seed) as student:
                for _ in taught(student, repeat([read(range(len(few[group])))], STEPS), ADAPTER_RATE):
                    pass
                found[name] = self._figures(student, tokenizer, shots if group == "forget" else ())
        return {"asked": found, "min_k": self._min_k(model, tokenizer)}

    def _figures(self, model: nn.Module, tokenizer: Any, left_out: Iterable[int] = ()) -> Row:
        forget = self.world.asked["forget"]
        sets = self.world.asked | {"forget": forget.part(np.setdiff1d(np.arange(len(forget.answers)), [*left_out]))}
        limit = self.settings.max_new_tokens
        scores = tofu.evaluate(model, tokenizer, sets, max_new_tokens=limit, batch_size=32)
        figures = {
            name: {figure: getattr(of, figure) for figure in tofu.FIGURES} | {"ratios": of.truth_ratios.tolist()}
            for name, of in scores.items()
        }
        return figures | {"utility": tofu.kept(scores["retain"])}

    def _min_k(self, model: nn.Module, tokenizer: Any) -> dict[str, list[float]]:
        answers, write = Answers(model, tokenizer, batch_size=32), writer(tokenizer)
        found = {}
        for name, rows in {"forget": self.world.forget, "unseen": self.world.unseen}.items():
            samples = answers.read([write(row["question"], row["answer"]) for row in rows], name)
            said = answers.scores(samples, name)
            found[name] = metrics.min_k_score(said.log_p, said.mask, MIN_K).tolist()
        return found


def fine_tune(
    model: nn.Module, tokenizer: Any, rows: Sequence[Mapping[str, str]], settings: Settings, seed: int
) -> None:
    """Plain training of all weights on the answers, as transformers' Trainer has it: AdamW, a rate that falls to 0 in a line,
    gradients clipped at 1."""
    read, rng = reader(model, tokenizer, rows), np.random.default_rng(seed)
    size = settings.batch_size
    steps = settings.epochs * -(-len(rows) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    device = next(model.parameters()).device
    model.train()
    for _ in range(settings.epochs):
        order = rng.permutation(len(rows))
        for start in range(0, len(rows), size):
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
                loss = sample_losses(model, to_model(read(order[start : start + size]), model, device)).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def reader(model: nn.Module, tokenizer: Any, rows: Sequence[Mapping[str, str]]) -> Callable[[Iterable[int]], Batch]:
    """Places of rows to a batch of them, as unlearning reads them."""
    task = language_task(model)
    source = Source(_dataset(rows), "questions", layout=task.layout)
    collator = task.collator(source, tokenizer, None)
    return lambda places: collator.read(source, [int(place) for place in places])


def _dataset(rows: Sequence[Mapping[str, str]]) -> datasets.Dataset:
    return datasets.Dataset.from_list([{key: row[key] for key in ("question", "answer")} for row in rows])


def read_results(path: Path) -> dict[str, Any] | None:
    """What an earlier call has written; None where there was none."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content["about"], dict) and isinstance(content["rows"], dict):
            return content
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UnlearningError(f"{path} is damaged, or of something else; expected another --output.")


def usual() -> list[str]:
    """Of the methods by default, those that are there for language models."""
    return [name for name in METHODS_BY_DEFAULT if "causal-lm" in METHODS[name].info.applies_to]
