"""The classification baselines: their formulas, the errors that published implementations have made, and what they do."""

import copy
import dataclasses
import json
import math

import datasets
import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from hf_unlearn import UnlearningArguments, UnlearningError, UnlearningTrainer, models, unlearn
from hf_unlearn.data.schedule import Schedule
from hf_unlearn.methods import (
    METHODS,
    BadTeacherConfig,
    GradientAscentConfig,
    L1SparseConfig,
    NeggradPlusConfig,
    RmuConfig,
    SalunConfig,
    ScrubConfig,
    UnsirConfig,
    create_method,
    get_method,
)
from hf_unlearn.methods.ascent import ascended
from hf_unlearn.methods.bad_teacher import bad_teaching_loss
from hf_unlearn.methods.frozen import OnlineTeacher
from hf_unlearn.methods.l1_sparse import decayed, l1_norm
from hf_unlearn.methods.neggrad_plus import neggrad_loss
from hf_unlearn.methods.salun import Salun, saliency_mask
from hf_unlearn.methods.scrub import max_loss, min_loss
from hf_unlearn.methods.unsir import learn_noise, noise_loss
from hf_unlearn.tasks.losses import cross_entropy, divergence
from hf_unlearn.training.context import Context
from tests import groups
from tests.marks import slow_but
from tests.runs import StopAt, make_trainer
from tests.samples import arguments, fitted, for_trainer, learnt, request, same_bits, weights
from tests.tiny import tiny_resnet, tiny_vit

BASELINES = ["l1_sparse", "gradient_ascent", "neggrad_plus", "bad_teacher", "scrub", "unsir", "salun"]
# Every method that SalUn can train with.
INNER = {
    name: name
    for name, method in METHODS.items()
    if method.info.kind == "loss" and "base_model" not in method.info.needs and not method.starts_over
    if "image-classification" in method.info.applies_to and name != "salun"
}
INNER |= {"gradient_ascent": GradientAscentConfig(look=2), "scrub": ScrubConfig(rewind=True)}


def logits(n: int = 5, classes: int = 4, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(folder, method, model=None, data=None, **changes):
    """A short run on a model that knows its training samples by heart."""
    return unlearn(
        fitted() if model is None else model, **(data or learnt()), method=method, args=arguments(folder, **changes)
    )


def one_class(label: int = 0) -> dict[str, datasets.Dataset]:
    """All samples of a class are to be forgotten."""
    data = learnt(flipped=False)
    both = datasets.concatenate_datasets([data["forget"], data["retain"]])
    return {
        "forget": both.filter(lambda row: row["label"] == label),
        "retain": both.filter(lambda row: row["label"] != label),
        "unseen": data["unseen"],
    }


def poisoned(data: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """One forget sample in a step, and every weight is NaN; see `unlooked`."""
    poison = data["forget"].map(lambda row: {"pixel_values": row["pixel_values"] * float("nan")})
    return data | {"forget": poison}


def recorded(trainer) -> set[str]:
    """The splits that the method asks for."""
    asked = set()
    for name in ("measure", "accuracy"):
        ask = getattr(trainer.looks, name)
        setattr(trainer.looks, name, lambda split, ask=ask: (asked.add(split), ask(split))[1])
    return asked


# ---------------------------------------------------------------------------------------------------------------------
# Formulas


class TestDivergence:
    def test_closed_form(self):
        p, q = logits(seed=1), logits(seed=2)
        expected = [stats.entropy(a, b) for a, b in zip(p.softmax(-1), q.softmax(-1), strict=True)]
        assert divergence(p, q).tolist() == pytest.approx(expected)
        assert divergence(p, q, 3.0).tolist() == pytest.approx(divergence(p / 3, q / 3).tolist())

    def test_of_equal_inputs_is_nothing(self):
        assert divergence(logits(), logits()).tolist() == [0.0] * 5

    def test_the_mean_does_not_depend_on_the_number_of_rows(self):
        p, q = logits(seed=1), logits(seed=2)
        assert divergence(p.repeat(3, 1), q.repeat(3, 1)).mean() == pytest.approx(divergence(p, q).mean().item())

    def test_sure_teachers_give_finite_values(self):
        p, q = torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.zeros(2, 2, requires_grad=True)
        found = divergence(p, q)
        assert found.tolist() == pytest.approx([np.log(2)] * 2)
        found.sum().backward()
        assert q.grad.isfinite().all()


def test_l1_norm():
    parts = [torch.tensor([[1.0, -2.0]]), torch.tensor([-0.5])]
    assert l1_norm(parts) == 3.5
    assert [decayed(8e-4, step, 4) for step in (0, 1, 3)] == pytest.approx([8e-4, 6e-4, 2e-4])


def test_neggrad_loss():
    assert neggrad_loss(torch.tensor(3.0), torch.tensor(2.0), 0.75) == pytest.approx(0.75 * 3 - 0.25 * 2)


def test_bad_teaching_loss():
    student, competent, incompetent = (logits(seed=seed) for seed in range(3))
    is_forget = torch.tensor([True, False, True, False, False])
    found = bad_teaching_loss(student, competent, incompetent, is_forget, 2.0)
    expected = torch.where(is_forget, divergence(incompetent, student, 2.0), divergence(competent, student, 2.0))
    assert torch.equal(found, expected)


class TestScrubLosses:
    def test_closed_form(self):
        student, teacher, labels = logits(seed=1), logits(seed=2), torch.arange(5) % 4
        p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
        kl = (p * (p / q).log()).sum(-1)
        assert torch.allclose(max_loss(student, teacher, 4.0), -16 * kl)
        ce = F.cross_entropy(student, labels, reduction="none")
        assert torch.allclose(min_loss(student, teacher, labels, 4.0, 0.5, 0.9), 0.5 * 16 * kl + 0.9 * ce)

    def test_a_student_that_is_the_teacher(self):
        x, labels = logits(), torch.arange(5) % 4
        assert not max_loss(x, x, 4.0).any()
        assert torch.allclose(min_loss(x, x, labels, 4.0, 0.001, 0.99), 0.99 * cross_entropy(x, labels))


class TestNoise:
    def test_loss(self):
        noise, labels = torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]]), torch.tensor([0, 1])
        expected = -cross_entropy(noise[:, 0], labels) + 0.1 * torch.tensor([5.0, 9.0])
        assert torch.allclose(noise_loss(noise[:, 0], labels, noise, 0.1), expected)

    def test_the_error_is_maximised_and_every_sample_learned_by_itself(self):
        torch.manual_seed(0)
        layer, noise, labels = torch.nn.Linear(6, 3), torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
        learned = learn_noise(layer, noise, labels, steps=40, rate=0.1, penalty=0.01)
        assert (cross_entropy(layer(learned), labels) > cross_entropy(layer(noise), labels) + 0.5).all()
        alone = learn_noise(layer, noise[1:2], labels[1:2], steps=40, rate=0.1, penalty=0.01)
        assert torch.allclose(learned[1:2], alone, atol=1e-5)
        assert layer.weight.grad is None

    def test_the_penalty_keeps_it_small(self):
        layer, noise = torch.nn.Linear(6, 3), torch.ones(2, 6)
        small, large = (learn_noise(layer, noise, torch.tensor([0, 1]), 60, 0.1, penalty) for penalty in (10.0, 0.0))
        assert small.norm() < 0.5 < noise.norm() < large.norm()


class TestSaliencyMask:
    def test_the_threshold_is_over_all_tensors_together(self):
        gradient = [torch.tensor([[0.1, -5.0], [0.2, 3.0]]), torch.tensor([0.3, -4.0])]
        found = saliency_mask(gradient, 0.5)
        assert [mask.tolist() for mask in found] == [[[False, True], [False, True]], [False, True]]

    @pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9, 1.0])
    def test_the_count_is_exact(self, density):
        gradient = list(logits(100, 7).split(30))
        assert sum(mask.sum() for mask in saliency_mask(gradient, density)) == round(density * 700)

    def test_a_weight_without_gradient_is_never_in(self):
        found = saliency_mask([torch.tensor([0.0, 0.0, 0.0, 1.0])], 0.75)
        assert found[0].tolist() == [False, False, False, True]


# ---------------------------------------------------------------------------------------------------------------------
# Errors found in published implementations


class TestMaskedWeights:
    """SalUn: gradients were masked, and weight decay and momentum moved masked weights all the same."""

    @pytest.mark.parametrize("inner", slow_but(["gradient_ascent", "rmu", "scrub"], INNER))
    def test_masked_weights_keep_their_bits(self, tmp_path, inner):
        config = SalunConfig(inner=INNER[inner], density=0.3)
        changes = {"weight_decay": 0.1, "num_train_epochs": 3, "max_grad_norm": 0.5, "measure": False}
        result = run(tmp_path, config, **changes)
        self.check(result, 0.3)
        assert result.trainer.state.global_step >= 3

    def test_with_momentum_and_coupled_weight_decay(self, tmp_path):
        changes = {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.1, "learning_rate": 0.1}
        self.check(run(tmp_path, SalunConfig(density=0.5), **changes), 0.5)

    def check(self, result, density):
        before, after = dict(fitted().named_parameters()), dict(result.model.named_parameters())
        only = result.trainer.method.trained_modules(result.model)
        names = [name for name in before if only is None or name.rpartition(".")[0] in only]
        masks = dict(zip(names, result.trainer.method.masks, strict=True))
        kept = sum(mask.sum().item() for mask in masks.values())
        assert kept == round(density * sum(mask.numel() for mask in masks.values()))
        for name, tensor in before.items():
            mask = masks.get(name, torch.zeros_like(tensor, dtype=torch.bool))
            assert torch.equal(tensor[~mask], after[name][~mask]), name
        moved = sum((before[name] != after[name]).sum().item() for name in before)
        assert moved > 0.9 * kept

    def test_without_the_mask_they_would_move(self, tmp_path):
        result = run(tmp_path, SalunConfig(density=1.0), weight_decay=0.1)
        before, after = dict(fitted().named_parameters()), dict(result.model.named_parameters())
        assert sum((before[name] != after[name]).sum() for name in before) > 0.99 * sum(
            p.numel() for p in before.values()
        )

    def test_a_single_batch_makes_a_mask_and_every_sample_counts(self, tmp_path):
        """The first batch was dropped: a forget set of one batch gave an empty mask."""
        model, data = fitted(), learnt()
        found = []
        for batch in (64, 3):  # all 8 samples in one, or in three of them
            method = Salun(SalunConfig())
            run(tmp_path, method, per_device_train_batch_size=batch, max_steps=1)
            found.append(method.masks)
        loss = F.cross_entropy(
            model(pixel_values=data["forget"]["pixel_values"][:]).logits, data["forget"]["label"][:]
        )
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        expected = saliency_mask(list(gradient), 0.5)
        for masks in found:
            same = sum((a == b).sum() for a, b in zip(masks, expected, strict=True))
            assert same > 0.999 * sum(mask.numel() for mask in expected)  # where the threshold lies, rounding decides

    def test_the_method_inside(self):
        config = SalunConfig(inner=NeggradPlusConfig(beta=0.5), density=0.1)
        assert (config.inner, config.inner_settings["beta"]) == ("neggrad_plus", 0.5)
        assert SalunConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
        method = create_method(config)
        assert method.inner.config == NeggradPlusConfig(beta=0.5)
        assert method.epochs(2) == ["paired"] * 2
        assert create_method(SalunConfig(inner="gradient_ascent")).info.needs == ("forget", "unseen")
        for inner in ("retrain", "hamu"):
            with pytest.raises(
                UnlearningError, match=f"salun: inner is '{inner}'; expected a loss method that starts"
            ):
                create_method(SalunConfig(inner=inner))
        with pytest.raises(UnlearningError, match="no method 'scrubb'; did you mean 'scrub'"):
            create_method(SalunConfig(inner="scrubb"))


class TestScrubTrains:
    """SCRUB: the optimizer held a copy of the model; epochs were halved twice; KL was fed raw logits."""

    def test_parameters_change(self, tmp_path):
        after = weights(run(tmp_path, "scrub").model)
        assert not any(torch.equal(tensor, after[name]) for name, tensor in fitted().named_parameters())

    @pytest.mark.parametrize(
        ("max_epochs", "first", "expected"),
        [
            (2, "forget", ["forget", "retain", "forget", "retain", "retain", "retain", "retain"]),
            (2, "retain", ["retain", "forget", "retain", "forget", "retain", "retain", "retain"]),
            (0, "forget", ["retain"] * 5),
            (9, "forget", ["forget", "retain"] * 5),
            (9, "retain", ["retain"] + ["forget", "retain"] * 4),
        ],
    )
    def test_epochs_count(self, tmp_path, max_epochs, first, expected):
        config = ScrubConfig(max_epochs=max_epochs, first=first)
        trainer = UnlearningTrainer(
            tiny_vit(), arguments(tmp_path, num_train_epochs=5), method=config, **for_trainer(request())
        )
        assert trainer.schedule.epochs == expected
        assert len(trainer.schedule) == expected.count("forget") + 3 * expected.count("retain")

    def test_max_steps_see_forget_samples_and_min_steps_retained_ones(self, tmp_path):
        """Without labels and without max-steps, a student that is its teacher stays where it is."""
        still = ScrubConfig(max_epochs=0, gamma=0.0, alpha=1.0)
        result = run(tmp_path, still, optim="sgd", learning_rate=1e-3, weight_decay=0.0)
        before = dict(fitted().named_parameters())
        assert all(torch.allclose(before[name], p, atol=1e-5) for name, p in result.model.named_parameters())

    def test_forget_samples_are_not_read_in_min_steps(self, tmp_path, unlooked):
        with pytest.raises(UnlearningError, match="NaN or infinite"):
            run(tmp_path, "scrub", data=poisoned(learnt()), measure=False)
        model = run(tmp_path, ScrubConfig(max_epochs=0), data=poisoned(learnt()), measure=False).model
        assert all(tensor.isfinite().all() for tensor in weights(model).values())


class TestRewind:
    """SCRUB+R."""

    def test_the_nearest_epoch_wins(self, tmp_path):
        accuracies, states = [], []

        class Watching(METHODS["scrub"]):
            def on_step_end(self, step):
                if step in (3, 7, 11, 15):  # three steps over the retained samples, after one over the forget set
                    accuracies.append(self.context.accuracy("forget"))
                    states.append(weights(self.context.model))

        changes = {"num_train_epochs": 4, "learning_rate": 3e-3}
        run(tmp_path, Watching(ScrubConfig(max_epochs=4)), **changes)
        result = run(tmp_path, ScrubConfig(max_epochs=4, rewind=True), **changes)
        level = result.trainer.original["control"].mean("correct", like=result.trainer.original["forget"].labels)
        gaps = [abs(accuracy - level) for accuracy in accuracies]
        assert result.trainer.method.gap == min(gaps) and len(set(gaps)) > 1
        assert same_bits(weights(result.model), states[int(np.argmin(gaps))])

    def test_only_the_control_half_steers(self, tmp_path):
        trainer = make_trainer(ScrubConfig(rewind=True), "vit", tmp_path, measure=False)
        asked = recorded(trainer)
        trainer.train()
        assert asked == {"forget", "control"}

    @pytest.mark.parametrize("stop", [5, pytest.param(13, marks=pytest.mark.slow)])
    def test_resumed_in_the_middle(self, tmp_path, stop):
        settings = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3}
        method = ScrubConfig(rewind=True, max_epochs=3)
        expected = make_trainer(method, "resnet", tmp_path / "a", **settings)
        expected.train()
        with pytest.raises(UnlearningError, match="killed"):
            make_trainer(method, "resnet", tmp_path / "b", callbacks=[StopAt(stop)], **settings).train()
        resumed = make_trainer(method, "resnet", tmp_path / "b", **settings)
        resumed.train(resume_from_checkpoint=True)
        assert same_bits(weights(resumed.model), weights(expected.model))

    def test_needs_unseen_samples(self, tmp_path):
        with pytest.raises(
            UnlearningError, match="scrub: rewind is on, and there are no unseen samples; expected unsee"
        ):
            run(tmp_path, ScrubConfig(rewind=True), data=learnt() | {"unseen": None})


class TestSignOfNeggrad:
    """NegGrad+: the sign was flipped before `backward()`, so that it descended on the forget samples."""

    def after_a_step(self, folder, beta):
        config = NeggradPlusConfig(beta=beta, until="end")
        changes = {"optim": "sgd", "learning_rate": 0.02, "max_steps": 1, "per_device_train_batch_size": 32}
        metrics = run(folder, config, tiny_vit(), request(), **changes).metrics
        return {k: metrics["after"][k] - metrics["before"][k] for k in ("forget_loss", "retain_loss")}

    def test_a_forget_only_step_raises_the_forget_loss(self, tmp_path):
        assert self.after_a_step(tmp_path, beta=0.0)["forget_loss"] > 1e-3

    def test_a_retain_only_step_lowers_the_retain_loss(self, tmp_path):
        assert self.after_a_step(tmp_path, beta=1.0)["retain_loss"] < -1e-3

    def test_every_step_has_as_many_of_both(self, tmp_path):
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), method="neggrad_plus", **for_trainer(request()))
        sizes = [{name: len(draws) for name, draws in trainer.schedule.step(i).items()} for i in range(6)]
        assert sizes == [{"forget": 8, "retain": 8}] * 6

    @pytest.mark.parametrize(("beta", "objective"), [(0.95, "ce"), (0.95, "bounded"), (1.0, "bounded")])
    def test_it_is_the_gradient_of_the_formula(self, tmp_path, beta, objective):
        """One step of plain SGD on whole sets, against autograd."""
        model, data = fitted(), learnt()
        parameters = list(model.parameters())

        def losses(name):
            part = data[name]
            logits = model(pixel_values=part["pixel_values"][:]).logits
            return F.cross_entropy(logits, part["label"][:], reduction="none")

        # A step of 24 retained samples has every one of the 8 forget samples three times.
        forget = ascended(losses("forget"), objective).mean()
        gradient = torch.autograd.grad(neggrad_loss(losses("retain").mean(), forget, beta), parameters)
        changes = {"optim": "sgd", "learning_rate": 0.5, "max_steps": 1, "per_device_train_batch_size": 24}
        config = NeggradPlusConfig(beta=beta, objective=objective, until="end")
        found = run(tmp_path, config, max_grad_norm=0.0, weight_decay=0.0, **changes).model
        for p, g, after in zip(parameters, gradient, found.parameters(), strict=True):
            assert torch.allclose(after, p - 0.5 * g, atol=1e-5)


class TestRetainSampling:
    """Retained samples were drawn from the global generator: the same on every process, others after a resume."""

    def schedule(self, seed=0):
        return Schedule(["mixed"] * 3, n_forget=9, n_retain=100, batch_size=8, seed=seed, retain_fraction=0.3)

    def test_a_function_of_the_seed_alone(self):
        def drawn(seed):
            schedule = self.schedule(seed)
            return [schedule.step(step) for step in range(len(schedule))]

        torch.manual_seed(0), np.random.seed(0)
        first = drawn(0)
        torch.manual_seed(1), np.random.seed(1)
        assert drawn(0) == first
        assert drawn(1) != first

    def test_a_fixed_share_all_of_it_in_every_epoch(self):
        schedule = self.schedule()
        epochs = [[] for _ in range(3)]
        for step in range(len(schedule)):
            epochs[schedule.epoch(step)] += [d for draws in schedule.step(step).values() for d in draws]
        for draws in epochs:
            retained = sorted(d.index for d in draws if d.source == "retain")
            assert retained == sorted(schedule.retain_subset.tolist()) and len(retained) == 30
            assert sorted(d.index for d in draws if d.source == "forget") == list(range(9))

    def test_processes_share_a_step_out(self):
        schedule = self.schedule()
        ranks = [list(schedule.micro_batches(0, rank, 2, 1)) for rank in (0, 1)]
        for step, parts in enumerate(zip(*ranks, strict=True)):
            samples = [[(d.source, d.index) for d in part if d.weight] for part in parts]
            whole = [(d.source, d.index) for draws in schedule.step(step).values() for d in draws]
            assert not set(samples[0]) & set(samples[1])
            assert sorted(samples[0] + samples[1]) == sorted(whole)

    def test_a_resumed_run_goes_on_with_the_same_samples(self):
        schedule = self.schedule()
        assert list(schedule.micro_batches(0, 0, 2, 1))[4:] == list(schedule.micro_batches(4, 0, 2, 1))


class TestBatchNorm:
    """A teacher in training mode moved its own statistics, and ascent left those of forget samples in the student."""

    @pytest.mark.parametrize("online", [False, True])
    @pytest.mark.parametrize("name", slow_but(["scrub"], ["bad_teacher", "scrub"]))
    def test_teachers_never_change(self, tmp_path, name, online):
        trainer = make_trainer(name, "resnet", tmp_path, batch=12, freeze_batchnorm=False)
        if online:
            trainer.reading.deterministic = False
        prepare, before = trainer.method.prepare, {}

        def teachers():
            found = vars(trainer.method).values()
            return [t.model for t in found if isinstance(t, OnlineTeacher)]

        def watched(context):
            prepare(context)
            before["states"] = [weights(model) for model in teachers()]

        trainer.method.prepare = watched
        start = weights(trainer.model)
        trainer.train()
        assert len(teachers()) == online + (name == "bad_teacher")
        for model, state in zip(teachers(), before["states"], strict=True):
            assert same_bits(weights(model), state) and not any(module.training for module in model.modules())
            assert not any(p.requires_grad for p in model.parameters())
        assert not same_bits(start, weights(trainer.model))

    @pytest.mark.parametrize("freeze", [True, False])
    @pytest.mark.parametrize("name", slow_but(["scrub"], ["gradient_ascent", "neggrad_plus", "scrub"]))
    def test_statistics_of_the_student(self, tmp_path, name, freeze):
        trainer = make_trainer(name, "resnet", tmp_path, batch=12, freeze_batchnorm=freeze)
        before = dict(copy.deepcopy(trainer.model).named_buffers())
        trainer.train()
        moved = [key for key, buffer in trainer.model.named_buffers() if not torch.equal(buffer, before[key])]
        assert bool(moved) != freeze

    @pytest.mark.parametrize("name", [name for name in BASELINES if name != "l1_sparse"])
    def test_frozen_by_default(self, name):
        assert METHODS[name]().arguments("convolutional")["freeze_batchnorm"]


# ---------------------------------------------------------------------------------------------------------------------
# What they do


class TestL1Sparse:
    @pytest.mark.slow
    def test_weights_become_smaller_and_retained_samples_stay(self, tmp_path):
        changes = {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 10, "weight_decay": 0.0}
        plain, sparse = (run(tmp_path, L1SparseConfig(gamma=gamma), **changes) for gamma in (0.0, 3e-2))
        sizes = [sum(p.abs().sum().item() for p in r.model.parameters()) for r in (plain, sparse)]
        assert sizes[1] < 0.95 * sizes[0]
        assert sparse.metrics["after"]["retain_accuracy"] == 1
        assert sparse.metrics["after"]["forget_loss"] > plain.metrics["after"]["forget_loss"]

    def test_without_a_penalty_it_is_finetuning(self, tmp_path):
        changes = {"optim": "sgd", "learning_rate": 0.1}
        a, b = (run(tmp_path, method, **changes).model for method in (L1SparseConfig(gamma=0.0), "finetune"))
        assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a.parameters(), b.parameters(), strict=True))

    def test_one_step_is_the_subgradient(self, tmp_path):
        changes = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1, "max_grad_norm": 0.0, "weight_decay": 0.0}
        with_it, without = (
            run(tmp_path, L1SparseConfig(gamma=gamma), per_device_train_batch_size=5, **changes).model
            for gamma in (1e-2, 0.0)
        )
        for start, a, b in zip(fitted().parameters(), with_it.parameters(), without.parameters(), strict=True):
            assert torch.allclose(a - b, -0.1 * 1e-2 * start.sign(), atol=1e-6)

    def test_never_reads_a_forget_sample(self, tmp_path, unlooked):
        model = run(tmp_path, "l1_sparse", data=poisoned(learnt()), measure=False).model
        assert all(tensor.isfinite().all() for tensor in weights(model).values())


class TestGradientAscent:
    def test_stops_at_the_level_of_unseen_samples(self, tmp_path):
        result = run(tmp_path, "gradient_ascent", num_train_epochs=50, learning_rate=1e-3)
        trainer, metrics = result.trainer, result.metrics
        assert metrics["before"]["forget_accuracy"] == 1
        assert metrics["after"]["forget_accuracy"] <= trainer.method.level < 0.5
        assert metrics["after"]["forget_loss"] < 10
        assert 1 < trainer.state.global_step < len(trainer.schedule)

    def test_says_that_there_is_nothing_to_do(self, tmp_path):
        result = run(tmp_path, "gradient_ascent", tiny_vit())
        level = 100 * result.trainer.method.level
        assert result.trainer.state.global_step == 0 and result.trainer.method.notes == [
            f"gradient_ascent: the original is right on 25 % of the forget samples, no more than the {level:.0f} % where the "
            "ascent ends, and nothing was changed."
        ]

    def test_with_a_look_at_every_step_it_stops_at_once(self, tmp_path):
        seen = []

        class Watching(METHODS["gradient_ascent"]):
            def is_done(self):
                seen.append(self.context.accuracy("forget"))
                return super().is_done()

        method = Watching(GradientAscentConfig(look=1))
        run(tmp_path, method, num_train_epochs=50, learning_rate=1e-3)
        done = [accuracy <= method.level for accuracy in seen]
        assert done[-1] and not any(done[:-2])  # the end of a step may be that of an epoch, too

    def test_a_class_is_forgotten_whole(self, tmp_path):
        result = run(tmp_path, "gradient_ascent", fitted(flipped=False), one_class(), num_train_epochs=50)
        assert result.trainer.method.level == 0
        assert result.metrics["after"]["forget_accuracy"] == 0

    def test_the_evidence_half_does_not_steer(self, tmp_path):
        trainer = make_trainer("gradient_ascent", "vit", tmp_path, measure=False)
        asked = recorded(trainer)
        trainer.train()
        assert asked == {"forget", "control"}

    def test_clipping_is_on_purpose_or_off(self, tmp_path):
        def steps(max_grad_norm):
            changes = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "max_grad_norm": max_grad_norm}
            model = run(tmp_path, "gradient_ascent", **changes).model
            both = zip(model.parameters(), fitted().parameters(), strict=True)
            return sum((a - b).square().sum() for a, b in both).sqrt().item()

        assert METHODS["gradient_ascent"]().arguments("convolutional")["max_grad_norm"] == 1
        assert steps(0.01) == pytest.approx(0.01, rel=1e-3)
        assert steps(0.0) > 0.03


class TestNeggradPlus:
    def test_what_it_does(self, tmp_path):
        metrics = run(tmp_path, "neggrad_plus", num_train_epochs=10, learning_rate=2e-3).metrics
        assert metrics["before"]["forget_accuracy"] == 1
        assert metrics["after"]["forget_accuracy"] <= metrics["after"]["unseen_accuracy"] + 0.25
        assert metrics["after"]["retain_accuracy"] == 1

    @pytest.mark.parametrize("objective", ["ce", "bounded"])
    @pytest.mark.parametrize("method", slow_but(["neggrad_plus"], ["neggrad_plus", "grad_diff"]))
    def test_the_end_does_not_run_away(self, tmp_path, method, objective):
        """What unseen samples cost rises with the damage; the run ends at what the original knew of them."""
        method = get_method(method).config_class(objective=objective)
        data, original = groups.half_of_a_class(0), groups.fitted(0, 0, retrained=False)
        args = UnlearningArguments(tmp_path, save_strategy="no", disable_tqdm=True)
        result = unlearn(copy.deepcopy(original), **data, method=method, args=args, overlap="allow")
        trainer, (before, after) = result.trainer, (result.metrics[when] for when in ("before", "after"))
        assert 0 < trainer.state.global_step < trainer.state.max_steps
        labels = trainer.measure()["forget"].labels
        control = trainer.evaluator.measure(original, *trainer.indices["control"])
        loss, accuracy = (control.mean(of, like=labels) for of in ("loss", "correct"))
        aims = (loss if objective == "ce" else math.inf, accuracy)  # bounded, by accuracy alone
        assert (trainer.method.loss_aim, trainer.method.accuracy_aim) == pytest.approx(aims)
        assert before["forget_loss"] < loss and before["forget_accuracy"] > accuracy
        assert after["forget_loss"] >= loss or after["forget_accuracy"] <= accuracy
        assert after["forget_loss"] < 4 * loss and after["forget_accuracy"] > accuracy / 2
        assert after["retain_accuracy"] > 0.9

    @pytest.mark.parametrize("beta", [-0.1, 1.1])
    def test_beta_is_a_weight(self, beta):
        with pytest.raises(UnlearningError, match=f"neggrad_plus: beta is {beta}; expected a weight in"):
            NeggradPlusConfig(beta=beta)


class TestBadTeacher:
    @pytest.mark.slow
    def test_what_it_does(self, tmp_path):
        result = run(tmp_path, BadTeacherConfig(retain_fraction=1.0), num_train_epochs=15, learning_rate=3e-3)
        metrics = result.metrics
        assert metrics["before"]["forget_accuracy"] == 1
        assert metrics["after"]["forget_accuracy"] < 0.75
        assert metrics["after"]["retain_accuracy"] > 0.9
        forget = learnt()["forget"]["pixel_values"][:]
        teacher = result.trainer.method.incompetent.model
        before, after = (
            divergence(teacher(pixel_values=forget).logits, model(pixel_values=forget).logits).mean()
            for model in (fitted(), result.model.eval())
        )
        assert after < 0.7 * before

    @pytest.mark.parametrize("build", slow_but([tiny_vit], [tiny_vit, tiny_resnet]))
    def test_the_incompetent_teacher_is_drawn_by_the_seed(self, tmp_path, build):
        found = []
        for seed in (1, 1, 2):
            torch.seed()
            trainer = UnlearningTrainer(
                build(), arguments(tmp_path, seed=seed, max_steps=1), method="bad_teacher", **for_trainer(request())
            )
            trainer.train()
            found.append(weights(trainer.method.incompetent.model))
        a, b, other = found
        assert same_bits(a, b) and not same_bits(a, other)
        assert a.keys() == weights(build()).keys() and not same_bits(a, weights(build()))

    def test_a_share_of_the_retained_samples(self, tmp_path):
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), method="bad_teacher", **for_trainer(request()))
        assert trainer.schedule.epochs == ["mixed"] * 2
        assert len(trainer.schedule.used()) == 8 + 7  # of 24


class TestScrub:
    def test_what_it_does(self, tmp_path):
        metrics = run(tmp_path, "scrub", num_train_epochs=8, learning_rate=6e-3).metrics
        assert metrics["before"]["forget_accuracy"] == 1
        assert metrics["after"]["forget_accuracy"] <= metrics["after"]["unseen_accuracy"] + 0.25
        assert metrics["after"]["retain_accuracy"] == 1


class TestUnsir:
    def test_a_class_is_forgotten(self, tmp_path):
        model, data = fitted(flipped=False), one_class()
        metrics = run(tmp_path, "unsir", model, data, learning_rate=1e-2, per_device_train_batch_size=4).metrics
        assert metrics["before"]["forget_accuracy"] == 1
        assert metrics["after"]["forget_accuracy"] <= 0.25  # of a retrained model: 0
        assert metrics["after"]["retain_accuracy"] == 1

    @pytest.mark.slow
    def test_no_forget_sample_is_read(self, tmp_path, unlooked):
        result = run(tmp_path, "unsir", fitted(flipped=False), poisoned(one_class()), measure=False)
        assert all(tensor.isfinite().all() for tensor in weights(result.model).values())
        assert result.trainer.schedule.epochs == ["paired", "retain"]
        assert not result.trainer.method.notes

    def test_the_noise_is_what_the_model_is_wrong_about(self, tmp_path):
        config = UnsirConfig(samples=6, penalty=0.01)
        method = create_method(config)
        run(tmp_path, method, fitted(flipped=False), one_class(2), max_steps=1)
        assert method.classes.tolist() == [2] and method.noise.shape == (1, 6, 3, 16, 16)
        losses = cross_entropy(fitted(flipped=False)(pixel_values=method.noise[0]).logits, torch.full((6,), 2))
        assert losses.min() > 3
        again = create_method(config)
        run(tmp_path, again, fitted(flipped=False), one_class(2), max_steps=1, per_device_train_batch_size=3)
        assert torch.equal(again.noise, method.noise)

    @pytest.mark.parametrize("frozen", [True, False])
    def test_noise_in_training_mode(self, frozen, tmp_path):
        """All noise of a class goes through BatchNorm together; the model is in eval mode after, and what is frozen as it was."""
        config = UnsirConfig(samples=4, steps=2, noise_mode="train")
        trainer = make_trainer(config, "resnet", tmp_path, measure=False, freeze_batchnorm=frozen)
        before = weights(trainer.model)
        trainer.method.prepare(Context(trainer))
        after = weights(trainer.model)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert bool(changed) != frozen and all("running" in name or "num_batches" in name for name in changed)
        assert not any(module.training for module in trainer.model.modules())

    def test_of_texts_in_the_embeddings(self, tmp_path):
        trainer = make_trainer(UnsirConfig(samples=5, tokens=7), "bert", tmp_path)
        original = copy.deepcopy(trainer.model)
        trainer.train()
        noise, labels = trainer.method.noise, trainer.method.classes.repeat_interleave(5)
        assert noise.shape == (3, 5, 7, 16)
        start = noise.std() * torch.randn(15, 7, 16, generator=torch.Generator().manual_seed(1))
        learned, drawn = (
            cross_entropy(original(inputs_embeds=x).logits, labels).mean() for x in (noise.flatten(0, 1), start)
        )
        assert learned > drawn + 1

    @pytest.mark.slow
    def test_says_that_it_is_for_classes(self, tmp_path):
        result = run(tmp_path, "unsir", max_steps=1)
        assert result.trainer.method.notes == [
            "unsir is made for whole classes, and the retained samples have some of every forget class."
        ]


class TestSalun:
    def test_what_it_does(self, tmp_path):
        data, model = learnt(flipped=False), fitted(flipped=False)
        metrics = run(tmp_path, "salun", model, data, num_train_epochs=5, learning_rate=3e-3).metrics
        assert metrics["after"]["forget_loss"] > metrics["before"]["forget_loss"] + 0.2
        assert metrics["after"]["retain_accuracy"] > 0.9

    def test_what_it_reports(self, tmp_path):
        trainer = make_trainer(SalunConfig(density=0.25), "vit", tmp_path)
        trainer.train()
        total = sum(p.numel() for p in models.base_of(trainer.model).parameters())
        assert trainer.method.report == {"trained_weights": round(0.25 * total)}

    def test_its_cost_is_that_of_the_method_inside(self):
        for inner in ("random_label", "npo"):
            assert create_method(SalunConfig(inner=inner)).info.cost == METHODS[inner].info.cost + 0.5
        assert create_method("salun").info == METHODS["salun"].info

    def test_it_trains_the_modules_of_the_method_inside(self):
        config, model = RmuConfig(layer=1), tiny_vit()
        expected = create_method(config).trained_modules(model)
        assert expected and create_method(SalunConfig(inner=config)).trained_modules(model) == expected

    @pytest.mark.parametrize("density", [0.1, 0.5])
    def test_in_a_new_adapter(self, tmp_path, density):
        """At B = 0 the gradient of A is 0 and says nothing: A is trained, and the density is that of B."""
        trainer = make_trainer(
            SalunConfig(density=density), "vit", tmp_path, lora=True, weight_decay=0.1, measure=False
        )
        before = weights(trainer.model)
        trainer.train()
        after = weights(trainer.model)
        names = [name for name, _ in trainer.trained()]
        masks = dict(zip(names, trainer.method.masks, strict=True))
        parts = {kind: [name for name in names if f".lora_{kind}." in name] for kind in "AB"}
        assert all(masks[name].all() for name in parts["A"])
        total = sum(masks[name].numel() for name in parts["B"])
        assert sum(masks[name].sum().item() for name in parts["B"]) == round(density * total)
        assert all((after[name][~masks[name]] == 0).all() for name in parts["B"])
        assert any(not torch.equal(after[name], before[name]) for name in parts["A"])


SGD = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "freeze_batchnorm": False}
DECAY = {"weight_decay": 5e-4, "decay": "all"}
MOMENTUM = SGD | DECAY | {"optim_args": "momentum=0.9"}
PAPERS = {
    "l1_sparse": MOMENTUM | {"learning_rate": 0.01, "num_train_epochs": 10, "per_device_train_batch_size": 256},
    "salun": MOMENTUM | {"learning_rate": 0.013, "num_train_epochs": 10, "per_device_train_batch_size": 256},
    ("scrub", "large"): MOMENTUM | {"learning_rate": 5e-4, "num_train_epochs": 3, "per_device_train_batch_size": 128},
    ("scrub", "small"): SGD
    | {"optim": "adamw_torch", "weight_decay": 0.1, "decay": "all"}
    | {"learning_rate": 5e-4, "num_train_epochs": 10, "per_device_train_batch_size": 32},
    ("neggrad_plus", "large"): SGD | {"learning_rate": 0.01, "num_train_epochs": 5, "weight_decay": 0.0},
    ("neggrad_plus", "small"): SGD
    | {"learning_rate": 0.01, "num_train_epochs": 10, "weight_decay": 0.0, "per_device_train_batch_size": 32}
    | {"freeze_batchnorm": True},
}


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "gradient_ascent"])
def test_the_papers_values(name):
    config = METHODS[name].config_class.paper()
    assert type(config).from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert {"learning_rate", "num_train_epochs"} <= set(config.arguments)


@pytest.mark.parametrize("setting", PAPERS, ids=str)
def test_the_papers_training_arguments(setting):
    name, *about = [setting] if isinstance(setting, str) else setting
    assert METHODS[name].config_class.paper(*about).arguments == PAPERS[setting]


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        (("neggrad_plus", "small"), {"objective": "ce", "until": "end", "beta": 0.95, "pull": 0.1}),
        (("neggrad_plus", "large"), {"objective": "ce", "until": "end", "beta": 0.9999, "pull": 0.0}),
        (("gru",), {"objective": "ce", "until": "end", "gamma": 0.8}),
        (("pcgrad",), {"objective": "ce", "until": "end"}),
        (("orthograd",), {"objective": "ce", "until": "end", "samples": None}),
        (("grad_diff",), {"objective": "ce", "until": "end"}),
        (("gradient_ascent",), {"until": "end"}),
        (("l1_sparse",), {"gamma": 5e-4, "fade": "epoch"}),
        (("unsir",), {"noise_mode": "train", "samples": 256, "retain_fraction": 0.2}),
    ],
    ids=str,
)
def test_the_papers_own_settings(setting, values):
    name, *about = setting
    assert dataclasses.asdict(METHODS[name].config_class.paper(*about)).items() >= values.items()


def test_what_decays_all_weights_says_so():
    """In its datasheet, which has the docstring of `paper()`."""
    papers = {
        name: method.config_class.paper for name, method in METHODS.items() if "paper" in dir(method.config_class)
    }
    decaying = {name for name, paper in papers.items() if paper().arguments.get("decay") == "all"}
    assert {"lotus", "salun", "scrub", "l1_sparse", "gradient_ascent", "local_teacher", "msg", "ct"} <= decaying
    assert all("Weight decay is on all" in papers[name].__doc__ for name in decaying)


def test_the_papers_momentum(tmp_path):
    """It reaches the optimizer, unless the user has chosen another one."""
    found = []
    for own in ({}, {"optim": "sgd"}, {"optim_args": "momentum=0.5"}):
        args = UnlearningArguments(
            str(tmp_path), report_to="none", save_strategy="no", max_steps=1, measure=False, **own
        )
        result = unlearn(fitted(), **learnt(), method=ScrubConfig.paper("large"), args=args)
        found.append({group["momentum"] for group in result.trainer.optimizer.param_groups})
        result.save(tmp_path / "saved")
        written = json.loads((tmp_path / "saved" / "unlearning_config.json").read_text())["training"]["optim_args"]
        assert written == result.trainer.args.optim_args
    assert found == [{0.9}, {0}, {0.5}]


@pytest.mark.parametrize("config_class", [NeggradPlusConfig, ScrubConfig])
def test_settings_of_a_paper(config_class):
    assert config_class.paper("small") != config_class.paper("large")
    with pytest.raises(UnlearningError, match="paper has no setting 'medium'; expected small or large"):
        config_class.paper("medium")
