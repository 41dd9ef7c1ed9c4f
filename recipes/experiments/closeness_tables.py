"""The tables of README and docs that say how close methods come to retraining; `tables.py` writes them."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, RETRAINED
from closeness_estimates import CANDIDATES, POOLED, TRUE, WITHIN
from outcomes import BASE_IS_KNOWN, BUDGET, REQUESTS, SHORT, TITLES, Group, Outcome, groups, read, shared

from hf_unlearn.commands.tofu_benchmark import AS_IS

RESULTS = Path(__file__).parent / "results"
OURS = ("auto", "rewind")
SLACK = 1.15  # of a budget, in measured time


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def caption(found: list[Group]) -> str:
    """Of the picture: what it shows, and which data, models and seeds it is made of."""
    shown = [group for group in found if group.request == "scattered"]
    about = "; ".join(f"{_data(group.case)} ({_seeds(group)})" for group in shown)
    return (
        "Every method at its defaults, asked to forget a tenth of the training samples: **lower is nearer to retraining, further left is "
        f"cheaper**. Distance is the JSD of the answers to these samples from those of {RETRAINED} retrained models; 1 × is what two of "
        f"these are apart, and the band is no farther than that. {about[0].upper()}{about[1:]}."
    )


def _data(case: str) -> str:
    about = CASES[case]
    wrong = f" of which {percent(about.wrong_labels)} have labels drawn anew" if about.wrong_labels else ""
    return f"{TITLES[case].replace(' with wrong labels', '')}, {about.size:,} training samples{wrong}"


def _seeds(group: Group) -> str:
    low, high = min(one.seeds for one in group.methods), max(one.seeds for one in group.methods)
    return f"{low} to {high} seeds" if low < high else f"{high} seed{'s' * (high > 1)}"


def cases(found: list[Group]) -> str:
    """What the originals were trained on, how long, and how many methods have run on each request."""
    lines = ["| case | training samples | epochs | peak rate | requests (methods) |", "|---" * 5 + "|"]
    for name, title in TITLES.items():
        about, run = CASES[name], [group for group in found if group.case == name]
        methods = ", ".join(
            f"{REQUESTS[group.request]} ({len({one.method for one in group.methods})})" for group in run
        )
        lines.append(f"| {title} | {about.size:,} | {about.epochs} | {about.rate:g} | {methods or 'not run'} |")
    return "\n".join(lines)


def measured(found: list[Group]) -> str:
    """Every outcome, the nearest to retraining first; a table for each request in each case."""
    parts = []
    for group in found:
        lines = [
            "| | seeds | JSD / floor | of the original's | JSD, worst twentieth | Avg Gap | forget acc. | retain acc. | unseen acc. | AUC forget/unseen | cost |"
        ]
        lines += ["|---" * 11 + "|"]
        for one in (group.original, group.retrained, *group.methods):
            auc = f"{one['auc']:.3f} ({one['auc_low']:.3f} to {one['auc_high']:.3f})"
            lines.append(
                f"| {one.name} | {one.seeds} | {one['ratio']:.2f} | {one['of_original']:.2f} | {one['jsd_p95']:.3f} | {one['avg_gap']:.3f} | "
                f"{one['forget_accuracy']:.3f} | {one['retain_accuracy']:.3f} | {one['unseen_accuracy']:.3f} | {auc} | {one['share_of_training']:.2f} |"
            )
        head = f"<details><summary>{group.title} ({_seeds(group)}, floor {group.retrained['jsd']:.4f})</summary>"
        parts.append("\n".join([head, "", *lines, "", "</details>"]))
    return "\n\n".join(parts)


@dataclass(frozen=True)
class Goal:
    """What must come out: its `name`, its `text` for the head of a column, the figure to print, and whether it is met."""

    name: str
    text: str
    figure: Callable[[Outcome], str]
    met: Callable[[Group, Outcome], bool]


FARTHEST = {BUDGET: 1.05, 0.1: 1.2}  # JSD / floor, by budget
GOALS = (
    Goal(
        "the distance",
        "JSD / floor ≤ " + ", ".join(f"{most:g} (budget {budget:g})" for budget, most in FARTHEST.items()),
        lambda one: f"{one['ratio']:.2f}",
        lambda group, one: one["ratio"] <= FARTHEST[one.budget],
    ),
    Goal(
        "Avg Gap",
        "Avg Gap ≤ 1.5 of the floor's, or ≤ 0.02",
        lambda one: f"{one['gap_ratio']:.1f} ({one['avg_gap']:.3f})",
        lambda group, one: one["gap_ratio"] <= 1.5 or one["avg_gap"] <= 0.02,
    ),
    Goal(
        "unseen accuracy",
        "unseen accuracy ≤ 1 point below retraining",
        lambda one: f"{100 * one['unseen_below']:+.1f}",
        lambda group, one: one["unseen_below"] <= 0.01,
    ),
    Goal(
        "the AUC",
        "AUC shown above ½ in no more seeds than of retrained",
        lambda one: percent(one["remembered"]),
        lambda group, one: one["remembered"] <= group.retrained["remembered"],
    ),
    Goal(
        "the cost",
        f"cost ≤ {SLACK:g} of the budget",
        lambda one: f"{one['share_of_training']:.3f}",
        lambda group, one: one["share_of_training"] <= SLACK * one.budget,
    ),
)


def audited(rows: list[dict[str, Any]] | None = None) -> str:
    """What audits of level 1 have found, beside what they find in models that were retrained."""
    rows = json.loads((RESULTS / "closeness_audits.json").read_text())["results"]["rows"] if rows is None else rows
    found: dict[tuple[str, str], dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["case"], row["request"]][row["of"].rstrip("0123456789")].append(row)
    lines = ["| | retrained | auto | rewind |", "|---|---|---|---|"]
    for case, request in itertools.product(TITLES, REQUESTS):
        if those := found.get((case, request)):
            cells = [outcomes_of(those[which]) for which in ("retrained", *OURS)]
            lines.append(f"| {SHORT[case]}, {REQUESTS[request]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def outcomes_of(rows: list[dict[str, Any]]) -> str:
    """`no evidence` 2, `residual memory` 1 (membership): how often each outcome came out, and by which tests."""
    counts = Counter(row["outcome"] for row in rows)
    tests = {outcome: sorted({t for r in rows if r["outcome"] == outcome for t in r["fails"]}) for outcome in counts}
    parts = [
        f"{outcome} {n}" + (f" ({', '.join(tests[outcome])})" if tests[outcome] else "")
        for outcome, n in counts.most_common()
    ]
    return "; ".join(parts) or "not run"


def goals(found: list[Group]) -> str:
    """Which goals are met by `auto` and `rewind`, and in how many of the requests and cases each."""
    ours = [
        (group, one)
        for group in found
        for one in sorted(group.methods, key=lambda one: one.name)
        if one.method in OURS and one.budget in FARTHEST
    ]
    lines = [f"| | method | {' | '.join(goal.text for goal in GOALS)} |", "|---" * (len(GOALS) + 2) + "|"]
    met: dict[str, Counter] = {one.name: Counter() for _, one in ours}
    for group, one in ours:
        reached = [goal.met(group, one) for goal in GOALS]
        met[one.name].update([goal for goal, yes in zip(GOALS, reached, strict=True) if yes] + ["all"])
        cells = (f"{goal.figure(one)} {'✓' if yes else '✗'}" for goal, yes in zip(GOALS, reached, strict=True))
        lines.append(f"| {SHORT[group.case]}, {REQUESTS[group.request]} | {one.name} | {' | '.join(cells)} |")
    for name, count in met.items():
        cells = (f"{count[goal]} of {count['all']}" for goal in GOALS)
        lines.append(f"| met in | {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(_in_words(name, count) for name, count in met.items())])


def _in_words(name: str, met: Counter) -> str:
    always = [goal.name for goal in GOALS if met[goal] == met["all"]]
    never = [goal.name for goal in GOALS if not met[goal]]
    sometimes = [goal.name for goal in GOALS if 0 < met[goal] < met["all"]]
    said = {"met everywhere": always, "met in some": sometimes, "met nowhere": never}
    return f"- `{name}`: " + "; ".join(f"{words}: {', '.join(those)}" for words, those in said.items() if those) + "."


def estimates(results: dict) -> str:
    """How well each candidate orders methods by their true distance, and whether one of them may be shown."""
    parts = next(iter(results.values()))[TRUE[0]]["within"]
    by_case = {case: [part for part in parts if part.startswith(f"{case}, ")] for case in TITLES}
    by_case = {case: those for case, those in by_case.items() if those}
    heads = (f"{SHORT[case]}: {', '.join(part.split(', ')[1] for part in those)}" for case, those in by_case.items())
    lines = [f"| candidate | distance | pooled | {' | '.join(heads)} |", "|---" * (3 + len(by_case)) + "|"]
    for name in CANDIDATES:
        for true, one in results[name].items():
            cells = (", ".join(_rho(one["within"][part]) for part in those) for those in by_case.values())
            pooled = one["pooled"]
            interval = f" ({pooled['low']:.2f} to {pooled['high']:.2f})" if pooled else ""
            lines.append(f"| {name} | {true} | {_rho(pooled)}{interval} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", verdict(results)])


def _rho(one: dict | None) -> str:
    return f"{one['rho']:.2f}" if one else "-"


def verdict(results: dict) -> str:
    wanted = f"a rank correlation of {WITHIN:g} within every case and request and of {POOLED:g} over all of them"
    good = [name for name in CANDIDATES if all(results[name][true]["reached"] for true in TRUE)]
    if good:
        return f"{wanted[0].upper()}{wanted[1:]}, for mean and 95th percentile, is reached by {', '.join(good)}."
    if all(results[name][true]["least_within"] is None for name in CANDIDATES for true in TRUE):
        return "Too few methods were measured to tell how well the distance can be told within a case and request."
    return (
        f"No candidate reaches {wanted}, for mean and 95th percentile: without a retrained model the distance to one cannot be "
        "told well enough, so neither a result nor the page of an audit shows such a number."
    )


LEVELS = (0.05, 0.3, float("inf"))  # of retraining's cost
WORDS = {"scattered": "single samples, wrong labels", "part": "part of a class", "class": "a whole class"}
NEAR = 0.05  # of the floor: `auto` is named where no method is nearer by more


def which(found: list[Group]) -> str:
    """Which method for which request, with what was measured."""
    lines = [
        "| request | base model | method | cost | distance: 1 is what two retrained models are apart |",
        "|---" * 5 + "|",
    ]
    for request in REQUESTS:
        for known in (False, True):
            those = [g for g in found if g.request == request and (g.case in BASE_IS_KNOWN) == known]
            rows = list(_advice(those)) or [_none_near(those)]
            base = "known" if known else "none, or not known"
            lines += [f"| {WORDS[request]} | {base} | {' | '.join(row)} |" for row in rows]
    lines += [_completions(study, authors) for study, authors in (("tofu-forget01", 196), ("tofu-small", 20))]
    return "\n".join([*lines, "", *_paid(found)])


def _paid(found: list[Group]) -> Iterator[str]:
    """What retained samples pay to `auto`, which a distance on forget samples does not show."""
    runs = [(g, one) for g in found for one in g.methods if (g.request, one.name) == ("scattered", "auto")]
    said = (
        f"{SHORT[group.case]} {one['retain_accuracy']:.2f} ({group.retrained['retain_accuracy']:.2f})"
        for group, one in runs
    )
    if runs:
        yield (
            "Distance is of forget samples alone. Accuracy on **retained** ones, after `auto` on single samples, and of retrained models "
            f"in brackets: {', '.join(said)}."
        )


def _advice(those: list[Group]) -> Iterator[tuple[str, str, str]]:
    """The nearest method of each level of cost, if it is nearer than what costs less, and has come half of the way from the
    original at least: what is a little nearer has not forgotten."""
    by_method: dict[str, list[Outcome]] = {}
    for group in those:
        for one in group.methods:
            if one.budget == BUDGET:
                by_method.setdefault(one.method, []).append(one)
    everywhere = [method for method, runs in by_method.items() if len(runs) == len(those)]
    ratio, cost = (
        {method: float(np.mean([one[figure] for one in by_method[method]])) for method in everywhere}
        for figure in ("ratio", "share_of_training")
    )
    original = float(np.mean([group.original["ratio"] for group in those])) if those else 0.0
    best, below = min(original, (original + 1) / 2), 0.0
    for most in LEVELS:
        near = sorted((method for method in everywhere if below < cost[method] <= most), key=ratio.__getitem__)
        below = most
        if not near or ratio[near[0]] >= best:
            continue
        method = "auto" if "auto" in near and ratio["auto"] <= ratio[near[0]] + NEAR else near[0]
        if ratio[method] >= best:
            continue
        best = ratio[method]
        said = (
            f"{SHORT[group.case]} {one['ratio']:.2f} (original {one['original_ratio']:.2f})"
            for group, one in zip(those, by_method[method], strict=True)
        )
        yield f"`{method}`", percent(cost[method]), ", ".join(said)


def _none_near(those: list[Group]) -> tuple[str, str, str]:
    """Where no method has come half of the way, or none was measured: what `auto` came to."""
    found = [(group, one) for group in those for one in group.methods if one.name == "auto"]
    said = (
        f"{SHORT[group.case]} {one['ratio']:.2f} for {percent(one['share_of_training'])} (original {group.original['ratio']:.2f})"
        for group, one in found
    )
    return "`retrain`", "100 %", f"`auto`: {', '.join(said) or 'not measured'}"


def _completions(study: str, authors: int) -> str:
    """Of a language model, where `auto` is `rmu`: forget quality on TOFU, as it is and after relearning."""
    seeds = json.loads((RESULTS / f"{study}.json").read_text())["results"]["seeds"].values()

    def mean(name: str, figure: Callable[[dict], float]) -> float:
        return float(np.median([figure(rows[name]) for rows in seeds if name in rows]))

    def state(figure: str, of: str = AS_IS) -> Callable[[dict], float]:
        return lambda row: row["states"][of][figure]

    cost = mean("rmu", lambda row: row["seconds"]) / mean("retrained", lambda row: row["seconds"])
    p, before, relearned = (
        mean(name, state("forget_quality", of))
        for name, of in (("rmu", AS_IS), ("original", AS_IS), ("rmu", "relearned forget"))
    )
    kept = f"utility {mean('rmu', state('utility')):.2f} (original {mean('original', state('utility')):.2f})"
    leak, apart = (mean(name, lambda row: row["privleak"]) for name in ("rmu", "retrained again"))
    said = (
        f"p {p:.2g} (original {before:.1g}), {kept}; PrivLeak {leak:.0f} (another retrained model {apart:.0f}); "
        f"after 20 steps on forgotten answers p {relearned:.2g}"
    )
    return (
        f"| completions of a language model, two authors of {authors} | either | `auto` | {percent(cost)} | {said} |"
    )


TABLES: dict[str, Callable[[], str]] = {
    "closeness-caption": lambda: caption(groups(shared(read()))),
    "closeness-cases": lambda: cases(groups(read())),
    "closeness": lambda: measured(groups(read())),
    "closeness-audits": audited,
    "closeness-goals": lambda: goals(groups(read())),
    "closeness-estimates": lambda: estimates(
        json.loads((RESULTS / "closeness_estimates.json").read_text())["results"]
    ),
    "which-method": lambda: which(groups(read())),
}
