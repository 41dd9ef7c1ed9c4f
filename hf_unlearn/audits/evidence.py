"""What forward passes tell: the figures, distributions and tests of level 0, from measurements of single samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import BaseImageProcessor

from .. import metrics, models
from ..data.source import Source
from ..errors import UnlearningError
from ..tasks.figures import Measurement, figures
from . import passes, plain
from .context import AuditContext
from .membership import Difference, Matched, matched_mean, matched_test, paired_auc, paired_drop, share_above
from .plain import Shares
from .verdict import ENOUGH, LEVEL, Finding, decides, seen, short, smallest_auc

# What a sample's score is called; higher for what is remembered. The first one decides what a fault is called.
SCORES = {
    "classifier": {"margin": "margin", "entropy": "certainty (negative entropy)"},
    "causal-lm": {"margin": "likelihood", "min_k": "min-k %", "extraction": "extraction strength"},
}
HARM = {"retain": 0.02, "unseen": 0.05}  # accuracy that may be lost
RECOGNISED = 0.02  # of a forgotten class, that may still be given its label
TAIL = 20  # unseen samples of a class, from which on its highest and lowest twentieth are known
UNJUDGED = 0.05  # of the forget samples, that may have no unseen samples of their class
UNMATCHED = 0.01  # p at which the retrained model, too, tells forget from unseen samples
BINS = 30


@dataclass
class Judged:
    """Level 0 of an audit.

    Attributes:
        worst: model -> what -> mean, 90th percentile and highest; none of fewer than 30 forget samples.
        changed: whether the weights are not the original's.
        can: whether an absence of faults says something about memory.
        share: of the forget samples that have unseen ones of their class, and so are judged.
        error: standard error of the AUC of forget over unseen samples, if both are alike.
    """

    request: dict[str, Any]
    findings: list[Finding]
    cannot: list[str]
    figures: dict[str, dict[str, float | None]]
    reasons: dict[str, str]
    classes: list[dict[str, Any]]
    distributions: dict[str, Any]
    worst: dict[str, Any]
    distance: dict[str, Any] | None
    canary: dict[str, Any]
    changed: bool
    can: bool
    share: float
    error: float | None

    def power(self, findings: Sequence[Finding]) -> float | None:
        """The smallest AUC of forget over unseen samples that would have been seen, as one of all tests of an audit."""
        if self.error is None:
            return None
        return smallest_auc(self.error, max(1, sum(decides(finding) for finding in findings)))


def stand_out(forget: Measurement, unseen: Measurement, task: str) -> dict[str, Matched]:
    """The matched test of each score; none where no forget class has unseen samples."""
    found = {}
    for name in SCORES["causal-lm" if task == "causal-lm" else "classifier"]:
        sign = -1 if name == "entropy" else 1
        sides = [(sign * m.signals[name], m.labels) for m in (forget, unseen)]
        if tested := matched_test(*sides[0], *sides[1]):
            found[name] = tested
    return found


def remembered(tests: dict[str, Matched], called: dict[str, Shares]) -> float:
    """The smallest p-value by which samples stand out above unseen ones; 1 where they do not."""
    found = [shares.p for shares in called.values() if shares.forget > shares.unseen]
    if _first(tests).auc > 0.5:
        found += [p for test in tests.values() for p in (test.p, test.ks_p)]
    return min(found, default=1.0)


def judge(ctx: AuditContext, canaries: np.ndarray | None = None, deeper: int = 0) -> Judged:
    """Everything of level 0, from what `passes.measure` has left in the context; `deeper` tests of other levels follow."""
    measured, findings = ctx.measured, []
    rows, reasons = _figures(ctx)
    distance = passes.distance(ctx.models["original"], ctx.models["unlearned"])
    changed = distance is None or distance["total"] != 0
    if distance is None:
        reasons["distance"] = "the two models do not have the same tensors"
    tests = {
        name: stand_out(of["forget"], of["unseen"], ctx.task) if "unseen" in of else {}
        for name, of in measured.items()
    }
    called = {name: plain.attack(of, ctx.task) if tests[name] else {} for name, of in measured.items()}
    matched = bool(tests["unlearned"])
    control, beside = matched, []
    if matched and "retrained" in tests:
        known = [test.p for test in (*tests["retrained"].values(), *called["retrained"].values())]
        control = min(known) * len(known) >= UNMATCHED
        beside.append(_relative(_gap(ctx)))
    if "retrained" in measured:
        beside += plain.retrained_findings(ctx, control)
    findings += beside
    if matched:
        about = tests["unlearned"], called["unlearned"], rows["unlearned"], ctx.task
        findings += membership_findings(*about, control, beside)
        findings += _tails(measured["unlearned"])
    findings += _quality(ctx)
    if ctx.is_class:
        findings.append(_recognition(ctx, "unlearned"))
    findings += harm_findings(ctx)
    if canaries is not None:
        canary_tests = _canary_tests(ctx, canaries)
        findings.append(_canary_finding(canary_tests["unlearned"], len(canaries)))
    findings += _attack(ctx, matched)
    if changed and distance and distance["head_only"]:
        findings.append(_head(ctx, distance))

    among = max(1, sum(decides(finding) for finding in findings) + deeper)
    trace = _trace(ctx, tests["original"], called["original"]) if matched else 1.0
    if canaries is not None:
        canary = _planted_labels(canary_tests["original"], len(canaries), among)
    else:
        canary = _planted_members(ctx, tests["original"], trace, among)
    prevented, left_out = _cannot(ctx, tests, control, among, trace, canary)
    return Judged(
        request=_request(ctx),
        findings=findings,
        cannot=prevented + left_out,
        figures=rows,
        reasons=reasons,
        classes=_by_class(ctx, tests["unlearned"]),
        distributions=_distributions(ctx),
        worst=_worst(ctx),
        distance=distance,
        canary=canary,
        changed=changed,
        can=not prevented,
        share=_first(tests["unlearned"]).n_forget / len(ctx.labels["forget"]) if matched else 0.0,
        error=_first(tests["unlearned"]).error if control else None,
    )


def _first(tests: dict[str, Matched]) -> Matched:
    """Of the score that is named first in `SCORES`."""
    return next(iter(tests.values()))


def _trace(ctx: AuditContext, tests: dict[str, Matched], called: dict[str, Shares]) -> float:
    """The smallest p-value by which the original is found to remember the forget set."""
    p = remembered(tests, called)
    return min(p, _recognition(ctx, "original").p) if ctx.is_class else p


def _cannot(
    ctx: AuditContext,
    tests: dict[str, dict[str, Matched]],
    control: bool,
    among: int,
    trace: float,
    canary: dict[str, Any],
) -> tuple[list[str], list[str]]:
    """Why an absence of faults would say nothing about memory, the gravest reason first; and what was left out."""
    if not tests["unlearned"]:
        return [_why_unmatched(ctx)], []
    main, prevented, left_out = _first(tests["unlearned"]), [], []
    if main.unmatched:
        size = len(ctx.labels["forget"])
        apart = size - main.n_forget
        told = f"Forget samples of {_classes(ctx, main.unmatched)} ({apart} of {size}) have no unseen samples of their class"
        if apart > UNJUDGED * size:
            prevented.append(
                f"{told}, so nothing tells whether they are still known; pass unseen samples of these classes."
            )
        else:
            left_out.append(f"{told} and are left out.")
    auc, least = _first(tests["original"]).auc, smallest_auc(main.error, among)
    if trace * among > LEVEL:
        prevented.append(
            f"The original itself shows no memory of the forget set (AUC {short(auc)}), so this audit cannot see whether it "
            "was removed."
        )
    elif not seen(trace, among):
        prevented.append(
            f"The original's own memory of the forget set (AUC {short(auc)}) is less than what this audit sees in four of five "
            f"cases (an AUC of {short(least)}), so it may miss a model from which nothing was removed."
        )
    if canary["auc"] is not None and not canary["noticed"]:
        prevented.append(f"The self-test failed, so that nothing was found says little. {canary['sentence']}")
    if not control:
        prevented.append(
            "The retrained model, too, tells forget samples from the unseen ones, so these are no matched control; "
            "only the comparison with the retrained model counts."
        )
    if main.n_forget < ENOUGH or least >= 1:
        found = f"only an AUC above {short(least)}" if least < 1 else "no AUC"
        prevented.append(
            f"With {main.n_forget} forget samples (at least {ENOUGH} are wanted) beside {main.n_unseen} unseen ones, {found} "
            "would have been seen: that nothing was found says little."
        )
    return prevented, left_out


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def _request(ctx: AuditContext) -> dict[str, Any]:
    classes = np.unique(ctx.labels["forget"]) if ctx.num_labels else np.zeros(0, int)
    whole = ~np.isin(classes, ctx.labels["retain"]) if "retain" in ctx.labels else np.zeros(len(classes), bool)
    kind = "class" if ctx.is_class else "mixed" if whole.any() else "instance"
    return {
        "kind": kind,
        "samples": {name: len(rows) for name, (_, rows) in ctx.sets.items()},
        "forget_classes": classes.tolist(),
    }


def _figures(ctx: AuditContext) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
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


def _by_class(ctx: AuditContext, tests: dict[str, Matched]) -> list[dict[str, Any]]:
    """Of each forget class: RF-JSD and AUC, where it has unseen samples."""
    if not ctx.num_labels:
        return []
    names, measured = class_names(ctx.models["original"]), ctx.measured
    aucs = _first(tests).by_class if tests else {}
    divergences = {}
    if aucs and not ctx.is_class:
        sides = measured["unlearned"]["forget"], measured["original"]["unseen"]
        both = metrics.jsd_rows(*(side.class_means(list(aucs)) for side in sides))
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


def _distributions(ctx: AuditContext) -> dict[str, Any]:
    """Shares of samples in bins that all models and sets share; what is outside the middle 99% is in the outer bins."""
    found = {}
    for signal in ("margin", "loss", "entropy"):
        values = np.concatenate([m.signals[signal] for of in ctx.measured.values() for m in of.values()])
        low, high = np.quantile(values, [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        shares = {
            model: {
                name: (np.histogram(m.signals[signal].clip(edges[0], edges[-1]), edges)[0] / len(m.labels)).tolist()
                for name, m in of.items()
            }
            for model, of in ctx.measured.items()
        }
        found[signal] = {"edges": edges.tolist(), **shares}
    return found


def _worst(ctx: AuditContext) -> dict[str, Any]:
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


# ---------------------------------------------------------------------------------------------------------------------
# Tests


def membership_findings(
    tests: dict[str, Matched],
    called: dict[str, Shares],
    row: dict[str, float | None],
    task: str,
    control: bool,
    beside: Sequence[Finding] = (),
) -> list[Finding]:
    """Whether forget samples are where unseen ones are: by each score, by the shape of the distribution of the first, and by
    the plainest attacks.

    All of them are one kind of fault, told by the first one `beside` the retrained model that is sure, else by the surest
    that has a direction. To be sure of wrong answers is not to remember: certainty is memory only where the margin is no
    lower than that of unseen samples. The shape has no direction of its own.
    """
    scores = SCORES["causal-lm" if task == "causal-lm" else "classifier"]
    of_their, of_its = ("", "") if task == "causal-lm" else (" of their class", " of its class")
    (first, main), *others = tests.items()
    told = [
        (test.p, (min(test.auc, main.auc) if name == "entropy" else test.auc) - 0.5) for name, test in tests.items()
    ]
    told += [(shares.p, shares.forget - shares.unseen) for shares in called.values()]
    surest, above = min(told, key=lambda one: one[0])
    side = "residual" if (above if surest <= LEVEL else main.auc - 0.5) >= 0 else "over"
    side = next((finding.kind for finding in beside if finding.p <= LEVEL), side)
    wrong = "entropy" in tests and main.auc < 0.5 < tests["entropy"].auc
    found = [
        Finding(
            "membership",
            f"Do forget samples stand out from unseen ones{of_their}?",
            f"A forget sample has the higher {scores[first]} than an unseen one{of_its} in {main.auc:.1%} of pairs (AUC "
            f"{short(main.auc)}, 95% interval {short(row['auc_low'])} to {short(row['auc_high'])}).",
            main.auc,
            row["auc_low"],
            row["auc_high"],
            main.p,
            kind=side,
        ),
        Finding(
            "spread",
            f"Is the {scores[first]} of forget samples spread as that of unseen ones{of_their}?",
            f"The {scores[first]} of forget samples and that of unseen ones have distributions up to {main.ks:.1%} apart "
            "(Kolmogorov-Smirnov).",
            main.ks,
            p=main.ks_p,
            kind=side,
        ),
    ]
    for name, test in others:
        found.append(
            Finding(
                name,
                f"Do forget samples stand out by {scores[name]}?",
                f"A forget sample has the higher {scores[name]} than an unseen one{of_its} in {test.auc:.1%} of pairs"
                + (
                    ", but not the higher margin: it is sure of wrong answers." if name == "entropy" and wrong else "."
                ),
                test.auc,
                p=test.p,
                kind=side,
            )
        )
    found += plain.matched_findings(called, side)
    return found if control else [replace(finding, kind="info") for finding in found]


def _tails(unlearned: dict[str, Measurement]) -> list[Finding]:
    """The worst cases at both ends, of classes with enough unseen samples to know these."""
    forget, unseen = unlearned["forget"], unlearned["unseen"]
    above, below, total = 0, 0, 0
    for c in np.intersect1d(forget.labels, unseen.labels):
        mine, theirs = forget.signals["margin"][forget.labels == c], unseen.signals["margin"][unseen.labels == c]
        if len(theirs) < TAIL:
            continue
        low, high = np.quantile(theirs, [0.05, 0.95])
        above, below, total = above + (mine > high).sum(), below + (mine < low).sum(), total + len(mine)
    if not total:
        return []
    return [
        Finding(
            "tails",
            "How many forget samples lie where few unseen ones do?",
            f"{above / total:.1%} of the forget samples have margins among the highest twentieth of unseen ones of their class "
            f"or above, and {below / total:.1%} among the lowest or below; about 5% are expected of each.",
            float(above / total),
        )
    ]


def _recognition(ctx: AuditContext, name: str) -> Finding:
    """Of a class request: whether the model still gives samples of the class its label, more than it gives it to others."""
    measured = ctx.measured[name]
    classes = np.unique(ctx.labels["forget"])
    right, elsewhere = [measured["forget"].signals["correct"]], []
    if "unseen" in measured:
        unseen = measured["unseen"]
        right.append(unseen.signals["correct"][np.isin(unseen.labels, classes)])
    for other in ("unseen", "retain"):
        if other in measured:
            kept = ~np.isin(measured[other].labels, classes)
            if kept.any():
                elsewhere.append(measured[other].signals["forget_classes"][kept].mean())
    expected = max(elsewhere, default=0.0)
    found = share_above(np.concatenate(right), expected, RECOGNISED)
    return Finding(
        "recognition",
        "Does the model still recognise the forgotten class?",
        f"It gives samples of the forgotten class their label in {found.value:.1%} of cases, and that label to other samples "
        f"with a probability of {expected:.1%}; a model that was never trained on the class does not tell them apart.",
        found.value,
        found.low,
        found.high,
        found.p,
        kind="residual",
    )


def harm_findings(ctx: AuditContext) -> list[Finding]:
    """What other samples have paid: the accuracy lost against the reference, on the same samples."""
    reference = "retrained" if "retrained" in ctx.models else "original"
    # Classes that are forgotten as a whole pay nothing by being lost; without retained samples all may be such.
    gone = np.setdiff1d(ctx.labels["forget"], ctx.labels.get("retain", []))
    found = []
    for name, margin in HARM.items():
        if name not in ctx.sets:
            continue
        before, after = (ctx.measured[model][name] for model in (reference, "unlearned"))
        kept = ~np.isin(after.labels, gone)
        if not kept.any():
            continue
        lost = paired_drop(before.signals["correct"][kept], after.signals["correct"][kept], margin)
        what = "retained samples" if name == "retain" else "unseen samples"
        what += "" if kept.all() else " of the other classes"
        found.append(
            Finding(
                f"harm_{name}",
                f"Have {what} paid for it?",
                f"The accuracy on {what} is {100 * abs(lost.value):.1f} points {'below' if lost.value >= 0 else 'above'} "
                f"the {reference} model's (95% interval {-100 * lost.high:+.1f} to {-100 * lost.low:+.1f} points; more than "
                f"{100 * margin:.0f} below are harm).",
                lost.value,
                lost.low,
                lost.high,
                lost.p,
                kind="harm",
            )
        )
    return found


def _gap(ctx: AuditContext) -> Difference:
    """The AUC of the unlearned model less that of the retrained one."""
    scores = [
        tuple(ctx.measured[model][name].signals["margin"] for name in ("forget", "unseen"))
        for model in ("unlearned", "retrained")
    ]
    return paired_auc(*scores, (ctx.labels["forget"], ctx.labels["unseen"]))


def _relative(gap: Difference) -> Finding:
    return Finding(
        "relative",
        "Do forget samples stand out more than in the retrained model?",
        f"The AUC of forget over unseen samples is {abs(gap.value):.3f} {'above' if gap.value >= 0 else 'below'} the "
        "retrained model's.",
        gap.value,
        gap.low,
        gap.high,
        gap.p,
        kind="residual" if gap.value >= 0 else "over",
    )


def _quality(ctx: AuditContext) -> list[Finding]:
    if "retrained" not in ctx.models:
        return []
    margins = [ctx.measured[model]["forget"].signals["margin"] for model in ("unlearned", "retrained")]
    p = metrics.forget_quality(*margins)
    return [
        Finding(
            "quality",
            "Are the forget samples' margins distributed as in the retrained model?",
            f"Forget quality (Kolmogorov-Smirnov p-value) is {p:.2g}; two retrained models differ in scale too, so a low "
            "value alone is no fault.",
            p,
        )
    ]


def _attack(ctx: AuditContext, matched: bool) -> list[Finding]:
    """A population attack by swapped halves, and how far the retained samples are exposed to the same comparison."""
    if "retain" not in ctx.sets or "unseen" not in ctx.sets:
        return []
    found, unlearned = [], ctx.measured["unlearned"]
    sizes = [len(ctx.labels[name]) for name in ("retain", "unseen")]
    if matched and min(sizes) >= 4:
        rng = np.random.default_rng(ctx.seed)
        retain, unseen, forget = (unlearned[name].signals["entropy"] for name in ("retain", "unseen", "forget"))
        order = rng.permutation(len(unseen))
        _, unseen, forget = metrics.called_members(rng.permutation(retain), unseen[order], forget)
        kept = np.isin(ctx.labels["forget"], ctx.labels["unseen"])
        other = matched_mean(unseen, ctx.labels["unseen"][order], like=ctx.labels["forget"])
        found.append(
            Finding(
                "attack",
                "Does an attack take forget samples for members?",
                f"A population attack on the entropy calls {forget[kept].mean():.1%} of the forget samples members, and "
                f"{other:.1%} of the unseen ones that it has not seen.",
                float(forget[kept].mean() - other),
            )
        )
    exposed = {}
    for name in ("original", "unlearned"):
        sides = (ctx.measured[name][side] for side in ("retain", "unseen"))
        if tested := matched_test(*(x for side in sides for x in (side.signals["margin"], side.labels))):
            exposed[name] = tested.auc
    if exposed:
        found.append(
            Finding(
                "exposure",
                "Are retained samples easier to tell from unseen ones than before?",
                f"The AUC of retained over unseen samples is {short(exposed['unlearned'])}, and was {short(exposed['original'])} "
                "in the original.",
                exposed["unlearned"],
            )
        )
    return found


def _head(ctx: AuditContext, distance: dict[str, Any]) -> Finding:
    changed = [layer["name"] for layer in distance["layers"] if layer["relative"] != 0]
    alike = False
    if "retrained" in ctx.models:
        other = passes.distance(ctx.models["original"], ctx.models["retrained"])
        alike = other is not None and other["head_only"]
    sentence = f"Only {', '.join(changed)} changed: the features are the original's, and a new head can read them."
    if alike:
        sentence += " So it is in the retrained model: the network was never trained on the forget samples."
    return Finding(
        "head", "Has more than the head changed?", sentence, fails=not alike, kind="info" if alike else "head"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Would it have been seen?


def canary_places(ctx: AuditContext, canaries: str | Sequence | None) -> np.ndarray | None:
    """The places in the forget set of samples whose labels were planted wrong."""
    if canaries is None:
        return None
    source: Source = ctx.evaluator.samples.sources[ctx.sets["forget"][0]]
    if not ctx.num_labels:
        raise UnlearningError("canaries are planted wrong labels, and a language model has none; leave them out.")
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


def _canary_tests(ctx: AuditContext, places: np.ndarray) -> dict[str, Matched | None]:
    """Canaries against unseen samples with wrong labels, by their margins; one more pass over the unseen samples."""
    if "unseen" not in ctx.sets:
        raise UnlearningError("canaries are held against unseen samples, and there are none; pass unseen=.")
    planted = ctx.labels["forget"][places]
    wrong = wrong_labels(ctx.labels["unseen"], planted, ctx.seed)
    source, indices = ctx.sets["unseen"]
    kept, tests = wrong >= 0, {}
    for name in ("original", "unlearned"):
        margins = np.empty(len(indices))
        for positions, _, logits in ctx.evaluator.logits(ctx.models[name], source, indices, (0, 1)):
            labels = np.maximum(wrong[positions], 0)
            statistics = metrics.sample_statistics(logits.cpu(), labels)
            margins[positions] = statistics["margin"].numpy()
        own = ctx.measured[name]["forget"].signals["margin"][places]
        tests[name] = matched_test(own, planted, margins[kept], wrong[kept])
    return tests


def _canary_finding(test: Matched | None, planted: int) -> Finding:
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


def _planted_labels(test: Matched | None, planted: int, among: int) -> dict[str, Any]:
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


def _planted_members(ctx: AuditContext, original: dict[str, Matched], trace: float, among: int) -> dict[str, Any]:
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
    main = _first(tested)
    found = trace * among <= LEVEL
    end = "this audit would have noticed." if found else "this audit would not have noticed."
    return {
        "planted": main.n_forget,
        "auc": main.auc,
        "noticed": found,
        "sentence": f"{what} the AUC over unseen ones is {short(main.auc)}: {end}",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Words


def conventions(ctx: AuditContext) -> list[str]:
    """How the figures were made, and what is taken for granted."""
    said = ["Natural logarithms; statistics in float64 after the forward pass."]
    processor = ctx.collator.processing_class
    if isinstance(processor, BaseImageProcessor) and ctx.collator.raw_columns:
        backend = getattr(processor, "backend", "its own")  # that of timm has none
        said.append(f"Images are read by {type(processor).__name__}; backend: {backend}.")
    if "unseen" in ctx.sets:
        said.append(f"Unseen samples are {ctx.split}.")
        said.append(
            "They are taken for what the forget samples would be to a model that was never trained on these. Mislabelled, "
            "poisoned or hand-picked forget samples need unseen samples of the same kind."
        )
    if ctx.num_labels:
        said += [
            "Margin: log p(true class) − log of the sum of the others' probabilities.",
            "AUC: P(forget > unseen) + ½ P(equal) by the margin, within classes, weighted by forget samples; 95% bootstrap "
            "interval. Above 0.5 is memory, below 0.5 a trace of the removal.",
            "JSD: ½ KL(P‖M) + ½ KL(Q‖M), M = (P + Q)/2. RF-JSD: between the mean prediction of the unlearned model on forget "
            "samples and the original's on unseen ones, class by class.",
        ]
    else:
        said += [
            "Of each text: the mean log-likelihood of its completion tokens; min-k %: that of the 20% least likely ones; "
            "extraction strength: the share of the completion that greedy decoding gives right after the shortest prefix "
            "from which it does.",
            "AUC: P(forget > unseen) + ½ P(equal) by the mean log-likelihood; 95% bootstrap interval.",
        ]
    said += [
        "MIA: logistic regression on the entropy, members are retained samples, fitted on one half and asked on the other, "
        "halves swapped; the share of forget samples called members.",
        *([plain.CONVENTION] if "unseen" in ctx.sets else []),
        *([plain.BESIDE] if "retrained" in ctx.models else []),
        f"Harm: accuracy on the same samples, more than {100 * HARM['retain']:.0f} points (retained) or {100 * HARM['unseen']:.0f} "
        f"(unseen) below the {'retrained' if 'retrained' in ctx.models else 'original'} model's.",
        f"All tests that may fail the model are corrected together (Holm): a model that has never seen the forget samples "
        f"fails in {LEVEL:.0%} of audits.",
    ]
    said.append(
        "Harm is judged beside the retrained model, and memory beside it and the unseen samples."
        if "retrained" in ctx.models
        else "Memory is judged beside unseen samples; no retrained model was given."
    )
    return said


def _why_unmatched(ctx: AuditContext) -> str:
    if "unseen" not in ctx.sets:
        return "There are no unseen samples to compare forget samples with."
    return f"There is no unseen sample of {_classes(ctx, np.unique(ctx.labels['forget']).tolist())} to compare forget samples with."


def _classes(ctx: AuditContext, classes: list[int]) -> str:
    names = class_names(ctx.models["original"])
    said = [names[c] if names else str(c) for c in classes[:5]]
    more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
    return f"class {', '.join(said)}{more}"


def class_names(model: nn.Module) -> list[str] | None:
    """Of a classifier that has names of its own."""
    if not (size := models.num_labels(model)):
        return None
    id2label = models.base_of(model).config.id2label
    names = [str(id2label.get(i, f"LABEL_{i}")) for i in range(size)]
    return None if names == [f"LABEL_{i}" for i in range(size)] else names
