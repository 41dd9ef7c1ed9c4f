"""Auto: the look, the race, and what is said of them."""

import functools

import numpy as np
import pytest
import torch

from hf_unlearn import UnlearningError, choose, unlearn
from hf_unlearn.methods.auto import Auto, AutoConfig, Phase
from hf_unlearn.methods.rewind import RewindConfig
from hf_unlearn.methods.rmu import RmuConfig
from hf_unlearn.tasks.figures import Measurement
from tests import runs
from tests.samples import arguments, fitted, learnt, request, same_bits, weights
from tests.tiny import tiny_llama_lm, tiny_tokenizer, tiny_vit


def run(folder, data=None, model=None, steps=90, **config):
    args = arguments(folder, max_steps=steps, learning_rate=1e-3)
    about = {"original_epochs": 30, "original_learning_rate": 1e-3}
    return unlearn(
        fitted() if model is None else model, **(data or learnt()), method=AutoConfig(**about | config), args=args
    )


def phases(total, **config):
    return Auto(AutoConfig(**config))._plan(total)


def test_the_phases_fill_the_run():
    assert phases(100, keeps=[0.4, 0.2, 0.6], race=0.3) == [
        Phase(0, 0, 10),
        Phase(1, 10, 10),
        Phase(2, 20, 10),
        Phase(None, 30, 70),
    ]
    assert phases(90, keeps=[0.4, 0.2, 0.6], race=0.3) == [Phase(0, 0, 90)]  # too few steps to tell candidates apart
    assert phases(1000, keeps=[0.4]) == phases(1000, keeps=[0.4, 0.2], race=0) == [Phase(0, 0, 1000)]


def test_the_learning_rate_goes_up_and_down_in_every_phase():
    method = Auto(AutoConfig(keeps=[0.4, 0.2], race=0.4))
    method.phases = method._plan(100)
    rates = [method.share_of_peak(step) for step in range(100)]
    for phase in method.phases:
        mine = rates[phase.first : phase.first + phase.steps]
        assert mine[-1] < 0.03 and max(mine) > 0.9 and mine.index(max(mine)) < phase.steps / 4


@pytest.mark.slow
def test_the_best_candidate_goes_on(tmp_path, monkeypatch):
    scores = iter([0.3, 0.1, 0.2, 0.05])
    monkeypatch.setattr(Auto, "_score", lambda self, look: next(scores))
    seen = {"pulled": []}
    pull_back, load, end = Auto.pull_back, Auto._load, Auto._end

    def pulled(self, keep):
        pull_back(self, keep)
        seen["pulled"].append(keep)

    def ended(self, phase):
        end(self, phase)
        if phase.candidate == 1:
            seen["second"] = weights(self.context.model)

    def loaded(self, kept):
        load(self, kept)
        seen["loaded"] = weights(self.context.model)

    monkeypatch.setattr(Auto, "pull_back", pulled)
    monkeypatch.setattr(Auto, "_load", loaded)
    monkeypatch.setattr(Auto, "_end", ended)
    report = run(tmp_path, keeps=[0.4, 0.2, 0.6], race=0.5).trainer.method.report
    assert seen["pulled"] == [0.4, 0.2, 0.6]
    assert report["candidates"] == {"0.4": 0.3, "0.2": 0.1, "0.6": 0.2} and report["score"] == 0.05
    assert same_bits(seen["loaded"], seen["second"])
    scores = iter([0.3, 0.1, 0.2, 0.15])
    result = run(tmp_path / "no better", keeps=[0.4, 0.2, 0.6], race=0.5)
    assert same_bits(weights(result.model), seen["second"])
    assert any(note.startswith("The rest of the budget did not help") for note in result.trainer.method.notes)


@pytest.mark.slow
def test_what_is_not_known_is_not_unlearned(tmp_path):
    """Samples that the model was never trained on, enough of them to see that."""
    data = request(n_forget=600, n_unseen=1200)
    before = weights(fitted(flipped=False))
    result = run(tmp_path, data, fitted(flipped=False), original_epochs=3000)
    assert same_bits(weights(result.model), before)
    (note,) = [note for note in result.trainer.method.notes if note.startswith("Nothing was changed")]
    assert "knows no more than of unseen ones (AUC " in note and note.endswith(").")


@pytest.mark.slow
def test_few_samples_do_not_show_that_nothing_is_known(tmp_path):
    result = run(tmp_path, request(n_forget=8, n_unseen=16), fitted(flipped=False))
    assert not same_bits(weights(result.model), weights(fitted(flipped=False)))


def test_of_a_whole_class_its_probability_counts():
    method = Auto()
    method.classes = [1]

    class Look:
        labels = torch.tensor([1, 1, 0, 0]).numpy()
        signals = {"correct": torch.tensor([1.0, 1.0, 1.0, 0.0]).numpy()}

        def class_means(self, classes):
            return torch.tensor([[0.7, 0.3]]).numpy()

    worse = type("Worse", (Look,), {"signals": {"correct": torch.tensor([0.0, 0.0, 0.0, 0.0]).numpy()}})
    method.original = {"control": Look()}
    assert method._score({"forget": Look(), "control": Look()}) == pytest.approx(0.3)
    assert method._score({"forget": Look(), "control": worse()}) == pytest.approx(0.3 + 0.5)


def test_the_score_where_the_look_has_met_no_sample_to_compare_with(tmp_path):
    data = learnt()
    labels = {name: data[name]["label"][:].numpy() for name in ("forget", "unseen")}
    data["forget"] = data["forget"].select((labels["forget"] == 1).nonzero()[0])
    data["unseen"] = data["unseen"].select((labels["unseen"] != 1).nonzero()[0])
    assert 0 <= run(tmp_path, data, steps=1).trainer.method.report["candidates"]["0.4"] <= 2


def test_the_score_of_whole_classes_that_the_look_has_not_met():
    method = Auto()
    method.classes = [0, 1]
    sums = {0: np.zeros(3), 1: np.array([1.0, 0.5, 0.5])}
    look = Measurement(np.array([1, 1]), {"correct": np.ones(2)}, sums)
    method.original = {"control": look}
    assert method._score({"forget": look, "control": look}) == pytest.approx(0.75)  # and of other classes no sample


def test_without_a_race_it_is_rewind_on_the_users_schedule(tmp_path):
    about = {"original_epochs": 30, "original_learning_rate": 1e-3}
    args = {"max_steps": 4, "lr_scheduler_type": "linear", "warmup_steps": 0}
    mine, theirs = (
        unlearn(fitted(), **learnt(), method=method(**about), args=arguments(tmp_path / method.method, **args))
        for method in (AutoConfig, RewindConfig)
    )
    assert same_bits(weights(mine.model), weights(theirs.model))


def test_bad_input(tmp_path):
    data = learnt()
    with pytest.raises(UnlearningError, match="auto needs samples the model was never trained on"):
        unlearn(tiny_vit(), forget=data["forget"], retain=data["retain"], method="auto", args=arguments(tmp_path))
    with pytest.raises(UnlearningError, match="auto: keeps is .*; expected one share from 0 to 1 or more"):
        AutoConfig(keeps=[0.4, 2])
    with pytest.raises(UnlearningError, match="auto: race is 1; expected a share from 0 to below 1"):
        AutoConfig(race=1)
    with pytest.raises(UnlearningError, match="auto: race is 0.3; expected 0, or several keeps to compare"):
        AutoConfig(race=0.3)


class TestLanguageModels:
    def asked(self) -> dict:
        rows = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{i + 2}"} for i in range(12)]
        sets = {"forget": rows[:3], "retain": rows[3:8], "unseen": rows[8:]}
        return sets | {"processing_class": tiny_tokenizer()}

    def test_rmu(self, tmp_path):
        result = unlearn(tiny_llama_lm(), **self.asked(), args=arguments(tmp_path, max_steps=2))
        method = result.trainer.method
        assert (method.info.name, method.config) == ("rmu", RmuConfig()) and result.trainer.adapter
        assert any("On a language model auto is rmu." in note for note in method.notes)

    def test_unseen_samples_are_not_needed(self, tmp_path):
        asked = self.asked()
        del asked["unseen"]
        assert unlearn(tiny_llama_lm(), **asked, args=arguments(tmp_path, max_steps=1)).trainer.state.global_step == 1

    @pytest.mark.parametrize("given", [{"budget": 0.1}, {"original_epochs": 3}, {"method": AutoConfig(keeps=[0.5])}])
    def test_no_share_is_spent(self, tmp_path, given):
        with pytest.raises(
            UnlearningError, match=r"is given, and on a language model auto is rmu, which spends no share"
        ):
            unlearn(tiny_llama_lm(), **self.asked(), **given, args=arguments(tmp_path))

    def test_goes_back_to_no_base(self, tmp_path):
        with pytest.raises(
            UnlearningError, match="base_model is given, and on a model for causal-lm auto is rmu, which goes"
        ):
            unlearn(tiny_llama_lm(), **self.asked(), base_model="scratch", args=arguments(tmp_path))

    def test_nothing_to_choose(self, tmp_path):
        message = "on a language model auto is rmu, at its defaults"
        with pytest.raises(UnlearningError, match=message):
            choose(tiny_llama_lm(), **self.asked())
        tiny_llama_lm().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"never read")
        with pytest.raises(UnlearningError, match=message):
            choose(str(tmp_path), **self.asked())


class TestSeveralTasks:
    def test_rewind(self, tmp_path):
        about = {"tasks": ["colour"], "base_model": functools.partial(runs.build, "multitask", seed=1)}
        model, args = runs.original("multitask"), arguments(tmp_path, max_steps=2)
        method = unlearn(
            model, **runs.rows("multitask"), **about, budget=0.1, original_epochs=8, args=args
        ).trainer.method
        assert method.info.name == "rewind" and (method.config.budget, method.original_epochs) == (0.1, 8)
        assert any("On a model of several tasks auto is rewind" in note for note in method.notes)

    def test_nothing_is_compared(self, tmp_path):
        data = runs.rows("multitask") | {"method": AutoConfig(keeps=[0.5])}
        with pytest.raises(UnlearningError, match="keeps is given, and on a model of several tasks auto is rewind"):
            unlearn(runs.original("multitask"), **data, args=arguments(tmp_path))
