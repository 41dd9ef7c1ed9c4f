"""SSD: selective synaptic dampening (AAAI 2024), one edit of the weights without any training."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from accelerate.utils import extract_model_from_parallel, gather_object, reduce
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..data.batches import Batch
from ..errors import UnlearningError
from ..methods.base import Method, MethodConfig, MethodInfo, Paper
from ..models.modes import evaluating
from ..tasks.losses import cross_entropy, sample_losses
from .checks import check_labels, check_weights, ready
from .layers import add_squares_by_layers

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]  # by the name of the parameter

PAPER_ALPHA = 10.0
TOLERANCE = 1e-4  # of squared gradients of samples together, relative to those of the loop
VMAP_NUMBERS = 2**28  # gradients held at once: 1 GiB in float32
NUMBERS_AT_ONCE = 2**20  # of a tensor, when it is dampened
LAYER_SAMPLES = 16  # at once, of which no more than one layer's gradients are held
VMAP, LAYERS, LOOP = "vmap", "layers", "loop"
ON_CPU, ON_ACCELERATOR = LAYERS, VMAP  # what is tried first


def dampen(weight: Tensor, importance_forget: Tensor, importance_full: Tensor, alpha: float, lam: float) -> Tensor:
    """Makes weights smaller that matter more to the forget samples than to all samples; the others keep every bit.

    θ ← θ·min(1, λ·I_D/I_f)   where I_f > α·I_D
    """
    beta = (lam * importance_full / importance_forget).clamp(max=1)
    return torch.where(importance_forget > alpha * importance_full, weight * beta, weight).to(weight.dtype)


def add_squares(model: nn.Module, weights: Weights, sums: Weights, parts: Iterable[Batch]) -> None:
    """Σ += (∂ℓ/∂θ)², where ℓ is the mean cross-entropy of each part: of one sample, or of a batch."""

    def square(total: Tensor, p: nn.Parameter) -> None:
        g, p.grad = cast(Tensor, p.grad).to(total.dtype), None
        total.addcmul_(g, g)

    given = {name: p.grad for name, p in weights.items()}
    # A gradient is squared as soon as it is there, while it lies in the processor's cache.
    hooks = [p.register_post_accumulate_grad_hook(partial(square, sums[name])) for name, p in weights.items()]
    try:
        for p in weights.values():
            p.grad = None
        for part in parts:
            sample_losses(model, part).mean().backward()
    finally:
        for hook, (name, p) in zip(hooks, weights.items(), strict=True):
            hook.remove()
            p.grad = given[name]


def add_squares_by_vmap(model: nn.Module, weights: Weights, sums: Weights, batch: Batch) -> None:
    """The same for the samples of a batch together, as many at once as `VMAP_NUMBERS` allows."""

    def loss(weights: Weights, inputs: dict[str, Tensor], label: Tensor) -> Tensor:
        inputs = {key: value[None] for key, value in inputs.items()}
        return cross_entropy(functional_call(model, weights, kwargs=inputs).logits, label[None])[0]

    weights = {name: p.detach() for name, p in weights.items()}
    for part in pieces(batch, max(1, VMAP_NUMBERS // sum(p.numel() for p in weights.values()))):
        for name, g in vmap(grad(loss), in_dims=(None, 0, 0))(weights, part.inputs, part.labels).items():
            sums[name] += g.to(sums[name].dtype).square().sum(dim=0)  # not in place: gradients may share memory


def add_squares_layer_by_layer(model: nn.Module, weights: Weights, sums: Weights, batch: Batch) -> None:
    for part in pieces(batch, LAYER_SAMPLES):
        add_squares_by_layers(model, weights, sums, part)


TOGETHER = {VMAP: add_squares_by_vmap, LAYERS: add_squares_layer_by_layer}


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of `size` samples. They keep the padding of the batch, and the attention mask that hides it."""
    for start in range(0, len(batch.labels), size):
        yield Batch({key: value[start : start + size] for key, value in batch.items()})


@dataclass
class SsdConfig(MethodConfig):
    """SSD. `importance="sample"` is the paper's formula, and not the authors' code."""

    method = "ssd"

    alpha: float | None = field(
        default=None,
        metadata={
            "help": "α: how many times more important for the forget set than for all data; null: 10 (the paper), or, ours, a "
            "third of n/n_f where that is less, and at least 1, as no weight can be more than n/n_f times as important"
        },
    )
    lam: float = field(default=1.0, metadata={"help": "the lower, the stronger the dampening; λ"})
    importance: Literal["sample", "batch"] = field(
        default="sample",
        metadata={
            "help": "squared gradients of single samples (the paper), or of the mean over each batch, which depends on the "
            "batch size and the number of processes (the authors' code)"
        },
    )
    per_sample: Literal["auto", "vmap", "layers", "loop"] = field(
        default="auto",
        metadata={
            "help": "gradients of single samples together (vmap; layers: of one layer after the other, in networks of linear layers, "
            "convolutions and norms) or one by one (loop); auto: vmap on an accelerator and layers on a CPU, where they "
            "give what the loop gives"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("alpha", self.alpha is None or self.alpha > 0, "a number above 0, or null")
        self.check("lam", self.lam >= 0, "a number of at least 0")

    @classmethod
    def paper(cls) -> "SsdConfig":
        return cls(alpha=PAPER_ALPHA, lam=1.0)


@dataclass
class Importances:
    """I(θ) of one set, of all processes together, in float32 at least."""

    values: Weights
    samples: int
    terms: int  # squares in the mean: as many as samples, or as batches
    how: str  # "loop", "vmap", "layers" or "batch"
    why_loop: str | None = None  # if something else was tried


def importances(
    model: nn.Module, loader: Iterable[Mapping], config: SsdConfig, name: str = "forget", how: str = ""
) -> Importances:
    """I(θ) = mean of (∂ℓ/∂θ)², in one pass in eval mode. Frozen parameters count like all others, tied ones once.

    Args:
        loader: this process's share of the set, in batches of model inputs and `labels`; rows of `weight` 0 are padding.
        name: what errors call the set.
        how: as those of another set were taken; else two samples are tried, which takes two more copies of the weights.
    """
    weights: Weights = {key: p for key, p in model.named_parameters() if p.is_floating_point()}
    sums: Weights = {}
    frozen = [p for p in weights.values() if not p.requires_grad]
    device = next(iter(weights.values())).device
    samples, terms, why, num_labels = 0, 0, None, 0
    how = "batch" if config.importance == "batch" else how
    try:
        for p in frozen:
            p.requires_grad_(True)
        with torch.enable_grad(), evaluating(model):
            for batch in loader:
                batch = _counted(ready(batch, model))
                if len(batch.labels) == 0:
                    continue
                num_labels = num_labels or _num_labels(model, batch)
                check_labels(batch.labels, num_labels)
                if not how:
                    how, why = _choose(model, weights, next(pieces(batch, 2)), config.per_sample)
                sums = sums or _zeros(weights)  # not while two samples are tried
                if how in TOGETHER:
                    TOGETHER[how](model, weights, sums, batch)
                else:
                    add_squares(model, weights, sums, [batch] if how == "batch" else pieces(batch, 1))
                samples += len(batch.labels)
                terms += 1 if how == "batch" else len(batch.labels)
    finally:
        for p in frozen:
            p.requires_grad_(False)
    samples, terms = cast(Tensor, reduce(torch.tensor([samples, terms], device=device), "sum")).tolist()
    how = next((of for of in gather_object([how]) if of), LOOP)  # a process may have no samples
    if samples == 0:
        raise UnlearningError(f"ssd: there are no {name} samples; expected at least one to forget and one to retain.")
    sums = sums or _zeros(weights)
    for key in sums:  # one by one, so that there is never a second copy of them all
        sums[key] = cast(Tensor, reduce(sums[key], "sum")).div_(terms)
        if not bool(sums[key].isfinite().all()):
            raise UnlearningError(
                f"ssd: gradients of the {name} samples are not finite, those of {key} for one; expected a model whose "
                "weights and losses are finite numbers (load it in float32 if it is in half precision)."
            )
    return Importances(sums, samples, terms, how, why)


def ssd_edit(
    model: nn.Module,
    forget_loader: Iterable[Mapping],
    retain_loader: Iterable[Mapping],
    *,
    config: SsdConfig | None = None,
) -> dict[str, Any]:
    """Dampens every floating-point parameter of a classifier in place, and reports what was done, ready for JSON.

    I_D is over D_f and D_r together, (n_f·I_f + n_r·I_r)/n. No weight changes before all importances are known to be
    finite. The loaders are read once; see `importances` for what they give.
    """
    config, model = config or SsdConfig(), extract_model_from_parallel(model, keep_torch_compile=False)
    check_weights(model, "ssd")
    forget = importances(model, forget_loader, config, "forget")
    retain = importances(model, retain_loader, config, "retain", forget.how)
    share = forget.terms / (forget.terms + retain.terms)
    alpha = min(PAPER_ALPHA, max(1.0, 1 / (3 * share))) if config.alpha is None else config.alpha
    tensors, factors, sizes, largest = [], [], [], 0.0
    with torch.no_grad():
        for key in list(forget.values):
            whole, dampened = model.get_parameter(key), 0
            for weight, i_f, i_r in _few_rows(whole, forget.values.pop(key), retain.values.pop(key)):
                i_f = nn.functional.threshold(i_f, torch.finfo(i_f.dtype).tiny, 0.0)  # or I_D may be rounded to 0
                i_d = torch.lerp(i_r, i_f, share)  # exactly I_f where I_r = I_f, which the sum is not
                weight.copy_(dampen(weight, i_f, i_d, alpha, config.lam))
                chosen = i_f > max(alpha, config.lam) * i_d
                factors.append((config.lam * i_d[chosen] / i_f[chosen]).clamp(max=1))
                largest = max(largest, torch.where(i_d > 0, i_f / i_d, 0.0).max().item())
                dampened += len(factors[-1])
            sizes.append(whole.numel())
            tensors.append({"name": key, "dampened": dampened, "share": dampened / whole.numel()})
    factors = torch.cat([f.cpu() for f in factors])
    report = {
        "samples": {"forget": forget.samples, "retain": retain.samples},
        "importance": config.importance,
        "per_sample": None if config.importance == "batch" else forget.how,
        "alpha": alpha,
        "lam": config.lam,
        "weights": sum(sizes),
        "dampened": len(factors),
        "share": len(factors) / sum(sizes),
        "factors": {k: getattr(factors, k)().item() for k in ("min", "median", "max")} if len(factors) else None,
        "largest_ratio": largest,
        "tensors": [t for t in sorted(tensors, key=lambda t: -t["share"])[:10] if t["dampened"]],
        "notes": [],
    }
    if forget.why_loop:
        report["notes"].append(f"Gradients were taken sample by sample: {forget.why_loop}.")
    if len(factors) == 0:
        report["notes"].append(
            f"Nothing was dampened: no weight is more than {largest:.4g} times as important for the forget samples as for "
            f"all, and alpha is {alpha:g}; an alpha below {largest:.4g} begins to dampen. It cannot be more than "
            f"{1 / share:.4g} times, as {100 * share:.3g} % of all samples are to be forgotten."
        )
    for note in report["notes"]:
        logger.warning(note)
    return report


class Ssd(Method):
    """Dampen the weights that matter more to the forget samples than to all: θ ← θ·min(1, λ·I_D/I_f)."""

    info = MethodInfo(
        name="ssd",
        kind="surgery",
        summary="dampens the weights that are important for the forget samples and less so for all",
        needs=("forget", "retain"),
        cost=1.5,
        paper=Paper(
            title="Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
            arxiv="2308.07707",
            bibtex="@inproceedings{foster2024fast,\n  title={Fast Machine Unlearning Without Retraining Through Selective "
            "Synaptic Dampening},\n  author={Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra},\n  "
            "booktitle={AAAI},\n  year={2024}\n}",
        ),
    )
    config_class = SsdConfig
    config: SsdConfig

    def __init__(self, config: SsdConfig | None = None):
        super().__init__(config)
        self.found: dict[str, Any] = {}

    def edit(
        self, model: nn.Module, forget_loader: Iterable[Mapping], retain_loader: Iterable[Mapping]
    ) -> dict[str, Any]:
        self.found = ssd_edit(model, forget_loader, retain_loader, config=self.config)
        self.notes += self.found["notes"]
        return self.found

    @property
    def report(self) -> dict[str, Any]:
        return self.found


def _few_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each, a few after the others: views, so that a large tensor is not copied for what is reckoned of it."""
    tensors = tuple(torch.atleast_1d(tensor) for tensor in tensors)
    rows = max(1, NUMBERS_AT_ONCE * len(tensors[0]) // max(1, tensors[0].numel()))
    yield from zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _zeros(weights: Weights) -> Weights:
    return {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
        for name, p in weights.items()
    }


def _choose(model: nn.Module, weights: Weights, few: Batch, per_sample: str) -> tuple[str, str | None]:
    """`vmap`, `layers` or `loop`, and why `loop` if `auto` has tried something else that should have worked."""
    how = (ON_CPU if few.labels.device.type == "cpu" else ON_ACCELERATOR) if per_sample == "auto" else per_sample
    if how == LOOP:
        return LOOP, None
    error = error_of(how, model, weights, few)
    if error is None:
        why = f"{how} does not work on {type(model).__name__}"
        if per_sample == how:
            raise UnlearningError(f'ssd: {why}; use per_sample="loop".')
        return LOOP, None if how == LAYERS else why  # most models have other parameters
    if per_sample == how or error <= TOLERANCE:
        return how, None
    if math.isinf(error):
        return LOOP, None
    return LOOP, f'{how} is off by {error:.1e} on two samples (per_sample="{how}" takes it all the same)'


def error_of(how: str, model: nn.Module, weights: Weights, few: Batch) -> float | None:
    """The largest relative error of a tensor's squares, of samples together; None where that does not work on the model, and
    infinite where samples that have no gradient tell nothing."""
    found, expected = _zeros(weights), _zeros(weights)
    try:
        TOGETHER[how](model, weights, found, few)
    except torch.OutOfMemoryError:
        raise
    except (
        RuntimeError,
        IndexError,
    ):  # of an operation that functorch cannot batch; of a layer that is called otherwise
        logger.debug(f"{how} does not work", exc_info=True)
        return None
    add_squares(model, weights, expected, pieces(few, 1))
    rounding = 1e-10 * max(total.norm().item() for total in expected.values())  # of gradients that are 0 in theory
    if rounding == 0:
        return math.inf
    return max((found[k] - total).norm().item() / (total.norm().item() + rounding) for k, total in expected.items())


def _counted(batch: Batch) -> Batch:
    """The rows of a batch that are no padding."""
    if "weight" not in batch or bool((batch.weight > 0).all()):
        return batch
    return Batch({key: value[batch.weight > 0] for key, value in batch.items() if isinstance(value, Tensor)})


def _num_labels(model: nn.Module, batch: Batch) -> int:
    with torch.no_grad():
        logits = model(**next(pieces(batch, 1)).inputs).logits
    if logits.ndim != 2:
        raise UnlearningError(
            f"ssd: {type(model).__name__} gives logits of {logits.ndim} dimensions; expected a classifier's, [n, classes]."
        )
    return logits.shape[-1]
