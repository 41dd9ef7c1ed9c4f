"""AMUN: the nearest adversarial examples, and what the model is trained on in the place of forget samples."""

import pytest
import torch
from torch.nn import functional as F

from hf_unlearn import UnlearningError, UnlearningTrainer, unlearn
from hf_unlearn.methods import AmunConfig
from hf_unlearn.methods.amun import DOUBLINGS, adversarial, margin, norms, pgd
from hf_unlearn.tasks.losses import IGNORED
from hf_unlearn.training.context import Context
from tests.runs import make_trainer
from tests.samples import arguments, fitted, for_trainer, learnt
from tests.tiny import tiny_vit

W = torch.tensor([[1.0, 2.0, -2.0], [0.0, 0.0, 0.0]])  # of a linear model: the boundary is where w·x = 0, ‖w‖ = 3


def linear(x, rows=None):
    return x @ W.to(x.dtype).T


def prepared(trainer):
    trainer.method.prepare(Context(trainer))
    return trainer


def images(folder, model=None, config=None, **changes):
    data = for_trainer(learnt())
    args = arguments(folder, use_cpu=True, **changes)
    return prepared(UnlearningTrainer(model or fitted(), args, method=config or AmunConfig(), **data))


class TestAttack:
    def test_norms(self):
        x = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
        assert norms(x).flatten().tolist() == pytest.approx([5.0, 0.0], abs=1e-35)
        assert norms(x).shape == (2, 1, 1) and (norms(x) > 0).all()

    def test_margin(self):
        z, labels = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 4
        z.requires_grad_()
        losses = F.cross_entropy(z, labels, reduction="none")
        assert torch.allclose((-margin(z, labels)).exp().log1p(), losses)
        up, down = (torch.autograd.grad(of.sum(), [z])[0] for of in (losses, margin(z, labels)))
        assert torch.allclose(F.normalize(up, dim=1), -F.normalize(down, dim=1))

    @pytest.mark.parametrize("steps", [1, 3, 10])
    def test_straight_to_the_border_of_the_ball(self, steps):
        x, labels = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0]]), torch.tensor([0, 1])
        found = pgd(linear, x, labels, 0.6, steps)
        assert torch.allclose(found, x + 0.6 * torch.stack([-W[0], W[0]]) / 3, atol=1e-5)

    def test_the_radius_doubles_until_the_answer_changes(self):
        """A point at distance d is moved by the first of 0.1, 0.2, 0.4 … that is larger than d."""
        distances = torch.tensor([0.05, 0.15, 0.7, 6.0], dtype=torch.float64)
        x = distances[:, None] * W[0] / 3
        found, answers = adversarial(linear, x, torch.zeros(4, dtype=torch.int64), 0.1, 5)
        assert answers.tolist() == [1, 1, 1, 1] == linear(found).argmax(-1).tolist()
        moved = (found - x).norm(dim=1).tolist()
        assert moved == pytest.approx([0.1, 0.2, 0.8, 6.4])

    def test_rows_do_not_see_each_other(self):
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        labels = linear(x).argmax(-1)
        together = adversarial(linear, x, labels, 0.1, 4)
        for i in range(6):
            alone = adversarial(linear, x[i : i + 1], labels[i : i + 1], 0.1, 4)
            assert torch.allclose(alone[0][0], together[0][i]) and alone[1][0] == together[1][i]

    def test_of_a_sure_model(self):
        """The gradient of its cross-entropy is 0 in float32."""
        x = torch.tensor([[10.0, 20.0, -20.0]])
        found, answers = adversarial(lambda x, rows: linear(x), x, torch.tensor([0]), 0.1, 5)
        assert answers.tolist() == [1] and found.isfinite().all()

    def test_what_never_changes_is_left_out(self):
        calls = []

        def stuck(x, rows):
            calls.append(len(rows))
            return torch.stack([1 + 0 * x[:, 0], 0 * x[:, 0]], dim=1)

        found, answers = adversarial(stuck, torch.ones(2, 3), torch.tensor([0, 1]), 0.1, 1)
        assert answers.tolist() == [IGNORED, 0] and torch.equal(found[0], torch.ones(3))
        assert len(calls) == 2 * (DOUBLINGS + 1)


class TestImages:
    def test_the_original_gives_another_answer(self, tmp_path):
        trainer = images(tmp_path)
        batch = Context(trainer).batch([("forget", i) for i in range(8)])
        points = torch.stack([point.view(3, 16, 16) for point in trainer.method.points])
        said = fitted()(pixel_values=points).logits.argmax(-1)
        assert torch.equal(said, trainer.method.answers) and (said != batch.labels).all()
        moved = (points - batch["pixel_values"]).flatten(1).norm(dim=1)
        radii = 0.1 * 2.0 ** torch.arange(DOUBLINGS)
        reached = radii[torch.searchsorted(radii, moved * (1 - 1e-5))]
        halves = pgd_half(batch, reached)
        assert (moved <= reached * (1 + 1e-5)).all()
        assert torch.equal(halves, batch.labels)  # half as far, the answer is still the label

    def test_what_is_trained_on(self, tmp_path):
        trainer = images(tmp_path)
        method, model = trainer.method, fitted()
        batch = Context(trainer).batch([("retain", 5), ("forget", 3), ("forget", 0)])
        (loss,) = method.losses(model, batch).values()
        pixels = torch.stack([batch["pixel_values"][0], *(method.points[i].view(3, 16, 16) for i in (3, 0))])
        labels = torch.stack([batch.labels[0], method.answers[3], method.answers[0]])
        assert loss.item() == pytest.approx(F.cross_entropy(model(pixel_values=pixels).logits, labels).item())

    def test_without_a_forget_sample(self, tmp_path):
        trainer = images(tmp_path)
        batch = Context(trainer).batch([("retain", 5), ("retain", 2)])
        (loss,) = trainer.method.losses(fitted(), batch).values()
        plain = F.cross_entropy(fitted()(pixel_values=batch["pixel_values"]).logits, batch.labels)
        assert loss.item() == pytest.approx(plain.item())

    def test_what_cannot_be_moved_is_left_out(self, tmp_path):
        model = fitted()
        torch.nn.init.zeros_(model.classifier.weight)
        model.classifier.bias.data = torch.tensor([1.0, 0, 0, 0])
        trainer = images(tmp_path, model, AmunConfig(steps=1))
        stuck = [i for i, label in enumerate(learnt()["forget"]["label"]) if label == 0]
        assert (trainer.method.answers == IGNORED).nonzero().flatten().tolist() == stuck
        assert f"the answer to {len(stuck)} of 8 forget samples is the same however far" in trainer.method.notes[0]
        batch = Context(trainer).batch([("forget", stuck[0])])
        assert trainer.method.losses(model, batch)["loss"] == 0

    def test_what_it_does(self, tmp_path):
        metrics = unlearn(fitted(), **learnt(), method="amun", args=arguments(tmp_path, num_train_epochs=4)).metrics
        assert metrics["before"]["forget_accuracy"] == 1
        assert metrics["after"]["forget_loss"] > metrics["before"]["forget_loss"] + 0.2


def pgd_half(batch, reached):
    """The original's answers at half of the radius that was needed; the label where the first one was enough."""
    said, model = batch.labels.clone(), fitted()
    for epsilon in set(reached.tolist()) - {reached.new_tensor(0.1).item()}:
        rows = reached == epsilon
        moved = pgd(lambda x: model(pixel_values=x).logits, batch["pixel_values"][rows], said[rows], epsilon / 2, 10)
        said[rows] = model(pixel_values=moved).logits.argmax(-1)
    return said


class TestTexts:
    def test_the_original_gives_another_answer_to_other_embeddings(self, tmp_path):
        trainer = prepared(make_trainer("amun", "bert", tmp_path))
        model, method = trainer.model, trainer.method
        context = Context(trainer)
        for i in range(9):
            batch = context.batch([("forget", i)])
            point = method.points[i].view(1, -1, 16)
            assert point.shape[1] == batch["attention_mask"].sum()
            said = model(inputs_embeds=point).logits.argmax(-1)
            assert said == method.answers[i] != batch.labels

    def test_what_is_trained_on(self, tmp_path):
        """In a batch with padding, each text as if it stood alone."""
        trainer = prepared(make_trainer("amun", "bert", tmp_path))
        model, method, context = trainer.model, trainer.method, Context(trainer)
        names = [("forget", i) for i in range(9)] + [("retain", i) for i in range(5)]
        batch = context.batch(names)
        assert (batch["attention_mask"] == 0).any()
        (loss,) = method.losses(model, batch).values()
        losses = []
        for source, i in names:
            alone = context.batch([(source, i)])
            if source == "forget":
                inputs, label = {"inputs_embeds": method.points[i].view(1, -1, 16)}, method.answers[i : i + 1]
            else:
                inputs, label = alone.inputs, alone.labels
            losses.append(F.cross_entropy(model(**inputs).logits, label))
        assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)

    def test_the_embeddings_are_trained_too(self, tmp_path):
        trainer = prepared(make_trainer("amun", "bert", tmp_path))
        batch = Context(trainer).batch([("forget", 0), ("retain", 0)])
        trainer.method.losses(trainer.model, batch)["loss"].backward()
        assert trainer.model.get_input_embeddings().weight.grad.any()
        assert not trainer.model.get_input_embeddings()._forward_hooks

    def test_texts_that_change_are_refused(self, tmp_path):
        trainer = make_trainer("amun", "bert", tmp_path)
        context = Context(trainer)
        context.is_deterministic = False
        with pytest.raises(
            UnlearningError, match="amun: reading a text twice gives different tokens .*; expected fixed"
        ):
            trainer.method.prepare(context)


@pytest.mark.parametrize(
    ("values", "expected"), [({"epsilon": 0.0}, "a positive radius"), ({"steps": 0}, "at least 1")]
)
def test_bad_values(values, expected):
    with pytest.raises(UnlearningError, match=rf"^amun: {next(iter(values))} is .*; expected {expected}\.$"):
        AmunConfig(**values)


def test_the_papers_values():
    assert AmunConfig.paper().steps == 50 and AmunConfig.paper().arguments["num_train_epochs"] == 10


def test_a_checkpoint_holds_no_forget_sample(tmp_path):
    assert not images(tmp_path, tiny_vit()).method.state_dict()
