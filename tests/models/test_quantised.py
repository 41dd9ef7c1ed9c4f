"""A LoRA on 4-bit weights of bitsandbytes: trained, measured, audited in place, merged into numbers, and saved."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_unlearn import UnlearningArguments, UnlearningError, models, unlearn
from hf_unlearn.audits import passes, relearning
from hf_unlearn.commands import main
from hf_unlearn.hub import verify
from hf_unlearn.methods import NpoConfig
from hf_unlearn.models import adapters
from tests.releases import publish
from tests.tiny import tiny_llama_lm, tiny_tokenizer

SUBJECTS, COLOURS = ("cat", "dog", "bird", "fish"), ("red", "blue", "big", "small")
IDS = torch.arange(14).reshape(2, 7)


def rows(verb: str, shift: int) -> Dataset:
    texts = [(f"the {word} {verb}", f" {COLOURS[(i + shift) % 4]} {COLOURS[i]}") for i, word in enumerate(SUBJECTS)]
    return Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in texts])


def run(model: Any, folder: Path, **given: Any) -> Any:
    args = UnlearningArguments(str(folder), report_to="none", num_train_epochs=3, disable_tqdm=True)
    sets = {"forget": rows("was", 0), "retain": rows("sees", 1), "unseen": rows("eats", 2)}
    settings = {"method": NpoConfig(until="end"), "processing_class": tiny_tokenizer(), "overlap": "allow"}
    return unlearn(model, **sets, **(settings | given), args=args)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture
def four_bits(tmp_path: Path) -> Any:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer()), max_position_embeddings=64, **size))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=config, dtype=torch.float32)


class TestFourBits:
    @pytest.mark.slow
    def test_from_training_to_what_is_saved(self, four_bits, tmp_path, monkeypatch):
        monkeypatch.setattr(relearning, "STEPS", (0, 1, 2))
        before = models.weights_digest(four_bits)
        result = run(four_bits, tmp_path / "out")
        assert adapters.is_quantized(result.model) and result.metrics["after"] != result.metrics["before"]
        base = {
            name: tensor for name, tensor in result.model.get_base_model().state_dict().items() if "lora" not in name
        }
        # Neither training nor measuring has touched the 4-bit weights.
        assert models.digest_tensors((n.replace(".base_layer", ""), t) for n, t in sorted(base.items())) == before

        copies = []
        monkeypatch.setattr(adapters, "merged", lambda model: copies.append(model))
        report = result.audit(level=1)
        assert not copies and report.content["distance"]["total"] > 0
        losses = report.content["connectivity"]["forget_loss"]
        found = result.metrics
        assert losses[0] == pytest.approx(found["before"]["forget_loss"], abs=1e-5)
        assert losses[-1] == pytest.approx(found["after"]["forget_loss"], abs=1e-5)
        monkeypatch.undo()

        said = logits(result.model)
        merged = adapters.merged(result.model)
        assert not adapters.is_quantized(merged) and not adapters.is_adapted(merged)
        torch.testing.assert_close(logits(merged), said, atol=1e-5, rtol=1e-5)
        assert report.content["weights"]["unlearned"] == models.weights_digest(merged)
        with result.run.original() as original:
            assert report.content["weights"]["original"] == adapters.weights_digest(original)
        torch.testing.assert_close(logits(result.model), said, atol=0, rtol=0)  # which stays as it is

        folder = result.save(tmp_path / "adapter")
        assert (folder / "unlearn" / "adapter_model.safetensors").exists()
        assert result.merge() is result.model
        whole = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "whole"))
        torch.testing.assert_close(logits(whole), said, atol=1e-5, rtol=1e-5)

    def test_recipe_and_push(self, four_bits, tmp_path, monkeypatch, hub):
        """By the recipe alone, from the Hub and back to it."""
        monkeypatch.chdir(tmp_path)
        name = publish(hub, "me/llama", tmp_path / "model")
        Path("tofu.jsonl").write_text(
            "\n".join(
                json.dumps({"question": f"the {word}", "answer": f"{word} sees a {word}"}) for word in SUBJECTS * 3
            )
        )
        Path("forget10.txt").write_text("9\n10\n11\n")
        given = {"model": name, "dataset": "tofu.jsonl", "dataset_config": "null", "max_length": 20, "bf16": "false"}
        given |= {"lora_r": 2, "gradient_checkpointing": "false", "num_train_epochs": 1, "overlap": "allow"}
        given |= {"push_to": name, "push_revision": "unlearned/one", "disable_tqdm": "true", "output_dir": "out"}
        recipe = str(Path(__file__).parents[2] / "recipes" / "qlora_8b_one_gpu.yaml")
        assert main(["run", recipe, *(f"{key}={value}" for key, value in given.items())]) == 0
        files = hub.files(name, "unlearned/one")
        assert {"adapter_model.safetensors", "adapter_config.json", "unlearning_receipt.json"} <= {
            file.rpartition("/")[2] for file in files
        }
        assert json.loads(Path("out", "model", "metrics.json").read_text())["after"]["forget_loss"] > 0
        checked = verify(name, revision="unlearned/one", parent=name)
        assert checked.ok and checked.unchecked == ["signature", "records"], checked  # neither of which was given

    def test_refused_before_it_is_loaded(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        given = ["model=x", "dataset=y", "forget_fraction=0.1", "load_in_4bit=true"]
        assert main(["run", *given, "lora=false"]) == 2
        assert "expected lora=true" in capsys.readouterr().err
        monkeypatch.setattr("hf_unlearn.commands.steps.find_spec", lambda name: None)
        assert main(["run", *given, "lora=true"]) == 2
        assert "pip install bitsandbytes" in capsys.readouterr().err

    def test_weights_themselves_are_not_trained(self, four_bits, tmp_path):
        with pytest.raises(UnlearningError, match="quantised .uint8.; train an adapter"):
            run(four_bits, tmp_path, peft_config=False)
        with pytest.raises(UnlearningError, match="quantised"):
            run(four_bits, tmp_path, method="finetune")

    def test_weights_that_were_packed_are_refused(self, four_bits, tmp_path):
        layer = four_bits.model.layers[0].mlp.up_proj
        layer.weight.quant_state.packing_format_for_cpu = True  # as after a forward pass on some processors
        with pytest.raises(UnlearningError, match="has packed model.layers.0.mlp.up_proj for this processor"):
            run(four_bits, tmp_path)

    def test_an_adapter_that_is_no_plain_lora(self, four_bits):
        config = LoraConfig(target_modules=["up_proj"], use_dora=True)
        with pytest.raises(
            UnlearningError, match="up_proj is no plain LoRA, and cannot be put into quantised weights"
        ):
            adapters.merged(get_peft_model(four_bits, config, adapter_name=adapters.NAME))


class TestInPlace:
    """The same of a model whose weights are numbers."""

    def test_an_audit_makes_no_copy(self, tmp_path, monkeypatch):
        monkeypatch.setattr(relearning, "STEPS", (0, 1, 2))
        result = run(tiny_llama_lm(), tmp_path / "out", peft_config=True)
        model, before = result.model, models.weights_digest(result.model)
        made = []
        monkeypatch.setattr(copy, "deepcopy", self.noting(copy.deepcopy, made))
        report = result.audit(level=1)
        monkeypatch.undo()
        assert not made and models.weights_digest(model) == before and list(model.peft_config) == [adapters.NAME]
        merged = adapters.merged(model)
        assert report.content["weights"]["unlearned"] == models.weights_digest(merged)
        with result.run.original() as original:
            assert report.content["weights"]["original"] == models.weights_digest(adapters.merged(original))
            begun = adapters.merged(original)
        # As of two models that are whole
        assert report.content["distance"] == passes.distance(begun, merged)

    def noting(self, deepcopy: Any, made: list[Any]) -> Any:
        def noted(value: Any, *args: Any) -> Any:
            if hasattr(value, "get_output_embeddings") or adapters.is_adapted(value):
                made.append(value)
            return deepcopy(value, *args)

        return noted

    def test_the_way_between_two_models(self):
        ends = tiny_llama_lm(seed=0), tiny_llama_lm(seed=1)
        digests = [models.weights_digest(model) for model in ends]
        copies = [logits(model) for model in relearning._path(*ends, in_place=False)]
        in_place = [logits(model) for model in relearning._path(*ends, in_place=True)]
        for one, other in zip(copies, in_place, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
        assert [models.weights_digest(model) for model in ends] == digests
