"""What kind of model it is, and what its inputs, features and heads are."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import UnlearningError
from .multitask import MultiTaskModel
from .timm import TIMM_PREFIX, is_timm, timm_model_of

# A task is told by what the name of the model's class contains: GPT2LMHeadModel, DeiTForImageClassificationWithTeacher.
HEADS = {
    "image-classification": ("ForImageClassification",),
    "text-classification": ("ForSequenceClassification",),
    "causal-lm": ("ForCausalLM", "LMHeadModel"),
    "multi-task": (MultiTaskModel.__name__,),
}

# Attention between tokens is in classes named *Attention* or *Attn*; these only pool, or reweight channels and places.
ATTENTION_NAMES = ("Attention", "Attn", "XCA")
REWEIGHTING_NAMES = (
    "Channel",
    "Spatial",
    "Strip",
    "Coord",
    "SelectiveKernel",
    "Split",
    "NonLocal",
    "Bilinear",
    "ConvAtt",
    "Pool2d",
    "PoolLatent",
    "PoolPrr",
)


def task_of(model_or_config: nn.Module | PreTrainedConfig) -> str:
    """One of "image-classification", "text-classification", "causal-lm" and "multi-task", from the head that the model
    has."""
    if isinstance(model_or_config, PreTrainedConfig):
        names = model_or_config.architectures or []
        if not names and model_or_config.model_type == "timm_wrapper":
            return "image-classification"  # a config exported by timm names its architecture, not a class
    else:
        names = [cls.__name__ for cls in type(base_of(model_or_config)).__mro__]
    for name in names:
        for task, heads in HEADS.items():
            if any(head in name for head in heads):
                return task
    known = ", ".join(f"*{head}" for heads in HEADS.values() for head in heads)
    raise UnlearningError(
        f"{names[0] if names else 'A config without `architectures`'} has no head that can be unlearned: "
        f"expected a class such as {known}; load the model with one of these heads (or pass task=)."
    )


def num_labels(model: nn.Module) -> int:
    """The number of classes of a classifier; 0 for a model that is none."""
    is_classifier = task_of(model) in ("image-classification", "text-classification")
    return (pretrained(model).config.num_labels or 0) if is_classifier else 0


def check_single_label(model: nn.Module) -> None:
    """Refuses classifiers whose targets are not exactly one class out of two or more; what is no classifier passes."""
    if task_of(model) not in ("image-classification", "text-classification"):
        return
    name, config = type(base_of(model)).__name__, pretrained(model).config
    if config.problem_type not in (None, "single_label_classification"):
        raise UnlearningError(
            f"{name} has problem_type={config.problem_type!r}, and unlearning works on single-label classification: "
            'train with problem_type="single_label_classification" and one class per sample.'
        )
    if num_labels(model) < 2:
        raise UnlearningError(
            f"{name} has num_labels={config.num_labels}, which transformers treats as regression, and unlearning needs "
            "two classes or more: pass a classifier with num_labels >= 2."
        )


def batchnorm_modules(model: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm layer, timm's fused norm-and-activation ones and SyncBatchNorm included."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def architecture_family(model: nn.Module) -> Literal["convolutional", "transformer"]:
    """Whether anything attends over tokens ("transformer") or else convolves images ("convolutional").

    Attention that only pools or reweights channels (CLIP's ResNets, squeeze-and-excitation) leaves a network
    convolutional. What does neither, such as a recurrent language model, is trained like a transformer.
    """
    modules = list(base_of(model).modules())
    if any(attends(module) for module in modules) or not any(isinstance(module, nn.Conv2d) for module in modules):
        return "transformer"
    return "convolutional"


def attends(module: nn.Module) -> bool:
    """Whether a module is attention between tokens."""
    name = type(module).__name__
    return isinstance(module, nn.MultiheadAttention) or (
        any(word in name for word in ATTENTION_NAMES) and not any(word in name for word in REWEIGHTING_NAMES)
    )


def inputs(model: nn.Module) -> set[str]:
    """The names of what the model is called with."""
    return set(inspect.signature(_network(model).forward).parameters)


def limits(model: nn.Module) -> dict[str, Any]:
    """What the model can read, for a `Collator`."""
    return {
        "image_channels": image_channels(model),
        "max_tokens": max_tokens(model),
        "accepts": inputs(model),
        "vocabulary": vocabulary(model),
    }


def vocabulary(model: nn.Module) -> int | None:
    """The number of tokens that a model of texts knows."""
    network = _network(model)
    try:
        embeddings = network.get_input_embeddings() if isinstance(network, PreTrainedModel) else None
    except NotImplementedError:  # of a class of the user's own
        embeddings = None
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else None


def finds_end_by_padding(model: nn.Module) -> bool:
    """Whether a classifier reads the last token before the padding, which it knows by `config.pad_token_id` alone."""
    forward = inspect.unwrap(type(base_of(model)).forward)
    return task_of(model) == "text-classification" and "pad_token_id" in forward.__code__.co_names


def max_tokens(model: nn.Module) -> int | None:
    """The longest text that the model has positions for."""
    config = getattr(_network(model), "config", None)
    if config is None:
        return None
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa counts positions from behind the padding token
    return positions - config.pad_token_id - 1 if positions and "roberta" in config.model_type else positions


def width(model: nn.Module) -> int:
    """The number of features of a transformer's tokens."""
    model = _network(model)
    config = getattr(model, "config", None)
    return timm_model_of(model).num_features if is_timm(config) else getattr(config, "hidden_size", 768)


def head_layers(model: nn.Module, num_labels: int) -> dict[str, nn.Module]:
    """The layers with an output for each class, by name, in the order in which the model has them: the head is the last one."""
    outputs = ("out_features", "out_channels")
    return {
        name: module
        for name, module in model.named_modules()
        if "lora_" not in name and num_labels in [getattr(module, o, None) for o in outputs]
    }


@contextmanager
def reading_features(model: nn.Module, num_labels: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, `read(logits)` gives what the head has read in the forward pass of these logits, a row for each sample.

    The head is the layer that ran last of those with an output for each class. Where it is applied to every token of a
    text, the row is that of the token whose output the logits are.
    """
    passed: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        passed.update(inputs=inputs[0].detach(), output=output.detach())

    def read(logits: Tensor) -> Tensor:
        if not passed:
            raise UnlearningError(
                f"{type(base_of(model)).__name__} has no layer that makes {num_labels} logits of features; expected a "
                "classifier that ends in a linear layer."
            )
        features, output = passed["inputs"], passed["output"]
        if output.ndim == 3:
            token = (output == logits.to(output.dtype)[:, None]).all(dim=-1).int().argmax(dim=1)
            features = features[torch.arange(len(features), device=features.device), token]
        return features.flatten(1).to(torch.promote_types(features.dtype, torch.float32))

    hooks = [layer.register_forward_hook(keep) for layer in head_layers(model, num_labels).values()]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def image_channels(model: nn.Module) -> int | None:
    """The number of colour channels that an image model reads; None for a model of texts."""
    model = _network(model)
    if getattr(model, "main_input_name", None) == "input_ids":
        return None
    if is_timm(getattr(model, "config", None)):
        return timm_model_of(model).pretrained_cfg["input_size"][0]
    return getattr(getattr(model, "config", None), "num_channels", 3)


class View(nn.Module):
    """A model with adapters as it is inside some block, such as one that switches off the last of them; the weights are shared."""

    def __init__(self, model: PeftModel, inside: Callable[[], AbstractContextManager[Any]]):
        super().__init__()
        self.model, self.inside = model, inside

    def forward(self, **inputs: Any) -> Any:
        with self.inside():
            return self.model.get_base_model()(**inputs)

    def generate(self, **inputs: Any) -> Any:
        with self.inside():
            return cast(Any, pretrained(self)).generate(**inputs)


def base_of(model: nn.Module) -> nn.Module:
    """The model without adapters."""
    model = model.model if isinstance(model, View) else model
    return model.get_base_model() if isinstance(model, PeftModel) else model


def pretrained(model: nn.Module) -> PreTrainedModel:
    """The model without adapters, of what is known to be a model of transformers."""
    return cast(PreTrainedModel, base_of(model))


def embedding_of(model: nn.Module) -> nn.Embedding:
    """What a model of texts makes of its tokens."""
    return cast(nn.Embedding, pretrained(model).get_input_embeddings())


def _network(model: nn.Module) -> nn.Module:
    """What reads the inputs."""
    model = base_of(model)
    return model.backbone if isinstance(model, MultiTaskModel) else model


def in_head(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight may be fresh in a model that gets a new head; encoders are published without their pooler."""
    if is_timm(model.config):
        classifiers = timm_model_of(model).pretrained_cfg.get("classifier") or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
        return any(key.startswith(f"{TIMM_PREFIX}{classifier}.") for classifier in classifiers)
    return not key.startswith(f"{model.base_model_prefix}.") or "pooler" in key.split(".")
