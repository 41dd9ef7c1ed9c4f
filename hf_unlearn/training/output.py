"""Where a call writes: nothing is begun that cannot be written, what others wrote is not overwritten, and what a call that
failed has written is taken away again."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.splits import split_name
from ..errors import UnlearningError
from ..methods.base import CONFIG_NAME
from ..models.find import ADAPTER_CONFIG, ADAPTER_WEIGHTS, IMAGE_PROCESSOR, TOKENIZER_FILES, WEIGHTS, WEIGHTS_INDEX

METRICS = "metrics.json"
PRIVATE = "_unlearn"  # inside the output folder: the original, the teacher's table; never pushed
COMPLETE = "complete.json"  # a checkpoint with this file, written last, is whole
ORIGINAL = "original.json"  # which original and which run an output folder has
MODEL_FILES = (
    *("config.json", ADAPTER_CONFIG, WEIGHTS, WEIGHTS_INDEX, ADAPTER_WEIGHTS),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin", "tf_model.h5", "flax_model.msgpack"),
    *(IMAGE_PROCESSOR, "processor_config.json", "tokenizer_config.json", *TOKENIZER_FILES),
)


# ---------------------------------------------------------------------------------------------------------------------
# Before anything is computed


def check_folder(path: Any, name: str) -> None:
    """`path` is a folder that can be written to, or can be made."""
    existing = _existing(path, name)
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UnlearningError(f"{name} {path} cannot be written to ({existing} is not a writable folder).")


def check_files(inputs: Iterable[Any] = (), **outputs: Any) -> None:
    """Each of `outputs`, by the name of its option, is a file that can be written: no other one's, and nothing that is read.

    Args:
        inputs: what is read, by its name: of a file, a folder, or `NAME:SPLIT` of one. What is no path here is on the Hub.
    """
    read = {os.path.realpath(split_name(os.fspath(name))[0]): name for name in inputs if name is not None}
    taken: dict[str, str] = {}
    for name, path in outputs.items():
        if path is None:
            continue
        option = f"--{name.replace('_', '-')}"
        check_file(path, option)
        place = Path(os.path.realpath(path))
        if str(place) in taken:
            raise UnlearningError(f"{option} is {path}, and so is {taken[str(place)]}; expected a file of its own.")
        if found := next((read[str(part)] for part in (place, *place.parents) if str(part) in read), None):
            raise UnlearningError(
                f"{option} is {path}, which would be written over {found}, or into it, and that is read; expected a file of its "
                "own."
            )
        taken[str(place)] = option


def check_file(path: Any, name: str) -> Path:
    """`path` is a file that can be written, or made in a folder that is there."""
    existing, absolute = _existing(path, name), Path(path).absolute()
    fits = not existing.is_dir() if existing == absolute else existing.is_dir() and existing == absolute.parent
    if not (fits and os.access(existing, os.W_OK)):
        raise UnlearningError(f"{name} is {path}; expected a file in a folder that can be written to.")
    return Path(path)


def _existing(path: Any, name: str) -> Path:
    """The longest part of a path that is there already."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise UnlearningError(f"{name} is {path!r}; expected a path.")
    absolute = Path(path).absolute()
    try:
        existing = next(part for part in (absolute, *absolute.parents) if os.path.lexists(part))
        longest = max((len(os.fsencode(part)) for part in absolute.parts), default=0)
        if "\0" in os.fspath(path) or longest > os.pathconf("/", "PC_NAME_MAX"):
            raise ValueError
    except (OSError, ValueError):
        text = str(path) if len(str(path)) < 60 else f"{str(path)[:60]}..."
        raise UnlearningError(f"{name} is {text!r}, which no file can be called; expected a shorter path.") from None
    return existing


def check_not_original(path: Any, original: str | os.PathLike[str] | None, name: str = "path") -> None:
    if original and os.path.realpath(path) == os.path.realpath(original):
        raise UnlearningError(
            f"{name} {path} is the folder that the original was loaded from, which would be lost; expected another one."
        )


def check_result_folder(path: Any, original: str | None) -> None:
    """A result may be written to `path`: it is not where the original is, and holds nobody else's model or figures."""
    check_folder(path, "path")
    check_not_original(path, original)
    folder = Path(path)
    if (folder / METRICS).exists() and not _is_ours(folder / METRICS):
        raise UnlearningError(f"{path} has a {METRICS} that is of something else; expected another folder.")
    if not (folder / CONFIG_NAME).exists() and (found := [name for name in MODEL_FILES if (folder / name).exists()]):
        raise UnlearningError(
            f"{path} holds a model that no unlearning has written, or a part of one ({found[0]}); expected another folder."
        )


def _is_ours(metrics: Path) -> bool:
    try:
        content = json.loads(metrics.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"run", "runtime"} <= content.keys()


# ---------------------------------------------------------------------------------------------------------------------
# One request for each output folder


def read_original(private: Path) -> dict[str, Any] | None:
    """What the output folder of a run says about its original; None before one was kept."""
    about = private / ORIGINAL
    if not about.exists():
        return None
    try:
        content = json.loads(about.read_text())
        if {"digest", "run", "folder"} <= content.keys():
            return content
    except (OSError, ValueError, AttributeError):
        pass
    raise UnlearningError(
        f"{about} cannot be read: it is damaged; choose another output_dir, where a checkpoint of this one can "
        "be resumed by its path."
    )


def check_same_request(private: Path, original: Mapping[str, Any], request: str, claimed: bool = False) -> None:
    """Refuse an output folder with a run on another original, or of another request: both would be overwritten.

    Args:
        original: what would be noted of it (see `ORIGINAL`): its digest, where it is on the Hub, whether there is an adapter.
        claimed: whether the run is of this very trainer, which may begin again, but not with what that run has left.
    """
    if claimed:
        about = read_original(private)
        if about and about["digest"] != original["digest"]:
            kept = f" ({private / about['folder']})" if about["folder"] else ""
            raise UnlearningError(
                f"This trainer has changed its model, which is not the original{kept} any more; make a new trainer of that, which "
                "can resume a checkpoint of this one."
            )
    elif other := _other_run(private, lambda: original, request):
        raise UnlearningError(
            f"{private.parent} holds a run {other}, whose original and receipts it keeps; choose another output_dir."
        )


def folder_of_request(name: str, original: Callable[[], Mapping[str, Any]], request: str) -> str:
    """The output folder where none was named: `name`, or `name-2` and so on, the first one without another run in it."""
    numbered = (str(name) if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(folder for folder in numbered if not _other_run(Path(folder, PRIVATE), original, request))


def _other_run(private: Path, original: Callable[[], Mapping[str, Any]], request: str) -> str | None:
    """In words, which other run has this folder."""
    about, kept = read_original(private), private / "request.json"
    if about is None:
        return None
    before = kept.read_text().strip() if kept.exists() else None
    if before and before != request:  # nothing is noted yet by a run that was killed at once
        return "of another request"
    return "on another original model" if _is_another(original(), about) else None


def _is_another(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """By the digests, which with an adapter are also of what it begins with; there, by where the originals are on the Hub."""
    if one["adapter"] or other.get("adapter"):
        places = [(about["repo"], about["revision"]) for about in (one, other) if "repo" in about]
        return len(places) == 2 and places[0] != places[1]
    return one["digest"] != other["digest"]


def keep_request(private: Path, request: str) -> None:
    private.mkdir(parents=True, exist_ok=True)
    (private / "request.json").write_text(f"{request}\n")


def request_digest(samples: Iterable[bytes], tasks: bytes = b"") -> str:
    """Of the forget samples in any order, and which labels of them must go. It stays in the private folder."""
    return hashlib.sha256(b"".join(sorted(map(bytes, samples))) + tasks).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# After a failure


def missing(folder: Path) -> list[Path]:
    """The folders that have to be made for this one, and itself, inner ones first."""
    return [part for part in (folder, *folder.parents) if not part.exists()]


@contextmanager
def taken_back(
    folder: Path,
    patterns: Iterable[str] = ("*",),
    needed: Callable[[Path], bool] = lambda path: False,
    made_for_it: Iterable[Path] = (),
) -> Iterator[None]:
    """If what is inside fails, take away what it has made at `patterns` and is not needed, and folders left empty."""
    patterns, parents = list(patterns), [*made_for_it] or missing(folder)
    before = {path for pattern in patterns for path in folder.glob(pattern)}
    try:
        yield
    except Exception:
        made = {path for pattern in patterns for path in folder.glob(pattern)} - before
        for path in sorted(path for path in made if not needed(path)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for part in parents:
            if part.is_dir() and not any(part.iterdir()):
                part.rmdir()
        raise
