"""The benchmark of steps of language models: both sides see the same texts, and a row is what was measured."""

import json
import mmap
import time

import pytest

from hf_unlearn import UnlearningError, commands
from hf_unlearn.commands import language_speed as language
from hf_unlearn.commands.speed import Peak

SMALL = {"vocabulary": 50, "tokens": 8}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(language, "WIDTH", 16)
    monkeypatch.setattr(language, "LAYERS", 1)


@pytest.mark.parametrize("name", [None, *(name for name in language.SIDES if name != language.EVALUATION)])
def test_each_step_has_the_same_texts(name, tmp_path):
    seen = []
    trainer = language.make_trainer(name and language.SIDES[name], **SMALL, steps=2, folder=str(tmp_path))
    trainer.model.register_forward_pre_hook(
        lambda model, _, inputs: seen.append(len(inputs["input_ids"])) if model.training else None, with_kwargs=True
    )
    trainer.train()
    assert trainer.state.global_step == 2
    expected = 2 * 2 * language.TEXTS
    more = {
        "hamu": expected,
        "dpo": 2 * language.TEXTS * 2,
    }  # logs what its losses really did; reads two answers to a question
    assert expected <= sum(seen) <= expected + more.get(name, 0)


def test_times_and_memory_in_turns():
    assert set(language.seconds(("npo", 50, 8, 2))) == {"plain", "npo"}
    found = language.seconds(("evaluation", 50, 8, 2))
    assert {name: len(values) for name, values in found.items()} == {"plain": 2, "evaluation": 2}
    held = language.memory(("plain", 50, 8))
    assert held is None or held >= 0


def test_row_and_report():
    times = {"plain": [1.0, 2.0], "npo": [1.1, 2.4]}
    row = language._row("npo", 400_000_000, 1_000_000_000, 100_000_000, 200_000_000, times)
    assert (row["share"], row["without_optimizer"], row["met"]) == (0.4, 0.375, True)
    assert row["time"] == pytest.approx(1.15)
    assert language.report([row]).splitlines()[-1] == "| npo | 400 | 1000 | 0.40 | 0.38 | 1.15 | 0.50 | yes |"
    evaluation = {"plain": [1.0], "evaluation": [1.1]}
    assert language._row("evaluation", 160_000_000, 100_000_000, 0, 0, evaluation)["met"] is True
    assert language._row("evaluation", 170_000_000, 100_000_000, 0, 0, evaluation)["met"] is False
    unknown = language._row("npo", None, None, 0, 0, times)
    assert unknown["share"] is None and unknown["met"] is None and " - " in language.report([unknown])


def test_bad_input(capsys):
    for more, message in (
        (["--sides", "nppo"], "--sides has 'nppo'; expected one of grad_diff, npo"),
        (["--steps", "0"], "--steps is 0; expected 1 or more."),
    ):
        assert commands.main(["benchmark", "--language-model", *more]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UnlearningError, match="--sides has"):
        language.compare(["x"], 50, 8, 1)


def test_peak_of_what_is_held_for_a_while():
    size, private = 64_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # not what malloc may have kept of earlier tests
    with Peak() as peak, mmap.mmap(-1, size, flags=private) as held:
        held[::4096] = b"x" * len(range(0, size, 4096))
        until = time.monotonic() + 10
        while peak.known and peak.most - peak.start < 50_000_000 and time.monotonic() < until:
            sum(range(100_000))  # never waits: the watcher has to be let in
    assert peak.growth is None or peak.growth > 50_000_000


@pytest.mark.slow
def test_command(tmp_path, monkeypatch):
    """In processes of their own, which know nothing of what a test has put in place."""
    file = tmp_path / "speed.json"
    options = ["--sides", "npo", "--vocabulary", "500", "--tokens", "16", "--steps", "1", "--json", str(file)]
    assert commands.main(["benchmark", "--language-model", *options]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["side"] == "npo" and row["time"] > 0
