"""What several tasks pay: UIS and interference."""

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np

from .checks import number


def uis(
    unlearned: Mapping[str, Mapping[str, float]],
    reference: Mapping[str, Mapping[str, float]],
    targets: Collection[str],
    convention: Literal["original", "retrain"] = "original",
    class_unlearning: bool = False,
) -> dict[str, float | None]:
    """Unlearning Impact Score over tasks: damage on test data plus distance from the wanted forget-set performance.

        UIS_t = ½ ( |U_test - T| / T + |U_forget - F| / T ),   UIS = 100 · mean over tasks t of UIS_t

    with U the unlearned model's metric on task t, higher-is-better and positive, and the references

        `"original"`: T = original on test; F = T for a target task (or 0 with `class_unlearning`), and the original's
                      own value on the forget set for every other task, which has to keep it
        `"retrain"`:  T = retrained on test; F = retrained on the forget set

    Both parts are divided by T since F can be 0. Lower is better; with one target task and `"original"` this is the
    UIS of the literature, for which a retrained model scores above 0 in general. With `"retrain"` it scores 0 exactly.

    Args:
        unlearned, reference: task -> `{"test": x, "forget": y}`; `reference` comes from the model of `convention`.
        targets: the tasks whose supervision is to be forgotten.
        class_unlearning: the forget set is a whole class. Without effect on `"retrain"`, where F is measured.

    Returns:
        `uis` over all tasks, `uis_target` over `targets`, `uis_nontarget` over the others; None for a part without
        tasks.

    References:
        Shamsian et al., *Go Beyond Your Means: Unlearning with Per-Sample Gradient Orthogonalization*, arXiv
        2503.02312. Over several tasks: Huang et al., *Interference-Aware Multi-Task Unlearning*, arXiv 2605.19042.

    Example:
        >>> scores = uis({"depth": {"test": 0.76, "forget": 0.84}}, {"depth": {"test": 0.8, "forget": 1.0}}, ["depth"])
        >>> round(scores["uis"], 6), scores["uis_nontarget"]
        (5.0, None)
    """
    if convention not in ("original", "retrain"):
        raise ValueError(f"`convention` is {convention!r}: pass 'original' or 'retrain'.")
    if not reference or set(unlearned) != set(reference):
        raise ValueError(
            f"`unlearned` has the tasks {sorted(unlearned)} and `reference` {sorted(reference)}: "
            "pass the same tasks, at least one, in both."
        )
    targets = _known(targets, reference)

    fixed = (
        targets if convention == "original" else set()
    )  # tasks whose F does not come from the reference's forget set
    by_task = {
        task: _impact(task, unlearned[task], reference[task], task in fixed, class_unlearning) for task in reference
    }

    def mean(tasks: Collection[str]) -> float | None:
        return 100 * float(np.mean([by_task[task] for task in tasks])) if tasks else None

    return {
        "uis": mean(list(by_task)),
        "uis_target": mean([task for task in by_task if task in targets]),
        "uis_nontarget": mean([task for task in by_task if task not in targets]),
    }


def _impact(
    task: str,
    unlearned: Mapping[str, float],
    reference: Mapping[str, float],
    is_target: bool,
    class_unlearning: bool,
) -> float:
    """UIS_t; for a target, F is T, or 0 where a whole class must go."""
    name = f"reference[{task!r}]"
    t = number(reference, "test", name)
    if t <= 0:
        raise ValueError(
            f"`{name}` has 'test' = {t}, but UIS divides by it and needs a higher-is-better metric above 0: "
            "use another metric or leave the task out."
        )
    f = (0.0 if class_unlearning else t) if is_target else number(reference, "forget", name)
    name = f"unlearned[{task!r}]"
    u_test, u_forget = number(unlearned, "test", name), number(unlearned, "forget", name)
    return (abs(u_test - t) / t + abs(u_forget - f) / t) / 2


def _known(targets: Collection[str], tasks: Collection[str]) -> set[str]:
    targets = {targets} if isinstance(targets, str) else set(targets)
    if unknown := sorted(targets - set(tasks)):
        raise ValueError(f"`targets` names the unknown tasks {unknown}: the known tasks are {sorted(tasks)}.")
    return targets


def interference(
    unlearned: Mapping[str, Mapping[str, float]],
    original: Mapping[str, Mapping[str, float]],
    targets: Collection[str],
) -> dict[str, float | None]:
    """How much unlearning disturbed what it should not have: other tasks, and other instances.

        task_interference     = mean over tasks t that are no target of (drop on test + drop on forget) / 2
        instance_interference = mean over all tasks of the drop on retained samples
        drop = (original - unlearned) / original

    Relative drops of higher-is-better metrics; negative where unlearning improved one. Both in percent.

    Args:
        unlearned, original: task -> `{"test": x, "forget": y, "retain": z}`.
        targets: the tasks whose supervision is to be forgotten.

    Returns:
        `task_interference`, None without another task, and `instance_interference`.

    Example:
        >>> original = {"depth": {"test": 0.8, "forget": 1.0, "retain": 1.0}}
        >>> interference({"depth": {"test": 0.8, "forget": 0.7, "retain": 0.75}}, original, ["depth"])
        {'task_interference': None, 'instance_interference': 25.0}
    """
    if not original or set(unlearned) != set(original):
        raise ValueError(
            f"`unlearned` has the tasks {sorted(unlearned)} and `original` {sorted(original)}: "
            "pass the same tasks, at least one, in both."
        )

    targets = _known(targets, original)

    def drop(task: str, key: str) -> float:
        before, after = (
            number(original[task], key, f"original[{task!r}]"),
            number(unlearned[task], key, f"unlearned[{task!r}]"),
        )
        if before <= 0:
            raise ValueError(
                f"`original[{task!r}]` has {key!r} = {before}, but a relative drop needs a metric above 0: use another "
                "metric or leave the task out."
            )
        return (before - after) / before

    others = [(drop(task, "test") + drop(task, "forget")) / 2 for task in original if task not in targets]
    return {
        "task_interference": 100 * float(np.mean(others)) if others else None,
        "instance_interference": 100 * float(np.mean([drop(task, "retain") for task in original])),
    }
