"""a deletion request on embedded data, from training to the verdict, beside retrained models"""

from collections.abc import Sequence

from .text import command_parser


def main(argv: Sequence[str]) -> None:
    parser = command_parser("quickstart", __doc__)
    parser.add_argument(
        "--output", metavar="DIR", default="quickstart", help="where the release, the picture and the figures go"
    )
    options = parser.parse_args(argv)
    from ..training.output import check_folder
    from . import demo

    check_folder(options.output, "--output")
    demo.run(options.output)
