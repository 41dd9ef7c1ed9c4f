"""The figures of level 0, before any test: of each model, of each class, and how the scores of single samples are spread."""

from typing import Any

import numpy as np

from .. import metrics
from ..tasks.figures import Measurement, figures
from .context import AuditContext
from .matched import first
from .membership import Matched
from .verdict import ENOUGH

BINS = 30


def request(ctx: AuditContext) -> dict[str, Any]:
    classes = np.unique(ctx.labels["forget"]) if ctx.task.has_classes else np.zeros(0, int)
    whole = ~np.isin(classes, ctx.labels["retain"]) if "retain" in ctx.labels else np.zeros(len(classes), bool)
    kind = "class" if ctx.is_class else "mixed" if whole.any() else "instance"
    return {
        "kind": kind,
        "samples": {name: ctx.given(name) for name in ctx.sets},
        "forget_classes": classes.tolist(),
    }


def by_model(ctx: AuditContext) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
    names = {"unseen": "evidence"}
    measured = {
        model: {names.get(split, split): values for split, values in of.items()} for model, of in ctx.measured.items()
    }
    rows, reasons = {}, {}
    for model, of in measured.items():
        size = sum(len(of[name].labels) for name in ("forget", "evidence") if name in of)
        resamples = min(
            1000, max(200, 4_000_000 // size)
        )  # of very many samples fewer: they would cost more than the rest
        values, why = figures(of, measured["original"], class_request=ctx.is_class, bootstrap=resamples)
        for only_steers in (values, why):
            only_steers.pop("gap", None)
        rows[model], reasons = values, reasons | why
    if "retrained" in ctx.models:
        reference = rows["retrained"]
        for model, values in rows.items():
            for name in ("jsd", "activation_distance"):
                values[name] = 0.0 if model == "retrained" else measured[model]["forget"].mean(name)
            values |= ctx.evaluator.beside(values, reference, measured[model], measured["retrained"])
            margins = [ctx.measured[m]["forget"].signals["margin"] for m in (model, "retrained")]
            values["forget_quality"] = metrics.forget_quality(*margins)
    return rows, reasons


def by_class(ctx: AuditContext, tests: dict[str, Matched]) -> list[dict[str, Any]]:
    """Of each forget class: RF-JSD and AUC, where it has unseen samples."""
    if not ctx.task.has_classes:
        return []
    names, measured = ctx.task.class_names, ctx.measured
    aucs = first(tests).by_class if tests else {}
    divergences = {}
    if aucs and not ctx.is_class:
        sides = measured["unlearned"]["forget"], measured["original"]["unseen"]
        both = metrics.jsd_rows(*(side.class_means(np.array(list(aucs))) for side in sides))
        divergences = dict(zip(aucs, both.tolist(), strict=True))
    counts = {
        name: np.bincount(ctx.labels.get(name, np.zeros(0, int)), minlength=ctx.num_labels)
        for name in ("forget", "unseen")
    }
    return [
        {
            "class": c,
            "name": names[c] if names else None,
            **{name: int(count[c]) for name, count in counts.items()},
            "rf_jsd": divergences.get(c),
            "auc": aucs.get(c),
        }
        for c in np.flatnonzero(counts["forget"]).tolist()
    ]


def distributions(ctx: AuditContext) -> dict[str, Any]:
    """Shares of samples in bins that all models and sets share; what is outside the middle 99% is in the outer bins.

    Of a request for whole classes, unseen samples are those of these classes, if there are any: even a retrained model tells
    others apart.
    """
    found = {}
    for signal in ("margin", "loss", "entropy"):
        drawn = {
            model: {name: m.signals[signal][_like_forgotten(ctx, name, m)] for name, m in of.items()}
            for model, of in ctx.measured.items()
        }
        values = np.concatenate([shown for of in drawn.values() for shown in of.values()])
        low, high = np.quantile(values, [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        shares = {
            model: {
                name: (np.histogram(shown.clip(edges[0], edges[-1]), edges)[0] / len(shown)).tolist()
                for name, shown in of.items()
            }
            for model, of in drawn.items()
        }
        found[signal] = {"edges": edges.tolist(), **shares}
    return found


def _like_forgotten(ctx: AuditContext, name: str, measured: Measurement) -> np.ndarray:
    every = np.ones(len(measured.labels), bool)
    if name != "unseen" or not ctx.is_class:
        return every
    of_class = np.isin(measured.labels, ctx.labels["forget"])
    return of_class if of_class.any() else every


def worst(ctx: AuditContext) -> dict[str, Any]:
    """What means do not tell: the most exposed of the forget samples, and of the unseen ones of their classes."""
    if len(ctx.labels["forget"]) < ENOUGH:
        return {}
    found: dict[str, Any] = {}
    for model, of in ctx.measured.items():
        values = {"forget_margin": of["forget"].signals["margin"]}
        if "unseen" in of and (matched := np.isin(of["unseen"].labels, of["forget"].labels)).any():
            values["unseen_margin"] = of["unseen"].signals["margin"][matched]
        if "jsd" in of["forget"].signals:
            values["jsd"] = of["forget"].signals["jsd"]
        found[model] = {
            name: {"mean": float(v.mean()), "p90": float(np.quantile(v, 0.9)), "max": float(v.max())}
            for name, v in values.items()
        }
    return found
