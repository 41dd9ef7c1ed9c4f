"""Forget samples of classes without unseen samples: what is said of the others is not said of these."""

import json

import numpy as np
import pytest
import torch

from hf_unlearn import audit
from hf_unlearn.audits.verdict import decide
from hf_unlearn.hub.withholding import publishable
from tests.tiny import tiny_vit


def noise(labels, seed):
    """Pictures that tell nothing of their labels, so that only memory gets these right."""
    pixels = np.random.default_rng(seed).normal(size=(len(labels), 3, 16, 16)).astype(np.float32)
    return [
        {"pixel_values": torch.from_numpy(picture), "label": int(label)}
        for picture, label in zip(pixels, labels, strict=True)
    ]


def trained_on(rows):
    model = tiny_vit().train()
    pixels, labels = torch.stack([r["pixel_values"] for r in rows]), torch.tensor([r["label"] for r in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def sets():
    """Forget samples of the classes 0 and 1, and unseen ones of all but class 0."""
    return {
        "kept": noise([0] * 60, 1),
        "gone": noise([1] * 60, 2),
        "retain": noise(np.arange(80) % 4, 3),
        "unseen": noise(1 + np.arange(240) % 3, 4),
    }


@pytest.fixture(scope="module")
def models(sets):
    """The original, and a model that still knows half of what it was to forget."""
    kept = sets["kept"] + sets["retain"]
    return trained_on(sets["gone"] + kept), trained_on(kept)


def verdict(sets, models, remembered):
    """Of an audit in which some of the samples that are still known are among the forget samples."""
    forget = sets["gone"] + sets["kept"][:remembered]
    content = audit(*models, forget=forget, retain=sets["retain"], unseen=sets["unseen"]).content
    said = json.dumps(publishable(content)["verdict"])  # how many these are may tell which class it is
    assert not any(told in said for told in ("class 0", "(60", "(3", "95.2%"))
    return content["verdict"]


@pytest.mark.slow
def test_a_class_that_is_still_known_is_not_cleared(sets, models):
    found = verdict(sets, models, 60)
    assert found["outcome"] == "cannot judge"
    assert "forget samples of class 0 (60 of 120) have no unseen samples of their class" in found["headline"]


def test_of_a_few_the_headline_says_so(sets, models):
    found = verdict(sets, models, 3)
    assert found["outcome"] == "no evidence"
    for sentence in (found["headline"], found["plain"]):
        assert "the 95.2% of the forget samples that could be judged" in sentence
    assert any("Forget samples of class 0 (3 of 63) have no" in sentence for sentence in found["cannot"])
    assert "could be judged" not in verdict(sets, models, 0)["headline"]


def test_a_share_is_never_rounded_up():
    assert "the 99.9% of the forget samples" in decide([], share=0.9999).headline
