"""How the original was trained: as its caller, its folder or its card says, else as it is assumed to have been."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn

from .. import models
from ..data.samples import seeded
from ..errors import UnlearningError
from ..methods.base import Method, Past
from ..models.adapters import own_adapters
from ..models.find import LOAD_ERRORS, find_file, reachable
from ..models.types import ModelSource
from .original import base_weights
from .request import Request

LISTED = re.compile(r"^\s*[-*]\s*(num_epochs|learning_rate|train_batch_size):\s*([0-9.eE+-]+)\s*$", re.MULTILINE)


class Start:
    """Where the original's training began, for a method that goes back there; loaded and checked before any compute.

    Attributes:
        past: what is known of the original's training.
    """

    def __init__(
        self,
        model: nn.Module,
        origin: dict[str, str] | None,
        folder: str | None,
        base_model: ModelSource | None,
        request: Request,
        seed: int,
    ):
        self.original, self.task, self.seed = models.base_of(model), request.task, seed
        found, named = ({}, None) if origin is None else _read(origin["repo"], {"revision": origin["revision"]})
        if folder:
            found, named = _read(folder, {})
        is_adapter = bool(own_adapters(model))  # it is pulled by that, and what is under it is where it began
        base = self.original if is_adapter else named if base_model is None else base_model
        self.past = Past(
            base="scratch" if base is None else base,
            base_is_assumed=base is None,
            epochs=found.get("num_epochs"),
            learning_rate=found.get("learning_rate"),
            batch_size=int(found["train_batch_size"]) if "train_batch_size" in found else None,
            n_forget=len(request.forget),
            n_retain=len(request.retain) if request.retain else 0,
        )
        self.weights: dict[str, torch.Tensor] | None = None if is_adapter else self._load()

    def take(self) -> dict[str, torch.Tensor]:
        """The weights, by name; what the base lacks, such as a new head, is drawn by the seed."""
        weights, self.weights = self._load() if self.weights is None else self.weights, None
        return weights

    def _load(self) -> dict[str, torch.Tensor]:
        try:
            with seeded(self.seed):
                return base_weights(self.past.base, self.original, self.task)
        except UnlearningError as error:
            if not isinstance(self.past.base, str):
                raise
            raise UnlearningError(
                f"{str(error).rstrip('.')}; pass as base_model what the original was trained from, or "
                '"scratch" if that was a new model.'
            ) from error


def start_of(
    method: Method,
    model: nn.Module,
    origin: dict[str, str] | None,
    folder: str | None,
    base_model: ModelSource | None,
    request: Request,
    seed: int,
) -> Start | None:
    """Where training began, of a method that goes back there; it is told what is known of it."""
    if not method.starts_over:
        return None
    start = Start(model, origin, folder, base_model, request, seed)
    method.learn_past(start.past)
    return start


def _read(name: str, where: dict[str, Any]) -> tuple[dict[str, float], str | None]:
    """The figures that stand beside a model, and the model that it was trained from."""
    where, texts = where | reachable(name), {}
    for filename in ("trainer_state.json", "README.md", "config.json"):
        try:
            path = find_file(name, filename, where)
        except LOAD_ERRORS:
            path = None
        texts[filename] = Path(path).read_text(encoding="utf-8", errors="replace") if path else ""
    figures, base = _of_card(texts["README.md"])
    return figures | _of_state(texts["trainer_state.json"]), base or _of_config(texts["config.json"], name)


def _of_state(text: str) -> dict[str, float]:
    """Of the record that `transformers.Trainer` keeps."""
    state = _mapping(text)
    rates = [entry["learning_rate"] for entry in state.get("log_history") or [] if "learning_rate" in entry]
    found = {
        "num_epochs": state.get("num_train_epochs"),
        "train_batch_size": state.get("train_batch_size"),
        "learning_rate": max(rates, default=None),
    }
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and value > 0}


def _of_card(text: str) -> tuple[dict[str, float], str | None]:
    """Of a card as `transformers.Trainer` writes it."""
    if not text:
        return {}, None
    try:
        bases = ModelCard(text, ignore_metadata_errors=True).data.to_dict().get("base_model")
    except ValueError:
        bases = None
    bases = [bases] if isinstance(bases, str) else bases or []
    figures = {name: float(value) for name, value in LISTED.findall(text)}
    return {name: value for name, value in figures.items() if value > 0}, bases[0] if len(bases) == 1 else None


def _of_config(text: str, name: str) -> str | None:
    """The model that was loaded, which older versions of transformers have kept in what they saved."""
    base = _mapping(text).get("_name_or_path")
    is_other = isinstance(base, str) and base and os.path.realpath(base) != os.path.realpath(name)
    return base if is_other else None


def _mapping(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
