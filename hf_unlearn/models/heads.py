"""The head of a language model, at the places that predict a completion and nowhere else, and never at all of them at once.

A head makes a number for each word of the vocabulary at each place, which is more than all else that a training step keeps. What
a loss or a figure needs of them is a few numbers a token. Inside `read` the head is given the places that count only, and
answers with these few; what it makes of `CHUNK` places in between is dropped, and made again for the gradient.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .kinds import pretrained

CHUNK = 128  # places; fewer at a time make the product with the head's weights slower
NONE = -1e4  # a log p whose p is 0
MARK = 1000.0  # a whole number in half precision too, and far above every cap
# Whether what a head says is what its model says: some scale or cap it once more, as their first forward pass shows.
_IS_LAST: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Places:
    """T places of a batch, one for each token that is predicted there.

    Attributes:
        states: what the model's head reads, [T, d].
        logits: of some of these states, [t, d] -> [t, V].
    """

    states: Tensor
    logits: Callable[[Tensor], Tensor]


def head_of(model: nn.Module) -> nn.Module | None:
    """The head of a language model, whatever wraps it."""
    return pretrained(extract_model_from_parallel(model)).get_output_embeddings()


def read(
    model: nn.Module, inputs: Mapping[str, Tensor], places: Tensor, of: Callable[[Places], Tensor]
) -> tuple[Tensor, Places]:
    """What `of` makes of the marked places of a batch, [T, C], in one forward pass; and these places.

    The head answers within the forward pass of the model, whatever wraps it, so that gradients and sharded weights are
    where they always are. A model that changes what its head has said gives logits at the marked places, and `of` reads
    those.

    Args:
        places: bool [n, L].
    """
    head = head_of(model)
    if head is None:
        return _from_logits(model(**inputs).logits[places], of)
    if _IS_LAST.get(head, True):
        found: list[Places] = []

        def few(own: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
            found.append(Places(states[places], own))
            columns = of(found[0])
            return torch.cat([columns, columns.new_full((len(columns), 1), MARK)], dim=1)[None]

        with _answering(head, few):
            columns = model(**inputs).logits
        if head not in _IS_LAST and columns.shape[1]:  # of no place it cannot be told
            _IS_LAST[head] = bool((columns[..., -1] == MARK).all())
        if _IS_LAST.get(head, True):
            return columns[0, :, :-1], found[0]
    with _answering(head, lambda own, states: own(states[places])[None]):
        logits = model(**inputs).logits
    return _from_logits(logits[0], of)


def _from_logits(logits: Tensor, of: Callable[[Places], Tensor]) -> tuple[Tensor, Places]:
    found = Places(logits, lambda rows: rows)
    return of(found), found


@contextmanager
def _answering(head: nn.Module, answer: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Iterator[None]:
    """Inside, `head(states)` gives `answer(what it does by itself, states)`. Its hooks run as ever."""
    own, patched = head.forward, vars(head).get("forward")
    # In a compiled model this part stays as it is: made anew for each pass, it would be compiled in each.
    head.forward = torch.compiler.disable(lambda states: answer(own, states))
    try:
        yield
    finally:
        if patched is None:
            del head.forward
        else:
            head.forward = patched


def in_chunks(function: Callable[..., Tensor], *parts: Tensor, share: int = 1) -> Tensor:
    """`function` of rows that belong together, a chunk (or a share of one) at a time. Nothing of it is kept but inputs and result."""
    chunks = zip(*(part.split(CHUNK // share) for part in parts), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*rows) for rows in chunks])
    return torch.cat([cast(Tensor, checkpoint(function, *rows, use_reentrant=False)) for rows in chunks])


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(y_t) of each token, in float32 at least: [T] from [T, V] and [T]."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return z.gather(1, tokens[:, None])[:, 0] - z.logsumexp(dim=1)


def likelihoods(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of each token log p(y_t), and whether it is the likeliest one (1 or 0): [T, 2], in float32 at least."""
    return torch.stack(_said(logits, tokens)[:2], dim=1)


def token_scores(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of each token log p(y_t), whether it is the likeliest one (1 or 0), and the mean of log p(y) over y ~ p: [T, 3], in float32 at
    least."""
    log_p_y, right, below, weights, total = _said(logits, tokens)
    mean = torch.linalg.vecdot(weights, below) / total - total.log()
    return torch.stack([log_p_y, right, mean], dim=1)


def token_moments(logits: Tensor, tokens: Tensor) -> Tensor:
    """The same, and the standard deviation of log p(y): [T, 4]."""
    log_p_y, right, below, weights, total = _said(logits, tokens)
    mean = torch.linalg.vecdot(weights, below) / total
    deviation = (torch.linalg.vecdot(weights, below.sub_(mean[:, None]).square_()) / total).sqrt()
    return torch.stack([log_p_y, right, mean - total.log(), deviation], dim=1)


def _said(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Of each token log p(y_t), and whether it is the likeliest one; of all words, how far log p(y) is below the likeliest one's, e
    to that, and the sum of these: few passes over the vocabulary."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top, best = z.max(dim=1, keepdim=True)
    below = (z - top).clamp_(min=NONE)  # 0 · log 0 = 0
    weights = below.exp()
    total = weights.sum(dim=1)
    log_p_y = (z.gather(1, tokens[:, None]) - top)[:, 0] - total.log()
    return log_p_y, (best[:, 0] == tokens).to(z.dtype), below, weights, total


def scored(tokens: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Places], Tensor]:
    """For `read`: a score of the tokens that the places predict, from their logits, a chunk of them at a time."""

    def of(found: Places) -> Tensor:
        columns = in_chunks(lambda states, y: score(found.logits(states), y), found.states, tokens)
        return columns if columns.ndim == 2 else columns[:, None]

    return of


def compared(other: Places, difference: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Places], Tensor]:
    """For `read`: a difference between the predictions of two models at the same places, from the logits of both."""

    def of(found: Places) -> Tensor:
        def function(states: Tensor, of_other: Tensor) -> Tensor:
            return difference(found.logits(states), other.logits(of_other))

        share = 1 if torch.is_grad_enabled() else 4  # of two models, and in float64 where they are measured
        columns = in_chunks(function, found.states, other.states, share=share)
        return columns if columns.ndim == 2 else columns[:, None]

    return of


def states(found: Places) -> Tensor:
    """For `read`, where only the places themselves are asked for."""
    return found.states[:, :0]


def padded(values: Tensor, places: Tensor) -> Tensor:
    """[T] as [n, L], 0 where no place is marked."""
    return values.new_zeros(places.shape).masked_scatter(places, values)
