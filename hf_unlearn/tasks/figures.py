"""The figures that are read off the measurements of a classifier or a language model."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import metrics

HARM = 0.02  # of accuracy, from which on a note says that it was lost
Figures = tuple[dict[str, float | None], dict[str, str]]  # the values, and the reasons for those that are None


@dataclass
class Measurement:
    """What one model says about one set of samples: per-sample signals, and summed probabilities for each forget class."""

    labels: np.ndarray  # all 0 for a language model
    signals: dict[str, np.ndarray]
    class_sums: dict[int, np.ndarray] | None  # forget class -> sum over its samples; None for a language model

    @property
    def accuracy(self) -> float:
        """The share of right predictions; of a language model, the mean of each sample's share of tokens."""
        return float(self.signals["correct"].mean())

    def mean(self, signal: str, like: np.ndarray | None = None) -> float:
        """The mean of a signal; with labels to be `like`, classes count as they do there, as far as there are any here."""
        values = self.signals[signal]
        if like is None:
            return float(values.mean())
        classes, counts = np.unique(like[np.isin(like, self.labels)], return_counts=True)
        means = [values[self.labels == c].mean() for c in classes]
        return float(np.average(means, weights=counts)) if means else float(values.mean())

    def class_means(self, classes: np.ndarray) -> np.ndarray:
        found = self.class_sums or {}
        sums = np.stack([found[c] for c in classes])
        return sums / sums.sum(axis=1, keepdims=True)


def figures(
    model: dict[str, Measurement], original: dict[str, Measurement], *, class_request: bool = False, bootstrap: int = 0
) -> Figures:
    """The metrics of a model from its measurements of `forget`, `retain`, `control` and `evidence` samples.

    `control` and `evidence` are the two halves of the unseen samples; only `gap`, which steers (early stopping, choice
    of a checkpoint), reads the control half, and it reads nothing else of the unseen samples. A figure that cannot be
    had is None, with the reason in the second dictionary. `bootstrap` resamplings give the interval of the AUC.
    """
    forget, evidence = model["forget"], model.get("evidence")
    values, reasons = _accuracies(model)
    if class_request and evidence and (kept := ~np.isin(evidence.labels, forget.labels)).any():
        values["kept_accuracy"] = float(evidence.signals["correct"][kept].mean())

    def attempt(name: str, compute: Callable[[], float | None], *needed: str) -> None:
        values[name] = None
        if missing := [split for split in needed if split not in model]:
            reasons[name] = (
                f"needs {' and '.join('unseen' if s in ('evidence', 'control') else s for s in missing)} samples"
            )
            return
        try:
            values[name] = compute()
        except ValueError as error:
            reasons[name] = str(error)

    def signal(split: str, name: str) -> np.ndarray:
        return model[split].signals[name]

    def mia() -> float:
        return metrics.mia(signal("retain", "entropy"), signal("evidence", "entropy"), signal("forget", "entropy"))

    def auc() -> float:
        result = metrics.matched_auc(
            signal("forget", "margin"),
            forget.labels,
            signal("evidence", "margin"),
            model["evidence"].labels,
            bootstrap=bootstrap,
        )
        if result.auc is None:
            raise ValueError(result.reason)
        if result.unmatched_classes:
            reasons["auc"] = f"of the classes with unseen samples only; {list(result.unmatched_classes)} have none"
        values["auc_low"], values["auc_high"] = result.low, result.high
        return result.auc

    def rf_jsd() -> float:
        if forget.class_sums is None:
            raise ValueError("a language model has no classes whose predictions could be compared")
        if class_request:
            raise ValueError("a whole class is forgotten, so the original's view of it is not what one aims at")
        classes = np.unique(forget.labels)
        if len(absent := np.setdiff1d(classes, model["evidence"].labels)):
            raise ValueError(f"no unseen sample of the forget classes {absent.tolist()}")
        return metrics.rf_jsd_from_means(forget.class_means(classes), original["evidence"].class_means(classes))

    attempt("mia", mia, "retain", "evidence")
    attempt("auc", auc, "evidence")
    attempt("rf_jsd", rf_jsd, "evidence")
    attempt("gap", lambda: _gap(model, original, class_request), "retain", "control")
    return values, reasons


def _accuracies(model: dict[str, Measurement]) -> Figures:
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, split in (("forget", "forget"), ("retain", "retain"), ("unseen", "evidence")):
        measured = model.get(split)
        values[f"{name}_accuracy"] = measured.accuracy if measured else None
        values[f"{name}_loss"] = float(measured.signals["loss"].mean()) if measured else None
        if measured and measured.class_sums is None:  # of a language model
            values[f"{name}_probability"] = float(np.exp(-measured.signals["loss"]).mean())
            if "extraction" in measured.signals:
                values[f"{name}_extraction"] = float(measured.signals["extraction"].mean())
        if not measured:
            why = (
                "the only unseen sample may steer, and none is left to measure"
                if split == "evidence" and "control" in model
                else None
            )
            reasons[f"{name}_accuracy"] = reasons[f"{name}_loss"] = why or f"no {name} samples were given"
    return values, reasons


def _gap(model: dict[str, Measurement], original: dict[str, Measurement], class_request: bool) -> float:
    """How far the model is from what can be aimed at without a retrained one; 0 is best.

    |a_f − a_u| with unseen samples weighted to the forget set's classes (in a class request: a_f itself), plus what was
    lost of the original's accuracy on retained and on unseen samples of the other classes.
    """
    forget, control = model["forget"], model["control"]
    classes, counts = np.unique(forget.labels, return_counts=True)
    if class_request:
        target = 0.0
    else:
        matched = [control.signals["correct"][control.labels == c] for c in classes]
        if not all(len(m) for m in matched):
            raise ValueError("some forget class has no unseen sample")
        target = float(np.average([m.mean() for m in matched], weights=counts))
    kept = ~np.isin(control.labels, classes) if class_request else np.ones(len(control.labels), bool)
    lost_unseen = (
        (original["control"].signals["correct"][kept].mean() - control.signals["correct"][kept].mean())
        if kept.any()
        else 0.0
    )
    lost_retain = original["retain"].accuracy - model["retain"].accuracy
    return abs(forget.accuracy - target) + max(0.0, float(lost_unseen)) + max(0.0, lost_retain)


def what_others_paid(before: dict[str, Measurement], after: dict[str, Measurement], class_request: bool) -> list[str]:
    """Sentences on what was lost of the accuracy on retained and on unseen samples (in a class request: of other classes), where it is
    more than `HARM` and more than two standard errors."""
    notes = []
    for split, name in (("retain", "retained"), ("evidence", "unseen")):
        if split not in after:
            continue
        kept = ~np.isin(after[split].labels, after["forget"].labels) if class_request else slice(None)
        was, now = (of[split].signals["correct"][kept] for of in (before, after))
        lost = was - now
        if len(lost) > 1 and lost.mean() > max(HARM, 2 * lost.std(ddof=1) / math.sqrt(len(lost))):
            notes.append(
                f"Accuracy on {name} samples fell from {was.mean():.3f} to {now.mean():.3f}, which is more than "
                "chance: they have paid."
            )
    return notes
