"""How the samples of a request are read: as batches of model inputs, checked, counted, the same every time or not."""

import logging
import os
from collections.abc import Callable

import numpy as np
from accelerate import Accelerator
from torch import nn

from ..data.samples import DrawnSamples, TrainingCollator, is_deterministic, is_repeatable
from ..data.source import Source
from ..data.types import DataCollator, ProcessingClass
from ..errors import UnlearningError
from ..methods import Method
from ..tasks.alternatives import NAME, Alternatives
from ..tasks.base import Task
from ..tasks.checks import check_samples
from ..tasks.evaluation import Evaluator
from .arguments import UnlearningArguments
from .request import Request

logger = logging.getLogger(__name__)


class Reading:
    """The way from a request to batches.

    Attributes:
        collate: rows to model inputs.
        sizes: how much each sample counts in a mean, by `sample_index`; None: all count the same.
        alternatives: other answers to the forget samples, where the method takes such.
        deterministic: whether training reads a sample the same in every epoch.
        counts: whether samples are counted in each step, as those of a stream must be.
        workers: processes that make batches, no more than there are cores; none where there is a stream, which workers of its own
            read ahead, each some of its lanes.
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
        same = [augment is None and is_deterministic(source, self.collate) for source in trained]
        self.deterministic = all(same)
        others = (source for source, is_same in zip(trained, same, strict=True) if not is_same)
        if task.is_fixed and not all(augment is None and self._only_moves(source, task) for source in others):
            raise UnlearningError(
                f"The samples are different every time they are read (augment, or a random transform), and {task.counted} are "
                "counted before the first step; expected fixed texts."
            )
        workers = min(args.dataloader_num_workers, os.cpu_count() or 1)
        self.counts = request.has_stream and task.counts_in_steps
        self.workers = 0 if request.has_stream else workers
        self._share = args.process_index, args.world_size, workers
        if request.has_stream:
            self._share_out(request.sources["retain"])

    def _only_moves(self, source: Source, task: Task) -> bool:
        """Whether the samples of a set that is not the same in every epoch come in another order, and are the same: where they are
        counted in every step they may."""
        return source.is_stream and task.counts_in_steps and is_repeatable(source, self.collate)

    def _share_out(self, stream: Source) -> None:
        rank, processes, workers = self._share
        if not stream.splits_over(processes) and rank == 0:
            logger.warning(
                f"The stream of retained samples has {len(stream.lane_starts)} shards, or parts of equal numbers of them, which "
                f"{processes} processes cannot share out evenly: each reads all of it, and trains on its own part."
            )
        if workers and not is_repeatable(stream, self.collate):
            self._share = rank, processes, 0
            if rank == 0:
                logger.warning(
                    "The stream of retained samples is transformed at random, which workers would do otherwise than one process: it is "
                    "read without workers. (Pass the transform as augment instead.)"
                )

    def _sources(self) -> dict[str, Source]:
        """A stream with a reader of its own: training goes on where it was after its samples were measured."""
        sources = self.request.sources.items()
        return {name: source.read_by(*self._share) if source.is_stream else source for name, source in sources}

    def training_samples(self) -> DrawnSamples:
        """As training reads them."""
        return DrawnSamples(self._sources(), self.augment, self.seed, seeded=not self.deterministic)

    def measured_samples(self) -> DrawnSamples:
        """As they are."""
        others = {NAME: self.alternatives.source} if self.alternatives else {}
        return DrawnSamples(self._sources() | others, seed=self.seed, seeded=not self.deterministic)

    @property
    def indices(self) -> dict[str, tuple[str, np.ndarray]]:
        """What a method may have measured: split -> (source, indices)."""
        others = {NAME: (NAME, np.arange(len(self.alternatives.source)))} if self.alternatives else {}
        return self.request.indices | others

    def collator(self) -> TrainingCollator:
        return TrainingCollator(self.collate)

    def training_collator(self) -> TrainingCollator:
        return TrainingCollator(self.collate, self.counts)

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
