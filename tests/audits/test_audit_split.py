"""An audit reads the half of the unseen samples that the run was not steered by, whatever else is drawn anew."""

import copy
import json

import numpy as np
import pytest
import torch

from hf_unlearn import UnlearningError, audit, models, unlearn
from hf_unlearn.audits.split import METRICS, Split, recorded_run, split_of
from hf_unlearn.commands import main
from hf_unlearn.data.source import Source
from hf_unlearn.data.splits import split_unseen
from hf_unlearn.hub import prepare
from hf_unlearn.hub.names import RECEIPT
from hf_unlearn.tasks.checks import number_classes
from hf_unlearn.training.fingerprint import fingerprint
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
        shuffled = request() | {"unseen": request()["unseen"].shuffle(seed=1)}
        other = audit(str(folder / "before"), str(folder / name), **shuffled).content
        assert "no method may use" not in " ".join(other["conventions"])
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


@pytest.fixture(scope="module")
def sources():
    return {name: Source(data, name) for name, data in request(n_retain=16, n_unseen=24).items()}


def written(folder, samples=SIZES, unseen=None, **seeds):
    record = {"run": {"request": {"samples": samples, "unseen": unseen}, "seeds": {"unlearning": 7, **seeds}}}
    (folder / METRICS).write_text(json.dumps(record))
    return str(folder)


def noted(source):
    return {"salt": "s", **fingerprint(source, "s")}


class TestSplitOf:
    def test_of_a_record(self, tmp_path, sources):
        known = noted(sources["unseen"])
        assert split_of(written(tmp_path, unseen=known, split=9), None, sources) == Split(9)
        assert split_of(written(tmp_path, unseen=known, split=9), 9, sources) == Split(9)
        # A run that records no split of its own has split by its seed.
        assert split_of(written(tmp_path, unseen=known), None, sources) == Split(7)

    def test_without_one(self, tmp_path, sources):
        for model in (tiny_vit(), str(tmp_path)):
            assert split_of(model, None, sources).seed == 42 and split_of(model, 9, sources).seed == 9
            assert "no record of the run was found" in str(split_of(model, None, sources))
        for strange in ("[]", "{}", "no JSON", '{"run": {"request": 3}}'):
            (tmp_path / METRICS).write_text(strange)
            assert recorded_run(str(tmp_path)) is None
        for strange in (3, [], {"salt": 3}):
            written(tmp_path, unseen=strange or [3])
            assert recorded_run(str(tmp_path)) is None

    def test_of_a_record_that_does_not_say_which_samples(self, tmp_path, sources):
        found = split_of(written(tmp_path, split=9), None, sources)
        assert found.seed == 9 and "does not say which samples these were, nor their order" in str(found)

    def test_other_samples_than_the_runs(self, tmp_path, sources):
        unseen = sources["unseen"].dataset
        folder = written(tmp_path, unseen=noted(sources["unseen"]), split=9)
        for other in (unseen.shuffle(seed=1), images(24, seed=77), unseen.map(lambda row: {"label": 0})):
            found = split_of(folder, None, sources | {"unseen": Source(other, "unseen")})
            assert found.seed == 9 and "these are not the samples of the run, or they are in another order" in str(
                found
            )
        fewer = sources | {"unseen": Source(unseen.select(range(20)), "unseen")}
        assert "the run had 24 unseen samples and this audit 20" in str(split_of(folder, None, fewer))
        found = split_of(written(tmp_path, {"forget": 8, "retain": 16}, split=None), None, sources)
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
    def test_refused(self, tmp_path, sources, samples, given, message):
        with pytest.raises(UnlearningError, match=message) as error:
            split_of(written(tmp_path, samples, split=9), given, sources)
        assert str(error.value).endswith(".") and "\n" not in str(error.value)

    def test_on_the_hub(self, hub, tmp_path, sources):
        hub.put("me/vit", {"config.json": b"{}"})
        assert recorded_run("me/vit") is None
        written(tmp_path, unseen=noted(sources["unseen"]), split=11)
        hub.put("me/other", {"config.json": b"{}", METRICS: (tmp_path / METRICS).read_bytes()})
        assert split_of("me/other", None, sources) == Split(11) == split_of("me/other@main", None, sources)

    def test_of_a_model_that_was_loaded_from_a_folder(self, run, tmp_path):
        _, folder = run
        sources = {name: Source(data, name) for name, data in request().items()}
        number_classes(sources.values(), tiny_vit().config)
        model = models.load_model(folder / "saved")
        assert split_of(model, None, sources) == Split(5)
        torch.nn.init.zeros_(model.classifier.weight)  # what the folder tells is of another model
        assert "no record of the run was found" in str(split_of(model, None, sources))


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
