"""LoTUS against its closed forms and the paper's values, and its teacher."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_unlearn import UnlearningArguments, UnlearningTrainer, unlearn
from hf_unlearn.data.batches import Batch
from hf_unlearn.data.randomness import gumbel
from hf_unlearn.methods import Lotus, LotusConfig, list_methods, lotus
from hf_unlearn.methods.lotus import lotus_ceiling, targets, temperature
from hf_unlearn.tasks.evaluation import Evaluator
from tests.marks import slow_but
from tests.samples import arguments, fitted, for_trainer, images, learnt, request, same_bits, weights
from tests.tiny import tiny_resnet, tiny_vit

CLASSES = 10


def logits_with_top(p_max: float) -> torch.Tensor:
    rest = (1 - p_max) / (CLASSES - 1)
    return torch.tensor([p_max] + [rest] * (CLASSES - 1)).log()


def drawn(z: torch.Tensor, is_forget: bool, tau: float, draws: int = 200_000) -> torch.Tensor:
    """Targets of `draws` samples with the same logits."""
    index = torch.arange(draws)
    noise = gumbel(0, torch.zeros_like(index), index, len(z))
    return targets(z.expand(draws, -1), torch.full((draws,), is_forget), tau, noise)


class TestTargets:
    @pytest.mark.parametrize("own_noise", [True, False], ids=["noise drawn inside", "noise by sample"])
    def test_hard_targets_are_samples_of_the_softmax(self, own_noise):
        z = torch.tensor([1.0, -2.0, 0.3, 2.0, 0.0])
        n = 200_000
        torch.manual_seed(0)
        no_forget = torch.zeros(n, dtype=torch.bool)
        hard = targets(z.expand(n, -1), no_forget, 7.0) if own_noise else drawn(z, False, 7.0)
        assert ((hard == 0) | (hard == 1)).all() and (hard.sum(dim=1) == 1).all()
        p = z.softmax(dim=0)
        standard_error = (p * (1 - p) / n).sqrt()
        assert ((hard.mean(dim=0) - p).abs() < 4.5 * standard_error).all()

    # Measured with the authors' code: mean mass on the teacher's top class over 200,000 draws.
    @pytest.mark.parametrize(
        ("p_max", "tau", "with_noise", "without"),
        [
            (0.999, 1, 0.992, 0.999),
            (0.999, 1.93, 0.891, 0.926),
            (0.999, 4, 0.506, 0.520),
            (0.999, 10, 0.216, 0.216),
            (0.9, 1, 0.727, 0.900),
            (0.9, 1.93, 0.464, 0.520),
        ],
    )
    def test_mass_on_the_top_class(self, p_max, tau, with_noise, without):
        z = logits_with_top(p_max)
        assert drawn(z, True, tau)[:, 0].mean().item() == pytest.approx(with_noise, abs=0.01)
        plain = targets(z[None], torch.tensor([True]), tau, torch.zeros(1, CLASSES))
        assert plain[0, 0].item() == pytest.approx(without, abs=0.01)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("tau", [1.0, 1e4, math.exp(32)])
    def test_finite_rows_that_sum_to_one(self, dtype, tau):
        z = (20 * torch.randn(500, 1000, generator=torch.Generator().manual_seed(0))).to(dtype)
        index = torch.arange(500)
        noise = gumbel(1, torch.zeros_like(index), index, 1000)
        t = targets(z, index % 2 == 0, tau, noise)
        assert t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert t.isfinite().all() and (t >= 0).all()
        assert torch.allclose(t.sum(dim=1), torch.ones(500, dtype=t.dtype), atol=1e-5)

    def test_uniform_for_a_large_temperature(self):
        t = targets(logits_with_top(0.999)[None], torch.tensor([True]), 1e4)
        assert t[0].tolist() == pytest.approx([1 / CLASSES] * CLASSES, abs=1e-3)

    def test_retained_samples_do_not_see_the_temperature(self):
        z = logits_with_top(0.5)
        assert torch.equal(drawn(z, False, 1.0, 1000), drawn(z, False, 1e4, 1000))


class TestCeiling:
    @pytest.mark.parametrize("tau", [1.0, 2.0, 50.0])
    def test_it_is_the_share_of_targets_that_keep_the_label(self, tau):
        torch.manual_seed(0)
        logits, n = 3 * torch.randn(5, CLASSES), 20_000
        labels, p = logits.argmax(-1).roll(1), logits.softmax(-1)
        noise = gumbel(0, torch.zeros(5 * n, dtype=torch.long), torch.arange(5 * n), CLASSES)
        drawn = targets(logits.repeat(n, 1), torch.ones(5 * n, dtype=torch.bool), tau, noise)
        kept = (drawn.argmax(-1) == labels.repeat(n)).float().mean().item()
        assert kept == pytest.approx(lotus_ceiling(p.gather(1, labels[:, None]).numpy()), abs=0.01)

    @pytest.mark.parametrize(("alpha", "said"), [(0.5, False), (2.0, True)])
    def test_it_is_logged_and_said_where_targets_are_flat(self, tmp_path, alpha, said):
        args = arguments(tmp_path, num_train_epochs=1, logging_strategy="epoch")
        result = unlearn(fitted(), **learnt(), method=LotusConfig(alpha=alpha), args=args)
        confidence = result.trainer.original["forget"].signals["confidence"].mean()
        logged = [e["lotus_ceiling"] for e in result.trainer.state.log_history if "lotus_ceiling" in e]
        assert logged == [pytest.approx(confidence)]
        assert [("temperature" in note) for note in result.trainer.method.notes] == [True] * said


class TestTemperature:
    def test_closed_form(self):
        assert temperature(0.7, 0.7, 8) == 1
        assert temperature(0.9, 0.8, 8) == pytest.approx(math.exp(0.8), rel=1e-12)
        assert temperature(0.5, 0.75, 2) == pytest.approx(math.exp(-0.5), rel=1e-12)
        assert temperature(1, 0, 32) == pytest.approx(math.exp(32), rel=1e-12)


def standing(config: LotusConfig, forget_accuracy: float = 0.0, unseen_accuracy: float = 0.0) -> Lotus:
    """A prepared method without a trainer."""
    method = Lotus(config)
    method.logged = {}
    method.context = SimpleNamespace(
        seed=3, num_labels=CLASSES, accuracy=lambda split: forget_accuracy, log=method.logged.update
    )
    method.tau, method.unseen_accuracy, method.forgotten = 1.0, unseen_accuracy, []
    return method


class TestEpochs:
    @pytest.mark.parametrize("percent", range(100))
    def test_stops_at_the_margin(self, percent):
        method = standing(LotusConfig(), unseen_accuracy=(percent + 1) / 100)
        assert method.is_done(percent / 100)
        assert not method.is_done((percent + 1) / 100)  # at d = 0 it goes on
        assert not method.is_done((percent + 0.1) / 100)

    def test_other_margins(self):
        method = standing(LotusConfig(stop_margin=0.05), unseen_accuracy=0.5)
        assert method.is_done(0.45) and not method.is_done(0.46)
        assert standing(LotusConfig(stop_margin=0), unseen_accuracy=0.5).is_done(0.5)

    @pytest.mark.parametrize(("forget_accuracy", "goes_on"), [(0.9, True), (0.6, True), (0.59, False)])
    def test_temperature_of_an_epoch(self, forget_accuracy, goes_on):
        method = standing(LotusConfig(alpha=2), forget_accuracy, 0.6)
        assert method.on_epoch_begin(0) is goes_on
        assert method.tau == pytest.approx(math.exp(2 * (forget_accuracy - 0.6)), rel=1e-12)
        assert method.logged == {"lotus_tau": method.tau, "lotus_forget_accuracy": forget_accuracy}
        restored = standing(LotusConfig(alpha=2))
        restored.load_state_dict(method.state_dict())
        assert restored.tau == method.tau

    def test_temperature_is_capped(self):
        method = standing(LotusConfig(alpha=32, tau_max=50), 1.0, 0.0)
        method.on_epoch_begin(0)
        assert method.tau == 50

    def test_monotone_cure(self):
        for cure, expected in (("monotone", [1.0, 1.0, 1.0]), ("none", [1.0, 0.2, 0.5])):
            method = standing(LotusConfig(class_mode=True, class_cure=cure, alpha=4))
            for forget_accuracy, d in zip([1.0, 0.2, 0.5], expected, strict=True):
                method.context.accuracy = lambda split, value=forget_accuracy: value
                assert method.on_epoch_begin(0) is True
                assert method.tau == pytest.approx(math.exp(4 * d), rel=1e-12)

    def test_stop_cure(self):
        method = standing(LotusConfig(class_mode=True, class_cure="stop"))
        assert method.is_done(0.1) and not method.is_done(0.11)


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 5, bias=False)

    def forward(self, x):
        return SimpleNamespace(logits=self.layer(x))


def repeated(n: int, epochs: int, is_forget: bool, first: int = 0) -> Batch:
    """`n` samples in each of many epochs, as one batch."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1)).repeat(epochs, 1)
    total = n * epochs
    return Batch(
        x=x,
        labels=torch.zeros(total, dtype=torch.long),
        is_forget=torch.full((total,), is_forget),
        sample_index=torch.arange(first, first + n).repeat(epochs),
        epoch=torch.arange(epochs).repeat_interleave(n),
        weight=torch.full((total,), 1 / total, dtype=torch.float64),
    )


class TestLoss:
    @pytest.mark.parametrize("noise", [True, False])
    def test_gradient_on_retained_samples_is_that_of_distillation(self, noise):
        """In expectation over the noise; without noise the target is the one-hot of the teacher's answer."""
        n, epochs = 6, 20_000 if noise else 1
        batch, model, teacher = repeated(n, epochs, False), Linear(), torch.randn(n, 5)
        method = standing(LotusConfig(gumbel=noise))
        method.tau = 50.0
        method.teacher = SimpleNamespace(logits=lambda batch: teacher.repeat(len(batch.labels) // n, 1))
        method.losses(model, batch)["loss"].backward()
        x = batch["x"][:n]
        expected = teacher.softmax(dim=1) if noise else F.one_hot(teacher.argmax(dim=1), 5).float()
        student = Linear()
        F.cross_entropy(student.layer(x), expected).backward()
        distance = (model.layer.weight.grad - student.layer.weight.grad).abs().max().item()
        # The error of a mean of `epochs` one-hots, weighted by x / n.
        tolerance = 5 * 0.5 * x.square().sum(dim=0).sqrt().max().item() / n / math.sqrt(epochs) if noise else 1e-6
        assert distance < tolerance < 0.02
        kl = Linear()
        F.kl_div(kl.layer(x).log_softmax(dim=1), expected, reduction="batchmean").backward()
        assert torch.allclose(kl.layer.weight.grad, student.layer.weight.grad, atol=1e-6)

    def test_labels_are_not_used(self):
        losses = []
        for label in (0, 3):
            method, batch = standing(LotusConfig()), repeated(6, 2, True)
            method.teacher = SimpleNamespace(logits=lambda batch: torch.ones(len(batch.labels), 5))
            batch["labels"] = torch.full_like(batch.labels, label)
            losses.append(method.losses(Linear(), batch)["loss"].item())
        assert losses[0] == losses[1]

    def test_forgotten_class_is_masked_in_class_mode(self, monkeypatch):
        seen = []
        monkeypatch.setattr(lotus, "targets", lambda *args: seen.append(targets(*args)) or seen[-1])
        method = standing(LotusConfig(class_mode=True))
        method.forgotten = [1, 4]
        method.teacher = SimpleNamespace(logits=lambda batch: torch.tensor([0.0, 9.0, 0, 0, 5.0]).repeat(24, 1))
        batch = repeated(6, 4, True)
        batch["is_forget"] = torch.arange(24) % 2 == 0
        assert method.losses(Linear(), batch)["loss"].isfinite()
        forget, retain = seen[0][batch.is_forget], seen[0][~batch.is_forget]
        assert (forget[:, [1, 4]] == 0).all() and torch.allclose(forget.sum(dim=1), torch.ones(12))
        assert (retain[:, 1] == 1).sum() >= 10  # what the teacher says of retained samples stays

    def test_half_precision_student(self):
        model = Linear().to(torch.bfloat16)
        method, batch = standing(LotusConfig()), repeated(6, 2, True)
        batch["x"] = batch["x"].to(torch.bfloat16)
        method.teacher = SimpleNamespace(logits=lambda batch: torch.ones(12, 5))
        loss = method.losses(model, batch)["loss"]
        assert loss.dtype == torch.float32 and loss.isfinite()


def noise_of_a_run(tmp_path, monkeypatch, **changes) -> dict[tuple[int, int], torch.Tensor]:
    drawn = {}

    def recording(seed, epoch, sample_index, n):
        noise = gumbel(seed, epoch, sample_index, n)
        drawn.update({(int(e), int(i)): row for e, i, row in zip(epoch, sample_index, noise, strict=True)})
        return noise

    monkeypatch.setattr(lotus, "gumbel", recording)
    unlearn(fitted(), **learnt(), method="lotus", args=arguments(tmp_path, learning_rate=1e-5, **changes))
    return drawn


class TestRuns:
    def test_noise_is_by_epoch_and_sample(self, tmp_path, monkeypatch):
        a = noise_of_a_run(tmp_path, monkeypatch)
        b = noise_of_a_run(tmp_path, monkeypatch, per_device_train_batch_size=5)
        assert len(a) == 2 * 15 and a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert len({tuple(row.tolist()) for row in a.values()}) == len(a)
        c = noise_of_a_run(tmp_path, monkeypatch, seed=43)
        assert not any(torch.equal(a[key], c[key]) for key in a.keys() & c.keys())

    @pytest.mark.parametrize("build", slow_but([tiny_vit], [tiny_vit, tiny_resnet]))
    def test_cached_and_online_teacher_give_the_same_trajectory(self, tmp_path, build):
        found = {}
        for cache in ("always", "never"):
            args = arguments(tmp_path, learning_rate=3e-3)
            config = LotusConfig(cache_teacher=cache)
            result = unlearn(fitted(build), **learnt(), method=config, args=args)
            assert result.trainer.state.global_step == 4
            found[cache] = weights(result.model)
        original = weights(fitted(build))
        for name, tensor in found["always"].items():
            assert torch.allclose(tensor, found["never"][name], atol=1e-5), name
        assert max((found["always"][name] - original[name]).abs().max().item() for name in original) > 1e-3

    def test_the_teacher_is_left_as_it_was(self, tmp_path):
        """To the bit, with BatchNorm layers that follow the batches in the student."""
        args = arguments(tmp_path, learning_rate=3e-3, freeze_batchnorm=False)
        config = LotusConfig(cache_teacher="never")
        trainer = UnlearningTrainer(fitted(tiny_resnet), args, method=config, **for_trainer(learnt()))
        original = weights(trainer.model)
        trainer.train()
        teacher = trainer.method.teacher.model
        assert teacher is not trainer.model and same_bits(weights(teacher), original)
        assert not any(module.training for module in teacher.modules())
        assert not any(p.requires_grad for p in teacher.parameters())
        changed = {name for name, tensor in weights(trainer.model).items() if not torch.equal(tensor, original[name])}
        assert {name for name in original if "running_mean" in name or "weight" in name} <= changed

    def test_the_table_is_mapped_and_holds_only_used_rows(self, tmp_path):
        trainer = UnlearningTrainer(fitted(), arguments(tmp_path), **for_trainer(learnt()))
        model = fitted()
        trainer.train()
        table = trainer.method.teacher.table
        assert isinstance(table, np.memmap) and table.shape == (8 + 24, 4) and table.dtype == np.float32
        assert trainer.method.teacher.path.is_relative_to(tmp_path / "_unlearn")
        used = trainer.schedule.used()
        assert len(used) == 8 + int(0.3 * 24)
        unused = np.setdiff1d(np.arange(32), used)
        assert (table[unused] == 0).all()
        pixels = torch.cat([trainer.sources[name].dataset["pixel_values"][:] for name in ("forget", "retain")])
        with torch.no_grad():
            logits = model(pixel_values=pixels).logits
        assert np.allclose(table[used], logits[used], atol=1e-5)

    @pytest.mark.parametrize("measure", [True, False])
    def test_passes_over_the_data(self, tmp_path, monkeypatch, measure):
        """The forget accuracy before the first epoch comes with the teacher's table, or with the first measurement."""
        passes, predictions = [], Evaluator.predictions

        def counted(self, model, name, *args):
            passes.append(name)
            return predictions(self, model, name, *args)

        monkeypatch.setattr(Evaluator, "predictions", counted)
        args = arguments(tmp_path, measure=measure, num_train_epochs=3)
        result = unlearn(fitted(), **learnt(), method="lotus", args=args)
        assert result.trainer.state.global_step == 6
        table, control, later_epochs = ["forget", "retain"], ["unseen", "forget"], ["forget"] * 2
        everything = ["forget", "retain", "unseen", "unseen"]
        expected = everything + table + later_epochs + everything if measure else table + control + later_epochs
        assert passes == expected

    def test_what_it_does(self, tmp_path):
        """Mislabelled samples that only memory gets right: it gets less sure of those, and stays good on the others."""
        args = arguments(tmp_path, num_train_epochs=6, learning_rate=3e-3)
        result = unlearn(fitted(), **learnt(), method="lotus", args=args)
        confidence = {
            name: [m[name].signals["confidence"].mean() for m in (result.trainer.original, result.trainer.unlearned)]
            for name in ("forget", "retain")
        }
        assert confidence["forget"][0] > 0.95 and confidence["forget"][1] < 0.7
        assert confidence["retain"][1] > confidence["forget"][1] + 0.1
        assert result.metrics["after"]["retain_accuracy"] > 0.85

    def test_class_mode(self, tmp_path):
        data = request()
        data["forget"] = images(16, seed=8).filter(lambda row: int(row["label"]) == 1)
        data["retain"] = images(48, seed=9).filter(lambda row: int(row["label"]) != 1)
        args = arguments(tmp_path, num_train_epochs=8, learning_rate=3e-3, logging_strategy="epoch")
        config = LotusConfig(class_mode=True, retain_fraction=1.0)
        result = unlearn(fitted(flipped=False), **data, method=config, args=args)
        assert result.trainer.method.unseen_accuracy == 0 and result.trainer.method.forgotten == [1]
        assert result.metrics["before"]["forget_accuracy"] == 1
        assert result.metrics["after"]["forget_accuracy"] == 0
        assert result.metrics["after"]["retain_accuracy"] > 0.9
        logged = {e["epoch"]: e["lotus_tau"] for e in result.trainer.state.log_history if "lotus_tau" in e}
        assert logged[1] == 1e4 and logged[8] == 1  # of the epoch that ends with the line

    def test_stops_before_the_first_step_where_there_is_nothing_to_forget(self, tmp_path):
        model = tiny_vit()
        before = weights(model)
        data = request()
        data["forget"] = learnt()[
            "forget"
        ]  # wrong labels that this model has never seen: forget accuracy below unseen
        result = unlearn(fitted(flipped=False), **data, method="lotus", args=arguments(tmp_path))
        assert result.metrics["before"]["forget_accuracy"] < result.metrics["before"]["unseen_accuracy"]
        assert result.trainer.state.global_step == 0
        assert "lotus found nothing to do" in result.summary()
        assert same_bits(weights(result.model), weights(fitted(flipped=False))) and not same_bits(
            before, weights(result.model)
        )


class TestPaper:
    @pytest.mark.parametrize(
        ("setting", "lr", "epochs", "batch", "alpha"),
        [
            ("resnet18-cifar10", 1e-4, 10, 128, 8),
            ("resnet18-cifar100", 1e-4, 10, 128, 2),
            ("vit", 1e-6, 3, 32, 2),
            ("vit-imagenet", 1e-6, 3, 256, 2),
            ("resnet18-class", 1e-4, 10, 128, 32),
        ],
    )
    def test_values(self, tmp_path, setting, lr, epochs, batch, alpha):
        config = LotusConfig.paper(setting)
        assert config.alpha == alpha and config.class_mode == (setting == "resnet18-class")
        assert (config.retain_fraction, config.stop_margin, config.gumbel) == (0.3, 0.01, True)
        assert config.class_cure == "none"
        method = Lotus(config)
        args = UnlearningArguments(str(tmp_path)).resolved({**method.arguments("transformer"), **config.arguments})
        assert (args.learning_rate, args.num_train_epochs, args.per_device_train_batch_size) == (lr, epochs, batch)
        assert (args.weight_decay, args.max_grad_norm, args.warmup_steps) == (5e-4, 0, 0)
        assert (args.optim, args.lr_scheduler_type) == ("adamw_torch", "constant")
        assert (args.adam_beta1, args.adam_beta2, args.freeze_batchnorm) == (0.9, 0.999, False)


class TestConfig:
    def test_defaults_of_alpha(self):
        assert LotusConfig(class_mode=True).alpha == 32 > LotusConfig().alpha > 0
        assert LotusConfig(alpha=3, class_mode=True).alpha == LotusConfig(alpha=3).alpha == 3

    @pytest.mark.parametrize("config", [LotusConfig(alpha=3.5, class_cure="stop"), LotusConfig.paper("vit")])
    def test_round_trip_through_the_saved_file(self, tmp_path, config):
        data = for_trainer(request())
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path, seed=7), method=config, **data)
        trainer.save_model(str(tmp_path / "saved"))
        content = json.loads((tmp_path / "saved" / "unlearning_config.json").read_text())
        assert content["method"] == "lotus"
        assert LotusConfig.from_dict(content["config"]) == config
        assert content["training"]["learning_rate"] == 1e-3 and content["training"]["seed"] == 7
        assert content["training"]["lr_scheduler_type"] == "constant"
        assert content["schedule"] == ["mixed", "mixed"]


class TestDefaults:
    """What the user leaves unset is the method's (or the config's), and the user's own object stays as it was."""

    def resolved(self, args, method):
        return UnlearningTrainer(tiny_vit(), args, method=method, **for_trainer(request())).args

    def test_method_fills_what_is_unset(self, tmp_path):
        defaults = Lotus().arguments("transformer", width=tiny_vit().config.hidden_size)
        args = self.resolved(UnlearningArguments(str(tmp_path), report_to="none"), "lotus")
        assert {name: getattr(args, name) for name in defaults} == defaults
        assert args.warmup_steps == 0 and args.optim in ("adamw_torch", "adamw_torch_fused")

    def test_what_the_user_sets_wins(self, tmp_path):
        own = {"learning_rate": 0.5, "num_train_epochs": 1, "per_device_train_batch_size": 3, "weight_decay": 0.0}
        own |= {"lr_scheduler_type": "linear", "max_grad_norm": 1.0, "optim": "sgd", "freeze_batchnorm": False}
        for method in ("lotus", LotusConfig.paper("vit")):
            args = self.resolved(UnlearningArguments(str(tmp_path), report_to="none", **own), method)
            assert {name: getattr(args, name) for name in own} == own

    def test_config_wins_over_the_method(self, tmp_path):
        config = LotusConfig(arguments={"learning_rate": 0.25})
        args = self.resolved(UnlearningArguments(str(tmp_path), report_to="none", weight_decay=0.125), config)
        assert (args.learning_rate, args.weight_decay, args.num_train_epochs) == (0.25, 0.125, 10)

    def test_nothing_leaks_into_the_users_arguments(self, tmp_path):
        args = UnlearningArguments(str(tmp_path), report_to="none", save_strategy="no", disable_tqdm=True)
        before = dataclasses.asdict(args)
        for method in (LotusConfig.paper("vit"), "finetune", "random_label"):
            resolved = self.resolved(args, method)
            assert resolved is not args and resolved.learning_rate != before["learning_rate"]
            assert dataclasses.asdict(args) == before
        unlearn(tiny_vit(), **request(), args=args)
        assert dataclasses.asdict(args) == before

    @pytest.mark.parametrize("name", list_methods())
    @pytest.mark.parametrize("family", ["convolutional", "transformer"])
    def test_defaults_are_arguments_that_exist(self, tmp_path, name, family):
        from hf_unlearn.methods import create_method
        from hf_unlearn.training.arguments import METHOD_DEFAULTS

        defaults = create_method(name).arguments(family)
        assert set(defaults) <= set(METHOD_DEFAULTS)
        resolved = UnlearningArguments(str(tmp_path), report_to="none").resolved(defaults)
        assert {key: getattr(resolved, key) for key in defaults} == defaults
