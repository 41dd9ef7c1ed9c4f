"""What an audit of each level looks at, and its report. Level 0: outputs; 1: also what lies below them; 2: also attacks."""

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Sequence
from typing import Any, cast

import torch

from .. import __version__, models
from ..errors import UnlearningError
from . import exchange, passes, quantization, reference, relearning, representation
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
    "reference": reference,
}


def report(
    ctx: AuditContext, level: int, names: dict[str, str], canaries: str | Sequence | None, started: float
) -> AuditReport:
    """Everything of a level, with the forward passes that it took."""
    with contextlib.ExitStack() as stack:
        for model in {*ctx.models.values(), ctx.reference} - {None}:
            stack.callback(ctx.count(model).remove)
        return _report(ctx, level, names, canaries, started)


def _report(
    ctx: AuditContext, level: int, names: dict[str, str], canaries: str | Sequence | None, started: float
) -> AuditReport:
    if level and (missing := [name for name in ("retain", "unseen") if name not in ctx.sets]):
        raise UnlearningError(f"level is {level}, which needs {missing[0]} samples; pass {missing[0]}=, or level=0.")
    chosen = canary_places(ctx, canaries)
    passed = time.perf_counter()
    found, why = passes.measure(ctx)
    forward = time.perf_counter() - passed
    deeper = [PARTS[name] for at, names in ctx.task.audit_parts.items() if at <= level for name in names]
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
        "weights": {name: models.weights_digest(ctx.models[name]) for name in ("original", "unlearned")},
        "verdict": {},
        "figures": judged.figures,
        "reasons": judged.reasons | ({"locality": why} if why else {}),
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
    verdict = decide(findings, judged.cannot, **about)
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
