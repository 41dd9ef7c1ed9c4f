"""DELETE: its target, its tilt, and that it reads forget samples only."""

import pytest
import torch
from scipy import stats

from hf_unlearn import UnlearningTrainer, unlearn
from hf_unlearn.methods import DeleteConfig
from hf_unlearn.methods.delete import delete_loss, erased, similarities
from hf_unlearn.training.context import Context
from tests.samples import arguments, fitted, for_trainer, learnt, request, weights
from tests.tiny import tiny_resnet, tiny_vit

LABELS = torch.tensor([0, 3, 1, 1, 2])


def logits(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_class() -> dict:
    data = request(n_forget=8, n_retain=24)
    whole = {"forget": lambda row: row["label"] == 0, "retain": lambda row: row["label"] != 0}
    return {name: data["retain"].filter(keep) for name, keep in whole.items()} | {"unseen": data["unseen"]}


class TestTarget:
    def test_the_softmax_of_the_others(self):
        z = logits()
        found = erased(z, LABELS)
        assert found[range(5), LABELS].tolist() == [0.0] * 5
        p = z.softmax(-1)
        p[range(5), LABELS] = 0
        assert torch.allclose(found, p / p.sum(-1, keepdim=True))

    def test_of_a_sure_model(self):
        found = erased(torch.tensor([[1e4, 2.0, 1.0, 0.0]]), torch.tensor([0]))
        assert torch.allclose(found[0, 1:], torch.tensor([2.0, 1.0, 0.0]).softmax(-1)) and found[0, 0] == 0

    def test_tilted(self):
        z, head, beta = logits(), torch.randn(4, 7, dtype=torch.float64), 3.0
        found = erased(z, LABELS, beta * similarities(head))
        for row, t in enumerate(erased(z, LABELS)):
            y = LABELS[row]
            cosines = torch.nn.functional.cosine_similarity(head[y], head, dim=1)
            expected = t * torch.exp(beta * cosines)
            assert torch.allclose(found[row], expected / expected.sum())
            assert found[row, y] == 0

    def test_loss(self):
        target, student = erased(logits(), LABELS), logits(1)
        expected = [stats.entropy(t, p) for t, p in zip(target, student.softmax(-1), strict=True)]
        assert delete_loss(student, target).tolist() == pytest.approx(expected)

    def test_at_its_target_there_is_no_gradient(self):
        target = erased(logits(), LABELS)
        student = target.clamp_min(1e-300).log().requires_grad_()
        loss = delete_loss(student, target).sum()
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-9) and student.grad.abs().max() < 1e-9


@pytest.mark.parametrize("build", [tiny_vit, tiny_resnet])
def test_the_tilt_is_of_the_originals_head(tmp_path, build):
    model = build()
    args = arguments(tmp_path, use_cpu=True)
    trainer = UnlearningTrainer(model, args, method=DeleteConfig(beta=2.0), **for_trainer(request()))
    trainer.method.prepare(Context(trainer))
    head = [module for module in model.modules() if getattr(module, "out_features", None) == 4][-1].weight
    assert torch.allclose(trainer.method.tilt, 2.0 * similarities(head.detach()))
    assert torch.allclose(trainer.method.tilt.diagonal(), torch.full((4,), 2.0))


@pytest.mark.parametrize("given", ["retain", "nothing"])
def test_only_forget_samples_are_read(tmp_path, unlooked, given):
    data = request()
    data["retain"] = data["retain"].map(lambda row: {"pixel_values": row["pixel_values"] * float("nan")})
    data = {name: rows for name, rows in data.items() if name == "forget" or name == given}
    args = arguments(tmp_path, measure=False, num_train_epochs=2)
    result = unlearn(tiny_resnet(), **data, method="delete", args=args)
    assert all(tensor.isfinite().all() for tensor in weights(result.model).values())
    assert result.trainer.state.global_step == 2


def test_a_class(tmp_path):
    args = arguments(tmp_path, num_train_epochs=10, learning_rate=3e-3)
    result = unlearn(fitted(flipped=False), **one_class(), method="delete", args=args)
    assert result.metrics["before"]["forget_accuracy"] == 1 and result.metrics["after"]["forget_accuracy"] == 0
    assert result.metrics["after"]["retain_accuracy"] > 0.8
    assert result.trainer.method.notes == []


def test_says_that_it_is_for_classes(tmp_path):
    result = unlearn(fitted(), **learnt(), method="delete", args=arguments(tmp_path, max_steps=1))
    assert result.trainer.method.notes[0].startswith("delete is made for whole classes")


def test_the_papers_values():
    expected = {"learning_rate": 1e-4, "num_train_epochs": 20, "optim": "sgd", "optim_args": "momentum=0.9"}
    assert DeleteConfig.paper().arguments.items() >= expected.items() and DeleteConfig.paper().beta == 0
