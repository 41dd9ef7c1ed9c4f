"""A repository on the Hub: its branches, tags and files, and commits that hold what they were meant to.

A commit is made on a known head, and only there. What then is at it is compared with what was to be there: a client
leaves out what a `.gitignore` names, and says nothing.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import GitCommitInfo, RepoFile
from huggingface_hub.utils import httpx

from ..errors import UnlearningError
from .client import CONFLICTS, TRANSIENT, retry, status

IGNORE = ".gitignore"

Operations = Sequence[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete]


@dataclass(frozen=True)
class Parent:
    """The commit that an unlearned revision comes from."""

    repo_id: str
    commit: str


@dataclass(frozen=True)
class Blob:
    """A file's content: its size, and its SHA-256 where it is a large file, git's own hash otherwise."""

    size: int
    oid: str


Tree = Mapping[str, Blob]
Meant = Mapping[str, Sequence[Blob]]  # by path what may be there: which of the two ids the Hub has is its own choice


def blobs_of(operation: CommitOperationAdd) -> list[Blob]:
    """What the Hub may have of a file: a large one by its SHA-256, another one by git's own hash."""
    info = operation.upload_info
    large = Blob(info.size, info.sha256.hex())
    if operation.path_in_repo.endswith(".safetensors"):
        return [large]  # always a large file, and git's would read it once more
    with operation.as_file() as file:
        content = file.read()
    return [large, Blob(info.size, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())]


def as_meant(tree: Tree) -> dict[str, Sequence[Blob]]:
    return {name: [blob] for name, blob in tree.items()}


def differences(tree: Tree, meant: Meant) -> list[str]:
    """The paths that are missing, are there without having to be, or hold something else."""
    return sorted(name for name in tree.keys() | meant.keys() if tree.get(name) not in meant.get(name, ()))


@dataclass(frozen=True)
class Repository:
    api: HfApi
    name: str
    kind: str = "model"

    # -----------------------------------------------------------------------------------------------------------------
    # What is there

    def refs(self, private: bool | None = None) -> dict[str, dict[str, str]]:
        """The commits at the heads of branches and tags, of a repository that is created if it may be."""
        ask = partial(retry, self.api.list_repo_refs, self.name, repo_type=self.kind)
        try:
            refs = ask()
        except RepositoryNotFoundError as error:
            if private is None or status(error) != 404:
                raise
            retry(self.api.create_repo, self.name, repo_type=self.kind, private=private, exist_ok=True)
            refs = ask()
        both = {"branches": refs.branches, "tags": refs.tags}
        return {kind: {ref.name: ref.target_commit for ref in found} for kind, found in both.items()}

    def head(self, branch: str) -> str:
        branches = self.refs()["branches"]
        if branch not in branches:
            raise UnlearningError(f"{self.name} has no branch {branch!r}; expected one of {', '.join(branches)}")
        return branches[branch]

    def commit_of(self, revision: str | None) -> str:
        """The whole id of a commit that a branch, a tag or the beginning of an id names; None: of `main`."""
        return cast(str, retry(self.api.repo_info, self.name, revision=revision, repo_type=self.kind).sha)

    def is_private(self) -> bool:
        return bool(retry(self.api.repo_info, self.name, repo_type=self.kind).private)

    def history(self, revision: str) -> list[GitCommitInfo]:
        """The commits of a revision, the newest first."""
        return retry(self.api.list_repo_commits, self.name, revision=revision, repo_type=self.kind, on=CONFLICTS)

    def tree(self, commit: str) -> dict[str, Blob]:
        """The files of a commit."""

        def read() -> dict[str, Blob]:
            items = self.api.list_repo_tree(self.name, revision=commit, recursive=True, repo_type=self.kind)
            files = [item for item in items if isinstance(item, RepoFile)]
            return {file.path: Blob(file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in files}

        return retry(read, on=CONFLICTS)

    def url(self, revision: str) -> str:
        return f"{self.api.endpoint}/{self.name}/tree/{quote(revision, safe='')}"

    # -----------------------------------------------------------------------------------------------------------------
    # What is changed

    def create_branch(self, branch: str, start: str) -> bool:
        """Begin a branch at a commit; whether it was this call that did, as far as can be told."""
        return _create(
            lambda: self.api.create_branch(self.name, branch=branch, revision=start, repo_type=self.kind),
            lambda: branch in self.refs()["branches"],
        )

    def tag(self, name: str, commit: str, message: str | None = None) -> None:
        def is_there() -> bool:
            refs = self.refs()
            check_tag(name, refs, commit)
            return name in refs["tags"]

        _create(
            lambda: self.api.create_tag(
                self.name, tag=name, revision=commit, tag_message=message, repo_type=self.kind
            ),
            is_there,
        )
        if not is_there():
            raise UnlearningError(f"the tag {name!r} was made, and is not there; try again")

    def commit(
        self, branch: str, operations: Operations, title: str, start: str, meant: Meant, is_new: bool = False
    ) -> str:
        """One commit on a branch that is still at `start`; its id. An answer that is lost does not make it twice.

        Args:
            meant: all that the commit has to hold. If it does not, the branch is put back, and that is an error.
            is_new: whether the branch was created for this commit, and goes away with it.
        """

        def attempt() -> str:
            try:
                made = self.api.create_commit(
                    self.name,
                    operations,
                    commit_message=title,
                    revision=branch,
                    parent_commit=start,
                    repo_type=self.kind,
                )
                return made.oid
            except (HfHubHTTPError, httpx.HTTPError) as error:
                if status(error) not in (None, 412, *TRANSIENT):
                    raise
                head = self.refs()["branches"][branch]
                if head == start:
                    raise
                if not differences(self.tree(head), meant):
                    return head
                raise UnlearningError(moved(self.name, branch, head, start)) from error

        commit = retry(attempt)
        if wrong := differences(self.tree(commit), meant):
            before = self.tree(start)
            done = self._put_back(branch, commit, start, before, is_new)
            raise UnlearningError(_not_as_meant(self.name, branch, wrong, IGNORE in before, done))
        return commit

    def _put_back(self, branch: str, commit: str, start: str, before: Tree, is_new: bool) -> str:
        """Undo a commit where nobody has pushed since; what was done, in words.

        A branch that was there gets the content of before by a commit that the Hub takes only on the one that it undoes. One
        that was made for the commit is deleted, which the Hub does at any head: so the head is read right before.
        """
        if is_new:
            if self.refs()["branches"].get(branch) != commit:
                return "somebody else has pushed to the branch since, so it was left as it is"
            retry(self.api.delete_branch, self.name, branch=branch, repo_type=self.kind)
            return "the new branch was deleted again"
        if commit == start:
            return "the branch is as it was"
        operations = restoring(self.tree(commit), before, start)
        try:
            undone = retry(
                self.api.create_commit,
                self.name,
                operations,
                commit_message=f"Back to {start[:12]}",
                revision=branch,
                parent_commit=commit,
                repo_type=self.kind,
            ).oid
        except HfHubHTTPError as error:
            if status(error) != 412:
                raise
            return "somebody else has pushed to the branch since, so it was left as it is"
        if differences(self.tree(undone), as_meant(before)):
            return f"the branch could not be put back either: its content before is commit {start[:12]}"
        return f"the branch was put back to the content of {start[:12]}"


def restoring(now: Tree, then: Tree, commit: str) -> Operations:
    """What makes the first tree the second, which is that of a commit."""
    operations: Operations = [
        CommitOperationDelete(name, is_folder=False) for name in sorted(now.keys() - then.keys())
    ]
    return operations + [
        CommitOperationCopy(name, name, src_revision=commit) for name in sorted(then) if now.get(name) != then[name]
    ]


def check_tag(tag: str | None, refs: dict[str, dict[str, str]], commit: str | None) -> None:
    if tag in refs["branches"]:
        raise UnlearningError(f"the tag {tag!r} would have the name of a branch; choose another one")
    if tag in refs["tags"] and refs["tags"][tag] != commit:
        raise UnlearningError(f"the tag {tag!r} is already at commit {refs['tags'][tag][:12]}; choose another one")


def moved(name: str, branch: str, head: str, start: str) -> str:
    return (
        f"{branch!r} of {name} is at commit {head[:12]} and not at {start[:12]}, so somebody else has pushed to it; "
        "nothing there was changed, choose another revision"
    )


def _not_as_meant(name: str, branch: str, wrong: list[str], ignored: bool, done: str) -> str:
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    cause = (
        f"the {IGNORE} of the repository makes a client leave files out: take the pattern out of it, and push again"
        if ignored
        else "push again"
    )
    return f"{branch!r} of {name} did not hold what was pushed ({', '.join(wrong[:3])}{more}), and {done}; {cause}"


def _create(create: Callable[[], None], is_there: Callable[[], bool]) -> bool:
    """Create a branch or a tag. The Hub answers 409 where it exists, and where something else is going on."""

    def attempt() -> bool:
        try:
            create()
        except HfHubHTTPError as error:
            if status(error) != 409 or not is_there():
                raise
            return False
        return True

    return retry(attempt)
