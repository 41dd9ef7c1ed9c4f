"""A run that is killed and resumed ends with the same bits as one that is not; and what steers a run besides its steps."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_unlearn import UnlearningError, models
from hf_unlearn.checkpoints import COMPLETE
from tests.runs import TRAINED, OwnPhases, Runs, StopAt, distance, make_trainer, original, request, same_bits, weights

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
@pytest.mark.parametrize(
    "method, family",
    [(method, "vit") for method in (*TRAINED, "own_difference")]
    + [(method, "llama") for method in ("grad_diff", "npo", "simnpo", "rmu")],
)
def test_killed_while_saving(method, family, tmp_path, uninterrupted):
    """Every method, with its own optimizer, in the middle of an epoch. The half-written checkpoint is not used."""
    settings = EVERY_TWO | {"method": method, "family": family, "measure": False}
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
    assert runs.complete == ["checkpoint-9"]


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
def test_two_processes_killed(tmp_path, uninterrupted):
    settings = EVERYTHING | {"batch": 2, "processes": 2}
    runs = Runs(tmp_path, **settings)
    runs.killed("optimizer", 4)
    result = runs.finish(resume=True)
    assert result.first_step == 2
    assert same_bits(result.weights, uninterrupted(**settings).weights)


@pytest.mark.slow
@pytest.mark.parametrize("save_strategy, processes", [("no", 1), ("epoch", 1), ("no", 2)])
def test_interrupted(save_strategy, processes, tmp_path, uninterrupted):
    """Ctrl-C in the middle of an epoch: a checkpoint at once, no evaluation out of turn, and a hint.

    Of two processes the second one is interrupted, and both of them stop.
    """
    settings = {"method": "lotus", "family": "vit", "num_train_epochs": 4, "dropout": 0.1}
    if save_strategy == "epoch":
        settings |= EVERY_EPOCH | {"load_best_model_at_end": True, "save_total_limit": 1, "num_train_epochs": 4}
    expected = uninterrupted(processes=processes, **settings)
    runs = Runs(tmp_path, processes=processes, **settings)
    started = runs.start(pause=0.2)
    while not (tmp_path / "step-4").exists() and started[0].is_alive():
        time.sleep(0.01)
    os.kill(started[-1].pid, signal.SIGINT)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == processes * [1]
    assert not (tmp_path / "result.json").exists()
    hint = runs.output.strip().splitlines()[-1]
    before, checkpoint = hint.rstrip("'").split("resume_from_checkpoint='")
    step = int(checkpoint.rsplit("-", 1)[1])
    assert before.startswith(f"Stopped at step {step} of {expected.last_step}. To go on: ")
    assert 4 <= step < expected.last_step
    result = runs.finish(resume=checkpoint)
    assert result.first_step == step
    assert same_bits(result.weights, expected.weights)
    evaluated, others = ([line["step"] for line in r.logs if "eval_gap" in line] for r in (result, expected))
    assert evaluated == others


@pytest.mark.slow
def test_a_run_that_its_method_ended_is_not_prolonged(tmp_path):
    runs = Runs(tmp_path, method="own_stopping", family="vit", **EVERY_EPOCH)
    expected, result = runs.finish(), runs.finish(resume=True)
    assert (expected.last_step, result.first_step, result.last_step) == (5, 5, 5)
    assert same_bits(result.weights, expected.weights)


@pytest.mark.slow
def test_patience_is_resumed(tmp_path, uninterrupted):
    """The loss on retained samples falls, and is asked to rise: after the second epoch, and the third, patience is lost."""
    settings = EVERY_EPOCH | {"method": "own_descent", "family": "vit", "patience": 2, "num_train_epochs": 5}
    settings |= {"metric_for_best_model": "retain_loss", "greater_is_better": True}
    expected = uninterrupted(**settings)
    assert expected.last_step == 15
    runs = Runs(tmp_path, **settings)
    runs.killed("step", 12)
    result = runs.finish(resume=True)
    assert (result.first_step, result.last_step) == (10, 15)
    assert same_bits(result.weights, expected.weights)


# ---------------------------------------------------------------------------------------------------------------------
# Which checkpoint counts


def train(folder: Path, *, stop_at: int | None = None, resume: bool | str = False, **settings):
    callbacks = [] if stop_at is None else [StopAt(stop_at)]
    trainer = make_trainer(**{"method": "lotus", "family": "vit", **settings}, folder=folder, callbacks=callbacks)
    if stop_at is None:
        trainer.train(resume_from_checkpoint=resume)
    else:
        with pytest.raises(UnlearningError, match="killed"):
            trainer.train(resume_from_checkpoint=resume)
    return trainer


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoint-*")}


def test_resumed_in_this_process(tmp_path):
    expected = train(tmp_path / "a")
    train(tmp_path / "b", stop_at=5, **EVERY_TWO)
    assert checkpoints(tmp_path / "b") == {"checkpoint-2", "checkpoint-4"}
    resumed = train(tmp_path / "b", resume=True, **EVERY_TWO)
    assert same_bits(weights(resumed.model), weights(expected.model))
    resumed.save_model(str(tmp_path / "b" / "result"))
    check_no_pickled_arguments(tmp_path / "b")


@pytest.mark.slow
def test_a_stream_is_resumed(tmp_path):
    data = request("bert")
    settings = {"family": "bert", "data": data | {"retain": data["retain"].to_iterable_dataset()}, "retain_size": 33}
    expected = train(tmp_path / "a", **settings)
    train(tmp_path / "b", stop_at=5, **settings, **EVERY_TWO)
    resumed = train(tmp_path / "b", resume=True, **settings)
    assert same_bits(weights(resumed.model), weights(expected.model))


def test_an_incomplete_checkpoint_is_refused(tmp_path):
    train(tmp_path, stop_at=5, **EVERY_TWO)
    (tmp_path / "checkpoint-4" / COMPLETE).unlink()
    with pytest.raises(
        UnlearningError, match="checkpoint-4 is not a complete checkpoint .*resume_from_checkpoint=True"
    ):
        train(tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert train(tmp_path, resume=True, stop_at=3).state.global_step == 3
    (tmp_path / "checkpoint-2" / COMPLETE).unlink()
    with pytest.raises(UnlearningError, match="There is no complete checkpoint"):
        train(tmp_path, resume=True)


def test_weights_alone_are_refused(tmp_path):
    train(tmp_path, stop_at=5, save_only_model=True, **EVERY_TWO)
    for resume in (True, str(tmp_path / "checkpoint-2")):
        with pytest.raises(UnlearningError, match="save_only_model=True"):
            train(tmp_path, resume=resume)


@pytest.mark.slow
def test_leftovers_of_an_older_run(tmp_path, monkeypatch):
    """They neither count, however far they came, nor are they deleted."""
    train(tmp_path, num_train_epochs=3, **EVERY_TWO)
    older = {"checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8", "checkpoint-9"}
    assert checkpoints(tmp_path) == older

    def killed(*args):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(UnlearningError, match="killed"):
        patch.setattr(models, "save_model", killed)  # the new run has only begun to keep its original
        train(tmp_path, seed=1)
    with pytest.raises(UnlearningError, match="There is no complete checkpoint"):
        train(tmp_path, seed=1, resume=True)

    newer = {"seed": 1, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}
    train(tmp_path, stop_at=2, **newer)
    with pytest.raises(UnlearningError, match="There is no complete checkpoint"):
        train(tmp_path, resume=True, **newer)
    train(tmp_path, stop_at=5, **newer)
    assert checkpoints(tmp_path) == older | {"checkpoint-3"}
    resumed = train(tmp_path, resume=True, **newer)
    assert checkpoints(tmp_path) == older
    assert resumed._last_complete() == tmp_path / "checkpoint-6"
    assert same_bits(weights(resumed.model), weights(train(tmp_path / "b", seed=1).model))


def test_the_newest_is_the_last_one_written(tmp_path):
    """After a step back to an older checkpoint, with other arguments, those behind it belong to the past."""
    train(tmp_path, **EVERY_TWO)
    train(
        tmp_path, resume=str(tmp_path / "checkpoint-2"), stop_at=5, learning_rate=0.1, save_total_limit=2, **EVERY_TWO
    )
    trainer = make_trainer("lotus", "vit", tmp_path)
    assert [path.name for path in trainer._complete_checkpoints()] == ["checkpoint-6", "checkpoint-4"]


def test_another_original_is_refused(tmp_path):
    train(tmp_path, stop_at=5, **EVERY_TWO)
    model = original("vit")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    for folder, resume in ((tmp_path, True), (tmp_path / "other", str(tmp_path / "checkpoint-2"))):
        with pytest.raises(UnlearningError, match="holds a run on another original model"):
            train(folder, resume=resume, model=model)


@pytest.mark.slow
def test_an_adapter_starts_the_same_again(tmp_path):
    """Its first weights are drawn, so they would be taken for another original; see also the runs that are killed."""
    a, b = (train(tmp_path / name, stop_at=0, lora=True) for name in "ab")
    assert any("lora_A" in name and tensor.any() for name, tensor in weights(a.model).items())
    assert same_bits(weights(a.model), weights(b.model))


@pytest.mark.slow
def test_resumed_in_another_folder(tmp_path):
    train(tmp_path / "a", stop_at=5, **EVERY_TWO)
    resumed = train(tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-4"), **EVERY_TWO)
    assert same_bits(weights(resumed.model), weights(train(tmp_path / "c").model))
    with resumed.original_model() as kept:
        assert same_bits(weights(kept), weights(original("vit")))
    assert resumed._last_complete() == tmp_path / "b" / "checkpoint-6"


@pytest.mark.slow
def test_resumed_with_another_layout(tmp_path):
    """A run begun with batches of 8 goes on with 4 × 2: a step number says it all."""
    train(tmp_path / "a", stop_at=5, dtype="float64", **EVERY_TWO)
    resumed = train(tmp_path / "a", resume=True, dtype="float64", batch=2, accumulation=4)
    assert distance(weights(resumed.model), weights(train(tmp_path / "b", dtype="float64").model)) < 1e-10


# ---------------------------------------------------------------------------------------------------------------------
# What steers a run besides its steps


def evaluations(trainer) -> dict[int, dict[str, float]]:
    return {line["step"]: line for line in trainer.state.log_history if "eval_forget_accuracy" in line}


def test_every_epoch_is_evaluated(tmp_path):
    trainer = train(tmp_path, method="own_phases", eval_strategy="epoch")
    found = evaluations(trainer)
    assert list(found) == [0, 2, 7, 9, 14]  # two steps up on 9 forget samples, five down on 33 retained ones
    assert [line["epoch"] for line in found.values()] == [0, 1, 2, 3, 4]
    for step, when in ((0, "before"), (14, "after")):
        figures = {name: value for name, value in trainer.metrics[when].items() if value is not None}
        assert figures.pop("auc_low") <= figures["auc"] <= figures.pop("auc_high")  # an interval is for the end only
        assert len(figures) >= 9
        assert {name: found[step][f"eval_{name}"] for name in figures} == pytest.approx(figures, abs=1e-12)
    losses = [line["eval_forget_loss"] for line in found.values()]
    assert losses[0] < losses[1] and losses[2] < losses[3]


@pytest.mark.slow
def test_evaluated_against_the_original_even_if_that_is_not_asked_to_be_measured(tmp_path):
    settings = {"method": "own_phases", "eval_strategy": "epoch"}
    found, expected = (evaluations(train(tmp_path / name, measure=name == "b", **settings)) for name in "ab")
    for step in (2, 7):
        assert found[step]["eval_rf_jsd"] == expected[step]["eval_rf_jsd"]
        assert found[step]["eval_gap"] == expected[step]["eval_gap"]
    trainer = train(tmp_path / "c", measure=False)
    with pytest.raises(UnlearningError, match="The original was not measured"):
        trainer.evaluate()


def test_the_best_checkpoint_is_loaded(tmp_path):
    """The file of a timm model has other names than the model in memory."""
    settings = EVERY_EPOCH | {"load_best_model_at_end": True, "num_train_epochs": 2}
    trainer = train(tmp_path, method="own_phases", family="resnet", **settings)
    gaps = {step: line["eval_gap"] for step, line in evaluations(trainer).items() if step > 0}
    best = min(gaps, key=gaps.get)
    assert best != max(gaps) and trainer.state.best_global_step == best
    saved, last = (original("resnet") for _ in range(2))
    models.load_weights(saved, tmp_path / f"checkpoint-{best}")
    models.load_weights(last, tmp_path / f"checkpoint-{max(gaps)}")
    assert same_bits(weights(trainer.model), weights(saved))
    assert not same_bits(weights(trainer.model), weights(last))
    assert trainer.metrics["after"]["gap"] == pytest.approx(gaps[best], abs=1e-12)
    assert not load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors").keys() & weights(saved).keys()


def test_the_best_checkpoint_is_kept(tmp_path):
    settings = EVERY_EPOCH | {"load_best_model_at_end": True, "save_total_limit": 2}
    settings |= {"metric_for_best_model": "retain_loss", "greater_is_better": True}
    trainer = train(tmp_path, method="own_descent", **settings)
    assert checkpoints(tmp_path) == {"checkpoint-5", "checkpoint-15"}
    assert trainer.state.best_global_step == 5


@pytest.mark.parametrize("lora", [False, True])
def test_early_stopping(lora, tmp_path):
    settings = EVERY_EPOCH | {"metric_for_best_model": "retain_loss", "greater_is_better": True, "patience": 1}
    trainer = train(tmp_path, method="own_descent", load_best_model_at_end=True, lora=lora, **settings)
    assert trainer.state.global_step == 10
    saved = make_trainer("own_descent", "vit", tmp_path, lora=lora).model
    assert not same_bits(weights(trainer.model), weights(saved))
    models.load_weights(saved, tmp_path / "checkpoint-5")
    assert same_bits(weights(trainer.model), weights(saved))


@pytest.mark.parametrize("without", ["unseen", "a class in unseen"])
def test_no_best_checkpoint_without_a_gap(without, tmp_path):
    data = request("vit")
    data["unseen"] = None if without == "unseen" else [row for row in data["unseen"] if row["labels"] > 0]
    settings = EVERY_EPOCH | {"method": "finetune", "num_train_epochs": 1, "data": data}
    trainer = train(tmp_path, **settings)
    assert [("eval_gap" in line, "eval_forget_accuracy" in line) for line in evaluations(trainer).values()] == [
        (0, 1)
    ] * 2
    with pytest.raises(UnlearningError, match="there is no gap because .*unseen samples"):
        train(tmp_path, load_best_model_at_end=True, **settings)


@pytest.mark.parametrize("method, steps", [("own_never", 0), ("own_stopping", 5)])
def test_a_method_ends_the_run(method, steps, tmp_path):
    trainer = train(tmp_path, method=method)
    assert trainer.state.global_step == steps
    assert same_bits(weights(trainer.model), weights(original("vit"))) == (steps == 0)
    assert trainer.metrics["after"]["retain_accuracy"] is not None


def test_a_method_asks_for_accuracies(tmp_path):
    """They are those of the model as it is, in a second run of the same trainer as well."""

    class Asking(OwnPhases):
        def prepare(self, context):
            self.context, self.asked, self.true = context, [context.accuracy("control")], []

        def on_epoch_begin(self, epoch):
            self.asked.append(self.context.accuracy("forget"))
            self.true.append(trainer.evaluator.accuracy(trainer.model, *trainer.indices["forget"]))

    trainer = make_trainer(Asking(), "resnet", tmp_path)
    for _ in range(2):
        control = trainer.evaluator.accuracy(trainer.model, *trainer.indices["control"])
        trainer.train()
        assert trainer.method.asked == [control, *trainer.method.true]
        assert len(set(trainer.method.true)) > 1
