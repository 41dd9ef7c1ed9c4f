"""Gradient rules on a model that is sharded over two processes."""

import json

from tests.runs import torchrun


def test_updates_of_a_sharded_model(tmp_path):
    torchrun("sharded.py", tmp_path)
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == 13
    assert max(errors.values()) < 1e-14, errors
