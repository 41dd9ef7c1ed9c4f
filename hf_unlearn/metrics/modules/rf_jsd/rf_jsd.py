"""RF-JSD as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from hf_unlearn.metrics.divergence import rf_jsd

DESCRIPTION = """
Retrain-free Jensen-Shannon divergence: does the unlearned model see the forget set as the original sees new data?

For every class of the forget set, the mean probability vector of the unlearned model over forget samples of the class is
compared with that of the original model over unseen samples of the class. RF-JSD is the mean of these divergences (natural
logarithm). Lower is closer to unseen data.
"""

INPUTS = """
Args:
    predictions: class probabilities, a row for each sample: of the unlearned model where `is_forget`, of the original model
        elsewhere.
    references: the class id of each sample.
    is_forget: true for forget samples, false for unseen ones.
    convention: "standard", in [0, ln 2], or "lotus", the scale of the LoTUS tables, which goes beyond and shrinks with the
        number of classes.
    missing: a forget class without unseen sample is an "error", or left out of the mean with "skip".

Returns:
    rf_jsd: the mean over the classes of the forget set.
    convention: as given.

Examples:
    >>> import evaluate
    >>> import hf_unlearn
    >>> metric = evaluate.load(hf_unlearn.metrics.path("rf_jsd"))
    >>> probabilities = [[0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.3, 0.7]]
    >>> result = metric.compute(predictions=probabilities, references=[0, 0, 0, 1], is_forget=[True, True, False, False])
    >>> round(result["rf_jsd"], 4), result["convention"]
    (0.0242, 'standard')
"""

CITATION = """
@inproceedings{spartalis2025lotus,
  title = {LoTUS: Large-Scale Machine Unlearning with a Taste of Uncertainty},
  author = {Spartalis, Christoforos N. and Semertzidis, Theodoros and Gavves, Efstratios and Daras, Petros},
  booktitle = {CVPR},
  year = {2025},
}
"""


class RfJsd(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
            "is_forget": datasets.Value("bool"),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, is_forget, convention="standard", missing="error", **kwargs):
        forget, labels = np.asarray(is_forget), np.asarray(references)
        probs = np.asarray(predictions)
        value = rf_jsd(probs[forget], labels[forget], probs[~forget], labels[~forget], convention, missing)
        return {"rf_jsd": value, "convention": convention}
