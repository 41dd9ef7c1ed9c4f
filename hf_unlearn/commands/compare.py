"""run several methods on one request inside one budget, and show what each leaves and costs"""

import argparse
from collections.abc import Sequence

from .text import add_request, command_parser


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("compare", __doc__)
    add_request(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="default: auto, finetune, l1_sparse, scrub and ssd, as far as they apply",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        default="compare",
        help="where table and picture go; results that are there already are not run again",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    options = make_parser().parse_args(argv)
    import transformers

    from ..methods import get_method
    from .comparison import PICTURE, RESULTS, Comparison, check_output
    from .sets import read_request

    for name in options.methods or ():
        get_method(name)
    check_output(options.output, options.model)
    transformers.logging.disable_progress_bar()  # of loading and saving, between the lines
    comparison = Comparison(options.output, **read_request(options))
    for name in dict.fromkeys(options.methods or comparison.usual()):
        if comparison.has(name):
            print(f"{name}: its result is in {options.output} already", flush=True)
            continue
        row = comparison.run(name)
        if "error" in row:
            print(f"{name}: not run: {row['error']}", flush=True)
        else:
            print(f"{name}: {row['seconds']:.1f} s, {row['share']:.1%} of the original's training", flush=True)
    written = [RESULTS] + [PICTURE] * bool(comparison.picture())
    print(f"\n{comparison.table()}\n{' and '.join(written)} are in {options.output}")
