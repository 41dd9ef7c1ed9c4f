"""Ten steps of methods with published code beside transcriptions of their rules into plain torch, in float64, to 1e-6.

The batches are those of the schedule, and what is drawn is drawn as the library draws it; all else is written out here.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_unlearn.data.randomness import gumbel, seeded, uniform
from hf_unlearn.data.schedule import Draw
from hf_unlearn.methods import METHODS, MethodConfig
from tests.runs import make_trainer, original, rows, weights

STEPS = 10
NOISE = 4  # of UNSIR, for each class
FORGET, RETAIN = 8, 32  # so that no batch of 8 is of a single sample, which BatchNorm in training mode refuses


def paper(name: str, *setting: str, **changes) -> MethodConfig:
    return replace(METHODS[name].config_class.paper(*setting), **changes)


class Plain:
    """The original, and what a step trains on."""

    def __init__(self, trainer, train: bool):
        self.model = original("resnet", torch.float64).train(train)
        self.weights = list(self.model.parameters())
        self.start = [p.detach().clone() for p in self.weights]
        self.schedule, self.seed, self.rows, self.memory = trainer.schedule, trainer.args.seed, rows("resnet"), {}
        self.trained = trainer
        self.control = trainer.indices.get("control", ("", []))[1]

    def pixels(self, draws: list[Draw]) -> Tensor:
        return torch.stack([self.rows[draw.source][draw.index]["pixel_values"] for draw in draws]).double()

    def logits(self, draws: list[Draw]) -> Tensor:
        return self.model(pixel_values=self.pixels(draws)).logits

    @torch.no_grad()
    def teacher_logits(self, draws: list[Draw], name: str = "original") -> Tensor:
        """Of the original in eval mode, or of what `memory` holds by another name."""
        if name not in self.memory:
            self.memory[name] = original("resnet", torch.float64).eval()
        return self.memory[name](pixel_values=self.pixels(draws)).logits

    def is_forget(self, draws: list[Draw]) -> Tensor:
        return torch.tensor([draw.source == "forget" for draw in draws])

    def sample_index(self, draws: list[Draw]) -> Tensor:
        return torch.tensor([draw.index + FORGET * (draw.source == "retain") for draw in draws])

    def labels(self, draws: list[Draw]) -> Tensor:
        return torch.tensor([self.rows[draw.source][draw.index]["labels"] for draw in draws])

    def loss(self, draws: list[Draw]) -> Tensor:
        return F.cross_entropy(self.logits(draws), self.labels(draws))

    def gradient(self, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, self.weights, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.weights, found, strict=True)]

    def both(self, groups: dict[str, list[Draw]], clip: float = math.inf) -> tuple[list[Tensor], list[Tensor]]:
        """g_r and g_f, each no longer than `clip`."""
        both = [self.gradient(self.loss(groups[name])) for name in ("retain", "forget")]
        return tuple([g * min(1.0, clip / flat(whole).norm().item()) for g in whole] for whole in both)

    def split(self, vector: Tensor) -> list[Tensor]:
        return [
            v.view_as(p) for v, p in zip(vector.split([p.numel() for p in self.weights]), self.weights, strict=True)
        ]


def flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient])


# ---------------------------------------------------------------------------------------------------------------------
# The rules: (the original, groups of a step, its epoch and number) -> the gradient that SGD steps on


def neggrad_small(plain, groups, epoch, step):
    """α(CE_r + λ/2 ‖θ − θ₀‖²) − (1 − α)CE_f, in eval mode, with α = 0.95 and λ = 0.1."""
    away = sum((p - s).pow(2).sum() for p, s in zip(plain.weights, plain.start, strict=True))
    held = plain.loss(groups["retain"]) + 0.1 / 2 * away
    return plain.gradient(0.95 * held - (1 - 0.95) * plain.loss(groups["forget"]))


def neggrad_large(plain, groups, epoch, step):
    """0.9999·CE_r − 0.0001·CE_f, in training mode."""
    retain, forget = plain.loss(groups["retain"]), plain.loss(groups["forget"])
    return plain.gradient(0.9999 * retain - (1 - 0.9999) * forget)


def grad_diff(plain, groups, epoch, step):
    retain, forget = plain.loss(groups["retain"]), plain.loss(groups["forget"])
    return plain.gradient(retain - forget)


def ascent(plain, groups, epoch, step):
    return plain.gradient(-plain.loss(groups["forget"]))


def l1_sparse(plain, groups, epoch, step):
    """CE_r + γ(1 − epoch/epochs)·‖θ‖₁, with γ = 5e-4."""
    gamma = 5e-4 * (1 - epoch / len(plain.schedule.epochs))
    return plain.gradient(plain.loss(groups["retain"]) + gamma * flat(plain.weights).abs().sum())


def gru(plain, groups, epoch, step):
    """−g_f, less its part along ḡ_r ← 0.8·g_r + 0.2·ḡ_r where that would raise the retain loss."""
    r, f = map(flat, plain.both(groups))
    r = plain.memory["mean"] = 0.8 * r + 0.2 * plain.memory.get("mean", torch.zeros_like(r))
    ascent = -f
    return plain.split(ascent - (ascent @ r) / (r @ r) * r if ascent @ r < 0 else ascent)


def pcgrad(plain, groups, epoch, step):
    """The sum of g_r and −g_f, each projected onto the plane across the other where they conflict."""
    r, f = map(flat, plain.both(groups))
    tasks = [r, -f]
    total = torch.zeros_like(r)
    for i, g in enumerate(tasks):
        other = tasks[1 - i]
        total += g - (g @ other) / (other @ other) * other if g @ other < 0 else g
    return plain.split(total)


def orthograd(plain, groups, epoch, step):
    """½·mean(g_r) − ½·(g_f without what single retained samples span), tensor by tensor."""
    single = [plain.gradient(plain.loss([draw])) for draw in groups["retain"]]
    _, forget = plain.both(groups)
    update = []
    for i, g in enumerate(forget):
        a = torch.stack([row[i].flatten() for row in single])
        free = g.flatten() - torch.linalg.pinv(a, rtol=1e-10) @ (a @ g.flatten())
        update.append(0.5 * a.mean(dim=0).view_as(g) - 0.5 * free.view_as(g))
    return update


def hamu(plain, groups, epoch, step):
    """−Δ/η of HAMU-Q, tensor by tensor, in R = η‖g_r‖ and Q_i ∝ ‖g_r‖‖g_f‖, at Q/η = 1e-3."""
    eta, update = 1e-4, []
    retain, forget = plain.both(groups, clip=1.0)
    total = sum(r.norm() * f.norm() for r, f in zip(retain, forget, strict=True))
    for r, f in zip(retain, forget, strict=True):
        radius, kappa = eta * r.norm(), (r * f).sum()
        quota = 1e-3 * eta * r.norm() * f.norm() / total
        if kappa <= -quota * r.norm() / radius:
            delta = -radius / r.norm() * r
        else:
            across = r - kappa / f.norm() ** 2 * f
            rest = (radius**2 - quota**2 / f.norm() ** 2).sqrt()
            delta = quota / f.norm() ** 2 * f - rest * across / across.norm()
        update.append(-delta / eta)
    return update


def scrub(plain, groups, epoch, step):
    """−T²·KL(teacher‖student) in passes over the forget set; 0.99·CE + 0.001·T²·KL in those over the retained set; T = 4."""
    (kind, draws), t = next(iter(groups.items())), 4.0
    teacher, student = plain.teacher_logits(draws), plain.logits(draws)
    kl = F.kl_div(F.log_softmax(student / t, 1), F.softmax(teacher / t, 1), reduction="sum") * t**2 / len(draws)
    if kind == "forget":
        return plain.gradient(-kl)
    return plain.gradient(0.99 * F.cross_entropy(student, plain.labels(draws)) + 0.001 * kl)


def random_labels(plain, draws: list[Draw]) -> Tensor:
    labels = plain.labels(draws)
    u = uniform(plain.seed, torch.tensor([d.epoch for d in draws]), plain.sample_index(draws), 1)[:, 0]
    wrong = (labels + 1 + (u * (plain.model.config.num_labels - 1)).long()) % plain.model.config.num_labels
    return torch.where(plain.is_forget(draws), wrong, labels)


def relabelled(plain, groups, epoch, step):
    """Random labels on D_f, drawn once, and the right ones on D_r."""
    draws = groups["mixed"]
    return plain.gradient(
        F.cross_entropy(plain.logits(draws), random_labels(plain, [d._replace(epoch=0) for d in draws]))
    )


def salun(plain, groups, epoch, step):
    """Random labels on D_f and the right ones on D_r, where |∇CE(D_f)| of the original is in its upper half."""
    if "mask" not in plain.memory:
        plain.model.eval()
        g = flat(plain.gradient(plain.loss([Draw("forget", "forget", i, 0) for i in range(FORGET)]))).abs()
        chosen = torch.zeros_like(g).index_fill(0, g.argsort(descending=True)[: round(len(g) / 2)], 1.0)
        plain.memory["mask"] = plain.split(chosen * (g > 0))  # a weight without a gradient is never chosen
        plain.model.train()
    draws = groups["mixed"]
    gradient = plain.gradient(F.cross_entropy(plain.logits(draws), random_labels(plain, draws)))
    return [m * g for m, g in zip(plain.memory["mask"], gradient, strict=True)]


def bad_teacher(plain, groups, epoch, step):
    """KL(teacher‖student): of a network with random weights for forget samples, of the original for the others."""
    if "untrained" not in plain.memory:
        with seeded(plain.seed):
            plain.memory["untrained"] = type(plain.model)(plain.model.config).double().eval()
    draws = groups["mixed"]
    forget = plain.is_forget(draws)[:, None]
    # The original's logits lie in a table of single precision.
    kept = plain.teacher_logits(draws).float().double()
    teacher = torch.where(forget, plain.teacher_logits(draws, "untrained"), kept).log_softmax(1)
    student = plain.logits(draws).log_softmax(1)
    return plain.gradient((teacher.exp() * (teacher - student)).sum() / len(draws))


def lotus(plain, groups, epoch, step):
    """CE with softmax((z + g)/τ) on D_f and the one-hot at argmax(z + g) on D_r; τ = exp(8(a_f − a_u)) at every epoch's begin."""

    def right(logits: Tensor, draws: list[Draw]) -> float:
        return (logits.argmax(1) == plain.labels(draws)).double().mean().item()

    if plain.memory.get("epoch") != epoch:
        unseen = [Draw("unseen", "unseen", int(i), 0) for i in plain.control]
        forget = [Draw("forget", "forget", i, 0) for i in range(FORGET)]
        plain.model.eval()
        with torch.no_grad():
            gap = right(plain.logits(forget), forget) - right(plain.teacher_logits(unseen), unseen)
        plain.model.train()
        plain.memory |= {"epoch": epoch, "tau": min(math.exp(8 * gap), 1e4)}
    draws = groups["mixed"]
    z = plain.teacher_logits(draws)
    z = z + gumbel(plain.seed, torch.tensor([d.epoch for d in draws]), plain.sample_index(draws), z.shape[1])
    hard = F.one_hot(z.argmax(1), z.shape[1]).double()
    target = torch.where(plain.is_forget(draws)[:, None], (z / plain.memory["tau"]).softmax(1), hard)
    return plain.gradient(-(target * plain.logits(draws).log_softmax(1)).sum() / len(draws))


def unsir(plain, groups, epoch, step):
    """Noise by 5 steps of Adam at 0.1 on −CE + 0.1·‖N‖², the samples of a class together; then CE on it and on D_r, then D_r."""
    if "noise" not in plain.memory:
        classes = torch.arange(plain.model.config.num_labels).repeat_interleave(NOISE)
        shape = plain.pixels([Draw("forget", "forget", 0, 0)]).shape[1:]
        start = torch.randn(len(classes), *shape, generator=torch.Generator().manual_seed(plain.seed))
        learned = []
        for noise, y in zip(start.split(NOISE), classes.split(NOISE), strict=True):
            noise = noise.clone().requires_grad_()
            adam = torch.optim.Adam([noise], lr=0.1)
            for _ in range(5):
                error = F.cross_entropy(plain.model(pixel_values=noise.double()).logits, y, reduction="sum")
                noise.grad = torch.autograd.grad(-error + 0.1 * noise.square().sum(), noise)[0]
                adam.step()
            learned.append(noise.detach())
        plain.memory["noise"] = torch.stack(learned).double()
    if "forget" not in groups:
        return plain.gradient(plain.loss(groups["retain"]))
    labels, rows = plain.labels(groups["forget"]), plain.sample_index(groups["forget"]) % NOISE
    impaired = F.cross_entropy(plain.model(pixel_values=plain.memory["noise"][labels, rows]).logits, labels)
    return plain.gradient((impaired + plain.loss(groups["retain"])) / 2)


def ct(plain, groups, epoch, step):
    """The kernels are transposed before the first step; CE on D_r."""
    if step == 0:
        for p in plain.weights:
            if p.ndim == 4 and p.shape[2] == p.shape[3]:
                p.data = p.data.transpose(2, 3).contiguous()
    return plain.gradient(plain.loss(groups["retain"]))


def msg(plain, groups, epoch, step):
    """Of each layer the 30 % of weights with the smallest |∇(CE(S) − CE(D_f))| are drawn anew; CE on D_r, a tenth of it elsewhere."""
    if step == 0:
        drawn = np.random.default_rng([plain.seed, 5]).choice(plain.schedule.retain_subset, FORGET, replace=False)
        plain.model.eval()
        kept, gone = (
            plain.gradient(plain.loss([Draw(name, name, int(i), 0) for i in of]))
            for name, of in (("retain", np.sort(drawn)), ("forget", range(FORGET)))
        )
        plain.model.train()
        with seeded(plain.seed):
            fresh = list(type(plain.model)(plain.model.config).double().parameters())
        plain.memory["small"] = []
        for p, new, r, f in zip(plain.weights, fresh, kept, gone, strict=True):
            g = (r - f).abs().flatten()
            count = round(0.3 * len(g)) if p.ndim > 1 else 0
            small = torch.zeros_like(g).index_fill(0, g.argsort(stable=True)[:count], 1.0).view_as(p)
            p.data = torch.where(small > 0, new, p).detach()
            plain.memory["small"].append(small)
    gradient = plain.gradient(plain.loss(groups["retain"]))
    return [(0.1 + 0.9 * small) * g for small, g in zip(plain.memory["small"], gradient, strict=True)]


def delete(plain, groups, epoch, step):
    """KL(t‖p) on D_f, t the original's softmax with the true class at −∞."""
    draws = groups["forget"]
    z = plain.teacher_logits(draws).float().double()  # they lie in a table of single precision
    z[torch.arange(len(draws)), plain.labels(draws)] = -torch.inf
    t, log_p = z.softmax(1), plain.logits(draws).log_softmax(1)
    return plain.gradient((torch.xlogy(t, t) - t * log_p).sum() / len(draws))


def regun(plain, groups, epoch, step):
    """CE on D_r + KL(q‖p) on D_f, q the original's mean answer to unseen samples with the labels of the batch."""
    unseen = [Draw("unseen", "unseen", int(i), 0) for i in plain.control]
    said, labels = plain.teacher_logits(unseen).softmax(1), plain.labels(unseen)
    forget = groups["forget"]
    q = torch.stack([said[labels == y].mean(0) for y in plain.labels(forget)]).mean(0)
    kl = (q * (q.log() - plain.logits(forget).log_softmax(1))).sum() / len(forget)
    return plain.gradient(plain.loss(groups["retain"]) + kl)


def local_teacher(plain, groups, epoch, step):
    """CE on D_r + 2·CE(ŷ, f) on D_f, ŷ the two largest probabilities of the teacher that was trained, renormalised."""
    draws = groups["mixed"]
    p = plain.trained.method.teacher(pixel_values=plain.pixels(draws)).logits.softmax(1)
    p = p * (p >= p.topk(2).values[:, -1:])
    log_p, labels = plain.logits(draws).log_softmax(1), F.one_hot(plain.labels(draws), p.shape[1])
    soft = torch.where(plain.is_forget(draws)[:, None], 2 * p / p.sum(1, keepdim=True), labels)
    return plain.gradient(-(soft * log_p).sum() / len(draws))


def amun(plain, groups, epoch, step):
    """CE on D_r and on what L2-PGD of 5 steps makes of D_f, with the answers to it; ε doubles from 0.1 until the answer changes."""
    if step == 0:
        plain.teacher_logits([Draw("forget", "forget", 0, 0)])
        attacked, plain.memory["moved"] = plain.memory["original"], []
        for i in range(FORGET):
            draw = [Draw("forget", "forget", i, 0)]
            x, y, epsilon = plain.pixels(draw), plain.labels(draw), 0.1
            while True:
                delta = torch.zeros_like(x)
                for _ in range(5):
                    point = (x + delta).requires_grad_()
                    g = torch.autograd.grad(F.cross_entropy(attacked(pixel_values=point).logits, y), point)[0]
                    delta = delta + 2.5 * epsilon / 5 * g / g.norm()
                    delta = delta * min(1.0, epsilon / delta.norm().item())
                said = attacked(pixel_values=x + delta).logits.argmax(1)
                if said != y:
                    break
                epsilon *= 2
            plain.memory["moved"].append((x + delta, said))
    draws = groups["mixed"]
    pairs = [
        plain.memory["moved"][d.index] if d.source == "forget" else (plain.pixels([d]), plain.labels([d]))
        for d in draws
    ]
    x, y = map(torch.cat, zip(*pairs, strict=True))
    return plain.gradient(F.cross_entropy(plain.model(pixel_values=x).logits, y))


# ---------------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    config: MethodConfig
    rule: Callable
    rate: float
    train: bool = False  # the mode of the model
    momentum: float = 0.0
    decay: float = 0.0
    changes: dict = {}  # noqa: RUF012 - of the training arguments, where the paper's are of another optimizer


WHOLE = {"learning_rate": 1e-3, "max_grad_norm": 0.0}  # of the gradient rules, which have none of their own
SGD = {"optim": "sgd", "lr_scheduler_type": "constant", "weight_decay": 0.0, "warmup_steps": 0} | WHOLE
CASES = {
    "neggrad_plus, small": Case(paper("neggrad_plus", "small"), neggrad_small, 0.01),
    "neggrad_plus, large": Case(paper("neggrad_plus", "large"), neggrad_large, 0.01, train=True),
    "grad_diff": Case(paper("grad_diff"), grad_diff, 1e-3, changes=SGD),
    "gradient_ascent": Case(paper("gradient_ascent"), ascent, 1e-3, True, 0.9, 5e-4, changes={"learning_rate": 1e-3}),
    "l1_sparse": Case(paper("l1_sparse"), l1_sparse, 0.01, True, 0.9, 5e-4),
    "gru": Case(paper("gru"), gru, 1e-3, changes=WHOLE),
    "pcgrad": Case(paper("pcgrad"), pcgrad, 1e-3, changes=WHOLE),
    "orthograd": Case(paper("orthograd"), orthograd, 1e-3, changes=WHOLE),
    "hamu": Case(paper("hamu", ratio=1e-3), hamu, 1e-4),
    "scrub": Case(paper("scrub", "large"), scrub, 5e-4, True, 0.9, 5e-4),
    "salun": Case(paper("salun"), salun, 1e-3, True, 0.9, 5e-4, changes={"learning_rate": 1e-3}),
    "bad_teacher": Case(paper("bad_teacher", retain_fraction=0.5), bad_teacher, 1e-3, True, changes=SGD),
    # Its early stop would end some runs before the tenth step.
    "lotus": Case(
        paper("lotus", "resnet18-cifar10", retain_fraction=0.5, stop_margin=1.0, cache_teacher="never"),
        lotus,
        1e-3,
        True,
        changes=SGD,
    ),
    "random_label": Case(paper("random_label"), relabelled, 1e-3, changes=SGD),
    "ct": Case(paper("ct"), ct, 1e-3, True, 0.9, 5e-4, changes={"lr_scheduler_type": "constant"}),
    "msg": Case(
        paper("msg"), msg, 1e-3, True, 0.9, 5e-4, changes={"lr_scheduler_type": "constant", "warmup_steps": 0}
    ),
    "delete": Case(paper("delete"), delete, 1e-4, True, 0.9),
    "regun": Case(METHODS["regun"].config_class(), regun, 1e-3, changes=SGD),
    "local_teacher": Case(paper("local_teacher", top=2, teacher_epochs=2), local_teacher, 1e-3, True, changes=SGD),
    "amun": Case(paper("amun", steps=5), amun, 1e-3, True, changes=SGD),
    "unsir": Case(paper("unsir", samples=NOISE, steps=5, retain_fraction=1.0), unsir, 1e-3, True, changes=SGD),
}


@pytest.mark.parametrize("name", CASES)
def test_ten_steps(name, tmp_path):
    case = CASES[name]
    told = {"freeze_batchnorm": not case.train, "num_train_epochs": 4} | case.changes
    told |= {"max_steps": STEPS, "measure": False}
    sets = {"forget": rows("resnet")["forget"][:FORGET], "retain": rows("resnet")["retain"][:RETAIN]}
    if "unseen" in METHODS[case.config.method].info.needs:
        sets["unseen"] = rows("resnet")["unseen"]
    trainer = make_trainer(case.config, "resnet", tmp_path, dtype="float64", data=sets, **told)
    plain = Plain(trainer, case.train)
    trainer.train()
    assert trainer.state.global_step == STEPS

    optimizer = torch.optim.SGD(plain.weights, lr=case.rate, momentum=case.momentum, weight_decay=case.decay)
    for step in range(STEPS):
        update = case.rule(plain, plain.schedule.step(step), plain.schedule.epoch(step), step)
        for p, g in zip(plain.weights, update, strict=True):
            p.grad = g
        optimizer.step()
        for p, start, mask in zip(plain.weights, plain.start, plain.memory.get("mask", []), strict=False):
            p.data = torch.where(mask > 0, p.data, start)  # whatever momentum and decay do
    before, found, expected = weights(original("resnet", torch.float64)), weights(trainer.model), weights(plain.model)
    moved = {n: (expected[n] - before[n]).double().norm().item() for n in expected}
    for n in expected:  # the statistics of BatchNorm as well
        assert (found[n] - expected[n]).double().norm().item() <= 1e-6 * moved[n] + 1e-12, n
    assert sum(moved[n] > 0 for n, _ in plain.model.named_parameters()) > len(plain.weights) / 2


def test_ssd(tmp_path):
    """θ ← θ·min(1, λ·I_D/I_f) where I_f > α·I_D, with I the mean of the squared gradients of single samples."""
    sets = {"forget": rows("resnet")["forget"][:FORGET], "retain": rows("resnet")["retain"][:RETAIN]}
    trainer = make_trainer(paper("ssd", alpha=1.5, lam=0.5), "resnet", tmp_path, dtype="float64", data=sets)
    plain = Plain(trainer, train=False)
    trainer.train()
    squares = {
        name: [
            torch.stack(parts)
            for parts in zip(
                *([g.square() for g in plain.gradient(plain.loss([Draw(name, name, i, 0)]))] for i in range(size)),
                strict=True,
            )
        ]
        for name, size in (("forget", FORGET), ("retain", RETAIN))
    }
    dampened = 0
    found = dict(trainer.model.named_parameters())
    for (name, p), f, r in zip(plain.model.named_parameters(), squares["forget"], squares["retain"], strict=True):
        i_f, i_d = f.mean(0), torch.cat([f, r]).mean(0)
        chosen = i_f > 1.5 * i_d
        expected = torch.where(chosen, p * (0.5 * i_d / i_f).clamp(max=1), p)
        assert (found[name] - expected).norm() <= 1e-6 * p.norm() + 1e-12, name
        dampened += chosen.sum().item()
    assert dampened > 100 and trainer.method.report["dampened"] == dampened
