"""Loading models and their processing classes from the Hub or a folder, with errors in words."""

import functools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import UnlearningError
from .find import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    IMAGE_PROCESSOR,
    LOAD_ERRORS,
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    check_has_weights,
    check_holds_model,
    check_no_revision,
    explain,
    find_file,
    reachable,
    resolved_commit,
    split_revision,
)
from .kinds import image_channels, in_head, task_of
from .timm import mend_config
from .weights import own_memory, patient_bars

AUTO_CLASSES = {
    "image-classification": AutoModelForImageClassification,
    "text-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
    "multi-task": AutoModel,
}


@patient_bars()
def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    task: str | None = None,
    num_labels: int | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Loads a model from the Hub or a local folder, written by transformers or by timm, from safetensors only.

    Args:
        name_or_path: A Hub id (`owner/name`) or a folder.
        revision: Branch, tag or commit on the Hub.
        task: Which head to load; read from the config when left out.
        num_labels: Asks for a fresh head of this size where the checkpoint has none or one of another size. Without
            it, every weight must come from the checkpoint.
        kwargs: For `from_pretrained`: `dtype`, `attn_implementation`, `device_map`, `token`, `cache_dir`, ...
    """
    name = os.fspath(name_or_path)
    if kwargs.pop("trust_remote_code", False):
        raise UnlearningError(
            f"{name!r} was given with trust_remote_code=True, but code from a repository is never run here: "
            "use an architecture that transformers or timm has."
        )
    if task is not None and task not in AUTO_CLASSES:
        raise UnlearningError(f"task={task!r} is unknown: pass one of {', '.join(AUTO_CLASSES)}.")
    check_no_revision(name, revision)
    kwargs |= reachable(name)
    where = {"revision": revision} | {
        key: kwargs[key] for key in ("token", "cache_dir", "subfolder", "local_files_only") if key in kwargs
    }
    try:
        config = _read_config(name, num_labels, where)
        model_class = AUTO_CLASSES[task or task_of(config)]
        check_has_weights(name, where)
        model, info = model_class.from_pretrained(
            name,
            config=config,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **kwargs,
        )
    except UnlearningError:
        raise
    except LOAD_ERRORS as error:
        raise UnlearningError(explain(error, name, revision)) from error
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if num_labels is not None:
        absent = {key for key in absent if not in_head(model, key)}
    if absent:
        raise UnlearningError(
            f"{name!r} has no fitting weights for {_few(absent)} of {type(model).__name__}, which would stay random: "
            + (
                "pass a trained model."
                if num_labels is not None
                else "pass a trained model, or num_labels= for a fresh head."
            )
        )
    own_memory(model)
    model.config._commit_hash = resolved_commit(name, where)  # as transformers did before version 5
    return model


def _read_config(name: str, num_labels: int | None, where: dict[str, Any]) -> PreTrainedConfig:
    check_holds_model(name, where)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
    mend_config(name, config, num_labels)
    return config


def task_of_named(name_or_path: str | os.PathLike[str]) -> str:
    """What `task_of` says of the model in a folder or on the Hub (`OWNER/NAME@REVISION`), from its config alone."""
    name, revision = split_revision(os.fspath(name_or_path))
    try:
        return task_of(_read_config(name, None, {"revision": revision} | reachable(name)))
    except UnlearningError:
        raise
    except LOAD_ERRORS as error:
        raise UnlearningError(explain(error, name, revision)) from error


def load_processor(
    name_or_path: str | os.PathLike[str], model: nn.Module, revision: str | None = None
) -> BaseImageProcessor | PreTrainedTokenizerBase | None:
    """The image processor or the tokenizer, whichever the model's task needs, or None where there is none."""
    name = os.fspath(name_or_path)
    offline = reachable(name)
    where = {"revision": revision} | offline
    try:
        if image_channels(model) is None:
            # Without a vocabulary AutoTokenizer makes up an empty tokenizer instead of failing.
            if not any(find_file(name, file, where) for file in TOKENIZER_FILES):
                return None
            return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **offline)
        if find_file(name, IMAGE_PROCESSOR, where):
            # Named, because in a local folder AutoImageProcessor prefers timm's entry in config.json to this file.
            return AutoImageProcessor.from_pretrained(
                name, revision=revision, trust_remote_code=False, image_processor_filename=IMAGE_PROCESSOR, **offline
            )
        config = find_file(name, "config.json", where)
        if config is None or "pretrained_cfg" not in json.loads(Path(config).read_text()):
            return None
        return AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False, **offline)
    except LOAD_ERRORS as error:
        raise UnlearningError(explain(error, name, revision)) from error


@torch.no_grad()
@patient_bars()
def load_weights(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Loads what `save_model` or `save_pretrained` wrote into this very model, bit for bit, and strictly.

    The keys in a file need not be the keys of the model: transformers renames, splits and merges weights when it loads
    and undoes it when it saves. So `from_pretrained` reads a second copy, and that one is copied over. Of a `PeftModel`
    the adapters that the folder holds are loaded. What requires a gradient stays as it is.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UnlearningError(f"{str(folder)!r} is no folder: pass one that save_model or save_pretrained wrote.")
    if isinstance(model, PeftModel):
        _load_adapters(model, folder)
        return
    if not isinstance(model, PreTrainedModel):
        try:
            safetensors.torch.load_model(model, folder / WEIGHTS)
        except LOAD_ERRORS as error:
            raise UnlearningError(explain(error, str(folder), None)) from error
        return
    if (folder / ADAPTER_CONFIG).is_file():
        # from_pretrained would follow the adapter to its base model and load that instead.
        raise UnlearningError(
            f"{str(folder)!r} holds a PEFT adapter, and {type(model).__name__} has none: pass a folder with whole "
            "weights, or the PeftModel that the adapter belongs to."
        )
    try:
        dtypes, saved_dtypes = _floating_dtypes(model.state_dict().values()), _floating_dtypes(_saved_tensors(folder))
        if dtypes != saved_dtypes:
            raise UnlearningError(
                f"{str(folder)!r} was saved in {_few(map(str, saved_dtypes))} and the model is in "
                f"{_few(map(str, dtypes))}: build the model with the dtype= that was saved."
            )
        loaded = type(model).from_pretrained(
            folder,
            config=model.config,
            # It casts to one dtype: in the widest that the model has, no bit of any weight is lost.
            dtype=functools.reduce(torch.promote_types, dtypes),
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        saved, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    except UnlearningError:
        raise
    except LOAD_ERRORS as error:
        raise UnlearningError(explain(error, str(folder), None)) from error
    _check_keys(folder, info["missing_keys"], info["unexpected_keys"])
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        raise UnlearningError(
            f"{str(folder)!r} has {key} with shape {tuple(found)} where the model has {tuple(expected)}: "
            "pass a folder that was saved from this model."
        )
    model.load_state_dict(saved.state_dict())


def _few(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _check_keys(folder: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    for keys, problem in ((missing, "lacks"), (unexpected, "has, beyond what the model has,")):
        if keys:
            raise UnlearningError(
                f"{str(folder)!r} {problem} {_few(keys)}: pass a folder that was saved from this model."
            )


def _floating_dtypes(tensors: Iterable[Tensor]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def _saved_tensors(folder: Path) -> Iterator[Tensor]:
    check_has_weights(str(folder), {})
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        files = sorted(set(json.loads((folder / WEIGHTS_INDEX).read_text())["weight_map"].values()))
    for file in files:
        with safe_open(folder / file, framework="pt") as tensors:
            yield from (tensors.get_tensor(key) for key in tensors.keys())  # noqa: SIM118  (it is no dictionary)


def _load_adapters(model: PeftModel, folder: Path) -> None:
    # PEFT puts the adapter `default` at the top of the folder and each other one in a folder of its name.
    paths = {
        path.parent for path in (folder / ADAPTER_WEIGHTS, *folder.glob(f"*/{ADAPTER_WEIGHTS}")) if path.is_file()
    }
    held = {"default" if path == folder else path.name: path for path in sorted(paths)}
    if not held or not held.keys() <= model.peft_config.keys():
        raise UnlearningError(
            f"{str(folder)!r} holds the adapters {_few(held) or '(none)'}, and the model has {_few(model.peft_config)}: "
            "pass a folder that was saved from this model."
        )
    for name, path in held.items():
        try:
            saved = load_peft_weights(str(path), device="cpu")
            own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
            _check_keys(path, own.keys() - saved.keys(), ())
            result = set_peft_model_state_dict(model, saved, adapter_name=name)
        except (RuntimeError, KeyError, SafetensorError) as error:
            raise UnlearningError(explain(error, str(path), None)) from error
        _check_keys(path, (), result.unexpected_keys)
