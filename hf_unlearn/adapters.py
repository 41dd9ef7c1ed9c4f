"""Unlearning inside a PEFT adapter: ours is stacked on what the model brings, and everything else is frozen."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
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
        layers = tuner_layers(self.model)
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
    return isinstance(model, PeftModel)


def tuner_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def _clear_misfits() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UnlearningError(f"peft_config does not fit the model: {reason.rstrip('.')}.") from error


def attach(model: nn.Module, peft_config: Any) -> Adapter:
    """Add a trainable adapter named `unlearn`; a `PeftModel` keeps its own one, frozen, under it."""
    if peft_config is None:
        raise UnlearningError(
            "The model is a PeftModel and peft_config is not given: pass one, and a new adapter is trained on top of its "
            "own, or pass model.merge_and_unload() to unlearn in the weights themselves."
        )
    peft_config = copy.deepcopy(peft_config)
    peft_config.task_type = None  # PEFT would train a whole copy of the head for some task types
    if getattr(peft_config, "bias", "none") != "none":
        raise UnlearningError(
            f"peft_config has bias={peft_config.bias!r}, which trains biases of the model itself; expected an adapter only. "
            'Use bias="none", or lora_bias=True.'
        )
    if getattr(peft_config, "modules_to_save", None):
        raise UnlearningError(
            f"peft_config has modules_to_save={peft_config.modules_to_save}, which would be trained in full; expected an "
            "adapter only. Name those modules in target_modules instead."
        )
    if getattr(peft_config, "init_lora_weights", True) not in (True, "gaussian"):
        raise UnlearningError(
            f"peft_config has init_lora_weights={peft_config.init_lora_weights!r}, which begins at another model than the "
            'original; expected True or "gaussian".'
        )
    if not is_adapted(model):
        with _clear_misfits():
            return Adapter(get_peft_model(model, peft_config, adapter_name=NAME))
    if NAME in model.peft_config:
        raise UnlearningError(
            f"The model already carries an adapter named {NAME!r} of an earlier request: merge it first, with "
            "model.merge_and_unload()."
        )
    if peft_config.peft_type != model.peft_type:
        raise UnlearningError(
            f"The model has an adapter of type {model.peft_type.value} and peft_config is of type "
            f"{peft_config.peft_type.value}; expected the same type, or a model without adapter (merge_and_unload())."
        )
    active = [*model.active_adapters, NAME]
    with _clear_misfits():
        PeftModel.add_adapter(model, NAME, peft_config)  # not a subclass's, which may train a copy of the head
    # Not `model.set_adapter`: where the model's own adapter has a head, it accepts no second adapter.
    for layer in tuner_layers(model):
        layer.set_adapter(active)
    model.base_model.active_adapter = active
    for name, parameter in model.named_parameters():
        parameter.requires_grad = f".{NAME}." in name  # set_adapter made its own adapter trainable again
    return Adapter(model)


def detach(model: nn.Module) -> None:
    """Take out what `attach` has put into the model, if anything. Which weights are trained is not put back."""
    if is_adapted(model):
        if NAME in model.peft_config:
            model.delete_adapter(NAME)
        return
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if layers:
        del model.peft_config
