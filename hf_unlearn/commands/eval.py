"""ask a language model the questions of a benchmark, without unlearning anything: eval MODEL --suite tofu"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UnlearningError
from .text import check_options, columns, command_parser

SUITES = ("tofu", "lm-eval")
OF_SUITE = {"tofu": ("forget", "retrained", "data", "prompt", "max_new_tokens"), "lm-eval": ("tasks",)}


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("eval", __doc__)
    parser.add_argument("model", help="a Hub id, with @REVISION behind it if it is not on main, or a local folder")
    parser.add_argument("--suite", choices=SUITES, default="tofu", help="lm-eval: general ability (extra lm-eval)")
    parser.add_argument("--forget", choices=("forget01", "forget05", "forget10"), help="of tofu; default forget10")
    parser.add_argument(
        "--retrained",
        metavar="MODEL",
        help="of tofu: a model that was trained without these authors, for forget quality, or what --json has written of it",
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help="of tofu: its json files; default: the cache folder, or the Hub"
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="of tofu: with {question} and {answer}; default: the chat template, or Question: ... Answer: ...",
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of tofu: of a generated answer; default 200")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="of lm-eval, such as mmlu or hellaswag")
    parser.add_argument("--limit", type=int, metavar="N", help="questions of each set; default: all")
    parser.add_argument("--batch-size", type=int, default=16, help="texts of one forward pass; default 16")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    return parser


def main(argv: Sequence[str]) -> None:
    options = make_parser().parse_args(argv)
    check_options(options, limit=1, batch_size=1, max_new_tokens=1)
    for suite, names in OF_SUITE.items():
        if suite != options.suite and (given := [name for name in names if getattr(options, name) is not None]):
            raise UnlearningError(
                f"--{given[0].replace('_', '-')} is of --suite {suite}, and the suite is {options.suite}; leave it out."
            )
    from ..training.output import check_files

    check_files((options.model, options.retrained, options.data), json=options.json)
    content = _tofu(options) if options.suite == "tofu" else _general(options)
    if options.json:
        Path(options.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tofu(options: argparse.Namespace) -> dict[str, Any]:
    from ..audits import tofu
    from ..metrics.language import check_rouge
    from .tofu_sets import read_tofu

    check_rouge()
    tofu.check_prompt(options.prompt)
    forget = options.forget or "forget10"
    sets = read_tofu(forget, options.data, options.limit)
    earlier = options.retrained if os.path.isfile(options.retrained or "") else None
    retrained = None if earlier is None else _earlier(earlier, tofu.digest(sets["forget"]))
    other = options.retrained if earlier is None else None
    for name in (options.model, other):
        if name is not None:
            _check_model(name)

    def figures(name: str) -> dict[str, Any]:
        model, tokenizer = _load(name)
        settings = {"prompt": options.prompt, "batch_size": options.batch_size, "progress": True}
        scores = tofu.evaluate(model, tokenizer, sets, max_new_tokens=options.max_new_tokens or 200, **settings)
        return {"model": name} | tofu.as_json(scores, sets)

    own = figures(options.model)  # one model after the other: never both in memory
    if other is not None:
        retrained = figures(other)
    settings = {name: getattr(options, name) for name in ("limit", "prompt", "max_new_tokens")}
    content = {"suite": "tofu", "forget": forget, "settings": settings} | own
    print(f"TOFU, {forget}: {options.model}\n\n{tofu.table(own)}\n\nmodel utility {own['model_utility']:.3f}")
    if retrained is not None:
        content |= tofu.against(own, retrained) | {"retrained": retrained}
        print(
            f"forget quality p {content['forget_quality']:.3g}, KS distance {content['ks_distance']:.3f}\n\n"
            f"beside it, retrained: {retrained['model']}\n\n{tofu.table(retrained)}\n\nmodel utility {retrained['model_utility']:.3f}"
        )
    else:
        print("forget quality: not known without --retrained, a model without these authors")
    print(f"\n{tofu.NOTE}")
    return content


def _general(options: argparse.Namespace) -> dict[str, Any]:
    from .general import check_general, evaluate_general

    if not options.tasks:
        raise UnlearningError("--suite lm-eval needs --tasks, such as mmlu or hellaswag; say which.")
    check_general()
    model, tokenizer = _load(options.model)
    results = evaluate_general(model, tokenizer, options.tasks, options.limit, options.batch_size)
    rows = [(task, name, f"{value:.4f}") for task, values in results.items() for name, value in values.items()]
    print("\n".join(columns([("task", "metric", "value"), *rows])))
    return {"suite": "lm-eval", "model": options.model, "limit": options.limit, "results": results}


def _load(name: str) -> tuple[Any, Any]:
    """The model on the device, and its tokenizer."""
    from accelerate import Accelerator

    from .. import models
    from ..tasks.answers import language_task

    repo, revision = models.split_revision(name)
    model = models.load_model(repo, revision=revision)
    language_task(model)
    tokenizer = models.load_processor(repo, model, revision)
    if tokenizer is None:
        raise UnlearningError(f"{name!r} has no tokenizer, which reads the questions; save it beside the model.")
    return model.to(Accelerator().device).eval(), tokenizer


def _check_model(name: str) -> None:
    """Refuse a name behind which there is no model, before another one is evaluated."""
    from ..models import find

    repo, revision = find.split_revision(name)
    where = {"revision": revision} | find.reachable(repo)
    try:
        find.check_holds_model(repo, where)
        find.check_has_weights(repo, where)
    except UnlearningError:
        raise
    except find.LOAD_ERRORS as error:
        raise UnlearningError(find.explain(error, repo, revision)) from error


def _earlier(path: str, asked: str) -> dict[str, Any]:
    """What an earlier evaluation of the retrained model has written."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {key: content[key] for key in ("model", "sets", "model_utility", "asked", "truth_ratios")}
    except (OSError, ValueError, KeyError, TypeError):
        raise UnlearningError(
            f"--retrained is {path}, which no evaluation has written; expected a model, or what --json has written of one."
        ) from None
    if found["asked"] != asked:
        raise UnlearningError(
            f"--retrained is {path}, which is of other forget questions; expected the same --forget, --limit and data."
        )
    return found
