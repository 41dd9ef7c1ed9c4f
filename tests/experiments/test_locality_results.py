"""What the committed results on half of a class say: `recipes/experiments/locality.py`, and `local_teacher.py` of the cost."""

import json

import pytest

from hf_unlearn import list_methods
from recipes.experiments.study import RESULTS

ROWS = json.loads((RESULTS / "locality.json").read_text())["results"]["resnet18-half-a-class"]


def test_every_method_is_there():
    """But the reference itself, those for whole classes or transformers only, and those that came after it."""
    later = {"auto", "rewind", "msg", "ct", "amun", "delete", "regun"}
    assert set(list_methods(task="image-classification")) - {"retrain", "damp", "rmu"} - later < ROWS.keys()
    for row in ROWS.values():
        assert len(row["runs"]) == 3 and row["interval"]["near"] > 0


@pytest.mark.parametrize("other", ["random_label", "gradient_ascent"])
@pytest.mark.parametrize("measure", ["near", "near_retain", "affected_gap"])
def test_a_local_teacher_stays_nearer_to_the_retrained_model(other, measure):
    pairs = list(zip(ROWS["local_teacher"]["runs"], ROWS[other]["runs"], strict=True))
    assert len(pairs) == 3
    for seed, (ours, theirs) in enumerate(pairs):
        assert ours[measure] < theirs[measure], seed


def test_what_is_near_differs_more_than_what_is_far():
    for row in ("local_teacher", "random_label", "gradient_ascent", "retrained"):
        for run in ROWS[row]["runs"]:
            assert run["near"] > run["far"]


@pytest.mark.parametrize("case", ["digits", "cifar10-small"])
def test_a_teacher_of_patches_is_cheaper_and_keeps_the_class_of_digits_alone(case):
    """There the gap on the class is about that of two retrained models, and a fifth of the original's training is not exceeded."""
    rows = json.loads((RESULTS / "local_teacher.json").read_text())["results"][case]
    ours, floor, other = (rows[name]["mean"] for name in ("defaults", "retrained", "a ResNet-8 as the teacher"))
    assert (ours["affected_gap"] <= floor["affected_gap"] + 0.02) == (case == "digits")
    assert (ours["affected_gap"] < other["affected_gap"]) == (case == "digits")
    assert ours["share_of_training"] < other["share_of_training"]
    assert (ours["share_of_training"] <= 0.2) == (case == "digits")
