"""Training arguments of an unlearning run."""

import copy
import dataclasses
import os
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal

import torch
from torch import nn
from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from .. import models
from ..data.layout import Columns
from ..data.splits import SPLIT_SEED
from ..errors import UnlearningError, in_one_sentence
from ..methods import Method
from ..methods.fields import check_fields, field_types
from ..models import adapters
from ..tasks.base import Task
from .zero import check_installed, configure, load_whole


class Unnamed(str):
    """An output folder that nobody named: of another request or original it gets a number."""


# What a method has its own defaults for. None means: not set by the user, the method decides.
METHOD_DEFAULTS = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "weight_decay",
    "optim",
    "optim_args",
    "lr_scheduler_type",
    "max_grad_norm",
    "warmup_steps",
    "freeze_batchnorm",
    "decay",
)


@dataclass
class UnlearningArguments(TrainingArguments):
    """`transformers.TrainingArguments`, with defaults that come from the method wherever you set nothing.

    Learning rate, epochs, batch size, weight decay, optimizer, schedule, warm-up and clipping are `None` here: every
    method brings values that work without tuning (see its datasheet), and what you set wins.
    """

    output_dir: str = field(
        default=Unnamed("unlearned"),
        metadata={"help": "where checkpoints and results go; of another request, unlearned-2 and so on"},
    )
    learning_rate: float | None = field(default=None, metadata={"help": "default: the method's"})
    num_train_epochs: float | None = field(default=None, metadata={"help": "default: the method's"})
    per_device_train_batch_size: int | None = field(default=None, metadata={"help": "default: the method's"})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "samples of one forward pass"})
    weight_decay: float | None = field(default=None, metadata={"help": "default: the method's"})
    optim: str | None = field(default=None, metadata={"help": "default: the method's, else adamw_torch"})
    optim_args: str | None = field(
        default=None, metadata={"help": "default: those of the method's optim, unless you set that"}
    )
    lr_scheduler_type: str | None = field(default=None, metadata={"help": "default: the method's, else linear"})
    max_grad_norm: float | None = field(default=None, metadata={"help": "default: the method's; 0 never clips"})
    warmup_steps: float | None = field(default=None, metadata={"help": "default: the method's, else 0"})
    freeze_batchnorm: bool | None = field(
        default=None,
        metadata={"help": "keep BatchNorm statistics as they are; default: the method's, and always with an adapter"},
    )
    decay: Literal["weights", "all"] | None = field(
        default=None,
        metadata={
            "help": "what weight decay acts on: weights: all but biases and LayerNorms, as the Trainer has it; all: every trained "
            "parameter, as in the papers' own code; default: the method's, else weights"
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "log the mean loss in the place of one that is NaN or infinite, which is read from the device in every step; a run "
            "ends at one anyway, ten steps later at most"
        },
    )
    measure: bool = field(
        default=True, metadata={"help": "measure forget, retained and unseen samples before and after unlearning"}
    )
    retain_size: int | None = field(default=None, metadata={"help": "number of samples in a streaming retained set"})
    retain_eval_size: int = field(
        default=10_000, metadata={"help": "retained samples that are measured at most (drawn once, by the seed)"}
    )
    split_seed: int = field(
        default=SPLIT_SEED,
        metadata={"help": "which half of the unseen samples may steer; an audit must split them by the same one"},
    )
    image_column: str | None = field(default=None, metadata={"help": "column of the image, if not image or img"})
    text_column: str | None = field(default=None, metadata={"help": "column of the text, if it has an unusual name"})
    text_pair_column: str | None = field(default=None, metadata={"help": "column of the second text of a pair"})
    label_column: str | None = field(default=None, metadata={"help": "column of the label, if not label or labels"})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "of texts, in tokens: longer ones are cut off on the right; without it a language model refuses them"
        },
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "of a language model's whole texts, in tokens: longer ones than max_length are several samples, of which each begins "
            "with so many of the one before; default: they are cut off"
        },
    )

    def __post_init__(self):
        if isinstance(self.output_dir, os.PathLike):
            self.output_dir = os.fspath(self.output_dir)
        self.check_types()
        check_installed(self)
        self._unset = tuple(name for name in METHOD_DEFAULTS if getattr(self, name) is None)
        fields = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
        self._placeholders = {name: fields.get(name) for name in self._unset}
        for name, value in self._placeholders.items():
            setattr(self, name, value)
        if self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "gap", False
        self.remove_unused_columns = False
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise each process of a distributed launch takes itself for the only one
        if torch.backends.mps.is_available():
            self.use_cpu = True  # sums and noise are in float64, which MPS does not have
        try:
            super().__post_init__()
        except (ValueError, TypeError, NotImplementedError, ImportError, OSError) as error:
            raise UnlearningError(f"The training arguments cannot be used: {in_one_sentence(error)}") from error
        load_whole(self)

    def check_types(self) -> None:
        """Refuse a value that is not of its field's type; `fsdp` is true or text, and transformers, which says text, makes it
        true."""
        if not isinstance(self.fsdp, (bool, str, list, NoneType)):
            raise UnlearningError(f"UnlearningArguments: fsdp is {self.fsdp!r}; expected true or false, or text.")
        check_fields(self, "UnlearningArguments", [name for name in field_types(type(self)) if name != "fsdp"])

    def resolved(self, defaults: dict[str, Any]) -> "UnlearningArguments":
        """A copy in which `defaults` fill what the user left unset."""
        if unknown := sorted(set(defaults) - set(METHOD_DEFAULTS)):
            raise UnlearningError(
                f"A method or its config has a default for {unknown[0]!r}; expected one of {', '.join(METHOD_DEFAULTS)}. "
                "Set others in UnlearningArguments."
            )
        args = copy.copy(self)
        if "optim" not in self._unset or self.optim != self._placeholders["optim"]:
            defaults = {**defaults, "optim_args": None}  # the method's are of another optimizer
        for name in self._unset:
            if name in defaults and getattr(args, name) == self._placeholders[name]:  # else it was set afterwards
                setattr(args, name, defaults[name])
        args.optim, args.lr_scheduler_type = OptimizerNames(args.optim), SchedulerType(args.lr_scheduler_type)
        configure(args)
        is_set = "warmup_steps" not in self._unset or self.warmup_steps != self._placeholders["warmup_steps"]
        if is_set and args.warmup_steps and args.lr_scheduler_type == SchedulerType.CONSTANT:
            raise UnlearningError(
                f"warmup_steps is {args.warmup_steps}, and the schedule is constant, which has no warm-up; expected "
                "lr_scheduler_type=constant_with_warmup beside it, or no warmup_steps."
            )
        return args

    @property
    def columns(self) -> Columns:
        return Columns(self.image_column, self.text_column, self.text_pair_column, self.label_column, self.max_length)


def with_defaults(args: UnlearningArguments, method: Method, model: nn.Module, adapted: bool) -> UnlearningArguments:
    """A copy in which the method has filled in what is left unset, for this model; in an adapter Adam steps further."""
    defaults = method.arguments(models.architecture_family(model), models.width(model))
    if adapted:
        if "learning_rate" in defaults and defaults.get("optim") != "sgd":
            defaults["learning_rate"] *= adapters.LEARNING_RATE
        defaults |= method.adapter_arguments()
    return args.resolved(defaults | method.config.arguments)


def for_trainer(args: UnlearningArguments, method: Method, task: Task) -> UnlearningArguments:
    """What the Trainer must do otherwise: clip nothing where gradients are clipped one by one, and find unused weights."""
    if method.info.kind == "gradient":
        args.max_grad_norm = 0.0
    if task.leaves_out and args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = True
    return args
