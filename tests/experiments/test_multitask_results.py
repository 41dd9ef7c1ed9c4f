"""What the committed results of several tasks say: `recipes/experiments/multitask.py`."""

import json

import pytest

from recipes.experiments.study import RESULTS

RIVAL, PLAIN = "neither (NegGrad+)", "neither, cross-entropy"


def runs(study: str, request: str) -> dict[str, list[dict]]:
    rows = json.loads((RESULTS / f"multitask-{study}.json").read_text())["results"][request]
    return {name: row["runs"] for name, row in rows.items()}


@pytest.mark.parametrize(("request_", "seeds"), [("partial", 2), ("full", 3)])
def test_in_how_many_seeds_of_the_toy_the_method_is_ahead(request_, seeds):
    found = runs("toy", request_)
    pairs = list(zip(found["multitask"], found[RIVAL], strict=True))
    assert len(pairs) == 3 and sum(ours["uis"] < theirs["uis"] for ours, theirs in pairs) == seeds


@pytest.mark.parametrize(
    ("study", "request_", "ended"),
    [
        ("cifar10", "partial", {PLAIN}),
        ("cifar10", "full", {RIVAL, PLAIN}),
        ("scenes", "partial", {"multitask", RIVAL, PLAIN}),
        ("scenes", "full", {RIVAL, PLAIN}),
    ],
)
def test_which_runs_end_at_their_aim(study, request_, ended):
    found = runs(study, request_)
    assert {name for name, (one,) in found.items() if one.get("aim_missed", 1) <= 0} == ended


@pytest.mark.parametrize("request_", ["partial", "full"])
def test_how_far_rewind_and_the_method_come_on_cifar10(request_):
    """Of the way from the original to what two retrained models are apart, which README says; and rewind by UIS the nearest."""
    found = {name: one for name, (one,) in runs("cifar10", request_).items()}
    original, floor = (found[name]["uis_retrained"] for name in ("original", "retrained, other seed"))
    for name in ("multitask", "rewind"):
        assert 0.475 < (original - found[name]["uis_retrained"]) / (original - floor) < 0.635
    methods = {name: one["uis"] for name, one in found.items() if not name.startswith(("original", "retrained"))}
    assert min(methods, key=methods.__getitem__) == "rewind"


def test_to_the_retrained_model_rewind_is_nowhere_the_nearest():
    for study in ("cifar10", "scenes"):
        for request in ("partial", "full"):
            found = runs(study, request)
            assert (
                min(found[name][0]["uis_retrained"] for name in ("multitask", RIVAL))
                < found["rewind"][0]["uis_retrained"]
            )
