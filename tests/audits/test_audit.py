"""Audits by forward passes: their statistics, what they say of models whose faults are known, and what they refuse."""

import copy
import json
import sys
import time
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from scipy.stats import ks_2samp, mannwhitneyu, norm
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_unlearn import AuditReport, UnlearningError, audit, metrics, models, unlearn
from hf_unlearn.audits import canaries, evidence, figures, findings, matched, plain, reference, relearning, words
from hf_unlearn.audits.canaries import wrong_labels
from hf_unlearn.audits.context import AuditContext
from hf_unlearn.audits.matched import stand_out
from hf_unlearn.audits.membership import Matched, matched_mean, matched_test, paired_auc, paired_drop
from hf_unlearn.audits.passes import distance
from hf_unlearn.audits.plain import Shares
from hf_unlearn.audits.verdict import LEVEL, Finding, correct, decide, holm, smallest_auc
from hf_unlearn.commands import main
from hf_unlearn.data.batches import Batch
from hf_unlearn.methods.local_teacher import similarity
from hf_unlearn.metrics import matched_auc
from hf_unlearn.metrics.membership import called_members
from hf_unlearn.tasks.causal_lm import CausalLM, completion_statistics
from hf_unlearn.tasks.classification import ImageClassification
from hf_unlearn.tasks.evaluation import Tally
from hf_unlearn.tasks.figures import Measurement
from tests.runs import request as rows_of
from tests.samples import arguments, images
from tests.tiny import tiny_bert, tiny_llama_lm, tiny_resnet, tiny_vit

CLASSES, SIZES = 4, {"forget": 40, "retain": 80, "unseen": 240}


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def draws(rng, n, shift=0.0, classes=5):
    """Scores whose level differs by class, and labels."""
    labels = rng.integers(0, classes, n)
    return rng.normal(size=n) + labels + shift, labels


class TestMatched:
    @pytest.mark.parametrize("ties", [False, True])
    def test_of_one_class_it_is_mann_whitney(self, ties):
        rng = np.random.default_rng(0)
        f, u = rng.normal(0.3, 1, 40), rng.normal(0, 1, 70)
        if ties:
            f, u = f.round(), u.round()
        found = matched_test(f, np.zeros(40), u, np.zeros(70))
        expected = mannwhitneyu(f, u, use_continuity=False, method="asymptotic")
        assert found.auc == pytest.approx(expected.statistic / (40 * 70))
        assert found.p == pytest.approx(expected.pvalue)
        assert found.ks == pytest.approx(ks_2samp(f, u).statistic)
        if not ties:
            assert found.ks_p == pytest.approx(ks_2samp(f, u, method="asymp").pvalue, abs=0.05)

    def test_of_several_classes(self):
        rng = np.random.default_rng(1)
        (f, fl), (u, ul) = draws(rng, 50), draws(rng, 90, classes=4)
        found, expected = matched_test(f, fl, u, ul), matched_auc(f, fl, u, ul, bootstrap=0)
        assert found.auc == pytest.approx(expected.auc)
        assert (found.n_forget, found.n_unseen) == (expected.n_forget, expected.n_unseen)
        assert found.unmatched == [4]
        # Only order within a class counts.
        assert matched_test(np.exp(f) + 9 * fl, fl, np.exp(u) + 9 * ul, ul) == found

    def test_no_class_in_common(self):
        assert matched_test([1.0], [0], [1.0], [1]) is None

    def test_nothing_to_tell(self):
        found = matched_test([1.0, 1.0], [0, 0], [1.0, 1.0], [0, 0])
        assert found.auc == 0.5 and found.p == 1 and found.ks == 0 and found.ks_p == 1

    def test_errors_where_nothing_is_there(self):
        """Classes of few samples, ties and unequal sizes included."""
        rng, p = np.random.default_rng(2), []
        for _ in range(300):
            (f, fl), (u, ul) = draws(rng, 60, classes=20), draws(rng, 110, classes=20)
            found = matched_test(f.round(1), fl, u.round(1), ul)
            p.append((found.p, found.ks_p))
        below = (np.array(p) <= 0.05).mean(axis=0)
        assert 0.015 < below[0] < 0.095 and 0.005 < below[1] < 0.095

    def test_power_is_what_it_says(self):
        rng = np.random.default_rng(3)
        least = smallest_auc(matched_test(*draws(rng, 80), *draws(rng, 200)).error, tests=5)
        shift = np.sqrt(2) * norm.ppf(least)  # of normal scores with that AUC
        seen = [matched_test(*draws(rng, 80, shift), *draws(rng, 200)).p <= LEVEL / 5 for _ in range(400)]
        assert 0.7 < np.mean(seen) < 0.9


def test_paired_auc():
    """The variance is that of the difference, which the samples' own spread does not enter."""
    rng, found = np.random.default_rng(4), []
    for _ in range(200):
        (f, fl), (u, ul) = draws(rng, 60), draws(rng, 120)
        noisy = [x + 0.3 * rng.normal(size=len(x)) for x in (f, u)]
        found.append(paired_auc((f, u), noisy, (fl, ul)))
    z = np.array([d.value / ((d.high - d.low) / 3.92) for d in found])
    assert 0.85 < z.std() < 1.15
    one = matched_test(f, fl, u, ul).auc - matched_test(noisy[0], fl, noisy[1], ul).auc
    assert found[-1].value == pytest.approx(one)
    assert paired_auc((f, u), (f, u), (fl, ul)).p == 1 and paired_auc(([1], [1]), ([1], [1]), ([0], [1])) is None


def test_paired_auc_where_all_samples_agree():
    """No spread is no lack of a difference, but a few samples do not make one sure."""

    def moved(n, m):
        return paired_auc(([1.0] * n, [0.0] * m), ([0.0] * n, [0.0] * m), ([0] * n, [0] * m))

    assert moved(40, 30).value == 0.5 and moved(40, 30).p < 1e-9
    assert 0.05 < moved(3, 2).p < 0.2 and moved(3, 2).low < 0 < moved(3, 2).high


def test_paired_drop():
    lost = paired_drop([1] * 50, [1] * 45 + [0] * 5, margin=0.02)
    assert lost.value == pytest.approx(0.1) and lost.low < 0.1 < lost.high and 0.01 < lost.p < 0.1
    assert paired_drop([1] * 50, [1] * 50, margin=0.02).p > 0.5
    assert paired_drop([1] * 50, [0] * 50, margin=0.02).p < 1e-6


def test_attack_judges_no_unseen_sample_that_it_knows():
    rng = np.random.default_rng(5)
    retain, unseen, forget = rng.normal(0, 1, 200), rng.normal(2, 1, 100), rng.normal(2, 1, 100)
    members, others, mine = called_members(retain, unseen, forget)
    assert (
        set(others) <= {0, 1}
        and 0.7 < members.mean() < 0.95
        and abs(others.mean() - mine.mean()) < 0.12
        and 0.05 < others.mean() < 0.3
    )
    assert matched_mean([1, 0, 0], [0, 1, 1], like=[0, 0, 1]) == pytest.approx(2 / 3)
    assert matched_mean([1.0], [0], like=[1]) is None


class TestVerdict:
    def test_holm(self):
        assert holm([]).tolist() == []
        assert holm([0.5, 0.01, 0.02]).tolist() == [0.5, 0.03, 0.04]
        assert (holm([0.9, 0.8]) == 1).all()

    def test_what_is_corrected(self):
        findings = [Finding("a", "", "", p=0.02, kind="over"), Finding("b", "", "", p=0.9, kind="harm")]
        findings += [Finding("c", "", "", p=0.001)]  # for information
        correct(findings)
        assert [f.fails for f in findings] == [True, False, False] and findings[2].p_corrected is None
        findings.insert(0, Finding("d", "", "", p=0.9, kind="residual"))
        correct(findings)
        assert not any(f.fails for f in findings)

    @pytest.mark.parametrize(
        ("findings", "about", "outcome", "headline"),
        [
            ([], {"power": 0.531}, "no evidence", "an AUC above 0.53 would have been seen"),
            ([], {"judged": False}, "cannot judge", "cannot judge whether the forget samples"),
            ([("residual", 1e-9)], {"changed": False}, "unchanged", "its weights are those of the original"),
            ([("over", 1e-9), ("harm", 1e-12)], {}, "over-forgotten", "Also found: retain harm"),
            ([("residual", 1e-3), ("over", 1e-9)], {}, "residual memory", "Also found: over-forgotten"),
            ([("harm", 1e-3)], {"judged": False}, "retain harm", "it is so"),
            ([("head", None), ("residual", 1e-3)], {}, "only the head changed", "also found: residual memory"),
        ],
    )
    def test_outcomes(self, findings, about, outcome, headline):
        found = [Finding(kind, "?", "It is so.", p=p, fails=p is None, kind=kind) for kind, p in findings]
        verdict = decide(found, **about)
        assert verdict.outcome == outcome and headline in verdict.headline


def test_the_headline_is_what_tells_most():
    """Of faults that are all certain, not the one with the smallest p-value."""
    findings = [
        Finding(name, "?", f"By {name}.", p=p, kind="residual") for name, p in (("spread", 0), ("relative", 1e-9))
    ]
    findings.append(Finding("membership", "?", "By membership.", p=1e-5, kind="residual"))
    assert decide(findings).headline == "Residual memory: by membership."


def test_one_direction():
    """The same scores are never both too high and too low; the comparison with a retrained model is asked first."""
    about = {"auc_low": 0.4, "auc_high": 0.6}, ImageClassification, True
    tests = {
        "margin": Matched(0.5, 0.02, 1.0, 0.3, 1e-9, 60, 90, [], {}),
        "entropy": Matched(0.7, 0.02, 1e-9, 0.4, 1e-9, 60, 90, [], {}),
    }

    def kinds(beside=(), **called):
        return {finding.kind for finding in matched.membership_findings(tests, called, *about, beside)}

    assert kinds() == {"residual"}
    assert kinds([Finding("relative", "", "", p=1e-4, kind="over")]) == {"over"}
    assert kinds([Finding("relative", "", "", p=0.4, kind="over")]) == {"residual"}
    assert kinds(accuracy=Shares(0.5, 0.6, 1e-7)) == {"residual"} and kinds(loss=Shares(0.5, 0.6, 1e-10)) == {"over"}
    tests["margin"] = Matched(0.41, 0.05, 0.1, 0.3, 0.3, 60, 90, [], {})
    assert kinds() == {"over"}
    found = matched.membership_findings(tests, {}, *about)
    assert found[-1].sentence.endswith("in 70.0% of pairs, but not the higher margin: it is sure of wrong answers.")


def test_whole_classes_pay_nothing():
    """Their samples do not count as harmed, in a mixed request and where no retained samples tell."""
    measured = simulated(np.random.default_rng(8))
    lost = measured["unlearned"]["unseen"]
    lost.signals["correct"][:] = measured["original"]["unseen"].signals["correct"]
    lost.signals["correct"][lost.labels < 3] = 0

    def harmed():
        return {f.name for f in findings_of(measured) if f.fails and f.kind == "harm"}

    assert "harm_unseen" in harmed()
    for of in measured.values():
        kept = of["retain"].labels >= 3
        of["retain"] = Measurement(
            of["retain"].labels[kept], {k: v[kept] for k, v in of["retain"].signals.items()}, None
        )
    assert "harm_unseen" not in harmed()


def simulated(rng, n_classes=10):
    """What three models say of samples that are hard in the same way for all of them: the original has memorised forget
    and retained samples, two retrained ones the retained ones only, and one of these is surer of everything."""
    sizes, measured = {"forget": 120, "retain": 600, "unseen": 300}, {}
    labels = {name: rng.integers(0, n_classes, n) for name, n in sizes.items()}
    hardness = {name: rng.normal(size=n) + labels[name] / 5 for name, n in sizes.items()}
    for model in ("original", "unlearned", "retrained"):
        measured[model] = {}
        for name, n in sizes.items():
            known = name == "retain" or (name == "forget" and model == "original")
            margin = 0.5 + 2 * known - hardness[name] + 0.7 * rng.normal(size=n)
            margin *= 1.5 if model == "retrained" else 1
            entropy = np.exp(-np.abs(margin)) + 0.1 * rng.normal(size=n)
            signals = {"margin": margin, "entropy": entropy, "correct": (margin > 0).astype(float)}
            signals["loss"] = np.log1p(np.exp(-margin))
            measured[model][name] = Measurement(labels[name], signals, None)
    return measured


def findings_of(measured, task=ImageClassification):
    sets = {name: (name, np.arange(len(m.labels))) for name, m in measured["original"].items()}
    labels = {name: m.labels for name, m in measured["original"].items()}
    named = dict.fromkeys(measured)
    ctx = AuditContext(named, None, sets, labels, False, task, 10, None, measured=measured)
    row = {"auc_low": 0.0, "auc_high": 1.0}
    tests = stand_out(measured["unlearned"]["forget"], measured["unlearned"]["unseen"], task)
    beside = [findings.relative(findings.gap(ctx)), *plain.retrained_findings(ctx, control=True)]
    called = plain.attack(measured["unlearned"], task)
    found = [
        *beside,
        *matched.membership_findings(tests, called, row, task, True, beside),
        *findings.harm_findings(ctx),
    ]
    correct(found)
    return found


@pytest.mark.slow
def test_false_alarms_of_all_tests_together():
    """Of retrained models, at a nominal 5 %; three standard errors above it."""
    rng = np.random.default_rng(6)
    alarms = [any(f.fails for f in findings_of(simulated(rng))) for _ in range(250)]
    assert 0.005 < np.mean(alarms) < 0.092


def test_what_is_planted_is_found():
    rng = np.random.default_rng(7)
    for kind in ("residual", "over", "harm"):
        others = 0
        for _ in range(10):
            measured = simulated(rng)
            if kind == "residual":
                measured["unlearned"]["forget"] = measured["original"]["forget"]
            if kind == "over":
                measured["unlearned"]["forget"].signals["margin"] -= 1
            if kind == "harm":
                measured["unlearned"]["retain"].signals["correct"][:60] = 0
            found = {f.kind for f in findings_of(measured) if f.fails}
            assert kind in found
            others += len(found) - 1
        assert others <= 2  # false alarms


# ---------------------------------------------------------------------------------------------------------------------
# Models


def data(class_request=False):
    """Wrong labels everywhere: only memory gets those right."""
    sets = {}
    for i, (name, n) in enumerate(SIZES.items()):
        rows = images(n, seed=i + 1, noise=0.7)
        rng = np.random.default_rng([i, n])
        flips = (rng.random(n) < 0.5) * rng.integers(1, CLASSES, n)
        labels = (np.array(rows["label"]) + flips) % CLASSES
        sets[name] = rows.remove_columns("label").add_column("label", labels)
        sets[name] = sets[name].cast_column("label", datasets.ClassLabel(CLASSES)).with_format("torch")
    if class_request:
        both = datasets.concatenate_datasets([sets["forget"], sets["retain"]])
        inside = np.array(both["label"]) == 1
        sets |= {"forget": both.select(np.flatnonzero(inside)), "retain": both.select(np.flatnonzero(~inside))}
    return sets


def trained(sets, names, seed=0, steps=60):
    model = tiny_vit(seed=seed)
    x = torch.cat([sets[name]["pixel_values"][:] for name in names])
    y = torch.cat([sets[name]["label"][:] for name in names])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        torch.nn.functional.cross_entropy(model(pixel_values=x).logits, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def instance():
    sets = data()
    return sets, trained(sets, ("forget", "retain")), trained(sets, ("retain",), seed=1)


@pytest.fixture(scope="module")
def whole_class():
    sets = data(class_request=True)
    return sets, trained(sets, ("forget", "retain")), trained(sets, ("retain",), seed=1)


def other_head(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.classifier.weight += 0.05 * torch.randn(
            model.classifier.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    return model


def ascended(model, sets, steps=10):
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        logits = model(pixel_values=sets["forget"]["pixel_values"][:]).logits
        (-torch.nn.functional.cross_entropy(logits, sets["forget"]["label"][:])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def over_forgotten(sets):
    """Trained on wrong labels for the forget samples, on right ones for the others."""
    shifted = dict(sets)
    labels = (np.array(sets["forget"]["label"]) + 1) % CLASSES
    shifted["forget"] = sets["forget"].remove_columns("label").add_column("label", labels)
    return trained(shifted, ("forget", "retain"))


def audited(case, model, **changes):
    sets, original, _ = case
    return audit(original, model, **{**sets, **changes}).content


class TestModels:
    @pytest.mark.slow
    def test_tells_apart(self, instance):
        sets, original, retrained = instance
        for model, outcomes in (
            (retrained, ["no evidence"]),
            (copy.deepcopy(original), ["unchanged"]),
            (other_head(original), ["only the head changed"]),
            (ascended(original, sets), ["over-forgotten", "retain harm"]),
            (over_forgotten(sets), ["over-forgotten"]),
        ):
            content = audited(instance, model)
            assert content["verdict"]["outcome"] in outcomes, content["verdict"]
        assert content["canary"]["noticed"] and content["request"]["kind"] == "instance"

    @pytest.mark.slow
    def test_a_class(self, whole_class):
        sets, original, retrained = whole_class
        content = audited(whole_class, retrained)
        assert content["request"]["kind"] == "class" and content["request"]["forget_classes"] == [1]
        assert content["verdict"]["outcome"] == "no evidence", content["verdict"]
        assert all(row["rf_jsd"] is None for row in content["classes"])
        found = {f["name"]: f for f in audited(whole_class, other_head(original))["verdict"]["findings"]}
        assert found["recognition"]["fails"] and found["head"]["fails"]
        no_match = sets["unseen"].select(np.flatnonzero(np.array(sets["unseen"]["label"]) != 1))
        verdict = audited(whole_class, retrained, unseen=no_match)["verdict"]
        assert verdict["outcome"] == "cannot judge" and "no unseen sample of class 1" in verdict["headline"]

    @pytest.mark.slow
    def test_content(self, instance):
        sets, original, retrained = instance
        content = audited(instance, over_forgotten(sets), retrained=retrained)
        json.dumps(content, allow_nan=False)
        rows = content["figures"]
        assert set(rows) == {"original", "unlearned", "retrained"}
        assert rows["retrained"]["avg_gap"] == 0 and rows["retrained"]["forget_quality"] == 1
        assert rows["unlearned"]["tow"] < 1 and rows["unlearned"]["auc_low"] < rows["unlearned"]["auc"]
        x, y = sets["forget"]["pixel_values"][:], sets["forget"]["label"][:]
        with torch.no_grad():
            right = (original(pixel_values=x).logits.argmax(-1) == y).double().mean().item()
        assert rows["original"]["forget_accuracy"] == pytest.approx(right)
        for signal in content["distributions"].values():
            assert len(signal["edges"]) == 31
            for model in rows:
                assert all(sum(shares) == pytest.approx(1) for shares in signal[model].values())
        assert content["request"]["samples"] == {"forget": 40, "retain": 80, "unseen": 120}
        assert content["cost"]["forward_passes"] == 3 * 240
        worst = content["worst"]["unlearned"]
        assert worst["jsd"]["mean"] == pytest.approx(rows["unlearned"]["jsd"])
        assert all(of["mean"] < of["p90"] < of["max"] for of in worst.values())
        with torch.no_grad():
            p, q = (m(pixel_values=x).logits.double().softmax(-1) for m in (original, retrained))
        assert rows["original"]["jsd"] == pytest.approx(metrics.jsd(p, q))
        assert rows["original"]["activation_distance"] == pytest.approx(metrics.activation_distance(p, q))
        assert {"relative", "quality"} <= {f["name"] for f in content["verdict"]["findings"]}
        assert set(content["locality"]) == {"retain", "unseen"}
        with torch.no_grad(), models.reading_features(original, CLASSES) as read:
            f, r = (read(original(pixel_values=sets[name]["pixel_values"][:]).logits) for name in ("forget", "retain"))
        pairs = similarity(f, f)[:, None] > similarity(r, f)
        found = content["locality"]["retain"]
        assert found["forget_nearer"] == pytest.approx(pairs.float().mean().item(), abs=1e-3)
        assert found["forget_nearer"] < 0.8 and found["reference"] == "retrained"
        again = audited(instance, over_forgotten(sets), retrained=retrained)
        assert again | {"cost": None} == content | {"cost": None}
        assert AuditReport(content).summary()
        assert AuditReport(content).to_markdown().count("the forget set is scattered") == 2
        assert audited(instance, original)["locality"]["unseen"]["reference"] == "original"

    @pytest.mark.parametrize(
        "about",
        [{}, {"retrained": True}, {"canaries": [1, 2, 3]}, pytest.param({"level": 2}, marks=pytest.mark.slow)],
    )
    def test_passes_are_those_that_were_run(self, about, instance, monkeypatch):
        sets, original, retrained = instance
        monkeypatch.setattr(relearning, "STEPS", (0, 2))
        monkeypatch.setattr(reference, "EPOCHS", 1)
        run = []
        forward = type(original).forward

        def counting(self, pixel_values=None, **more):
            run.append(len(pixel_values) if pixel_values.device.type != "meta" else 0)  # of shapes alone
            return forward(self, pixel_values, **more)

        monkeypatch.setattr(type(original), "forward", counting)
        about = about | ({"retrained": retrained} if "retrained" in about else {})
        content = audit(original, ascended(original, sets, steps=0), **sets, **about).content
        assert content["cost"]["forward_passes"] == sum(run)
        assert not original._forward_pre_hooks

    def test_few_samples_and_no_control(self, instance):
        sets, _, retrained = instance
        verdict = audited(instance, retrained, forget=sets["forget"].select(range(12)))["verdict"]
        assert verdict["outcome"] == "cannot judge" and "With 12 forget samples" in " ".join(verdict["cannot"])
        verdict = audited(instance, retrained, unseen=None)["verdict"]
        assert verdict["outcome"] == "cannot judge" and "no unseen samples" in verdict["headline"]
        assert {f["name"] for f in verdict["findings"]} == {"harm_retain"}

    def test_an_original_without_memory(self, instance):
        """There is nothing to be seen, before or after, whatever was removed."""
        sets, _, retrained = instance
        verdict = audit(retrained, tiny_vit(), **sets | {"retain": None}).content["verdict"]
        assert "The original itself shows no memory of the forget set" in verdict["cannot"][0]
        assert verdict["outcome"] in ("cannot judge", "retain harm")
        few = sets | {"retain": None, "forget": sets["forget"].select(range(12))}
        said = audit(retrained, tiny_vit(), **few).content["verdict"]["cannot"]
        assert said[0].startswith("With 12 forget samples") and "no memory" not in " ".join(said)

    def test_unseen_samples_that_are_no_control(self, instance):
        """Wrong labels in the forget set alone: the retrained model tells as well."""
        sets, original, retrained = instance
        with torch.no_grad():
            guessed = retrained(pixel_values=sets["unseen"]["pixel_values"][:]).logits.argmax(-1)
        easy = sets["unseen"].select(np.flatnonzero(guessed == sets["unseen"]["label"][:]))
        content = audited(instance, retrained, unseen=easy, retrained=retrained)
        found = {f["name"]: f for f in content["verdict"]["findings"]}
        assert found["membership"]["kind"] == "info" and found["relative"]["p"] == 1
        assert "no matched control" in content["verdict"]["cannot"][0]
        assert content["verdict"]["outcome"] == "cannot judge"

    def test_canaries(self, instance):
        sets, original, retrained = instance
        planted = np.arange(len(sets["forget"])) < 30
        rows = sets["forget"].add_column("planted", planted)
        one, two = (
            audited(instance, retrained, forget=rows, canaries=c) for c in ("planted", np.flatnonzero(planted))
        )
        assert one["canary"] == two["canary"] and one["canary"]["planted"] == 30
        assert one["canary"]["noticed"] and one["canary"]["auc"] > 0.8
        assert not next(f for f in one["verdict"]["findings"] if f["name"] == "canaries")["fails"]
        left = audited(instance, other_head(original), canaries=planted)
        assert next(f for f in left["verdict"]["findings"] if f["name"] == "canaries")["fails"]

    def test_wrong_labels(self):
        labels = np.array([0, 1, 2, 1])
        assert (wrong_labels(labels, np.array([1, 1, 2]), 0) != labels).all()
        assert wrong_labels(labels, np.array([1]), 0).tolist() == [1, -1, 1, -1]


class TestDistance:
    def test_by_hand(self):
        before, after = tiny_vit(), tiny_vit()
        assert distance(before, after)["total"] == 0 and not distance(before, after)["head_only"]
        with torch.no_grad():
            after.classifier.weight *= 1.5
        found = distance(before, after)
        layers = {layer["name"]: layer["relative"] for layer in found["layers"]}
        bias = before.classifier.bias.square().sum()
        weight = before.classifier.weight.square().sum()
        assert layers["classifier"] == pytest.approx((0.25 * weight / (weight + bias)).sqrt().item(), rel=1e-5)
        assert found["head_only"] and sum(value != 0 for value in layers.values()) == 1
        with torch.no_grad():
            after.vit.layernorm.weight *= 1.1
        assert not distance(before, after)["head_only"]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_another_precision_has_not_moved(self, dtype):
        before, after = tiny_vit(), other_head(tiny_vit())
        for one, other in ((before, copy.deepcopy(before)), (before, copy.deepcopy(before).to(dtype).float())):
            assert distance(one, other.to(dtype))["total"] == 0 == distance(other.to(dtype), one)["total"]
        assert distance(before, copy.deepcopy(after).to(dtype))["head_only"]

    def test_running_statistics_count(self):
        before, after = tiny_resnet(), tiny_resnet()
        next(m for m in after.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean += 1
        found = distance(before, after)
        assert found["total"] > 0 and not found["head_only"]

    def test_other_networks(self):
        assert distance(tiny_vit(), tiny_resnet()) is None


def greedy(model, ids, tokens):
    for _ in range(tokens):
        ids = torch.cat([ids, model(input_ids=ids[None]).logits[0, -1:].argmax(-1)])
    return ids


class TestLanguageModels:
    def test_extraction_is_what_greedy_decoding_gives(self):
        model = tiny_llama_lm()
        rng = np.random.default_rng(0)
        prompts = torch.as_tensor(rng.integers(4, 20, (12, 4)))
        with torch.no_grad():
            ids = torch.stack([greedy(model, prompt, 6) for prompt in prompts])
        ids[:, 6] = torch.where(torch.arange(12) % 3 == 0, 5, ids[:, 6])  # some are no longer what it would say
        ids[:, 8] = torch.where(torch.arange(12) % 3 == 1, 5, ids[:, 8])
        labels = ids.clone()
        labels[:, :4] = -100
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        statistics = completion_statistics(logits, labels, share=0.4)
        for row in range(12):
            k = next(k for k in range(7) if torch.equal(greedy(model, ids[row, : 4 + k], 6 - k), ids[row]))
            assert statistics["extraction"][row].item() == pytest.approx(1 - k / 6)
            log_p = logits[row].double().log_softmax(-1)[torch.arange(3, 9), ids[row, 4:]]
            assert statistics["min_k"][row].item() == pytest.approx(log_p.sort().values[:3].mean().item())

    def test_audit(self):
        sets = rows_of("llama")
        content = audit(tiny_llama_lm(), tiny_llama_lm(seed=1), **sets).content
        json.dumps(content, allow_nan=False)
        names = {f["name"] for f in content["verdict"]["findings"]}
        assert {"membership", "spread", "min_k", "extraction"} <= names
        assert content["task"] == "causal-lm" and not content["locality"] and "locality" in content["reasons"]
        figures = content["figures"]["unlearned"]
        assert 0 < figures["forget_probability"] < 1 and {"unseen_extraction", "retain_extraction"} <= figures.keys()
        with pytest.raises(UnlearningError, match="canaries are planted wrong labels, and a language model has none"):
            audit(tiny_llama_lm(), tiny_llama_lm(seed=1), **sets, canaries=[0])


class TestRun:
    @pytest.mark.slow
    def test_a_result_and_its_folders_give_the_same(self, instance, tmp_path, capsys, monkeypatch):
        sets, original, _ = instance
        original.save_pretrained(tmp_path / "before")
        result = unlearn(
            str(tmp_path / "before"), **sets, method="finetune", args=arguments(tmp_path / "run", num_train_epochs=1)
        )
        report = result.audit()
        result.save(tmp_path / "after")
        for name, rows in sets.items():
            rows.with_format(None).save_to_disk(tmp_path / name)
        given = [word for name in sets for word in (f"--{name}", str(tmp_path / name))]
        files = ["--json", str(tmp_path / "audit.json"), "--html", str(tmp_path / "audit.html")]
        seed = ["--seed", str(result.trainer.args.seed)]
        loaded, load = [], models.load_model
        monkeypatch.setattr(models, "load_model", lambda name, **about: loaded.append(name) or load(name, **about))
        assert main(["audit", str(tmp_path / "before"), str(tmp_path / "after"), *given, *files, *seed]) == 0
        assert loaded == [str(tmp_path / "before"), str(tmp_path / "after")]
        printed, written = capsys.readouterr().out, json.loads((tmp_path / "audit.json").read_text())
        assert written["verdict"]["headline"].split()[0].lower() in printed.lower()
        assert "<html" in (tmp_path / "audit.html").read_text()
        assert str(tmp_path) not in (tmp_path / "audit.json").read_text()
        assert written["models"] == {"original": "before", "unlearned": "after"}
        assert report.content["cost"]["seconds"]["unlearning"] == result.runtime["unlearn"]
        assert "one run of finetune was audited" in report.content["verdict"]["cannot"].pop()
        for key in ("request", "verdict", "classes", "distance", "canary", "distributions", "figures", "locality"):
            assert _close(written[key], json.loads(json.dumps(report.content[key]))), key

    def test_an_adapter(self, instance, tmp_path):
        sets, original, _ = instance
        args = arguments(tmp_path, num_train_epochs=1, learning_rate=0.01)
        peft_config = LoraConfig(r=2, target_modules="all-linear")
        result = unlearn(copy.deepcopy(original), **sets, method="finetune", peft_config=peft_config, args=args)
        content = result.audit().content
        assert content["figures"]["original"]["forget_accuracy"] == result.metrics["before"]["forget_accuracy"]
        after = result.metrics["after"]["forget_loss"]
        assert content["figures"]["unlearned"]["forget_loss"] == pytest.approx(after, rel=1e-4)
        assert content["distance"]["total"] > 0
        assert models.weights_digest(original) == models.weights_digest(_unadapted(result))

    def test_a_reference_begins_where_the_original_began(self, instance, tmp_path, monkeypatch):
        sets, original, _ = instance
        original.save_pretrained(tmp_path / "base")
        args = arguments(tmp_path / "run", num_train_epochs=1)
        about = {"method": "finetune", "args": args, "base_model": str(tmp_path / "base")}
        result = unlearn(copy.deepcopy(original), **sets, **about)
        seen = []
        module = sys.modules[audit.__module__]
        monkeypatch.setattr(module, "report", lambda ctx, *_: seen.append(ctx.base_model) or 1 / 0)
        for given in ({"level": 2}, {"level": 2, "base_model": "me/base"}, {"level": 1}):
            with pytest.raises(UnlearningError, match="failed with a ZeroDivisionError"):
                result.audit(**given)
        assert seen == [str(tmp_path / "base"), "me/base", None]
        with pytest.raises(UnlearningError, match="pass level=2 without reference"):
            result.audit(base_model="me/base")


def _unadapted(result):
    with result.trainer.original_model() as model:
        return copy.deepcopy(model).unload()


def _close(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(_close(*pair) for pair in zip(a, b, strict=True))
    return a == b if not isinstance(a, float) else a == pytest.approx(b, rel=1e-6, abs=1e-9)


def test_the_backend_of_an_image_processor_is_told():
    collator = SimpleNamespace(processing_class=ViTImageProcessor(), raw_columns=["image"])
    ctx = SimpleNamespace(collator=collator, sets={}, models={}, task=CausalLM)
    assert "Images are read by ViTImageProcessor; backend: torchvision." in words.conventions(ctx)


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"level": 3}, "level is 3; expected 0"),
            ({"original": 7}, "original is a int; expected a model"),
            ({"unlearned": tiny_vit(num_labels=5)}, "a head of 4 classes and unlearned one of 5"),
            ({"unlearned": tiny_bert()}, "image-classification and unlearned for text-classification"),
            ({"retrained": tiny_vit(num_labels=3)}, "a head of 4 classes and retrained one of 3"),
            ({"forget": None}, "The forget set is not given"),
            ({"forget": images(8).select([])}, "The forget set is empty"),
            ({"unseen": images(8).to_iterable_dataset()}, "unseen is a stream"),
            ({"unseen": images(8, seed=2)}, "8 of the 8 unseen samples stand in retain too"),
            ({"retain": images(8, seed=1)}, "8 of the 8 forget samples stand in retain too"),
            ({"test": images(8, seed=1)}, "8 of the 8 forget samples stand in test too"),
            (
                {"retain": images(8, seed=2).remove_columns("label")},
                "retain has the columns pixel_values, and no label",
            ),
            ({"level": 1, "retain": None}, "needs retain samples"),
            ({"reference": tiny_vit()}, "level is 0, which reads no reference model"),
            ({"base_model": "me/vit"}, "base_model is what a reference model of level 2 is trained from"),
            ({"overlap": "ignore"}, "overlap is 'ignore'; expected 'error' or 'allow'"),
            ({"canaries": [9]}, "expected places from 0 to 7 in forget"),
            ({"canaries": [True]}, "true or false for each of its 8 samples"),
            ({"canaries": "planted"}, "canaries is 'planted', and forget has the columns"),
        ],
    )
    def test_one_sentence(self, changes, message):
        sets = {"forget": images(8, seed=1), "retain": images(8, seed=2), "unseen": images(16, seed=3)}
        about = {"original": tiny_vit(), "unlearned": tiny_vit(seed=1), **sets} | changes
        with pytest.raises(UnlearningError, match=message) as error:
            audit(about.pop("original"), about.pop("unlearned"), **about)
        assert str(error.value).endswith(".") and "\n" not in str(error.value)

    def test_label_maps(self):
        a, b = tiny_vit(), tiny_vit(seed=1)
        a.config.id2label = {0: "cat", 1: "dog", 2: "bird", 3: "fish"}
        b.config.id2label = {0: "cat", 1: "bird", 2: "dog", 3: "fish"}
        sets = {"forget": images(8, seed=1), "retain": images(8, seed=2), "unseen": images(16, seed=3)}
        with pytest.raises(UnlearningError, match="Class 1 is 'dog' in original and 'bird' in unlearned"):
            audit(a, b, **sets)

    def test_overlap_that_is_meant(self):
        sets = {"forget": images(8, seed=1), "retain": images(8, seed=1), "unseen": images(16, seed=3)}
        assert audit(tiny_vit(), tiny_vit(seed=1), **sets, overlap="allow").content["verdict"]

    def test_on_the_command_line(self, capsys):
        assert main(["audit", "a", "b", "--forget", "c", "--level", "7"]) == 2
        assert "level is 7" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["--json", "--html"])
    def test_files_that_cannot_be_written(self, option, tmp_path, capsys):
        """Before anything is loaded."""
        for path in (tmp_path, tmp_path / "nowhere" / "audit"):
            assert main(["audit", "a", "b", "--forget", "c", option, str(path)]) == 2
            assert capsys.readouterr().err == (
                f"error: {option} is {path}; expected a file in a folder that can be written to.\n"
            )


@pytest.mark.slow
def test_statistics_are_quick():
    """Of two models and 10,000 forget, retained and unseen samples in 1,000 classes: as fast as it takes to sort some numbers."""
    rng, sets, measured = np.random.default_rng(8), ("forget", "retain", "unseen"), {"original": {}, "unlearned": {}}
    labels = {name: rng.integers(0, 1000, 10_000) for name in sets}
    for of in measured.values():
        for name in sets:
            signals = {"margin": rng.normal(size=10_000)}
            signals |= {signal: rng.random(10_000) for signal in ("entropy", "loss", "correct", "confidence")}
            of[name] = Measurement(labels[name], signals, dict(enumerate(rng.random((1000, 1000)))))
    rows = {name: (name, np.arange(10_000)) for name in sets}
    about = False, ImageClassification, 1000, None
    ctx = AuditContext(dict.fromkeys(measured), None, rows, labels, *about, measured=measured)
    metrics.mia([0.1, 0.2] * 4, [0.8, 0.9] * 4, [0.1])  # imports what it needs
    numbers, ratios = rng.random(2_000_000), []
    while min(ratios, default=9) >= 2.5 and len(ratios) < 3:
        started = time.process_time()
        np.sort(numbers, kind="stable")
        yardstick = time.process_time() - started
        started = time.process_time()
        by_model, _ = figures.by_model(ctx)
        tests = {name: stand_out(of["forget"], of["unseen"], ctx.task) for name, of in measured.items()}
        assert len(figures.by_class(ctx, tests["unlearned"])) == 1000
        called = {name: plain.attack(of, ctx.task) for name, of in measured.items()}
        trace = evidence._trace(ctx, tests["original"], called["original"])
        planted = canaries.planted_members(ctx, tests["original"], trace, among=6)
        assert matched.attack(ctx, True) and planted["planted"] > 8000
        ratios.append((time.process_time() - started) / yardstick)
    assert set(tests["original"]) == set(ImageClassification.scores) and by_model["unlearned"]["auc_low"] < 0.5
    assert min(ratios) < 2.5


def test_sums_are_of_forget_classes_only():
    """All classes by all classes would be 3.8 GB."""
    size, labels = 21_841, torch.tensor([3, 3, 21_840, 7])
    samples = SimpleNamespace(sources={"forget": SimpleNamespace(labels=np.array([21_840, 3, 3]))})
    alone = {"accelerator": Accelerator(cpu=True), "total": lambda tensor: tensor}
    alone["statistics"] = lambda predicted, batch: metrics.sample_statistics(predicted, batch.labels)
    evaluator = SimpleNamespace(num_labels=size, samples=samples, classes=np.array([3, 21_840]), **alone)
    tally = Tally(evaluator, "unseen", np.arange(4))
    assert tally.sums.shape == (2, size)
    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    tally.add(np.arange(4), Batch(labels=labels, weight=torch.tensor([1.0, 1, 1, 1])), logits)
    found = tally.result()
    assert sorted(found.class_sums) == [3, 21_840]
    mean = logits[:2].double().softmax(-1).mean(0)
    np.testing.assert_allclose(found.class_means([3])[0], mean, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("with_retrained", [False, True], ids=["two", "three"])
def test_level_0_costs_its_forward_passes(with_retrained):
    """4,000 samples through networks of 0.3 million parameters, beside the models alone that only read them."""
    size = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192}
    config = ViTConfig(image_size=24, patch_size=4, num_labels=CLASSES, **size)
    before, after, *retrained = (ViTForImageClassification(config).eval() for _ in range(2 + with_retrained))
    sizes = {"forget": 400, "retain": 2800, "test": 800}
    sets = {name: images(n, seed=i, size=24) for i, (name, n) in enumerate(sizes.items())}

    def ratio() -> float:
        started = time.process_time()
        with torch.no_grad():
            for rows in sets.values():
                for batch in torch.utils.data.DataLoader(rows, batch_size=128):
                    for model in (before, after, *retrained):
                        model(pixel_values=batch["pixel_values"])
        plain, started = time.process_time() - started, time.process_time()
        content = audit(before, after, **sets, unseen=None, retrained=retrained[0] if retrained else None).content
        assert content["cost"]["forward_passes"] == (2 + with_retrained) * 4_000
        return (time.process_time() - started) / plain

    assert ratio() < 1.2 or ratio() < 1.2  # once more, where other work came in between
