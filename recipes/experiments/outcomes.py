"""What the closeness study came to: the rows of `results/closeness.json` as means over seeds, beside the floor of each seed."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).parent / "results" / "closeness.json"
REFERENCES = ("original", "retrained")
BUDGET = 0.2  # of the rows that are called by their method alone
Row = dict[str, Any]

TITLES = {  # in the order of pictures and tables
    "digits": "digits with wrong labels, a small ResNet",
    "vit": "CIFAR-10, a ViT",
    "resnet": "CIFAR-10, a ResNet-18",
    "minilm": "20 Newsgroups, a fine-tuned MiniLM",
    "cifar10": "the whole of CIFAR-10, a ResNet-18",
}
SHORT = {"digits": "digits", "vit": "ViT", "resnet": "ResNet-18", "minilm": "MiniLM", "cifar10": "all of CIFAR-10"}
REQUESTS = {"scattered": "a tenth at random", "part": "half of a class", "class": "a whole class"}
BASE_IS_KNOWN = ("minilm",)


@dataclass(frozen=True)
class Outcome:
    """Means over seeds of the figures of a row, and of these:

    ratio: JSD on forget samples, in multiples of what two retrained models of the same seed are apart (the floor).
    original_ratio: that of the originals of the same seeds.
    of_original: JSD on forget samples, as a share of that of the original of the same seed.
    gap_ratio: the same of Avg Gap, from means.
    unseen_below: how far unseen accuracy is below that of retrained models.
    remembered: the share of seeds in which the AUC of forget against unseen samples is shown to be above one half.
    """

    method: str
    budget: float
    seeds: int
    figures: dict[str, float]

    @property
    def name(self) -> str:
        return self.method if self.budget == BUDGET else f"{self.method}, budget {self.budget:g}"

    def __getitem__(self, figure: str) -> float:
        return self.figures[figure]


@dataclass(frozen=True)
class Group:
    """A request in a case: the original, retrained models, and the methods, the nearest to these first."""

    case: str
    request: str
    original: Outcome
    retrained: Outcome
    methods: list[Outcome]

    @property
    def title(self) -> str:
        return f"{TITLES[self.case]}: {REQUESTS[self.request]}"


def read() -> list[Row]:
    return json.loads(FILE.read_text())["results"]["rows"]


def shared(rows: Iterable[Row]) -> list[Row]:
    """Of each request in each case, the rows of the seeds in which most methods were run: beside the same originals."""
    methods: dict[tuple, set[str]] = defaultdict(set)
    rows = list(rows)
    for row in rows:
        if row["budget"] == BUDGET:
            methods[row["case"], row["request"], row["seed"]].add(row["method"])
    most: dict[tuple, int] = defaultdict(int)
    for (*group, _), names in methods.items():
        most[*group] = max(most[*group], len(names))
    return [
        row
        for row in rows
        if len(methods[row["case"], row["request"], row["seed"]]) == most[row["case"], row["request"]]
    ]


def groups(rows: Iterable[Row]) -> list[Group]:
    """The groups in which a method was measured beside the references of its seed; rows of a seed without them are left out."""
    by_seed: dict[tuple, dict[tuple, Row]] = defaultdict(dict)
    for row in rows:
        key = (row["method"], BUDGET if row["method"] in REFERENCES else row["budget"])
        by_seed[row["case"], row["request"], row["seed"]][key] = row
    found: dict[tuple, dict[tuple, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for (case, request, _), those in by_seed.items():
        if all((name, BUDGET) in those for name in REFERENCES):
            floor, original = those["retrained", BUDGET], those["original", BUDGET]
            for key, row in those.items():
                found[case, request][key].append(beside(row, floor, original))
    return [
        _group(case, request, found[case, request])
        for case in TITLES
        for request in REQUESTS
        if len(found[case, request]) > len(REFERENCES)
    ]


def beside(row: Row, floor: Row, original: Row) -> Row:
    return row | {
        "ratio": row["jsd"] / floor["jsd"],
        "original_ratio": original["jsd"] / floor["jsd"],
        "of_original": row["jsd"] / original["jsd"],
        "floor_gap": floor["avg_gap"],
        "unseen_below": floor["unseen_accuracy"] - row["unseen_accuracy"],
        "remembered": float(row["auc_low"] > 0.5),
    }


def _group(case: str, request: str, runs: dict[tuple, list[Row]]) -> Group:
    all_of_them = {}
    for (method, budget), those in runs.items():
        names = [name for name in those[0] if name != "budget" and all(isinstance(r.get(name), float) for r in those)]
        figures = {name: float(np.mean([row[name] for row in those])) for name in names}
        figures["gap_ratio"] = figures["avg_gap"] / figures["floor_gap"]
        all_of_them[method, budget] = Outcome(method, budget, len(those), figures)
    original, retrained = (all_of_them.pop((name, BUDGET)) for name in REFERENCES)
    return Group(case, request, original, retrained, sorted(all_of_them.values(), key=lambda one: one["ratio"]))


def kept_for_comparison(found: Iterable[Group]) -> dict[str, bool]:
    """Of each method that was measured, whether its best outcome is no nearer to retrained models than the original, in two
    of three requests and cases in which it was measured, or more."""
    nearer: dict[str, list[bool]] = defaultdict(list)
    for group in found:
        for method in dict.fromkeys(one.method for one in group.methods):
            best = min(one["of_original"] for one in group.methods if one.method == method)
            nearer[method].append(best < 1)
    return {method: 3 * (len(those) - sum(those)) >= 2 * len(those) for method, those in nearer.items()}
