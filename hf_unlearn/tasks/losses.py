"""Losses of every sample by itself, for `Batch.mean` to put together."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batches import Batch
from ..models import heads

IGNORED = -100  # the label of a token that is no part of the completion, in transformers too


def next_tokens(labels: Tensor) -> Tensor:
    """The label that the logits at each place predict, which stands one place further on; [n, L] as `labels`.

    >>> next_tokens(torch.tensor([[-100, 5, 6]])).tolist()
    [[5, 6, -100]]
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def predicting(labels: Tensor) -> Tensor:
    """The places that predict a completion token: bool [n, L]."""
    return next_tokens(labels) != IGNORED


def token_scores(model: nn.Module, batch: Batch, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A score of every completion token, from logits [t, V] and tokens [t]: [n, L], 0 where no such token is predicted."""
    places, tokens = predicting(batch.labels), next_tokens(batch.labels)
    of_tokens, _ = heads.read(model, batch.inputs, places, heads.scored(tokens[places], score))
    return heads.padded(of_tokens[:, 0], places)


def token_means(scores: Tensor, labels: Tensor) -> Tensor:
    """Of every sample, from scores [n, L] of its completion tokens."""
    return scores.sum(dim=1) / predicting(labels).sum(dim=1)


def log_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """log π(y|x) of every sample of a language model: the sum over its completion tokens."""
    return token_scores(model, batch, heads.log_probabilities).sum(dim=1)


def sample_losses(model: nn.Module, batch: Batch) -> Tensor:
    """`cross_entropy` of what the model says of a batch; of a language model without making all of its logits."""
    if batch.labels.ndim == 1:
        return cross_entropy(model(**batch.inputs).logits, batch.labels)
    return -log_likelihood(model, batch) / predicting(batch.labels).sum(dim=1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every sample, in float32 at least.

    Of a classifier: logits [n, classes] and labels [n]. Of a language model: logits [n, L, V] and labels [n, L], -100
    outside the completion; the mean over the sample's own completion tokens.
    """
    if logits.ndim == 2:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, labels, reduction="none")
    places = predicting(labels)
    log_p = heads.log_probabilities(logits[places], next_tokens(labels)[places])
    return -heads.padded(log_p, places).sum(dim=1) / places.sum(dim=1)


def divergence(p_logits: Tensor, q_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p‖q) of every row, p and q being softmax(logits/T), in float32 at least."""
    p, q = (
        (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(dim=-1)
        for logits in (p_logits, q_logits)
    )
    return (p.exp() * (p - q)).sum(dim=-1)
