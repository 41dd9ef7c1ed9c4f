"""What a run was, in numbers and names that can be published: no sample, no text, no label of a sample, no path."""

import dataclasses
import platform
import secrets
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .. import __version__, models
from ..models.adapters import is_adapted
from ..models.multitask import MultiTaskModel
from .identity import fingerprint

if TYPE_CHECKING:
    from .trainer import UnlearningTrainer


def describe_run(trainer: "UnlearningTrainer", model: nn.Module | None = None) -> dict[str, Any]:
    """What `metrics.json` has under `run`, for the model card; `model` is what is saved, if not the trainer's.

    `measured` are the numbers of samples that the figures are of; `read` those that an update was made of.
    """
    model = trainer.model if model is None else model
    args, info, network = trainer.args, trainer.method.info, models.base_of(model)
    config = getattr(network, "config", None)
    cuda = args.device.type == "cuda"
    packages = ["torch", "transformers", "accelerate", "datasets"]
    packages += ["timm"] * (getattr(config, "model_type", "") == "timm_wrapper")
    packages += ["peft"] * is_adapted(trainer.model)
    return {
        "task": trainer.task,
        "library": _library(model),
        "architecture": getattr(config, "architecture", None) or type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "has_batchnorm": bool(models.batchnorm_modules(network)),
        "original": trainer.origin,
        "method": {
            "name": info.name,
            "kind": info.kind,
            "summary": info.summary,
            "needs": list(info.needs),
            "paper": info.paper and dataclasses.asdict(info.paper) | {"url": info.paper.url},
        },
        "request": _request(trainer),
        "measured": {
            {"evidence": "unseen"}.get(split, split): len(rows)
            for split, (_, rows) in trainer.indices.items()
            if split != "control"
        },
        "read": _read(trainer),
        "seeds": {
            "unlearning": args.seed,
            "schedule": args.seed if args.data_seed is None else args.data_seed,
            "split": args.split_seed if trainer.request.is_split else None,
        },
        "device": torch.cuda.get_device_name(args.device) if cuda else args.device.type,
        "processes": args.world_size,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated(args.device) if cuda else None,
        "versions": {
            "hf_unlearn": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }


def _library(model: nn.Module) -> str | None:
    """What loads the model; None for a class of the user's own."""
    if is_adapted(model):
        return "peft"
    if isinstance(model, MultiTaskModel):
        return "hf_unlearn"
    if not hasattr(model, "config"):
        return None
    return "timm" if model.config.model_type == "timm_wrapper" else "transformers"


def _request(trainer: "UnlearningTrainer") -> dict[str, Any]:
    request = trainer.request
    whole = np.zeros(0, int)
    if trainer.num_labels and request.retain is not None and not request.retain.is_stream:
        whole = np.setdiff1d(request.forget_classes, request.retain.labels)
    kind = "class" if request.is_class else "mixed" if len(whole) else "instance"
    return {
        "kind": kind,
        "samples": {name: len(source) for name, source in trainer.sources.items()},
        "whole_classes": len(request.forget_classes) if request.is_class else len(whole),
        "tasks": trainer.targets if trainer.tasks else None,
        "class_names": None,
        "unseen": _unseen(trainer),
    }


def _unseen(trainer: "UnlearningTrainer") -> dict[str, Any] | None:
    """By what an audit finds out whether it has these unseen samples in this order, and so which of them steered.

    With the salt beside them, the digests only tell of a whole set whether it is this one; no request is for any of its
    samples.
    """
    if not trainer.request.is_split:
        return None
    salt = secrets.token_hex(16)
    return {"salt": salt, **fingerprint(trainer.sources["unseen"], salt)}


def _read(trainer: "UnlearningTrainer") -> dict[str, int]:
    """How many different samples of each set an update was made of, in how many steps; an edit reads every one."""
    sizes = {name: len(trainer.sources[name]) for name in ("forget", "retain") if name in trainer.sources}
    if trainer.method.info.kind == "surgery":
        return sizes | {"steps": 0, "batch_size": 0}
    schedule = trainer.schedule
    used = schedule.used() if trainer.state.global_step else np.zeros(0, int)
    counts = {"forget": int((used < schedule.n_forget).sum()), "retain": int((used >= schedule.n_forget).sum())}
    return {name: counts[name] for name in sizes} | {
        "steps": trainer.state.global_step,
        "batch_size": schedule.batch_size,
    }
