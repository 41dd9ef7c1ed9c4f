"""Whether a release comes from where its receipt says: the parent and its weights, the commits and receipts before, and
which release is the newest one."""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError, RevisionNotFoundError

from .. import models
from ..errors import UnlearningError
from . import signing
from .canonical import body, canonical, read_receipt
from .client import HUB_ERRORS, reader, retry
from .integrity import digest_in
from .names import RECEIPT
from .repository import Repository
from .sequence import is_named, predecessors
from .subject import Failed, Subject, Unchecked
from .weights import TooLargeError, fetch_weights, parent_limit

MOST = 20  # branches, tags and earlier commits of which the receipts are looked at


class Origin:
    """The parent's folder, fetched when a check first asks for it."""

    def __init__(self, claimed: dict[str, str] | None, given: str | Path | None, release: Subject, limit: int | None):
        self.claimed, self.given, self.release, self.token, self.limit = claimed, given, release, release.token, limit

    @cached_property
    def folder(self) -> Path:
        return self._from_claim() if self.given is None else self._from_given(str(self.given))

    def _from_claim(self) -> Path:
        if self.claimed is None:
            raise Unchecked("the receipt names no parent on the Hub; pass its folder as parent")
        repo, commit = self.claimed["repo"], self.claimed["commit"]
        limit = parent_limit(self.release.folder) if self.limit is None else self.limit
        try:
            return fetch_weights(repo, commit, self.token, limit)
        except HUB_ERRORS as error:
            raise Unchecked(models.explain(error, f"{repo}@{commit}", commit).rstrip(".")) from None
        except TooLargeError as error:
            raise Unchecked(str(error).rstrip(".")) from None
        except UnlearningError as error:  # it holds no weights
            raise Failed(str(error).rstrip(".")) from None

    def _from_given(self, given: str) -> Path:
        if Path(given).is_dir():
            return Path(given)
        repo, _, revision = given.partition("@")
        try:
            commit = Repository(reader(self.token), repo).commit_of(revision or None)
            folder = fetch_weights(repo, commit, self.token)
        except HUB_ERRORS as error:
            raise UnlearningError(models.explain(error, repo, revision or None)) from error
        if self.claimed and (repo, commit) != (self.claimed["repo"], self.claimed["commit"]):
            raise Failed(
                f"the given parent is {repo} at {commit[:12]}, and the receipt names {self.claimed['repo']} at "
                f"{self.claimed['commit'][:12]}"
            )
        return folder


def check_parent(receipt: dict[str, Any], origin: Origin) -> str:
    folder, expected = origin.folder, receipt["weights"]["before"]
    if expected is None:
        raise Unchecked("the receipt has no digest of the weights before")
    if (found := digest_in(folder)) != expected:
        raise Failed(
            f"the parent's weights have the digest {found[:12]}…, and in the receipt those before are {expected[:12]}…"
        )
    return "the parent's weights have the digest in the receipt"


# ---------------------------------------------------------------------------------------------------------------------
# Commits


def check_history(receipt: dict[str, Any], release: Subject) -> str:
    """On the Hub, the parent must be an ancestor of the release; and which releases there are newer ones of is noted."""
    parent = receipt["parent"]
    if release.repo is None or release.commit is None:
        raise Unchecked("a folder has no commits")
    try:
        repository = Repository(reader(release.token), release.repo)
        commits = [c.commit_id for c in repository.history(release.commit)]
        _note_later(receipt, release, repository, commits)
    except HUB_ERRORS as error:
        raise Unchecked(models.explain(error, release.repo, release.commit).rstrip(".")) from None
    if parent is None or parent["repo"] != release.repo:
        raise Unchecked("the parent is not in this repository" if parent else "the receipt names no parent")
    if len(commits) == 1:
        raise Unchecked("the history of this branch was cut off, as a purge does")
    if parent["commit"] not in commits[1:]:
        raise Failed(f"the parent {parent['commit'][:12]} is none of the commits before {release.commit[:12]}")
    return "the parent is one of the commits before"


def _note_later(receipt: dict[str, Any], release: Subject, repository: Repository, commits: list[str]) -> None:
    """A branch that was set back to an older release looks like one that never went on, but for what else is known.

    That is what the branch had before, since it left its parent, if it was made later; and what any other branch or tag has,
    if it came from this release.
    """
    parent = (receipt["parent"] or {}).get("commit")
    since = commits[1 : commits.index(parent)] if parent in commits else commits[1:]
    refs = repository.refs()
    names = [*refs["tags"].items(), *refs["branches"].items()]
    heads = {commit: name for name, commit in names if commit not in commits}
    for commit in since[:MOST]:
        before = _receipt_at(release, commit)
        if before and before["digest"] != receipt["digest"] and _created(before) > _created(receipt):
            release.later.append(f"the commit {commit[:12]} of the same branch, made {_created(before)}")
    for commit, name in list(heads.items())[:MOST]:
        after = _receipt_at(release, commit)
        if after is None or after["digest"] == receipt["digest"]:
            continue
        if release.commit in [c.commit_id for c in repository.history(commit)]:
            release.later.append(f"{name} at {commit[:12]}, which was made from this one, {_created(after)}")
    left = len(since[MOST:]) + len(list(heads)[MOST:])
    if left:
        release.uncovered.append(f"{left} other commits, branches and tags, which may hold newer releases")


def _receipt_at(release: Subject, commit: str) -> dict[str, Any] | None:
    try:
        path = retry(hf_hub_download, release.repo, RECEIPT, revision=commit, token=release.token)
        return read_receipt(Path(path).parent)
    except (EntryNotFoundError, UnlearningError) as error:
        if isinstance(error, HUB_ERRORS) and not isinstance(error, RemoteEntryNotFoundError):
            raise  # it may be there, and cannot be had
        return None


def _created(receipt: dict[str, Any]) -> str:
    return str(receipt.get("created", ""))


# ---------------------------------------------------------------------------------------------------------------------
# The chain of receipts


def check_chain(receipt: dict[str, Any], origin: Origin, release: Subject, known: Collection[str]) -> str:
    """Each receipt names the one before by its digest, and begins with the weights that one ended with; back to the first one, or to
    one of `known`, by digest, whose chain holds."""
    link = receipt["previous"]
    if link is None or link["receipt"] is None:
        if not (origin.folder / RECEIPT).is_file():
            return "it is the first request"
        if link is None:
            raise Failed("the parent has a receipt, and this one does not name it")
        raise Unchecked("the receipt was written without a connection and does not name that of the parent")
    held: list[str] = []
    if link["repo"] is None or origin.given is not None:
        before = _earlier(origin.folder)
        held.append(_check_link(receipt, link, before))
        receipt = before
    try:
        for link, before in [] if receipt["digest"] in known else predecessors(receipt, release.token):
            held.append(_check_link(receipt, link, before))
            receipt = before
            if receipt["digest"] in known:
                break
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        link = receipt["previous"]
        raise Failed(f"{link['repo']} has no receipt at {link['commit'][:12]}, which its successor names") from None
    except HUB_ERRORS as error:
        link = receipt["previous"]
        reason = models.explain(error, f"{link['repo']}@{link['commit']}", link["commit"]).rstrip(".")
        raise Unchecked(f"{len(held)} earlier receipts hold, and of the one before, {reason}") from None
    except UnlearningError as error:
        raise Failed(str(error).rstrip(".")) from error
    words = "".join(f"; {word}" for word in held if word)
    if receipt["digest"] in known:
        return f"the receipt before holds, and so do all before it{words}"
    if link := receipt["previous"]:
        more = (
            "does not say where the one before is"
            if link["repo"] is None
            else "is not the first one; more are not read"
        )
        raise Unchecked(f"{len(held)} earlier receipts hold, and the last of them {more}")
    return f"{len(held)} earlier receipts hold{words}"


def _earlier(folder: Path) -> dict[str, Any]:
    if not (folder / RECEIPT).is_file():
        raise Failed("the receipt names a predecessor, and the parent has no receipt")
    try:
        return read_receipt(folder)
    except UnlearningError as error:
        raise Failed(str(error).rstrip(".")) from error


def _check_link(receipt: dict[str, Any], link: dict[str, Any], before: dict[str, Any]) -> str:
    """What is to be said of a predecessor that holds: who has signed it."""
    where = f"the receipt at {link['commit'][:12]}" if link["commit"] else "the parent's receipt"
    if not is_named(before, link):
        raise Failed(f"{where} is not the one that its successor names")
    if before["weights"]["after"] != receipt["weights"]["before"]:
        raise Failed(f"{where} ends with other weights than its successor begins with")
    signature = before.get("signature")
    if "signer" in link and (signature is None or link["signer"] != signature["fingerprint"]):
        raise Failed(f"{where} was signed by {link['signer']}, and is not any more")
    if signature is None:
        return ""
    if not signing.is_installed():
        return f"the signature of {where} is not checked without the package cryptography"
    if not signing.is_signed(canonical(body(before)), signature):
        raise Failed(f"{where} has a signature that does not belong to its content and its key")
    return f"{where} is signed by {signature['fingerprint']}"
