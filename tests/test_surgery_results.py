"""What the committed results of the edits say, for the classes that the original rarely confuses with others."""

import json

import pytest

from recipes.experiments.study import RESULTS

RARELY = 0.03  # of the unseen samples
MODELS = ("cnn5", "resnet18", "vit", "vit-digits", "minilm")


def runs(request: str) -> list:
    """(model, figures of the original, of DAMP, what is known of the request) of the classes that are rarely confused."""
    found = []
    for model in MODELS:
        of_model = json.loads((RESULTS / f"damp-{model}.json").read_text())["results"][request]
        rows = (of_model["rows"][row]["runs"] for row in ("original", "damp"))
        for original, edited, about in zip(*rows, of_model["edits"], strict=True):
            if max(about["confused"]) < RARELY:
                found.append((model, original, edited, about))
    return found


@pytest.mark.parametrize(("request_", "most"), [("one", 0.01), ("two", 0.03)])
def test_rarely_confused_classes_are_forgotten_and_the_others_kept(request_, most):
    found = runs(request_)
    assert {"cnn5", "vit-digits"} <= {model for model, *_ in found}
    for model, original, edited, about in found:
        assert edited["forget_unseen"] <= most, (model, about["seed"])
        assert edited["forget_train"] <= most, (model, about["seed"])
        assert edited["retained"] >= original["retained"] - 0.01, (model, about["seed"])


def test_rdms_come_nearer_to_the_retrained_model():
    found = [run for run in runs("one") + runs("two") if run[1]["rdm"] is not None]
    assert found
    for model, original, edited, about in found:
        assert edited["rdm"] > original["rdm"], (model, about["seed"], about["classes"])


@pytest.mark.parametrize(("edit", "wanted"), [("damp", 1.3), ("ssd", 1.2)])
def test_cost(edit, wanted):
    rows = json.loads((RESULTS / "surgery-cost.json").read_text())["results"]["rows"]
    assert {model: row[edit]["ratio"] <= wanted for model, row in rows.items()} == {"resnet18": True, "vit": True}
