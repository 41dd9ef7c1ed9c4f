"""Models that are sharded over two processes: gradient rules, and whole runs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM, ViTForImageClassification

from hf_unlearn import UnlearningResult, models
from hf_unlearn.commands.speed import Peak
from hf_unlearn.models import adapters
from hf_unlearn.training.sharding import Sharding
from hf_unlearn.training.trainer import UnlearningTrainer
from tests.distributed import fsdp
from tests.runs import distance, launch, make_trainer, original, weights
from tests.streamed import trainer_of


def check_same_weights(name: str, alone: UnlearningTrainer, folder: Path) -> None:
    start = weights(alone.model)
    alone.train()
    assert distance(load_file(folder / f"{name}.safetensors"), weights(alone.model), start) < 1e-8, name


def test_whole_weights_are_in_no_memory(tmp_path):
    """Nor when they are written as safetensors; here of a model that is not cut up, whose weights are 64 MiB."""
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(16)), nn.BatchNorm1d(3).bfloat16())
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=["Linear"])
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), is_main_process=True)
    sharding = Sharding(cast(Accelerator, accelerator), model, str(tmp_path / "output"))
    with Peak() as peak:
        found = sharding.whole_weights(model)
        save_file(found, tmp_path / "model.safetensors")
    assert peak.growth is None or peak.growth < 2**24
    saved = load_file(tmp_path / "model.safetensors")
    assert found.keys() == saved.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert (
            torch.equal(found[name], tensor) and torch.equal(saved[name], tensor) and saved[name].dtype == tensor.dtype
        )
    assert not list((tmp_path / "output").iterdir())
    accelerator.is_main_process = False
    assert sharding.whole_weights(model) == {}


@pytest.mark.slow
def test_updates_of_a_sharded_model(tmp_path):
    launch("sharded", tmp_path)
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == 13
    assert max(errors.values()) < 1e-14, errors


@pytest.mark.slow
def test_whole_runs_of_a_sharded_model(tmp_path, hub):
    hub.put("me/sharded", {"README.md": b""})
    launch("fsdp", tmp_path)
    about, beside = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    found, other = about["cases"], beside["cases"]
    assert [about["metrics"] for about in found.values()] == [about["metrics"] for about in other.values()]
    for name, (method, family, lora, _) in fsdp.CASES.items():
        trainer = make_trainer(method, family, tmp_path / "one" / name, num_train_epochs=1, dtype="float64", lora=lora)
        check_same_weights(name, trainer, tmp_path)
        measured, expected = found[name]["metrics"]["after"], trainer.metrics["after"]
        assert measured.keys() == expected.keys()
        for key, value in expected.items():
            assert measured[key] == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), (name, key)
        if name == "npo":
            result = UnlearningResult(trainer.model, trainer, trainer.metrics, trainer.runtime)
            compared = result.compare(tmp_path / "one" / "npo" / "_unlearn" / "original")
            assert found[name]["more"]["unlearned"] == pytest.approx(compared["unlearned"]["jsd"], rel=1e-6)
    for name, (method, family, settings) in fsdp.MORE.items():
        alone = make_trainer(
            method, family, tmp_path / "one" / name, dtype="float64", **{"num_train_epochs": 1} | settings
        )
        check_same_weights(name, alone, tmp_path)
    assert distance(load_file(tmp_path / "stopped.safetensors"), weights(original("vit", torch.float64))) < 1e-12
    check_same_weights("stream", trainer_of(tmp_path / "one" / "stream", **fsdp.STREAM), tmp_path)
    assert max(about["resumed"].values()) < 1e-10 and about["resumed"].keys() == {"scrub", "gru"}
    assert not set(about["opened"]) & set(beside["opened"]) and len(about["opened"]) == len(beside["opened"]) == 2
    lotus, npo, grad_diff = (found[name]["more"] for name in ("lotus", "npo", "grad_diff"))
    assert lotus["pushed"] and "unlearned/a" in hub.branches("me/sharded") and lotus["distance"] > 0
    assert max(lotus["whole"], lotus["pieces"]) < 1e-10
    assert npo["original"] == 0 < npo["unlearned"]
    assert grad_diff["same weights"] and grad_diff["distance"] > 0
    saved = ViTForImageClassification.from_pretrained(tmp_path / "saved", dtype="float64")
    assert saved.config.architectures == ["ViTForImageClassification"]
    assert distance(weights(saved), load_file(tmp_path / "lotus.safetensors")) < 1e-12
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype="float64")
    alone = make_trainer("grad_diff", "llama", tmp_path / "two", lora=True, dtype="float64").model
    models.load_weights(alone, tmp_path / "adapter")
    assert distance(weights(merged), weights(adapters.merged(alone))) < 1e-12
