"""Unlearning inside a PEFT adapter: ours is stacked on what the model brings, and everything else is frozen."""

import copy
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import UnlearningError
from .kinds import View, base_of, in_head
from .weights import digest_tensors, keep_unpacked
from .weights import weights_digest as plain_digest

NAME = "unlearn"
TRIAL = "trial"  # of an adapter that is trained to see what comes of it
# Times Adam's for the weights, where a method has none of its own for adapters. On digits, LoTUS changes nothing at 1,
# SCRUB in an adapter equals SCRUB in the weights at 5 and ruins a ResNet at 10.
LEARNING_RATE = 5


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


def is_adapted(model: nn.Module) -> TypeGuard[PeftModel]:
    return isinstance(model, PeftModel)


def own_adapters(model: nn.Module) -> list[str]:
    """The adapters that a model came with."""
    return [name for name in model.peft_config if name != NAME] if is_adapted(model) else []


def own_config(model: nn.Module) -> LoraConfig | None:
    """That of the LoRA that a model came with."""
    configs = [model.peft_config[name] for name in own_adapters(model)] if is_adapted(model) else []
    return next((config for config in configs if isinstance(config, LoraConfig)), None)


def tuner_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def default_config(model: nn.Module, r: int = 8, head: bool = False) -> LoraConfig:
    """LoRA of rank `r` on all layers of `model` that PEFT can adapt and merge exactly.

    These are linear layers, GPT-2's of their own kind among them, and convolutions, found by type and not by name, which
    differs from one architecture to the next; PEFT's `all-linear` leaves out convolutions, that is nearly all of a ResNet.
    What is left out: subclasses of these types, which may do something else with their weights; convolutions with groups,
    which PEFT does not merge, or with dilation or padding other than zeros, which it ignores; and layers that share their
    weights with others, which merging would change too. Where a model reads a layer's weights without calling the layer (the
    queries, keys and values of timm's BEiT, EVA and Swin V2), the adapter of that layer stays zero.

    The head (with a pooler, all that is behind the blocks) is left out unless `head` is true: what must go is in the
    features as well, and where the head may change, that is the short way to the same outputs. PEFT's own choice is to train
    a whole copy of the head for some task types and none of it for others.

    Example:
        >>> peft_config = default_config(model, r=4, head=True)  # doctest: +SKIP
    """
    base = base_of(model)
    names = {}
    if isinstance(base, PreTrainedModel):
        used = Counter(id(p) for _, p in base.named_parameters(remove_duplicate=False))
        layers = ((name, layer) for name, layer in _layers(base) if head or not in_head(base, f"{name}."))
        names = {name: type(layer) for name, layer in layers if _is_plain(layer) and used[id(layer.weight)] == 1}
    if not isinstance(base, PreTrainedModel) or not names:
        raise UnlearningError(
            f"{type(base).__name__} has no layer for which an adapter can be chosen; expected a model of transformers or timm "
            "with linear layers or convolutions. Pass a LoraConfig that names its target_modules."
        )
    if head and not any(in_head(base, f"{name}.") for name in names):
        raise UnlearningError(
            f"The head of {type(base).__name__} cannot be adapted: its weights are used elsewhere too, or it is a layer of "
            "its own kind; leave it out, or pass a LoraConfig that names it in target_modules."
        )
    return LoraConfig(
        r=r,
        lora_alpha=2 * r,
        target_modules="|".join(re.escape(name) for name in names),  # a list would match the ends of names
        fan_in_fan_out=Conv1D in names.values(),
    )


def _layers(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model by name; where it carries adapters, as they are without."""
    wrapper = None
    for name, module in base.named_modules():
        if wrapper is not None and name.startswith(f"{wrapper}."):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            wrapper = name
        yield name, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _is_plain(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    is_quantized = isinstance(layer, nn.Linear) and not layer.weight.is_floating_point()  # whose kinds PEFT knows
    return type(layer) in (nn.Linear, Conv1D) or is_quantized


def merged(model: PeftModel) -> nn.Module:
    """A plain model with the weights that `model` has with its active adapters; `model` stays as it is.

    Of quantised weights it is a dequantised one: rounded to their steps once more, most of an adapter would be lost.
    """
    if not is_quantized(model):
        return copy.deepcopy(model).merge_and_unload(safe_merge=True).requires_grad_(True)
    keep_unpacked(model)
    plain = cast(PreTrainedModel, copy.deepcopy(model).unload()).dequantize()
    with torch.no_grad():
        for name, layer in base_of(model).named_modules():
            if isinstance(layer, BaseTunerLayer):
                weight = cast(Tensor, plain.get_submodule(name).weight)
                weight.copy_(_merged_weight(name, layer, weight.dtype))
    return plain.requires_grad_(True)


def _merged_weight(name: str, layer: BaseTunerLayer, dtype: torch.dtype) -> Tensor:
    """That of a quantised layer with its active adapters, in numbers."""
    if not is_plain_lora(layer):
        raise UnlearningError(
            f"The adapter of {name} is no plain LoRA, and cannot be put into quantised weights; leave it beside them, or load the "
            "model without quantisation."
        )
    weight = dequantize_module_weight(layer.get_base_layer()).to(dtype, copy=True)
    for active in layer.active_adapters:
        if active in cast(Any, layer).lora_A:
            weight += cast(Any, layer).get_delta_weight(active).to(weight)
    return weight


def is_plain_lora(layer: Any) -> bool:
    """Whether its active adapters add a product of two matrices, and nothing else."""
    return isinstance(layer, LoraLayer) and not any(name in layer.lora_variant for name in layer.active_adapters)


def tensors(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """The weights that a model has with its active adapters, by the names that they have without, each made when it is asked for."""
    if not isinstance(model, (PeftModel, View)):
        return {name: lambda tensor=tensor: tensor for name, tensor in model.state_dict().items()}
    base, inside = base_of(model), model.inside if isinstance(model, View) else nullcontext
    known, within = set(base.state_dict()), None
    found: dict[str, Callable[[], Tensor]] = {}
    for name, module in base.named_modules():
        module = cast(nn.Module, module)
        if within is not None and name.startswith(f"{within}."):
            continue
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if layer is not module:
            within = name
        layer = cast(nn.Module, layer)
        own = dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False))
        for key, tensor in own.items():
            if (
                ".".join(part for part in (name, "base_layer" if layer is not module else "", key) if part)
                not in known
            ):
                continue

            def made(name: str = name, module: nn.Module = module, key: str = key, tensor: Tensor = tensor) -> Tensor:
                with inside(), torch.no_grad():
                    return _with_adapters(name, module, key, tensor, cast(PreTrainedModel, base).dtype)

            found[f"{name}.{key}" if name else key] = made
    return found


def _with_adapters(name: str, module: nn.Module, key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of a layer, as `merged` has it."""
    if not tensor.is_floating_point() and key == "weight":
        if isinstance(module, BaseTunerLayer):
            return _merged_weight(name, module, dtype)
        return dequantize_module_weight(module).to(dtype)
    if not isinstance(module, BaseTunerLayer):
        return tensor
    layer = copy.deepcopy(module)
    layer.merge(safe_merge=True)
    return cast(Tensor, getattr(layer.get_base_layer(), key)).detach()


def weights_digest(model: nn.Module) -> str:
    """That of the weights that a model has with its active adapters, as if they were merged; no copy of them is made."""
    if not isinstance(model, (PeftModel, View)):
        return plain_digest(model)
    return digest_tensors((name, make()) for name, make in sorted(tensors(model).items()))


@contextmanager
def scaled(model: nn.Module, share: float) -> Iterator[None]:
    """Inside, our LoRA adds that share of what it adds."""
    layers = [layer for layer in tuner_layers(model) if isinstance(layer, LoraLayer) and NAME in layer.scaling]
    before = [layer.scaling[NAME] for layer in layers]
    for layer in layers:
        layer.scaling[NAME] *= share
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling[NAME] = scaling


def is_quantized(model: nn.Module) -> bool:
    """Whether some weights are kept as integers, and are no numbers until a layer reads them."""
    return any(not p.is_floating_point() for p in base_of(model).parameters())


@contextmanager
def _clear_misfits() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UnlearningError(f"peft_config does not fit the model: {reason.rstrip('.')}.") from error


def check_config(peft_config: Any) -> None:
    """Refuse what is no config of an adapter, or of one that trains nothing, or more than itself."""
    if not isinstance(peft_config, PeftConfig):
        raise UnlearningError(
            f"peft_config is a {type(peft_config).__name__}; expected a config of peft, such as a LoraConfig, or True."
        )
    if peft_config.is_prompt_learning:
        raise UnlearningError(
            f"peft_config is a {type(peft_config).__name__}, which puts tokens before the text and changes no layer; expected a "
            "config of adapters, such as a LoraConfig."
        )
    if peft_config.inference_mode:
        raise UnlearningError(
            "peft_config has inference_mode=True, as configs of saved adapters have, and nothing would be trained; expected "
            "inference_mode=False."
        )
    alphas = [getattr(peft_config, name, 1) for name in ("lora_alpha", "alpha")]
    if 0 in alphas or 0 in (getattr(peft_config, "alpha_pattern", None) or {}).values():
        raise UnlearningError(
            "peft_config has an alpha of 0, which makes an adapter of no effect; expected another one."
        )
    if (bias := getattr(peft_config, "bias", "none")) != "none":
        raise UnlearningError(
            f"peft_config has bias={bias!r}, which trains biases of the model itself; expected an adapter only. "
            'Use bias="none", or lora_bias=True.'
        )
    if modules := getattr(peft_config, "modules_to_save", None):
        raise UnlearningError(
            f"peft_config has modules_to_save={modules}, which would be trained in full; expected an "
            "adapter only. Name those modules in target_modules instead."
        )
    if (start := getattr(peft_config, "init_lora_weights", True)) not in (True, "gaussian"):
        raise UnlearningError(
            f"peft_config has init_lora_weights={start!r}, which begins at another model than the "
            'original; expected True or "gaussian".'
        )


def attach(model: nn.Module, peft_config: PeftConfig | None) -> Adapter:
    """Add a trainable adapter named `unlearn`; a `PeftModel` keeps its own one, frozen, under it."""
    if not peft_config:
        raise UnlearningError(
            "The model is a PeftModel and peft_config is not given: pass one, and a new adapter is trained on top of its "
            "own, or pass model.merge_and_unload().requires_grad_(True) to unlearn in the weights themselves."
        )
    check_config(peft_config)
    peft_config = copy.deepcopy(peft_config)
    peft_config.task_type = None  # PEFT would train a whole copy of the head for some task types
    if not isinstance(model, PeftModel):
        with _clear_misfits():
            return Adapter(get_peft_model(model, peft_config, adapter_name=NAME))
    if NAME in model.peft_config:
        raise UnlearningError(
            f"The model already carries an adapter named {NAME!r} of an earlier request: merge it first, with "
            "model.merge_and_unload().requires_grad_(True)."
        )
    theirs, ours = (cast(PeftType, kind) for kind in (model.peft_type, peft_config.peft_type))
    if ours != theirs:
        raise UnlearningError(
            f"The model has an adapter of type {theirs.value} and peft_config is of type "
            f"{ours.value}; expected the same type, or a model without adapter (merge_and_unload())."
        )
    active = [*model.active_adapters, NAME]
    with _clear_misfits():
        PeftModel.add_adapter(model, NAME, peft_config)  # not a subclass's, which may train a copy of the head
    # Not `model.set_adapter`: where the model's own adapter has a head, it accepts no second adapter.
    for layer in tuner_layers(model):
        layer.set_adapter(active)
    cast(Any, model.base_model).active_adapter = active
    for name, parameter in model.named_parameters():
        parameter.requires_grad = f".{NAME}." in name  # set_adapter made its own adapter trainable again
    return Adapter(model)


@contextmanager
def trial(model: nn.Module, config: LoraConfig) -> Iterator[PeftModel]:
    """Inside, `model` with one more adapter, which alone can be trained; after it, to the bit what it was. Nothing is copied."""
    before = {layer: list(layer.active_adapters) for layer in tuner_layers(model)}
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    if is_adapted(model):
        PeftModel.add_adapter(model, TRIAL, config)  # not a subclass's, which may train a copy of the head
        student = model
    else:
        student = cast(PeftModel, get_peft_model(cast(PreTrainedModel, model), config, adapter_name=TRIAL))
    for layer in tuner_layers(model):
        layer.set_adapter([*before.get(layer, []), TRIAL])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = f".{TRIAL}." in name
    try:
        yield student
    finally:
        if student is model:
            student.delete_adapter(TRIAL)
        _unwrap(model, set(before))
        for layer, names in before.items():
            layer._active_adapter = names
        for parameter, is_trained in trained.items():
            parameter.requires_grad = is_trained


@torch.no_grad()
def oppose(model: nn.Module, share: float) -> None:
    """Let our new adapter take away a share of what the model's own LoRA adds: B'A' = −share · BA, of the first ranks."""
    for layer in tuner_layers(model):
        others = [name for name in layer.active_adapters if name != NAME]
        if not isinstance(layer, LoraLayer) or any(
            n in layer.lora_embedding_A or n in layer.lora_variant for n in others
        ):
            raise UnlearningError(
                "The model's own adapter is to be pulled back, and it is no plain LoRA of linear layers or convolutions; merge it "
                "first, with merge_and_unload()."
            )
        own = [name for name in others if name in layer.lora_A]
        if own and (NAME not in layer.lora_A or len(own) > 1 or layer.r[NAME] < layer.r[own[0]]):
            raise UnlearningError(
                "The model's own LoRA is to be pulled back, and peft_config has a smaller rank or adapts other layers, or there "
                "are several; pass peft_config=True, which takes the config of the one LoRA that the model has."
            )
        for name in own:
            rank, scale = layer.r[name], layer.scaling[name] / layer.scaling[NAME]
            (a, own_a), (b, own_b) = (
                (cast(Tensor, part[NAME].weight), cast(Tensor, part[name].weight))
                for part in (layer.lora_A, layer.lora_B)
            )
            a[:rank], b[:, :rank] = own_a, -share * scale * own_b


def detach(model: nn.Module) -> None:
    """Take out what `attach` has put into the model, if anything. Which weights are trained is not put back."""
    if is_adapted(model):
        if NAME in model.peft_config:
            model.delete_adapter(NAME)
        return
    _unwrap(model)


def _unwrap(model: nn.Module, kept: Container[BaseTunerLayer] = ()) -> None:
    """The layers that carry adapters as they are without; where none is left that does, neither has the model a config of them."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        if layer not in kept:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if layers and not is_adapted(model):
        del model.peft_config
