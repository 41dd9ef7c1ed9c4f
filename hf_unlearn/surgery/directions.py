"""The formulas of DAMP, of one activation z and the operators W that read it.

d_f = μ_f − RR⁺μ_f,   R = [μ_c of the retained classes],   Q = orth{d_f / ‖d_f‖}
α_ℓ = min{1, max{0, 2a_ℓ − 1}} · ℓ/L
W ← W(I − α_ℓQQᵀ)
"""

import torch
from torch import Tensor

from ..methods.gradients import project

PARALLEL = 1e-3  # residuals whose angle is about this small are one direction, and noise


def centre(retain_means: Tensor, span: str) -> Tensor:
    """m: 0 for the `linear` span (the paper), mean_c μ_c for the `affine` one (ours)."""
    return retain_means.mean(dim=0) if span == "affine" else torch.zeros_like(retain_means[0])


def residuals(
    forget_means: Tensor, retain_means: Tensor, span: str = "linear", rcond: float | None = None
) -> tuple[Tensor, Tensor]:
    """d_f = (I − UUᵀ)(μ_f − m), a row for each μ_f, and ‖d_f‖ / ‖μ_f − m‖; U: a basis of span{μ_c − m}, σ > rcond·σ₁."""
    m = centre(retain_means, span)
    x = forget_means - m
    d = project(x, principal(retain_means - m, rcond))
    enough = len(retain_means) >= x.shape[1]
    if enough and len(principal(retain_means - m)) == x.shape[1]:  # they span everything, if only in small directions
        d = torch.zeros_like(x)
    return d, d.norm(dim=1) / x.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)


def forget_directions(
    forget_means: Tensor,
    retain_means: Tensor,
    span: str = "linear",
    rcond: float | None = None,
    tau: float = 0.02,
) -> Tensor:
    """Q [d, r]: an orthonormal basis of q_f = d_f / ‖d_f‖, without those of which ‖d_f‖ / ‖μ_f − m‖ < τ.

    By SVD, where the paper has QR, since QR makes a unit column of noise from two residuals that are nearly parallel.

    >>> forget_directions(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])).abs()
    tensor([[0.],
            [1.]])
    """
    return directions_of(*residuals(forget_means, retain_means, span, rcond), tau)


def directions_of(d: Tensor, relative: Tensor, tau: float) -> Tensor:
    d = d[(relative >= tau) & (relative > 0)]
    return principal(d / d.norm(dim=1, keepdim=True), PARALLEL).T


def principal(rows: Tensor, rcond: float | None = None) -> Tensor:
    """An orthonormal basis [r, d]: the right singular vectors with σ > rcond·σ₁, or above rounding."""
    if len(rows) == 0:
        return rows
    least = max(rcond or 0.0, torch.finfo(rows.dtype).eps * max(rows.shape))
    _, sigma, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[sigma > least * sigma[0]]


def remove_directions(weight: Tensor, directions: Tensor, alpha: float) -> Tensor:
    """W' = W(I − αQQᵀ) on axis 1, the inputs.

    Of a kernel [out, C, k, k], Q [C, r] is removed at every tap and Q [C·k·k, r] from whole patches.

    >>> remove_directions(torch.tensor([[2.0, 3.0]]), torch.tensor([[0.0], [1.0]]), 0.5)
    tensor([[2.0000, 1.5000]])
    """
    w = weight.reshape(len(weight), len(directions), -1)
    q = directions.to(weight.dtype)
    return (w - alpha * (q @ (q.T @ w))).view_as(weight)


def affine_bias(weight: Tensor, directions: Tensor, alpha: float, m: Tensor) -> Tensor:
    """b' − b = αWQ(Qᵀm), of a kernel summed over its taps: with it, what is read is changed by −αQQᵀ(z − m)."""
    w = weight.reshape(len(weight), len(directions), -1).sum(dim=2)
    return alpha * (w @ directions @ (directions.T @ m))


def depth_coefficient(probe_accuracy: float, stage: int, stages: int) -> float:
    """α_ℓ = min{1, max{0, 2a_ℓ − 1}} · ℓ/L

    >>> depth_coefficient(0.75, stage=5, stages=5)
    0.5
    """
    return min(1.0, max(0.0, 2 * probe_accuracy - 1)) * stage / stages
