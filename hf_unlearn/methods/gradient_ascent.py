"""Gradient ascent on the forget data: the most direct baseline, and one without an end of its own."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ..errors import UnlearningError
from ..tasks.base import Task
from ..tasks.losses import sample_losses
from .base import TASKS, Method, MethodConfig, MethodInfo, measured


@dataclass
class GradientAscentConfig(MethodConfig):
    """Gradient ascent. Its end is ours: nothing else bounds it."""

    method = "gradient_ascent"

    until: Literal["unseen", "end"] = field(
        default="unseen",
        metadata={
            "help": "unseen: end when the accuracy on the forget set is that of unseen samples, or of a language model the loss; end: all "
            "epochs"
        },
    )

    look: int = field(default=5, metadata={"help": "steps between looks at the forget set"})

    def __post_init__(self):
        super().__post_init__()
        self.check("look", self.look >= 1, "at least 1")

    @classmethod
    def paper(cls, setting: str = "salun") -> "GradientAscentConfig":
        """As a baseline of SalUn (arXiv 2310.12508): five epochs and no other end, with SGD. Its learning rate is searched for
        between 1e-5 and 1e-3 there and is ours here. Weight decay is on all weights, biases and norms too. Or `tofu`: as a baseline
        of TOFU (arXiv 2401.06121) for Llama-2-7b, where all weights are trained."""
        if setting not in ("salun", "tofu"):
            raise UnlearningError(f"Gradient ascent has no setting {setting!r}; expected salun or tofu.")
        if setting == "tofu":
            arguments = {"learning_rate": 1e-5, "num_train_epochs": 5, "per_device_train_batch_size": 32}
            arguments |= {
                "weight_decay": 0.01,
                "lr_scheduler_type": "linear",
                "warmup_steps": 0.2,
                "max_grad_norm": 1.0,
            }
            return cls(until="end", arguments=arguments)
        arguments = {"num_train_epochs": 5, "per_device_train_batch_size": 256, "optim": "sgd"}
        arguments |= {"optim_args": "momentum=0.9", "weight_decay": 5e-4, "decay": "all", "max_grad_norm": 0.0}
        return cls(until="end", arguments=arguments | {"freeze_batchnorm": False})


class GradientAscent(Method):
    """max CE(D_f), until the accuracy on D_f has fallen to the level of unseen samples, or a language model's loss risen to it.

    That level is the original's accuracy on the control half of the unseen samples, matched to the forget set class by
    class, and not below chance, where an ascent ends that has left nothing; in a class request, whose class a retrained
    model has never seen, it is 0. Of texts it is the original's loss on that half. The gradient is clipped at 1 on purpose, since
    it grows with the loss that it raises: `max_grad_norm=0` is the plain rule. BatchNorm is frozen by default: ascent on forget
    samples alone would leave their statistics in the model. Nothing holds the retained samples: on TOFU in small next to nothing was
    left of them (docs/language-models.md). On language models it is there to compare with.
    """

    info = MethodInfo(
        name="gradient_ascent",
        kind="loss",
        summary="ascends on the forget samples alone, until they are no better known than unseen ones",
        needs=("forget", "unseen"),
        applies_to=TASKS,
        cost=2,
    )
    config_class = GradientAscentConfig
    config: GradientAscentConfig
    texts = False  # whether the model is for language

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 3e-5 if family == "convolutional" else 3e-3 / width,
            "num_train_epochs": 30,
            "per_device_train_batch_size": 64,
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 1.0,
            "freeze_batchnorm": True,
        }

    def learn_task(self, task: Task) -> None:
        self.texts = not task.right_or_wrong

    def adapter(self, task: Task) -> dict[str, Any] | None:
        return task.lora

    def adapter_arguments(self) -> dict[str, Any]:
        return {"learning_rate": 3e-4, "per_device_train_batch_size": 16} if self.texts else {}

    def epochs(self, epochs: int) -> list[str]:
        return ["forget"] * epochs

    def prepare(self, context) -> None:
        self.context = context
        self.level = 0.0
        if self.texts:
            self.level = measured(context, "control").mean("loss")
        elif not context.is_class_request:
            labels = measured(context, "forget").labels
            self.level = max(measured(context, "control").mean("correct", like=labels), 1 / context.num_labels)
        if self.config.until == "unseen" and self.is_done():
            self.notes.append(
                "gradient_ascent: the original knows the forget samples no better than unseen ones, and nothing was changed."
                if self.texts
                else f"gradient_ascent: the original is right on {100 * context.accuracy('forget'):.0f} % of the forget samples, no "
                f"more than the {100 * self.level:.0f} % where the ascent ends, and nothing was changed."
            )

    def on_epoch_begin(self, epoch: int) -> bool:
        return self.config.until == "end" or not self.is_done()

    def on_step_end(self, step: int) -> bool | None:
        looks = self.config.until == "unseen" and step % self.config.look == 0
        return not self.is_done() if looks else None

    def is_done(self) -> bool:
        if self.texts:
            return measured(self.context, "forget").mean("loss") >= self.level
        return self.context.accuracy("forget") <= self.level

    def losses(self, model, batch) -> dict[str, Tensor]:
        loss = batch.mean(sample_losses(model, batch))
        return {"loss": -loss, "forget_loss": loss}
