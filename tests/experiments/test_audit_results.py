"""What the committed results of the audits say: `recipes/experiments/audits.py`."""

import json

import pytest

from recipes.experiments.study import RESULTS

FOUND = json.loads((RESULTS / "audits.json").read_text())["results"]
PLANTED = ("untouched", "hardly touched", "head", "over-forgotten", "ascended")
SIZES, WRONG = ("15", "30", "60", "120"), ("0.3", "0.15")


def test_retrained_models_are_seldom_accused():
    alarms = FOUND["false_alarms"]
    assert alarms["pairs"] == 40 and alarms["alarms"] <= 5


def test_where_retraining_loses_wrong_labels_it_is_told_so():
    """Which README and docs say: an audit without `retrained=` takes that for harm."""
    rows = json.loads((RESULTS / "closeness_audits.json").read_text())["results"]["rows"]
    retrained = [row for row in rows if row["case"] == "digits" and row["of"].startswith("retrained")]
    assert retrained and all(set(row["fails"]) == {"harm_retain"} for row in retrained)


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


class TestSmallRequests:
    """Of originals that remember little: from 15 to 120 forget samples, ten seeds each."""

    def test_they_are_as_small_and_remember_as_little_as_is_said(self):
        assert set(FOUND["small"]) == set(WRONG) and all(set(of) == set(SIZES) for of in FOUND["small"].values())
        for of in FOUND["small"].values():
            for figures in (rows["untouched"]["original"] for rows in of.values()):
                assert 0.1 < figures["forget_accuracy"] - figures["unseen_accuracy"] < 0.3

    @pytest.mark.parametrize("row", ["untouched", "hardly touched"])
    @pytest.mark.parametrize("beside", ["", ", beside another"], ids=["alone", "beside another"])
    def test_a_model_that_has_forgotten_nothing_is_never_cleared(self, row, beside):
        """It is found, or nothing is judged."""
        for of in FOUND["small"].values():
            for rows in of.values():
                assert rows[row + beside]["of"] == 10 and "no evidence" not in rows[row + beside]["outcomes"]

    @pytest.mark.parametrize("row", ["untouched", "hardly touched"])
    def test_from_what_size_it_is_found(self, row):
        for of in FOUND["small"].values():
            assert of["120"][row]["failed"] >= 9
            for size in SIZES[1:]:
                assert of[size][f"{row}, beside another"]["failed"] == 10

    def test_the_table_of_the_docs(self):
        """Of ten that were hardly touched, how many are failed, by size, in docs/audit.md."""
        alone, beside = "hardly touched", "hardly touched, beside another"
        found = [
            [FOUND["small"][of][size][row]["failed"] for size in SIZES] for row in (alone, beside) for of in WRONG
        ]
        assert found == [[3, 7, 9, 10], [1, 3, 7, 9], [9, 10, 10, 10], [5, 10, 10, 10]]

    def test_retrained_models_are_seldom_accused(self):
        """At a nominal 5% of 160 audits; three standard errors above it."""
        names = ("retrained", "retrained, beside another")
        rows = [rows[name] for of in FOUND["small"].values() for rows in of.values() for name in names]
        assert sum(row["of"] for row in rows) == 160 and sum(row["failed"] for row in rows) <= 16
        assert sum(row["outcomes"].get("no evidence", 0) for row in rows) > 0
