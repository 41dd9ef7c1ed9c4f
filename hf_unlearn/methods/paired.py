"""What the methods that see a retain batch and a forget batch in every step have in common."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..tasks.base import Task
from ..tasks.losses import sample_losses
from .ascent import AscentConfig, ascended
from .base import Method, MethodConfig, measured


@dataclass
class PairedConfig(MethodConfig):
    """Settings of a method on forget and retained samples in pairs."""

    until: Literal["unseen", "end"] = field(
        default="unseen",
        metadata={
            "help": "unseen: end when forget samples are known no better than unseen samples were by the original, by loss or by a "
            "classifier's accuracy (of a class: when none is right any more; with a bounded objective: by accuracy alone, where it "
            "tells the two apart), since the loss could rise for ever; end: all epochs"
        },
    )
    look: int | None = field(
        default=None,
        metadata={
            "help": "steps between looks at the forget set, for `until`; null: what it takes to pass through it once"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("look", self.look is None or self.look >= 1, "at least 1, or null")


@dataclass
class PairedAscentConfig(AscentConfig, PairedConfig):
    """Settings of a method that descends on retained samples and ascends on as many forget samples."""


@dataclass
class PairedLossesConfig(PairedConfig):
    """Settings of a method that trains on one loss of forget and one of retained samples."""

    epoch: Literal["forget", "retain"] | None = field(
        default=None,
        metadata={
            "help": "the set that an epoch passes through once, while the other is cycled; null: of a language model the forget "
            "set, and more often, of a classifier the retained one"
        },
    )


class Paired(Method):
    """Every step has as many forget as retained samples; the run ends when enough is forgotten."""

    config: PairedConfig

    def adapter(self, task: Task) -> dict[str, Any] | None:
        return task.lora

    def epochs(self, epochs: int) -> list[str]:
        return ["paired"] * epochs

    def prepare(self, context) -> None:
        self.context = context
        self.looks = self.config.until == "unseen" and context.has("control")
        self.objective = self.config.objective_of(context.task) if isinstance(self.config, AscentConfig) else "ce"
        self.loss_aim, self.accuracy_aim = math.inf, 0.0  # of the original on unseen samples, class by class
        if self.looks and not context.is_class_request:
            forget, control = measured(context, "forget"), measured(context, "control")
            self.loss_aim, accuracy = (control.mean(of, like=forget.labels) for of in ("loss", "correct"))
            # It says nothing where it was no higher, and little of texts, most of whose tokens are right in unseen ones too.
            told_apart = forget.accuracy > accuracy and context.task.right_or_wrong
            self.accuracy_aim = accuracy if told_apart else -1.0
            if told_apart and self.objective == "bounded":  # a few samples could lift the mean loss over its aim
                self.loss_aim = math.inf

    def on_epoch_begin(self, epoch: int) -> bool | None:
        return self.is_known() if self.looks else None

    def on_step_end(self, step: int) -> bool | None:
        schedule = self.context.schedule
        look = self.config.look or math.ceil(schedule.n_forget / schedule.batch_size)
        is_last = step == len(schedule)
        if not self.looks or (step % look and not is_last):
            return None
        known = self.is_known()
        if known and is_last:
            self.notes.append(self.missed())
        return known

    def is_known(self) -> bool:
        """Whether forget samples are known better than unseen ones were."""
        forget = measured(self.context, "forget")
        return forget.mean("loss") < self.loss_aim and forget.accuracy > self.accuracy_aim

    def missed(self) -> str:
        """In words, that the run is over and its aim is not reached."""
        forget, steps = measured(self.context, "forget"), len(self.context.schedule)
        found = []
        if self.accuracy_aim >= 0:
            found.append(
                f"{100 * forget.accuracy:.1f} % of them are right, and the aim is {100 * self.accuracy_aim:.1f} %"
            )
        if math.isfinite(self.loss_aim):
            found.append(f"their loss is {forget.mean('loss'):.3g}, and the aim is {self.loss_aim:.3g}")
        return (
            f"{self.info.name} has used up its {steps} steps, and forget samples are still known better than unseen ones were: "
            f"{'; '.join(found)}. Raise learning_rate, or num_train_epochs and, where they are set, max_steps or a budget."
        )

    def loss(self, model, part) -> Tensor:
        return part.mean(sample_losses(model, part))

    def forget_loss(self, model, part) -> Tensor:
        """What is ascended on."""
        return part.mean(ascended(sample_losses(model, part), self.objective))

    def state_dict(self) -> dict[str, Tensor]:
        return {"aims": torch.tensor([self.loss_aim, self.accuracy_aim], dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.loss_aim, self.accuracy_aim = state["aims"].tolist()


class PairedLosses(Paired):
    """A loss on the forget batch and one on the retain batch, trained together."""

    config: PairedLossesConfig
    learning_rate = 0.03  # of Adam, over the number of a transformer's features
    adapter_learning_rate = 1e-3
    kind = "paired"
    passes: ClassVar[dict[str, int]] = {"paired": 10, "forget-paired": 20}  # epochs by default

    def learn_task(self, task: Task) -> None:
        self.kind = "forget-paired" if (self.config.epoch or task.epoch) == "forget" else "paired"

    def epochs(self, epochs: int) -> list[str]:
        return [self.kind] * epochs

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 3e-4 if family == "convolutional" else self.learning_rate / width,
            "num_train_epochs": self.passes[self.kind],
            "per_device_train_batch_size": 64,
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1.0,
            "freeze_batchnorm": True,
        }

    def adapter_arguments(self) -> dict[str, Any]:
        return {"learning_rate": self.adapter_learning_rate, "per_device_train_batch_size": 16}


class PairedGradients(Paired):
    """A whole gradient of the loss on each of the two batches, of forget samples that which is ascended on."""

    plain_sgd = True
    learning_rate = 0.003

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "num_train_epochs": 20,
            "per_device_train_batch_size": 64,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "freeze_batchnorm": True,
        }

    def adapter_arguments(self) -> dict[str, Any]:
        return {"learning_rate": 0.1}

    def losses(self, model, batch):
        yield "retain", self.loss(model, batch["retain"])
        yield "forget", self.forget_loss(model, batch["forget"])
