"""What comes back when the weights are rounded: a small update may be no more than the rounding takes away.

    scale_o = max|W_o| / (2^(b−1) − 1),   Ŵ_o = scale_o · round(W_o / scale_o)   for each output channel o

References:
    Zhang et al., *Catastrophic Failure of LLM Unlearning via Quantization*, ICLR 2025, arXiv 2410.16454.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from .context import AuditContext
from .exchange import exchange, stands_out
from .verdict import Finding

BITS = (8, 4)
SAMPLES = 2000  # of the retained ones, at most
CONVENTION = (
    "Rounding: weights of linear layers and convolutions to the nearest step, int8 with 255 and int4 with 15 steps symmetric to "
    "0, one scale for each output channel; activations and biases are left alone."
)


def fake_quantize(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """The weight rounded to the nearest of 2^bits − 1 steps, symmetric to 0, with a scale for each entry of `axis`.

    >>> fake_quantize(torch.tensor([[7.0, 3.4, -1.6], [0.0, 0.0, 0.0]]), bits=4).tolist()
    [[7.0, 3.0, -2.0], [0.0, 0.0, 0.0]]
    """
    others = [d for d in range(weight.ndim) if d != axis]
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = wide.abs().amax(dim=others, keepdim=True) / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1
    return ((wide / scale).round() * scale).to(weight.dtype)


@contextlib.contextmanager
@torch.no_grad()
def quantized(model: nn.Module, bits: int) -> Iterator[None]:
    """Inside, all weights of linear layers and convolutions are rounded; after it they are, to the bit, what they were."""
    weights = {}  # tied ones once
    for module in model.modules():
        if isinstance(module, (nn.Linear, _ConvNd, Conv1D)):
            weights[module.weight] = (module.weight.detach().clone(), 1 if isinstance(module, Conv1D) else 0)
    try:
        for weight, (kept, axis) in weights.items():
            weight.copy_(fake_quantize(kept, bits, axis))
        yield
    finally:
        for weight, (kept, _) in weights.items():
            weight.copy_(kept)


def samples(ctx: AuditContext) -> int:
    """How many go forward."""
    sizes = {name: len(labels) for name, labels in ctx.labels.items()}
    models = sum(name in ctx.models for name in ("unlearned", "retrained"))
    return len(BITS) * models * (sizes["forget"] + sizes["unseen"] + min(SAMPLES, sizes["retain"]))


def examine(ctx: AuditContext) -> tuple[dict[str, Any], list[Finding]]:
    """Accuracies and margins at 8 and 4 bits, of the unlearned model and, as `control`, of the retrained one."""
    rng = np.random.default_rng([ctx.seed, 8])
    source, retained = ctx.sets["retain"]
    sets = ctx.sets | {"retain": (source, rng.permutation(retained)[:SAMPLES])}
    rows, margins = [], []
    for bits in BITS:
        found = {}
        for name in ("unlearned", "retrained"):
            if name in ctx.models:
                with quantized(ctx.models[name], bits):
                    found[name] = {s: ctx.evaluator.measure(ctx.models[name], *sets[s]) for s in sets}
        figures = {
            name: {f"{s}_accuracy": measured.accuracy for s, measured in by_set.items()}
            for name, by_set in found.items()
        }
        rows.append({"bits": bits, **figures["unlearned"], "control": figures.get("retrained")})
        margins.append([found["unlearned"][s].signals["margin"] for s in ("forget", "unseen")])
    forget, unseen = (np.stack(side) for side in zip(*margins, strict=True))
    tested = exchange(forget, ctx.labels["forget"], unseen, ctx.labels["unseen"], seed=ctx.seed)
    question = "Does rounding the weights bring forget samples back?"
    return {"quantization": rows}, [stands_out("quantization", question, tested, [f"at {bits} bits" for bits in BITS])]
