"""push a metric to the Hub as a Space that evaluate.load() reads: push-metric NAME NAMESPACE/NAME"""

from collections.abc import Sequence

from .text import command_parser


def main(argv: Sequence[str]) -> None:
    parser = command_parser("push-metric", __doc__)
    parser.add_argument("name", help="avg_gap, jsd, rf_jsd, uis or unlearning_mia")
    parser.add_argument("repository", help="NAMESPACE/NAME, created if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new Space private")
    options = parser.parse_args(argv)
    from ..hub.metrics import push_metric

    url = push_metric(options.name, options.repository, private=options.private)
    print(f'{url}\nTo use it: evaluate.load("{options.repository}")')
