"""One edit of one operator: what it makes of the weights, what must hold of it, and the same as a LoRA."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

from ..errors import UnlearningError
from .directions import affine_bias, remove_directions
from .plan import Operator, Reading

EXACT = 1e-10  # what float64 may lose on the way, relative


@dataclass(frozen=True)
class Removal:
    """What is taken out of one activation: z ↦ z − αQQᵀ(z − m)."""

    reading: Reading
    span: str
    alpha: float
    directions: Tensor  # Q
    m: Tensor
    relative: dict[int, float]  # ‖d_f‖ / ‖μ_f − m‖ of every forget class
    has_bias: bool  # whether there is one to change behind each of its operators
    raised_from: float | None = None  # what α would be without `overshoot`


class Edit:
    """One operator's W, b and W', b' in float64 on the CPU, as [out, in, ...]; `shift` is b' − b."""

    def __init__(self, operator: Operator, removal: Removal):
        self.operator, self.removal = operator, removal

    @property
    def weight(self) -> Tensor:
        return _out_by_in(self.operator.module.weight, self.operator.module).detach().cpu().double()

    @property
    def new_weight(self) -> Tensor:
        return remove_directions(self.weight, self.removal.directions, self.removal.alpha)

    @property
    def shift(self) -> Tensor:
        return affine_bias(self.weight, self.removal.directions, self.removal.alpha, self.removal.m)

    def logits(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of a head, for the rows of z, before and after."""
        shift, bias = self.shift, self.operator.module.bias
        bias = torch.zeros_like(shift) if bias is None else bias.detach().cpu().double()
        old, new = (w.reshape(len(w), z.shape[1], -1).sum(dim=2) for w in (self.weight, self.new_weight))
        return z @ old.T + bias, z @ new.T + bias + shift

    def verify(self, forget_means: Tensor, retain_means: Tensor, rcond: float) -> dict[str, float]:
        """What must hold of every edit, as relative deviations; refuses an edit of which it does not hold.

        M are the retained means less m. Where rcond leaves small directions out of their span, it bounds the deviation.
        `rounding` is what the weight's own precision will take, and what nothing can be done about.
        """
        q, alpha, m = self.removal.directions, self.removal.alpha, self.removal.m
        x, weight, new_weight = retain_means - m, self.weight, self.new_weight
        old, new = (w.reshape(len(w), len(q), -1).transpose(1, 2).flatten(0, 1) for w in (weight, new_weight))
        old_sum, new_sum = (w.reshape(len(w), len(q), -1).sum(dim=2) for w in (weight, new_weight))
        wq, size, length, mu = old @ q, old.norm(), x.norm(), forget_means - m
        slack = max(1.0, alpha) * rcond * wq.norm() + EXACT * size
        found = {  # what is found, the most that it may be, and what it is relative to
            "QᵀQ = I": ((q.T @ q - torch.eye(q.shape[1])).abs().max(), EXACT, 1.0),
            "QᵀM = 0": (torch.linalg.matrix_norm(x @ q, 2), (rcond + EXACT) * length, length),
            "W'M = WM": (((new - old) @ x.T).norm(), slack * length * len(x) ** 0.5, size * length),
            "W'Q = (1 - α)WQ": ((new @ q - (1 - alpha) * wq).norm(), EXACT * size, size),
            "W'u = Wu for u ⟂ Q": ((new - old - (new - old) @ q @ q.T).norm(), EXACT * size, size),
            "W'(μ_f - m) = W(μ_f - m - αQQᵀ(μ_f - m))": (
                ((new - old) @ mu.T + alpha * wq @ (mu @ q).T).norm(),
                EXACT * size * mu.norm(),
                size * mu.norm(),
            ),
        }
        if self.removal.span == "affine":
            moved, scale = (new_sum - old_sum) @ m + self.shift, old_sum.norm() * m.norm()
            found["W'm + b' = Wm + b"] = (moved.norm(), EXACT * scale, scale)
        for rule, (value, most, _) in found.items():
            if not value <= most:
                raise UnlearningError(
                    f"The edit of {self.operator.name} breaks {rule} by {value:.1e}, where {most:.1e} is allowed, and nothing "
                    "was changed; check its weights and the data for huge values."
                )
        deviations = {rule: float(value / max(unit, 1e-300)) for rule, (value, _, unit) in found.items()}
        rounded = new_weight.to(self.operator.module.weight.dtype).double()
        return deviations | {"rounding": float((rounded - new_weight).norm() / size)}

    def changes(self) -> list[tuple[Tensor, Tensor]]:
        """(tensor of the model, its new values). A convolution without bias leaves that to the BatchNorm behind it."""
        module, norm = self.operator.module, self.operator.norm
        changes: list[tuple[Tensor, Tensor]] = [(module.weight, _out_by_in(self.new_weight, module))]
        if self.removal.span == "linear":
            return changes
        if module.bias is not None:
            return [*changes, (module.bias, module.bias.detach().cpu().double() + self.shift)]
        norm = cast(_BatchNorm, norm)  # or nothing of the bias would be changed
        gamma, beta, variance = (
            cast(Tensor, t).detach().cpu().double() for t in (norm.weight, norm.bias, norm.running_var)
        )
        return [*changes, (norm.bias, beta + gamma * self.shift / (variance + norm.eps).sqrt())]

    def lora(self) -> dict[str, Tensor]:
        """W' − W = BA: A = Qᵀ and B = −αWQ; of a kernel edited by channels, A has one tap of one direction in each row."""
        w, q = self.weight.reshape(len(self.weight), len(self.removal.directions), -1), self.removal.directions
        taps, shape = w.shape[2], self.weight.shape
        a = torch.einsum("cr,tu->rtcu", q, torch.eye(taps, dtype=q.dtype)).reshape(-1, *shape[1:])
        b = -self.removal.alpha * torch.einsum("oct,cr->ort", w, q).reshape(len(w), -1, *[1] * (len(shape) - 2))
        return {"A": a, "B": b, "bias": self.shift}


def _out_by_in(weight: Tensor, module: nn.Module) -> Tensor:
    return weight.T if isinstance(module, Conv1D) else weight


def edits_of(removal: Removal) -> list[Edit]:
    return (
        [Edit(o, removal) for o in removal.reading.operators] if removal.alpha and removal.directions.numel() else []
    )


@torch.no_grad()
def write(changes: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, values in changes:
        tensor.copy_(values)  # cast once
