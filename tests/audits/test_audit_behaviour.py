"""Audits of models whose fault is known: digits with planted memorisation, and models retrained without the forget set."""

import pytest
import torch

from recipes.experiments.audits import TOLD, digits, examined, fit, joined, planted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("by_class", [False, True], ids=["instance", "class"])
def test_planted_faults_are_told_apart(by_class: bool):
    torch.set_num_threads(1)
    parts = digits(0, by_class)
    original = fit(joined(parts["forget"], parts["retain"]), 0)
    models = planted(original, parts, 0) | {"retrained": fit(parts["retain"].columns, 100)}
    outputs_tell = ("untouched", "hardly touched", "over-forgotten")
    said = {
        name: examined(original, model, parts, 0, level=int(name not in outputs_tell))
        for name, model in models.items()
    }
    assert {name: about for name, about in said.items() if not TOLD[name](about)} == {}
    # What a head hides, the features give away.
    assert said["head"]["p"]["probe"] < 0.01 < said["retrained"]["p"]["probe"]
    assert said["ascended"]["p"]["relearning"] < 0.01 < said["retrained"]["p"]["relearning"]
    assert said["over-forgotten"]["figures"]["auc"] < 0.5 < said["untouched"]["figures"]["auc"]
