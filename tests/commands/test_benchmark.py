"""The benchmark: both sides do the same work, and what is reported follows from what was timed."""

import json
import statistics

import pytest
import torch
from transformers import TrainerCallback

from hf_unlearn import UnlearningError, commands
from hf_unlearn.commands import speed as benchmark
from tests.tiny import tiny_bert, tiny_resnet

BATCH, STEPS = 4, 9


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(benchmark.MODELS, "tiny", lambda image_size, classes: tiny_resnet(classes, image_size))
    monkeypatch.setattr(benchmark, "VOCABULARY", 20)  # what tiny_bert reads


@pytest.fixture
def one_thread():
    """Processor time of a thread counts all of its work only if it shares none of it out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer(side, folder, model=None):
    model = model or benchmark.build("tiny", 16)
    data = benchmark.random_data(model, STEPS * BATCH, 16)
    return benchmark.make_trainer(side, model, data, str(folder), BATCH)


class TestBothSides:
    @pytest.mark.parametrize("side", ["plain", "cached", "online"])
    def test_same_steps_of_the_same_number_of_samples(self, side, tmp_path):
        seen = []
        run = trainer(side, tmp_path)
        run.model.register_forward_hook(lambda m, args, out: seen.append(len(out.logits)) if m.training else None)
        lane = benchmark.Lane(run, benchmark.CLOCKS["wall"])
        assert lane.seconds == []
        first = lane.take_turn()
        assert len(lane.seconds) == run.state.global_step == benchmark.TURN
        assert first == statistics.median(lane.seconds) > 0
        lane.take_turn(), lane.take_turn()
        lane.close()
        assert run.state.global_step == run.state.max_steps == len(lane.seconds) == STEPS
        assert seen == [BATCH] * STEPS

    def test_same_optimizer_and_batchnorm(self, tmp_path):
        made = {side: trainer(side, tmp_path / side) for side in ("plain", "cached")}
        for run in made.values():
            run.train()
        assert type(made["plain"].optimizer.optimizer) is type(made["cached"].optimizer.optimizer)
        groups = [run.optimizer.param_groups for run in made.values()]
        for a, b in zip(*groups, strict=True):
            assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}
            assert [p.shape for p in a["params"]] == [p.shape for p in b["params"]]
        tracked = [run.model.state_dict()["timm_model.bn1.num_batches_tracked"] for run in made.values()]
        assert tracked[0] == tracked[1] == 100 + STEPS

    def test_samples_are_those_the_schedule_uses(self, tmp_path):
        plain, cached = trainer("plain", tmp_path / "a"), trainer("cached", tmp_path / "b")
        assert len(plain.train_dataset) == len(cached.schedule.used()) == STEPS * BATCH
        assert len(plain.train_dataset.datasets[0]) == len(cached.sources["forget"])

    def test_texts(self, tmp_path):
        model = tiny_bert()
        trainer("plain", tmp_path, model).train()
        row = benchmark.RandomSamples(3, model, 0, seed=0)[2]
        assert {name: tuple(value.shape) for name, value in row.items()} == {
            "input_ids": (benchmark.TEXT_LENGTH,),
            "attention_mask": (benchmark.TEXT_LENGTH,),
            "labels": (),
        }


class TestLane:
    def test_closing_early_ends_the_loop(self, tmp_path):
        run = trainer("cached", tmp_path)
        lane = benchmark.Lane(run, benchmark.CLOCKS["wall"])
        lane.take_turn()
        lane.close()
        assert not lane.thread.is_alive()
        assert run.state.global_step < STEPS

    def test_error_in_a_loop_is_raised_and_ends_the_others(self, tmp_path, monkeypatch):
        class Fail(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == benchmark.TURN + 1:
                    raise ArithmeticError("in the loop")

        lanes, make = [], benchmark.make_trainer

        def failing(side, *args):
            run = make(side, *args)
            if side == "online":
                run.add_callback(Fail())
            return run

        class Remembered(benchmark.Lane):
            def __init__(self, *args):
                lanes.append(self)
                super().__init__(*args)

        monkeypatch.setattr(benchmark, "make_trainer", failing)
        monkeypatch.setattr(benchmark, "Lane", Remembered)
        with pytest.raises(UnlearningError, match="in the loop"):
            benchmark.compare_steps("tiny", batch_size=BATCH, image_size=16, steps=STEPS)
        assert len(lanes) == 4 and not any(lane.thread.is_alive() for lane in lanes)


def check_row(row):
    assert 0 < row["min"] <= row["ratio"] <= row["max"]
    assert row["plain"] > 0 and row["LoTUS"] > 0
    assert row["met"] is (None if row["wanted"] is None else row["ratio"] <= row["wanted"])


@pytest.mark.slow
def test_command_prints_a_table_and_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "SETUPS", 2)
    command = ["--models", "tiny", "--batch-size", str(BATCH), "--image-size", "16", "--steps", "6"]
    file = tmp_path / "benchmark.json"
    assert commands.main(["benchmark", *command, "--no-memory", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    content = json.loads(file.read_text())
    assert content["command"].startswith("hf-unlearn benchmark --models tiny --batch-size 4 ")
    assert content["machine"].keys() == {"system", "cores", "torch_threads", "gpu", "python"}
    assert {"hf_unlearn", "torch", "transformers"} <= content["versions"].keys()
    assert content["memory"] is None
    rows = content["rows"]
    assert [row["measured"] for row in rows] == [
        "step, cached teacher",
        "step, online teacher",
        "step, plain again (noise)",
    ]
    for row in rows:
        check_row(row)
        assert (row["model"], row["steps"], row["pairs"], row["batch_size"]) == ("tiny", 6, 2, BATCH)
    assert [row["wanted"] for row in rows] == [1.05, 1.4, None]


def test_whole_runs():
    row = benchmark.compare_runs("tiny", batch_size=BATCH, image_size=16, epochs=2, steps=3, runs=2)
    check_row(row)
    assert (row["measured"], row["pairs"], row["steps"], row["wanted"]) == ("whole run", 2, 6, 1.2)


def test_row_and_report():
    row = benchmark._row("vit", "whole run", [1.0, 2.0, 4.0], [1.0, 2.0, 5.0], steps=10)
    assert (row["plain"], row["LoTUS"], row["ratio"], row["min"], row["max"]) == (2.0, 2.0, 1.0, 1.0, 1.25)
    assert benchmark.report([row]).splitlines()[-1] == (
        "| vit | whole run | 2.0000 s | 2.0000 s | 1.000 | 1.000 | 1.250 | 1.2 | yes |"
    )
    slow = benchmark._row("vit", "whole run", [1.0], [1.3])
    assert benchmark.report([slow]).endswith("| 1.2 | no |")


@pytest.mark.slow
def test_lotus_step_costs_little_more_than_a_plain_one(one_thread):
    # `hf-unlearn benchmark` reports about 1.0 and 1.3 for these, and 1.05 and 1.4 are promised. A few short turns on a
    # machine that runs other tests at the same time are off by several percent, and a test must not fail for that.
    cached, online, again = benchmark.compare_steps("resnet18", batch_size=32, steps=24, clock="cpu")
    assert cached["ratio"] < 1.25, (cached, again)
    assert online["ratio"] < 1.6, (online, again)


@pytest.mark.slow
@pytest.mark.skipif(not benchmark.Path("/proc/self/status").exists(), reason="the system does not tell the memory")
def test_memory_does_not_grow_with_the_table():
    small, large = benchmark.compare_memory(samples=5_000, classes=1_000)
    assert small["samples"] == pytest.approx(5_000, rel=0.01) and large["samples"] == pytest.approx(20_000, rel=0.01)
    for size in (small, large):
        assert size["table"] == 4 * size["samples"] * size["classes"]
    # 60 MB more of table, and a few MB more of scalars; allocators keep or return some MB as they like
    assert large["growth"] - small["growth"] < 0.5 * (large["table"] - small["table"])
