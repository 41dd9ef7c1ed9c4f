"""Do forget samples stand out from unseen ones, by any score, by its spread, by the plainest attacks? Each model is asked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from .. import metrics
from ..tasks.base import Task
from ..tasks.figures import Measurement
from . import plain
from .context import AuditContext
from .membership import Matched, matched_mean, matched_test
from .plain import Shares
from .verdict import LEVEL, Finding, Kind, short

TAIL = 20  # unseen samples of a class, from which on its highest and lowest twentieth are known


def stand_out(forget: Measurement, unseen: Measurement, task: Task) -> dict[str, Matched]:
    """The matched test of each score; none where no forget class has unseen samples."""
    found = {}
    for name in task.scores:
        sign = -1 if name == "entropy" else 1
        sides = [(sign * m.signals[name], m.labels) for m in (forget, unseen)]
        if tested := matched_test(*sides[0], *sides[1]):
            found[name] = tested
    return found


def remembered(tests: dict[str, Matched], called: dict[str, Shares]) -> float:
    """The smallest p-value by which samples stand out above unseen ones; 1 where they do not."""
    found = [shares.p for shares in called.values() if shares.forget > shares.unseen]
    if first(tests).auc > 0.5:
        found += [p for test in tests.values() for p in (test.p, test.ks_p)]
    return min(found, default=1.0)


def first(tests: dict[str, Matched]) -> Matched:
    """Of the score that is named first in `SCORES`."""
    return next(iter(tests.values()))


def membership_findings(
    tests: dict[str, Matched],
    called: dict[str, Shares],
    row: dict[str, float | None],
    task: Task,
    control: bool,
    beside: Sequence[Finding] = (),
) -> list[Finding]:
    """Whether forget samples are where unseen ones are: by each score, by the shape of the distribution of the first, and by
    the plainest attacks.

    All of them are one kind of fault, told by the first one `beside` the retrained model that is sure, else by the surest
    that has a direction. To be sure of wrong answers is not to remember: certainty is memory only where the margin is no
    lower than that of unseen samples. The shape has no direction of its own.
    """
    scores, (of_their, of_its) = task.scores, task.of_class
    (first, main), *others = tests.items()
    told = [
        (test.p, (min(test.auc, main.auc) if name == "entropy" else test.auc) - 0.5) for name, test in tests.items()
    ]
    told += [(shares.p, shares.forget - shares.unseen) for shares in called.values()]
    surest, above = min(told, key=lambda one: one[0])
    side: Kind = "residual" if (above if surest <= LEVEL else main.auc - 0.5) >= 0 else "over"
    sure: list[Kind] = [finding.kind for finding in beside if finding.p is not None and finding.p <= LEVEL]
    side = sure[0] if sure else side
    low, high = cast(float, row["auc_low"]), cast(float, row["auc_high"])  # there are unseen samples
    wrong = "entropy" in tests and main.auc < 0.5 < tests["entropy"].auc
    found = [
        Finding(
            "membership",
            f"Do forget samples stand out from unseen ones{of_their}?",
            f"A forget sample has the higher {scores[first]} than an unseen one{of_its} in {main.auc:.1%} of pairs (AUC "
            f"{short(main.auc)}, 95% interval {short(low)} to {short(high)}).",
            main.auc,
            low,
            high,
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


def tails(unlearned: dict[str, Measurement]) -> list[Finding]:
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


def attack(ctx: AuditContext, matched: bool) -> list[Finding]:
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
