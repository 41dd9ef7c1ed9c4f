"""Would it have been seen? Samples that were not removed, planted among the forget samples, and whether the tests notice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from .. import metrics
from ..data.source import Source
from ..errors import UnlearningError
from ..tasks.figures import Measurement
from . import plain
from .context import AuditContext
from .matched import first, remembered, stand_out
from .membership import Matched, matched_test
from .verdict import LEVEL, Finding, short


def canary_places(ctx: AuditContext, canaries: str | Sequence | None) -> np.ndarray | None:
    """The places in the forget set of samples whose labels were planted wrong."""
    if canaries is None:
        return None
    source: Source = ctx.evaluator.samples.sources[ctx.sets["forget"][0]]
    if not ctx.task.has_classes:
        raise UnlearningError(f"canaries are planted wrong labels, and {ctx.task.noun} has none; leave them out.")
    if isinstance(canaries, str):
        if not isinstance(source.dataset, Dataset) or canaries not in source.dataset.column_names:
            raise UnlearningError(
                f"canaries is {canaries!r}, and forget has the columns {', '.join(source.column_names)}."
            )
        canaries = source.dataset.with_format(None)[canaries][:]
    try:
        values = np.asarray(canaries)
    except ValueError:  # lists of unequal length
        values = np.empty((len(canaries), 0), object)
    places = np.flatnonzero(values) if values.dtype == bool else values
    size = len(source)
    fits = values.ndim == 1 and (len(values) == size if values.dtype == bool else values.dtype.kind in "iu")
    if not fits or not len(places) or places.min() < 0 or places.max() >= size:
        raise UnlearningError(
            f"canaries are {len(values)} values of type {values.dtype}; expected places from 0 to {size - 1} in forget, or "
            f"true or false for each of its {size} samples, and one at least."
        )
    return np.unique(places)


def wrong_labels(labels: np.ndarray, planted: np.ndarray, seed: int) -> np.ndarray:
    """For each sample a label drawn from the planted ones that is not its own; -1 where there is no such one."""
    rng = np.random.default_rng([seed, 4])
    wrong = np.full(len(labels), -1)
    for c in np.unique(labels):
        if len(pool := planted[planted != c]):
            wrong[labels == c] = rng.choice(pool, (labels == c).sum())
    return wrong


def canary_tests(ctx: AuditContext, places: np.ndarray) -> dict[str, Matched | None]:
    """Canaries against unseen samples with wrong labels, by their margins; one more pass over the unseen samples."""
    if "unseen" not in ctx.sets:
        raise UnlearningError("canaries are held against unseen samples, and there are none; pass unseen=.")
    planted = ctx.labels["forget"][places]
    wrong = wrong_labels(ctx.labels["unseen"], planted, ctx.seed)
    source, indices = ctx.sets["unseen"]
    kept, tests = wrong >= 0, {}
    for name in ("original", "unlearned"):
        margins = np.empty(len(indices))
        for positions, _, logits in ctx.evaluator.predictions(ctx.models[name], source, indices, (0, 1)):
            labels = np.maximum(wrong[positions], 0)
            statistics = metrics.sample_statistics(logits.cpu(), labels)
            margins[positions] = np.asarray(statistics["margin"])
        own = ctx.measured[name]["forget"].signals["margin"][places]
        tests[name] = matched_test(own, planted, margins[kept], wrong[kept])
    return tests


def canary_finding(test: Matched | None, planted: int) -> Finding:
    question = "Are the planted wrong labels still known?"
    if test is None:
        return Finding(
            "canaries", question, "No unseen sample can be given one of the planted labels, so this cannot be judged."
        )
    return Finding(
        "canaries",
        question,
        f"A canary (one of {planted}) has the higher margin than an unseen sample with a wrong label in {test.auc:.1%} of pairs.",
        test.auc,
        p=test.p,
        kind="residual" if test.auc >= 0.5 else "over",
    )


def planted_labels(test: Matched | None, planted: int, among: int) -> dict[str, Any]:
    if test is None:
        sentence = (
            "No unseen sample can be given one of the planted labels, so it is not known what this audit would notice."
        )
        return {"planted": planted, "auc": None, "noticed": False, "sentence": sentence}
    found = test.p * among <= LEVEL and test.auc > 0.5
    stand = f"The {planted} planted wrong labels {'stand' if found else 'do not stand'} out in the original"
    end = "had they been left, this audit would have noticed" if found else "this audit would not notice them"
    return {
        "planted": planted,
        "auc": test.auc,
        "noticed": found,
        "sentence": f"{stand} (AUC {short(test.auc)}): {end}.",
    }


def planted_members(ctx: AuditContext, original: dict[str, Matched], trace: float, among: int) -> dict[str, Any]:
    """A self-test without known canaries: samples that the unlearned model was trained on, in the place of the forget
    samples. In a class request there are none of that class, and the original stands in for a model that forgot nothing:
    by its tests, and the `trace` of what these find."""
    none = {"planted": 0, "auc": None, "noticed": False, "sentence": "There are no samples to plant."}
    if "unseen" not in ctx.sets:
        return none
    of = ctx.measured["unlearned"]
    if not ctx.is_class and "retain" in of:
        rng = np.random.default_rng([ctx.seed, 5])
        labels = ctx.labels["retain"]
        wanted, there = (
            np.bincount(side, minlength=max(1, ctx.num_labels)) for side in (ctx.labels["forget"], labels)
        )
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        place = np.arange(len(labels)) - (np.cumsum(there) - there)[labels[order]]  # within its class
        chosen = order[place < wanted[labels[order]]]
        if len(chosen):
            retain = of["retain"]
            signals = {name: values[chosen] for name, values in retain.signals.items()}
            planted = Measurement(retain.labels[chosen], signals, None)
            if tested := stand_out(planted, of["unseen"], ctx.task):
                trace = remembered(tested, plain.attack(of, ctx.task, planted))
            what = (
                f"Of {len(chosen)} retained samples, planted among the forget samples as ones that were not removed,"
            )
    else:
        chosen, tested = ctx.labels["forget"], original
        what = f"Of the {len(chosen)} forget samples in the original, where nothing is removed,"
    if not len(chosen) or not tested:
        return none
    main = first(tested)
    found = trace * among <= LEVEL
    end = "this audit would have noticed." if found else "this audit would not have noticed."
    return {
        "planted": main.n_forget,
        "auc": main.auc,
        "noticed": found,
        "sentence": f"{what} the AUC over unseen ones is {short(main.auc)}: {end}",
    }
