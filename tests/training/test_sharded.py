"""Gradient rules on a model that is sharded over two processes."""

import json

import pytest

from tests.runs import launch


@pytest.mark.slow
def test_updates_of_a_sharded_model(tmp_path):
    launch("sharded", tmp_path)
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == 13
    assert max(errors.values()) < 1e-14, errors
