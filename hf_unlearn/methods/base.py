"""What a method is: its datasheet, its config, and the few hooks that the trainer calls."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, cast

import numpy as np
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.schedule import Schedule
from ..errors import UnlearningError
from ..models.types import ModelSource
from ..tasks.base import Task
from ..tasks.figures import Measurement
from ..tasks.multitask_evaluation import TaskMeasurement
from ..tasks.several import Losses, Tasks
from .fields import check_fields

CONFIG_NAME = "unlearning_config.json"
CLASSIFICATION = ("image-classification", "text-classification")
TASKS = (*CLASSIFICATION, "causal-lm")


@dataclass(frozen=True)
class Paper:
    title: str
    arxiv: str
    bibtex: str

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class MethodInfo:
    """The datasheet of a method. `needs` names arguments of `unlearn()`; `cost` is in fine-tuning epochs; `memory` says what it holds
    where that is more than plain training holds and one copy of the weights; `comparison` says that it is kept for comparison: in
    the closeness study it came no nearer to retrained models than the original."""

    name: str
    kind: Literal["loss", "gradient", "surgery"]
    summary: str
    needs: tuple[str, ...]
    applies_to: tuple[str, ...] = CLASSIFICATION
    cost: float = 1.0
    memory: str | None = None
    paper: Paper | None = None
    comparison: bool = False


@dataclass
class MethodConfig:
    """Hyperparameters of a method. Round-trips through `unlearning_config.json`."""

    method: ClassVar[str]

    arguments: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "training arguments this config asks for; what UnlearningArguments sets wins"},
    )

    def __post_init__(self):
        check_fields(self, self.method)

    def check(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise UnlearningError(f"{self.method}: {name} is {getattr(self, name)!r}; expected {expected}.")

    def save(self, folder: str | Path, **about: Any) -> None:
        """Write `unlearning_config.json`, with `about` beside the hyperparameters."""
        content = {"method": self.method, "config": dataclasses.asdict(self), **about}
        Path(folder, CONFIG_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MethodConfig":
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UnlearningError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(known))}.")
        return cls(**values)


@dataclass(frozen=True)
class Past:
    """How the original was trained; None where nothing says it.

    Attributes:
        base: what it was trained from: a model, its name, a function that returns one, or "scratch".
        base_is_assumed: whether nothing says so.
        learning_rate: at its peak.
        n_forget, n_retain: the samples that it was trained on, as the request has them; what keeps a label is among the retained.
    """

    base: Any = "scratch"
    base_is_assumed: bool = False
    epochs: float | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    n_forget: int = 0
    n_retain: int = 0

    @property
    def from_scratch(self) -> bool:
        return isinstance(self.base, str) and self.base == "scratch"


class Term(NamedTuple):
    """A part of a loss: `weight` times what `loss` gives, with a forward pass of its own."""

    name: str
    weight: float
    loss: Callable[[], Tensor]


class Teacher(Protocol):
    """What a frozen model says of a batch."""

    def logits(self, batch: Batch) -> Tensor: ...


class Context(Protocol):
    """What a method may ask of the run. Samples are named by (source, index), the sources are `forget` and `retain`.

    Attributes:
        task: of the model, with `tasks` and `targets` (where something must be forgotten) of a multi-task model.
        num_labels: of a classifier; 0 for others.
        forget_classes: the labels in the forget set.
        is_class_request: whether whole classes are forgotten.
        parameter_names: of `parameters`.
        kept: forget sample -> its place in `retain`, if it keeps a label.
        is_deterministic: whether training reads a sample the same in every epoch.
        given_teacher: ModelSource | None
    """

    seed: int
    task: Task
    tasks: Tasks | None
    targets: list[str]
    num_labels: int
    forget_classes: list[int]
    is_class_request: bool
    parameter_names: list[str]
    kept: dict[int, int]
    is_deterministic: bool
    given_teacher: ModelSource | None

    @property
    def model(self) -> nn.Module:
        """The unwrapped model."""
        ...

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in the order of every gradient."""
        ...

    @property
    def fine_parameters(self) -> list[Tensor]:
        """The same as they are now, in float32 at least: where the optimizer steps on copies of half-precision weights, these."""
        ...

    @property
    def schedule(self) -> Schedule:
        """What each step trains on."""
        ...

    @property
    def learning_rate(self) -> float:
        """Of the coming update."""
        ...

    @property
    def peak_learning_rate(self) -> float:
        """The highest one of the run."""
        ...

    def has(self, split: str) -> bool:
        """Whether there are samples of `retain` or `control`, the half of unseen that may steer."""
        ...

    def accuracy(self, split: str) -> float:
        """Accuracy of the model as it is now, in eval mode, on `forget`, `retain` or `control`."""
        ...

    def measure(self, split: str, at_most: int | None = None) -> Measurement | TaskMeasurement:
        """What the model as it is now says about each sample of `forget`, `retain` or `control`, or about so many of them,
        which are drawn once, by the seed; or of `alternatives`, see `alternatives`."""
        ...

    def probabilities(self, split: str) -> Tensor:
        """What the model as it is now says of each sample of `forget`, `retain` or `control`: [n, classes], in their order,
        on every process."""
        ...

    def features(self, source: str) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        """(indices, labels, what the head of the model reads as it is now), batch by batch, of all samples of `forget`,
        `retain` or `control`, on every process."""
        ...

    def supervised(self, source: str, task: str) -> np.ndarray:
        """The samples of `forget` whose label on a task must go, or those of `retain` that have one that stays."""
        ...

    def step_samples(self, group: str) -> list[tuple[str, int]]:
        """The samples of the coming step, of all processes."""
        ...

    def batch(self, samples: list[tuple[str, int]], epoch: int | None = None) -> Batch:
        """One batch of these samples; with an epoch, as training reads them then."""
        ...

    def alternatives(self, batch: Batch) -> Batch:
        """Forget samples with other answers, which `Method.alternatives` gives, drawn by (seed, epoch, sample) where there are
        several; their `sample_index` is the place in what `measure` says of them."""
        ...

    def over_processes(self, value: Tensor) -> float:
        """The mean of a number over the processes."""
        ...

    def gradients(
        self, loss: Callable[[nn.Module, Batch], Tensor], groups: list[list[tuple[str, int]]]
    ) -> list[list[Tensor]]:
        """The whole gradient of `loss(model, batch)` over each group of samples.

        The loss is made with `batch.mean`, here a mean over the group. The model is in eval mode. Groups are cut to the
        batch size and shared out over the processes, and every process gets all gradients.
        """
        ...

    def uses(self, loss: Callable[[nn.Module, Batch], Tensor], sample: tuple[str, int]) -> list[bool]:
        """Which parameters the loss of a sample depends on."""
        ...

    @property
    def clipped(self) -> Mapping[str, Tensor]:
        """By which factor clipping has shortened the gradient of each named loss that `combine` is given."""
        ...

    def is_same_in_training(self, loss: Callable[[nn.Module, Batch], Tensor]) -> bool:
        """Whether the model in training mode gives the loss of eval mode: no dropout, and BatchNorm frozen."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """The model in eval mode inside."""
        ...

    def training(self) -> AbstractContextManager[None]:
        """The model in training mode inside, in eval mode after. Frozen BatchNorm has its own statistics back then."""
        ...

    def teacher(self, cache: str = "auto") -> Teacher:
        """The frozen original: `teacher.logits(batch)`. Its logits are kept in a table, unless `cache` is "never" or reading
        a sample twice gives different inputs, which "always" refuses."""
        ...

    def untrained_model(self) -> nn.Module:
        """A model of the original's architecture with random weights, drawn by the seed, in eval mode and frozen."""
        ...

    def start_weights(self) -> dict[str, Tensor]:
        """Those that the original's training began from, by name, with what its base lacks drawn by the seed. They are given
        once."""
        ...

    def look_again(self) -> None:
        """Told that the method has changed the weights itself, and that what was measured of them no longer holds."""
        ...

    def restore_original(self) -> None:
        """Put the original's weights back."""
        ...

    def forget_momentum(self) -> None:
        """Clear what the optimizer remembers of its steps."""
        ...

    def start_from_base(self) -> None:
        """Replace the weights by those the original was trained from."""
        ...

    def log(self, values: dict[str, float]) -> None:
        """Log `values` together with the next losses."""
        ...

    def log_step(self, values: dict[str, Tensor]) -> None:
        """Log the means of these over processes and over the steps since the last log, as the losses are logged."""
        ...


def measured(context: Context, split: str) -> Measurement:
    """`context.measure`, of a model of one task."""
    return cast(Measurement, context.measure(split))


class Method:
    """Base class of all methods; a user's own subclass can be passed wherever a name can.

    A `loss` method implements `losses(model, batch) -> {"loss": ..., parts}`, or `terms` where a step takes several forward
    passes; every loss is made with `batch.mean`, so that it is one sum over the global batch. A `gradient` method *yields* `(name, loss)`, one forward pass each (every
    gradient is then reduced by itself), and implements `combine`. A `surgery` method implements `edit`.
    """

    info: MethodInfo  # of the class, as a rule
    config_class: ClassVar[type[MethodConfig]]
    own_losses: Losses | None = None  # of a multi-task model that is no MultiTaskModel, with the names of its tasks
    own_tasks: list[str] | dict[str, str] | None = None
    whole_classes: ClassVar[bool] = False  # whether it forgets whole classes only
    plain_sgd: ClassVar[bool] = False  # whether the optimizer must do nothing but weights -= learning rate * gradient
    takes_teacher: bool = False  # whether it reads `context.given_teacher`
    takes_alternatives: bool = False  # whether it asks for other answers to forget samples
    starts_over: ClassVar[bool] = False  # whether it reads the weights that training began from
    single_samples: ClassVar[bool] = False  # whether it asks for gradients of single samples

    def __init__(self, config: MethodConfig | None = None):
        self.config = config if config is not None else self.config_class()
        self.notes: list[str] = []  # what the user must know about the result, in sentences

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        """Training arguments that work without tuning, for a `convolutional` or a `transformer` model.

        `width` is the number of features of a transformer's tokens; Adam's learning rate goes with its inverse.
        """
        return {}

    def share_of_peak(self, step: int) -> float | None:
        """The learning rate of a step as a share of its peak; None: `lr_scheduler_type` says it, as it does for all steps."""
        return None

    def learn_past(self, past: Past) -> None:
        """Told how the original was trained, before its `arguments` are asked for."""

    def for_task(self, task: Task) -> "Method":
        """The method that is run on models of this task in its place; as a rule itself."""
        return self

    def learn_task(self, task: Task) -> None:
        """Told what the model is for, before its `arguments` and `epochs` are asked for."""

    def retained_share(self, n_forget: int, n_retain: int) -> float:
        """The share of the retained samples that is used, of a request of so many samples."""
        return 1.0

    @property
    def class_request(self) -> bool | None:
        """Whether its config says that whole classes must go; None: it does not say."""
        return getattr(self.config, "class_mode", None)

    @property
    def changes_weights(self) -> bool:
        """Whether it changes weights between two steps, beside the optimizer."""
        return False

    @property
    def why_whole(self) -> str | None:
        """What it does that cannot be had of weights that are cut up over processes (FSDP); None: nothing."""
        return "takes gradients of single samples" if self.single_samples else None

    @property
    def why_in_training(self) -> str | None:
        """What it does with weights between the first step and the end, where they may be cut up and empty (DeepSpeed's stage 3)."""
        return None

    def alternatives(self, row: dict[str, Any]) -> list[Any]:
        """The answers, one or several, that a forget sample of a language model is to be given in the place of its own, where
        the method `takes_alternatives`."""
        raise NotImplementedError

    def epochs(self, epochs: int) -> list[str]:
        """The kind of every epoch of a run of `epochs` epochs (see `Schedule`)."""
        raise NotImplementedError

    def prepare(self, context: Context) -> None:
        """Called once, before the first step, while the model is still the original."""

    def trained_modules(self, model: nn.Module) -> list[str] | None:
        """Names of the only modules of the original, without adapters, that are trained; None: all of them.

        An adapter that the method has by default is put on them alone.
        """
        return None

    def adapter(self, task: Task) -> dict[str, Any] | None:
        """Arguments of the `LoraConfig` that is used on models of this task unless the user says otherwise."""
        return None

    def adapter_arguments(self) -> dict[str, Any]:
        """Training arguments that are others when an adapter is trained."""
        return {}

    def on_epoch_begin(self, epoch: int) -> bool | None:
        """Called before each epoch; `False` ends the run. What it sets belongs into `state_dict`."""

    def on_step_begin(self, step: int) -> None:
        """Called before each step, as often as there are steps and not micro-batches."""

    def on_step_end(self, step: int) -> bool | None:
        """Called after each update; `False` ends the run."""

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def terms(self, model: nn.Module, batch: Any) -> list[Term]:
        """The parts that add up to the loss, in the place of `losses`. Each goes back through the network before the next goes
        forward, so that memory holds one pass at a time."""
        return []

    def combine(self, gradients: dict[str, list[Tensor]]) -> list[Tensor] | None:
        """The gradient that the optimizer steps on, from the whole, clipped gradients of every named loss; None for no
        update. The lists belong to the method: memory is saved by putting the result in the place of one of them."""
        raise NotImplementedError

    def edit(
        self, model: nn.Module, forget_loader: Iterable[Mapping], retain_loader: Iterable[Mapping]
    ) -> dict[str, Any]:
        """Edit the weights in place and report what was done. A loader gives this process's share of the batches, as often
        as it is iterated."""
        raise NotImplementedError

    # The same edit as a LoRA adapter, of a surgery method that has that: (model, forget_loader, retain_loader) -> its config,
    # and a function of the model with that adapter and the adapter's name that fills in its weights.
    edit_as_adapter: Callable[..., tuple[Any, Callable[[nn.Module, str], None]]] | None = None

    @property
    def report(self) -> dict[str, Any]:
        """What is saved beside the metrics of a result."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What cannot be recomputed in the middle of an epoch; it is saved in every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass
