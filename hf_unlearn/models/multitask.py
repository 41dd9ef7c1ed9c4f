"""One shared backbone and a private head for each task: the model, its labels, and a loss and a score for each kind.

| kind | label of a sample | label that is missing | output of the head | loss of a sample | score |
|---|---|---|---|---|---|
| classification | int64, a class | -100 | [n, size] logits | cross-entropy | accuracy |
| regression | float | NaN | [n] | squared error | share with abs(error) <= tolerance |
| segmentation | int64 [H, W] | pixels -100 | [n, size, H, W] logits | mean cross-entropy | mean IoU |
| depth | float [H, W] > 0 | pixels NaN | [n, H, W] > 0 | mean abs(error) | share with max(p/t, t/p) < 1.25 |
| normals | float [3, H, W] | pixels NaN | [n, 3, H, W], of length 1 | 1 - mean cosine | share within 30 degrees |
"""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from ..errors import UnlearningError
from .multitask_labels import DENSE, SHAPES, WITH_CLASSES, missing, sample_losses, stack_labels
from .timm import timm_model_of

POOLINGS = ("pooler", "first", "last", "mean")
# What else a batch holds; beside these, nn.ModuleDict refuses the names of its own attributes.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
RESERVED = (*TEXT_INPUTS, "pixel_values", "input_features", "labels", "is_forget", "sample_index")


class MultiTaskModelConfig(PreTrainedConfig):
    """A backbone's config and the tasks.

    Args:
        backbone: The config of a model that `AutoModel` builds, or its dictionary.
        tasks: For each task its `kind`, with the `size` (number of classes) of classification and segmentation, and
            optionally the `tolerance` of regression (0.1).
        pooling: What the heads of classification and regression read: the backbone's `pooler`, the `first` or the
            `last` token (without padding), or the `mean` over positions. None for what a classifier of the backbone's
            family reads.
    """

    model_type = "hf_unlearn_multitask"
    sub_configs = {"backbone": AutoConfig}  # pyright: ignore[reportAssignmentType] - as all configs of transformers do

    backbone: dict | PreTrainedConfig | None = None
    tasks: dict[str, dict[str, Any]] | None = None
    pooling: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.tasks or {}, Mapping):
            raise UnlearningError(f'tasks={self.tasks!r} is no dictionary: pass {{"name": {{"kind": ...}}, ...}}.')
        tasks = {name: _checked(name, task) for name, task in (self.tasks or {}).items()}
        self.tasks = dict(sorted(tasks.items()))  # as config.json sorts them, so that weights keep their order as well
        if self.pooling not in (None, *POOLINGS):
            raise UnlearningError(f"pooling={self.pooling!r} is unknown: pass one of {', '.join(POOLINGS)}, or None.")
        if isinstance(self.backbone, dict):
            if self.backbone.get("model_type") not in CONFIG_MAPPING:
                raise UnlearningError(
                    f"The backbone has model_type={self.backbone.get('model_type')!r}, which transformers does not "
                    "know: pass the config of a model that it has."
                )
            self.backbone = AutoConfig.for_model(**self.backbone)
        elif not isinstance(self.backbone, PreTrainedConfig | None):
            raise UnlearningError(
                f"backbone={self.backbone!r} is no config: pass that of a model, or use MultiTaskModel.from_backbone."
            )
        super().__post_init__(**kwargs)


@dataclass
class MultiTaskOutput(ModelOutput):
    """`logits` maps each task to what its head says; `loss` is the sum over tasks, if labels were given."""

    loss: Tensor | None = None
    logits: dict[str, Tensor] | None = None


class MultiTaskModel(PreTrainedModel):
    """A shared `backbone` and `heads`, a linear layer (dense tasks: a 1 x 1 convolution) for each task."""

    config_class = MultiTaskModelConfig
    base_model_prefix = "backbone"
    # Otherwise the Trainer takes **inputs for a sign that forward divides by the number of items in the whole batch.
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True  # the backbone refuses what it has not

    def __init__(self, config: MultiTaskModelConfig) -> None:
        if not config.tasks or config.backbone is None:
            raise UnlearningError(
                f"The config has {'no task' if config.backbone else 'no backbone'}: pass MultiTaskModelConfig("
                'backbone=..., tasks={"name": {"kind": ..., "size": ...}, ...}).'
            )
        of_backbone = cast(PreTrainedConfig, config.backbone)  # a dictionary has become one
        if of_backbone.is_encoder_decoder:
            raise UnlearningError(
                f"{of_backbone.model_type} is an encoder with a decoder: pass a backbone that is one of the two."
            )
        super().__init__(config)
        if config.pooling is None:
            config.pooling = family_pooling(of_backbone)
        self.backbone = AutoModel.from_config(of_backbone, dtype=torch.get_default_dtype())
        self.main_input_name = self.backbone.main_input_name
        dense = [name for name, task in config.tasks.items() if task["kind"] in DENSE]
        if dense and self.main_input_name != "pixel_values":
            raise UnlearningError(
                f"The task {dense[0]!r} labels pixels and {of_backbone.model_type} reads {self.main_input_name}: "
                "pass a backbone that reads images."
            )
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        pooler = getattr(self.backbone, "pooler", None)
        pooler_is_read = config.pooling == "pooler" and len(dense) < len(config.tasks)
        if pooler is not None and not pooler_is_read and list(pooler.parameters()):
            self.backbone.pooler = None  # DDP waits for the gradient of every weight
        at_pixels, pooled = widths(self.backbone)
        self.heads = nn.ModuleDict()
        for name, task in config.tasks.items():
            outputs = task.get("size", 3 if task["kind"] == "normals" else 1)
            if task["kind"] in DENSE:
                self.heads[name] = nn.Conv2d(at_pixels, outputs, kernel_size=1)
            else:
                self.heads[name] = nn.Linear(pooled if config.pooling == "pooler" else at_pixels, outputs)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Called for the heads only: the backbone initialises itself.
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
            nn.init.zeros_(cast(Tensor, module.bias))

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedModel,
        tasks: Mapping[str, Mapping[str, Any]],
        *,
        pooling: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """A copy of a trained backbone, with fresh heads.

        Args:
            backbone: A Hub id or a folder (safetensors only), or a loaded model; its head, if it has one, is left out.
            tasks: See `MultiTaskModelConfig`.
            pooling: See `MultiTaskModelConfig`; "first" where the pooler that the family reads was not trained.
            kwargs: For `AutoModel.from_pretrained`: `revision`, `dtype`, `token`, `cache_dir`, ...
        """
        if isinstance(backbone, str | os.PathLike):
            backbone = _load_backbone(os.fspath(backbone), **kwargs)
        elif not isinstance(backbone, PreTrainedModel):
            raise UnlearningError(
                f"backbone is a {type(backbone).__name__}: pass a Hub id, a folder or a transformers model (of a "
                "PeftModel merge_and_unload())."
            )
        elif kwargs:
            raise UnlearningError(f"{', '.join(kwargs)} is for loading, and the backbone is loaded: leave it out.")
        # TimmWrapper's base_model is timm's own module; its weights have the same names with and without a head.
        is_timm = backbone.config.model_type == "timm_wrapper"
        source = backbone if is_timm else cast(PreTrainedModel, backbone.base_model)
        of_backbone = copy.deepcopy(source.config)
        config = MultiTaskModelConfig(backbone=of_backbone, tasks=cast(dict, tasks), pooling=pooling)
        if pooling is None:
            pooling = family_pooling(of_backbone)
            has_pooler = getattr(source, "pooler", True) is not None  # what has none under this name cannot lack it
            config.pooling = pooling if has_pooler or pooling != "pooler" else "first"
        model = cls._from_config(config, dtype=source.dtype)
        if absent := model.backbone.load_state_dict(source.state_dict(), strict=False).missing_keys:
            raise UnlearningError(
                f"The backbone has no trained weights for {absent[0]}, which would stay random: pass a trained model."
            )
        cast(nn.Module, model).to(source.device)  # transformers' own `to` is typed as a function of no model
        return model.eval()

    def forward(self, labels: Mapping[str, Tensor] | None = None, **inputs: Any) -> MultiTaskOutput:
        """What each head says of the inputs, and with `labels` (task -> its labels, see `stack_labels`) the loss. The labels
        of a task may also come as an input of its name, as a plain Trainer gives the columns of a dataset.

        The loss is the sum over tasks of the mean over the samples with a label; a task without any adds 0.
        """
        if columns := {name: inputs.pop(name) for name in self.config.tasks if name in inputs}:
            labels = {**(labels or {}), **columns}
        if self.config.pooling == "last":
            inputs.setdefault("use_cache", False)
        features = self.backbone(**inputs)
        logits = {name: self._output(name, features, inputs) for name in self.config.tasks}
        if labels is None:
            return MultiTaskOutput(logits=logits)
        if unknown := labels.keys() - logits.keys():
            raise UnlearningError(f"There are labels for {min(unknown)!r}: the tasks are {', '.join(logits)}.")
        loss: Any = 0.0
        for name, output in logits.items():
            task = self.config.tasks[name]
            # DDP waits for the gradient of every head: a task without labels gives it a zero.
            target = labels[name] if name in labels else stack_labels([None] * len(output), task).to(output.device)
            present = (~missing(target, task["kind"])).sum().clamp(min=1)
            loss = loss + sample_losses(output, target, task["kind"]).sum() / present
        return MultiTaskOutput(loss=loss, logits=logits)

    def _output(self, name: str, features: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        kind, head = self.config.tasks[name]["kind"], self.heads[name]
        if kind not in DENSE:
            output = head(self._pooled(features, inputs))
            return output.squeeze(1) if kind == "regression" else output
        size = inputs["pixel_values"].shape[-2:]
        output = head(feature_map(features.last_hidden_state, size, self.backbone))
        output = F.interpolate(output, size=size, mode="bilinear", align_corners=False)
        if kind == "depth":
            return F.softplus(output).squeeze(1)
        return F.normalize(output, dim=1) if kind == "normals" else output

    def _pooled(self, features: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        hidden = features.last_hidden_state
        if self.config.pooling == "pooler":
            return features.pooler_output.flatten(1)
        if self.config.pooling == "first":
            return hidden[:, 0]
        if hidden.dim() == 4:
            return _channels_first(hidden, self.backbone).mean((2, 3))
        mask = inputs.get("attention_mask")
        if mask is None:
            pad, tokens = getattr(self.config.backbone, "pad_token_id", None), inputs.get("input_ids")
            mask = hidden.new_ones(hidden.shape[:2]) if pad is None or tokens is None else tokens != pad
        if self.config.pooling == "mean":
            weight = mask.to(hidden.dtype)[:, :, None]
            return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        last = (torch.arange(hidden.shape[1], device=hidden.device) * (mask != 0)).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]


def family_pooling(config: PreTrainedConfig) -> str:
    """What a classifier of this family reads: its own pooler (BERT, ResNet, timm), or one token, or their mean."""
    kind = type(config)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING:
        return "last"
    if config.model_type == "timm_wrapper":
        return "pooler" if config.do_pooling else "mean"
    for classifiers in (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING):
        if kind in classifiers:
            found = classifiers[kind]
            classifier: Any = found[0] if isinstance(found, tuple) else found  # DeiT has two
            with torch.device("meta"):  # without memory: only to see whether it is built with a pooler
                base = classifier(copy.deepcopy(config)).base_model
            if getattr(base, "pooler", None) is not None:
                return "pooler"
    if "hidden_sizes" in config.__dict__:
        return "pooler"  # convolutional networks all return one
    return getattr(config, "classifier_pooling", "cls").replace("cls", "first")


def widths(backbone: PreTrainedModel) -> tuple[int, int]:
    """The number of channels of the last feature map (or of a token), and of the pooled feature."""
    config = backbone.config
    if config.model_type == "timm_wrapper":
        return timm_model_of(backbone).num_features, timm_model_of(backbone).head_hidden_size
    for name in ("hidden_sizes", "hidden_size"):
        if hasattr(config, name):
            width = getattr(config, name)
            return (width, width) if isinstance(width, int) else (width[-1], width[-1])
    raise UnlearningError(f"{config.model_type} does not say how wide its features are: pass another backbone.")


def feature_map(hidden: Tensor, size: Sequence[int], backbone: PreTrainedModel) -> Tensor:
    """The last feature map [n, channels, rows, columns]; of tokens those of patches, without CLS and registers."""
    if hidden.dim() == 4:
        return _channels_first(hidden, backbone)
    timm = backbone.config.model_type == "timm_wrapper"
    patch: Any = timm_model_of(backbone).patch_embed.patch_size if timm else backbone.config.patch_size
    patch = (patch, patch) if isinstance(patch, int) else patch
    rows, columns = size[0] // patch[0], size[1] // patch[1]
    while rows * columns > hidden.shape[1]:  # stages of Swin merge 2 x 2 patches
        rows, columns = -(-rows // 2), -(-columns // 2)
    return hidden[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def _channels_first(hidden: Tensor, backbone: PreTrainedModel) -> Tensor:
    return hidden.permute(0, 3, 1, 2) if hidden.shape[1] != widths(backbone)[0] else hidden


def _checked(name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(name, str) or not name or "." in name or name in RESERVED or hasattr(nn.ModuleDict(), name):
        raise UnlearningError(
            f"{name!r} cannot be the name of a task: pass a word without dots that is no input of a model and no "
            "attribute of a module."
        )
    kind = task.get("kind") if isinstance(task, Mapping) else None
    options = {"size"} if kind in WITH_CLASSES else {"tolerance"} if kind == "regression" else set()
    if kind not in SHAPES or not task.keys() <= {"kind", *options}:
        raise UnlearningError(
            f"The task {name!r} is {task!r}: pass its kind, one of {', '.join(SHAPES)}, the size (number of classes) "
            "of classification and segmentation, and nothing else but the tolerance of regression."
        )
    size, tolerance = task.get("size"), task.get("tolerance", 0.1)
    if kind in WITH_CLASSES and not (isinstance(size, int) and size >= 2):
        raise UnlearningError(f"The task {name!r} has size={size!r}: pass the number of its classes, 2 or more.")
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise UnlearningError(f"The task {name!r} has tolerance={tolerance!r}: pass a number from 0.")
    return dict(task)


def _load_backbone(name: str, **kwargs: Any) -> PreTrainedModel:
    if kwargs.pop("trust_remote_code", False):
        raise UnlearningError(
            f"{name!r} was given with trust_remote_code=True, but code from a repository is never run here: "
            "use an architecture that transformers or timm has."
        )
    places = ("revision", "token", "cache_dir", "subfolder", "local_files_only")
    where = {key: kwargs[key] for key in places if key in kwargs}
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        if config.model_type == "timm_wrapper" and config.model_args:
            config.model_args.pop("num_classes", None)  # timm exports it, and TimmWrapper would pass it to timm twice
        model, info = AutoModel.from_pretrained(
            name, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        why = next((line.strip(" .") for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnlearningError(
            f"{name!r} cannot be loaded as a backbone ({why}): pass a folder or a Hub id with model.safetensors."
        ) from error
    absent = info["missing_keys"]
    if absent and all(key.startswith("pooler.") for key in absent):
        model.pooler = None  # encoders are often published without theirs
    elif absent:
        raise UnlearningError(
            f"{name!r} has no weights for {min(absent)} of {type(model).__name__}, which would stay random: "
            "pass a trained model."
        )
    return model


AutoConfig.register(MultiTaskModelConfig.model_type, MultiTaskModelConfig, exist_ok=True)
AutoModel.register(MultiTaskModelConfig, MultiTaskModel, exist_ok=True)
