"""From a result to a revision on the Hub: prepare a complete local folder, then push it."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from torch import nn

from .. import models
from ..audits.report import AuditReport
from ..errors import UnlearningError
from ..models.adapters import is_adapted, own_adapters
from ..training.record import Result
from .client import HUB_ERRORS, UnreadableError, check_token, is_absent, reader, retry
from .names import MAIN, check_names
from .release import prepare, where_it_is_written
from .repository import Parent
from .revisions import Pushed, default_branch, pinned, push

logger = logging.getLogger(__name__)

RELEASE = "release"  # inside the output folder


class ReleaseOptions(TypedDict, total=False):
    """What a release may be given of `prepare` and `make_receipt`."""

    class_names: bool
    fewest: int
    sign_key: str | Path
    dataset: Mapping[str, Any]
    earlier: Sequence[Mapping[str, Any]]


OPTIONS = tuple(ReleaseOptions.__annotations__)


def publish(
    result: Result,
    repo_id: str,
    revision: str | None = None,
    *,
    report: AuditReport | None = None,
    parent: Parent | None = None,
    folder: str | Path | None = None,
    token: str | None = None,
    to_main: bool = False,
    private: bool | None = None,
    message: str | None = None,
    tag: str | None = None,
    name_private_parent: bool = False,
    **release: Unpack[ReleaseOptions],
) -> Pushed | None:
    """What `UnlearningResult.push_to_hub` does.

    A release names its parent, with the digests of its weights and its receipt. Where these cannot be read, no release is
    made without them: the model is saved, and the error says where.
    """
    run = result.run
    check_names(repo_id, revision, tag, to_main)
    check_token(token)
    if unknown := sorted(release.keys() - set(OPTIONS)):
        raise UnlearningError(
            f"push_to_hub was given {', '.join(unknown)}; expected, of a release, only {', '.join(OPTIONS)}. The card is made from "
            "the run and its parent's card: edit README.md in a folder that hub.prepare wrote, and push that."
        )
    branch = MAIN if to_main else revision or default_branch(run.method.name, (run.kept() or {"run": "run"})["run"])
    about = {"repo_id": repo_id, "revision": branch, "report": report, "token": token, **release}
    if parent is None and run.origin:
        parent = Parent(run.origin["repo"], run.origin["revision"])
    folder = Path(folder or run.folder / RELEASE)
    try:
        if parent:
            named, found = parent, [parent]
            where_it_is_written(run, lambda: found.insert(0, pinned(named, token)))
            parent = found[0]
        folder, parent = _prepare(result, folder, parent, **about)
    except UnreadableError as error:
        saved = result.save(folder.with_name(f"{folder.name}-unfinished"))
        raise UnlearningError(
            f"{str(error).rstrip('.')}; nothing was pushed, the model is saved in {saved}, and the same call makes the release and "
            "pushes it, once that can be read."
        ) from error.__cause__
    if not run.writes:
        return None
    where: dict[str, Any] = {"parent": parent, "token": token, "private": private, "message": message, "tag": tag}
    where |= {"to_main": to_main, "name_private_parent": name_private_parent}
    return push(folder, repo_id, revision=None if to_main else branch, **where)


def _prepare(result: Result, folder: Path, parent: Parent | None, **about: Any) -> tuple[Path, Parent | None]:
    """Write the release; where no parent is given, with the one that the model names by itself, if its weights are there.

    The model may have been changed since it was loaded, which the receipt finds out.
    """
    claimed = [] if parent else _claimed_parents(result.run.model, about["token"])
    for claim in claimed:
        try:
            return prepare(result, folder, parent=claim, **about), claim
        except UnreadableError:  # it may be the one all the same
            raise
        except UnlearningError as error:
            why = error
    if claimed and is_adapted(result.model) and not own_adapters(result.model):
        raise UnlearningError(
            f"The adapter lies on a model that is not on the Hub under the name it has ({str(why).rstrip('.')}); pass parent=, or "
            "call result.merge() and push that."
        )
    if claimed:
        logger.warning(f"The release names no parent: {why}")
    return prepare(result, folder, parent=parent, **about), parent


def _claimed_parents(model: nn.Module, token: str | None) -> list[Parent]:
    """The commits that the model may have been loaded from, the likeliest first.

    What `load_model` has noted; else, since `from_pretrained` notes no revision, every branch that is in the cache; `main`.
    """
    base = models.base_of(model)
    name = getattr(base, "name_or_path", "")  # what `from_pretrained` was given
    if not name or os.path.isdir(name):
        return []
    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots")
    try:
        heads = {ref.name: ref.target_commit for ref in retry(reader(token).list_repo_refs, name).branches}
        cached = {branch: commit for branch, commit in heads.items() if (cache / commit).is_dir()}
    except HUB_ERRORS as error:
        heads, cached = {MAIN: None if is_absent(error) else models.commit_of(name)}, {}
    noted = getattr(base.config, "_commit_hash", None)
    commits = [noted, cached.pop(MAIN, None), *cached.values(), heads.get(MAIN)]
    return [Parent(name, commit) for commit in dict.fromkeys(commits) if commit]
