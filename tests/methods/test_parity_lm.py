"""Ten steps of the methods for language models beside transcriptions of their losses into plain torch, in float64, to 1e-6.

As in `test_parity.py`: the batches are those of the schedule, all else is written out here, a text at a time and without padding.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.data.schedule import Draw
from hf_unlearn.methods import METHODS, MethodConfig
from hf_unlearn.tasks.losses import IGNORED
from tests.runs import as_given, make_trainer, original, rows, weights

STEPS = 10


class Plain:
    """The model, the frozen original, and what a step trains on."""

    def __init__(self, trainer):
        self.model, self.frozen = (original("llama", torch.float64).eval() for _ in range(2))
        self.weights = list(self.model.parameters())
        self.schedule, self.seed, self.rows, self.memory = trainer.schedule, trainer.args.seed, rows("llama"), {}

    def answer(self, draw: Draw, other: bool = False) -> tuple[list[int], list[int]]:
        """The ids of a text, and the places in it that predict its completion; or the same with its other answer."""
        row = self.rows[draw.source][draw.index]
        prompt = row["labels"].count(IGNORED)
        ids = row["input_ids"][:prompt] + row["alternative"] if other else row["input_ids"]
        return ids, list(range(prompt - 1, len(ids) - 1))

    def read(self, draw: Draw, frozen: bool = False, other: bool = False) -> tuple[Tensor, Tensor]:
        """The logits at these places, and the tokens that come there."""
        ids, places = self.answer(draw, other)
        ids = torch.tensor(ids)
        with torch.set_grad_enabled(not frozen):
            z = (self.frozen if frozen else self.model)(input_ids=ids[None]).logits[0]
        return z[places], ids[1:][places]

    def log_p(self, draw: Draw, frozen: bool = False, other: bool = False) -> Tensor:
        """log p of every token of the answer."""
        z, tokens = self.read(draw, frozen, other)
        return z.log_softmax(-1)[torch.arange(len(tokens)), tokens]

    def each(self, draws: list[Draw], **how: bool) -> list[Tensor]:
        return [self.log_p(draw, **how) for draw in draws]

    def states(self, draw: Draw, frozen: bool = False) -> Tensor:
        """What the second block puts out, at all tokens."""
        found, model = [], self.frozen if frozen else self.model
        hook = model.model.layers[1].register_forward_hook(lambda module, args, output: found.append(output))
        with torch.set_grad_enabled(not frozen):
            model(input_ids=torch.tensor(self.rows[draw.source][draw.index]["input_ids"])[None])
        hook.remove()
        return (found[0][0] if isinstance(found[0], tuple) else found[0]).view(-1, 16)


def mean(of_samples: list[Tensor]) -> Tensor:
    return torch.stack(of_samples).mean()


def retained(plain, groups) -> Tensor:
    """The cross-entropy, a mean over all completion tokens."""
    return -torch.cat(plain.each(groups["retain"])).mean()


# ---------------------------------------------------------------------------------------------------------------------
# The losses: (the model, groups of a step, its number) -> what is minimised


def grad_diff(plain, groups, step):
    return torch.cat(plain.each(groups["forget"])).mean() + retained(plain, groups)


def ascent(plain, groups, step):
    return torch.cat(plain.each(groups["forget"])).mean()


def npo(plain, groups, step):
    """−(2/β) log σ(−β log(π/π_ref)) + CE_r, β = 0.1."""
    ratios = [plain.log_p(d).sum() - plain.log_p(d, frozen=True).sum() for d in groups["forget"]]
    return mean([-2 / 0.1 * F.logsigmoid(-0.1 * r) for r in ratios]) + retained(plain, groups)


def simnpo(plain, groups, step):
    """0.1375·[−(2/β) log σ(−(β/|y|) log π)] + CE_r, β = 2.5 and γ = 0; over 0.1375, which our loss is."""
    forget = mean([-2 / 2.5 * F.logsigmoid(-2.5 * log_p.mean()) for log_p in plain.each(groups["forget"])])
    return forget + retained(plain, groups) / 0.1375


def dpo(plain, groups, step):
    """−(2/β) log σ(β log(π/π_ref)(other) − β log(π/π_ref)(own)) + CE_r, β = 0.1."""
    found = []
    for d in groups["forget"]:
        own, other = (
            plain.log_p(d, other=o).sum() - plain.log_p(d, frozen=True, other=o).sum() for o in (False, True)
        )
        found.append(-2 / 0.1 * F.logsigmoid(0.1 * (other - own)))
    return mean(found) + retained(plain, groups)


def undial(plain, groups, step):
    """CE(softmax(z° − 10·e_y), p), a mean over tokens."""
    found = []
    for d in groups["forget"]:
        (z, tokens), (target, _) = plain.read(d), plain.read(d, frozen=True)
        target = target - 10 * F.one_hot(tokens, target.shape[-1])
        found.append(-(target.softmax(-1) * z.log_softmax(-1)).sum(-1))
    return torch.cat(found).mean()


def wga(plain, groups, step):
    """p^α log p with α = 1 and the weight held, a mean over tokens, + CE_r."""
    log_p = torch.cat(plain.each(groups["forget"]))
    return (log_p.detach().exp() * log_p).mean() + retained(plain, groups)


def satimp(plain, groups, step):
    """0.1·[p^5 (1 − p) log p with the weight held] + CE_r; over 0.1, which our loss is."""
    log_p = torch.cat(plain.each(groups["forget"]))
    p = log_p.detach().exp()
    return (p**5 * (1 - p) * log_p).mean() + 10 * retained(plain, groups)


def ce_u(plain, groups, step):
    """CE(softmax(z with z_y = −∞), p), the target held and the first token of an answer left out if it has others."""
    total = tokens_in_all = 0.0
    for d in groups["forget"]:
        z, tokens = plain.read(d)
        target = z.detach().clone()
        target[torch.arange(len(tokens)), tokens] = -torch.inf
        losses = -(target.softmax(-1) * z.log_softmax(-1)).sum(-1)
        total = total + len(tokens) * losses[min(1, len(tokens) - 1) :].mean()
        tokens_in_all += len(tokens)
    return total / tokens_in_all


def pdu(plain, groups, step):
    """(max z − mean z)² + λ(L_r − ε), λ ← max(0, λ + 5(L_r − 0.3)) from the second epoch on, from λ = 100."""
    forget = torch.cat([(z.amax(-1) - z.mean(-1)) ** 2 for z, _ in map(plain.read, groups["forget"])]).mean()
    weight, kept = plain.memory.get("weight", 100.0), retained(plain, groups)
    if plain.schedule.epoch(step) >= 1:
        plain.memory["weight"] = max(0.0, weight + 5 * (kept.item() - 0.3))
    return forget + weight * kept


def rmu(plain, groups, step):
    """‖h(x_f) − 6.5u‖²/d + 1200·‖h(x_r) − h°(x_r)‖²/d, means over the tokens of a text, then over texts."""
    u = torch.rand(16, generator=torch.Generator().manual_seed(plain.seed), dtype=torch.float64)
    forget = [(plain.states(d) - 6.5 * u / u.norm()).square().mean() for d in groups["forget"]]
    retain = [(plain.states(d) - plain.states(d, frozen=True)).square().mean() for d in groups["retain"]]
    return mean(forget) + 1200 * mean(retain)


def learning(plain, groups, step):
    return -torch.cat(plain.each(groups["forget"])).mean()


# ---------------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    rule: Callable
    setting: tuple[str, ...] = ()
    changes: dict = {}  # noqa: RUF012 - where the paper's values are of another model or a longer run
    rate: float = 1e-3


CASES = {
    "grad_diff": Case(grad_diff),
    "gradient_ascent": Case(ascent, ("tofu",)),
    "npo": Case(npo),
    "simnpo": Case(simnpo),
    "dpo": Case(dpo),
    "undial": Case(undial),
    "wga": Case(wga),
    "satimp": Case(satimp),
    "ce_u": Case(ce_u),
    "pdu": Case(pdu, changes={"warmup": 1}),
    "rmu": Case(rmu, changes={"layer": 1}, rate=1e-5),
    "task_vector": Case(learning),
}
SGD = {"optim": "sgd", "lr_scheduler_type": "constant", "weight_decay": 0.0, "warmup_steps": 0, "max_grad_norm": 0.0}


def config_of(name: str) -> MethodConfig:
    return replace(METHODS[name].config_class.paper(*CASES[name].setting), **CASES[name].changes)


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_on_texts(name, tmp_path):
    told = SGD | {"learning_rate": CASES[name].rate, "num_train_epochs": 10, "max_steps": STEPS, "measure": False}
    sets = {part: as_given("llama", samples) for part, samples in rows("llama").items() if part != "unseen"}
    if "unseen" in METHODS[name].info.needs:
        sets["unseen"] = as_given("llama", rows("llama")["unseen"])
    trainer = make_trainer(config_of(name), "llama", tmp_path, dtype="float64", data=sets, lora=None, **told)
    plain = Plain(trainer)
    trainer.train()
    assert trainer.state.global_step == STEPS

    named = dict(plain.model.named_parameters())
    trained = [p for n, p in named.items() if name != "rmu" or ".mlp." in n]
    for step in range(STEPS):
        found = torch.autograd.grad(
            CASES[name].rule(plain, plain.schedule.step(step), step), trained, allow_unused=True
        )
        with torch.no_grad():
            for p, g in zip(trained, found, strict=True):
                p -= 0 if g is None else CASES[name].rate * g
    before, found, expected = weights(plain.frozen), weights(trainer.model), weights(plain.model)
    if name == "task_vector":  # what was learnt is taken away
        expected = {n: before[n] - (w - before[n]) for n, w in expected.items()}
    for n in named:
        moved = (expected[n] - before[n]).norm().item()
        assert (found[n] - expected[n]).norm().item() <= 1e-6 * moved + 1e-12, n
    assert sum(not torch.equal(expected[n], before[n]) for n in named) >= (6 if name == "rmu" else len(named) / 2)
