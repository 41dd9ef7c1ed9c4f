"""From a trainer that is done to the record of its run."""

from pathlib import Path
from typing import Any

import numpy as np

from .record import Run
from .trainer import UnlearningTrainer


def record(trainer: UnlearningTrainer) -> Run:
    """What there is to know of the trainer's run, as it stands now."""
    args, request = trainer.args, trainer.request
    return Run(
        model=trainer.model,
        adapter=trainer.adapter,
        original=trainer.original_model,
        method=trainer.method.info,
        task=trainer.task,
        sources=trainer.sources,
        indices=trainer.indices,
        evaluator=trainer.evaluator,
        columns=args.columns,
        processing_class=trainer.processing_class,
        forget_classes=request.forget_classes,
        is_class=request.is_class,
        request=_request(trainer),
        read=_read(trainer),
        origin=trainer.origin,
        original_folder=trainer.original_folder,
        base_model=trainer.base_model,
        folder=Path(args.output_dir),
        seeds={
            "unlearning": args.seed,
            "schedule": args.seed if args.data_seed is None else args.data_seed,
            "split": args.split_seed if request.is_split else None,
        },
        runtime=trainer.runtime,
        device=args.device,
        processes=args.world_size,
        writes=args.should_save,
        sharding=trainer.sharding,
    )


def _request(trainer: UnlearningTrainer) -> dict[str, Any]:
    request = trainer.request
    whole = np.zeros(0, int)
    if trainer.task.has_classes and request.retain is not None and not request.retain.is_stream:
        whole = np.setdiff1d(request.forget_classes, request.retain.labels)
    kind = "class" if request.is_class else "mixed" if len(whole) else "instance"
    return {
        "kind": kind,
        "samples": {name: source.count() for name, source in trainer.sources.items()},
        "whole_classes": len(request.forget_classes) if request.is_class else len(whole),
        "tasks": list(trainer.targets) or None,
        "class_names": None,
    }


def _read(trainer: UnlearningTrainer) -> dict[str, int]:
    """How many different samples of each set an update was made of, in how many steps; an edit reads every one."""
    sources = {name: trainer.sources[name] for name in ("forget", "retain") if name in trainer.sources}
    if trainer.method.info.kind == "surgery":
        return {name: source.count() for name, source in sources.items()} | {"steps": 0, "batch_size": 0}
    schedule = trainer.planned
    used = schedule.used() if trainer.state.global_step else np.zeros(0, int)
    rows = {"forget": used[used < schedule.n_forget], "retain": used[used >= schedule.n_forget] - schedule.n_forget}
    return {name: source.count(rows[name]) for name, source in sources.items()} | {
        "steps": trainer.state.global_step,
        "batch_size": schedule.batch_size,
    }
