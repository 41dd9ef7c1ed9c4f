"""Complete checkpoints only: saving, finding and resuming them, and the original that they belong to."""

import functools
import json
import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .. import models
from ..errors import UnlearningError
from ..methods.gradients import local
from ..models.weights import whole
from . import identity
from .arguments import UnlearningArguments, Unnamed
from .checksums import check_whole, checksums
from .disk import check_disk, clear_write_errors
from .output import (
    COMPLETE,
    ORIGINAL,
    check_same_request,
    folder_of_request,
    keep_request,
    read_original,
    request_digest,
)
from .parts import Parts
from .sharding import Sharding, is_cut, keeps_nothing

logger = logging.getLogger(__name__)

METHOD_STATE = "method.safetensors"


class ResumableTrainer(Parts):
    """A Trainer whose run, killed at any moment, goes on from its newest complete checkpoint with the same bits."""

    _claimed = False  # whether the run in the output folder is of this trainer

    def _begin(self, resume: str | bool | None) -> str | None:
        """The checkpoint to go on from, if any, which must be of this very run; and keep the original."""
        digest, request, self._requests = "", "", {}
        with self.together():
            checkpoint = self._find_checkpoint(resume)
            if self.args.should_save or is_cut(self.model):
                digest = models.weights_digest(self.model)
            if self.args.should_save:
                request = self._check_output(checkpoint, digest)
                if not self.is_edit:
                    self._settings = identity.settings_of(self, digest)
                if checkpoint is not None:
                    self._check_belongs(checkpoint)
        with self.together():
            if self.args.should_save:
                self._keep_original(checkpoint, digest)
                keep_request(self.private, request)
        self._claimed = True
        return checkpoint

    def _check_output(self, checkpoint: str | None, digest: str) -> str:
        """One request for each output folder: refuse one that has another, or another original. Gives what to note of this."""
        request = self._request_digest()
        if self._claimed or not self._is_own(checkpoint):
            check_same_request(self.private, self._original_note(digest), request, self._claimed)
        return request

    def _request_digest(self) -> str:
        mask = self.request.mask
        return request_digest(self.sources["forget"].digests(), b"" if mask is None else mask.tobytes())

    def _folder(self, args: UnlearningArguments, model: nn.Module) -> Path:
        """Where the run goes: where none was named, a folder for each request and original."""
        if isinstance(args.output_dir, Unnamed):
            note = functools.cache(lambda: self._original_note(models.weights_digest(model)))
            args.output_dir = folder_of_request(args.output_dir, note, self._request_digest())
        return Path(args.output_dir)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one process refuses inside, all processes refuse, and none waits for another one."""
        error = None
        try:
            yield
        except UnlearningError as refused:
            error = refused
        messages = gather_object([error and str(error)])
        if error is None and any(messages):
            error = UnlearningError(next(filter(None, messages)))
        if error is not None:
            raise error

    def _belongs(self, run: str) -> dict[str, Any]:
        """What the checkpoints of this run belong to; digests of the request are under the key of a run."""
        if run not in self._requests:
            self._requests[run] = identity.request_of(self.request, run)
        return self._settings | {"request": self._requests[run]}

    def _check_belongs(self, checkpoint: str) -> None:
        marker = _marker_of(checkpoint)
        now, then = (settings["callbacks"] for settings in (self._settings, marker["belongs"]))
        if now != then:
            logger.warning(
                f"{checkpoint} was written with the callbacks {', '.join(then) or 'none'}, and this run has "
                f"{', '.join(now) or 'none'}: if these change what is trained, it ends elsewhere."
            )
        if found := identity.differences(self._belongs(marker["run"]), marker["belongs"]):
            more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
            raise UnlearningError(
                f"{checkpoint} belongs to another run ({'; '.join(found[:4])}{more}); pass what that run was given, or start "
                "anew, without resume_from_checkpoint (resume=false in a recipe) or in another output_dir."
            )

    def _keep_original(self, checkpoint: str | None, digest: str) -> None:
        """Keep the original once, or where on the Hub it is."""
        about = self.private / ORIGINAL
        if checkpoint is not None:
            begun, run = self._about(), _marker_of(checkpoint)["run"]
            if begun is not None and (begun["run"], begun["digest"]) == (run, digest):
                return
        check_disk(self.model, self.args)
        with clear_write_errors(self.args.output_dir):
            self.private.mkdir(parents=True, exist_ok=True)
            about.unlink(missing_ok=True)  # from here on, checkpoints of an earlier run do not count
            folder = None
            if self.origin is None and self.adapter is None:
                folder, new = "original", self.private / "original.new"  # what is there may be all that is left of it
                shutil.rmtree(new, ignore_errors=True)
                models.save_model(self.model, new)
                shutil.rmtree(self.private / folder, ignore_errors=True)
                new.rename(self.private / folder)
            _write_last(about, self._original_note(digest) | {"run": uuid.uuid4().hex, "folder": folder})

    def _original_note(self, digest: str) -> dict[str, Any]:
        """What tells the original from every other one."""
        return {"digest": digest, "adapter": self.adapter is not None, **(self.origin or {})}

    def _is_own(self, checkpoint: str | None) -> bool:
        """Whether a checkpoint is of the run that has this output folder."""
        return checkpoint is not None and _marker_of(checkpoint)["run"] == self.run_id()

    def _about(self) -> dict[str, Any] | None:
        """What is noted of the original and of the run that has this output folder, if anything."""
        return read_original(self.private)

    def where_original(self) -> str:
        """In words, from where the original can be loaded again."""
        about = self._about() or {"folder": None}
        if about["folder"]:
            return f"the original, {self.private / about['folder']},"
        return f"the original, {about['repo']}@{about['revision']}," if "repo" in about else "the original"

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Weights as safetensors, the processing class and the method's config; no pickled arguments.

        Overridden because the Trainer's writes `training_args.bin`, a pickle with paths and a token in it, and because
        a timm model must stay readable by timm.
        """
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            self.write(model, output_dir or self.args.output_dir, state_dict)

    def write(self, model: nn.Module, folder: str | Path, state_dict: dict | None = None) -> None:
        """Save `model` with what belongs to this run."""
        folder = Path(folder)
        with clear_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            models.save_model(model, folder, state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            used = {name: _plain(getattr(self.args, name)) for name in _RECORDED} | self.own_clipping()
            start = {"start": self.start.record()} if self.start else {}
            self.method.config.save(folder, training=used, schedule=self.schedule and self.schedule.epochs, **start)

    def check_finite(self, weights: bool = False) -> None:
        """Refuse to go on, or to save, where a loss was NaN or infinite, or `weights` are."""
        if not self.watch.all_finite():
            what = "loss was NaN or infinite by"
        elif weights and not self._finite_weights():
            what = "weights are NaN or infinite after"
        else:
            return
        raise UnlearningError(
            f"The {what} step {self.state.global_step} (learning rate {self.args.learning_rate:g}); lower learning_rate or set "
            f"max_grad_norm, and start again from {self.where_original()} without resume_from_checkpoint, since a checkpoint "
            "goes on with the settings it was saved with."
        )

    def _finite_weights(self) -> bool:
        bad = ~torch.stack([local(p).isfinite().all() for p in self.model.parameters()]).all()
        if self.is_fsdp_enabled:  # every process has other weights
            bad = cast(torch.Tensor, self.accelerator.reduce(bad.int(), "sum"))
        return not bad

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, which gathers sharded weights in memory, or writes none, not even when the run is over."""
        if not is_cut(self.model) or (_internal_call and cast(Sharding, self.sharding).keeps_pieces):
            return super().save_model(output_dir, _internal_call)
        self._save(output_dir, cast(Sharding, self.sharding).whole_weights(self.model))

    def _save_checkpoint(self, model, trial) -> None:
        """The Trainer's checkpoint, with the method's state, counted as complete only by a marker that is written last.

        Overridden because no public hook comes before older checkpoints are deleted: a kill in between would leave none.
        """
        self.check_finite(weights=True)
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save:
            (folder / COMPLETE).unlink(missing_ok=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with clear_write_errors(folder):
                super()._save_checkpoint(model, trial)
                wholes = (
                    (name, whole(tensor)) for name, tensor in self.method.state_dict().items()
                )  # each in its turn
                state = {name: tensor.cpu() for name, tensor in wholes if self.args.should_save}
                if self.args.should_save:
                    notes = {"notes": json.dumps(self.method.notes)}
                    save_file(state, folder / METHOD_STATE, metadata=notes)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # every process has written its random state
        if self.args.should_save:
            with clear_write_errors(folder):
                _write_last(folder / COMPLETE, self._marker(folder))
            self._delete_older_checkpoints(limit)

    def _marker(self, folder: Path) -> dict[str, Any]:
        step, run = self.state.global_step, cast(str, self.run_id())
        return {
            "run": run,
            "step": step,
            "time": time.time_ns(),
            # A method or a callback has ended the run here; resumed, it must not go on.
            "stopped": self.control.should_training_stop and step < self.state.max_steps,
            "resumable": not self.args.save_only_model,
            "files": checksums(folder),
            "belongs": self._belongs(run),
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

    def run_id(self) -> str | None:
        """What tells the run that has this output folder from every other one."""
        about = self._about()
        return about["run"] if about else None

    def _complete_checkpoints(self) -> list[Path]:
        """The complete checkpoints of the run in this output folder, in the order in which they were written."""
        paths = Path(self.args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")
        markers = {path.parent: marker for path in paths if (marker := _read(path))}
        own = [checkpoint for checkpoint, marker in markers.items() if marker.get("run") == self.run_id()]
        return sorted(own, key=lambda checkpoint: markers[checkpoint]["time"])

    def _last_complete(self) -> Path | None:
        return next(reversed(self._complete_checkpoints()), None)

    def _find_checkpoint(self, resume: str | bool | None) -> str | None:
        if not resume:
            return None
        if self.is_edit:
            raise UnlearningError(
                f"{self.method.info.name} edits the weights once and has no checkpoints; start without "
                "resume_from_checkpoint."
            )
        checkpoint = self._last_complete() if resume is True else resume
        if checkpoint is None:
            raise UnlearningError(
                f"There is no complete checkpoint in {self.args.output_dir}; start without resume_from_checkpoint."
            )
        if not isinstance(checkpoint, (str, os.PathLike)):
            raise UnlearningError(
                f"resume_from_checkpoint is {resume!r}; expected the folder of a checkpoint, or True for the newest complete one."
            )
        marker = _read(Path(checkpoint, COMPLETE))
        if marker is None:
            raise UnlearningError(
                f"{checkpoint} is not a complete checkpoint (no {COMPLETE}); pass resume_from_checkpoint=True for the newest "
                "complete one."
            )
        if not isinstance(marker.get("belongs"), dict) or not marker["belongs"].keys() >= identity.PARTS:
            raise UnlearningError(
                f"{checkpoint} was written by an older version of hf_unlearn, which did not note what run it belongs to; start "
                "anew without resume_from_checkpoint, or go on with that version."
            )
        if not marker["resumable"]:
            raise UnlearningError(
                f"{checkpoint} holds weights and no optimizer state (save_only_model=True), and a run resumed from it would "
                "end elsewhere; start without resume_from_checkpoint."
            )
        if self.args.should_save:
            check_whole(Path(checkpoint), marker["files"], self.args.load_best_model_at_end)
        return str(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Overridden because the Trainer's ignores missing keys, which loses weights whose names `save_pretrained`
        converted."""
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        models.load_weights(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Overridden because torch cannot load the whole state (FSDP2) of an optimizer that keeps none, but for its learning rate."""
        if checkpoint is None or not self.is_fsdp_enabled or not keeps_nothing(self.optimizer):
            return super()._load_optimizer_and_scheduler(checkpoint)
        optimizer, schedule = cast(Optimizer, self.optimizer), cast(LRScheduler, self.lr_scheduler)
        schedule.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`."""
        self.looks.forget()
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        models.load_weights(self.accelerator.unwrap_model(self.model), cast(str, self.state.best_model_checkpoint))

    def _resume(self, checkpoint: str) -> None:
        """What the Trainer does not bring back by itself."""
        with safe_open(Path(checkpoint, METHOD_STATE), framework="pt") as saved:
            # In memory of their own: where they lie in the file, kernels may add in another order.
            state = {name: saved.get_tensor(name).clone() for name in saved.keys()}  # noqa: SIM118  (it is no dictionary)
            self.method.notes[:] = json.loads((saved.metadata() or {}).get("notes", "[]"))
        self.method.load_state_dict(state)
        self.args.restore_callback_states_from_checkpoint = True  # such as the patience of early stopping
        marker = _marker_of(checkpoint)
        if marker["stopped"]:
            self.planned.max_steps = self.args.max_steps = marker["step"]
        if marker["step"] >= len(self.planned) and self.is_world_process_zero():
            logger.warning(f"{checkpoint} is the end of its run: no step is left to do, and the result is that run's.")

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends the step, saves a checkpoint and says how to resume; the second one is immediate."""
        self._signalled = self._interrupted = False
        self._asked = None

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
            if self._asked is not None:
                self._asked[1].wait()
        if self._interrupted:
            if self.is_world_process_zero():
                print(
                    f"Stopped at step {self.state.global_step} of {self.state.max_steps}. To go on: the same call, with the "
                    f"original loaded again and resume_from_checkpoint={str(self._last_complete())!r}",
                    flush=True,
                )
            raise KeyboardInterrupt

    _signalled = False  # this process was interrupted
    _interrupted = False  # some process was, and all know it

    def interrupted(self) -> bool:
        """Whether any process was interrupted; all of them ask at the same time, and learn what was so when they asked last:
        the answer comes while the step goes on, over the CPUs, so that no device is waited for."""
        if self.accelerator.num_processes == 1:
            self._interrupted = self._signalled
        elif not self._interrupted:
            if self._asked is not None:
                flag, answer = self._asked
                answer.wait()
                self._interrupted = bool(flag)
            flag = torch.tensor(int(self._signalled))
            self._asked = flag, dist.all_reduce(flag, group=self._over_cpus, async_op=True)
        return self._interrupted

    @property
    def _over_cpus(self) -> dist.ProcessGroup:
        if self._cpus is None:
            self._cpus = cast(
                dist.ProcessGroup, dist.new_group(backend="gloo")
            )  # of all processes, so this one is in it
        return self._cpus

    _cpus: dist.ProcessGroup | None = None
    _asked: tuple[torch.Tensor, dist.Work] | None = None


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or only a part of one."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _marker_of(checkpoint: str) -> dict[str, Any]:
    """The marker of a checkpoint that was found complete."""
    return cast(dict[str, Any], _read(Path(checkpoint, COMPLETE)))


def _write_last(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


_RECORDED = (
    "learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay",
    "optim", "optim_args", "lr_scheduler_type", "max_grad_norm", "warmup_steps", "freeze_batchnorm", "decay", "max_steps", "seed",
    "bf16", "fp16",
)  # fmt: skip


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
