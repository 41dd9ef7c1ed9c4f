"""The public names, `unlearn()` from and to folders, comparison with a retrained model, and logging to trackio."""

import functools
import html
import importlib
import inspect
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerCallback

import hf_unlearn
from hf_unlearn import UnlearningError, UnlearningTrainer, split_dataset, unlearn
from hf_unlearn.methods import LotusConfig
from tests.marks import slow_but
from tests.samples import arguments, fitted, for_trainer, images, learnt, pictures, request, same_bits, weights
from tests.tiny import tiny_bert, tiny_image_processor, tiny_resnet, tiny_vit

ROOT = Path(__file__).parents[1]
# What stays importable from where it is, with the names of arguments that stay.
PROMISED = {
    "split_dataset": "dataset indices labels where fraction seed",
    "list_methods": "filter task",
    "get_method": "name",
    "audit": "original unlearned forget retain unseen test retrained reference processing_class level seed batch_size",
    "methods.lotus.temperature": "forget_accuracy unseen_accuracy alpha",
    "methods.lotus.targets": "teacher_logits is_forget tau noise",
    "methods.hamu.hamu_update": "retain_grads forget_grads lr ratio variant groups on_infeasible",
    "methods.local_teacher.similarity": "features forget_features",
    "methods.local_teacher.truncate_targets": "probabilities top",
    "methods.multitask.project_out": "gradient protected",
    "surgery.damp.forget_directions": "forget_means retain_means span",
    "surgery.damp.remove_directions": "weight directions alpha",
    "surgery.damp.depth_coefficient": "probe_accuracy stage stages",
    "surgery.ssd.dampen": "weight importance_forget importance_full alpha lam",
    "surgery.damp_edit": "model forget_loader retain_loader",
    "surgery.ssd_edit": "model forget_loader retain_loader",
    "metrics.jsd": "p q",
    "metrics.rf_jsd": "forget_probs forget_labels unseen_probs unseen_labels convention missing",
    "metrics.uis": "unlearned reference targets convention class_unlearning",
    "metrics.truth_ratio": "paraphrased perturbed",
    "metrics.forget_quality": "unlearned retrained",
    "metrics.rouge_l": "",
    "metrics.extraction_strength": "",
    "metrics.exact_memorisation": "",
    "metrics.model_utility": "",
    "metrics.privleak": "",
    "metrics.path": "name",
    "hub.push": "",
    "hub.rollback": "",
    "hub.purge": "",
    "hub.verify": "",
}


def run_python(code: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", inspect.cleandoc(code)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class TestNames:
    def test_every_public_name_is_there(self):
        fixed = {
            *("UnlearningArguments", "UnlearningError", "UnlearningResult", "UnlearningTrainer"),
            *("get_method", "list_methods", "split_dataset", "unlearn"),
        }
        assert fixed <= set(hf_unlearn.__all__) <= set(dir(hf_unlearn))
        for name in hf_unlearn.__all__:
            assert getattr(hf_unlearn, name).__name__ == name
            assert inspect.getdoc(getattr(hf_unlearn, name)), name
        with pytest.raises(AttributeError, match="module 'hf_unlearn' has no attribute 'relearn'"):
            _ = hf_unlearn.relearn

    def test_type_checkers_see_the_same_names(self):
        """The imports under TYPE_CHECKING, which nothing executes."""
        source = Path(hf_unlearn.__file__).read_text().split("if TYPE_CHECKING:")[1].split("def ")[0]
        namespace = {"__name__": "hf_unlearn", "__package__": "hf_unlearn"}
        exec(inspect.cleandoc(source), namespace)
        assert {name: namespace[name] for name in hf_unlearn.__all__} == {
            name: getattr(hf_unlearn, name) for name in hf_unlearn.__all__
        }

    @pytest.mark.parametrize("name", PROMISED)
    def test_promised_names(self, name):
        """As attributes of the package, and from the module that the promise names."""
        module, _, last = f"hf_unlearn.{name}".rpartition(".")
        found = getattr(importlib.import_module(module), last)
        assert callable(found) and inspect.getdoc(found)
        assert functools.reduce(getattr, name.split("."), hf_unlearn) is found

    @pytest.mark.slow
    def test_promised_attributes_need_no_import(self):
        """In a new process, where nothing has imported the modules yet."""
        run_python(f"""
            import functools, hf_unlearn
            for name in {PROMISED}:
                functools.reduce(getattr, name.split("."), hf_unlearn)
        """)

    def test_promised_arguments(self):
        for name, promised in PROMISED.items():
            given = inspect.signature(functools.reduce(getattr, name.split("."), hf_unlearn)).parameters
            assert set(promised.split()) <= set(given), name
        for name in ("metrics", "runtime", "audit", "compare", "save", "push_to_hub"):
            assert name in dir(hf_unlearn.UnlearningResult) or name in hf_unlearn.UnlearningResult.__dataclass_fields__

    def test_arguments_of_unlearn(self):
        names = ["model", "forget", "retain", "unseen", "test", "method", "args", "processing_class", "data_collator"]
        names += ["peft_config", "base_model", "overlap", "callbacks"]
        parameters = inspect.signature(unlearn).parameters
        assert set(names) <= set(parameters) and next(iter(parameters)) == "model"
        assert all(p.kind == p.KEYWORD_ONLY for name, p in parameters.items() if name != "model")
        documented = inspect.getdoc(unlearn).split("Args:")[1].split("Example:")[0]
        assert all(f"{name}: " in documented for name in names if name not in ("data_collator", "callbacks"))

    @pytest.mark.parametrize(
        "name",
        [
            *("unlearn", "measure_hardness", "audit", "UnlearningTrainer.__init__", "UnlearningTrainer.push_to_hub"),
            "choose",
            *(f"UnlearningResult.{name}" for name in ("compare", "audit", "save", "push_to_hub")),
            *(f"hub.{name}" for name in ("prepare", "make_receipt", "push", "tag", "rollback", "purge_plan", "purge")),
            *(f"hub.{name}" for name in ("list_revisions", "verify", "prove", "check_inclusion", "evaluate_earlier")),
        ],
    )
    def test_every_argument_has_a_type(self, name):
        function = inspect.unwrap(functools.reduce(getattr, name.split("."), hf_unlearn))
        parameters, types = inspect.signature(function).parameters.values(), typing.get_type_hints(function)
        named = {p.name for p in parameters if p.kind != p.VAR_KEYWORD} - {"self"}
        assert {argument for argument in named if types.get(argument, typing.Any) is typing.Any} == set()

    def test_import_is_quick_and_light(self):
        code = """
            import time
            started = time.perf_counter()
            import hf_unlearn
            dir(hf_unlearn)
            seconds = time.perf_counter() - started
            import sys
            heavy = sorted({"torch", "transformers", "datasets", "numpy", "peft", "sklearn"} & set(sys.modules))
            print(seconds, *heavy)
        """
        seconds, *heavy = run_python(code).split()
        assert not heavy and float(seconds) < 0.3


class TestUnlearn:
    @pytest.mark.parametrize("build", slow_but([tiny_vit], [tiny_vit, tiny_resnet]))
    def test_from_a_folder_to_a_folder(self, tmp_path, build):
        """A local folder goes in with its processor, the saved result comes out bit for bit, and holds no pickle."""
        build().save_pretrained(tmp_path / "model")
        tiny_image_processor().save_pretrained(tmp_path / "model")
        data, args = request(pictures), arguments(tmp_path / "out", save_strategy="epoch")
        result = unlearn(str(tmp_path / "model"), **data, method="finetune", args=args)
        assert not same_bits(weights(result.model), weights(build()))
        assert result.trainer.origin is None
        folder = result.save(tmp_path / "saved")

        loaded = AutoModelForImageClassification.from_pretrained(folder)
        assert same_bits(weights(loaded), weights(result.model))
        processor = AutoImageProcessor.from_pretrained(folder)
        pixels = processor([row["image"] for row in data["forget"]], return_tensors="pt")["pixel_values"]
        result.model.eval()
        with torch.no_grad():
            assert torch.allclose(
                loaded(pixel_values=pixels).logits, result.model(pixel_values=pixels).logits, atol=1e-6
            )

        names = {path.name for path in folder.rglob("*")}
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= names
        assert {"unlearning_config.json", "metrics.json"} <= names
        assert all(path.suffix in (".json", ".safetensors", ".md") for path in folder.rglob("*") if path.is_file())
        assert not list(tmp_path.rglob("training_args.bin"))
        assert json.loads((folder / "unlearning_config.json").read_text())["method"] == "finetune"
        saved = json.loads((folder / "metrics.json").read_text())
        assert saved.pop("run")["request"]["samples"] == {"forget": 8, "retain": 24, "unseen": 16}
        assert saved == {**result.metrics, "runtime": result.runtime, "notes": [], "report": {}}
        everything = b"".join(path.read_bytes() for path in folder.rglob("*.json"))
        assert str(tmp_path).encode() not in everything  # no local path

    def test_a_model_with_a_request_split_off_its_data(self, tmp_path):
        parts = split_dataset(images(32), labels=2, fraction=0.5)
        result = unlearn(tiny_vit(), **parts, unseen=images(16, seed=3), args=arguments(tmp_path))
        assert len(parts["forget"]) == 4 and not result.trainer.request.is_class
        said = result.summary().splitlines()
        assert said[0].split() == ["original", "unlearned"] and max(map(len, said[:4])) <= 80

    def test_default_output_folder_is_named_after_the_method(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        trainer = UnlearningTrainer(tiny_vit(), method="finetune", **for_trainer(request()))
        assert trainer.args.output_dir == "unlearned-finetune"

    def test_in_place_with_the_original_kept(self, tmp_path):
        model = fitted()
        before = weights(model)
        result = unlearn(model, **learnt(), args=arguments(tmp_path, learning_rate=3e-3))
        assert result.model is model and not same_bits(before, weights(model))
        with result.trainer.original_model() as original:
            assert same_bits(before, weights(original))

    def test_test_set_is_the_evidence(self, tmp_path):
        """With `test=`, all unseen samples may steer, and only the test set is measured."""
        data = request() | {"test": images(12, seed=30)}
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), **for_trainer(data))
        assert {split: (name, len(rows)) for split, (name, rows) in trainer.indices.items()} == {
            "forget": ("forget", 8),
            "retain": ("retain", 24),
            "control": ("unseen", 16),
            "evidence": ("test", 12),
        }
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), **for_trainer(request()))
        (a, control), (b, evidence) = trainer.indices["control"], trainer.indices["evidence"]
        assert a == b == "unseen" and sorted([*control, *evidence]) == list(range(16))

    def test_retained_samples_that_are_measured(self, tmp_path):
        def chosen(**changes):
            trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path, **changes), **for_trainer(request()))
            return trainer.indices["retain"][1].tolist()

        assert chosen() == list(range(24))
        assert len(set(chosen(retain_eval_size=7))) == 7 and chosen(retain_eval_size=7) == chosen(retain_eval_size=7)
        assert chosen(retain_eval_size=7) != chosen(retain_eval_size=7, seed=1)

    def test_runtime(self, tmp_path):
        runtime = unlearn(tiny_vit(), **request(), method="finetune", args=arguments(tmp_path)).runtime
        assert 0 < runtime["prepare"] < runtime["unlearn"] < runtime["total"]

    def test_unmeasured(self, tmp_path):
        result = unlearn(tiny_vit(), **request(), method="finetune", args=arguments(tmp_path, measure=False))
        assert result.metrics == {}
        for figures in (result.summary, lambda: result.compare(tiny_vit())):
            with pytest.raises(UnlearningError, match="Nothing was measured, because of measure=False"):
                figures()
        result.save(tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "metrics.json").read_text())
        assert saved.pop("run")["method"]["name"] == "finetune"
        assert saved == {"runtime": result.runtime, "notes": [], "report": {}}

    def test_losses_and_metrics_are_logged(self, tmp_path):
        class Watch(TrainerCallback):
            def __init__(self):
                self.logged = []

            def on_log(self, args, state, control, logs=None, **kwargs):
                self.logged.append((state.global_step, logs))

        watch = Watch()
        args = arguments(tmp_path, logging_strategy="epoch", eval_strategy="epoch")
        method = LotusConfig(alpha=8)
        result = unlearn(fitted(), **learnt(), method=method, callbacks=[watch], args=args)
        evaluated = {step: logs for step, logs in watch.logged if "eval_forget_accuracy" in logs}
        assert list(evaluated) == [0, 2, 4]
        assert evaluated[0]["eval_forget_accuracy"] == result.metrics["before"]["forget_accuracy"]
        assert evaluated[4]["eval_forget_accuracy"] == result.metrics["after"]["forget_accuracy"]
        assert {step for step, logs in watch.logged if "loss" in logs and "lotus_tau" in logs} == {2, 4}


class TestCompare:
    def test_a_model_with_itself(self, tmp_path):
        args = arguments(tmp_path)
        result = unlearn(fitted(), **learnt(), method="retrain", base_model="scratch", args=args)
        rows = result.compare(result.model)
        assert list(rows) == ["original", "unlearned", "retrained"]
        for name in ("unlearned", "retrained"):
            assert rows[name]["jsd"] == rows[name]["activation_distance"] == rows[name]["avg_gap"] == 0
            assert rows[name]["tow"] == 1
        assert rows["original"]["jsd"] > 0.01 and rows["original"]["avg_gap"] > 0.1
        assert {name: rows["unlearned"][name] for name in result.metrics["after"]} == result.metrics["after"]
        assert {name: rows["original"][name] for name in result.metrics["before"]} == result.metrics["before"]

    def test_a_folder(self, tmp_path):
        result = unlearn(fitted(), **learnt(), method="finetune", args=arguments(tmp_path / "out"))
        tiny_vit(seed=5).save_pretrained(tmp_path / "retrained")
        rows = result.compare(tmp_path / "retrained")
        assert rows == result.compare(str(tmp_path / "retrained")) == result.compare(tiny_vit(seed=5))
        lines = str(rows).splitlines()
        assert lines[0].split() == list(rows) and len(lines) > 5 and max(map(len, lines)) <= 80
        with pytest.raises(UnlearningError, match="retrained is a int; expected a model, a Hub id or a local folder"):
            result.compare(3)
        for other, words in (
            (tiny_vit(num_labels=7), "a head of 4 classes and retrained one of 7"),
            (tiny_bert(), "retrained for text"),
        ):
            with pytest.raises(UnlearningError, match=words):
                result.compare(other)

    def test_distances_by_hand(self, tmp_path):
        from hf_unlearn.metrics import jsd

        result = unlearn(fitted(), **learnt(), args=arguments(tmp_path, learning_rate=3e-3))
        other = tiny_vit(seed=5)
        pixels = learnt()["forget"]["pixel_values"][:]
        p, q = (
            m.eval()(pixel_values=pixels).logits.detach().double().softmax(-1).numpy() for m in (result.model, other)
        )
        row = result.compare(other)["unlearned"]
        assert row["jsd"] == pytest.approx(jsd(p, q), rel=1e-5)
        assert row["activation_distance"] == pytest.approx(((p - q) ** 2).sum(axis=1).__pow__(0.5).mean(), rel=1e-5)

    def test_without_unseen_samples(self, tmp_path):
        data = learnt() | {"unseen": None}
        result = unlearn(fitted(), **data, method="finetune", args=arguments(tmp_path))
        rows = result.compare(tiny_vit())
        assert all(row["avg_gap"] is None and row["tow"] is None for row in rows.values())
        assert rows["unlearned"]["jsd"] > 0 and rows["retrained"]["jsd"] == 0


@pytest.mark.slow
def test_trackio(tmp_path):
    """A real local store, read back."""
    code = f"""
        from hf_unlearn import unlearn
        from tests.samples import arguments, fitted, learnt
        folder = {str(tmp_path / "out")!r}
        args = arguments(
            folder, report_to="trackio", project="forgetting", run_name="request-42",
            logging_strategy="steps", logging_steps=1, eval_strategy="epoch",
        )
        result = unlearn(fitted(), **learnt(), method="finetune", args=args)
        import json
        from trackio.sqlite_storage import SQLiteStorage
        assert SQLiteStorage.get_projects() == ["forgetting"], SQLiteStorage.get_projects()
        print(json.dumps([result.metrics, SQLiteStorage.get_logs("forgetting", "request-42")], default=str))
    """
    store = tmp_path / "store"
    output = run_python(code, TRACKIO_DIR=str(store), HF_HUB_OFFLINE="1")
    metrics, logs = json.loads(output.splitlines()[-1])
    assert list(store.glob("*.db"))
    evaluated = {entry["train/global_step"]: entry for entry in logs if "eval/forget_accuracy" in entry}
    assert list(evaluated) == [0, 3, 6]
    assert evaluated[0]["eval/forget_accuracy"] == metrics["before"]["forget_accuracy"] == 1
    assert evaluated[6]["eval/retain_accuracy"] == metrics["after"]["retain_accuracy"]
    assert sum("train/loss" in entry for entry in logs) == 6


def test_results_are_a_line_and_a_summary_in_a_notebook(tmp_path):
    result = unlearn(fitted(), **learnt(), method="finetune", args=arguments(tmp_path, num_train_epochs=1))
    report = result.audit()
    assert repr(result).startswith("UnlearningResult(finetune, forget acc. ") and "\n" not in repr(result)
    assert report.verdict.outcome != "no evidence"
    assert repr(report) == f"AuditReport({report.verdict.headline} What now: {report.next_step})"
    for one in (result, report):
        assert html.unescape(one._repr_html_()) == f"<pre>{one.summary()}</pre>"
