"""unlearn requests in batches, each a revision with a receipt: queue add | run | status FOLDER"""

import argparse
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnlearningError
from .text import command_parser

if TYPE_CHECKING:
    from .request_queue import RequestQueue

DUE = 3  # the exit code when retraining is due


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("queue", __doc__)
    parser.add_argument("do", choices=("add", "run", "status"), help="add: put requests in; run: unlearn what is due")
    parser.add_argument("folder", help="the queue: a folder with a recipe, queue.yaml, in it")
    parser.add_argument(
        "requests", nargs="*", metavar="REQUESTS", help="add: json, jsonl or txt files, or folders of them"
    )
    parser.add_argument("--rows", metavar="N,N", help="add: the rows of one request, counted from 0")
    parser.add_argument("--ids", metavar="ID,ID", help="add: the ids of one request, values of id_column")
    parser.add_argument("--name", help="add: of the request that --rows or --ids is; it is never published")
    parser.add_argument("--now", action="store_true", help="run: do not wait until a batch is due")
    parser.add_argument("--push-to", metavar="OWNER/NAME", help="run: push each batch as a revision")
    parser.add_argument(
        "--create", choices=("private", "public"), help="run: create the repository if it does not exist"
    )
    parser.add_argument(
        "--verify", action="store_true", help="status: hold each release against its receipt and parent"
    )
    parser.epilog = f"Exit codes: 0 done; 1 an error, or a receipt that does not hold; 2 bad input; {DUE} done, and retraining is due."
    return parser


OPTIONS = dict.fromkeys(("requests", "rows", "ids", "name"), "add")
OPTIONS |= dict.fromkeys(("now", "push_to", "create"), "run") | {"verify": "status"}


def main(argv: Sequence[str]) -> int:
    options = make_parser().parse_args(argv)
    for name, command in OPTIONS.items():
        if getattr(options, name) and options.do != command:
            raise UnlearningError(
                f"queue {options.do} was given {name.replace('_', '-')}, which belongs to queue {command}; leave it out."
            )
    given = [bool(options.requests), options.rows is not None, options.ids is not None]
    if options.do == "add" and (sum(given) != 1 or (options.name and options.requests)):
        raise UnlearningError(
            "queue add takes either files of requests, or --rows or --ids of a single one, which --name names."
        )
    requests = _one(options) if options.do == "add" and not options.requests else None
    from .request_queue import RequestQueue

    queue = RequestQueue(options.folder)
    if options.do == "add":
        for source in options.requests or [requests]:
            _add(queue, source)
        return 0
    if options.do == "run":
        private = options.create and options.create == "private"
        done = queue.run(now=options.now, push_to=options.push_to, private=private)
        print(f"{len(done)} batches done", flush=True)
    status = queue.status()
    print(status.summary())
    if options.verify and not _verify(queue):
        return 1
    return DUE if status.retraining else 0


def _one(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The request that the options are, which without a name has one by its content, so that it is not put in twice."""
    key = "rows" if options.rows is not None else "ids"
    values = [value.strip() for value in getattr(options, key).split(",") if value.strip()]
    if not values or (key == "rows" and not all(map(str.isdecimal, values))):
        expected = "row numbers with commas between them, as 3,17" if key == "rows" else "ids with commas between them"
        raise UnlearningError(f"--{key} is {getattr(options, key)!r}; expected {expected}.")
    content = {key: [int(value) for value in values] if key == "rows" else values}
    digest = hashlib.sha256(repr((key, sorted(set(content[key])))).encode()).hexdigest()
    return {options.name or f"request-{digest[:12]}": content}


def _add(queue: "RequestQueue", source: Any) -> None:
    found = queue.read(source)
    new = queue.add(found)
    known = f", {len(found) - len(new)} were there already" if len(new) < len(found) else ""
    print(f"{len(new)} requests added{known}", flush=True)


def _verify(queue: "RequestQueue") -> bool:
    found = queue.verify()
    if failed := [str(verification) for verification in found if verification.failed]:
        print("\n".join(failed))
        return False
    unchecked: dict[str, list[str]] = {}
    for verification in found:
        for name, passed, why in verification.checks:
            if passed is None:
                unchecked.setdefault(name, []).append(why)
    claim = (
        "" if {"weights", "parent", "chain"} & set(unchecked) else ", each with the release and the receipt before it"
    )
    print(f"{len(found)} receipts hold{claim}")
    for name, reasons in unchecked.items():
        print(f"unchecked: {name} of {len(reasons)}, such as: {reasons[0]}")
    return True
