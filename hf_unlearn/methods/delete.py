"""DELETE: the original's own answer without the forgotten class, distilled on forget samples alone (CVPR 2025)."""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.kinds import head_layers
from .base import Method, MethodConfig, MethodInfo, Paper


def erased(logits: Tensor, labels: Tensor, tilt: Tensor | None = None) -> Tensor:
    """t = softmax(z) with z_y = −∞: the original's answer, renormalised without the true class.

    With a `tilt` [classes, classes], t_k ∝ t_k·exp(tilt_yk).

    >>> erased(torch.tensor([[0.0, 9.0, 0.0]]), torch.tensor([1])).tolist()
    [[0.5, 0.0, 0.5]]
    """
    z = logits if tilt is None else logits + tilt[labels].to(logits.dtype)
    return z.scatter(1, labels[:, None], -torch.inf).softmax(dim=-1)


def similarities(weight: Tensor) -> Tensor:
    """cos(w_y, w_k) of the rows of a head [classes, features]."""
    w = F.normalize(weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32)), dim=1)
    return w @ w.T


def delete_loss(student: Tensor, target: Tensor) -> Tensor:
    """KL(t‖p) of every row; 0·log 0 is 0."""
    log_p = student.to(target.dtype).log_softmax(dim=-1)
    return F.kl_div(log_p, target, reduction="none").sum(dim=-1)


@dataclass
class DeleteConfig(MethodConfig):
    """DELETE."""

    method = "delete"

    beta: float = field(
        default=0.0,
        metadata={"help": "tilt β of the target towards classes that are similar in the head; 0: none (the paper)"},
    )

    @classmethod
    def paper(cls) -> "DeleteConfig":
        """The authors' values for ResNet-18 on CIFAR-10. Where 1e-4 is too small a learning rate they take 1e-3."""
        arguments = {"learning_rate": 1e-4, "num_train_epochs": 20, "per_device_train_batch_size": 128}
        arguments |= {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.0}
        arguments |= {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "freeze_batchnorm": False}
        return cls(arguments=arguments)


class Delete(Method):
    """min KL(t‖p(x)) on D_f, with t = softmax of the original's logits with the true class at −∞. No other sample is read.

    The tilt (ours): t_k ∝ t_k·exp(β·cos(w_y, w_k)), with w the rows of the original's head. BatchNorm is frozen by default:
    forget samples alone would leave their statistics in the model. The method is made for whole classes.
    """

    info = MethodInfo(
        name="delete",
        kind="loss",
        summary="distils the original's answer without the true class, on the forget samples alone",
        needs=("forget",),
        cost=1.2,
        paper=Paper(
            title="Decoupled Distillation to Erase: A General Unlearning Method for Any Class-centric Tasks",
            arxiv="2503.23751",
            bibtex="@inproceedings{zhou2025decoupled,\n  title={Decoupled Distillation to Erase: A General Unlearning Method for "
            "Any Class-centric Tasks},\n  author={Zhou, Yu and Zheng, Dian and Mo, Qijie and Lu, Renjie and Lin, Kun-Yu and "
            "Zheng, Wei-Shi},\n  booktitle={CVPR},\n  year={2025}\n}",
        ),
    )
    config_class = DeleteConfig
    config: DeleteConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 5e-5 if family == "convolutional" else 3e-3 / width,
            "num_train_epochs": 10,
            "per_device_train_batch_size": 64,
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "freeze_batchnorm": True,
        }

    def epochs(self, epochs: int) -> list[str]:
        return ["forget"] * epochs

    def prepare(self, context) -> None:
        self.tilt = None
        if self.config.beta:
            *_, head = head_layers(context.model, context.num_labels).values()
            self.tilt = self.config.beta * similarities(cast(Tensor, head.weight).detach())
        self.teacher = context.teacher()
        if context.has("retain") and not context.is_class_request:
            self.notes.append(
                "delete is made for whole classes, and the retained samples have some of every forget class."
            )

    def losses(self, model, batch) -> dict[str, Tensor]:
        target = erased(self.teacher.logits(batch), batch.labels, self.tilt)
        return {"loss": batch.mean(delete_loss(model(**batch.inputs).logits, target))}
