"""What the committed results on digits say of LoTUS beside fine-tuning: `recipes/experiments/digits.py`."""

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
