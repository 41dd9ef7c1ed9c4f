"""What the committed results say of the time before the first step, of memory, and of two processes beside one."""

import json

import pytest

from hf_unlearn.methods.datasheets import datasheets
from recipes.experiments import memory, scaling
from recipes.experiments.study import RESULTS


def rows(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]["rows"]


def test_before_the_first_step():
    """Ten seconds for a million rows; nothing is read of retained pictures that no forget sample is as long as."""
    found = {row["rows"]: row for row in rows("before_first_step")}
    assert found[10**6]["before the first step"] <= 10 and not any(row["read"] for row in found.values())
    for size in (10**5, 10**6):
        assert found[size]["before the first step"] <= 3 * found[size]["pass over pictures"]
    # Of few rows it is missed by what a plain Trainer takes as well.
    few = found[10**4]
    assert few["before the first step"] - few["plain Trainer"] <= 3 * few["pass over pictures"]


@pytest.mark.parametrize("model", ["resnet18", "vit", "bert"])
def test_what_takes_more_than_training_and_one_copy_of_the_weights_says_so(model):
    found = {row["method"]: row["peak"] / row["weights"] for row in rows("memory") if row["model"] == model}
    beyond = {method for method, peak in found.items() if peak > found[memory.PLAIN] + 1}
    assert len(found) > 20 and not [method for method in beyond if not datasheets()[method].memory]


def test_a_row_of_memory_is_one_of_a_run_that_took_steps():
    """What trains holds gradients beside the weights; a run that ended before its first step would hold less."""
    for row in rows("memory"):
        if memory.trains(row["method"]):
            assert row["peak"] > row["weights"] and row.get("steps", 1) > 0, row
    with pytest.raises(RuntimeError, match="pcgrad ended before its first step"):
        memory.check_steps("pcgrad", 0)
    memory.check_steps("damp", 0)


def test_two_processes_are_what_they_are_to_a_plain_trainer():
    found = rows("scaling")
    assert {row["processes"] for row in found if row["way"] != "one"} == {2}
    jobs = {(row["model"], row["method"]) for row in found}
    assert jobs == {(model, method) for model in ("resnet18", "vit") for method in scaling.METHODS}
    for model, method in jobs:
        for way in ("strong", "weak"):
            plain = scaling.efficiency(found, model, scaling.PLAIN, way)
            assert scaling.efficiency(found, model, method, way) > plain - 0.085, (model, method, way)
