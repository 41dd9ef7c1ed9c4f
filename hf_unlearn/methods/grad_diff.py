"""Gradient difference: descent on the retain loss and ascent on the forget loss at once."""

from dataclasses import dataclass

from .base import TASKS, MethodInfo, Term
from .paired import PairedLosses, PairedLossesConfig


@dataclass
class GradDiffConfig(PairedLossesConfig):
    """Gradient difference: no hyperparameters but when to end, which is ours."""

    method = "grad_diff"


class GradDiff(PairedLosses):
    """min CE(D_r) − CE(D_f), from one forget and one retain batch each step. It has no lower bound: the forget loss can rise
    for ever."""

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

    def terms(self, model, batch) -> list[Term]:
        return [
            Term("forget", -1.0, lambda: self.loss(model, batch["forget"])),
            Term("retain", 1.0, lambda: self.loss(model, batch["retain"])),
        ]
