"""`UnlearningTrainer`: a `transformers.Trainer` that trains on a schedule of forget and retained samples."""

import copy
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, SaveStrategy, TrainOutput

from .. import models
from ..data.batches import Batch, to_model
from ..data.collator import Collator
from ..data.samples import DrawnSamples, TrainingCollator, is_deterministic, seeded
from ..data.schedule import Draw, Schedule
from ..errors import UnlearningError
from ..methods import Method, MethodConfig, create_method
from ..methods.gradients import clip_
from ..models import adapters
from ..models.modes import evaluating
from ..tasks.causal_lm import CompletionCollator
from ..tasks.checks import check_samples
from ..tasks.evaluation import Evaluator
from ..tasks.figures import Measurement
from ..tasks.multitask import TaskCollator, Tasks
from ..tasks.multitask_evaluation import TaskEvaluator, TaskMeasurement
from .arguments import UnlearningArguments
from .border import border
from .checkpoints import COMPLETE, PRIVATE, ResumableTrainer, check_room
from .checks import (
    check_call,
    check_gradient_method,
    check_optimizer,
    check_sharding,
    check_surgery,
    check_task,
    check_values,
)
from .context import Context
from .epochs import Flow, MicroBatches, Share
from .output import (
    ORIGINAL,
    check_not_original,
    check_same_request,
    missing,
    read_original,
    request_digest,
    taken_back,
)
from .request import Request, check_needs
from .teacher import OnlineTeacher, TableTeacher

logger = logging.getLogger(__name__)

EVIDENCE = ("unseen", "mia", "auc", "rf_jsd", "kept", "uis", "task_interference")  # metrics that see the evidence half


class UnlearningTrainer(ResumableTrainer):
    """Unlearns `forget_dataset` from `model`, in place.

    Args:
        model: a `PreTrainedModel`, a `PeftModel`, or a Hub id or local folder.
        args: training arguments; what they leave unset is the method's.
        method: a name, a config, or a `Method` of your own.
        forget_dataset: what must go.
        retain_dataset: what must stay (a stream needs `args.retain_size`).
        unseen_dataset: samples that were never trained on. One half (control) may steer the method, the other half
            (evidence) is only measured.
        test_dataset: measured instead of that evidence half; then all of `unseen_dataset` is control.
        peft_config: train a new PEFT adapter instead of the weights; True chooses one (see `adapters.default_config`), and
            of a method that edits weights once gives the edit as an adapter. Some methods train one by default on language
            models; False trains the weights.
        base_model: what the original was trained from: a model, a Hub id or folder, a function that returns a model,
            or `"scratch"` for a new random initialisation.
        teacher: of `local_teacher`, instead of its own: a model that has never seen the forget samples, the Hub id or
            folder of one, or a function that returns one.
        tasks: of a multi-task model, what must go: names of tasks, or which tasks of which forget samples (a table, or a
            dictionary of columns). Default: all tasks.
        overlap: `"error"` refuses forget samples that are in another set too, `"allow"` does not look.
        augment: a transform of the raw image or text of training samples, such as torchvision's.
    """

    _claimed = False  # whether the run in the output folder is of this trainer
    loss_is_scaled_for_ga = True  # `Batch.mean` is a share of the mean over the whole accumulated batch

    @border("Making the trainer")
    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str,
        args: UnlearningArguments | None = None,
        *,
        method: str | MethodConfig | Method = "lotus",
        forget_dataset: Any,
        retain_dataset: Any = None,
        unseen_dataset: Any = None,
        test_dataset: Any = None,
        processing_class: Any = None,
        data_collator: Callable | None = None,
        peft_config: Any = None,
        base_model: Any = None,
        teacher: Any = None,
        tasks: Any = None,
        overlap: str = "error",
        augment: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        self.method = create_method(method)
        self.base_model, self.given_teacher = base_model, teacher
        self.given_optimizer = kwargs.get("optimizers") or kwargs.get("optimizer_cls_and_kwargs")
        args = UnlearningArguments(output_dir=f"unlearned-{self.method.info.name}") if args is None else args
        check_call(
            model,
            args,
            self.method,
            processing_class=processing_class,
            data_collator=data_collator,
            peft_config=peft_config,
            base_model=base_model,
            teacher=teacher,
            augment=augment,
            callbacks=callbacks,
            **kwargs,
        )
        datasets = {"forget": forget_dataset, "retain": retain_dataset, "unseen": unseen_dataset, "test": test_dataset}
        check_needs(self.method, {**datasets, "base_model": base_model})
        self.origin = None  # the Hub id and commit of the original, where it is known
        if isinstance(model, (str, os.PathLike)):
            name, revision = models.split_revision(model)
            commit = models.commit_of(name, revision)
            model = models.load_model(name, revision=commit or revision)
            if commit:
                self.origin = {"repo": name, "revision": commit}
            processing_class = processing_class or models.load_processor(name, model, commit or revision)
        self.original_folder = models.folder_of(model)  # where it was loaded from, of a local one
        check_not_original(args.output_dir, self.original_folder, "output_dir")
        models.own_memory(model)
        own_losses = self.method.own_losses
        self.task = "multi-task" if own_losses else models.task_of(model)
        check_task(self.method, self.task)
        self.tasks = Tasks(model, own_losses, self.method.own_tasks) if self.task == "multi-task" else None
        if not self.tasks:
            models.check_single_label(model)
        self.num_labels = 0 if self.tasks else models.num_labels(model)

        config = getattr(model, "config", None)
        self.request = Request(datasets, self.method, config, args, overlap, self.task, self.tasks, tasks)
        self.sources, self.indices = self.request.sources, self.request.indices
        if self.method.whole_classes and not self.request.is_class:
            raise UnlearningError(
                f"{self.method.info.name} forgets whole classes, and the request is for single samples, or the retained set is a "
                "stream whose labels are not known; pass all samples of the classes to forget and none of them as retained."
            )

        limits = models.limits(model) | ({"accepts": None} if own_losses else {})
        collator = CompletionCollator if self.task == "causal-lm" else Collator
        if self.tasks:
            collator = functools.partial(TaskCollator, self.tasks)
        self.collate = collator(self.sources["forget"], processing_class, data_collator, **limits)
        for source in self.sources.values():
            self.collate.check(source)
        check_samples(self.sources.values(), self.collate, model)
        self.sizes = (
            self.request.sizes if self.tasks else self.collate.sizes(self.sources, progress=not args.disable_tqdm)
        )
        trained = [self.sources[name] for name in ("forget", "retain") if name in self.sources]
        self.deterministic = augment is None and all(is_deterministic(source, self.collate) for source in trained)
        if self.task == "causal-lm" and not self.deterministic:
            raise UnlearningError(
                "The samples are different every time they are read (augment, or a random transform), and the tokens of a "
                "language model's samples are counted before the first step; expected fixed texts."
            )
        if self.method.info.kind == "surgery":
            check_surgery(self.method, model, peft_config)
        self._edit_as_adapter = self.method.info.kind == "surgery" and peft_config is True
        peft_config = None if self._edit_as_adapter else peft_config
        self._only = self.method.trained_modules(models.base_of(model))
        lora = self.method.adapter(self.task)
        if peft_config is None and lora:
            logger.info(
                f"{self.method.info.name} trains a LoRA adapter of this model; peft_config=False trains its weights."
            )
        if peft_config is True or (peft_config is None and lora):
            peft_config = LoraConfig(**lora) if lora else adapters.default_config(model)
            if self._only is not None:
                peft_config.target_modules = set(self._only)
        adapted = bool(peft_config) or adapters.is_adapted(model)
        defaults = self.method.arguments(models.architecture_family(model), models.width(model))
        if adapted:
            if "learning_rate" in defaults and defaults.get("optim") != "sgd":
                defaults["learning_rate"] *= adapters.LEARNING_RATE
            defaults |= self.method.adapter_arguments()
        args = args.resolved(defaults | self.method.config.arguments)
        streams = any(source.is_stream for source in self.sources.values())
        self._check_resolved(args, model, adapted, streams, kwargs)
        with seeded(args.seed):  # where an adapter starts is drawn
            self.adapter = adapters.attach(model, peft_config) if adapted else None
        if self.adapter:
            model = self.adapter.model

        self.pending_logs: dict[str, float] = {}
        self._parts: dict[str, Tensor] = {}  # named parts of the loss, summed since the step they were last logged at
        self._parts_since = 0
        self._gradients: dict[str, list[Tensor | None]] = {}  # of a gradient method, by the name of the loss
        self.original: dict[str, Measurement | TaskMeasurement] = {}  # measurements of the original model
        self.unlearned: dict[str, Measurement | TaskMeasurement] = {}
        self.reasons: dict[str, str] = {}  # why a metric is missing
        self.runtime: dict[str, float] = {}
        self._accuracies: dict[str, float] = {}  # of the model as it is now
        self._measured: dict[str, Measurement | TaskMeasurement] = {}  # of the model as it is now
        self._frozen_batchnorm = models.batchnorm_modules(model) if args.freeze_batchnorm or self.adapter else []
        self._finite: Tensor | None = None
        # A stream is read in one process: worker processes would each read all of it, or, worse, a part of its shards.
        self._workers = 0 if streams else args.dataloader_num_workers
        samples = DrawnSamples(self.sources, seed=args.seed, seeded=not self.deterministic)
        if self.tasks and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True  # the loss of one task leaves out the heads of the others
        self._max_norm = 0.0  # of each gradient of a gradient method, whose update the Trainer must not clip again
        if self.method.info.kind == "gradient":
            self._max_norm, args.max_grad_norm = args.max_grad_norm, 0.0
        self._made = missing(Path(args.output_dir))
        super().__init__(
            model,
            args,
            train_dataset=DrawnSamples(self.sources, augment, args.seed, seeded=not self.deterministic),
            eval_dataset=samples,  # only so that the Trainer lets `eval_strategy` pass; see `evaluate`
            processing_class=processing_class,
            callbacks=[*(callbacks or [])],
            **kwargs,
        )
        if self.is_fsdp_enabled and self.method.info.kind == "surgery":
            raise UnlearningError(f"{self.method.info.name} edits whole weights, and FSDP shards them; expected DDP.")
        if self.is_fsdp_enabled and self.method.info.kind == "gradient":
            check_sharding(self.method, getattr(self.accelerator.state.fsdp_plugin, "fsdp_version", 1))
        if self.method.info.kind != "surgery":
            self.add_callback(Flow(self))
            self.schedule = self._make_schedule()
            self.args.max_steps = len(self.schedule)
        parts = self.accelerator, samples, TrainingCollator(self.collate)
        eval_size = args.per_device_eval_batch_size
        if self.task == "causal-lm":  # a row of logits over the vocabulary for each token
            eval_size = min(eval_size, args.train_batch_size)
        sizes = {"batch_size": eval_size, "workers": self._workers}
        if self.tasks:
            about = {"tasks": self.tasks, "counted": self.request.counted, "targets": self.targets}
            self.evaluator = TaskEvaluator(*parts, **about, **sizes, progress=not args.disable_tqdm)
        else:
            self.evaluator = Evaluator(*parts, self.num_labels, **sizes, progress=not args.disable_tqdm)

    def _check_resolved(
        self, args: UnlearningArguments, model: nn.Module, adapted: bool, streams: bool, kwargs: dict[str, Any]
    ) -> None:
        """What can be known of the training arguments once the method has filled in its own."""
        check_values(args)
        steering = str(args.metric_for_best_model).removeprefix("eval_")
        if steering.startswith(EVIDENCE):
            raise UnlearningError(
                f"metric_for_best_model is {args.metric_for_best_model}, which is measured on the half of the unseen samples "
                "that must not steer; expected gap, or a metric of forget or retain."
            )
        if steering == "gap" and (why := self.request.why_no_gap()):
            if args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST:
                raise UnlearningError(
                    f"The best checkpoint is the one with the smallest gap, and there is no gap because {why}; pass such "
                    "samples, another metric_for_best_model, or load_best_model_at_end=False."
                )
            args.metric_for_best_model = None
        if self.method.info.kind == "gradient":
            check_gradient_method(self.method, args, kwargs, streams)
        if self.method.info.kind == "surgery":
            return
        if not adapted and not any(parameter.requires_grad for parameter in model.parameters()):
            raise UnlearningError(
                "All weights of the model are frozen, and none would be trained; expected model.requires_grad_(True), or some of "
                "them with requires_grad, or peft_config."
            )
        own = bool(kwargs.get("optimizer_cls_and_kwargs") or (kwargs.get("optimizers") or (None,))[0])
        check_optimizer(args, model, own)

    # -----------------------------------------------------------------------------------------------------------------
    # The way through a run

    @border("Unlearning")
    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Unlearn. `resume_from_checkpoint=True` goes on from the newest complete checkpoint of this output folder.

        That must be of this very run: the same original, sets, method and settings (see `identity`). Left out, what the
        arguments say counts.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        read_original(self._private)
        with self._files_taken_back(), self._others_frozen():
            return self._unlearn(resume_from_checkpoint, **kwargs)

    @contextmanager
    def _files_taken_back(self) -> Iterator[None]:
        """A run that fails takes away what it has written, but for what it is begun again from: complete checkpoints, and
        the kept original where the model in memory is no longer that."""
        if not self.args.should_save:
            yield
            return
        folder, about = Path(self.args.output_dir), self._private / ORIGINAL
        before = about.read_bytes() if about.exists() else None

        @functools.cache
        def is_original() -> bool:
            if self.is_fsdp_enabled or not about.exists():
                return not about.exists()
            return read_original(self._private)["digest"] == models.weights_digest(self.model)

        def is_needed(path: Path) -> bool:
            checkpoint = path.name.startswith(PREFIX_CHECKPOINT_DIR)
            return (path / COMPLETE).exists() if checkpoint else not is_original()

        with taken_back(
            folder, (f"{PREFIX_CHECKPOINT_DIR}-*", PRIVATE, f"{PRIVATE}/*", "runs"), is_needed, self._made
        ):
            try:
                yield
            except Exception:
                now = about.read_bytes() if about.exists() else None
                if before not in (None, now) and is_original():  # checkpoints of the run before count again
                    about.write_bytes(before)
                raise

    @contextmanager
    def _others_frozen(self) -> Iterator[None]:
        """Inside, only those modules are trained that the method names, if it names some."""
        if self._only is None:
            yield
            return
        names = tuple(f"{name}." for name in self._only)
        others = {name for name, p in self._parameters() if p.requires_grad and not name.startswith(names)}
        for name, parameter in self._parameters():
            parameter.requires_grad = parameter.requires_grad and name not in others
        if not self.trained():
            raise UnlearningError(
                f"{self.method.info.name} trains {', '.join(self._only)}, and peft_config adapts other modules; leave out "
                "peft_config, or name these in target_modules."
            )
        try:
            yield
        finally:
            for name, parameter in self._parameters():
                parameter.requires_grad = parameter.requires_grad or name in others

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return models.base_of(self.model).named_parameters()

    def _unlearn(self, resume_from_checkpoint: str | bool | None, **kwargs: Any) -> Any:
        started = time.perf_counter()
        self._accuracies, self._measured, self._finite, self._gradients, self._parts = {}, {}, None, {}, {}
        checkpoint = self._begin(resume_from_checkpoint)
        # The model is still the original here, in a resumed run too: the checkpoint is loaded by `super().train`.
        if self.args.measure or self.args.eval_strategy != IntervalStrategy.NO:
            self.original = self.measure()
            self._accuracies = {split: measured.accuracy for split, measured in self.original.items()}
            self._measured = dict(self.original)
            self._check_steering_metric()
        self.method.prepare(Context(self))
        self.runtime["prepare"] = time.perf_counter() - started
        if self.method.info.kind == "surgery":
            output = self._edit()
        else:
            if checkpoint is not None:
                self._resume(checkpoint)
            if checkpoint is None and self.method.on_epoch_begin(0) is False:
                logger.warning(f"{self.method.info.name} found nothing to do: it ended before its first step.")
                output = TrainOutput(0, 0.0, {})
            else:
                with self._interruptible():
                    output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
            self._check_finite(weights=True)
        self.runtime["unlearn"] = time.perf_counter() - started
        self._forget_teacher()
        if self.args.measure:
            self.unlearned = self.measure()
        self.runtime["total"] = time.perf_counter() - started
        return output

    def _check_steering_metric(self) -> None:
        """The figures of the original are known here: the one that is to steer must be among them."""
        name = self.args.metric_for_best_model
        if name is None or self.args.eval_strategy == IntervalStrategy.NO:
            return
        values, _ = self.evaluator.figures(self.original, self.original, class_request=self.request.is_class)
        known = [key for key, value in values.items() if value is not None and not key.startswith(EVIDENCE)]
        if name.removeprefix("eval_") not in known:
            raise UnlearningError(f"metric_for_best_model is {name!r}; expected one of {', '.join(known)}.")

    def _check_output(self, checkpoint: str | None, digest: str) -> str:
        """One request for each output folder: refuse one that has another, or another original. Gives what to note of this."""
        mask = self.request.mask
        request = request_digest(self.sources["forget"].digests(), b"" if mask is None else mask.tobytes())
        if not self._claimed and not self._is_own(checkpoint):  # or of this very trainer, which may train again
            check_same_request(self._private, self._original_note(digest), request)
        return request

    def _edit(self) -> TrainOutput:
        """One edit of the unwrapped model, the same on every process."""
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self._edit_weights()
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(0, 0.0, {})

    def _edit_weights(self) -> None:
        self.model.eval()
        shares = [Share(self, name) for name in ("forget", "retain")]
        if not self._edit_as_adapter:
            self.method.edit(self.model, *shares)
            return
        config, fill = self.method.edit_as_adapter(self.model, *shares)
        self.adapter = adapters.attach(self.model, config)
        self.model = self.adapter.model.eval()
        fill(self.model, adapters.NAME)

    def _make_schedule(self) -> Schedule:
        args = self.args
        retain = self.sources.get("retain")
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        whole = int(np.ceil(args.num_train_epochs))
        epochs = self.method.epochs(whole)
        schedule = Schedule(
            epochs,
            n_forget=len(self.sources["forget"]),
            n_retain=len(retain) if retain else 0,
            batch_size=batch_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
            retain_fraction=self.method.retain_fraction,
            retain_is_stream=bool(retain and retain.is_stream),
            max_steps=args.max_steps if args.max_steps > 0 else None,
            sizes=self.sizes,
        )
        if args.max_steps <= 0 and args.num_train_epochs < whole:
            schedule.max_steps = max(1, round(len(schedule) * args.num_train_epochs / whole))
        return schedule

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of the schedule; for the Trainer they are one long epoch, so that a step number says it all."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=MicroBatches(self.schedule, self.args),
            collate_fn=TrainingCollator(self.collate),
            num_workers=self._workers,
            persistent_workers=self.args.dataloader_persistent_workers and self._workers > 0,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        parts = self.method.losses(model, self._ready(inputs))
        loss = parts.pop("loss")
        for name, value in parts.items():
            self._add_part(name, value)
        self._watch(loss)
        return loss

    def _ready(self, inputs: Any) -> Any:
        for module in self._frozen_batchnorm:
            module.eval()
        if set(inputs) <= {"forget", "retain"}:
            return {group: to_model(batch, self.model, self.args.device) for group, batch in inputs.items()}
        return to_model(inputs, self.model, self.args.device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As the Trainer's; for a gradient method, one backward for each named loss, each into a gradient of its own.

        While a loss is at work, `.grad` holds its gradient alone, so that DDP's no_sync and its one all-reduce in the
        last micro-batch act on every named gradient as they would on a single one. After that micro-batch the gradients
        are whole: each is clipped by itself, and what the method makes of them is exactly what the optimizer gets.
        """
        if self.method.info.kind != "gradient":
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if self.is_fsdp_enabled:
            reduce_every_micro_batch(model)
        parameters = [parameter for _, parameter in self.trained()]
        total = torch.zeros((), device=self.args.device)
        with self.compute_loss_context_manager():
            for name, loss in self.method.losses(model, self._ready(self._prepare_inputs(inputs))):
                self._watch(loss)
                _swap(parameters, self._gradients.setdefault(name, [None] * len(parameters)))
                self.accelerator.backward(loss)
                _swap(parameters, self._gradients[name])
                self._add_part(f"{name}_loss", loss)
                total += loss.detach()
        if self.accelerator.sync_gradients:
            whole, self._gradients = self._gradients, {}
            for gradient in whole.values():
                for i, parameter in enumerate(parameters):
                    if gradient[i] is None:
                        gradient[i] = torch.zeros_like(parameter)
                if self._max_norm > 0:
                    clip_(gradient, self._max_norm)
            update = self.method.combine(whole)
            for i, parameter in enumerate(parameters):
                parameter.grad = None if update is None else update[i].to(parameter.dtype)
        return total

    def _own_clipping(self) -> dict[str, float]:
        return {"max_grad_norm": self._max_norm} if self.method.info.kind == "gradient" else {}

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that are trained, by name."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def gradients(
        self, loss: Callable[[nn.Module, Batch], Tensor], groups: list[list[tuple[str, int]]]
    ) -> list[list[Tensor]]:
        """See `Context.gradients`."""
        parameters = [parameter for _, parameter in self.trained()]
        wide = [torch.promote_types(parameter.dtype, torch.float32) for parameter in parameters]
        totals = [[torch.zeros_like(p, dtype=d) for p, d in zip(parameters, wide, strict=True)] for _ in groups]
        size, rank, processes = self.args.train_batch_size, self.args.process_index, self.args.world_size
        pieces = [
            (total, draws[i : i + size])
            for total, draws in zip(totals, map(self._draws, groups), strict=True)
            for i in range(0, len(draws), size)
        ]
        with evaluating(self.model):
            for total, draws in pieces[rank::processes]:
                with self.accelerator.autocast():
                    value = loss(self.model, self._batch(draws))
                found = torch.autograd.grad(value, parameters, allow_unused=True)
                for column, gradient in zip(total, found, strict=True):
                    if gradient is not None:
                        column += gradient
        if processes > 1:
            for total in totals:
                flat = self.accelerator.reduce(torch.cat([column.flatten() for column in total]), "sum")
                parts = flat.split([column.numel() for column in total])
                total[:] = [part.view_as(column) for part, column in zip(parts, total, strict=True)]
        return totals

    def _batch(self, draws: list[Draw], epoch: int | None = None) -> Batch:
        samples = self.evaluator.samples
        if epoch is not None:
            samples, draws = self.train_dataset, [draw._replace(epoch=epoch) for draw in draws]
        batch = TrainingCollator(self.collate)(samples.__getitems__(draws))
        return to_model(batch, self.model, self.args.device)

    def is_same_in_training(self, loss: Callable[[nn.Module, Batch], Tensor]) -> bool:
        """See `Context.is_same_in_training`."""
        if set(models.batchnorm_modules(self.model)) - set(self._frozen_batchnorm):
            return False
        batch = self._batch(self._draws([("forget", 0)]))
        with torch.no_grad(), torch.random.fork_rng(), evaluating(self.model):
            value = loss(self.model, batch)
            self.model.train()
            for module in self._frozen_batchnorm:
                module.eval()
            return torch.allclose(loss(self.model, batch), value, rtol=1e-5)

    def _draws(self, samples: list[tuple[str, int]]) -> list[Draw]:
        return self.schedule.weighted([Draw("group", source, index, 0) for source, index in samples])

    def _watch(self, loss: Tensor) -> None:
        """Remember on the device whether every loss was finite; `_check_finite` reads it now and then."""
        finite = torch.isfinite(loss.detach())
        self._finite = finite if self._finite is None else self._finite & finite

    def _check_finite(self, weights: bool = False) -> None:
        if self._finite is not None and not self._finite.item():
            what = "loss was NaN or infinite by"
        elif weights and not self.is_fsdp_enabled and not all(p.isfinite().all() for p in self.model.parameters()):
            what = "weights are NaN or infinite after"
        else:
            return
        raise UnlearningError(
            f"The {what} step {self.state.global_step} (learning rate {self.args.learning_rate:g}); lower learning_rate or set "
            f"max_grad_norm, and start again from {self.where_original()} without resume_from_checkpoint, since a checkpoint "
            "goes on with the settings it was saved with."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._mean_parts() | self.pending_logs
            self.pending_logs = {}
        super().log(logs, start_time)

    def _add_part(self, name: str, value: Tensor) -> None:
        self._parts[name] = self._parts.get(name, 0) + value.detach()

    def _mean_parts(self) -> dict[str, float]:
        """Parts of the loss as the Trainer logs the loss itself: a mean over processes and the steps since the last log."""
        sums = gather_object([{name: value.item() for name, value in self._parts.items()}])
        count = len(sums) * (self.state.global_step - self._parts_since)
        self._parts, self._parts_since = {}, self.state.global_step
        return {name: sum(parts.get(name, 0.0) for parts in sums) / count for name in sorted(set().union(*sums))}

    # -----------------------------------------------------------------------------------------------------------------
    # Measuring

    def measure(self, model: nn.Module | None = None) -> dict[str, Measurement | TaskMeasurement]:
        """Signals of a model (this one by default) on forget, retained, control and evidence samples."""
        return {
            split: self.evaluator.measure(model or self._forward_model, name, indices)
            for split, (name, indices) in self.indices.items()
        }

    @property
    def _forward_model(self) -> nn.Module:
        """What a forward pass goes through: sharded models only work through their wrapper."""
        return self.model_wrapped if self.is_fsdp_enabled else self.model

    def accuracy(self, split: str) -> float:
        if split not in self._accuracies:
            name, indices = self.indices[split]
            self._accuracies[split] = self.evaluator.accuracy(self._forward_model, name, indices)
        return self._accuracies[split]

    @property
    def targets(self) -> list[str]:
        """The tasks of which something must be forgotten."""
        return [task for task, asked in zip(self.tasks.names, self.request.mask.any(axis=0), strict=True) if asked]

    def measure_split(self, split: str) -> Measurement | TaskMeasurement:
        """`measure` of the model as it is now on one split, once a step."""
        if split not in self._measured:
            self._measured[split] = self.evaluator.measure(self._forward_model, *self.indices[split])
        return self._measured[split]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Accuracy and loss on forget, retained and unseen samples, and what follows from them.

        Metrics that cannot be had are left out here; `metrics` has them as None, with the reasons.
        """
        if eval_dataset is not None:
            raise UnlearningError("evaluate() measures the trainer's own sets; use measure(model) for other models.")
        started = time.perf_counter()
        measured = self.measure()
        if not self.original:
            if self.state.global_step > 0:
                raise UnlearningError(
                    "The original was not measured, so there is nothing to compare with; set measure=True or eval_strategy."
                )
            self.original = measured
        values, self.reasons = self.evaluator.figures(measured, self.original, class_request=self.request.is_class)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items() if value is not None}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures before and after unlearning, and why those that are None could not be had."""
        if not self.unlearned:
            return {}
        about = {"class_request": self.request.is_class, "bootstrap": 1000}
        before, _ = self.evaluator.figures(self.original, self.original, **about)
        after, reasons = self.evaluator.figures(self.unlearned, self.original, **about)
        return {"before": before, "after": after, "reasons": reasons}

    # -----------------------------------------------------------------------------------------------------------------
    # The original

    def make_teacher(self, cache: str) -> TableTeacher | OnlineTeacher:
        if cache == "always" and not self.deterministic:
            raise UnlearningError(
                'cache_teacher is "always", but reading a sample twice gives different inputs (a random transform); '
                'use "auto" or "never", or remove the transform.'
            )
        if self.adapter:
            return (
                OnlineTeacher(self.model, self.adapter.disabled)
                if cache == "never" or not self.deterministic
                else self._table()
            )
        if cache == "never" or not self.deterministic:
            return OnlineTeacher(copy.deepcopy(self.model).eval().requires_grad_(False))
        return self._table()

    def _table(self) -> TableTeacher:
        used, n_forget = self.schedule.used(), len(self.sources["forget"])
        forget, retain = used[used < n_forget], used[used >= n_forget] - n_forget
        n_retain = len(self.sources["retain"]) if "retain" in self.sources else 0
        path = self._private / "teacher"
        check_room(self.args, 4 * len(used) * self.num_labels)  # a full disk under a memory map kills the process
        table = TableTeacher(self.evaluator, self._forward_model, path, forget, retain, n_forget, n_retain)
        if len(forget):
            self._accuracies["forget"] = table.forget_accuracy
        return table

    def _forget_teacher(self) -> None:
        """The table holds what the original said of the forget set; nobody needs it any more."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_local_main_process:
            for path in self._private.glob("teacher-*"):
                path.unlink()

    @contextmanager
    def original_model(self) -> Iterator[nn.Module]:
        """The model as it was before unlearning, inside a `with` block; read from where it is kept."""
        if self.adapter:
            with self.adapter.disabled():
                yield self.model
            return
        about = read_original(self._private)
        if about is None:
            raise UnlearningError(f"{self._private} is gone, and the original with it; run again to keep it.")
        kept, revision = about.get("repo"), about.get("revision")
        if about["folder"]:
            kept = str(self._private / about["folder"])
        if not isinstance(self.model, PreTrainedModel):
            original = copy.deepcopy(self.model)
            models.load_weights(original, kept)
            yield original
            return
        yield models.load_model(kept, revision=revision).to(self.args.device)

    def start_from_base(self) -> None:
        if self.adapter:
            raise UnlearningError(
                f"{self.method.info.name} trains all weights from base_model on; leave out peft_config."
            )
        self._accuracies, self._measured = {}, {}
        torch.manual_seed(self.args.seed)
        base = self.base_model
        if base == "scratch":
            base = type(self.model)(copy.deepcopy(self.model.config))
        elif isinstance(base, (str, os.PathLike)):
            base = models.load_model(str(base), task=self.task, num_labels=self.num_labels or None)
        elif callable(base) and not isinstance(base, nn.Module):
            base = base()
        if not isinstance(base, nn.Module):
            raise UnlearningError(
                f"base_model is a {type(base).__name__}; expected a model, a Hub id, a folder or a function."
            )
        found, own = base.state_dict(), self.model.state_dict()
        shapes = ({(name, tensor.shape) for name, tensor in state.items()} for state in (found, own))
        if unlike := set.symmetric_difference(*shapes):
            raise UnlearningError(
                f"base_model is a {type(base).__name__} whose weights do not fit the original ({min(unlike)[0]}); expected "
                "the same architecture."
            )
        if all(torch.equal(found[name].to(own[name]), own[name]) for name in own):
            raise UnlearningError(
                "base_model has the very weights of the original; pass what it was trained from, which has not seen the "
                'forget samples, or "scratch".'
            )
        self.model.load_state_dict(found)


def reduce_every_micro_batch(model: nn.Module) -> None:
    """Undo the Trainer's `no_sync` of FSDP2, which would add up gradients out of reach, those of all names together."""
    model.set_requires_gradient_sync(True)


def _swap(parameters: list[nn.Parameter], gradients: list[Tensor | None]) -> None:
    for i, parameter in enumerate(parameters):
        parameter.grad, gradients[i] = gradients[i], parameter.grad
