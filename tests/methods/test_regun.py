"""ReGUn: its reference, of the unseen samples that may steer and of no others."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_unlearn import UnlearningError, UnlearningTrainer, models, unlearn
from hf_unlearn.data.splits import SPLIT_SEED, split_unseen
from hf_unlearn.methods import RegunConfig
from hf_unlearn.methods.regun import in_order, nearest_reference, reference
from hf_unlearn.tasks.losses import divergence
from hf_unlearn.training.context import Context
from tests.samples import arguments, fitted, for_trainer, learnt, weights
from tests.tiny import tiny_vit


def prepared(folder, config=None, **changes):
    args = arguments(folder, use_cpu=True, **changes)
    trainer = UnlearningTrainer(fitted(), args, method=config or RegunConfig(), **for_trainer(learnt()))
    trainer.method.prepare(Context(trainer))
    return trainer


def control():
    """Pixels and labels of the half of the unseen samples that may steer."""
    unseen = learnt()["unseen"]
    rows, _ = split_unseen(np.array(unseen["label"]), SPLIT_SEED)
    return unseen["pixel_values"][:][rows], torch.as_tensor(unseen["label"][:])[rows]


@torch.no_grad()
def class_means():
    pixels, labels = control()
    p = fitted()(pixel_values=pixels).logits.softmax(-1)
    return torch.stack([p[labels == c].mean(dim=0) for c in range(4)]).double()


def test_reference():
    means = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    labels = torch.tensor([0, 2, 2, 1])
    expected = 0.25 * means[0] + 0.25 * means[1] + 0.5 * means[2]
    assert torch.allclose(reference(means, labels), expected)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_nearest_reference(k):
    generator = torch.Generator().manual_seed(0)
    forget, unseen = torch.randn(4, 6, generator=generator), torch.randn(10, 6, generator=generator)
    predictions = torch.rand(10, 3, generator=generator).softmax(-1)
    found = nearest_reference(forget, unseen, predictions, k)
    for row, q in zip(forget, found, strict=True):
        near = F.cosine_similarity(row, unseen, dim=1).argsort(descending=True)[:k]
        assert torch.allclose(q, predictions[near].mean(dim=0))


def test_features_of_several_processes_are_put_in_order():
    h = torch.arange(5.0)[:, None]
    batches = [(np.array(rows), None, h[rows]) for rows in ([0, 2, 1, 3], [4])]  # two processes take turns
    assert torch.equal(in_order(batches), h)


def test_the_originals_answers_to_control_samples(tmp_path):
    trainer = prepared(tmp_path)
    assert torch.allclose(trainer.method.means, class_means())


def test_of_a_step(tmp_path):
    """q has the histogram of the whole step, whatever part of it a batch is; the loss is CE + λ·KL."""
    trainer = prepared(tmp_path, RegunConfig(forget_weight=0.5), per_device_train_batch_size=5)
    method, model = trainer.method, fitted()
    samples = Context(trainer).step_samples("forget")
    labels = [learnt()["forget"]["label"][i].item() for _, i in samples]
    assert len(samples) == 5
    method.on_step_begin(0)
    q = class_means()[labels].mean(dim=0)
    assert torch.allclose(method.q, q)
    batch = {
        "forget": Context(trainer).batch(samples[:2]),
        "retain": Context(trainer).batch([("retain", 1), ("retain", 7)]),
    }
    found = method.losses(model, batch)
    z = {name: model(pixel_values=part["pixel_values"]).logits for name, part in batch.items()}
    kl = (q * (q.log() - z["forget"].log_softmax(-1))).sum(-1).mean().item()
    ce = F.cross_entropy(z["retain"], batch["retain"].labels).item()
    assert [found[key].item() for key in ("forget_loss", "retain_loss", "loss")] == pytest.approx(
        [kl, ce, ce + 0.5 * kl], rel=1e-5
    )


def test_of_the_nearest(tmp_path):
    trainer = prepared(tmp_path, RegunConfig(neighbours=3))
    pixels, _ = control()
    forget = learnt()["forget"]["pixel_values"][:]
    model = fitted()
    with torch.no_grad(), models.reading_features(model, 4) as read:
        p = model(pixel_values=pixels).logits
        unseen, p = read(p), p.softmax(-1)
        features = read(model(pixel_values=forget).logits)
    expected = nearest_reference(features, unseen, p, 3)
    assert torch.allclose(trainer.method.targets, expected, atol=1e-6)
    trainer.method.on_step_begin(0)
    part = Context(trainer).batch([("forget", 4), ("forget", 1)])
    batch = {"forget": part, "retain": Context(trainer).batch([("retain", 1)])}
    kl = divergence(expected[[4, 1]].log(), model(pixel_values=part["pixel_values"]).logits).mean()
    assert trainer.method.losses(model, batch)["forget_loss"].item() == pytest.approx(kl.item(), rel=1e-4)


@pytest.mark.parametrize("neighbours", [None, 2])
def test_only_samples_that_may_steer_are_read(tmp_path, unlooked, neighbours):
    """The other half is poison: one of them in a target, and every weight is NaN."""
    data = learnt()
    _, evidence = split_unseen(np.array(data["unseen"]["label"]), SPLIT_SEED)
    poison = set(evidence.tolist())

    def poisoned(row, i):
        return {"pixel_values": row["pixel_values"] * float("nan")} if i in poison else {}

    data["unseen"] = data["unseen"].map(poisoned, with_indices=True)
    args = arguments(tmp_path, measure=False, max_steps=2)
    model = unlearn(fitted(), **data, method=RegunConfig(neighbours=neighbours), args=args).model
    assert all(tensor.isfinite().all() for tensor in weights(model).values())


def test_a_class_without_unseen_samples_is_refused(tmp_path):
    data = learnt()
    data["unseen"] = data["unseen"].filter(lambda row: row["label"] != 2)
    model = fitted()
    before = copy.deepcopy(weights(model))
    with pytest.raises(
        UnlearningError, match="the control half of them has none of class 2; pass some, or set neighbours"
    ):
        unlearn(model, **data, method="regun", args=arguments(tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    unlearn(model, **data, method=RegunConfig(neighbours=1), args=arguments(tmp_path, max_steps=1))


def test_says_what_a_class_comes_to(tmp_path):
    data = learnt(flipped=False)
    whole = {"forget": lambda row: row["label"] == 0, "retain": lambda row: row["label"] != 0}
    data |= {name: data["retain"].filter(keep) for name, keep in whole.items()}
    args = arguments(tmp_path, max_steps=1, measure=False)
    result = unlearn(tiny_vit(), **data, method="regun", args=args)
    assert result.trainer.method.notes[0].startswith("regun is made for single samples")


def test_what_it_does(tmp_path):
    args = arguments(tmp_path, num_train_epochs=6, learning_rate=3e-3)
    metrics = unlearn(fitted(), **learnt(), method="regun", args=args).metrics
    assert metrics["after"]["forget_loss"] > metrics["before"]["forget_loss"] + 0.2
    assert metrics["after"]["retain_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"forget_weight": -1}, "a weight of 0 or more"), ({"neighbours": 0}, "at least 1, or null")],
)
def test_bad_values(values, expected):
    with pytest.raises(UnlearningError, match=rf"^regun: {next(iter(values))} is .*; expected {expected}\.$"):
        RegunConfig(**values)


@pytest.mark.parametrize("neighbours", [None, 2])
def test_an_original_that_is_sure_gives_a_finite_loss(tmp_path, neighbours):
    model = fitted()
    with torch.no_grad():
        model.classifier.weight.mul_(300)  # some of its answers are 0 in float32
    method = RegunConfig(neighbours=neighbours)
    result = unlearn(model, **learnt(), method=method, args=arguments(tmp_path, max_steps=1))
    assert result.trainer.state.global_step == 1
