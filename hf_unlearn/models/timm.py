"""What timm and transformers write differently into a model's config.json."""

from typing import Any

from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import UnlearningError

# What timm has to know of an architecture to load and feed it. The rest of its `pretrained_cfg` (where weights were
# downloaded, their licence and paper) is about weights that a model built from a config never had.
TIMM_INPUT_KEYS = (
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "pool_size",
    "first_conv",
    "classifier",
)
TIMM_PREFIX = "timm_model."


def is_timm(config: PreTrainedConfig | None) -> bool:
    return config is not None and config.model_type == "timm_wrapper"


def timm_model_of(model: nn.Module) -> Any:
    """timm's own module inside a TimmWrapper; its attributes differ from one architecture to the next."""
    return model.timm_model


def mend_config(name: str, config: PreTrainedConfig, num_labels: int | None) -> None:
    """Makes a config fit for `from_pretrained`: the number of classes is said once, and it is the one asked for."""
    if is_timm(config) and config.model_args:
        # timm exports the number of classes here as well, and TimmWrapper would pass it to timm twice.
        config.model_args.pop("num_classes", None)
    if num_labels is not None and num_labels != config.num_labels:
        config.num_labels = num_labels
    if config.num_labels == 0:
        raise UnlearningError(f"{name!r} is a backbone without a head: pass num_labels= for a fresh one.")


def timm_readable(config: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """The config.json of a TimmWrapper as timm can read it too."""
    if config.get("model_args") is None:
        config.pop("model_args", None)  # timm takes null for a dictionary
    # The names that the file had when it was loaded would otherwise win over those that the model has now.
    config["label_names"] = list((model.config.id2label or {}).values())
    if "pretrained_cfg" not in config:
        known = timm_model_of(model).pretrained_cfg
        config["pretrained_cfg"] = {key: known[key] for key in TIMM_INPUT_KEYS if key in known}
    # These describe the file that was downloaded: a background class to cut off, another file name, another format.
    for key in ("label_offset", "hf_hub_filename", "custom_load"):
        config["pretrained_cfg"].pop(key, None)
    return config
