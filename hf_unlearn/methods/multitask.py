"""Interference-aware multi-task unlearning (2026): forget some tasks of an instance, or all, and disturb nothing else.

The paper's exact formulas are not public. Its two parts are here, task-aware projection and orthogonality to retained
instances, joined in one projection of our design.
"""

import logging
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from ..tasks.base import Task
from ..tasks.multitask_evaluation import TaskMeasurement
from ..tasks.several import Losses, Tasks
from .ascent import AscentConfig, ascended
from .base import Method, MethodInfo, Paper
from .gradients import Gradient, blocks, blockwise, by_module, clip_, dots, orthonormal, project, strongest

logger = logging.getLogger(__name__)


def project_out(gradient: Tensor, protected: Tensor) -> Tensor:
    """(I − BᵀB)g, with B an orthonormal basis of the span of the rows of `protected`.

    >>> project_out(torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 3.0]]))
    tensor([1., 0.])
    """
    basis = orthonormal(protected.view(-1, gradient.numel()))
    return project(gradient.flatten().to(basis.dtype), basis).view_as(gradient)


def project_within(gradient: Tensor, own: Tensor, protected: Tensor) -> Tensor:
    """The part of g in the span of `own` that is orthogonal to `protected`: V(I − A⁺A)Vᵀg with A = RV, for rows V and R.

    It is 0 where the protected rows leave no direction of V free.
    """
    coordinates = own @ gradient
    return project(coordinates, orthonormal(protected @ own.T)) @ own if len(own) else torch.zeros_like(gradient)


def objective(losses: Tensor, kind: str | None, tau: float, of_classes: str) -> Tensor:
    """What forgetting ascends on, from the plain losses ℓ of the samples.

    A class label: as `ascended` has it. Any other label: −max(0, τ − ℓ), which ends at τ, the mean loss of the original on
    unseen samples.
    """
    return ascended(losses, of_classes) if kind == "classification" else -(tau - losses).clamp(min=0)


@dataclass
class MultitaskConfig(AscentConfig):
    """Interference-aware multi-task unlearning. All values are ours: the paper's are not public."""

    method = "multitask"

    mode: Literal["null", "within"] = field(
        default="null",
        metadata={
            "help": "null: leave out what touches others; within: stay inside the target task's own subspace too"
        },
    )
    energy: float = field(
        default=0.95, metadata={"help": "share ε of a task's gradients that its basis holds; 0: none"}
    )
    batches: int = field(default=24, metadata={"help": "gradients of a task that its basis is made of"})
    basis_batch_size: int = field(default=16, metadata={"help": "samples of each of them"})
    refresh: int = field(default=5, metadata={"help": "steps between new bases, and between looks at the forget set"})
    look: int = field(
        default=500, metadata={"help": "forget samples of such a look; all, where it says that a task may rest"}
    )
    samples: int = field(
        default=8, metadata={"help": "retained instances of a step whose own gradients are protected; 0: none"}
    )
    alpha: float = field(default=0.5, metadata={"help": "weight of the retained side in the update"})
    block: Literal["module", "tensor", "global"] = field(
        default="module",
        metadata={"help": "what is projected by itself: each module, each tensor, or all that every task uses"},
    )
    protect: Literal["all", "kept"] = field(
        default="all",
        metadata={"help": "tasks to protect from a target: all others, or only those that are no target"},
    )
    class_unlearning: bool = field(
        default=False,
        metadata={"help": "a whole class is forgotten: the aim is a score of 0, not that of unseen samples"},
    )
    rank_guard: float = field(
        default=0.5, metadata={"help": "blocks of which more than this share is protected are not moved by forgetting"}
    )
    restore: float = field(
        default=0.0, metadata={"help": "make up for the length a projection took, by at most this factor; 0: do not"}
    )
    clip: float = field(default=1.0, metadata={"help": "longest update, in units of the learning rate; 0: any"})

    def __post_init__(self):
        super().__post_init__()
        self.check("energy", 0 <= self.energy <= 1, "a share in [0, 1]")
        for name, least in (("batches", 1), ("basis_batch_size", 1), ("refresh", 1), ("look", 1), ("samples", 0)):
            self.check(name, getattr(self, name) >= least, f"at least {least}")
        self.check("alpha", 0 <= self.alpha < 1, "a weight in [0, 1)")
        self.check("rank_guard", 0 < self.rank_guard <= 1, "a share in (0, 1]")
        self.check("restore", self.restore == 0 or self.restore >= 1, "0, or a factor of at least 1")
        self.check("clip", self.clip >= 0, "0 or more")


class Multitask(Method):
    """Each step, for every target task t that is not yet forgotten,

        ĝ_t = (I − BᵀB) g_t,   B = orth([Q_t, R])        in every block of weights
        θ ← θ + η [(1 − α) Σ_t w_t ĝ_t − α ḡ_r],         w_t = median_s ‖g_s‖ / ‖g_t‖

    with g_t the gradient of the forget objective; Q_t the strongest gradient directions of the other tasks, taken anew
    every few steps; R the gradients of single retained instances and of the retained batch; ḡ_r the gradient of the
    retained side: all supervision that the request does not name, that of a forget instance on its kept tasks included.
    A task rests while its score on what it must forget is not above the original's score on unseen samples, and the run
    ends when all of them rest.

    Args:
        config: a `MultitaskConfig`.
        losses: for a model of your own, `(model, batch) -> {task: losses}` or `{task: (losses, scores)}`, of each sample, a
            higher score being better; `batch.inputs` is for the model and `batch.labels` maps tasks to labels. Losses must
            be finite, with finite gradients, where a label is missing (NaN).
        tasks: with `losses`, the tasks: the names of their label columns, or a dictionary of names and kinds. The losses
            of kind "classification" are cross-entropies, on which forgetting ascends; those of any other kind are pushed
            up to what the original has on unseen samples.
    """

    info = MethodInfo(
        name="multitask",
        kind="gradient",
        summary="forgets an instance on some tasks or on all, orthogonally to the other tasks and to retained instances",
        needs=("forget", "retain", "unseen"),
        applies_to=("multi-task",),
        cost=365,
        paper=Paper(
            title="Interference-Aware Multi-Task Unlearning",
            arxiv="2605.19042",
            bibtex="@misc{huang2026interference,\n  title={Interference-Aware Multi-Task Unlearning},\n  author={Huang, "
            "Ying-Hua and Fang, Rui and Chen, Hsi-Wen and Chen, Ming-Syan},\n  year={2026},\n  eprint={2605.19042}\n}",
        ),
    )
    config_class = MultitaskConfig
    config: MultitaskConfig
    plain_sgd = single_samples = True

    def __init__(
        self,
        config: MultitaskConfig | None = None,
        losses: Losses | None = None,
        tasks: list[str] | dict[str, str] | None = None,
    ):
        super().__init__(config)
        self.own_losses, self.own_tasks = losses, tasks

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 0.01,
            "num_train_epochs": 50,
            "per_device_train_batch_size": 32,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "weight_decay": 0.0,
            "max_grad_norm": 0.0,
            "freeze_batchnorm": True,
        }

    @property
    def class_request(self) -> bool:
        return self.config.class_unlearning

    def learn_task(self, task: Task) -> None:
        self._retain_loss = task.loss

    def epochs(self, epochs: int) -> list[str]:
        return ["paired"] * epochs

    def prepare(self, context) -> None:
        self.context, self.targets, config = context, context.targets, self.config
        self.tasks, self.objective = cast(Tasks, context.tasks), config.objective_of(context.task)
        names = self.tasks.names
        self.column = {name: i for i, name in enumerate(names)}
        self.kept_rows = set(context.kept.values())
        self.others = {
            t: [k for k in names if k != t and (config.protect == "all" or k not in self.targets)]
            for t in self.targets
        }
        weights = context.parameter_names
        self.groups = blocks(weights, config.block)
        self.block_names = [
            weights[group[0]].rpartition(".")[0] if len(group) > 1 else weights[group[0]] for group in self.groups
        ]
        if config.block == "global":
            self.groups, self.block_names = self._shared_and_heads(weights)
        unseen = cast(TaskMeasurement, context.measure("control"))
        self.tau = {t: unseen.losses[t] for t in self.targets}
        self.aim = {t: 0.0 if config.class_unlearning else unseen.scores[t] for t in self.targets}
        self.active = list(self.targets)
        self.bases: dict[str, list[Tensor]] = {}  # Q_t of each target, by block
        self.own: dict[str, list[Tensor]] = {}  # V_t, in mode "within"
        self.rows: list[Tensor] = []  # gradients of single instances, by block
        self.kept: dict[str, dict[str, float]] = {}  # ‖ĝ_t‖/‖g_t‖ of each target and block, at the last step

    def _shared_and_heads(self, weights: list[str]) -> tuple[list[list[int]], list[str]]:
        """What every task uses as one block; what only some do, module by module."""
        used = []
        for task in self.tasks.names:
            source = "retain" if len(self.context.supervised("retain", task)) else "forget"
            sample = (source, int(self.context.supervised(source, task)[0]))
            used.append(self.context.uses(self._task_loss(task), sample))
        shared = [i for i in range(len(weights)) if all(part[i] for part in used)]
        others = [i for i in range(len(weights)) if i not in set(shared)]
        modules = [[others[i] for i in group] for group in by_module([weights[i] for i in others])]
        return [shared, *modules], ["shared", *(weights[group[0]].rpartition(".")[0] for group in modules)]

    def on_epoch_begin(self, epoch: int) -> bool | None:
        return self._still_active() if epoch == 0 else None

    def on_step_begin(self, step: int) -> None:
        if step % self.config.refresh == 0:
            self._take_bases(step)
        self._take_instances()

    def on_step_end(self, step: int) -> bool | None:
        is_last = step == len(self.context.schedule)
        going_on = self._still_active() if is_last or step % self.config.refresh == 0 else None
        if is_last and going_on:
            scores = cast(TaskMeasurement, self.context.measure("forget")).scores
            found = "; ".join(f"{t} is at {scores[t]:.3g}, and the aim is {self.aim[t]:.3g}" for t in self.active)
            self.notes.append(
                f"multitask has used up its {step} steps, and not all is forgotten that was asked (scores on forget samples: "
                f"{found}). Raise learning_rate, or num_train_epochs and, where it is set, max_steps."
            )
        return going_on

    def _still_active(self) -> bool:
        """Only tasks that are not forgotten, or come back, take part; whether there is any."""
        forget = cast(TaskMeasurement, self.context.measure("forget", at_most=self.config.look))
        if not all(forget.scores[t] > self.aim[t] for t in self.active):  # of a task none of them may have a label
            forget = cast(TaskMeasurement, self.context.measure("forget"))
        self.context.log({f"multitask_forget_{t}": forget.scores[t] for t in self.targets})
        self.active = [t for t in self.targets if forget.scores[t] > self.aim[t]]
        return bool(self.active)

    # ---- losses

    def losses(self, model, batch):
        for t in self.active:
            yield f"forget_{t}", self._forget_loss(t)(model, batch["forget"])
        yield "retain", self._retain_loss(model, batch["retain"])

    def _task_loss(self, task: str) -> Callable:
        return lambda model, part: part.mean(self.tasks.losses(model, part, [task])[task], self.column[task])

    def _forget_loss(self, task: str) -> Callable:
        def loss(model, part) -> Tensor:
            losses = self.tasks.losses(model, part, [task])[task]
            ascended = objective(losses, self.tasks.kinds[task], self.tau[task], self.objective)
            return part.mean(ascended, self.column[task])

        return loss

    # ---- bases

    def _take_bases(self, step: int) -> None:
        """Q_t: what the gradients of the protected tasks span, on supervision that stays."""
        rng = np.random.default_rng([self.context.seed, 11, step])
        basis = {}
        for k in sorted({k for t in self.active for k in self.others[t]}) if self.config.energy else ():
            if batches := self._basis_batches(k, rng):
                basis[k] = [strongest(block, self.config.energy) for block in self._rows(self._task_loss(k), batches)]
        self.bases, self.own = {}, {}
        for t in self.active:
            spans = [basis[k] for k in self.others[t] if k in basis]
            self.bases[t] = [orthonormal(torch.cat(blocks)).contiguous() for blocks in zip(*spans, strict=True)]
            if self.config.mode == "within":
                rows = self._rows(self._forget_loss(t), self._forget_batches(t, rng))
                found = [strongest(block, self.config.energy) for block in rows]
                protected = self.bases[t] or [v[:0] for v in found]
                self.own[t] = [orthonormal(v, q).contiguous() for v, q in zip(found, protected, strict=True)]

    def _basis_batches(self, task: str, rng: np.random.Generator) -> list[list[tuple[str, int]]]:
        """At least a third of the batches are forget instances, where they keep their labels on this task."""
        supervised = self.context.supervised("retain", task)
        is_kept = np.isin(supervised, [*self.kept_rows])
        retained, kept = supervised[~is_kept], supervised[is_kept]
        of_kept = (math.ceil(self.config.batches / 3) if len(retained) else self.config.batches) if len(kept) else 0
        pools = [retained] * (self.config.batches - of_kept) + [kept] * of_kept
        return [self._draw("retain", pool, rng) for pool in pools if len(pool)]

    def _forget_batches(self, task: str, rng: np.random.Generator) -> list[list[tuple[str, int]]]:
        pool = self.context.supervised("forget", task)
        return [self._draw("forget", pool, rng) for _ in range(self.config.batches)]

    def _draw(self, source: str, pool: np.ndarray, rng: np.random.Generator) -> list[tuple[str, int]]:
        return [
            (source, int(i)) for i in rng.choice(pool, min(self.config.basis_batch_size, len(pool)), replace=False)
        ]

    def _take_instances(self) -> None:
        """Gradients of single retained instances, and of forget instances on the tasks that they keep."""
        count = self.config.samples
        kept = self.context.kept
        retained = [s for s in self.context.step_samples("retain") if s[1] not in self.kept_rows][:count]
        forget = [("retain", kept[i]) for _, i in self.context.step_samples("forget") if i in kept]
        samples = retained + [*dict.fromkeys(forget)][:count]
        self.rows = self._rows(self._retain_loss, [[sample] for sample in samples]) if count else []

    def _rows(self, loss: Callable, groups: list[list[tuple[str, int]]]) -> list[Tensor]:
        """For each block of weights, the gradients of all groups of samples as rows."""
        columns = [blockwise(gradient, self.groups) for gradient in self.context.gradients(loss, groups)]
        return [torch.stack(rows) for rows in zip(*columns, strict=True)]

    # ---- the update

    def combine(self, gradients: dict[str, Gradient]) -> Gradient:
        config, retain = self.config, gradients["retain"]
        lengths = {t: dots(g, g).sum().sqrt().item() for t in self.active for g in [gradients[f"forget_{t}"]]}
        typical = statistics.median([length for length in lengths.values() if length > 0] or [0.0])
        update = [config.alpha * g for g in retain]
        for t in list(self.active):
            g = gradients.pop(f"forget_{t}")
            if lengths[t] == 0:  # nothing of this step is to be forgotten on t, or it already is
                continue
            free = self._free(t, g, retain)
            kept = dots(free, free).sum().sqrt().item() / lengths[t]
            self.context.log_step({f"multitask_kept_{t}": torch.tensor(kept)})
            self._note(t, kept)
            if kept < 1e-6:
                continue
            weight = typical / lengths[t] * (min(config.restore, 1 / kept) if config.restore else 1.0)
            for total, part in zip(update, free, strict=True):
                total -= (1 - config.alpha) * weight * part
        if config.clip:
            clip_(update, config.clip)
        return update

    def _free(self, task: str, gradient: Gradient, retain: Gradient) -> Gradient:
        """ĝ_t: what is left of g_t in each block when all that is protected there is taken out of it."""
        vectors, means = blockwise(gradient, self.groups), blockwise(retain, self.groups)
        free, self.kept[task] = [torch.zeros_like(g) for g in gradient], {}
        for i, (group, g) in enumerate(zip(self.groups, vectors, strict=True)):
            g = g.to(torch.promote_types(g.dtype, torch.float32))
            length = g.norm().item()
            if length == 0:
                continue
            q = self.bases[task][i] if self.bases[task] else g.new_zeros(0, len(g))
            rows = torch.cat([self.rows[i], means[i][None]]).to(g.dtype) if self.rows else g.new_zeros(0, len(g))
            basis = torch.cat([q, orthonormal(rows, q)])
            if len(basis) > self.config.rank_guard * len(g):
                self.kept[task][self.block_names[i]] = 0.0
                continue
            if self.config.mode == "within":
                left = project_within(g, self.own[task][i], orthonormal(rows))
            else:
                left = project(g, basis)
            self.kept[task][self.block_names[i]] = left.norm().item() / length
            for j, part in zip(group, left.split([gradient[j].numel() for j in group]), strict=True):
                free[j] = part.view_as(gradient[j])
        return free

    def _note(self, task: str, kept: float) -> None:
        if kept >= 0.05 or any(note.startswith(f"{task}: ") for note in self.notes):
            return
        how = "infeasible" if kept < 1e-6 else "hardly feasible"
        self.notes.append(
            f"{task}: forgetting is {how} under this protection: {kept:.2g} of its gradient is left (the other tasks, or "
            "single retained instances, need the same weights). Lower energy, samples or batches, or protect less."
        )
        logger.warning(self.notes[-1])

    @property
    def report(self) -> dict[str, Any]:
        """What is left of each target's gradient in each block (0 where the rank guard holds it), at the last step."""
        return {"kept": self.kept, "still_active": self.active}

    def state_dict(self) -> dict[str, Tensor]:
        state = {"active": torch.tensor([t in self.active for t in self.targets])}
        for name, bases in (("bases", self.bases), ("own", self.own)):
            state |= {f"{name}.{t}.{i}": block for t, blocks in bases.items() for i, block in enumerate(blocks)}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.active = [t for t, on in zip(self.targets, state["active"].tolist(), strict=True) if on]
        device = self.context.parameters[0].device
        for name in ("bases", "own"):
            found = {
                t: [state[f"{name}.{t}.{i}"].to(device) for i in range(len(self.groups)) if f"{name}.{t}.{i}" in state]
                for t in self.targets
            }
            setattr(self, name, found)
