"""What a run prints: transformers' bars and lines, with figures in words instead of dictionaries."""

from typing import Any

from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_callback import CallbackHandler

from ..metrics.tables import NAMES, wrapped

UNPRINTED = ("total_flos", "eval_runtime", "steps_per_second", "samples_per_second")  # these are logged
SAID = NAMES | {"auc": "AUC", "train_runtime": "seconds of training", "train_loss": "mean loss"}


def line(logs: dict[str, Any]) -> str:
    """What was logged, on one line: of a set's accuracy and loss the former.

    >>> line({"eval_forget_accuracy": 0.98, "eval_forget_loss": 0.1, "eval_auc": 0.5, "epoch": 2.0})
    'epoch 2: forget acc. 0.98, AUC 0.5'
    """
    shown = [
        key for key in logs if not key.endswith(UNPRINTED) and f"{key.removesuffix('_loss')}_accuracy" not in logs
    ]
    figures = {key.removeprefix("eval_"): logs[key] for key in shown}
    epoch = figures.pop("epoch", None)
    said = ", ".join(f"{SAID.get(key, key.replace('_', ' '))} {_short(value)}" for key, value in figures.items())
    return said if epoch is None else f"epoch {_short(epoch)}: {said}"


def _short(value: Any) -> str:
    return str(value) if not isinstance(value, float) else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Bar(ProgressCallback):
    """The bar of transformers, with readable lines above it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(wrapped(line(logs or {}), "  "))


class Printer(PrinterCallback):
    """Readable lines, where there is no bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_local_process_zero:
            print(wrapped(line(logs or {}), "  "))


READABLE = {ProgressCallback: Bar, PrinterCallback: Printer}


def make_readable(handler: CallbackHandler) -> None:
    """Put these in the places of transformers' own; a notebook's table and a user's callbacks stay."""
    handler.callbacks = [READABLE[type(one)]() if type(one) in READABLE else one for one in handler.callbacks]
