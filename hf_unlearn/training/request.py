"""A request: what must go, what must stay, what was never seen. Checked whole, before any compute."""

import logging
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset
from transformers import PreTrainedConfig

from ..data.overlap import check_overlaps
from ..data.source import Source
from ..data.splits import split_unseen
from ..errors import UnlearningError
from ..methods import Method
from ..tasks.checks import number_classes
from ..tasks.multitask import Tasks, request_mask
from .arguments import UnlearningArguments

logger = logging.getLogger(__name__)

WHAT_IS_MISSING = {
    "forget": "the samples to forget (forget=)",
    "retain": "samples to keep (retain=)",
    "unseen": "samples the model was never trained on (unseen=)",
    "base_model": 'what the original was trained from (base_model=: a Hub id, a model, or "scratch")',
}


class Request:
    """The sets of one request.

    Attributes:
        sources: `forget`, `retain`, `unseen` and `test`, those of them that were given.
        indices: what is measured: split -> (source, indices), for `forget`, `retain` (at most `retain_eval_size`), and
            the two halves of unseen: `control`, which may steer the method, and `evidence`, which is only measured.
        forget_classes: the labels in the forget set; of a language model, whose samples have none, the 0 of them all.
        is_class: whether whole classes are forgotten: none of them is among the retained samples.
        is_split: whether the halves of unseen are measured, by `args.split_seed`; with a test set, all of unseen may steer.

    Of a multi-task model also:
        mask: which label of which forget sample must go: bool [forget samples, tasks]; None for other models.
        counted: for each source, the labels that are measured: bool [samples, tasks].
        kept: forget sample -> its place in the source `retain`, if it keeps some label.
        sizes: 1 where a sample has a label to train a task on, by `sample_index`, else 0.
    """

    def __init__(
        self,
        datasets: dict[str, Any],
        method: Method,
        config: PreTrainedConfig,
        args: UnlearningArguments,
        overlap: str = "error",
        task: str = "image-classification",
        tasks: Tasks | None = None,
        asked: Any = None,
    ):
        self.mask: np.ndarray | None = None
        self.kept: dict[int, int] = {}
        self.sources = _open(datasets, args, task)
        for source in self.sources.values():
            source.task_columns = tasks.names if tasks else []
        number_classes(self.sources.values(), config)
        self.forget, self.retain = self.sources["forget"], self.sources.get("retain")
        self.forget_classes: list[int] = sorted(set(self.forget.labels.tolist()))
        if overlap not in ("error", "allow"):
            raise UnlearningError(f'overlap is {overlap!r}; expected "error" or "allow".')
        if overlap == "error":
            check_overlaps(self.sources)
        if tasks is not None:
            self._take_tasks(tasks, asked, args)
        elif asked is not None:
            raise UnlearningError(
                f"tasks is given, and the model is for {task}; expected a multi-task model, or no tasks."
            )
        self.is_split = "unseen" in self.sources and "test" not in self.sources
        self.indices = self._measured(args)
        if tasks is not None:
            self._check_control(tasks.names)
        self.is_class = self._is_class(method)

    def _take_tasks(self, tasks: Tasks, asked: Any, args: UnlearningArguments) -> None:
        """Which labels go and which stay. Those that a forget sample keeps stand behind the retained samples."""
        self.mask = request_mask(asked, tasks.names, len(self.forget))
        labelled = {name: tasks.labelled(source) for name, source in self.sources.items()}
        goes, stays = labelled["forget"] & self.mask, labelled["forget"] & ~self.mask
        for name, found, what in (
            ("forget", goes, "label on the tasks it is to forget"),
            ("retain", labelled["retain"], "label on any task"),
        ):
            if len(idle := np.flatnonzero(~found.any(axis=1))):
                raise UnlearningError(
                    f"{len(idle)} of the {len(found)} samples of {name} have no {what} (the first is row {idle[0]}); remove "
                    "them, or give them one."
                )
        targets = self.mask.any(axis=0)
        self.counted = labelled | {"forget": np.where(targets, goes, labelled["forget"])}
        kept = np.flatnonzero(stays.any(axis=1))
        self.kept = {int(row): len(self.retain) + i for i, row in enumerate(kept)}
        self.sizes = np.concatenate([goes, labelled["retain"], stays[kept]]).astype(np.int64)
        if len(kept):
            both = ConcatDataset([self.retain.dataset, Subset(self.forget.dataset, kept.tolist())])
            self.sources["retain"] = Source(both, "retain", args.columns, task="multi-task")
            self.sources["retain"].task_columns = tasks.names

    def _check_control(self, names: list[str]) -> None:
        """A task is forgotten when it scores as on unseen samples, which takes some with a label on it."""
        if "control" not in self.indices:
            return
        source, control = self.indices["control"]
        asked = self.mask.any(axis=0) & self.counted["forget"].any(axis=0)
        if len(absent := np.flatnonzero(asked & ~self.counted[source][control].any(axis=0))):
            raise UnlearningError(
                f"The unseen samples that may steer have no label on the task {names[absent[0]]!r}, and what is forgotten of it "
                "is held against them; give some of unseen labels on it (half of them steer, unless test is given)."
            )

    def _measured(self, args: UnlearningArguments) -> dict[str, tuple[str, np.ndarray]]:
        sources = self.sources
        indices = {"forget": ("forget", np.arange(len(self.forget)))}
        if self.retain:
            size = min(len(self.retain), args.retain_eval_size)
            rng = np.random.default_rng([args.seed, 3])
            chosen = range(size) if self.retain.is_stream else rng.choice(len(self.retain), size, replace=False)
            indices["retain"] = ("retain", np.sort(chosen))
        if "test" in sources:
            indices["evidence"] = ("test", np.arange(len(sources["test"])))
        if self.is_split:
            control, evidence = split_unseen(sources["unseen"].labels, args.split_seed)
            indices["control"], indices["evidence"] = ("unseen", control), ("unseen", evidence)
        elif "unseen" in sources:
            indices["control"] = ("unseen", np.arange(len(sources["unseen"])))
        return {split: value for split, value in indices.items() if len(value[1])}

    def _is_class(self, method: Method) -> bool:
        if self.mask is not None:
            return getattr(method.config, "class_unlearning", False)
        asked = getattr(method.config, "class_mode", None)
        if self.retain is None or self.retain.is_stream:
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
        if self.mask is not None:
            return "a multi-task model has a score for each task"
        if missing := [
            name for name, split in (("retain", "retain"), ("unseen", "control")) if split not in self.indices
        ]:
            return f"no {missing[0]} samples were given"
        name, control = self.indices["control"]
        absent = np.setdiff1d(self.forget_classes, self.sources[name].labels[control])
        if len(absent) and not self.is_class:
            return f"the control half of the unseen samples has none of the forget set's class {absent[0]}"
        return None


def check_needs(method: Method, given: dict[str, Any]) -> None:
    """Refuse a method that is not given what its datasheet says it needs, and sets without samples."""
    for name in method.info.needs:
        if given.get(name) is None:
            raise UnlearningError(f"{method.info.name} needs {WHAT_IS_MISSING[name]}, which was not given.")
    for name, dataset in given.items():
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            raise UnlearningError(f"The {name} set is empty; expected at least one sample.")


def _open(datasets: dict[str, Any], args: UnlearningArguments, task: str) -> dict[str, Source]:
    sources = {}
    for name, dataset in datasets.items():
        if dataset is None:
            continue
        source = Source(dataset, name, args.columns, args.retain_size, task)
        if source.is_stream and name != "retain":
            raise UnlearningError(f"{name} is a stream; only the retained set may be one. Make it a datasets.Dataset.")
        if source.is_stream and not source.has_classes:
            what = "the tokens of a language model's samples" if task == "causal-lm" else "the labels of each task"
            raise UnlearningError(
                f"The retained set is a stream, and {what} are counted before the first step; make it a datasets.Dataset."
            )
        if source.is_stream and args.retain_size is None:
            raise UnlearningError("The retained set is a stream; say how many samples it has with retain_size=.")
        if source.is_stream and (type(args.retain_size) is not int or args.retain_size < 1):
            raise UnlearningError(
                f"retain_size is {args.retain_size!r}; expected the number of samples in the stream."
            )
        sources[name] = source
    size = len(sources["retain"]) if "retain" in sources else 0
    if args.retain_size not in (None, size):
        raise UnlearningError(
            f"retain_size is {args.retain_size}, and there are {size} retained samples; it says how long a stream is: leave it out."
        )
    return sources
