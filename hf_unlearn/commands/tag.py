"""give a revision a tag: tag OWNER/NAME TAG --revision BRANCH"""

from collections.abc import Sequence

from .text import command_parser


def main(argv: Sequence[str]) -> None:
    parser = command_parser("tag", __doc__)
    parser.add_argument("repository", help="OWNER/NAME")
    parser.add_argument("tag")
    parser.add_argument("--revision", required=True, help="a branch or a commit")
    parser.add_argument("--message")
    options = parser.parse_args(argv)
    from ..hub import revisions

    commit = revisions.tag(options.repository, options.tag, revision=options.revision, message=options.message)
    print(f"{options.tag} is at commit {commit}")
