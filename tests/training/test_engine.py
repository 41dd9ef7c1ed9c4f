"""The engine of gradient methods: whole gradients, each clipped by itself, and exactly the update that is made of them."""

import json

import pytest
import torch

from hf_unlearn import UnlearningError
from hf_unlearn.training.context import Context
from tests.runs import OWN, OwnDifference, launch, make_trainer, weights


class Watching(OwnDifference):
    """Keeps what the engine gives, and gives an update of its own."""

    def __init__(self, update=None):
        super().__init__()
        self.update, self.seen, self.held = update, [], []

    def combine(self, gradients):
        self.seen.append({name: [g.clone() for g in gradient] for name, gradient in gradients.items()})
        parameters = [parameter for _, parameter in self.trainer.trained()]
        self.held.append(sum(parameter.grad is not None for parameter in parameters))
        return None if self.update is None else [torch.full_like(p, self.update) for p in parameters]


def run(folder, family="vit", update=None, **settings):
    method = Watching(update)
    trainer = make_trainer(method, family, folder, dtype="float64", max_steps=2, **settings)
    method.trainer = trainer
    start = weights(trainer.model)
    trainer.train()
    return method, trainer, start


def test_exactly_the_update(tmp_path):
    method, trainer, start = run(tmp_path, update=0.5, learning_rate=0.01)
    for name, tensor in weights(trainer.model).items():
        assert torch.equal(tensor, start[name] - 0.01 * 0.5 - 0.01 * 0.5), name


def test_no_update(tmp_path):
    _, trainer, start = run(tmp_path)
    assert all(torch.equal(tensor, start[name]) for name, tensor in weights(trainer.model).items())


def test_one_extra_copy(tmp_path):
    """While a method works, there are as many copies of the gradient as names: none is left in `.grad`."""
    method, trainer, _ = run(tmp_path, batch=4, accumulation=2)
    assert method.held == [0, 0]
    assert [set(step) for step in method.seen] == [{"forget", "retain"}] * 2
    assert trainer.named_gradients.by_name == {}


def test_each_gradient_is_clipped_by_itself(tmp_path):
    free, _, _ = run(tmp_path / "free", max_grad_norm=0.0)
    clipped, trainer, _ = run(tmp_path / "clipped", max_grad_norm=0.01)
    for name in ("forget", "retain"):
        before, after = (torch.cat([g.flatten() for g in method.seen[0][name]]) for method in (free, clipped))
        assert before.norm() > 0.01
        torch.testing.assert_close(after, before * (0.01 / before.norm()), rtol=1e-12, atol=0)
    assert trainer.args.max_grad_norm == 0  # the update itself is not clipped


def test_batchnorm_statistics_stay(tmp_path):
    _, trainer, start = run(tmp_path, family="resnet", update=0.5)
    buffers = [name for name, _ in trainer.model.named_buffers()]
    assert buffers and all(torch.equal(weights(trainer.model)[name], start[name]) for name in buffers)


def test_only_an_adapter(tmp_path):
    _, trainer, start = run(tmp_path, update=0.5, lora=True)
    for name, tensor in weights(trainer.model).items():
        assert torch.equal(tensor, start[name]) == ("lora" not in name), name


def test_gradients_of_samples(tmp_path):
    """`Context.gradients`: means over groups, the same whatever the batch size, and nothing left behind."""
    method, trainer, _ = run(tmp_path / "a", batch=3)
    loss = lambda model, batch: batch.mean(torch.nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels, reduction="none"))  # noqa: E731, E501  # fmt: skip
    samples = [("retain", i) for i in range(7)] + [("forget", 2)]
    (whole,) = Context(trainer).gradients(loss, [samples])
    single = Context(trainer).gradients(loss, [[sample] for sample in samples])
    for i, tensor in enumerate(whole):
        torch.testing.assert_close(torch.stack([g[i] for g in single]).mean(dim=0), tensor, rtol=1e-10, atol=1e-14)
    assert all(parameter.grad is None for _, parameter in trainer.trained())


def test_refused(tmp_path):
    class Sgd(OwnDifference):
        plain_sgd = True

    OWN["sgd"] = Sgd
    for settings, what in (
        ({"optim": "adamw_torch"}, "optim='adamw_torch'"),
        ({"optim_args": "momentum=0.9"}, "optim_args='momentum=0.9'"),
        ({"weight_decay": 0.1}, "weight_decay=0.1"),
    ):
        with pytest.raises(
            UnlearningError, match=f"own_difference was given {what}, and its guarantee holds for the exact"
        ):
            make_trainer("sgd", "vit", tmp_path, **settings)


@pytest.mark.slow
def test_one_reduction_for_each_gradient(tmp_path):
    launch("reductions", tmp_path)
    found = json.loads((tmp_path / "reductions.json").read_text())
    assert found == {name: [2.0, 2.0, 2.0] for name in ("own_difference 1", "hamu 1", "own_difference 4", "hamu 4")}
