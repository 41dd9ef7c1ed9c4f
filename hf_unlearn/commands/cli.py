"""The command line, `hf-unlearn`. A command is a function here and a line in `COMMANDS`; it imports what it needs."""

import argparse
import difflib
import importlib.metadata
import os
import platform
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import UnlearningError, in_one_sentence
from .hub import COMMANDS as hub_commands

if TYPE_CHECKING:
    from ..methods import Method

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "timm", "huggingface_hub")
TASKS = ("image-classification", "text-classification", "causal-lm", "multi-task")


def run(argv: Sequence[str]) -> None:
    """unlearn as a recipe says: run RECIPE.yaml [key=value ...]"""
    from . import recipe
    from .settings import read_settings

    if not argv or {"-h", "--help"} & set(argv):
        settings = read_settings([word for word in argv if word not in ("-h", "--help")])
        print("usage: hf-unlearn run [RECIPE.yaml] [key=value | --key value ...]\n")
        print("The settings, in the file or on the command line, which wins. For those of another method than lotus:")
        print("hf-unlearn run --help method=NAME\n")
        print(recipe.help_text(recipe.method_of(settings).info.name))
        return
    recipe.run(*recipe.parse(argv)).trainer.accelerator.end_training()


def methods(argv: Sequence[str]) -> None:
    """list the methods, or show the datasheet of one: methods [--task TASK] [PATTERN]"""
    parser = _parser(methods)
    parser.add_argument(
        "pattern", nargs="?", help="a method's name, for its datasheet, or a pattern such as '*label*'"
    )
    parser.add_argument("--task", choices=TASKS, help="only methods for this task")
    options = parser.parse_args(argv)
    from ..methods import METHODS, get_method, list_methods

    if options.pattern in METHODS and options.task is None:
        print(_datasheet(METHODS[options.pattern]))
        return
    names = list_methods(options.pattern, options.task)
    if not names and options.pattern and options.task is None:
        get_method(options.pattern)  # raises, with the nearest name
    infos = [METHODS[name].info for name in names]
    rows = [("method", "kind", "needs", "applies to", "cost")]
    rows += [(i.name, i.kind, ", ".join(i.needs), ", ".join(i.applies_to), f"{i.cost:g} epochs") for i in infos]
    lines = _columns(rows)
    print(lines[0])
    for line, info in zip(lines[1:], infos, strict=True):
        print(f"{line}\n    {info.summary}")


def quickstart(argv: Sequence[str]) -> None:
    """unlearn two small models on embedded data, and compare with retraining"""
    parser = _parser(quickstart)
    parser.add_argument("--output", metavar="DIR", default="quickstart", help="where the models go")
    options = parser.parse_args(argv)
    from ..training.output import check_folder
    from . import quickstart as module

    check_folder(options.output, "--output")
    module.main(options.output)


def hardness(argv: Sequence[str]) -> None:
    """measure, before unlearning, how hard it is to forget a set without harm to another one"""
    parser = _parser(hardness)
    parser.add_argument("model", help="a Hub id or a local folder")
    what = "a Hub id, a folder or a csv, json, jsonl or parquet file; NAME:SPLIT for one split or a slice, as train[:10%%]"
    parser.add_argument("--forget", metavar="DATA", required=True, help=f"what must go: {what}")
    parser.add_argument("--retain", metavar="DATA", required=True, help="what must stay, named in the same way")
    parser.add_argument("--ratio", type=float, help="the quota; default 0.1 of what is reachable, 0.5 with --absolute")
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
    for column in ("image", "text", "text-pair", "label"):
        parser.add_argument(f"--{column}-column", metavar="NAME", help="if it has an unusual name")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file too")
    options = parser.parse_args(argv)
    from .. import models
    from ..methods import HamuConfig
    from ..training.arguments import UnlearningArguments
    from ..training.hardness import PAPER_RATIO, measure_hardness
    from ..training.output import check_files
    from . import recipe
    from .settings import check_options

    check_options(options, batch_size=1, max_samples=1)
    check_files((options.model, options.forget, options.retain), json=options.json)
    ratio = options.ratio if options.ratio is not None else PAPER_RATIO if options.absolute else HamuConfig().ratio
    scale = "absolute" if options.absolute else "relative"
    method = HamuConfig(ratio=ratio, quota_scale=scale, variant=options.variant, block=options.block)
    model = models.load_model(options.model, revision=options.revision)
    sets = {}
    for name in ("forget", "retain"):
        data = recipe.read_set(getattr(options, name), name)
        sets[name] = recipe.drawn(data, options.max_samples)
    columns = {
        f"{name}_column": getattr(options, f"{name}_column") for name in ("image", "text", "text_pair", "label")
    }
    args = UnlearningArguments(
        per_device_train_batch_size=options.batch_size, report_to="none", disable_tqdm=True, **columns
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


def surgery(argv: Sequence[str]) -> None:
    """print where a model would be edited, as damp does: surgery plan MODEL"""
    import yaml

    parser = _parser(surgery)
    parser.add_argument("what", choices=("plan",), help="plan: the operators that read the activation of each stage")
    parser.add_argument("model", help="a Hub id or a local folder")
    parser.add_argument(
        "--stages",
        type=yaml.safe_load,
        default=5,
        help="into how many the network is cut, if it has so many cuts, or the operators of each: [[layer], ..., [classifier]]",
    )
    parser.add_argument(
        "--readers",
        choices=("next", "all_residual"),
        default="next",
        help="the first readers only, or all up to the next stage",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    options = parser.parse_args(argv)
    from .. import models
    from ..surgery.damp import DampConfig
    from ..surgery.operators import example_inputs, find_plan

    DampConfig(stages=options.stages)
    model = models.load_model(options.model, revision=options.revision)
    try:
        print(find_plan(model, example_inputs(model), options.stages, options.readers))
    except UnlearningError:
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise UnlearningError(
            f"{type(model).__name__} does not run on a random sample of the kind that its config tells of ({error}); call "
            "hf_unlearn.surgery.find_plan with a sample of your data."
        ) from error


def audit(argv: Sequence[str]) -> None:
    """look for what is left of a forget set in a model, without unlearning anything: audit BEFORE AFTER"""
    parser = _parser(audit)
    parser.add_argument(
        "before", help="the original: a Hub id, with @REVISION behind it if it is not on main, or a local folder"
    )
    parser.add_argument("after", help="the unlearned model, named in the same way")
    what = "a Hub id, a folder or a csv, json, jsonl or parquet file; NAME:SPLIT for one split or a slice, as train[:10%%]"
    parser.add_argument("--forget", metavar="DATA", required=True, help=f"what had to go: {what}")
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
    parser.add_argument("--canaries", metavar="COLUMN", help="true or false: forget samples with planted wrong labels")
    parser.add_argument(
        "--overlap", choices=("error", "allow"), default="error", help="allow: samples may be in two sets"
    )
    parser.add_argument("--batch-size", type=int, help="samples of one forward pass")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is drawn")
    parser.add_argument(
        "--split-seed", type=int, help="of the halves of unseen; default: what the release of AFTER says, else 42"
    )
    for column in ("image", "text", "text-pair", "label"):
        parser.add_argument(f"--{column}-column", metavar="NAME", help="if it has an unusual name")
    parser.add_argument("--json", metavar="FILE", help="write the whole report to this file too")
    parser.add_argument("--html", metavar="FILE", help="write it as a page")
    options = parser.parse_args(argv)
    from .. import models
    from ..audits.audit import audit as run_audit
    from ..audits.audit import check_level
    from ..data.source import Columns
    from ..training.output import check_files
    from . import recipe
    from .settings import check_options

    check_options(options, batch_size=1, seed=0)
    check_level(options.level, options.reference, options.base_model)
    read = ("before", "after", "retrained", "reference", "base_model", "forget", "retain", "unseen", "test")
    check_files((getattr(options, name) for name in read), json=options.json, html=options.html)
    columns = {name: getattr(options, f"{name}_column") for name in ("image", "text", "text_pair", "label")}
    repo, revision = models.split_revision(options.before)
    original, sets = models.load_model(repo, revision=revision), {}
    original.config.name_or_path = options.before
    for name in ("forget", "retain", "unseen", "test"):
        if data := getattr(options, name):
            sets[name] = recipe.read_set(data, name)
    report = run_audit(
        original,
        options.after,
        **{"retain": None, "unseen": None} | sets,
        processing_class=models.load_processor(repo, original, revision),
        retrained=options.retrained,
        reference=options.reference,
        base_model=options.base_model,
        level=options.level,
        seed=options.seed,
        split_seed=options.split_seed,
        batch_size=options.batch_size,
        columns=Columns(**columns),
        canaries=options.canaries,
        overlap=options.overlap,
    )
    print(report.summary())
    for path, write in ((options.json, report.to_json), (options.html, report.to_html)):
        if path:
            write(path)


def benchmark(argv: Sequence[str]) -> int:
    """measure what unlearning costs in time and memory, beside plain fine-tuning"""
    from . import benchmark as module

    return module.main(argv)


def push_metric(argv: Sequence[str]) -> None:
    """push a metric to the Hub as a Space that evaluate.load() reads: push-metric NAME NAMESPACE/NAME"""
    parser = _parser(push_metric)
    parser.add_argument("name", help="avg_gap, jsd, rf_jsd, uis or unlearning_mia")
    parser.add_argument("repository", help="NAMESPACE/NAME, created if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new Space private")
    options = parser.parse_args(argv)
    from ..hub.metrics import push_metric as push

    url = push(options.name, options.repository, private=options.private)
    print(f'{url}\nTo use it: evaluate.load("{options.repository}")')


def verify(argv: Sequence[str]) -> int:
    """check a release against its receipt: verify REPO_OR_FOLDER [--revision REV]"""
    parser = _parser(verify)
    parser.epilog = (
        "Exit codes: 0 nothing failed; 1 something failed; 2 it could not be done; 3 nothing failed, but the receipt is signed "
        "and no --public-key says by whom."
    )
    parser.add_argument("release", metavar="REPO_OR_FOLDER", help="a Hub id or a local folder")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    what = "a Hub id, a folder or a csv, json, jsonl or parquet file; NAME:SPLIT for one split or a slice, as train[:10%%]"
    parser.add_argument("--forget", metavar="DATA", help=f"records said to have been in the request: {what}")
    parser.add_argument("--secrets", metavar="FILE", help="receipt_secrets.json of that run, to look for them")
    parser.add_argument("--parent", help="a folder, or REPO@COMMIT, with what the model was unlearned from")
    parser.add_argument("--public-key", metavar="FILE", help="PEM file of the Ed25519 key that must have signed")
    parser.add_argument(
        "--max-parent-gb", type=float, metavar="GB", help="fetch a parent of up to this size to compare"
    )
    options = parser.parse_args(argv)
    from ..hub.verification import verify as check

    forget = None
    if options.forget is not None:
        from .recipe import read_set

        forget = read_set(options.forget, "forget")
    verification = check(
        options.release,
        revision=options.revision,
        forget=forget,
        secrets=options.secrets,
        parent=options.parent,
        public_key=options.public_key,
        max_parent_bytes=None if options.max_parent_gb is None else int(options.max_parent_gb * 1e9),
    )
    print(verification)
    return verification.exit_code


def env(argv: Sequence[str]) -> None:
    """print the versions of everything that matters, for a bug report"""
    _parser(env).parse_args(argv)
    import torch

    versions = {"hf_unlearn": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    if torch.cuda.is_available():
        versions["device"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        versions["device"] = "mps" if torch.backends.mps.is_available() else "cpu"
    for name, version in versions.items():
        print(f"- {name}: {version}")


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "quickstart": quickstart,
    "run": run,
    "methods": methods,
    "hardness": hardness,
    "surgery": surgery,
    "audit": audit,
    "benchmark": benchmark,
    "push-metric": push_metric,
    "verify": verify,
    **hub_commands,
    "env": env,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="hf-unlearn",
        usage="hf-unlearn COMMAND ...",
        description="Machine unlearning for Hugging Face models.",
        epilog="commands:\n"
        + "\n".join("  " + line for line in _columns([(n, c.__doc__) for n, c in COMMANDS.items()]))
        + "\n\nAn error is one sentence; with HF_UNLEARN_TRACEBACK=1 also where another library failed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    if argv and argv[0] in COMMANDS:
        return exit_code(COMMANDS[argv[0]], argv[1:])
    if argv and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        parser.error(f"there is no command {argv[0]!r}; {hint}")
    parser.parse_args(argv)
    parser.print_help()
    return 0


def exit_code(command: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Run `command`; what went wrong is printed as one sentence, once for all processes.

    The traceback of what comes from another library is shown where HF_UNLEARN_TRACEBACK is set.
    """
    try:
        return command(argv) or 0
    except UnlearningError as error:
        return _say(str(error), error.__cause__)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `hf-unlearn methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may the last flush complain
        return 1
    except Exception as error:
        kind = type(error).__name__
        return _say(f"The command failed with a {kind}: {in_one_sentence(error)}", error)


def _say(sentence: str, cause: BaseException | None) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {sentence}", file=sys.stderr)
        if cause is not None and os.environ.get("HF_UNLEARN_TRACEBACK"):
            traceback.print_exception(cause)
    return 2


def _parser(command: Callable) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"hf-unlearn {command.__name__.replace('_', '-')}", description=command.__doc__
    )


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _datasheet(method: type["Method"]) -> str:
    """What a method is and what it takes, its defaults beside the paper's values."""
    import dataclasses
    import inspect

    from .settings import show

    info, config_class = method.info, method.config_class
    paper = config_class.paper() if hasattr(config_class, "paper") else None
    lines = [f"{info.name}: {info.summary}", "", inspect.getdoc(method), ""]
    rows = [("kind", info.kind), ("needs", ", ".join(info.needs)), ("applies to", ", ".join(info.applies_to))]
    rows += [("cost", f"{info.cost:g} epochs of fine-tuning")]
    if info.paper:
        rows += [("paper", info.paper.title), ("", info.paper.url)]
    lines += _columns(rows)

    fields = [f for f in dataclasses.fields(config_class) if f.name != "arguments"]
    lines += ["", f"Settings ({config_class.__name__}):" if fields else "No settings of its own."]
    for f in fields:
        default, papers = getattr(config_class(), f.name), paper and getattr(paper, f.name)
        differs = f"; paper {show(papers)}" if paper and papers != default else ""
        lines.append(f"  {f.name}: default {show(default)}{differs}")
        indent = " " * 6
        lines += textwrap.wrap(f.metadata.get("help", ""), 110, initial_indent=indent, subsequent_indent=indent)

    families = {"convolutional": method().arguments("convolutional")}
    families["transformer, 768 wide"] = method().arguments("transformer", 768)
    if paper:
        families["paper"] = paper.arguments
    names = list(dict.fromkeys(name for values in families.values() for name in values))
    if names:
        table = [("", *families)]
        table += [
            (name, *(show(values[name]) if name in values else "-" for values in families.values())) for name in names
        ]
        lines += ["", "Training arguments, unless you set them:", *("  " + line for line in _columns(table))]
    if paper:
        lines += ["", "Settings of the paper (preset: paper, or paper:SETTING):"]
        lines += textwrap.indent(inspect.getdoc(config_class.paper) or "one", "  ").splitlines()
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
