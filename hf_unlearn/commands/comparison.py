"""Several methods on one request, each from the original and inside one budget, kept in a folder that a later call goes on
from."""

import json
import os
import secrets
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from transformers import PrinterCallback

from .. import __version__, metrics, models
from ..audits.plots import points
from ..errors import UnlearningError
from ..methods import METHODS, Method, create_method
from ..methods.rewind import BudgetConfig, Rewind, spending
from ..metrics.tables import table
from ..tasks.base import Task
from ..tasks.figures import Measurement
from ..tasks.multitask import MultiTask
from ..training.arguments import UnlearningArguments
from ..training.glance import set_up
from ..training.identity import differences, request_of
from ..training.looks import Measured
from ..training.output import check_folder
from ..training.trainer import UnlearningTrainer

METHODS_BY_DEFAULT = ("auto", "finetune", "l1_sparse", "scrub", "ssd")
RESULTS, PICTURE = "compare.json", "compare.svg"
FIGURES = (
    *(
        "forget_accuracy",
        "retain_accuracy",
        "unseen_accuracy",
        "kept_accuracy",
    ),  # kept: of a class request, the other classes
    *("auc", "auc_low", "auc_high", "rf_jsd"),
)

Row = dict[str, Any]


class Comparison:
    """The results of a request by method, of this call and of those before it.

    Args:
        folder: of the results; of another request or other settings, it is refused.

    The other arguments are those of `unlearn()`.

    Attributes:
        whole: the samples that the original's training has seen.
        original: its figures.
        rows: method -> its figures, and its cost as `share` of `whole`; or the `error` for which it has none.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: str,
        forget: datasets.Dataset,
        retain: datasets.Dataset,
        unseen: datasets.Dataset,
        budget: float,
        original_epochs: float | None,
        original_learning_rate: float | None,
        base_model: str | None,
        overlap: str,
        args: UnlearningArguments,
    ):
        self.folder, self.model, self.args, self.budget = Path(folder), model, args, budget
        self.known = {"original_epochs": original_epochs, "original_learning_rate": original_learning_rate}
        sets = {"forget_dataset": forget, "retain_dataset": retain, "unseen_dataset": unseen}
        self.given = {**sets, "base_model": base_model}
        self.asked: Task | None = None
        check_output(folder, model)
        if models.task_of_named(model) == MultiTask.name:
            raise UnlearningError(
                f"{model} has several tasks, and compare holds methods for classifiers and language models beside each other; expected "
                "such a model (docs/multitask.md has what was measured of several tasks)."
            )
        kept = read_results(self.folder / RESULTS)
        with set_up(model, args, method=self._method("rewind"), **self.given, overlap=overlap) as trainer:
            rewind = cast(Rewind, trainer.method)
            self.whole = rewind.original_epochs * (rewind.past.n_forget + rewind.past.n_retain)
            self.epochs, self.assumed = rewind.original_epochs, "original_epochs" in rewind.assumed
            self.asked, self.task, self.is_class = trainer.task, trainer.task.name, trainer.request.is_class
            salt = kept["about"]["salt"] if kept else secrets.token_hex(16)
            self.about = self._describe(trainer, salt)
            if kept:
                check_same(self.folder, self.about, kept["about"])
            self.measured = trainer.measure()
            self.original = self._figures(trainer, self.measured)
        self.rows: dict[str, Row] = kept["rows"] if kept else {}

    def _method(self, name: str) -> Method:
        method = create_method(name)
        if self.asked:  # once it is known
            method = method.for_task(self.asked)
        return spending(method, self.budget, **self.known) if isinstance(method.config, BudgetConfig) else method

    def _describe(self, trainer: UnlearningTrainer, salt: str) -> dict[str, Any]:
        """What the results are of; of the sets, only whether they are these."""
        return {
            "salt": salt,
            "original": models.weights_digest(models.base_of(trainer.model)),
            "request": request_of(trainer.request, salt),
            "settings": {
                "budget": self.budget,
                "original_epochs": self.epochs,
                "original_learning_rate": self.known["original_learning_rate"],
                "base_model": self.given["base_model"],
                "batch_size": trainer.args.per_device_train_batch_size,
                "seed": trainer.args.seed,
                "version": __version__,
            },
        }

    def _figures(self, trainer: UnlearningTrainer, measured: Measured) -> Row:
        about = {"class_request": self.is_class, "bootstrap": 1000}
        figures, _ = trainer.evaluator.figures(measured, self.measured, **about)
        row = {name: figures.get(name) for name in FIGURES}
        return row | {"memory": memory_of(measured["forget"], measured.get("evidence"))}

    # -- Methods

    def usual(self) -> list[str]:
        """Of the methods by default, those for this task."""
        return [name for name in METHODS_BY_DEFAULT if self.task in METHODS[name].info.applies_to]

    def has(self, name: str) -> bool:
        return name in self.rows and "error" not in self.rows[name]

    def run(self, name: str) -> Row:
        """One method on a fresh copy of the original; its result is in the folder afterwards."""
        try:
            row = self._run(name)
        except UnlearningError as error:
            row = {"error": str(error)}
        self.rows[name] = row
        self._write(RESULTS, json.dumps({"about": self.about, "original": self.original, "rows": self.rows}, indent=2))
        return row

    def _run(self, name: str) -> Row:
        with set_up(self.model, self.args, method=self._method(name), **self.given, overlap="allow") as trainer:
            trainer.remove_callback(PrinterCallback)
            note = self._cut(trainer)
            trainer.train()
            figures = self._figures(trainer, trainer.measure())
            steps, schedule = trainer.state.global_step, trainer.schedule
            samples = schedule.samples(steps) if schedule else self._pass(trainer)
            return figures | {
                "share": samples / self.whole,
                "seconds": trainer.runtime["unlearn"],
                "steps": steps,
                "notes": [note] * bool(note) + trainer.method.notes,
            }

    def _pass(self, trainer: UnlearningTrainer) -> int:
        """The samples of an edit, which reads each of them."""
        return len(trainer.sources["forget"]) + len(trainer.sources["retain"])

    def _cut(self, trainer: UnlearningTrainer) -> str | None:
        """End the schedule where the budget does; what is to be said of that."""
        schedule, allowed, name = trainer.schedule, self.budget * self.whole, trainer.method.info.name
        samples = schedule.samples() if schedule else self._pass(trainer)
        if samples <= allowed:
            return None
        steps = schedule.steps_within(int(allowed)) if schedule else 0
        share = f"{samples / self.whole:.1%} of the original's training"
        if not (schedule and steps):
            what = "one step" if schedule else "one pass over all samples"
            share = f"{schedule.samples(1) / self.whole:.1%} of the original's training" if schedule else share
            raise UnlearningError(
                f"{what} of {name} is {share}, and the budget is {self.budget:.1%}; raise the budget, or leave it out."
            )
        before, schedule.max_steps = len(schedule), steps
        trainer.args.max_steps = steps
        if isinstance(trainer.method.config, BudgetConfig):  # it was made for the budget, but for rounding
            return None
        return f"Cut to the budget: {steps} of {before} steps, which would have cost {share}."

    # -- What comes of it

    def table(self) -> str:
        """The original and every method that has a result, and below it what has to be said of them."""
        rows = {"original": self.original} | {name: row for name, row in self.rows.items() if self.has(name)}
        halves = {
            name: {"auc": None if row["auc_low"] is None else (row["auc_high"] - row["auc_low"]) / 2}
            for name, row in rows.items()
        }
        notes: dict[str, list[str]] = {}
        for name, row in self.rows.items():
            for note in [f"not run: {row['error']}"] if "error" in row else row["notes"]:
                notes.setdefault(note, []).append(name)
        assumed = ", which is assumed" if self.assumed else ""
        lines = [
            table(rows, halves),
            "",
            f"The original's training: {self.epochs:g} epochs{assumed}; the budget is {self.budget:.1%} of its samples.",
            *(f"{', '.join(names)}: {note}" for note, names in notes.items()),
        ]
        return "\n".join(lines)

    def picture(self) -> Path | None:
        """Memory over cost, written to the folder; None where no memory could be measured."""
        places = {
            name: (100 * row["share"], row["memory"])
            for name, row in self.rows.items()
            if self.has(name) and row["memory"] is not None
        }
        if self.original["memory"] is None or not places:
            return None
        drawn = points(
            "compare",
            places,
            ("original", self.original["memory"]),
            title="What is remembered of the forget samples, over what it costs",
            x_label="% of the original's training",
            y_label="memory",
        )
        return self._write(PICTURE, drawn)

    def _write(self, name: str, text: str) -> Path:
        """Whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        part = path.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        return part.replace(path)


def memory_of(forget: Measurement, evidence: Measurement | None) -> float | None:
    """Of the probability of the true class (of a language model, by token): see `metrics.memory`."""
    if evidence is None or not np.isin(forget.labels, evidence.labels).any():
        return None
    p, q = (np.exp(-measured.signals["loss"]) for measured in (forget, evidence))
    return metrics.memory(p, forget.labels, q, evidence.labels)


def check_output(folder: str | Path, model: str) -> None:
    check_folder(folder, "--output")
    original, place = Path(os.path.realpath(model)), Path(os.path.realpath(folder))
    if os.path.isdir(model) and place.is_relative_to(original):
        raise UnlearningError(f"--output is {folder}, in the folder of the original; expected another one.")


def read_results(path: Path) -> dict[str, Any] | None:
    """What an earlier call has written; None where there was none."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if {"salt", "original", "request", "settings"} <= content["about"].keys() and isinstance(
            content["rows"], dict
        ):
            return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UnlearningError(f"{path} is damaged, or of something else; expected another --output.")


def check_same(folder: Path, now: dict[str, Any], then: dict[str, Any]) -> None:
    """Refuse results of another request, another original or other settings."""
    nothing: dict[str, Any] = {"method": {"name": "", "config": {}}, "model": {}, "schedule": {}}
    sides = (nothing | side | {"training": side["settings"]} for side in (now, then))
    if found := differences(*sides):
        raise UnlearningError(
            f"{folder} holds another comparison: {'; '.join(found)}; expected the request and the settings that it was made "
            "with, or another --output."
        )
