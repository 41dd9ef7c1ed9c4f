"""How the samples of a request are read: as batches of model inputs, checked, counted, the same every time or not."""

import os
from collections.abc import Callable

import numpy as np
from accelerate import Accelerator
from torch import nn

from ..data.samples import DrawnSamples, TrainingCollator, is_deterministic
from ..data.types import DataCollator, ProcessingClass
from ..errors import UnlearningError
from ..methods import Method
from ..tasks.alternatives import NAME, Alternatives
from ..tasks.checks import check_samples
from ..tasks.evaluation import Evaluator
from .arguments import UnlearningArguments
from .request import Request


class Reading:
    """The way from a request to batches.

    Attributes:
        collate: rows to model inputs.
        sizes: how much each sample counts in a mean, by `sample_index`; None: all count the same.
        alternatives: other answers to the forget samples, where the method takes such.
        deterministic: whether training reads a sample the same in every epoch.
        workers: processes that read, no more than there are cores. A stream is read in one: each worker would read all of it, or, worse, a part of its
            shards.
    """

    def __init__(
        self,
        request: Request,
        method: Method,
        model: nn.Module,
        args: UnlearningArguments,
        processing_class: ProcessingClass | None,
        data_collator: DataCollator | None,
        augment: Callable | None,
    ):
        self.request, self.augment, self.seed, task = request, augment, args.seed, request.task
        self.collate = task.collator(request.sources["forget"], processing_class, data_collator)
        for source in request.sources.values():
            self.collate.check(source)
        check_samples(request.sources.values(), self.collate, model)
        self.sizes: np.ndarray | None = request.sizes
        if self.sizes is None:
            self.sizes = self.collate.sizes(request.sources, progress=not args.disable_tqdm)
        self.alternatives = None
        if method.takes_alternatives:
            self.alternatives = Alternatives(request.forget, self.collate, method.alternatives, args.seed)
        trained = [request.sources[name] for name in ("forget", "retain") if name in request.sources]
        self.deterministic = augment is None and all(is_deterministic(source, self.collate) for source in trained)
        if task.is_fixed and not self.deterministic:
            raise UnlearningError(
                f"The samples are different every time they are read (augment, or a random transform), and {task.counted} are "
                "counted before the first step; expected fixed texts."
            )
        self.workers = 0 if request.has_stream else min(args.dataloader_num_workers, os.cpu_count() or 1)

    def training_samples(self) -> DrawnSamples:
        """As training reads them."""
        return DrawnSamples(self.request.sources, self.augment, self.seed, seeded=not self.deterministic)

    def measured_samples(self) -> DrawnSamples:
        """As they are."""
        others = {NAME: self.alternatives.source} if self.alternatives else {}
        return DrawnSamples(self.request.sources | others, seed=self.seed, seeded=not self.deterministic)

    @property
    def indices(self) -> dict[str, tuple[str, np.ndarray]]:
        """What a method may have measured: split -> (source, indices)."""
        others = {NAME: (NAME, np.arange(len(self.alternatives.source)))} if self.alternatives else {}
        return self.request.indices | others

    def collator(self) -> TrainingCollator:
        return TrainingCollator(self.collate)

    def evaluator(self, accelerator: Accelerator, args: UnlearningArguments) -> Evaluator:
        """Forward passes over the sets as they are."""
        task = self.request.task
        return task.evaluator(
            accelerator,
            self.measured_samples(),
            self.collator(),
            self.request.supervision,
            batch_size=task.eval_batch_size(args.per_device_eval_batch_size, args.train_batch_size),
            workers=self.workers,
            progress=not args.disable_tqdm,
        )
