"""How hard a request is, measured before anything is unlearned: against gradients by hand, and on the command line."""

import json
import math
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn

from hf_unlearn import HamuConfig, LotusConfig, UnlearningArguments, UnlearningError, measure_hardness
from hf_unlearn import commands as cli
from hf_unlearn.commands import sets
from hf_unlearn.methods.hamu import hamu_update
from tests.marks import slow_but
from tests.samples import fitted, images, learnt, same_bits, sentences, weights
from tests.tasks.test_causal_lm import questions
from tests.tiny import tiny_bert, tiny_image_processor, tiny_llama_lm, tiny_resnet, tiny_tokenizer, tiny_vit


def pair(**changes) -> dict:
    data = learnt()
    return {"forget": data["forget"], "retain": data["retain"]} | changes


def by_class(label: int = 0, n: int = 32) -> dict:
    data = images(n, seed=1)
    labels = np.asarray(data["label"])
    return {
        "forget": data.select(np.flatnonzero(labels == label)),
        "retain": data.select(np.flatnonzero(labels != label)),
    }


def gradient(model: nn.Module, data: datasets.Dataset, clip: float = math.inf) -> list[Tensor]:
    """Of the mean loss over all samples, as one batch."""
    pixels, labels = data["pixel_values"][:].to(next(model.parameters()).dtype), data["label"][:]
    loss = F.cross_entropy(model.eval()(pixel_values=pixels).logits, labels)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]
    norm = torch.cat([g.flatten() for g in found]).norm().item()
    return [g * min(1.0, clip / norm) for g in found]


def dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum((x * y).sum().item() for x, y in zip(a, b, strict=True))


class TestFigures:
    @pytest.mark.parametrize("build", slow_but([tiny_vit], [tiny_vit, tiny_resnet]))
    @pytest.mark.parametrize("max_grad_norm", [1.0, 0.01, 0.0])
    @pytest.mark.parametrize("batch_size", [3, 64])
    def test_by_hand(self, build, max_grad_norm, batch_size, tmp_path):
        model, data = fitted(build).double(), pair()
        args = UnlearningArguments(
            str(tmp_path / "out"), per_device_train_batch_size=batch_size, max_grad_norm=max_grad_norm
        )
        report = measure_hardness(model, **data, args=args)
        raw = {name: gradient(model, data[name]) for name in data}
        clipped = [gradient(model, data[name], max_grad_norm or math.inf) for name in ("retain", "forget")]
        _, expected = hamu_update(*clipped, lr=1.0, ratio=0.3, quota_scale="relative", on_infeasible="cap")
        for name in ("kappa", "cosine", "slack", "reachable", "asked", "predicted_forget", "predicted_retain"):
            assert getattr(report.hardness, name) == pytest.approx(getattr(expected, name), rel=1e-9), name
        assert report.hardness.branches == expected.branches
        assert report.forget_norm == pytest.approx(math.sqrt(dot(raw["forget"], raw["forget"])), rel=1e-10)
        assert report.retain_norm == pytest.approx(math.sqrt(dot(raw["retain"], raw["retain"])), rel=1e-10)
        assert report.kappa_unclipped == pytest.approx(dot(raw["retain"], raw["forget"]), rel=1e-9)
        assert report.cosine_unclipped == pytest.approx(report.hardness.cosine, rel=1e-9)
        assert (report.forget_size, report.retain_size) == (8, 24)
        assert report.parameters == sum(p.numel() for p in model.parameters())
        assert report.paper_times == pytest.approx(0.5 / expected.reachable)
        assert not (tmp_path / "out").exists() and args.output_dir == str(tmp_path / "out") and args.measure

    @pytest.mark.parametrize("block", ["tensor", "module", "global"])
    def test_conflicts(self, block):
        model, data = fitted().double(), pair()
        report = measure_hardness(model, **data, method=HamuConfig(block=block))
        retain, forget = (gradient(model, data[name]) for name in ("retain", "forget"))
        groups: dict[str, list[int]] = {}
        for i, (name, _) in enumerate(model.named_parameters()):
            groups.setdefault({"tensor": name, "module": name.rpartition(".")[0], "global": "all"}[block], []).append(
                i
            )
        products = {}
        for name, group in groups.items():
            r, f = ([g[i] for i in group] for g in (retain, forget))
            products[name] = dot(r, f), math.sqrt(dot(r, r) * dot(f, f))
        total = sum(reach for _, reach in products.values())
        top = sorted((name for name in products if products[name][0] > 0), key=lambda name: -products[name][0])[:10]
        assert [conflict.name for conflict in report.conflicts] == top and len(top) == (1 if block == "global" else 10)
        for conflict in report.conflicts:
            kappa, reach = products[conflict.name]
            assert conflict.cosine == pytest.approx(kappa / reach, rel=1e-9)
            assert conflict.share == pytest.approx(reach / total, rel=1e-9)

    def test_same_sets(self):
        forget = learnt()["forget"]
        report = measure_hardness(fitted(), forget=forget, retain=forget, overlap="allow")
        assert report.hardness.unavoidable and report.level == "hard" and report.free == pytest.approx(0, abs=1e-6)
        assert report.hardness.hardness01 == pytest.approx(1, abs=1e-6)
        assert ": hard; " in report.summary() and "Damage is unavoidable: every step" in report.summary()
        assert "move those that say the same" in report.summary()
        with pytest.raises(UnlearningError, match="8 of the 8 forget samples stand in retain too"):
            measure_hardness(fitted(), forget=forget, retain=forget)

    def test_easy(self):
        """A class that no retained sample is of: the head pulls both ways."""
        report = measure_hardness(fitted(), **by_class())
        assert report.level == "easy" and report.hardness.cosine < 0 and not report.hardness.unavoidable
        assert report.free > 0.9 and "Damage is avoidable at ratio 0.3 of what is reachable" in report.summary()
        assert "improve both sides" in report.summary() and "plain losses" not in report.summary()

    def test_what_it_does_not_look_at(self):
        report = measure_hardness(fitted(), **pair(), method=HamuConfig(radius="unit"))
        assert "radius='unit' changes what a run does, and none of these figures" in report.summary()

    def test_in_between(self):
        report = measure_hardness(fitted(), **pair())
        assert report.level == "in between" and 'end before there is damage with stop="stop"' in report.summary()

    def test_paper_on_a_fitted_model(self):
        report = measure_hardness(fitted(), **pair(), method=HamuConfig.paper())
        assert report.hardness.infeasible and not report.hardness.unavoidable
        assert f"ratio 0.5 asks {report.paper_times:.3g} times what is reachable" in report.summary()
        assert report.hardness.c == pytest.approx(report.paper_times) and report.paper_times > 10

    def test_variant_u(self):
        report = measure_hardness(fitted(), **by_class(), method=HamuConfig(variant="u"))
        assert "gain that much retaining at no cost to the forget side" in report.summary()
        assert report.hardness.predicted_retain < 0

    def test_nothing_reachable(self):
        """Where logits do not depend on weights, nothing does."""
        model = fitted()
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor([1e4, 0.0, 0.0, 0.0]))
        ones = images(16).filter(lambda row: int(row["label"]) == 0)
        report = measure_hardness(model, forget=ones.select([0, 1]), retain=ones.select([2, 3]))
        assert report.paper_times is None and report.free == 0 and "Nothing is reachable" in report.summary()
        json.dumps(report.to_dict(), allow_nan=False)

    def test_to_dict(self, tmp_path):
        report = measure_hardness(fitted(), **pair())
        report.save(tmp_path / "report.json")
        found = json.loads((tmp_path / "report.json").read_text())
        assert found == json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert found["hardness"]["hardness01"] == report.hardness.hardness01
        assert found["hardness"]["branches"].keys() == report.hardness.branches.keys()
        assert found["config"]["ratio"] == 0.3 and found["level"] == report.level
        assert found["conflicts"][0].keys() == {"name", "cosine", "share"}
        with pytest.raises(UnlearningError, match="The figures cannot be written to .*: No such file"):
            report.save(tmp_path / "nowhere" / "report.json")

    def test_tokens_of_a_language_model(self):
        """Every token of a set counts the same, in each set by itself."""
        model, tokenizer = tiny_llama_lm().double(), tiny_tokenizer()
        data = {"forget": questions(5), "retain": questions(12, seed=1)}
        args = UnlearningArguments(per_device_train_batch_size=4)
        report = measure_hardness(model, **data, processing_class=tokenizer, peft_config=False, args=args)
        norms = {}
        for name, rows in data.items():
            total, count = 0.0, 0
            for row in rows:
                ids = tokenizer(row["prompt"] + row["completion"], return_tensors="pt")["input_ids"]
                start = len(tokenizer(row["prompt"])["input_ids"]) - 1
                logits = model(input_ids=ids).logits[0, start - 1 : -1]
                total, count = total + F.cross_entropy(logits, ids[0, start:], reduction="sum"), count + len(logits)
            found = torch.autograd.grad(total / count, list(model.parameters()))
            norms[name] = math.sqrt(dot(found, found))
        assert report.forget_norm == pytest.approx(norms["forget"], rel=1e-9)
        assert report.retain_norm == pytest.approx(norms["retain"], rel=1e-9)


def state(model: nn.Module) -> list:
    about = [(name, p.requires_grad, p.grad is None, p.device) for name, p in model.named_parameters()]
    return about + [(name, type(module), module.training) for name, module in model.named_modules()]


class TestLeavesTheModelAlone:
    @pytest.mark.parametrize("build", [tiny_vit, tiny_resnet])
    @pytest.mark.parametrize("training", [True, False])
    def test_weights_and_modes(self, build, training):
        model = fitted(build).train(training)
        next(model.parameters()).requires_grad = False
        next(iter(model.children())).train(not training)  # of a mixed mode
        before, bits = state(model), weights(model)
        measure_hardness(model, **pair())
        assert state(model) == before and same_bits(weights(model), bits)
        assert "peft_config" not in vars(model)

    @pytest.mark.parametrize("training", [True, False])
    def test_new_adapter(self, training):
        model = tiny_llama_lm().train(training)
        model.lm_head.weight.requires_grad = False
        before, bits = state(model), weights(model)
        data = {"forget": questions(4), "retain": questions(9, seed=1), "processing_class": tiny_tokenizer()}
        report = measure_hardness(model, **data)
        assert state(model) == before and same_bits(weights(model), bits) and not hasattr(model, "peft_config")
        assert all(".unlearn.weight" in conflict.name for conflict in report.conflicts)
        assert report.parameters < sum(p.numel() for p in model.parameters())
        assert measure_hardness(model, **data) == report  # the same draw of the adapter, nothing left behind

    def test_adapter_on_top_of_another(self):
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(fitted(), config, adapter_name="own")
        before, bits = state(model), weights(model)
        pixels = images(4)["pixel_values"][:]
        logits = model(pixel_values=pixels).logits
        measure_hardness(model, **pair(), peft_config=LoraConfig(r=2, target_modules="all-linear"))
        assert state(model) == before and same_bits(weights(model), bits)
        assert list(model.peft_config) == ["own"] and model.active_adapters == ["own"]
        assert torch.equal(model(pixel_values=pixels).logits, logits)

    def test_after_an_error(self):
        model = tiny_llama_lm()
        before, bits = state(model), weights(model)
        args = UnlearningArguments(optim="adamw_torch")
        with pytest.raises(UnlearningError, match="expected plain SGD"):
            measure_hardness(
                model, forget=questions(4), retain=questions(9, seed=1), processing_class=tiny_tokenizer(), args=args
            )
        assert state(model) == before and same_bits(weights(model), bits)

    def test_a_folder(self, tmp_path):
        fitted().save_pretrained(tmp_path)
        report, expected = (measure_hardness(model, **pair()) for model in (str(tmp_path), fitted()))
        assert report == expected


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"method": "hamu"}, "method is 'hamu'; expected a HamuConfig"),
            ({"method": LotusConfig()}, "method is LotusConfig.*; expected a HamuConfig"),
            ({"args": {}}, "args is a dict; expected UnlearningArguments"),
            ({"forget": images(4).select([])}, "The forget set is empty"),
            ({"retain": None}, "hamu needs samples to keep"),
            ({"retain": images(8, num_labels=9)}, "samples of retain have labels the model does not have"),
            ({"overlap": "no"}, 'overlap is \'no\'; expected "error" or "allow"'),
        ],
    )
    def test_bad_input(self, changes, message):
        with pytest.raises(UnlearningError, match=message) as caught:
            measure_hardness(fitted(), **pair() | changes)
        assert "\n" not in str(caught.value)

    def test_nan(self):
        model = fitted()
        nn.init.constant_(model.classifier.weight, float("nan"))
        with pytest.raises(UnlearningError, match="The gradient of the retain samples is NaN or infinite"):
            measure_hardness(model, **pair())


# ---------------------------------------------------------------------------------------------------------------------
# The command line


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("hardness"), np.random.default_rng(0)
    built = {
        "vit": (tiny_vit(), tiny_image_processor()),
        "bert": (tiny_bert(), tiny_tokenizer()),
        "llama": (tiny_llama_lm(), tiny_tokenizer()),
    }
    for name, (model, processing) in built.items():
        model.save_pretrained(folder / name)
        processing.save_pretrained(folder / name)
    for split, size in (("train", 16), ("test", 8)):
        for i in range(size):
            path = folder / "images" / split / f"class-{i % 4}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    sentences(12).to_csv(folder / "forget.csv")
    sentences(20, seed=1).to_parquet(folder / "retain.parquet")
    questions(15).to_json(folder / "questions.jsonl")
    return folder


def hardness(files: Path, model: str, forget: str, retain: str, *more: str) -> int:
    names = (f"{files}/{name}" for name in (model, forget, retain))
    return cli.main(["hardness", next(names), "--forget", next(names), "--retain", next(names), *more])


class TestCommand:
    def test_images(self, files, tmp_path, capsys):
        more = ["--batch-size", "4", "--json", str(tmp_path / "out.json"), "--ratio", "0.3", "--block", "module"]
        assert hardness(files, "vit", "images:test", "images:train[:50%]", *more) == 0
        out, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
        assert f"Hardness {found['hardness']['hardness01']:.3f}" in out
        assert "over 8 forget and 8 retained samples" in out and "at ratio 0.3 of what is reachable" in out
        assert found["config"]["block"] == "module" and found["hardness"]["c"] == pytest.approx(0.3)

    def test_texts(self, files, capsys):
        more = ["--max-samples", "7", "--variant", "u", "--absolute"]
        assert hardness(files, "bert", "forget.csv", "retain.parquet", *more) == 0
        out = capsys.readouterr().out
        assert "over 7 forget and 7 retained samples" in out and "ratio 0.5" in out

    def test_language_model(self, files, tmp_path, capsys):
        where = str(tmp_path / "out.json")
        given = ["llama", "questions.jsonl:train[:5]", "questions.jsonl:train[5:]", "--json", where]
        assert hardness(files, *given) == 0
        assert "over 5 forget and 10 retained samples" in capsys.readouterr().out
        data = {"forget": questions(15).select(range(5)), "retain": questions(15).select(range(5, 15))}
        report = measure_hardness(f"{files}/llama", **data)
        assert json.loads(Path(where).read_text()) == json.loads(json.dumps(report.to_dict()))

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (
                ["vit", "images", "images:train"],
                "forget is '.*images', which has the splits .*; say which one, as in .*:t",
            ),
            (["vit", "images:tset", "images:train"], "forget is 'tset'; the dataset has "),
            (["vit", "nowhere.csv", "images:train"], "The dataset '.*nowhere.csv' cannot be loaded"),
            (["vit", "images:test", "images:test"], "forget samples stand in retain too"),
            (["vit", "images:test", "images:train", "--ratio", "2"], "hamu: ratio is 2.0; expected a share"),
            (["vit", "images:test", "images:train", "--batch-size", "0"], "--batch-size is 0; expected 1 or more"),
            (["vit", "images:test", "images:train", "--label-column", "x"], "no label column 'x'"),
            (["nowhere", "images:test", "images:train"], "nowhere"),
        ],
    )
    def test_mistakes(self, files, argv, message, capsys):
        assert hardness(files, *argv) == 2
        captured = capsys.readouterr()
        error = captured.err.strip().splitlines()[-1]
        assert error.startswith("error: ") and captured.out == ""
        assert re.search(message, error), error

    def test_json_that_cannot_be_written(self, files, tmp_path, capsys):
        where = str(tmp_path / "none" / "out.json")
        assert hardness(files, "vit", "images:test", "images:train", "--json", where) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and "expected a file in a folder that can be written to" in captured.err


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("FILE", 15),
        ("FILE:train", 15),
        ("FILE:train[:3]", 3),
        ("FILE:train[80%:]", 3),
        ("FILE:train[:2]+train[3:5]", 4),
    ],
)
def test_sets_are_named(files, text, rows):
    assert len(sets.read_set(text.replace("FILE", f"{files}/questions.jsonl"), "forget")) == rows


def test_a_file_with_a_colon_in_its_name(files, tmp_path):
    path = tmp_path / "a:b.jsonl"
    path.write_bytes((files / "questions.jsonl").read_bytes())
    assert len(sets.read_set(str(path), "forget")) == 15
    assert len(sets.read_set(f"{files}/questions.jsonl", "forget")) == 15
