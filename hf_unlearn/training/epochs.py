"""Epochs, which the Trainer does not know of."""

from collections.abc import Iterator
from typing import cast

import numpy as np
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.schedule import Schedule
from ..methods import Method
from .arguments import UnlearningArguments
from .checkpoints import ResumableTrainer
from .request import Request


def make_schedule(request: Request, method: Method, args: UnlearningArguments, sizes: np.ndarray | None) -> Schedule:
    """The method's epochs, cut into steps; with a fraction of epochs, or a number of steps, it ends earlier."""
    epochs = cast(float, args.num_train_epochs)  # which `with_defaults` has filled in
    whole = int(np.ceil(epochs))
    retain = request.sources.get("retain")
    n_forget, n_retain = len(request.forget), len(retain) if retain else 0
    schedule = Schedule(
        method.epochs(whole),
        n_forget=n_forget,
        n_retain=n_retain,
        batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        retain_fraction=method.retained_share(n_forget, n_retain),
        retain_is_stream=bool(retain and retain.is_stream),
        lane_starts=retain.lane_starts if retain else (0,),
        max_steps=args.max_steps if args.max_steps > 0 else None,
        sizes=sizes,
    )
    if args.max_steps <= 0 and epochs < whole:
        schedule.max_steps = max(1, round(len(schedule) * epochs / whole))
    return schedule


class MicroBatches:
    """The batch sampler of this process."""

    def __init__(self, schedule: Schedule, args: UnlearningArguments):
        self.schedule, self.args = schedule, args

    def __len__(self) -> int:
        return len(self.schedule) * self.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator:
        args = self.args
        return self.schedule.micro_batches(0, args.process_index, args.world_size, args.gradient_accumulation_steps)


class Flow(TrainerCallback):
    """Epochs, which the Trainer does not know of: the method's hooks, and what is due at the end of each."""

    def __init__(self, trainer: ResumableTrainer, schedule: Schedule):
        self.trainer, self.schedule, self.done = trainer, schedule, -1
        self.next_logs: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        state.num_train_epochs = len(self.schedule.epochs)
        state.epoch = self.schedule.progress(state.global_step)
        trainer.watch.since = state.global_step
        if state.global_step == 0 and trainer.original:
            values, _ = trainer.evaluator.figures(
                trainer.original, trainer.original, class_request=trainer.request.is_class
            )
            trainer.log({f"eval_{name}": value for name, value in values.items() if value is not None})

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.looks.forget()
        self.trainer.method.on_step_begin(state.global_step)
        self.trainer.watch.pending |= self.next_logs
        self.next_logs = {}

    def on_step_end(self, args, state, control, **kwargs):
        trainer, step = self.trainer, state.global_step
        state.epoch = self.schedule.progress(step)
        trainer.looks.forget()
        with trainer.accelerator.autocast():
            if trainer.method.on_step_end(step) is False:
                control.should_training_stop = True
        if step in self.schedule.starts:  # the end of an epoch
            self.done = step
            control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= state.epoch
            control.should_save |= args.save_strategy == SaveStrategy.EPOCH
            due, trainer.watch.pending = trainer.watch.pending, {}
            if step < state.max_steps and trainer.method.on_epoch_begin(self.schedule.epoch(step)) is False:
                control.should_training_stop = True
            self.next_logs, trainer.watch.pending = trainer.watch.pending, due  # of the next epoch, not of this one
        if trainer.interrupted():
            # Only save: an evaluation in the middle of an epoch could change which checkpoint is the best.
            self.done = step
            control.should_save = True
        if step % 10 == 0 or control.should_log:
            trainer.check_finite()

    def on_save(self, args, state, control, **kwargs):
        if self.trainer.interrupted():
            control.should_training_stop = True
            args.save_total_limit = None  # with 1, the Trainer would end with deleting all but the best checkpoint

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.done == state.global_step:  # the default flow asks again for what was just done
            control.should_log = control.should_evaluate = control.should_save = False
