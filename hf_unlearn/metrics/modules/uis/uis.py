"""The Unlearning Impact Score as an `evaluate` module."""

import datasets
import evaluate

from hf_unlearn.metrics.interference import uis

DESCRIPTION = """
Unlearning Impact Score over tasks, in percent: the damage on test data plus the distance from the wanted performance on the
forget set, both relative to the reference on test data. Lower is better.
"""

INPUTS = """
Args:
    predictions: what the unlearned model scores (higher is better): two rows for each task, on test data and on the forget
        set.
    references: what the reference scores there: the original or a retrained model, see `convention`.
    task: the name of the task of each row.
    split: "test" or "forget".
    targets: the names of the tasks whose supervision is to be forgotten.
    convention: "original": a target task should do on the forget set as the original does on test data, and the other
        tasks as before; "retrain": every task as the retrained model.
    class_unlearning: the forget set is a whole class, of which nothing should be left.

Returns:
    uis, uis_target, uis_nontarget: over all tasks, over `targets`, over the others (None without such a task).
    convention: as given.

Examples:
    >>> import evaluate
    >>> import hf_unlearn
    >>> metric = evaluate.load(hf_unlearn.metrics.path("uis"))
    >>> result = metric.compute(
    ...     predictions=[0.76, 0.84],
    ...     references=[0.8, 1.0],
    ...     task=["depth", "depth"],
    ...     split=["test", "forget"],
    ...     targets=["depth"],
    ... )
    >>> round(result["uis"], 6), result["uis_nontarget"], result["convention"]
    (5.0, None, 'original')
"""

CITATION = """
@article{shamsian2025beyond,
  title = {Go Beyond Your Means: Unlearning with Per-Sample Gradient Orthogonalization},
  author = {Shamsian, Aviv and Shaar, Eitan and Navon, Aviv and Chechik, Gal and Fetaya, Ethan},
  journal = {arXiv preprint arXiv:2503.02312},
  year = {2025},
}
"""


class Uis(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Value("float64"),
            "references": datasets.Value("float64"),
            "task": datasets.Value("string"),
            "split": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions, references, task, split, targets, convention="original", class_unlearning=False, **kwargs
    ):
        rows = list(zip(task, split, strict=True))
        if len(set(rows)) < len(rows) or not {"test", "forget"}.issuperset(split):
            raise ValueError(
                f"`task` and `split` are {rows}; expected one row with 'test' and one with 'forget' for each task: take the "
                "mean over samples first."
            )
        unlearned, reference = {}, {}
        for (name, part), ours, theirs in zip(rows, predictions, references, strict=True):
            unlearned.setdefault(name, {})[part] = ours
            reference.setdefault(name, {})[part] = theirs
        return uis(unlearned, reference, targets, convention, class_unlearning) | {"convention": convention}
