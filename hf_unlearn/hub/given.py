"""What is given to go into a release, checked before anything is written: the dataset, earlier requests, the audit."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..audits.report import AuditReport
from ..errors import UnlearningError
from ..models import adapters
from ..training.record import Result
from .canonical import check_json

logger = logging.getLogger(__name__)


def check_given(dataset: Any, earlier: Any) -> None:
    """`dataset` and `earlier` as `make_receipt` takes them."""
    if not isinstance(dataset, (Mapping, type(None))):
        raise UnlearningError(
            f'dataset is {dataset!r:.60}; expected what is known of it, such as {{"name": "me/data", "revision": "v1"}}.'
        )
    check_json(dataset, "dataset")
    rows = [] if earlier is None else earlier
    if not isinstance(rows, Sequence) or not all(map(_is_row, rows)):
        check_json(rows, "earlier")
        raise UnlearningError(f"earlier is {earlier!r:.60}; expected what evaluate_earlier gave.")
    check_json(list(rows), "earlier")


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, Mapping)
        and isinstance(row.get("name"), str)
        and type(row.get("samples")) is int
        and all(isinstance(row.get(when), Mapping) for when in ("before", "after"))
    )


def check_report(report: Any, result: Result) -> None:
    """An audit is of this result: of its forget samples as far as their number tells, and of its two models by their weights."""
    if report is None:
        return
    if not isinstance(report, AuditReport):
        raise UnlearningError(
            f"report is {report!r:.60}; expected an AuditReport, as result.audit() or AuditReport.from_json gives it."
        )
    stated, run = report.content.get("weights"), result.run
    audited, asked = report.content["request"]["samples"]["forget"], run.sources["forget"].count()
    if audited != asked:
        raise UnlearningError(
            f"report is of {audited} forget samples and this result of {asked}; expected an audit of this result."
        )
    if stated is None:
        logger.warning(
            "The audit does not say which weights it is of, as those of older versions; audit this result anew."
        )
        return
    found = {"unlearned": adapters.weights_digest(result.model)}  # as an audit has it
    with run.original() as original:  # under an adapter this is `result.model`, with the adapter off
        found["original"] = adapters.weights_digest(original)
    for name, digest in found.items():
        if digest != stated.get(name):
            raise UnlearningError(
                f"report is of another {name} model than that of this result; expected an audit of this result."
            )
