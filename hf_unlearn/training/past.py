"""How the original was trained: as its caller, its folder or its card says, else as it is assumed to have been."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn
from yaml import YAMLError

from .. import models
from ..data.samples import seeded
from ..errors import UnlearningError
from ..methods.base import CONFIG_NAME, Method, Past
from ..models.adapters import own_adapters
from ..models.find import LOAD_ERRORS, find_file, reachable
from ..models.types import ModelSource
from .original import base_weights
from .request import Request

RECEIPT = "unlearning_receipt.json"  # of a model that was unlearned
FIGURES = ("num_epochs", "learning_rate", "train_batch_size")
LISTED = re.compile(rf"^\s*[-*]\s*({'|'.join(FIGURES)}):\s*([0-9.eE+-]+)\s*$", re.MULTILINE)


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
        found, named = self._known(origin, folder)
        named = named or self.task.named_base
        is_adapter = bool(own_adapters(model))  # it is pulled by that, and what is under it is where it began
        base = self.original if is_adapter else named if base_model is None else base_model
        self.is_given = base_model is not None
        if base is None and models.image_channels(model) is None:
            raise UnlearningError(
                "Nothing says what the original was trained from, and models of texts are hardly ever trained from random weights, "
                'which this method would go back to; pass as base_model its Hub id, its folder or the model, or "scratch".'
            )
        self.past = Past(
            base="scratch" if base is None else base,
            base_is_assumed=base is None,
            epochs=found.get("num_epochs"),
            learning_rate=found.get("learning_rate"),
            batch_size=int(found["train_batch_size"]) if "train_batch_size" in found else None,
            n_forget=len(request.forget) - len(request.kept),
            n_retain=len(request.kept) + (len(request.retain) if request.retain else 0),
        )
        self.weights: dict[str, torch.Tensor] | None = None if is_adapter else self._load()

    def _known(self, origin: dict[str, str] | None, folder: str | None) -> tuple[dict[str, float], str | None]:
        """What stands beside the original, where it was loaded from. A model in memory that has got a new head since is what was
        loaded no more: it was trained from that."""
        if origin is not None:
            return _read(origin["repo"], {"revision": origin["revision"]})
        name = folder or getattr(getattr(self.original, "config", None), "name_or_path", "")
        if not name:
            return {}, None
        return ({}, name) if self._has_new_head(name) else _read(name, {})

    def _has_new_head(self, name: str) -> bool:
        if self.task.num_labels == 0:
            return False
        with seeded(self.seed):
            try:
                return models.num_labels(models.load_model(name, task=self.task.name)) != self.task.num_labels
            except UnlearningError:  # it has no head, or cannot be had
                pass
            try:
                models.load_model(name, task=self.task.name, num_labels=self.task.num_labels)
            except UnlearningError:
                return False
        return True

    def record(self) -> dict[str, Any]:
        """What is known, for `unlearning_config.json`: a later request on what is saved now starts at the same place.

        A model, a function and a folder of this machine are not written down.
        """
        past = self.past
        is_named = isinstance(past.base, str) and not past.base_is_assumed and not os.path.isdir(past.base)
        found = {
            "base": past.base if is_named else None,
            "num_epochs": past.epochs,
            "learning_rate": past.learning_rate,
            "train_batch_size": past.batch_size,
        }
        return {name: value for name, value in found.items() if value is not None}

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
            found = (
                "" if self.is_given else f"{self.past.base!r} stands beside the original as what it was trained from: "
            )
            raise UnlearningError(
                f"{found}{str(error).rstrip('.')}; pass as base_model what the original was trained from, or "
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


def _read(name: str, where: dict[str, Any], releases: tuple[str, ...] = ()) -> tuple[dict[str, float], str | None]:
    """The figures that stand beside a model, and the model that it was trained from.

    The card of a model that was unlearned names what it was unlearned from, which has seen the forget samples: that one's are
    taken.
    """
    where, texts = where | reachable(name), {}
    for filename in ("trainer_state.json", "README.md", "config.json", RECEIPT, CONFIG_NAME):
        try:
            path = find_file(name, filename, where)
        except LOAD_ERRORS:
            path = None
        texts[filename] = Path(path).read_text(encoding="utf-8", errors="replace") if path else ""
    figures, base = _of_card(texts["README.md"])
    parent = _mapping(texts[RECEIPT]).get("parent")
    if isinstance(parent, dict) and base is not None and parent.get("repo") == base:
        is_new = base not in releases  # else the receipts lead in a circle
        return _read(base, {"revision": parent.get("commit")}, (*releases, base)) if is_new else ({}, None)
    if texts[CONFIG_NAME]:  # then the state is that of an unlearning
        known, start = _of_unlearning(texts[CONFIG_NAME])
    else:
        known, start = _of_state(texts["trainer_state.json"]), None
    return figures | known, base or start or _of_config(texts["config.json"], name)


def _of_state(text: str) -> dict[str, float]:
    """Of the record that `transformers.Trainer` keeps; a training that was stopped early is as long as it was, and not as
    long as it was to be."""
    state = _mapping(text)
    log = state.get("log_history")
    entries = [entry for entry in log if isinstance(entry, dict)] if isinstance(log, list) else []
    found = {
        "num_epochs": _numbers(state.get("num_train_epochs"), state.get("epoch"))[:1],
        "train_batch_size": _numbers(state.get("train_batch_size")),
        "learning_rate": _numbers(*(entry.get("learning_rate") for entry in entries))[-1:],
    }
    return {name: value for name, values in found.items() for value in values}


def _of_unlearning(text: str) -> tuple[dict[str, float], str | None]:
    """Of what a method that goes back to the start has written of it; what its caller said goes before what was found."""
    content = _mapping(text)
    start, config = (content[part] if isinstance(content.get(part), dict) else {} for part in ("start", "config"))
    said = {"num_epochs": config.get("original_epochs"), "learning_rate": config.get("original_learning_rate")}
    values = start | {name: value for name, value in said.items() if value is not None}
    base = start.get("base")
    figures = {name: number for name in FIGURES for number in _numbers(values.get(name))}
    return figures, base if isinstance(base, str) else None


def _of_card(text: str) -> tuple[dict[str, float], str | None]:
    """Of a card as `transformers.Trainer` writes it."""
    if not text:
        return {}, None
    try:
        bases = ModelCard(text, ignore_metadata_errors=True).data.to_dict().get("base_model")
    except (ValueError, YAMLError):
        bases = None
    bases = bases if isinstance(bases, list) else [bases]
    base = bases[0] if len(bases) == 1 and isinstance(bases[0], str) else None
    return {name: value for name, text in LISTED.findall(text) for value in _numbers(text)}, base


def _of_config(text: str, name: str) -> str | None:
    """The model that was loaded, which older versions of transformers have kept in what they saved."""
    base = _mapping(text).get("_name_or_path")
    is_other = isinstance(base, str) and base and os.path.realpath(base) != os.path.realpath(name)
    return base if is_other else None


def _numbers(*values: Any) -> list[float]:
    """Those of the values that are numbers above 0, or texts of such, the smallest first."""
    found = []
    for value in values:
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            continue
    return sorted(number for number in found if 0 < number < float("inf"))


def _mapping(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
