"""A complete local folder of a result: weights, configuration, processor, figures, audit, receipt and card."""

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from ..errors import UnlearningError
from .card import is_local, read_card, write_card
from .names import ADAPTER_CONFIG, AUDIT, AUDIT_PAGE, CARD, CONFIG, METRICS, is_released
from .receipt import make_receipt, seal
from .revisions import pinned
from .weights import files_in

if TYPE_CHECKING:
    from ..api import UnlearningResult
    from ..audits.report import AuditReport
    from ..trainer import UnlearningTrainer
    from .revisions import Parent

FEWEST = 10  # samples of a class below which a published audit has no row for it, and of a request: see `coarse`
DIGITS = 4
# What a record that somebody guesses could be tried out against, if it is of very few records.
TELLING = re.compile(r"forget_loss|(rf_)?jsd|activation_distance")
# Where a reason, a note or a verdict says which classes it is about.
LISTS = re.compile(
    r"(?:the forget |the )?(?:classes )?\[[^\]]*\]|\bclass(?:es)? \d+(?:, \d+)*"
    r"|(?<=orget samples of )class .*?(?= have no unseen samples)|(?<=no unseen sample of )class .*?(?= to compare)"
)
SOME = "some classes"
HIDDEN = "(a local path)"


def prepare(
    result: "UnlearningResult",
    folder: str | Path,
    *,
    repo_id: str | None = None,
    parent: "Parent | str | Path | None" = None,
    revision: str | None = None,
    report: "AuditReport | None" = None,
    sign_key: str | Path | None = None,
    class_names: bool = False,
    token: str | bool | None = None,
    **receipt: Any,
) -> Path:
    """Write everything that is published of a result to a folder, whole or not at all.

    An earlier release in the folder is replaced; a folder with anything else in it is refused. Under several processes,
    all of them call this.

    Args:
        repo_id, revision: where the release is going to be, for the card.
        parent: the repository and commit that was unlearned, or its folder; default: the receipt names none, and the card
            the original, if it came from the Hub unchanged.
        report: an audit of this result.
        sign_key: path of an Ed25519 private key that signs the receipt.
        class_names: name the classes of a request for whole classes.
        receipt: what `make_receipt` takes beside these: `dataset`, `earlier`.
    """
    folder, trainer = Path(folder).absolute(), result.trainer
    unfinished = folder.with_name(f".{folder.name}.unfinished")

    def begin() -> None:
        _check_replaceable(folder)
        shutil.rmtree(unfinished, ignore_errors=True)

    def finish() -> None:
        origin, address, parent_card = parent, None, None
        if isinstance(parent, (str, os.PathLike)):
            parent_card = read_card(Path(parent, CARD))
        elif parent is not None:
            origin = address = pinned(parent, token)
        _clean(unfinished, address, _class_names(result) if class_names else None)
        if report is not None:
            _write_audit(report, unfinished, class_names)
        (unfinished / CARD).unlink(missing_ok=True)  # PEFT's, which has the path of the base model
        make_receipt(result, unfinished, parent=origin, token=token, **receipt)
        about = {"parent": address, "parent_card": parent_card, "token": token}
        write_card(unfinished, repo_id=repo_id, revision=revision, **about)
        seal(unfinished, sign_key)
        _replace(folder, unfinished)

    _where_it_is_written(trainer, begin)
    try:
        result.save(unfinished)
        _where_it_is_written(trainer, finish)
    finally:
        if trainer.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def coarse(figures: dict[str, Any] | None, samples: int) -> dict[str, Any] | None:
    """Figures with four digits, and without those that a guess of a forgotten record could be checked with, as its exact
    loss can be, where there are fewer than ten records."""
    if figures is None:
        return None
    shown = figures if samples >= FEWEST else {k: None if TELLING.fullmatch(k) else v for k, v in figures.items()}
    return _rounded(shown)


def publishable(content: dict[str, Any], class_names: bool = False) -> dict[str, Any]:
    """The content of an audit with four digits, without local paths, and without what tells the labels of few samples or
    the scores of few.

    Which classes the samples of a request for single samples are of is left out; classes with fewer than ten of them have
    no row. The classes of a request for whole classes, with their rows, are there only if asked for.
    """
    content = copy.deepcopy(content)
    request, rows = content["request"], content.get("classes") or []
    models = content["models"]  # an id may have @ and a commit behind it
    content["models"] = {
        name: name if given and is_local(given.partition("@")[0]) else given for name, given in models.items()
    }
    if request["kind"] != "class":
        request["forget_classes"] = []
        content["classes"] = [row for row in rows if row["forget"] >= FEWEST]
    elif not class_names:
        request["forget_classes"], content["classes"] = [], []
    samples = request["samples"]["forget"]
    if samples < FEWEST:
        for part in ("distributions", "connectivity"):  # of which the second has losses of the forget samples too
            content.pop(part, None)
    content["figures"] = {name: coarse(row, samples) for name, row in content["figures"].items()}
    content = _rounded(content)
    request = content["request"]
    if not class_names:
        request["class_names"] = None
        for row in content.get("classes") or []:
            row["name"] = None
        for part in ("verdict", "reasons"):
            content[part] = _each_text(content.get(part), lambda text: LISTS.sub(SOME, text))
    return content


def _where_it_is_written(trainer: "UnlearningTrainer", work: Callable[[], None]) -> None:
    """Do something on the processes that write, while the others wait; if it fails on one, it fails on all of them.

    Else those that do not write would wait for ever, or go on with a release that is not there.
    """
    problem = None
    if trainer.args.should_save:
        try:
            work()
        except Exception as error:  # which is raised below, when the others know of it
            problem = error
    sentences = gather_object([None if problem is None else str(problem)])
    if problem is not None:
        raise problem
    if failed := [sentence for sentence in sentences if sentence is not None]:
        raise UnlearningError(failed[0])


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


def _class_names(result: "UnlearningResult") -> list[str] | None:
    request = result.trainer.request
    if not request.is_class or not result.trainer.num_labels:
        return None
    from .. import models

    names = models.base_of(result.model).config.id2label
    return [str(names[label]) for label in request.forget_classes]


def _clean(folder: Path, parent: "Parent | None", class_names: list[str] | None) -> None:
    """Take out what names paths, or the labels of forget samples; pin the base of an adapter to the parent's commit."""
    for path in folder.rglob(ADAPTER_CONFIG):
        content = json.loads(path.read_text())
        base = content.get("base_model_name_or_path")
        if base and is_local(base):
            base = content["base_model_name_or_path"] = parent.repo_id if parent else None
        if parent and base == parent.repo_id:
            content["revision"] = parent.commit
        _write(path, content)
    config = json.loads((folder / CONFIG).read_text())
    _write(folder / CONFIG, _each_text(config, _without_path))
    metrics = json.loads((folder / METRICS).read_text())
    metrics.pop("report")  # of the method, which may count the samples of each class
    metrics["reasons"] = {name: LISTS.sub(SOME, why) for name, why in metrics.get("reasons", {}).items()}
    if class_names is None:
        metrics["notes"] = [LISTS.sub(SOME, note) for note in metrics["notes"]]
    request = metrics["run"]["request"]
    request["class_names"] = class_names
    for when in ("before", "after"):
        if when in metrics:
            metrics[when] = coarse(metrics[when], request["samples"]["forget"])
    _write(folder / METRICS, metrics)


def _without_path(text: str) -> str:
    return HIDDEN if (os.sep in text or text.startswith("~")) and is_local(text) else text


def _rounded(value: Any) -> Any:
    """The same value of JSON, with four significant digits of every number that is not whole."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The same value of JSON, with every text in it changed."""
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _write_audit(report: "AuditReport", folder: Path, class_names: bool) -> None:
    published = type(report)(publishable(report.content, class_names))
    published.to_json(folder / AUDIT)
    published.to_html(folder / AUDIT_PAGE)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=path.name != METRICS) + "\n")
