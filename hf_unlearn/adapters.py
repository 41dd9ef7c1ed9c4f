"""Unlearning inside a PEFT adapter: ours is stacked on what the model brings, and everything else is frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import UnlearningError

NAME = "unlearn"


@dataclass
class Adapter:
    """The model with our adapter in it, and the way to switch that off."""

    model: nn.Module

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The original: without our adapter, with those that it came with."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        active = [list(layer.active_adapters) for layer in layers]
        # Not `set_adapter`: it would also change which parameters are trained.
        for layer, names in zip(layers, active, strict=True):
            layer._active_adapter = [name for name in names if name != NAME]
        try:
            yield
        finally:
            for layer, names in zip(layers, active, strict=True):
                layer._active_adapter = names


def is_adapted(model: nn.Module) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def attach(model: nn.Module, peft_config: Any) -> Adapter:
    """Add a trainable adapter named `unlearn`; a `PeftModel` keeps its own one, frozen, under it."""
    from peft import get_peft_model

    if peft_config is None:
        raise UnlearningError(
            "The model is a PeftModel and peft_config is not given: pass one, and a new adapter is trained on top of its "
            "own, or pass model.merge_and_unload() to unlearn in the weights themselves."
        )
    if getattr(peft_config, "modules_to_save", None):
        raise UnlearningError(
            f"peft_config has modules_to_save={peft_config.modules_to_save}, which would be trained in full; expected an "
            "adapter only. Name those modules in target_modules instead."
        )
    if not is_adapted(model):
        return Adapter(get_peft_model(model, peft_config, adapter_name=NAME))
    if NAME in model.peft_config:
        raise UnlearningError(
            f"The model already carries an adapter named {NAME!r} of an earlier request: merge it first, with "
            "model.merge_and_unload()."
        )
    own = list(model.active_adapters)
    model.add_adapter(NAME, peft_config)
    model.base_model.set_adapter([*own, NAME])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = f".{NAME}." in name  # set_adapter made its own adapter trainable again
    return Adapter(model)
