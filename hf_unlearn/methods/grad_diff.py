"""Gradient difference: descent on the retain loss and ascent on the forget loss at once."""

from dataclasses import dataclass

from .ascent import AscentConfig
from .base import TASKS, MethodInfo, Term
from .paired import PairedLosses, PairedLossesConfig


@dataclass
class GradDiffConfig(AscentConfig, PairedLossesConfig):
    """Gradient difference. `until` and the bounded objective are ours."""

    method = "grad_diff"

    @classmethod
    def paper(cls) -> "GradDiffConfig":
        """The values of TOFU (arXiv 2401.06121) for Llama-2-7b, where all weights are trained."""
        arguments = {"learning_rate": 1e-5, "num_train_epochs": 5, "per_device_train_batch_size": 32}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.2, "max_grad_norm": 1.0}
        return cls(objective="ce", until="end", arguments=arguments)


class GradDiff(PairedLosses):
    """min CE(D_r) − CE(D_f), from one forget and one retain batch each step. It has no lower bound: the forget loss can rise
    for ever."""

    info = MethodInfo(
        name="grad_diff",
        kind="loss",
        summary="descends on the loss of retained samples minus that of forget samples",
        needs=("forget", "retain"),
        applies_to=TASKS,
        cost=20,  # 10 epochs of forget and retained samples
        memory="the gradient of one loss beside what the forward pass of the other one computes",
    )
    config_class = GradDiffConfig
    adapter_learning_rate = 3e-4

    def terms(self, model, batch) -> list[Term]:
        return [
            Term("forget", -1.0, lambda: self.forget_loss(model, batch["forget"])),
            Term("retain", 1.0, lambda: self.loss(model, batch["retain"])),
        ]
