"""Sums of squared gradients of single samples, layer by layer from one backward pass of a batch.

With a layer's input a and the gradient δ of what it gives, one row a sample, in which T are the places it is applied at:

    linear       G_b = δ_bᵀ a_b               [out, in],     δ_b [T, out], a_b [T, in]
    convolution  G_b = δ_b unfold(a_b)ᵀ       [out, C·k·k],  δ_b [out, T]
    norm         G_b = Σ_t δ_bt x̂_bt          [C],           x̂: what is scaled
    any bias     G_b = Σ_t δ_bt

and Σ_b G_b² is what is wanted. This is faster than a loop over samples, which reads and writes all weights for each of them.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batches import Batch
from ..tasks.losses import cross_entropy

Gradients = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]


def linear(layer: nn.Linear, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    a, delta = (x.reshape(len(x), -1, x.shape[-1]) for x in (a, delta))
    return {"weight": delta.transpose(1, 2) @ a, "bias": delta.sum(1)}


def convolution(layer: nn.Conv2d, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    if layer.groups > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise NotImplementedError(f"{layer}")
    patches = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    weight = delta.flatten(2) @ patches.transpose(1, 2)
    return {"weight": weight.view(len(a), *layer.weight.shape), "bias": delta.sum((2, 3))}


def batch_norm(layer: nn.BatchNorm2d, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    over = tuple(range(2, a.ndim))
    if layer.running_mean is None:
        raise NotImplementedError(f"{layer} without running statistics")
    scaled = F.batch_norm(a, layer.running_mean, layer.running_var, eps=layer.eps)
    return {"weight": (delta * scaled).sum(over), "bias": delta.sum(over)}


def layer_norm(layer: nn.LayerNorm, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    scaled = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    scaled, delta = (x.reshape(len(x), -1, *layer.normalized_shape) for x in (scaled, delta))
    return {"weight": (delta * scaled).sum(1), "bias": delta.sum(1)}


KINDS: dict[type[nn.Module], Gradients] = {
    nn.Linear: linear,
    nn.Conv2d: convolution,
    nn.BatchNorm2d: batch_norm,
    nn.LayerNorm: layer_norm,
}


def add_squares_by_layers(model: nn.Module, weights: dict[str, Tensor], sums: dict[str, Tensor], batch: Batch) -> None:
    """Σ += (∂ℓ/∂θ)² of every sample of a batch, in a model of these layers alone, each of them used once."""
    owners = {name.rpartition(".")[0] for name in weights}
    layers = {name: model.get_submodule(name) for name in owners}
    if other := [name for name, layer in layers.items() if type(layer) not in KINDS]:
        raise NotImplementedError(f"{other[0]} is a {type(layers[other[0]]).__name__}")
    read: dict[str, Tensor] = {}
    used: set[str] = set()

    def keep(name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            if name in used:
                raise NotImplementedError(f"{name} is used twice")
            used.add(name)
            read[name] = args[0].detach()
            output.register_hook(lambda delta: _add(sums, name, layer, read.pop(name), delta))

        return hook

    inputs = {key: x.detach().requires_grad_(x.is_floating_point()) for key, x in batch.inputs.items()}
    followed = [x for x in inputs.values() if x.requires_grad]
    if not followed:
        raise NotImplementedError(f"{type(model).__name__} reads no numbers that have a gradient")
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(keep(name)).remove)
        loss = cross_entropy(model(**inputs).logits, batch.labels).sum()
        torch.autograd.grad(loss, followed)


def _add(sums: dict[str, Tensor], name: str, layer: nn.Module, a: Tensor, delta: Tensor) -> None:
    # One gradient at a time, so that it stays in the processor's cache.
    for sample in zip(a.split(1), delta.split(1), strict=True):
        for part, (g,) in KINDS[type(layer)](layer, *sample).items():
            if (total := sums.get(f"{name}.{part}")) is not None:
                total.addcmul_(g.to(total.dtype), g.to(total.dtype))
