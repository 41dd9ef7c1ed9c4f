"""A queue on disk: one small file for each request, one folder for each batch, and nothing that is changed in place.

A file is written whole beside its place and then put there, so that it is there or not. What a request has come to is read
off the files: it waits until a batch names it, and that batch is done once its `done.json` is there. So a process that is
killed between any two steps leaves a queue that the next one reads as it is.

    QUEUE/queue.yaml                     the recipe, and the policy
    QUEUE/requests/NAME.json             the rows or ids of a request: never a sample
    QUEUE/batches/0001/batch.json        which requests it is of
    QUEUE/batches/0001/measured.json     drift, and what is left of earlier requests
    QUEUE/batches/0001/release/          what is published
    QUEUE/batches/0001/receipt_secrets.json
    QUEUE/batches/0001/done.json         written last
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnlearningError

FORMAT = 1
RECIPE, REQUESTS, BATCHES, RELEASE = "queue.yaml", "requests", "batches", "release"
BATCH, MEASURED, DONE = "batch.json", "measured.json", "done.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
WHAT = ("rows", "ids")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """The whole file or none, on the disk before it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content["format"] == FORMAT:
            return content
        why = f"its format is not {FORMAT}"
    except (OSError, ValueError, KeyError) as error:
        why = f"{type(error).__name__}: {error}"
    raise UnlearningError(f"{path} cannot be read ({why}); expected what the queue wrote there, bring it back.")


@dataclass(frozen=True)
class Batch:
    """Requests that are unlearned together.

    Attributes:
        requests: their names, in the order in which they came.
        samples: how many rows the batch forgets that no earlier one has.
        known: the number of the last request that was there when it began: what came later, it still learns from.
    """

    number: int
    folder: Path
    requests: list[str]
    samples: int
    known: int
    began: str

    @property
    def release(self) -> Path:
        return self.folder / RELEASE

    @property
    def done(self) -> dict[str, Any] | None:
        return read(self.folder / DONE) if (self.folder / DONE).exists() else None

    @property
    def measured(self) -> dict[str, Any] | None:
        return read(self.folder / MEASURED) if (self.folder / MEASURED).exists() else None


class Folder:
    """Requests and batches in a folder."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @contextmanager
    def held(self, what: str) -> Iterator[None]:
        """One process at a time; the lock goes with the process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / f".{what}", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnlearningError(
                    f"Another process is {what} at {self.path}; wait until it is done, or end it."
                ) from None
            yield

    def requests(self) -> dict[str, dict[str, Any]]:
        """By name, in the order in which they came."""
        found = {path.stem: read(path) for path in (self.path / REQUESTS).glob("[!.]*.json")}
        return dict(sorted(found.items(), key=lambda item: item[1]["number"]))

    def batches(self) -> list[Batch]:
        found = []
        for path in sorted((self.path / BATCHES).glob(f"*/{BATCH}")):
            content = read(path)
            keys = ("number", "requests", "samples", "known", "began")
            found.append(Batch(folder=path.parent, **{key: content[key] for key in keys}))
        return sorted(found, key=lambda batch: batch.number)

    def released(self) -> list[Batch]:
        """Those that are done, and have forgotten something."""
        return [batch for batch in self.batches() if batch.samples and batch.done]

    def keep(self, requests: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Write the requests that are not there yet; gives their names. One of the same name with other rows is refused."""
        known = self.requests()
        for name, request in requests.items():
            before = known.get(name)
            if before and any(before.get(key) != request.get(key) for key in (*WHAT, "dataset")):
                raise UnlearningError(
                    f"The queue has a request {name!r} of other rows; expected another name, or the same rows."
                )
        new = [name for name in requests if name not in known]
        last = max((request["number"] for request in known.values()), default=0)
        for number, name in enumerate(new, last + 1):
            write(self.path / REQUESTS / f"{name}.json", {"format": FORMAT, "number": number, **requests[name]})
        return new

    def begin(self, **about: Any) -> Batch:
        """Write down a new batch; `about` are its attributes but the first two."""
        number = 1 + max((batch.number for batch in self.batches()), default=0)
        batch = Batch(number, self.path / BATCHES / f"{number:04}", **about)
        write(batch.folder / BATCH, {"format": FORMAT, "number": number, **about})
        return batch


def copy(source: Path, target: Path) -> None:
    """Copy a file so that it is there whole or not at all; only its owner may read it, as before."""
    temporary = target.with_name(f".{target.name}.new")
    shutil.copy2(source, temporary)
    os.replace(temporary, target)


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for


def read_requests(source: str | os.PathLike[str], of_ids: bool = False) -> dict[str, dict[str, list]]:
    """Requests of a file or of a folder of such files, by name: {"rows": [...]} or {"ids": [...]}.

    A json file has one request, or a list of them, a jsonl file one on each line; a txt file is one request, with a row
    (`of_ids`: an id) on each line. A request without a name is called like its file, and numbered where there are several.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in READERS)
        if not files:
            raise UnlearningError(f"{path} holds no requests; expected files that end in {', '.join(READERS)}.")
    else:
        files = [path]
    found: dict[str, dict[str, list]] = {}
    for file in files:
        for name, request in _read_file(file, of_ids):
            if name in found and found[name] != request:
                raise UnlearningError(f"{source} has two requests {name!r}; expected a name of its own for each.")
            found[name] = request
    return found


def _read_file(path: Path, of_ids: bool) -> Iterator[tuple[str, dict[str, list]]]:
    if path.suffix not in READERS:
        raise UnlearningError(f"{path} is no file of requests; expected one that ends in {', '.join(READERS)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = READERS[path.suffix](text, of_ids)
    except (OSError, ValueError) as error:
        raise UnlearningError(f"The requests {path} cannot be read: {error}.") from None
    for number, item in enumerate(content, 1):
        default = path.stem if len(content) == 1 else f"{path.stem}-{number}"
        name = str(item.get("name", default)) if isinstance(item, dict) else default
        yield name, checked(name, item, str(path))


def _lines(text: str, of_ids: bool) -> list[dict[str, list]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [{"ids": lines} if of_ids else {"rows": [int(line) for line in lines]}]


def _json(text: str, of_ids: bool) -> list[Any]:
    content = json.loads(text)
    return content if isinstance(content, list) else [content]


def _json_lines(text: str, of_ids: bool) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


READERS = {".json": _json, ".jsonl": _json_lines, ".txt": _lines}


def checked(name: str, item: Any, origin: str) -> dict[str, list]:
    """A request as it is kept; refused if it is none."""
    if not NAME.fullmatch(name):
        raise UnlearningError(
            f"A request is called {name!r} ({origin}); expected letters, digits, dots, dashes and underscores."
        )
    given = [key for key in WHAT if isinstance(item, Mapping) and item.get(key) is not None]
    strange = set(item) - {"name", *WHAT} if isinstance(item, Mapping) else ()
    if len(given) != 1 or strange:
        what = f"the keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
        raise UnlearningError(
            f'The request {name!r} ({origin}) has {what}; expected {{"rows": [3, 17]}} or {{"ids": ["u1"]}}, and a '
            '"name" if it has one; nothing of the samples themselves.'
        )
    key, values = given[0], item[given[0]]
    types = (int,) if key == "rows" else (int, str)
    fits = isinstance(values, list) and values and all(type(value) in types for value in values)
    if not fits or (key == "rows" and min(values) < 0):
        expected = "row numbers, counted from 0" if key == "rows" else "ids, which are numbers or texts"
        raise UnlearningError(
            f"The {key} of the request {name!r} ({origin}) cannot be used; expected a list of {expected}."
        )
    return {key: sorted(set(values) if key == "rows" else {str(value) for value in values})}
