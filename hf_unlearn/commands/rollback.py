"""give a branch the content of an earlier commit, by a new one: rollback OWNER/NAME --revision BRANCH [--to COMMIT]"""

from collections.abc import Sequence

from .text import command_parser


def main(argv: Sequence[str]) -> None:
    parser = command_parser("rollback", __doc__)
    parser.add_argument("repository", help="OWNER/NAME")
    parser.add_argument("--revision", metavar="BRANCH", required=True)
    parser.add_argument("--to", metavar="COMMIT", help="or a tag; default: the commit before the newest one")
    parser.add_argument("--message", help="the title of the new commit")
    options = parser.parse_args(argv)
    from ..hub import revisions

    done = revisions.rollback(options.repository, options.revision, to=options.to, message=options.message)
    print(f"{done.url}\ncommit {done.commit} of {done.revision}")
