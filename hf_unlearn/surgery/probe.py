"""A linear probe: how well forget and retained samples can be told apart by an activation."""

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 0.01  # in variances of a feature


def probe_accuracy(forget: Tensor, retain: Tensor, share: float = 0.5, kind: str = "ridge") -> float:
    """a_ℓ: how well a linear probe tells forget from retained activations, on a held-out fifth of each side's rows.

    The rows of a side are in random order. `share` is what the forget side counts in the loss and in the accuracy: a half
    gives the balanced accuracy, the share of forget samples in the data the raw one. Features are standardised; `ridge` is
    least squares on ±1, `logistic` logistic regression.
    """
    rows, signs, shares = (forget.float(), retain.float()), (1.0, -1.0), (share, 1 - share)
    held = [-(-len(side) // 5) for side in rows]
    train = [side[h:] for side, h in zip(rows, held, strict=True)]
    x = torch.cat(train)
    y = torch.cat([torch.full((len(side),), sign) for side, sign in zip(train, signs, strict=True)])
    w = torch.cat([torch.full((len(side),), part / len(side)) for side, part in zip(train, shares, strict=True)])
    mean = w @ x
    scale = (w @ (x - mean).square()).sqrt()
    scale[scale == 0] = 1
    beta, b = (_ridge if kind == "ridge" else _logistic)((x - mean) / scale, y, w)
    right = [
        (((side[:h] - mean) / scale @ beta + b) * sign > 0).double().mean().item()
        for side, h, sign in zip(rows, held, signs, strict=True)
    ]
    return share * right[0] + (1 - share) * right[1]


def _ridge(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """argmin Σ w(xβ + b − y)² + λ‖β‖² for features of weighted mean 0; in the dual form where that is smaller."""
    b, a = w @ y, x * w.sqrt()[:, None]
    t = w.sqrt() * (y - b)
    gram = a @ a.T if len(a) < a.shape[1] else a.T @ a
    factor = torch.linalg.cholesky(gram + RIDGE * torch.eye(len(gram)))
    if len(a) < a.shape[1]:
        return a.T @ torch.cholesky_solve(t[:, None], factor)[:, 0], b
    return torch.cholesky_solve((a.T @ t)[:, None], factor)[:, 0], b


@torch.enable_grad()
def _logistic(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """argmin Σ w·log(1 + exp(−y(xβ + b))) + ‖β‖² / 2n, by L-BFGS."""
    beta, b = torch.zeros(x.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([beta, b], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = w @ F.softplus(-y * (x @ beta + b)) + beta.square().sum() / (2 * len(x))
        value.backward()
        return value

    optimizer.step(loss)
    return beta.detach(), b.detach()
