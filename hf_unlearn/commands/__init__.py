"""The command line, `hf-unlearn`.

A command is a file here and its name in `GROUPS`. Its docstring is its line in the help; its `main(argv)` reads the
arguments first and imports what it needs after that, so that help and a wrong argument are answered at once.
"""

import argparse
import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType

from .. import __version__
from ..errors import Failure, UnlearningError, in_one_sentence
from .text import in_its_words, listed, speak

GROUPS = {
    "to begin": ("quickstart", "methods", "recipes"),
    "unlearn": ("choose", "run", "compare", "queue"),
    "look at models": ("audit", "hardness", "surgery", "eval"),
    "publish": ("push", "verify", "list", "tag", "rollback", "purge"),
    "and": ("benchmark", "benchmark-lm", "push-metric", "env"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)
FILES = {
    "list": "list_revisions",
    "push-metric": "push_metric",
    "benchmark-lm": "benchmark_lm",
}  # of the commands whose name a file cannot bear


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return exit_code(_module(argv[0]).main, argv[1:])
    parser = argparse.ArgumentParser(
        prog="hf-unlearn",
        usage="hf-unlearn COMMAND ...",
        description="Machine unlearning for Hugging Face models.",
        epilog="\n".join([*_help(), "HF_UNLEARN_TRACEBACK=1 shows where another library failed."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    if argv and not argv[0].startswith("-"):
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        parser.error(f"there is no command {argv[0]!r}; {hint}")
    parser.parse_args(argv)
    parser.print_help()
    return 0


def _help() -> list[str]:
    """Every command under what it is for."""
    lines = listed([(name, _module(name).__doc__ or "") for name in COMMANDS], "  ")
    for title, (first, *_) in GROUPS.items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"  {first} "))
        lines[place:place] = [f"{title}:"]
    return [*lines, ""]


def _module(command: str) -> ModuleType:
    return importlib.import_module(f".{FILES.get(command, command)}", __name__)


def exit_code(command: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Run `command`; what went wrong is printed as one sentence, once for all processes.

    The code is 2 of what the user can mend, and 1 of what failed in this library or in another one. The traceback of what comes from another library is shown where HF_UNLEARN_TRACEBACK is set.
    """
    speak({})
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of what no command asks for
    try:
        return command(argv) or 0
    except UnlearningError as error:
        if isinstance(error, Failure):
            return _say(str(error), error.__cause__, 1)
        return _say(in_its_words(str(error)), error.__cause__, 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `hf-unlearn methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may the last flush complain
        return 1
    except Exception as error:
        kind = type(error).__name__
        return _say(f"The command failed with a {kind}: {in_one_sentence(error)}", error, 1)


def _say(sentence: str, cause: BaseException | None, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {sentence}", file=sys.stderr)
        if cause is not None and os.environ.get("HF_UNLEARN_TRACEBACK"):
            traceback.print_exception(cause)
    return code
