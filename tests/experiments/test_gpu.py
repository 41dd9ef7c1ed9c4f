"""The measurement of a GPU runs: here on small models, and without a GPU it says so."""

import pytest
import torch

from recipes.experiments import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys):
    assert gpu.main([]) == gpu.NO_GPU == 2
    assert "There is no GPU here" in capsys.readouterr().out


def test_on_small_models():
    rows = gpu.measured(["vit-b16", "llama-1b"], ["lotus", "npo", "damp", "audit"], 12, tiny=True)
    assert [(row["setup"], row["what"]) for row in rows] == [
        ("vit-b16", gpu.PLAIN),
        ("vit-b16", "lotus"),
        ("vit-b16", "damp"),
        ("vit-b16", "audit"),
        ("llama-1b", gpu.PLAIN),
        ("llama-1b", "npo"),
    ]
    assert not any("left_out" in row for row in rows), rows
    assert all(row["per_second"] > 0 and row["waits"] is None for row in rows if "per_second" in row)
    assert rows[1]["of_plain"] == rows[1]["per_second"] / rows[0]["per_second"] and rows[4]["unit"] == "tokens"
    assert rows[2]["passes"] > 0 < rows[3]["passes"]


def test_what_does_not_fit_is_named():
    rows = gpu.measured(["bert-base"], ["lotus"], 0.1, tiny=True)
    assert [row["left_out"] for row in rows] == 2 * ["did not fit into 0.1 minutes"]
