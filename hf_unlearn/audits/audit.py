"""`audit()`: what is left of the forget samples in a model, and what removing them has cost. See docs/audit.md."""

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from .. import models
from ..data.collator import Collator
from ..data.overlap import check_overlaps
from ..data.samples import DrawnSamples, TrainingCollator, is_deterministic
from ..data.source import Columns, Source
from ..data.splits import split_unseen
from ..errors import UnlearningError
from ..models.adapters import is_adapted, merged
from ..tasks.causal_lm import CompletionCollator
from ..tasks.checks import check_samples, number_classes
from ..tasks.evaluation import Evaluator
from ..training.border import border
from . import evidence, exchange, passes
from .context import AuditContext
from .report import AuditReport
from .split import Split, split_of
from .verdict import decide, short

if TYPE_CHECKING:
    from ..api import UnlearningResult

RETAINED = 10_000  # samples that are measured at most
TASKS = ("image-classification", "text-classification", "causal-lm")


@border("The audit")
def audit(
    original: nn.Module | str,
    unlearned: nn.Module | str,
    *,
    forget: Any,
    retain: Any,
    unseen: Any,
    test: Any = None,
    retrained: nn.Module | str | None = None,
    reference: nn.Module | str | None = None,
    base_model: str | None = None,
    processing_class: Any = None,
    level: int = 0,
    seed: int = 0,
    split_seed: int | None = None,
    batch_size: int | None = None,
    columns: Columns | None = None,
    canaries: str | Sequence[int] | Sequence[bool] | None = None,
    overlap: str = "error",
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

    Example:
        >>> report = audit("me/vit", "me/vit-unlearned", forget=forget, retain=retain, unseen=test)  # doctest: +SKIP
        >>> print(report.summary())  # doctest: +SKIP
    """
    started = time.perf_counter()
    check_level(level, reference, base_model)
    for name, value, least in (("seed", seed, 0), ("batch_size", batch_size, 1)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and value >= least or name == "batch_size" and value is None):
            raise UnlearningError(f"{name} is {value!r}; expected a whole number of {least} or more.")
    if not isinstance(columns, (Columns, NoneType)):
        raise UnlearningError(
            f"columns is a {type(columns).__name__}; expected a Columns, as Columns(label=...), or nothing."
        )
    if overlap not in ("error", "allow"):
        raise UnlearningError(f"overlap is {overlap!r}; expected 'error' or 'allow'.")
    given = {"original": original, "unlearned": unlearned, "retrained": retrained, "reference": reference}
    loaded = {name: _loaded(model, name) for name, model in given.items() if model is not None}
    task = models.task_of(loaded["original"])
    check_models(loaded)
    for name in ("original", "unlearned"):
        if processing_class is None and isinstance(given[name], str):
            repo, revision = models.split_revision(given[name])
            processing_class = models.load_processor(repo, loaded[name], revision)

    config = models.base_of(loaded["original"]).config
    sets = {"forget": forget, "retain": retain, "unseen": unseen, "test": test}
    sources = {name: _source(data, name, columns, task) for name, data in sets.items() if data is not None}
    number_classes(sources.values(), config)
    if "forget" not in sources:
        raise UnlearningError("The forget set is not given; pass the samples that had to go as forget=.")
    if overlap == "error":
        check_overlaps(sources)
    split = split_of(unlearned, split_seed, sources)
    collator = (CompletionCollator if task == "causal-lm" else Collator)(
        sources["forget"],
        processing_class,
        None,
        **models.limits(loaded["original"]),
    )
    for source in sources.values():
        collator.check(source)
    check_samples(sources.values(), collator, loaded["original"])
    if task == "causal-lm":
        collator.sizes(sources)  # refuses samples without a completion

    accelerator = Accelerator()
    reference_model = loaded.pop("reference", None)
    for model in (*loaded.values(), reference_model):
        if model is not None:
            model.to(accelerator.device)
    samples = DrawnSamples(
        sources, seed=seed, seeded=not all(is_deterministic(source, collator) for source in sources.values())
    )
    size = batch_size or (8 if task == "causal-lm" else 128)
    num_labels = models.num_labels(loaded["original"])
    ctx = _context(
        loaded,
        Evaluator(accelerator, samples, TrainingCollator(collator), num_labels, size),
        sources,
        _measured(sources, seed, split.seed),
        task,
        _is_class(sources, task),
        seed,
        split,
        reference_model,
        base_model,
    )
    names = {name: _name(given[name], loaded[name]) for name in ctx.models}
    return report(ctx, level, names, canaries, started)


@border("The audit")
def audit_result(
    result: "UnlearningResult",
    level: int = 0,
    retrained: nn.Module | str | None = None,
    reference: nn.Module | str | None = None,
    canaries: str | Sequence[int] | Sequence[bool] | None = None,
    base_model: str | None = None,
) -> AuditReport:
    """The audit of a run, with its own samples, collator, evidence half and, if it has a name, starting point."""
    started = time.perf_counter()
    check_level(level, reference, base_model)
    trainer = result.trainer
    if level == 2 and reference is None and isinstance(trainer.base_model, str) and trainer.base_model != "scratch":
        base_model = base_model or trainer.base_model
    if trainer.task not in TASKS or trainer.is_fsdp_enabled:
        what = "sharded over processes" if trainer.is_fsdp_enabled else f"for {trainer.task}"
        raise UnlearningError(
            f"The model is {what}, which cannot be audited; expected a whole model for {', '.join(TASKS)} (save it and pass "
            "the folders to hf_unlearn.audit)."
        )
    loaded = _of_run(trainer, result.model)
    others = {"retrained": retrained, "reference": reference}
    loaded |= {name: _loaded(model, name) for name, model in others.items() if model is not None}
    check_models(loaded)
    for model in loaded.values():
        model.to(trainer.args.device)
    reference_model = loaded.pop("reference", None)
    indices = {"unseen" if name == "evidence" else name: of for name, of in trainer.indices.items()}
    indices.pop("control", None)
    parts = trainer.evaluator, trainer.sources, indices, trainer.task, trainer.request.is_class
    split = Split(trainer.args.split_seed if trainer.request.is_split else None)
    ctx = _context(loaded, *parts, trainer.args.seed, split, reference_model, base_model)
    names = {"unlearned": trainer.method.info.name}
    names |= {name: _name(others.get(name), model) for name, model in loaded.items() if name != "unlearned"}
    if trainer.origin:
        names["original"] = f"{trainer.origin['repo']}@{trainer.origin['revision']}"
    found = report(ctx, level, names, canaries, started)
    found.content["cost"]["seconds"]["unlearning"] = result.runtime["unlearn"]
    info = trainer.method.info
    found.content["verdict"]["cannot"].append(
        f"How much this depends on chance: one run of {info.name} was audited. "
        + (
            "It has no randomness of its own to speak of, so only originals trained with other seeds would tell."
            if info.kind == "surgery"
            else "Three with other seeds would tell, and originals trained with other seeds."
        )
    )
    return found


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
    from .. import __version__

    if level and (missing := [name for name in ("retain", "unseen") if name not in ctx.sets]):
        raise UnlearningError(f"level is {level}, which needs {missing[0]} samples; pass {missing[0]}=, or level=0.")
    chosen = evidence.canary_places(ctx, canaries)
    passed = time.perf_counter()
    found, why = passes.measure(ctx)
    forward = time.perf_counter() - passed
    deeper = _deeper(level, ctx.task)
    judged = evidence.judge(ctx, chosen, len(deeper))
    content: dict[str, Any] = {
        "format": 1,
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "level": level,
        "seed": ctx.seed,
        "split_seed": ctx.split.seed,
        "task": ctx.task,
        "request": judged.request | {"class_names": evidence.class_names(ctx.models["original"])},
        "models": names,
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
    verdict = decide(
        findings, judged.cannot, changed=judged.changed, judged=judged.can, share=judged.share, power=power
    )
    for finding in verdict.findings:
        if finding.name == "membership" and power:
            finding.sentence += f" An AUC above {short(power)} would have been seen in four of five cases."
    content["verdict"] = verdict.as_dict()
    passes_made = torch.tensor(ctx.passes, device=ctx.evaluator.accelerator.device)
    passes_made = int(ctx.evaluator.accelerator.reduce(passes_made, "sum"))
    seconds["total"] = time.perf_counter() - started
    content["cost"] = {"seconds": seconds, "forward_passes": passes_made}
    content["conventions"] = evidence.conventions(ctx)
    if deeper:
        content["conventions"] += [exchange.CONVENTION, *(module.CONVENTION for module in deeper)]
    else:
        content["conventions"].append(
            "Level 0 looks at outputs only; what lies below them is looked at from level 1 on."
        )
    return AuditReport(content)


def _deeper(level: int, task: str) -> list:
    """The parts of an audit beyond forward passes, each of which adds one test; of a language model only relearning."""
    parts = []
    if level >= 1:
        from . import quantization, relearning, representation

        parts += [relearning] if task == "causal-lm" else [representation, quantization, relearning]
    if level >= 2 and task != "causal-lm":
        from . import reference

        parts.append(reference)
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Models


def _loaded(model: nn.Module | str, name: str) -> nn.Module:
    if isinstance(model, (str, Path)):
        repo, revision = models.split_revision(model)
        return models.load_model(repo, revision=revision)
    if not isinstance(model, nn.Module):
        raise UnlearningError(f"{name} is a {type(model).__name__}; expected a model, a Hub id or a local folder.")
    return _merged(model)


def _merged(model: nn.Module) -> nn.Module:
    """A model with an adapter as one without, that its weights can be compared."""
    return merged(model) if is_adapted(model) else model


def _of_run(trainer: Any, unlearned: nn.Module) -> dict[str, nn.Module]:
    with trainer.original_model() as original:  # under an adapter, the same model with that switched off
        before = _merged(original)
    return {"original": before, "unlearned": _merged(unlearned)}


def check_level(level: int, reference: nn.Module | str | None = None, base_model: str | None = None) -> None:
    if level not in (0, 1, 2):
        raise UnlearningError(
            f"level is {level!r}; expected 0 (forward passes), 1 (probes, relearning) or 2 (attacks)."
        )
    if reference is not None and level < 2:
        raise UnlearningError(
            f"level is {level}, which reads no reference model; pass level=2, or leave reference out."
        )
    if base_model is not None and (level < 2 or reference is not None):
        raise UnlearningError(
            "base_model is what a reference model of level 2 is trained from, and none is trained here; pass level=2 without "
            "reference, or leave base_model out."
        )


def check_models(loaded: dict[str, nn.Module]) -> None:
    """Refuses models that do not say the same kind of thing about a sample, and a stand-in for retraining that is none."""
    original = loaded["original"]
    task = models.task_of(original)
    if task not in TASKS:
        raise UnlearningError(f"The original is for {task}, which cannot be audited; expected {', '.join(TASKS)}.")
    models.check_single_label(original)
    if task == "causal-lm" and "reference" in loaded:
        raise UnlearningError(
            "reference is for attacks on classifiers, and the original is a language model; leave it out."
        )
    for name, model in loaded.items():
        if (other := models.task_of(model)) != task:
            raise UnlearningError(f"original is for {task} and {name} for {other}; expected two models for one task.")
        sizes = [_outputs(m) for m in (original, model)]
        if sizes[0] != sizes[1]:
            what = "words" if task == "causal-lm" else "classes"
            raise UnlearningError(
                f"original has a head of {sizes[0]} {what} and {name} one of {sizes[1]}; expected the same in both."
            )
        maps = [evidence.class_names(m) for m in (original, model)]
        if all(maps) and maps[0] != maps[1]:
            row = next(i for i in range(sizes[0]) if maps[0][i] != maps[1][i])
            raise UnlearningError(
                f"Class {row} is {maps[0][row]!r} in original and {maps[1][row]!r} in {name}; expected one label map "
                "(config.id2label) in both."
            )
        if name in ("retrained", "reference"):
            apart = passes.distance(original, model)
            if apart is not None and apart["total"] == 0:
                raise UnlearningError(
                    f"{name} has the weights of the original, which was trained on the forget samples; expected a model that "
                    "was trained without them."
                )


def _outputs(model: nn.Module) -> int:
    config = models.base_of(model).config
    return models.num_labels(model) or config.get_text_config().vocab_size


def _name(given: Any, model: nn.Module) -> str:
    """A Hub id, or the last part of a path: where it lies on this machine is nobody's business."""
    name = str(given) if isinstance(given, (str, Path)) else models.base_of(model).config.name_or_path
    if not name:
        return type(models.base_of(model)).__name__
    return Path(name).resolve().name if Path(name).exists() or Path(name).is_absolute() else name


# ---------------------------------------------------------------------------------------------------------------------
# Data


def _source(data: Any, name: str, columns: Columns | None, task: str) -> Source:
    source = Source(data, name, columns, task=task)
    if source.is_stream:
        raise UnlearningError(f"{name} is a stream; expected a datasets.Dataset, or a torch Dataset of dicts.")
    if len(source) == 0:
        raise UnlearningError(f"The {name} set is empty; expected at least one sample.")
    return source


def _measured(sources: dict[str, Source], seed: int, split_seed: int | None) -> dict[str, tuple[str, np.ndarray]]:
    sets = {"forget": ("forget", np.arange(len(sources["forget"])))}
    if "retain" in sources:
        size = len(sources["retain"])
        drawn = np.random.default_rng([seed, 3]).choice(size, min(size, RETAINED), replace=False)
        sets["retain"] = ("retain", np.sort(drawn))
    if "test" in sources:
        sets["unseen"] = ("test", np.arange(len(sources["test"])))
    elif "unseen" in sources:
        sets["unseen"] = ("unseen", split_unseen(sources["unseen"].labels, split_seed)[1])
    return {name: of for name, of in sets.items() if len(of[1])}


def _is_class(sources: dict[str, Source], task: str) -> bool:
    if task == "causal-lm" or "retain" not in sources:
        return False
    return not np.isin(sources["forget"].labels, sources["retain"].labels).any()


def _context(
    loaded: dict[str, nn.Module],
    evaluator: Evaluator,
    sources: dict[str, Source],
    sets: dict[str, tuple[str, np.ndarray]],
    task: str,
    is_class: bool,
    seed: int,
    split: Split,
    reference: nn.Module | None,
    base_model: str | None = None,
) -> AuditContext:
    labels = {
        name: sources[source].labels[rows] for name, (source, rows) in sets.items() if not sources[source].is_stream
    }  # of a stream they come with the pass
    return AuditContext(
        models=loaded,
        evaluator=evaluator,
        sets=sets,
        labels=labels,
        is_class=is_class,
        task=task,
        num_labels=evaluator.num_labels,
        collator=evaluator.collator.collator,
        seed=seed,
        split=split,
        reference=reference,
        base_model=base_model,
    )
