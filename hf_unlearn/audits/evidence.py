"""What forward passes tell: everything of level 0, from measurements of single samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from . import figures, passes, plain
from .canaries import canary_finding, canary_tests, planted_labels, planted_members
from .context import AuditContext
from .findings import gap, harm_findings, head, quality, recognition, relative
from .matched import attack, first, membership_findings, remembered, stand_out, tails
from .membership import Matched
from .plain import Shares
from .verdict import ENOUGH, LEVEL, Finding, decides, seen, short, smallest_auc
from .words import classes, why_unmatched

UNJUDGED = 0.05  # of the forget samples, that may have no unseen samples of their class
UNMATCHED = 0.01  # p at which the retrained model, too, tells forget from unseen samples


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


def judge(ctx: AuditContext, canaries: np.ndarray | None = None, deeper: int = 0) -> Judged:
    """Everything of level 0, from what `passes.measure` has left in the context; `deeper` tests of other levels follow."""
    measured, findings = ctx.measured, []
    rows, reasons = figures.by_model(ctx)
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
        beside.append(relative(gap(ctx)))
    if "retrained" in measured:
        beside += plain.retrained_findings(ctx, control)
    findings += beside
    if matched:
        about = tests["unlearned"], called["unlearned"], rows["unlearned"], ctx.task
        findings += membership_findings(*about, control, beside)
        findings += tails(measured["unlearned"])
    findings += quality(ctx)
    if ctx.is_class:
        findings.append(recognition(ctx, "unlearned"))
    findings += harm_findings(ctx)
    if canaries is not None:
        planted = canary_tests(ctx, canaries)
        findings.append(canary_finding(planted["unlearned"], len(canaries)))
    findings += attack(ctx, matched)
    if changed and distance and distance["head_only"]:
        findings.append(head(ctx, distance))

    among = max(1, sum(decides(finding) for finding in findings) + deeper)
    trace = _trace(ctx, tests["original"], called["original"]) if matched else 1.0
    if canaries is not None:
        canary = planted_labels(planted["original"], len(canaries), among)
    else:
        canary = planted_members(ctx, tests["original"], trace, among)
    prevented, left_out = _cannot(ctx, tests, control, among, trace, canary)
    return Judged(
        request=figures.request(ctx),
        findings=findings,
        cannot=prevented + left_out,
        figures=rows,
        reasons=reasons,
        classes=figures.by_class(ctx, tests["unlearned"]),
        distributions=figures.distributions(ctx),
        worst=figures.worst(ctx),
        distance=distance,
        canary=canary,
        changed=changed,
        can=not prevented,
        share=first(tests["unlearned"]).n_forget / len(ctx.labels["forget"]) if matched else 0.0,
        error=first(tests["unlearned"]).error if control else None,
    )


def _trace(ctx: AuditContext, tests: dict[str, Matched], called: dict[str, Shares]) -> float:
    """The smallest p-value by which the original is found to remember the forget set."""
    p = remembered(tests, called)
    return min(p, cast(float, recognition(ctx, "original").p)) if ctx.is_class else p


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
        return [why_unmatched(ctx)], []
    main, prevented, left_out = first(tests["unlearned"]), [], []
    if main.unmatched:
        size = len(ctx.labels["forget"])
        apart = size - main.n_forget
        told = f"Forget samples of {classes(ctx, main.unmatched)} ({apart} of {size}) have no unseen samples of their class"
        if apart > UNJUDGED * size:
            prevented.append(
                f"{told}, so nothing tells whether they are still known; pass unseen samples of these classes."
            )
        else:
            left_out.append(f"{told} and are left out.")
    asked, others = min(main.n_forget, ctx.given("forget")), min(main.n_unseen, ctx.given("unseen"))
    if (asked, others) != (main.n_forget, main.n_unseen):
        left_out.append(
            f"The {main.n_forget} and {main.n_unseen} samples compared are pieces of {asked} forget and {others} unseen texts, and "
            "count as if each had been drawn by itself, which they were not: intervals are too narrow, and p-values too small."
        )
    auc, least = first(tests["original"]).auc, smallest_auc(main.error, among)
    if asked < ENOUGH or least >= 1:  # of so few, nothing can be said of the original's memory either
        found = f"only an AUC above {short(least)}" if least < 1 else "no AUC"
        prevented.append(
            f"With {asked} forget samples (at least {ENOUGH} are wanted) beside {others} unseen ones, {found} "
            "would have been seen: that nothing was found says little."
        )
    elif trace * among > LEVEL:
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
    return prevented, left_out
