"""train a language model on invented authors, forget some with several methods, and show what is left and what comes back"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .text import check_options, command_parser

DEFAULTS = {"retain": 360, "asked": 40, "epochs": 10, "batch_size": 16, "max_new_tokens": 80, "seeds": 1}


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("benchmark-lm", __doc__)
    parser.add_argument("model", help="what is trained on the authors first: a Hub id or a local folder")
    parser.add_argument("--forget", choices=("forget01", "forget05", "forget10"), default="forget01", help="of TOFU")
    parser.add_argument(
        "--retain", type=int, metavar="N", help="retained questions that are learnt too, 20 an author; default 360"
    )
    parser.add_argument("--asked", type=int, metavar="N", help="of these, how many are asked about; default 40")
    parser.add_argument(
        "--epochs", type=int, help="of the training of the original and the retrained models; default 10"
    )
    parser.add_argument("--learning-rate", type=float, metavar="RATE", default=1e-3, help="of it; default 1e-3")
    parser.add_argument("--batch-size", type=int, help="of it; default 16")
    parser.add_argument("--bf16", action="store_true", help="train these models in mixed precision")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of a generated answer; default 80")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: those for language models")
    parser.add_argument("--seeds", type=int, help="how many originals are trained; default 1")
    parser.add_argument(
        "--data", metavar="FOLDER", help="with TOFU's json files; default: the cache folder, or the Hub"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="begin no further model after so many; a later call goes on"
    )
    parser.add_argument("--output", metavar="FOLDER", default="benchmark-lm", help="where models and results go")
    return parser


def main(argv: Sequence[str]) -> None:
    options = make_parser().parse_args(argv)
    check_options(options, **dict.fromkeys(DEFAULTS, 1))
    import transformers

    from ..methods import get_method
    from ..metrics.language import check_rouge
    from ..training.output import check_folder
    from .tofu_benchmark import PICTURE, RESULTS, Benchmark, Settings, usual
    from .tofu_report import figures, picture, table

    check_rouge()
    for name in options.methods or ():
        get_method(name)
    check_folder(options.output, "--output")
    given: dict[str, Any] = {name: getattr(options, name) or default for name, default in DEFAULTS.items()}
    seeds, methods = given.pop("seeds"), list(dict.fromkeys(options.methods or usual()))
    others: dict[str, Any] = {name: getattr(options, name) for name in ("model", "forget", "learning_rate", "bf16")}
    transformers.logging.disable_progress_bar()
    benchmark = Benchmark(options.output, Settings(**others, **given), options.data)
    left = benchmark.work(methods, seeds, options.minutes)
    found = {seed: figures(rows) for seed, rows in benchmark.rows.items()}
    print(f"\n{table(found)}")
    drawn = picture(found, f"TOFU, {options.forget}: what is forgotten, over what is kept")
    Path(options.output, PICTURE).write_text(drawn + "\n", encoding="utf-8")
    print(f"\n{RESULTS} and {PICTURE} are in {options.output}" + f"; {left} models are left to do" * bool(left))
