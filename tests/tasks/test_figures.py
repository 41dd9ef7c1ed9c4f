"""What is said of the samples that were not to be forgotten."""

import numpy as np
import pytest

from hf_unlearn import unlearn
from hf_unlearn.tasks.figures import Measurement, what_others_paid
from tests.samples import arguments, fitted, learnt


def measured(wrong, classes=1):
    """Of 100 samples in turn of these classes, the first are wrong."""
    rows = np.arange(100)
    return Measurement(rows % classes, {"correct": (rows >= wrong).astype(float)}, None)


@pytest.mark.parametrize(("wrong", "is_said"), [(0, False), (2, False), (12, True)])  # of 100: two may be chance
@pytest.mark.parametrize(("split", "name"), [("retain", "retained"), ("evidence", "unseen")])
def test_more_than_chance_is_said(wrong, is_said, split, name):
    forget = {"forget": measured(0)}
    notes = what_others_paid(forget | {split: measured(0)}, forget | {split: measured(wrong)}, class_request=False)
    assert [note.partition(",")[0] for note in notes] == is_said * [
        f"Accuracy on {name} samples fell from 1.000 to 0.880"
    ]


def test_of_a_whole_class_the_others_count():
    forget = {"forget": Measurement(np.ones(3, int), {"correct": np.ones(3)}, None)}
    before, after = measured(0, 2), measured(100, 2)
    after.signals["correct"][::2] = 1  # class 0 is as it was
    assert not what_others_paid(forget | {"evidence": before}, forget | {"evidence": after}, class_request=True)
    assert what_others_paid(forget | {"evidence": before}, forget | {"evidence": after}, class_request=False)


def test_a_run_says_it(tmp_path):
    rough = arguments(tmp_path, learning_rate=0.1, num_train_epochs=3)
    result = unlearn(fitted(), **learnt(), method="gradient_ascent", args=rough)
    before, after = result.metrics["before"], result.metrics["after"]
    said = f"Accuracy on retained samples fell from {before['retain_accuracy']:.3f} to {after['retain_accuracy']:.3f}"
    assert [note for note in result.trainer.method.notes if note.startswith(said)]
