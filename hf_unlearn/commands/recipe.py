"""Recipes: a whole unlearning run as one flat list of settings, from a YAML file and the command line.

A setting is a field of `RecipeArguments`, of the method's config or of `UnlearningArguments`.
"""

import dataclasses
import difflib
import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from datasets.exceptions import DatasetsError
from huggingface_hub.utils import httpx
from transformers import PreTrainedModel

from .. import models
from ..api import UnlearningResult, unlearn
from ..audits.audit import TASKS as AUDITED_TASKS
from ..audits.report import AuditReport
from ..data.source import Columns, Source
from ..data.splits import split_dataset, split_name
from ..errors import UnlearningError
from ..hub.revisions import check_names
from ..methods import METHODS, Method, MethodConfig, get_method
from ..methods.fields import check_fields
from ..models import adapters
from ..training.arguments import UnlearningArguments
from ..training.checks import check_arguments
from ..training.output import check_result_folder
from .settings import Setting, read_settings, settable, show_default, typed, words

FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
FORGET_CHOICES = ("forget_ids", "forget_labels", "forget_where")


@dataclass
class RecipeArguments:
    """What to unlearn from what. Exactly one of the `forget_...` settings says what has to go; `forget_fraction` may
    stand alone (that share of all rows, drawn at random) or beside another one (that share of the rows it names)."""

    model: str = field(metadata={"help": "the model: a Hub id or a local folder"})
    dataset: str = field(
        metadata={
            "help": "what the model was trained on: a Hub id, a folder written by save_to_disk, a csv, json, jsonl or "
            "parquet file, or a folder of such files or of images (one folder for each class)"
        }
    )
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of the model"})
    base_model: str | None = field(
        default=None,
        metadata={"help": 'what the model was trained from: a Hub id, a folder, or "scratch"; retrain needs it'},
    )
    task: Literal["image-classification", "text-classification", "causal-lm", "multi-task"] | None = field(
        default=None, metadata={"help": "what the model is for; default: found from the model"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset, if it has any"})
    dataset_revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of the dataset"})
    train_split: str = field(
        default="train", metadata={"help": "split the model was trained on, or a slice such as train[:90%]"}
    )
    unseen_split: str | None = field(
        default=None,
        metadata={"help": "split it was never trained on, or a slice; default: validation if there is one, else test"},
    )
    test_split: str | None = field(
        default=None, metadata={"help": "split to measure instead of half of the unseen one; default: none"}
    )
    forget_ids: str | None = field(
        default=None, metadata={"help": "text file with a row of train_split on each line, counted from 0"}
    )
    id_column: str | None = field(
        default=None, metadata={"help": "the lines of forget_ids are values of this column, not row numbers"}
    )
    forget_labels: list[int | str] | None = field(
        default=None, metadata={"help": "classes to forget, by number or name"}
    )
    forget_where: str | None = field(default=None, metadata={"help": "column that is true for the rows to forget"})
    forget_fraction: float | None = field(default=None, metadata={"help": "share to forget, between 0 and 1"})
    tasks: list[str] | None = field(
        default=None,
        metadata={"help": "of a multi-task model, the tasks whose labels of the forget rows must go; default: all"},
    )
    method: str = field(default="lotus", metadata={"help": "see `hf-unlearn methods`"})
    preset: str = field(
        default="default",
        metadata={"help": "the method's values: default, paper, or paper:SETTING such as paper:resnet18-cifar10"},
    )
    lora: bool | None = field(
        default=None,
        metadata={
            "help": "unlearn in a LoRA adapter instead of in the weights; default: the method's choice, which on language "
            "models may be an adapter"
        },
    )
    lora_r: int | None = field(default=None, metadata={"help": "rank of the adapter; default 8, or as damp finds it"})
    lora_head: bool = field(default=False, metadata={"help": "adapt the head too"})
    merge: bool = field(default=False, metadata={"help": "put the adapter into the weights at the end"})
    overlap: Literal["error", "allow"] = field(
        default="error", metadata={"help": "error: refuse forget samples that stand in another set too"}
    )
    resume: bool = field(
        default=False,
        metadata={"help": "go on from the newest complete checkpoint in output_dir, which must be of this very run"},
    )
    audit: Literal[0, 1, 2] | None = field(
        default=None, metadata={"help": "the level of an audit at the end, saved beside the model; default: none"}
    )
    push_to: str | None = field(
        default=None,
        metadata={
            "help": "OWNER/NAME on the Hub that gets the result as a new revision, with card, receipt and audit"
        },
    )
    push_revision: str | None = field(
        default=None, metadata={"help": "the branch; default: unlearned/<method>-<date>-<id of the run>"}
    )

    def __post_init__(self):
        check_fields(self, "recipe")
        given = [name for name in FORGET_CHOICES if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.forget_fraction is not None):
            raise UnlearningError(
                f"What to forget is given by {' and '.join(given) or 'nothing'}; expected exactly one of "
                f"{', '.join(FORGET_CHOICES)}, or forget_fraction alone."
            )
        if self.forget_ids is not None and self.forget_fraction is not None:
            raise UnlearningError(
                f"forget_ids names the rows to forget and forget_fraction is {self.forget_fraction}; expected one of them: "
                "add forget_fraction=null to forget every row in the file."
            )
        if self.lora_r is not None and self.lora_r < 1:
            raise UnlearningError(f"lora_r is {self.lora_r}; expected 1 or more.")
        if (self.lora_r or self.lora_head) and not self.lora:
            name = "lora_r" if self.lora_r else "lora_head"
            raise UnlearningError(
                f"{name} says how an adapter is made, and there is none; expected lora=true beside it."
            )
        if self.merge and self.lora is False:
            raise UnlearningError("merge is true, and lora=false leaves no adapter to merge; expected lora=true.")
        if self.push_revision and not self.push_to:
            raise UnlearningError("push_revision names a branch, and there is no push_to; expected OWNER/NAME there.")
        if self.push_to:
            check_names(self.push_to, self.push_revision)
        if self.id_column and not self.forget_ids:
            raise UnlearningError("id_column says what the lines of forget_ids are, and there is no forget_ids file.")


# ---------------------------------------------------------------------------------------------------------------------
# Reading settings


def parse(
    argv: Sequence[str] | None = None, recipe_file: str | Path | None = None
) -> tuple[RecipeArguments, MethodConfig, UnlearningArguments]:
    """The recipe, the method's config and the training arguments that the settings make (see `read_settings`)."""
    settings = read_settings(sys.argv[1:] if argv is None else argv, recipe_file)
    method = method_of(settings)
    classes = (RecipeArguments, method.config_class, UnlearningArguments)
    known = [settable(cls) for cls in classes]
    values: list[dict[str, Any]] = [{} for _ in classes]
    for key, setting in settings.items():
        home = next((i for i, fields in enumerate(known) if key in fields), None)
        if home is None:
            raise UnlearningError(_unknown(key, setting, method, [name for fields in known for name in fields]))
        values[home][key] = typed(key, setting, known[home][key])
    for f in dataclasses.fields(RecipeArguments):
        if f.default is dataclasses.MISSING and f.name not in values[0]:
            raise UnlearningError(f"The recipe has no {f.name}; expected {f.metadata['help']}.")
    recipe = RecipeArguments(**values[0])
    return recipe, _make_config(method, recipe.preset, values[1]), UnlearningArguments(**values[2])


def method_of(settings: dict[str, Setting]) -> type[Method]:
    """The method that the settings name."""
    return get_method(typed("method", settings.get("method", Setting(RecipeArguments.method, "by default")), str))


def _make_config(method: type[Method], preset: str, values: dict[str, Any]) -> MethodConfig:
    name, _, setting = preset.partition(":")
    if preset == "default":
        return method.config_class(**values)
    paper = getattr(method.config_class, "paper", None)
    if name != "paper" or paper is None:
        expected = "default, paper or paper:SETTING" if paper else f"default, all that {method.info.name} has"
        raise UnlearningError(f"preset is {preset!r}; expected {expected}.")
    arguments = [setting] if setting else []
    try:
        inspect.signature(paper).bind(*arguments)
        base = paper(*arguments)
    except TypeError:  # it takes no setting
        raise UnlearningError(
            f"preset is {preset!r}, which {method.info.name} has no values for; `hf-unlearn methods {method.info.name}` "
            "names the settings of its paper."
        ) from None
    return dataclasses.replace(base, **values)


def _unknown(key: str, setting: Setting, method: type[Method], known: list[str]) -> str:
    message = f"There is no setting {key!r} ({setting.origin})"
    if owners := [name for name, other in METHODS.items() if key in settable(other.config_class)]:
        return f"{message} with the method {method.info.name}; it belongs to {', '.join(owners)}. Remove it."
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{message}{hint} `hf-unlearn run --help method={method.info.name}` lists all of them."


# ---------------------------------------------------------------------------------------------------------------------
# Listing settings


def help_text(method: str) -> str:
    """Every setting with its type, default and help, by the dataclass it belongs to."""
    config_class = get_method(method).config_class
    own = inspect.get_annotations(UnlearningArguments)
    training = dict.fromkeys(settable(UnlearningArguments))
    groups = {
        "What to unlearn": (RecipeArguments, list(settable(RecipeArguments))),
        f"How: {method} ({config_class.__name__})": (config_class, list(settable(config_class))),
        "Training and measuring (UnlearningArguments)": (UnlearningArguments, [n for n in training if n in own]),
        "Training (transformers.TrainingArguments)": (UnlearningArguments, [n for n in training if n not in own]),
    }
    lines = []
    for title, (cls, names) in groups.items():
        lines += ["", f"{title}:" if names else f"{title}: no settings of its own"]
        fields, kinds = {f.name: f for f in dataclasses.fields(cls)}, settable(cls)
        for name in names:
            lines.append(f"  {name}: {words(kinds[name])}; {show_default(fields[name])}")
            text = fields[name].metadata.get("help") or ""
            lines += textwrap.wrap(text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


# ---------------------------------------------------------------------------------------------------------------------
# Running


def run(recipe: RecipeArguments, config: MethodConfig, args: UnlearningArguments) -> UnlearningResult:
    """Load the model and the data, unlearn, save the result in `args.output_dir`, and print what came out."""
    check_arguments(args)
    check_result_folder(result_folder(args), recipe.model if Path(recipe.model).is_dir() else None)
    model, processing_class = load_model(recipe)
    data = load_data(recipe, args, model)
    _check_audit(recipe, model, data)
    result = unlearn(
        model,
        **data,
        method=config,
        args=args,
        processing_class=processing_class,
        peft_config=_adapter(recipe, model),
        merge=recipe.merge,
        base_model=recipe.base_model,
        tasks=recipe.tasks,
        overlap=recipe.overlap,
        resume_from_checkpoint=args.resume_from_checkpoint or recipe.resume,
    )
    save_and_report(result)
    report = None if recipe.audit is None else audit_and_report(result, recipe.audit)
    if recipe.push_to:
        pushed = result.push_to_hub(recipe.push_to, recipe.push_revision, report=report)
        if pushed:
            print(f"Pushed to {pushed.url}", flush=True)
    return result


def _check_audit(recipe: RecipeArguments, model: PreTrainedModel, data: dict[str, datasets.Dataset | None]) -> None:
    """Refuses before the run what the audit after it would refuse."""
    if recipe.audit is None:
        return
    if (task := models.task_of(model)) not in AUDITED_TASKS:
        raise UnlearningError(
            f"audit is {recipe.audit}, and the model is for {task}, which cannot be audited; leave out audit, or use a model "
            f"for {', '.join(AUDITED_TASKS)}."
        )
    if recipe.audit and data["unseen"] is None and data["test"] is None:
        raise UnlearningError(
            f"audit is {recipe.audit}, which needs samples that the model was never trained on; expected unseen_split, or "
            "audit=0."
        )


def _adapter(recipe: RecipeArguments, model: PreTrainedModel) -> Any:
    """The `peft_config` of `unlearn()`."""
    if not recipe.lora_r and not recipe.lora_head:
        return recipe.lora
    rank = {"r": recipe.lora_r} if recipe.lora_r else {}
    return adapters.default_config(model, head=recipe.lora_head, **rank)


def load_model(recipe: RecipeArguments) -> tuple[PreTrainedModel, Any]:
    """The model, and its image processor or tokenizer."""
    model = models.load_model(recipe.model, revision=recipe.revision, task=recipe.task)
    return model, models.load_processor(recipe.model, model, recipe.revision)


def load_data(
    recipe: RecipeArguments, args: UnlearningArguments, model: PreTrainedModel
) -> dict[str, datasets.Dataset | None]:
    """The `forget`, `retain`, `unseen` and `test` samples."""
    with args.main_process_first(desc="reading the dataset"):
        splits = read_dataset(recipe.dataset, recipe.dataset_config, recipe.dataset_revision)
    unseen_split = recipe.unseen_split
    if unseen_split is None:
        usual = (name for name in ("validation", "test") if name in splits and name != recipe.test_split)
        unseen_split = next(usual, None)
    if unseen_split is None and "unseen" in get_method(recipe.method).info.needs:
        raise UnlearningError(
            f"{recipe.method} needs unseen samples, and the dataset {recipe.dataset!r} has only the split "
            f"{', '.join(splits)}; name one with unseen_split, which may be a slice that the model was not trained on, "
            "such as train[90%:]."
        )
    names = {"train_split": recipe.train_split, "unseen_split": unseen_split, "test_split": recipe.test_split}
    train, unseen, test = (name and take_split(splits, name, key) for key, name in names.items())
    parts = split_dataset(
        train,
        **_forget_choice(recipe, train, model, args),
        fraction=recipe.forget_fraction,
        seed=args.seed,
        label_column=args.label_column,
    )
    return {**parts, "unseen": unseen, "test": test}


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


def read_dataset(name: str, config: str | None = None, revision: str | None = None) -> datasets.DatasetDict:
    """All splits of a dataset of the Hub, of a folder, or of a file."""
    path = Path(name)
    for what, value in (("dataset_config", config), ("dataset_revision", revision)):
        if value is not None and path.exists():
            raise UnlearningError(
                f"{what} is {value!r}, and the dataset {name!r} is a local file or folder, which has none; leave it out."
            )
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            data = datasets.load_from_disk(name)
        elif path.is_file():
            if path.suffix not in FILE_FORMATS:
                raise UnlearningError(f"dataset is the file {name!r}; expected one of {', '.join(FILE_FORMATS)}.")
            data = datasets.load_dataset(FILE_FORMATS[path.suffix], data_files=name)
        else:
            if not path.exists():
                models.check_token(None)
            with _reading_cache_only(not path.exists() and not models.hub_is_reachable()):
                data = datasets.load_dataset(name, config, revision=revision)
    except UnlearningError:
        raise
    except (DatasetsError, OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
        check = "its files" if path.exists() else "its name and the connection, or give a local folder or file"
        raise UnlearningError(f"The dataset {name!r} cannot be loaded: {reason}. Check {check}.") from error
    return data if isinstance(data, datasets.DatasetDict) else datasets.DatasetDict(train=data)


@contextmanager
def _reading_cache_only(offline: bool) -> Iterator[None]:
    """What `HF_HUB_OFFLINE=1` does for datasets: they ask the Hub many times, and wait, before they look into the cache."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def take_split(splits: datasets.DatasetDict, name: str, key: str) -> datasets.Dataset:
    """A split, or slices of splits such as `train[:90%]`."""
    if name in splits:
        return splits[name]
    try:
        slices = datasets.ReadInstruction.from_spec(name).to_absolute({split: len(splits[split]) for split in splits})
    except (ValueError, AssertionError):
        raise UnlearningError(
            f"{key} is {name!r}; the dataset has {', '.join(splits)} (a slice such as {next(iter(splits))}[:90%] works too)."
        ) from None
    return datasets.concatenate_datasets([splits[s.splitname].select(range(s.from_, s.to)) for s in slices])


def read_set(data: str, key: str) -> datasets.Dataset:
    """A set named on the command line: NAME, or NAME:SPLIT where the split may be a slice such as `train[:10%]`."""
    name, split = split_name(data)
    splits = read_dataset(name)
    if split is None and len(splits) > 1:
        raise UnlearningError(
            f"{key} is {data!r}, which has the splits {', '.join(splits)}; say which one, as in {data}:{next(iter(splits))}."
        )
    return take_split(splits, split or next(iter(splits)), key)


def drawn(data: datasets.Dataset, size: int | None, seed: int = 0) -> datasets.Dataset:
    """At most `size` rows, drawn at random, in their own order."""
    if size is None or size >= len(data):
        return data
    return data.select(np.sort(np.random.default_rng(seed).choice(len(data), size, replace=False)))


def _forget_choice(
    recipe: RecipeArguments, train: datasets.Dataset, model: PreTrainedModel, args: UnlearningArguments
) -> dict[str, Any]:
    """The rows to forget, as an argument of `split_dataset`."""
    if recipe.forget_ids is not None:
        return {"indices": _read_rows(recipe.forget_ids, recipe.id_column, train)}
    if recipe.forget_labels is not None:
        if not (task := models.task_of(model)).endswith("classification"):
            raise UnlearningError(
                f"forget_labels names classes, and the samples of a {task} model have none; expected forget_ids, "
                "forget_where or forget_fraction."
            )
        source, config = Source(train, "train_split", Columns(label=args.label_column)), model.config
        named = {} if source.class_names else config.label2id or {}
        meant = config.id2label if source.has_text_labels else named  # a number is the model's where the data has none
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
