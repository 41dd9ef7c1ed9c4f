"""HAMU: hardness-aware multi-objective unlearning (ICML 2026)."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UnlearningError
from ..models.weights import cut_as
from ..tasks.base import Task
from .base import TASKS, MethodInfo, Paper
from .gradients import Gradient, blocks, combination, combine_, dots
from .repair import Repair, RepairConfig

logger = logging.getLogger(__name__)

LOGGED = (
    "kappa", "cosine", "hardness01", "unavoidable", "infeasible", "unavoidable_cost", "slack", "asked", "c",
    "predicted_forget", "predicted_retain",
)  # fmt: skip
COLLINEAR = 1e-5  # ‖g_r⊥‖ / ‖g_r‖ below which float32 knows no direction across g_f


@dataclass(frozen=True)
class Hardness:
    """How much the two objectives of a step are at odds, and what the step does about it.

    Attributes:
        kappa: Σ g_r·g_f over blocks; positive is hard.
        cosine: cos θ between the whole gradients; `hardness01` is (1 + cos θ)/2.
        unavoidable: every step that meets the quota raises the retain loss, to first order (for variant u: every step
            that meets it lowers the forget loss).
        infeasible: no step inside the radius meets the quota; never together with `unavoidable`.
        unavoidable_cost: max(0, cos(θ + ψ)), the price in [0, 1] that is left at the optimum (ours).
        slack: what could be gained at no cost, Σ G_i, minus the quota Q.
        shortfall: how much of the quota is out of reach.
        asked: Q.
        reachable: η·S, the largest gain inside the radius.
        c: Q/(η·S), the share of it that is asked for.
        branches: how many blocks are direct, rectified, collinear, skipped.
        predicted_forget, predicted_retain: first-order changes of both losses by the update.
    """

    kappa: float
    cosine: float
    unavoidable: bool
    infeasible: bool
    unavoidable_cost: float
    slack: float
    shortfall: float
    asked: float
    reachable: float
    c: float
    branches: dict[str, int]
    predicted_forget: float
    predicted_retain: float

    @property
    def hardness01(self) -> float:
        return (1 + self.cosine) / 2


def hamu_update(
    retain_grads: Gradient,
    forget_grads: Gradient,
    *,
    lr: float,
    ratio: float,
    variant: Literal["q", "u"] = "q",
    groups: list[list[int]] | None = None,
    on_infeasible: Literal["cap", "skip", "stop"] = "stop",
    quota: Literal["norm_product", "uniform"] = "norm_product",
    quota_scale: Literal["absolute", "relative"] = "absolute",
    radius: Literal["retain", "unit"] = "retain",
) -> tuple[Gradient, Hardness]:
    """The change Δ of the weights, to be added, and how hard it was.

    In every block i, with R_i = η‖g_r‖ and quotas Q_i that sum to Q,

        min g_r·Δ   such that   g_f·Δ ≥ Q_i,  ‖Δ‖ ≤ R_i

    has a closed form in unit vectors, with c = Q_i/(R_i‖g_f‖) (for Q_i ∝ ‖g_r‖‖g_f‖ the same in all blocks):

        cos θ ≤ −c:  Δ = −η g_r                                       plain descent gains enough
        otherwise:   Δ = η‖g_r‖ (c·ĝ_f − √(1 − c²)·ĝ_r⊥),   ĝ_r⊥ = (ĝ_r − cos θ·ĝ_f)/sin θ

    Gradients are those of the losses, neither is negated.

    Args:
        lr: η.
        ratio: Q/η, or with `quota_scale="relative"` c itself: Q = ratio·η·S, where S = Σ‖g_r‖‖g_f‖.
        variant: `"u"` swaps the roles: the most forgetting such that the retain loss falls by U.
        groups: lists of indices of the tensors that form one block; by default each tensor is one.
        on_infeasible: what to do if Q is out of reach: nothing (`stop` and `skip`), or all that the radius allows (`cap`).
        quota: Q_i ∝ ‖g_r‖‖g_f‖, or the same in all blocks.
        radius: R_i = η‖g_r‖, or `unit`: that over the length of g_r in all blocks, so that a step with no block left out is η long.
    """
    groups = groups or [[i] for i in range(len(retain_grads))]
    if sorted(i for group in groups for i in group) != [*range(len(retain_grads))]:
        raise UnlearningError(f"groups is {groups}; expected each of the {len(retain_grads)} tensors in one group.")
    coefficients, hardness = solve(
        retain_grads, forget_grads, lr, ratio, variant, groups, on_infeasible, quota, quota_scale, radius
    )
    return combine_(list(retain_grads), forget_grads, groups, coefficients.tolist()), hardness


def solve(
    retain: Gradient,
    forget: Gradient,
    lr: float,
    ratio: float,
    variant: str,
    groups: list[list[int]],
    on_infeasible: str,
    quota: str,
    quota_scale: str,
    radius: str,
) -> tuple[Tensor, Hardness]:
    """(a, b) of every block, Δ = a·g_r + b·g_f, from three inner products a block."""
    products = torch.stack([dots(retain, retain), dots(forget, forget), dots(retain, forget)]).double().cpu()
    rr, ff, kappa = torch.stack([products[:, group].sum(dim=1) for group in groups], dim=1)
    r, f = rr.sqrt(), ff.sqrt()
    # Where both are rounding alone, as for the keys' bias, to which attention is invariant, their angle means nothing.
    noise = 10 * torch.finfo(torch.promote_types(retain[0].dtype, torch.float32)).eps
    alive = r * f > noise**2 * r.norm() * f.norm()
    cosine = torch.where(alive, kappa / torch.where(alive, r * f, 1.0), 0.0).clamp(-1, 1)
    sine = _sines(retain, forget, groups, cosine, r, f)
    if variant == "u":  # the same problem for (−g_f, −g_r): κ, θ and ‖g_r‖‖g_f‖ stay as they are
        r, f = f, r

    per_length = 1 / (r.norm().item() or 1.0) if radius == "unit" else 1.0  # R_i/(η‖g_r‖)
    reach = per_length * r * f  # R_i‖g_f‖/η
    total = reach.sum().item()
    asked = ratio * total if quota_scale == "relative" else ratio  # Q/η
    shares = reach / (total or 1.0) if quota == "norm_product" else alive.double() / max(1, int(alive.sum()))
    quotas = asked * shares
    c = torch.where(alive, quotas / torch.where(alive, reach, 1.0), 0.0)
    infeasible = asked > 0 and (total == 0 or bool((c > 1 + 1e-12).any()))
    shortfall = (quotas - reach).clamp(min=0).sum().item() if total else asked
    c = c.clamp(max=1.0)

    moving = r > 0
    direct = moving & ((cosine <= -c) | ~alive)
    collinear = moving & ~direct & (sine == 0)
    rectified = moving & ~direct & ~collinear
    s = (1 - c.square()).sqrt()
    safe = torch.where(rectified, sine, 1.0)
    scale = torch.where(alive, r / torch.where(alive, f, 1.0), 0.0)
    a = torch.where(rectified, -s / safe, -direct.double())
    b = torch.where(rectified, scale * (c + s * cosine / safe), scale * c * collinear)
    if infeasible and on_infeasible != "cap":
        a, b = torch.zeros_like(a), torch.zeros_like(b)

    free = reach * torch.where(kappa <= 0, 1.0, sine)  # G_i/η: the gain of a block that costs nothing
    cost = (torch.arccos(cosine) + torch.arccos(c)).clamp(max=math.pi).cos()
    if variant == "u":
        a, b = -b, -a
    a, b = lr * per_length * a, lr * per_length * b
    length = math.sqrt(rr.sum().item() * ff.sum().item())
    counts = {"direct": direct, "rectified": rectified, "collinear": collinear, "skipped": ~moving}
    return torch.stack([a, b], dim=1), Hardness(
        kappa=kappa.sum().item(),
        cosine=max(-1.0, min(1.0, kappa.sum().item() / length)) if length else 0.0,
        unavoidable=not infeasible and asked > free.sum().item(),
        infeasible=infeasible,
        unavoidable_cost=max(0.0, (cost * r.square()).sum().item() / (r.square().sum().item() or 1.0)),
        slack=lr * (free.sum().item() - asked),
        shortfall=lr * shortfall,
        asked=lr * asked,
        reachable=lr * total,
        c=asked / total if total else 0.0,
        branches={name: int(mask.sum()) for name, mask in counts.items()},
        predicted_forget=(a * kappa + b * ff).sum().item(),
        predicted_retain=(a * rr + b * kappa).sum().item(),
    )


def _sines(retain: Gradient, forget: Gradient, groups: list, cosine: Tensor, r: Tensor, f: Tensor) -> Tensor:
    """sin θ of every block, 0 where it is too small to know a direction.

    1 − cos² has no digits left where the gradients are nearly parallel; there the rest of ĝ_r across ĝ_f is measured.
    """
    sine = (1 - cosine.square()).clamp(min=0).sqrt()
    for i in torch.nonzero((sine < 0.1) & (r > 0) & (f > 0)).flatten().tolist():
        weights = 1 / r[i].item(), -cosine[i].item() / f[i].item()
        rest = [combination(weights[0], retain[j], weights[1], forget[j]) for j in groups[i]]
        sine[i] = dots(rest, rest).sum().double().sqrt().item()
    return torch.where(sine <= COLLINEAR, 0.0, sine)


@dataclass
class HamuConfig(RepairConfig):
    """HAMU. Ours, not the paper's: the bounded objective, `radius="unit"`, the ratios, `quota_scale="relative"`,
    `on_infeasible="cap"`, `stop_patience`, `stop_slack`, `until`, `then` and blocks by module; `paper()` has none of them."""

    method = "hamu"

    variant: Literal["q", "u"] = field(
        default="q", metadata={"help": "q: a quota for forgetting, then best for retaining; u: the other way round"}
    )
    ratio: float | None = field(
        default=None,
        metadata={
            "help": "the quota: Q/η, or the share c of what is reachable; null: 0.3 of a classifier, 0.1 of a language model (ours)"
        },
    )
    quota_scale: Literal["relative", "absolute"] = field(
        default="relative",
        metadata={
            "help": "relative: Q = ratio·η·Σ‖g_r‖‖g_f‖, in every state of the model the same share of what is reachable "
            "(ours); absolute: Q = ratio·η (the paper)"
        },
    )
    radius: Literal["unit", "retain"] | None = field(
        default=None,
        metadata={
            "help": "how far a step may go: retain: η times the length of the retain gradient (the paper), which is next to "
            "nothing where the retained samples are fitted; unit: η in all, shared out over blocks in the same way; null: unit of "
            "a classifier, retain of a language model (ours)"
        },
    )
    block: Literal["tensor", "module", "global"] = field(
        default="tensor",
        metadata={"help": "what is solved by itself: each tensor (the paper), module, or all at once"},
    )
    quota: Literal["norm_product", "uniform"] = field(
        default="norm_product", metadata={"help": "how the quota is shared out over blocks"}
    )
    on_infeasible: Literal["cap", "skip", "stop"] = field(
        default="cap",
        metadata={
            "help": "when the quota is out of reach: gain what can be gained (ours), leave out the step, or end (the paper)"
        },
    )
    stop: Literal["log", "stop"] = field(
        default="log", metadata={"help": "when retain damage is unavoidable: only log it (the paper), or end the run"}
    )
    stop_patience: int = field(
        default=3,
        metadata={
            "help": "such steps in a row, or infeasible ones, that end it; weights go back to before them (ours)"
        },
    )
    stop_slack: float = field(
        default=0.0, metadata={"help": "counts as unavoidable when the slack is below this share of the quota (ours)"}
    )
    realised: bool = field(
        default=True,
        metadata={
            "help": "log how both losses really changed, at two forward passes a step, or four with dropout or BatchNorm that "
            "is not frozen"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        top = 1.0 if self.quota_scale == "relative" else math.inf
        is_share = self.ratio is None or 0 <= self.ratio <= top
        is_told = self.quota_scale == "relative" or self.ratio is not None
        self.check("ratio", is_told, "a number, since an absolute quota has no default")
        self.check("ratio", is_share, "a share in [0, 1], or a Q/η of 0 or more with an absolute quota")
        self.check("stop_patience", self.stop_patience >= 1, "at least 1")
        self.check("stop_slack", self.stop_slack >= 0, "0 or more")

    @classmethod
    def paper(cls, setting: str = "resnet20-cifar10") -> "HamuConfig":
        """The paper's values: `resnet20-cifar10`, or `llama-tofu` (LoRA of rank 8 on all projections; its dropout of 0.05 is
        left out, since two passes of a step would see different masks)."""
        settings = ("resnet20-cifar10", "llama-tofu")
        if setting not in settings:
            raise UnlearningError(f"HAMU's paper has no setting {setting!r}; expected one of {', '.join(settings)}.")
        batch_size, epochs = (5000, 25) if setting == "resnet20-cifar10" else (50, 10)
        arguments = {"learning_rate": 1e-4, "num_train_epochs": epochs, "per_device_train_batch_size": batch_size}
        arguments |= {"lr_scheduler_type": "constant", "max_grad_norm": 1.0, "freeze_batchnorm": True, "optim": "sgd"}
        ours: dict[str, Any] = {
            "objective": "ce",
            "radius": "retain",
            "quota_scale": "absolute",
            "on_infeasible": "stop",
        }
        return cls(ratio=0.5, stop_patience=1, until="end", then="end", arguments=arguments, **ours)


class Hamu(Repair):
    """Each step gains a quota of forget loss and, under it, lowers the retain loss as much as the radius allows.

    Both gradients are clipped to norm 1 by themselves; `hamu_update` gives the change of the weights, which plain SGD
    makes exactly. The learning rate only scales the step: Q/η stays what it is under any schedule. BatchNorm statistics
    are frozen. Every step logs how hard it is.
    """

    info = MethodInfo(
        name="hamu",
        kind="gradient",
        summary="raises the forget loss by a quota in every step, at the least cost to the retained samples",
        needs=("forget", "retain"),
        applies_to=TASKS,
        cost=53,
        paper=Paper(
            title="How Hard Can It Be? Hardness-Aware Multi-Objective Unlearning",
            arxiv="2606.02119",
            bibtex="@inproceedings{chen2026hamu,\n  title={How Hard Can It Be? Hardness-Aware Multi-Objective "
            "Unlearning},\n  author={Chen, Jiangwei and Niu, Xinyuan and Sim, Rachael Hwee Ling and Liu, Zhengyuan and "
            "Chen, Nancy F. and Low, Bryan Kian Hsiang},\n  booktitle={ICML},\n  year={2026}\n}",
        ),
    )
    config_class = HamuConfig
    config: HamuConfig
    radius, ratio = "unit", 0.3

    def learn_task(self, task: Task) -> None:
        super().learn_task(task)
        config = self.config
        radius, ratio = ("unit", 0.3) if task.right_or_wrong else ("retain", 0.1)
        self.radius = config.radius or radius
        self.ratio = ratio if config.ratio is None else config.ratio

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        unit = 0.02 if family == "convolutional" else 0.06
        return super().arguments(family, width) | {"learning_rate": unit if self.radius == "unit" else 0.03}

    def prepare(self, context) -> None:
        super().prepare(context)
        self.flags, self.before, self.ended = 0, [], False
        self.seen: list = []  # the micro-batches of this step
        self.groups = blocks(context.parameter_names, self.config.block)
        self.is_same_in_training = self.config.realised and context.is_same_in_training(self.loss)

    def losses(self, model, batch):
        for name, loss in super().losses(model, batch):
            if self.config.realised:
                before = loss if self.is_same_in_training else self._in_eval_mode(name, batch[name])
                self.context.log_step({f"hamu_realised_{name}": -before})  # `on_step_end` adds what it is then
            yield name, loss
        if self.config.realised:
            self.seen.append(batch)

    def combine(self, gradients: dict[str, Gradient]) -> Gradient | None:
        config, retain, forget = self.config, gradients["retain"], gradients["forget"]
        asked = (self.ratio, config.variant) if self.asks else (0.0, "q")  # a repair is of the retained side
        how = self.groups, config.on_infeasible, config.quota, config.quota_scale
        coefficients, hardness = solve(retain, forget, 1.0, *asked, *how, self.radius)
        self._log(hardness, asked[1])
        if hardness.infeasible and config.on_infeasible == "stop":
            return self._end(explain(hardness, config, self.ratio))
        if hardness.infeasible or hardness.unavoidable:
            self._say(explain(hardness, config, self.ratio))
        flagged = hardness.infeasible or hardness.slack < config.stop_slack * hardness.asked
        if config.stop == "stop" and self._is_over(hardness.unavoidable or flagged):
            return self._end(f"Ended after {self.flags} harmful steps in a row, with the weights from before them.")
        return combine_(retain, forget, self.groups, (-coefficients).tolist())

    def _is_over(self, harmful: bool) -> bool:
        """Counts harmful steps; with the last one, puts back the weights from before the first."""
        if not harmful:
            self.flags, self.before = 0, []
            return False
        parameters = self.context.parameters
        if self.flags == 0:
            self.before = [p.detach().clone(memory_format=torch.contiguous_format) for p in parameters]
        self.flags += 1
        if self.flags < self.config.stop_patience:
            return False
        for parameter, before in zip(parameters, self.before, strict=True):
            parameter.data.copy_(before)
        return True

    def _end(self, why: str) -> None:
        self.ended = True
        self._say(why)

    def _say(self, sentence: str) -> None:
        """Say it once to the user, now and with the result."""
        kind = sentence.split(":")[0]
        if not any(note.startswith(kind) for note in self.notes):
            self.notes.append(sentence)
            logger.warning(sentence)

    def _log(self, hardness: Hardness, variant: str) -> None:
        values = {name: getattr(hardness, name) for name in LOGGED} | hardness.branches
        gained = "forget" if variant == "q" else "retain"
        for name, of in (("slack", gained), ("predicted_forget", "forget"), ("predicted_retain", "retain")):
            # In the units of the losses: of the coming step, and of gradients as long as they were before clipping.
            clipped = self.context.clipped[of]  # 0 of a gradient whose norm is no number any more
            values[name] = values[name] * self.context.learning_rate / torch.where(clipped > 0, clipped, math.nan)
        self.context.log_step(
            {f"hamu_{name}": torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()}
        )

    def on_step_end(self, step: int) -> bool | None:
        for batch in self.seen:
            self.context.log_step(
                {f"hamu_realised_{name}": self._in_eval_mode(name, batch[name]) for name in ("retain", "forget")}
            )
        self.seen = []
        return False if self.ended else super().on_step_end(step)

    def _in_eval_mode(self, name: str, part) -> Tensor:
        loss = self.loss if name == "retain" else self.forget_loss
        with torch.no_grad(), self.context.evaluating():
            return loss(self.context.model, part)

    def state_dict(self) -> dict[str, Tensor]:
        before = {f"before.{i}": tensor for i, tensor in enumerate(self.before)}
        return super().state_dict() | {"flags": torch.tensor(self.flags)} | before

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.flags = int(state["flags"])
        parameters = self.context.parameters if "before.0" in state else []
        self.before = [cut_as(state[f"before.{i}"], p) for i, p in enumerate(parameters)]


def explain(hardness: Hardness, config: HamuConfig, ratio: float) -> str:
    """What a step that cannot do what it is asked for means, and what to do about it."""
    gain, price = ("forget", "retain") if config.variant == "q" else ("retain", "forget")
    if hardness.infeasible:
        times = f"{hardness.c:.3g} times what" if hardness.reachable else "a gain where nothing"
        does = {"cap": "gains what it can", "skip": "is left out", "stop": "ends the run"}[config.on_infeasible]
        advice = (
            'use quota_scale="relative", which asks for a share of what is reachable'
            if config.quota_scale == "absolute"
            else 'use quota="norm_product", which asks of every block what it can reach'
        )
        where = "in a step" if config.quota == "norm_product" else "in a step, shared out evenly over blocks"
        return (
            f"The quota is out of reach: ratio {ratio:g} asks {times} is reachable {where}, which {does}. Lower "
            f"ratio, or {advice}."
        )
    damage = "raises the loss of retained samples" if config.variant == "q" else "lowers the loss of forget samples"
    return (
        f"Damage is unavoidable: every step that meets the {gain} quota {damage} too (hardness {hardness.hardness01:.3f}; 1 "
        f"is the same gradient). Forget and retained samples are too much alike: move those that say the same to one side, "
        f'ask for less (ratio {ratio:g}), or end before the {price} side pays for it with stop="stop".'
    )
