"""Models that are sharded over two processes: gradient rules, and whole runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, ViTForImageClassification

from hf_unlearn import models
from hf_unlearn.models import adapters
from hf_unlearn.training.trainer import UnlearningTrainer
from tests.distributed import fsdp
from tests.runs import distance, launch, make_trainer, original, weights
from tests.streamed import trainer_of


def check_same_weights(name: str, alone: UnlearningTrainer, folder: Path) -> None:
    start = weights(alone.model)
    alone.train()
    assert distance(load_file(folder / f"{name}.safetensors"), weights(alone.model), start) < 1e-8, name


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
