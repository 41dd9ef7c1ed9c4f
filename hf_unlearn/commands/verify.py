"""check a release against its receipt: verify REPO_OR_FOLDER [--revision REV]"""

from collections.abc import Sequence

from .text import DATA, command_parser


def main(argv: Sequence[str]) -> int:
    parser = command_parser("verify", __doc__)
    parser.epilog = (
        "Exit codes: 0 nothing failed; 1 something failed; 2 it could not be done (or 1, of an error in a library); 3 nothing failed, but the receipt is signed "
        "and no --public-key says by whom."
    )
    parser.add_argument("release", metavar="REPO_OR_FOLDER", help="a Hub id or a local folder")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--forget", metavar="DATA", help=f"records said to have been in the request: {DATA}")
    parser.add_argument("--secrets", metavar="FILE", help="receipt_secrets.json of that run, to look for them")
    parser.add_argument("--parent", help="a folder, or REPO@COMMIT, with what the model was unlearned from")
    parser.add_argument("--public-key", metavar="FILE", help="PEM file of the Ed25519 key that must have signed")
    parser.add_argument(
        "--max-parent-gb", type=float, metavar="GB", help="fetch a parent of up to this size to compare"
    )
    options = parser.parse_args(argv)
    from ..hub.verification import verify

    forget = None
    if options.forget is not None:
        from .sets import read_set

        forget = read_set(options.forget, "forget")
    verification = verify(
        options.release,
        revision=options.revision,
        forget=forget,
        secrets=options.secrets,
        parent=options.parent,
        public_key=options.public_key,
        max_parent_bytes=None if options.max_parent_gb is None else int(options.max_parent_gb * 1e9),
    )
    print(verification)
    return verification.exit_code
