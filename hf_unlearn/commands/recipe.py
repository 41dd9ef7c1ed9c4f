"""Recipes: a whole unlearning run as one flat list of settings, from a YAML file and the command line.

A setting is a field of `RecipeArguments`, of the method's config or of `UnlearningArguments`.
"""

import dataclasses
import difflib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import UnlearningError
from ..hub.revisions import check_names
from ..methods import METHODS, Method, MethodConfig, get_method
from ..methods.fields import check_fields
from ..training.arguments import UnlearningArguments
from .settings import Setting, read_settings, settable, show_default, typed, words
from .text import wrapped

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
    method: str = field(default="auto", metadata={"help": "see `hf-unlearn methods`"})
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
    load_in_4bit: bool = field(
        default=False,
        metadata={
            "help": "read the weights of a language model in 4 bits (NF4, by bitsandbytes) and train the adapter beside them"
        },
    )
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
        if self.load_in_4bit and self.lora is False:
            raise UnlearningError(
                "load_in_4bit leaves no weights to train, and lora=false no adapter; expected lora=true."
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
    return read(read_settings(sys.argv[1:] if argv is None else argv, recipe_file))


def read(settings: dict[str, Setting]) -> tuple[RecipeArguments, MethodConfig, UnlearningArguments]:
    """What the settings mean."""
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
            lines += wrapped((fields[name].metadata.get("help") or "").replace("%%", "%"), " " * 6)
    return "\n".join(lines[1:])
