"""DAMP: class unlearning by depth-aware removal of forget-specific directions (2026)."""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel, gather_object
from peft import LoraConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UnlearningError
from ..gradients import project
from ..methods.base import CLASSIFICATION, Method, MethodConfig, MethodInfo, Paper
from .checks import check_operators, check_weights, ready
from .lora import Factors, load_lora, to_lora
from .operators import Operator, Plan, Reading, find_plan
from .probe import probe_accuracy
from .statistics import Statistics, collect

logger = logging.getLogger(__name__)

EXACT = 1e-10  # what float64 may lose on the way, relative
HIGHEST = 5.0  # of α in the head: there, what varies along a direction within the retained classes is 4 times as large
LEFT = 0.01  # of the forget samples may still be given a forgotten class
EASED = (1.0, 0.5, 0.0)  # of α below the head
EXAMPLES = 200  # samples of each side that are seen once more, through the edited layers below the head
PARALLEL = 1e-3  # residuals whose angle is about this small are one direction, and noise


def centre(retain_means: Tensor, span: str) -> Tensor:
    """m: 0 for the `linear` span (the paper), mean_c μ_c for the `affine` one (ours)."""
    return retain_means.mean(dim=0) if span == "affine" else torch.zeros_like(retain_means[0])


def residuals(
    forget_means: Tensor, retain_means: Tensor, span: str = "linear", rcond: float | None = None
) -> tuple[Tensor, Tensor]:
    """d_f = (I − UUᵀ)(μ_f − m), a row for each μ_f, and ‖d_f‖ / ‖μ_f − m‖; U: a basis of span{μ_c − m}, σ > rcond·σ₁."""
    m = centre(retain_means, span)
    x = forget_means - m
    d = project(x, principal(retain_means - m, rcond))
    enough = len(retain_means) >= x.shape[1]
    if enough and len(principal(retain_means - m)) == x.shape[1]:  # they span everything, if only in small directions
        d = torch.zeros_like(x)
    return d, d.norm(dim=1) / x.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)


def forget_directions(
    forget_means: Tensor,
    retain_means: Tensor,
    span: str = "linear",
    rcond: float | None = None,
    tau: float = 0.02,
) -> Tensor:
    """Q [d, r]: an orthonormal basis of q_f = d_f / ‖d_f‖, without those of which ‖d_f‖ / ‖μ_f − m‖ < τ.

    By SVD, where the paper has QR, since QR makes a unit column of noise from two residuals that are nearly parallel.

    >>> forget_directions(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])).abs()
    tensor([[0.],
            [1.]])
    """
    return _directions(*residuals(forget_means, retain_means, span, rcond), tau)


def _directions(d: Tensor, relative: Tensor, tau: float) -> Tensor:
    d = d[(relative >= tau) & (relative > 0)]
    return principal(d / d.norm(dim=1, keepdim=True), PARALLEL).T


def principal(rows: Tensor, rcond: float | None = None) -> Tensor:
    """An orthonormal basis [r, d]: the right singular vectors with σ > rcond·σ₁, or above rounding."""
    if len(rows) == 0:
        return rows
    least = max(rcond or 0.0, torch.finfo(rows.dtype).eps * max(rows.shape))
    _, sigma, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[sigma > least * sigma[0]]


def remove_directions(weight: Tensor, directions: Tensor, alpha: float) -> Tensor:
    """W' = W(I − αQQᵀ) on axis 1, the inputs.

    Of a kernel [out, C, k, k], Q [C, r] is removed at every tap and Q [C·k·k, r] from whole patches.

    >>> remove_directions(torch.tensor([[2.0, 3.0]]), torch.tensor([[0.0], [1.0]]), 0.5)
    tensor([[2.0000, 1.5000]])
    """
    w = weight.reshape(len(weight), len(directions), -1)
    q = directions.to(weight.dtype)
    return (w - alpha * (q @ (q.T @ w))).view_as(weight)


def affine_bias(weight: Tensor, directions: Tensor, alpha: float, m: Tensor) -> Tensor:
    """b' − b = αWQ(Qᵀm), of a kernel summed over its taps: with it, what is read is changed by −αQQᵀ(z − m)."""
    w = weight.reshape(len(weight), len(directions), -1).sum(dim=2)
    return alpha * (w @ directions @ (directions.T @ m))


def depth_coefficient(probe_accuracy: float, stage: int, stages: int) -> float:
    """α_ℓ = min{1, max{0, 2a_ℓ − 1}} · ℓ/L

    >>> depth_coefficient(0.75, stage=5, stages=5)
    0.5
    """
    return min(1.0, max(0.0, 2 * probe_accuracy - 1)) * stage / stages


def overshoot(
    forget: tuple[Tensor, Tensor], retain: tuple[Tensor, Tensor], forgotten: list[int], least: float
) -> float:
    """The least α, from `least` to 5, that leaves a forgotten class in front for at most 1 % of the forget samples, and above
    the average of the retained classes for at most half of them, which is the margin that unseen samples need (ours).

    Both sides are (ℓ, v), a row for each sample: its logits are ℓ(α) = ℓ − αv. Where no α does that, the one that leaves the
    fewest. Only those α count that change the class of at most 1 % more of the retained samples than `least` does.

    >>> logits, removed = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> overshoot((logits, removed), (logits.flip(1), 0 * removed), [0], least=1.0)
    2.05
    """

    (logits, removed), (retain_logits, retain_removed) = forget, retain
    classes, given = torch.tensor(forgotten), retain_logits.argmax(dim=1)
    retained = [c for c in range(logits.shape[1]) if c not in forgotten]

    def changed(alpha: float) -> float:
        return ((retain_logits - alpha * retain_removed).argmax(dim=1) != given).double().mean().item()

    def remaining(alpha: float) -> tuple[float, float]:
        """The shares of forget samples with a forgotten class in front, and above the average of the retained ones."""
        now = logits - alpha * removed
        above = now[:, forgotten].amax(dim=1) > now[:, retained].mean(dim=1)
        return torch.isin(now.argmax(dim=1), classes).double().mean().item(), above.double().mean().item()

    most, best = changed(least) + 0.01, (math.inf, math.inf, least)
    for alpha in (least, *(i / 20 for i in range(math.ceil(20 * least), round(20 * HIGHEST) + 1))):
        if changed(alpha) > most:
            continue
        left, above = remaining(alpha)
        if left <= LEFT and above <= 0.5:
            return alpha
        best = min(best, (left, above, alpha))
    return best[2]


@dataclass
class DampConfig(MethodConfig):
    """DAMP. Beyond the paper: the affine span, the balanced probe, and whatever sets α by hand."""

    method = "damp"

    span: Literal["auto", "linear", "affine"] = field(
        default="auto",
        metadata={
            "help": "what retained means span: a linear space (the paper), an affine one, whose edit changes biases too (ours), "
            "or affine where the edited head still gives the forgotten class (auto)"
        },
    )
    stages: int | list[list[str]] = field(
        default=5, metadata={"help": "L, or the names of the operators that read the activation of each stage"}
    )
    readers: Literal["next", "all_residual"] = field(
        default="next",
        metadata={"help": "which operators are edited: those right behind a stage, or all up to the next one"},
    )
    conv: Literal["channel", "unfold"] = field(
        default="unfold",
        metadata={"help": "what is edited of convolutions: whole patches (unfold), or channels, the same at each tap"},
    )
    pooling: Literal["auto", "head"] = field(
        default="auto",
        metadata={"help": "tokens of the inner stages: their mean, or those that the head reads (head)"},
    )
    probe: Literal["ridge", "logistic"] = field(default="ridge", metadata={"help": "how the probe is fitted"})
    balanced: bool = field(
        default=True,
        metadata={"help": "balanced accuracy of the probe (ours), or the raw one, high when few samples must go"},
    )
    alpha: float | None = field(
        default=None,
        metadata={"help": "α of every stage, without a probe (ours); null: by depth and probe (the paper)"},
    )
    force_head_alpha: float | None = field(
        default=None,
        metadata={"help": "α of the head, such as 1, whatever its probe says and without overshoot (ours)"},
    )
    overshoot: bool = field(
        default=True,
        metadata={
            "help": "raise α of the head, above 1 if need be, where more than 1 % of the forget samples would still be given a "
            "forgotten class, as far as no more than 1 % of the retained samples change theirs (ours)"
        },
    )
    ease: bool = field(
        default=True,
        metadata={
            "help": "take half or nothing of α below the head where that alone leaves at most 1 % of the forget samples "
            "with a forgotten class, or half as many: what these layers make of them may be out of the head's reach (ours)"
        },
    )
    tau: float = field(
        default=0.02, metadata={"help": "directions are dropped where ‖d_f‖/‖μ_f‖ is less: noise, not the class"}
    )
    rcond: float = field(
        default=1e-3, metadata={"help": "singular values of the retained means below this share are noise"}
    )
    probe_samples: int = field(default=4000, metadata={"help": "samples of the probe, both sides together"})

    def __post_init__(self):
        self.check("span", self.span in ("auto", "linear", "affine"), "auto, linear or affine")
        by_hand = isinstance(self.stages, list) and all(isinstance(s, list) and s for s in self.stages)
        ok = self.stages >= 1 if isinstance(self.stages, int) else by_hand and len(self.stages) > 0
        self.check("stages", ok, "a number of at least 1, or a list with a list of names for each stage")
        self.check("readers", self.readers in ("next", "all_residual"), "next or all_residual")
        self.check("conv", self.conv in ("channel", "unfold"), "channel or unfold")
        self.check("pooling", self.pooling in ("auto", "head"), "auto or head")
        self.check("probe", self.probe in ("ridge", "logistic"), "ridge or logistic")
        self.check("alpha", self.alpha is None or 0 <= self.alpha <= 1, "a share in [0, 1], or null")
        forced = self.force_head_alpha
        self.check(
            "force_head_alpha", forced is None or 0 <= forced <= HIGHEST, f"a number in [0, {HIGHEST}], or null"
        )
        self.check("tau", 0 <= self.tau < 1, "a share in [0, 1)")
        self.check("rcond", 0 <= self.rcond < 1, "a share in [0, 1)")
        self.check("probe_samples", self.probe_samples >= 20, "at least 20")

    @classmethod
    def paper(cls) -> "DampConfig":
        """The paper's algorithm: the linear span, fixed biases, and the probe's raw accuracy. It does not say how a
        convolution is edited: here by channels."""
        return cls(span="linear", conv="channel", balanced=False, overshoot=False, ease=False)


@dataclass(frozen=True)
class Removal:
    """What is taken out of one activation: z ↦ z − αQQᵀ(z − m)."""

    reading: Reading
    span: str
    alpha: float
    directions: Tensor  # Q
    m: Tensor
    relative: dict[int, float]  # ‖d_f‖ / ‖μ_f − m‖ of every forget class
    has_bias: bool  # whether there is one to change behind each of its operators
    raised_from: float | None = None  # what α would be without `overshoot`


class Edit:
    """One operator's W, b and W', b' in float64 on the CPU, as [out, in, ...]; `shift` is b' − b."""

    def __init__(self, operator: Operator, removal: Removal):
        self.operator, self.removal = operator, removal

    @property
    def weight(self) -> Tensor:
        return _out_by_in(self.operator.module.weight, self.operator.module).detach().cpu().double()

    @property
    def new_weight(self) -> Tensor:
        return remove_directions(self.weight, self.removal.directions, self.removal.alpha)

    @property
    def shift(self) -> Tensor:
        return affine_bias(self.weight, self.removal.directions, self.removal.alpha, self.removal.m)

    def logits(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of a head, for the rows of z, before and after."""
        shift, bias = self.shift, self.operator.module.bias
        bias = torch.zeros_like(shift) if bias is None else bias.detach().cpu().double()
        old, new = (w.reshape(len(w), z.shape[1], -1).sum(dim=2) for w in (self.weight, self.new_weight))
        return z @ old.T + bias, z @ new.T + bias + shift

    def verify(self, forget_means: Tensor, retain_means: Tensor, rcond: float) -> dict[str, float]:
        """What must hold of every edit, as relative deviations; refuses an edit of which it does not hold.

        M are the retained means less m. Where rcond leaves small directions out of their span, it bounds the deviation.
        `rounding` is what the weight's own precision will take, and what nothing can be done about.
        """
        q, alpha, m = self.removal.directions, self.removal.alpha, self.removal.m
        x, weight, new_weight = retain_means - m, self.weight, self.new_weight
        old, new = (w.reshape(len(w), len(q), -1).transpose(1, 2).flatten(0, 1) for w in (weight, new_weight))
        old_sum, new_sum = (w.reshape(len(w), len(q), -1).sum(dim=2) for w in (weight, new_weight))
        wq, size, length, mu = old @ q, old.norm(), x.norm(), forget_means
        removed = alpha * (mu - m) @ q @ q.T
        slack = max(1.0, alpha) * rcond * wq.norm() + EXACT * size
        found = {  # what is found, the most that it may be, and what it is relative to
            "QᵀQ = I": ((q.T @ q - torch.eye(q.shape[1])).abs().max(), EXACT, 1.0),
            "QᵀM = 0": (torch.linalg.matrix_norm(x @ q, 2), (rcond + EXACT) * length, length),
            "W'M = WM": (((new - old) @ x.T).norm(), slack * length * len(x) ** 0.5, size * length),
            "W'Q = (1 - α)WQ": ((new @ q - (1 - alpha) * wq).norm(), EXACT * size, size),
            "W'u = Wu for u ⟂ Q": ((new - old - (new - old) @ q @ q.T).norm(), EXACT * size, size),
            "W'(μ_f - m) = W(μ_f - m - αQQᵀ(μ_f - m))": (
                ((new - old) @ (mu - m).T + old @ removed.T).norm(),
                EXACT * size * mu.norm(),
                size * mu.norm(),
            ),
        }
        if self.removal.span == "affine":
            moved, scale = (new_sum - old_sum) @ m + self.shift, old_sum.norm() * m.norm()
            found["W'm + b' = Wm + b"] = (moved.norm(), EXACT * scale, scale)
        for rule, (value, most, _) in found.items():
            if not value <= most:
                raise UnlearningError(
                    f"The edit of {self.operator.name} breaks {rule} by {value:.1e}, where {most:.1e} is allowed, and nothing "
                    "was changed; check its weights and the data for huge values."
                )
        deviations = {rule: float(value / max(unit, 1e-300)) for rule, (value, _, unit) in found.items()}
        rounded = new_weight.to(self.operator.module.weight.dtype).double()
        return deviations | {"rounding": float((rounded - new_weight).norm() / size)}

    def changes(self) -> list[tuple[Tensor, Tensor]]:
        """(tensor of the model, its new values). A convolution without bias leaves that to the BatchNorm behind it."""
        module, norm = self.operator.module, self.operator.norm
        changes = [(module.weight, _out_by_in(self.new_weight, module))]
        if self.removal.span == "linear":
            return changes
        if module.bias is not None:
            return [*changes, (module.bias, module.bias.detach().cpu().double() + self.shift)]
        gamma, beta, variance = (t.detach().cpu().double() for t in (norm.weight, norm.bias, norm.running_var))
        return [*changes, (norm.bias, beta + gamma * self.shift / (variance + norm.eps).sqrt())]

    def lora(self) -> dict[str, Tensor]:
        """W' − W = BA: A = Qᵀ and B = −αWQ; of a kernel edited by channels, A has one tap of one direction in each row."""
        w, q = self.weight.reshape(len(self.weight), len(self.removal.directions), -1), self.removal.directions
        taps, shape = w.shape[2], self.weight.shape
        a = torch.einsum("cr,tu->rtcu", q, torch.eye(taps, dtype=q.dtype)).reshape(-1, *shape[1:])
        b = -self.removal.alpha * torch.einsum("oct,cr->ort", w, q).reshape(len(w), -1, *[1] * (len(shape) - 2))
        return {"A": a, "B": b, "bias": self.shift}


def _out_by_in(weight: Tensor, module: nn.Module) -> Tensor:
    return weight.T if isinstance(module, Conv1D) else weight


def damp_edit(
    model: nn.Module,
    forget_loader: Iterable[Mapping],
    retain_loader: Iterable[Mapping],
    *,
    config: DampConfig | None = None,
    stages: int | list[list[str]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Edit a classifier in place so that it forgets the classes of `forget_loader`; the report of what was done.

    One pass over both loaders, nothing is trained. Everything is computed before anything is changed: the statistics of a
    stage are those that an edit from deep to shallow would find, as only deeper stages are edited by then.

    Args:
        forget_loader: batches of samples of the classes to forget, mappings with the model's inputs and `labels`; training
            samples, not augmented. Of several processes each gives its share. A `DataLoader` does, if that is all there is.
        retain_loader: the same of all other classes, a hundred samples of each being plenty.
        stages: instead of the config's.
    """
    report, edits = _edits(model, forget_loader, retain_loader, config or DampConfig(), stages, seed)
    _write([change for edit in edits for change in edit.changes()])
    return report


def damp_lora(
    model: nn.Module,
    forget_loader: Iterable[Mapping],
    retain_loader: Iterable[Mapping],
    *,
    config: DampConfig | None = None,
    stages: int | list[list[str]] | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], LoraConfig, Factors]:
    """The edit of `damp_edit` as a LoRA adapter, which leaves the model as it is: the report, and what `get_peft_model` and
    `load_lora` take."""
    report, edits = _edits(model, forget_loader, retain_loader, config or DampConfig(), stages, seed, as_adapter=True)
    factors = {edit.operator.name: edit.lora() for edit in edits}
    return report, to_lora(factors), factors


def _edits(
    model: nn.Module,
    forget_loader: Iterable[Mapping],
    retain_loader: Iterable[Mapping],
    config: DampConfig,
    stages: int | list[list[str]] | None,
    seed: int,
    as_adapter: bool = False,
) -> tuple[dict[str, Any], list[Edit]]:
    """The report, and the edits that are to be made."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    check_weights(model, "damp")
    example, retain_loader = _example(retain_loader, model)
    plan = find_plan(model, example, stages or config.stages, config.readers)
    if config.conv == "unfold":
        plan = dataclasses.replace(plan, readings=[one for reading in plan.readings for one in _by_patch(reading)])
    check_operators(model, plan, as_adapter)
    about = {"conv": config.conv, "pooling": config.pooling, "seed": seed}
    about["samples"] = config.probe_samples // 2 if config.alpha is None else 0
    pair = (forget_loader, retain_loader)
    forget, retain = (collect(model, plan, loader, examples=EXAMPLES, **about) for loader in pair)
    _check_classes(forget, retain, config)

    accuracies = _probe(forget, retain, config)
    alphas = [_alpha(*pair, plan.stages, config) for pair in zip(plan.readings, accuracies, strict=True)]
    removals, notes = _removals(plan, alphas, forget, retain, config, as_adapter)
    whole = tuple(_at_head(plan, side) for side in (forget, retain))
    removals, seen, left, why = _fitted(model, plan, removals, whole, config)
    notes += why
    head = _head(removals, whole[0], seen[0])
    edits = [_edits_of(removal) for removal in removals]
    rows = [
        _row(removal, accuracy, config.tau, [edit.verify(mu, means, config.rcond) for edit in of_reading])
        for removal, accuracy, of_reading, mu, means in zip(
            removals, accuracies, edits, forget.means, retain.means, strict=True
        )
    ]
    notes = [*plan.notes, *notes, *_explain(rows, head, left, {*forget.counts, *retain.counts}, removals, config)]
    for note in notes:
        logger.warning(note)
    report = {
        "stages": plan.stages,
        "forget_classes": {str(c): n for c, n in forget.counts.items()},
        "retain_classes": {str(c): n for c, n in retain.counts.items()},
        "readings": rows,
        "head": head,
        "left": left,
        "notes": notes,
    }
    return report, [edit for of_reading in edits for edit in of_reading]


def _probe(forget: Statistics, retain: Statistics, config: DampConfig) -> list[float | None]:
    """a_ℓ of every reading; None where α is given."""
    if config.alpha is not None:
        return [None] * len(forget.means)
    n_f, n_r = (sum(side.counts.values()) for side in (forget, retain))
    share = 0.5 if config.balanced else n_f / (n_f + n_r)
    pairs = zip(forget.samples, retain.samples, strict=True)
    return [probe_accuracy(*pair, share, config.probe) for pair in pairs]


def _alpha(reading: Reading, accuracy: float | None, stages: int, config: DampConfig) -> float:
    if reading.is_head and config.force_head_alpha is not None:
        return config.force_head_alpha
    return depth_coefficient(accuracy, reading.stage, stages) if config.alpha is None else config.alpha


def _removals(
    plan: Plan, alphas: list[float], forget: Statistics, retain: Statistics, config: DampConfig, as_adapter: bool
) -> tuple[list[Removal], list[str]]:
    """The removals, and notes. Affine ones only where biases can be changed."""
    holds = [all(_holds_bias(o, as_adapter) for o in reading.operators) for reading in plan.readings]
    if as_adapter:  # PEFT has biases in all layers of an adapter or in none, and merges them into biases only
        holds = [all(holds)] * len(holds)
    without = [reading.operators[0].name for reading, held in zip(plan.readings, holds, strict=True) if not held]
    if config.span == "affine" and without:
        raise UnlearningError(
            f"The affine span changes biases, and there is none behind {without[0]}; expected span='linear', or 'auto', which "
            "leaves such operators to the linear span."
        )

    def remove(span: str) -> list[Removal]:
        found = []
        each = zip(plan.readings, alphas, forget.means, retain.means, holds, strict=True)
        for reading, alpha, mu, means, held in each:
            span_here = span if held else "linear"
            d, relative = residuals(mu, means, span_here, config.rcond)
            q = _directions(d, relative, config.tau)
            relative = dict(zip(forget.counts, relative.tolist(), strict=True))
            found.append(Removal(reading, span_here, alpha, q, centre(means, span_here), relative, held))
        return found

    notes, at_head = [], _at_head(plan, forget)
    removals = remove("affine" if config.span == "affine" else "linear")
    if config.span == "auto" and any(holds) and (left := _still_given(_head(removals, at_head, at_head))):
        notes.append(
            f"Without the directions outside the linear span (the paper's) the head would still give a forgotten class for "
            f"{_classes(left)}, so the affine span was used (ours)."
        )
        if without:
            notes.append(f"There is no bias to change behind {', '.join(without)}: edited in the linear span.")
        removals = remove("affine")
    return removals, notes


def _by_patch(reading: Reading) -> list[Reading]:
    """Patches are of one convolution."""
    if any(isinstance(operator.module, nn.Conv2d) for operator in reading.operators):
        return [dataclasses.replace(reading, operators=[operator]) for operator in reading.operators]
    return [reading]


def _edits_of(removal: Removal) -> list[Edit]:
    return (
        [Edit(o, removal) for o in removal.reading.operators] if removal.alpha and removal.directions.numel() else []
    )


def _at_head(plan: Plan, side: Statistics) -> Statistics:
    """What the operators read that give the logits."""
    heads = [i for i, reading in enumerate(plan.readings) if reading.is_head]
    means, samples = ([column[i] for i in heads] for column in (side.means, side.samples))
    return dataclasses.replace(side, means=means, samples=samples)


def _behind_edits(
    model: nn.Module, plan: Plan, removals: list[Removal], sides: tuple[Statistics, ...], config: DampConfig
) -> tuple[Statistics, ...]:
    """The same of a few samples, once the layers below the head are edited: they change what the head reads."""
    edits = [edit for removal in removals if not removal.reading.is_head for edit in _edits_of(removal)]
    heads = dataclasses.replace(plan, readings=[reading for reading in plan.readings if reading.is_head])
    if not (edits and heads.readings):
        return sides
    about = {"conv": config.conv, "pooling": config.pooling, "samples": EXAMPLES}
    changes = [change for edit in edits for change in edit.changes()]
    kept = [tensor.detach().clone() for tensor, _ in changes]
    try:
        _write(changes)
        return tuple(collect(model, heads, side.batches(), **about) for side in sides)
    finally:
        _write([(tensor, values) for (tensor, _), values in zip(changes, kept, strict=True)])


def _fitted(
    model: nn.Module, plan: Plan, removals: list[Removal], whole: tuple[Statistics, ...], config: DampConfig
) -> tuple[list[Removal], tuple[Statistics, ...], float | None, list[str]]:
    """The removals with α as `ease` and `overshoot` have it, what the head reads behind them, the share of forget samples that
    is left, and notes."""
    eases = config.ease and config.alpha is None
    overshoots = config.overshoot and config.alpha is None and config.force_head_alpha is None
    forgotten, tries = list(whole[0].counts), []
    for share in EASED if eases else EASED[:1]:
        tried = [_eased(removal, share) for removal in removals]
        seen = _behind_edits(model, plan, tried, whole, config)
        if overshoots:
            tried = _overshot(tried, [whole, seen], forgotten)
        left = _left(tried, seen[0], forgotten)
        tries.append((tried, seen, left, _explain_coefficients(tried, share)))
        if (left or 0.0) <= LEFT:
            break
    first, best = tries[0], min(tries, key=lambda of: of[2] or 0.0)
    return best if (best[2] or 0.0) <= max(LEFT, (first[2] or 0.0) / 2) else first


@torch.no_grad()
def _write(changes: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, values in changes:
        tensor.copy_(values)  # cast once


def _eased(removal: Removal, share: float) -> Removal:
    return removal if removal.reading.is_head else dataclasses.replace(removal, alpha=share * removal.alpha)


def _overshot(
    removals: list[Removal], seen: list[tuple[Statistics, Statistics]], forgotten: list[int]
) -> list[Removal]:
    """With the coefficient that the head needs for single samples of both sides, if that is more than it has."""
    found, head = [], -1
    for removal in removals:
        head += removal.reading.is_head
        alpha = removal.alpha
        for operator in removal.reading.operators if removal.reading.is_head and removal.directions.numel() else []:
            whole = Edit(operator, dataclasses.replace(removal, alpha=1.0))
            for pair in seen:
                logits = [whole.logits(side.samples[head].double()) for side in pair]
                alpha = max(alpha, overshoot(*((z, z - without) for z, without in logits), forgotten, removal.alpha))
        raised = {"alpha": alpha, "raised_from": removal.alpha} if alpha > removal.alpha else {}
        found.append(dataclasses.replace(removal, **raised))
    return found


def _explain_coefficients(removals: list[Removal], share: float) -> list[str]:
    notes = [
        f"The coefficient of the head is {r.alpha:.2f} and not {r.raised_from:.2f} (ours): with that more than 1 % of the forget "
        "samples would still be given a forgotten class."
        for r in removals
        if r.raised_from is not None
    ]
    if share < 1:
        notes.append(
            f"The coefficients below the head are {share:g} of what depth and probe give (ours): with more of that, over 1 % of the "
            "forget samples would still be given a forgotten class, as the head cannot undo it."
        )
    return notes


def _holds_bias(operator: Operator, as_adapter: bool) -> bool:
    norm = None if as_adapter else operator.norm
    return operator.module.bias is not None or (norm is not None and norm.track_running_stats)


def _head(removals: list[Removal], forget: Statistics, seen: Statistics) -> dict[str, dict[str, dict[str, Any]]]:
    """What every operator of the head makes of the mean of each forgotten class, before the edit and behind all edits."""
    found = {}
    heads = [removal for removal in removals if removal.reading.is_head]
    for removal, means, now in zip(heads, forget.means, seen.means, strict=True):
        means = dict(zip(forget.counts, means, strict=True))
        now = means | dict(zip(seen.counts, now, strict=True))  # of many classes a few examples may lack one
        for operator in removal.reading.operators:
            edit = Edit(operator, removal)
            found[operator.name] = {
                str(c): {
                    "before": edit.logits(means[c][None])[0][0].tolist(),
                    "after": (after := edit.logits(now[c][None])[1][0]).tolist(),
                    "still_given": int(after.argmax()) in forget.counts,
                }
                for c in means
            }
    return found


def _left(removals: list[Removal], seen: Statistics, forgotten: list[int]) -> float | None:
    """The share of forget samples that are given a forgotten class behind all edits, among those seen once more."""
    heads = [removal for removal in removals if removal.reading.is_head]
    shares = [
        torch.isin(Edit(o, removal).logits(z.double())[1].argmax(dim=1), torch.tensor(forgotten))
        .double()
        .mean()
        .item()
        for removal, z in zip(heads, seen.samples, strict=True)
        for o in removal.reading.operators
        if len(z)
    ]
    return max(shares, default=None)


def _still_given(head: dict[str, dict[str, dict[str, Any]]]) -> list[int]:
    """The head test: the forgotten classes for whose means the edited head still gives one of them."""
    return sorted({int(c) for classes in head.values() for c, about in classes.items() if about["still_given"]})


def _row(removal: Removal, accuracy: float | None, tau: float, deviations: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "stage": removal.reading.stage,
        "operators": [operator.name for operator in removal.reading.operators],
        "is_head": removal.reading.is_head,
        "span": removal.span,
        "probe_accuracy": accuracy,
        "alpha": removal.alpha,
        "raised_from": removal.raised_from,
        "rank": removal.directions.shape[1],
        "relative_residual": {str(c): share for c, share in removal.relative.items()},
        "dropped": [c for c, share in removal.relative.items() if share < tau],
        "deviations": {rule: max(of[rule] for of in deviations) for rule in (deviations[0] if deviations else ())},
    }


def _explain(
    rows: list[dict[str, Any]],
    head: dict,
    left: float | None,
    known: set[int],
    removals: list[Removal],
    config: DampConfig,
) -> list[str]:
    notes = [
        f"Stage {row['stage']} ({row['operators'][0]}): nothing was removed for {_classes(row['dropped'])}, whose mean lies "
        f"within {config.tau:g} of its length in the {row['span']} span of the retained means."
        for row in rows
        if row["dropped"]
    ]
    if not head:
        notes.append("No operator gives the logits by itself, so it was not tested whether the class is forgotten.")
    if not any(row["rank"] for row in rows):
        notes.append("No weight was changed: no direction tells the forgotten classes from the retained ones.")
    elif not any(row["alpha"] and row["rank"] for row in rows):
        notes.append(
            "No weight was changed: the coefficient of every stage is 0, as no probe tells the two sides apart."
        )
    if given := _still_given(head):
        notes.append(
            f"For the mean of {_classes(given)} the edited head still gives a forgotten class: not forgotten; "
            f"{_advice([removal for removal in removals if removal.reading.is_head])}"
        )
    if left is not None and left > LEFT:
        notes.append(
            f"{100 * left:.3g} % of the forget samples are still given a forgotten class: not forgotten; expected at most 1 %. More "
            "samples of each class, or an edit of the head alone (stages), may do better."
        )
    labels = {len(about["before"]) for classes in head.values() for about in classes.values()}
    if free := sorted(set(range(max(labels, default=0))) - known):
        notes.append(f"There are no samples of {_classes(free)}, so nothing holds what the model knows of them.")
    return notes


def _advice(heads: list[Removal]) -> str:
    if any(removal.span == "linear" for removal in heads):
        if all(removal.has_bias for removal in heads):
            return "the linear span of the others holds it, which span='auto' gets out of."
        return (
            "the linear span of the others holds it, and the affine one needs a bias behind the head, which has none."
        )
    if any(removal.directions.numel() and removal.alpha < HIGHEST for removal in heads):
        return "a higher force_head_alpha removes more of it."
    return "what the others span holds it, and no α changes that."


def _classes(classes: list[int]) -> str:
    return f"class{'es' * (len(classes) > 1)} {', '.join(map(str, classes))}"


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be edited


def _example(loader: Iterable[Mapping] | None, model: nn.Module) -> tuple[dict[str, Tensor], Iterable[Mapping]]:
    """Inputs of two retained samples, the same in every process, and the loader with nothing taken out of it."""
    batches = iter(() if loader is None else loader)
    first = next(batches, None)
    if batches is loader:  # it can be read only once
        loader = itertools.chain(() if first is None else [first], batches)
    own = {} if first is None else {name: values[:2].cpu() for name, values in ready(first, model).inputs.items()}
    found = next((example for example in gather_object([own]) if example), None)
    if found is None:
        raise UnlearningError(
            "There are no retained samples; DAMP keeps what the means of the retained classes span: pass samples of them."
        )
    device = next(model.parameters()).device
    return {name: values.to(device) for name, values in found.items()}, loader


def _check_classes(forget: Statistics, retain: Statistics, config: DampConfig) -> None:
    for side, statistics in (("forget", forget), ("retained", retain)):
        if not statistics.counts:
            raise UnlearningError(f"There are no {side} samples; DAMP needs samples of the classes on both sides.")
    if both := sorted(forget.counts.keys() & retain.counts.keys()):
        raise UnlearningError(
            f"There are forget and retained samples of {_classes(both)}, and DAMP forgets whole classes; move all samples of a "
            "class to one side, or choose a method for single samples."
        )
    if config.alpha is None and (few := min(sum(forget.counts.values()), sum(retain.counts.values()))) < 2:
        raise UnlearningError(
            f"There is {few} sample on one side, and the probe trains on some and is judged on others; pass 2 or more, or set "
            "alpha."
        )


class Damp(Method):
    """For each activation z that enters stage ℓ + 1 of L, with μ_c its mean over class c:

        d_f = μ_f − RR⁺μ_f,   R = [μ_c of the retained classes],   Q = orth{d_f / ‖d_f‖}
        α_ℓ = min{1, max{0, 2a_ℓ − 1}} · ℓ/L,   a_ℓ: accuracy of a linear probe, forget against retain
        W ← W(I − α_ℓQQᵀ)   for the operators W that read z

    Means of retained classes are mapped as before. Where the head still gives the forgotten class, the affine span is used
    (ours): R and μ_f are taken from the mean of R's columns, and biases make up for it.
    """

    info = MethodInfo(
        name="damp",
        kind="surgery",
        summary="takes the directions that only the forgotten classes have out of the weights, in one shot",
        needs=("forget", "retain"),
        applies_to=CLASSIFICATION,
        cost=0.3,
        paper=Paper(
            title="Class Unlearning via Depth-Aware Removal of Forget-Specific Directions",
            arxiv="2604.15166",
            bibtex="@article{hatami2026class,\n  title={Class Unlearning via Depth-Aware Removal of Forget-Specific "
            "Directions},\n  author={Hatami, Arman and Aalishah, Romina and Monosov, Ilya E.},\n  "
            "journal={arXiv preprint arXiv:2604.15166},\n  year={2026}\n}",
        ),
    )
    config_class = DampConfig
    config: DampConfig
    whole_classes = True

    def __init__(self, config: DampConfig | None = None):
        super().__init__(config)
        self._report: dict[str, Any] = {}

    def prepare(self, context) -> None:
        self.context = context

    def edit(self, model: nn.Module, forget_loader: Any, retain_loader: Any) -> dict[str, Any]:
        return self._done(damp_edit(model, forget_loader, retain_loader, config=self.config, seed=self.context.seed))

    def edit_as_adapter(self, model: nn.Module, forget_loader: Any, retain_loader: Any) -> tuple[LoraConfig, Callable]:
        about = {"config": self.config, "seed": self.context.seed}
        report, config, factors = damp_lora(model, forget_loader, retain_loader, **about)
        self._done(report)
        return config, functools.partial(load_lora, factors=factors)

    def _done(self, report: dict[str, Any]) -> dict[str, Any]:
        self._report = report
        self.notes += report["notes"]
        return report

    @property
    def report(self) -> dict[str, Any]:
        return self._report
