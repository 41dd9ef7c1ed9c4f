"""What is trained: an adapter or the weights, and of these all or only some modules."""

import dataclasses
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from peft import LoraConfig, PeftConfig
from torch import nn

from .. import models
from ..data.randomness import seeded
from ..errors import UnlearningError
from ..methods import Method
from ..models import adapters
from ..tasks.base import Task

logger = logging.getLogger(__name__)


def choose_adapter(
    method: Method, task: Task, model: nn.Module, only: list[str] | None, peft_config: PeftConfig | bool | None
) -> PeftConfig | None:
    """The config of the adapter that is trained, if there is one: the user's, else the method's, on the `only` modules."""
    if method.info.kind == "surgery":
        return None  # what it makes of its edit is its own
    if peft_config and method.starts_over and not adapters.is_adapted(model):
        raise UnlearningError(
            f"{method.info.name} goes back to where training began with the weights themselves, which an adapter leaves as they "
            "are; leave out peft_config, or name a method that trains an adapter, such as lotus."
        )
    lora = method.adapter(task)
    if peft_config is None and lora:
        logger.info(f"{method.info.name} trains a LoRA adapter of this model; peft_config=False trains its weights.")
    if peft_config is True and method.starts_over and (own := adapters.own_config(model)):
        changes = {"inference_mode": False, "init_lora_weights": True, "modules_to_save": None, "bias": "none"}
        peft_config = dataclasses.replace(own, **changes)
    if peft_config is True or (peft_config is None and lora):
        own = LoraConfig(**lora) if lora else adapters.default_config(model)
        if only is not None and lora:
            own.target_modules = cast(list[str], set(only))  # which PEFT itself makes of a list
        elif only is not None:  # of those that can be adapted
            found = [name for name in only if re.fullmatch(cast(str, own.target_modules), name)]
            own.target_modules = "|".join(map(re.escape, found))
        return own
    return peft_config or None


def attach(model: nn.Module, peft_config: PeftConfig | None, seed: int) -> adapters.Adapter:
    """A new adapter in the model; where it starts is drawn by the seed."""
    with seeded(seed):
        return adapters.attach(model, peft_config)


@contextmanager
def only_trained(model: nn.Module, only: list[str] | None, method: str) -> Iterator[None]:
    """Inside, only those modules are trained that the method names, if it names some."""
    if only is None:
        yield
        return
    base = models.base_of(model)
    names = tuple(f"{name}." for name in only)
    others = {name for name, p in base.named_parameters() if p.requires_grad and not name.startswith(names)}
    for name, parameter in base.named_parameters():
        parameter.requires_grad = parameter.requires_grad and name not in others
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnlearningError(
            f"{method} trains {', '.join(only)}, and peft_config adapts other modules; leave out "
            "peft_config, or name these in target_modules."
        )
    try:
        yield
    finally:
        for name, parameter in base.named_parameters():
            parameter.requires_grad = parameter.requires_grad or name in others
