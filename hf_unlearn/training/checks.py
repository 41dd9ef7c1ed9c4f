"""What a call asks for, checked before anything is loaded; and the optimizer and schedule, tried on one weight."""

import copy
import logging
import os
from collections.abc import Iterable
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, SchedulerType, Trainer, TrainerCallback, get_scheduler
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from ..errors import UnlearningError, in_one_sentence
from ..methods import Method
from ..models import adapters
from ..tasks import task_of
from ..tasks.base import Task
from .arguments import UnlearningArguments
from .output import check_folder
from .request import Request
from .zero import check_zero

logger = logging.getLogger(__name__)

AT_LEAST = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "retain_size"), 1
    ),
    "save_total_limit": 1,
    "max_length": 2,
    "stride": 1,
    **dict.fromkeys(("weight_decay", "max_grad_norm", "warmup_steps", "adam_beta1", "adam_beta2", "eval_delay"), 0),
    **dict.fromkeys(("seed", "data_seed", "split_seed", "dataloader_num_workers", "retain_eval_size"), 0),
}
ABOVE_ZERO = ("learning_rate", "adam_epsilon", "logging_steps", "eval_steps", "save_steps")
BELOW = {"adam_beta1": 1, "adam_beta2": 1, "seed": 2**32, "data_seed": 2**32}
WITHOUT_EFFECT = {
    "label_smoothing_factor": "the method makes the loss",
    "train_sampling_strategy": "the method's schedule says what a step trains on",
    "length_column_name": "the method's schedule says what a step trains on",
    "dataloader_drop_last": "no sample of an epoch is left out",
    "ignore_data_skip": "a resumed run goes on with the samples that it had not trained on",
    "prediction_loss_only": "evaluation is of the method's figures",
    "batch_eval_metrics": "evaluation is of the method's figures",
    "eval_accumulation_steps": "evaluation is of the method's figures",
    "include_for_metrics": "evaluation is of the method's figures",
    "label_names": "label_column names the labels",
}
OF_TRAINING = (  # what an edit takes no notice of
    *("learning_rate", "num_train_epochs", "max_steps", "weight_decay", "optim", "lr_scheduler_type"),
    *("max_grad_norm", "warmup_steps", "gradient_accumulation_steps", "neftune_noise_alpha", "eval_strategy"),
    "load_best_model_at_end",
)
EVIDENCE = ("unseen", "mia", "auc", "rf_jsd", "kept", "uis", "task_interference")  # metrics that see the evidence half
OF_THE_TRAINER = {  # its arguments that this one takes no notice of
    "train_dataset": "pass forget_dataset and retain_dataset",
    "eval_dataset": "pass unseen_dataset and test_dataset",
    "compute_metrics": "the figures are those of the request",
    "compute_loss_func": "pass a Method of your own",
    "preprocess_logits_for_metrics": "the figures are those of the request",
    "model_init": "pass the model",
}


def check_call(
    model: Any,
    args: Any,
    method: Method,
    *,
    processing_class: Any = None,
    data_collator: Any = None,
    peft_config: Any = None,
    base_model: Any = None,
    teacher: Any = None,
    augment: Any = None,
    callbacks: Any = None,
    **others: Any,
) -> None:
    """Every argument of the trainer but its data sets, before anything is loaded."""
    if isinstance(model, type) or not isinstance(model, (nn.Module, str, os.PathLike)) or model == "":
        inner = isinstance(getattr(model, "model", None), nn.Module) and not isinstance(model, type)
        hint = f"pass the model in it ({type(model).__name__}.model)" if inner else "load it first, or name it"
        raise UnlearningError(
            f"model is {_what(model)}; expected a model, a Hub id or a folder: {hint}.",
        )
    for name, value, words in (
        ("processing_class", processing_class, "an image processor or a tokenizer, or nothing"),
        ("data_collator", data_collator, "a function of a list of samples"),
        ("augment", augment, "a function of the raw image or text"),
    ):
        if value is not None and (not callable(value) or (name == "processing_class" and isinstance(value, type))):
            raise UnlearningError(f"{name} is {_what(value)}; expected {words}.")
    for name, value in (("base_model", base_model), ("teacher", teacher)):
        if value is not None and not (value and isinstance(value, (str, os.PathLike))) and not callable(value):
            raise UnlearningError(
                f"{name} is {_what(value)}; expected a model, a Hub id, a folder or a function that returns a model."
            )
    if teacher is not None and not method.takes_teacher:
        raise UnlearningError(f"{method.info.name} has no use for teacher=; leave it out, or use local_teacher.")
    _check_callbacks(callbacks)
    if peft_config is not None and not isinstance(peft_config, bool):
        adapters.check_config(peft_config)
    for name, hint in OF_THE_TRAINER.items():
        if others.get(name) is not None:
            raise UnlearningError(f"{name} is given, which has no effect here: {hint}.")
    check_arguments(args)
    check_values(args.resolved(method.config.arguments))


def _what(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, str) else f"a {type(value).__name__}"


def _check_callbacks(callbacks: Any) -> None:
    if callbacks is None:
        return
    found = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    for callback in found:
        kind = callback if isinstance(callback, type) else type(callback)
        if not isinstance(callbacks, (list, tuple)) or not issubclass(kind, TrainerCallback):
            raise UnlearningError(f"callbacks has {_what(callback)}; expected a list of TrainerCallbacks.")


def check_arguments(args: Any) -> None:
    """The training arguments as the user gave them, and the output folder."""
    if not isinstance(args, UnlearningArguments):
        raise UnlearningError(f"args is {_what(args)}; expected UnlearningArguments.")
    check_values(args)
    if args.fp16 and args.device.type == "cpu":
        raise UnlearningError("fp16 needs a GPU; pass bf16=True and use_cpu=True, or neither, on this machine.")
    if args.auto_find_batch_size:
        raise UnlearningError(
            "auto_find_batch_size would change the schedule in the middle; set the batch size yourself."
        )
    if args.push_to_hub:
        raise UnlearningError(
            f"push_to_hub=True with hub_strategy={HubStrategy(args.hub_strategy).value!r} would push several commits to main while the run "
            "goes on, with checkpoints or without card and receipt; push the result when it is over, with push_to_hub()."
        )
    check_folder(args.output_dir, "output_dir")


def check_values(args: UnlearningArguments) -> None:
    """Types and ranges, and settings that would have no effect."""
    args.check_types()
    if (args.num_train_epochs or 0) <= 0 and args.max_steps <= 0:
        raise UnlearningError(f"num_train_epochs is {args.num_train_epochs}; expected a positive number.")
    if args.max_steps != -1 and args.max_steps < 1:
        raise UnlearningError(f"max_steps is {args.max_steps}; expected 1 or more, or -1 for none.")
    for tests, holds, words in (
        (AT_LEAST, lambda value, least: value >= least, "{} or more"),
        (dict.fromkeys(ABOVE_ZERO, 0), lambda value, least: value > least, "a number above {}"),
        (BELOW, lambda value, most: value < most, "less than {}"),
    ):
        for name, bound in tests.items():
            value = getattr(args, name)
            if value is not None and not holds(value, bound):
                raise UnlearningError(f"{name} is {value!r}; expected {words.format(bound)}.")
    if args.load_best_model_at_end and args.eval_strategy == IntervalStrategy.NO:
        raise UnlearningError(
            "load_best_model_at_end is True, which has no effect with eval_strategy and save_strategy 'no'; expected 'epoch' or "
            "'steps' for both."
        )
    defaults = type(args).__dataclass_fields__
    for name, why in WITHOUT_EFFECT.items():
        if (value := getattr(args, name)) != defaults[name].default and value not in (None, []):
            raise UnlearningError(f"{name} is {value!r}, which has no effect, because {why}; leave it out.")


def check_resolved(
    args: UnlearningArguments,
    method: Method,
    model: nn.Module,
    request: Request,
    adapted: bool,
    optimizers: tuple | None = None,
    optimizer_cls_and_kwargs: tuple | None = None,
    **others: Any,
) -> None:
    """What can be known of the training arguments once the method has filled in its own."""
    check_values(args)
    if request.task.is_whole and args.n_gpu > 1:
        raise UnlearningError(
            f"{args.n_gpu} GPUs would share the batches of one process (DataParallel), which {request.task.noun} cannot; expected one "
            "process for each (accelerate launch, or torchrun), or one GPU (CUDA_VISIBLE_DEVICES=0)."
        )
    if not adapted and method.info.kind != "surgery":
        _check_quantised(method, model)
    _check_steering(args, request)
    own = (optimizers or (None,))[0]
    if method.info.kind == "gradient":
        check_gradient_method(method, args, own, optimizer_cls_and_kwargs, request.has_stream)
    if method.info.kind == "surgery":
        _say_what_is_idle(args, method)
        return
    if not adapted and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnlearningError(
            "All weights of the model are frozen, and none would be trained; expected model.requires_grad_(True), or some of "
            "them with requires_grad, or peft_config."
        )
    check_optimizer(args, model, bool(optimizer_cls_and_kwargs or own))


def _say_what_is_idle(args: UnlearningArguments, method: Method) -> None:
    """A warning and no error: one set of arguments may be for several methods."""
    usual = type(args).__dataclass_fields__
    found = [name for name in OF_TRAINING if name not in args._unset and getattr(args, name) != usual[name].default]
    if found:
        logger.warning(
            f"{method.info.name} edits the weights once, without training: {', '.join(found)} have no effect."
        )


def _check_steering(args: UnlearningArguments, request: Request) -> None:
    steering = str(args.metric_for_best_model).removeprefix("eval_")
    if steering.startswith(EVIDENCE):
        raise UnlearningError(
            f"metric_for_best_model is {args.metric_for_best_model}, which is measured on the half of the unseen samples "
            "that must not steer; expected gap, or a metric of forget or retain."
        )
    if steering == "gap" and (why := request.why_no_gap()):
        if args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST:
            raise UnlearningError(
                f"The best checkpoint is the one with the smallest gap, and there is no gap because {why}; pass such "
                "samples, another metric_for_best_model, or load_best_model_at_end=False."
            )
        args.metric_for_best_model = None


def check_steering_figure(args: UnlearningArguments, figures: dict[str, float | None]) -> None:
    """The figures of the original are known: the one that is to steer must be among them."""
    name = args.metric_for_best_model
    if name is None or args.eval_strategy == IntervalStrategy.NO:
        return
    known = [key for key, value in figures.items() if value is not None and not key.startswith(EVIDENCE)]
    if name.removeprefix("eval_") not in known:
        raise UnlearningError(f"metric_for_best_model is {name!r}; expected one of {', '.join(known)}.")


# ---------------------------------------------------------------------------------------------------------------------
# The optimizer and the schedule


def check_optimizer(args: UnlearningArguments, model: nn.Module, own: bool = False) -> None:
    """Make the optimizer and the schedule of the learning rate as the Trainer will, for one weight, and take steps.

    What lacks its package, its arguments, or has some that nobody reads, is found here and not after the first pass.
    `own`: the user gives the optimizer, and only the schedule is tried.
    """
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=cast(float, args.learning_rate))
    optim, kind = OptimizerNames(args.optim), SchedulerType(args.lr_scheduler_type)
    try:
        if not own:
            make, settings = Trainer.get_optimizer_cls_and_kwargs(args, cast(PreTrainedModel, model))
            if not {"params", "model", "optimizer_dict"} & settings.keys():  # else it is made for the whole model
                optimizer = make([weight], **settings)
    except Exception as error:
        about = f" with optim_args={args.optim_args!r}" if args.optim_args else ""
        raise UnlearningError(f"optim={optim.value!r}{about} cannot be used: {in_one_sentence(error)}") from error
    projects = any(name in optim.value for name in ("galore", "apollo"))
    if args.optim_target_modules is not None and (own or not projects):
        raise UnlearningError(
            f"optim_target_modules is {args.optim_target_modules!r}, which only GaLore and APOLLO optimizers read, and optim is "
            f"{optim.value!r}; leave it out."
        )
    constant = kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
    if args.lr_scheduler_kwargs and constant:
        raise UnlearningError(
            f"lr_scheduler_kwargs is {args.lr_scheduler_kwargs!r}, and lr_scheduler_type={kind.value!r} has no "
            "arguments; leave it out."
        )
    if not own and args.optim_args and (key := _unread(args, args.optim_args, model)):
        raise UnlearningError(
            f"optim_args is {args.optim_args!r}, and optim={optim.value!r} has no argument {key!r} there; check its "
            "spelling, or leave it out."
        )
    try:
        schedule = get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=0,
            num_training_steps=1000,
            scheduler_specific_kwargs=cast(dict[str, Any] | None, args.lr_scheduler_kwargs),
        )
        optimizer.step()
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.step(0.0)
        else:
            schedule.step()
    except Exception as error:
        raise UnlearningError(
            f"lr_scheduler_type={kind.value!r} with lr_scheduler_kwargs={args.lr_scheduler_kwargs} cannot "
            f"be used: {in_one_sentence(error)}"
        ) from error


def _unread(args: UnlearningArguments, settings: str, model: nn.Module) -> str | None:
    """An argument in `settings`, the `optim_args`, whose value makes no difference, whatever it is."""
    given = dict(pair.split("=") for pair in settings.replace(" ", "").split(","))
    for key in given:
        made = []
        for value in ("", "7", "true"):  # no reader takes all of them, or takes them for the same
            changed = copy.copy(args)
            changed.optim_args = ",".join(f"{k}={v}" for k, v in {**given, key: value}.items())
            try:
                made.append(Trainer.get_optimizer_cls_and_kwargs(changed, cast(PreTrainedModel, model))[1])
            except Exception:
                break
        if len(made) == 3 and made[0] == made[1] == made[2]:
            return key
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The method and the model


def task_for(method: Method, model: nn.Module, base_model: Any = None) -> tuple[Task, Method]:
    """The model's task, and the method for it, which is told of it, if it works there."""
    task = task_of(model, method.own_losses, method.own_tasks)
    asked, method = method, method.for_task(task)
    if base_model is not None and asked.starts_over and not method.starts_over:
        raise UnlearningError(
            f"base_model is given, and on a model for {task.name} {asked.info.name} is {method.info.name}, which goes back to no other "
            'model; leave it out, or use method="rewind".'
        )
    if task.name not in method.info.applies_to:
        raise UnlearningError(
            f"{method.info.name} works on {' and '.join(method.info.applies_to)}, and this model is for {task.name}; "
            f"list_methods(task={task.name!r}) names the methods for it."
        )
    method.learn_task(task)
    return task, method


def check_surgery(method: Method, model: nn.Module, peft_config: Any) -> None:
    """Of a method that edits weights once: an adapter in the model, and what is to be done about a new one."""
    if method.info.kind != "surgery":
        return
    name = method.info.name
    if adapters.is_adapted(model):
        raise UnlearningError(
            f"{name} edits weights, and the model is a PeftModel, whose adapter it would not see; pass "
            "model.merge_and_unload()."
        )
    if peft_config and method.edit_as_adapter is None:
        raise UnlearningError(f"{name} changes single weights, which no LoRA adapter can; leave out peft_config.")
    if peft_config and peft_config is not True:
        raise UnlearningError(
            f"{name} finds out itself which layers it edits and with what rank, and was given a "
            f"{type(peft_config).__name__}; expected peft_config=True (lora=true without lora_r in a recipe), for its edit "
            "as an adapter, or nothing."
        )


def _check_quantised(method: Method, model: nn.Module) -> None:
    """Weights of whole numbers have no gradient; an adapter beside them has."""
    found = next((p.dtype for p in model.parameters() if not p.is_floating_point()), None)
    if found is not None:
        raise UnlearningError(
            f"{method.info.name} trains the weights themselves, and those of the model are quantised ({str(found).removeprefix('torch.')}); "
            "train an adapter beside them (peft_config=True), or load the model without quantisation."
        )


def rounding(trained: Iterable[tuple[str, nn.Parameter]], fp16: bool = False) -> list[str]:
    """What is to be known of weights that are trained in half precision, without copies in float32."""
    coarse = {p.dtype for _, p in trained if torch.finfo(p.dtype).bits < 32}
    if coarse and fp16:
        raise UnlearningError(
            f"fp16 scales gradients, which weights in {str(min(coarse, key=str)).removeprefix('torch.')} cannot be trained with; load the "
            "model in float32, or pass bf16=True."
        )
    return [
        f"The weights that were trained are in {str(dtype).removeprefix('torch.')}, where a step of less than "
        f"{torch.finfo(dtype).eps / 4:.1g} of a weight is lost to rounding, as most of those at a low learning rate are; load the model "
        "in float32 and pass bf16=True, or train an adapter in float32."
        for dtype in sorted(coarse, key=str)
    ]


def check_gradient_method(
    method: Method, args: UnlearningArguments, own: Any, own_class: tuple | None, retain_is_stream: bool
) -> None:
    """What would scale gradients, or turn the update that the method asks for into another one."""
    name = method.info.name
    if args.fp16:
        raise UnlearningError(
            f"{name} computes with several gradients of a step, and fp16 scales them; use bf16=True."
        )
    if method.single_samples and retain_is_stream:
        raise UnlearningError(
            f"{name} takes gradients of single retained samples, and the retained set is a stream, which can only be read on; "
            "make it a datasets.Dataset."
        )
    if not method.plain_sgd:
        return
    optim = OptimizerNames(args.optim)
    found = f"optim={optim.value!r}" if optim != OptimizerNames.SGD else None
    if args.optim_args and "momentum" in args.optim_args:
        found = f"optim_args={args.optim_args!r}"
    if args.weight_decay:
        found = f"weight_decay={args.weight_decay:g}"
    if own_class:
        found = "an optimizer class of your own"
    if own is not None:
        groups = own.param_groups if isinstance(own, torch.optim.SGD) else []
        plain = groups and not any(g["momentum"] or g["weight_decay"] or g["maximize"] for g in groups)
        found = None if plain else f"a {type(own).__name__} optimizer with momentum, weight decay or scaling"
    if found:
        raise UnlearningError(
            f"{name} was given {found}, and its guarantee holds for the exact update only; expected plain SGD without "
            'momentum and weight decay (leave optim unset, or optim="sgd").'
        )


def check_sharding(method: Method, accelerator: Accelerator, args: UnlearningArguments, model: nn.Module) -> None:
    """Refuse what cannot be had of weights that FSDP shards, and of DeepSpeed."""
    check_zero(method, accelerator, args, model)
    if (fsdp := getattr(accelerator.state, "fsdp_plugin", None)) is None:
        return
    name, version = method.info.name, getattr(fsdp, "fsdp_version", 1)
    if why := "edits whole weights" if method.info.kind == "surgery" else method.why_whole:
        raise UnlearningError(f"{name} {why}, and the weights are sharded (FSDP); expected DDP.")
    if version != 2:
        raise UnlearningError(
            f"FSDP is of version {version}, which flattens the weights; expected FSDP2 (fsdp_version: 2) or DDP."
        )
    if args.torch_compile:
        raise UnlearningError(
            "torch_compile=True gives the weights other names, by which sharded ones (FSDP) are found; leave it out, or use DDP."
        )
