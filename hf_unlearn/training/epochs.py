"""Epochs, which the Trainer does not know of."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.batches import Batch, to_model
from ..data.schedule import Schedule
from .arguments import UnlearningArguments


class MicroBatches:
    """The batch sampler of this process."""

    def __init__(self, schedule: Schedule, args: UnlearningArguments):
        self.schedule, self.args = schedule, args

    def __len__(self) -> int:
        return len(self.schedule) * self.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator:
        args = self.args
        return self.schedule.micro_batches(0, args.process_index, args.world_size, args.gradient_accumulation_steps)


class Share:
    """This process's share of a set, in batches, as often as it is iterated."""

    def __init__(self, trainer: Any, name: str):
        self.trainer, self.name = trainer, name

    def __iter__(self) -> Iterator[Batch]:
        trainer, evaluator = self.trainer, self.trainer.evaluator
        indices = np.arange(len(trainer.sources[self.name]))
        for _, batch in evaluator.batches(self.name, indices, evaluator.shard, self.name):
            yield to_model(batch, trainer.model, trainer.args.device)


class Flow(TrainerCallback):
    """Epochs, which the Trainer does not know of: the method's hooks, and what is due at the end of each."""

    def __init__(self, trainer: Any):
        self.trainer, self.done, self.next_logs = trainer, -1, {}

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        state.num_train_epochs = len(trainer.schedule.epochs)
        state.epoch = trainer.schedule.progress(state.global_step)
        trainer._parts_since = state.global_step
        if state.global_step == 0 and trainer.original:
            values, _ = trainer.evaluator.figures(
                trainer.original, trainer.original, class_request=trainer.request.is_class
            )
            trainer.log({f"eval_{name}": value for name, value in values.items() if value is not None})

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer._accuracies, self.trainer._measured = {}, {}
        self.trainer.method.on_step_begin(state.global_step)
        self.trainer.pending_logs |= self.next_logs
        self.next_logs = {}

    def on_step_end(self, args, state, control, **kwargs):
        trainer, step = self.trainer, state.global_step
        state.epoch = trainer.schedule.progress(step)
        trainer._accuracies, trainer._measured = {}, {}
        with trainer.accelerator.autocast():
            if trainer.method.on_step_end(step) is False:
                control.should_training_stop = True
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
