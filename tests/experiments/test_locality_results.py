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
def test_the_gap_of_a_local_teacher_on_the_class_is_about_that_of_two_retrained_models(case):
    """With patches as the teacher, which are cheaper, on digits alone, where no fifth of the original's training is exceeded."""
    rows = json.loads((RESULTS / "local_teacher.json").read_text())["results"][case]
    of = {name: row["mean"] for name, row in rows.items()}
    most = of["retrained"]["affected_gap"] + 0.02
    assert of["defaults"]["affected_gap"] <= most
    assert (of["patches as the teacher"]["affected_gap"] <= most) == (case == "digits")
    costs = [of[f"{name} as the teacher"]["share_of_training"] for name in ("patches", "a ResNet-8")]
    assert costs[0] < costs[1] and (costs[0] <= 0.2) == (case == "digits")
    assert (of["defaults"]["share_of_training"] <= 0.2) == (case == "digits")
