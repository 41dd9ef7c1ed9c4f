"""What differs between kinds of models, behind one protocol: nobody outside this room asks which task a model is for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .. import models
from ..data.batches import Batch
from ..data.collator import Collator
from ..data.layout import Layout
from ..data.samples import DrawnSamples, TrainingCollator
from ..data.source import Source
from ..data.types import DataCollator, ProcessingClass
from ..errors import UnlearningError
from .evaluation import Evaluator
from .losses import sample_losses
from .several import Tasks


@dataclass(frozen=True)
class Supervision:
    """What of the samples must go. Mostly all of each; of a multi-task model some of their labels.

    Attributes:
        retain: the samples to train on as retained ones, where these are more than were given: forget samples that keep
            a label stand behind them.
        kept: forget sample -> its place there.
        mask: which label of which forget sample must go: bool [forget samples, tasks].
        counted: for each source, the labels that are measured: bool [samples, tasks].
        sizes: 1 where a sample has a label to train a task on, by `sample_index`, else 0.
        targets: the tasks of which something must be forgotten.
    """

    retain: Source | None = None
    kept: dict[int, int] = field(default_factory=dict)
    mask: np.ndarray | None = None
    counted: dict[str, np.ndarray] = field(default_factory=dict)
    sizes: np.ndarray | None = None
    targets: tuple[str, ...] = ()


class Task(Protocol):
    """One model's task. Made once, by `tasks.task_of`; a kind is a class in a file of its own, and its place in `TASKS`.

    What the class alone knows is an attribute of the class, so that a saved report or a card can ask by the task's name.

    Attributes:
        name: as in datasheets, receipts and `applies_to`.
        noun: in a sentence, such as "a language model".
        config: of the model, without adapters; None for a model of the user's own that has none.
        num_labels: of a classifier, the number of its classes; 0 for others.
        num_outputs, outputs: how many numbers a prediction has, and of what: "classes", "words".
        class_names: of a classifier that has names of its own.
        tasks: of a multi-task model, its tasks.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    config: PreTrainedConfig | None
    num_labels: int = 0
    num_outputs: int = 0
    outputs: ClassVar[str]
    class_names: list[str] | None = None
    tasks: Tasks | None = None

    def __init__(self, model: nn.Module) -> None: ...

    # -- How samples are read

    layout: Layout  # the columns of their rows
    has_classes: ClassVar[bool] = False  # whether every sample has one
    counted: ClassVar[str | None] = None  # what of samples is counted before the first step, which no stream allows
    counts_in_steps: ClassVar[bool] = False  # whether it can also be counted in each step, as that of a stream must be
    is_fixed: ClassVar[bool] = False  # whether they must be the same whenever they are read
    is_whole: ClassVar[bool] = False  # whether a forward pass must see its whole batch, on one device

    def collator(
        self, example: Source, processing_class: ProcessingClass | None, data_collator: DataCollator | None
    ) -> Collator:
        """Rows to model inputs, for sets with the columns of `example`."""
        ...

    def pieces(
        self, source: Source, processing_class: ProcessingClass | None, length: int, stride: int
    ) -> list[list[dict[str, list[int]]]]:
        """Of each text its token ids in rows of at most `length`, of which each begins with `stride` tokens of the one before."""
        raise UnlearningError(
            f"stride is {stride}, and the model is for {self.name}; it cuts the texts of a language model: leave it out."
        )

    def supervision(self, sources: Mapping[str, Source], asked: Any) -> Supervision:
        """What of the samples must go; `asked` is the user's `tasks`."""
        if asked is not None:
            raise UnlearningError(
                f"tasks is given, and the model is for {self.name}; expected a multi-task model, or no tasks."
            )
        return Supervision()

    def check_control(self, supervision: Supervision, name: str, rows: np.ndarray) -> None:
        """Refuse unseen samples, rows of the source `name`, that cannot steer."""

    # -- How a model is measured

    why_no_gap: ClassVar[str | None] = None  # why its figures have none to steer by, whatever the samples are
    right_or_wrong: ClassVar[bool] = True  # whether a sample is either known or not, so that accuracy tells of memory

    def evaluator(
        self,
        accelerator: Accelerator,
        samples: DrawnSamples,
        collator: TrainingCollator,
        supervision: Supervision | None = None,
        **about: Any,
    ) -> Evaluator:
        """Losses and scores of single samples, what a measurement keeps of them, and the figures (or the reasons why there
        are none) that follow; `about` are the evaluator's `batch_size`, `workers` and `progress`."""
        return Evaluator(accelerator, samples, collator, self.num_labels, **about)

    def eval_batch_size(self, eval_size: int, train_size: int) -> int:
        """Samples of one forward pass."""
        return eval_size

    # -- How it is trained

    leaves_out: ClassVar[bool] = False  # whether a loss may leave out weights, which DDP has to look for
    lora: ClassVar[dict[str, Any] | None] = (
        None  # of the adapter that is trained where weights are many; None: no adapter
    )

    def base(self, name: str) -> nn.Module:
        """What a model of this kind was trained from, by its name."""
        return models.load_model(name, task=self.name, num_labels=self.num_labels or None)

    @property
    def named_base(self) -> str | None:
        """What its config names as that, where it has a place for it of its own."""
        return None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """What plain training on a batch lowers."""
        return batch.mean(sample_losses(model, batch))

    epoch: ClassVar[Literal["forget", "retain"]] = "retain"  # the set that an epoch of losses on both passes through

    # -- What an audit may ask

    is_audited: ClassVar[bool] = True  # whether its samples can be held against unseen ones, one by one
    scores: ClassVar[
        dict[str, str]
    ]  # of a sample, higher for what is remembered, and how it is called; the main one first
    of_class: ClassVar[tuple[str, str]] = (
        "",
        "",
    )  # said of samples, and of a sample, held against those of their class
    audit_parts: ClassVar[dict[int, tuple[str, ...]]] = {}  # level -> the parts of `audits` that it adds
    conventions: ClassVar[tuple[str, ...]] = ()  # how scores and figures are made

    def audit_statistics(self, predicted: Any) -> dict[str, Tensor]:
        """Further signals of each sample that only an audit reads, from what the evaluator's `predict` says."""
        return {}

    # -- What the Hub may ask

    pipeline_tag: ClassVar[str | None] = None
    auto_class: ClassVar[str]
