"""From a result to a revision on the Hub: prepare a complete local folder, then push it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import models
from ..errors import UnlearningError
from .release import prepare
from .revisions import MAIN, Parent, Pushed, check_names, default_branch, push

if TYPE_CHECKING:
    from ..api import UnlearningResult
    from ..audits.report import AuditReport
    from ..trainer import UnlearningTrainer

logger = logging.getLogger(__name__)

RELEASE = "release"  # inside the output folder


def publish(
    result: "UnlearningResult",
    repo_id: str,
    revision: str | None = None,
    *,
    report: "AuditReport | None" = None,
    parent: Parent | None = None,
    folder: str | Path | None = None,
    token: str | None = None,
    to_main: bool = False,
    private: bool | None = None,
    message: str | None = None,
    tag: str | None = None,
    **release: Any,
) -> Pushed | None:
    """What `UnlearningResult.push_to_hub` does."""
    trainer = result.trainer
    check_names(repo_id, revision, tag, to_main)
    branch = MAIN if to_main else revision or default_branch(trainer.method.info.name, trainer.run_id() or "run")
    about = {"repo_id": repo_id, "revision": branch, "report": report, "token": token, **release}
    if parent is None and trainer.origin:
        parent = Parent(trainer.origin["repo"], trainer.origin["revision"])
    folder, parent = _prepare(result, Path(folder or Path(trainer.args.output_dir, RELEASE)), parent, **about)
    if not trainer.args.should_save:
        return None
    where = {"parent": parent, "token": token, "private": private, "message": message, "tag": tag, "to_main": to_main}
    return push(folder, repo_id, revision=None if to_main else branch, **where)


def _prepare(
    result: "UnlearningResult", folder: Path, parent: Parent | None, **about: Any
) -> tuple[Path, Parent | None]:
    """Write the release; where no parent is known, with the one that the model itself names, if that will do.

    The model may have been changed since it was loaded, which the receipt finds out.
    """
    if parent is None and (claimed := _claimed_parent(result.trainer)):
        try:
            return prepare(result, folder, parent=claimed, **about), claimed
        except UnlearningError as error:
            logger.warning(f"The release names no parent: {error}")
    return prepare(result, folder, parent=parent, **about), parent


def _claimed_parent(trainer: "UnlearningTrainer") -> Parent | None:
    name = getattr(models.base_of(trainer.model), "name_or_path", "")  # what `from_pretrained` was given
    commit = models.commit_of(name) if name else None
    return Parent(name, commit) if commit else None
