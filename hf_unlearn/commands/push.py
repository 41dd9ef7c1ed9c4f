"""The commands of `hf-unlearn` that work on revisions of a Hub repository."""

import argparse
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import UnlearningError

if TYPE_CHECKING:
    from ..hub.repository import Parent


def push(argv: Sequence[str]) -> None:
    """push a saved result to a branch of its own: push FOLDER OWNER/NAME [--revision BRANCH]"""
    parser = _parser("push", push)
    parser.add_argument("folder", help="what result.save() or a run wrote")
    parser.add_argument("repository", help="OWNER/NAME")
    parser.add_argument("--revision", metavar="BRANCH", help="default: unlearned/<method>-<date>-<id>")
    parser.add_argument(
        "--parent", metavar="[OWNER/NAME@]COMMIT", help="where the branch begins; default: the newest commit of main"
    )
    parser.add_argument("--to-main", action="store_true", help="push to main instead of a branch")
    parser.add_argument("--create", choices=("private", "public"), help="create the repository if it does not exist")
    parser.add_argument("--message", help="the title of the commit")
    parser.add_argument("--tag", help="a tag for the commit")
    parser.add_argument(
        "--name-private-parent", action="store_true", help="let a public release name a parent that is private"
    )
    options = parser.parse_args(argv)
    from ..hub import revisions

    pushed = revisions.push(
        options.folder,
        options.repository,
        revision=options.revision,
        parent=options.parent and read_parent(options.parent, options.repository),
        private=options.create and options.create == "private",
        message=options.message,
        tag=options.tag,
        to_main=options.to_main,
        name_private_parent=options.name_private_parent,
    )
    print(f"{pushed.url}\ncommit {pushed.commit} of {pushed.revision}")


def list_revisions(argv: Sequence[str]) -> None:
    """list the branches and tags of a repository: list OWNER/NAME"""
    parser = _parser("list", list_revisions)
    parser.add_argument("repository", help="OWNER/NAME")
    options = parser.parse_args(argv)
    from ..hub import revisions

    found = revisions.list_revisions(options.repository)
    width = max(len(revision.name) for revision in found)
    for r in found:
        print(f"{r.name.ljust(width)}  {r.kind.ljust(6)}  {r.commit[:12]}  {r.date:%Y-%m-%d %H:%M}  {r.title}")


def tag(argv: Sequence[str]) -> None:
    """give a revision a tag: tag OWNER/NAME TAG --revision BRANCH"""
    parser = _parser("tag", tag)
    parser.add_argument("repository", help="OWNER/NAME")
    parser.add_argument("tag")
    parser.add_argument("--revision", required=True, help="a branch or a commit")
    parser.add_argument("--message")
    options = parser.parse_args(argv)
    from ..hub import revisions

    commit = revisions.tag(options.repository, options.tag, revision=options.revision, message=options.message)
    print(f"{options.tag} is at commit {commit}")


def rollback(argv: Sequence[str]) -> None:
    """give a branch the content of an earlier commit, by a new one: rollback OWNER/NAME --revision BRANCH [--to COMMIT]"""
    parser = _parser("rollback", rollback)
    parser.add_argument("repository", help="OWNER/NAME")
    parser.add_argument("--revision", metavar="BRANCH", required=True)
    parser.add_argument("--to", metavar="COMMIT", help="or a tag; default: the commit before the newest one")
    parser.add_argument("--message", help="the title of the new commit")
    options = parser.parse_args(argv)
    from ..hub import revisions

    done = revisions.rollback(options.repository, options.revision, to=options.to, message=options.message)
    print(f"{done.url}\ncommit {done.commit} of {done.revision}")


def purge(argv: Sequence[str]) -> None:
    """delete for good what only the history of a branch has: purge OWNER/NAME --revision BRANCH"""
    parser = _parser("purge", purge)
    parser.add_argument("repository", help="OWNER/NAME")
    parser.add_argument("--revision", metavar="BRANCH", required=True)
    parser.add_argument(
        "--confirm", metavar="PLAN", help="do what was shown, by its name; without this, only say what would be gone"
    )
    options = parser.parse_args(argv)
    from ..hub import purging

    if options.confirm is None:
        plan = purging.purge_plan(options.repository, options.revision)
        print(f"{plan.describe()}\nNothing was done. To do it: --confirm {shlex.quote(plan.confirmation)}")
        return
    plan = purging.purge(options.repository, options.revision, confirm=options.confirm)
    print(f"Done: {len(plan.commits)} commits and {len(plan.files)} large files are gone from {options.repository}.")


def read_parent(text: str, repository: str) -> "Parent":
    """`OWNER/NAME@COMMIT`, or a commit of the repository itself."""
    from ..hub.repository import Parent

    name, _, commit = text.rpartition("@")
    if not commit:
        raise UnlearningError(f"--parent is {text!r}; expected OWNER/NAME@COMMIT, or a commit.")
    return Parent(name or repository, commit)


def _parser(name: str, command: Callable) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"hf-unlearn {name}", description=command.__doc__)


COMMANDS = {"push": push, "list": list_revisions, "tag": tag, "rollback": rollback, "purge": purge}
