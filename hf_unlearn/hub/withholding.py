"""What is left out of what is published, so that it tells nobody which samples were to be forgotten.

Of few samples a figure is a test of a guess: who has the models works out the figure of each candidate, and keeps those that
fit. So of a request of fewer than `FEWEST` samples no figure is published that depends on which samples these are: neither of
forget samples nor of retained ones, which are all but these. What is left is the same for every candidate.

In a row of releases two neighbours measure one model, and retain almost the same samples: their figures of these, beside each
other, would be figures of the few in between. Such releases publish none of retained samples (`retained=False`).
"""

import copy
import re
from collections.abc import Callable
from typing import Any

from ..audits.content import IN_MEMORY
from ..errors import UnlearningError
from .card import is_local

FEWEST = 30  # as many as an audit wants before it judges
DIGITS = 4
# Parts of an audit that say nothing of the samples: what was asked, how, and how far the weights are apart.
PLAIN = (
    *("format", "version", "date", "level", "seed", "task", "request", "models", "weights", "distance", "cost"),
    "conventions",
)
# Where a reason, a note or a verdict says which classes it is about.
LISTS = re.compile(
    r"(?<=orget samples of )class .*?(?= have no unseen samples)|(?<=no unseen sample of )class .*?(?= to compare)"
    r"|(?:the forget |the )?(?:classes )?\[[^\]]*\]|\bclass(?:es)? \d+(?:, \d+)*"
)
SOME = "some classes"
NEIGHBOURS = (
    "Left out: the releases before and after this one retain all but a few of the same samples, so figures of retained samples, "
    "beside theirs, would be figures of these few."
)
# And where it counts the samples of these classes, which there may be as many of in no other one.
COUNTS = {
    re.compile(r"With [\d,]+ forget samples (\(at least \d+ are wanted\)) beside [\d,]+ unseen ones"): (
        r"With so few forget samples \1 or unseen ones of their classes"
    ),
    re.compile(r"the [\d.]+% of the forget samples that could be judged"): "those forget samples that could be judged",
    re.compile(r"The population has [\d,]+ samples"): "The population has too few samples",
}


def check_fewest(fewest: int) -> None:
    if isinstance(fewest, bool) or not isinstance(fewest, int) or fewest < 1:
        raise UnlearningError(
            f"fewest is {fewest!r}; expected a whole number of forget samples, from 1 on, below which figures are left out."
        )


def why(samples: int, fewest: int) -> str:
    return (
        f"Left out: with {samples} forget samples, fewer than {fewest}, a figure of forget or retained samples would tell a good "
        "guess of them from a bad one."
    )


def coarse(
    figures: dict[str, Any] | None, samples: int, fewest: int = FEWEST, retained: bool = True
) -> dict[str, Any] | None:
    """Figures with four digits; of few forget samples those of unseen samples alone; without `retained`, none that depends
    on retained samples."""
    if figures is None:
        return None
    if samples < fewest or not retained:
        kept = ("unseen_",) if samples < fewest else ("unseen_", "forget_", "auc")
        figures = {key: value for key, value in figures.items() if key.startswith(kept)}
    return rounded(figures)


def publishable_metrics(
    metrics: dict[str, Any], class_names: list[str] | None = None, fewest: int = FEWEST, retained: bool = True
) -> dict[str, Any]:
    """The content of `metrics.json` without what tells which samples, or which classes, the request is of.

    Args:
        class_names: those of a request for whole classes, where they are to be told.
    """
    metrics = copy.deepcopy(metrics)
    metrics.pop("report")  # of the method, which may count the samples of each class
    run = metrics["run"]
    request, samples = run["request"], run["request"]["samples"]["forget"]
    request["class_names"] = class_names
    for when in ("before", "after"):
        if when in metrics:
            metrics[when] = coarse(metrics[when], samples, fewest, retained)
    if samples < fewest:
        metrics |= {"reasons": {"figures": why(samples, fewest)}, "notes": []}
        run["measured"] = {name: n for name, n in run["measured"].items() if name == "unseen"}
        run["read"] = {}  # a method may stop where its samples are forgotten
        return metrics
    if not retained:
        metrics |= {"reasons": {"figures": NEIGHBOURS}, "notes": []}
        run["measured"] = {name: n for name, n in run["measured"].items() if name != "retain"}
        return metrics
    metrics["reasons"] = {name: LISTS.sub(SOME, text) for name, text in metrics.get("reasons", {}).items()}
    if class_names is None:
        metrics["notes"] = [LISTS.sub(SOME, note) for note in metrics["notes"]]
    return metrics


def publishable(
    content: dict[str, Any], class_names: bool = False, fewest: int = FEWEST, retained: bool = True
) -> dict[str, Any]:
    """The content of an audit with four digits, without local paths, and without what tells which samples the request is of.

    Which classes the samples of a request for single samples are of is left out, with all rows of classes. The classes of a
    request for whole classes are there only if asked for. Of few forget samples there is no figure that depends on them,
    and no verdict; nor is there one without `retained`.
    """
    content = copy.deepcopy(content)
    request = content["request"]
    is_named = class_names and request["kind"] == "class"
    models = content["models"]  # an id may have @ and a commit behind it
    content["models"] = {
        name: name if given and not given.startswith(IN_MEMORY) and is_local(given.partition("@")[0]) else given
        for name, given in models.items()
    }
    if not is_named:
        request["forget_classes"], request["class_names"] = [], None
    samples = request["samples"]["forget"]
    figures = {name: coarse(row, samples, fewest, retained) for name, row in content.get("figures", {}).items()}
    if samples < fewest or not retained:
        kept = {key: value for key, value in content.items() if key in PLAIN}
        reason = why(samples, fewest) if samples < fewest else NEIGHBOURS
        return rounded(kept | {"figures": figures, "verdict": _withheld(reason), "reasons": {}})
    content |= {"figures": figures} if figures else {}
    if not is_named:
        content["classes"] = []
        for part in ("verdict", "reasons", "membership"):
            if part in content:
                content[part] = each_text(content[part], _without_classes)
    return rounded(content)


def _without_classes(text: str) -> str:
    for counted, instead in COUNTS.items():
        text = counted.sub(instead, text)
    return LISTS.sub(SOME, text)


def _withheld(reason: str) -> dict[str, Any]:
    """The verdict in place of one that would depend on the samples."""
    return {
        "outcome": "cannot judge",
        "withheld": True,
        "headline": "What was found of the forget samples is not published, so this says neither that they are forgotten nor "
        "that they are not.",
        "findings": [],
        "cannot": [reason, "Ask who made this model for the audit itself."],
    }


def rounded(value: Any) -> Any:
    """The same value of JSON, with four significant digits of every number that is not whole."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The same value of JSON, with every text in it changed."""
    if isinstance(value, dict):
        return {key: each_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [each_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
