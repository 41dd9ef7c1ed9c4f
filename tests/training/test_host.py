"""Within a step no method waits for the device: nothing is read from a tensor between one update and the next."""

import sys
from contextlib import ExitStack, contextmanager

import pytest
from torch import Tensor
from transformers import TrainerCallback

from hf_unlearn.methods import METHODS
from tests.runs import TRAINED, make_trainer

READS = ("item", "cpu", "numpy", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero")
# HAMU chooses a branch for every block of weights: all inner products are brought to the CPU at once.
# What follows are a few numbers there, which no device is asked for.
ON_PURPOSE = {
    "hamu": "hamu.py",
    "dpo": "alternatives.py",  # which other answer a sample is given is drawn on the CPU
    "pdu": "context.py",  # its weight follows the retained loss of a step over all processes: one number
}
LANGUAGE = [
    name
    for name, method in METHODS.items()
    if method.info.kind != "surgery"
    and "causal-lm" in method.info.applies_to
    and name not in TRAINED
    and name not in ("altpo", "idk_dpo")  # whose answers are texts
]


def caller(name: str) -> str | None:
    """Where in this library a tensor is read, but for the reading of data, which is on the CPU; None where others read it."""
    frame, found = sys._getframe(2), None
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/utils/data/" in file:
            return None
        if found is None and "/torch/" not in file:
            found = file, frame.f_lineno
        frame = frame.f_back
    if found and "/hf_unlearn/" in found[0]:
        return f"{name} in {found[0].rpartition('/')[2]}:{found[1]}"
    return None


@contextmanager
def counted(found: list[str]):
    """Reads of tensors by the code of this library."""

    def counting(name, read):
        def counted_read(tensor, *args, **kwargs):
            if place := caller(name):
                found.append(place)
            return read(tensor, *args, **kwargs)

        return counted_read

    before = {name: getattr(Tensor, name) for name in READS}
    for name, read in before.items():
        setattr(Tensor, name, counting(name, read))
    try:
        yield
    finally:
        for name, read in before.items():
            setattr(Tensor, name, read)


class Between(TrainerCallback):
    """Counts from the second update to the third."""

    def __init__(self):
        self.found: list[str] = []
        self.stack = ExitStack()

    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.stack.enter_context(counted(self.found))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.stack.close()


@pytest.mark.parametrize(
    "family, method", [*(("vit", name) for name in TRAINED), *(("llama", name) for name in LANGUAGE)]
)
def test_nothing_is_read_within_a_step(family, method, tmp_path):
    between = Between()
    trainer = make_trainer(method, family, tmp_path, callbacks=[between], max_steps=3, measure=False, batch=4)
    trainer.train()
    assert trainer.state.global_step == 3
    assert [place for place in between.found if ON_PURPOSE.get(method, "nowhere") not in place] == []
