"""What the committed results say of what processes send each other in a step."""

import json

import pytest

from hf_unlearn.methods import get_method
from recipes.experiments.communication import PLAIN
from recipes.experiments.study import RESULTS

ROWS = json.loads((RESULTS / "communication.json").read_text())["results"]["rows"]
SENT = {(row["model"], row["method"], row["sharded"]): row["collectives"] for row in ROWS if "collectives" in row}
REFUSED = {"l1_sparse", "salun", "msg", "amun", "orthograd"}  # by FSDP2
GRADIENTS = {"msg": 1, "hamu": 2, "pcgrad": 2, "gru": 2, "orthograd": 2 + 8}  # that are named, and of single samples
TOLD = 64  # bytes, of a flag or a few numbers


def total(model: str, method: str, sharded: bool, kind: str) -> int:
    return sum(size for name, (_, size) in SENT[model, method, sharded].items() if name.startswith(kind))


def rows(sharded: bool, kind: str) -> list[tuple[str, str]]:
    found = [(model, method) for model, method, is_sharded in SENT if is_sharded == sharded and method != PLAIN]
    return [(model, method) for model, method in found if get_method(method).info.kind == kind]


def test_what_was_counted():
    assert {row["method"] for row in ROWS if "refused" in row and row["sharded"]} == REFUSED
    assert not [row for row in ROWS if "refused" in row and not row["sharded"]]
    assert {method for model, method in rows(False, "loss") if model == "vit"} > {"lotus", "rewind", "scrub", "salun"}
    assert {method for model, method in rows(True, "loss") if model == "llama"} > {"npo", "simnpo", "dpo", "undial"}


@pytest.mark.parametrize(("model", "method"), rows(False, "loss"))
def test_loss_methods_send_no_more_than_plain_training(model, method):
    assert total(model, method, False, "allreduce") <= total(model, PLAIN, False, "allreduce") + TOLD
    assert total(model, method, False, "allgather") <= total(model, PLAIN, False, "allgather")


@pytest.mark.parametrize(("model", "method"), rows(False, "gradient"))
def test_each_named_gradient_is_reduced_once(model, method):
    plain = total(model, PLAIN, False, "allreduce")
    assert total(model, method, False, "allreduce") == pytest.approx(GRADIENTS[method] * plain, rel=0.01)


@pytest.mark.parametrize(("model", "method"), rows(True, "loss"))
def test_a_loss_of_sharded_weights_gathers_them_once_for_each_forward_pass(model, method):
    """Of the model, twice at most, and of a teacher or reference that runs beside it, which has no backward pass."""
    gathered, plain = (total(model, name, True, "allgather") for name in (method, PLAIN))
    reduced, whole = (total(model, name, True, "reduce_scatter") for name in (method, PLAIN))
    assert gathered <= 3 * plain and reduced <= 2 * whole


@pytest.mark.parametrize(("model", "method"), rows(True, "gradient"))
def test_each_named_gradient_of_sharded_weights_is_reduced_once(model, method):
    plain = total(model, PLAIN, True, "reduce_scatter")
    assert total(model, method, True, "reduce_scatter") == pytest.approx(GRADIENTS[method] * plain, rel=0.01)
