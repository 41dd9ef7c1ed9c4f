"""look at a request and print what auto would do about it, without doing it"""

import argparse
from collections.abc import Sequence

from .text import COLUMNS, add_sets, check_options, command_parser


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("choose", __doc__)
    add_sets(parser)
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file too")
    return parser


def main(argv: Sequence[str]) -> None:
    options = make_parser().parse_args(argv)
    from .. import models
    from ..api import choose
    from ..methods import AutoConfig
    from ..training.arguments import UnlearningArguments
    from ..training.output import check_files
    from .sets import read_set

    check_options(options, batch_size=1)
    known = {name: getattr(options, name) for name in ("budget", "original_epochs", "original_learning_rate")}
    AutoConfig(**known)
    read = (getattr(options, name) for name in ("model", "base_model", "forget", "retain", "unseen"))
    check_files(read, json=options.json)
    model = models.load_model(options.model, revision=options.revision)
    args = UnlearningArguments(
        per_device_train_batch_size=options.batch_size,
        report_to="none",
        disable_tqdm=True,
        **{f"{name}_column": getattr(options, f"{name}_column") for name in COLUMNS},
    )
    look = choose(
        model,
        forget=read_set(options.forget, "forget"),
        retain=read_set(options.retain, "retain"),
        unseen=read_set(options.unseen, "unseen"),
        **known,
        base_model=options.base_model,
        args=args,
        processing_class=models.load_processor(options.model, model, options.revision),
        overlap=options.overlap,
    )
    print(look.summary())
    if options.json:
        look.save(options.json)
