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
    # What a small model reaches is held against no device's limit; LoTUS is judged, on whatever there is.
    assert [row["goal"] for row in rows] == [0.6, 0.95, None, None, None, 0.95]
    assert [row["met"] for row in rows[:1] + rows[2:5]] == 4 * [None]
    assert rows[1]["met"] == (rows[1]["of_plain"] >= 0.95) and rows[0]["of_limit"] is None


def test_operations():
    """Of a ViT they are those of its matrix products: twice a product's size forward, and twice that backward."""
    model = gpu.vit(tiny=True)
    pixels = torch.zeros(1, 3, 32, 32)
    found = gpu.flops(model, {"pixel_values": pixels, "labels": torch.tensor([0])})
    width, inner, patches, tokens = 32, 64, 4, 5
    embedding, head = patches * 3 * 16 * 16 * width, width * 10
    layer = tokens * (4 * width * width + 2 * width * inner)
    # The pictures need no gradient.
    known = 2 * (3 * layer + 3 * head + 2 * embedding)
    attention = 2 * 2 * tokens * tokens * width
    assert known <= found <= known + 4 * attention


@pytest.mark.parametrize(
    "device, reached", [("NVIDIA H200", 0.5), ("NVIDIA A100-SXM4-80GB", 989 / 624), ("a CPU", None)]
)
def test_what_was_wanted_is_judged(device, reached):
    row = {"setup": "vit-b16", "what": gpu.PLAIN, "per_second": 989e3, "flops": 0.5e9}
    row["of_limit"] = gpu.of_limit(row, device)
    assert row["of_limit"] == (reached and pytest.approx(reached))
    assert gpu.judged(row) == {"goal": 0.6, "met": reached and reached >= 0.6}


def test_only_loss_methods_are_to_be_as_fast_as_a_plain_step():
    row = {"setup": "bert-base", "of_plain": 0.94}
    assert gpu.judged(row | {"what": "lotus"}) == {"goal": 0.95, "met": False}
    assert gpu.judged(row | {"what": "rewind", "of_plain": 0.95})["met"] is True
    for what in ("hamu", "damp", "audit", gpu.PLAIN):
        assert gpu.judged(row | {"what": what}) == {"goal": None, "met": None}


def test_what_does_not_fit_is_named():
    rows = gpu.measured(["bert-base"], ["lotus"], 0.1, tiny=True)
    assert [row["left_out"] for row in rows] == 2 * ["did not fit into 0.1 minutes"]
