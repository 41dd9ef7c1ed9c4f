"""Models of several tasks: each sample has a label for some of them, and a request may name single labels."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from .. import models
from ..data.batches import Batch
from ..data.samples import DrawnSamples, TrainingCollator
from ..data.source import Source
from ..data.types import DataCollator, ProcessingClass
from ..errors import UnlearningError
from ..models.multitask import MultiTaskModel, MultiTaskModelConfig
from .base import Supervision, Task
from .multitask_evaluation import TaskEvaluator
from .several import Losses, TaskCollator, Tasks, request_mask


class MultiTask(Task):
    """A `MultiTaskModel`, or a model of the user's own with a function of its losses."""

    name = "multi-task"
    noun = "a multi-task model"
    outputs = "tasks"
    counted = "the labels of each task"
    why_no_gap = "a multi-task model has a score for each task"
    leaves_out = True  # the loss of one task leaves out the heads of the others
    is_audited = False
    scores = {}
    auto_class = "AutoModel"
    tasks: Tasks

    def __init__(
        self,
        model: nn.Module,
        own_losses: Losses | None = None,
        own_tasks: Sequence[str] | Mapping[str, str] | None = None,
    ):
        self.tasks = Tasks(model, own_losses, own_tasks)
        self.limits = models.limits(model) | ({"accepts": None} if own_losses else {})
        self.config = getattr(models.base_of(model), "config", None)
        self.num_outputs = len(self.tasks.names)
        self.layout = self.tasks.layout

    def collator(
        self, example: Source, processing_class: ProcessingClass | None, data_collator: DataCollator | None
    ) -> TaskCollator:
        return TaskCollator(self.tasks, example, processing_class, data_collator, **self.limits)

    def supervision(self, sources: Mapping[str, Source], asked: Any) -> Supervision:
        """Which labels go and which stay. Those that a forget sample keeps stand behind the retained samples."""
        forget, retain, names = sources["forget"], sources["retain"], self.tasks.names
        mask = request_mask(asked, names, len(forget))
        labelled = {name: self.tasks.labelled(source) for name, source in sources.items()}
        goes, stays = labelled["forget"] & mask, labelled["forget"] & ~mask
        for name, found, what in (
            ("forget", goes, "label on the tasks it is to forget"),
            ("retain", labelled["retain"], "label on any task"),
        ):
            if len(idle := np.flatnonzero(~found.any(axis=1))):
                raise UnlearningError(
                    f"{len(idle)} of the {len(found)} samples of {name} have no {what} (the first is row {idle[0]}); remove "
                    "them, or give them one."
                )
        kept, both = np.flatnonzero(stays.any(axis=1)), None
        if len(kept):
            samples = ConcatDataset([retain.dataset, Subset(forget.dataset, kept.tolist())])
            both = Source(samples, "retain", retain.given, layout=self.layout)
        return Supervision(
            retain=both,
            kept={int(row): len(retain) + i for i, row in enumerate(kept)},
            mask=mask,
            counted=labelled | {"forget": np.where(mask.any(axis=0), goes, labelled["forget"])},
            sizes=np.concatenate([goes, labelled["retain"], stays[kept]]).astype(np.int64),
            targets=tuple(name for i, name in enumerate(names) if mask[:, i].any()),
        )

    def check_control(self, supervision: Supervision, name: str, rows: np.ndarray) -> None:
        """A task is forgotten when it scores as on unseen samples, which takes some with a label on it."""
        counted = supervision.counted
        asked = cast(np.ndarray, supervision.mask).any(axis=0) & counted["forget"].any(axis=0)
        if len(absent := np.flatnonzero(asked & ~counted[name][rows].any(axis=0))):
            raise UnlearningError(
                f"The unseen samples that may steer have no label on the task {self.tasks.names[absent[0]]!r}, and what is "
                "forgotten of it is held against them; give some of unseen labels on it (half of them steer, unless test is "
                "given)."
            )

    def base(self, name: str) -> nn.Module:
        """A model of the same kind, or with new heads what its backbone was."""
        config = cast(MultiTaskModelConfig, self.config)
        try:
            is_whole = models.task_of_named(name) == self.name
        except UnlearningError:  # it has no head
            is_whole = False
        if is_whole:
            return super().base(name)
        return MultiTaskModel.from_backbone(name, cast(dict, config.tasks), pooling=config.pooling)

    @property
    def named_base(self) -> str | None:
        return getattr(getattr(self.config, "backbone", None), "name_or_path", None) or None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses = self.tasks.losses(model, batch, self.tasks.names)
        return cast(Tensor, sum(batch.mean(losses[name], i) for i, name in enumerate(self.tasks.names)))

    def evaluator(
        self,
        accelerator: Accelerator,
        samples: DrawnSamples,
        collator: TrainingCollator,
        supervision: Supervision,
        **about: Any,
    ) -> TaskEvaluator:
        asked: dict[str, Any] = {"counted": supervision.counted, "targets": list(supervision.targets)}
        return TaskEvaluator(accelerator, samples, collator, tasks=self.tasks, **asked, **about)
