"""What the committed results of the audits say: `recipes/experiments/audits.py`."""

import json

import pytest

from recipes.experiments.study import RESULTS

FOUND = json.loads((RESULTS / "audits.json").read_text())["results"]
PLANTED = ("untouched", "head", "over-forgotten", "ascended")


def test_retrained_models_are_seldom_accused():
    alarms = FOUND["false_alarms"]
    assert alarms["pairs"] == 40 and alarms["alarms"] <= 5


@pytest.mark.parametrize("kind", ["instance", "class"])
@pytest.mark.parametrize("row", PLANTED)
def test_a_planted_fault_is_a_fault(kind, row):
    runs = FOUND[kind][row]["runs"]
    assert len(runs) == 5
    for run in runs:
        assert run["failed"] and run["outcome"] not in ("no evidence", "cannot judge")


@pytest.mark.parametrize("kind", ["instance", "class"])
@pytest.mark.parametrize("row", PLANTED)
def test_faults_are_told_apart(kind, row):
    assert FOUND[kind][row]["told"] == 5
