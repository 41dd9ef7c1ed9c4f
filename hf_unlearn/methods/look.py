"""What auto finds out of a request and its original before anything is changed, and what it would do."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UnlearningError
from ..metrics import MatchedAUC

UNKNOWN = 0.55  # AUC of forget against control samples up to which nothing is remembered that matters
ENOUGH = 30  # samples of each side, below which an interval is too narrow to be believed
CHANCE = 0.01  # that samples drawn at random are of so few classes

KINDS = {"class": "a whole class", "part": "a part of a class", "scattered": "scattered samples"}
Kind = Literal["class", "part", "scattered"]


def kind_of(is_class: bool, classes: int, num_labels: int, n_forget: int) -> Kind:
    """Of a request: whether samples drawn at random from classes of one size would be of so few of them.

    >>> kind_of(False, classes=1, num_labels=10, n_forget=50), kind_of(False, classes=1, num_labels=10, n_forget=1)
    ('part', 'scattered')
    """
    if is_class:
        return "class"
    return "part" if num_labels and (classes / num_labels) ** n_forget < CHANCE else "scattered"


@dataclass(frozen=True)
class Look:
    """What there is to know before anything is changed, and what `auto` makes of it.

    Attributes:
        kind: `class`, where whole classes are forgotten; `part`, where all samples are of a few classes; else `scattered`.
        n_forget, n_retain: samples that the original was trained on.
        classes, num_labels: of the forget samples, and of the model; 0 for a language model.
        memory: the AUC of forget against control samples of their class, by the margin; 0.5 where none is remembered.
        base: what the original was trained from, or its type.
        original_epochs, original_learning_rate: of the original's training.
        assumed: which of `base_model`, `original_epochs` and `original_learning_rate` nothing says.
        keeps: λ of each candidate; with one there is no race.
        epochs, learning_rate, batch_size: of the repair.
        budget: the share of the original's training that may be spent.
        cost: the share that the whole run takes, with its looks, in samples; a forward pass is a third of a step.
        cost_of_look: the share of this look alone.
    """

    kind: Kind
    n_forget: int
    n_retain: int
    classes: int
    num_labels: int
    memory: MatchedAUC
    base: str
    original_epochs: float
    original_learning_rate: float
    assumed: tuple[str, ...]
    keeps: tuple[float, ...]
    epochs: float
    learning_rate: float
    batch_size: int
    budget: float
    cost: float
    cost_of_look: float

    @property
    def is_judged(self) -> bool:
        """Whether there is an interval that says something."""
        found = self.memory
        if found.low is None or found.high is None or min(found.n_forget, found.n_unseen) < ENOUGH:
            return False
        return found.low > 0.5 or found.high <= UNKNOWN

    @property
    def nothing(self) -> bool:
        """Whether it is shown, and not just not refuted, that the original knows no more of forget samples than of unseen
        ones, so that nothing is to be forgotten. A class that goes whole always is."""
        high = self.memory.high
        return self.kind != "class" and self.is_judged and high is not None and high <= UNKNOWN

    @property
    def words(self) -> str:
        """How much is remembered."""
        found = self.memory
        if found.auc is None:
            return f"cannot be judged: {found.reason}."
        auc = f"AUC {found.auc:.3f}, 95% interval {found.low:.3f} to {found.high:.3f}"
        same = " of their classes" * bool(self.num_labels)
        beside = f"{found.n_forget} forget samples beside {found.n_unseen} unseen ones{same}"
        if not self.is_judged:
            return f"cannot be judged by {beside} ({auc}; 0.5 where none is remembered)."
        if found.high is not None and found.high <= UNKNOWN:
            return f"of {found.n_forget} forget samples the original knows no more than of unseen ones ({auc})."
        return f"the original remembers the forget samples ({auc}, {beside}; 0.5 where none is remembered)."

    def summary(self) -> str:
        """The look, the choice and its cost, in words."""
        share = "all" if self.classes == self.num_labels else f"{self.classes} of"
        classes = f"; forget samples of {share} {self.num_labels} classes" if self.num_labels else ""
        kind = KINDS[self.kind] + (f" ({self.classes} of them)" if self.kind == "class" and self.classes > 1 else "")
        base = "new weights" if self.base == "scratch" else self.base
        past = [
            ("base_model", f"from {base}"),
            ("original_epochs", f"for {self.original_epochs:g} epochs"),
            ("original_learning_rate", f"at a learning rate of {self.original_learning_rate:.3g}"),
        ]
        trained = ", ".join(text + " (assumed)" * (name in self.assumed) for name, text in past)
        lines = [
            f"Request: {kind}; {self.n_forget} forget and {self.n_retain} retained samples{classes}.",
            f"Memory: {self.words}",
            f"Original: trained {trained}.",
        ]
        if self.assumed:
            lines.append(f"  Nothing says what is assumed; it can be given: {', '.join(self.assumed)}.")
        if self.nothing:
            return "\n".join([*lines, f"Choice: nothing would be changed; the look costs {self.cost_of_look:.2%}."])
        keeps = " or ".join(f"{keep:g}" for keep in self.keeps)
        return "\n".join(
            [
                *lines,
                f"Choice: rewind with keep {keeps}, then {self.epochs:.3g} epochs on the retained samples at a learning rate "
                f"of {self.learning_rate:.3g}, batch size {self.batch_size}.",
                f"Cost: {self.cost:.1%} of the original's training; the budget is {self.budget:.1%}.",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return dataclasses.asdict(self) | {"is_judged": self.is_judged, "nothing": self.nothing}

    def save(self, path: str | Path) -> None:
        """Write `to_dict()` as JSON."""
        try:
            Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise UnlearningError(f"The look cannot be written to {str(path)!r}: {error.strerror}.") from None
