"""From what the tests of an audit have found to a verdict in words.

Every test that may fail a model counts: their p-values are corrected together (Holm), so that a model which has never seen
the forget samples is failed by any of them once in twenty audits, however many tests there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

LEVEL = 0.05  # false alarms of all tests together
POWER = 0.8
ENOUGH = 30  # forget samples

FAIL_ON = ("residual", "over", "harm", "cannot-judge")  # what an exit code can be asked for
CANNOT, UNCHANGED = "cannot judge", "unchanged"
NAMES = {"residual": "residual memory", "over": "over-forgotten", "harm": "retain harm"}  # the worst first
PLAIN = {
    "unchanged": "This is still the original model: nothing was removed.",
    "only the head changed": "Only the last layer was changed: the model below it may still know the forget samples.",
    "residual memory": "The audit found signs that the model still remembers the forget samples.",
    "over-forgotten": "The forget samples still stand out: the model treats them worse than samples it has never seen.",
    "retain harm": "Samples that were not to be forgotten have paid: the model has become worse on them.",
    "cannot judge": "The audit cannot say whether the model still remembers the forget samples.",
    "no evidence": "No sign was found that the model still remembers {}; a trace too weak for this audit may be left.",
}
ANOTHER = "another method (`hf-unlearn compare` tries several), or retrain."
# What to do next, by outcome; where the audit was of level 0, `DEEPER` says more.
NEXT = {
    "no evidence": "What this audit can see is not there; whether that is enough to release the model is yours to say. Keep the report "
    "with it.",
    "residual memory": f"Unlearn for longer (more epochs; of `auto` and `rewind`, a larger `budget`), take {ANOTHER}",
    "over-forgotten": "Push less (fewer epochs, a lower rate), or take a method that does not push, such as `rewind`; forgetting more "
    "makes it worse.",
    "retain harm": "Repair it longer on retained samples, or retrain; if retraining would lose this too, as it does wrong labels, "
    "audit with `retrained=`.",
    "only the head changed": "Take a method that changes the layers below the head, such as `auto`.",
    "unchanged": "Unlearn first (`unlearn()`); where `auto` has changed nothing, the notes of its run say why.",
    "cannot judge": "Give what is missing, as named under what cannot be judged, or a retrained model (`retrained=`).",
}
# The same of an edit of the weights, which has neither epochs nor a rate.
EDITED = {
    "residual memory": f"Take {ANOTHER}",
    "over-forgotten": "Take a method that does not push, such as `rewind`; forgetting more makes it worse.",
    "retain harm": "Repair it on retained samples, or retrain; if retraining would lose this too, as it does wrong labels, "
    "audit with `retrained=`.",
}
BUDGETED = ("auto", "rewind")  # methods that have a `budget`
DEEPER = "A deeper level also looks below the outputs."
# Findings that fail, the most telling first: a p-value says how sure one is, not how much it matters.
TELLING = (
    *("recognition", "canaries", "membership", "accuracy", "relative", "paired_accuracy"),
    *("harm_retain", "harm_unseen", "extraction", "min_k", "loss", "paired_loss"),
    *("rmia", "relearning", "probe", "quantization", "entropy", "spread"),
)


Kind: TypeAlias = Literal["residual", "over", "harm", "head", "info"]


@dataclass
class Finding:
    """One question of an audit and its answer.

    Attributes:
        name: short, and the same in every audit.
        question: what was asked.
        sentence: what was found, in words.
        value, low, high: of the figure that the sentence is about, with its 95% interval.
        p: how often a model without fault gives a figure like this one.
        p_corrected: the same, corrected for all tests of the audit; filled in by `correct`.
        fails: whether it is a fault. Of a finding with a `p`, `correct` says so.
        kind: of the fault: what is still known of the forget samples (`residual`), that they stand out the other way
            (`over`), what others pay (`harm`), that only the head has changed (`head`); `info` is never a fault.
    """

    name: str
    question: str
    sentence: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    fails: bool = False
    kind: Kind = "info"


@dataclass
class Verdict:
    """What an audit comes to.

    Attributes:
        outcome: `no evidence`, `residual memory`, `over-forgotten`, `retain harm`, `only the head changed`, `unchanged` or
            `cannot judge`: of several faults the worst.
        plain: the same in a sentence for everyone.
        headline: in a sentence with the figure that tells most.
        tested: what it rests on.
        findings: every question that was asked, with its answer.
        cannot: what could not be judged, and why.
        judged: whether an absence of findings says something about memory.
    """

    outcome: str
    plain: str
    headline: str
    tested: str
    findings: list[Finding]
    cannot: list[str]
    judged: bool = True

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a report."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Verdict":
        """What stands in a report, in older ones too."""
        findings = [Finding(**_known(Finding, one)) for one in content.get("findings", [])]
        said: dict[str, Any] = {
            "plain": content["headline"],
            "tested": "",
            "judged": content["outcome"] != CANNOT,
            "cannot": [],
        }
        return cls(**{**said, **_known(cls, content), "findings": findings})

    def next_step(self, level: int, method: Mapping[str, Any] | None = None) -> str:
        """What to do now, in a sentence, or two where the audit was of level 0 and found nothing.

        Args:
            method: `name` and `kind` of what made the model, where that is known.
        """
        step = NEXT[self.outcome]
        if method and method.get("kind") == "surgery":
            step = EDITED.get(self.outcome, step)
        elif method and self.outcome == "residual memory":
            longer = "a larger `budget`" if method["name"] in BUDGETED else "more epochs"
            step = f"Unlearn for longer ({longer}), take {ANOTHER}"
        return step + (f" {DEEPER}" if self.outcome == "no evidence" and level == 0 else "")

    @property
    def came_out(self) -> tuple[str, ...]:
        """Which of `FAIL_ON` came out: faults that were found, and that memory could not be judged.

        `residual`: what was learnt of the forget samples is still there, so also where the model is the original or only its
        head was changed. `over`: they stand out the other way. `harm`: others have paid. `cannot-judge`: nothing was found of
        the forget samples, and that says nothing.
        """
        kinds = {finding.kind for finding in self.findings if finding.fails}
        found = {
            "residual": bool(kinds & {"residual", "head"}) or self.outcome == UNCHANGED,
            "over": "over" in kinds,
            "harm": "harm" in kinds,
        }
        found["cannot-judge"] = not (self.judged or found["residual"] or found["over"])
        return tuple(word for word in FAIL_ON if found[word])


def _known(cls: type, content: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in content.items() if key in names}


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's corrected p-values: rejecting those up to α raises a false alarm in at most a share α of cases.

        p̃_(i) = max over j ≤ i of min(1, (m − j + 1) p_(j)),   p_(1) ≤ … ≤ p_(m)

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return corrected


def correct(findings: Sequence[Finding]) -> None:
    """Fill in `p_corrected` and `fails` of all findings that have a `p` and may be a fault."""
    tested = [finding for finding in findings if decides(finding)]
    for finding, p in zip(tested, holm([finding.p for finding in tested if finding.p is not None]), strict=True):
        finding.p_corrected, finding.fails = float(p), bool(p <= LEVEL)


def decides(finding: Finding) -> bool:
    """Whether the finding is a test that may fail a model."""
    return finding.p is not None and finding.kind != "info"


def smallest_auc(error: float, tests: int, sides: int = 2) -> float:
    """The smallest AUC above ½ that is found in `POWER` of cases, as one of several tests, given its standard error.

        ½ + (z_{1−α/(sides·tests)} + z_power) · error

    >>> round(smallest_auc(0.02, tests=1), 3)
    0.556
    """
    return min(1.0, 0.5 + float(norm.isf(LEVEL / sides / tests) + norm.ppf(POWER)) * error)


def seen(p: float, tests: int) -> bool:
    """Whether what gave this two-sided p-value would be found in `POWER` of cases, as one of several tests.

        z_{1−p/2} ≥ z_{1−α/(2·tests)} + z_power

    An AUC of at least `smallest_auc` is; a p-value that is just significant would be in half of the cases.

    >>> seen(0.05, tests=1), seen(0.004, tests=1), seen(0.004, tests=10)
    (False, True, False)
    """
    return bool(norm.isf(p / 2) >= norm.isf(LEVEL / 2 / tests) + norm.ppf(POWER))


def decide(
    findings: Sequence[Finding],
    cannot: Sequence[str] = (),
    *,
    changed: bool = True,
    judged: bool = True,
    share: float = 1.0,
    power: float | None = None,
) -> Verdict:
    """The verdict of an audit.

    Args:
        cannot: what cannot be judged, in sentences; the first one says why where nothing could be `judged`.
        changed: whether the two models have different weights.
        judged: whether an absence of findings says anything about memory.
        share: of the forget samples that could be judged; an absence of findings is said of these alone.
        power: the smallest AUC of forget over unseen samples that would have been seen.

    Example:
        >>> decide([], power=0.53).headline
        'No evidence of residual memory; an AUC above 0.53 would have been seen.'
    """
    findings = list(findings)
    correct(findings)
    faults = {kind: [f for f in findings if f.fails and f.kind == kind] for kind in ("head", *NAMES)}
    failed = [kind for kind in NAMES if faults[kind]]
    others = " and ".join(NAMES[kind] for kind in failed)
    of_which = f"the {np.floor(1000 * share) / 10:g}% of the forget samples that could be judged"
    if not changed:
        outcome, headline = UNCHANGED, "The model is unchanged: its weights are those of the original."
    elif faults["head"]:
        outcome = "only the head changed"
        headline = (
            "Only the head was changed: what the network below it has learnt of the forget samples is still there"
        )
        headline += f" (also found: {others})." if others else "."
    elif failed:
        outcome, rest = NAMES[failed[0]], [NAMES[kind] for kind in failed[1:]]
        telling = min(faults[failed[0]], key=lambda f: TELLING.index(f.name) if f.name in TELLING else len(TELLING))
        headline = f"{outcome.capitalize()}: {_lower(telling.sentence)}"
        headline += f" Also found: {' and '.join(rest)}." if rest else ""
    elif not judged:
        outcome, headline = CANNOT, "This audit cannot judge whether the forget samples are still remembered"
        headline += f": {_lower(cannot[0])}" if cannot else "."
    else:
        outcome, headline = "no evidence", "No evidence of residual memory"
        headline += f" in {of_which}" if share < 1 else ""
        headline += f"; an AUC above {short(power)} would have been seen." if power else "."
    plain = PLAIN[outcome].format(of_which if share < 1 else "the forget samples")
    names = [finding.name.replace("_", " ") for finding in findings if decides(finding)]
    tested = f"Tested, and corrected together: {', '.join(names)}." if names else "Nothing was tested that could fail."
    return Verdict(outcome, plain, headline, tested, findings, list(cannot), judged)


def short(value: float) -> str:
    """An AUC as it stands in sentences.

    >>> short(0.534), short(1.0)
    ('0.53', '1.00')
    """
    return f"{value:.2f}"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
