"""A run that is killed and resumed ends with the same bits as one that is not; and what steers a run besides its steps."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_unlearn import UnlearningError, models
from hf_unlearn.trainer import COMPLETE
from tests.runs import (
    SIZES,
    TRAINED,
    Runs,
    make_trainer,
    original,
    request,
    same_bits,
    weights,
)

EVERY_TWO = {"save_strategy": "steps", "save_steps": 2}
EVERY_EPOCH = {"save_strategy": "epoch", "eval_strategy": "epoch", "num_train_epochs": 3}

# Dropout draws random numbers; batches are accumulated; there is one checkpoint; and LoTUS's τ is in the state.
EVERYTHING = EVERY_TWO | {
    "method": "lotus",
    "family": "bert",
    "dropout": 0.1,
    "batch": 4,
    "accumulation": 2,
    "num_train_epochs": 3,
    "save_total_limit": 1,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The result of a run from beginning to end, by its settings."""
    results = {}

    def result(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in results:
            results[key] = Runs(tmp_path_factory.mktemp("uninterrupted"), **settings).finish()
        return results[key]

    return result


def check_no_pickled_arguments(folder: Path) -> None:
    names = {path.name for path in folder.rglob("*")}
    assert "optimizer.pt" in names
    assert "training_args.bin" not in names


# ---------------------------------------------------------------------------------------------------------------------
# Killed


@pytest.mark.slow
@pytest.mark.parametrize("method", [*TRAINED, "own_difference"])
def test_killed_while_saving(method, tmp_path, uninterrupted):
    """Every method, with its own optimizer, in the middle of an epoch. The half-written checkpoint is not used."""
    settings = EVERY_TWO | {"method": method, "family": "vit"}
    runs = Runs(tmp_path, **settings)
    runs.killed("optimizer", 4)
    assert runs.checkpoints == ["checkpoint-2", "checkpoint-4"]
    result = runs.finish(resume=True)
    assert result.first_step == 2
    assert same_bits(result.weights, uninterrupted(**settings).weights)
    check_no_pickled_arguments(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment, resumed_at", [("step", 4), ("weights", 2), ("optimizer", 2), ("marker", 2), ("rotation", 4)]
)
def test_killed_at_any_point(moment, resumed_at, tmp_path, uninterrupted):
    runs = Runs(tmp_path, **EVERYTHING)
    runs.killed(moment, 4)
    result = runs.finish(resume=True)
    assert (result.first_step, result.last_step) == (resumed_at, 9)
    assert same_bits(result.weights, uninterrupted(**EVERYTHING).weights)
    assert "checkpoint-9" in runs.checkpoints
    assert len([name for name in runs.checkpoints if (tmp_path / "run" / name / COMPLETE).exists()]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_at_random_moments(seed, tmp_path, uninterrupted):
    """Also before the first checkpoint, and between two, and after the last step. In an adapter, with dropout."""
    rng = random.Random(seed)
    settings = EVERY_TWO | {"method": "lotus", "family": "vit", "lora": True, "dropout": 0.1, "save_total_limit": 1}
    expected = uninterrupted(**settings)
    runs = Runs(tmp_path, **settings)
    for _ in range(3):
        process = runs.start(resume=bool(runs.complete), pause=0.05)[0]
        begun = time.monotonic()
        while not list(tmp_path.glob("step-*")) and process.is_alive() and time.monotonic() < begun + 60:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.join()
    result = runs.finish(resume=bool(runs.complete))
    assert result.last_step == expected.last_step
    assert same_bits(result.weights, expected.weights)


@pytest.mark.slow
def test_two_processes_killed(tmp_path):
    settings = EVERYTHING | {"batch": 2}
    expected = Runs(tmp_path / "uninterrupted", processes=2, **settings).finish()
    runs = Runs(tmp_path / "killed", processes=2, **settings)
    runs.killed("optimizer", 4)
    result = runs.finish(resume=True)
    assert result.first_step == 2
    assert same_bits(result.weights, expected.weights)


@pytest.mark.slow
@pytest.mark.parametrize("save_strategy", ["no", "epoch"])
def test_interrupted(save_strategy, tmp_path, uninterrupted):
    """Ctrl-C in the middle of an epoch: a checkpoint at once, no evaluation out of turn, and a hint."""
    settings = {"method": "lotus", "family": "vit", "num_train_epochs": 4, "dropout": 0.1}
    if save_strategy == "epoch":
        settings |= EVERY_EPOCH | {"load_best_model_at_end": True, "save_total_limit": 1, "num_train_epochs": 4}
    expected = uninterrupted(**settings)
    runs = Runs(tmp_path, **settings)
    process = runs.start(pause=0.2)[0]
    while not (tmp_path / "step-4").exists() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode not in (0, None)
    assert not (tmp_path / "result.json").exists()
    hint = runs.output.strip().splitlines()[-1]
    assert hint.startswith("Stopped at step ") and hint.endswith("')") is False
    checkpoint = hint.split("resume_from_checkpoint=")[1].strip("'")
    step = int(checkpoint.rsplit("-", 1)[1])
    assert 4 <= step < expected.last_step and hint.startswith(f"Stopped at step {step} of {expected.last_step}.")
    result = runs.finish(resume=checkpoint)
    assert result.first_step == step
    assert same_bits(result.weights, expected.weights)
    evaluated = [[line["step"] for line in r.logs if "eval_gap" in line] for r in (result, expected)]
    assert evaluated[0] == evaluated[1]


@pytest.mark.slow
def test_a_run_that_ended_early_is_not_prolonged(tmp_path, uninterrupted):
    """Killed after it had stopped, by its method or by a callback, and resumed."""
    for settings, last in (
        ({"method": "own_stopping", "family": "vit"} | EVERY_EPOCH, 5),
        ({"method": "own_phases", "family": "vit", "patience": 1} | EVERY_EPOCH, None),
    ):
        expected = uninterrupted(**settings)
        if last is not None:
            assert expected.last_step == last
        runs = Runs(tmp_path / settings["method"], **settings)
        assert runs.finish().last_step == expected.last_step
        result = runs.finish(resume=True)
        assert (result.first_step, result.last_step) == (expected.last_step, expected.last_step)
        assert same_bits(result.weights, expected.weights)
