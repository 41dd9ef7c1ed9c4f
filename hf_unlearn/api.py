"""`unlearn()`: from a model and the data that must go to a result with evidence."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from .arguments import UnlearningArguments
from .errors import UnlearningError
from .methods import Method, MethodConfig
from .report import table
from .trainer import UnlearningTrainer


@dataclass
class UnlearningResult:
    """What `unlearn()` gives back.

    Attributes:
        model: the unlearned model.
        trainer: the trainer that made it, with its data and the way to the original.
        metrics: figures `before` and `after`, and the `reasons` for those that are None.
        runtime: seconds of preparing, of unlearning (preparing included), and of all with the measurements.
    """

    model: nn.Module
    trainer: UnlearningTrainer
    metrics: dict[str, Any]
    runtime: dict[str, float]

    def compare(self, retrained: nn.Module) -> dict[str, dict[str, float | None]]:
        """The figures of the `original`, the `unlearned` and a `retrained` model, with their distances to the last.

        `jsd` and `activation_distance` are means over the forget samples; `avg_gap` and `tow` need retained and unseen
        samples.
        """
        before, after = self._measured()
        trainer, evaluator = self.trainer, self.trainer.evaluator
        retrained = retrained.to(trainer.args.device)
        measured = {
            "original": trainer.original,
            "unlearned": trainer.unlearned,
            "retrained": trainer.measure(retrained),
        }
        reference, _ = evaluator.figures(
            measured["retrained"], trainer.original, class_request=trainer.request.is_class
        )
        rows = {"original": before, "unlearned": after, "retrained": reference}
        forget = trainer.indices["forget"]
        with trainer.original_model() as original:  # under an adapter this is `self.model`, with the adapter off
            distances = {"original": evaluator.compare(original, retrained, *forget)}
        for name, model in (("unlearned", self.model), ("retrained", retrained)):
            distances[name] = evaluator.compare(model, retrained, *forget)
        for name, row in rows.items():
            beside = evaluator.beside(row, reference, measured[name], measured["retrained"])
            rows[name] = row | distances[name] | beside
        return rows

    def summary(self) -> str:
        """The figures before and after, as text."""
        before, after = self._measured()
        lines = [table({"original": before, "unlearned": after})]
        lines += [f"{name}: {why}" for name, why in self.metrics["reasons"].items()]
        lines += self.trainer.method.notes
        return "\n".join(lines)

    def _measured(self) -> tuple[dict[str, float | None], dict[str, float | None]]:
        if not self.metrics:
            raise UnlearningError("Nothing was measured, because of measure=False; run again without it.")
        return self.metrics["before"], self.metrics["after"]

    def save(self, path: str | Path) -> Path:
        """Write the model, its processing class, `unlearning_config.json` and `metrics.json` to a folder."""
        path = Path(path)
        self.trainer.save_model(str(path))
        if self.trainer.args.should_save:
            method = self.trainer.method
            content = {**self.metrics, "runtime": self.runtime, "notes": method.notes, "report": method.report}
            (path / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
        return path


def unlearn(
    model: PreTrainedModel | nn.Module | str,
    *,
    forget: Any,
    retain: Any = None,
    unseen: Any = None,
    test: Any = None,
    method: str | MethodConfig | Method = "lotus",
    args: UnlearningArguments | None = None,
    processing_class: Any = None,
    data_collator: Callable | None = None,
    peft_config: Any = None,
    base_model: Any = None,
    teacher: Any = None,
    tasks: Any = None,
    overlap: str = "error",
    augment: Callable | None = None,
    callbacks: list[TrainerCallback] | None = None,
    resume_from_checkpoint: str | bool | None = None,
) -> UnlearningResult:
    """Remove the influence of `forget` from `model`, in place, and measure what that did.

    Args:
        model: a model, or a Hub id or local folder.
        forget: the samples that must go.
        retain: the samples that must stay.
        unseen: samples the model was never trained on, of the same kind as `forget`. Half of them may steer the method,
            the other half only measures it.
        test: measured instead of that second half.
        method: a name (see `list_methods()`), a config such as `LotusConfig(alpha=4)`, or a `Method` of your own.
        args: training arguments; what they leave unset is chosen by the method.
        processing_class: image processor or tokenizer that makes model inputs of raw columns.
        peft_config: unlearn in a PEFT adapter instead of in the weights; True, of a method that edits weights once: its edit
            as an adapter.
        base_model: what the original was trained from; `retrain` needs it.
        teacher: of `local_teacher`, instead of its own: a model that has never seen the forget samples, the Hub id or
            folder of one, or a function that returns one.
        tasks: of a multi-task model, what must go: names of tasks, or a table of forget samples and tasks; default: all.
        overlap: `"error"` refuses forget samples that stand in another set too; `"allow"` does not look.
        augment: a transform of the raw image or text of training samples.
        resume_from_checkpoint: a checkpoint, or True for the newest complete one in the output folder.

    Example:
        >>> result = unlearn(model, forget=forget, retain=retain, unseen=validation)  # doctest: +SKIP
        >>> print(result.summary())  # doctest: +SKIP
    """
    trainer = UnlearningTrainer(
        model,
        args,
        method=method,
        forget_dataset=forget,
        retain_dataset=retain,
        unseen_dataset=unseen,
        test_dataset=test,
        processing_class=processing_class,
        data_collator=data_collator,
        peft_config=peft_config,
        base_model=base_model,
        teacher=teacher,
        tasks=tasks,
        overlap=overlap,
        augment=augment,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return UnlearningResult(trainer.model, trainer, trainer.metrics, trainer.runtime)
