"""Fine-tuning on the retained data: the simplest baseline, which hopes that the model forgets by itself."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..tasks.base import Task
from .base import CLASSIFICATION, Method, MethodConfig, MethodInfo


@dataclass
class FinetuneConfig(MethodConfig):
    """Fine-tuning: no hyperparameters but those of the training itself."""

    method = "finetune"


class Finetune(Method):
    """min CE(D_r) from the original weights."""

    info = MethodInfo(
        name="finetune",
        kind="loss",
        summary="continues the training on the retained samples alone",
        needs=("forget", "retain"),
        applies_to=(*CLASSIFICATION, "causal-lm", "multi-task"),
        cost=10,
    )
    config_class = FinetuneConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 1e-3 if family == "convolutional" else 0.03 / width,
            "num_train_epochs": 10,
            "per_device_train_batch_size": 64,
            "weight_decay": 5e-4,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "freeze_batchnorm": False,
        }

    def learn_task(self, task: Task) -> None:
        self.task_loss = task.loss

    def epochs(self, epochs: int) -> list[str]:
        return ["retain"] * epochs

    def losses(self, model, batch) -> dict[str, Tensor]:
        return {"loss": self.task_loss(model, batch)}
