"""`unlearn()`: from a model and the data that must go to a result with evidence."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

from peft import PeftConfig
from torch import nn
from transformers import TrainerCallback

from .audits.audit import audit_run
from .audits.checks import check_alike
from .audits.closeness import Closeness, closeness
from .audits.hardness import HardnessReport, hardness
from .audits.opening import open_model, without_adapter
from .audits.report import AuditReport
from .data.samples import seeded
from .data.types import Data, DataCollator, ProcessingClass
from .errors import UnlearningError
from .hub.publish import ReleaseOptions, publish
from .hub.repository import Parent
from .hub.revisions import Pushed
from .methods import Method, MethodConfig
from .methods.auto import Auto
from .methods.hamu import Hamu, HamuConfig
from .methods.look import Look
from .methods.rewind import BUDGET, spending
from .metrics.tables import NAMES, Rows, Summarised, upright, wrapped
from .models import adapters, task_of_named
from .models.types import ModelOrName, ModelSource
from .tasks import TASKS, task_of
from .training import trainer as engine
from .training.arguments import UnlearningArguments
from .training.border import border
from .training.context import Context
from .training.disk import clear_write_errors as clear_write_errors
from .training.facts import describe_run
from .training.glance import set_up
from .training.output import METRICS, check_result_folder, read_original, taken_back
from .training.record import Run
from .training.recording import record
from .training.request import AskedTasks


class UnlearningTrainer(engine.UnlearningTrainer):
    __doc__ = engine.UnlearningTrainer.__doc__

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        *,
        repo_id: str | None = None,
        **release: Any,
    ) -> Pushed | None:
        """Push the result of the run to a branch of its own (see `UnlearningResult.push_to_hub`).

        Overridden because the Trainer's pushes several commits, to the main branch. It always waits for the Hub.
        """
        repo_id = repo_id or self.args.hub_model_id
        if repo_id is None:
            raise UnlearningError("No repository was named; pass repo_id=, or hub_model_id= in the arguments.")
        release = {"private": self.args.hub_private_repo} | release
        return UnlearningResult(self.model, self, self.metrics, self.runtime).push_to_hub(
            repo_id,
            revision or self.args.hub_revision,
            message=commit_message,
            token=token or self.args.hub_token,
            **release,
        )


@dataclass(repr=False)
class UnlearningResult(Summarised):
    """What `unlearn()` gives back.

    Attributes:
        model: the unlearned model.
        trainer: the trainer that made it, with its data and the way to the original.
        metrics: figures `before` and `after`, and the `reasons` for those that are None.
        runtime: seconds of preparing, of unlearning (preparing included), and of all with the measurements.
    """

    model: nn.Module
    trainer: engine.UnlearningTrainer
    metrics: dict[str, Any]
    runtime: dict[str, float]

    @property
    def run(self) -> Run:
        """The record of the run, which audits and releases are made from."""
        return record(self.trainer)

    def compare(self, retrained: nn.Module | str | Path) -> Rows:
        """The figures of the `original`, the `unlearned` and a `retrained` model, with their distances to the last, by model
        and name; printed, they are a table. The retrained model may be a Hub id or a folder.

        `jsd` and `activation_distance` are means over the forget samples; `avg_gap` and `tow` need retained and unseen
        samples.
        """
        before, after = self._measured()
        trainer, evaluator = self.trainer, self.trainer.evaluator
        if not isinstance(retrained, nn.Module) or trainer.sharding:
            retrained = open_model(retrained, "retrained", trainer.sharding)
        check_alike(trainer.task, task_of(retrained, trainer.method.own_losses, trainer.method.own_tasks), "retrained")
        retrained = retrained if trainer.sharding else retrained.to(trainer.args.device)
        measured = {
            "original": trainer.original,
            "unlearned": trainer.unlearned,
            "retrained": trainer.measure(retrained),
        }
        reference, _ = evaluator.figures(
            measured["retrained"], trainer.original, class_request=trainer.request.is_class
        )
        rows = Rows({"original": before, "unlearned": after, "retrained": reference})
        forget = trainer.indices["forget"]
        with trainer.original_model() as original:  # under an adapter this is `self.model`, with the adapter off
            distances = {"original": evaluator.compare(original, retrained, *forget)}
        for name, model in (("unlearned", self.model), ("retrained", retrained)):
            distances[name] = evaluator.compare(model, retrained, *forget)
        for name, row in rows.items():
            beside = evaluator.beside(row, reference, measured[name], measured["retrained"])
            rows[name] = row | distances[name] | beside
        return rows

    def closeness(self) -> Closeness:
        """What can be said of the distance to a retrained model without one, from the measurements of this run."""
        self._measured()
        trainer = self.trainer
        if not trainer.task.is_audited:
            raise UnlearningError(
                f"closeness() compares single samples with unseen ones, which {trainer.task.name} has not."
            )
        return closeness(trainer.original, trainer.unlearned, trainer.request.is_class)

    def in_a_line(self) -> str:
        """The method, and the accuracies before and after."""
        before, after = self.metrics.get("before", {}), self.metrics.get("after", {})
        keys = [
            f"{split}_accuracy"
            for split in ("forget", "retain", "unseen")
            if after.get(f"{split}_accuracy") is not None
        ]
        changes = [f"{NAMES[key]} {before[key]:.3f} → {after[key]:.3f}" for key in keys]
        return ", ".join([self.trainer.method.info.name, *changes])

    def summary(self) -> str:
        """The figures before and after, as text."""
        before, after = self._measured()
        lines = [upright({"original": before, "unlearned": after})]
        lines += [f"{name}: {why}" for name, why in self.metrics["reasons"].items()]
        lines += self.trainer.method.notes
        return "\n".join(lines)

    def audit(
        self,
        level: int = 0,
        retrained: nn.Module | str | Path | None = None,
        reference: nn.Module | str | Path | None = None,
        canaries: str | Sequence[int] | Sequence[bool] | None = None,
        base_model: str | None = None,
        minutes: float | None = None,
    ) -> AuditReport:
        """What is left of the forget samples, on the sets of this run; see `hf_unlearn.audit` for the arguments.

        Of the unseen samples only those are read that could not steer the run: the evidence half, or `test`.
        """
        return audit_run(self.run, self.model, level, retrained, reference, canaries, base_model, minutes)

    def _measured(self) -> tuple[dict[str, float | None], dict[str, float | None]]:
        if not self.metrics:
            raise UnlearningError("Nothing was measured, because of measure=False; run again without it.")
        return self.metrics["before"], self.metrics["after"]

    def merge(self) -> nn.Module:
        """Put the adapters into the weights: `model` becomes a plain model, with the same outputs up to rounding.

        It is a copy. The trainer keeps the model with the adapter, and with that the way back to the original.
        """
        if adapters.is_adapted(self.model):
            self.model = without_adapter(self.model, self.trainer.sharding)
        return self.model

    def save(self, path: str | Path) -> Path:
        """Write the model, its processing class, `unlearning_config.json` and `metrics.json` to a folder.

        A result that is there already is replaced; the original's own folder, and what others wrote, never is.
        """
        trainer = self.trainer
        with trainer.together():  # else one process may look when another one writes already
            if trainer.args.should_save:
                check_result_folder(path, trainer.original_folder)
        path = Path(path)
        with taken_back(path), clear_write_errors(path):
            if self.model is trainer.model:
                trainer.save_model(str(path))
            else:
                weights = trainer.sharding.whole_weights(self.model) if trainer.sharding else None
                if trainer.args.should_save:
                    trainer.write(self.model, path, weights)
            if trainer.args.should_save:
                method = trainer.method
                content = {**self.metrics, "runtime": self.runtime, "notes": method.notes, "report": method.report}
                content["run"] = describe_run(self.run, self.model)
                (path / METRICS).write_text(json.dumps(content, indent=2) + "\n")
        return path

    def push_to_hub(
        self,
        repo_id: str,
        revision: str | None = None,
        *,
        report: AuditReport | None = None,
        parent: Parent | None = None,
        folder: str | Path | None = None,
        token: str | None = None,
        private: bool | None = None,
        message: str | None = None,
        tag: str | None = None,
        to_main: bool = False,
        name_private_parent: bool = False,
        **release: Unpack[ReleaseOptions],
    ) -> Pushed | None:
        """Push the model with its card, receipt and figures as one commit on a branch of its own.

        A complete local folder is written first. If the push fails, the error says the command that pushes it later.

        Args:
            repo_id: `owner/name`.
            revision: the branch; default: `unlearned/<method>-<date>-<id of the run>`.
            report: an audit of this result, to go with it.
            parent: the repository and commit that was unlearned; default: where the model came from, if that is known.
                In `repo_id` itself, the branch begins there.
            folder: where the release is written; default: `release` in the output folder.
            token: default: the one of the login.
            private: whether a repository that does not exist is created as a private or a public one; default: not at all.
            message: the title of the commit.
            tag: a tag for the commit.
            to_main: push to `main` instead of a branch.
            name_private_parent: let a public release name a parent that is private.
            release: for `hub.prepare`, such as `sign_key`.

        Returns:
            Where it is; None on the processes that do not write.
        """
        return publish(
            self,
            repo_id,
            revision,
            report=report,
            parent=parent,
            folder=folder,
            token=token,
            private=private,
            message=message,
            tag=tag,
            to_main=to_main,
            name_private_parent=name_private_parent,
            **release,
        )


@border("Unlearning")
def unlearn(
    model: ModelOrName,
    *,
    forget: Data,
    retain: Data | None = None,
    unseen: Data | None = None,
    test: Data | None = None,
    method: str | MethodConfig | Method = "auto",
    budget: float = BUDGET,
    original_epochs: float | None = None,
    original_learning_rate: float | None = None,
    args: UnlearningArguments | None = None,
    processing_class: ProcessingClass | None = None,
    data_collator: DataCollator | None = None,
    peft_config: PeftConfig | bool | None = None,
    merge: bool = False,
    base_model: ModelSource | None = None,
    teacher: ModelSource | None = None,
    tasks: AskedTasks | None = None,
    overlap: str = "error",
    augment: Callable | None = None,
    callbacks: list[TrainerCallback] | None = None,
    resume_from_checkpoint: str | bool | None = None,
) -> UnlearningResult:
    """Remove the influence of `forget` from `model`, in place, and measure what that did.

    Args:
        model: a model, or a Hub id (`OWNER/NAME`, or `OWNER/NAME@REVISION`) or local folder.
        forget: the samples that must go.
        retain: the samples that must stay.
        unseen: samples like `forget` that the model was never trained on; half may steer the method, half only measure it.
        test: measured instead of that second half.
        method: a name (see `list_methods()`), a config such as `LotusConfig(alpha=4)`, or a `Method` of your own.
        budget: of `auto` (but not on language models, where it is `rmu`) and `rewind`, the share of the original's training that they
            may spend, in samples seen.
        original_epochs, original_learning_rate: for these two, how long and at what rate (its peak) the original was trained;
            default: as its `trainer_state.json` or its card says, else an assumption that the result's notes repeat.
        args: training arguments; what they leave unset is the method's, and without `output_dir` each request has a folder.
        processing_class: image processor or tokenizer that makes model inputs of raw columns.
        peft_config: unlearn in a PEFT adapter instead of in the weights; True chooses one (see `adapters.default_config`), and
            of a method that edits weights once gives its edit as an adapter. Dropping an adapter brings back what was forgotten.
        merge: put the adapters into the weights at the end (see `UnlearningResult.merge`).
        base_model: what the original was trained from: a model, its Hub id or folder, a function that returns one, or
            "scratch". `retrain` needs it; `rewind` and, but on language models, `auto` go back towards it, or towards what the
            card names, else (images only) towards new weights.
        teacher: instead of `local_teacher`'s own: a model that never saw `forget`, its Hub id or folder, or a function that returns it.
        tasks: of a multi-task model, what must go: names of tasks, or a table of forget samples and tasks; default: all.
        overlap: `"error"` refuses samples that stand in two of the sets; `"allow"` does not look.
        augment: a transform of the raw image or text of training samples.
        resume_from_checkpoint: a checkpoint, or True for the newest complete one in the output folder. It must be of this
            very run: the same original, sets, method and settings, but for what leaves the weights the same.

    Example:
        >>> result = unlearn(model, forget=forget, retain=retain, unseen=validation)  # doctest: +SKIP
    """
    if isinstance(model, nn.Module) and not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)  # merge_and_unload() leaves a model with nothing to train
    sets = {"forget_dataset": forget, "retain_dataset": retain, "unseen_dataset": unseen, "test_dataset": test}
    rows = {"processing_class": processing_class, "data_collator": data_collator, "augment": augment}
    others = {"peft_config": peft_config, "base_model": base_model, "teacher": teacher, "callbacks": callbacks}
    method = spending(method, budget, original_epochs, original_learning_rate)
    with seeded(0):  # the Trainer seeds the global generators, and they are the caller's
        trainer = UnlearningTrainer(model, args, method=method, tasks=tasks, overlap=overlap, **sets, **rows, **others)
        _tell(trainer, isinstance(model, nn.Module), peft_config is True and not merge)
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    result = UnlearningResult(trainer.model, trainer, trainer.metrics, trainer.runtime)
    if merge:
        result.merge()
    return result


def _tell(trainer: engine.UnlearningTrainer, was_given: bool, asked_for_adapter: bool) -> None:
    """Say what is about to happen to a model that `was_given` in person, and where the run goes."""
    if not trainer.is_world_process_zero():
        return
    forget, folder = trainer.sources["forget"].count(), trainer.args.output_dir
    change = "gets an adapter" if trainer.adapter or (trainer.is_edit and asked_for_adapter) else "is changed in place"
    told = f" The model you passed {change}." if was_given else ""
    again = " (again: a run of this request is there)" if read_original(trainer.private) else ""
    samples = f"{forget:,} forget sample{'s' * (forget != 1)}"
    said = f"{trainer.method.info.name}: {samples}.{told} What the run keeps goes to {folder}/{again}."
    print(wrapped(said, "  "), flush=True)


def measure_hardness(
    model: ModelOrName,
    *,
    forget: Data,
    retain: Data,
    method: HamuConfig | None = None,
    processing_class: ProcessingClass | None = None,
    args: UnlearningArguments | None = None,
    overlap: str = "error",
    data_collator: DataCollator | None = None,
    peft_config: PeftConfig | bool | None = None,
) -> HardnessReport:
    """How hard it is to forget `forget` without harm to `retain`, from one pass over both sets; nothing is changed.

    The gradients are those of the model as it is, in eval mode, over each whole set, of the weights that HAMU would train:
    those of a new adapter, where it trains one.

    Args:
        method: the HAMU whose step is asked about; by default `HamuConfig()`.
        args: training arguments; batch size, precision, clipping, columns and seed count.

    The other arguments are those of `unlearn()`.

    Example:
        >>> report = measure_hardness(model, forget=forget, retain=retain)  # doctest: +SKIP
        >>> print(report.summary())  # doctest: +SKIP
    """
    method = HamuConfig() if method is None else method
    if not isinstance(method, HamuConfig):
        raise UnlearningError(f"method is {method!r}; expected a HamuConfig, whose measure hardness is.")
    sets = {"forget_dataset": forget, "retain_dataset": retain, "overlap": overlap}
    rows = {"processing_class": processing_class, "data_collator": data_collator}
    with set_up(model, args, method=method, **sets, **rows, peft_config=peft_config) as trainer:
        sizes = {name: len(source) for name, source in trainer.sources.items()}
        return hardness(Context(trainer), cast(Hamu, trainer.method), sizes, trainer.named_gradients.max_norm)


def choose(
    model: ModelOrName,
    *,
    forget: Data,
    retain: Data,
    unseen: Data,
    budget: float = BUDGET,
    original_epochs: float | None = None,
    original_learning_rate: float | None = None,
    base_model: ModelSource | None = None,
    args: UnlearningArguments | None = None,
    processing_class: ProcessingClass | None = None,
    overlap: str = "error",
    data_collator: DataCollator | None = None,
    peft_config: PeftConfig | bool | None = None,
) -> Look:
    """What `method="auto"` finds out before it begins, and what it would do; nothing is trained or written.

    The arguments are those of `unlearn()`.

    Example:
        >>> look = choose(model, forget=forget, retain=retain, unseen=validation)  # doctest: +SKIP
        >>> print(look.summary())  # doctest: +SKIP
    """
    method = spending("auto", budget, original_epochs, original_learning_rate)
    sets = {"forget_dataset": forget, "retain_dataset": retain, "unseen_dataset": unseen, "overlap": overlap}
    rows = {"processing_class": processing_class, "data_collator": data_collator}
    others = {"base_model": base_model, "peft_config": peft_config}
    nothing = "There is nothing to choose: on a {} auto is {}, at its defaults."
    if isinstance(model, (str, os.PathLike)) and model and not TASKS[task_of_named(model)].right_or_wrong:
        raise UnlearningError(nothing.format("language model", "rmu"))  # before its weights are read
    with set_up(model, args, method=method, **sets, **rows, **others) as trainer:
        if not isinstance(trainer.method, Auto):
            kind = "model of several tasks" if trainer.task.tasks else "language model"
            raise UnlearningError(nothing.format(kind, trainer.method.info.name))
        return trainer.method.look_at(Context(trainer))
