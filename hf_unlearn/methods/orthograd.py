"""OrthoGrad: per-sample gradient orthogonalisation (2025)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import TASKS, MethodInfo, Paper
from .gradients import Gradient, orthonormal, project
from .paired import PairedAscentConfig, PairedGradients


def orthograd_update(
    retain_rows: list[Tensor], forget: Gradient, alpha: float, retain: Gradient | None = None
) -> Gradient:
    """The descent gradient g = α·mean(g_r) − (1 − α)·g_f⊥, tensor by tensor.

        g_f⊥ = g_f − QQᵀg_f,   Q an orthonormal basis of the gradients of single retained samples

    Args:
        retain_rows: for each tensor, the gradients of k retained samples, k × its shape.
        retain: the mean retain gradient, if it is not the mean of the rows.
    """
    update = []
    for i, (rows, g) in enumerate(zip(retain_rows, forget, strict=True)):
        free = project(g.flatten(), orthonormal(rows.flatten(1))).view_as(g)
        mean = rows.mean(dim=0) if retain is None else retain[i]
        update.append(alpha * mean - (1 - alpha) * free)
    return update


@dataclass
class OrthogradConfig(PairedAscentConfig):
    """OrthoGrad. Ours: `until`, the bounded objective, and a number of `samples`; `paper()` takes all of a step."""

    method = "orthograd"

    alpha: float = field(default=0.5, metadata={"help": "weight of the retain gradient; 0 is pure projected ascent"})
    samples: int | None = field(
        default=8, metadata={"help": "retained samples of a step whose own gradients are projected out; null: all"}
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("alpha", 0 <= self.alpha < 1, "a weight in [0, 1)")
        self.check("samples", self.samples is None or self.samples >= 1, "at least 1, or null for all")

    @classmethod
    def paper(cls) -> "OrthogradConfig":
        """All samples of a step, the plain losses, and no stopping by unseen samples. Learning rate and clipping are ours: none is
        given."""
        return cls(objective="ce", samples=None, until="end")


class Orthograd(PairedGradients):
    """Ascend on the forget loss orthogonally to the gradients of single retained samples, and descend on theirs.

    Refused on a sharded model, of which there are no gradients of single samples.
    """

    info = MethodInfo(
        name="orthograd",
        kind="gradient",
        summary="ascends on forget samples orthogonally to the gradients of single retained samples",
        needs=("forget", "retain"),
        applies_to=TASKS,
        cost=46,
        memory="gradients of single retained samples (8 by default), each as large as the weights, and of the largest tensor several times",
        paper=Paper(
            title="Go Beyond Your Means: Unlearning with Per-Sample Gradient Orthogonalization",
            arxiv="2503.02312",
            bibtex="@misc{shamsian2025go,\n  title={Go Beyond Your Means: Unlearning with Per-Sample Gradient "
            "Orthogonalization},\n  author={Shamsian, Aviv and Shaar, Eitan and Navon, Aviv and Chechik, Gal and Fetaya, "
            "Ethan},\n  year={2025},\n  eprint={2503.02312}\n}",
        ),
    )
    config_class = OrthogradConfig
    config: OrthogradConfig
    single_samples = True

    def on_step_begin(self, step: int) -> None:
        samples = self.context.step_samples("retain")[: self.config.samples]
        rows = self.context.gradients(self.loss, [[sample] for sample in samples])
        # Tensor by tensor, so that there is never a second copy of them all.
        self.rows = [torch.stack([row.pop(0) for row in rows]) for _ in range(len(rows[0]))]

    def combine(self, gradients: dict[str, Gradient]) -> Gradient:
        rows, self.rows = self.rows, []
        return orthograd_update(rows, gradients["forget"], self.config.alpha, gradients["retain"])
