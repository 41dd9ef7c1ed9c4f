"""Checks of what metrics are given."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import torch

_EXPECTED = {
    "probabilities": ("N x K probabilities", "apply softmax in float32 and flatten to one row per sample"),
    "labels": ("N integer class ids", "take the argmax of logits, map class names to ids, and drop ignored samples"),
    "scores": ("N numbers", "pass one value per sample and drop samples without one"),
    "signal": ("N finite numbers", "pass one value per sample, and clip or drop infinite ones"),
}


def from_torch(values: ArrayLike) -> ArrayLike:
    """`values`, as NumPy's own where they are a tensor: NumPy knows neither GPUs nor bfloat16."""
    if not hasattr(values, "detach"):
        return values
    tensor = cast("torch.Tensor", values).detach().cpu()
    return tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()


def checked(values: ArrayLike, name: str, kind: str, length: int | None = None) -> np.ndarray:
    """`values` as an array of the given kind (a key of `_EXPECTED`), or a ValueError that says what is wrong with it.

    Rows of probabilities may be off by 1e-3 (float16) and are rescaled to sum to 1.
    """

    def refuse(found: str) -> ValueError:
        expected, remedy = _EXPECTED[kind]
        return ValueError(f"`{name}` {found}, but {expected} were expected: {remedy}.")

    try:
        array = np.asarray(from_torch(values), dtype=np.float64)
    except (TypeError, ValueError):
        raise refuse("does not convert to a rectangular array of numbers") from None

    dimensions = 1
    if kind == "probabilities":
        dimensions, array = 2, array[None] if array.ndim == 1 else array
    if array.ndim != dimensions:
        raise refuse(f"has shape {array.shape}")
    if array.size == 0:
        raise refuse("is empty")
    if length is not None and len(array) != length:
        raise refuse(f"has {len(array)} entries where the array it belongs to has {length}")
    if kind == "probabilities":
        totals = array.sum(axis=1, keepdims=True)  # NaN or infinite as soon as one entry is
        if not np.isfinite(totals).all():
            raise refuse("contains NaN or infinite values")
        if array.min() < 0:
            raise refuse(f"contains negative values (down to {array.min():.3g})")
        worst = np.abs(totals - 1).argmax()
        if abs(totals[worst, 0] - 1) > 1e-3:
            raise refuse(f"has a row that sums to {totals[worst, 0]:.6g} (row {worst})")
        return array / totals
    if np.isnan(array).any() or (kind != "scores" and np.isinf(array).any()):
        raise refuse("contains NaN or infinite values" if kind != "scores" else "contains NaN")
    if kind == "labels":
        if (array != np.floor(array)).any():
            raise refuse("contains fractions")
        return array.astype(np.int64)
    return array


def checked_pair(p: ArrayLike, q: ArrayLike, p_name: str, q_name: str) -> tuple[np.ndarray, np.ndarray]:
    p, q = checked(p, p_name, "probabilities"), checked(q, q_name, "probabilities")
    if p.shape != q.shape:
        raise ValueError(
            f"`{p_name}` has shape {p.shape} and `{q_name}` {q.shape}, but they are compared row by row: pass the same "
            "samples (or classes) in the same order and over the same classes."
        )
    return p, q


def checked_tokens(values: ArrayLike, mask: ArrayLike | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    """`values` as float64 [N, L], 0 where a token does not count, and `mask` as bool [N, L]; without a mask all count."""
    array = np.asarray(from_torch(values), dtype=np.float64)
    counts = np.ones(array.shape, bool) if mask is None else np.asarray(from_torch(mask)).astype(bool)
    if array.ndim != 2 or counts.shape != array.shape:
        raise ValueError(
            f"`{name}` has shape {array.shape} and `mask` {counts.shape}, but N x L numbers of tokens and N x L booleans "
            "were expected: pad the rows to one length, and mask the padding."
        )
    if not array.size or not counts.any(axis=1).all():
        row = int((~counts.any(axis=1)).argmax()) if len(array) else 0
        raise ValueError(f"`mask` has no token that counts in row {row} of `{name}`: leave such rows out.")
    if np.isnan(array[counts]).any():
        raise ValueError(f"`{name}` contains NaN: check the model, or run its forward pass in float32.")
    return np.where(counts, array, 0.0), counts


def number(values: Mapping[str, float], key: str, name: str) -> float:
    value = values.get(key)
    if value is None or not np.isfinite(value):
        found = f"{key!r} = {value}" if key in values else f"no {key!r}"
        raise ValueError(f"`{name}` has {found}, but a finite number was expected: measure it and pass it.")
    return float(value)
