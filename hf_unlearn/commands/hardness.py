"""measure, before unlearning, how hard it is to forget a set without harm to another one"""

import argparse
from collections.abc import Sequence

from .text import COLUMNS, DATA, add_columns, check_options, command_parser


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("hardness", __doc__)
    parser.add_argument("model", help="a Hub id or a local folder")
    parser.add_argument("--forget", metavar="DATA", required=True, help=f"what must go: {DATA}")
    parser.add_argument("--retain", metavar="DATA", required=True, help="what must stay, named in the same way")
    parser.add_argument(
        "--ratio",
        type=float,
        help="the quota; default 0.3 of what is reachable for a classifier and 0.1 for a language model, 0.5 with --absolute",
    )
    parser.add_argument(
        "--absolute", action="store_true", help="the ratio is the paper's Q/η, not a share of what is reachable"
    )
    parser.add_argument(
        "--variant", choices=("q", "u"), default="q", help="q: a quota for forgetting; u: for retaining"
    )
    parser.add_argument(
        "--block", choices=("tensor", "module", "global"), default="tensor", help="what is solved by itself"
    )
    parser.add_argument(
        "--overlap", choices=("error", "allow"), default="error", help="allow: samples may be in both sets"
    )
    parser.add_argument("--batch-size", type=int, help="samples of one forward and backward pass")
    parser.add_argument("--max-samples", type=int, help="use at most so many samples of each set, drawn at random")
    add_columns(parser)
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file too")
    return parser


def main(argv: Sequence[str]) -> None:
    options = make_parser().parse_args(argv)
    from .. import models
    from ..api import measure_hardness
    from ..audits.hardness import PAPER_RATIO
    from ..methods import HamuConfig
    from ..training.arguments import UnlearningArguments
    from ..training.output import check_files
    from .sets import drawn, read_set

    check_options(options, batch_size=1, max_samples=1)
    check_files((options.model, options.forget, options.retain), json=options.json)
    ratio = options.ratio if options.ratio is not None else PAPER_RATIO if options.absolute else None
    scale = "absolute" if options.absolute else "relative"
    method = HamuConfig(ratio=ratio, quota_scale=scale, variant=options.variant, block=options.block)
    model = models.load_model(options.model, revision=options.revision)
    sets = {}
    for name in ("forget", "retain"):
        data = read_set(getattr(options, name), name)
        sets[name] = drawn(data, options.max_samples)
    args = UnlearningArguments(
        per_device_train_batch_size=options.batch_size,
        report_to="none",
        disable_tqdm=True,
        **{f"{name}_column": getattr(options, f"{name}_column") for name in COLUMNS},
        max_length=options.max_length,
    )
    report = measure_hardness(
        model,
        **sets,
        method=method,
        args=args,
        processing_class=models.load_processor(options.model, model, options.revision),
        overlap=options.overlap,
    )
    print(report.summary())
    if options.json:
        report.save(options.json)
