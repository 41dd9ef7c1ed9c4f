"""Every setting is read as what it is, or refused in one sentence; none is ignored without a word."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch

from hf_unlearn import UnlearningArguments, UnlearningError, audit, unlearn
from hf_unlearn import commands as cli
from hf_unlearn.commands import recipe, sets, steps
from hf_unlearn.methods import METHODS, HamuConfig, LocalTeacherConfig, LotusConfig
from hf_unlearn.methods.fields import field_types, options
from hf_unlearn.metrics import interference
from hf_unlearn.models.adapters import default_config
from hf_unlearn.models.load import load_model, load_processor
from hf_unlearn.surgery import find_plan
from hf_unlearn.surgery.operators import example_inputs
from tests.samples import request
from tests.tiny import tiny_vit

CONFIGS = [method.config_class for method in METHODS.values()]
BASIC = ["model=me/vit", "dataset=me/data", "forget_fraction=0.1"]


def fields_of(kind: type) -> list[tuple[type, str]]:
    """Every field of every config that takes this type, and no text."""
    return [
        (config, name)
        for config in CONFIGS
        for name, hint in field_types(config).items()
        if kind in options(hint) and str not in options(hint)
    ]


def refused(make, *words: str) -> str:
    with pytest.raises(UnlearningError) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 500, text
    assert all(word in text for word in words), text
    return text


class TestConfigs:
    def test_flags_as_text(self):
        assert len(fields_of(bool)) >= 8
        for config, name in fields_of(bool):
            for value in ("no", "false", "", 0, 1, None):
                refused(lambda c=config, n=name, v=value: c(**{n: v}), f"{name} is {value!r}; expected true or false")

    def test_infinite_numbers(self):
        numbers = fields_of(float) + fields_of(int)
        assert len(numbers) >= 50
        for config, name in numbers:
            for value in (math.inf, -math.inf, math.nan):
                refused(lambda c=config, n=name, v=value: c(**{n: v}), f"{name} is {value}", "expected")

    def test_numbers_as_text_and_flags_as_numbers(self):
        for config, name in fields_of(float) + fields_of(int):
            for value in ("1", True):
                refused(lambda c=config, n=name, v=value: c(**{n: v}), f"{name} is {value!r}")
        for config, name in fields_of(int):
            refused(lambda c=config, n=name: c(**{n: 1.5}), f"{name} is 1.5")

    def test_unknown_words(self):
        refused(lambda: HamuConfig(variant="Q"), "hamu: variant is 'Q'; expected q or u.")
        refused(lambda: LocalTeacherConfig(k="all"), "k is 'all'; expected a whole number or auto.")
        refused(
            lambda: LotusConfig(arguments=["learning_rate"]), "arguments is ['learning_rate']; expected a mapping."
        )

    def test_numbers_of_numpy_become_python_s(self):
        config = LotusConfig(alpha=np.float32(2.5), stop_margin=np.int64(0))
        assert config.alpha == 2.5 and type(config.alpha) is float and type(config.stop_margin) is int
        json.dumps(dataclasses.asdict(config))

    def test_every_default_and_every_paper_is_accepted(self):
        for config in CONFIGS:
            config()
            if hasattr(config, "paper"):
                config.paper()

    def test_a_user_s_config_with_types_that_are_not_there(self):
        own = dataclasses.make_dataclass("Own", [("size", "Missing", 1)], bases=(LotusConfig,))
        assert own(size=3).size == 3


class TestTrainingArguments:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; expected a number."),
            ({"learning_rate": math.inf}, "learning_rate is inf; expected a finite number."),
            ({"weight_decay": math.nan}, "weight_decay is nan; expected a finite number."),
            ({"bf16": "no"}, "bf16 is 'no'; expected true or false."),
            ({"seed": 1.5}, "seed is 1.5; expected a whole number."),
            ({"measure": "false"}, "measure is 'false'; expected true or false."),
            ({"output_dir": None}, "output_dir is None; expected text."),
            ({"optim": "adamm"}, "The training arguments cannot be used: adamm is not a valid OptimizerNames"),
            ({"save_strategy": "sometimes"}, "The training arguments cannot be used: sometimes is not a valid"),
            (
                {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "epoch"},
                "The training arguments cannot be used: --load_best_model_at_end requires the save and eval strategy to",
            ),
            ({"lr_scheduler_kwargs": "{broken"}, "The training arguments cannot be used: "),
            ({"report_to": "nobody", "logging_steps": 1.5}, "The training arguments cannot be used: --logging_steps"),
        ],
    )
    def test_refused(self, tmp_path, settings, message):
        refused(lambda: UnlearningArguments(**{"output_dir": str(tmp_path)} | settings), message)

    def test_a_path_as_output_folder(self, tmp_path):
        assert UnlearningArguments(tmp_path).output_dir == str(tmp_path)

    def test_they_can_be_made_again_of_themselves(self, tmp_path):
        args = UnlearningArguments(str(tmp_path), seed=3)
        assert dataclasses.replace(args, seed=4).seed == 4


class TestRecipe:
    def written(self, tmp_path, text: str):
        (tmp_path / "recipe.yaml").write_text(text)
        return lambda: recipe.parse([*BASIC, str(tmp_path / "recipe.yaml")])

    def test_a_key_twice(self, tmp_path):
        for text, what in (
            ("learning_rate: 1\nseed: 1\nlearning_rate: 2\n", "'learning_rate' is given twice"),
            ("learning-rate: 1\nlearning_rate: 2\n", "'learning-rate' and 'learning_rate' are the same setting"),
            ("lr_scheduler_kwargs: {a: 1, a: 2}\n", "'a' is given twice"),
        ):
            refused(self.written(tmp_path, text), "recipe.yaml", what, "expected it once")
        message = "On the command line 'learning-rate' and 'learning_rate' are the same setting; expected it once."
        refused(lambda: recipe.parse([*BASIC, "--learning-rate=1", "learning_rate=2"]), message)
        assert recipe.parse([*BASIC, "seed=1", "seed=2"])[2].seed == 2  # of one key the last wins

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("output_dir: ''\n", "output_dir is ''; expected a path."),
            ("output_dir:\n", "output_dir is ''; expected a path."),
            ("learning_rate: .inf\n", "learning_rate is '.inf' (in"),
            ("learning_rate: 1e400\n", "learning_rate is inf; expected a finite number."),
            ("method: lotus\nalpha: inf\n", "lotus: alpha is inf; expected a finite number."),
        ],
    )
    def test_values(self, tmp_path, text, message):
        def run():
            settings, config, args = self.written(tmp_path, text)()
            steps.run(settings, config, args)

        with pytest.raises(UnlearningError, match=re.escape(message)):
            run()

    def test_a_path_that_no_file_can_have(self, tmp_path):
        refused(lambda: recipe.parse([*BASIC, "x\0.yaml"]), "The recipe 'x\\x00.yaml' is not valid")
        refused(lambda: recipe.parse([*BASIC, "x" * 300]), "cannot be read: File name too long.")

    def test_what_a_local_dataset_does_not_have(self, tmp_path):
        (tmp_path / "train.csv").write_text("text,label\na,1\n")
        for name in ("config", "revision"):
            what = refused(lambda n=name: sets.read_dataset(str(tmp_path / "train.csv"), **{n: "v2"}))
            assert what.startswith(f"dataset_{name} is 'v2', and the dataset ")


class TestRevisions:
    def test_a_folder_has_none(self, tmp_path):
        tiny_vit().save_pretrained(tmp_path / "model")
        folder = str(tmp_path / "model")
        message = f"{folder!r} is a local folder and 'v2' a revision, which only repositories of the Hub have"
        refused(lambda: load_model(folder, revision="v2"), message)
        refused(lambda: audit(folder, f"{folder}@v2", **request()), message)
        refused(lambda: unlearn(f"{folder}@v2", **request(), args=UnlearningArguments(str(tmp_path / "out"))), message)
        assert not (tmp_path / "out").exists()
        assert load_model(folder) is not None and load_processor(folder, tiny_vit()) is None


class TestFunctions:
    def test_readers(self):
        model = tiny_vit()
        refused(
            lambda: find_plan(model, example_inputs(model), 5, "al"), "readers is 'al'; expected next or all_resid"
        )

    def test_targets_are_names_and_not_parts_of_words(self):
        original = {name: {"test": 0.8, "forget": 1.0, "retain": 1.0} for name in ("depth", "seg")}
        unlearned = {name: {"test": 0.4, "forget": 0.5, "retain": 0.5} for name in ("depth", "seg")}
        assert interference(unlearned, original, "depth") == interference(unlearned, original, ["depth"])
        for wrong in ("depths", ["dep"]):
            with pytest.raises(ValueError, match="names the unknown tasks"):
                interference(unlearned, original, wrong)


class TestCommandLine:
    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["benchmark", "--threads", "-1"], "--threads is -1; expected 1 or more."),
            (["benchmark", "--steps", "0"], "--steps is 0; expected 1 or more."),
            (
                ["benchmark", "--json", "no/such/folder/a.json"],
                "--json is no/such/folder/a.json; expected a file in a",
            ),
            (["audit", "a", "b", "--forget", "x", "--seed", "-1"], "--seed is -1; expected 0 or more."),
            (["audit", "a", "b", "--forget", "x", "--json", ""], "--json is ''; expected a path."),
            (["audit", "a", "b", "--forget", "x", "--html", "n" * 300], "which no file can be called"),
            (
                ["hardness", "a", "--forget", "x", "--retain", "y", "--max-samples", "0"],
                "--max-samples is 0; expected",
            ),
            (["hardness", "a", "--forget", "x", "--retain", "y", "--ratio", "inf"], "ratio is inf; expected a finite"),
            (["quickstart", "--output", "n" * 300], "which no file can be called; expected a shorter path."),
            (["quickstart", "--output", ""], "--output is ''; expected a path."),
            (["surgery", "plan", "a", "--stages", "5.5"], "stages is 5.5; expected"),
            (["surgery", "plan", "a", "--stages", "[["], "--stages is '[['; expected a number, or lists in a list."),
        ],
    )
    def test_refused(self, tmp_path, monkeypatch, capsys, argv, message):
        monkeypatch.chdir(tmp_path)
        assert cli.main(argv) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and said.out == ""
        assert list(tmp_path.iterdir()) == []

    def test_outputs_are_files_of_their_own(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "forget.json").write_text('{"text": "a", "label": 1}\n')
        about = ["audit", "a", "b", "--forget", "forget.json"]
        assert cli.main([*about, "--json", "a.json", "--html", "./a.json"]) == 2
        assert "--html is ./a.json, and so is --json; expected a file of its own." in capsys.readouterr().err
        assert cli.main([*about, "--json", "forget.json"]) == 2
        assert "--json is forget.json, which would be written over forget.json" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["forget.json"]

    @pytest.mark.parametrize("output", ["train.jsonl", "./train.jsonl", "m/config.json", "d/ds/report.json"])
    @pytest.mark.parametrize("option", ["--json", "--html"])
    def test_outputs_are_nothing_that_is_read(self, tmp_path, monkeypatch, capsys, output, option):
        """Neither a file of which a split is named, nor anything in the folder of a model or of a dataset."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "m").mkdir()
        (tmp_path / "d" / "ds").mkdir(parents=True)
        for name in ("train.jsonl", "m/config.json"):
            (tmp_path / name).write_text("{}")
        about = ["--forget", "train.jsonl:train[:10]", "--retain", "train.jsonl:train[10:]", "--unseen", "d/ds:test"]
        for models in (["m", "x"], ["x", "m"], ["x", "y", "--retrained", "m"]):
            assert cli.main(["audit", *models, *about, option, output]) == 2
            assert f"{option} is {output}, which would be written over " in capsys.readouterr().err
        assert (tmp_path / "train.jsonl").read_text() == (tmp_path / "m" / "config.json").read_text() == "{}"


class TestAdapters:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"lora_alpha": 0}, "has an alpha of 0, which makes an adapter of no effect"),
            ({"inference_mode": True}, "has inference_mode=True, as configs of saved adapters have"),
        ],
    )
    def test_configs_that_train_nothing(self, tmp_path, changes, message):
        config = default_config(tiny_vit())
        for name, value in changes.items():
            setattr(config, name, value)
        model = tiny_vit()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        args = UnlearningArguments(str(tmp_path / "out"))
        refused(lambda: unlearn(model, **request(), method="lotus", peft_config=config, args=args), message)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
