"""look at a request and print what auto would do about it, without doing it"""

import argparse
from collections.abc import Sequence

from .text import add_request, command_parser


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("choose", __doc__)
    add_request(parser)
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file too")
    return parser


def main(argv: Sequence[str]) -> None:
    options = make_parser().parse_args(argv)
    from ..api import choose
    from ..training.output import check_files
    from .sets import read_request

    read = (getattr(options, name) for name in ("model", "base_model", "forget", "retain", "unseen"))
    check_files(read, json=options.json)
    look = choose(**read_request(options))
    print(look.summary())
    if options.json:
        look.save(options.json)
