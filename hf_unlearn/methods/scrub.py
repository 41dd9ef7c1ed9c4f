"""SCRUB: a student that disobeys its teacher on the forget data (NeurIPS 2023)."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UnlearningError
from ..models.weights import cut_as
from ..tasks.losses import cross_entropy, divergence
from .base import Method, MethodConfig, MethodInfo, measured
from .neggrad_plus import NeggradPlus


def max_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """−T²·KL(teacher‖student) of every forget sample, from logits [n, classes]."""
    return -(temperature**2) * divergence(teacher, student, temperature)


def min_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, gamma: float
) -> Tensor:
    """α·T²·KL(teacher‖student) + γ·CE of every retained sample."""
    return alpha * temperature**2 * divergence(teacher, student, temperature) + gamma * cross_entropy(student, labels)


@dataclass
class ScrubConfig(MethodConfig):
    """SCRUB; with `rewind`, SCRUB+R."""

    method = "scrub"

    temperature: float = field(default=4.0, metadata={"help": "temperature T of teacher and student"})
    alpha: float = field(default=0.001, metadata={"help": "weight α of the teacher on retained samples"})
    gamma: float = field(default=0.99, metadata={"help": "weight γ of the labels of retained samples"})
    max_epochs: int = field(
        default=2,
        metadata={"help": "passes of max-steps over the forget set, in the first epochs"},
    )
    first: Literal["retain", "forget"] = field(
        default="retain",
        metadata={
            "help": "the pass that a run begins with. retain: max-steps stand between two passes over the retained samples "
            "(ours); forget: before them (the paper)"
        },
    )
    rewind: bool = field(
        default=False,
        metadata={
            "help": "end with the weights of the epoch whose forget error is nearest to the original's error on unseen "
            "samples (not when a callback ends the run early)"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("temperature", self.temperature > 0, "a positive temperature")
        self.check("alpha", self.alpha >= 0, "a weight of 0 or more")
        self.check("gamma", self.gamma >= 0, "a weight of 0 or more")
        self.check("max_epochs", self.max_epochs >= 0, "a number of epochs")

    @classmethod
    def paper(cls, setting: str = "large") -> "ScrubConfig":
        """The authors' values for their `large` runs, or the `small` ones.

        All batches have the size of their retained ones; those of forget samples are larger (64 and not 32 in the small runs).
        The small runs are with Adam, which adds weight decay to the gradient, and a falling learning rate; here with AdamW and
        a constant one. Weight decay is on all weights, biases and norms too.
        """
        if setting not in ("small", "large"):
            raise UnlearningError(f"SCRUB's paper has no setting {setting!r}; expected small or large.")
        arguments = {"learning_rate": 5e-4, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
        arguments |= {"freeze_batchnorm": False, "decay": "all"}
        if setting == "large":
            arguments |= {"num_train_epochs": 3, "per_device_train_batch_size": 128}
            arguments |= {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 5e-4}
            return cls(first="forget", arguments=arguments)
        arguments |= {"num_train_epochs": 10, "per_device_train_batch_size": 32}
        return cls(
            first="forget",
            temperature=2.0,
            alpha=0.5,
            gamma=1.0,
            max_epochs=3,
            arguments=arguments | {"optim": "adamw_torch", "weight_decay": 0.1},
        )


class Scrub(Method):
    """Max-steps on D_f in the first epochs: min −T²·KL(teacher‖student); min-steps on D_r in all of them:
    min α·T²·KL(teacher‖student) + γ·CE. The teacher is the frozen original.

    Each of the `num_train_epochs` epochs is one pass over D_r, and in the first ones there are `max_epochs` passes over
    D_f. Where the student is its teacher, KL has no gradient but rounding noise, which Adam scales up to whole steps; so
    a run begins with a pass over D_r (the authors' runs begin with D_f, and move by BatchNorm in training mode).

    `rewind` compares the forget error after every pass over D_r with the error of the original on the control half of
    the unseen samples, class by class (the paper: with that of the last epoch, which takes all epochs' weights); in a
    class request it aims at a forget error of 1.
    """

    info = MethodInfo(
        name="scrub",
        kind="loss",
        summary="moves away from the original on forget samples, then back to it on the retained ones",
        needs=("forget", "retain"),
        cost=6,
        paper=NeggradPlus.info.paper,
    )
    config_class = ScrubConfig
    config: ScrubConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 1e-3 if family == "convolutional" else 0.05 / width,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 64,
            "weight_decay": 5e-4,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1.0,
            "freeze_batchnorm": True,
        }

    def epochs(self, epochs: int) -> list[str]:
        start = ["retain"] if self.config.first == "retain" else []
        left = epochs - len(start)
        passes = min(left, self.config.max_epochs)
        return start + ["forget", "retain"] * passes + ["retain"] * (left - passes)

    def prepare(self, context) -> None:
        self.context = context
        self.teacher = context.teacher()
        if self.config.rewind and not context.has("control"):
            raise UnlearningError(
                "scrub: rewind is on, and there are no unseen samples; expected unseen samples to compare with, or rewind off."
            )
        self.gap, self.level, self.best = math.inf, 0.0, {}
        if self.config.rewind and not context.is_class_request:
            labels = measured(context, "forget").labels
            self.level = measured(context, "control").mean("correct", like=labels)

    def losses(self, model, batch) -> dict[str, Tensor]:
        teacher = self.teacher.logits(batch)
        student = model(**batch.inputs).logits
        c = self.config
        kept = min_loss(student, teacher, batch.labels, c.temperature, c.alpha, c.gamma)
        return {"loss": batch.mean(torch.where(batch.is_forget, max_loss(student, teacher, c.temperature), kept))}

    @property
    def why_in_training(self) -> str | None:
        return "keeps the weights of the best epoch (rewind)" if self.config.rewind else None

    def on_step_end(self, step: int) -> None:
        schedule = self.context.schedule
        is_last = step == len(schedule)
        if not self.config.rewind or not (is_last or step in schedule.starts):
            return
        gap = abs(self.context.accuracy("forget") - self.level)
        if schedule.epochs[schedule.epoch(step - 1)] == "retain" and gap < self.gap:
            self.gap, self.best = gap, {name: tensor.detach().clone() for name, tensor in self.trained()}
        if is_last:
            with torch.no_grad():
                for name, tensor in self.trained():
                    tensor.copy_(self.best.get(name, tensor))

    def trained(self) -> list[tuple[str, Tensor]]:
        """What a run changes: trained weights, and statistics of BatchNorm."""
        weights = zip(self.context.parameter_names, self.context.parameters, strict=True)
        return [*weights, *self.context.model.named_buffers()]

    def state_dict(self) -> dict[str, Tensor]:
        return {"gap": torch.tensor(self.gap, dtype=torch.float64), **self.best}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.gap = state.pop("gap").item()
        like = dict(self.trained())
        self.best = {name: cut_as(tensor, like[name]) for name, tensor in state.items()}
