"""A run that is killed and resumed ends with the same bits as one that is not; and what steers a run besides its steps."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from hf_unlearn import UnlearningError, UnlearningTrainer, models
from hf_unlearn.methods import LotusConfig
from hf_unlearn.training.checkpoints import COMPLETE, METHOD_STATE
from tests import samples
from tests.marks import slow_but
from tests.runs import TRAINED, OwnPhases, Runs, StopAt, distance, make_trainer, original, request, same_bits, weights
from tests.samples import arguments, for_trainer
from tests.tiny import tiny_image_processor, tiny_vit

EVERY_TWO = {"save_strategy": "steps", "save_steps": 2}
EVERY_EPOCH = {"save_strategy": "epoch", "eval_strategy": "epoch", "num_train_epochs": 3}
COMPLETE_6 = f"checkpoint-6/{COMPLETE}"

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
    + [(method, "llama") for method in ("grad_diff", "npo", "simnpo", "rmu", "dpo", "pdu", "task_vector")],
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


def train(folder: Path, *, stop_at: int | None = None, resume: bool | str | None = False, **settings):
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
    with pytest.raises(UnlearningError, match="checkpoint-9 belongs to another run .seed is 1 and was 42"):
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
    """After a step back to an older checkpoint, those behind it belong to the past."""
    train(tmp_path, **EVERY_TWO)
    train(tmp_path, resume=str(tmp_path / "checkpoint-2"), stop_at=5, save_total_limit=2, **EVERY_TWO)
    trainer = make_trainer("lotus", "vit", tmp_path)
    assert [path.name for path in trainer._complete_checkpoints()] == ["checkpoint-6", "checkpoint-4"]


def test_another_original_is_refused(tmp_path):
    train(tmp_path, stop_at=5, **EVERY_TWO)
    model = original("vit")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    for folder, resume in ((tmp_path, True), (tmp_path / "other", str(tmp_path / "checkpoint-2"))):
        with pytest.raises(UnlearningError, match="belongs to another run .the original is another model."):
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


@pytest.mark.slow
def test_resumed_by_another_number_of_processes(tmp_path, uninterrupted):
    settings = {"method": "lotus", "family": "vit", "dtype": "float64", "measure": False}
    runs = Runs(tmp_path, processes=2, batch=4, **settings, **EVERY_TWO)
    runs.killed("optimizer", 4)
    runs.processes, runs.settings = 1, settings | {"batch": 8}
    result = runs.finish(resume=True)
    assert result.first_step == 2
    assert distance(result.weights, uninterrupted(**settings).weights) < 1e-10


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
    original = weights(trainer.model)
    for _ in range(2):
        trainer.model.load_state_dict(original)
        control = trainer.evaluator.accuracy(trainer.model, *trainer.indices["control"])
        trainer.train()
        assert trainer.method.asked == [control, *trainer.method.true]
        assert len(set(trainer.method.true)) > 1


# ---------------------------------------------------------------------------------------------------------------------
# What a checkpoint belongs to


def half(family: str = "vit") -> dict:
    """The request of `make_trainer`, but that retained samples are forgotten and forgotten ones retained."""
    data = request(family)
    return data | {"forget": data["retain"][:9], "retain": data["forget"] + data["retain"][9:]}


def changed(name: str, change) -> dict:
    data = request("vit")
    return data | {name: change(data[name])}


def brighter(rows: list[dict]) -> list[dict]:
    return [{**row, "pixel_values": row["pixel_values"] + 1} for row in rows]


def relabelled(rows: list[dict]) -> list[dict]:
    return [{**rows[0], "labels": (rows[0]["labels"] + 1) % 3}, *rows[1:]]


def swapped(rows: list[dict]) -> list[dict]:
    return [rows[1], rows[0], *rows[2:]]


ANOTHER = {
    "request": ({"data": half()}, "forget has other samples than it had, or another order; retain has other samples"),
    "fewer": ({"data": changed("forget", lambda rows: rows[:8])}, "forget has 8 samples and had 9"),
    "order": ({"data": changed("forget", swapped)}, "forget has other samples than it had, or another order"),
    "retained": ({"data": changed("retain", lambda rows: rows[:-1])}, "retain has 32 samples and had 33"),
    "labels": ({"data": changed("retain", relabelled)}, "retain has other labels than it had"),
    "unseen": ({"data": changed("unseen", swapped)}, "unseen has other samples"),
    "no unseen": ({"data": changed("unseen", lambda rows: None), "method": "finetune"}, "unseen is not given now"),
    "test": (
        {"data": request("vit") | {"test": brighter(half()["unseen"][:5])}},
        "test is 'given' and was None",
    ),
    "method": ({"method": "finetune"}, "method is 'finetune' and was 'lotus'"),
    "config": ({"method": LotusConfig(alpha=4.0)}, "alpha is 4.0 and was 2.0"),
    "seed": ({"seed": 1}, "seed is 1 and was 42"),
    "data seed": ({"data_seed": 1}, "data_seed is 1 and was 42"),
    "batch": ({"batch": 4}, r"samples of a step \(batch size × accumulation × processes\) is 4 and was 8"),
    "rate": ({"learning_rate": 0.1}, "learning_rate is 0.1 and was 0.001875"),
    "scheduler": ({"lr_scheduler_type": "linear"}, "lr_scheduler_type is 'linear' and was 'constant'"),
    "optimizer": ({"optim": "sgd"}, "optim is 'sgd' and was 'adamw_torch"),
    "epochs": ({"num_train_epochs": 3}, "number of epochs is 3 and was 2"),
    "steps": ({"max_steps": 5}, "number of steps is 5 and was 6"),
    "decay": ({"weight_decay": 0.1}, "weight_decay is 0.1 and was 0.0005"),
    "clipping": ({"max_grad_norm": 1.0}, "max_grad_norm is 1.0 and was 0.0"),
    "precision": ({"bf16": True}, "mixed precision is 'bf16' and was 'no'"),
    "dtype": ({"dtype": "float64"}, "dtype of the weights is 'torch.float64' and was 'torch.float32'"),
    "adapter": ({"lora": True}, "peft_config.r is 2 and was None"),
    "dropout": ({"dropout": 0.1}, r"dropout is \[0.1\] and was \[\]"),
    "patience": ({"patience": 3, **EVERY_EPOCH}, "callbacks is not as it was"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """The folder of a finished run with a checkpoint at every second step."""
    folder = tmp_path_factory.mktemp("begun")
    train(folder, measure=False, **EVERY_TWO)
    return folder


@pytest.fixture(scope="module")
def finished(begun, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights at its end."""
    folder = shutil.copytree(begun, tmp_path_factory.mktemp("finished") / "run")
    return weights(train(folder, resume=True, measure=False).model)


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", ANOTHER)
def test_another_run_is_refused(what, begun):
    """In one sentence that says what differs, and before anything is written."""
    settings, message = ANOTHER[what]
    before = contents(begun)
    with pytest.raises(UnlearningError, match=f"checkpoint-6 belongs to another run .*{message}") as refused:
        train(begun, resume=True, **{**EVERY_TWO, "measure": False, **settings})
    text = str(refused.value)
    assert "start anew, without resume_from_checkpoint" in text and "in another output_dir." in text
    assert "\n" not in text and ". " not in text
    assert contents(begun) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"batch": 2, "accumulation": 4},
        {"measure": True, "eval_strategy": "epoch", "save_strategy": "no"},
        {"gradient_checkpointing": True},
        {"logging_strategy": "steps", "logging_steps": 1, "dataloader_num_workers": 1},
        {"data": request("vit") | {"forget": [*request("vit")["forget"]]}},
        {"method": LotusConfig(arguments={"learning_rate": 0.03 / 16})},
    ],
)
def test_what_gives_the_same_weights_is_allowed(settings, begun, finished, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoint-[46]"):
        shutil.rmtree(path)
    resumed = train(tmp_path / "run", resume=True, **({"measure": False} | settings))
    bound = 1e-3 if "batch" in settings else 1e-6  # Adam's first steps enlarge rounding; 1e-10 in float64, see above
    assert distance(weights(resumed.model), finished) < bound


def test_layouts_that_would_change_the_weights_are_refused(tmp_path):
    """Where dropout draws for each micro-batch, or BatchNorm takes its mean."""
    for family, settings in (("vit", {"dropout": 0.1}), ("resnet", {"freeze_batchnorm": False})):
        folder = tmp_path / family
        train(folder, stop_at=3, measure=False, family=family, **settings, **EVERY_TWO)
        with pytest.raises(
            UnlearningError, match="batch size, accumulation and processes is .2, 4, 1. and was .8, 1, 1."
        ):
            train(folder, resume=True, family=family, batch=2, accumulation=4, **settings)


@pytest.mark.parametrize(
    "file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors", METHOD_STATE]
)
@pytest.mark.parametrize("how", slow_but(["not as it was written"], ["missing", "not as it was written"]))
def test_a_checkpoint_that_lost_a_file_is_refused(file, how, begun, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint-6" / file
    path.unlink() if how == "missing" else os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(
        UnlearningError, match=f"checkpoint-6 cannot be resumed, because its {file} is {how}; pass another"
    ):
        train(tmp_path / "run", resume=True, measure=False)
    path = tmp_path / "run" / "checkpoint-4"
    assert train(tmp_path / "run", resume=str(path), measure=False).state.global_step == 6


def test_a_checkpoint_of_an_older_version_is_refused(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    marker = tmp_path / "run" / "checkpoint-6" / COMPLETE
    content = json.loads(marker.read_text())
    marker.write_text(json.dumps({key: value for key, value in content.items() if key not in ("belongs", "files")}))
    with pytest.raises(UnlearningError, match="checkpoint-6 was written by an older version .* start anew without"):
        train(tmp_path / "run", resume=True, measure=False)


def test_half_a_marker_is_none(begun, tmp_path):
    """As after a crash of the machine: the checkpoint before it counts."""
    shutil.copytree(begun, tmp_path / "run")
    marker = tmp_path / "run" / "checkpoint-6" / COMPLETE
    os.truncate(marker, marker.stat().st_size // 2)
    with pytest.raises(UnlearningError, match="checkpoint-6 is not a complete checkpoint"):
        train(tmp_path / "run", resume=str(marker.parent), measure=False)
    resumed = train(tmp_path / "run", resume=True, measure=False, **EVERY_TWO)
    assert resumed.state.global_step == 6
    assert [path.name for path in resumed._complete_checkpoints()][-1] == "checkpoint-6"


@pytest.mark.parametrize("content", slow_but(['{"digest": "ab'], ["", '{"digest": "ab', "[]", "{}"]))
def test_a_broken_record_of_the_original(content, begun, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    about = tmp_path / "run" / "_unlearn" / "original.json"
    about.write_text(content)
    for resume in (True, None):
        with pytest.raises(
            UnlearningError, match="original.json cannot be read: .* choose another output_dir, where a ch"
        ):
            train(tmp_path / "run", resume=resume, measure=False)
    resumed = train(tmp_path / "b", resume=str(tmp_path / "run" / "checkpoint-4"), measure=False)
    assert resumed.state.global_step == 6


def test_the_record_of_another_original(begun, tmp_path):
    """What is kept in the folder is then not what the checkpoint was made from: the true original is kept again."""
    shutil.copytree(begun, tmp_path / "run")
    about = tmp_path / "run" / "_unlearn" / "original.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"digest": 64 * "0"}))
    shutil.rmtree(about.parent / "original")
    resumed = train(tmp_path / "run", resume=str(tmp_path / "run" / "checkpoint-4"), measure=False)
    with resumed.original_model() as kept:
        assert same_bits(weights(kept), weights(original("vit")))


def test_a_finished_run_is_resumed_to_its_own_result(begun, tmp_path, caplog):
    shutil.copytree(begun, tmp_path / "run")
    before = contents(tmp_path / "run")
    resumed = train(tmp_path / "run", resume=True, **EVERY_TWO)
    assert [r.message for r in caplog.records if "no step is left" in r.message] == [
        f"{tmp_path / 'run' / 'checkpoint-6'} is the end of its run: no step is left to do, and the result is that run's."
    ]
    saved = original("vit")
    models.load_weights(saved, begun / "checkpoint-6")
    assert same_bits(weights(resumed.model), weights(saved))
    assert resumed.state.global_step == 6
    assert {path for path in before if path.name == "model.safetensors"} <= contents(tmp_path / "run").keys()


def test_the_best_checkpoint_is_gone(tmp_path):
    """The Trainer would say so in its log, and end with other weights."""
    settings = EVERY_EPOCH | {"load_best_model_at_end": True, "num_train_epochs": 2, "method": "finetune"}
    trainer = train(tmp_path / "a", **settings)
    best = Path(trainer.state.best_model_checkpoint)
    last = max(tmp_path.glob("a/checkpoint-*"), key=lambda path: path.name)
    shutil.copytree(last, tmp_path / "b" / last.name)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(UnlearningError, match=f"cannot be resumed, because .*{best.name}, the best .* is missing"):
        train(tmp_path / "c", resume=str(tmp_path / "b" / last.name), **settings)


def test_surgery_is_not_resumed(begun):
    before = contents(begun)
    with pytest.raises(UnlearningError, match="ssd edits the weights once and has no checkpoints; start without"):
        train(begun, method="ssd", resume=True)
    assert contents(begun) == before


def test_the_arguments_name_a_checkpoint(begun, tmp_path):
    trainer = train(tmp_path, resume=None, resume_from_checkpoint=str(begun / "checkpoint-4"), measure=False)
    saved = original("vit")
    models.load_weights(saved, begun / "checkpoint-6")
    assert same_bits(weights(trainer.model), weights(saved))


class Reading(torch.utils.data.Dataset):
    """Counts how often each row is read, and reads it as a random transform would."""

    def __init__(self, rows: list[dict]):
        self.rows, self.reads = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        self.reads += 1
        flipped = self.rows[index]["pixel_values"].flip(-1) if random.random() < 0.5 else None
        return self.rows[index] if flipped is None else {**self.rows[index], "pixel_values": flipped}


def test_random_transforms_are_resumed(tmp_path):
    def data() -> dict:
        return {name: Reading(rows) for name, rows in request("vit").items()}

    expected = train(tmp_path / "a", data=data(), measure=False)
    train(tmp_path / "b", data=data(), measure=False, stop_at=5, **EVERY_TWO)
    resumed = train(tmp_path / "b", data=data(), measure=False, resume=True)
    assert same_bits(weights(resumed.model), weights(expected.model))


def test_no_row_is_read_for_it(tmp_path):
    """The digests are those of the check for overlaps."""
    counts = []
    for settings in ({}, EVERY_TWO):
        data = {name: Reading(rows) for name, rows in request("vit").items()}
        trainer = make_trainer("finetune", "vit", tmp_path, data=data, measure=False, **settings)
        assert trainer.sources["retain"].dataset.reads >= 33
        before = trainer.sources["retain"].dataset.reads
        trainer.train()
        counts.append(trainer.sources["retain"].dataset.reads - before)
    assert counts[0] == counts[1] == 2 * 33


@pytest.mark.parametrize("change", ["size", "first sample"])
def test_another_stream_is_refused(change, tmp_path):
    data = request("bert")
    rows = datasets.Dataset.from_list([*data["retain"]][::-1]) if change == "first sample" else data["retain"]
    settings = {"family": "bert", "data": data | {"retain": data["retain"].to_iterable_dataset()}, "measure": False}
    train(tmp_path, stop_at=3, retain_size=33, **settings, **EVERY_TWO)
    settings["data"] = data | {"retain": rows.to_iterable_dataset()}
    message = {"size": "retain has 32 samples and had 33", "first sample": "retain has other samples"}[change]
    with pytest.raises(UnlearningError, match=message):
        train(tmp_path, resume=True, retain_size=32 if change == "size" else 33, **settings)


@pytest.mark.slow
def test_language_models_and_tasks(tmp_path):
    """Labels of tokens, and which label of which sample must go."""
    data = request("llama")
    llama = {"method": "grad_diff", "family": "llama", "measure": False, "lora": True}
    train(tmp_path / "llama", stop_at=3, data=data, **llama, **EVERY_TWO)
    rows = [*data["forget"]]
    rows[0] = {**rows[0], "labels": [-100, *rows[0]["labels"][1:-1], -100]}
    data = data | {"forget": datasets.Dataset.from_list(rows)}
    with pytest.raises(UnlearningError, match="forget has other labels than it had"):
        train(tmp_path / "llama", resume=True, data=data, **llama)

    tasks = {"method": "multitask_often", "family": "multitask", "measure": False}
    train(tmp_path / "tasks", stop_at=3, tasks=["colour"], **tasks, **EVERY_TWO)
    with pytest.raises(UnlearningError, match="tasks names other labels to forget"):
        train(tmp_path / "tasks", resume=True, tasks=["shape"], **tasks)


def test_nothing_of_the_samples_is_in_the_record(begun, tmp_path):
    """The same request of another run has other digests."""
    train(tmp_path, measure=False, **EVERY_TWO)
    records = [json.loads((folder / COMPLETE_6).read_text())["belongs"]["request"] for folder in (begun, tmp_path)]
    for name in ("forget", "retain", "unseen"):
        assert records[0][name].keys() == {"samples", "inputs", "labels"}
        for digest in ("inputs", "labels"):
            assert records[0][name][digest] != records[1][name][digest]


class Flip(torch.nn.Module):
    """As torchvision has them: without weights, with what it was made with in its text."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, image):
        return image

    def extra_repr(self) -> str:
        return f"p={self.p}"


GIVEN = {
    "processing_class": ({"image_mean": 3 * [0.4]}, "what the model reads of a sample is not as it was"),
    "augment": (Flip(0.1), "augment is not as it was"),
    "base_model": ("me/another", "base_model is 'me/another' and was None"),
    "optimizer": (1e-2, "optimizer is not as it was"),
    "patience": (3, "callbacks is not as it was"),
}


@pytest.mark.parametrize("what", slow_but(["augment", "optimizer"], GIVEN))
def test_what_is_given_beside_the_arguments(what, tmp_path):
    """None of it would count: what the checkpoint holds goes on."""

    begun = Flip(0.2) if what == "augment" else None

    def trainer(change=None) -> UnlearningTrainer:
        model, kwargs = tiny_vit(), {"processing_class": tiny_image_processor()}
        if what == "optimizer":
            kwargs["optimizers"] = (torch.optim.SGD(model.parameters(), lr=change or 1e-3), None)
        elif what == "patience":
            kwargs["callbacks"] = [EarlyStoppingCallback(change or 2)]
        elif what == "processing_class":
            kwargs["processing_class"] = tiny_image_processor(**(change or {}))
        else:
            kwargs[what] = change or begun
        saving = {"save_strategy": "epoch", "eval_strategy": "epoch", "metric_for_best_model": "forget_loss"}
        saving |= {"load_best_model_at_end": what == "patience"}
        args = arguments(tmp_path, num_train_epochs=1, per_device_train_batch_size=16, **saving)
        data = for_trainer(samples.request(samples.pictures))
        return UnlearningTrainer(model, args, method="finetune", **data, **kwargs)

    change, message = GIVEN[what]
    trainer().train()
    with pytest.raises(UnlearningError, match=f"belongs to another run .({message})"):
        trainer(change).train(resume_from_checkpoint=True)
    trainer().train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_two_processes_refuse_together(tmp_path):
    """Neither waits for the other one, which would be killed after minutes."""
    settings = {"method": "lotus", "family": "vit", "batch": 4, "processes": 2, "measure": False}
    Runs(tmp_path, **settings, **EVERY_TWO).finish()
    begun = time.monotonic()
    processes = Runs(tmp_path, **settings, seed=1).start(resume=True)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [1, 1] and time.monotonic() < begun + 60
