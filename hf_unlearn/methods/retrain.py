"""Retraining without the forget set: the reference that every method is compared with."""

from dataclasses import dataclass
from typing import Any

from .base import CLASSIFICATION, MethodInfo
from .finetune import Finetune, FinetuneConfig


@dataclass
class RetrainConfig(FinetuneConfig):
    """Retraining: no hyperparameters but those of the training itself; use the recipe of the original."""

    method = "retrain"


class Retrain(Finetune):
    """min CE(D_r) from where the original started: `base_model`, never the original's own weights."""

    info = MethodInfo(
        name="retrain",
        kind="loss",
        summary="trains again from the original's starting point on the retained samples: the gold standard",
        needs=("forget", "retain", "base_model"),
        applies_to=(*CLASSIFICATION, "causal-lm"),
        cost=30,
    )
    config_class = RetrainConfig
    starts_over = True

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return super().arguments(family, width) | {"num_train_epochs": 30, "lr_scheduler_type": "cosine"}

    def prepare(self, context) -> None:
        context.start_from_base()
