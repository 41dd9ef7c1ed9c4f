"""What a resumed run notices beside its settings: functions that were given, damaged files, other callbacks."""

import functools
import logging

import pytest
import torch
from transformers import TrainerCallback

from hf_unlearn import UnlearningError, unlearn
from hf_unlearn.training.identity import _named
from tests.samples import arguments, request
from tests.tiny import tiny_vit


def brighter(by):
    return lambda picture: picture + by


def collator(scale):
    def collate(rows):
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": scale * pixels, "labels": torch.tensor([int(row["label"]) for row in rows])}

    return collate


class Slower(TrainerCallback):
    pass


def run(folder, resume=None, callbacks=None, **given):
    args = arguments(folder, max_steps=2, save_strategy="steps", save_steps=1)
    return unlearn(
        tiny_vit(),
        **request(),
        method="finetune",
        args=args,
        callbacks=callbacks,
        resume_from_checkpoint=resume,
        **given,
    )


@pytest.mark.parametrize(("name", "make"), [("augment", brighter), ("data_collator", collator)])
def test_another_function(tmp_path, name, make):
    run(tmp_path, **{name: make(1.0)})
    checkpoint = str(tmp_path / "checkpoint-1")
    with pytest.raises(UnlearningError, match=f"{name} is"):
        run(tmp_path, resume=checkpoint, **{name: make(2.0)})
    run(tmp_path, resume=checkpoint, **{name: make(1.0)})


@pytest.mark.slow
def test_a_flipped_bit(tmp_path):
    run(tmp_path)
    checkpoint = tmp_path / "checkpoint-1"
    for name in ("optimizer.pt", "model.safetensors", "scheduler.pt", "rng_state.pth"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(UnlearningError, match=f"cannot be resumed, because its {name} is not as it was written"):
            run(tmp_path, resume=str(checkpoint))
        (checkpoint / name).write_bytes(content)
    run(tmp_path, resume=str(checkpoint))


@pytest.mark.slow
def test_other_callbacks_are_told(tmp_path, caplog):
    run(tmp_path)
    for callbacks, told in (([Slower()], True), (None, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(tmp_path, resume=str(tmp_path / "checkpoint-1"), callbacks=callbacks)
        assert ("this run has Slower: if these change what is trained" in caplog.text) == told


class Shift:
    def __init__(self, by):
        self.by, self.own = by, self

    def __call__(self, picture):
        return picture + self.by

    def method(self, picture):
        return picture + self.by


def test_functions_by_what_they_do():
    for make in (
        brighter,
        collator,
        Shift,
        lambda by: Shift(by).method,
        lambda by: functools.partial(Shift.method, by),
    ):
        assert _named(make(1)) == _named(make(1)) != _named(make(2))
    assert _named(lambda x: x + 1) != _named(lambda x: x + 2)
    assert _named(lambda x: x in {"a", "b"}) == _named(lambda x: x in {"b", "a"})
