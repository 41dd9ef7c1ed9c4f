"""The head of a language model, at the places that predict a completion and nowhere else, and never at all of them at once.

A head makes a number for each word of the vocabulary at each place, which is more than all else that a training step keeps. What
a loss or a figure needs of them is a few numbers a token. Inside `read` the head is given the places that count only, and
answers with these few; what it makes of `CHUNK` places in between is dropped, and made again for the gradient.

The gradient of a head that is a matrix W, often the embedding too, is the largest of all. It is summed up over the chunks in one
buffer, which inside `into_gradients` is `W.grad` itself.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
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
        weight: W where logits are states · Wᵀ and nothing else, [V, d].
    """

    states: Tensor
    logits: Callable[[Tensor], Tensor]
    weight: Tensor | None = None

    def in_chunks(self, score: Callable[..., Tensor], *parts: Tensor, share: int = 1) -> Tensor:
        """`score(logits, *parts)` of all places, see `in_chunks`; `parts` need no gradient."""
        if self.weight is not None and torch.is_grad_enabled():
            return cast(Tensor, _Product.apply(self.states, self.weight, score, CHUNK // share, *parts))
        return in_chunks(lambda states, *rows: score(self.logits(states), *rows), self.states, *parts, share=share)


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
        weight = None if isinstance(model, FSDPModule) else _matrix(head)  # whose whole weights come and go

        def few(own: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
            found.append(Places(states[places], own, weight))
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


def _matrix(head: nn.Module) -> nn.Parameter | None:
    """W of a head that is one and no more, and is there after its forward pass too, unlike in DeepSpeed's third stage."""
    if type(head) is not nn.Linear or head.bias is not None or "forward" in vars(head):
        return None
    return head.weight if type(head.weight) is nn.Parameter and not hasattr(head.weight, "ds_id") else None


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


class _Product(torch.autograd.Function):
    """`score(states · Wᵀ, *parts)`, `size` places at a time; the same of them, with the gradient of W in one buffer."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, score: Callable, size: int, *parts: Tensor) -> Tensor:
        kind = states.device.type
        ctx.autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.weight, ctx.score, ctx.size = weight, score, size
        ctx.save_for_backward(states, *parts)
        chunks = zip(*(part.split(size) for part in (states, *parts)), strict=True)
        return torch.cat([score(F.linear(rows, weight), *rest) for rows, *rest in chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (states, *parts), weight = ctx.saved_tensors, ctx.weight
        of_states, total, is_added = torch.empty_like(states), None, False
        if ctx.needs_input_grad[1]:
            is_watched = weight._backward_hooks or weight._post_accumulate_grad_hooks
            is_added = _INTO_GRADIENTS and weight.is_leaf and not is_watched
            # To a large sum in half precision small chunks would add nothing.
            is_added &= weight.grad is None or weight.dtype.itemsize >= 4
            total = torch.zeros_like(weight) if weight.grad is None or not is_added else weight.grad
            if is_added:
                weight.grad = total
        for rows, of_rows, of_scores, *rest in zip(
            *(part.split(ctx.size) for part in (states, of_states, gradient, *parts)), strict=True
        ):
            with ctx.autocast:
                z = F.linear(rows, weight)
                with torch.enable_grad():
                    (g,) = torch.autograd.grad(ctx.score(z.requires_grad_(), *rest), z, of_scores)
                del z  # the largest there is, with its gradient
                if ctx.needs_input_grad[0]:
                    of_rows.copy_(g @ weight)
                if total is not None and g.dtype == rows.dtype == total.dtype:
                    total.addmm_(g.T, rows)
                elif total is not None:
                    total += g.T @ rows
        return of_states, None if is_added else total, None, None, *(None for _ in parts)


_INTO_GRADIENTS = False  # of all threads: that of a backward pass is another one on a GPU


@contextmanager
def into_gradients(yes: bool = True) -> Iterator[None]:
    """Inside, a backward pass adds the gradient of W to `W.grad` chunk by chunk, past whatever shares gradients between processes.
    Only for `backward()`, which does the same with all that it gets, and not for `torch.autograd.grad`."""
    global _INTO_GRADIENTS
    before, _INTO_GRADIENTS = _INTO_GRADIENTS, yes
    try:
        yield
    finally:
        _INTO_GRADIENTS = before


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p(y_t) of each token, in float32 at least: [T] from [T, V] and [T]."""
    return cast(Tensor, _LogProbability.apply(logits.to(torch.promote_types(logits.dtype, torch.float32)), tokens))


class _LogProbability(torch.autograd.Function):
    """z_y - log Σ exp(z). Its gradient, onehot(y) - softmax(z), is made in the one tensor that it is."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tokens: Tensor) -> Tensor:
        total, y = z.logsumexp(dim=1), tokens[:, None]
        ctx.save_for_backward(z, total, y)
        return z.gather(1, y)[:, 0] - total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z, total, y = ctx.saved_tensors
        of_z = (z - total[:, None]).exp_().mul_(-gradient[:, None])
        return of_z.scatter_add_(1, y, gradient[:, None]), None


def divergences(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p‖q) of each row, in float32 at least: [T] from twice [T, V]. No gradient reaches p."""
    p, q = (logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (p_logits, q_logits))
    return cast(Tensor, _Divergence.apply(q, p))


class _Divergence(torch.autograd.Function):
    """Σ p (z_p - z_q) - log Σ exp(z_p) + log Σ exp(z_q). Its gradient of z_q, q - p, takes two tensors."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, p: Tensor) -> Tensor:
        totals = q.logsumexp(dim=1), p.logsumexp(dim=1)
        ctx.save_for_backward(q, p, *totals)
        weights = (p - totals[1][:, None]).exp_()
        return _dot(weights, p - q) + totals[0] - totals[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        q, p, *totals = ctx.saved_tensors
        of_q = (q - totals[0][:, None]).exp_()
        return of_q.sub_((p - totals[1][:, None]).exp_()).mul_(gradient[:, None]), None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each row, as precise as these are: autocast would round them to half precision first."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.linalg.vecdot(a, b)


def likelihoods(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of each token log p(y_t), and whether it is the likeliest one (1 or 0): [T, 2], in float32 at least."""
    return torch.stack(_said(logits, tokens)[:2], dim=1)


def token_scores(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of each token log p(y_t), whether it is the likeliest one (1 or 0), and the mean of log p(y) over y ~ p: [T, 3], in float32 at
    least."""
    log_p_y, right, below, weights, total = _said(logits, tokens)
    mean = _dot(weights, below) / total - total.log()
    return torch.stack([log_p_y, right, mean], dim=1)


def token_moments(logits: Tensor, tokens: Tensor) -> Tensor:
    """The same, and the standard deviation of log p(y): [T, 4]."""
    log_p_y, right, below, weights, total = _said(logits, tokens)
    mean = _dot(weights, below) / total
    deviation = (_dot(weights, below.sub_(mean[:, None]).square_()) / total).sqrt()
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
        columns = found.in_chunks(score, tokens)
        return columns if columns.ndim == 2 else columns[:, None]

    return of


def compared(other: Places, difference: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Places], Tensor]:
    """For `read`: a difference between the predictions of two models at the same places, from the logits of both."""

    def of(found: Places) -> Tensor:
        def function(logits: Tensor, of_other: Tensor) -> Tensor:
            return difference(logits, other.logits(of_other))

        share = 2 if torch.is_grad_enabled() else 4  # of two models, and in float64 where they are measured
        columns = found.in_chunks(function, other.states, share=share)
        return columns if columns.ndim == 2 else columns[:, None]

    return of


def states(found: Places) -> Tensor:
    """For `read`, where only the places themselves are asked for."""
    return found.states[:, :0]


def padded(values: Tensor, places: Tensor) -> Tensor:
    """[T] as [n, L], 0 where no place is marked."""
    return values.new_zeros(places.shape).masked_scatter(places, values)
