"""Losses of every sample by itself, for `Batch.mean` to put together."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # the label of a token that is no part of the completion, in transformers too


def next_tokens(labels: Tensor) -> Tensor:
    """The label that the logits at each place predict, which stands one place further on; [n, L] as `labels`.

    >>> next_tokens(torch.tensor([[-100, 5, 6]])).tolist()
    [[5, 6, -100]]
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every sample, in float32 at least.

    Of a classifier: logits [n, classes] and labels [n]. Of a language model: logits [n, L, V] and labels [n, L], -100
    outside the completion; the mean over the sample's own completion tokens.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.ndim == 2:
        return F.cross_entropy(logits, labels, reduction="none")
    labels = next_tokens(labels)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(labels.shape).sum(dim=1) / (labels != IGNORED).sum(dim=1)


def divergence(p_logits: Tensor, q_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p‖q) of every row, p and q being softmax(logits/T), in float32 at least."""
    p, q = (
        (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(dim=-1)
        for logits in (p_logits, q_logits)
    )
    return (p.exp() * (p - q)).sum(dim=-1)
