"""DeepSpeed's ZeRO: the optimizer's states, gradients and, in stage 3, the weights are cut up over the processes while it trains.

Its engine is the Trainer's and accelerate's own. A step is taken by its backward pass, on copies of the weights that it keeps itself.
Before and after it weights are whole in every process, those of stage 3 too: they are measured, compared and merged like all others.
"""

import importlib
import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import (
    HfTrainerDeepSpeedConfig,
    is_deepspeed_available,
    unset_hf_deepspeed_config,
)
from transformers.utils.generic import strtobool

from ..errors import UnlearningError
from ..methods import Method

INSTEAD = "expected DDP or FSDP2 (see recipes/accelerate_configs)"


def check_installed(args: TrainingArguments) -> None:
    """DeepSpeed, where the arguments or the launcher ask for it."""
    asked = args.deepspeed or strtobool(os.environ.get("ACCELERATE_USE_DEEPSPEED", "false"))
    if asked and not is_deepspeed_available():
        raise UnlearningError(
            f"DeepSpeed is asked for, and its package is not installed; pip install deepspeed, or {INSTEAD}."
        )


def load_whole(args: TrainingArguments) -> None:
    """transformers would cut models up as it loads them, once it knows of a stage 3."""
    if args.deepspeed:
        unset_hf_deepspeed_config()


def configure(args: TrainingArguments) -> None:
    """Give the configuration the values that a method has filled in; transformers has taken those from before."""
    if not args.deepspeed:
        return
    config = HfTrainerDeepSpeedConfig(args.deepspeed)
    config.config.setdefault("train_micro_batch_size_per_gpu", "auto")
    load_whole(args)  # the configuration has made itself known
    config.trainer_config_process(args)
    args.hf_deepspeed_config, args.deepspeed_plugin = config, DeepSpeedPlugin(hf_ds_config=config)


def check_zero(method: Method, accelerator: Accelerator, args: TrainingArguments, model: nn.Module) -> None:
    """Refuse what ZeRO cannot do, where DeepSpeed is asked for; and have it clip gradients, which only it can."""
    plugin: Any = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None:
        return
    name, config = method.info.name, plugin.hf_ds_config
    if method.info.kind == "surgery":
        raise UnlearningError(f"{name} edits the weights once, and has no steps for DeepSpeed to take; expected DDP.")
    if method.info.kind == "gradient":
        raise UnlearningError(
            f"{name} makes a step of several gradients, which DeepSpeed's engine does not give back; {INSTEAD}."
        )
    if method.changes_weights:
        raise UnlearningError(
            f"{name} changes weights between two steps, and DeepSpeed steps on copies of its own; {INSTEAD}."
        )
    if plugin.zero_stage == 3:
        unset_hf_deepspeed_config()  # which the accelerator has made known again
        if why := method.why_whole or method.why_in_training:
            raise UnlearningError(f"{name} {why}, and ZeRO stage 3 cuts the weights up; expected stage 2, or DDP.")
        if is_cut_by_zero(model):
            raise UnlearningError(
                "The model was cut up when it was loaded; expected a whole one: load it before any TrainingArguments ask for ZeRO stage 3."
            )
        config.config["zero_optimization"].setdefault("stage3_gather_16bit_weights_on_model_save", True)
    for part in ("optimizer", "scheduler"):
        if part in config.config:
            raise UnlearningError(
                f"The configuration of DeepSpeed has a part {part!r}, which would take the place of the method's; leave it out."
            )
    if config.mismatches:
        found = "; ".join(line.removeprefix("- ds ").replace(" vs hf ", ", and ") for line in config.mismatches)
        raise UnlearningError(
            f"The configuration of DeepSpeed and the training arguments differ ({found}); leave these values of DeepSpeed's out, or "
            'set them to "auto".'
        )
    if wide := [p for p in model.parameters() if p.dtype == torch.float64]:
        raise UnlearningError(
            f"{len(wide)} weights are in float64, which DeepSpeed would round to float32; load the model in float32."
        )
    config.config.setdefault("gradient_clipping", args.max_grad_norm)


def is_cut_by_zero(model: nn.Module) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def make_whole(model: nn.Module, engine: Any) -> None:
    """Give every process the whole weights again that stage 3 has cut up. The engine is done then."""
    gathered = importlib.import_module("deepspeed.runtime.zero").GatheredParameters
    found: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        with gathered([parameter]):
            found[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    engine.destroy()
    unset_hf_deepspeed_config()  # which the engine was made with
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        nothing = {name: None for name, parameter in module._parameters.items() if parameter is None}
        module._parameters = nothing | {name: found[id(parameter)] for name, parameter in own.items()}
