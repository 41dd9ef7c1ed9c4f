"""`UnlearningTrainer`: a `transformers.Trainer` that trains on a schedule of forget and retained samples."""

import copy
import errno
import json
import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, SaveStrategy

from . import adapters, models
from .arguments import UnlearningArguments
from .data import (
    Collator,
    DrawnSamples,
    Source,
    TrainingCollator,
    check_overlap,
    is_deterministic,
    seeded,
    split_unseen,
)
from .errors import UnlearningError
from .evaluation import Evaluator, Measurement, figures, to_model
from .methods import Method, MethodConfig, create_method
from .schedule import Schedule
from .teacher import OnlineTeacher, TableTeacher

logger = logging.getLogger(__name__)

PRIVATE = "_unlearn"  # inside the output folder: the original, the teacher's table; never pushed
COMPLETE = "complete.json"  # a checkpoint with this file, written last, is whole
METHOD_STATE = "method.safetensors"


class Context:
    """What a method may ask of the trainer."""

    def __init__(self, trainer: "UnlearningTrainer"):
        self._trainer = trainer
        self.seed: int = trainer.args.seed
        self.num_labels: int = trainer.num_labels
        self.forget_classes: list[int] = trainer.forget_classes

    @property
    def model(self) -> nn.Module:
        """The unwrapped model."""
        return self._trainer.model

    def accuracy(self, split: str) -> float:
        """Accuracy of the model as it is now, in eval mode, on `forget`, `retain` or the `control` half of unseen."""
        return self._trainer.accuracy(split)

    def teacher(self, cache: str = "auto") -> TableTeacher | OnlineTeacher:
        """The frozen original: `teacher.logits(batch)`."""
        return self._trainer.make_teacher(cache)

    def start_from_base(self) -> None:
        """Replace the weights by those the original was trained from."""
        self._trainer.start_from_base()

    def log(self, values: dict[str, float]) -> None:
        """Log `values` together with the next losses."""
        self._trainer.pending_logs.update(values)


class UnlearningTrainer(Trainer):
    """Unlearns `forget_dataset` from `model`, in place.

    Args:
        model: a `PreTrainedModel`, a `PeftModel`, or a Hub id or local folder.
        args: training arguments; what they leave unset is the method's.
        method: a name, a config, or a `Method` of your own.
        forget_dataset: what must go.
        retain_dataset: what must stay (a stream needs `args.retain_size`, or `args.max_steps`).
        unseen_dataset: samples that were never trained on. One half (control) may steer the method, the other half
            (evidence) is only measured.
        test_dataset: measured instead of that evidence half; then all of `unseen_dataset` is control.
        peft_config: train a new PEFT adapter instead of the weights.
        base_model: what the original was trained from: a model, a Hub id or folder, a function that returns a model,
            or `"scratch"` for a new random initialisation.
        overlap: `"error"` refuses forget samples that are in another set too, `"allow"` does not look.
        augment: a transform of the raw image or text of training samples, such as torchvision's.
    """

    loss_is_scaled_for_ga = True  # `Batch.mean` is a share of the mean over the whole accumulated batch

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
        overlap: str = "error",
        augment: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        self.method = create_method(method)
        self.base_model = base_model
        args = args or UnlearningArguments(output_dir=f"unlearned-{self.method.info.name}")
        _check_arguments(args)
        given = {
            "forget": forget_dataset,
            "retain": retain_dataset,
            "unseen": unseen_dataset,
            "test": test_dataset,
            "base_model": base_model,
        }
        _check_needs(self.method, given)
        self.origin = None  # the Hub id and commit of the original, where it is known
        if isinstance(model, (str, os.PathLike)):
            name, model = str(model), models.load_model(str(model))
            if commit := getattr(model.config, "_commit_hash", None):
                self.origin = {"repo": name, "revision": commit}
            processing_class = processing_class or models.load_processor(name, model)
        self.task = models.task_of(model)
        _check_task(self.method, self.task)
        models.check_single_label(model)
        self.num_labels = models.num_labels(model)

        sources = {"forget": forget_dataset, "retain": retain_dataset, "unseen": unseen_dataset, "test": test_dataset}
        self.sources = _open_sources(sources, args)
        for source in self.sources.values():
            source.align_labels(model.config.label2id)
        _check_labels(self.sources, self.num_labels)
        self.forget_classes = sorted(set(self.sources["forget"].labels.tolist()))
        if overlap not in ("error", "allow"):
            raise UnlearningError(f'overlap is {overlap!r}; expected "error" or "allow".')
        if overlap == "error":
            others = [s for name, s in self.sources.items() if name != "forget" and not s.is_stream]
            check_overlap(self.sources["forget"], others)
        self.indices = _split_indices(self.sources, args)
        self.class_request = _is_class_request(self.sources, self.method, self.forget_classes)

        channels = models.image_channels(model)
        self.collate = Collator(self.sources["forget"], processing_class, data_collator, channels)
        for source in self.sources.values():
            self.collate.check(source)
        trained = [self.sources[name] for name in ("forget", "retain") if name in self.sources]
        self.deterministic = augment is None and all(is_deterministic(source, self.collate) for source in trained)
        with seeded(args.seed):  # where an adapter starts is drawn
            self.adapter = adapters.attach(model, peft_config) if peft_config or adapters.is_adapted(model) else None
        if self.adapter:
            model = self.adapter.model
        defaults = {
            **self.method.arguments(models.architecture_family(model), models.width(model)),
            **self.method.config.arguments,
        }
        args = args.resolved(defaults)
        if str(args.metric_for_best_model).removeprefix("eval_") == "gap" and (why := self._why_no_gap()):
            if args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST:
                raise UnlearningError(
                    f"The best checkpoint is the one with the smallest gap, and there is no gap because {why}; pass such "
                    "samples, another metric_for_best_model, or load_best_model_at_end=False."
                )
            args.metric_for_best_model = None

        self.pending_logs: dict[str, float] = {}
        self._parts: dict[str, Tensor] = {}  # named parts of the loss, summed since the step they were last logged at
        self._parts_since = 0
        self._gradients: dict[str, list[Tensor | None]] = {}  # of a gradient method, by the name of the loss
        self.original: dict[str, Measurement] = {}  # measurements of the original model
        self.unlearned: dict[str, Measurement] = {}
        self.reasons: dict[str, str] = {}  # why a metric is missing
        self.runtime: dict[str, float] = {}
        self._accuracies: dict[str, float] = {}  # of the model as it is now
        self._frozen_batchnorm = models.batchnorm_modules(model) if args.freeze_batchnorm or self.adapter else []
        self._finite: Tensor | None = None
        # A stream is read in one process: worker processes would each read all of it, or, worse, a part of its shards.
        streams = any(source.is_stream for source in self.sources.values())
        self._workers = 0 if streams else args.dataloader_num_workers
        samples = DrawnSamples(self.sources, seed=args.seed, seeded=not self.deterministic)
        super().__init__(
            model,
            args,
            train_dataset=DrawnSamples(self.sources, augment, args.seed, seeded=not self.deterministic),
            eval_dataset=samples,  # only so that the Trainer lets `eval_strategy` pass; see `evaluate`
            processing_class=processing_class,
            callbacks=[*(callbacks or [])],
            **kwargs,
        )
        self.add_callback(_Flow(self))
        if self.method.info.kind != "surgery":
            self.schedule = self._make_schedule()
            self.args.max_steps = len(self.schedule)
        self.evaluator = Evaluator(
            self.accelerator,
            samples,
            TrainingCollator(self.collate),
            self.num_labels,
            args.per_device_eval_batch_size,
            self._workers,
            progress=not args.disable_tqdm,
        )

    # -----------------------------------------------------------------------------------------------------------------
    # The way through a run

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Unlearn. `resume_from_checkpoint=True` goes on from the newest complete checkpoint of this output folder."""
        started = time.perf_counter()
        self._accuracies, self._finite = {}, None
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        self._keep_original(checkpoint)
        # The model is still the original here, in a resumed run too: the checkpoint is loaded by `super().train`.
        if self.args.measure or self.args.eval_strategy != IntervalStrategy.NO:
            self.original = self.measure()
            self._accuracies = {split: measured.accuracy for split, measured in self.original.items()}
        self.method.prepare(Context(self))
        self.runtime["prepare"] = time.perf_counter() - started
        if self.method.info.kind == "surgery":
            output = self._edit()
        else:
            go_on = True
            if checkpoint is None:
                go_on = self.method.on_epoch_begin(0) is not False
            else:
                self._resume(checkpoint)
            with self._interruptible():
                output = super().train(resume_from_checkpoint=checkpoint, **kwargs) if go_on else None
            self._check_finite(weights=True)
        self.runtime["unlearn"] = time.perf_counter() - started
        if self.args.measure:
            self.unlearned = self.measure()
        self.runtime["total"] = time.perf_counter() - started
        return output

    def _edit(self) -> dict[str, Any]:
        """One edit of the unwrapped model, the same on every process."""
        self.accelerator.unwrap_model(self.model).eval()
        loaders = [self._edit_loader(name) for name in ("forget", "retain")]
        return self.method.edit(self.model, *loaders)

    def _edit_loader(self, name: str) -> Iterator | None:
        if name not in self.sources:
            return None
        indices = np.arange(len(self.sources[name]))
        batches = self.evaluator.batches(name, indices, (0, 1), name)
        return (to_model(batch, self.model, self.args.device) for _, batch in batches)

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
        )
        if args.max_steps <= 0 and args.num_train_epochs < whole:
            schedule.max_steps = max(1, round(len(schedule) * args.num_train_epochs / whole))
        return schedule

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of the schedule; for the Trainer they are one long epoch, so that a step number says it all."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=_MicroBatches(self.schedule, self.args),
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
        last micro-batch act on every named gradient as they would on a single one.
        """
        if self.method.info.kind != "gradient":
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
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
            for parameter, gradient in zip(parameters, self.method.combine(self._gradients), strict=True):
                parameter.grad = gradient
            self._gradients = {}
        return total

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
        good = self._last_complete()
        raise UnlearningError(
            f"The {what} step {self.state.global_step} (learning rate {self.args.learning_rate:g}). Lower learning_rate "
            f"or set max_grad_norm, and start again from {good.name if good else 'the original'}."
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

    def measure(self, model: nn.Module | None = None) -> dict[str, Measurement]:
        """Signals of a model (this one by default) on forget, retained, control and evidence samples."""
        return {
            split: self.evaluator.measure(model or self._forward_model, name, indices)
            for split, (name, indices) in self.indices.items()
        }

    def _why_no_gap(self) -> str | None:
        if missing := [
            name for name, split in (("retain", "retain"), ("unseen", "control")) if split not in self.indices
        ]:
            return f"no {missing[0]} samples were given"
        name, control = self.indices["control"]
        absent = np.setdiff1d(self.forget_classes, self.sources[name].labels[control])
        if len(absent) and not self.class_request:
            return f"the control half of the unseen samples has none of the forget set's class {absent[0]}"
        return None

    @property
    def _forward_model(self) -> nn.Module:
        """What a forward pass goes through: sharded models only work through their wrapper."""
        return self.model_wrapped if self.is_fsdp_enabled else self.model

    def accuracy(self, split: str) -> float:
        if split not in self._accuracies:
            name, indices = self.indices[split]
            self._accuracies[split] = self.evaluator.accuracy(self._forward_model, name, indices)
        return self._accuracies[split]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Accuracy and loss on forget, retained and unseen samples, and what follows from them.

        Metrics that cannot be had are left out here; `metrics` has them as None, with the reasons.
        """
        if eval_dataset is not None:
            raise UnlearningError(
                "evaluate() measures the trainer's own sets; use measure(model) or audit() for others."
            )
        started = time.perf_counter()
        measured = self.measure()
        if not self.original:
            if self.state.global_step > 0:
                raise UnlearningError(
                    "The original was not measured, so there is nothing to compare with; set measure=True or eval_strategy."
                )
            self.original = measured
        values, self.reasons = figures(measured, self.original, class_request=self.class_request)
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
        before, _ = figures(self.original, self.original, class_request=self.class_request)
        after, reasons = figures(self.unlearned, self.original, class_request=self.class_request)
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
        _check_room(self.args, 4 * len(used) * self.num_labels)  # a full disk under a memory map kills the process
        table = TableTeacher(self.evaluator, self._forward_model, path, forget, retain, n_forget, n_retain)
        if len(forget):
            self._accuracies["forget"] = table.forget_accuracy
        return table

    @property
    def _private(self) -> Path:
        return Path(self.args.output_dir, PRIVATE)

    def _keep_original(self, checkpoint: str | None) -> None:
        """Keep the original once, or where on the Hub it is; a resumed run checks that it was given the same one."""
        about = self._private / "original.json"
        if not self.args.should_save:
            return
        digest = models.weights_digest(self.model)
        if checkpoint is not None:
            begun = Path(checkpoint).absolute().parent / PRIVATE / about.name
            if begun.exists() and json.loads(begun.read_text())["digest"] != digest:
                raise UnlearningError(
                    f"{begun.parents[1]} holds a run on another original model: pass the model that run began with, or "
                    "choose another output_dir."
                )
            if begun.exists() and begun == about.absolute():
                return
        _check_disk(self.model, self.args)
        with _clear_write_errors(self.args.output_dir):
            self._private.mkdir(parents=True, exist_ok=True)
            about.unlink(missing_ok=True)  # from here on, checkpoints of an earlier run do not count
            folder = None
            if self.origin is None and self.adapter is None:
                folder = "original"
                models.save_model(self.model, self._private / folder)
            content = {"digest": digest, "run": uuid.uuid4().hex, "folder": folder, **(self.origin or {})}
            _write_last(about, content)

    @contextmanager
    def original_model(self) -> Iterator[nn.Module]:
        """The model as it was before unlearning, inside a `with` block; read from where it is kept."""
        if self.adapter:
            with self.adapter.disabled():
                yield self.model
            return
        about = json.loads((self._private / "original.json").read_text())
        kept, revision = about.get("repo"), about.get("revision")
        if about["folder"]:
            kept = str(self._private / about["folder"])
        yield models.load_model(kept, revision=revision).to(self.args.device)

    def start_from_base(self) -> None:
        if self.adapter:
            raise UnlearningError(
                f"{self.method.info.name} trains all weights from base_model on; leave out peft_config."
            )
        self._accuracies = {}
        torch.manual_seed(self.args.seed)
        base = self.base_model
        if base == "scratch":
            base = type(self.model)(copy.deepcopy(self.model.config))
        elif isinstance(base, (str, os.PathLike)):
            base = models.load_model(str(base), task=self.task, num_labels=self.num_labels)
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

    # -----------------------------------------------------------------------------------------------------------------
    # Saving and resuming

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Weights as safetensors, the processing class and the method's config; no pickled arguments.

        Overridden because the Trainer's writes `training_args.bin`, a pickle with paths and a token in it, and because
        a timm model must stay readable by timm.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        with _clear_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            models.save_model(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), folder, state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            used = {name: _plain(getattr(self.args, name)) for name in _RECORDED}
            self.method.config.save(
                folder, training=used, schedule=getattr(self, "schedule", None) and self.schedule.epochs
            )

    def _save_checkpoint(self, model, trial) -> None:
        """The Trainer's checkpoint, with the method's state, counted as complete only by a marker that is written last.

        Overridden because no public hook comes before older checkpoints are deleted: a kill in between would leave none.
        """
        self._check_finite(weights=True)
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save:
            (folder / COMPLETE).unlink(missing_ok=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with _clear_write_errors(folder):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    save_file(self.method.state_dict(), folder / METHOD_STATE)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # every process has written its random state
        if self.args.should_save:
            with _clear_write_errors(folder):
                _write_last(folder / COMPLETE, self._marker())
            self._delete_older_checkpoints(limit)

    def _marker(self) -> dict[str, Any]:
        step = self.state.global_step
        return {
            "run": self._run_id(),
            "step": step,
            "time": time.time_ns(),
            # A method or a callback has ended the run here; resumed, it must not go on.
            "stopped": self.control.should_training_stop and step < self.state.max_steps,
            "resumable": not self.args.save_only_model,
        }

    def _delete_older_checkpoints(self, limit: int | None) -> None:
        """Of this run, the best one excepted. What an older run left in the folder is not touched."""
        if limit is None or limit <= 0:
            return
        checkpoints = self._complete_checkpoints()
        best = Path(self.state.best_model_checkpoint or "").name
        old = [checkpoint for checkpoint in checkpoints[:-1] if checkpoint.name != best]
        for checkpoint in old[: max(0, len(checkpoints) - limit)]:
            (checkpoint / COMPLETE).unlink()
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _run_id(self) -> str | None:
        about = self._private / "original.json"
        return json.loads(about.read_text())["run"] if about.exists() else None

    def _complete_checkpoints(self) -> list[Path]:
        """The complete checkpoints of the run in this output folder, in the order in which they were written."""
        paths = Path(self.args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")
        markers = {path.parent: json.loads(path.read_text()) for path in paths}
        own = [checkpoint for checkpoint, marker in markers.items() if marker["run"] == self._run_id()]
        return sorted(own, key=lambda checkpoint: markers[checkpoint]["time"])

    def _last_complete(self) -> Path | None:
        return next(reversed(self._complete_checkpoints()), None)

    def _find_checkpoint(self, resume: str | bool | None) -> str | None:
        if not resume:
            return None
        if resume is True:
            newest = self._last_complete()
            if newest is None:
                raise UnlearningError(
                    f"There is no complete checkpoint in {self.args.output_dir}; start without resume_from_checkpoint."
                )
            resume = newest
        elif not Path(resume, COMPLETE).exists():
            raise UnlearningError(
                f"{resume} is not a complete checkpoint (no {COMPLETE}); pass resume_from_checkpoint=True for the newest "
                "complete one."
            )
        if not json.loads(Path(resume, COMPLETE).read_text())["resumable"]:
            raise UnlearningError(
                f"{resume} holds weights and no optimizer state (save_only_model=True), and a run resumed from it would "
                "end elsewhere; start without resume_from_checkpoint."
            )
        return str(resume)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Overridden because the Trainer's ignores missing keys, which loses weights whose names `save_pretrained`
        converted."""
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        models.load_weights(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`."""
        self._accuracies = {}
        if self.is_fsdp_enabled:
            return super()._load_best_model()
        models.load_weights(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)

    def _resume(self, checkpoint: str) -> None:
        """What the Trainer does not bring back by itself."""
        self.method.load_state_dict(load_file(Path(checkpoint, METHOD_STATE)))
        self.args.restore_callback_states_from_checkpoint = True  # such as the patience of early stopping
        marker = json.loads(Path(checkpoint, COMPLETE).read_text())
        if marker["stopped"]:
            self.schedule.max_steps = self.args.max_steps = marker["step"]

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends the step, saves a checkpoint and says how to resume; the second one is immediate."""
        self._signalled = self._interrupted = False

        def on_interrupt(*_: Any) -> None:
            if self._signalled:
                raise KeyboardInterrupt
            self._signalled = True
            logger.warning("Interrupted: finishing this step and saving. Press Ctrl-C again to stop at once.")

        try:
            before = signal.signal(signal.SIGINT, on_interrupt)
        except ValueError:  # not in the main thread
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self._interrupted:
            if self.is_world_process_zero():
                print(
                    f"Stopped at step {self.state.global_step} of {self.state.max_steps}. To go on: the same call with "
                    f"resume_from_checkpoint={str(self._last_complete())!r}",
                    flush=True,
                )
            raise KeyboardInterrupt

    _signalled = False  # this process was interrupted
    _interrupted = False  # some process was, and all know it

    def interrupted(self) -> bool:
        """Whether any process was interrupted; all of them ask at the same time."""
        if self.accelerator.num_processes == 1:
            self._interrupted = self._signalled
        elif not self._interrupted:
            flag = torch.tensor(int(self._signalled), device=self.args.device)
            self._interrupted = bool(self.accelerator.reduce(flag, "sum").item())
        return self._interrupted

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Not the Trainer's: it would push several commits, to the main branch."""
        raise UnlearningError("Save the model with save_model(folder), and push that folder to a branch of its own.")


class _MicroBatches:
    """The batch sampler of this process."""

    def __init__(self, schedule: Schedule, args: UnlearningArguments):
        self.schedule, self.args = schedule, args

    def __len__(self) -> int:
        return len(self.schedule) * self.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator:
        args = self.args
        return self.schedule.micro_batches(0, args.process_index, args.world_size, args.gradient_accumulation_steps)


class _Flow(TrainerCallback):
    """Epochs, which the Trainer does not know of: the method's hooks, and what is due at the end of each."""

    def __init__(self, trainer: UnlearningTrainer):
        self.trainer, self.done, self.next_logs = trainer, -1, {}

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        state.num_train_epochs = len(trainer.schedule.epochs)
        state.epoch = trainer.schedule.progress(state.global_step)
        trainer._parts_since = state.global_step
        if state.global_step == 0 and trainer.original:
            values, _ = figures(trainer.original, trainer.original, class_request=trainer.class_request)
            trainer.log({f"eval_{name}": value for name, value in values.items() if value is not None})

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer._accuracies = {}
        self.trainer.pending_logs |= self.next_logs
        self.next_logs = {}

    def on_step_end(self, args, state, control, **kwargs):
        trainer, step = self.trainer, state.global_step
        state.epoch = trainer.schedule.progress(step)
        if step in trainer.schedule.starts:  # the end of an epoch
            self.done = step
            control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= state.epoch
            control.should_save |= args.save_strategy == SaveStrategy.EPOCH
            due, trainer.pending_logs = trainer.pending_logs, {}
            if step < state.max_steps and trainer.method.on_epoch_begin(trainer.schedule.epoch(step)) is False:
                control.should_training_stop = True
            self.next_logs, trainer.pending_logs = trainer.pending_logs, due  # of the next epoch, not of this one
        if trainer.interrupted():
            # Only save: an evaluation in the middle of an epoch could change which checkpoint is the best.
            self.done = step
            control.should_save = True
        if step % 10 == 0 or control.should_log:
            trainer._check_finite()

    def on_save(self, args, state, control, **kwargs):
        if self.trainer.interrupted():
            control.should_training_stop = True
            args.save_total_limit = None  # with 1, the Trainer would end with deleting all but the best checkpoint

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.done == state.global_step:  # the default flow asks again for what was just done
            control.should_log = control.should_evaluate = control.should_save = False


# ---------------------------------------------------------------------------------------------------------------------
# Checks, before any compute


def _check_arguments(args: UnlearningArguments) -> None:
    if not isinstance(args, UnlearningArguments):
        raise UnlearningError(f"args is a {type(args).__name__}; expected UnlearningArguments.")
    if args.fp16 and args.device.type == "cpu":
        raise UnlearningError("fp16 needs a GPU; pass bf16=True and use_cpu=True, or neither, on this machine.")
    if args.num_train_epochs <= 0 and args.max_steps <= 0:
        raise UnlearningError(f"num_train_epochs is {args.num_train_epochs}; expected a positive number.")
    if args.auto_find_batch_size:
        raise UnlearningError(
            "auto_find_batch_size would change the schedule in the middle; set the batch size yourself."
        )
    if args.push_to_hub:
        raise UnlearningError("push_to_hub=True would push checkpoints; push the result when the run is over.")
    folder = Path(args.output_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UnlearningError(
            f"output_dir {args.output_dir} cannot be written to ({existing} is not a writable folder)."
        )


def _check_needs(method: Method, given: dict[str, Any]) -> None:
    for name in method.info.needs:
        value = given.get(name)
        if value is None:
            what = {
                "forget": "the samples to forget (forget=)",
                "retain": "samples to keep (retain=)",
                "unseen": "samples the model was never trained on (unseen=)",
                "base_model": 'what the original was trained from (base_model=: a Hub id, a model, or "scratch")',
            }[name]
            raise UnlearningError(f"{method.info.name} needs {what}, which was not given.")
    for name, dataset in given.items():
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            raise UnlearningError(f"The {name} set is empty; expected at least one sample.")


def _check_task(method: Method, task: str) -> None:
    if task not in method.info.applies_to:
        raise UnlearningError(
            f"{method.info.name} works on {' and '.join(method.info.applies_to)}, and this model is for {task}; "
            f"list_methods(task={task!r}) names the methods for it."
        )


def _open_sources(given: dict[str, Any], args: UnlearningArguments) -> dict[str, Source]:
    sources = {}
    for name, dataset in given.items():
        if dataset is None:
            continue
        source = Source(dataset, name, args.columns, size=args.retain_size)
        if source.is_stream and name != "retain":
            raise UnlearningError(f"{name} is a stream; only the retained set may be one. Make it a datasets.Dataset.")
        if source.is_stream and args.retain_size is None:
            raise UnlearningError("The retained set is a stream; say how many samples it has with retain_size=.")
        sources[name] = source
    return sources


def _check_labels(sources: dict[str, Source], num_labels: int) -> None:
    for name, source in sources.items():
        source.num_labels = num_labels
        if source.is_stream:
            continue
        bad = np.flatnonzero((source.labels < 0) | (source.labels >= num_labels))
        if len(bad):
            label = source.labels[bad[0]]
            what = "no label" if label == -1 else f"label {label}"
            raise UnlearningError(
                f"{len(bad)} of the {len(source)} samples of {name} have labels the model does not have (row {bad[0]}: "
                f"{what}); expected 0 to {num_labels - 1}, the classes of the model's head."
            )


def _split_indices(sources: dict[str, Source], args: UnlearningArguments) -> dict[str, tuple[str, np.ndarray]]:
    """What is measured: split -> (source, indices)."""
    indices = {"forget": ("forget", np.arange(len(sources["forget"])))}
    if "retain" in sources:
        size = len(sources["retain"])
        if sources["retain"].is_stream:
            chosen = np.arange(min(size, args.retain_eval_size))
        else:
            rng = np.random.default_rng([args.seed, 3])
            chosen = np.sort(rng.choice(size, min(size, args.retain_eval_size), replace=False))
        indices["retain"] = ("retain", chosen)
    if "test" in sources:
        indices["evidence"] = ("test", np.arange(len(sources["test"])))
    if "unseen" in sources:
        if "test" in sources:
            indices["control"] = ("unseen", np.arange(len(sources["unseen"])))
        else:
            control, evidence = split_unseen(sources["unseen"].labels, args.seed)
            indices["control"], indices["evidence"] = ("unseen", control), ("unseen", evidence)
    return {split: value for split, value in indices.items() if len(value[1])}


def _is_class_request(sources: dict[str, Source], method: Method, forget_classes: list[int]) -> bool:
    """Whether whole classes are forgotten: none of them is among the retained samples."""
    asked = getattr(method.config, "class_mode", None)
    retain = sources.get("retain")
    if retain is None or retain.is_stream:
        return bool(asked)
    whole = not np.isin(forget_classes, retain.labels).any()
    if whole and asked is False:
        logger.warning(
            f"The forget set is all there is of label {', '.join(map(str, forget_classes))}: {method.info.name} has a "
            "class_mode for that, which is off."
        )
    return whole


def _check_disk(model: nn.Module, args: UnlearningArguments) -> None:
    """Room for the original, the result and one checkpoint with two moments of the optimizer."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    _check_room(args, 2 * size + (0 if args.save_strategy == SaveStrategy.NO else size + 2 * trained))


def _check_room(args: UnlearningArguments, needed: int) -> None:
    folder = Path(args.output_dir).absolute()
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if free < needed:
        raise UnlearningError(
            f"{args.output_dir} has {free / 2**20:.0f} MiB free, and this run needs about {needed / 2**20:.0f} MiB; free "
            "some space, or choose another output_dir."
        )


# What safetensors says, and what torch.save says: its zip writer only notices that fewer bytes arrived than it wrote.
_DISK_FULL = ("No space left", "File too large", "quota exceeded", "iostream", "inline_container", "StreamWriter")


@contextmanager
def _clear_write_errors(folder: str | Path) -> Iterator[None]:
    """A full disk, or a folder that cannot be written, in one sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for I/O
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(text in str(error) for text in _DISK_FULL)
        if isinstance(error, RuntimeError) and not full:
            raise
        why = "the disk is full" if full else str(error)
        raise UnlearningError(
            f"{folder} could not be written: {why}. The model is still in memory and complete checkpoints are as they "
            "were; make room and save again, or resume."
        ) from error


def _swap(parameters: list[nn.Parameter], gradients: list[Tensor | None]) -> None:
    for i, parameter in enumerate(parameters):
        parameter.grad, gradients[i] = gradients[i], parameter.grad


def _write_last(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


_RECORDED = (
    "learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay",
    "optim", "lr_scheduler_type", "max_grad_norm", "warmup_steps", "freeze_batchnorm", "max_steps", "seed", "bf16", "fp16",
)  # fmt: skip


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
