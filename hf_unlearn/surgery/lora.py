"""An edit of weights as a LoRA adapter, exactly: W' - W = BA."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from ..errors import UnlearningError

Factors = Mapping[str, Mapping[str, Tensor]]  # name of the module -> "A", "B" and "bias"


def to_lora(factors: Factors) -> LoraConfig:
    """The config of the adapter with these factors."""
    if not factors:
        raise UnlearningError("There is nothing to remove, so there is no adapter; see the notes of the report.")
    ranks = {f"^{re.escape(name)}": len(of["A"]) for name, of in factors.items()}
    return LoraConfig(
        r=1,
        lora_alpha=1,
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),  # so that PEFT's α/r is 1
        target_modules="|".join(re.escape(name) for name in factors),
        lora_bias=any(of["bias"].any() for of in factors.values()),
    )


@torch.no_grad()
def load_lora(peft_model: PeftModel, adapter_name: str, factors: Factors) -> None:
    """Put the factors into the adapter that `get_peft_model(model, to_lora(factors), adapter_name)` has made."""
    for name, of in factors.items():
        layer: Any = peft_model.get_base_model().get_submodule(name)
        layer.lora_A[adapter_name].weight.copy_(of["A"])
        layer.lora_B[adapter_name].weight.copy_(of["B"])
        if layer.lora_bias[adapter_name]:
            layer.lora_B[adapter_name].bias.copy_(of["bias"])
