"""DeepSpeed's ZeRO, of stages 1 and 2: the optimizer's states, and gradients, are cut up over the processes; the weights are whole.

Its engine is the Trainer's and accelerate's own. A step is taken by its backward pass, on copies of the weights that it keeps itself.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, is_deepspeed_available
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


def configure(args: TrainingArguments) -> None:
    """Give the configuration the values that a method has filled in; transformers has taken those from before."""
    if not args.deepspeed:
        return
    config = HfTrainerDeepSpeedConfig(args.deepspeed)
    config.config.setdefault("train_micro_batch_size_per_gpu", "auto")
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
        raise UnlearningError(
            "ZeRO stage 3 cuts up the weights, which are measured and saved whole here; expected stage 2, or FSDP2, which cuts up the "
            "same things (see recipes/accelerate_configs)."
        )
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
