"""Unlearning in an adapter that the library chooses, and merging it."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_unlearn import (
    UnlearningArguments,
    UnlearningError,
    UnlearningResult,
    UnlearningTrainer,
    models,
    split_dataset,
    unlearn,
)
from hf_unlearn.commands import main
from hf_unlearn.commands.recipe import parse
from hf_unlearn.models import adapters
from tests import runs
from tests.marks import slow_but
from tests.methods.test_matrix import SHORT
from tests.runs import TRAINED, original, tiny_multitask
from tests.samples import arguments, for_trainer, images, pictures, same_bits, weights
from tests.tiny import (
    random_inputs,
    tiny_bert,
    tiny_gpt2_classifier,
    tiny_image_processor,
    tiny_llama_lm,
    tiny_resnet,
    tiny_tokenizer,
    tiny_vit,
)

# What each model has behind its blocks.
HEADS = {
    tiny_resnet: ["timm_model.fc"],
    tiny_vit: ["classifier"],
    tiny_bert: ["bert.pooler.dense", "classifier"],
    tiny_gpt2_classifier: ["score"],
    tiny_llama_lm: ["lm_head"],
    tiny_multitask: ["heads.colour", "heads.shape", "heads.size"],
}
FAMILIES = {"resnet": "lotus", "vit": "scrub", "bert": "neggrad_plus", "llama": "npo", "multitask": "multitask"}


def adapted(model: nn.Module) -> set[str]:
    base = models.base_of(model)
    return {name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}


def outputs(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    return torch.cat([x.flatten() for x in logits.values()]) if isinstance(logits, dict) else logits


def inputs_of(family: str) -> dict[str, torch.Tensor]:
    return random_inputs(original("vit" if family == "multitask" else family))


def chosen(model: nn.Module, **kwargs) -> nn.Module:
    return adapters.attach(model, adapters.default_config(model, **kwargs)).model


def disturb(model: nn.Module, adapter: str) -> None:
    """Weights of an adapter as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


class TestDefaultConfig:
    @pytest.mark.parametrize("head", [False, True])
    @pytest.mark.parametrize("make", HEADS)
    def test_all_layers(self, make, head):
        model = make()
        layers = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, Conv1D))}
        assert layers > set(HEADS[make])
        model = chosen(model, r=2, head=head)
        assert adapted(model) == (layers if head else layers - set(HEADS[make]))
        assert {m.r["unlearn"] for m in model.modules() if isinstance(m, BaseTunerLayer)} == {2}

    def test_what_peft_cannot_merge_is_left_out(self):
        model = tiny_resnet()
        block = model.timm_model.layer1[0]
        everything = adapted(chosen(tiny_resnet()))
        channels = {"in_channels": 16, "out_channels": 16, "kernel_size": 3}
        block.conv1 = nn.Conv2d(**channels, padding=2, dilation=2)
        block.conv2 = nn.Conv2d(**channels, padding=1, padding_mode="reflect")
        model.timm_model.layer2[0].conv2 = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        model.timm_model.layer3[0].conv2 = type("Own", (nn.Conv2d,), {})(32, 32, 3, padding=1)
        left = {f"timm_model.layer{i}.0.conv{j}" for i, j in ((1, 1), (1, 2), (2, 2), (3, 2))}
        assert adapted(chosen(model)) == everything - left

    def test_shared_weights_are_left_out(self):
        model = tiny_vit()
        first, second = (layer.attention for layer in model.vit.layers)
        second.q_proj.weight = first.q_proj.weight
        found = adapted(chosen(model))
        assert {name for name in found if "q_proj" in name} == set()
        assert {"vit.layers.0.attention.k_proj", "vit.layers.1.attention.k_proj"} <= found

    def test_under_an_adapter_of_its_own(self):
        config = LoraConfig(r=2, target_modules=["query", "dense"], task_type="SEQ_CLS")
        model = get_peft_model(tiny_bert(), config)
        expected = adapters.default_config(tiny_bert())
        assert adapters.default_config(model).target_modules == expected.target_modules

    def test_refusals(self):
        with pytest.raises(
            UnlearningError, match="Sequential has no layer for which an adapter can be chosen; expected"
        ):
            adapters.default_config(nn.Sequential(nn.Linear(2, 2)))
        model = tiny_llama_lm(tie_word_embeddings=True)
        assert "lm_head" not in adapters.default_config(model).target_modules
        with pytest.raises(UnlearningError, match="head of LlamaForCausalLM cannot be adapted.*leave it out"):
            adapters.default_config(model, head=True)
        with pytest.raises(UnlearningError, match="peft_config is a dict; expected a config of peft"):
            adapters.attach(tiny_vit(), {"r": 4})
        with pytest.raises(UnlearningError, match="is a PeftModel and peft_config is not given"):
            adapters.attach(chosen(tiny_vit()), False)


def run(family: str, folder: Path, model: nn.Module, max_steps: int = -1, **kwargs) -> UnlearningResult:
    about = {"method": FAMILIES[family], "peft_config": True, **kwargs}
    about["method"] = SHORT.get(about["method"], about["method"])
    args = arguments(folder, learning_rate=1e-2, max_steps=max_steps, measure=False, use_cpu=True)
    return unlearn(model, **runs.request(family), processing_class=tokenizer(family), args=args, **about)


def tokenizer(family: str):
    return tiny_tokenizer() if family == "bert" else None


class TestUnlearning:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_the_adapter_it_is_the_original(self, tmp_path, family):
        """To the bit, though the model comes in training mode, with BatchNorm whose statistics would move."""
        before = original(family)
        inputs = inputs_of(family)
        wanted, state = outputs(before, inputs), weights(before)
        result = run(family, tmp_path, original(family).train(), max_steps=4)
        model = result.model
        assert list(model.peft_config) == ["unlearn"]
        assert all(".unlearn." in name for name, p in model.named_parameters() if p.requires_grad)
        assert not torch.allclose(outputs(model, inputs), wanted, atol=1e-2)
        with result.trainer.adapter.disabled():
            assert torch.equal(outputs(model, inputs), wanted)
        base = models.base_of(model).state_dict()
        kept = {n.replace(".base_layer", ""): t for n, t in base.items() if ".lora_" not in n}
        assert same_bits(kept, state)
        self.check_merging(result, family, tmp_path)

    def check_merging(self, result: UnlearningResult, family: str, tmp_path: Path) -> None:
        """Merged, it is a plain model."""
        inputs, plain = inputs_of(family), original(family)
        wanted = outputs(result.model, inputs)
        merged = result.merge()
        assert merged is result.model is result.merge() and type(merged) is type(plain)
        assert merged.state_dict().keys() == plain.state_dict().keys()
        assert all(parameter.requires_grad for parameter in merged.parameters())
        assert torch.allclose(outputs(merged, inputs), wanted, atol=1e-5)
        folder = result.save(tmp_path / "saved")
        assert not list(folder.rglob("adapter*"))
        assert json.loads((folder / "metrics.json").read_text())["run"]["library"] != "peft"
        assert json.loads((folder / "unlearning_config.json").read_text())["method"] == FAMILIES[family]
        assert torch.equal(outputs(models.load_model(folder), inputs), outputs(merged, inputs))
        with result.trainer.original_model() as model:  # the trainer's still has the adapter
            assert torch.equal(outputs(model, inputs), outputs(plain, inputs))

    @pytest.mark.parametrize("method", slow_but(["l1_sparse", "lotus", "rmu"], TRAINED))
    def test_every_method(self, tmp_path, method):
        """A ResNet, nearly all of which are convolutions; RMU needs a transformer."""
        family = "vit" if method == "rmu" else "resnet"
        inputs, wanted = inputs_of(family), outputs(original(family), inputs_of(family))
        about = {"method": method, "max_steps": 2}
        if method in ("auto", "rewind", "retrain", "l1_sparse", "msg", "ct"):
            message = "trains all weights|the weights of a whole model|with the weights themselves"
            with pytest.raises(UnlearningError, match=message):
                run(family, tmp_path, original(family), base_model=runs.build(family, seed=1), **about)
            return
        result = run(family, tmp_path, original(family).train(), **about)
        assert result.trainer.state.global_step > 0
        found, usual = adapted(result.model), adapted(chosen(original(family)))
        if method == "local_teacher":  # which trains the second half of the layers
            assert found and found < usual
        elif family == "resnet":
            assert found == usual
        assert not torch.equal(outputs(result.model, inputs), wanted)
        with result.trainer.adapter.disabled():
            assert torch.equal(outputs(result.model, inputs), wanted)

    @pytest.mark.parametrize(("method", "rate"), [("lotus", 5 * 3e-4), ("hamu", 0.1), ("multitask", 0.01)])
    def test_learning_rate(self, tmp_path, method, rate):
        """Five times that of the weights for Adam, the method's own where it has one, and the user's before all."""
        family = "multitask" if method == "multitask" else "resnet"
        found = []
        for own in ({}, {"learning_rate": 0.2}):
            args = UnlearningArguments(str(tmp_path), report_to="none", use_cpu=True, measure=False, **own)
            data = for_trainer(runs.request(family))
            found.append(UnlearningTrainer(original(family), args, method=method, peft_config=True, **data).args)
        assert [args.learning_rate for args in found] == pytest.approx([rate, 0.2])

    def test_the_methods_own_choice_goes_first(self, tmp_path):
        """NPO has an adapter of its own on language models, and RMU trains the MLP of a few blocks only."""
        model = run("llama", tmp_path / "npo", original("llama"), max_steps=1).model
        assert adapted(model) == adapted(chosen(original("llama")))
        assert (
            model.peft_config["unlearn"].target_modules
            != chosen(original("llama")).peft_config["unlearn"].target_modules
        )
        for family, layers in {"llama": ["gate_proj", "up_proj", "down_proj"], "vit": ["fc1", "fc2"]}.items():
            model = run(family, tmp_path / family, original(family), method="rmu", max_steps=1).model
            place = "model.layers.0.mlp" if family == "llama" else "vit.layers.0.mlp"
            assert adapted(model) == {f"{place}.{layer}" for layer in layers}


class TestMerging:
    def test_what_is_advised_for_an_adapter(self, tmp_path):
        """`merge_and_unload` leaves a model with nothing to train."""
        adapted_model = get_peft_model(original("vit"), LoraConfig(r=2, target_modules=["q_proj"]))
        with pytest.raises(
            UnlearningError, match=r"pass model.merge_and_unload\(\).requires_grad_\(True\) to unlearn"
        ):
            run("vit", tmp_path, adapted_model, peft_config=None)
        model = adapted_model.merge_and_unload()
        assert not any(parameter.requires_grad for parameter in model.parameters())
        before = weights(model)
        assert not same_bits(before, run("vit", tmp_path, model, peft_config=None, max_steps=1).model.state_dict())

    @pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
    def test_stacked_adapters(self, tmp_path, task_type):
        """Of a model that came with an adapter, and with a trained copy of the head in the second case."""
        config = LoraConfig(r=2, target_modules=["query", "dense"], task_type=task_type)
        model = get_peft_model(original("bert"), config)
        disturb(model, "default")
        inputs = random_inputs(original("bert"))
        before, own = outputs(model, inputs), weights(model)
        result = run("bert", tmp_path / "run", model)
        assert list(result.model.peft_config) == ["default", "unlearn"]
        after = weights(result.model)
        assert all(torch.equal(after[name], tensor) for name, tensor in own.items() if ".default." in name)
        wanted = outputs(result.model, inputs)
        assert not torch.allclose(wanted, before, atol=1e-2)
        with result.trainer.adapter.disabled():
            assert torch.equal(outputs(result.model, inputs), before)
        merged = result.merge()
        assert merged.state_dict().keys() == original("bert").state_dict().keys()
        assert torch.allclose(outputs(merged, inputs), wanted, atol=1e-5)
        folder = result.save(tmp_path / "saved")
        assert torch.equal(outputs(models.load_model(folder), inputs), outputs(merged, inputs))

    @pytest.mark.parametrize("make", [tiny_resnet, tiny_gpt2_classifier])
    def test_every_kind_of_layer(self, make):
        model = chosen(make(), head=True)
        disturb(model, "unlearn")
        inputs = random_inputs(make())
        wanted = outputs(model, inputs)
        assert not torch.allclose(wanted, outputs(make(), inputs), atol=1e-2)
        assert torch.allclose(outputs(adapters.merged(model), inputs), wanted, atol=1e-5)
        assert isinstance(model, PeftModel) and torch.equal(outputs(model, inputs), wanted)

    @pytest.mark.parametrize("make", [tiny_vit, tiny_resnet])
    def test_an_edit(self, tmp_path, make):
        data = {**split_dataset(images(96), labels=0), "unseen": images(48, seed=3)}
        args = arguments(tmp_path, measure=False, use_cpu=True)
        result = unlearn(make(), **data, method="damp", peft_config=True, merge=True, args=args)
        wanted = outputs(result.trainer.model, random_inputs(make()))
        assert isinstance(result.trainer.model, PeftModel) and type(result.model) is type(make())
        assert not torch.allclose(wanted, outputs(make(), random_inputs(make())), atol=1e-2)
        assert torch.allclose(outputs(result.model, random_inputs(make())), wanted, atol=1e-5)

    def test_at_once_and_then_the_next_request(self, tmp_path):
        first = run("vit", tmp_path / "first", original("vit"), merge=True)
        assert type(first.model) is type(original("vit")) and isinstance(first.trainer.model, PeftModel)
        state = weights(first.model)
        second = run("vit", tmp_path / "second", first.model, peft_config=None, merge=True)
        assert second.model is first.model and not same_bits(weights(second.model), state)

    def test_figures_are_those_of_the_merged_model(self, tmp_path):
        args = arguments(tmp_path, learning_rate=1e-2, use_cpu=True)
        about = {"method": "lotus", "peft_config": True, "merge": True}
        result = unlearn(original("vit"), **runs.request("vit"), **about, args=args)
        rows = result.compare(result.model)
        assert rows["unlearned"]["jsd"] == 0 < rows["original"]["jsd"]
        assert rows["unlearned"]["forget_accuracy"] == rows["retrained"]["forget_accuracy"]


class TestRecipe:
    BASIC = ["model=m", "dataset=d", "forget_fraction=0.1"]

    @pytest.mark.slow
    def test_a_run(self, tmp_path, capsys):
        tiny_resnet().save_pretrained(tmp_path / "model")
        tiny_image_processor().save_pretrained(tmp_path / "model")
        for split, seed in (("train", 0), ("test", 1)):
            pictures(32, seed=seed).save_to_disk(tmp_path / "data" / split)
        (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        words = [f"model={tmp_path / 'model'}", f"dataset={tmp_path / 'data'}", "forget_fraction=0.2", "max_steps=2"]
        words += ["method=finetune", "report_to=none", "save_strategy=no", "learning_rate=0.01", "lora=true"]
        for name, more in {"adapter": ["lora_r=3", "lora_head=true"], "merged": ["merge=true"]}.items():
            assert main(["run", *words, f"output_dir={tmp_path / name}", *more]) == 0
        saved = tmp_path / "adapter" / "model" / "unlearn" / "adapter_config.json"
        about = json.loads(saved.read_text())
        assert about["r"] == 3 and about["target_modules"].endswith(r"timm_model\.fc")
        merged = models.load_model(tmp_path / "merged" / "model")
        assert type(merged) is type(tiny_resnet()) and not same_bits(weights(merged), weights(tiny_resnet()))

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["lora_r=4"], "lora_r says how an adapter is made, and there is none; expected lora=true beside it"),
            (["lora_head=true", "lora=false"], "lora_head says how an adapter is made"),
            (["lora=true", "lora_r=0"], "lora_r is 0; expected 1 or more"),
            (["lora=false", "merge=true"], "merge is true, and lora=false leaves no adapter to merge"),
            (["lora=true", "lora_rank=4"], "There is no setting 'lora_rank'"),
        ],
    )
    def test_refusals(self, words, message):
        with pytest.raises(UnlearningError, match=message):
            parse([*self.BASIC, *words])
