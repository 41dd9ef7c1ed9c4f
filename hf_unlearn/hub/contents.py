"""What of a folder is pushed, and what must not be in it: no token, no path of this machine, nothing but text and tensors."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import get_token

from ..errors import UnlearningError
from .names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AUDIT_PAGE,
    CARD,
    METRICS,
    RECEIPT,
    VOCABULARIES,
    WEIGHT_FILES,
    WEIGHTS,
    fits,
    is_model_name,
    is_released,
)

if TYPE_CHECKING:
    from .repository import Parent

logger = logging.getLogger(__name__)

Files = dict[str, Path | bytes]

PLACEHOLDER = b"[More Information Needed]"  # in the card that PEFT writes
BINARY = ("*.model", "*.spm")  # SentencePiece
MOST = 100 * 2**20  # bytes of a safetensors header: no reader takes a longer one

# Folders that machines have at their root.
ROOTS = (
    *("mnt", "media", "home", "root", "Users", "Volumes", "tmp", "var", "opt", "srv", "data", "scratch"),
    *("storage", "export"),
    *("workspace", "workspaces", "work", "content", "kaggle", "gpfs", "lustre", "nfs", "efs", "fsx", "dbfs", "usr"),
    *("projects", "nobackup"),
)
# Those that are the same everywhere, of which a sentence may speak.
PUBLIC = (
    *("usr/share", "usr/lib", "usr/bin", "usr/include", "usr/local", "etc", "bin", "lib", "proc", "sys"),
    *("content", "kaggle"),
)
PATH = re.compile(r"(?<![\w./~:+)\]}])/[^\s/\"'`<>()\[\]{}|;*]+/[^\s\"'`<>()\[\]{}|;]*")
WINDOWS_PATH = re.compile(r"(?<![A-Za-z])[A-Za-z]:\\{1,2}[\w. -]+\\|(?<!\\)\\\\[\w.-]+\\\w|\bfile://")
HOME_PATH = re.compile(r"(?<![\w./~])~[/\\][^\s\"'`<>()]+")
WHOLE_PATH = re.compile(r"/[^/\s]+/\S.*|[A-Za-z]:[\\/].*|\\\\[\w.-]+\\.*")  # the whole of a text in JSON
BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={1,2}")  # a key or a signature, whose slashes lead nowhere
PLACE = re.compile(r"\bdata-at=\"[^\"]*\"")  # of a figure in an audit's page


def released_files(folder: str | Path) -> Files:
    """The files of a release by their path in the repository.

    Args:
        folder: what `hub.prepare` or `UnlearningResult.save` wrote.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UnlearningError(f"{str(folder)!r} is no folder; pass one that result.save() wrote.")
    files: Files = {}
    is_prepared = (folder / RECEIPT).is_file()  # else its figures may come with lists of classes
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not (is_released(name) and (path.is_file() or path.is_symlink())) or _is_stray(path, folder):
            continue
        if path.is_symlink():
            raise UnlearningError(
                f"{name} in {str(folder)!r} is a link, and what it leads to may be anything; put the file itself there."
            )
        if (name == CARD and PLACEHOLDER in path.read_bytes()) or (name == METRICS and not is_prepared):
            continue
        files[name] = path
    left = [path.name for path in folder.iterdir() if path.is_file() and path.name not in files]
    if left:
        logger.warning(
            f"Not pushed: {', '.join(sorted(left))}; a release has no such files, and figures only beside a receipt."
        )
    if not any(is_weights(name) for name in files):
        raise UnlearningError(
            f"{str(folder)!r} holds no {WEIGHTS} and no {ADAPTER_WEIGHTS}; pass a folder that result.save() wrote."
        )
    if not is_prepared:
        logger.warning(
            f"{folder} holds no {RECEIPT}, so no receipt and no figures are pushed{'' if CARD in files else ', and no card'}; for "
            "a release with all of them, use result.push_to_hub() or a recipe with push_to."
        )
    return files


def _is_stray(path: Path, folder: Path) -> bool:
    """Whether this is half of an adapter, as a backup of its configuration is."""
    if path.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        return False
    return path.parent != folder and not all(
        (path.parent / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    )


def is_weights(name: str) -> bool:
    return fits(PurePosixPath(name).name, WEIGHT_FILES)


# ---------------------------------------------------------------------------------------------------------------------
# What must not be in it


def check_private(files: Mapping[str, Path | bytes], folder: Path, token: str | bool | None) -> None:
    """Refuse to push a token, a path of this machine, or what is neither text nor tensors.

    Of weights the header is read, which has names and may have notes.
    """
    secrets = [("a token", secret) for secret in (token, get_token()) if isinstance(secret, str) and secret]
    folder = folder.absolute()
    local = {Path.home(), folder, folder.parent} - {Path(folder.anchor), Path(tempfile.gettempdir())}
    secrets += [("a local path", f"{path}{os.sep}") for path in sorted(local)]
    class_names = _class_names(files)
    forms = [(what, {secret.encode(), json.dumps(secret)[1:-1].encode()}) for what, secret in secrets]
    for name, content in files.items():
        last = PurePosixPath(name).name
        data = _header(content, name) if is_weights(name) else _bytes(content)
        found = next((what for what, of in forms if any(form in data for form in of)), None)
        if not found and not fits(last, BINARY):
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text:
                raise UnlearningError(f"{name} is no text, which a file of that name has to be; take it out")
            text = PLACE.sub("", text) if last == AUDIT_PAGE else text
            if not fits(last, VOCABULARIES) and (path := _local_path(text, last.endswith(".json"), class_names)):
                found = f"a local path ({path})"
        if found:
            raise UnlearningError(f"{name} holds {found}, which must not be pushed; take it out")


def _header(content: Path | bytes, name: str) -> bytes:
    """The header of a safetensors file: a length of eight bytes, then that much JSON."""
    if isinstance(content, bytes):
        return content
    with open(content, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, MOST))
    if len(header) < size:
        raise UnlearningError(f"{name} is no whole safetensors file; save the model again")
    return header


def _local_path(text: str, is_json: bool, class_names: Set[str]) -> str | None:
    """The first path of some machine in a text, in JSON in any key or value.

    That is one of three parts or more, or of two below a folder that machines have at their root. A sentence may speak of
    places that are the same everywhere, and a class may be called as it likes, but for such roots.
    """
    try:
        texts = [*_texts(json.loads(text))] if is_json else [text]
    except ValueError:
        texts, is_json = [text], False
    for part in texts:
        if is_json and BASE64.fullmatch(part):
            continue
        if is_json and WHOLE_PATH.fullmatch(part) and _is_path(part, (), class_names):
            return part[:80]
        found = [match for match in PATH.findall(part) if _is_path(match.rstrip(".,:!?"), PUBLIC, class_names)]
        if is_json and (match := HOME_PATH.search(part)):
            found.append(match[0])
        if match := WINDOWS_PATH.search(part):
            found.append(re.split(r"[\s\"'`<>()]", part[match.start() :], maxsplit=1)[0])
        if found:
            return found[0][:80]
    return None


def _is_path(text: str, public: Sequence[str], class_names: Set[str]) -> bool:
    if not text.startswith("/"):
        return True
    parts = [part for part in text.split("/") if part]
    if any(parts[: place.count("/") + 1] == place.split("/") for place in public):
        return False
    if parts[0] in ROOTS:
        return len(parts) > 1
    return len(parts) > 2 and text not in class_names


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _texts(item)


def _class_names(files: Mapping[str, Path | bytes]) -> set[str]:
    """As the model has them: those of Freebase look like paths."""
    names = _read(files["config.json"], "config.json").get("id2label") if "config.json" in files else None
    return {name for name in names.values() if isinstance(name, str)} if isinstance(names, dict) else set()


# ---------------------------------------------------------------------------------------------------------------------
# What it names


def without_local_bases(files: Files) -> tuple[Files, list[str]]:
    """The files, and those of them that are configurations of adapters whose base is a local folder: its name is gone.

    The name alone tells, since the push may be made elsewhere than the adapter.
    """
    local = {}
    for name in (name for name in files if PurePosixPath(name).name == ADAPTER_CONFIG):
        config = _read(files[name], name)
        base = config.get("base_model_name_or_path")
        if base and not is_model_name(base):
            local[name] = _written(config | {"base_model_name_or_path": None})
    return files | local, list(local)


def with_base(content: bytes, base: "Parent") -> bytes:
    """An adapter's configuration with its base model, which is on the Hub."""
    config = json.loads(content)
    return _written(config | {"base_model_name_or_path": base.repo_id, "revision": base.commit})


def named_repositories(files: Mapping[str, Path | bytes]) -> set[str]:
    """The repositories that a release was made from, as its receipt, its figures and its adapters name them."""
    receipt, metrics = (_read(files[name], name) if name in files else {} for name in (RECEIPT, METRICS))
    links = [receipt.get("parent"), receipt.get("previous"), (metrics.get("run") or {}).get("original")]
    adapters = [_read(files[name], name) for name in files if PurePosixPath(name).name == ADAPTER_CONFIG]
    names = [link.get("repo") for link in links if link]
    return {name for name in names + [about.get("base_model_name_or_path") for about in adapters] if name}


def _read(content: Path | bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(_bytes(content))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UnlearningError(f"{name} is no JSON object; expected it as result.save() or hub.prepare wrote it.")
    return found


def _written(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _bytes(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()
