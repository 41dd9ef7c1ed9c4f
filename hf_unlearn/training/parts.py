"""What an `UnlearningTrainer` is made of, for whatever stands below it and is handed one."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from transformers import Trainer

from ..data.collator import Collator
from ..data.samples import DrawnSamples
from ..data.schedule import Schedule
from ..data.source import Source
from ..data.types import ProcessingClass
from ..methods import Method
from ..models.adapters import Adapter
from ..models.types import ModelSource
from ..tasks.base import Task
from ..tasks.evaluation import Evaluator
from ..tasks.several import Tasks
from .arguments import UnlearningArguments
from .gradients import NamedGradients
from .looks import Looks, Measured
from .original import original_of
from .output import PRIVATE
from .past import Start
from .reading import Reading
from .request import Request
from .sharding import Sharding
from .watch import Watch


class Parts(Trainer):
    """A Trainer with the parts of an unlearning run.

    Attributes:
        schedule: what each step trains on; None of a method that edits the weights once.
        adapter: the one that is trained, if there is one.
        origin, original_folder: where on the Hub the original is, and the folder that it was loaded from, if these are known.
        original, unlearned: what was measured before and after; empty before it was, or where nothing is measured.
        masters: weights in half precision, and the copies in float32 that the optimizer steps on, if it does.
        sharding: how models are cut up over the processes, once the model is (FSDP2).
        given_optimizer: the user's own, in whatever form the Trainer takes it.
    """

    # The Trainer's, here of a narrower kind.
    args: UnlearningArguments
    model: nn.Module
    model_wrapped: nn.Module
    train_dataset: DrawnSamples
    processing_class: ProcessingClass | None

    method: Method
    task: Task
    request: Request
    start: Start | None
    reading: Reading
    schedule: Schedule | None
    adapter: Adapter | None
    origin: dict[str, str] | None
    original_folder: str | None
    base_model: ModelSource | None
    given_teacher: ModelSource | None
    given_optimizer: Any
    masters: Sequence[tuple[Tensor, Tensor]] = ()
    sharding: Sharding | None = None
    frozen_batchnorm: Sequence[nn.Module]
    named_gradients: NamedGradients
    evaluator: Evaluator
    looks: Looks
    watch: Watch
    original: Measured
    unlearned: Measured
    runtime: dict[str, float]

    @property
    def is_edit(self) -> bool:
        """Whether the method edits the weights once, in the place of training."""
        return self.method.info.kind == "surgery"

    @property
    def planned(self) -> Schedule:
        """The schedule of a run that trains."""
        return cast(Schedule, self.schedule)

    @property
    def private(self) -> Path:
        return Path(self.args.output_dir, PRIVATE)

    @property
    def tasks(self) -> Tasks | None:
        """Of a multi-task model."""
        return self.task.tasks

    @property
    def targets(self) -> list[str]:
        """The tasks of which something must be forgotten."""
        return self.request.targets

    @property
    def num_labels(self) -> int:
        return self.task.num_labels

    @property
    def sources(self) -> dict[str, Source]:
        return self.request.sources

    @property
    def indices(self) -> dict[str, tuple[str, np.ndarray]]:
        """What is measured, see `Request`."""
        return self.request.indices

    @property
    def collate(self) -> Collator:
        return self.reading.collate

    @property
    def sizes(self) -> np.ndarray | None:
        return self.reading.sizes

    @property
    def deterministic(self) -> bool:
        """Whether training reads a sample the same in every epoch."""
        return self.reading.deterministic

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that are trained, by name."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def original_model(self) -> AbstractContextManager[nn.Module]:
        """The model as it was before unlearning, inside a `with` block; read from where it is kept."""
        return original_of(self.model, self.adapter, self.private, self.args.device, self.sharding)

    def own_clipping(self) -> dict[str, float]:
        """The norm that a gradient method's gradients are clipped to, each by itself; the Trainer clips none."""
        return {"max_grad_norm": self.named_gradients.max_norm} if self.method.info.kind == "gradient" else {}
