"""Releases as revisions of a Hub repository: a branch from a known parent, and one commit with everything.

Nothing here rewrites what is on the Hub, but `purge`, which does so only when it is told twice.
"""

import datetime
import hashlib
import json
import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import LFSFileInfo, RepoFile
from huggingface_hub.utils import build_hf_headers, httpx, paginate, validate_repo_id

from ..errors import UnlearningError
from .names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD,
    CONFIG,
    LEGAL,
    METRICS,
    PROCESSORS,
    RECEIPT,
    VOCABULARIES,
    WEIGHT_FILES,
    WEIGHTS,
    fits,
    is_released,
)

if TYPE_CHECKING:
    from ..api import UnlearningResult

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAIN = "main"
TRIES, WAIT = 4, 1.0  # seconds before the second try, twice as many before each further one
TRANSIENT = (408, 409, 429, 500, 502, 503, 504)

PLACEHOLDER = b"[More Information Needed]"  # in the card that PEFT writes

COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
# Not a name that stands for something else: refs/heads/main is main, and 40 hexadecimal digits are a commit.
BRANCH = re.compile(
    r"(?!refs/|HEAD$|[0-9a-f]{40}$)(?!.*(//|\.\.|@\{|\.lock$|[/.]$))[^\s~^:?*\[\\\x00-\x1f/.-][^\s~^:?*\[\\\x00-\x1f]*"
)


@dataclass(frozen=True)
class Parent:
    """The commit that an unlearned revision comes from."""

    repo_id: str
    commit: str


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
# What is pushed


def released_files(folder: str | Path, base: Parent | None = None) -> dict[str, Path | bytes]:
    """The files of a release by their path in the repository; bytes where a local path in them had to go.

    Args:
        folder: what `hub.prepare` or `UnlearningResult.save` wrote.
        base: what an adapter belongs to, where its configuration names a local folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UnlearningError(f"{str(folder)!r} is no folder; pass one that result.save() wrote.")
    files: dict[str, Path | bytes] = {}
    is_prepared = (folder / RECEIPT).is_file()  # else its figures may come with lists of classes
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not (path.is_file() and is_released(name)):
            continue
        if (name == CARD and PLACEHOLDER in path.read_bytes()) or (name == METRICS and not is_prepared):
            continue
        files[name] = _without_local_base(path, base) if path.name == ADAPTER_CONFIG else path
    left = [path.name for path in folder.iterdir() if path.is_file() and path.name not in files]
    if left:
        logger.warning(
            f"Not pushed: {', '.join(sorted(left))}; a release has no such files, and figures only beside a receipt."
        )
    if not any(fits(PurePosixPath(name).name, WEIGHT_FILES) for name in files):
        raise UnlearningError(
            f"{str(folder)!r} holds no {WEIGHTS} and no {ADAPTER_WEIGHTS}; pass a folder that result.save() wrote."
        )
    if not is_prepared:
        logger.warning(
            f"{folder} holds no {RECEIPT}, so no receipt and no figures are pushed{'' if CARD in files else ', and no card'}; for "
            "a release with all of them, use result.push_to_hub() or a recipe with push_to."
        )
    return files


def default_branch(method: str, run: str) -> str:
    """`unlearned/<method>-<date>-<id>`."""
    return f"unlearned/{method}-{datetime.date.today():%Y-%m-%d}-{run[:8]}"


def check_private(files: Mapping[str, Path | bytes], folder: Path, token: str | None) -> None:
    """Refuse to push a token or a path of this machine."""
    private = [("a token", secret) for secret in (token, get_token()) if secret]
    folder = folder.absolute()
    local = {Path.home(), folder, folder.parent} - {Path(folder.anchor), Path(tempfile.gettempdir())}
    private += [("a local path", f"{path}{os.sep}") for path in sorted(local)]
    for name, content in files.items():
        if fits(PurePosixPath(name).name, (*WEIGHT_FILES, *VOCABULARIES)):
            continue
        text = content if isinstance(content, bytes) else content.read_bytes()
        for what, secret in private:
            if any(form.encode() in text for form in (secret, json.dumps(secret)[1:-1])):
                raise UnlearningError(f"{name} holds {what}, which must not be pushed; take it out")


def _without_local_base(path: Path, base: Parent | None) -> Path | bytes:
    """An adapter's configuration, with the repository of its base model where it names a local folder."""
    config = json.loads(path.read_text())
    name = config.get("base_model_name_or_path")
    if base is None or not name or (_is_name(name) and not os.path.exists(name)):
        return path
    config |= {"base_model_name_or_path": base.repo_id, "revision": base.commit}
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


# ---------------------------------------------------------------------------------------------------------------------
# Push


def push(
    folder: "str | Path | UnlearningResult",
    repo_id: str,
    *,
    revision: str | None = None,
    parent: Parent | None = None,
    token: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    tag: str | None = None,
    to_main: bool = False,
) -> Pushed:
    """Push a folder as one commit on a branch of its own, which is created from its parent commit.

    Large files go first, and are not sent again when an interrupted push is repeated. What the branch has beside the
    release, such as weights of its parent, is removed from it; a licence stays, and a processor if the release has none.

    Args:
        folder: what `hub.prepare` or `UnlearningResult.save` wrote; or a result, which is prepared first.
        repo_id: `owner/name`.
        revision: the branch; default: `unlearned/<method>-<date>-<id>`.
        parent: the commit that the branch begins at; default: the newest one of `main`. If the branch is already there,
            it has to be at that commit.
        token: default: the one of the login.
        private: whether a repository that does not exist is created as a private or a public one; default: not at all.
        message: the title of the commit.
        tag: a tag for the commit.
        to_main: push to `main` instead of a branch.

    Example:
        >>> push("unlearned/release", "me/vit-cifar10", revision="unlearned/request-42")  # doctest: +SKIP
    """
    if not isinstance(folder, (str, os.PathLike)):
        about = {"parent": parent, "token": token, "private": private, "message": message, "tag": tag}
        return folder.push_to_hub(repo_id, revision, to_main=to_main, **about)
    folder = Path(folder)
    check_names(repo_id, revision, tag, to_main)
    files = released_files(folder, parent or Parent(repo_id, MAIN))
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    content = {operation.path_in_repo: _hashes(operation) for operation in additions}
    revision = MAIN if to_main else revision or _own_branch(folder, content)
    with telling(
        f"{folder} was not pushed to {repo_id}",
        lambda: push_command(folder, repo_id, revision, parent, private, tag, message),
    ):
        api = client(token)
        check_private(files, folder, token)
        refs = _refs(api, repo_id, private)
        if revision in refs["tags"]:
            raise UnlearningError(f"{revision!r} is a tag of {repo_id}; choose another revision")
        start = _commit_of(api, repo_id, parent) if parent and parent.repo_id == repo_id else refs["branches"][MAIN]
        parent = parent or Parent(repo_id, start)
        head = refs["branches"].get(revision)
        if head is None:
            _create(
                lambda: api.create_branch(repo_id, branch=revision, revision=start),
                lambda: revision in _refs(api, repo_id)["branches"],
            )

        def is_there(commit: str) -> bool:
            tree = _tree(api, repo_id, commit)
            rest = tree.keys() - content.keys()
            return all(tree.get(name) in hashes for name, hashes in content.items()) and rest == _kept(rest, content)

        if head in (None, start):
            _check_tag(tag, refs, None)
            there = _tree(api, repo_id, start).keys()
            if revision != MAIN and not any(fits(PurePosixPath(name).name, WEIGHT_FILES) for name in there):
                logger.warning(
                    f"{repo_id} holds no model where {revision!r} begins: who leaves out the revision may get none; to_main=True "
                    "(--to-main) pushes to main."
                )
            present = there - content.keys()
            removals = [
                CommitOperationDelete(name, is_folder=False) for name in sorted(present - _kept(present, content))
            ]
            api.preupload_lfs_files(repo_id, additions, revision=revision, free_memory=False)
            title = message or f"Unlearned revision {revision}"
            commit = _commit(api, repo_id, revision, [*additions, *removals], title, start, is_there)
        elif is_there(head):  # a push whose last answer was lost is repeated
            commit = head
            _check_tag(tag, refs, commit)
        else:
            raise UnlearningError(_moved(repo_id, revision, head, start))
        if tag:
            _tag(api, repo_id, tag, commit)
    return Pushed(repo_id, revision, commit, _url(api, repo_id, revision))


def push_command(
    folder: str | Path,
    repo_id: str,
    revision: str,
    parent: Parent | None = None,
    private: bool | None = None,
    tag: str | None = None,
    message: str | None = None,
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
    return shlex.join(words)


def _commit(
    api: HfApi,
    repo_id: str,
    revision: str,
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete],
    title: str,
    start: str,
    is_there: Callable[[str], bool],
) -> str:
    """One commit on a branch that is still at `start`; its id. An answer that is lost does not make it twice."""

    def attempt() -> str:
        try:
            return api.create_commit(
                repo_id, operations, commit_message=title, revision=revision, parent_commit=start
            ).oid
        except (HfHubHTTPError, httpx.HTTPError) as error:
            if status(error) not in (None, 412, *TRANSIENT):
                raise
            head = _refs(api, repo_id)["branches"][revision]
            if head == start:
                raise
            if is_there(head):
                return head
            raise UnlearningError(_moved(repo_id, revision, head, start)) from error

    return _retry(attempt)


def _own_branch(folder: Path, content: Mapping[str, tuple[str, str]]) -> str:
    """The same weights have the same branch, on the same day."""
    path = folder / CONFIG
    method = json.loads(path.read_text())["method"] if path.exists() else "model"
    weights = sorted(hashes for name, hashes in content.items() if fits(PurePosixPath(name).name, WEIGHT_FILES))
    return default_branch(method, hashlib.sha256(repr(weights).encode()).hexdigest())


def _moved(repo_id: str, revision: str, head: str, start: str) -> str:
    return (
        f"{revision!r} of {repo_id} is at commit {head[:12]} and not at {start[:12]}, so somebody else has pushed to it; "
        "nothing there was changed, choose another revision"
    )


def _hashes(operation: CommitOperationAdd) -> tuple[str, str]:
    """A file's SHA-256 and git's own hash: the Hub tells one of them."""
    if PurePosixPath(operation.path_in_repo).match("*.safetensors"):
        return (operation.upload_info.sha256.hex(),) * 2  # always a large file, and git's would read it once more
    with operation.as_file() as file:
        content = file.read()
    return operation.upload_info.sha256.hex(), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree(api: HfApi, repo_id: str, commit: str) -> dict[str, str]:
    """The files of a commit and their hashes: SHA-256 of large ones, git's of the others."""
    items = api.list_repo_tree(repo_id, revision=commit, recursive=True)
    return {item.path: item.lfs.sha256 if item.lfs else item.blob_id for item in items if isinstance(item, RepoFile)}


def _kept(names: set[str], content: Mapping[str, Any]) -> set[str]:
    """What a release leaves in its branch of what its parent had."""
    patterns = (".gitattributes", *LEGAL)
    if not any(fits(name, PROCESSORS) for name in content):
        patterns += PROCESSORS
    return {name for name in names if fits(name, patterns)}


def _is_name(repo_id: str) -> bool:
    """Whether this is `OWNER/NAME` as the Hub allows it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return False
    return "/" in repo_id


def check_names(repo_id: str, revision: str | None = None, tag: str | None = None, to_main: bool = False) -> None:
    if not _is_name(repo_id):
        raise UnlearningError(f"{repo_id!r} is no name of a repository; expected owner/name, as in me/vit-cifar10.")
    for what, name in (("branch", revision), ("tag", tag)):
        if name is not None and not BRANCH.fullmatch(name):
            raise UnlearningError(f"{name!r} is no name of a {what}; expected one such as unlearned/request-42.")
    if tag is not None and tag in (MAIN, revision):
        raise UnlearningError(f"The tag {tag!r} would have the name of a branch; choose another one.")
    if to_main and revision not in (None, MAIN):
        raise UnlearningError(f"to_main is True and revision is {revision!r}; expected only one of them.")
    if revision == MAIN and not to_main:
        raise UnlearningError(
            "revision is 'main', which a push leaves as it is; pass to_main=True to replace its content."
        )


def _check_tag(tag: str | None, refs: dict[str, dict[str, str]], commit: str | None) -> None:
    if tag in refs["branches"]:
        raise UnlearningError(f"the tag {tag!r} would have the name of a branch; choose another one")
    if tag in refs["tags"] and refs["tags"][tag] != commit:
        raise UnlearningError(f"the tag {tag!r} is already at commit {refs['tags'][tag][:12]}; choose another one")


# ---------------------------------------------------------------------------------------------------------------------
# What is there


def list_revisions(repo_id: str, *, token: str | None = None) -> list[Revision]:
    """The branches and tags of a repository, `main` first and then the newest ones."""
    check_names(repo_id)
    with telling(f"The revisions of {repo_id} were not read"):
        api = HfApi(token=token)
        refs, found = _refs(api, repo_id), []
        for kind, names in (("branch", refs["branches"]), ("tag", refs["tags"])):
            for name, commit in names.items():
                last = api.list_repo_commits(repo_id, revision=commit)[0]
                found.append(Revision(name, kind, commit, last.created_at, last.title))
    return sorted(found, key=lambda r: (r.name != MAIN, -r.date.timestamp(), r.kind, r.name))


def tag(repo_id: str, name: str, *, revision: str, message: str | None = None, token: str | None = None) -> str:
    """Give a branch's newest commit, or a commit, a tag; the commit's id."""
    check_names(repo_id, tag=name)
    with telling(f"{repo_id} was not tagged"):
        api = client(token)
        commit = _commit_of(api, repo_id, Parent(repo_id, revision))
        _check_tag(name, _refs(api, repo_id), commit)
        _tag(api, repo_id, name, commit, message)
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
        api = client(token)
        head = _branch_head(api, repo_id, revision)
        if to is None:
            commits = api.list_repo_commits(repo_id, revision=head)
            if len(commits) == 1:
                raise UnlearningError(f"{revision!r} has a single commit; say what to go back to, with to=")
            to = commits[1].commit_id
        target = _commit_of(api, repo_id, Parent(repo_id, to))
        now, then = _tree(api, repo_id, head), _tree(api, repo_id, target)
        if now == then:
            return Pushed(repo_id, revision, head, _url(api, repo_id, revision))
        operations = [CommitOperationDelete(name, is_folder=False) for name in sorted(now.keys() - then.keys())]
        operations += [
            CommitOperationCopy(name, name, src_revision=target)
            for name in sorted(then)
            if now.get(name) != then[name]
        ]
        title = message or f"Back to {target[:12]}"
        commit = _commit(
            api, repo_id, revision, operations, title, head, lambda commit: _tree(api, repo_id, commit) == then
        )
    return Pushed(repo_id, revision, commit, _url(api, repo_id, revision))


# ---------------------------------------------------------------------------------------------------------------------
# Purge


@dataclass(frozen=True)
class PurgePlan:
    """What `purge` would do.

    Attributes:
        commits: the earlier commits of the branch that no other branch or tag has, the newest first, which will be gone.
        files: the large files that will be deleted for good, by their SHA-256.
        held: the earlier commits that stay, with the branches and tags that have them.
        kept: earlier large files that stay, with the branches and tags that hold them now.
    """

    repo_id: str
    revision: str
    commits: list[str]
    files: dict[str, LFSFileInfo]
    held: dict[str, list[str]]
    kept: dict[str, list[str]]

    @property
    def confirmation(self) -> str:
        return f"{self.repo_id}@{self.revision}"

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
        return _purge_plan(client(token), repo_id, revision)


def purge(repo_id: str, revision: str, *, confirm: str | None = None, token: str | None = None) -> PurgePlan:
    """Reduce a branch to its newest content, and delete for good the large files that only its history had.

    Args:
        repo_id: `owner/name`.
        revision: the branch.
        confirm: `"owner/name@branch"`, written out; without it nothing is done and the error says what would be.
    """
    check_names(repo_id)
    plan = purge_plan(repo_id, revision, token=token)
    if confirm != plan.confirmation:
        raise UnlearningError(f"{plan.describe()}\nNothing was done; to do it, confirm with {plan.confirmation!r}.")
    with telling(f"{revision!r} of {repo_id} was not purged completely, and doing it again goes on"):
        api = client(token)
        if plan.files:  # first: a branch without its history no longer tells which files it had
            # The history is not rewritten: the commits of other branches keep their ids, which receipts name.
            _retry(api.permanently_delete_lfs_files, repo_id, plan.files.values(), rewrite_history=False)
        if plan.commits:
            _retry(api.super_squash_history, repo_id, branch=revision, commit_message="History purged")
    return plan


def _purge_plan(api: HfApi, repo_id: str, revision: str) -> PurgePlan:
    refs = _refs(api, repo_id)
    head = _branch_head(api, repo_id, revision)
    heads = {**refs["tags"], **refs["branches"]}
    earlier = [commit.commit_id for commit in api.list_repo_commits(repo_id, revision=head)][1:]
    had = set().union(*(_tree(api, repo_id, commit).values() for commit in earlier))
    users: dict[str, list[str]] = {}
    held: dict[str, list[str]] = {}
    for name, commit in heads.items():
        for hashed in set(_tree(api, repo_id, commit).values()):
            users.setdefault(hashed, []).append(name)
        if name != revision:
            for known in api.list_repo_commits(repo_id, revision=commit):
                held.setdefault(known.commit_id, []).append(name)
    large = _large_files(api, repo_id)
    _check_listed(
        {oid for oid in had if SHA256.fullmatch(oid)}, {oid for oid in users if SHA256.fullmatch(oid)}, large
    )
    return PurgePlan(
        repo_id,
        revision,
        commits=[commit for commit in earlier if commit not in held],
        files={oid: large[oid] for oid in sorted(had & large.keys()) if oid not in users},
        held={commit: held[commit] for commit in earlier if commit in held},
        kept={oid: users[oid] for oid in sorted(had & users.keys() & large.keys())},
    )


def _large_files(api: HfApi, repo_id: str) -> dict[str, LFSFileInfo]:
    """Every large file by each of its two ids, one of which is its SHA-256.

    Not `list_lfs_files`, which fails at a file without a name, as one is that no commit has any more.
    """
    address = f"{api.endpoint}/api/models/{repo_id}/lfs-files"
    files = (
        LFSFileInfo(**{"filename": "", **item}) for item in paginate(address, {}, build_hf_headers(token=api.token))
    )
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


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


def client(token: str | None) -> HfApi:
    if not (token or get_token()):
        raise UnlearningError(
            "there is no token; log in with `hf auth login` and a token that may write, set HF_TOKEN, or pass token="
        )
    return HfApi(token=token)


def _refs(api: HfApi, repo_id: str, private: bool | None = None) -> dict[str, dict[str, str]]:
    """The commits at the heads of branches and tags, of a repository that is created if it may be."""
    try:
        refs = _retry(api.list_repo_refs, repo_id)
    except RepositoryNotFoundError as error:
        if private is None or status(error) != 404:
            raise
        _retry(api.create_repo, repo_id, private=private, exist_ok=True)
        refs = _retry(api.list_repo_refs, repo_id)
    both = {"branches": refs.branches, "tags": refs.tags}
    return {kind: {ref.name: ref.target_commit for ref in found} for kind, found in both.items()}


def _branch_head(api: HfApi, repo_id: str, revision: str) -> str:
    branches = _refs(api, repo_id)["branches"]
    if revision not in branches:
        raise UnlearningError(f"{repo_id} has no branch {revision!r}; expected one of {', '.join(branches)}")
    return branches[revision]


def _commit_of(api: HfApi, repo_id: str, parent: Parent) -> str:
    """The whole id of a commit."""
    return _retry(api.repo_info, repo_id, revision=parent.commit).sha


def pinned(parent: Parent, token: str | None = None) -> Parent:
    """The parent with the whole id of its commit, where a branch, a tag or the beginning of an id was given."""
    if COMMIT.fullmatch(parent.commit):
        return parent
    with telling(f"The parent {parent.repo_id}@{parent.commit} was not found"):
        return Parent(parent.repo_id, _commit_of(HfApi(token=token), parent.repo_id, parent))


def _tag(api: HfApi, repo_id: str, name: str, commit: str, message: str | None = None) -> None:
    def is_there() -> bool:
        refs = _refs(api, repo_id)
        _check_tag(name, refs, commit)
        return name in refs["tags"]

    _create(lambda: api.create_tag(repo_id, tag=name, revision=commit, tag_message=message), is_there)


def _create(create: Callable[[], None], is_there: Callable[[], bool]) -> None:
    """Create a branch or a tag. The Hub answers 409 where it exists, and where something else is going on."""

    def attempt() -> None:
        try:
            create()
        except HfHubHTTPError as error:
            if status(error) != 409 or not is_there():
                raise

    _retry(attempt)


def _url(api: HfApi, repo_id: str, revision: str) -> str:
    return f"{api.endpoint}/{repo_id}/tree/{quote(revision, safe='')}"


def _retry(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call again, a few times, after what may pass: no connection, too many requests, an error of the server.

    Not around what the client calls again by itself, as it does for lists of files and commits, and for uploads.
    """
    for attempt in range(TRIES):
        try:
            return call(*args, **kwargs)
        except (httpx.HTTPError, json.JSONDecodeError) as error:  # HfHubHTTPError is one; an error page is no JSON
            if attempt == TRIES - 1 or status(error) not in (None, *TRANSIENT):
                raise
            time.sleep(WAIT * 2**attempt)
    raise AssertionError


def status(error: BaseException) -> int | None:
    """What the Hub answered, if it did."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


@contextmanager
def telling(what: str, command: Callable[[], str] | None = None) -> Iterator[None]:
    """What went wrong, in one sentence, with the command that tries again."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, httpx.HTTPError) as error:  # an UnlearningError is a ValueError
        why = str(error).rstrip(".") if isinstance(error, UnlearningError) else reason(error)
        later = f"; the folder is complete, and this pushes it: {command()}" if command else "."
        raise UnlearningError(f"{what}: {why}{later}") from error


def reason(error: BaseException) -> str:
    """Why the Hub did not do it, found along the chain of causes."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for error in chain:
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so the Hub is not asked"
        if isinstance(error, RevisionNotFoundError):
            return "the repository has no such branch, tag or commit"
        is_absent = isinstance(error, RepositoryNotFoundError) and status(error) == 404
        # Without a token, the Hub answers 401 for what is not there and for what is private.
        if is_absent or (status(error) == 401 and "authorization" not in error.response.request.headers):
            return (
                "there is no such repository, or the token may not see it; check the name, or have it created (private=True or "
                "False; --create private or public)"
            )
        if isinstance(error, HfHubHTTPError):
            return _refusal(error.response.status_code)
        if isinstance(error, httpx.HTTPError):
            return f"the Hub cannot be reached at {constants.ENDPOINT}; check the connection and try again"
    lines = str(chain[0]).strip().splitlines() or [type(chain[0]).__name__]
    return " ".join(line.strip() for line in lines[:2]).rstrip(".")


def _refusal(status: int) -> str:
    known = {
        401: "the Hub does not accept the token; log in again with `hf auth login`, or pass another one",
        403: "the token may not write there; use one with write access to the repository",
        409: "another operation on the repository is going on; try again in a moment",
        412: "somebody else has pushed to the branch in the meantime; choose another revision",
        429: "the Hub takes no more requests for now; try again later",
    }
    return known.get(status) or (
        f"the Hub has an error of its own ({status}); try again later"
        if status >= 500
        else f"the Hub refused the request ({status})"
    )
