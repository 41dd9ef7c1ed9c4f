"""What forward passes tell beside membership: what others have paid, what a retrained model says, whether a class is still
known, and whether only the head has changed."""

from typing import Any, cast

import numpy as np

from .. import metrics
from . import passes
from .context import AuditContext
from .membership import Difference, paired_auc, paired_drop, share_above
from .verdict import Finding

HARM = {"retain": 0.02, "unseen": 0.05}  # accuracy that may be lost
RECOGNISED = 0.02  # of a forgotten class, that may still be given its label


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


def recognition(ctx: AuditContext, name: str) -> Finding:
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


def gap(ctx: AuditContext) -> Difference:
    """The AUC of the unlearned model less that of the retrained one."""
    unlearned, retrained = (
        (of["forget"].signals["margin"], of["unseen"].signals["margin"])
        for of in (ctx.measured["unlearned"], ctx.measured["retrained"])
    )
    found = paired_auc(unlearned, retrained, (ctx.labels["forget"], ctx.labels["unseen"]))
    return cast(Difference, found)  # which is asked where some class has both sides


def relative(gap: Difference) -> Finding:
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


def quality(ctx: AuditContext) -> list[Finding]:
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


def head(ctx: AuditContext, distance: dict[str, Any]) -> Finding:
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
