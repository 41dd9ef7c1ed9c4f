"""What a checkpoint belongs to: one original, one request, one method, and all else that the trajectory depends on.

A record of it stands in each checkpoint. Settings are in it as they are, so that a refusal can say them; of the samples
there are sizes, and digests under the key of the run, which say nothing to who does not have the samples.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import BaseImageProcessor, SchedulerType
from transformers.trainer_callback import ExportableState

from .. import models
from ..data.collator import Collator
from ..data.randomness import seeded
from ..data.source import Source
from ..methods import Method
from ..models.adapters import NAME, is_adapted
from .fingerprint import fingerprint, outline
from .parts import Parts
from .request import Request

# Training arguments that a trajectory depends on. Batch layout, gradient checkpointing, compilation, devices, workers and
# all that only saves, logs or measures do not belong to them: with any of these the weights are the same up to rounding.
ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "optim_target_modules", "weight_decay", "decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed",
    "split_seed", "neftune_noise_alpha", "tf32", "load_best_model_at_end",
)  # fmt: skip
# And those that decide when the run is looked at, where what is seen then steers it.
LOOKS = ("metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps", "eval_delay")
SAVES = ("save_strategy", "save_steps")

PARTS = {"original", "method", "training", "model", "schedule", "callbacks", "request"}  # of what a checkpoint notes

# Of an adapter's config: where it came from and which version wrote it.
NAMES = {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type"}


# ---------------------------------------------------------------------------------------------------------------------
# Settings, which are noted before the first step


def settings_of(trainer: Parts, original: str) -> dict[str, Any]:
    """All but the request, of a trainer that has not begun; `original` is the digest of its weights."""
    schedule = trainer.planned
    return _plain(
        {
            "original": original,
            "method": {"name": trainer.method.info.name, "config": _config(trainer.method)},
            "training": _training(trainer),
            "model": _model(trainer),
            "schedule": {"number of steps": len(schedule), "epochs": schedule.epochs},
            "callbacks": _own_callbacks(trainer),
        }
    )


def _own_callbacks(trainer: Parts) -> list[str]:
    """The names of the user's callbacks, which may change anything, or nothing: they are told, and not compared."""
    kinds = (type(callback) for callback in trainer.callback_handler.callbacks)
    return sorted(
        k.__qualname__ for k in kinds if k.__module__.partition(".")[0] not in ("transformers", "hf_unlearn")
    )


def _config(method: Method) -> dict[str, Any]:
    values = {field.name: getattr(method.config, field.name) for field in dataclasses.fields(method.config)}
    del values["arguments"]  # they are among the training arguments
    return values


def _training(trainer: Parts) -> dict[str, Any]:
    """The training arguments, and what was given beside them."""
    args, request = trainer.args, trainer.request
    callbacks = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ExportableState)]
    stateful = {type(callback).__name__: callback.state()["args"] for callback in callbacks}
    steered = args.load_best_model_at_end or stateful or args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    names = ARGUMENTS + LOOKS * bool(steered) + SAVES * args.load_best_model_at_end
    values = {"callbacks": stateful} | {name: getattr(args, name) for name in names} | trainer.own_clipping()
    if others := trainer.reading.alternatives:
        values["other answers to the forget samples"] = hashlib.sha256(others.source.digests().tobytes()).hexdigest()
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # whose states of the optimizer nothing else finds
        values["cut up by"] = "FSDP2" if trainer.is_fsdp_enabled else "DeepSpeed"
    return values | {
        "data_seed": args.seed if args.data_seed is None else args.data_seed,
        "number of epochs": len(trainer.planned.epochs),
        "samples of a step (batch size × accumulation × processes)": trainer.planned.batch_size,
        "mixed precision": trainer.accelerator.mixed_precision,
        "retain_eval_size": len(request.indices["retain"][1]) if "retain" in request.indices else 0,
        "test": "given" if {"unseen", "test"} <= request.sources.keys() else None,  # else half of unseen steers
        "optimizer": _named(trainer.given_optimizer),
        "base_model": _named(trainer.base_model),
        "teacher": _named(trainer.given_teacher),
        "augment": _named(trainer.train_dataset.augment),
        "data_collator": _named(trainer.collate.data_collator),
        "what the model reads of a sample": _inputs(trainer.collate, request.forget, trainer.processing_class),
    }


def _model(trainer: Parts) -> dict[str, Any]:
    """What else is known of the model than its weights."""
    args, model, frozen = trainer.args, trainer.model, set(trainer.frozen_batchnorm)
    dropout = sorted({value for module in model.modules() for value in _dropout(module)})
    batchnorm = set(models.batchnorm_modules(model))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapter = model.peft_config[NAME].to_dict() if is_adapted(model) else {}
    about = {
        "dtype of the weights": str(next(models.base_of(model).parameters()).dtype),
        "dropout": dropout,
        "freeze_batchnorm": bool(frozen) if batchnorm else None,
        "which weights are trained": hashlib.sha256("\n".join(trained).encode()).hexdigest(),
    }
    if dropout or batchnorm - frozen or args.neftune_noise_alpha:  # a step depends on how it is cut into micro-batches
        layout = args.train_batch_size, args.gradient_accumulation_steps, args.world_size
        about["batch size, accumulation and processes"] = layout
    return about | {f"peft_config.{name}": value for name, value in adapter.items() if name not in NAMES}


def _dropout(module: nn.Module) -> Iterator[float]:
    """Whatever probabilities a module has, of a layer of torch or of its own."""
    for name, value in vars(module).items():
        if isinstance(value, float) and value > 0 and ("drop" in name or isinstance(module, _DropoutNd)):
            yield value


def _named(value: Any, within: tuple[int, ...] = ()) -> str | None:
    """A text that tells a model, a function or an optimizer that was given from another one, in a later process too.

    Of a function it is its name, its code and what it was made with; of an object without a text of its own, its attributes.
    """
    if value is None or isinstance(value, (str, Path)):
        return value and str(value)
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    if id(value) in within:  # it holds itself
        return text
    within += (id(value),)
    if isinstance(value, nn.Module):  # a model, or a transform of torchvision
        text += models.weights_digest(value)
    elif isinstance(value, MethodType):
        text = _values({"method": value.__func__, "of": value.__self__}, within)
    elif isinstance(value, functools.partial):
        text = _values({"partial": value.func, **dict(enumerate(value.args)), **value.keywords}, within)
    elif isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        held = {name: cell.cell_contents for name, cell in cells} | dict(enumerate(value.__defaults__ or ()))
        text = f"{value.__module__}.{value.__qualname__} {_code(value.__code__)}"
        text += _values(held | (value.__kwdefaults__ or {}), within)
    elif type(value).__repr__ is object.__repr__:
        text += _values(getattr(value, "__dict__", {}), within)
    return text if len(text) < 200 else hashlib.sha256(text.encode()).hexdigest()


def _values(held: Mapping[Any, Any], within: tuple[int, ...]) -> str:
    return str({name: _named(value, within) for name, value in held.items()})


def _code(code: CodeType) -> str:
    """What a function does, wherever it stands."""
    constants = [_code(c) if isinstance(c, CodeType) else sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
                 for c in code.co_consts]  # fmt: skip
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()


def _inputs(collate: Collator, source: Source, processing_class: Any) -> str:
    """What the model reads of the first samples: tokens as they are, of images the settings of their processor.

    (Pixels may differ in their last bit on another machine.)
    """
    digest = hashlib.sha256()
    if isinstance(processing_class, BaseImageProcessor):
        about = {key: value for key, value in processing_class.to_dict().items() if "name" not in key}
        digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    with seeded(0):
        inputs = collate(source.rows(range(min(8, len(source))))).inputs
    for name, tensor in sorted(inputs.items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(b"" if tensor.is_floating_point() else tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# The request


def request_of(request: Request, key: str) -> dict[str, dict[str, Any]]:
    """The sets, and what of `forget` must go; not `test`, which is only measured."""
    sets = {name: fingerprint(request.sources[name], key) for name in ("forget", "unseen") if name in request.sources}
    if request.retain is not None:
        sets["retain"] = outline(request.retain, key)
    if request.mask is not None:
        sets["forget"]["tasks"] = hashlib.blake2b(request.mask.tobytes(), key=key.encode()).hexdigest()
    return sets


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """In words, what a run that is to go on differs in from the run that wrote a checkpoint.

    Another length of the schedule, and other weights to begin with, are told only where nothing else explains them.
    """
    found = _request_differences(now["request"], then["request"])
    if now["method"]["name"] != then["method"]["name"]:
        found += _differences({"method": now["method"]["name"]}, {"method": then["method"]["name"]})
    else:
        found += _differences(now["method"]["config"], then["method"]["config"])
    found += _differences(now["training"], then["training"]) + _differences(now["model"], then["model"])
    found = found or _differences(now["schedule"], then["schedule"])
    if not found and now["original"] != then["original"]:
        found = ["the original is another model, or was changed since"]
    return found


def _request_differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    found = []
    for name in ("forget", "retain", "unseen"):
        mine, theirs = now.get(name), then.get(name)
        if mine == theirs:
            continue
        if not (mine and theirs):
            found.append(f"{name} is {'given now and was not' if mine else 'not given now and was'}")
        elif mine["samples"] != theirs["samples"]:
            found.append(f"{name} has {mine['samples']} samples and had {theirs['samples']}")
        elif mine["inputs"] != theirs["inputs"]:
            found.append(f"{name} has other samples than it had, or another order")
        elif mine["labels"] != theirs["labels"]:
            found.append(f"{name} has other labels than it had")
        else:
            found.append("tasks names other labels to forget than it did")
    return found


def _differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    found = []
    for name in dict.fromkeys([*now, *then]):
        mine, theirs = now.get(name), then.get(name)
        if mine != theirs:
            short = len(str(mine)) < 40 and len(str(theirs)) < 40
            found.append(f"{name} is {mine!r} and was {theirs!r}" if short else f"{name} is not as it was")
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As it reads back from JSON."""
    return json.loads(json.dumps(values, default=_as_json))


def _as_json(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, (set, frozenset)) else _named(value)
