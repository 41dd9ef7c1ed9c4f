"""The Jensen-Shannon divergence as an `evaluate` module."""

import datasets
import evaluate

from hf_unlearn.metrics.divergence import jsd

DESCRIPTION = """
Mean Jensen-Shannon divergence between the predictions of two models, row by row, with the natural logarithm: 0 for equal
predictions, ln 2 for disjoint ones. In unlearning: the unlearned against the retrained model on the forget set.
"""

INPUTS = """
Args:
    predictions: class probabilities of one model, a row for each sample.
    references: class probabilities of the other model, for the same samples in the same order.

Returns:
    jsd: the mean over the samples, in [0, ln 2].

Examples:
    >>> import evaluate
    >>> import hf_unlearn
    >>> metric = evaluate.load(hf_unlearn.metrics.path("jsd"))
    >>> result = metric.compute(predictions=[[1.0, 0.0], [0.5, 0.5]], references=[[0.5, 0.5], [0.5, 0.5]])
    >>> round(result["jsd"], 6)
    0.107881
"""

CITATION = """
@article{lin1991divergence,
  title = {Divergence measures based on the Shannon entropy},
  author = {Lin, Jianhua},
  journal = {IEEE Transactions on Information Theory},
  volume = {37},
  number = {1},
  pages = {145--151},
  year = {1991},
}
"""


class Jsd(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        probabilities = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": probabilities, "references": probabilities}),
        )

    def _compute(self, predictions, references, **kwargs):
        return {"jsd": jsd(predictions, references)}
