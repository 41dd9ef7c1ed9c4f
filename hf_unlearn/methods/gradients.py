"""Arithmetic on whole gradients: lists of tensors, one for each trained parameter, sharded over processes or not."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

Gradient = list[Tensor]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def summed(values: Tensor, like: Tensor) -> Tensor:
    """Sums made of local parts, over the processes that the parameter `like` is sharded on."""
    if not isinstance(like, DTensor):
        return values
    placements = [Replicate() if p.is_replicate() else Partial() for p in like.placements]
    return DTensor.from_local(values, like.device_mesh, placements).full_tensor()


def dots(a: Gradient, b: Gradient) -> Tensor:
    """The inner product of each pair of tensors, accumulated in float32 at least. One reduction for all of them."""
    products = [torch.dot(_flat(x), _flat(y)) for x, y in zip(a, b, strict=True)]
    return summed(torch.stack(products), a[0])


def share(product: Tensor, square: Tensor) -> Tensor:
    """max(0, x·y) / ‖y‖², which of two gradients at an acute angle is what x has of y; 0 where y is."""
    return torch.where(square > 0, product.clamp(min=0) / square, 0.0)


def clip_(gradient: Gradient, max_norm: float) -> Tensor:
    """Scale a gradient down to a norm of `max_norm`, in place, if it is longer; gives the factor."""
    scale = (max_norm / dots(gradient, gradient).sum().sqrt()).clamp(max=1.0)
    for tensor in gradient:
        local(tensor).mul_(scale.to(tensor.dtype))
    return scale


def combination(a: float | Tensor, x: Tensor, b: float | Tensor, y: Tensor) -> Tensor:
    """a·x + b·y in float32 at least: where they nearly cancel, rounding first would leave any direction.

    Of a and b as tensors nothing is asked, so that no device has to be waited for.
    """
    x, y = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (x, y))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a * x + b * y
    if b == 0:
        return a * x
    return b * y if a == 0 else torch.add(a * x, y, alpha=b)


def combine_(
    x: Gradient, y: Gradient, groups: list[list[int]], coefficients: Sequence[Sequence[float | Tensor]]
) -> Gradient:
    """a·x + b·y with a pair (a, b) for each block, in the place of x, whose tensors are let go one by one."""
    for (a, b), group in zip(coefficients, groups, strict=True):
        for i in group:
            x[i] = combination(a, x[i], b, y[i]).to(x[i].dtype)
    return x


def blocks(names: Sequence[str], kind: Literal["tensor", "module", "global"]) -> list[list[int]]:
    """Indices of the parameters of each block."""
    everything = [*range(len(names))]
    return {"tensor": [[i] for i in everything], "module": by_module(names), "global": [everything]}[kind]


def by_module(names: Sequence[str]) -> list[list[int]]:
    """Indices of the parameters of each module: a weight with its bias."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name.rpartition(".")[0], []).append(i)
    return list(groups.values())


def _flat(tensor: Tensor) -> Tensor:
    tensor = local(tensor)
    return tensor.flatten().to(torch.promote_types(tensor.dtype, torch.float32))


def _directions(rows: Tensor) -> Tensor:
    """The rows that are not 0, with length 1."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    lengths = rows.norm(dim=1, keepdim=True)
    return (rows / lengths)[lengths[:, 0] > 0]


def orthonormal(rows: Tensor, against: Tensor | None = None) -> Tensor:
    """An orthonormal basis (k × d) of the span of `rows` (n × d), without what is in the span of the basis `against`.

    In float32 at least. Rows count by direction, not by length; zeros and repeated rows add nothing.
    """
    rows = _directions(rows)
    if len(rows) == 0:
        return rows
    if against is not None:
        rows = project(rows, against)
    q, r = torch.linalg.qr(rows.T)
    u, singular, _ = torch.linalg.svd(r, full_matrices=False)
    return (q @ u[:, singular > 1e3 * torch.finfo(rows.dtype).eps]).T


def project(vectors: Tensor, basis: Tensor) -> Tensor:
    """(I − BᵀB)v for each row v, in the basis's precision. Twice, since once leaves what rounding has let through."""
    vectors = vectors.to(basis.dtype)
    for _ in range(2 if len(basis) else 0):
        vectors = vectors - (vectors @ basis.T) @ basis
    return vectors


def strongest(rows: Tensor, energy: float) -> Tensor:
    """An orthonormal basis of the fewest principal directions of `rows`, all made equally long, with this share of energy."""
    rows = _directions(rows)
    if energy == 0 or len(rows) == 0:
        return rows[:0]
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())  # ascending
    share = values.clamp(min=0).flip(0).cumsum(0) / values.clamp(min=0).sum()
    rank = int((share < energy - 1e-12).sum()) + 1
    rank = min(rank, int((values > 1e2 * torch.finfo(rows.dtype).eps * values[-1]).sum()))  # the others are rounding
    return orthonormal(vectors[:, -rank:].T.to(rows.dtype) @ rows)


def blockwise(gradient: Gradient, groups: list[list[int]]) -> Gradient:
    """One vector for each block of tensors."""
    return [torch.cat([gradient[i].flatten() for i in group]) for group in groups]
