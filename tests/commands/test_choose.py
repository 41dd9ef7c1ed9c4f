"""`hf-unlearn choose` and `choose()`: what auto finds out and would do, with nothing changed."""

import dataclasses
import json
import shutil

import pytest

from hf_unlearn import AutoConfig, UnlearningError, choose, unlearn
from hf_unlearn import commands as cli
from hf_unlearn.commands.choose import make_parser
from hf_unlearn.methods.look import Look, kind_of
from hf_unlearn.methods.rewind import BUDGET
from hf_unlearn.metrics import MatchedAUC
from tests.asked import content, options, write_request
from tests.samples import arguments, fitted, learnt, request, same_bits, sentences, weights
from tests.tiny import tiny_bert, tiny_resnet, tiny_tokenizer

KNOWN = ["--original-epochs", "40", "--original-learning-rate", "2e-3", "--base-model", "scratch"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_request(tmp_path_factory.mktemp("choose"))


def look(n_forget=200, n_unseen=200, auc=0.7, low=0.65, high=0.75, kind="scattered", **changes):
    memory = MatchedAUC(auc, low, high, n_forget, n_unseen, [], "none of them" if auc is None else None)
    values = {"n_forget": n_forget, "n_retain": 1000, "classes": 3, "num_labels": 3, "memory": memory}
    values |= {"base": "scratch", "original_epochs": 30.0, "original_learning_rate": 0.1, "assumed": ()}
    values |= {"keeps": (0.4,), "epochs": 5.9, "learning_rate": 0.04, "batch_size": 64}
    return Look(kind=kind, **values | {"budget": 0.2, "cost": 0.199, "cost_of_look": 0.001} | changes)


class TestLook:
    @pytest.mark.parametrize(
        ("classes", "num_labels", "n_forget", "kind"),
        [
            (1, 10, 1, "scattered"),  # one sample is of one class
            (1, 10, 2, "scattered"),
            (1, 10, 3, "part"),
            (3, 10, 3, "scattered"),
            (5, 10, 100, "part"),
            (10, 10, 100, "scattered"),
            (1, 2, 6, "scattered"),
            (1, 2, 7, "part"),
            (0, 0, 100, "scattered"),  # a language model
        ],
    )
    def test_the_kind_of_request(self, classes, num_labels, n_forget, kind):
        assert kind_of(False, classes, num_labels, n_forget) == kind
        assert kind_of(True, classes, num_labels, n_forget) == "class"

    def test_what_is_remembered(self):
        found = look()
        assert found.is_judged and not found.nothing
        assert "the original remembers the forget samples (AUC 0.700, 95% interval 0.650 to 0.750" in found.summary()
        assert "Choice: rewind with keep 0.4, then 5.9 epochs" in found.summary()
        assert "Cost: 19.9% of the original's training; the budget is 20.0%." in found.summary()

    def test_what_is_not(self):
        found = look(auc=0.5, low=0.47, high=0.53)
        assert found.is_judged and found.nothing
        assert "Choice: nothing would be changed; the look costs 0.10%." in found.summary()
        assert not look(auc=0.5, low=0.47, high=0.53, kind="class").nothing  # which goes whole, remembered or not

    @pytest.mark.parametrize(
        "few",
        [
            {"auc": 0.52, "low": 0.4, "high": 0.64},
            {"auc": 0.0, "low": 0.0, "high": 0.0, "n_forget": 1},  # an interval of one sample has no width
            {"auc": 1.0, "low": 1.0, "high": 1.0, "n_unseen": 5},
            {"auc": None, "low": None, "high": None},
        ],
    )
    def test_too_few_samples_show_neither(self, few):
        found = look(**few)
        assert not found.is_judged and not found.nothing
        assert "Memory: cannot be judged" in found.summary() and "Choice: rewind" in found.summary()

    def test_whole_classes_and_a_race(self):
        text = look(kind="class", classes=2, keeps=(0.4, 0.2)).summary()
        assert (
            "Request: a whole class (2 of them); 200 forget and 1000 retained samples; forget samples of 2 of 3"
            in text
        )
        assert "rewind with keep 0.4 or 0.2" in text


class TestChoose:
    def test_it_is_what_auto_finds_out(self, tmp_path):
        """And does: its steps are those of the run."""
        args = arguments(tmp_path, num_train_epochs=None, learning_rate=None)
        about = {"budget": 0.1, "original_epochs": 40, "original_learning_rate": 1e-3, "args": args}
        found = choose(fitted(), **learnt(), **about)
        result = unlearn(fitted(), **learnt(), **about)
        assert found == result.trainer.method.look
        assert found.learning_rate == 1e-3 == result.trainer.args.learning_rate
        assert found.epochs * 24 / 8 == result.trainer.state.global_step
        assert (found.base, found.assumed) == ("scratch", ("base_model",))
        assert found.cost == pytest.approx(found.epochs * 24 / (40 * 32) + 2 * found.cost_of_look)

    def test_nothing_is_changed_or_written(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        model = fitted().train()
        frozen = next(model.parameters()).requires_grad_(False)
        choose(model, **learnt())
        assert same_bits(weights(model), weights(fitted())) and model.training and not frozen.requires_grad
        assert not list(tmp_path.iterdir())

    def test_a_part_of_a_class(self):
        data = learnt() | {"forget": request(n_forget=16)["forget"].filter(lambda row: int(row["label"]) == 1)}
        found = choose(fitted(), **data)
        assert (found.kind, found.classes, found.num_labels, found.n_forget) == ("part", 1, 4, 4)

    def test_a_class(self):
        data = learnt(flipped=False)
        data["retain"] = data["retain"].filter(lambda row: int(row["label"]) != 1)
        data["forget"] = data["forget"].filter(lambda row: int(row["label"]) == 1)
        assert choose(fitted(flipped=False), **data).kind == "class"

    def test_texts_and_a_record_of_the_training(self, tmp_path):
        """From a folder with the Trainer's record, beside which a model was loaded."""
        tiny_bert().save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        state = {"num_train_epochs": 7, "train_batch_size": 16, "log_history": [{"learning_rate": 3e-4}]}
        (tmp_path / "trainer_state.json").write_text(json.dumps(state))
        found = choose(str(tmp_path), **request(sentences), base_model="scratch")
        assert (found.original_epochs, found.original_learning_rate, found.batch_size) == (7, 3e-4, 16)
        assert found.assumed == ()


class TestCommand:
    def test_what_is_printed(self, files, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        before = content(files)
        assert cli.main(["choose", *options(files), *KNOWN, "--json", str(tmp_path / "look.json")]) == 0
        out, found = capsys.readouterr().out, json.loads((tmp_path / "look.json").read_text())
        assert "Original: trained from new weights, for 40 epochs, at a learning rate of 0.002." in out
        assert "Request: scattered samples; 8 forget and 24 retained samples; forget samples of all 4 classes." in out
        assert f"Cost: {found['cost']:.1%} of the original's training; the budget is 20.0%." in out
        assert "assumed" not in out and found["assumed"] == []
        assert {field.name for field in dataclasses.fields(Look)} <= found.keys() and found["nothing"] is False
        assert content(files) == before and [path.name for path in tmp_path.iterdir()] == ["look.json"]

    def test_what_is_assumed(self, files, capsys):
        assert cli.main(["choose", *options(files), "--budget", "0.5", "--batch-size", "4"]) == 0
        out = capsys.readouterr().out
        assert "from new weights (assumed), for 30 epochs (assumed), at a learning rate of 0.008 (assumed)" in out
        assert "it can be given: base_model, original_epochs, original_learning_rate" in out and "batch size 4" in out

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--budget", "1.5"], "auto: budget is 1.5; expected a share of the original's training in (0, 1]."),
            (["--original-epochs", "0"], "auto: original_epochs is 0.0; expected a number above 0."),
            (["--batch-size", "0"], "--batch-size is 0; expected 1 or more."),
            (["--revision", "v1"], "is a local folder and 'v1' a revision"),
            (["--json", "FILES/model/look.json"], "which would be written over"),
            (["--base-model", "FILES/resnet"], "whose weights do not fit the original"),
        ],
    )
    def test_bad_input(self, files, capsys, more, message):
        if not (files / "resnet").exists():
            tiny_resnet().save_pretrained(files / "resnet")
        assert cli.main(["choose", *options(files), *(word.replace("FILES", str(files)) for word in more)]) == 2
        out, error = capsys.readouterr()
        assert out == "" and message in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")
        assert not (files / "model" / "look.json").exists()

    def test_the_budget_by_default(self, files):
        """A parser knows nothing that is heavy."""
        assert make_parser().parse_args(options(files)).budget == BUDGET

    def test_no_unseen_samples(self, files, capsys):
        with pytest.raises(SystemExit):
            cli.main(["choose", *options(files)[:-2]])
        assert "the following arguments are required: --unseen" in capsys.readouterr().err
        with pytest.raises(UnlearningError, match="auto needs samples the model was never trained on"):
            choose(fitted(), forget=learnt()["forget"], retain=learnt()["retain"], unseen=None)

    def test_a_model_that_is_gone(self, files, tmp_path, capsys):
        shutil.copytree(files / "model", tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").unlink()
        assert cli.main(["choose", str(tmp_path / "model"), *options(files)[1:]]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_one_sample_does_not_show_that_nothing_is_known(tmp_path):
    """It was believed as if it were many, and nothing was changed."""
    data = request(n_forget=1, n_unseen=64)
    data["forget"] = data["forget"].map(lambda row: {"label": (int(row["label"]) + 2) % 4})
    method = AutoConfig(original_epochs=30, original_learning_rate=1e-3)
    args = arguments(tmp_path, num_train_epochs=None, max_steps=2)
    result = unlearn(fitted(flipped=False), **data, method=method, args=args)
    found = result.trainer.method.look
    assert found.memory.high < 0.55 and not found.nothing and result.trainer.state.global_step == 2
