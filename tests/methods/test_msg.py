"""MSG: which weights are drawn anew, and how far each of them moves."""

import copy

import pytest
import torch
from transformers import TrainerCallback

from hf_unlearn import UnlearningError, UnlearningTrainer, models
from hf_unlearn.methods import Msg, MsgConfig, create_method
from hf_unlearn.methods.msg import smallest
from hf_unlearn.tasks.losses import cross_entropy
from hf_unlearn.training.context import Context
from tests.samples import arguments, fitted, for_trainer, request, weights
from tests.tiny import tiny_resnet, tiny_vit


def prepared(folder, model, config=None, **sizes):
    """A trainer whose method has done what it does before the first step."""
    data = request(n_forget=8, n_retain=8) if not sizes else request(**sizes)
    trainer = UnlearningTrainer(
        model, arguments(folder, use_cpu=True), method=config or MsgConfig(), **for_trainer(data)
    )
    trainer.method.prepare(Context(trainer))
    return trainer


def gradient(model, *sources):
    """∇[CE(first) − CE(second)], directly."""
    losses = []
    for source in sources:
        pixels, labels = source["pixel_values"][:], source["label"][:]
        losses.append(torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels))
    return torch.autograd.grad(losses[0] - losses[1], list(model.parameters()))


class TestSmallest:
    @pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.3, 30), (0.305, 30), (1.0, 100)])
    def test_so_many_and_none_larger(self, share, count):
        g = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
        mask = smallest(g, share)
        assert mask.shape == g.shape and mask.sum() == count
        if 0 < count < 100:
            assert g[mask].abs().max() <= g[~mask].abs().min()

    def test_equal_ones(self):
        assert smallest(torch.zeros(5), 0.4).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("build", [tiny_resnet, tiny_vit])
def test_the_share_with_the_smallest_gradient_is_drawn_anew(tmp_path, build):
    """With as many retained as forget samples, S is all of D_r."""
    original = build()
    data = request(n_forget=8, n_retain=8)
    expected = gradient(copy.deepcopy(original), data["retain"], data["forget"])
    model = copy.deepcopy(original)
    trainer = prepared(tmp_path, model)
    fresh = Context(trainer).untrained_model().state_dict()
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    drawn = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}
    before = dict(original.named_parameters())
    assert drawn and len(trainer.method.masks) == len(before)
    for (name, weight), mask, g in zip(model.named_parameters(), trainer.method.masks, expected, strict=True):
        assert mask.sum() == (round(0.3 * mask.numel()) if name in drawn else 0), name
        if name in drawn:
            assert g[mask].abs().max() <= g[~mask].abs().min() * (1 + 1e-3)
        assert torch.equal(weight[mask], fresh[name][mask]) and torch.equal(weight[~mask], before[name][~mask])
    assert trainer.method.report == {"drawn_anew": sum(int(mask.sum()) for mask in trainer.method.masks)}


def test_a_sample_of_the_retained_ones_by_the_seed(tmp_path):
    asked = []
    for seed in (0, 0, 1):
        trainer = UnlearningTrainer(
            tiny_vit(), arguments(tmp_path, seed=seed), method="msg", **for_trainer(request(n_retain=40))
        )
        context = Context(trainer)
        plain = context.gradients
        context.gradients = lambda loss, groups, plain=plain: (asked.append(groups), plain(loss, groups))[1]
        trainer.method.prepare(context)
    for retain, forget in asked:
        assert forget == [("forget", i) for i in range(8)]
        assert len(set(retain)) == 8 and all(source == "retain" and index < 40 for source, index in retain)
    assert asked[0] == asked[1] != asked[2]


class Start(TrainerCallback):
    def on_train_begin(self, args, state, control, model, **kwargs):
        self.weights = weights(model)


def test_a_step(tmp_path):
    """θ ← θ − η·g, with g times 0.1 wherever a weight was not drawn anew; momentum and decay do nothing in a first step of 0."""
    start, data = Start(), request(n_forget=8, n_retain=8)
    args = {"max_steps": 1, "learning_rate": 0.1, "lr_scheduler_type": "constant", "warmup_steps": 0, "measure": False}
    trainer = UnlearningTrainer(
        fitted(),
        arguments(tmp_path, weight_decay=0.0, **args),
        method=MsgConfig(),
        callbacks=[start],
        **for_trainer(data),
    )
    trainer.train()
    model = tiny_vit()
    model.load_state_dict(start.weights)
    loss = cross_entropy(
        model(pixel_values=data["retain"]["pixel_values"][:]).logits, data["retain"]["label"][:]
    ).mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    after = dict(trainer.model.named_parameters())
    for (name, before), mask, g in zip(model.named_parameters(), trainer.method.masks, expected, strict=True):
        factor = torch.where(mask, 1.0, 0.1)
        assert torch.allclose(before - after[name], 0.1 * factor * g, atol=1e-6), name


def test_combine():
    method = Msg(MsgConfig(elsewhere=0.25))
    method.masks = [torch.tensor([True, False]), torch.tensor([[False]])]
    found = method.combine({"retain": [torch.tensor([4.0, 4.0]), torch.tensor([[8.0]])]})
    assert [g.tolist() for g in found] == [[4.0, 1.0], [[2.0]]]


def test_the_masks_are_kept(tmp_path):
    trainer = prepared(tmp_path, fitted())
    again = create_method("msg")
    again.masks = [torch.zeros_like(mask) for mask in trainer.method.masks]
    again.load_state_dict(trainer.method.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.masks, trainer.method.masks, strict=True))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_or_everything(tmp_path, share):
    model = fitted()
    prepared(tmp_path, model, MsgConfig(share=share))
    same = torch.equal(model.classifier.weight, fitted().classifier.weight)
    assert same == (share == 0)
    assert models.base_of(model).classifier.weight.isfinite().all()


@pytest.mark.parametrize("values", [{"share": 1.1}, {"share": -0.1}, {"elsewhere": 2.0}])
def test_bad_values(values):
    with pytest.raises(
        UnlearningError, match=r"^msg: (share|elsewhere) is .*; expected a (share|factor) in \[0, 1\]\.$"
    ):
        MsgConfig(**values)


def test_the_contests_values():
    expected = {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 5e-4, "learning_rate": 1e-3}
    expected |= {"num_train_epochs": 5, "lr_scheduler_type": "linear", "warmup_steps": 0.5}
    assert MsgConfig.paper().arguments.items() >= expected.items()
    assert (MsgConfig.paper().share, MsgConfig.paper().elsewhere) == (0.3, 0.1)
