"""What a run was, in numbers and names that can be published: no sample, no text, no label of a sample, no path."""

import dataclasses
import platform
import secrets
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from .. import __version__, models
from ..models.adapters import is_adapted
from ..models.multitask import MultiTaskModel
from ..models.timm import is_timm
from .fingerprint import fingerprint
from .record import Run


def describe_run(run: Run, model: nn.Module | None = None) -> dict[str, Any]:
    """What `metrics.json` has under `run`, for the model card; `model` is what is saved, if not the run's.

    `measured` are the numbers of samples that the figures are of; `read` those that an update was made of.
    """
    model = run.model if model is None else model
    network, info = models.base_of(model), run.method
    config = getattr(network, "config", None)
    cuda = run.device.type == "cuda"
    return {
        "task": run.task.name,
        "library": _library(model),
        "architecture": getattr(config, "architecture", None) or type(network).__name__.removeprefix("FSDP"),
        "parameters": sum(p.numel() for p in network.parameters()),
        "has_batchnorm": bool(models.batchnorm_modules(network)),
        "original": run.origin,
        "method": {
            "name": info.name,
            "kind": info.kind,
            "summary": info.summary,
            "needs": list(info.needs),
            "paper": info.paper and dataclasses.asdict(info.paper) | {"url": info.paper.url},
        },
        "request": run.request | {"unseen": _unseen(run)},
        "measured": {
            {"evidence": "unseen"}.get(split, split): run.sources[source].count(rows)
            for split, (source, rows) in run.indices.items()
            if split != "control"
        },
        "read": run.read,
        "seeds": run.seeds,
        "device": torch.cuda.get_device_name(run.device) if cuda else run.device.type,
        "processes": run.processes,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated(run.device) if cuda else None,
        "versions": versions(run),
    }


def versions(run: Run) -> dict[str, str]:
    """Of Python, this library, and those that the run went through."""
    packages = ["torch", "transformers", "accelerate", "datasets"]
    packages += ["timm"] * is_timm(getattr(models.base_of(run.model), "config", None))
    packages += ["peft"] * is_adapted(run.model)
    return {
        "hf_unlearn": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _library(model: nn.Module) -> str | None:
    """What loads the model; None for a class of the user's own."""
    if is_adapted(model):
        return "peft"
    if isinstance(model, MultiTaskModel):
        return "hf_unlearn"
    if (config := getattr(model, "config", None)) is None:
        return None
    return "timm" if is_timm(config) else "transformers"


def _unseen(run: Run) -> dict[str, Any] | None:
    """By what an audit finds out whether it has these unseen samples in this order, and so which of them steered.

    With the salt beside them, the digests only tell of a whole set whether it is this one; no request is for any of its
    samples.
    """
    if run.seeds["split"] is None:
        return None
    salt = secrets.token_hex(16)
    return {"salt": salt, **fingerprint(run.sources["unseen"], salt)}
