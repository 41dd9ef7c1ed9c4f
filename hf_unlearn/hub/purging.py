"""Deleting for good what only the history of a branch has: a plan that is shown, and then that and nothing else."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub.hf_api import LFSFileInfo
from huggingface_hub.utils import build_hf_headers, paginate

from ..errors import UnlearningError
from .client import CONFLICTS, client, retry, telling
from .names import check_names
from .repository import Repository, as_meant, differences

SHA256 = 64  # hexadecimal digits; git's own hashes have 40


@dataclass(frozen=True)
class PurgePlan:
    """What `purge` would do.

    Attributes:
        head: the newest commit of the branch, whose content stays.
        refs: every branch and tag with its commit, when the plan was made.
        commits: the earlier commits of the branch that no other branch or tag has, the newest first, which will be gone.
        files: the large files that will be deleted for good, by their SHA-256.
        held: the earlier commits that stay, with the branches and tags that have them.
        kept: earlier large files that stay, with the branches and tags that hold them now.
    """

    repo_id: str
    revision: str
    head: str
    refs: dict[str, dict[str, str]]
    commits: list[str]
    files: dict[str, LFSFileInfo]
    held: dict[str, list[str]]
    kept: dict[str, list[str]]

    @property
    def confirmation(self) -> str:
        """What confirms this plan, and no other one: of another head, other commits or other files it is another text."""
        content = repr((self.head, self.commits, sorted(self.files)))
        return f"{self.repo_id}@{self.revision}:{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def describe(self) -> str:
        """What will be gone, exactly, and what will not."""
        if not self.commits and not self.files:
            return f"Nothing is in the history of {self.revision!r} of {self.repo_id} alone. There is nothing else to remove."
        lines = [f"Purging {self.revision!r} of {self.repo_id} leaves one commit, with the content that it has now."]
        lines += [f"{len(self.commits)} earlier commits of the branch will be gone:"]
        lines += [f"  {commit}" for commit in self.commits]
        if self.files:
            lines.append(
                "Large files that will be deleted for good, also where the history of another branch has them:"
            )
            lines += [f"  {oid} {file.size} bytes {file.filename}".rstrip() for oid, file in self.files.items()]
        if self.held:
            lines.append("What stays, because other branches or tags have it:")
        lines += [f"  commit {commit}, of {', '.join(names)}" for commit, names in self.held.items()]
        lines += [f"  {oid}, in use at {', '.join(names)}" for oid, names in self.kept.items()]
        lines.append(
            "Copies outside of this repository (downloads, forks, caches) are not reached. It cannot be undone."
        )
        return "\n".join(lines)


def purge_plan(repo_id: str, revision: str, *, token: str | None = None) -> PurgePlan:
    """What purging a branch would remove; changes nothing."""
    check_names(repo_id)
    with telling(f"{revision!r} of {repo_id} was not read"):
        return _plan(Repository(client(token), repo_id), revision)


def purge(repo_id: str, revision: str, *, confirm: str | None = None, token: str | None = None) -> PurgePlan:
    """Reduce a branch to its newest content, and delete for good the large files that only its history had.

    Whatever has changed since the plan was shown makes it another plan, which needs another confirmation. Branches and
    tags are read once more before each of the two steps.

    Args:
        repo_id: `owner/name`.
        revision: the branch.
        confirm: the `confirmation` of the plan, written out; without it nothing is done and the error says what would be.
    """
    plan = purge_plan(repo_id, revision, token=token)
    if confirm != plan.confirmation:
        is_other = confirm is not None and confirm.startswith(f"{repo_id}@{revision}:")
        changed = " (what was confirmed is another plan: something has changed since)" if is_other else ""
        raise UnlearningError(
            f"{plan.describe()}\nNothing was done{changed}; to do it, confirm with {plan.confirmation!r}."
        )
    with telling(f"{revision!r} of {repo_id} was not purged completely, and a new plan goes on with it"):
        repository = Repository(client(token), repo_id)
        content = repository.tree(plan.head)
        if plan.files:  # first: a branch without its history no longer tells which files it had
            _check_unchanged(repository, plan)
            # The history is not rewritten: the commits of other branches keep their ids, which receipts name.
            retry(repository.api.permanently_delete_lfs_files, repo_id, plan.files.values(), rewrite_history=False)
        if plan.commits:
            _check_unchanged(repository, plan)
            retry(repository.api.super_squash_history, repo_id, branch=revision, commit_message="History purged")
        if wrong := differences(repository.tree(repository.head(revision)), as_meant(content)):
            raise UnlearningError(
                f"the branch has another content than before ({', '.join(wrong[:3])}), which somebody else may have pushed; look "
                "at it before you use it"
            )
    return plan


def _check_unchanged(repository: Repository, plan: PurgePlan) -> None:
    """Refuse to go on where a branch or a tag is at another commit than when the plan was made."""
    now = repository.refs()
    for kind, before in plan.refs.items():
        for name in before.keys() | now[kind].keys():
            if before.get(name) != now[kind].get(name):
                raise UnlearningError(
                    f"{name!r} is at another commit than a moment ago, so the plan no longer holds; make it again"
                )


def _plan(repository: Repository, revision: str) -> PurgePlan:
    refs = repository.refs()
    if revision not in refs["branches"]:
        raise UnlearningError(
            f"{repository.name} has no branch {revision!r}; expected one of {', '.join(refs['branches'])}"
        )
    head = refs["branches"][revision]
    heads = [(name, commit) for names in (refs["tags"], refs["branches"]) for name, commit in names.items()]
    earlier = [commit.commit_id for commit in repository.history(head)][1:]
    had = {blob.oid for commit in earlier for blob in repository.tree(commit).values()}
    users: dict[str, list[str]] = {}
    held: dict[str, list[str]] = {}
    for name, commit in heads:
        for oid in {blob.oid for blob in repository.tree(commit).values()}:
            users.setdefault(oid, []).append(name)
        if (name, commit) != (revision, head):
            for known in repository.history(commit):
                held.setdefault(known.commit_id, []).append(name)
    large = _large_files(repository)
    _check_listed({oid for oid in had if len(oid) == SHA256}, {oid for oid in users if len(oid) == SHA256}, large)
    return PurgePlan(
        repository.name,
        revision,
        head,
        refs,
        commits=[commit for commit in earlier if commit not in held],
        files={oid: large[oid] for oid in sorted(had & large.keys()) if oid not in users},
        held={commit: held[commit] for commit in earlier if commit in held},
        kept={oid: users[oid] for oid in sorted(had & users.keys() & large.keys())},
    )


def _large_files(repository: Repository) -> dict[str, LFSFileInfo]:
    """Every large file by each of its two ids, one of which is its SHA-256.

    Not `list_lfs_files`, which fails at a file without a name, as one is that no commit has any more.
    """
    api = repository.api
    address = f"{api.endpoint}/api/models/{repository.name}/lfs-files"
    headers = build_hf_headers(token=api.token)
    items = retry(lambda: list(paginate(address, {}, headers)), on=CONFLICTS)
    files = [LFSFileInfo(**{"filename": "", **item}) for item in items]
    return {oid: file for file in files for oid in (file.oid, file.file_oid)}


def _check_listed(earlier: set[str], used: set[str], large: Mapping[str, LFSFileInfo]) -> None:
    """A file of an earlier commit may be gone from the list, if it was deleted before; but those in use must be there, else
    the list is read wrongly."""
    missing = sorted((earlier | used) - large.keys())
    if missing and not (used and used <= large.keys()):
        raise UnlearningError(
            f"the Hub's list of large files has no {missing[0]}, which a commit has, so what would be deleted cannot be "
            "told; nothing was done, delete such files in the settings of the repository"
        )
