"""When a batch of requests is made, and what has become of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnlearningError
from ..methods.fields import check_fields
from .drift import Budget
from .request_files import RECIPE


@dataclass
class Policy(Budget):
    """When a batch is made, and how far the model may drift."""

    batch_requests: int = field(default=10, metadata={"help": "requests that make a batch, and the most of one"})
    batch_days: float = field(
        default=7.0, metadata={"help": "days that the oldest request waits before a batch is made of fewer"}
    )

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, RECIPE)
        if self.batch_requests < 1 or self.batch_days < 0:
            raise UnlearningError(
                f"batch_requests is {self.batch_requests} and batch_days is {self.batch_days}; expected 1 or more, and 0 or "
                "more."
            )


@dataclass(frozen=True)
class Status:
    """What has become of the requests of a queue.

    Attributes:
        waiting: requests that no batch names yet, in the order in which they came.
        oldest_days: how long the first of them has waited.
        batches: the number, requests, samples, drift, what is left of earlier requests, and the revision of each batch.
        unnamed: rows of ids that were done, which had come since when the last batch was made: they are in no set.
        is_due: whether a run would begin a batch, or finish one.
        retraining: why retraining is due; None while it is not.
    """

    requests: int
    waiting: list[str]
    oldest_days: float
    batches: list[dict[str, Any]]
    unnamed: int
    is_due: bool
    retraining: str | None

    def summary(self) -> str:
        done = sum(len(row["requests"]) for row in self.batches if row["is_done"])
        wait = f", the oldest for {self.oldest_days:.1f} days" if self.waiting else ""
        lines = [f"{self.requests} requests: {done} done, {len(self.waiting)} waiting{wait}"]
        lines += map(_line, self.batches)
        if self.unnamed:
            why = "were new when the last batch was made, and are neither forgotten nor retained; put in a new request for them"
            lines.append(f"{self.unnamed} rows of ids that are done {why}, if there is none yet")
        lines += ["a batch is due: hf-unlearn queue run"] if self.is_due else []
        return "\n".join([*lines, *([self.retraining] if self.retraining else [])])


def _line(row: Mapping[str, Any]) -> str:
    drift, earlier = row["drift"] or {}, row["earlier"] or {}
    parts = [f"batch {row['number']}: {len(row['requests'])} requests, {row['samples']} samples"]
    if row["copies"]:
        parts += [f"{row['copies']} copies left out of retain"]
    if drift.get("jsd") is not None:
        parts += [f"drift {drift['jsd']:.4f}", f"unseen accuracy {drift['first']:.3f} → {drift['now']:.3f}"]
    elif drift:
        parts += ["drift not measured, for want of unseen samples of retained classes"]
    if (auc := (earlier.get("after") or {}).get("auc")) is not None:
        parts += [f"AUC of {earlier['samples']} earlier samples {auc:.3f}"]
    parts += [row["revision"] or "not pushed"] if row["is_done"] else ["not done"]
    return ", ".join(parts)
