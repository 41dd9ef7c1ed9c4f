"""A complete local folder of a result: weights, configuration, processor, figures, audit, receipt and card."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from accelerate.utils import gather_object
from transformers import PreTrainedModel

from .. import models
from ..audits.report import AuditReport
from ..errors import UnlearningError
from ..training.output import check_not_original
from ..training.record import Result, Run
from .card import base_models, is_local, read_card, write_card
from .client import UnreadableError, check_token
from .given import check_given, check_report
from .names import ADAPTER_CONFIG, AUDIT, AUDIT_PAGE, CARD, CONFIG, METRICS, is_released
from .receipt import make_receipt, seal
from .repository import Parent
from .revisions import pinned
from .weights import files_in
from .withholding import FEWEST, check_fewest, each_text, publishable, publishable_metrics

HIDDEN = "(a local path)"


def prepare(
    result: Result,
    folder: str | Path,
    *,
    repo_id: str | None = None,
    parent: Parent | str | Path | None = None,
    revision: str | None = None,
    report: AuditReport | None = None,
    sign_key: str | Path | None = None,
    class_names: bool = False,
    fewest: int = FEWEST,
    retained: bool = True,
    token: str | bool | None = None,
    **receipt: Any,
) -> Path:
    """Write everything that is published of a result to a folder, whole or not at all.

    An earlier release in the folder is replaced; a folder with anything else in it is refused. Under several processes,
    all of them call this. What has to be read of the Hub, the parent and its card, is read or the error says why not.

    Args:
        repo_id, revision: where the release is going to be, for the card.
        parent: the repository and commit that was unlearned, or its folder; default: the receipt names none, and the card
            the original, if it came from the Hub unchanged.
        report, sign_key: an audit of this result, and the path of an Ed25519 private key that signs the receipt.
        class_names: name the classes of a request for whole classes.
        fewest: forget samples below which no figure is published that depends on them (see `withholding`).
        retained: whether figures of retained samples are published; not in a row of releases.
        receipt: what `make_receipt` takes beside these: `dataset`, `earlier`.
    """
    check_token(token)
    check_fewest(fewest)
    check_given(receipt.get("dataset"), receipt.get("earlier"))
    folder, run = Path(folder).absolute(), result.run
    for original in (run.original_folder, parent if isinstance(parent, (str, os.PathLike)) else None):
        check_not_original(folder, original, "folder")
    check_report(report, result)
    unfinished = folder.with_name(f".{folder.name}.unfinished")

    def begin() -> None:
        _check_replaceable(folder)
        shutil.rmtree(unfinished, ignore_errors=True)

    def finish() -> None:
        origin, address, parent_card = parent, None, None
        if isinstance(parent, (str, os.PathLike)):
            parent_card = read_card(Path(parent, CARD))
            parent_card["base_model"] = [base for base in base_models(parent_card) if not is_local(base)]
        elif parent is not None:
            origin = address = pinned(parent, token)
        _clean(unfinished, address, _class_names(result) if class_names else None, fewest, retained)
        if report is not None:
            content = publishable(report.content, class_names, fewest, retained)
            name_models(content, repo_id, revision, address)
            _write_audit(type(report)(content), unfinished)
        (unfinished / CARD).unlink(missing_ok=True)  # PEFT's, which has the path of the base model
        make_receipt(result, unfinished, parent=origin, token=token, fewest=fewest, **receipt)
        about = {"parent": address, "parent_card": parent_card, "token": token}
        write_card(unfinished, repo_id=repo_id, revision=revision, **about)
        seal(unfinished, sign_key)
        _replace(folder, unfinished)

    where_it_is_written(run, begin)
    try:
        result.save(unfinished)
        where_it_is_written(run, finish)
    finally:
        if run.writes:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def name_models(content: dict[str, Any], repo_id: str | None, revision: str | None, parent: Parent | None) -> None:
    """Have the content of an audit name its models by where they are on the Hub, as far as that is known."""
    if repo_id:
        content["models"]["unlearned"] = f"{repo_id}@{revision}" if revision else repo_id
    if parent:
        content["models"]["original"] = f"{parent.repo_id}@{parent.commit}"


def _write_audit(report: AuditReport, folder: Path) -> None:
    report.to_json(folder / AUDIT)
    report.to_html(folder / AUDIT_PAGE)


def where_it_is_written(run: Run, work: Callable[[], None]) -> None:
    """Do something on the processes that write, while the others wait; if it fails on one, it fails on all of them.

    Else those that do not write would wait for ever, or go on with a release that is not there.
    """
    problem = None
    if run.writes:
        try:
            work()
        except Exception as error:  # which is raised below, when the others know of it
            problem = error
    problems = gather_object([None if problem is None else (str(problem), isinstance(problem, UnreadableError))])
    if problem is not None:
        raise problem
    if failed := [found for found in problems if found is not None]:
        sentence, is_unreadable = failed[0]
        raise (UnreadableError if is_unreadable else UnlearningError)(sentence)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UnlearningError(f"{folder} is a file; expected the name of a folder for the release.")
    names = files_in(folder)
    strange = [name for name in names if not is_released(name)]
    if strange or (names and METRICS not in names):
        why = f"{strange[0]} is among them" if strange else f"{METRICS} is not among them"
        raise UnlearningError(
            f"{folder} holds files that are no release ({why}); expected a new or empty folder, or an earlier release, which "
            "is replaced."
        )


def _replace(folder: Path, finished: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    finished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _class_names(result: Result) -> list[str] | None:
    run = result.run
    if not run.is_class or not run.task.has_classes:
        return None
    names: Any = cast(PreTrainedModel, models.base_of(result.model)).config.id2label
    return [str(names[label]) for label in run.forget_classes]


def _clean(
    folder: Path,
    parent: Parent | None,
    class_names: list[str] | None,
    fewest: int = FEWEST,
    retained: bool = True,
) -> None:
    """Take out what names paths, or tells which samples are forgotten; pin the base of an adapter to the parent's commit."""
    for path in folder.rglob(ADAPTER_CONFIG):
        content = json.loads(path.read_text())
        base = content.get("base_model_name_or_path")
        if base and is_local(base):
            base = content["base_model_name_or_path"] = parent.repo_id if parent else None
        if parent and base == parent.repo_id:
            content["revision"] = parent.commit
        _write(path, content)
    config = json.loads((folder / CONFIG).read_text())
    _write(folder / CONFIG, each_text(config, _without_path))
    metrics = json.loads((folder / METRICS).read_text())
    _write(folder / METRICS, publishable_metrics(metrics, class_names, fewest, retained))


def _without_path(text: str) -> str:
    return HIDDEN if (os.sep in text or text.startswith("~")) and is_local(text) else text


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=path.name != METRICS) + "\n")
