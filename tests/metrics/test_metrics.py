import doctest
import importlib
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from hf_unlearn import metrics
from hf_unlearn.metrics import divergence, gaps, language, membership, signals, text_membership, tokens

LN2 = np.log(2)


def probabilities(n, k=5, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(k), n)


def test_docstring_examples_are_true():
    families = (divergence, gaps, importlib.import_module("hf_unlearn.metrics.interference"), membership, signals)
    families += (language, text_membership, tokens)
    results = [doctest.testmod(family) for family in families]
    assert not any(result.failed for result in results)
    assert sum(result.attempted for result in results) >= len(metrics.__all__) - 1


def test_import_needs_neither_torch_nor_sklearn():
    code = "import sys, hf_unlearn.metrics; sys.exit(bool({'torch', 'sklearn', 'scipy.stats'} & set(sys.modules)))"
    root = Path(metrics.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


class TestJSD:
    def test_closed_form(self):
        # ½ ln(1 / .75) + ½ (½ ln(.5 / .75) + ½ ln(.5 / .25))
        expected = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2)
        assert metrics.jsd([1.0, 0.0], [0.5, 0.5]) == pytest.approx(expected, abs=1e-15)

    def test_symmetric_and_bounded(self):
        p, q = probabilities(200, seed=1), probabilities(200, seed=2)
        rows = metrics.jsd_rows(p, q)
        assert np.array_equal(rows, metrics.jsd_rows(q, p))
        assert rows.shape == (200,) and (rows > 0).all() and (rows < LN2).all()
        assert metrics.jsd(p, q) == pytest.approx(rows.mean(), abs=1e-15)

    def test_zero_for_equal_and_ln2_for_disjoint(self):
        p = probabilities(50)
        assert metrics.jsd(p, p) == 0
        one_hot = np.eye(4)
        assert metrics.jsd(one_hot, np.roll(one_hot, 1, axis=1)) == pytest.approx(LN2, abs=1e-15)
        assert (metrics.jsd_rows(one_hot, np.roll(one_hot, 1, axis=1)) <= LN2).all()

    def test_repeating_rows_changes_nothing(self):
        p, q = probabilities(30, seed=1), probabilities(30, seed=2)
        assert metrics.jsd(np.tile(p, (7, 1)), np.tile(q, (7, 1))) == pytest.approx(metrics.jsd(p, q), abs=1e-14)

    def test_does_not_shrink_with_the_number_of_rows(self):
        small = metrics.jsd(probabilities(200, seed=1), probabilities(200, seed=2))
        large = metrics.jsd(probabilities(20_000, seed=3), probabilities(20_000, seed=4))
        assert small == pytest.approx(large, rel=0.1)

    def test_zeros_and_tiny_numbers(self):
        rng = np.random.default_rng(5)
        p, q = (rng.dirichlet(np.full(50, 0.02), 300) for _ in range(2))
        p[0], q[0] = 0, 0
        p[0, :3], q[0, :3] = (1, 5e-324, 0), (0, 5e-324, 1)
        m = (p + q) / 2
        expected = (rel_entr(p, m).sum(axis=1) + rel_entr(q, m).sum(axis=1)) / 2
        assert (p == 0).any() and np.abs(metrics.jsd_rows(p, q) - expected.clip(0, LN2)).max() < 1e-14

    def test_half_precision_rows_are_rescaled(self):
        p, q = probabilities(40, seed=1), probabilities(40, seed=2)
        assert metrics.jsd(p * 1.0005, q * 0.9995) == pytest.approx(metrics.jsd(p, q), abs=1e-14)
        disjoint = torch.tensor([[1.0005, 0.0]]), torch.tensor([[0.0, 1.0005]])
        assert metrics.jsd(*disjoint) <= LN2

    def test_zrf_and_activation_distance(self):
        p, q = probabilities(30, seed=1), probabilities(30, seed=2)
        assert metrics.zrf(p, q) == pytest.approx(1 - metrics.jsd(p, q), abs=1e-15)
        assert metrics.activation_distance(np.eye(3), np.roll(np.eye(3), 1, axis=1)) == pytest.approx(2**0.5)
        by_hand = np.mean([np.sqrt(((a - b) ** 2).sum()) for a, b in zip(p, q, strict=True)])
        assert metrics.activation_distance(p, q) == pytest.approx(by_hand, abs=1e-14)


def lotus_reference(forget_probs, forget_labels, unseen_probs, unseen_labels):
    """The convention read literally: renormalised class means, clamped, the stack normalised as one, batchmean."""
    classes = sorted(set(forget_labels.tolist()))

    def stack(probs, labels):
        means = [torch.tensor(probs[labels == c]).mean(0) for c in classes]
        return torch.stack([mean / mean.sum() for mean in means]).clamp(min=1e-8)

    p, q = stack(forget_probs, forget_labels), stack(unseen_probs, unseen_labels)
    p, q = p / p.sum(), q / q.sum()
    m = 0.5 * (p + q)
    divergence = F.kl_div(p.log(), m, reduction="batchmean") + F.kl_div(q.log(), m, reduction="batchmean")
    return 0.5 * divergence.item()


class TestRFJSD:
    @pytest.fixture
    def sample(self):
        rng = np.random.default_rng(0)
        forget_labels, unseen_labels = rng.permutation(np.arange(60) % 6), rng.permutation(np.arange(90) % 6)
        return probabilities(60, 6, seed=1), forget_labels, probabilities(90, 6, seed=2), unseen_labels

    def test_is_the_mean_over_classes_of_the_jsd_of_class_means(self, sample):
        fp, fl, up, ul = sample
        by_class = [metrics.jsd(fp[fl == c].mean(0), up[ul == c].mean(0)) for c in range(6)]
        assert metrics.rf_jsd(*sample) == pytest.approx(np.mean(by_class), abs=1e-14)

    def test_classes_count_equally_whatever_their_size(self):
        forget = np.array([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
        labels = np.array([0] * 9 + [1])
        unseen = np.array([[1.0, 0.0], [1.0, 0.0]])
        assert metrics.rf_jsd(forget, labels, unseen, [0, 1]) == pytest.approx(LN2 / 2)

    def test_lotus_convention(self, sample):
        assert metrics.rf_jsd(*sample, convention="lotus") == pytest.approx(lotus_reference(*sample), abs=1e-6)
        one_hot = (np.eye(3), np.arange(3), np.roll(np.eye(3), 1, axis=1), np.arange(3))
        value = metrics.rf_jsd(*one_hot, convention="lotus")
        assert value == pytest.approx(lotus_reference(*one_hot), abs=1e-6)
        # every class contributes ½ KL(M‖P) + ½ KL(M‖Q) = 8.52 for disjoint one-hots, far beyond ln 2
        assert value * 3 == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5e8), abs=1e-5)
        assert value != pytest.approx(metrics.rf_jsd(*one_hot), abs=0.1)

    @pytest.mark.parametrize("convention", ["standard", "lotus"])
    def test_from_streamed_class_means(self, sample, convention):
        fp, fl, up, ul = sample
        (forget_classes, forget_means), (unseen_classes, unseen_means) = (
            metrics.class_means(fp, fl),
            metrics.class_means(up, ul),
        )
        assert np.array_equal(forget_classes, range(6)) and np.array_equal(unseen_classes, range(6))
        streamed = metrics.rf_jsd_from_means(forget_means, unseen_means, convention=convention)
        assert streamed == pytest.approx(metrics.rf_jsd(*sample, convention=convention), abs=1e-14)

    def test_class_without_unseen_samples(self, sample):
        fp, fl, up, ul = sample
        keep = ul != 4
        with pytest.raises(ValueError, match=r"forget classes \[4\] have no unseen sample.*missing='skip'"):
            metrics.rf_jsd(fp, fl, up[keep], ul[keep])
        skipped = metrics.rf_jsd(fp, fl, up[keep], ul[keep], missing="skip")
        assert skipped == pytest.approx(metrics.rf_jsd(fp[fl != 4], fl[fl != 4], up, ul), abs=1e-14)
        with pytest.raises(ValueError, match=r"none of the forget classes \[4\]"):
            metrics.rf_jsd(fp[fl == 4], fl[fl == 4], up[keep], ul[keep], missing="skip")

    def test_class_without_forget_samples_is_ignored(self, sample):
        fp, fl, up, ul = sample
        kept = fl != 2
        alone = metrics.rf_jsd(fp[kept], fl[kept], up[ul != 2], ul[ul != 2])
        assert metrics.rf_jsd(fp[kept], fl[kept], up, ul) == alone

    def test_labels_need_not_be_column_numbers(self, sample):
        fp, fl, up, ul = sample
        assert metrics.rf_jsd(fp, fl * 1000 + 7, up, ul * 1000 + 7) == metrics.rf_jsd(*sample)

    def test_unknown_choices_are_refused(self, sample):
        with pytest.raises(ValueError, match="'standard' or 'lotus'"):
            metrics.rf_jsd(*sample, convention="paper")
        with pytest.raises(ValueError, match="'error' or 'skip'"):
            metrics.rf_jsd(*sample, missing="ignore")


class TestSampleStatistics:
    logits = np.random.default_rng(0).normal(size=(40, 7)) * 3
    labels = np.arange(40) % 7

    def test_definitions(self):
        statistics = metrics.sample_statistics(self.logits, self.labels)
        p = np.exp(self.logits) / np.exp(self.logits).sum(1, keepdims=True)
        p_y = p[np.arange(40), self.labels]
        expected = {
            "loss": -np.log(p_y),
            "entropy": -(p * np.log(p)).sum(1),
            "confidence": p_y,
            "margin": np.log(p_y) - np.log(1 - p_y),
            "correct": (p.argmax(1) == self.labels).astype(float),
        }
        assert list(statistics) == list(expected)
        for name, value in expected.items():
            assert statistics[name].dtype == np.float64
            np.testing.assert_allclose(statistics[name], value, atol=1e-10, err_msg=name)

    def test_margin_and_entropy_stay_exact_where_the_probability_saturates(self):
        statistics = metrics.sample_statistics([[900.0, 0.0, -np.inf], [0.0, 900.0, 900.0]], [0, 0])
        np.testing.assert_allclose(statistics["margin"], [900, -900 - LN2])
        np.testing.assert_allclose(statistics["entropy"], [0, LN2], atol=1e-300)
        np.testing.assert_allclose(statistics["loss"], [0, 900 + LN2], atol=1e-300)

    def test_torch_stays_torch_in_float64(self):
        logits = torch.tensor(self.logits, dtype=torch.float32, requires_grad=True)
        statistics = metrics.sample_statistics(logits, torch.tensor(self.labels))
        expected = metrics.sample_statistics(logits.detach().numpy(), self.labels)
        for name, value in statistics.items():
            assert isinstance(value, torch.Tensor) and value.dtype == torch.float64 and not value.requires_grad
            assert np.array_equal(value.numpy(), expected[name]), name

    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            ([[0.0, 1.0]], [2], "from 0 to 1"),
            ([[0.0, 1.0]], [-100], "from 0 to 1"),
            ([[0.0, 1.0]], [0.5], "integers"),
            ([[0.0, 1.0]], [0, 1], "were expected"),
            ([0.0, 1.0], [0, 1], "were expected"),
            ([[1.0]], [0], "K at least 2"),
            ([[np.nan, 1.0]], [0], "NaN"),
            ([[np.inf, 1.0]], [0], "inf"),
        ],
    )
    def test_refusals(self, logits, labels, message):
        with pytest.raises(ValueError, match=message):
            metrics.sample_statistics(logits, labels)


@pytest.mark.slow
def test_quick():
    """10,000 x 1,000 probabilities in less than half a second; the best of three, as other work slows a core down."""
    rng = np.random.default_rng(0)
    p, q = (rng.random((10_000, 1000)) for _ in range(2))
    p, q, labels = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True), rng.integers(0, 1000, 10_000)
    for compute in (lambda: metrics.jsd(p, q), lambda: metrics.rf_jsd(p, labels, q, labels, missing="skip")):
        times = []
        while min(times, default=1) >= 0.5 and len(times) < 3:
            started = time.process_time()
            compute()
            times.append(time.process_time() - started)
        assert min(times) < 0.5


class TestMIA:
    rng = np.random.default_rng(0)

    @pytest.mark.parametrize("attack", ["logistic", "svc"])
    def test_separable(self, attack):
        retain, unseen = self.rng.uniform(0, 0.2, 200), self.rng.uniform(0.8, 1, 60)
        forget = np.concatenate([np.full(30, 0.1), np.full(10, 0.9)])
        result = metrics.mia_attack(retain, unseen, forget, attack=attack)
        assert result == {"score": 0.75, "attack_accuracy": 1.0}
        assert metrics.mia(retain, unseen, forget, attack=attack) == 0.75
        # the direction is learnt, not assumed
        assert metrics.mia(-retain, -unseen, -forget, "confidence", attack=attack) == 0.75

    def test_identical_distributions(self):
        retain, unseen, forget = (self.rng.normal(size=n) for n in (4000, 1000, 1000))
        result = metrics.mia_attack(retain, unseen, forget)
        assert 0.4 < result["score"] < 0.6
        assert 0.45 < result["attack_accuracy"] < 0.55

    @pytest.mark.parametrize("attack", ["logistic", "svc"])
    def test_sides_weigh_the_same_whatever_their_size(self, attack):
        # equal weights put the threshold at 0, where Φ(-1) = .159 of the non-members pass; 10 : 1 would let .56 pass
        retain, unseen = self.rng.normal(1, 1, 6000), self.rng.normal(-1, 1, 600)
        forget = self.rng.normal(-1, 1, 4000)
        assert metrics.mia(retain, unseen, forget, attack=attack) == pytest.approx(0.159, abs=0.05)

    def test_scale_of_the_signal_does_not_matter(self):
        retain, unseen, forget = self.rng.normal(1, 1, 300), self.rng.normal(-1, 1, 300), self.rng.normal(0, 1, 300)
        small = metrics.mia(retain * 1e-6, unseen * 1e-6, forget * 1e-6)
        assert small == pytest.approx(metrics.mia(retain * 1e6, unseen * 1e6, forget * 1e6), abs=0.01)
        assert 0.4 < small < 0.6

    def test_svc_finds_what_no_single_threshold_does(self):
        retain = self.rng.uniform(-0.5, 0.5, 200)
        unseen = np.concatenate([self.rng.uniform(-3, -1.5, 100), self.rng.uniform(1.5, 3, 100)])
        assert metrics.mia_attack(retain, unseen, [0.0], attack="svc") == {"score": 1.0, "attack_accuracy": 1.0}
        assert metrics.mia_attack(retain, unseen, [0.0])["attack_accuracy"] < 0.8

    def test_halves_are_held_out_and_drawn_from_the_seed(self):
        # labels without any pattern: an RBF machine fits its own half better than chance, but not the other one
        retain, unseen = self.rng.normal(size=400), self.rng.normal(size=400)
        forget = self.rng.normal(size=200)
        first = metrics.mia_attack(retain, unseen, forget, attack="svc", seed=1)
        assert first == metrics.mia_attack(retain, unseen, forget, attack="svc", seed=1)
        assert first != metrics.mia_attack(retain, unseen, forget, attack="svc", seed=2)
        over_seeds = [
            metrics.mia_attack(retain, unseen, forget, attack="svc", seed=seed)["attack_accuracy"]
            for seed in range(10)
        ]
        assert np.mean(over_seeds) == pytest.approx(0.5, abs=0.03)

    def test_refusals(self):
        good = [0.1, 0.2, 0.3, 0.4]
        with pytest.raises(ValueError, match="3 retain and 4 unseen samples.*at least 4"):
            metrics.mia(good[:3], good, good)
        with pytest.raises(ValueError, match="`forget loss` is empty"):
            metrics.mia(good, good, [], "loss")
        for bad in (np.nan, np.inf):
            with pytest.raises(ValueError, match="`unseen margin` contains NaN or infinite"):
                metrics.mia(good, [*good, bad], good, "margin")
        with pytest.raises(ValueError, match="'logistic' or 'svc'"):
            metrics.mia(good, good, good, attack="forest")


class TestMatchedAUC:
    def test_against_a_second_implementation(self):
        rng = np.random.default_rng(0)
        # coarse scores so that many tie, classes of very different sizes, classes on one side only
        fl, ul = rng.choice([0, 1, 2, 5], 300, p=[0.6, 0.2, 0.1, 0.1]), rng.choice([0, 1, 2, 7], 200)
        f, u = rng.normal(0.3 * fl, 1).round(1), rng.normal(0, 1, 200).round(1)
        result = metrics.matched_auc(f, fl, u, ul, bootstrap=50)
        by_class = {
            c: roc_auc_score(np.r_[np.ones((fl == c).sum()), np.zeros((ul == c).sum())], np.r_[f[fl == c], u[ul == c]])
            for c in (0, 1, 2)
        }
        weights = [(fl == c).sum() for c in by_class]
        assert result.auc == pytest.approx(np.average(list(by_class.values()), weights=weights), abs=1e-12)
        assert result.n_forget == sum(weights) and result.n_unseen == (ul != 7).sum()
        assert result.unmatched_classes == [5] and result.reason is None
        assert result.low < result.auc < result.high

    def test_deleted_class(self):
        # a perfectly retrained model: low margins on the deleted class, seen or unseen alike, high ones elsewhere
        rng = np.random.default_rng(0)
        forget, labels = rng.normal(-5, 1, 500), np.arange(1000) % 10
        unseen = np.where(labels == 3, rng.normal(-5, 1, 1000), rng.normal(3, 1, 1000))
        matched = metrics.matched_auc(forget, np.full(500, 3), unseen, labels, bootstrap=200)
        all_classes = metrics.matched_auc(forget, np.zeros(500), unseen, np.zeros(1000), bootstrap=0)
        assert all_classes.auc < 0.1
        assert matched.auc == pytest.approx(0.5, abs=0.07) and matched.low < 0.5 < matched.high

    def test_ties_count_half(self):
        assert metrics.matched_auc([1, 1], [0, 0], [1, 1, 1], [0, 0, 0]).auc == 0.5
        assert metrics.matched_auc([2, 1], [0, 0], [1, 0], [0, 0], bootstrap=0).auc == pytest.approx(3.5 / 4)
        # equal scores of different classes are no tie
        result = metrics.matched_auc([5, 5], [0, 1], [5, 7], [0, 1], bootstrap=0)
        assert result.auc == pytest.approx((0.5 + 0) / 2)

    def test_extremes_and_infinite_scores(self):
        assert metrics.matched_auc([3, 4], [0, 0], [1, 2], [0, 0]).auc == 1
        assert metrics.matched_auc([1, 2], [0, 0], [3, 4], [0, 0]).auc == 0
        assert metrics.matched_auc([np.inf, -np.inf], [0, 0], [np.inf, 0], [0, 0], bootstrap=0).auc == 1.5 / 4

    def test_replicates_resample_within_classes(self):
        # between classes scores differ hugely, within them not at all: no replicate can leave one half
        f_labels, u_labels = np.arange(40) % 4, np.arange(60) % 4
        result = metrics.matched_auc(f_labels * 100, f_labels, u_labels * 100, u_labels, bootstrap=200)
        assert (result.low, result.auc, result.high) == (0.5, 0.5, 0.5)

    def test_interval_is_the_bootstrap_distribution(self):
        rng = np.random.default_rng(1)
        f, u = rng.normal(0.5, 1, 80), rng.normal(0, 1, 70)
        result = metrics.matched_auc(f, np.zeros(80), u, np.zeros(70), bootstrap=4000, level=0.9)
        wins = f[:, None] > u
        replicates = [wins[np.ix_(rng.integers(0, 80, 80), rng.integers(0, 70, 70))].mean() for _ in range(4000)]
        np.testing.assert_allclose([result.low, result.high], np.quantile(replicates, [0.05, 0.95]), atol=0.008)

    def test_interval_covers_the_truth(self):
        rng = np.random.default_rng(0)
        covered = 0
        for seed in range(100):
            fl, ul = np.arange(60) % 2, np.arange(80) % 2
            result = metrics.matched_auc(
                rng.normal(1 + 9 * fl, 1), fl, rng.normal(9 * ul, 1), ul, bootstrap=200, seed=seed, level=0.9
            )
            covered += result.low < 0.7602 < result.high  # Φ(1 / √2)
        assert 80 <= covered <= 98

    def test_seed_and_no_bootstrap(self):
        f, u, labels = np.arange(30.0), np.arange(30.0)[::-1] + 0.5, np.arange(30) % 3
        first = metrics.matched_auc(f, labels, u, labels, seed=1)
        assert first == metrics.matched_auc(f, labels, u, labels, seed=1)
        assert (first.low, first.high) != (None, None)
        without = metrics.matched_auc(f, labels, u, labels, bootstrap=0)
        assert without.auc == first.auc and without.low is None and without.high is None

    def test_nothing_matches(self):
        result = asdict(metrics.matched_auc([1, 2], [4, 4], [1, 2], [0, 1]))
        assert result["auc"] is None and result["low"] is None and result["unmatched_classes"] == [4]
        assert "[4]" in result["reason"]

    def test_refusals(self):
        with pytest.raises(ValueError, match="`unseen_scores` contains NaN"):
            metrics.matched_auc([1], [0], [np.nan], [0])
        with pytest.raises(ValueError, match="`forget_labels` has 1 entries.*has 2"):
            metrics.matched_auc([1, 2], [0], [1], [0])
        with pytest.raises(ValueError, match="`level` 95"):
            metrics.matched_auc([1, 2], [0, 0], [1], [0], level=95)


class TestSummaries:
    unlearned = {"forget_accuracy": 0.89, "retain_accuracy": 0.93, "unseen_accuracy": 0.62, "mia": 0.55}
    retrained = {"forget_accuracy": 0.57, "retain_accuracy": 0.94, "unseen_accuracy": 0.60, "mia": 0.49}

    def test_by_hand(self):
        # gaps .32 .01 .02 .06
        assert metrics.avg_gap(self.unlearned, self.retrained) == pytest.approx(0.1025, abs=1e-12)
        assert metrics.tow(self.unlearned, self.retrained) == pytest.approx(0.68 * 0.99 * 0.98, abs=1e-12)

    def test_sides_are_exchangeable_and_equal_is_best(self):
        assert metrics.avg_gap(self.retrained, self.unlearned) == metrics.avg_gap(self.unlearned, self.retrained)
        assert metrics.avg_gap(self.retrained, self.retrained) == 0
        assert metrics.tow(self.retrained, self.retrained) == 1

    def test_tow_needs_no_mia(self):
        without = {key: value for key, value in self.unlearned.items() if key != "mia"}
        assert metrics.tow(without, self.retrained) == metrics.tow(self.unlearned, self.retrained)
        with pytest.raises(ValueError, match="`unlearned` has no 'mia'"):
            metrics.avg_gap(without, self.retrained)

    @pytest.mark.parametrize("function", [metrics.avg_gap, metrics.tow])
    def test_refusals(self, function):
        with pytest.raises(ValueError, match="`retrained` has no 'retain_accuracy'"):
            function(self.unlearned, {"forget_accuracy": 0.5})
        with pytest.raises(ValueError, match="'unseen_accuracy' = nan"):
            function(self.unlearned | {"unseen_accuracy": np.nan}, self.retrained)
        with pytest.raises(ValueError, match="divide percentages by 100"):
            function(self.unlearned, {key: 100 * value for key, value in self.retrained.items()})

    def test_accuracy(self):
        assert metrics.accuracy([3, 1, 2], [3, 0, 0]) == pytest.approx(1 / 3)

    def test_forget_quality(self):
        rng = np.random.default_rng(0)
        a, b = rng.normal(0, 1, 300), rng.normal(1, 1, 200)
        assert metrics.forget_quality(a, b) == ks_2samp(a, b).pvalue < 1e-6
        assert metrics.forget_quality(a, rng.normal(0, 1, 200)) > 0.05
        assert metrics.forget_quality(a, a) == 1


class TestUIS:
    original = {
        "seg": {"test": 0.8, "forget": 0.95},
        "depth": {"test": 0.6, "forget": 0.9},
        "normals": {"test": 0.5, "forget": 0.7},
    }
    # what unlearning "seg" should lead to: seg forgotten to its test level, the rest as before
    ideal = original | {"seg": {"test": 0.8, "forget": 0.8}}

    def changed(self, task, split, value):
        return self.ideal | {task: self.ideal[task] | {split: value}}

    def test_retrained_model_scores_zero_against_itself(self):
        for class_unlearning in (False, True):
            scores = metrics.uis(self.original, self.original, ["seg"], "retrain", class_unlearning)
            assert scores == {"uis": 0, "uis_target": 0, "uis_nontarget": 0}

    def test_one_task_is_the_single_task_score(self):
        o, u_test, u_forget = 0.8, 0.76, 0.84
        reference, unlearned = {"t": {"test": o, "forget": 1.0}}, {"t": {"test": u_test, "forget": u_forget}}
        scores = metrics.uis(unlearned, reference, ["t"])
        single = 100 * 0.5 * (abs(o - u_test) / o + abs(o - u_forget) / o)
        assert scores["uis"] == scores["uis_target"] == pytest.approx(single, abs=1e-12) == pytest.approx(5, abs=1e-12)
        assert scores["uis_nontarget"] is None

    def test_class_unlearning_wants_zero_on_the_forgotten_class(self):
        reference, unlearned = {"t": {"test": 0.8, "forget": 1.0}}, {"t": {"test": 0.8, "forget": 0.0}}
        assert metrics.uis(unlearned, reference, ["t"], class_unlearning=True)["uis"] == 0
        assert metrics.uis(unlearned, reference, ["t"])["uis"] == pytest.approx(50)

    @pytest.mark.parametrize("split", ["test", "forget"])
    def test_slope_in_a_nontarget_metric(self, split):
        for drop in (0.01, 0.1, 0.3):
            scores = metrics.uis(
                self.changed("depth", split, self.original["depth"][split] - drop), self.original, ["seg"]
            )
            assert scores["uis"] == pytest.approx(drop * 100 / (2 * 3 * 0.6), abs=1e-12)
            assert scores["uis_nontarget"] == pytest.approx(drop * 100 / (2 * 2 * 0.6), abs=1e-12)
            assert scores["uis_target"] == 0

    def test_forgetting_too_much_costs_as_much_as_too_little(self):
        def score(level):
            return metrics.uis(self.changed("seg", "forget", level), self.original, ["seg"])["uis"]

        levels = [0.2, 0.5, 0.7, 0.8, 0.9, 1.0]
        values = [score(level) for level in levels]
        assert values[3] == 0
        assert values[:4] == sorted(values[:4], reverse=True) and values[3:] == sorted(values[3:])
        assert len(set(np.round(values, 9))) == 5  # .7 and .9 cost the same, all others differ
        assert score(0.7) == pytest.approx(score(0.9))

    def test_scale_of_the_metrics_does_not_matter(self):
        def percent(model):
            return {t: {split: 100 * x for split, x in values.items()} for t, values in model.items()}

        unlearned = self.changed("depth", "test", 0.4)
        for convention in ("original", "retrain"):
            fractions = metrics.uis(unlearned, self.original, ["seg"], convention)
            assert metrics.uis(percent(unlearned), percent(self.original), ["seg"], convention) == pytest.approx(
                fractions
            )

    def test_conventions_differ_for_a_retrained_model(self):
        retrained = self.original | {"seg": {"test": 0.78, "forget": 0.7}}
        assert metrics.uis(retrained, self.original, ["seg"])["uis"] > 0
        assert metrics.uis(retrained, retrained, ["seg"], "retrain")["uis"] == 0

    def test_nontargets_keep_the_forget_level_of_the_original(self):
        assert metrics.uis(self.ideal, self.original, ["seg"])["uis"] == 0
        assert metrics.uis(self.original, self.original, ["seg"])["uis"] == pytest.approx(100 * 0.15 / 0.8 / 2 / 3)
        assert metrics.uis(self.original, self.original, [])["uis"] == 0
        assert metrics.uis(self.original, self.original, [])["uis_target"] is None

    def test_a_hard_task_weighs_as_a_task(self):
        unlearned = self.changed("normals", "test", 0.25)
        scores = metrics.uis(unlearned, self.original, {"seg"})
        assert scores["uis"] == pytest.approx((0 + 0 + 100 * 0.5 * 0.5) / 3)

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"unknown tasks \['edges'\].*\['depth', 'normals', 'seg'\]"):
            metrics.uis(self.ideal, self.original, ["seg", "edges"])
        with pytest.raises(ValueError, match=r"reference\['seg'\]` has 'test' = 0.0.*divides by it"):
            metrics.uis(self.ideal, self.original | {"seg": {"test": 0, "forget": 1}}, ["seg"])
        with pytest.raises(ValueError, match=r"unlearned\['seg'\]` has no 'forget'"):
            metrics.uis(self.ideal | {"seg": {"test": 0.8}}, self.original, ["seg"])
        with pytest.raises(ValueError, match="pass the same tasks"):
            metrics.uis({"seg": self.ideal["seg"]}, self.original, ["seg"])
        with pytest.raises(ValueError, match="'original' or 'retrain'"):
            metrics.uis(self.ideal, self.original, ["seg"], convention="retrained")


def test_torch_numpy_and_lists_agree():
    p, q = probabilities(20, seed=1), probabilities(20, seed=2)
    p_labels, q_labels = np.arange(20) % 4, np.arange(20)[::-1] % 4
    scores, others = p[:, 0], q[:, 0]
    calls = [
        (metrics.jsd, (p, q)),
        (metrics.zrf, (p, q)),
        (metrics.activation_distance, (p, q)),
        (metrics.rf_jsd, (p, p_labels, q, q_labels)),
        (metrics.rf_jsd_from_means, (p, q)),
        (metrics.accuracy, (p_labels, q_labels.copy())),
        (metrics.mia, (scores, others, scores)),
        (metrics.matched_auc, (scores, p_labels, others, q_labels)),
        (metrics.forget_quality, (scores, others)),
    ]
    for function, arrays in calls:
        expected = function(*arrays)
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        assert function(*tensors) == expected, function.__name__
        assert function(*[array.tolist() for array in arrays]) == expected, function.__name__
        assert isinstance(expected, float | metrics.MatchedAUC)


def test_tensors_with_gradients_and_in_half_precision():
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    p = logits.softmax(-1)
    assert metrics.jsd(p, p) == 0
    assert 0 < metrics.jsd(p, p.half()) < 1e-6
    confidence = p.max(-1).values.to(torch.bfloat16)
    assert metrics.matched_auc(confidence, torch.zeros(8), confidence, torch.zeros(8), bootstrap=0).auc == 0.5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[0.5, 0.6]], r"row that sums to 1.1 \(row 0\)"),
        ([[0.5, 0.5], [0.5, 0.502]], r"sums to 1.002 \(row 1\)"),
        ([[-0.1, 1.1]], "negative values"),
        ([[np.nan, 1.0]], "NaN"),
        ([[np.inf, 0.0]], "infinite"),
        ([[[0.5, 0.5]]], r"shape \(1, 1, 2\)"),
        ([[0.5, 0.5], [1.0]], "rectangular array"),
        (np.empty((0, 2)), "is empty"),
        ([[0.2, 0.3, 0.5]], r"`p` has shape \(1, 3\) and `q` \(2, 2\)"),
    ],
)
def test_bad_probabilities_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        metrics.jsd(bad, [[0.5, 0.5], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0], "has 1 entries where the array it belongs to has 2"),
        ([[0], [1]], r"shape \(2, 1\)"),
        ([0.5, 1], "fractions"),
        (["cat", "dog"], "integer class ids were expected"),
        ([0, np.nan], "NaN"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.class_means([[0.5, 0.5], [1.0, 0.0]], labels)
