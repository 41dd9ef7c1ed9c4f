"""look for what is left of a forget set in a model, without unlearning anything: audit BEFORE AFTER"""

import argparse
import sys
from collections.abc import Sequence

from .text import COLUMNS, DATA, add_columns, check_options, command_parser


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("audit", __doc__)
    parser.add_argument(
        "before", help="the original: a Hub id, with @REVISION behind it if it is not on main, or a local folder"
    )
    parser.add_argument("after", help="the unlearned model, named in the same way")
    parser.add_argument("--forget", metavar="DATA", required=True, help=f"what had to go: {DATA}")
    parser.add_argument("--retain", metavar="DATA", help="what had to stay, named in the same way")
    parser.add_argument(
        "--unseen", metavar="DATA", help="what no model was trained on; of it, the half is read that steered nothing"
    )
    parser.add_argument("--test", metavar="DATA", help="the same, read whole instead")
    parser.add_argument("--retrained", metavar="MODEL", help="a model trained without the forget samples")
    parser.add_argument("--reference", metavar="MODEL", help="of level 2: a model that was never trained on them")
    parser.add_argument(
        "--base-model", metavar="MODEL", help="of level 2: what one is fine-tuned from, if none is given"
    )
    parser.add_argument(
        "--level", type=int, default=0, help="0: forward passes; 1: also probes, rounding, relearning; 2: also attacks"
    )
    parser.add_argument(
        "--minutes", type=float, help="from level 1 on: leave out what is expected not to fit, which the report names"
    )
    parser.add_argument("--canaries", metavar="COLUMN", help="true or false: forget samples with planted wrong labels")
    parser.add_argument(
        "--overlap", choices=("error", "allow"), default="error", help="allow: samples may be in two sets"
    )
    parser.add_argument("--batch-size", type=int, help="samples of one forward pass")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is drawn")
    parser.add_argument(
        "--split-seed", type=int, help="of the halves of unseen; default: what the release of AFTER says, else 42"
    )
    add_columns(parser)
    parser.add_argument("--json", metavar="FILE", help="write the whole report to this file too")
    parser.add_argument("--html", metavar="FILE", help="write it as a page")
    parser.add_argument("--junit", metavar="FILE", help="write it as a report of tests, for continuous integration")
    parser.add_argument(
        "--fail-on",
        metavar="WORDS",
        help="leave with code 3 where one of these came out: residual, over, harm, cannot-judge, with commas between them",
    )
    parser.epilog = "Exit codes: 0 the audit was made, and nothing that --fail-on names came out; 1 an error; 2 bad input; 3 something did."
    return parser


def main(argv: Sequence[str]) -> int:
    options = make_parser().parse_args(argv)
    from .. import models
    from ..audits.audit import audit, check_level
    from ..audits.verdict import FAIL_ON
    from ..data.source import Columns
    from ..errors import UnlearningError
    from ..training.output import check_files
    from .sets import read_set

    check_options(options, batch_size=1, seed=0)
    fail_on = [] if options.fail_on is None else [word.strip() for word in options.fail_on.split(",")]
    if bad := [word for word in fail_on if word not in FAIL_ON]:
        raise UnlearningError(f"--fail-on names {bad[0]!r}; expected some of {', '.join(FAIL_ON)}.")
    check_level(options.level, options.reference, options.base_model, options.minutes)
    read = ("before", "after", "retrained", "reference", "base_model", "forget", "retain", "unseen", "test")
    check_files((getattr(options, name) for name in read), json=options.json, html=options.html, junit=options.junit)
    repo, revision = models.split_revision(options.before)
    original = models.load_model(repo, revision=revision)
    original.config.name_or_path = options.before
    forget = read_set(options.forget, "forget")
    retain, unseen, test = (
        read_set(data, name) if (data := getattr(options, name)) else None for name in ("retain", "unseen", "test")
    )
    report = audit(
        original,
        options.after,
        forget=forget,
        retain=retain,
        unseen=unseen,
        test=test,
        processing_class=models.load_processor(repo, original, revision),
        retrained=options.retrained,
        reference=options.reference,
        base_model=options.base_model,
        level=options.level,
        seed=options.seed,
        split_seed=options.split_seed,
        batch_size=options.batch_size,
        columns=Columns(
            **{name: getattr(options, f"{name}_column") for name in COLUMNS}, max_length=options.max_length
        ),
        canaries=options.canaries,
        overlap=options.overlap,
        minutes=options.minutes,
    )
    print(report.summary())
    written = ((options.json, report.to_json), (options.html, report.to_html), (options.junit, report.to_junit))
    for path, write in written:
        if path:
            write(path)
    if came_out := [word for word in report.verdict.came_out if word in fail_on]:
        print(f"--fail-on: {', '.join(came_out)}", file=sys.stderr)
        return 3
    return 0
