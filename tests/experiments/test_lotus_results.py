"""What the committed results say of LoTUS: beside fine-tuning on digits (`digits.py`), beside its rivals on CIFAR-10 (`cifar10.py`)."""

import json

import pytest

from recipes.experiments.study import RESULTS

ROWS = json.loads((RESULTS / "digits.json").read_text())["results"]["resnet"]


@pytest.mark.parametrize(
    ("other", "measure"),
    [
        ("finetune at LoTUS's rate", "jsd"),
        ("finetune at LoTUS's rate", "avg_gap"),
        ("finetune, BatchNorm frozen", "avg_gap"),
    ],
)
def test_ahead_of_fine_tuning_in_its_own_settings(other, measure):
    """In every seed. Not of fine-tuning at the defaults of that, see `docs/lotus.md`."""
    pairs = list(zip(ROWS["lotus"]["runs"], ROWS[other]["runs"], strict=True))
    assert len(pairs) == 3 and all(ours[measure] < theirs[measure] for ours, theirs in pairs)


def test_ahead_of_each_rival_on_one_axis_at_the_authors_settings():
    """By Avg Gap of all but SCRUB, and of that by JSD; the original hardly remembers there, and SSD finds nothing to dampen."""
    rows = json.loads((RESULTS / "cifar10.json").read_text())["results"]["cifar10-resnet18"]
    ours, apart = rows["lotus (paper)"], {"original", "retrained", "lotus", "lotus (paper)"}
    ahead = {name for name, row in rows.items() if ours["avg_gap"] < row["avg_gap"]}
    assert ahead >= rows.keys() - apart - {"scrub"} and "original" in ahead and "scrub" not in ahead
    assert ours["jsd"] < rows["scrub"]["jsd"]
    assert abs(rows["original"]["jsd"] - rows["retrained"]["jsd"]) < 0.001
    assert rows["ssd"]["forget_accuracy"] == rows["original"]["forget_accuracy"]
