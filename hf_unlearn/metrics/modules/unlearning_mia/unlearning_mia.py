"""A population membership attack on the forget set as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from hf_unlearn.metrics.membership import mia_attack

DESCRIPTION = """
Population membership inference: an attack learns to tell retained from unseen samples by one number for each sample, such as
the entropy of the model's prediction, and says of each forget sample whether it was trained on. The halves of the attack's
data are swapped and both results averaged.
"""

INPUTS = """
Args:
    predictions: the signal of each sample: one number, such as entropy, loss, confidence or margin.
    references: the set of each sample: "forget", "retain" or "unseen".
    signal_name: what the signal is, for messages and the result.
    attack: "logistic" (regression, classes balanced) or "svc" (RBF support vector machine, meant for the confidence).
    seed: draws the halves.

Returns:
    unlearning_mia: the share of forget samples called members; good is close to the retrained model's, not low.
    attack_accuracy: on held-out retained and unseen samples; near 0.5 the attack cannot tell them apart.
    signal_name, attack: as given.

Examples:
    >>> import evaluate
    >>> import hf_unlearn
    >>> metric = evaluate.load(hf_unlearn.metrics.path("unlearning_mia"))
    >>> entropy = [0.1, 0.9, 0.9, 0.9, 0.1, 0.2, 0.1, 0.2, 0.8, 0.9, 0.8, 0.9]
    >>> sets = 4 * ["forget"] + 4 * ["retain"] + 4 * ["unseen"]
    >>> metric.compute(predictions=entropy, references=sets)
    {'unlearning_mia': 0.25, 'attack_accuracy': 1.0, 'signal_name': 'entropy', 'attack': 'logistic'}
"""

CITATION = """
@inproceedings{yeom2018privacy,
  title = {Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting},
  author = {Yeom, Samuel and Giacomelli, Irene and Fredrikson, Matt and Jha, Somesh},
  booktitle = {IEEE Computer Security Foundations Symposium},
  year = {2018},
}
"""


class UnlearningMia(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, signal_name="entropy", attack="logistic", seed=0, **kwargs):
        if unknown := sorted(set(references) - {"forget", "retain", "unseen"}):
            raise ValueError(
                f"`references` has {unknown[0]!r}; expected 'forget', 'retain' or 'unseen' for each sample."
            )
        signal, sets = np.asarray(predictions), np.asarray(references)
        members, others, forget = (signal[sets == name] for name in ("retain", "unseen", "forget"))
        found = mia_attack(members, others, forget, signal_name, attack, seed)
        return {
            "unlearning_mia": found["score"],
            "attack_accuracy": found["attack_accuracy"],
            "signal_name": signal_name,
            "attack": attack,
        }
