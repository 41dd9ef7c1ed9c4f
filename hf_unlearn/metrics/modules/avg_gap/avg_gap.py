"""The average gap to the retrained model as an `evaluate` module."""

import datasets
import evaluate

from hf_unlearn.metrics.gaps import avg_gap

DESCRIPTION = """
Mean absolute difference between an unlearned and a retrained model over four figures: accuracy on forget, retained and unseen
samples, and the score of a membership attack. 0 is best.
"""

INPUTS = """
Args:
    predictions: the figures of the unlearned model, as fractions.
    references: the figures of the retrained model.
    figure: the name of each: "forget_accuracy", "retain_accuracy", "unseen_accuracy" and "mia"; others are ignored.

Returns:
    avg_gap: the mean difference, a fraction.

Examples:
    >>> import evaluate
    >>> import hf_unlearn
    >>> metric = evaluate.load(hf_unlearn.metrics.path("avg_gap"))
    >>> result = metric.compute(
    ...     predictions=[0.99, 0.99, 0.91, 0.83],
    ...     references=[0.91, 0.99, 0.91, 0.76],
    ...     figure=["forget_accuracy", "retain_accuracy", "unseen_accuracy", "mia"],
    ... )
    >>> round(result["avg_gap"], 4)
    0.0375
"""

CITATION = """
@inproceedings{fan2024salun,
  title = {SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and Generation},
  author = {Fan, Chongyu and Liu, Jiancheng and Zhang, Yihua and Wong, Eric and Wei, Dennis and Liu, Sijia},
  booktitle = {ICLR},
  year = {2024},
}
"""


class AvgGap(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Value("float64"),
            "references": datasets.Value("float64"),
            "figure": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, figure, **kwargs):
        if len(set(figure)) < len(figure):
            raise ValueError(f"`figure` is {list(figure)}; expected each name once: take the mean over runs first.")
        unlearned, retrained = (dict(zip(figure, values, strict=True)) for values in (predictions, references))
        return {"avg_gap": avg_gap(unlearned, retrained)}
