"""Rewind (ours): all weights are pulled part of the way back to where training began, and repaired on the retained samples."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import UnlearningError
from ..models.adapters import is_adapted, oppose
from ..models.kinds import batchnorm_modules, head_layers
from ..models.weights import cut_as
from .base import CLASSIFICATION, Method, MethodConfig, MethodInfo, Past
from .finetune import Finetune
from .table import create_method

EPOCHS = {True: 30.0, False: 3.0}  # of the original, from scratch or fine-tuned, where nothing says how many
RATES = {"convolutional": 0.1, "transformer": 0.128}  # from scratch; a transformer's is over its width

BUDGET = 0.2
# Chosen on the digits and the ViT of recipes/experiments/cases.py, of fine-tuned models on its MiniLM (docs/closeness.md).
KEEP = {"sgd": 0.3, "adamw_torch": 0.4}  # of the weights of an original from scratch, by what repairs the rest
KEEP_FINE_TUNED = 0.7
REPAIR = {"sgd": 0.4, "adamw_torch": 1.0}  # the peak learning rate of the repair, as a share of the original's
OVER = 1.2  # times the budget, from which on a note says that more is spent
SGD_FROM = 0.01  # below this learning rate a convolutional network, too, was trained with Adam


def pull(weight: Tensor, start: Tensor, keep: float) -> Tensor:
    """θ ← λθ + (1 − λ)θ_start.

    >>> pull(torch.tensor([1.0]), torch.tensor([0.0]), keep=0.25)
    tensor([0.2500])
    """
    return keep * weight + (1 - keep) * start


@dataclass
class BudgetConfig(MethodConfig):
    """Of a method that spends a share of the original's training."""

    method = ""

    budget: float = field(default=BUDGET, metadata={"help": "share of the original's training, in samples seen"})
    original_epochs: float | None = field(
        default=None,
        metadata={"help": "of the original's training; default: as its record or card says, else assumed"},
    )
    original_learning_rate: float | None = field(
        default=None,
        metadata={"help": "of the original, at its peak; default: as its record or card says, else a rule"},
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("budget", 0 < self.budget <= 1, "a share of the original's training in (0, 1]")
        for name in ("original_epochs", "original_learning_rate"):
            value = getattr(self, name)
            self.check(name, value is None or 0 < value < float("inf"), "a number above 0")


@dataclass
class RewindConfig(BudgetConfig):
    """Rewind."""

    method = "rewind"

    keep: float | None = field(
        default=None,
        metadata={
            "help": "λ, what is kept of the original's weights: 1 is fine-tuning, 0 a new training; default: 0.7 of a fine-tuned "
            "original, of one from scratch 0.3 where SGD repairs, 0.4 where Adam does"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("keep", self.keep is None or 0 <= self.keep <= 1, "a share from 0 to 1")


class Rewind(Finetune):
    """θ ← λθ + (1 − λ)θ_start, then min CE(D_r) for `budget` times the original's training.

    What is remembered of single samples is fragile, and what generalises is not: a pull towards where training began
    destroys the first and leaves enough of the second for a short training to repair.

    θ_start is the model that the original was fine-tuned from, or weights drawn anew as the architecture draws them. Of a
    class that is forgotten whole, its row of the head is θ_start's. BatchNorm statistics are estimated anew.
    """

    info = MethodInfo(
        name="rewind",
        kind="loss",
        summary="pulls all weights part of the way back to where training began, and repairs them on the retained samples",
        needs=("forget", "retain"),
        applies_to=(*CLASSIFICATION, "causal-lm", "multi-task"),
        cost=6,
        memory="what AdamW computes in a step of the largest tensor: twice as much as that holds",
    )
    config_class: ClassVar[type[BudgetConfig]] = RewindConfig
    config: Any
    starts_over = True
    past = Past()
    share = 0.0  # of the original's training that the run takes
    optim = "sgd"  # of the repair

    @property
    def keeps(self) -> list[float]:
        """What is kept of the original's weights."""
        return [self.usual_keep if self.config.keep is None else self.config.keep]

    @property
    def usual_keep(self) -> float:
        return KEEP[self.optim] if self.past.from_scratch else KEEP_FINE_TUNED

    def learn_past(self, past: Past) -> None:
        self.past = past

    @property
    def base(self) -> str:
        """What the original was trained from, by its name or its type."""
        return self.past.base if isinstance(self.past.base, str) else type(self.past.base).__name__

    @property
    def original_epochs(self) -> float:
        known = self.config.original_epochs or self.past.epochs
        return known or EPOCHS[self.past.from_scratch]

    @property
    def whole(self) -> float:
        """The samples that the original's training has seen."""
        return self.original_epochs * (self.past.n_forget + self.past.n_retain)

    def original_learning_rate(self, family: str, width: int = 768) -> float:
        known = self.config.original_learning_rate or self.past.learning_rate
        rule = RATES[family] / (1 if family == "convolutional" else width) / (1 if self.past.from_scratch else 4)
        return known or rule

    @property
    def assumed(self) -> tuple[str, ...]:
        """What nothing says of the original's training, by the arguments that say it."""
        past, config = self.past, self.config
        unknown = {
            "base_model": past.base_is_assumed,
            "original_epochs": not (config.original_epochs or past.epochs),
            "original_learning_rate": not (config.original_learning_rate or past.learning_rate),
        }
        return tuple(name for name, is_unknown in unknown.items() if is_unknown)

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        past = self.past
        rate = self.original_learning_rate(family, width)
        sgd = family == "convolutional" and rate >= SGD_FROM
        optimizer = {"optim": "sgd", "optim_args": "momentum=0.9"} if sgd else {"optim": "adamw_torch"}
        self.optim = optimizer["optim"]
        seen = (
            1 + past.n_forget / past.n_retain if past.n_retain else 1
        )  # samples of the original for each retained one
        return optimizer | {
            "learning_rate": REPAIR[self.optim] * rate,
            "num_train_epochs": self.config.budget * self.original_epochs * seen,
            "per_device_train_batch_size": past.batch_size or 64,
            "weight_decay": 5e-4 if sgd else 0.01,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "max_grad_norm": 5.0 if sgd else 1.0,
            "freeze_batchnorm": False,
        }

    def prepare(self, context) -> None:
        self.share = context.schedule.samples() / self.whole
        self._say_what_is_assumed()
        self._say_what_is_overspent()
        self.context = context
        self.classes = context.forget_classes if context.is_class_request else []
        self.pull_back(self.keeps[0])

    def pull_back(self, keep: float) -> None:
        """Pull the weights of the original, or the adapter that it is, towards where training began."""
        model = self.context.model
        if is_adapted(model):
            oppose(model, 1 - keep)
        else:
            rewind(model, self.context.start_weights(), keep, self.classes, self.context.num_labels)
        self.follow_statistics(model)

    def follow_statistics(self, model: nn.Module) -> None:
        """The statistics of BatchNorm are estimated anew by the steps to come, the first of which replaces them; where they
        are frozen, they stay."""
        self._statistics = [(module, module.momentum) for module in batchnorm_modules(model)]

    def on_step_begin(self, step: int) -> None:
        for module, momentum in self._statistics:
            module.momentum = max(momentum or 0.0, 1 / (step + 1))

    def on_step_end(self, step: int) -> bool | None:
        for module, momentum in self._statistics:
            module.momentum = momentum

    def _say_what_is_assumed(self) -> None:
        assumed, past = self.assumed, self.past
        if "base_model" in assumed:
            self.notes.append(
                "Nothing says what the original was trained from; it is taken for a model trained from random weights "
                "(base_model= names another start)."
            )
        if "original_epochs" in assumed:
            how = "from random weights" if past.from_scratch else "by fine-tuning"
            self.notes.append(
                f"Nothing says how long the original was trained; {self.original_epochs:g} epochs {how} are assumed, of which "
                f"this run is {self.share:.2g} (original_epochs= says how many there were)."
            )
        if "original_learning_rate" in assumed:
            self.notes.append(
                "Nothing says at which learning rate the original was trained; one is taken by the kind of the model "
                "(original_learning_rate= says it)."
            )

    def _say_what_is_overspent(self) -> None:
        if self.share > OVER * self.config.budget:
            self.notes.append(
                f"This run takes {self.share:.2g} of the original's training, and its budget is {self.config.budget:g}: num_train_epochs "
                "and max_steps, where they are set, go before it, and a run has one step at least."
            )

    @property
    def report(self) -> dict[str, Any]:
        return {"start": self.base, "original_epochs": self.original_epochs, "share_of_original": self.share}


def spending(
    method: str | MethodConfig | Method,
    budget: float = BUDGET,
    original_epochs: float | None = None,
    original_learning_rate: float | None = None,
) -> Method:
    """The method, told what it may spend and how the original was trained; others take no notice of that, and say so."""
    method = create_method(method)
    about = {"original_epochs": original_epochs, "original_learning_rate": original_learning_rate}
    given = {name: value for name, value in about.items() if value is not None} | (
        {"budget": budget} if budget != BUDGET else {}
    )
    if not given:
        return method
    if not isinstance(method.config, BudgetConfig):
        raise UnlearningError(
            f"{next(iter(given))} is given, and {method.info.name} spends no share of the original's training; leave it out, or use "
            'method="auto" or "rewind".'
        )
    method.config = dataclasses.replace(method.config, **given)
    return method


@torch.no_grad()
def rewind(
    model: nn.Module, start: dict[str, Tensor], keep: float, classes: Sequence[int] = (), num_labels: int = 0
) -> None:
    """Pull the weights that are trained, in float32 at least, and take the head's rows of `classes` from the start."""
    head = [*head_layers(model, num_labels)][-1:] if classes else []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue  # nothing would repair it
        wide = torch.promote_types(parameter.dtype, torch.float32)
        other = start[name].to(parameter.device, wide)
        pulled = pull(parameter.to(wide), other, keep)
        if name.rpartition(".")[0] in head:
            rows = torch.zeros(parameter.shape, dtype=torch.bool)
            rows[classes] = True
            pulled = torch.where(cut_as(rows, parameter), other, pulled)
        parameter.copy_(pulled)
