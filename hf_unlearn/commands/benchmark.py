"""measure what unlearning costs in time and memory, beside plain fine-tuning"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .text import check_options, command_parser


def main(argv: Sequence[str]) -> None:
    if "--language-model" in argv:
        return _language_model(argv)
    import torch

    from . import speed

    parser = command_parser("benchmark", __doc__)
    parser.add_argument("--models", nargs="+", choices=speed.MODELS, default=list(speed.MODELS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="timed steps of every training loop")
    parser.add_argument("--whole-run", action="store_true", help="also time whole runs of ten epochs")
    parser.add_argument("--runs", type=int, default=3, help="pairs of whole runs")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument(
        "--clock",
        choices=speed.CLOCKS,
        default="wall",
        help="cpu: processor time, of one thread, where others work too",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--language-model",
        action="store_true",
        help="of methods for language models, with options of its own: add --help",
    )
    args = parser.parse_args(argv)
    from ..training.output import check_files

    if args.clock == "cpu" and args.threads not in (None, 1):
        parser.error("--clock cpu sees one thread only: leave --threads out, or use --clock wall")
    check_options(args, batch_size=1, image_size=1, steps=1, runs=1, threads=1)
    check_files(json=args.json)
    if threads := 1 if args.clock == "cpu" else args.threads:
        torch.set_num_threads(threads)
    speed.quiet()
    settings, rows = {"batch_size": args.batch_size, "image_size": args.image_size, "clock": args.clock}, []
    for name in args.models:
        print(f"timing {name} ...", file=sys.stderr)
        rows += speed.compare_steps(name, steps=args.steps, **settings)
        if args.whole_run:
            print(f"timing whole runs of {name} ...", file=sys.stderr)
            rows.append(speed.compare_runs(name, runs=args.runs, **settings))
    memory = None if args.no_memory else speed.compare_memory()
    print(speed.report(rows))
    for size in memory or []:
        print(
            f"Memory, {size['samples']:,} samples, {size['classes']:,} classes: the teacher's table on disk has "
            f"{size['table'] / 1e6:.0f} MB, and the process grew by {size['growth'] / 1e6:.0f} MB."
        )
    if args.json:
        settings["batchnorm"] = "in training mode on both sides"
        content = {"command": shlex.join(["hf-unlearn", "benchmark", *argv]), "machine": speed.machine()}
        content |= {"versions": speed.versions(), "settings": settings, "rows": rows, "memory": memory}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


def _language_model(argv: Sequence[str]) -> None:
    from . import language_speed as language

    parser = command_parser("benchmark --language-model", "memory and time of a step beside a plain Trainer's")
    parser.add_argument("--language-model", action="store_true", help="what this is")
    parser.add_argument("--sides", nargs="+", metavar="NAME", help=f"default: {', '.join(language.SIDES)}")
    parser.add_argument("--vocabulary", type=int, default=language.VOCABULARY, help="words; default %(default)s")
    parser.add_argument("--tokens", type=int, default=language.TOKENS, help="of a text; default %(default)s")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each training loop; default %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    from ..training.output import check_files

    check_options(args, vocabulary=8, tokens=8, steps=1)
    check_files(json=args.json)
    content = language.compare(args.sides or list(language.SIDES), args.vocabulary, args.tokens, args.steps)
    print(language.report(content["rows"]))
    if args.json:
        content = {"command": shlex.join(["hf-unlearn", "benchmark", *argv])} | content
        args.json.write_text(json.dumps(content, indent=2) + "\n")
