"""An audit reads the half of the unseen samples that the run was not steered by, whatever else is drawn anew."""

import copy
import json

import numpy as np
import pytest

from hf_unlearn import UnlearningError, audit, unlearn
from hf_unlearn.audits.split import METRICS, Split, recorded_run, split_of
from hf_unlearn.commands import main
from hf_unlearn.data.splits import split_unseen
from hf_unlearn.hub import prepare
from hf_unlearn.hub.names import RECEIPT
from tests.samples import arguments, images, request
from tests.tiny import tiny_vit

SIZES = {"forget": 8, "retain": 16, "unseen": 24}


def test_halves_do_not_depend_on_the_seed(tmp_path):
    sets, halves = request(), []
    for seed in (0, 42):
        trainer = unlearn(tiny_vit(), **sets, method="finetune", args=arguments(tmp_path, seed=seed)).trainer
        halves.append(trainer.indices["control"][1].tolist())
        assert trainer.indices["evidence"][1].tolist() == split_unseen(trainer.sources["unseen"].labels)[1].tolist()
    assert halves[0] == halves[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was given a split of its own, its release, and the folder of the original."""
    folder = tmp_path_factory.mktemp("run")
    original = tiny_vit()
    original.save_pretrained(folder / "before")
    args = arguments(folder / "run", seed=3, split_seed=5, num_train_epochs=1)
    result = unlearn(copy.deepcopy(original), **request(), method="finetune", args=args)
    result.save(folder / "saved")
    prepare(result, folder / "release", parent=folder / "before")
    return result, folder


class TestRelease:
    def test_is_recorded(self, run):
        result, folder = run
        assert json.loads((folder / "release" / METRICS).read_text())["run"]["seeds"]["split"] == 5
        assert json.loads((folder / "release" / RECEIPT).read_text())["seeds"]["split"] == 5
        assert "5 (halves of unseen samples)" in (folder / "release" / "README.md").read_text()

    @pytest.mark.parametrize("name", ["saved", "release"])
    def test_its_split_is_taken(self, run, name):
        result, folder = run
        content = audit(str(folder / "before"), str(folder / name), **request()).content
        assert content["split_seed"] == 5 == result.audit().content["split_seed"]
        assert content["figures"]["unlearned"]["unseen_loss"] == pytest.approx(result.metrics["after"]["unseen_loss"])
        assert "split seed 5, as in the run), which no method may use." in " ".join(content["conventions"])
        loaded = audit(str(folder / "before"), result.model, **request()).content  # a model says nothing of its run
        assert loaded["split_seed"] == 42 and "not known whether they steered it" in " ".join(loaded["conventions"])

    def test_on_the_command_line(self, run, tmp_path, capsys):
        result, folder = run
        for name, rows in request().items():
            rows.with_format(None).save_to_disk(tmp_path / name)
        sets = [word for name in SIZES for word in (f"--{name}", str(tmp_path / name))]
        models = ["audit", str(folder / "before"), str(folder / "release")]
        assert main([*models, *sets, "--json", str(tmp_path / "audit.json")]) == 0
        found = json.loads((tmp_path / "audit.json").read_text())
        assert found["split_seed"] == 5
        assert found["figures"]["unlearned"]["unseen_loss"] == pytest.approx(result.metrics["after"]["unseen_loss"])
        assert main([*models, *sets, "--split-seed", "42"]) == 2
        assert "split_seed is 42, and the run of" in capsys.readouterr().err

    def test_a_test_set_is_read_whole(self, run):
        _, folder = run
        content = audit(str(folder / "before"), str(folder / "release"), **request(), test=images(12, seed=77)).content
        assert content["split_seed"] is None and content["request"]["samples"]["unseen"] == 12
        assert "Unseen samples are the test set, all of it." in content["conventions"]


def written(folder, samples=SIZES, **seeds):
    record = {"run": {"request": {"samples": samples}, "seeds": {"unlearning": 7, **seeds}}}
    (folder / METRICS).write_text(json.dumps(record))
    return str(folder)


class TestSplitOf:
    def test_of_a_record(self, tmp_path):
        assert split_of(written(tmp_path, split=9), None, SIZES) == Split(9)
        assert split_of(written(tmp_path, split=9), 9, SIZES) == Split(9)
        # A run that records no split of its own has split by its seed.
        assert split_of(written(tmp_path), None, SIZES) == Split(7)

    def test_without_one(self, tmp_path):
        for model in (tiny_vit(), str(tmp_path)):
            assert split_of(model, None, SIZES).seed == 42 and split_of(model, 9, SIZES).seed == 9
            assert "no record of the run was found" in str(split_of(model, None, SIZES))
        for strange in ("[]", "{}", "no JSON", '{"run": {"request": 3}}'):
            (tmp_path / METRICS).write_text(strange)
            assert recorded_run(str(tmp_path)) is None

    def test_other_samples_than_the_runs(self, tmp_path):
        found = split_of(written(tmp_path, split=9), None, SIZES | {"unseen": 30})
        assert found.seed == 9 and "the run had 24 unseen samples and this audit 30" in str(found)
        found = split_of(written(tmp_path, {"forget": 8, "retain": 16}, split=None), None, SIZES)
        assert found == Split(42)  # a run without unseen samples was steered by none

    @pytest.mark.parametrize(
        ("samples", "given", "message"),
        [
            (SIZES, 3, "split_seed is 3, and the run of .* split its unseen samples by 9; leave split_seed out"),
            (SIZES | {"test": 4}, None, "was unlearned with a test set, .* pass the test set"),
            (SIZES, -1, "split_seed is -1; expected a whole number from 0 on"),
            (SIZES, True, "split_seed is True; expected a whole number"),
            (SIZES, "3", "split_seed is '3'; expected a whole number"),
        ],
    )
    def test_refused(self, tmp_path, samples, given, message):
        with pytest.raises(UnlearningError, match=message) as error:
            split_of(written(tmp_path, samples, split=9), given, SIZES)
        assert str(error.value).endswith(".") and "\n" not in str(error.value)

    def test_on_the_hub(self, hub, tmp_path):
        hub.put("me/vit", {"config.json": b"{}"})
        assert recorded_run("me/vit") is None
        written(tmp_path, split=11)
        hub.put("me/other", {"config.json": b"{}", METRICS: (tmp_path / METRICS).read_bytes()})
        assert split_of("me/other", None, SIZES) == Split(11) == split_of("me/other@main", None, SIZES)


@pytest.mark.parametrize("name", ["retrained", "reference"])
def test_the_original_is_no_stand_in_for_retraining(name):
    original, sets = tiny_vit(), request()
    for other in (original, copy.deepcopy(original), copy.deepcopy(original).bfloat16()):
        with pytest.raises(UnlearningError, match=f"{name} has the weights of the original, which was trained on"):
            audit(original, tiny_vit(seed=1), **sets, **{name: other, "level": 2 * (name == "reference")})


def test_a_run_refuses_it_too(run):
    result, folder = run
    with pytest.raises(UnlearningError, match="retrained has the weights of the original"):
        result.audit(retrained=str(folder / "before"))
    assert np.isfinite(result.metrics["after"]["unseen_loss"])
