"""Bad teaching: an untrained teacher for what must go, the original for what stays (AAAI 2023)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..tasks.losses import divergence
from .base import Method, MethodConfig, MethodInfo, Paper
from .frozen import OnlineTeacher


def bad_teaching_loss(
    student: Tensor, competent: Tensor, incompetent: Tensor, is_forget: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher‖student) of every sample, with the incompetent teacher for forget and the competent for retained ones.

    All three are logits [n, classes]. The loss is the mean over samples (the authors' code divides by the number of
    classes as well, which the learning rate has to make up for).
    """
    teacher = torch.where(is_forget[:, None], incompetent.to(competent.dtype), competent)
    return divergence(teacher, student, temperature)


@dataclass
class BadTeacherConfig(MethodConfig):
    """Bad teaching."""

    method = "bad_teacher"

    retain_fraction: float = field(default=0.3, metadata={"help": "share of the retained samples that is used"})
    temperature: float = field(default=1.0, metadata={"help": "temperature T of teachers and student"})

    def __post_init__(self):
        super().__post_init__()
        self.check("retain_fraction", 0 < self.retain_fraction <= 1, "a share in (0, 1]")
        self.check("temperature", self.temperature > 0, "a positive temperature")

    @classmethod
    def paper(cls) -> "BadTeacherConfig":
        """The values of the authors' code for ResNet-18 on the 20 coarse classes of CIFAR-100: one epoch of Adam."""
        arguments = {"learning_rate": 1e-4, "num_train_epochs": 1, "per_device_train_batch_size": 256}
        arguments |= {"weight_decay": 0.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
        return cls(arguments=arguments | {"freeze_batchnorm": False})


class BadTeacher(Method):
    """min KL(teacher‖student) on D_f and a share of D_r, shuffled together. Labels are not used.

    The competent teacher, for retained samples, is the frozen original. The incompetent one, for forget samples, has the
    same architecture and random weights, drawn by the seed. Both are in eval mode and never change.
    """

    info = MethodInfo(
        name="bad_teacher",
        kind="loss",
        summary="distils an untrained teacher on forget samples, the original on retained ones",
        needs=("forget", "retain"),
        cost=3,
        memory="one more copy of the weights, of the untrained teacher, and what its forward pass computes",
        paper=Paper(
            title="Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent Teacher",
            arxiv="2205.08096",
            bibtex="@inproceedings{chundawat2023can,\n  title={Can Bad Teaching Induce Forgetting? Unlearning in Deep "
            "Networks using an Incompetent Teacher},\n  author={Chundawat, Vikram S. and Tarun, Ayush K. and Mandal, "
            "Murari and Kankanhalli, Mohan},\n  booktitle={AAAI},\n  year={2023}\n}",
        ),
    )
    config_class = BadTeacherConfig
    config: BadTeacherConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 3e-4 if family == "convolutional" else 0.03 / width,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 64,
            "weight_decay": 5e-4,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "freeze_batchnorm": True,
        }

    def retained_share(self, n_forget: int, n_retain: int) -> float:
        return self.config.retain_fraction

    def epochs(self, epochs: int) -> list[str]:
        return ["mixed"] * epochs

    def prepare(self, context) -> None:
        self.competent = context.teacher()
        self.incompetent = OnlineTeacher(context.untrained_model())

    def losses(self, model, batch) -> dict[str, Tensor]:
        competent, incompetent = self.competent.logits(batch), self.incompetent.logits(batch)
        student = model(**batch.inputs).logits
        temperature = self.config.temperature
        return {"loss": batch.mean(bad_teaching_loss(student, competent, incompetent, batch.is_forget, temperature))}
