"""The quickstart, with a training that is shorter than the real one."""

import json

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_unlearn.commands import demo
from hf_unlearn.data.digits import load_digits
from hf_unlearn.metrics.tables import table
from hf_unlearn.models.small import small_resnet, small_vit


def test_flipped_labels_are_as_frequent_in_every_set():
    clean, flipped = load_digits(flipped=0.0), load_digits(flipped=0.3)
    for name in ("forget", "retain", "unseen"):
        share = (clean[name].columns["labels"] != flipped[name].columns["labels"]).double().mean()
        assert share == pytest.approx(0.3, abs=0.1)
    assert [len(flipped[name]) for name in ("forget", "retain", "unseen")] == [150, 850, 797]


@pytest.mark.slow
def test_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "MODELS", {"resnet": (small_resnet, 2), "vit": (small_vit, 2)})
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    results = demo.run(str(tmp_path))
    printed = capsys.readouterr().out
    saved = json.loads((tmp_path / "results.json").read_text())
    for name in ("resnet", "vit"):
        rows = results[name]
        assert list(rows) == ["original", "retrained", "finetune", "lotus", "auto"]
        assert saved[name] == rows
        assert table(rows) in printed and table(rows) in (tmp_path / "results.md").read_text()
        assert rows["retrained"]["jsd"] == 0 < rows["auto"]["jsd"]
        folder = tmp_path / name / "auto"
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "model.safetensors", "metrics.json", "unlearning_config.json"} == names
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        forget = load_digits()["forget"].columns
        with torch.no_grad():
            right = model(pixel_values=forget["pixel_values"]).logits.argmax(-1) == forget["labels"]
        assert right.double().mean() == pytest.approx(rows["auto"]["forget_accuracy"])
    assert "Next: your own model and data" in printed
