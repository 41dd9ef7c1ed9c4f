"""Releases as revisions of a Hub repository: a branch from a known parent, and one commit with everything.

Nothing here rewrites what is on the Hub.
"""

import datetime
import hashlib
import json
import logging
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from ..errors import UnlearningError
from .client import CONFLICTS, check_token, client, is_absent, reader, reading, retry, telling
from .contents import (
    Files,
    check_private,
    is_weights,
    named_repositories,
    released_files,
    with_base,
    without_local_bases,
)
from .names import ADAPTER_CONFIG, CARD, CONFIG, MAIN, PROCESSORS, RECEIPT, check_names, fits, is_commit, is_legal
from .repository import Blob, Parent, Repository, as_meant, blobs_of, check_tag, differences, restoring

__all__ = [
    *("Parent", "PurgePlan", "Pushed", "Revision"),
    *("default_branch", "list_revisions", "pinned", "purge", "purge_plan", "push", "push_command", "rollback", "tag"),
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pushed:
    """Where something now is."""

    repo_id: str
    revision: str
    commit: str
    url: str


@dataclass(frozen=True)
class Revision:
    """A branch or a tag, and its newest commit."""

    name: str
    kind: str
    commit: str
    date: datetime.datetime
    title: str


# ---------------------------------------------------------------------------------------------------------------------
# Push


class Pushable(Protocol):
    """What makes a release of itself, as an `UnlearningResult` does."""

    def push_to_hub(
        self,
        repo_id: str,
        revision: str | None = None,
        *,
        parent: Parent | None = None,
        token: str | None = None,
        private: bool | None = None,
        message: str | None = None,
        tag: str | None = None,
        to_main: bool = False,
        name_private_parent: bool = False,
    ) -> Pushed | None: ...


def push(
    folder: str | Path | Pushable,
    repo_id: str,
    *,
    revision: str | None = None,
    parent: Parent | None = None,
    token: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    tag: str | None = None,
    to_main: bool = False,
    name_private_parent: bool = False,
) -> Pushed | None:
    """Push a folder as one commit on a branch of its own, which is created from its parent commit.

    Large files go first, and are not sent again when an interrupted push is repeated. What the branch has beside the
    release, such as weights of its parent, is removed from it; a licence stays, and beside no receipt a processor if there is no other.
    What the commit then holds is compared with the release; if it is not the same, the branch is put back.

    Args:
        folder: what `hub.prepare` or `UnlearningResult.save` wrote; or a result, which is prepared first (and gives None on a process
            that does not write). A card for another address is pushed with this one in it; the folder stays as it is.
        repo_id: `owner/name`.
        revision: the branch; default: `unlearned/<method>-<date>-<id>`.
        parent: the commit that the branch begins at; default: the newest one of `main`. If the branch is already there,
            it has to be at that commit.
        token: default: the one of the login.
        private: whether a repository that does not exist is created as a private or a public one; default: not at all.
        message: the title of the commit.
        tag: a tag for the commit.
        to_main: push to `main` instead of a branch.
        name_private_parent: let a public release name a parent that is private.

    Example:
        >>> push("unlearned/release", "me/vit-cifar10", revision="unlearned/request-42")  # doctest: +SKIP
    """
    if not isinstance(folder, (str, os.PathLike)):
        about: dict[str, Any] = {"parent": parent, "token": token, "private": private, "message": message, "tag": tag}
        about |= {"to_main": to_main, "name_private_parent": name_private_parent}
        return folder.push_to_hub(repo_id, revision, **about)
    folder = Path(folder)
    check_names(repo_id, revision, tag, to_main)
    check_token(token)
    files, local = without_local_bases(released_files(folder))
    revision = MAIN if to_main else revision or _own_branch(folder, files)
    named = named_repositories(files) | ({parent.repo_id} if parent else set())
    with telling(
        f"{folder} was not pushed to {repo_id}",
        lambda: push_command(folder, repo_id, revision, parent, private, tag, message, name_private_parent),
    ):
        repository = Repository(client(token), repo_id)
        check_private(files, folder, token)
        if not name_private_parent:
            _check_public(repository, named, private)
        refs = repository.refs(private)
        if revision in refs["tags"]:
            raise UnlearningError(f"{revision!r} is a tag of {repo_id}; choose another revision")
        is_here = parent is not None and parent.repo_id == repo_id
        start = repository.commit_of(parent.commit) if parent and is_here else refs["branches"][MAIN]
        before = repository.tree(start)
        if local:
            base = _base(folder, parent, Parent(repo_id, start), before)
            files |= {name: with_base(cast(bytes, files[name]), base) for name in local}
        parent = parent or Parent(repo_id, start)  # which the command says: main may go on
        files |= _addressed_card(folder, files, repo_id, revision, token)
        commit = _commit_of_release(repository, revision, files, start, before, refs, tag, message)
        if tag:
            repository.tag(tag, commit)
    return Pushed(repo_id, revision, commit, repository.url(revision))


def _commit_of_release(
    repository: Repository,
    revision: str,
    files: Files,
    start: str,
    before: Mapping[str, Blob],
    refs: dict[str, dict[str, str]],
    tag: str | None,
    message: str | None,
) -> str:
    """The commit with these files, on a branch that begins at `start`; the one that is there, if the push is a repeated one."""
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    content = {operation.path_in_repo: blobs_of(operation) for operation in additions}
    head, is_new = refs["branches"].get(revision), False
    if head not in (None, start):
        if not _holds(repository.tree(head), content):
            raise UnlearningError(
                f"{revision!r} of {repository.name} has gone on to commit {head[:12]}, which holds something else, and this push "
                f"begins at {start[:12]}; nothing there was changed, choose another revision"
            )
        check_tag(tag, refs, head)
        return head  # the last answer of a push was lost
    check_tag(tag, refs, None)
    if head is None:
        is_new = repository.create_branch(revision, start)
    if revision != MAIN and not any(map(is_weights, before)):
        logger.warning(
            f"{repository.name} holds no model where {revision!r} begins: who leaves out the revision may get none; to_main=True "
            "(--to-main) pushes to main."
        )
    others = before.keys() - content.keys()
    kept = _kept(others, content)
    removals = [CommitOperationDelete(name, is_folder=False) for name in sorted(others - kept)]
    meant = content | as_meant({name: before[name] for name in kept})
    upload = {"revision": revision, "free_memory": False}
    retry(repository.api.preupload_lfs_files, repository.name, additions, **upload, on=CONFLICTS)
    title = message or f"Unlearned revision {revision}"
    return repository.commit(revision, [*additions, *removals], title, start, meant, is_new)


def push_command(
    folder: str | Path,
    repo_id: str,
    revision: str,
    parent: Parent | None = None,
    private: bool | None = None,
    tag: str | None = None,
    message: str | None = None,
    name_private_parent: bool = False,
) -> str:
    """The command that does the same."""
    words = ["hf-unlearn", "push", str(folder), repo_id]
    words += ["--to-main"] if revision == MAIN else ["--revision", revision]
    if parent:
        words += ["--parent", f"{parent.repo_id}@{parent.commit}"]
    if private is not None:
        words += ["--create", "private" if private else "public"]
    words += ["--tag", tag] if tag else []
    words += ["--message", message] if message else []
    words += ["--name-private-parent"] if name_private_parent else []
    return shlex.join(words)


def default_branch(method: str, run: str) -> str:
    """`unlearned/<method>-<date>-<id>`."""
    return f"unlearned/{method}-{datetime.date.today():%Y-%m-%d}-{run[:8]}"


def _own_branch(folder: Path, files: Files) -> str:
    """The same weights have the same branch, on the same day."""
    path = folder / CONFIG
    method = json.loads(path.read_text())["method"] if path.exists() else "model"
    digest = hashlib.sha256()
    for name in sorted(filter(is_weights, files)):
        with open(files[name], "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return default_branch(method, digest.hexdigest())


def _kept(names: Iterable[str], content: Mapping[str, object]) -> set[str]:
    """What a release leaves in its branch of what its parent had.

    Beside a receipt no processor: neither this nor the card would know of it, and it may belong to another model.
    """
    patterns = [".gitattributes"]
    if RECEIPT not in content and not any(fits(name, PROCESSORS) for name in content):
        patterns += PROCESSORS
    return {name for name in names if fits(name, patterns) or is_legal(name)}


def _holds(tree: Mapping[str, Blob], content: dict[str, list[Blob]]) -> bool:
    """Whether a commit is that of a push: a parent may have gone on since, and left other licences."""
    rest = tree.keys() - content.keys()
    meant = content | as_meant({name: tree[name] for name in _kept(rest, content)})
    return not differences(tree, meant)


def _base(folder: Path, parent: Parent | None, here: Parent, before: Mapping[str, Blob]) -> Parent:
    """The model that an adapter belongs to, whose configuration names a local folder: the parent, as it is given or as the
    receipt has it, or else the model in the repository itself."""
    if parent:
        return parent
    receipt = json.loads((folder / RECEIPT).read_text()) if (folder / RECEIPT).is_file() else {}
    if claimed := receipt.get("parent"):
        return Parent(claimed["repo"], claimed["commit"])
    if any(map(is_weights, before)):
        return here
    raise UnlearningError(
        f"the {ADAPTER_CONFIG} of {str(folder)!r} names a local folder as its base, and {here.repo_id} holds no model; say "
        "where the base is, with parent=Parent(repo_id, commit) (--parent OWNER/NAME@COMMIT)"
    )


def _check_public(repository: Repository, names: set[str], private: bool | None) -> None:
    """Refuse to name a private repository in a public one, which may have to be created first."""
    names = names - {repository.name}
    if not names or _is_private(repository, private is not False):
        return
    for name in sorted(names):
        if _is_private(
            Repository(repository.api, name), True
        ):  # if it is gone, who reads the release could not see it
            raise UnlearningError(
                f"{repository.name} is public, and the release names its parent {name}, which is private or not there; push to "
                "a private repository, or allow it with name_private_parent=True (--name-private-parent)"
            )


def _is_private(repository: Repository, if_absent: bool) -> bool:
    try:
        return repository.is_private()
    except (HfHubHTTPError, httpx.HTTPError, ValueError) as error:
        if not is_absent(error):
            raise
        return if_absent


def _addressed_card(folder: Path, files: Files, repo_id: str, revision: str, token: str | None) -> Files:
    """The card for where it is pushed to, if it was written for another place, and the receipt that commits to it."""
    if CARD not in files or RECEIPT not in files:
        return {}
    from .readdress import card_and_receipt  # which needs what makes cards, torch included

    return card_and_receipt(folder, repo_id, revision, token)


# ---------------------------------------------------------------------------------------------------------------------
# What is there


def pinned(parent: Parent, token: str | bool | None = None) -> Parent:
    """The parent with the whole id of its commit, where a branch, a tag or the beginning of an id was given."""
    if is_commit(parent.commit):
        return parent
    with reading(f"The parent {parent.repo_id}@{parent.commit}"):
        return Parent(parent.repo_id, Repository(reader(token), parent.repo_id).commit_of(parent.commit))


def list_revisions(repo_id: str, *, token: str | None = None) -> list[Revision]:
    """The branches and tags of a repository, `main` first and then the newest ones."""
    check_names(repo_id)
    with telling(f"The revisions of {repo_id} were not read"):
        repository, found = Repository(reader(token), repo_id), []
        refs = repository.refs()
        for kind, names in (("branch", refs["branches"]), ("tag", refs["tags"])):
            for name, commit in names.items():
                last = repository.history(commit)[0]
                found.append(Revision(name, kind, commit, last.created_at, last.title))
    return sorted(found, key=lambda r: (r.name != MAIN, -r.date.timestamp(), r.kind, r.name))


def tag(repo_id: str, name: str, *, revision: str, message: str | None = None, token: str | None = None) -> str:
    """Give a branch's newest commit, or a commit, a tag; the commit's id."""
    check_names(repo_id, tag=name)
    with telling(f"{repo_id} was not tagged"):
        repository = Repository(client(token), repo_id)
        commit = repository.commit_of(revision)
        check_tag(name, repository.refs(), commit)
        repository.tag(name, commit, message)
    return commit


def rollback(
    repo_id: str, revision: str, *, to: str | None = None, message: str | None = None, token: str | None = None
) -> Pushed:
    """Give a branch the content of an earlier commit, by a new commit: nothing is lost.

    Args:
        repo_id: `owner/name`.
        revision: the branch.
        to: a commit or a tag; default: the commit before the newest one.
    """
    check_names(repo_id)
    with telling(f"{revision!r} of {repo_id} was not rolled back"):
        repository = Repository(client(token), repo_id)
        head = repository.head(revision)
        if to is None:
            commits = repository.history(head)
            if len(commits) == 1:
                raise UnlearningError(f"{revision!r} has a single commit; say what to go back to, with to=")
            to = commits[1].commit_id
        target = repository.commit_of(to)
        now, then = repository.tree(head), repository.tree(target)
        if now == then:
            return Pushed(repo_id, revision, head, repository.url(revision))
        title = message or f"Back to {target[:12]}"
        commit = repository.commit(revision, restoring(now, then, target), title, head, as_meant(then))
    return Pushed(repo_id, revision, commit, repository.url(revision))
