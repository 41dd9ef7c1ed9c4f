"""Auto (ours): looks at the request, rewinds inside the budget, and says what it did; on request it races candidates first."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import metrics, models
from ..errors import UnlearningError
from ..models.weights import cut_as
from ..tasks.base import Task
from ..tasks.figures import Measurement
from .base import CLASSIFICATION, Method, MethodInfo
from .look import Look, kind_of
from .rewind import BudgetConfig, Rewind, RewindConfig
from .rmu import Rmu, RmuConfig

LOOK = 0.01  # of the budget, for one look at the forget and the control samples
FEWEST_STEPS = 10  # of a candidate, that its score says something
WARMUP = 0.1  # of every phase


@dataclass
class AutoConfig(BudgetConfig):
    """The choice of what to do."""

    method = "auto"

    keeps: list[float] | None = field(
        default=None,
        metadata={"help": "what the candidates keep of the original's weights; default: one, as rewind does"},
    )
    race: float = field(
        default=0.0,
        metadata={"help": "share of the steps in which the candidates are compared; 0: the first one is taken"},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.keeps is not None:
            each = all(isinstance(keep, (int, float)) and 0 <= keep <= 1 for keep in self.keeps)
            self.check("keeps", bool(self.keeps) and each, "one share from 0 to 1 or more")
        self.check("race", 0 <= self.race < 1, "a share from 0 to below 1")
        self.check("race", not self.race or len(self.keeps or ()) > 1, "0, or several keeps to compare")


class Phase(NamedTuple):
    """Steps on one cycle of the learning rate."""

    candidate: int | None  # None: the best of those before
    first: int
    steps: int


class RmuOfAuto(Rmu):
    """What `auto` is on a language model; the evidence is in docs/language-models.md."""

    def prepare(self, context) -> None:
        super().prepare(context)
        self.notes.append(
            "On a language model auto is rmu. On the small model that was measured (docs/language-models.md) forgotten texts could still be "
            "told by their likelihood where a tenth of the authors had to go, and a short training on a few of them brought others back; where "
            "that must not be, retrain."
        )


class RewindOfAuto(Rewind):
    """What `auto` is on a model of several tasks; the evidence is in docs/multitask.md."""

    def prepare(self, context) -> None:
        super().prepare(context)
        self.notes.append("On a model of several tasks auto is rewind, without a look at what is remembered.")


class Auto(Rewind):
    """Look, rewind, say what was done; on a language model `rmu`, on a model of several tasks `rewind`.

    1. The original's confidence on forget and control samples is compared class by class. Where it is shown that they are no
       different, nothing is changed.
    2. The first of `keeps` is the share of the original that a `rewind` keeps. With `race` above 0, each of them is repaired for
       a few steps and scored by

           memory + harm

       and the best goes on from where it is, on one more cycle of the learning rate. memory: the Wasserstein distance of p(true
       class) between forget and control samples of their class; of a class that is forgotten whole, the probability that it
       still gets. harm: what was lost of the original's accuracy on control samples (of other classes). There is no race by
       default: after a few steps the candidates do not stand in the order in which they end.

    Forward passes of the looks are paid from the budget. Only the control half of the unseen samples is read.
    """

    info = MethodInfo(
        name="auto",
        kind="loss",
        summary="looks at the request, changes nothing where nothing is remembered, else rewinds inside the budget; `rmu` on language models, `rewind` on several tasks",
        needs=("forget", "retain", "unseen"),
        applies_to=(*CLASSIFICATION, "causal-lm", "multi-task"),
        cost=6,
        memory="what AdamW computes in a step of the largest tensor: twice as much as that holds",
    )
    config_class = AutoConfig
    config: AutoConfig

    def for_task(self, task: Task) -> Method:
        of_past = {
            name: getattr(self.config, name) for name in ("budget", "original_epochs", "original_learning_rate")
        }
        if task.tasks:
            self._refuse(("keeps", "race"), "a model of several tasks auto is rewind, which compares no candidates")
            return RewindOfAuto(RewindConfig(**of_past, arguments=self.config.arguments))
        if task.right_or_wrong:
            return self
        why = "a language model auto is rmu, which spends no share of the original's training"
        self._refuse((*of_past, "keeps", "race"), why)
        return RmuOfAuto(RmuConfig(arguments=self.config.arguments))

    def _refuse(self, names: Iterable[str], why: str) -> None:
        for name in names:
            if getattr(self.config, name) != getattr(AutoConfig(), name):
                raise UnlearningError(f'{name} is given, and on {why}; leave it out, or use method="rewind".')

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        found = super().arguments(family, width)
        return found | {"num_train_epochs": found["num_train_epochs"] * (1 - self._looks * LOOK)}

    @property
    def _looks(self) -> int:
        """One before the first step, and one at the end of every phase."""
        return (len(self.keeps) if self.config.race else 0) + 2

    def prepare(self, context) -> None:
        self.look = self.look_at(context)
        self.share = self.look.cost_of_look if self.look.nothing else self.look.cost
        self._say_what_is_assumed()
        self._say_what_is_overspent()
        if self.look.nothing:
            self.notes.append(f"Nothing was changed: {self.look.words}")
        self.scores = torch.full((len(self.keeps) + 1,), float("nan"))
        self.kept: dict[str, Tensor] = {}  # the weights of the best candidate
        if not self.look.nothing:
            self._begin(self.phases[0])

    def on_epoch_begin(self, epoch: int) -> bool | None:
        return False if self.look.nothing else None

    @property
    def keeps(self) -> list[float]:
        return self.config.keeps or [self.usual_keep]

    # -- The race

    @property
    def changes_weights(self) -> bool:
        return self.config.race > 0

    def _plan(self, total: int) -> list[Phase]:
        """The phases of a run of `total` steps. Where a candidate would get too few of them, the first one gets all."""
        n = len(self.keeps)
        steps = round(self.config.race * total / n)
        if n == 1 or steps < FEWEST_STEPS:
            return [Phase(0, 0, total)]
        return [Phase(i, i * steps, steps) for i in range(n)] + [Phase(None, n * steps, total - n * steps)]

    def share_of_peak(self, step: int) -> float | None:
        """In a race a warm-up and half a cosine in every phase; without one, what the arguments say."""
        if len(self.phases) == 1:
            return None
        phase = self._phase(step)
        done = (step - phase.first + 1) / phase.steps
        return min(done / WARMUP, 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))

    def _phase(self, step: int) -> Phase:
        return next(phase for phase in reversed(self.phases) if phase.first <= step)

    def on_step_begin(self, step: int) -> None:
        phase = self._phase(step)
        if step == phase.first > 0:
            self._begin(phase)
        super().on_step_begin(step - phase.first)

    def on_step_end(self, step: int) -> bool | None:
        super().on_step_end(step)
        phase = self._phase(step - 1)
        if step == phase.first + phase.steps:
            self._end(phase)

    @torch.no_grad()
    def _begin(self, phase: Phase) -> None:
        context = self.context
        if phase.candidate is None:
            self._load(self.kept)
        else:
            if phase.first:
                context.restore_original()
            self.pull_back(self.keeps[phase.candidate])
        if phase.first:
            context.forget_momentum()

    def _end(self, phase: Phase) -> None:
        last = len(self.scores) - 1
        i = last if phase.candidate is None else phase.candidate
        look = self._look()
        self.scores[i] = self._score(look)
        if len(self.phases) == 1:
            return
        if self.scores[i] > np.nanmin(self.scores):
            if i == last:
                self.notes.append(
                    "The rest of the budget did not help: the weights are those of the best candidate, as it was."
                )
                self._load(self.kept)
        else:
            self.kept = {name: tensor.clone() for name, tensor in self.context.model.state_dict().items()}

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self.context.model.state_dict().items():
            tensor.copy_(weights[name])

    # -- The look

    def look_at(self, context) -> Look:
        """What there is to know, and what would be done, while nothing is changed yet."""
        self.context, past, schedule = context, self.past, context.schedule
        self.classes = context.forget_classes if context.is_class_request else []
        whole = self.whole
        self.samples = max(100, round(3 * LOOK * self.config.budget * whole / 2))
        self.original = self._look()
        self.phases = self._plan(len(schedule))
        forget, control = self.original["forget"], self.original["control"]
        cost_of_look = (len(forget.labels) + len(control.labels)) / 3 / whole  # a forward pass is a third of a step
        classes = len(context.forget_classes) if context.num_labels else 0
        family = models.architecture_family(context.model), models.width(context.model)
        return Look(
            kind=kind_of(context.is_class_request, classes, context.num_labels, past.n_forget),
            n_forget=past.n_forget,
            n_retain=past.n_retain,
            classes=classes,
            num_labels=context.num_labels,
            memory=metrics.matched_auc(
                forget.signals["margin"], forget.labels, control.signals["margin"], control.labels
            ),
            base=self.base,
            original_epochs=self.original_epochs,
            original_learning_rate=self.original_learning_rate(*family),
            assumed=self.assumed,
            keeps=tuple(self.keeps[phase.candidate] for phase in self.phases if phase.candidate is not None),
            epochs=schedule.progress(len(schedule)),
            learning_rate=context.peak_learning_rate,
            batch_size=schedule.batch_size,
            budget=self.config.budget,
            cost=schedule.samples() / whole + (1 + len(self.phases)) * cost_of_look,
            cost_of_look=cost_of_look,
        )

    def _look(self) -> dict[str, Measurement]:
        return {split: self.context.measure(split, self.samples) for split in ("forget", "control")}

    def _score(self, look: dict[str, Measurement]) -> float:
        forget, lost = look["forget"], self._lost(look)
        harm = lost.mean() if len(lost) else 0.0
        if self.classes:
            means = forget.class_means(np.intersect1d(self.classes, forget.labels))  # of those that the look has met
            memory = float(means[:, self.classes].sum(axis=1).mean())
        else:
            p = [np.exp(-look[split].signals["loss"]) for split in ("forget", "control")]
            labels = [look[split].labels for split in ("forget", "control")]
            if not np.isin(labels[0], labels[1]).any():
                labels = [np.zeros_like(one) for one in labels]  # none of the same class: all count alike
            memory = metrics.memory(p[0], labels[0], p[1], labels[1])
        return memory + max(0.0, float(harm))

    def _lost(self, look: dict[str, Measurement]) -> np.ndarray:
        """Of each control sample of the classes that stay: by how much the original was more often right."""
        control, before = look["control"], self.original["control"]
        others = ~np.isin(control.labels, self.classes)
        return before.signals["correct"][others] - control.signals["correct"][others]

    @property
    def report(self) -> dict[str, Any]:
        scores = [None if np.isnan(score) else round(score, 4) for score in self.scores.tolist()]
        candidates = dict(zip(map(str, self.keeps), scores[:-1], strict=True))
        return super().report | {"candidates": candidates, "score": scores[-1]}

    def state_dict(self) -> dict[str, Tensor]:
        return {"scores": self.scores} | {f"kept.{name}": tensor for name, tensor in self.kept.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.scores = state["scores"]
        kept = {name.removeprefix("kept."): tensor for name, tensor in state.items() if name != "scores"}
        like = self.context.model.state_dict()
        self.kept = {name: cut_as(tensor, like[name]) for name, tensor in kept.items()}
