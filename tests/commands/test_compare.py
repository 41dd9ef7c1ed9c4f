"""`hf-unlearn compare`: rows, budget, resume, the picture, and what is refused."""

import json
import re
from xml.etree import ElementTree

import pytest

from hf_unlearn import commands as cli
from hf_unlearn.audits.plots import points
from hf_unlearn.commands import comparison
from tests.asked import content, options, write_request
from tests.runs import tiny_multitask
from tests.samples import fitted, learnt
from tests.tiny import tiny_resnet

METHODS = ["auto", "finetune", "ssd", "retrain"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_request(tmp_path_factory.mktemp("compare"))
    tiny_resnet().save_pretrained(folder / "resnet")
    return folder


@pytest.fixture(scope="module")
def compared(files, tmp_path_factory):
    """The folder of a comparison, and what was there before of the original and its sets."""
    before, out = content(files), tmp_path_factory.mktemp("out") / "compare"
    assert cli.main(["compare", *options(files), "--methods", *METHODS, "--output", str(out)]) == 0
    return out, before


def results(folder):
    return json.loads((folder / "compare.json").read_text())


def run(files, folder, *more):
    words = (word.replace("FILES", str(files)) for word in more)
    return cli.main(["compare", *options(files), "--output", str(folder), *words])


class TestRows:
    @pytest.mark.slow
    def test_figures_and_costs(self, compared):
        found = results(compared[0])
        assert list(found["rows"]) == METHODS
        figures = {*comparison.FIGURES, "memory"}
        assert found["original"].keys() == figures and found["original"]["forget_accuracy"] == 1
        for name in METHODS[:3]:
            row = found["rows"][name]
            assert figures | {"share", "seconds", "steps", "notes"} == row.keys()
            assert 0 < row["share"] <= 0.2 and row["seconds"] > 0 and 0 <= row["memory"] <= 1
        assert found["rows"]["ssd"]["share"] == pytest.approx(1 / 30) and found["rows"]["ssd"]["steps"] == 0

    def test_what_costs_too_much_is_cut(self, compared):
        """Of 30 epochs on 32 samples a fifth is 192 of the 24 retained samples: 8 of finetune's 10 epochs."""
        row = results(compared[0])["rows"]["finetune"]
        assert (row["steps"], row["share"]) == (8, pytest.approx(0.2))
        assert row["notes"] == [
            "Cut to the budget: 8 of 10 steps, which would have cost 25.0% of the original's training."
        ]

    def test_a_failure_is_a_row(self, compared):
        row = results(compared[0])["rows"]["retrain"]
        assert row.keys() == {"error"} and row["error"].startswith("retrain needs what the original was trained from")

    def test_the_original_is_untouched(self, compared, files):
        out, before = compared
        assert content(files) == before
        assert sorted(path.name for path in out.iterdir()) == ["compare.json", "compare.svg"]

    def test_each_begins_with_the_original(self, compared, files, tmp_path):
        """Alone, a method comes to what it comes to behind others."""
        assert run(files, tmp_path, "--methods", "ssd") == 0
        one, other = (results(folder)["rows"]["ssd"] for folder in (tmp_path, compared[0]))
        assert one | {"seconds": 0} == other | {"seconds": 0}

    def test_an_edit_that_costs_too_much_is_not_made(self, files, tmp_path):
        assert run(files, tmp_path, "--methods", "ssd", "--budget", "0.02") == 0
        assert results(tmp_path)["rows"]["ssd"] == {
            "error": "one pass over all samples of ssd is 3.3% of the original's training, and the budget is 2.0%; raise the "
            "budget, or leave it out."
        }
        assert not (tmp_path / "compare.svg").exists()

    def test_of_a_class(self, files, tmp_path):
        """What is left of the other classes stands by itself, and a method for whole classes is not refused."""
        data = learnt(flipped=False)
        data["forget"] = data["forget"].filter(lambda row: int(row["label"]) == 1)
        data["retain"] = data["retain"].filter(lambda row: int(row["label"]) != 1)
        for name, samples in data.items():
            samples.save_to_disk(tmp_path / name)
        fitted(flipped=False).save_pretrained(tmp_path / "model")
        assert cli.main(["compare", *options(tmp_path), "--methods", "damp", "--output", str(tmp_path / "out")]) == 0
        row = results(tmp_path / "out")["rows"]["damp"]
        assert row["forget_accuracy"] == 0 and row["kept_accuracy"] > row["unseen_accuracy"] and row["rf_jsd"] is None

    def test_the_usual_methods_of_a_task(self):
        one = object.__new__(comparison.Comparison)
        one.task = "image-classification"
        assert one.usual() == ["auto", "finetune", "l1_sparse", "scrub", "ssd"]
        one.task = "causal-lm"
        assert one.usual() == ["auto", "finetune"]


class TestResume:
    def test_what_is_there_is_not_run_again(self, compared, files, capsys, monkeypatch):
        ran = []
        monkeypatch.setattr(comparison.Comparison, "_run", lambda self, name: ran.append(name) or fake())
        before = results(compared[0])["rows"]
        capsys.readouterr()
        assert run(files, compared[0], "--methods", "finetune", "retrain", "retrain") == 0
        out = capsys.readouterr().out
        assert ran == ["retrain"]  # which has failed before
        assert f"finetune: its result is in {compared[0]} already" in out
        after = results(compared[0])["rows"]
        assert after["retrain"] == fake() and all(after[name] == before[name] for name in METHODS[:3])
        for name in ("original", *METHODS):
            assert re.search(rf"^\| {name} +\| \d", out, re.MULTILINE), name
        assert "finetune: Cut to the budget: 8 of 10 steps" in out and "which is assumed" in out

    @pytest.mark.parametrize(
        ("more", "difference"),
        [
            (["--budget", "0.1"], "budget is 0.1 and was 0.2"),
            (["--original-epochs", "10"], "original_epochs is 10.0 and was 30.0"),
            (["--batch-size", "8"], "batch_size is 8 and was 64"),
            (["--forget", "FILES/unseen", "--unseen", "FILES/forget"], "forget has 16 samples and had 8"),
        ],
    )
    def test_of_another_request_it_is_refused(self, compared, files, capsys, more, difference):
        before = content(compared[0])
        capsys.readouterr()
        assert run(files, compared[0], *more) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {compared[0]} holds another comparison: {difference}")
        assert content(compared[0]) == before

    def test_of_several_tasks_it_is_refused(self, files, tmp_path, capsys):
        tiny_multitask().save_pretrained(tmp_path / "model")
        asked = [str(tmp_path / "model"), *options(files)[1:]]
        assert cli.main(["compare", *asked, "--output", str(tmp_path / "out")]) == 2
        assert "has several tasks, and compare holds methods for classifiers" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("text", ["{", "[]", '{"rows": {}}', '{"about": 1, "rows": {}}'])
    def test_a_file_of_something_else(self, files, tmp_path, capsys, text):
        (tmp_path / "compare.json").write_text(text)
        assert run(files, tmp_path) == 2
        assert "compare.json is damaged, or of something else; expected another --output." in capsys.readouterr().err
        assert (tmp_path / "compare.json").read_text() == text


def fake():
    numbers = {
        "forget_accuracy": 0.5,
        "unseen_accuracy": 0.5,
        "retain_accuracy": 1.0,
        "kept_accuracy": None,
        "auc": 0.5,
        "auc_low": 0.4,
    }
    numbers |= {"auc_high": 0.6, "rf_jsd": 0.1, "memory": 0.1, "share": 0.1, "seconds": 1.0, "steps": 3}
    return numbers | {"notes": []}


class TestPicture:
    def test_every_method_is_named(self, compared):
        root = ElementTree.parse(compared[0] / "compare.svg").getroot()
        assert root.tag == f"{SVG}svg" and root.find(f"{SVG}title") is not None
        texts = {"".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")}
        assert {"auto", "finetune", "ssd", "original", "memory"} <= texts
        ids = {element.get("id") for element in root.iter()}
        assert {"compare-level", *(f"compare-point-{name}" for name in METHODS[:3])} <= ids

    def test_labels_do_not_cover_each_other(self):
        """Ten methods at one place, which all cost the budget, and a line through them."""
        names = [f"method{i}" for i in range(10)]
        root = ElementTree.fromstring(
            points("p", dict.fromkeys(names, (20.0, 0.1)), ("original", 0.1), title="t", x_label="x", y_label="y")
        )
        labels = [text for text in root.iter(f"{SVG}text") if "".join(text.itertext()).strip() in names]
        places = sorted(float(label.get("y", "nan")) for label in labels)
        assert len(places) == 10 and min(b - a for a, b in zip(places, places[1:], strict=False)) > 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "auto", "finetun"], "There is no method 'finetun'; did you mean 'finetune'?"),
        (["--budget", "0"], "auto: budget is 0.0; expected a share of the original's training in (0, 1]."),
        (["--base-model", "FILES/resnet"], "whose weights do not fit the original"),
        (["--unseen", "FILES/nowhere"], "cannot be loaded"),
        (["--unseen", "FILES/forget"], "8 of the 8 forget samples stand in unseen too"),
        (["--output", "FILES/model/out"], "in the folder of the original; expected another one."),
    ],
)
def test_bad_input(files, tmp_path, capsys, more, message):
    before = content(files)
    assert run(files, tmp_path / "out", *more) == 2
    out, error = capsys.readouterr()
    assert out == "" and message in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")
    assert content(files) == before and not (tmp_path / "out").exists()


def test_no_unseen_samples(files, capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", *options(files)[:-2]])
    assert "the following arguments are required: --unseen" in capsys.readouterr().err
