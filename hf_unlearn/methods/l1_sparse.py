"""l1-sparse: fine-tuning on the retained data with a penalty that lets weights go (NeurIPS 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UnlearningError
from ..models.adapters import is_adapted
from ..tasks.losses import sample_losses
from .base import MethodConfig, MethodInfo, Paper
from .finetune import Finetune


def l1_norm(weights: Sequence[Tensor]) -> Tensor:
    """‖θ‖₁ over all tensors together."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()


def decayed(gamma: float, step: int, steps: int) -> float:
    """γ·(1 − t/T): linear, from γ in the first step, or epoch, to γ/T in the last one.

    >>> [decayed(1.0, step, 4) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return gamma * (1 - step / steps)


@dataclass
class L1SparseConfig(MethodConfig):
    """l1-sparse. That γ falls in every step is ours."""

    method = "l1_sparse"

    gamma: float = field(default=5e-4, metadata={"help": "weight γ of ‖θ‖₁ in the first step; it decays to 0"})
    fade: Literal["step", "epoch"] = field(
        default="step", metadata={"help": "γ falls in every step (ours), or once an epoch (the authors' code)"}
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("gamma", self.gamma >= 0, "a weight of 0 or more")

    @classmethod
    def paper(cls) -> "L1SparseConfig":
        """The paper's values. Weight decay is on all weights, biases and norms too."""
        arguments = {"learning_rate": 0.01, "num_train_epochs": 10, "per_device_train_batch_size": 256}
        arguments |= {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 5e-4}
        arguments |= {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "freeze_batchnorm": False}
        return cls(gamma=5e-4, fade="epoch", arguments=arguments | {"decay": "all"})


class L1Sparse(Finetune):
    """min CE(D_r) + γ‖θ‖₁ from the original weights, with γ falling linearly to 0 over the steps or epochs.

    Plain SGD by default: Adam would take steps of full size along the penalty, wherever it is all a weight feels.
    """

    info = MethodInfo(
        name="l1_sparse",
        kind="loss",
        summary="fine-tunes on the retained samples with an L1 penalty on the weights, which fades out",
        needs=("forget", "retain"),
        cost=10,
        paper=Paper(
            title="Model Sparsity Can Simplify Machine Unlearning",
            arxiv="2304.04934",
            bibtex="@inproceedings{jia2023model,\n  title={Model Sparsity Can Simplify Machine Unlearning},\n  author={Jia, "
            "Jinghan and Liu, Jiancheng and Ram, Parikshit and Yao, Yuguang and Liu, Gaowen and Liu, Yang and Sharma, "
            "Pranay and Liu, Sijia},\n  booktitle={NeurIPS},\n  year={2023}\n}",
        ),
    )
    config_class = L1SparseConfig
    config: L1SparseConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return super().arguments(family, width) | {"learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 1.0}

    @property
    def why_whole(self) -> str | None:
        return "adds the norm of all weights to its loss"

    def prepare(self, context) -> None:
        if is_adapted(context.model):
            raise UnlearningError(
                "l1_sparse makes the weights of a whole model sparse, and an adapter is trained; expected a plain model."
            )
        self.context = context

    def on_step_begin(self, step: int) -> None:
        schedule = self.context.schedule
        passed = (step, len(schedule)) if self.config.fade == "step" else (schedule.epoch(step), len(schedule.epochs))
        self.gamma = decayed(self.config.gamma, *passed)

    def losses(self, model, batch) -> dict[str, Tensor]:
        retain = sample_losses(model, batch)
        penalty = l1_norm(self.context.parameters)
        # The penalty is added to every sample, so that it counts once a step however the batch is split.
        return {"loss": batch.mean(retain + self.gamma * penalty), "retain_loss": batch.mean(retain)}
