"""`UnlearningTrainer`: a `transformers.Trainer` that trains on a schedule of forget and retained samples."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from peft import PeftConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, TrainOutput
from transformers.training_args import OptimizerNames

from .. import models
from ..data.batches import to_model
from ..data.samples import weigh
from ..data.types import Data, DataCollator, ProcessingClass
from ..errors import UnlearningError
from ..methods import Method, MethodConfig, create_method
from ..methods.base import Term
from ..models import adapters, heads
from ..models.modes import single_values
from ..models.types import ModelOrName, ModelSource
from ..tasks.figures import what_others_paid
from .adapter import attach, choose_adapter, only_trained
from .arguments import UnlearningArguments, Unnamed, for_trainer, with_defaults
from .border import border
from .checkpoints import ResumableTrainer
from .checks import (
    check_call,
    check_resolved,
    check_sharding,
    check_steering_figure,
    check_surgery,
    rounding,
    task_for,
)
from .context import Context
from .edits import edit
from .epochs import Flow, MicroBatches, make_schedule
from .gradients import NamedGradients, reduce_every_micro_batch
from .looks import Looks, Measured
from .masters import keep_masters
from .original import files_taken_back, load_original
from .output import missing, read_original
from .past import start_of
from .progress import make_readable
from .reading import Reading
from .request import AskedTasks, Request, check_needs
from .sharding import Sharding, is_cut
from .teacher import remove_tables
from .watch import Watch
from .zero import is_cut_by_zero, make_whole

logger = logging.getLogger(__name__)


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

    loss_is_scaled_for_ga = True  # `Batch.mean` is a share of the mean over the whole accumulated batch

    @border("Making the trainer")
    def __init__(
        self,
        model: ModelOrName,
        args: UnlearningArguments | None = None,
        *,
        method: str | MethodConfig | Method = "lotus",
        forget_dataset: Data,
        retain_dataset: Data | None = None,
        unseen_dataset: Data | None = None,
        test_dataset: Data | None = None,
        processing_class: ProcessingClass | None = None,
        data_collator: DataCollator | None = None,
        peft_config: PeftConfig | bool | None = None,
        base_model: ModelSource | None = None,
        teacher: ModelSource | None = None,
        tasks: AskedTasks | None = None,
        overlap: str = "error",
        augment: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        self.method = create_method(method)
        args = UnlearningArguments(Unnamed(f"unlearned-{self.method.info.name}")) if args is None else args
        read = {"processing_class": processing_class, "data_collator": data_collator, "augment": augment}
        others = {"base_model": base_model, "teacher": teacher, "peft_config": peft_config, "callbacks": callbacks}
        check_call(model, args, self.method, **read, **others, **kwargs)
        datasets = {"forget": forget_dataset, "retain": retain_dataset, "unseen": unseen_dataset, "test": test_dataset}
        model, read["processing_class"], self.origin, self.original_folder = load_original(
            model, processing_class, args
        )

        self.task, self.method = task_for(self.method, model, base_model)
        check_needs(self.method, {**datasets, "base_model": base_model})
        self.request = Request(datasets, self.method, self.task, args, overlap, tasks, read["processing_class"])
        place = self.origin, self.original_folder
        self.start = start_of(self.method, model, *place, base_model, self.request, args.seed)
        self.reading = Reading(self.request, self.method, model, args, **read)
        self._only = self.method.trained_modules(models.base_of(model))
        check_surgery(self.method, model, peft_config)
        self._edits_adapter = self.is_edit and peft_config is True
        chosen = choose_adapter(self.method, self.task, model, self._only, peft_config)
        adapted = bool(chosen) or adapters.is_adapted(model)
        args = with_defaults(args, self.method, model, adapted)
        check_resolved(args, self.method, model, self.request, adapted, **kwargs)
        self.adapter = attach(model, chosen, args.seed) if adapted else None
        model = self.adapter.model if self.adapter else model
        self.base_model, self.given_teacher = base_model, teacher
        self.given_optimizer = kwargs.get("optimizers") or kwargs.get("optimizer_cls_and_kwargs")
        self.frozen_batchnorm = models.batchnorm_modules(model) if args.freeze_batchnorm or self.adapter else []
        self.named_gradients = NamedGradients(args.max_grad_norm if self.method.info.kind == "gradient" else 0.0)
        self._made = missing(self._folder(args, model))
        super().__init__(
            model,
            for_trainer(args, self.method, self.task),
            train_dataset=self.reading.training_samples(),
            eval_dataset=self.reading.measured_samples(),  # only so that `eval_strategy` may pass; see `evaluate`
            processing_class=read["processing_class"],
            callbacks=[*(callbacks or [])],
            **kwargs,
        )
        check_sharding(self.method, self.accelerator, self.args, model)
        plan = self.request, self.method, self.args, self.reading.sizes
        self.schedule = None if self.is_edit else make_schedule(*plan)
        if self.schedule:
            self.args.max_steps = len(self.schedule)
            self.add_callback(Flow(self, self.schedule))
        self.evaluator = self.reading.evaluator(self.accelerator, self.args)
        self.looks = Looks(self.evaluator, self.reading.indices, self._forward_model)
        self.watch, self.original, self.unlearned, self.runtime = Watch(), {}, {}, {}

    def _forward_model(self) -> nn.Module:
        """What a forward pass goes through: sharded models only work through their wrapper."""
        return self.model_wrapped if self.is_fsdp_enabled else self.model

    def _shard(self) -> None:
        """Cut the model up over the processes (FSDP2) before anything goes through it: the Trainer would do so only when it
        begins to train, and until then the model is whole and not where the batches are. Nor is DeepSpeed's."""
        if self.is_deepspeed_enabled:
            self.model.to(self.args.device)
        if self.is_fsdp_enabled and not is_cut(self.model):
            self.sharding = Sharding(self.accelerator, self.model, cast(str, self.args.output_dir))
            self.model, self.optimizer = self.sharding.cut(self.model, self.optimizer)
            self.model_wrapped = self.model

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
        read_original(self.private)
        make_readable(self.callback_handler)
        taken_back = contextlib.nullcontext()
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            taken_back = files_taken_back(folder, lambda: self.model, self.is_fsdp_enabled, self._made)
        with taken_back, only_trained(self.model, self._only, self.method.info.name):
            return self._unlearn(resume_from_checkpoint, **kwargs)

    def _unlearn(self, resume_from_checkpoint: str | bool | None, **kwargs: Any) -> Any:
        started = time.perf_counter()
        self.looks.forget()
        self.watch.begin(0)
        self.named_gradients.by_name = {}
        checkpoint = self._begin(resume_from_checkpoint)
        self._shard()
        # The model is still the original here, in a resumed run too: the checkpoint is loaded by `super().train`.
        if self.args.measure or self.args.eval_strategy != IntervalStrategy.NO:
            self.original = self.measure()
            self.looks.remember(self.original)
            values, _ = self.evaluator.figures(self.original, self.original, class_request=self.request.is_class)
            check_steering_figure(self.args, values)
        coarse = [] if self.is_edit else rounding(self.trained(), self.args.fp16)
        self.method.notes[:] = (
            [] if self._keeps_masters or self.is_deepspeed_enabled else coarse
        )  # and nothing of before
        self.method.prepare(Context(self))
        self.runtime["prepare"] = time.perf_counter() - started
        output = self._edit() if self.is_edit else self._train(checkpoint, **kwargs)
        self.runtime["unlearn"] = time.perf_counter() - started
        remove_tables(self.private, self.accelerator)
        if self.args.measure:
            self.unlearned = self.measure()
            if self.task.is_audited:
                self.method.notes += what_others_paid(self.original, self.unlearned, self.request.is_class)
        self.runtime["total"] = time.perf_counter() - started
        return output

    def _edit(self) -> TrainOutput:
        """One edit of the unwrapped model, the same on every process."""
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.adapter = edit(self.method, self.model, self.evaluator, self._edits_adapter)
        if self.adapter:
            self.model = self.adapter.model
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(0, 0.0, {})

    def _train(self, checkpoint: str | None, **kwargs: Any) -> TrainOutput:
        if checkpoint is not None:
            self._resume(checkpoint)
        if checkpoint is None and self.method.on_epoch_begin(0) is False:
            idle = f"{self.method.info.name} found nothing to do: it ended before its first step, and nothing was trained."
            logger.warning(idle)
            if not any("nothing was changed" in note.lower() for note in self.method.notes):  # with the reason
                self.method.notes.append(idle)
            output = TrainOutput(0, 0.0, {})
        else:
            with self._interruptible(), single_values(self.model):
                output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
            if self.is_deepspeed_enabled and is_cut_by_zero(self.model):
                make_whole(self.model, self.deepspeed)
                self.deepspeed, self.model_wrapped = None, self.model
        self.check_finite(weights=True)
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, which asks DeepSpeed's engine for the weights: before a run, and after one under ZeRO-3, there is none."""
        if not self.is_deepspeed_enabled or self.deepspeed is not None:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self._save(output_dir)

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of the schedule; for the Trainer they are one long epoch, so that a step number says it all."""
        workers = self.reading.workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=MicroBatches(self.planned, self.args),
            collate_fn=self.reading.training_collator(),
            num_workers=workers,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.reading.counts:
            weigh(batches, self.accelerator)
        return batches, items

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.decay == "all":
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self._keeps_masters:
            self.masters = keep_masters(optimizer)
        return optimizer

    @property
    def _keeps_masters(self) -> bool:
        """Whether weights in half precision are trained by copies in float32: an optimizer of ours, on whole weights, that loads
        its state as torch does."""
        loads_otherwise = any(
            part in OptimizerNames(self.args.optim).value for part in ("bit", "bnb", "paged", "ademamix")
        )
        keeps_others = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return not self.given_optimizer and not keeps_others and not loads_otherwise

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        if self.method.share_of_peak(0) is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = cast(Optimizer, optimizer or self.optimizer)
        self.lr_scheduler = LambdaLR(optimizer, lambda step: self.method.share_of_peak(step) or 0.0)
        return self.lr_scheduler

    @heads.into_gradients(False)  # where a method may ask for gradients of its own
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = self._ready(inputs)
        if terms := self.method.terms(model, batch):
            return self._last_loss(model, terms)
        losses = self.method.losses(model, batch)
        loss = losses.pop("loss")
        for name, value in losses.items():
            self.watch.add(name, value)
        self.watch.see(loss)
        return loss

    def _last_loss(self, model: nn.Module, terms: list[Term]) -> Tensor:
        """That of the last term; the others have gone back through the network, and `_earlier` is the sum of their losses.

        Processes share the gradients with the last one's. Those of FSDP do at once, or each would keep them whole. DeepSpeed takes a
        step with every backward pass, so that there is one, of their sum.
        """
        if self.is_deepspeed_enabled:
            return cast(Tensor, sum(self._weighted(term) for term in terms))
        *earlier, last = terms
        for term in earlier:
            with contextlib.nullcontext() if self.is_fsdp_enabled else self.accelerator.no_sync(model):
                loss = self._weighted(term)
                self._backward(loss)
            self._earlier += loss.detach()
        return self._weighted(last)

    @property
    def _is_alone(self) -> bool:
        """Whether no other process has a share in the gradients."""
        return self.accelerator.distributed_type == DistributedType.NO

    def _backward(self, loss: Tensor) -> None:
        with heads.into_gradients(self._is_alone):
            self.accelerator.backward(loss)

    def _weighted(self, term: Term) -> Tensor:
        loss = term.loss()
        self.watch.add(f"{term.name}_loss", loss)
        self.watch.see(loss)
        return term.weight * loss

    def _ready(self, inputs: Any) -> Any:
        for module in self.frozen_batchnorm:
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
            self._earlier = torch.zeros((), device=self.args.device)
            with heads.into_gradients(self._is_alone):
                return super().training_step(model, inputs, num_items_in_batch) + self._earlier
        model.train()
        if self.is_fsdp_enabled:
            reduce_every_micro_batch(model)
        parameters = [parameter for _, parameter in self.trained()]
        total = torch.zeros((), device=self.args.device)
        with self.compute_loss_context_manager():
            losses = self.method.losses(model, self._ready(self._prepare_inputs(inputs)))
            for name, loss in cast(Iterable[tuple[str, Tensor]], losses):
                self.watch.see(loss)
                with self.named_gradients.of(name, parameters):
                    self._backward(loss)
                self.watch.add(f"{name}_loss", loss)
                total += loss.detach()
        if self.accelerator.sync_gradients:
            update = self.method.combine(self.named_gradients.whole(parameters))
            for i, parameter in enumerate(parameters):
                parameter.grad = None if update is None else update[i].to(parameter.dtype)
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.watch.means(self.state.global_step) | self.watch.pending
            self.watch.pending = {}
        super().log(logs, start_time)

    # -----------------------------------------------------------------------------------------------------------------
    # Measuring

    def measure(self, model: nn.Module | None = None) -> Measured:
        """Signals of a model (this one by default) on forget, retained, control and evidence samples."""
        model = self._forward_model() if model is None else model
        return {split: self.evaluator.measure(model, *of) for split, of in self.indices.items()}

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
        values, _ = self.evaluator.figures(measured, self.original, class_request=self.request.is_class)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items() if value is not None}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *_: Any, **__: Any) -> Any:
        raise UnlearningError(
            "predict() has no use here; evaluate() and measure() look at the trainer's own sets, audit() at others."
        )

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures before and after unlearning, and why those that are None could not be had."""
        if not self.unlearned:
            return {}
        about = {"class_request": self.request.is_class, "bootstrap": 1000}
        before, _ = self.evaluator.figures(self.original, self.original, **about)
        after, reasons = self.evaluator.figures(self.unlearned, self.original, **about)
        return {"before": before, "after": after, "reasons": reasons}
