"""DAMP and SSD as methods of `unlearn()`: saved, measured, in two processes, as an adapter, from a recipe, interrupted."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification, CLIPConfig, CLIPForImageClassification, PreTrainedModel

from hf_unlearn import DampConfig, UnlearningError, UnlearningTrainer, split_dataset, unlearn
from hf_unlearn.commands import main
from hf_unlearn.models.load import load_model
from hf_unlearn.models.weights import weights_digest
from hf_unlearn.surgery import damp_edit, find_plan, ssd_edit
from hf_unlearn.surgery.ssd import SsdConfig
from tests.marks import slow_but
from tests.runs import launch
from tests.samples import arguments, for_trainer, images, pictures, same_bits, sentences, weights
from tests.tiny import tiny_bert, tiny_gpt2_classifier, tiny_image_processor, tiny_resnet, tiny_tokenizer, tiny_vit

METHODS = {"damp": DampConfig(), "ssd": SsdConfig(alpha=1.5, lam=0.3)}
EDITS = {"damp": damp_edit, "ssd": ssd_edit}
OTHERS = [1, 2, 3]


def a_class(label: int = 0) -> dict[str, datasets.Dataset]:
    """All samples of one class are to be forgotten."""
    return {**split_dataset(images(96), labels=label), "unseen": images(48, seed=3)}


def knowing(build: Callable[[], PreTrainedModel] = tiny_vit) -> PreTrainedModel:
    """A model that has learnt all four classes."""
    model = build()
    model.load_state_dict(_known(build))
    return model.eval()


@functools.cache
def _known(build: Callable[[], PreTrainedModel]) -> dict[str, torch.Tensor]:
    model, samples = build(), images(96)
    pixels, labels = samples["pixel_values"][:], samples["label"][:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(30):
        torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def accuracy(model: torch.nn.Module, classes: list[int]) -> float:
    """On samples that nothing was trained on."""
    samples = images(96, seed=5)
    labels = samples["label"][:]
    with torch.no_grad():
        right = model(pixel_values=samples["pixel_values"][:]).logits.argmax(1) == labels
    return right[torch.isin(labels, torch.tensor(classes))].float().mean().item()


def changed(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("build", slow_but([tiny_vit], [tiny_vit, tiny_resnet]))
@pytest.mark.parametrize("method", METHODS)
def test_a_class_is_forgotten(tmp_path: Path, method: str, build: Callable[[], PreTrainedModel]):
    model = knowing(build)
    before = {classes: accuracy(model, list(classes)) for classes in ((0,), (1, 2, 3))}
    assert before[(0,)] == before[(1, 2, 3)] == 1
    result = unlearn(model, **a_class(), method=METHODS[method], args=arguments(tmp_path / "run"))
    forgotten, kept = accuracy(result.model, [0]), accuracy(result.model, OTHERS)
    if method == "damp":
        assert forgotten == 0 and kept >= 0.95
    elif build is tiny_vit:
        assert forgotten < 0.6 < 0.8 < kept
    else:  # its loss on the class is lower than on the others, so little is dampened and nothing forgotten
        assert result.trainer.method.report["dampened"] > 0
        assert not same_bits(weights(result.model), weights(knowing(build)))
    assert result.metrics["before"]["forget_accuracy"] == 1
    assert result.metrics["after"]["forget_accuracy"] == pytest.approx(accuracy_of(result, "forget"))
    assert 0 < result.runtime["unlearn"] <= result.runtime["total"]

    folder = result.save(tmp_path / "saved")
    assert same_bits(weights(AutoModelForImageClassification.from_pretrained(folder)), weights(result.model))
    saved = json.loads((folder / "metrics.json").read_text())
    assert saved["report"] == result.trainer.method.report != {}
    assert saved["notes"] == result.trainer.method.notes
    assert json.loads((folder / "unlearning_config.json").read_text())["method"] == method
    with result.trainer.original_model() as original:
        assert same_bits(weights(original), weights(knowing(build)))


def accuracy_of(result: Any, split: str) -> float:
    name, indices = result.trainer.indices[split]
    return result.trainer.evaluator.accuracy(result.model, name, indices)


@pytest.mark.parametrize("method", METHODS)
def test_as_a_function(tmp_path: Path, method: str):
    """With a plain loader, batches of other sizes, without the Trainer: the same edit."""
    data = a_class()
    result = unlearn(knowing(), **data, method=METHODS[method], args=arguments(tmp_path, per_device_eval_batch_size=7))
    model = knowing()
    report = EDITS[method](model, *loaders(data), config=METHODS[method])
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, result.model.state_dict()[name], rtol=1e-5, atol=1e-6), name
    assert json.loads(json.dumps(report)) == report
    assert report.keys() == result.trainer.method.report.keys()


def test_damp_changes_what_it_says(tmp_path: Path):
    model = knowing()
    before = weights(model)
    trainer = UnlearningTrainer(model, arguments(tmp_path), method=DampConfig(span="linear"), **for_trainer(a_class()))
    trainer.train()
    read = {f"{name}.weight" for row in trainer.method.report["readings"] for name in row["operators"]}
    assert changed(model, before) == read  # no bias, no norm


def loaders(data: dict[str, datasets.Dataset]) -> list[DataLoader]:
    """Plain loaders of the samples to forget and of the retained ones."""
    parts = [
        data[name].map(lambda row: {"labels": row["label"]}, remove_columns="label") for name in ("forget", "retain")
    ]
    return [DataLoader(part, 32) for part in parts]


@pytest.mark.slow
def test_the_head_overshoots():
    """Where even α = 1 leaves the class in front, its coefficient is raised, and retained classes do not notice."""
    reports, forgotten = {}, {}
    for bias in (0.0, 3.0, 1000.0):
        for overshoot in (False, True):
            model = knowing()
            with torch.no_grad():
                model.classifier.bias[0] += bias  # no direction holds this
            config = DampConfig(span="affine", overshoot=overshoot)
            reports[bias, overshoot] = damp_edit(model, *loaders(a_class()), config=config)
            forgotten[bias, overshoot] = accuracy(model, [0])
            if bias < 1000 and overshoot:
                assert accuracy(model, OTHERS) > 0.95
    alphas = {key: report["readings"][-1]["alpha"] for key, report in reports.items()}
    assert alphas[3.0, False] <= 1 < alphas[3.0, True]
    assert forgotten[3.0, False] > 0.9 and forgotten[3.0, True] == 0
    assert any("coefficient of the head is" in note for note in reports[3.0, True]["notes"])
    assert alphas[1000.0, True] <= 1  # more than the highest would be needed
    assert any("not forgotten" in note for note in reports[1000.0, True]["notes"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [tiny_bert, tiny_gpt2_classifier])
def test_texts(tmp_path: Path, method: str, build: Callable[[], PreTrainedModel]):
    data = {**split_dataset(sentences(36), labels=1), "unseen": sentences(12, seed=3)}
    model = build()
    before = weights(model)
    about = {"processing_class": tiny_tokenizer(), "args": arguments(tmp_path)}
    config = (
        DampConfig(alpha=0.5) if method == "damp" else METHODS[method]
    )  # the weights are random: no probe finds a thing
    result = unlearn(model, **data, method=config, **about)
    assert changed(result.model, before)
    assert all(tensor.isfinite().all() for tensor in result.model.state_dict().values())


@pytest.mark.slow
def test_two_processes(tmp_path: Path):
    """Each process reads its share, and both make the edit that one process makes."""
    launch("surgery", tmp_path)
    for method in METHODS:
        for family, build in (("vit", tiny_vit), ("resnet", tiny_resnet)):
            ranks = [load_file(tmp_path / f"{method}-{family}-{rank}.safetensors") for rank in range(2)]
            assert same_bits(*ranks)
            model = knowing(build)
            before = weights(model)
            unlearn(model, **a_class(), method=METHODS[method], args=arguments(tmp_path / f"{method}-{family}"))
            assert changed(model, before)
            for name, tensor in model.state_dict().items():
                assert torch.allclose(tensor, ranks[0][name], rtol=1e-5, atol=1e-6), (method, family, name)


class TestAdapter:
    """The edit as a LoRA adapter."""

    @pytest.mark.parametrize("build", slow_but([tiny_vit], [tiny_vit, tiny_resnet]))
    def test_equals_the_edit(self, tmp_path: Path, build: Callable[[], PreTrainedModel]):
        edited = unlearn(knowing(build), **a_class(), method="damp", args=arguments(tmp_path / "edit"))
        result = unlearn(
            knowing(build), **a_class(), method="damp", peft_config=True, args=arguments(tmp_path / "adapter")
        )
        assert isinstance(result.model, PeftModel)
        pixels = images(8, seed=7)["pixel_values"][:]
        with torch.no_grad():
            original = knowing(build)(pixel_values=pixels).logits
            wanted = edited.model(pixel_values=pixels).logits
            assert torch.allclose(result.model(pixel_values=pixels).logits, wanted, atol=1e-4)
            assert not torch.allclose(original, wanted, atol=1e-2)
            with result.trainer.original_model() as model:
                assert torch.equal(model(pixel_values=pixels).logits, original)

            folder = result.save(tmp_path / "saved")
            adapter = next(path.parent for path in folder.rglob("adapter_config.json"))
            loaded = PeftModel.from_pretrained(knowing(build), adapter).eval()
            assert torch.equal(loaded(pixel_values=pixels).logits, result.model(pixel_values=pixels).logits)
            merged = loaded.merge_and_unload()
            assert torch.allclose(merged(pixel_values=pixels).logits, wanted, atol=1e-4)
        for figure in ("forget_accuracy", "retain_accuracy", "unseen_accuracy"):
            assert result.metrics["after"][figure] == pytest.approx(edited.metrics["after"][figure])
        assert result.metrics["before"] == edited.metrics["before"]

    def test_rank_and_layers_are_not_the_users(self, tmp_path: Path):
        config = LoraConfig(r=4, target_modules=["q_proj"])
        with pytest.raises(UnlearningError, match="damp finds out itself which layers it edits.*peft_config=True"):
            unlearn(tiny_vit(), **a_class(), method="damp", peft_config=config, args=arguments(tmp_path))

    @pytest.mark.parametrize("method", METHODS)
    def test_a_model_with_an_adapter_of_its_own(self, tmp_path: Path, method: str):
        model = get_peft_model(tiny_vit(), LoraConfig(r=2, target_modules=["q_proj"]))
        with pytest.raises(UnlearningError, match=r"the model is a PeftModel.*model\.merge_and_unload\(\)"):
            unlearn(model, **a_class(), method=method, args=arguments(tmp_path))


def test_settings_of_training_are_not_ignored_in_silence(tmp_path: Path, caplog):
    args = arguments(tmp_path, measure=False, num_train_epochs=None, max_steps=7)
    unlearn(tiny_vit(), **a_class(), method="ssd", args=args)
    assert "ssd edits the weights once, without training: learning_rate, max_steps have no effect." in caplog.text


def test_single_samples_are_refused(tmp_path: Path):
    data = {**split_dataset(images(32), labels=0, fraction=0.5), "unseen": images(16, seed=3)}
    model = tiny_vit()
    before = weights(model)
    message = "damp forgets whole classes, and the request is for single samples.* take rewind, local_teacher or auto"
    with pytest.raises(UnlearningError, match=message):
        unlearn(model, **data, method="damp", args=arguments(tmp_path, measure=False))
    assert same_bits(weights(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_it_leaves_the_original_on_disk(tmp_path: Path, monkeypatch, method: str):
    model = knowing()
    digest = weights_digest(model)
    trainer = UnlearningTrainer(model, arguments(tmp_path), method=METHODS[method], **for_trainer(a_class()))
    last = list(model.parameters())[-2]  # the weight of the classifier, behind all others
    copy = torch.Tensor.copy_

    def killed(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if tensor.data_ptr() == last.data_ptr():
            raise KeyboardInterrupt
        return copy(tensor, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch.Tensor, "copy_", killed)
        trainer.train()
    assert weights_digest(model) != digest
    assert weights_digest(load_model(tmp_path / "_unlearn" / "original")) == digest
    assert not list(tmp_path.glob("model*")) and not list(tmp_path.glob("checkpoint-*"))


def test_one_request_after_the_other(tmp_path: Path):
    model = knowing()
    unlearn(model, **a_class(0), method="damp", args=arguments(tmp_path / "first"))
    parts = split_dataset(split_dataset(images(96), labels=0)["retain"], labels=1)  # class 0 is no longer there
    unlearn(model, **parts, unseen=images(48, seed=3), method="damp", args=arguments(tmp_path / "second"))
    assert accuracy(model, [0, 1]) <= 0.02
    assert accuracy(model, [2, 3]) == 1


def test_recipe(tmp_path: Path):
    knowing().save_pretrained(tmp_path / "model")
    tiny_image_processor().save_pretrained(tmp_path / "model")
    for split, seed in (("train", 0), ("test", 1)):
        pictures(32, seed=seed).save_to_disk(tmp_path / "data" / split)
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    words = [f"model={tmp_path / 'model'}", f"dataset={tmp_path / 'data'}", f"output_dir={tmp_path / 'out'}"]
    assert main(["run", *words, "method=damp", "forget_labels=[0]", "span=affine", "stages=2", "report_to=none"]) == 0
    report = json.loads((tmp_path / "out" / "model" / "metrics.json").read_text())["report"]
    assert {row["span"] for row in report["readings"]} == {"affine"} and report["stages"] == 2


def test_plan_on_the_command_line(tmp_path: Path, capsys):
    model = knowing()
    model.save_pretrained(tmp_path)
    assert main(["surgery", "plan", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == str(find_plan(model, {"pixel_values": torch.randn(1, 3, 16, 16)}))
    assert printed.startswith("1  vit.layers.1.attention.q_proj  Linear (16, 16)")


def test_plan_of_models_that_need_a_sample_of_their_own(tmp_path: Path, capsys):
    size = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**size, "image_size": 16, "patch_size": 8}
    CLIPForImageClassification(CLIPConfig(vision_config=vision, text_config=size, num_labels=3)).save_pretrained(
        tmp_path
    )
    assert main(["surgery", "plan", str(tmp_path)]) == 0
    assert "classifier  Linear (3, 16)  head" in capsys.readouterr().out
    layers = "vision_model.encoder.layers.3.mlp.fc1"
    assert main(["surgery", "plan", str(tmp_path), "--stages", f"[[{layers}], [classifier]]"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"1  {layers}  Linear")
    assert main(["surgery", "plan", str(tmp_path), "--stages", "[]"]) == 2
    assert "stages is []; expected a number of at least 1, or a list" in capsys.readouterr().err
