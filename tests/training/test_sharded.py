"""Models that are sharded over two processes: gradient rules, and whole runs."""

import json

import pytest
from safetensors.torch import load_file
from transformers import ViTForImageClassification

from tests.distributed import fsdp
from tests.runs import distance, launch, make_trainer, original, weights


@pytest.mark.slow
def test_updates_of_a_sharded_model(tmp_path):
    launch("sharded", tmp_path)
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == 13
    assert max(errors.values()) < 1e-14, errors


@pytest.mark.slow
def test_whole_runs_of_a_sharded_model(tmp_path):
    launch("fsdp", tmp_path)
    for name, (method, family, lora) in fsdp.CASES.items():
        trainer = make_trainer(method, family, tmp_path / "one", num_train_epochs=1, dtype="float64", lora=lora)
        start = weights(trainer.model)
        trainer.train()
        found = load_file(tmp_path / f"{name}.safetensors")
        assert distance(found, weights(trainer.model), start) < 1e-8, name
        measured = json.loads((tmp_path / f"{name}.json").read_text())["metrics"]["after"]
        expected = trainer.metrics["after"]
        assert measured.keys() == expected.keys()
        for key, value in expected.items():
            assert measured[key] == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), (name, key)
    rows = json.loads((tmp_path / "npo.json").read_text())["rows"]
    assert rows["original"]["jsd"] == 0 < rows["unlearned"]["jsd"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["refused"] == dict.fromkeys(fsdp.REFUSED, True)
    assert found["resumed"] == {"FULL_STATE_DICT": True, "SHARDED_STATE_DICT": True}
    saved = found["saved"]
    assert saved["release"] and saved["same weights"] and min(saved["distance"]) > 0
    assert saved["accuracy"][0] == saved["accuracy"][1]
    merged = ViTForImageClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.architectures == ["ViTForImageClassification"]
    assert distance(weights(merged), weights(original("vit"))) > 0
