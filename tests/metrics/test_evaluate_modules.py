"""The metrics as `evaluate` modules: loaded from the package, and as the Spaces that are pushed."""

import doctest
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch

from hf_unlearn import UnlearningError, metrics
from hf_unlearn import commands as cli
from hf_unlearn.hub.metrics import push_metric, write_space

NAMES = ("avg_gap", "jsd", "rf_jsd", "uis", "unlearning_mia")
FIGURES = ["forget_accuracy", "retain_accuracy", "unseen_accuracy", "mia"]
SPLITS = ["forget", "retain", "unseen"]


def probabilities(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(4), n)


RNG = np.random.default_rng(1)
LABELS, IS_FORGET = RNG.integers(0, 3, 60), np.arange(60) % 3 == 0
SIGNAL, SETS = RNG.gamma(2.0, size=60), RNG.permutation(20 * SPLITS)
TASKS = {task: {"test": RNG.uniform(0.5, 1), "forget": RNG.uniform(0.5, 1)} for task in ("depth", "normals")}
BEFORE = {task: {"test": RNG.uniform(0.5, 1), "forget": RNG.uniform(0.5, 1)} for task in TASKS}
CELLS = [(task, split) for task in TASKS for split in ("test", "forget")]
OURS, THEIRS = dict(zip(FIGURES, RNG.random(4), strict=True)), dict(zip(FIGURES, RNG.random(4), strict=True))

# Of each module: its inputs, an item for each row; settings; and what the pure function makes of the same.
INPUTS = {
    "avg_gap": {"predictions": np.array([*OURS.values()]), "references": [*THEIRS.values()], "figure": FIGURES},
    "jsd": {"predictions": probabilities(50), "references": probabilities(50, 1)},
    "rf_jsd": {"predictions": probabilities(60), "references": LABELS, "is_forget": IS_FORGET},
    "uis": {
        "predictions": np.array([TASKS[task][split] for task, split in CELLS]),
        "references": np.array([BEFORE[task][split] for task, split in CELLS]),
        "task": [task for task, _ in CELLS],
        "split": [split for _, split in CELLS],
    },
    "unlearning_mia": {"predictions": SIGNAL, "references": SETS.tolist()},
}
SETTINGS = {
    "rf_jsd": {"convention": "lotus"},
    "uis": {"targets": ["depth"], "convention": "original", "class_unlearning": True},
    "unlearning_mia": {"signal_name": "loss", "attack": "svc", "seed": 3},
}


def expected(name: str) -> dict:
    if name == "avg_gap":
        return {"avg_gap": metrics.avg_gap(OURS, THEIRS)}
    if name == "jsd":
        return {"jsd": metrics.jsd(*INPUTS["jsd"].values())}
    settings = SETTINGS[name]
    if name == "rf_jsd":
        sides = [part for rows in (IS_FORGET, ~IS_FORGET) for part in (probabilities(60)[rows], LABELS[rows])]
        return {"rf_jsd": metrics.rf_jsd(*sides, **settings), **settings}
    if name == "uis":
        return {**metrics.uis(TASKS, BEFORE, **settings), "convention": "original"}
    found = metrics.mia_attack(*(SIGNAL[split == SETS] for split in ("retain", "unseen", "forget")), **settings)
    scores = {"unlearning_mia": found["score"], "attack_accuracy": found["attack_accuracy"]}
    return {**scores, "signal_name": "loss", "attack": "svc"}


def load(name: str) -> evaluate.Metric:
    return evaluate.load(metrics.path(name))


def as_torch(values):
    return torch.as_tensor(values) if not isinstance(values[0], str) else values


@pytest.mark.parametrize("name", NAMES)
class TestValues:
    """Exactly those of the pure functions, whatever holds the inputs and in however many pieces they come."""

    def test_are_those_of_the_function(self, name):
        metric, inputs, settings = load(name), INPUTS[name], SETTINGS.get(name, {})
        assert metric.name == name
        wanted = expected(name)
        assert metric.compute(**inputs, **settings) == wanted
        assert metric.compute(**{k: as_torch(v) for k, v in inputs.items()}, **settings) == wanted
        assert metric.compute(**{k: np.asarray(v).tolist() for k, v in inputs.items()}, **settings) == wanted

    def test_in_batches(self, name):
        metric, inputs, settings = load(name), INPUTS[name], SETTINGS.get(name, {})
        rows = len(inputs["predictions"])
        for start in range(0, rows, 7):
            metric.add_batch(**{k: as_torch(v)[start : start + 7] for k, v in inputs.items()})
        assert metric.compute(**settings) == expected(name)
        for row in range(rows):
            metric.add(**{k: v[row] for k, v in inputs.items()})
        assert metric.compute(**settings) == expected(name)

    def test_combined(self, name):
        """Beside a metric on the same inputs, and with a setting and a column that only the other one knows."""
        inputs, settings = INPUTS[name], SETTINGS.get(name, {})
        both = evaluate.combine({"ours": load(name), "rows": Rows(load(name).features)})
        results = both.compute(**inputs, **settings, scale=2)
        assert results == {**expected(name), "rows": 2 * len(inputs["predictions"])}
        twice = evaluate.combine([metrics.path(name), metrics.path(name)]).compute(**inputs, **settings)
        assert twice == {f"{name}_{i}_{key}": value for i in (0, 1) for key, value in expected(name).items()}


class Rows(evaluate.Metric):
    """A metric of somebody else."""

    def __init__(self, features: datasets.Features):
        self._features = features
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description="", citation="", features=self._features)

    def _compute(self, predictions, scale, **kwargs):
        return {"rows": scale * len(predictions)}


def run_examples(text: str, name: str) -> None:
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert len(test.examples) > 3
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", NAMES)
class TestFolder:
    def test_examples_are_true(self, name):
        run_examples(load(name).inputs_description, name)
        blocks = re.findall(r"```python\n(.*?)```", Path(metrics.path(name), "README.md").read_text(), re.DOTALL)
        run_examples("\n".join(blocks), f"card of {name}")

    def test_card_and_page(self, name):
        from huggingface_hub import ModelCard

        folder = Path(metrics.path(name))
        assert {path.name for path in folder.iterdir() if path.is_file()} == {
            *("README.md", "app.py", "requirements.txt", f"{name}.py")
        }
        card, metric = ModelCard.load(folder / "README.md", ignore_metadata_errors=False), load(name)
        about = card.data.to_dict()
        assert about["sdk"] == "gradio" and about["app_file"] == "app.py" and about["title"]
        assert {"evaluate", "metric"} <= set(about["tags"]) and about["license"] == "apache-2.0"
        page = (folder / "app.py").read_text()
        compile(page, "app.py", "exec")
        example = eval(re.search(r"^EXAMPLE = (.*?^})", page, re.DOTALL | re.MULTILINE)[1])
        assert metric.compute(**json.loads(json.dumps(example)))[name] > 0
        named = re.findall(r"^[\w-]+", (folder / "requirements.txt").read_text(), re.MULTILINE)
        assert {"evaluate", "numpy", "scipy"} <= set(named)
        assert ("scikit-learn" in named) == (name == "unlearning_mia")
        for column in metric.features:
            assert f"`{column}`" in card.text and f"{column}:" in metric.inputs_description

    def test_space_does_not_name_the_package(self, name, tmp_path):
        folder = write_space(name, f"somebody/{name}", tmp_path / name)
        text = "".join((folder / file).read_text() for file in (f"{name}.py", "README.md", "app.py"))
        assert f'evaluate.load("somebody/{name}")' in text
        assert "import hf_unlearn" not in text and "from hf_unlearn" not in text and "metrics.path" not in text


def without_us(places: dict[str, str], folder: Path, **environment: str) -> dict:
    """What the metrics give that are loaded from these places, in a process where the package is not installed."""
    of = {name: {key: np.asarray(values).tolist() for key, values in INPUTS[name].items()} for name in places}
    inputs = {name: [place, of[name] | SETTINGS.get(name, {})] for name, place in places.items()}
    (folder / "inputs.json").write_text(json.dumps(inputs))
    code = f"""
        import json, sys
        sys.modules["hf_unlearn"] = None
        import evaluate
        found = {{}}
        for name, (place, inputs) in json.load(open("inputs.json")).items():
            found[name] = evaluate.load(place).compute(**inputs)
        try:
            evaluate.load({metrics.path("jsd")!r})
        except ImportError:
            print(json.dumps(found))
    """
    env = {**os.environ, "HF_HOME": str(folder / "cache"), **environment}
    env.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", inspect.cleandoc(code)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_spaces_need_nothing_of_ours(tmp_path):
    places = {name: str(write_space(name, f"somebody/{name}", tmp_path / name)) for name in NAMES}
    assert without_us(places, tmp_path) == {name: expected(name) for name in NAMES}


@pytest.mark.slow
def test_pushed(hub, tmp_path, capsys):
    """Into new Spaces; pushed again, nothing changes; loaded from the Hub, they give the same."""
    names = ("rf_jsd", "unlearning_mia")
    for name in 2 * names:
        assert cli.main(["push-metric", name, f"me/{name}"]) == 0
        assert f'evaluate.load("me/{name}")' in capsys.readouterr().out
        written = write_space(name, f"me/{name}", tmp_path / name)
        files = hub.files(f"me/{name}", kind="spaces")
        assert {path: files[path] for path in files if path != ".gitattributes"} == {
            path.name: path.read_bytes() for path in written.iterdir()
        }
    assert without_us({name: f"me/{name}" for name in names}, tmp_path) == {name: expected(name) for name in names}


class TestErrors:
    def test_unknown_module(self):
        with pytest.raises(UnlearningError, match="no evaluate module 'tow'; expected one of avg_gap, jsd, rf_jsd"):
            metrics.path("tow")

    @pytest.mark.parametrize("repository", ["me/jensen", "rf_jsd", "a/b/rf_jsd"])
    def test_repository_of_another_name(self, repository, capsys):
        with pytest.raises(UnlearningError, match=f"repository is '{repository}'; expected NAMESPACE/rf_jsd, because"):
            push_metric("rf_jsd", repository)
        assert cli.main(["push-metric", "rf_jsd", repository]) == 2
        assert capsys.readouterr().err.startswith(f"error: The repository is '{repository}'")

    def test_the_hub_says_no(self, hub, monkeypatch, capsys):
        command = ["push-metric", "jsd", "me/jsd"]
        for failure, why in ((403, "the token may not write there"), ("drop", "the Hub cannot be reached at")):
            hub.fail(failure)
            assert cli.main(command) == 2
            assert capsys.readouterr().err.startswith(f"error: The metric jsd was not pushed to me/jsd: {why}")
            hub.recover()
        monkeypatch.delenv("HF_TOKEN")
        assert cli.main(command) == 2
        assert "log in" in capsys.readouterr().err
        with pytest.raises(UnlearningError, match="was not pushed to -/jsd: "):
            push_metric("jsd", "-/jsd")

    def test_rows_that_do_not_fit(self):
        with pytest.raises(ValueError, match="expected one row with 'test' and one with 'forget' for each task"):
            load("uis").compute(**{**INPUTS["uis"], "split": ["test", "test", "test", "forget"]}, targets=["depth"])
        with pytest.raises(ValueError, match="expected each name once"):
            load("avg_gap").compute(**{**INPUTS["avg_gap"], "figure": ["mia", *FIGURES[:3]][:3] + ["mia"]})
        with pytest.raises(ValueError, match="has 'test'; expected 'forget', 'retain' or 'unseen'"):
            load("unlearning_mia").compute(predictions=[0.0], references=["test"])
