"""What an audit of each level looks at, and its report. Level 0: outputs; 1: also what lies below them; 2: also attacks."""

import contextlib
import dataclasses
import datetime
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list

from .. import __version__
from ..errors import UnlearningError
from ..metrics.tables import wrapped
from ..models import adapters
from . import answers, exchange, passes, quantization, reference, relearning, representation
from .canaries import canary_places
from .context import AuditContext
from .evidence import judge
from .report import AuditReport
from .verdict import decide, short
from .words import conventions

# Beyond forward passes, each of which adds one test; which of them a level has, is the task's to say.
PARTS = {
    "representation": representation,
    "quantization": quantization,
    "relearning": relearning,
    "answers": answers,
    "reference": reference,
}


def report(
    ctx: AuditContext,
    level: int,
    names: dict[str, str],
    canaries: str | Sequence | None,
    started: float,
    minutes: float | None = None,
) -> AuditReport:
    """Everything of a level, or of it what fits into some minutes, with the forward passes that it took."""
    with contextlib.ExitStack() as stack:
        for model in {*ctx.models.values(), ctx.reference} - {None}:
            stack.callback(ctx.count(model).remove)
        return _report(ctx, level, names, canaries, started, minutes)


def plan(ctx: AuditContext, level: int, forward: float, left: float | None) -> tuple[list[str], dict[str, str]]:
    """Which parts beyond forward passes are made, and of the others why not; what each is expected to cost is printed.

    Args:
        forward: seconds of the forward passes that `ctx.passes` counts; the expectation follows from these.
        left: seconds that are left; None: as many as it takes.
    """
    parts = [name for at, names in ctx.task.audit_parts.items() if at <= level for name in names]
    sizes = {name: PARTS[name].samples(ctx) for name in parts}
    reasons = {name: size for name, size in sizes.items() if isinstance(size, str)}
    # Of those that have something to look at.
    costs = {n: size * forward / max(1, ctx.passes) for n, size in sizes.items() if isinstance(size, int) and size}
    made, spent = [], 0.0
    for name in sorted(costs, key=lambda name: costs[name]):
        if left is None or spent + costs[name] <= left:
            made, spent = [*made, name], spent + costs[name]
    # Clocks differ between processes, and all must do the same.
    (made, costs) = cast(tuple, broadcast_object_list([made, costs]))
    if costs and ctx.evaluator.accelerator.is_main_process:
        told = ", ".join(f"{name} about {duration(cost)}" for name, cost in costs.items())
        without = [name for name in costs if name not in made]
        told += f"; left out: {', '.join(without)}" if without else ""
        print(wrapped(f"Beyond forward passes ({duration(forward)}): {told}.", "  "), file=sys.stderr, flush=True)
    reasons |= {
        name: f"left out, as about {duration(cost)} did not fit into the minutes that were given"
        for name, cost in costs.items()
        if name not in made
    }
    return [name for name in costs if name in made], reasons


def duration(seconds: float) -> str:
    """In words.

    >>> duration(0.2), duration(75.0), duration(540)
    ('1 s', '75 s', '9 min')
    """
    return f"{max(1, round(seconds))} s" if seconds < 120 else f"{round(seconds / 60)} min"


def _report(
    ctx: AuditContext,
    level: int,
    names: dict[str, str],
    canaries: str | Sequence | None,
    started: float,
    minutes: float | None,
) -> AuditReport:
    if level and (missing := [name for name in ("retain", "unseen") if name not in ctx.sets]):
        raise UnlearningError(f"level is {level}, which needs {missing[0]} samples; pass {missing[0]}=, or level=0.")
    chosen = canary_places(ctx, canaries)
    passed = time.perf_counter()
    found, why = passes.measure(ctx)
    forward = time.perf_counter() - passed
    left = None if minutes is None else 60 * minutes - (time.perf_counter() - started)
    parts, left_out = plan(ctx, level, forward, left)
    deeper = [PARTS[name] for name in parts]
    judged = judge(ctx, chosen, len(deeper))
    content: dict[str, Any] = {
        "format": 1,
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "level": level,
        "seed": ctx.seed,
        "split_seed": ctx.split.seed,
        "task": ctx.task.name,
        "request": judged.request | {"class_names": ctx.task.class_names},
        "models": names,
        "weights": {name: adapters.weights_digest(ctx.models[name]) for name in ("original", "unlearned")},
        "verdict": {},
        "figures": judged.figures,
        "reasons": judged.reasons | ({"locality": why} if why else {}) | left_out,
        "classes": judged.classes,
        "distributions": judged.distributions,
        "worst": judged.worst,
        "distance": judged.distance,
        "locality": {name: dataclasses.asdict(place) for name, place in found.items()},
        "canary": judged.canary,
    }
    seconds = {"forward": forward}
    findings = judged.findings
    for module in deeper:
        began = time.perf_counter()
        part, more = module.examine(ctx)
        content |= part
        if judged.error is None:  # unseen samples are no control of the forget samples
            more = [dataclasses.replace(finding, kind="info") for finding in more]
        findings = [*findings, *more]
        seconds[module.__name__.rpartition(".")[2]] = time.perf_counter() - began
    power = judged.power(findings)
    about = {"changed": judged.changed, "judged": judged.can, "share": judged.share, "power": power}
    cannot = [f"What {name} would show: it was {why}." for name, why in left_out.items()]
    verdict = decide(findings, [*judged.cannot, *cannot], **about)
    for finding in verdict.findings:
        if finding.name == "membership" and power:
            finding.sentence += f" An AUC above {short(power)} would have been seen in four of five cases."
    content["verdict"] = verdict.as_dict()
    accelerator = ctx.evaluator.accelerator
    passes_made = cast(torch.Tensor, accelerator.reduce(torch.tensor(ctx.passes, device=accelerator.device), "sum"))
    seconds["total"] = time.perf_counter() - started
    content["cost"] = {"seconds": seconds, "forward_passes": int(passes_made)}
    content["conventions"] = conventions(ctx)
    if deeper:
        content["conventions"] += [exchange.CONVENTION, *(module.CONVENTION for module in deeper)]
    else:
        content["conventions"].append(
            "Level 0 looks at outputs only; what lies below them is looked at from level 1 on."
        )
    return AuditReport(content)
