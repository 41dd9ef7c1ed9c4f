"""The command line and the reading of settings; nothing is trained here."""

import dataclasses
import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hf_unlearn import UnlearningArguments, UnlearningError, __version__
from hf_unlearn import commands as cli
from hf_unlearn.commands.recipe import RecipeArguments, help_text, parse
from hf_unlearn.commands.text import show
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.lotus import LotusConfig

ROOT = Path(__file__).parents[2]
BASIC = ["model=m", "dataset=d", "forget_fraction=0.1"]


def command(*argv: str, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment, timeout=120)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_file_and_command_line(tmp_path):
    file = write(
        tmp_path / "recipe.yaml", "model: m\ndataset: d\nmethod: lotus\nforget_labels: [3, cat]\nalpha: 3\nseed: 7\n"
    )
    settings, config, args = parse(["alpha=4", "--learning-rate", "1e-4", "--bf16_full_eval", "--seed=8"], file)
    assert (settings.model, settings.forget_labels, settings.unseen_split) == ("m", [3, "cat"], None)
    assert isinstance(config, LotusConfig) and config.alpha == 4.0
    assert (args.learning_rate, args.bf16_full_eval, args.seed) == (1e-4, True, 8)


@pytest.mark.parametrize("argv", [["FILE"], ["--config", "FILE"], ["--config=FILE"], ["seed=1", "FILE"]])
def test_ways_to_name_the_file(tmp_path, argv):
    file = write(tmp_path / "recipe.yaml", "model: m\ndataset: d\nforget_fraction: 0.5\n")
    settings, _, _ = parse([word.replace("FILE", str(file)) for word in argv])
    assert settings.forget_fraction == 0.5


def test_two_files_are_refused(tmp_path):
    with pytest.raises(
        UnlearningError, match="There is 'b.yaml' beside the recipe 'a.yaml'; expected one recipe file"
    ):
        parse(["a.yaml", "b.yaml"])


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),  # text in YAML 1.1
        ("learning_rate: '1e-4'", "learning_rate", 1e-4),
        ("save_strategy: no", "save_strategy", "no"),  # false in YAML 1.1
        ("run_name: 1.10", "run_name", "1.10"),
        ("run_name: 0123", "run_name", "0123"),
        ("run_name: null", "run_name", None),
        ("run_name: 'null'", "run_name", "null"),
        ("data_seed: ~", "data_seed", None),
        ("data_seed:", "data_seed", None),
        ("disable_tqdm: yes", "disable_tqdm", True),
        ("disable_tqdm: off", "disable_tqdm", False),
        ("bf16_full_eval: False", "bf16_full_eval", False),
        ("include_for_metrics: loss, inputs", "include_for_metrics", ["loss", "inputs"]),
        ("lr_scheduler_kwargs: {power: 2, deep: [1e-3, yes, x]}", "lr_scheduler_kwargs", {"power": 2, "deep": [1e-3, True, "x"]}),
    ],
)  # fmt: skip
def test_the_field_decides_what_text_means(tmp_path, text, name, value):
    _, _, args = parse(BASIC, write(tmp_path / "recipe.yaml", text))
    assert getattr(args, name) == value and isinstance(getattr(args, name), type(value))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat", ["cat"]),
        ("cat, 3", ["cat", 3]),
        ("3", [3]),
        ("[cat, '3']", ["cat", "3"]),
        ("'tench, Tinca tinca'", ["tench, Tinca tinca"]),
        ("['tench, Tinca tinca', dog]", ["tench, Tinca tinca", "dog"]),
    ],
)
def test_labels(tmp_path, text, labels):
    file = write(tmp_path / "recipe.yaml", f"forget_labels: {text}")
    assert parse(["model=m", "dataset=d"], file)[0].forget_labels == labels
    assert parse(["model=m", "dataset=d", f"forget_labels={text}"])[0].forget_labels == labels


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["learning_rate=fast"], "learning_rate is 'fast' (on the command line); expected a number."),
        (["seed=1.5"], "seed is '1.5' (on the command line); expected a whole number."),
        (["seed=null"], "seed is 'null' (on the command line); expected a whole number."),
        (["resume=maybe"], "resume is 'maybe' (on the command line); expected true or false."),
        (["task=image"], "task is 'image' (on the command line); expected image-classification, text-class"),
        (["method=lotus", "alpha=[1, 2]"], "alpha is ['1', '2'] (on the command line); expected a number."),
        (
            ["method=lotus", "class_cure=maybe"],
            "class_cure is 'maybe' (on the command line); expected mask, monotone, stop",
        ),
        (["parallelism_config=x"], "expected nothing, because it cannot be set in a recipe."),
        (["method=lotus", "alpha=-1"], "lotus: alpha is -1.0; expected a positive number."),
        (["eval_strategy=epcoh"], "The training arguments cannot be used: epcoh is not a valid IntervalStrategy"),
        (
            ["learning_rat=1"],
            "There is no setting 'learning_rat' (on the command line); did you mean 'learning_rate'?",
        ),
        (["datset=x"], "did you mean 'dataset'?"),
        (["method=lotus", "retain_fractions=1"], "did you mean 'retain_fraction'?"),
        (["zzz=1"], "There is no setting 'zzz' (on the command line). `hf-unlearn run --help method=auto` lists all"),
        (
            ["relabel=once"],
            "There is no setting 'relabel' (on the command line) with the method auto; it belongs to ",
        ),
        (["arguments={}"], "There is no setting 'arguments' (on the command line)"),
        (["method=lotos"], "There is no method 'lotos'; did you mean 'lotus'?"),
        (["forget_labels=1", "forget_where=x"], "What to forget is given by forget_labels and forget_where; expected"),
        (["forget_fraction=null"], "What to forget is given by nothing; expected exactly one of forget_ids,"),
        (["id_column=user"], "id_column says what the lines of forget_ids are, and there is no forget_ids file."),
        (["method=lotus", "preset=papr"], "preset is 'papr'; expected default, paper or paper:SETTING."),
        (
            ["method=lotus", "preset=paper:vgg"],
            "LoTUS's paper has no setting 'vgg'; expected one of resnet18-cifar10, resnet18-cifar100",
        ),
        (["preset=paper", "method=finetune"], "preset is 'paper'; expected default, all that finetune has."),
        (["preset=paper:once", "method=random_label"], "preset is 'paper:once', which random_label has no values for"),
    ],
)
def test_mistakes_are_named(argv, message):
    with pytest.raises(UnlearningError) as caught:
        parse([*BASIC, *argv])
    assert message in str(caught.value)


def test_mistakes_in_a_file_name_the_file(tmp_path):
    file = write(tmp_path / "recipe.yaml", "learning_rat: 1\n")
    with pytest.raises(
        UnlearningError, match=re.escape(f"There is no setting 'learning_rat' (in {file}); did you mean")
    ):
        parse(BASIC, file)
    write(file, "learning_rate: fast\n")
    with pytest.raises(UnlearningError, match=re.escape(f"learning_rate is 'fast' (in {file}); expected a number.")):
        parse(BASIC, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: b: c", "is not valid YAML: .* line 1"), ("- a", "holds no settings"), ("just words", "holds no settings")],
)
def test_files_that_are_no_recipes(tmp_path, text, message):
    with pytest.raises(UnlearningError, match=message):
        parse(BASIC, write(tmp_path / "recipe.yaml", text))


def test_missing_settings_are_named():
    with pytest.raises(
        UnlearningError, match="The recipe has no model; expected the model: a Hub id or a local folder"
    ):
        parse(["dataset=d", "forget_fraction=0.1"])
    with pytest.raises(UnlearningError, match="The recipe has no dataset"):
        parse(["model=m", "forget_fraction=0.1"])


def test_presets():
    basic = [*BASIC, "method=lotus"]
    assert parse([*basic, "preset=paper"])[1] == LotusConfig.paper()
    assert parse([*basic, "preset=paper:resnet18-cifar10"])[1] == LotusConfig.paper("resnet18-cifar10")
    mixed = parse([*basic, "preset=paper", "retain_fraction=0.5"])[1]
    assert mixed == dataclasses.replace(LotusConfig.paper(), retain_fraction=0.5)
    # alpha depends on class_mode: settings must be there when the config is made, not put in later
    assert parse([*basic, "class_mode=true"])[1].alpha == 32.0


def test_no_key_has_two_meanings():
    ours = {f.name for f in dataclasses.fields(RecipeArguments)}
    training = {f.name for f in dataclasses.fields(UnlearningArguments)}
    assert not ours & training
    for method in METHODS.values():
        names = {f.name for f in dataclasses.fields(method.config_class)}
        assert not names & (ours | training), method.info.name


def test_every_recipe_file_is_read():
    files = sorted((ROOT / "recipes").glob("*.yaml"))
    assert files
    for file in files:
        settings, config, args = parse([], file)
        assert config.method == settings.method and "outputs/" in args.output_dir, file
        assert "placeholder" in file.read_text() and settings.model.startswith("your-name/"), file


@pytest.mark.parametrize("method", METHODS)
def test_help_has_every_key(method):
    text = help_text(method)
    for cls in (RecipeArguments, METHODS[method].config_class, UnlearningArguments):
        for f in dataclasses.fields(cls):
            if f.init and f.name != "arguments":
                assert f"\n  {f.name}: " in text, f.name
    own, inherited = text.index("\n  measure: "), text.index("\n  adam_beta1: ")
    assert text.index("\n  model: text; required") < own < inherited
    assert all(f.metadata.get("help") for f in dataclasses.fields(RecipeArguments))


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def test_run_help(tmp_path, capsys):
    file = write(tmp_path / "recipe.yaml", "method: random_label\n")
    assert cli.main(["run", "--help"]) == 0
    assert "  budget: a number; default 0.2" in capsys.readouterr().out
    assert cli.main(["run", "--help", "method=random_label"]) == 0
    assert "  relabel: once or epoch; default epoch" in capsys.readouterr().out
    assert cli.main(["run", str(file), "-h"]) == 0
    assert "How: random_label (RandomLabelConfig)" in capsys.readouterr().out


def test_run_alone(capsys):
    assert cli.main(["run"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("usage: hf-unlearn run [RECIPE.yaml]") and said.err.count("\n") <= 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["choose", "m", *(word for name in ("forget", "retain", "unseen") for word in (f"--{name}", "x"))],
         "pass --overlap allow, --unseen or columns=Columns(label='y')."),
        (["run", "model=m", "dataset=d", "forget_fraction=0.5"],
         "pass overlap=allow, unseen_split or columns=Columns(label='y')."),
    ],
)  # fmt: skip
def test_errors_are_in_the_words_of_the_command_line(argv, said, monkeypatch, capsys):
    def refuse(*_, **__):
        raise UnlearningError("pass overlap=\"allow\", unseen= or columns=Columns(label='y').")

    monkeypatch.setattr("hf_unlearn.commands.sets.read_request", refuse)
    monkeypatch.setattr("hf_unlearn.commands.steps.run", refuse)
    assert cli.main(argv) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_methods_table(capsys):
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    for name, method in METHODS.items():
        assert re.search(rf"^{name} +{method.info.kind} +[\d.]+ +forget", out, re.MULTILINE)
        assert " ".join(method.info.summary.split()) in " ".join(out.split())
    assert all(len(line) <= 80 for line in out.splitlines())
    assert cli.main(["methods", "re*"]) == 0
    out = capsys.readouterr().out
    assert "retrain" in out and "lotus" not in out
    assert cli.main(["methods", "--task", "text-classification", "lotus"]) == 0
    assert sum("lotus" in line for line in capsys.readouterr().out.splitlines()) == 1


def test_datasheet(capsys):
    assert cli.main(["methods", "lotus"]) == 0
    out = capsys.readouterr().out
    assert "https://arxiv.org/abs/2503.18314" in out
    assert "  class_cure: default mask; paper none" in out
    assert "  retain_fraction: default 0.3\n" in out
    rate = show(METHODS["lotus"]().arguments("convolutional")["learning_rate"])
    paper = show(LotusConfig.paper().arguments["learning_rate"])
    assert re.search(rf"learning_rate +{rate} +\S+ +{paper}\n", out)
    for name in METHODS:
        assert cli.main(["methods", name]) == 0


def test_unknown_method_and_command(capsys):
    assert cli.main(["methods", "lotos"]) == 2
    assert "error: There is no method 'lotos'; did you mean 'lotus'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(["method"])
    assert caught.value.code == 2
    assert "there is no command 'method'; did you mean 'methods'?" in capsys.readouterr().err


def test_only_the_first_process_reports(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["run", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["run", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "error: The recipe 'nowhere.yaml' cannot be read: No such file or directory.\n"


def test_interrupt_and_bugs(capsys, monkeypatch):
    def interrupt(argv):
        raise KeyboardInterrupt

    def bug(argv):
        raise ValueError("not the user's fault")

    assert cli.exit_code(interrupt, []) == 130
    assert cli.exit_code(bug, []) == 1
    assert capsys.readouterr().err == "error: The command failed with a ValueError: not the user's fault.\n"
    monkeypatch.setenv("HF_UNLEARN_TRACEBACK", "1")
    assert cli.exit_code(bug, []) == 1
    assert 'raise ValueError("not the user\'s fault")' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        ([], [f"  {name} " for name in cli.COMMANDS]),
        (["methods"], [f"{name} " for name in METHODS]),
        (["methods", "lotus"], ["  class_cure: "]),
        (["methods", "--task", "causal-lm", "g*"], ["gru ", "grad_diff "]),
    ],
)
def test_answered_at_once(argv, lines):
    code = (
        f"import sys; from hf_unlearn.commands import main; assert main({argv}) == 0; "
        "assert not {'torch', 'transformers', 'datasets', 'numpy', 'yaml'} & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("-c", code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert all(f"\n{line}" in done.stdout for line in lines)
    # processor time, which other work on the machine does not stretch
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_arguments_are_read_before_anything_heavy_is_imported():
    names = [name for name in cli.COMMANDS if name not in ("run", "benchmark")]  # whose help tells of code
    code = f"""
import sys
from hf_unlearn.commands import main
for name in {names}:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0
    assert not {{"torch", "transformers", "datasets", "numpy"}} & set(sys.modules), name
"""
    done = command("-c", code)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: hf-unlearn {name} [-h]" in done.stdout for name in names)


def test_promised_commands():
    promised = (
        "quickstart run methods hardness surgery audit eval benchmark push list tag rollback purge verify push-metric "
        "env"
    )
    assert set(promised.split()) <= set(cli.COMMANDS)


def test_ways_in():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"hf-unlearn": f"{cli.__name__}:{cli.main.__name__}"}
    done = command("-m", "hf_unlearn", "--version")
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")


@pytest.mark.slow
def test_errors_of_the_real_program(tmp_path):
    done = command("-m", "hf_unlearn", "run", str(tmp_path / "none.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: The recipe '{tmp_path}/none.yaml' cannot be read: No such file or directory.\n"


@pytest.mark.slow
def test_env_has_versions_and_no_token():
    done = command("-m", "hf_unlearn", "env", HF_TOKEN="hf_NeverToBeShown", HUGGING_FACE_HUB_TOKEN="hf_NorThis")
    assert done.returncode == 0
    for name in ("hf_unlearn", "python", "platform", "torch", "transformers", "peft", "huggingface_hub", "device"):
        assert re.search(rf"^- {name}: \S", done.stdout, re.MULTILINE), name
    assert "hf_N" not in done.stdout + done.stderr
