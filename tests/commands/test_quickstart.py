"""The quickstart, with a training that is shorter than the real one."""

import json

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_unlearn.commands import demo
from hf_unlearn.data.digits import load_digits
from hf_unlearn.hub import verify


def test_flipped_labels_are_as_frequent_in_every_set():
    clean, flipped = load_digits(flipped=0.0), load_digits(flipped=0.3)
    for name in ("forget", "retain", "unseen"):
        share = (clean[name].columns["labels"] != flipped[name].columns["labels"]).double().mean()
        assert share == pytest.approx(0.3, abs=0.1)
    assert [len(flipped[name]) for name in ("forget", "retain", "unseen")] == [150, 850, 797]


def test_a_careful_annotator_s_labels_are_right():
    clean, mixed = load_digits(flipped=0.0), load_digits(flipped=0.3, kept_right=True)
    wrong = {name: (clean[name].columns["labels"] != mixed[name].columns["labels"]).sum() for name in clean}
    assert wrong["retain"] == 0 < wrong["forget"] < wrong["unseen"]


@pytest.mark.slow
def test_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setenv("COLUMNS", "80")
    found = demo.run(str(tmp_path), epochs=2)
    printed, errors = capsys.readouterr()
    said = [line for line in [*printed.splitlines(), *errors.splitlines()] if "it/s]" not in line and "%|" not in line]
    assert [line for line in said if len(line) > 80 and str(tmp_path) not in line] == []  # a path stays whole
    rows = found["rows"]
    assert list(rows) == ["original", "finetune", "auto", "retrained"] and rows["retrained"]["jsd"] > 0
    assert {"command": "hf-unlearn quickstart", **found} == json.loads((tmp_path / "results.json").read_text())
    table = demo.table(rows)
    assert table in printed and max(map(len, table.splitlines())) <= 80
    assert max(map(len, "\n".join([demo.STORY, demo.READ, demo.NEXT]).splitlines())) <= 80
    steps = [line for line in printed.splitlines() if line[:1].isdigit() and line[1:3] == ". "]
    assert len(steps) == 5 and max(map(len, steps)) <= 80
    assert " ".join(f"The audit says: {found['verdict']}".split()) in " ".join(printed.split())
    for path in (
        tmp_path / "unlearned" / "audit.html",
        tmp_path / "unlearned" / "README.md",
        tmp_path / "distance.svg",
    ):
        assert path.is_file() and str(path) in printed
    assert verify(tmp_path / "unlearned").ok
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "unlearned").eval()
    forget = load_digits(kept_right=True)["forget"].columns
    with torch.no_grad():
        right = model(pixel_values=forget["pixel_values"]).logits.argmax(-1) == forget["labels"]
    assert right.double().mean() == pytest.approx(rows["auto"]["forget_accuracy"])
