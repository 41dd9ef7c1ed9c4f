"""list the branches and tags of a repository: list OWNER/NAME"""

from collections.abc import Sequence

from .text import command_parser


def main(argv: Sequence[str]) -> None:
    parser = command_parser("list", __doc__)
    parser.add_argument("repository", help="OWNER/NAME")
    options = parser.parse_args(argv)
    from ..hub import revisions

    found = revisions.list_revisions(options.repository)
    width = max(len(revision.name) for revision in found)
    for r in found:
        print(f"{r.name.ljust(width)}  {r.kind.ljust(6)}  {r.commit[:12]}  {r.date:%Y-%m-%d %H:%M}  {r.title}")
