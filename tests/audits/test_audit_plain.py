"""The plainest attacks, exact and beside a retrained model, and what an audit says when it could not have seen anything."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import fisher_exact

from hf_unlearn.audits import evidence, figures, passes, plain
from hf_unlearn.audits.context import AuditContext
from hf_unlearn.audits.evidence import judge
from hf_unlearn.audits.plain import matched_shares
from hf_unlearn.audits.verdict import LEVEL, decide, seen, smallest_auc
from hf_unlearn.tasks.classification import ImageClassification
from hf_unlearn.tasks.figures import Measurement

CLASSES, NAMES = 10, ("original", "unlearned", "retrained")


class TestShares:
    def test_of_one_class_it_is_fisher(self):
        for right, others in ((9, 3), (2, 8), (5, 7), (0, 0)):
            sides = np.arange(10) < right, np.arange(14) < others
            tails = [
                fisher_exact([[right, 10 - right], [others, 14 - others]], side).pvalue for side in ("less", "greater")
            ]
            found = matched_shares(sides[0], np.zeros(10), sides[1], np.zeros(14))
            assert found.p == pytest.approx(min(1, 2 * min(tails)), rel=1e-9)
            assert (found.forget, found.unseen) == (pytest.approx(right / 10), pytest.approx(others / 14))

    def test_of_several_classes_it_counts_all_exchanges(self):
        """Within classes of two and three forget samples among five and six."""
        forget, unseen = np.array([1, 1, 1, 0, 1]), np.array([1, 0, 0, 0, 0, 1])
        labels = np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
        values = [np.concatenate([forget[labels[0] == c], unseen[labels[1] == c]]) for c in (0, 1)]
        choices = [list(itertools.combinations(range(len(v)), n)) for v, n in zip(values, (2, 3), strict=True)]
        sums = np.array([values[0][list(a)].sum() + values[1][list(b)].sum() for a, b in itertools.product(*choices)])
        expected = 2 * min((sums >= forget.sum()).mean(), (sums <= forget.sum()).mean())
        assert matched_shares(forget, labels[0], unseen, labels[1]).p == pytest.approx(expected)

    def test_classes_of_one_side_do_not_count(self):
        one = matched_shares([1, 0, 1], [0, 0, 2], [0, 1, 1], [0, 0, 3])
        assert one == matched_shares([1, 0], [0, 0], [0, 1], [0, 0])
        assert matched_shares([1], [0], [1], [1]) is None

    def test_errors_where_nothing_is_there(self):
        """Exact whatever the numbers: shares that differ by class, and classes of one or two samples."""
        rng, p = np.random.default_rng(0), []
        for _ in range(1000):
            labels = rng.integers(0, CLASSES, 30), rng.integers(0, CLASSES, 60)
            sides = (rng.random(len(of)) < 0.1 + 0.08 * of for of in labels)
            p.append(matched_shares(next(sides), labels[0], next(sides), labels[1]).p)
        for level in (0.05, 0.01, LEVEL / 12):
            assert np.mean(np.array(p) <= level) <= level + 3 * np.sqrt(level / 1000)


def said(rng, correct, low=0.0):
    """Measurements of samples that are right or wrong, with margins that tell little more."""
    labels = np.arange(len(correct)) % CLASSES
    margin = np.where(correct, rng.uniform(low, 1.5, len(correct)), -rng.uniform(0, 1.5, len(correct)))
    signals = {"margin": margin, "entropy": rng.random(len(correct)), "correct": correct.astype(float)}
    return Measurement(labels, signals | {"loss": np.log1p(np.exp(-margin))}, None)


def placed(rng, right, of):
    return rng.permutation(np.arange(of) < right)


def reported():
    """60 forget samples of which nothing was forgotten: 58 are right before and after, 38 in the retrained model; of 120
    unseen ones 88. Margins are lower where the forget samples are right, so that ranks tell little."""
    rng = np.random.default_rng(3)
    known = placed(rng, 58, 60)
    again = known & placed(rng, 60, 60)
    fewer = known.copy()
    fewer[rng.permutation(np.flatnonzero(known))[:20]] = False
    unseen, retain = placed(rng, 88, 120), placed(rng, 290, 300)
    measured = {}
    for name, forget in zip(NAMES, (known, again, fewer), strict=True):
        measured[name] = {"forget": said(rng, forget), "retain": said(rng, retain), "unseen": said(rng, unseen)}
        shrunk = measured[name]["forget"].signals
        shrunk["margin"] = np.where(forget, shrunk["margin"] / 1.3, shrunk["margin"])
    return measured


class Each:
    """A set of which every sample is one that was given."""

    def count(self, rows):
        return len(rows)


def verdict_of(measured, monkeypatch):
    row = {"auc_low": 0.0, "auc_high": 1.0}
    monkeypatch.setattr(figures, "by_model", lambda ctx: (dict.fromkeys(ctx.measured, row), {}))
    monkeypatch.setattr(figures, "by_class", lambda ctx, tests: [])
    monkeypatch.setattr(passes, "distance", lambda *_: {"total": 0.01, "head_only": False, "layers": []})
    sets = {name: (name, np.arange(len(of.labels))) for name, of in measured["original"].items()}
    labels = {name: of.labels for name, of in measured["original"].items()}
    about = False, ImageClassification, CLASSES, None
    each = SimpleNamespace(samples=SimpleNamespace(sources=dict.fromkeys(sets, Each())))
    ctx = AuditContext(dict.fromkeys(measured), each, sets, labels, *about, measured=measured)
    judged = judge(ctx)
    verdict = decide(judged.findings, judged.cannot, judged=judged.can, power=judged.power(judged.findings))
    return verdict, {finding.name: finding for finding in verdict.findings}, judged


@pytest.mark.parametrize("models", [NAMES, NAMES[:2]], ids=["beside retrained", "alone"])
def test_a_model_that_has_forgotten_nothing_is_seen(models, monkeypatch):
    measured = {name: of for name, of in reported().items() if name in models}
    verdict, found, _ = verdict_of(measured, monkeypatch)
    assert min(found[name].p for name in ("membership", "spread", "entropy")) > 0.01  # ranks are blind to it
    assert verdict.outcome == "residual memory" and found["accuracy"].fails and found["accuracy"].p < 2e-4
    assert (
        "96.7% of the forget samples are classified right, and 73.3% of the unseen ones" in found["accuracy"].sentence
    )
    if len(models) == 3:
        assert found["paired_accuracy"].fails and found["paired_accuracy"].value == pytest.approx(20 / 60)
        assert "20 samples are more right, 0 less" in found["paired_accuracy"].sentence


def test_without_unseen_samples_the_retrained_model_tells(monkeypatch):
    measured = {name: {s: m for s, m in of.items() if s != "unseen"} for name, of in reported().items()}
    verdict, found, judged = verdict_of(measured, monkeypatch)
    assert verdict.outcome == "residual memory" and found["paired_accuracy"].fails and not judged.can


class TestBesideRetrained:
    def findings(self, rng, known=0.0, scale=1.0, control=True, drop=0.0):
        """Of two models that have seen neither side, one of which is `scale` times as sure and right on `drop` fewer."""
        sizes, measured = {"forget": 60, "unseen": 120}, {"retrained": {}, "unlearned": {}}
        hardness = {name: rng.normal(size=n) for name, n in sizes.items()}
        for model, of in measured.items():
            for name, n in sizes.items():
                margin = 0.5 - hardness[name] + 0.5 * rng.normal(size=n)
                margin += (model == "unlearned") * ((name == "forget") * known - drop)
                signals = {"correct": (margin > 0).astype(float)}
                signals["loss"] = np.log1p(np.exp(-margin * (scale if model == "unlearned" else 1)))
                of[name] = Measurement(np.arange(n) % CLASSES, signals, None)
        labels = {name: measured["unlearned"][name].labels for name in sizes}
        ctx = AuditContext(dict.fromkeys(measured), None, {}, labels, False, "", CLASSES, None, measured=measured)
        return {finding.name: finding for finding in plain.retrained_findings(ctx, control)}

    def test_errors_of_another_seed(self):
        """The other model is three times as sure of everything, or a little worse at it: no memory of the forget set."""
        rng = np.random.default_rng(1)
        for about in ({}, {"scale": 3.0}, {"drop": 0.05}):
            found = [self.findings(rng, **about) for _ in range(200)]
            for name in ("paired_accuracy", "paired_loss"):
                assert np.mean([of[name].p <= 0.05 for of in found]) < 0.1, (about, name)

    def test_memory_is_seen(self):
        rng = np.random.default_rng(2)
        found = [self.findings(rng, known=1.0) for _ in range(20)]
        assert all(of["paired_loss"].p < 0.01 and of["paired_loss"].kind == "residual" for of in found)
        assert np.mean([of["paired_accuracy"].p < 0.05 for of in found]) > 0.5
        gone = self.findings(rng, known=-2.0)
        assert {finding.kind for finding in gone.values()} == {"over"} and gone["paired_loss"].p < 0.01

    def test_losses_need_a_control(self):
        assert set(self.findings(np.random.default_rng(4), control=False)) == {"paired_accuracy"}


class TestCannotJudge:
    def test_power_of_a_p_value_is_that_of_the_auc(self):
        from scipy.stats import norm

        for tests in (1, 9):
            least = smallest_auc(0.03, tests)
            at = 2 * norm.sf((least - 0.5) / 0.03)
            assert seen(at * 0.99, tests) and not seen(at * 1.01, tests)
        assert seen(0.0, 9)

    def cannot(self, trace, noticed, auc=0.7):
        from hf_unlearn.audits.membership import matched_test

        rng = np.random.default_rng(5)
        labels = np.arange(60) % CLASSES, np.arange(120) % CLASSES
        test = matched_test(rng.normal(size=60), labels[0], rng.normal(size=120), labels[1])
        tests = dict.fromkeys(NAMES[:2], {"margin": test})
        return evidence._cannot(
            SimpleNamespace(given={"forget": 60, "unseen": 120}.get),
            tests,
            True,
            8,
            trace,
            {"auc": auc, "noticed": noticed, "sentence": "So it is."},
        )[0]

    def test_the_originals_own_trace(self):
        assert self.cannot(1e-6, True) == []
        assert "shows no memory of the forget set" in self.cannot(0.5, True)[0]
        (weak,) = self.cannot(0.05 / 8, True)  # significant, and found in every second case only
        assert "less than what this audit sees in four of five cases" in weak

    def test_the_self_test(self):
        (failed,) = self.cannot(1e-6, False)
        assert failed == "The self-test failed, so that nothing was found says little. So it is."
        assert self.cannot(1e-6, False, auc=None) == []  # there was nothing to plant

    def test_is_the_headline(self, monkeypatch):
        """A model that is retrained, beside an original that remembers next to nothing."""
        measured = reported()
        measured["unlearned"] = measured["original"] = measured["retrained"] | {
            "forget": said(np.random.default_rng(6), placed(np.random.default_rng(7), 44, 60))
        }
        verdict, _, judged = verdict_of({name: measured[name] for name in NAMES[:2]}, monkeypatch)
        assert verdict.outcome == "cannot judge" and not judged.can
        assert verdict.headline.startswith("This audit cannot judge whether the forget samples are still remembered: ")
