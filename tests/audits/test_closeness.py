"""What is said of the distance to a retrained model where there is none."""

import re

import numpy as np
import pytest

from hf_unlearn import UnlearningError, metrics, unlearn
from hf_unlearn.audits.closeness import closeness
from hf_unlearn.tasks.figures import Measurement
from tests.samples import arguments, fitted, learnt


def looked(p, labels, correct=None):
    return Measurement(
        np.array(labels), {"loss": -np.log(p), "correct": np.array(correct or [1.0] * len(labels))}, None
    )


def pair(forget, unseen, labels, correct=None):
    before = {"forget": looked(forget, labels), "evidence": looked(unseen, labels)}
    return before, {"forget": looked(forget, labels), "evidence": looked(unseen, labels, correct)}


def test_memory_is_the_distance_between_confidences_of_a_class():
    assert metrics.memory([0.9, 0.1], [0, 1], [0.9, 0.1, 0.1, 0.1], [0, 1, 1, 1]) == pytest.approx(0)
    assert metrics.memory([0.9, 0.9, 0.9], [0, 0, 1], [0.5, 0.3], [0, 1]) == pytest.approx((2 * 0.4 + 0.6) / 3)
    assert metrics.memory([0.9, 0.2], [0, 2], [0.5, 0.3], [0, 1]) == pytest.approx(0.4)  # of classes that both have
    with pytest.raises(ValueError, match="none of the forget classes has an unseen sample"):
        metrics.memory([0.9], [0], [0.5], [1])


@pytest.mark.slow
def test_sets_that_are_alike_are_as_far_apart_as_by_chance():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    alike = closeness(*pair(rng.uniform(0.1, 0.9, 200), rng.uniform(0.1, 0.9, 200), labels), is_class=False)
    known = closeness(*pair(rng.uniform(0.7, 0.9, 200), rng.uniform(0.1, 0.9, 200), labels), is_class=False)
    assert alike.memory < 3 * alike.memory_by_chance < known.memory
    assert known.memory_low < known.memory < known.memory_high
    assert alike.harm == 0


def test_harm_is_on_other_classes_where_a_whole_one_went():
    p, labels = np.full(4, 0.5), [0, 0, 1, 1]
    before, after = pair(p, p, labels, correct=[0.0, 0.0, 1.0, 0.0])
    after["forget"] = before["forget"] = looked(p[:2], [0, 0])
    assert closeness(before, after, is_class=True).harm == pytest.approx(0.5)
    assert closeness(before, after, is_class=False).harm == pytest.approx(0.75)


def test_there_is_no_harm_to_tell_where_only_forgotten_classes_were_unseen():
    before, after = pair(np.full(4, 0.5), np.full(4, 0.5), [0, 0, 1, 1])
    found = closeness(before, after, is_class=True)
    assert found.harm is None and "accuracy was lost" not in found.summary()


def test_a_result_says_what_it_knows_and_gives_no_estimate(tmp_path):
    result = unlearn(fitted(), **learnt(), method="finetune", args=arguments(tmp_path))
    found = result.closeness()
    after = result.trainer.unlearned
    p = {split: np.exp(-after[split].signals["loss"]) for split in ("forget", "evidence")}
    memory = metrics.memory(p["forget"], after["forget"].labels, p["evidence"], after["evidence"].labels)
    assert found.memory == memory and found.memory > found.memory_by_chance
    assert re.search(
        r"is 0\.\d+ away from .* No estimate of the distance to a retrained model is given", found.summary()
    )


def test_without_unseen_samples_nothing_is_said(tmp_path):
    data = {name: learnt()[name] for name in ("forget", "retain")}
    result = unlearn(fitted(), **data, method="finetune", args=arguments(tmp_path))
    with pytest.raises(UnlearningError, match="unseen samples of the forget classes, and there are none; pass some"):
        result.closeness()
    unmeasured = unlearn(fitted(), **data, method="finetune", args=arguments(tmp_path / "no", measure=False))
    with pytest.raises(UnlearningError, match="Nothing was measured"):
        unmeasured.closeness()
