"""What `verify` looks at: a release in a folder, where it is on the Hub, and what was found out besides."""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download

from .. import models
from ..errors import UnlearningError
from .client import HUB_ERRORS, reader, retry
from .repository import Repository
from .weights import files_in

# What clients and git leave in a folder that they download to; never part of a release.
LEFT_BY_CLIENTS = (".git", ".cache/huggingface")


class Failed(Exception):  # noqa: N818  (the outcome of a check, that `verify` catches)
    """A check found that something is not as the receipt says."""


class Unchecked(Exception):  # noqa: N818
    """What a check needs cannot be had."""


@dataclass(frozen=True)
class Subject:
    """A release.

    Attributes:
        repo, commit: where it is on the Hub; None for a folder.
        uncovered: what is there that no check says anything of, in the order in which it was found.
        later: the releases that are newer than this one, as far as they are known.
    """

    folder: Path
    repo: str | None = None
    commit: str | None = None
    token: str | None = None
    uncovered: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        return f"{self.repo} at {self.commit[:12]}" if self.repo and self.commit else str(self.folder)

    @classmethod
    def open(cls, repo_or_folder: str | Path, revision: str | None, token: str | None) -> "Subject":
        name = str(repo_or_folder)
        if Path(name).is_dir():
            if revision is not None:
                raise UnlearningError(f"{name!r} is a folder, which has no revision {revision!r}; leave revision out.")
            return cls(Path(name), token=token)
        try:
            commit = Repository(reader(token), name).commit_of(revision)
            return cls(Path(retry(snapshot_download, name, revision=commit, token=token)), name, commit, token)
        except HUB_ERRORS as error:
            raise UnlearningError(models.explain(error, name, revision)) from error

    def files(self) -> list[str]:
        """The files of the release; in a folder, what a client of the Hub or git has put there is not one of them."""
        names = files_in(self.folder)
        if self.repo:
            return names
        return [name for name in names if not any(name == p or name.startswith(f"{p}/") for p in LEFT_BY_CLIENTS)]

    def left_by_clients(self) -> list[str]:
        return [name for name in LEFT_BY_CLIENTS if not self.repo and (self.folder / name).exists()]
