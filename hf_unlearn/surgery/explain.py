"""What an edit of DAMP has done, for its report: the head test, a row for every reading, and notes in words."""

from typing import Any

from .damp_config import HIGHEST
from .edits import Edit, Removal
from .fitting import EXAMPLES, LEFT
from .plan import Plan
from .probe import probe_accuracy
from .statistics import Statistics


def head_test(removals: list[Removal], forget: Statistics, seen: Statistics) -> dict[str, dict[str, dict[str, Any]]]:
    """What every operator of the head makes of the mean of each forgotten class, before the edit and behind all edits."""
    found = {}
    heads = [removal for removal in removals if removal.reading.is_head]
    for removal, means, now in zip(heads, forget.means, seen.means, strict=True):
        means = dict(zip(forget.counts, means, strict=True))
        now = means | dict(zip(seen.counts, now, strict=True))  # of many classes a few examples may lack one
        for operator in removal.reading.operators:
            edit = Edit(operator, removal)
            found[operator.name] = {
                str(c): {
                    "before": edit.logits(means[c][None])[0][0].tolist(),
                    "after": (after := edit.logits(now[c][None])[1][0]).tolist(),
                    "still_given": int(after.argmax()) in forget.counts,
                }
                for c in means
            }
    return found


def still_given(head: dict[str, dict[str, dict[str, Any]]]) -> list[int]:
    """The head test: the forgotten classes for whose means the edited head still gives one of them."""
    return sorted({int(c) for classes in head.values() for c, about in classes.items() if about["still_given"]})


def read(plan: Plan, forget: Statistics, retain: Statistics) -> dict[str, float]:
    """How well a linear probe tells the two sides apart by what the first operator of each stage reads, by its name: the balanced
    accuracy on samples that it was not fitted to."""
    found, stages = {}, set()
    for reading, f, r in zip(plan.readings, forget.samples, retain.samples, strict=True):
        if reading.stage not in stages and min(len(f), len(r)) > 1:
            found[reading.operators[0].name] = probe_accuracy(f[:EXAMPLES], r[:EXAMPLES])
        stages.add(reading.stage)
    return found


def explain_read(original: dict[str, float], edited: dict[str, float]) -> list[str]:
    """In words, how far a probe still reads the class."""
    if not edited:
        return []
    before = {name: f" (before: {100 * accuracy:.0f} %)" for name, accuracy in original.items()}
    found = ", ".join(f"{100 * accuracy:.0f} % in {name}{before.get(name, '')}" for name, accuracy in edited.items())
    return [
        f"By what the edited layers read, a new linear probe still tells the forgotten classes from the others: {found}; 50 % is "
        "chance. A model that was trained without them is read as well: damp_probe(retrained, ...) says how far."
    ]


def row_of(removal: Removal, accuracy: float | None, tau: float, deviations: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "stage": removal.reading.stage,
        "operators": [operator.name for operator in removal.reading.operators],
        "is_head": removal.reading.is_head,
        "span": removal.span,
        "probe_accuracy": accuracy,
        "alpha": removal.alpha,
        "raised_from": removal.raised_from,
        "rank": removal.directions.shape[1],
        "relative_residual": {str(c): share for c, share in removal.relative.items()},
        "dropped": [c for c, share in removal.relative.items() if share < tau],
        "deviations": {rule: max(of[rule] for of in deviations) for rule in (deviations[0] if deviations else ())},
    }


def explain(
    rows: list[dict[str, Any]],
    head: dict,
    left: float | None,
    known: set[int],
    removals: list[Removal],
    tau: float,
) -> list[str]:
    notes = [
        f"Stage {row['stage']} ({row['operators'][0]}): nothing was removed for {named(row['dropped'])}, whose mean lies "
        f"within {tau:g} of its length in the {row['span']} span of the retained means."
        for row in rows
        if row["dropped"]
    ]
    if not head:
        notes.append("No operator gives the logits by itself, so it was not tested whether the class is forgotten.")
    if not any(row["rank"] for row in rows):
        notes.append("No weight was changed: no direction tells the forgotten classes from the retained ones.")
    elif not any(row["alpha"] and row["rank"] for row in rows):
        notes.append(
            "No weight was changed: the coefficient of every stage is 0, as no probe tells the two sides apart."
        )
    if given := still_given(head):
        notes.append(
            f"For the mean of {named(given)} the edited head still gives a forgotten class: not forgotten; "
            f"{_advice([removal for removal in removals if removal.reading.is_head])}"
        )
    if left is not None and left > LEFT:
        notes.append(
            f"{100 * left:.3g} % of the forget samples are still given a forgotten class: not forgotten; expected at most 1 %. More "
            "samples of each class, or an edit of the head alone (stages), may do better."
        )
    labels = {len(about["before"]) for classes in head.values() for about in classes.values()}
    if free := sorted(set(range(max(labels, default=0))) - known):
        notes.append(f"There are no samples of {named(free)}, so nothing holds what the model knows of them.")
    return notes


def _advice(heads: list[Removal]) -> str:
    if any(removal.span == "linear" for removal in heads):
        if all(removal.has_bias for removal in heads):
            return "the linear span of the others holds it, which span='auto' gets out of."
        return (
            "the linear span of the others holds it, and the affine one needs a bias behind the head, which has none."
        )
    if any(removal.directions.numel() and removal.alpha < HIGHEST for removal in heads):
        return "a higher force_head_alpha removes more of it."
    return "what the others span holds it, and no α changes that."


def named(classes: list[int]) -> str:
    return f"class{'es' * (len(classes) > 1)} {', '.join(map(str, classes))}"
