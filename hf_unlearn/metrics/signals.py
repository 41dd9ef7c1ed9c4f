"""Numbers of each sample from a model's logits: loss, entropy, confidence, margin."""

from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import ArrayLike

from .checks import checked

if TYPE_CHECKING:
    import torch

# ---- Per-sample statistics and the attacks on them ------------------------------------------------------------------


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Share of predicted class ids that equal the labels.

    Example:
        >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
        0.75
    """
    predictions = checked(predictions, "predictions", "labels")
    labels = checked(labels, "labels", "labels", length=len(predictions))
    return float((predictions == labels).mean())


@overload
def sample_statistics(logits: "torch.Tensor", labels: "ArrayLike | torch.Tensor") -> "dict[str, torch.Tensor]": ...
@overload
def sample_statistics(logits: ArrayLike, labels: "ArrayLike | torch.Tensor") -> dict[str, np.ndarray]: ...
def sample_statistics(
    logits: "ArrayLike | torch.Tensor", labels: "ArrayLike | torch.Tensor"
) -> "dict[str, np.ndarray] | dict[str, torch.Tensor]":
    """What a membership attack looks at, for every sample, from N x K logits z with p = softmax(z) and label y.

        loss        -log p_y                                (nats)
        entropy     -Σ_k p_k log p_k                        (nats)
        confidence  p_y
        margin      log p_y - log Σ_{k≠y} p_k               (the logit-scaled margin; unbounded, near normal)
        correct     1 if argmax_k z_k = y, else 0

    The margin comes straight from the logits, z_y - logsumexp_{k≠y} z_k, so it does not saturate where p_y rounds to 1.
    Torch logits stay torch, on their own device, for streaming loops; anything else gives NumPy arrays. All are
    float64 (float32 on MPS, which has no float64). A logit may be -inf (a masked class), not NaN.

    References:
        Carlini et al., *Membership Inference Attacks From First Principles*, S&P 2022, arXiv 2112.03570 (margin).

    Example:
        >>> {name: float(value[0].round(4)) for name, value in sample_statistics([[2.0, 0.0]], [0]).items()}
        {'loss': 0.1269, 'entropy': 0.3653, 'confidence': 0.8808, 'margin': 2.0, 'correct': 1.0}
    """
    import torch

    as_torch = isinstance(logits, torch.Tensor)
    z = logits.detach() if as_torch else torch.from_numpy(np.array(logits, dtype=np.float64))
    z = z.to(torch.float32 if z.device.type == "mps" else torch.float64)
    y = labels.to(z.device) if isinstance(labels, torch.Tensor) else torch.tensor(labels, device=z.device)
    if z.ndim != 2 or z.shape[1] < 2 or y.shape != z.shape[:1]:
        raise ValueError(
            f"`logits` has shape {tuple(z.shape)} and `labels` {tuple(y.shape)}, but N x K (K at least 2) and N were "
            "expected: flatten to one row of logits and one class id per sample."
        )
    if y.is_floating_point() or bool(((y < 0) | (y >= z.shape[1])).any()):
        raise ValueError(
            f"`labels` must be integers from 0 to {z.shape[1] - 1}, the columns of `logits`: map them to class ids and "
            "drop ignored samples."
        )
    y = y.long()[:, None]
    log_p = z.log_softmax(dim=1)
    if bool(log_p.isnan().any()):
        raise ValueError("`logits` contains NaN or +inf: check the model, or run its forward pass in float32.")
    p, log_p_y = log_p.exp(), log_p.gather(1, y).squeeze(1)
    statistics = {
        "loss": -log_p_y,
        "entropy": -torch.xlogy(p, p).sum(dim=1),
        "confidence": log_p_y.exp(),
        "margin": z.gather(1, y).squeeze(1) - z.scatter(1, y, -torch.inf).logsumexp(dim=1),
        "correct": (z.argmax(dim=1) == y.squeeze(1)).to(z.dtype),
    }
    return statistics if as_torch else {name: value.numpy() for name, value in statistics.items()}


def rows_at_once(columns: int) -> int:
    """How many rows of so many float64 numbers are worked on at a time: 64 MB of them."""
    return max(1, 2**23 // columns)


@overload
def token_statistics(logits: "torch.Tensor", labels: "ArrayLike | torch.Tensor") -> "dict[str, torch.Tensor]": ...
@overload
def token_statistics(logits: ArrayLike, labels: "ArrayLike | torch.Tensor") -> dict[str, np.ndarray]: ...
def token_statistics(
    logits: "ArrayLike | torch.Tensor", labels: "ArrayLike | torch.Tensor"
) -> "dict[str, np.ndarray] | dict[str, torch.Tensor]":
    """`sample_statistics` for a language model: of every sample, means over the tokens that have a label.

    N x L x V logits and N x L labels, -100 where a token does not count; as in transformers, the logits at one place
    predict the label at the next.

        loss        mean of -log p_y                        (nats)
        entropy     mean of -Σ_k p_k log p_k                (nats)
        confidence  mean of p_y
        margin      -loss, for attacks that take a margin: one token of a sure p_y would outweigh all others in a mean of
                    logit-scaled margins, which have no bound
        correct     share of the tokens with argmax_k z_k = y

    Example:
        >>> logits = [[[2.0, 0.0], [0.0, 0.0], [9.0, 9.0]]]
        >>> {name: float(value[0].round(4)) for name, value in token_statistics(logits, [[-100, 0, 1]]).items()}
        {'loss': 0.41, 'entropy': 0.5292, 'confidence': 0.6904, 'margin': -0.41, 'correct': 0.5}
    """
    import torch

    as_torch = isinstance(logits, torch.Tensor)
    z = logits.detach() if as_torch else torch.from_numpy(np.array(logits, dtype=np.float64))
    y = labels.to(z.device) if isinstance(labels, torch.Tensor) else torch.tensor(labels, device=z.device)
    if z.ndim != 3 or y.shape != z.shape[:2]:
        raise ValueError(
            f"`logits` has shape {tuple(z.shape)} and `labels` {tuple(y.shape)}, but N x L x V and N x L were expected: "
            "pass padded batches, with the label -100 where a token does not count."
        )
    rows, places = (y[:, 1:] != -100).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(y))
    if bool((counts == 0).any()):
        raise ValueError(f"`labels` has no token that counts in row {int(counts.argmin())}: leave such samples out.")
    sums: dict[str, torch.Tensor] = {}
    step = rows_at_once(z.shape[2])
    for row, place in zip(rows.split(step), places.split(step), strict=True):
        for name, value in sample_statistics(z[row, place], y[row, place + 1]).items():
            sums.setdefault(name, value.new_zeros(len(y))).index_add_(0, row, value)
    statistics = {name: total / counts for name, total in sums.items()}
    statistics["margin"] = -statistics["loss"]
    return statistics if as_torch else {name: value.numpy() for name, value in statistics.items()}
