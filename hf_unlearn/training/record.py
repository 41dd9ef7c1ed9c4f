"""A finished run as a plain record: whoever judges or publishes it reads this, and never the trainer."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ..data.source import Columns, Source
from ..data.types import ProcessingClass
from ..methods.base import MethodInfo
from ..models.adapters import Adapter
from ..models.types import ModelSource
from ..tasks.base import Task
from ..tasks.evaluation import Evaluator
from .output import PRIVATE, read_original
from .sharding import Sharding


@dataclass(frozen=True)
class Run:
    """What there is to know of a run.

    Attributes:
        model: what was trained, with its adapter if it has one.
        adapter: the one that the run has trained; None where it changed the weights themselves.
        original: opens the model as it was before, for a `with` block; under an adapter that is `model` with this switched off.
        method: its datasheet.
        task: what its model is for.
        sources: `forget`, `retain`, `unseen` and `test`, those of them that were given.
        indices: what was measured: split -> (source, rows). Of the unseen samples `control` may have steered, `evidence`
            cannot.
        evaluator: reads these samples, and measures models on them.
        columns, processing_class: how rows are read.
        forget_classes, is_class: the labels of the forget set, and whether whole classes were forgotten.
        request: what was asked for: its kind, sizes of the sets, numbers of classes, tasks.
        read: how many different samples an update was made of, in how many steps.
        origin: the Hub id and commit of the original, where they are known.
        original_folder: where it was loaded from, if that was a folder.
        base_model: what the original was trained from, as it was given.
        folder: of its output.
        seeds: of the `unlearning`, its `schedule`, and the `split` of the unseen samples; None where they were not split.
        runtime: seconds of preparing, of unlearning, and of all with the measurements.
        device: of the model.
        processes: that took part.
        writes: whether this one is to write what is saved.
        sharding: how the models are cut up over the processes, if they are.
    """

    model: nn.Module
    adapter: Adapter | None
    original: Callable[[], AbstractContextManager[nn.Module]]
    method: MethodInfo
    task: Task
    sources: dict[str, Source]
    indices: dict[str, tuple[str, np.ndarray]]
    evaluator: Evaluator
    columns: Columns | None
    processing_class: ProcessingClass | None
    forget_classes: list[int]
    is_class: bool
    request: dict[str, Any]
    read: dict[str, int]
    origin: dict[str, str] | None
    original_folder: str | None
    base_model: ModelSource | None
    folder: Path
    seeds: dict[str, int | None]
    runtime: dict[str, float]
    device: torch.device
    processes: int
    writes: bool
    sharding: Sharding | None

    @property
    def private(self) -> Path:
        """Where it keeps what is never published: the original and the secrets of a receipt."""
        return self.folder / PRIVATE

    def kept(self) -> dict[str, Any] | None:
        """What its folder says of the original and of the run itself; None before an original was kept."""
        return read_original(self.private)


class Result(Protocol):
    """What a run has come to; `unlearn()` gives one back."""

    model: nn.Module  # the unlearned one; that of the run, or a copy with the adapter merged into the weights

    @property
    def run(self) -> Run: ...

    def save(self, path: str | Path) -> Path: ...
