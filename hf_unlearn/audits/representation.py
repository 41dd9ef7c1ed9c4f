"""What the layers below the head still know: a linear probe and CKA at each stage.

A change of the head alone leaves every feature what it was. A new linear head, fitted to the features of retained samples,
then finds the labels of the forget set again, and finds them better than those of unseen samples.

    CKA(X, Y) = ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖),   columns centred, Frobenius norms

References:
    Kornblith et al., *Similarity of Neural Network Representations Revisited*, ICML 2019, arXiv 1905.00414 (CKA).
    Jung et al., *Are We Truly Forgetting?*, arXiv 2503.06991 (probes of unlearned models).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UnlearningError
from ..models.modes import evaluating
from ..surgery.operators import find_plan
from ..surgery.plan import Plan
from ..surgery.probe import RIDGE
from ..surgery.statistics import Activations
from .context import AuditContext
from .exchange import exchange, stands_out
from .relearning import interval
from .verdict import Finding

STAGES = 5  # the last one is what the head reads
SAMPLES = 2000  # of each set, at most
CONVENTION = (
    f"Probes: least squares on ±1 for each class with ridge {RIDGE:g}, on standardised features of {SAMPLES:,} retained samples at "
    "most; of classes without any, on one half of the forget and unseen samples, asked about the other. CKA is the linear one."
)


def linear_cka(x: Tensor, y: Tensor) -> float | None:
    """Linear CKA of two sets of features of the same samples, rows being samples; None where one of them is constant.

    In [0, 1]; the same after any rotation of the features or a common factor.
    """
    x, y = (z.double() - z.double().mean(dim=0) for z in (x, y))
    if len(x) < x.shape[1] + y.shape[1]:  # the products of samples are the smaller ones
        x, y = x @ x.T, y @ y.T
        across, norms = (x * y).sum(), x.norm() * y.norm()
    else:
        across, norms = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    return min(1.0, float(across / norms)) if norms > 0 else None


def probe(x: Tensor, labels: Tensor, features: Tensor, num_labels: int) -> Tensor:
    """Scores of every class for `features`, from a linear classifier that is fitted to `x` and their labels.

    Least squares on ±1 for each class, with standardised features and the ridge of the surgery's probe.
    """
    x, features = x.double(), features.double()
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
    scale[scale == 0] = 1
    x, features = (x - mean) / scale, (features - mean) / scale
    y = 2 * torch.nn.functional.one_hot(labels, num_labels).double() - 1
    t, n = y - y.mean(dim=0), len(x)
    if n < x.shape[1]:
        weights = x.T @ torch.linalg.solve(x @ x.T + n * RIDGE * torch.eye(n, dtype=x.dtype), t)
    else:
        weights = torch.linalg.solve(x.T @ x + n * RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ t)
    return features @ weights + y.mean(dim=0)


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """The score of each sample's own class, less the highest of the others."""
    own = scores.gather(1, labels[:, None])
    return own[:, 0] - scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


@torch.no_grad()
def stage_features(ctx: AuditContext, model: nn.Module, plan: Plan, name: str, rows: np.ndarray) -> list[Tensor]:
    """What the model's stages read of these samples of a set, pooled to one row a sample, in float32 on the CPU."""
    found: list[list[Tensor]] = [[] for _ in plan.readings]
    with evaluating(model), Activations(plan, "channel", "auto") as activations:
        for batch in ctx.batches(name, rows):
            activations.batch = batch
            for parts, z in zip(found, activations.take(model(**batch.inputs).logits), strict=True):
                parts.append(z.float().cpu())
    last = {
        reading.stage: i for i, reading in enumerate(plan.readings)
    }  # of several readings, the one that is met last
    return [torch.cat(found[i]) for i in last.values()]


def samples(ctx: AuditContext) -> int:
    """How many go forward."""
    return len(ctx.models) * sum(min(SAMPLES, len(labels)) for labels in ctx.labels.values())


def examine(ctx: AuditContext) -> tuple[dict[str, Any], list[Finding]]:
    """CKA to the original and a probe of the labels at each stage, the control being unseen samples of the same classes.

    The probe is fitted to retained samples, and for classes that have none to one half of the forget and unseen samples
    at a time: it is never asked about a sample that it was fitted to, nor told which side a sample is from.
    """
    rng = np.random.default_rng([ctx.seed, 7])
    rows = {name: rng.permutation(len(ctx.labels[name])) for name in ("retain", "forget", "unseen")}
    matched = np.isin(ctx.labels["unseen"][rows["unseen"]], ctx.labels["forget"])
    rows["unseen"] = rows["unseen"][matched] if matched.any() else rows["unseen"]
    rows = {name: chosen[:SAMPLES] for name, chosen in rows.items()}
    labels = {name: torch.as_tensor(ctx.labels[name][chosen]) for name, chosen in rows.items()}
    halves = {name: _halves(labels[name]) for name in ("forget", "unseen")}
    inputs = next(ctx.batches("forget", np.arange(1), batch_size=1)).inputs

    question = "Do the features know the labels of forget samples better than those of unseen ones?"
    try:
        plans = {name: find_plan(model, inputs, stages=STAGES) for name, model in ctx.models.items()}
    except UnlearningError as error:
        return {}, [Finding("probe", question, f"The stages of the network cannot be told: {error}")]
    names = list({reading.stage: reading.operators[0].name for reading in plans["unlearned"].readings}.values())
    depth = min(plan.stages for plan in plans.values())  # of different networks the last stages are compared

    probed: dict[str, list[dict[str, Tensor]]] = {}  # model -> stage -> set -> margins
    seen: dict[str, list[Tensor]] = {}  # model -> stage -> features of the forget set
    for name, model in ctx.models.items():
        features = {s: stage_features(ctx, model, plans[name], s, chosen)[-depth:] for s, chosen in rows.items()}
        seen[name] = features["forget"]
        by_stage = ({s: of[i] for s, of in features.items()} for i in range(depth))
        probed[name] = [_margins(of, labels, halves, ctx.num_labels) for of in by_stage]
    content = [
        {
            "name": stage,
            "cka": linear_cka(seen["original"][i], seen["unlearned"][i]),
            "probe": {name: float((of[i]["forget"] > 0).double().mean()) for name, of in probed.items()},
            "control": _like(probed["unlearned"][i]["unseen"] > 0, labels["unseen"], labels["forget"]),
        }
        for i, stage in enumerate(names[-depth:])
    ]
    for i, stage in enumerate(content):
        if stage["control"] is not None:
            right = [(probed["unlearned"][i][name] > 0).double().numpy() for name in ("forget", "unseen")]
            stage["difference"] = stage["probe"]["unlearned"] - stage["control"]
            stage["low"], stage["high"] = interval(
                right[0], labels["forget"].numpy(), right[1], labels["unseen"].numpy()
            )
    sides = []
    for name in ("forget", "unseen"):
        sides += [torch.stack([of[name] for of in probed["unlearned"]]), 2 * labels[name] + halves[name]]
    kinds = [f"in a probe of what {stage} reads" for stage in names[-depth:]]
    return {"stages": content}, [stands_out("probe", question, exchange(*sides, seed=ctx.seed), kinds)]


def _halves(labels: Tensor) -> Tensor:
    """0 or 1 for each sample, in turns within each class."""
    halves = torch.zeros_like(labels)
    for label in labels.unique():
        chosen = (labels == label).nonzero()[:, 0]
        halves[chosen] = torch.arange(len(chosen)) % 2
    return halves


def _margins(
    features: dict[str, Tensor], labels: dict[str, Tensor], halves: dict[str, Tensor], num_labels: int
) -> dict[str, Tensor]:
    """Of forget and unseen samples, each in the half to which the probe was not fitted."""
    found = {name: torch.zeros(len(labels[name]), dtype=torch.float64) for name in halves}
    retained = labels["retain"].unique()
    for half in (0, 1):
        x, y = [features["retain"]], [labels["retain"]]
        for name, of in halves.items():
            new = (of != half) & ~torch.isin(labels[name], retained)
            x.append(features[name][new]), y.append(labels[name][new])
        for name, of in halves.items():
            asked = of == half
            scores = probe(torch.cat(x), torch.cat(y), features[name][asked], num_labels)
            found[name][asked] = margin(scores, labels[name][asked])
    return found


def _like(right: Tensor, labels: Tensor, like: Tensor) -> float | None:
    """The share of samples that are right, classes counting as they do in `like`; None without a sample of them."""
    classes, counts = like[torch.isin(like, labels)].unique(return_counts=True)
    shares = torch.stack([right[labels == label].double().mean() for label in classes]) if len(classes) else None
    return None if shares is None else float((shares * counts).sum() / counts.sum())
