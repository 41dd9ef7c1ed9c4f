"""The parts of an audit beyond forward passes: the tests they share, probes, rounding, relearning, a reference model."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_unlearn import UnlearningError, audit
from hf_unlearn.audits import levels, quantization, reference, relearning, representation
from hf_unlearn.audits.context import AuditContext
from hf_unlearn.audits.exchange import exchange
from hf_unlearn.audits.passes import distance
from hf_unlearn.audits.quantization import fake_quantize, quantized
from hf_unlearn.audits.reference import degree, rmia, train_reference, true_positives
from hf_unlearn.audits.relearning import area, barrier, interpolated, interval, relearn, shots
from hf_unlearn.audits.representation import linear_cka, margin, probe
from hf_unlearn.data.samples import DrawnSamples, TrainingCollator
from hf_unlearn.data.source import Source
from hf_unlearn.tasks import task_of
from tests.samples import fitted, learnt, same_bits, sentences, weights
from tests.tiny import tiny_bert, tiny_llama_lm, tiny_resnet, tiny_tokenizer, tiny_vit


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(of: dict[str, nn.Module], data: dict, processing_class=None) -> AuditContext:
    original = of["original"]
    task = task_of(original)
    sources = {name: Source(dataset, name, layout=task.layout) for name, dataset in data.items()}
    collator = task.collator(sources["forget"], processing_class, None)
    samples = DrawnSamples(sources)
    evaluator = task.evaluator(Accelerator(cpu=True), samples, TrainingCollator(collator), batch_size=16)
    sets = {name: (name, np.arange(len(source))) for name, source in sources.items()}
    measured = {name: {s: evaluator.measure(model, *sets[s]) for s in sets} for name, model in of.items()}
    labels = {name: measured["original"][name].labels for name in sets}
    return AuditContext(of, evaluator, sets, labels, False, task, task.num_labels, collator, measured=measured)


@pytest.fixture
def untouched() -> AuditContext:
    """An original that knows wrong labels by heart, as its own unlearned model."""
    return context({"original": fitted(), "unlearned": fitted()}, learnt())


class TestExchange:
    def test_all_exchanges_by_hand(self):
        forget, unseen = np.array([0.9, 0.2, 0.8]), np.array([0.1, 0.7, 0.3])
        found = exchange(forget, [0] * 3, unseen, [0] * 3, permutations=20_000)
        pooled = np.concatenate([forget, unseen])
        aucs = [roc_auc_score(np.isin(range(6), chosen), pooled) for chosen in itertools.combinations(range(6), 3)]
        truth = roc_auc_score([1, 1, 1, 0, 0, 0], pooled)
        assert found.auc == pytest.approx([truth])
        assert found.p == pytest.approx(np.mean(np.array(aucs) >= truth - 1e-9), abs=0.01)

    def test_within_groups(self):
        """One group is easier than the other, and has more forget samples: matched, that is nothing."""
        forget, unseen = [9.0, 8.0, 7.0, 1.0], [8.5, 7.5, 1.5, 0.5, 0.0]
        groups = [1, 1, 1, 0], [1, 1, 0, 0, 0]
        found = exchange(forget, groups[0], unseen, groups[1])
        by_group = [2 / 3, (1 + 1 + 0.0 + 0.0 + 1 + 1) / 6]
        assert found.auc == pytest.approx([0.25 * by_group[0] + 0.75 * (2 + 1 + 0) / 6])
        assert exchange(forget, [5] * 4, unseen, groups[1]) is None

    def test_the_worst_of_several_is_one_test(self):
        rng = np.random.default_rng(0)
        groups = np.zeros(60), np.zeros(60)
        forget, unseen = rng.normal(size=(8, 60)), rng.normal(size=(8, 60))
        alone = [exchange(f, groups[0], u, groups[1]).p for f, u in zip(forget, unseen, strict=True)]
        together = exchange(forget, groups[0], unseen, groups[1])
        assert together.auc[together.worst] == max(together.auc)
        assert min(alone) < together.p < 8 * min(alone) + 0.02

    def test_p_is_uniform_where_both_sides_are_alike(self):
        rng = np.random.default_rng(0)
        p = [
            exchange(rng.normal(size=(2, 30)), np.arange(30) % 3, rng.normal(size=(2, 40)), np.arange(40) % 3, 100).p
            for _ in range(200)
        ]
        assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.04)
        assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.1)

    def test_one_sided(self):
        rng = np.random.default_rng(0)
        low, high = rng.normal(size=50), rng.normal(size=50) + 1
        zeros = np.zeros(50)
        assert exchange(high, zeros, low, zeros).p < 0.01
        assert exchange(low, zeros, high, zeros).p > 0.9

    def test_ties(self):
        found = exchange(np.ones(5), np.zeros(5), np.ones(7), np.zeros(7))
        assert found.auc == pytest.approx([0.5]) and found.p == 1


class TestCka:
    def test_itself_and_what_it_does_not_see(self):
        x = random(40, 6)
        rotation = torch.linalg.qr(random(6, 6, seed=1))[0]
        for y in (x, 3 * x, x @ rotation, x + 5):
            assert linear_cka(x, y) == pytest.approx(1)
        assert linear_cka(x, random(40, 6, seed=2)) < 0.5

    def test_by_hand(self):
        x, y = random(30, 4), random(30, 7, seed=1)
        a, b = (z - z.mean(0) for z in (x, y))
        expected = ((b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())).item()
        assert linear_cka(x, y) == pytest.approx(expected)
        assert linear_cka(y, x) == pytest.approx(expected)
        few = slice(0, 5)  # by the products of samples
        a, b = (z[few] - z[few].mean(0) for z in (x, y))
        assert linear_cka(x[few], y[few]) == pytest.approx(
            ((b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())).item()
        )

    def test_constant_features(self):
        assert linear_cka(torch.ones(5, 2), random(5, 2)) is None


class TestProbe:
    def test_least_squares_by_hand(self):
        x, labels, asked = random(50, 3), torch.arange(50) % 2, random(4, 3, seed=1)
        mean, scale = x.mean(0), x.std(0, correction=0)
        z, t = (x - mean) / scale, 2 * labels.double() - 1
        beta = torch.linalg.solve(z.T @ z / 50 + 0.01 * torch.eye(3), z.T @ (t - t.mean()) / 50)
        expected = (asked - mean) / scale @ beta + t.mean()
        scores = probe(x, labels, asked, 2)
        torch.testing.assert_close(scores[:, 1], expected)
        torch.testing.assert_close(scores[:, 0], -expected)

    def test_fewer_samples_than_features(self):
        """The dual form is the primal one; features that are there twice share their weight, which halves the ridge."""
        x, asked = random(6, 4), random(3, 4, seed=1)
        labels = torch.tensor([0, 1, 2, 0, 1, 2])
        wide = probe(torch.cat([x, x], dim=1), labels, torch.cat([asked, asked], dim=1), 3)
        z = (x - x.mean(0)) / x.std(0, correction=0)
        t = 2 * torch.nn.functional.one_hot(labels, 3).double() - 1
        beta = torch.linalg.solve(z.T @ z + 6 * 0.005 * torch.eye(4), z.T @ (t - t.mean(0)))
        torch.testing.assert_close(wide, (asked - x.mean(0)) / x.std(0, correction=0) @ beta + t.mean(0))

    def test_margin(self):
        scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
        assert margin(scores, torch.tensor([1, 0])).tolist() == [1, -2]

    def test_a_head_alone_hides_nothing(self, untouched):
        """A model whose head was scrambled gives the labels away in every probe that the original does."""
        hidden = fitted()
        torch.nn.init.normal_(hidden.classifier.weight, generator=torch.Generator().manual_seed(0))
        ctx = context({"original": fitted(), "unlearned": hidden}, learnt())
        content, (finding,) = representation.examine(ctx)
        json.dumps(content)
        assert ctx.measured["unlearned"]["forget"].accuracy < 0.6 < content["stages"][-1]["probe"]["unlearned"]
        for stage in content["stages"]:
            assert stage["cka"] == pytest.approx(1, abs=1e-6)
            assert stage["probe"]["unlearned"] == stage["probe"]["original"]
        assert content["stages"][-1]["control"] < content["stages"][-1]["probe"]["unlearned"]
        assert finding.kind == "residual" and finding.value > 0.5 and 0 < finding.p <= 1

    def test_a_probe_is_not_asked_about_what_it_was_fitted_to(self):
        """Classes that no retained sample has, and features of chance: the held-out half is guessed, not known."""
        n = 40
        labels = {"retain": torch.zeros(n, dtype=torch.long), "forget": torch.arange(n) % 2 + 1}
        labels["unseen"] = labels["forget"]
        features = {name: random(n, 60, seed=i) for i, name in enumerate(labels)}
        halves = {name: representation._halves(labels[name]) for name in ("forget", "unseen")}
        assert [(halves["forget"] == half).sum().item() for half in (0, 1)] == [20, 20]
        found = representation._margins(features, labels, halves, 3)
        assert 0.2 < (found["forget"] > 0).double().mean() < 0.6

    def test_other_architectures(self):
        data = {
            name: sentences(n, seed=i) for i, (name, n) in enumerate({"forget": 6, "retain": 9, "unseen": 6}.items())
        }
        ctx = context({"original": tiny_bert(), "unlearned": tiny_bert(seed=1)}, data, tiny_tokenizer())
        content, _ = representation.examine(ctx)
        assert 2 <= len(content["stages"]) <= 5 and all(0 <= stage["cka"] < 1 for stage in content["stages"])
        ctx = context({"original": tiny_resnet(), "unlearned": tiny_vit()}, learnt())
        content, _ = representation.examine(ctx)
        assert content["stages"]

    def test_stages_that_cannot_be_told(self, untouched, monkeypatch):
        def refuse(*_, **__):
            raise UnlearningError("No way is seen.")

        monkeypatch.setattr(representation, "find_plan", refuse)
        content, (finding,) = representation.examine(untouched)
        assert content == {} and finding.p is None and "No way is seen." in finding.sentence


class TestQuantization:
    @pytest.mark.parametrize("bits", [8, 4])
    def test_closed_form(self, bits):
        weight = random(5, 3, 2, 2).float()
        rounded = fake_quantize(weight, bits)
        scale = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
        assert (rounded - weight).abs().le(scale / 2 * 1.0001).all()
        steps = rounded / scale
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        torch.testing.assert_close(fake_quantize(rounded, bits), rounded)
        torch.testing.assert_close(fake_quantize(-weight, bits), -rounded)
        assert torch.equal(fake_quantize(weight.transpose(0, 1), bits, axis=1), rounded.transpose(0, 1))
        assert rounded.amax(dim=(1, 2, 3)).shape == (5,) and len(steps.round().unique()) < 2**bits

    def test_all_weights_and_back_to_the_bit(self):
        for model in (tiny_vit(), tiny_resnet(), tiny_llama_lm(tie_word_embeddings=True)):
            before = weights(model)
            with quantized(model, 4):
                changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
                rounded = {
                    f"{name}.weight"
                    for name, module in model.named_modules()
                    if isinstance(module, (nn.Linear, nn.Conv2d, Conv1D))
                }
                assert rounded <= changed
            assert same_bits(weights(model), before)
            with pytest.raises(RuntimeError, match="in between"), quantized(model, 8):
                raise RuntimeError("in between")
            assert same_bits(weights(model), before)
            assert all(parameter.requires_grad for parameter in model.parameters())

    def test_examine(self, untouched):
        before = weights(untouched.models["unlearned"])
        content, (finding,) = quantization.examine(untouched)
        json.dumps(content)
        assert same_bits(weights(untouched.models["unlearned"]), before)
        assert [row["bits"] for row in content["quantization"]] == [8, 4]
        of = untouched.measured["unlearned"]
        for name in ("forget", "retain", "unseen"):
            assert content["quantization"][0][f"{name}_accuracy"] == pytest.approx(of[name].accuracy, abs=0.1)
        assert content["quantization"][0]["control"] is None
        assert finding.kind == "residual" and finding.value > 0.5
        untouched.models["retrained"] = tiny_vit(seed=3)
        control = quantization.examine(untouched)[0]["quantization"][1]["control"]
        assert set(control) == {"forget_accuracy", "retain_accuracy", "unseen_accuracy"}


class TestRelearning:
    def test_area(self):
        assert area([0, 1, 3], [2.0, 2.0, 2.0]) == 2
        assert area([0, 2], [[0.0, 1.0], [1.0, 1.0]]).tolist() == [0.5, 1]

    def test_interval(self):
        f, u = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.0])
        assert interval(f[:2], np.zeros(2), u, np.zeros(2)) == (1, 1)
        low, high = interval(f, np.array([0, 0, 0, 0]), u, np.zeros(2))
        assert 0 <= low < 0.5 < high <= 1
        assert interval(f, np.ones(4), u, np.zeros(2)) == (None, None)

    def test_shots(self):
        labels = np.repeat([0, 1, 2], [100, 8, 1])
        chosen = shots(labels)
        assert np.bincount(labels[chosen], minlength=3).tolist() == [10, 2, 0]
        assert np.array_equal(chosen, shots(labels)) and not np.array_equal(chosen, shots(labels, seed=1))

    def test_barrier(self):
        assert barrier([0, 0.5, 1], [1.0, 1.5, 2.0]) == 0
        assert barrier([0, 0.5, 1], [1.0, 0.5, 1.0]) == 0
        assert barrier([0, 0.5, 1], [1.0, 4.0, 2.0]) == 2.5

    def test_interpolated(self):
        one, two = (weights(tiny_resnet(seed=seed)) for seed in (0, 1))
        assert same_bits(interpolated(one, two, 0.0), one) and same_bits(
            interpolated(one, two, 1.0),
            two | {name: value for name, value in one.items() if not value.is_floating_point()},
        )
        buffer = next(name for name in one if name.endswith("running_mean"))
        two[buffer] = one[buffer] + 1
        torch.testing.assert_close(interpolated(one, two, 0.25)[buffer], one[buffer] + 0.25)

    @pytest.mark.slow
    def test_a_copy_learns_and_the_model_does_not_change(self, untouched):
        model = untouched.models["unlearned"]
        before = weights(model)
        copies = relearn(untouched, model, steps=30, few=np.array([0, 1]))
        copy = next(copies)
        assert copy is not model and same_bits(weights(copy), before)
        assert len(list(copies)) == 30
        assert same_bits(weights(model), before) and not same_bits(weights(copy), before)

        def after(few):
            *_, last = relearn(untouched, model, steps=3, few=few)
            return weights(last)

        assert same_bits(after(None), after(None)) and not same_bits(after(None), after(np.array([0])))

    def test_examine(self, untouched, monkeypatch):
        monkeypatch.setattr(relearning, "STEPS", (0, 2, 4))
        untouched.models["retrained"] = tiny_vit(seed=3)
        content, (finding,) = relearning.examine(untouched)
        json.dumps(content)
        about = content["relearning"]
        assert about["steps"] == [0, 2, 4] and set(about["kinds"]) == {"retain-only", "k-shot"}
        for kind, curves in about["kinds"].items():
            for name, curve in curves.items():
                assert len(curve) == 3
                assert about["area"][kind][name] == pytest.approx(area([0, 2, 4], curve))
            assert curves["unlearned"][0] == 1 and curves["control"][0] < 0.5
            assert about["area"][kind]["low"] > 0
        assert "unseen samples" in about["control"]
        assert finding.kind == "residual" and finding.value > 0.7
        path = content["connectivity"]
        assert path["barrier"] == pytest.approx(0, abs=1e-6) and path["alphas"][0] == 0 and path["alphas"][-1] == 1
        for name in ("forget", "retain"):
            expected = untouched.measured["original"][name].mean("loss")
            assert path[f"{name}_loss"] == pytest.approx([expected] * 5, abs=1e-6)

    def test_no_path_between_other_networks(self):
        ctx = context({"original": tiny_vit(), "unlearned": tiny_resnet()}, learnt())
        assert relearning._connectivity(ctx) is None

    def test_no_unseen_samples_of_the_class(self, untouched, monkeypatch):
        monkeypatch.setattr(relearning, "STEPS", (0, 1))
        untouched.labels["unseen"] = np.full_like(untouched.labels["unseen"], 9)
        content, (finding,) = relearning.examine(untouched)
        assert content["relearning"]["kinds"]["k-shot"]["control"] is None
        assert finding.p is None and "cannot be judged" in finding.sentence

    def test_a_language_model(self, monkeypatch):
        monkeypatch.setattr(relearning, "STEPS", (0, 2))
        data = {
            name: Dataset.from_dict(
                {"text": [text[:90] for text in sentences(8, seed=i)["text"]]}
            )  # as long as is read
            for i, name in enumerate(("forget", "retain", "unseen"))
        }
        ctx = context({"original": tiny_llama_lm(), "unlearned": tiny_llama_lm(seed=1)}, data, tiny_tokenizer())
        content, (finding,) = relearning.examine(ctx)
        assert all(np.isfinite(content["relearning"]["kinds"]["retain-only"]["unlearned"])) and 0 < finding.p <= 1


def test_a_network_without_a_name_is_not_all_head(monkeypatch):
    before, after = tiny_vit(), tiny_vit(seed=1)
    monkeypatch.setattr(type(before), "base_model_prefix", "")
    assert not distance(before, after)["head_only"]


class TestReference:
    def test_rmia_by_hand(self):
        target, ref = np.array([0.9, 0.5, 0.1]), np.array([0.5, 0.5, 0.5])
        z_target, z_ref = np.array([0.2, 0.4, 0.8, 0.6]), np.array([0.4, 0.4, 0.4, 0.4])
        for offline, gamma in ((1.0, 1.0), (0.3, 1.0), (0.3, 2.0)):
            expected = []
            for p, q in zip(target, ref, strict=True):
                ratio = p / ((1 + offline) / 2 * q + (1 - offline) / 2)
                ratios = z_target / ((1 + offline) / 2 * z_ref + (1 - offline) / 2)
                expected.append((ratio >= gamma * ratios).mean())
            assert rmia(target, ref, z_target, z_ref, gamma, offline).tolist() == expected

    def test_a_hard_sample_that_is_known(self):
        """Both have the same probability; only one of them is hard for a model that has not seen it."""
        easy, hard = rmia([0.9, 0.9], [0.9, 0.2], [0.9, 0.8, 0.5], [0.9, 0.6, 0.4])
        assert hard > easy

    def test_true_positives(self):
        assert true_positives([0.5, 1.0], np.linspace(0, 0.99, 100), rate=0.01) == 0.5
        assert true_positives([0.985, 0.2], np.linspace(0, 0.99, 100), rate=0.01) == 0.5
        assert true_positives([0.8, 0.2], [0.3, 0.7]) == 0.5  # of few others, above them all

    def test_degree(self):
        original, out = np.array([3.0, 5.0]), np.array([1.0, -1.0])
        assert degree(original, original, out) == 0 and degree(original, out, out) == 1
        assert degree(original, (original + out) / 2, out) == pytest.approx(0.5)
        assert degree(original, out - 4, out) > 1
        assert degree(out, out, original) is None

    def test_a_trained_reference(self, untouched):
        model = train_reference(untouched, epochs=2)
        state = torch.random.get_rng_state()
        again = train_reference(untouched, epochs=2)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert type(model) is type(untouched.models["original"]) and same_bits(weights(model), weights(again))
        assert not model.training

    def test_a_reference_from_the_base_model(self, untouched, tmp_path, monkeypatch):
        """Its network is the base model's; a head of another size is new."""
        base = tiny_vit(seed=5, num_labels=7)
        base.save_pretrained(tmp_path)
        untouched.base_model = str(tmp_path)
        monkeypatch.setattr(reference, "TUNING_RATE", 1e-9)
        model = train_reference(untouched, epochs=1)
        network = {name: value for name, value in weights(model).items() if not name.startswith("classifier")}
        assert len(network) > 10
        torch.testing.assert_close(network, {name: weights(base)[name] for name in network}, atol=1e-6, rtol=0)
        assert model.config.num_labels == untouched.num_labels

    def test_a_weak_reference_judges_nothing(self, untouched):
        of = untouched.measured["original"]["unseen"]
        of.signals["correct"][:] = 1
        untouched.reference = tiny_vit(seed=3)
        content, (finding,) = reference.examine(untouched)
        about = content["membership"]
        assert about["accuracy"]["original"] == 1 and about["accuracy"]["reference"] < 0.6
        assert finding.kind == "info" and finding.p is None and "too weak to judge by" in finding.sentence
        of.signals["correct"][:] = 0
        content, (finding,) = reference.examine(untouched)
        assert finding.kind == "residual" and finding.p is not None and "weak" not in finding.sentence

    def test_what_is_never_seen_has_a_worst_tenth_too(self):
        rng = np.random.default_rng(0)
        ratios = rng.random(400)
        scores = rmia(ratios, np.ones(400), ratios, np.ones(400))
        interval = reference._again(rng, reference.worst, scores, size=50)
        assert reference.worst(scores) > 0.94 and 0.85 < interval["low"] < 0.95 < interval["high"] <= 1

    def test_examine(self, untouched, monkeypatch):
        ctx = dataclasses.replace(untouched, reference=tiny_vit(seed=3))
        content, (finding,) = reference.examine(ctx)
        json.dumps(content)
        about = content["membership"]
        assert about["reference"] == "given"
        assert about["iam"]["mean"] == about["iam"]["worst_decile"] == 0
        assert about["rmia"]["auc"] > 0.7 and about["rmia"]["low"] <= about["rmia"]["auc"] <= about["rmia"]["high"]
        for name in ("tpr_at_1_fpr", "worst_decile", "worst_decile_of_unseen"):
            figure = about["rmia"][name]
            assert 0 < figure["value"] <= 1 and figure["low"] <= figure["value"] <= figure["high"]
        assert "fewer than 100: its true positives are those at 0% false ones" in about["notes"][0]
        assert finding.value == about["rmia"]["auc"] and finding.kind == "residual"

        gone = tiny_vit(seed=3)  # the reference itself: it has never seen anything
        ctx = context({"original": fitted(), "unlearned": gone, "retrained": gone}, learnt())
        about = reference.examine(ctx)[0]["membership"]
        assert about["reference"] == "given" and about["iam"]["mean"] == 1 == about["iam"]["worst_decile"]

        monkeypatch.setattr(reference, "train_reference", lambda ctx: tiny_vit(seed=4))
        assert reference.examine(untouched)[0]["membership"]["reference"] == "trained"


class TestMinutes:
    def test_what_does_not_fit_is_left_out(self, untouched, capsys, monkeypatch):
        """The dearest goes first, and what is left out is named, with why."""
        monkeypatch.setenv("COLUMNS", "200")  # it is wrapped in a narrow terminal
        untouched.passes = 1000
        made, why = levels.plan(untouched, 1, 1.0, None)
        costs = {name: levels.PARTS[name].samples(untouched) / 1000 for name in made}
        assert made == ["representation", "quantization", "relearning"] and why == {}
        assert max(costs, key=costs.get) == "relearning" and min(costs.values()) > 0
        assert levels.plan(untouched, 1, 1.0, sum(costs.values()) - 0.001)[0] == made[:2]
        assert capsys.readouterr().err.splitlines()[-1].endswith("; left out: relearning.")
        made, why = levels.plan(untouched, 1, 1.0, 0.0)
        assert made == [] and set(why) == set(costs)
        assert levels.plan(untouched, 0, 1.0, None) == ([], {})

    def test_in_the_report(self):
        data = learnt()
        report = audit(fitted(), tiny_vit(seed=3), **data, level=1, minutes=1e-9)
        content = report.content
        assert "relearning" not in content and content["reasons"]["relearning"].startswith("left out, as about ")
        assert sum(one.startswith("What ") and "left out" in one for one in content["verdict"]["cannot"]) == 3
        assert "relearning: left out" in report.summary()
        for given, message in (
            ({"level": 0, "minutes": 5}, "minutes is 5, and level 0"),
            ({"level": 1, "minutes": 0}, "minutes is 0"),
        ):
            with pytest.raises(UnlearningError, match=message):
                audit(fitted(), tiny_vit(seed=3), **data, **given)
