"""`audit()`: what is left of the forget samples in a model, and what removing them has cost. See docs/audit.md."""

import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..data.source import Columns
from ..data.types import Data, ProcessingClass
from ..errors import UnlearningError
from ..tasks import task_of
from ..training.border import border
from ..training.record import Run
from .checks import AUDITED, check_level, check_models, check_settings
from .content import IN_MEMORY
from .levels import report
from .opening import context_of_run, make_context, models_of_run, name_of, open_model, open_sets, processor_of
from .report import AuditReport
from .split import split_of


@border("The audit")
def audit(
    original: nn.Module | str | Path,
    unlearned: nn.Module | str | Path,
    *,
    forget: Data,
    retain: Data | None,
    unseen: Data | None,
    test: Data | None = None,
    retrained: nn.Module | str | Path | None = None,
    reference: nn.Module | str | Path | None = None,
    base_model: str | None = None,
    processing_class: ProcessingClass | None = None,
    level: int = 0,
    seed: int = 0,
    split_seed: int | None = None,
    batch_size: int | None = None,
    columns: Columns | None = None,
    canaries: str | Sequence[int] | Sequence[bool] | None = None,
    overlap: str = "error",
    minutes: float | None = None,
) -> AuditReport:
    """Look for what is left of `forget` in `unlearned`, and for what that has cost. Nothing is unlearned here.

    Args:
        original, unlearned: the model before and after: models, local folders, or Hub ids, with `@REVISION` behind
            them if need be. Classifiers of images or texts, or causal language models.
        forget: the samples that had to go.
        retain: samples that had to stay; at most 10,000 of them are read, drawn by the seed. None: only unseen samples of
            other classes are asked what they have paid.
        unseen: samples that neither model was trained on, of the same kind as `forget`. Only their evidence half is read,
            as in `unlearn()`, whose methods may have seen the other one: pass the samples that the run had, in their order.
            None: memory is not judged.
        test: read, all of it, instead of that half.
        retrained: a model trained without the forget samples; everything is then also held against it.
        reference: of level 2, a model of the same kind that was never trained on the forget samples.
        base_model: of level 2, the name of what the original was fine-tuned from: where no reference is given, one is
            fine-tuned from it. None: one is trained from new weights.
        processing_class: image processor or tokenizer; default: the original's, where it is loaded from a name.
        level: 0: forward passes only. 1: also probes, rounding and relearning. 2: also attacks with a reference model,
            which is trained where none is given.
        seed: of whatever is drawn.
        split_seed: of the halves of `unseen`; default: what a saved result or a release says of its run, else that of
            `unlearn()`, 42.
        batch_size: samples of one forward pass.
        columns: of the data, where they have unusual names.
        canaries: forget samples whose labels were planted wrong: their places, true or false for each, or the column that
            says so. They are held against unseen samples with wrong labels.
        overlap: `"error"` refuses samples that stand in two of the sets, `"allow"` does not look.
        minutes: from level 1 on, leave out what is expected not to fit; the report names it. None: nothing.

    Example:
        >>> report = audit("me/vit", "me/vit-unlearned", forget=forget, retain=retain, unseen=test)  # doctest: +SKIP
        >>> print(report.summary())  # doctest: +SKIP
    """
    started = time.perf_counter()
    check_level(level, reference, base_model, minutes)
    check_settings(seed, batch_size, columns, overlap)
    given = {"original": original, "unlearned": unlearned, "retrained": retrained, "reference": reference}
    loaded = {name: open_model(model, name) for name, model in given.items() if model is not None}
    check_models(loaded)
    if processing_class is None:
        processing_class = processor_of(given, loaded)
    sets = {"forget": forget, "retain": retain, "unseen": unseen, "test": test}
    task = task_of(loaded["original"])
    samples, collator = open_sets(sets, task, loaded["original"], processing_class, columns, overlap, seed)
    split = split_of(unlearned, split_seed, samples.sources)
    ctx = make_context(loaded, task, samples, collator, split, seed, batch_size, base_model)
    names = {name: name_of(given[name], loaded[name]) for name in ctx.models}
    return report(ctx, level, names, canaries, started, minutes)


@border("The audit")
def audit_run(
    run: Run,
    unlearned: nn.Module,
    level: int = 0,
    retrained: nn.Module | str | Path | None = None,
    reference: nn.Module | str | Path | None = None,
    canaries: str | Sequence[int] | Sequence[bool] | None = None,
    base_model: str | None = None,
    minutes: float | None = None,
) -> AuditReport:
    """The audit of a run, with its own samples, collator, evidence half and, if it has a name, starting point."""
    started = time.perf_counter()
    check_level(level, reference, base_model, minutes)
    if level == 2 and reference is None and isinstance(run.base_model, str) and run.base_model != "scratch":
        base_model = base_model or run.base_model
    if not run.task.is_audited:
        raise UnlearningError(
            f"The model is for {run.task.name}, which cannot be audited; expected one for {', '.join(AUDITED)}."
        )
    if run.sharding and level:
        raise UnlearningError(
            f"level is {level}, which trains and rounds whole models, and the weights are sharded (FSDP); pass level=0, or save "
            "the result and pass the folders to hf_unlearn.audit in one process."
        )
    loaded = models_of_run(run, unlearned)
    others = {"retrained": retrained, "reference": reference}
    loaded |= {name: open_model(model, name, run.sharding) for name, model in others.items() if model is not None}
    check_models(loaded)
    ctx = context_of_run(run, loaded, base_model)
    names = {"unlearned": f"{IN_MEMORY}, by {run.method.name}"}
    names |= {name: name_of(others.get(name), loaded[name]) for name in ctx.models if name != "unlearned"}
    if run.origin:
        names["original"] = f"{run.origin['repo']}@{run.origin['revision']}"
    found = report(ctx, level, names, canaries, started, minutes)
    found.content["method"] = {"name": run.method.name, "kind": run.method.kind}
    found.content["cost"]["seconds"]["unlearning"] = run.runtime["unlearn"]
    found.content["verdict"]["cannot"].append(
        f"How much this depends on chance: one run of {run.method.name} was audited. "
        + (
            "It has no randomness of its own to speak of, so only originals trained with other seeds would tell."
            if run.method.kind == "surgery"
            else "Three with other seeds would tell, and originals trained with other seeds."
        )
    )
    return found
