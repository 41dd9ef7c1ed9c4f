"""push a saved result to a branch of its own: push FOLDER OWNER/NAME [--revision BRANCH]"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UnlearningError
from .text import command_parser

if TYPE_CHECKING:
    from ..hub.repository import Parent


def main(argv: Sequence[str]) -> None:
    parser = command_parser("push", __doc__)
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
    if pushed:  # as a folder always is
        print(f"{pushed.url}\ncommit {pushed.commit} of {pushed.revision}")


def read_parent(text: str, repository: str) -> "Parent":
    """`OWNER/NAME@COMMIT`, or a commit of the repository itself."""
    from ..hub.repository import Parent

    name, _, commit = text.rpartition("@")
    if not commit:
        raise UnlearningError(f"--parent is {text!r}; expected OWNER/NAME@COMMIT, or a commit.")
    return Parent(name or repository, commit)
