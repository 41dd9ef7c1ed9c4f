"""Gradient difference: descent on the retain loss and ascent on the forget loss at once."""

from dataclasses import dataclass

from torch import Tensor

from .base import TASKS, MethodInfo
from .paired import PairedConfig, PairedLosses


def grad_diff_loss(retain_loss: Tensor, forget_loss: Tensor) -> Tensor:
    """CE(D_r) − CE(D_f). It has no lower bound: the forget loss can rise for ever."""
    return retain_loss - forget_loss


@dataclass
class GradDiffConfig(PairedConfig):
    """Gradient difference: no hyperparameters but when to end, which is ours."""

    method = "grad_diff"


class GradDiff(PairedLosses):
    """min CE(D_r) − CE(D_f), from one forget and one retain batch each step."""

    info = MethodInfo(
        name="grad_diff",
        kind="loss",
        summary="descends on the loss of retained samples minus that of forget samples",
        needs=("forget", "retain"),
        applies_to=TASKS,
        cost=20,
    )
    config_class = GradDiffConfig
    adapter_learning_rate = 3e-4

    def losses(self, model, batch) -> dict[str, Tensor]:
        retain, forget = (self.loss(model, batch[name]) for name in ("retain", "forget"))
        return {"loss": grad_diff_loss(retain, forget), "retain_loss": retain, "forget_loss": forget}
