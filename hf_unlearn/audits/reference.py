"""One model that has never seen the forget samples, and what it tells of each of them: RMIA and IAM.

    ratio(x) = p(x) / [½ (1 + a) p_ref(x) + ½ (1 − a)],   RMIA(x) = share of population z with ratio(x) ≥ γ ratio(z)
    IAM = Σ [m_original(x) − m_unlearned(x)] / Σ [m_original(x) − m_ref(x)],   m the logit-scaled margin

p is the probability of the true class (of a language model, of the completion's tokens on average). A sample that would be
hard for any model but is easy for this one dominates the population; one that any model gets right does not.

References:
    Zarifzadeh, Liu and Shokri, *Low-Cost High-Power Membership Inference Attacks*, ICML 2024, arXiv 2312.03262 (RMIA, here
    in its offline form with one reference model).
    Wang et al., *Towards Lifecycle Unlearning Commitment Management*, USENIX Security 2025, arXiv 2506.06112 (IAM).
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from tqdm.auto import tqdm

from .. import models
from ..data.batches import to_model
from ..tasks.losses import sample_losses
from .context import AuditContext
from .exchange import exchange, stands_out
from .membership import paired_drop
from .verdict import LEVEL, Finding

EPOCHS, BATCH, WARM_UP = 30, 64, 0.1  # of a reference model that is trained here
RATE, TUNING_RATE = 1e-3, 1e-4  # from new weights, and from those of a base model
FAR_BELOW = 0.1  # accuracy on unseen samples, by which a reference is too weak to judge by
POPULATION = 100  # samples, from which on 1% of them is one
GAMMA = 1.0
OFFLINE = 0.3  # a of the offline form: how a model that has seen a sample would differ from one that has not
WORST = 0.1  # the worst decile
CONVENTION = (
    f"RMIA: γ = {GAMMA:g}, a = {OFFLINE:g}, one reference model, the population being the unseen samples of the forget classes. "
    f"AUC and true positives rank samples by their ratio, which is the order of their RMIA. A reference model that is trained "
    f"here: {EPOCHS} epochs of AdamW on the retained samples that are read, batches of {BATCH}, from new weights at a rate of {RATE:g} at most, "
    f"from a base model's at {TUNING_RATE:g}. IAM: sums over the forget set, between the original (0) and the reference (1). Intervals "
    "are of 1,000 resamplings; the worst tenth of unseen samples is that of as many as there are forget samples."
)


def ratio(target: ArrayLike, reference: ArrayLike, offline: float = OFFLINE) -> np.ndarray:
    """A sample's probability under the audited model, over what a model that may have seen it or not would give it.

    >>> ratio([0.9], [0.3], offline=1.0).tolist()
    [3.0]
    """
    expected = ((1 + offline) * np.asarray(reference, dtype=np.float64) + (1 - offline)) / 2
    return np.asarray(target, dtype=np.float64) / np.maximum(expected, np.finfo(np.float64).tiny)


def rmia(
    target: ArrayLike,
    reference: ArrayLike,
    population_target: ArrayLike,
    population_reference: ArrayLike,
    gamma: float = GAMMA,
    offline: float = OFFLINE,
) -> np.ndarray:
    """The share of population samples that each sample dominates.

    Args:
        target, reference: of each sample, its probability under the audited model and under one that has not seen it.
        population_target, population_reference: the same of samples that neither model has seen.
        gamma: by what factor a ratio must be the larger one.
        offline: a of the formula above; 1 takes the reference as it is.

    Example:
        >>> rmia([0.9, 0.3], [0.3, 0.3], [0.5, 0.5], [0.5, 0.4], offline=1.0).tolist()
        [1.0, 0.5]
    """
    population = np.sort(gamma * ratio(population_target, population_reference, offline))
    return np.searchsorted(population, ratio(target, reference, offline), side="right") / len(population)


def true_positives(members: ArrayLike, others: ArrayLike, rate: float = 0.01) -> float:
    """The share of members above a threshold that at most a share `rate` of the others is above.

    >>> true_positives([0.2, 0.8, 0.9], [0.1, 0.5, 0.6, 0.7], rate=0.01)
    0.6666666666666666
    """
    others = np.sort(np.asarray(others, dtype=np.float64))[::-1]
    return float((np.asarray(members) > others[int(rate * len(others))]).mean())


def degree(original: ArrayLike, unlearned: ArrayLike, reference: ArrayLike) -> float | None:
    """How far a set has gone from the original's fit (0) to what a model says that never saw it (1), by margins.

        Σ (original − unlearned) / Σ (original − reference)

    Above 1 it is over-unlearned; None where the original fits the set no better than the reference, so that there was
    nothing to forget. The paper interpolates the fit of each sample between several models and averages; here it is the
    line between two, and sums, since a single sample's margin differs between any two models.

    >>> degree([4.0, 2.0], [1.0, 2.0], [0.0, 0.0])
    0.5
    """
    original, unlearned, reference = (np.asarray(m, dtype=np.float64) for m in (original, unlearned, reference))
    gap = (original - reference).sum()
    return float((original - unlearned).sum() / gap) if gap > 0 else None


def train_reference(ctx: AuditContext, epochs: int = EPOCHS) -> nn.Module:
    """A model of the original's architecture, trained on the retained samples, from the base model if one is named."""
    original = models.base_of(ctx.models["original"])
    rate = TUNING_RATE if ctx.base_model else RATE
    device = ctx.evaluator.accelerator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(ctx.seed)
        if ctx.base_model:
            repo, revision = models.split_revision(ctx.base_model)
            model = models.load_model(repo, revision=revision, task=ctx.task.name, num_labels=ctx.num_labels)
        else:
            model = type(original)(copy.deepcopy(original.config))
        model.to(device).float().train()
        ctx.count(model)
        n = len(ctx.labels["retain"])
        size = min(n, BATCH)
        total = epochs * (n // size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total, pct_start=WARM_UP)
        bar = tqdm(total=total, desc="training a reference model", leave=False, disable=not ctx.evaluator.progress)
        for epoch in range(epochs):
            rows = np.random.default_rng([ctx.seed, 14, epoch]).permutation(n)
            # Full batches only: the statistics of a batch of two would ruin BatchNorm.
            for batch in ctx.batches("retain", rows[: n // size * size], batch_size=size):
                optimizer.zero_grad()
                batch = to_model(batch, model, device)
                loss = sample_losses(model, batch).mean()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
        bar.close()
    return model.eval()


def worst(scores: np.ndarray) -> float:
    """The mean of the highest tenth.

    >>> worst(np.arange(20.0))
    18.5
    """
    return float(np.sort(scores)[-max(1, round(WORST * len(scores))) :].mean())


def _again(
    rng: np.random.Generator, of: Callable[..., float | None], *sides: np.ndarray, size: int | None = None
) -> dict[str, float | None]:
    """The ends of the 95% interval of a figure of samples, along the last axis of each side, by the bootstrap."""
    found = []
    for _ in range(1000):
        rows = [rng.integers(side.shape[-1], size=size or side.shape[-1]) for side in sides]
        found.append(of(*(side[..., row] for side, row in zip(sides, rows, strict=True))))
    known = [value for value in found if value is not None]
    low, high = np.quantile(known, [0.025, 0.975]).tolist() if known else (None, None)
    return {"low": low, "high": high}


def samples(ctx: AuditContext) -> int:
    """How many go forward, the way back of a training step counted as two more."""
    trained = ctx.reference is None and "retrained" not in ctx.models
    sizes = {name: len(labels) for name, labels in ctx.labels.items()}
    return sizes["forget"] + sizes["unseen"] + (3 * EPOCHS * sizes["retain"] if trained else 0)


def examine(ctx: AuditContext) -> tuple[dict[str, Any], list[Finding]]:
    """RMIA of forget against unseen samples, and IAM.

    The reference is the one given, or the retrained model, or one that is trained here. The population is the unseen
    samples of the forget classes. Forget samples are tested against these by their ratios, which RMIA grows with: unlike
    a rank in the population, a ratio does not depend on whether a sample belongs to it. The worst tenth is, of RMIA, that of
    the highest scores, beside that of unseen samples, which is high too; and of IAM that which the original remembered most,
    beside the reference. A reference that is far worse than the original, on unseen samples of classes that both know,
    judges nothing.
    """
    given = ctx.reference if ctx.reference is not None else ctx.models.get("retrained")
    reference = train_reference(ctx) if given is None else given
    forget_labels, unseen_labels = ctx.labels["forget"], ctx.labels["unseen"]
    matched = np.isin(unseen_labels, forget_labels)
    original, unlearned = ctx.measured["original"], ctx.measured["unlearned"]
    others = {name: ctx.evaluator.measure(reference, *ctx.sets[name]) for name in ("forget", "unseen")}
    forget, unseen = ([of[name].signals["confidence"] for of in (unlearned, others)] for name in ("forget", "unseen"))
    population = [p[matched] for p in unseen]
    sides = ratio(forget[0], forget[1]), ratio(population[0], population[1])
    tested = exchange(sides[0], forget_labels, sides[1], unseen_labels[matched], seed=ctx.seed)

    rng = np.random.default_rng([ctx.seed, 15])
    margins = np.stack([of["forget"].signals["margin"] for of in (original, unlearned, others)])
    most = np.argsort(margins[2] - margins[0], kind="stable")[: max(1, round(WORST * len(forget_labels)))]
    iam = {"mean": degree(*margins), "worst_decile": degree(*margins[:, most])}
    content = {"iam": iam | _again(rng, lambda m: degree(*m), margins), "notes": []}
    if tested:
        scores, never_seen = (rmia(of[0], of[1], population[0], population[1]) for of in (forget, population))
        content["rmia"] = {
            "auc": tested.auc[0],
            "low": tested.low,
            "high": tested.high,
            "tpr_at_1_fpr": {"value": true_positives(*sides)} | _again(rng, true_positives, *sides),
            "worst_decile": {"value": worst(scores)} | _again(rng, worst, scores),
            "worst_decile_of_unseen": {"value": worst(never_seen)} | _again(rng, worst, never_seen, size=len(scores)),
        }
        if (size := len(never_seen)) < POPULATION:
            content["notes"].append(
                f"The population has {size} samples, fewer than {POPULATION}: its true positives are those at 0% false ones."
            )
    question = "Does the model fit forget samples better than unseen ones, beside a model that has seen neither?"
    finding = stands_out("rmia", question, tested, ["by RMIA"])
    kept = ~matched if ctx.is_class else np.ones(len(matched), bool)  # a reference does not know forgotten classes
    content |= {"reference": "trained" if given is None else "given"}
    if kept.any():
        right = [of["unseen"].signals["correct"][kept] for of in (original, others)]
        content["accuracy"] = {"original": float(right[0].mean()), "reference": float(right[1].mean())}
        if paired_drop(*right, margin=FAR_BELOW).p <= LEVEL:
            finding = dataclasses.replace(finding, p=None, kind="info")
            content["notes"].append(
                f"The reference model is right on {right[1].mean():.1%} of the unseen samples, and the original on "
                f"{right[0].mean():.1%}: it is too weak to judge by."
            )
            finding.sentence += f" {content['notes'][-1]}"
    return {"membership": content}, [finding]
