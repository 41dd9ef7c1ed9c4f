"""What `hf-unlearn run` does, step by step: the model and the data that a recipe names, the run, and what is said of it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

import datasets
import torch
from peft import PeftConfig
from transformers import BitsAndBytesConfig, PreTrainedModel

from .. import models
from ..api import UnlearningResult, unlearn
from ..audits.report import AuditReport
from ..data.source import Columns, Source
from ..data.splits import split_dataset
from ..data.types import ProcessingClass
from ..errors import UnlearningError
from ..methods import MethodConfig, get_method
from ..models import adapters
from ..tasks import TASKS
from ..training.arguments import UnlearningArguments, Unnamed
from ..training.checks import check_arguments
from ..training.output import check_result_folder
from .recipe import RecipeArguments
from .sets import read_dataset, take_split


class Sets(TypedDict):
    """What `unlearn()` is given of samples."""

    forget: datasets.Dataset
    retain: datasets.Dataset
    unseen: datasets.Dataset | None
    test: datasets.Dataset | None


def run(recipe: RecipeArguments, config: MethodConfig, args: UnlearningArguments) -> UnlearningResult:
    """Load the model and the data, unlearn, save the result in `args.output_dir`, and print what came out."""
    model, processing_class = load_model(recipe, args)
    data = load_data(recipe, args, model)
    about = settings(recipe, args, model, data)
    result = unlearn(model, **data, method=config, args=args, processing_class=processing_class, **about)
    finish(recipe, result)
    return result


def settings(recipe: RecipeArguments, args: UnlearningArguments, model: PreTrainedModel, data: Sets) -> dict[str, Any]:
    """What else `unlearn()` takes of a recipe."""
    _check_audit(recipe, model, data)
    return {
        "peft_config": _adapter(recipe, model),
        "merge": recipe.merge,
        "base_model": recipe.base_model,
        "tasks": recipe.tasks,
        "overlap": recipe.overlap,
        "resume_from_checkpoint": args.resume_from_checkpoint or recipe.resume,
    }


def finish(recipe: RecipeArguments, result: UnlearningResult) -> None:
    """Save the result, audit and push it if the recipe says so, and print what came out."""
    save_and_report(result)
    report = None if recipe.audit is None else audit_and_report(result, recipe.audit)
    if recipe.push_to:
        pushed = result.push_to_hub(recipe.push_to, recipe.push_revision, report=report)
        if pushed:
            print(f"Pushed to {pushed.url}", flush=True)


def _check_audit(recipe: RecipeArguments, model: PreTrainedModel, data: Sets) -> None:
    """Refuses before the run what the audit after it would refuse."""
    if recipe.audit is None:
        return
    task = TASKS[models.task_of(model)]
    if not task.is_audited:
        raise UnlearningError(
            f"audit is {recipe.audit}, and the model is for {task.name}, which cannot be audited; leave out audit, or use a "
            f"model for {', '.join(name for name, kind in TASKS.items() if kind.is_audited)}."
        )
    if recipe.audit and data["unseen"] is None and data["test"] is None:
        raise UnlearningError(
            f"audit is {recipe.audit}, which needs samples that the model was never trained on; expected unseen_split, or "
            "audit=0."
        )


def _adapter(recipe: RecipeArguments, model: PreTrainedModel) -> PeftConfig | bool | None:
    """The `peft_config` of `unlearn()`."""
    if not recipe.lora_r and not recipe.lora_head:
        return recipe.lora
    rank = {"r": recipe.lora_r} if recipe.lora_r else {}
    return adapters.default_config(model, head=recipe.lora_head, **rank)


def load_model(recipe: RecipeArguments, args: UnlearningArguments) -> tuple[PreTrainedModel, ProcessingClass | None]:
    """The model, and its image processor or tokenizer, once it is sure that the result can be written."""
    check_arguments(args)
    if not isinstance(args.output_dir, Unnamed):  # else the run chooses its folder, by the request
        check_result_folder(result_folder(args), recipe.model if Path(recipe.model).is_dir() else None)
    bits = four_bits(args.bf16) if recipe.load_in_4bit else {}
    model = models.load_model(recipe.model, revision=recipe.revision, task=recipe.task, **bits)
    return model, models.load_processor(recipe.model, model, recipe.revision)


def four_bits(bf16: bool) -> dict[str, Any]:
    """What `load_model` reads weights in 4 bits with, as QLoRA has it."""
    if find_spec("bitsandbytes") is None:
        raise UnlearningError(
            "load_in_4bit needs the package bitsandbytes, which is not installed: pip install bitsandbytes."
        )
    dtype = torch.bfloat16 if bf16 else torch.float32
    about = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **about), "dtype": dtype}


def load_data(recipe: RecipeArguments, args: UnlearningArguments, model: PreTrainedModel) -> Sets:
    """The sets that a recipe names."""
    train, unseen, test = load_splits(recipe, args)
    parts = split_dataset(
        train,
        **_forget_choice(recipe, train, model, args),
        fraction=recipe.forget_fraction,
        seed=args.seed,
        label_column=args.label_column,
    )
    return Sets(forget=parts["forget"], retain=parts["retain"], unseen=unseen, test=test)


def load_splits(
    recipe: RecipeArguments, args: UnlearningArguments
) -> tuple[datasets.Dataset, datasets.Dataset | None, datasets.Dataset | None]:
    """What the model was trained on, what it was not, and what is measured instead of half of that."""
    with args.main_process_first(desc="reading the dataset"):
        splits = read_dataset(recipe.dataset, recipe.dataset_config, recipe.dataset_revision)
    unseen_split = recipe.unseen_split
    if unseen_split is None:
        usual = (name for name in ("validation", "test") if name in splits and name != recipe.test_split)
        unseen_split = next(usual, None)
    if unseen_split is None and "unseen" in get_method(recipe.method).info.needs:
        raise UnlearningError(
            f"{recipe.method} needs unseen samples, and the dataset {recipe.dataset!r} has only the split "
            f"{', '.join(map(str, splits))}; name one with unseen_split, which may be a slice that the model was not trained on, "
            "such as train[90%:]."
        )
    names = {"unseen": unseen_split, "test": recipe.test_split}
    train = take_split(splits, recipe.train_split, "train_split")
    unseen, test = (take_split(splits, name, f"{key}_split") if name else None for key, name in names.items())
    return train, unseen, test


def result_folder(args: UnlearningArguments) -> Path:
    """Where the result goes, apart from checkpoints and the original."""
    return Path(args.output_dir, "model")


def save_and_report(result: UnlearningResult) -> None:
    """Save the result in the output folder and print, once, what was done, the figures, and where it lies."""
    trainer = result.trainer
    folder = result.save(result_folder(trainer.args))
    if trainer.is_world_process_zero():
        sizes = " and ".join(f"{len(trainer.sources[name])} {name}" for name in ("forget", "retain"))
        print(
            f"{trainer.method.info.name}: {sizes} samples; processes: {trainer.args.world_size}; "
            f"steps: {trainer.state.global_step}; "
            f"{result.runtime['unlearn']:.1f} s, {result.runtime['total']:.1f} s with all measurements"
        )
        if result.metrics:
            print(result.summary())
        print(f"Saved in {folder}", flush=True)


def audit_and_report(result: UnlearningResult, level: int) -> AuditReport:
    """Audit the result, print what was found, and save the report beside the model."""
    report = result.audit(level)
    if result.trainer.is_world_process_zero():
        folder = Path(result.trainer.args.output_dir)
        report.to_json(folder / "audit.json")
        report.to_html(folder / "audit.html")
        print(f"{report.summary()}\nThe report is in {folder / 'audit.html'}", flush=True)
    return report


def _forget_choice(
    recipe: RecipeArguments, train: datasets.Dataset, model: PreTrainedModel, args: UnlearningArguments
) -> dict[str, Any]:
    """The rows to forget, as an argument of `split_dataset`."""
    if recipe.forget_ids is not None:
        return {"indices": _read_rows(recipe.forget_ids, recipe.id_column, train)}
    if recipe.forget_labels is not None:
        task = TASKS[models.task_of(model)]
        if not task.has_classes:
            raise UnlearningError(
                f"forget_labels names classes, and the samples of a {task.name} model have none; expected forget_ids, "
                "forget_where or forget_fraction."
            )
        source, config = Source(train, "train_split", Columns(label=args.label_column)), model.config
        named: Any = {} if source.class_names else config.label2id or {}
        meant: Any = (
            config.id2label if source.has_text_labels else named
        )  # a number is the model's where the data has none
        return {"labels": [meant.get(label, label) for label in recipe.forget_labels]}
    return {"where": recipe.forget_where}


def _read_rows(file: str, column: str | None, train: datasets.Dataset) -> list[int]:
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UnlearningError(f"forget_ids is {file!r}, which cannot be read: {error.strerror}.") from None
    ids = [line for line in lines if line]
    if column is None:
        if bad := [line for line in ids if not line.isdecimal()]:
            raise UnlearningError(
                f"{file} has the line {bad[0]!r}; expected row numbers, or id_column with the name of their column."
            )
        return [int(line) for line in ids]
    if column not in train.column_names:
        raise UnlearningError(f"id_column is {column!r}; the dataset has {', '.join(train.column_names)}.")
    wanted, values = set(ids), [str(value) for value in train.with_format(None)[column][:]]
    if missing := sorted(wanted - set(values)):
        raise UnlearningError(
            f"{len(missing)} of the {len(wanted)} values in {file} are not in the column {column!r} (the first one is "
            f"{missing[0]!r}); check the file, the column and train_split."
        )
    return [row for row, value in enumerate(values) if value in wanted]
