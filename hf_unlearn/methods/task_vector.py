"""Task arithmetic: what learning the forget samples once more adds to the weights is taken away from them (ICLR 2023)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import UnlearningError
from ..models.adapters import is_adapted
from ..tasks.base import Task
from ..tasks.losses import sample_losses
from .base import Method, MethodConfig, MethodInfo, Paper, measured

SCALES = tuple(round(0.1 * 1.25**k, 3) for k in range(21))  # 0.1 to 8.674, that are tried, where no scale is set


@torch.no_grad()
def negate(weights: Sequence[Tensor], start: Sequence[Tensor], vector: Sequence[Tensor], scale: float) -> None:
    """θ ← θ₀ − λτ, in place, with the task vector τ = θ_learnt − θ₀; rounded once, where the weights are in half precision."""
    for weight, origin, change in zip(weights, start, vector, strict=True):
        weight.copy_(origin - scale * change)


@dataclass
class TaskVectorConfig(MethodConfig):
    """Negation of a task vector. The search for its scale on forget samples is ours."""

    method = "task_vector"

    scale: float | None = field(
        default=None,
        metadata={
            "help": "λ: how much of the task vector is taken away; null: the least of 21 from 0.1 to 8.7 by which forget samples "
            "are known no better than unseen samples were by the original, or 1 without unseen samples (ours)"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("scale", self.scale is None or self.scale > 0, "a positive number, or null")

    @classmethod
    def paper(cls) -> "TaskVectorConfig":
        """The whole of what was learnt is taken away. The paper's own λ is the largest one that keeps 95 % of a control task, which
        takes that task; and how long it trains is its task's, and not set here."""
        return cls(scale=1.0)


class TaskVector(Method):
    """θ = θ₀ − λ(θ_learnt − θ₀), where θ_learnt is the original θ₀ trained on D_f once more.

    In a LoRA adapter, which starts at nothing, what is learnt is BA, and B becomes −λB. Nothing holds the retained samples but the
    size of λ: on TOFU in small next to nothing was left of them (docs/language-models.md).
    """

    info = MethodInfo(
        name="task_vector",
        kind="loss",
        summary="learns the forget samples once more, and takes what that adds to the weights away from them",
        needs=("forget",),
        applies_to=("causal-lm",),
        cost=1,  # 10 epochs of forget samples where a tenth is forgotten
        paper=Paper(
            title="Editing Models with Task Arithmetic",
            arxiv="2212.04089",
            bibtex="@inproceedings{ilharco2023editing,\n  title={Editing Models with Task Arithmetic},\n  author={Ilharco, Gabriel and "
            "Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin and Schmidt, Ludwig and Hajishirzi, Hannaneh and "
            "Farhadi, Ali},\n  booktitle={ICLR},\n  year={2023}\n}",
        ),
    )
    config_class = TaskVectorConfig
    config: TaskVectorConfig
    scale: float | None = None  # that was taken

    def adapter(self, task: Task) -> dict[str, Any] | None:
        return task.lora

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 0.03 / width,
            "num_train_epochs": 10,
            "per_device_train_batch_size": 16,
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1.0,
        }

    def adapter_arguments(self) -> dict[str, Any]:
        return {"learning_rate": 1e-3}

    def epochs(self, epochs: int) -> list[str]:
        return ["forget"] * epochs

    def prepare(self, context) -> None:
        self.context = context
        names = context.parameter_names
        if is_adapted(context.model):
            if any(re.search(r"\.lora_(embedding_)?[AB]\.", name) is None for name in names):
                raise UnlearningError(
                    "task_vector: peft_config is for another adapter than a plain LoRA; expected a LoraConfig."
                )
            names = [name for name in names if re.search(r"\.lora_(embedding_)?B\.", name)]
        self.names = set(names)
        self.weights = self._of_these(context.parameters)
        self.start = [weight.clone() for weight in self._of_these(context.fine_parameters)]
        self.aim = measured(context, "control").mean("loss") if context.has("control") else None

    def losses(self, model, batch) -> dict[str, Tensor]:
        loss = batch.mean(sample_losses(model, batch))
        return {"loss": loss, "forget_loss": loss}

    @property
    def why_in_training(self) -> str | None:
        return "takes what it has learnt from the weights"

    def on_step_end(self, step: int) -> bool | None:
        if step < len(self.context.schedule):
            return None
        learnt = self._of_these(self.context.fine_parameters)
        vector = [weight - origin for weight, origin in zip(learnt, self.start, strict=True)]
        for scale in self.scales():
            negate(self.weights, self.start, vector, scale)
            self.scale = scale
            self.context.look_again()
            if self.aim is None or self.known() >= self.aim:
                return None
        if self.config.scale is None and self.aim is not None:
            self.notes.append(
                f"task_vector has taken away {self.scale:g} times what it learnt, and forget samples are still known better than unseen "
                f"ones were: their loss is {self.known():.3g}, and the aim is {self.aim:.3g}. Raise num_train_epochs, or set scale."
            )

    def _of_these(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Of all that is trained, those that are negated."""
        named = zip(self.context.parameter_names, weights, strict=True)
        return [weight for name, weight in named if name in self.names]

    def scales(self) -> Sequence[float]:
        if self.config.scale is not None:
            return (self.config.scale,)
        return SCALES if self.aim is not None else (1.0,)

    def known(self) -> float:
        """The mean loss of the forget samples, as the weights are now."""
        return measured(self.context, "forget").mean("loss")

    @property
    def report(self) -> dict[str, Any]:
        return {} if self.scale is None else {"scale": self.scale}
