"""Does what was forgotten come back? Short fine-tuning of a copy, and the path between the original and the unlearned model.

A model from which something was only hidden finds it again within a few steps: after fine-tuning on retained samples alone,
or on a few forget samples, the rest of the forget set is known better than unseen samples of the same classes, which the
same steps help just as much.

    θ(α) = (1 − α) θ_original + α θ_unlearned,   barrier = max_α [L(θ(α)) − (1 − α) L(θ(0)) − α L(θ(1))]

References:
    Siddiqui et al., *From Dormant to Deleted: Tamper-Resistant Unlearning Through Weight-Space Regularization*, arXiv
    2505.22310 (relearning, and the connectivity that predicts it).
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from peft import LoraConfig
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import models
from ..data.batches import Batch, to_model
from ..models import adapters
from ..models.modes import evaluating
from ..tasks.figures import Measurement
from ..tasks.losses import sample_losses
from .context import AuditContext
from .exchange import exchange, stands_out
from .verdict import Finding

STEPS = (0, 5, 10, 20, 50, 100, 200)
BATCH = 32
RATES = {"convolutional": 2e-4, "transformer": 0.01}  # of Adam; a transformer's by its width
ADAPTER_RATE = 1e-3  # of Adam in a LoRA of a language model, as methods have it there
SHOTS = 10  # of a class, and no more than a quarter of its forget samples
SAMPLES = 1000  # of a set, at most, that are looked at along the way
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
KINDS = {"retain-only": "retained samples", "k-shot": "retained and a few forget samples"}
CONVENTION = (
    f"Relearning: {STEPS[-1]} steps of Adam on {BATCH} retained samples (k-shot: and {BATCH} draws of at most {SHOTS} forget samples of a "
    "class, a quarter of them at most, which are not asked about), in eval mode: no dropout, BatchNorm's statistics fixed; "
    f"rate {RATES['convolutional']:g}, or of a transformer {RATES['transformer']:g} divided by its width; of a language model in a "
    f"LoRA of its own, rate {ADAPTER_RATE:g}. The straight way "
    f"between the models is looked at in {len(ALPHAS)} places and leads BatchNorm's statistics along."
)
CONTROL = (
    "unseen samples of the forget classes, along the same fine-tuning of the same model: to a model that has never seen "
    "the forget set both are alike, whatever it has kept of whole classes"
)


def area(steps: ArrayLike, values: ArrayLike) -> np.ndarray:
    """The mean of curves over the steps, by the trapezoidal rule along the first axis.

    >>> float(area([0, 10, 30], [0.0, 1.0, 1.0]))
    0.8333333333333334
    """
    steps, values = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    return np.trapezoid(values, steps, axis=0) / (steps[-1] - steps[0])


def interval(
    forget: np.ndarray,
    forget_labels: np.ndarray,
    unseen: np.ndarray,
    unseen_labels: np.ndarray,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[float | None, float | None]:
    """95% interval of the mean of forget samples less that of unseen ones of their class, by the bootstrap over samples.

    Classes count by their forget samples; None where no class has both.
    """
    rng = np.random.default_rng([seed, 13])
    total, n = np.zeros(bootstrap), 0
    for label in np.intersect1d(forget_labels, unseen_labels):
        sides = forget[forget_labels == label], unseen[unseen_labels == label]
        means = [rng.choice(side, (bootstrap, len(side))).mean(axis=1) for side in sides]
        total += len(sides[0]) * (means[0] - means[1])
        n += len(sides[0])
    if not n:
        return None, None
    low, high = np.quantile(total / n, [0.025, 0.975])
    return float(low), float(high)


def shots(labels: np.ndarray, most: int = SHOTS, seed: int = 0) -> np.ndarray:
    """Places of a few samples of each class: `most` of them, but no more than a quarter of the class, and at least one;
    of a class of a single sample none, that something is left to be asked about."""
    rng = np.random.default_rng([seed, 9])
    chosen = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, min(most, len(members) // 4))] if len(members) > 1 else members[:0])
    return np.sort(np.concatenate(chosen))


def interpolated(first: dict[str, Tensor], second: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 − α) first + α second, of all floating-point tensors, buffers of BatchNorm included; others are the first's."""
    return {
        name: torch.lerp(a, second[name].to(a), alpha) if a.is_floating_point() else a for name, a in first.items()
    }


def barrier(alphas: ArrayLike, losses: ArrayLike) -> float:
    """How far the losses along a path rise above the straight line between its ends; 0 where they do not.

    >>> barrier([0, 0.5, 1], [1.0, 3.0, 2.0])
    1.5
    """
    alphas, losses = np.asarray(alphas, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    return float((losses - (1 - alphas) * losses[0] - alphas * losses[-1]).max())


def relearn(ctx: AuditContext, model: nn.Module, steps: int, few: np.ndarray | None = None) -> Iterator[nn.Module]:
    """The model, fine-tuned in eval mode by Adam: before the first step and after each. It is a copy, or where a task has its
    adapter the model itself in a new one, which is taken out at the end.

    A step reads a batch of retained samples and, with `few`, as many draws from these places of the forget set.
    """
    parts = [_drawn(ctx, "retain", np.arange(len(ctx.labels["retain"])), steps)]
    parts += [] if few is None else [_drawn(ctx, "forget", few, steps)]
    steps_of = zip(*parts, strict=True)
    if ctx.task.lora:
        with in_adapter(model, ctx.task.lora, ctx.seed) as student:
            yield from taught(student, steps_of, ADAPTER_RATE)
        return
    model = copy.deepcopy(model).float().eval().requires_grad_()
    family = models.architecture_family(model)
    yield from taught(model, steps_of, RATES[family] / (models.width(model) if family == "transformer" else 1))


@contextmanager
def in_adapter(model: nn.Module, lora: Mapping[str, Any], seed: int) -> Iterator[nn.Module]:
    """Inside, the model in eval mode with one more LoRA, drawn by the seed, that alone is trained; after it as it was."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluating(model):
        torch.manual_seed(seed)
        with adapters.trial(model, LoraConfig(**lora)) as student:
            yield student.eval()


def taught(model: nn.Module, steps: Iterable[Sequence[Batch]], rate: float) -> Iterator[nn.Module]:
    """The model before the first step of Adam and after each; a step is on the mean loss of some batches."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=rate)
    yield model
    for batches in steps:
        optimizer.zero_grad()
        for batch in batches:
            batch = to_model(batch, model, weights[0].device)
            with torch.enable_grad():
                loss = sample_losses(model, batch).mean() / len(batches)
                loss.backward()
        optimizer.step()
        yield model


def _drawn(ctx: AuditContext, name: str, rows: np.ndarray, steps: int) -> Iterator[Batch]:
    rng = np.random.default_rng([ctx.seed, 10])
    n = steps * BATCH
    order = np.concatenate([rng.permutation(rows) for _ in range(-(-n // len(rows)))])[:n]
    return ctx.batches(name, order, batch_size=BATCH)


def samples(ctx: AuditContext) -> int:
    """How many go forward, the way back of a training step counted as two more."""
    sizes = {name: min(SAMPLES, len(labels)) for name, labels in ctx.labels.items()}
    models = sum(name in ctx.models for name in ("unlearned", "retrained"))
    looked = len(KINDS) * len(STEPS) * (sizes["forget"] + sizes["unseen"])
    trained = 3 * STEPS[-1] * BATCH * sum(range(1, len(KINDS) + 1))  # k-shot: on twice as many
    return models * (looked + trained) + len(ALPHAS) * (sizes["forget"] + sizes["retain"])


def examine(ctx: AuditContext) -> tuple[dict[str, Any], list[Finding]]:
    """The curves of relearning, of the unlearned and the retrained model, and the path from the original."""
    rng = np.random.default_rng([ctx.seed, 11])
    few = shots(ctx.labels["forget"], seed=ctx.seed)
    rest = rng.permutation(np.setdiff1d(np.arange(len(ctx.labels["forget"])), few))[:SAMPLES]
    matched = rng.permutation(np.flatnonzero(np.isin(ctx.labels["unseen"], ctx.labels["forget"])))
    unseen = matched if len(matched) else np.arange(len(ctx.labels["unseen"]))
    sides = {"forget": rest, "unseen": unseen[:SAMPLES]}
    labels = {name: ctx.labels[name][rows] for name, rows in sides.items()}
    kinds: dict[str, dict[str, Any]] = {}
    areas: dict[str, dict[str, float | None]] = {}
    margins, places = [], []  # after some steps, and which
    for kind, samples in KINDS.items():
        if kind == "k-shot" and not len(few):
            continue
        curves = {}
        for name in ("unlearned", "retrained"):
            if name in ctx.models:
                copies = relearn(ctx, ctx.models[name], STEPS[-1], few if kind == "k-shot" else None)
                curves[name] = _followed(ctx, copies, sides, f"relearning, {kind}")
        of = curves["unlearned"]
        known = [m.accuracy for m in of["forget"]]
        control = [m.mean("correct", like=labels["forget"]) for m in of["unseen"]] if len(matched) else None
        retrained = [m.accuracy for m in curves["retrained"]["forget"]] if "retrained" in curves else None
        kinds[kind] = {"unlearned": known, "control": control, "retrained": retrained}
        under = {name: float(area(STEPS, curve)) for name, curve in kinds[kind].items() if curve is not None}
        areas[kind] = {**under}
        right = [area(STEPS, [m.signals["correct"] for m in of[name]]) for name in sides]
        if control is not None:
            areas[kind]["difference"] = under["unlearned"] - under["control"]
        areas[kind]["low"], areas[kind]["high"] = interval(right[0], labels["forget"], right[1], labels["unseen"])
        margins += [[m.signals["margin"] for m in after] for after in list(zip(*of.values(), strict=True))[1:]]
        places += [f"after {step} steps on {samples}" for step in STEPS[1:]]
    forget_margins, unseen_margins = (np.stack(side) for side in zip(*margins, strict=True))
    tested = exchange(forget_margins, labels["forget"], unseen_margins, labels["unseen"], seed=ctx.seed)
    question = "Does fine-tuning bring forget samples back more than unseen ones?"
    content = {
        "relearning": {"steps": list(STEPS), "kinds": kinds, "area": areas, "control": CONTROL},
        "connectivity": _connectivity(ctx),
    }
    return content, [stands_out("relearning", question, tested, places)]


def _followed(
    ctx: AuditContext, copies: Iterator[nn.Module], sides: dict[str, np.ndarray], description: str
) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {name: [] for name in sides}
    bar = tqdm(copies, description, STEPS[-1] + 1, leave=False, disable=not ctx.evaluator.progress)
    for step, model in enumerate(bar):
        if step in STEPS:
            for name, rows in sides.items():
                source, indices = ctx.sets[name]
                found[name].append(ctx.evaluator.measure(model, source, indices[rows]))
    return found


def _path(original: nn.Module, unlearned: nn.Module, in_place: bool) -> Iterator[nn.Module]:
    """The models at `ALPHAS` on the straight way between two: a copy, or `in_place` the unlearned one itself, whose adapter or
    whose layers, while they run, are what they are there; nothing if their tensors are not the same."""
    ends = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (original, unlearned)]
    if isinstance(original, models.View):
        for alpha in ALPHAS:
            with adapters.scaled(unlearned, alpha):
                yield unlearned
    elif ends[0] != ends[1]:
        return
    elif in_place:
        for alpha in ALPHAS:
            with _towards(unlearned, original, 1 - alpha):
                yield unlearned
    else:
        model, before, after = copy.deepcopy(original), original.state_dict(), unlearned.state_dict()
        for alpha in ALPHAS:
            model.load_state_dict(interpolated(before, after, alpha))
            yield model


@contextmanager
def _towards(model: nn.Module, other: nn.Module, share: float) -> Iterator[None]:
    """Inside, the weights of each layer lie so far on the way to another model's, while it runs."""
    kept: dict[nn.Parameter, Tensor] = {}
    ends: dict[nn.Module, nn.Module] = dict(zip(model.modules(), other.modules(), strict=True))
    handles = []

    def before(layer: nn.Module, inputs: Any) -> None:
        for weight, end in zip(layer.parameters(recurse=False), ends[layer].parameters(recurse=False), strict=True):
            kept[weight] = weight.data
            weight.data = torch.lerp(weight.data, end.data.to(weight), share) if share else weight.data

    def after(layer: nn.Module, *_: Any) -> None:
        for weight in layer.parameters(recurse=False):
            weight.data = kept.pop(weight)

    for layer in ends:
        if next(layer.parameters(recurse=False), None) is not None:
            handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for weight, data in kept.items():  # where a forward pass has failed
            weight.data = data


def _connectivity(ctx: AuditContext) -> dict[str, Any] | None:
    """Losses along the straight path from the original to the unlearned model; None if their tensors are not the same."""
    rng = np.random.default_rng([ctx.seed, 12])
    losses: dict[str, list[float]] = {"forget": [], "retain": []}
    sets = {name: (ctx.sets[name][0], rng.permutation(ctx.sets[name][1])[:SAMPLES]) for name in losses}
    for model in _path(ctx.models["original"], ctx.models["unlearned"], in_place=ctx.task.lora is not None):
        for name, found in losses.items():
            found.append(ctx.evaluator.measure(model, *sets[name]).mean("loss"))
    if not losses["retain"]:
        return None
    return {
        "alphas": list(ALPHAS),
        "forget_loss": losses["forget"],
        "retain_loss": losses["retain"],
        "barrier": barrier(ALPHAS, losses["retain"]),
    }
