"""delete for good what only the history of a branch has: purge OWNER/NAME --revision BRANCH"""

import shlex
from collections.abc import Sequence

from .text import command_parser


def main(argv: Sequence[str]) -> None:
    parser = command_parser("purge", __doc__)
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
