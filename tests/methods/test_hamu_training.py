"""HAMU in the training loop: exact steps, what it logs, where it ends; and one step each of PCGrad, GRU and OrthoGrad."""

import dataclasses
import math
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hf_unlearn.methods.hamu as hamu
from hf_unlearn import HamuConfig, OrthogradConfig, UnlearningError, UnlearningTrainer, unlearn
from hf_unlearn.methods import get_method
from hf_unlearn.methods.ascent import ascended
from hf_unlearn.methods.gradients import by_module
from hf_unlearn.methods.gru import gru_update
from hf_unlearn.methods.hamu import Hardness, hamu_update
from hf_unlearn.methods.orthograd import orthograd_update
from hf_unlearn.methods.pcgrad import pcgrad_update
from tests.marks import slow_but
from tests.runs import Record, StopAt, make_trainer, original, rows
from tests.samples import arguments, fitted, for_trainer, images, learnt, same_bits, weights
from tests.tiny import tiny_resnet, tiny_tokenizer, tiny_vit

EVERY_STEP = {"logging_strategy": "steps", "logging_steps": 1}
LOGGED = {
    *("kappa", "cosine", "hardness01", "unavoidable", "infeasible", "unavoidable_cost", "slack", "asked", "c"),
    *("predicted_forget", "predicted_retain", "realised_forget", "realised_retain"),
    *("direct", "rectified", "collinear", "skipped"),
}


def train(folder: Path, method="hamu", family: str = "vit", dtype: str = "float64", **settings):
    """A trained trainer and its record."""
    record = Record()
    trainer = make_trainer(method, family, folder, dtype=dtype, callbacks=[record], measure=False, **settings)
    trainer.train()
    return trainer, record


def losses(model: nn.Module, family: str, samples: list[dict]) -> Tensor:
    if family == "bert":
        inputs = tiny_tokenizer()([sample["text"] for sample in samples], padding=True, return_tensors="pt")
    else:
        inputs = {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]).to(model.dtype)}
    labels = torch.tensor([sample["labels"] for sample in samples])
    return F.cross_entropy(model(**inputs).logits, labels, reduction="none")


class ByHand:
    """Plain torch on the samples of a trainer's steps."""

    def __init__(self, trainer: UnlearningTrainer, record: Record, family: str):
        self.model, self.family, self.sets = original(family, torch.float64).eval(), family, rows(family)
        self.schedule, self.record = trainer.schedule, record
        self.names = [name for name, _ in self.model.named_parameters()]
        self.objective = {"retain": "ce", "forget": trainer.method.objective}
        self.radius, self.ratio = (getattr(trainer.method, name, None) for name in ("radius", "ratio"))

    def samples(self, step: int, name: str) -> list[dict]:
        return [self.sets[name][draw.index] for draw in self.schedule.step(step)[name]]

    def gradient(self, step: int, samples: list[dict], clip: float = math.inf, objective: str = "ce") -> list[Tensor]:
        self.model.load_state_dict(self.record.weights[step])
        loss = ascended(losses(self.model, self.family, samples), objective).mean()
        found = torch.autograd.grad(loss, list(self.model.parameters()), allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(self.model.parameters(), found, strict=True)]
        norm = torch.cat([g.flatten() for g in found]).norm()
        return [g * min(1.0, clip / norm.item()) for g in found]

    def both(self, step: int, clip: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
        return tuple(
            self.gradient(step, self.samples(step, name), clip, self.objective[name]) for name in ("retain", "forget")
        )

    def unclipped(self, step: int, name: str) -> float:
        """How many times longer the gradient was before clipping."""
        whole = self.gradient(step, self.samples(step, name), objective=self.objective[name])
        return max(1.0, torch.cat([g.flatten() for g in whole]).norm().item())

    def loss(self, step: int, name: str, at: int) -> float:
        """Of the samples of `step` with the weights from before step `at`; of forget samples what is ascended on."""
        self.model.load_state_dict(self.record.weights[at])
        with torch.no_grad():
            found = losses(self.model, self.family, self.samples(step, name))
            return ascended(found, self.objective[name]).mean().item()

    def update(self, step: int, config: HamuConfig) -> tuple[list[Tensor], Hardness]:
        groups = {"tensor": None, "module": by_module(self.names), "global": [[*range(len(self.names))]]}
        options = {"groups": groups[config.block], "on_infeasible": config.on_infeasible, "quota": config.quota}
        options |= {"variant": config.variant, "quota_scale": config.quota_scale, "ratio": self.ratio}
        options["radius"] = self.radius
        return hamu_update(*self.both(step), lr=self.record.rates[step], **options)

    def check(self, step: int, delta: list[Tensor]) -> None:
        """The weights moved by exactly this, and nothing else changed."""
        before, after = self.record.weights[step], self.record.weights[step + 1]
        size = math.sqrt(sum(part.square().sum().item() for part in delta))
        for name, part in zip(self.names, delta, strict=True):
            error = (after[name] - before[name] - part).norm().item()
            assert error <= 1e-10 * max(size, part.norm().item()) + 1e-15 * before[name].norm().item(), name
        assert size > 0
        for name in before.keys() - set(self.names):
            assert torch.equal(before[name], after[name]), name  # the statistics of BatchNorm


def logged(trainer: UnlearningTrainer) -> list[dict[str, float]]:
    """HAMU's figures of every step."""
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return [{name.removeprefix("hamu_"): v for name, v in line.items() if name.startswith("hamu_")} for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# The steps


CONFIGS = {
    "default": HamuConfig(),
    "ce": HamuConfig(objective="ce"),
    "retain": HamuConfig(radius="retain"),
    "u, retain": HamuConfig(variant="u", radius="retain"),
    "u": HamuConfig(variant="u", ratio=0.4),
    "module": HamuConfig(block="module", ratio=0.5),
    "global": HamuConfig(block="global", ratio=0.5),
    "uniform": HamuConfig(quota="uniform", ratio=0.01),
    "absolute": HamuConfig(quota_scale="absolute", ratio=1e-3),
    "out of reach": HamuConfig(quota_scale="absolute", ratio=100.0),
    "ratio 0": HamuConfig(ratio=0.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_moves_by_the_update(name, tmp_path):
    config = CONFIGS[name]
    trainer, record = train(tmp_path, config, max_steps=3)
    hand = ByHand(trainer, record, "vit")
    for step in range(3):
        hand.check(step, hand.update(step, config)[0])


@pytest.mark.parametrize("family", ["resnet", "bert"])
def test_moves_by_the_update_in_every_family(family, tmp_path):
    trainer, record = train(tmp_path, "hamu", family, max_steps=3)
    hand = ByHand(trainer, record, family)
    for step in range(3):
        hand.check(step, hand.update(step, HamuConfig())[0])


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8), (3, 3)])
def test_moves_by_the_update_when_accumulated(batch, accumulation, tmp_path):
    layout = {"batch": batch, "accumulation": accumulation}
    trainer, record = train(tmp_path, "hamu", "resnet", max_steps=3, **layout, **EVERY_STEP)
    hand = ByHand(trainer, record, "resnet")
    for step, line in enumerate(logged(trainer)):
        delta, hardness = hand.update(step, HamuConfig())
        hand.check(step, delta)
        assert line["kappa"] == pytest.approx(hardness.kappa, rel=1e-5)
        realised = hand.loss(step, "forget", step + 1) - hand.loss(step, "forget", step)
        assert line["realised_forget"] == pytest.approx(realised, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_clipping(clip, tmp_path):
    """The step is as long as the clipped retain gradient, which was longer than this."""
    trainer, record = train(tmp_path, HamuConfig(radius="retain"), max_steps=1, max_grad_norm=clip)
    hand = ByHand(trainer, record, "vit")
    both = hand.both(0, clip or math.inf)
    delta, _ = hamu_update(*both, lr=record.rates[0], ratio=0.3, quota_scale="relative")
    hand.check(0, delta)


def test_unit_radius(tmp_path):
    """Every step is as long as the learning rate, however short the retain gradient is."""
    trainer, record = train(tmp_path, "hamu", max_steps=4, learning_rate=1e-3)
    for before, after in zip(record.weights, record.weights[1:], strict=False):
        moved = [(after[name] - before[name]).square().sum() for name, _ in trainer.model.named_parameters()]
        assert math.sqrt(sum(moved)) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("quota_scale", slow_but(["relative"], ["relative", "absolute"]))
def test_quota_under_a_schedule(quota_scale, tmp_path):
    """Q follows the learning rate, so that its share of what is reachable is that of the gradients alone."""
    config = HamuConfig(
        quota_scale=quota_scale, ratio={"relative": 0.2, "absolute": 1e-3}[quota_scale], radius="retain"
    )
    settings = {"lr_scheduler_type": "linear", "max_steps": 6, "learning_rate": 1e-2} | EVERY_STEP
    trainer, record = train(tmp_path, config, **settings)
    assert record.rates == pytest.approx([1e-2 * (1 - step / 6) for step in range(6)])
    hand = ByHand(trainer, record, "vit")
    for step, line in enumerate(logged(trainer)):
        delta, hardness = hand.update(step, config)
        hand.check(step, delta)
        total = sum((r.norm() * f.norm()).item() for r, f in zip(*hand.both(step), strict=True))
        c = 0.2 if quota_scale == "relative" else 1e-3 / total
        assert line["c"] == pytest.approx(c, rel=1e-5) and hardness.c == pytest.approx(c, rel=1e-6)
        for name in ("forget", "retain"):  # in the units of the losses, and not of clipped gradients
            predicted = getattr(hardness, f"predicted_{name}") * hand.unclipped(step, name)
            assert line[f"predicted_{name}"] == pytest.approx(predicted, rel=1e-4, abs=1e-9)


def test_batchnorm_stays(tmp_path):
    trainer, record = train(tmp_path, "hamu", "resnet", max_steps=5)
    statistics = [name for name in record.weights[0] if "running" in name or "num_batches" in name]
    assert statistics and all(torch.equal(record.weights[0][name], record.weights[-1][name]) for name in statistics)
    affine = [name for name, p in trainer.model.named_parameters() if ".bn" in name]
    assert affine and not any(torch.equal(record.weights[0][name], record.weights[-1][name]) for name in affine)


def test_only_the_adapter_is_trained(tmp_path):
    trainer, record = train(tmp_path, "hamu", lora=True, max_steps=3, learning_rate=0.1, **EVERY_STEP)
    before, after = record.weights[0], record.weights[-1]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapter = {name for name in before if "lora_" in name}
    assert changed and changed <= adapter and all("unlearn" in name for name in adapter)
    assert logged(trainer)[0]["skipped"] > 0  # A has no gradient as long as B is zero


def test_bfloat16(tmp_path):
    trainer, record = train(tmp_path, "hamu", dtype="bfloat16", max_steps=4, learning_rate=0.3, **EVERY_STEP)
    before, after = record.weights[0], record.weights[-1]
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in trainer.model.parameters())
    assert sum(not torch.equal(before[name], after[name]) for name in before) > len(before) / 2
    exact, _ = train(tmp_path / "exact", "hamu", dtype="float64", max_steps=1, learning_rate=0.3, **EVERY_STEP)
    assert logged(trainer)[0]["cosine"] == pytest.approx(logged(exact)[0]["cosine"], abs=0.1)
    assert all(math.isfinite(value) for line in logged(trainer) for value in line.values())


@pytest.mark.parametrize("method", ["pcgrad", "gru"])
def test_other_rules(method, tmp_path):
    trainer, record = train(tmp_path, method, "resnet", batch=4, accumulation=2, max_steps=3)
    rule = {"pcgrad": pcgrad_update, "gru": gru_update}[method]
    hand = ByHand(trainer, record, "resnet")
    for step in range(3):
        hand.check(step, [-record.rates[step] * g for g in rule(*hand.both(step))])


@pytest.mark.parametrize("samples", [3, None])
def test_orthograd(samples, tmp_path):
    config = OrthogradConfig(samples=samples, alpha=0.3)
    trainer, record = train(tmp_path, config, "resnet", batch=4, accumulation=2, max_steps=2)
    hand = ByHand(trainer, record, "resnet")
    for step in range(2):
        retain, forget = hand.both(step)
        single = [hand.gradient(step, [sample]) for sample in hand.samples(step, "retain")[:samples]]
        assert len(single) == (samples or 8)
        update = orthograd_update([torch.stack(r) for r in zip(*single, strict=True)], forget, 0.3, retain)
        hand.check(step, [-record.rates[step] * g for g in update])


# ---------------------------------------------------------------------------------------------------------------------
# What it says


@pytest.mark.parametrize("variant", slow_but(["q"], ["q", "u"]))
def test_logs(variant, tmp_path):
    config = HamuConfig(variant=variant)
    trainer, record = train(tmp_path, config, "resnet", max_steps=7, **EVERY_STEP)
    hand, lines = ByHand(trainer, record, "resnet"), logged(trainer)
    assert len(lines) == 7
    for step, line in enumerate(lines):
        assert line.keys() == LOGGED
        _, hardness = hand.update(step, config)
        for name in ("kappa", "cosine", "hardness01", "unavoidable", "infeasible", "unavoidable_cost", "c"):
            assert line[name] == pytest.approx(float(getattr(hardness, name)), rel=1e-4, abs=1e-8), name
        assert {name: line[name] for name in hardness.branches} == hardness.branches
        for name in ("retain", "forget"):
            realised = hand.loss(step, name, step + 1) - hand.loss(step, name, step)
            assert line[f"realised_{name}"] == pytest.approx(realised, rel=1e-4, abs=1e-7), (step, name)


def test_slack_is_logged_in_the_units_of_the_losses(tmp_path):
    """As the predictions are: with the learning rate of the step."""
    trainer, record = train(tmp_path, "hamu", max_steps=3, lr_scheduler_type="linear", **EVERY_STEP)
    hand = ByHand(trainer, record, "vit")
    for step, line in enumerate(logged(trainer)):
        slack = hand.update(step, HamuConfig())[1].slack * hand.unclipped(step, "forget")
        assert line["slack"] == pytest.approx(slack, rel=1e-4, abs=1e-10)


def test_means_over_steps_between_logs(tmp_path):
    often, _ = train(tmp_path / "a", "hamu", max_steps=6, **EVERY_STEP)
    seldom, _ = train(tmp_path / "b", "hamu", max_steps=6, logging_strategy="steps", logging_steps=3)
    for i, line in enumerate(logged(seldom)):
        for name, value in line.items():
            expected = np.mean([other[name] for other in logged(often)[3 * i : 3 * i + 3]])
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_realised_can_be_left_out(tmp_path):
    trainer, record = train(tmp_path / "a", HamuConfig(realised=False), max_steps=3, **EVERY_STEP)
    assert {frozenset(line) for line in logged(trainer)} == {
        frozenset(LOGGED - {"realised_forget", "realised_retain"})
    }
    _, other = train(tmp_path / "b", "hamu", max_steps=3)
    assert same_bits(record.weights[-1], other.weights[-1])


@pytest.mark.parametrize(("objective", "clip"), [("ce", 0.0), ("bounded", 0.05)])
def test_predictions_are_of_first_order(objective, clip, tmp_path):
    errors = []
    for rate in (1e-1, 1e-2, 1e-3):
        settings = {"learning_rate": rate, "max_steps": 1, "max_grad_norm": clip}
        config = HamuConfig(ratio=0.5 if objective == "ce" else 0.1, objective=objective, radius="retain")
        trainer, record = train(tmp_path / str(rate), config, **settings, **EVERY_STEP)
        hand, (line,) = ByHand(trainer, record, "vit"), logged(trainer)
        realised = [hand.loss(0, name, 1) - hand.loss(0, name, 0) for name in ("forget", "retain")]
        predicted = line["predicted_forget"], line["predicted_retain"]
        errors.append([abs(p - r) / abs(r) for p, r in zip(predicted, realised, strict=True)])
    for larger, smaller in ((errors[0], errors[1]), (errors[1], errors[2])):
        assert smaller[0] < larger[0] / 4 and smaller[1] < larger[1] / 4
    assert max(errors[-1]) < 0.05


def by_class(label: int = 0) -> dict[str, datasets.Dataset]:
    data = images(40, seed=1)
    labels = np.asarray(data["label"])
    forget, retain = (data.select(np.flatnonzero(which)) for which in (labels == label, labels != label))
    return {"forget": forget, "retain": retain, "unseen": images(24, seed=2)}


@pytest.mark.parametrize("variant", slow_but(["q"], ["q", "u"]))
@pytest.mark.parametrize("build", slow_but([tiny_vit], [tiny_vit, tiny_resnet]))
def test_easy_case_improves_both(build, variant, tmp_path):
    """A whole class, of a model that has still something to learn of the others."""
    model, data = build(), by_class()
    pixels, labels = (
        torch.cat([data[name][column][:] for name in ("forget", "retain")]) for column in ("pixel_values", "label")
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        F.cross_entropy(model(pixel_values=pixels).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    args = arguments(tmp_path, max_steps=15, learning_rate=0.005, **EVERY_STEP)
    config = HamuConfig(variant=variant, until="end")
    result = unlearn(model.eval(), **data, method=config, args=args)
    before, after = result.metrics["before"], result.metrics["after"]
    assert after["forget_loss"] > before["forget_loss"] and after["retain_loss"] < before["retain_loss"]
    lines = logged(result.trainer)
    assert lines[0]["hardness01"] < 0.5 and not any(line["unavoidable"] for line in lines)
    assert not result.trainer.method.notes


# ---------------------------------------------------------------------------------------------------------------------
# Where it ends


def same_sets() -> dict:
    """Forget and retained samples are the same, and so are the batches, which hold all of them."""
    forget = learnt()["forget"]
    return {"forget": forget, "retain": forget}


def of_same_sets(folder: Path, config: HamuConfig, callbacks=None, **changes):
    args = arguments(folder, **{"max_steps": 8, "measure": False, "learning_rate": 0.05} | EVERY_STEP | changes)
    return UnlearningTrainer(
        fitted(), args, method=config, **for_trainer(same_sets()), overlap="allow", callbacks=callbacks
    )


def test_same_sets_are_flagged_at_once(tmp_path, caplog):
    trainer = of_same_sets(tmp_path, HamuConfig(objective="ce", until="end"))
    trainer.train()
    lines = logged(trainer)
    assert lines[0]["unavoidable"] == 1 and lines[0]["hardness01"] == pytest.approx(1, abs=1e-5)
    assert len(lines) == 8  # it is only logged
    (note,) = trainer.method.notes
    assert note.startswith("Damage is unavoidable: every step that meets the forget quota raises the loss of retained")
    assert sum(note in record.getMessage() for record in caplog.records) == 1
    assert all(line["infeasible"] == 0 for line in lines)


@pytest.mark.parametrize("variant", ["q", "u"])
def test_ratio_0_is_never_flagged(variant, tmp_path):
    trainer = of_same_sets(tmp_path, HamuConfig(ratio=0.0, variant=variant, stop="stop", stop_patience=1, until="end"))
    trainer.train()
    lines = logged(trainer)
    assert len(lines) == 8 and not any(line["unavoidable"] or line["infeasible"] for line in lines)
    assert not trainer.method.notes


@pytest.mark.parametrize("patience", [1, 3])
def test_stop(patience, tmp_path):
    config = HamuConfig(objective="ce", stop="stop", stop_patience=patience, until="end")
    record = Record()
    trainer = of_same_sets(tmp_path, config, [record])
    trainer.train()
    assert trainer.state.global_step == patience
    assert same_bits(weights(trainer.model), weights(fitted()))
    assert patience == 1 or not same_bits(record.weights[1], record.weights[0])
    notes = trainer.method.notes
    assert (
        len(notes) == 2
        and notes[1] == f"Ended after {patience} harmful steps in a row, with the weights from before them."
    )
    assert logged(trainer)[-1].keys() == LOGGED


class _Flags:
    """In place of `solve`: as it is, but for the flag, which is set in the given steps."""

    def __init__(self, flagged: str):
        self.flagged, self.solve = iter(flagged), hamu.solve

    def __call__(self, *given):
        coefficients, hardness = self.solve(*given)
        return coefficients, dataclasses.replace(hardness, unavoidable=next(self.flagged) == "x")


@pytest.mark.parametrize(
    ("flags", "patience", "kept"), [(".x.xx", 2, 3), ("..x.x.xxx", 3, 6), ("x", 1, 0), ("xx.xx.x", 3, None)]
)
def test_stop_puts_back_the_last_good_weights(flags, patience, kept, tmp_path, monkeypatch):
    """Those from before the first of the flagged steps that end it; flags with others between them do not count."""
    monkeypatch.setattr(hamu, "solve", _Flags(flags))
    config = HamuConfig(stop="stop", stop_patience=patience, until="end")
    trainer, record = train(tmp_path, config, dtype="float32", max_steps=len(flags))
    assert trainer.state.global_step == len(flags)
    assert len({tuple(w["classifier.bias"].tolist()) for w in record.weights[:-1]}) == len(flags)  # each one moved
    if kept is None:
        assert not any(same_bits(record.weights[-1], other) for other in record.weights[:-1])
    else:
        assert same_bits(record.weights[-1], record.weights[kept])


def test_slack_counts(tmp_path):
    """With 10 times the quota asked as slack, steps that are still free of harm count as well."""
    config = HamuConfig(stop="stop", stop_patience=1, stop_slack=1e3, until="end")
    trainer, record = train(tmp_path, config, max_steps=3, **EVERY_STEP)
    assert trainer.state.global_step == 1 and logged(trainer)[0]["unavoidable"] == 0
    assert same_bits(record.weights[0], record.weights[-1])


def test_paper_ends_where_its_quota_is_out_of_reach(tmp_path):
    trainer, record = train(tmp_path, HamuConfig.paper(), max_steps=6, **EVERY_STEP)
    assert trainer.state.global_step == 1 and same_bits(record.weights[0], record.weights[-1])
    hand = ByHand(trainer, record, "vit")
    times = 0.5 / sum((r.norm() * f.norm()).item() for r, f in zip(*hand.both(0), strict=True))
    (note,) = trainer.method.notes
    said = re.search(r"ratio 0.5 asks (\S+) times what is reachable in a step, which ends the run", note)
    assert times > 1 and float(said[1]) == pytest.approx(times, rel=0.01)
    (line,) = logged(trainer)
    assert line["infeasible"] == 1 and line["unavoidable"] == 0 and line["c"] == pytest.approx(times, rel=1e-4)
    assert line["realised_forget"] == pytest.approx(0, abs=1e-9) and line["predicted_forget"] == 0


def test_skip(tmp_path):
    config = HamuConfig(quota_scale="absolute", ratio=100.0, on_infeasible="skip", until="end")
    trainer, record = train(tmp_path, config, max_steps=4, **EVERY_STEP)
    assert trainer.state.global_step == 4 and same_bits(record.weights[0], record.weights[-1])
    assert all(line["infeasible"] == 1 for line in logged(trainer))
    assert len(trainer.method.notes) == 1 and "which is left out" in trainer.method.notes[0]


def test_cap(tmp_path):
    config = HamuConfig(quota_scale="absolute", ratio=100.0, on_infeasible="cap", until="end")
    trainer, record = train(tmp_path, config, max_steps=4, learning_rate=1e-3, **EVERY_STEP)
    assert trainer.state.global_step == 4
    hand = ByHand(trainer, record, "vit")
    for step, line in enumerate(logged(trainer)):
        retain, forget = hand.both(step)
        reachable = sum((r.norm() * f.norm()).item() for r, f in zip(retain, forget, strict=True))
        reachable *= hand.unclipped(step, "forget") / torch.cat([r.flatten() for r in retain]).norm().item()
        assert line["infeasible"] == 1 and line["predicted_forget"] == pytest.approx(1e-3 * reachable, rel=1e-3)
    assert "which gains what it can" in trainer.method.notes[0]


@pytest.mark.parametrize("objective", ["ce", "bounded"])
def test_until_unseen(objective, tmp_path):
    """The forget samples are known no better than samples like them that were never seen: bounded, by accuracy alone."""
    args = arguments(tmp_path, num_train_epochs=10, learning_rate=0.3)
    config = HamuConfig(objective=objective, radius="retain", look=1, ratio=0.9)
    result = unlearn(fitted(), **learnt(), method=config, args=args)
    trainer = result.trainer
    assert 0 < trainer.state.global_step < trainer.state.max_steps
    loss, accuracy = trainer.method.loss_aim, trainer.method.accuracy_aim
    measured = trainer.measure()
    forget = measured["forget"]
    assert result.metrics["before"]["forget_loss"] < loss
    assert (loss < math.inf) is (objective == "ce") and accuracy >= 0
    assert forget.mean("loss") >= loss or forget.accuracy <= accuracy
    assert not any("used up" in note for note in trainer.method.notes)
    config = dataclasses.replace(config, until="end")
    whole = unlearn(fitted(), **learnt(), method=config, args=args).trainer
    assert whole.state.global_step == whole.state.max_steps


@pytest.mark.parametrize(("method", "objective"), [("hamu", "bounded"), ("hamu", "ce"), ("neggrad_plus", "bounded")])
def test_says_that_its_aim_is_missed(method, objective, tmp_path):
    """With the figures, once, and not where nothing was aimed at."""
    config = get_method(method).config_class(objective=objective, look=4)
    args = arguments(tmp_path, max_steps=5, learning_rate=1e-7)
    result = unlearn(fitted(), **learnt(), method=config, args=args)
    forget, method = result.trainer.measure()["forget"], result.trainer.method
    (note,) = method.notes
    assert note.startswith(f"{method.info.name} has used up its 5 steps") and note in result.summary()
    assert f"{100 * forget.accuracy:.1f} % of them are right, and the aim is {100 * method.accuracy_aim:.1f} %" in note
    assert ("their loss is" in note) is (objective == "ce")
    unaimed = unlearn(fitted(), **learnt(), method=dataclasses.replace(config, until="end"), args=args)
    assert not unaimed.trainer.method.notes


def repaired(folder: Path, callbacks=None, **settings) -> UnlearningTrainer:
    """Steps that ask for all there is within reach, which takes retained samples along; 17, of which the last 6 repair."""
    args = arguments(
        folder, **{"num_train_epochs": 20, "learning_rate": 0.1, "measure": False} | EVERY_STEP | settings
    )
    config = HamuConfig(ratio=1.0, look=1)
    return UnlearningTrainer(fitted(), args, method=config, **for_trainer(learnt()), callbacks=callbacks)


def missed(trainer: UnlearningTrainer) -> list[str]:
    return [note for note in trainer.method.notes if "used up" in note]


def test_repairs(tmp_path):
    """Without a quota once enough is forgotten, until retained samples are right again, and not longer."""
    trainer = repaired(tmp_path)
    before = trainer.measure()["retain"].accuracy
    trainer.train()
    shares = [line["c"] for line in logged(trainer)]
    assert shares[0] == 1.0 and shares[-1] == 0.0 and set(shares) == {0.0, 1.0}
    after, method = trainer.measure(), trainer.method
    assert 0 < trainer.state.global_step < trainer.state.max_steps and not missed(trainer)
    assert after["forget"].accuracy <= method.accuracy_aim
    assert after["retain"].accuracy >= before - 0.005


def test_says_that_retained_samples_have_not_come_back(tmp_path):
    trainer = repaired(tmp_path, max_steps=13)
    trainer.train()
    (note,) = missed(trainer)
    right = 100 * trainer.measure()["retain"].accuracy
    assert "retained samples have not come back" in note and f"{right:.1f} % of them are right" in note


@pytest.mark.slow
def test_resumed_in_a_repair(tmp_path):
    record = Record()
    repaired(tmp_path / "a", [record]).train()
    saved = {"save_strategy": "steps", "save_steps": 1}
    with pytest.raises(UnlearningError, match="killed"):
        repaired(tmp_path / "b", [StopAt(13)], **saved).train()
    resumed = repaired(tmp_path / "b", **saved)
    resumed.train(resume_from_checkpoint=True)
    assert same_bits(weights(resumed.model), record.weights[-1])


def test_until_unseen_of_a_class(tmp_path):
    data = by_class()
    model = fitted(flipped=False)
    args = arguments(tmp_path, num_train_epochs=10, learning_rate=0.3)
    result = unlearn(model, **data, method=HamuConfig(look=1, ratio=0.9), args=args)
    assert result.trainer.request.is_class and result.metrics["before"]["forget_accuracy"] > 0
    assert result.metrics["after"]["forget_accuracy"] == 0
    assert result.trainer.state.global_step < result.trainer.state.max_steps


def test_nothing_to_do(tmp_path):
    """The forget samples are as unknown as the unseen ones."""
    data = by_class() | {"forget": images(9, seed=7, noise=30.0), "unseen": images(24, seed=1)}
    result = unlearn(fitted(flipped=False), **data, method="hamu", args=arguments(tmp_path))
    assert result.trainer.state.global_step == 0
    assert same_bits(weights(result.model), weights(fitted(flipped=False)))


# ---------------------------------------------------------------------------------------------------------------------
# Resumed


@pytest.mark.parametrize("stop_at", slow_but([3], [2, 3, 4]))
def test_resumed_among_flagged_steps(stop_at, tmp_path):
    """The count of flagged steps and the weights from before them come back."""
    config = HamuConfig(objective="ce", stop="stop", stop_patience=5, until="end")
    settings = {"save_strategy": "steps", "save_steps": 1}
    with pytest.raises(UnlearningError, match="killed"):
        of_same_sets(tmp_path, config, [StopAt(stop_at)], **settings).train()
    resumed = of_same_sets(tmp_path, config, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5
    assert same_bits(weights(resumed.model), weights(fitted()))


@pytest.mark.slow
def test_resumed(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 7, "dtype": "float32", "dropout": 0.1}
    _, expected = train(tmp_path / "a", "hamu", **settings)
    trainer = make_trainer("hamu", "vit", tmp_path / "b", callbacks=[StopAt(5)], **settings)
    with pytest.raises(UnlearningError, match="killed"):
        trainer.train()
    resumed = make_trainer("hamu", "vit", tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 7
    assert same_bits(weights(resumed.model), expected.weights[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Refused


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("method", ["hamu", "pcgrad", "gru", "orthograd"])
@pytest.mark.parametrize(
    ("args", "given", "message"),
    [
        ({"optim_args": "momentum=0.9"}, {}, "was given optim_args='momentum=0.9', .* expected plain SGD"),
        ({"optim": "adamw_torch"}, {}, "was given optim='adamw_torch', .* expected plain SGD"),
        ({"weight_decay": 0.01}, {}, "was given weight_decay=0.01, .* expected plain SGD"),
        ({}, {"optimizers": momentum}, "was given a SGD optimizer with momentum, weight decay or scaling"),
        ({}, {"optimizers": lambda m: torch.optim.AdamW(m.parameters())}, "was given a AdamW optimizer"),
        ({}, {"optimizer_cls_and_kwargs": (torch.optim.SGD, {})}, "was given an optimizer class of your own"),
        ({"fp16": True}, {}, "fp16"),
    ],
)
def test_what_would_change_the_step(method, args, given, message, tmp_path):
    model = fitted()
    given = {name: (value(model), None) if callable(value) else value for name, value in given.items()}
    with pytest.raises(UnlearningError, match=message) as caught:
        UnlearningTrainer(
            model, arguments(tmp_path / "out", **args), method=method, **for_trainer(learnt()), **given
        ).train()
    assert not (tmp_path / "out").exists() and "\n" not in str(caught.value)


def test_own_plain_optimizer(tmp_path):
    """SGD without anything is what is asked for."""
    model = fitted()
    optimizers = torch.optim.SGD(model.parameters(), lr=1e-3), None
    args = arguments(tmp_path, max_steps=1, measure=False)
    UnlearningTrainer(model, args, method="hamu", **for_trainer(learnt()), optimizers=optimizers).train()
    assert not same_bits(weights(model), weights(fitted()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": -0.1}, r"hamu: ratio is -0.1; expected a share in \[0, 1\]"),
        ({"ratio": 1.5}, "hamu: ratio is 1.5; expected a share"),
        ({"ratio": math.nan}, "hamu: ratio is nan; expected a finite number"),
        ({"variant": "x"}, "hamu: variant is 'x'; expected q or u"),
        ({"block": "layer"}, "hamu: block is 'layer'; expected tensor, module or global"),
        ({"quota": "softmax"}, "hamu: quota is 'softmax'; expected norm_product or uniform"),
        ({"quota_scale": "paper"}, "hamu: quota_scale is 'paper'; expected relative or absolute"),
        ({"on_infeasible": "go"}, "hamu: on_infeasible is 'go'; expected cap, skip or stop"),
        ({"stop": "now"}, "hamu: stop is 'now'; expected log or stop"),
        ({"stop_patience": 0}, "hamu: stop_patience is 0; expected at least 1"),
        (
            {"quota_scale": "absolute"},
            "hamu: ratio is None; expected a number, since an absolute quota has no default",
        ),
        ({"until": "end", "then": "repair"}, "hamu: then is 'repair'; expected end or null"),
        ({"stop_slack": -1.0}, "hamu: stop_slack is -1.0; expected 0 or more"),
        ({"until": "now"}, "hamu: until is 'now'; expected unseen or end"),
        ({"harm": 2.0}, r"hamu: harm is 2.0; expected a share in \[0, 1\]"),
        ({"harm": 0.1, "then": "end"}, "hamu: harm is 0.1; expected its default, since nothing is repaired"),
        ({"harm": 0.1, "until": "end"}, "hamu: harm is 0.1; expected its default, since nothing is repaired"),
        ({"then": "rest"}, "hamu: then is 'rest'; expected repair or end"),
        ({"look": 0}, "hamu: look is 0; expected at least 1"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(UnlearningError, match=message):
        HamuConfig(**settings)


def test_without_retained_samples(tmp_path):
    with pytest.raises(UnlearningError, match=r"hamu needs samples to keep \(retain=\)"):
        unlearn(fitted(), forget=learnt()["forget"], method="hamu", args=arguments(tmp_path))
