"""A request: what must go, what must stay, what was never seen. Checked whole, before any compute."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedConfig

from ..data.overlap import check_overlaps
from ..data.source import Source
from ..data.splits import split_unseen
from ..data.types import Data, ProcessingClass
from ..errors import UnlearningError
from ..methods import Method
from ..tasks.base import Task
from ..tasks.checks import number_classes
from .arguments import UnlearningArguments
from .pieces import in_pieces

logger = logging.getLogger(__name__)

WHAT_IS_MISSING = {
    "forget": "the samples to forget (forget=)",
    "retain": "samples to keep (retain=)",
    "unseen": "samples the model was never trained on (unseen=)",
    "base_model": 'what the original was trained from (base_model=: a Hub id, a model, or "scratch")',
}


# The tasks of which something must go: their names, or which tasks of which forget samples.
AskedTasks: TypeAlias = Sequence[str] | Mapping[str, Sequence[bool] | np.ndarray] | pd.DataFrame | np.ndarray


class Request:
    """The sets of one request.

    Attributes:
        sources: `forget`, `retain`, `unseen` and `test`, those of them that were given.
        indices: what is measured: split -> (source, indices), for `forget`, `retain` (at most `retain_eval_size`), and
            the two halves of unseen: `control`, which may steer the method, and `evidence`, which is only measured.
        forget_classes: the labels in the forget set; of a language model, whose samples have none, the 0 of them all.
        is_class: whether whole classes are forgotten: none of them is among the retained samples.
        is_split: whether the halves of unseen are measured, by `args.split_seed`; with a test set, all of unseen may steer.

    Of a multi-task model also (see `Supervision`):
        mask: which label of which forget sample must go: bool [forget samples, tasks]; None for other models.
        counted: for each source, the labels that are measured: bool [samples, tasks].
        kept: forget sample -> its place in the source `retain`, if it keeps some label.
        targets: the tasks of which something must be forgotten.
        sizes: 1 where a sample has a label to train a task on, by `sample_index`, else 0.
    """

    def __init__(
        self,
        datasets: Mapping[str, Data | None],
        method: Method,
        task: Task,
        args: UnlearningArguments,
        overlap: str = "error",
        asked: AskedTasks | None = None,
        processing_class: ProcessingClass | None = None,
    ):
        self.task = task
        self.sources = _open(datasets, args, task, processing_class)
        number_classes(self.sources.values(), cast(PreTrainedConfig, task.config))  # which a classifier has
        self.forget, self.retain = self.sources["forget"], self.sources.get("retain")
        self.forget_classes: list[int] = sorted(set(self.forget.labels.tolist()))
        if overlap not in ("error", "allow"):
            raise UnlearningError(f'overlap is {overlap!r}; expected "error" or "allow".')
        if overlap == "error":
            _check_overlaps_once(self.sources)
        self.supervision = task.supervision(self.sources, asked)
        self.mask, self.counted, self.kept = (getattr(self.supervision, of) for of in ("mask", "counted", "kept"))
        self.sizes, self.targets = self.supervision.sizes, list(self.supervision.targets)
        if self.supervision.retain is not None:
            self.sources["retain"] = self.supervision.retain
        self.is_split = "unseen" in self.sources and "test" not in self.sources
        self.indices = self._measured(args)
        if "control" in self.indices:
            task.check_control(self.supervision, *self.indices["control"])
        self.is_class = self._is_class(method)
        if method.whole_classes and not self.is_class:
            raise UnlearningError(
                f"{method.info.name} forgets whole classes, and the request is for single samples, or the retained set is a "
                "stream whose labels are not known; pass all samples of the classes to forget and none of them as retained, or, for "
                "a part of a class or single samples, take rewind, local_teacher or auto."
            )

    @property
    def has_stream(self) -> bool:
        return any(source.is_stream for source in self.sources.values())

    def _measured(self, args: UnlearningArguments) -> dict[str, tuple[str, np.ndarray]]:
        sources = self.sources
        indices = {"forget": ("forget", np.arange(len(self.forget)))}
        if self.retain:
            size = min(len(self.retain), args.retain_eval_size)
            rng = np.random.default_rng([args.seed, 3])
            drawn = np.sort(rng.choice(len(self.retain), size, replace=False))
            indices["retain"] = ("retain", np.asarray(self.retain.first(size)) if self.retain.is_stream else drawn)
        if "test" in sources:
            indices["evidence"] = ("test", np.arange(len(sources["test"])))
        if self.is_split:
            control, evidence = split_unseen(sources["unseen"].labels, args.split_seed)
            indices["control"], indices["evidence"] = ("unseen", control), ("unseen", evidence)
        elif "unseen" in sources:
            indices["control"] = ("unseen", np.arange(len(sources["unseen"])))
        return {split: value for split, value in indices.items() if len(value[1])}

    def _is_class(self, method: Method) -> bool:
        asked = method.class_request
        if not self.task.has_classes or self.retain is None or self.retain.is_stream:
            return bool(asked)
        whole = not np.isin(self.forget_classes, self.retain.labels).any()
        if asked and not whole:
            raise UnlearningError(
                f"class_mode is on, and there are retained samples of label {self.forget_classes[0]} or another one in the "
                "forget set; expected whole classes, or class_mode off."
            )
        if whole and asked is False:
            logger.warning(
                f"The forget set is all there is of label {', '.join(map(str, self.forget_classes))}: "
                f"{method.info.name} has a class_mode for that, which is off."
            )
        return whole

    def why_no_gap(self) -> str | None:
        """Why the metric that steers by default cannot be had, if so."""
        if self.task.why_no_gap:
            return self.task.why_no_gap
        if missing := [
            name for name, split in (("retain", "retain"), ("unseen", "control")) if split not in self.indices
        ]:
            return f"no {missing[0]} samples were given"
        name, control = self.indices["control"]
        absent = np.setdiff1d(self.forget_classes, self.sources[name].labels[control])
        if len(absent) and not self.is_class:
            return f"the control half of the unseen samples has none of the forget set's class {absent[0]}"
        return None


def check_needs(method: Method, given: Mapping[str, Any]) -> None:
    """Refuse a method that is not given what its datasheet says it needs, and sets without samples."""
    for name in method.info.needs:
        if given.get(name) is None:
            raise UnlearningError(f"{method.info.name} needs {WHAT_IS_MISSING[name]}, which was not given.")
    for name, dataset in given.items():
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            whole = " (if all that the model was trained on must go, what is left is the model from before that)"
            raise UnlearningError(
                f"The {name} set is empty; expected at least one sample{whole if name == 'retain' else ''}."
            )


def _check_overlaps_once(sources: Mapping[str, Source]) -> None:
    """One process of each machine looks, and all refuse what one of them has found."""
    error = None
    if PartialState().is_local_main_process:
        try:
            check_overlaps(sources)
        except UnlearningError as found:
            error = found
    messages = [message for message in gather_object([error and str(error)]) if message]
    if messages:
        raise error or UnlearningError(messages[0])


def _open(
    datasets: Mapping[str, Data | None],
    args: UnlearningArguments,
    task: Task,
    processing_class: ProcessingClass | None,
) -> dict[str, Source]:
    sources = {}
    for name, dataset in datasets.items():
        if dataset is None:
            continue
        source = Source(dataset, name, args.columns, args.retain_size, task.layout)
        source = in_pieces(source, task, processing_class, args.max_length, args.stride)
        if source.is_stream and name != "retain":
            raise UnlearningError(f"{name} is a stream; only the retained set may be one. Make it a datasets.Dataset.")
        if source.is_stream and task.counted and not task.counts_in_steps:
            raise UnlearningError(
                f"The retained set is a stream, and {task.counted} are counted before the first step; make it a "
                "datasets.Dataset."
            )
        if source.is_stream and getattr(dataset, "_distributed", None) is not None:
            raise UnlearningError(
                "The retained set is one process's part of a stream (split_dataset_by_node); pass the whole stream, which is "
                "shared out here."
            )
        if source.is_stream and args.retain_size is None:
            raise UnlearningError("The retained set is a stream; say how many samples it has with retain_size=.")
        if source.is_stream and (type(args.retain_size) is not int or args.retain_size < 1):
            raise UnlearningError(
                f"retain_size is {args.retain_size!r}; expected the number of samples in the stream."
            )
        sources[name] = source
    if args.stride is not None and "unseen" in sources and "test" not in sources:
        raise UnlearningError(
            "unseen would be halved by pieces, so that both halves had pieces of one text; with stride, pass other texts as test too."
        )
    size = len(sources["retain"]) if "retain" in sources else 0
    if args.retain_size not in (None, size):
        raise UnlearningError(
            f"retain_size is {args.retain_size}, and there are {size} retained samples; it says how long a stream is: leave it out."
        )
    return sources
