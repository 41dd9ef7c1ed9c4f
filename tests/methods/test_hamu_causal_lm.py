"""HAMU on a language model: in an adapter by default, every loss a mean over its own completion tokens."""

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from hf_unlearn import HamuConfig, UnlearningError, unlearn
from hf_unlearn.methods.gradients import Gradient
from hf_unlearn.methods.hamu import hamu_update
from hf_unlearn.tasks.losses import cross_entropy
from hf_unlearn.training.trainer import UnlearningTrainer
from tests.marks import slow_but
from tests.runs import Record
from tests.samples import arguments, for_trainer, same_bits, weights
from tests.tasks.test_causal_lm import request
from tests.tiny import tiny_llama_lm, tiny_tokenizer


def run(folder: Path, method: Any = "hamu", **settings: Any) -> tuple[UnlearningTrainer, Record]:
    """Of 7 samples to forget and 25 to retain, in float64."""
    record, given = Record(), {"peft_config": None} | {k: settings.pop(k) for k in ("peft_config",) if k in settings}
    quick = {"learning_rate": 0.05, "measure": False, "logging_strategy": "steps", "logging_steps": 1}
    trainer = UnlearningTrainer(
        tiny_llama_lm().double(),
        arguments(folder, **quick | settings),
        method=method,
        **for_trainer(request()),
        processing_class=tiny_tokenizer(),
        callbacks=[record],
        **given,
    )
    trainer.train()
    return trainer, record


def mean_over_tokens(model: torch.nn.Module, rows: list[dict]) -> Tensor:
    """The mean over all completion tokens of all rows, each row read by itself, without padding."""
    tokenizer, total, count = tiny_tokenizer(), 0.0, 0
    for row in rows:
        ids = tokenizer(row["prompt"] + row["completion"], return_tensors="pt")["input_ids"]
        start = len(tokenizer(row["prompt"])["input_ids"]) - 1  # without the token that ends it
        logits, completion = model(input_ids=ids).logits[0, start - 1 : -1], ids[0, start:]
        total, count = total + F.cross_entropy(logits, completion, reduction="sum"), count + len(completion)
    return total / count


def by_hand(trainer: UnlearningTrainer, record: Record, step: int) -> tuple[Gradient, Gradient, dict[str, float]]:
    """Both clipped gradients, and both losses."""
    model, data, values = copy.deepcopy(trainer.model).eval(), request(), {}
    model.load_state_dict(record.weights[step])
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for name in ("retain", "forget"):
        loss = mean_over_tokens(model, [data[name][draw.index] for draw in trainer.schedule.step(step)[name]])
        found = torch.autograd.grad(loss, trained)
        norm = math.sqrt(sum(g.square().sum().item() for g in found))
        gradients.append([g * min(1.0, 1 / norm) for g in found])
        values[name] = loss.item()
    return *gradients, values


@pytest.mark.parametrize("peft_config", [None, False], ids=["adapter", "all weights"])
@pytest.mark.parametrize(("batch", "accumulation"), slow_but([(4, 2)], [(8, 1), (4, 2)]))
def test_moves_by_the_update(batch, accumulation, peft_config, tmp_path):
    layout = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trainer, record = run(tmp_path, max_steps=3, peft_config=peft_config, **layout)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    for step, line in enumerate(lines):
        retain, forget, values = by_hand(trainer, record, step)
        options = {"lr": record.rates[step], "ratio": 0.1, "quota_scale": "relative"}
        delta, hardness = hamu_update(retain, forget, **options)
        size = math.sqrt(sum(part.square().sum().item() for part in delta))
        names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
        before, after = record.weights[step], record.weights[step + 1]
        assert size > 0
        for name, part in zip(names, delta, strict=True):
            assert (after[name] - before[name] - part).norm() <= 1e-10 * size, name
        assert all(torch.equal(before[name], after[name]) for name in before.keys() - set(names))
        assert line["forget_loss"] == pytest.approx(values["forget"], rel=1e-5)
        assert line["retain_loss"] == pytest.approx(values["retain"], rel=1e-5)
        assert line["hamu_cosine"] == pytest.approx(hardness.cosine, rel=1e-4, abs=1e-7)
        after_step = copy.deepcopy(trainer.model).eval()
        after_step.load_state_dict(after)
        rows = [request()["forget"][draw.index] for draw in trainer.schedule.step(step)["forget"]]
        realised = mean_over_tokens(after_step, rows).item() - values["forget"]
        assert line["hamu_realised_forget"] == pytest.approx(realised, rel=1e-3, abs=1e-7)


def test_an_adapter_by_default(tmp_path, caplog):
    trainer, record = run(tmp_path, max_steps=4)
    assert list(trainer.model.peft_config) == ["unlearn"]
    config = trainer.model.peft_config["unlearn"]
    assert (config.r, config.lora_alpha) == (8, 16)
    before, after = record.weights[0], record.weights[-1]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".unlearn." in name for name in changed)
    projections = ("q", "k", "v", "o", "gate", "up", "down")
    assert {name.split("_proj")[0].rpartition(".")[2] for name in changed} == set(projections)
    with trainer.original_model() as model:
        ids = torch.tensor([[2, 5, 6, 7]])
        assert torch.equal(model(input_ids=ids).logits, tiny_llama_lm().double()(input_ids=ids).logits)


@pytest.mark.parametrize("method", ["hamu", "pcgrad", "gru", "orthograd"])
def test_all_weights_if_asked(method, tmp_path):
    trainer, record = run(tmp_path, method, max_steps=3, peft_config=False)
    before, after = record.weights[0], record.weights[-1]
    assert trainer.adapter is None and not hasattr(trainer.model, "peft_config")
    assert all(not torch.equal(before[name], after[name]) for name in before)


@functools.cache
def learnt() -> dict[str, Tensor]:
    """The weights of a model that knows the forget and retained samples."""
    model, data = tiny_llama_lm(), request()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    args = arguments(Path("unused"))
    reader = UnlearningTrainer(model, args, method="finetune", processing_class=tiny_tokenizer(), **for_trainer(data))
    batch = reader.collate([*data["forget"], *data["retain"]])
    for _ in range(60):
        cross_entropy(model(**batch.inputs).logits, batch.labels).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize(
    "method", ["hamu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pcgrad", "gru", "orthograd"))]
)
def test_whole_run(method, tmp_path):
    """From the model to a folder and back; what was known is known less."""
    model = tiny_llama_lm()
    model.load_state_dict(learnt())
    args = arguments(tmp_path / "run", num_train_epochs=5, learning_rate=0.1)
    result = unlearn(model, **request(), method=method, args=args, processing_class=tiny_tokenizer())
    before, after = result.metrics["before"], result.metrics["after"]
    assert after["forget_loss"] > 1.2 * before["forget_loss"] and before["gap"] > after["gap"]
    assert list(result.save(tmp_path / "saved").rglob("adapter_config.json"))
    merged = result.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert same_bits(weights(loaded), weights(merged))


@pytest.mark.slow
def test_easy_case_improves_both(tmp_path):
    """Of an untrained model, each side can have its way."""
    args = arguments(tmp_path, num_train_epochs=10, learning_rate=0.1)
    config = HamuConfig(until="end", ratio=0.3)
    result = unlearn(tiny_llama_lm(), **request(), method=config, args=args, processing_class=tiny_tokenizer())
    before, after = result.metrics["before"], result.metrics["after"]
    assert after["forget_loss"] > before["forget_loss"] and after["retain_loss"] < before["retain_loss"]


def test_same_sets_are_flagged(tmp_path):
    forget = request()["forget"]
    config = HamuConfig(stop="stop", stop_patience=2, until="end")
    trainer = UnlearningTrainer(
        tiny_llama_lm(),
        arguments(tmp_path, measure=False),
        method=config,
        forget_dataset=forget,
        retain_dataset=forget,
        processing_class=tiny_tokenizer(),
        overlap="allow",
    )
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 2 and same_bits(weights(trainer.model), before)
    assert trainer.method.notes[0].startswith("Damage is unavoidable")


def test_a_harm_that_nothing_would_read(tmp_path):
    with pytest.raises(UnlearningError, match="hamu: harm is 0.1; expected its default, since nothing is repaired"):
        run(tmp_path, HamuConfig(harm=0.1))
    run(tmp_path / "repairs", HamuConfig(harm=0.1, then="repair"), max_steps=1)
