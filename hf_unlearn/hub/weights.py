"""The weights in a folder, whatever files they are spread over: their digest, and how far two folders are apart."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from huggingface_hub import hf_hub_download
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UnlearningError
from ..models.timm import TIMM_PREFIX
from ..models.weights import digest_tensors
from .client import CONFLICTS, reader, retry
from .names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RECEIPT, SHARDS, WEIGHTS


def weight_files(names: Iterable[str]) -> list[str]:
    """Those of a folder's files that `from_pretrained` reads: one file or its shards, and adapters."""
    paths = sorted(map(PurePosixPath, names))
    top = {path.name for path in paths if len(path.parts) == 1}
    whole = [name for name in top if name == WEIGHTS] or [name for name in top if PurePosixPath(name).match(SHARDS)]
    return sorted(whole) + adapter_files(names)


def adapter_files(names: Iterable[str]) -> list[str]:
    """The adapters among a folder's files: PEFT puts `default` at the top, and each other one in a folder of its name."""
    paths = sorted(map(PurePosixPath, names))
    return [str(path) for path in paths if path.name == ADAPTER_WEIGHTS and len(path.parts) <= 2]


class TooLargeError(UnlearningError):
    """More would have to be fetched than is allowed."""


def fetch_weights(repo: str, commit: str, token: str | bool | None = None, limit: int | None = None) -> Path:
    """A folder with the weights, the config and the receipt of a revision on the Hub; raises one of HUB_ERRORS.

    Args:
        limit: bytes; if it is more, nothing is fetched.
    """
    tree = retry(lambda: list(reader(token).list_repo_tree(repo, revision=commit, recursive=True)), on=CONFLICTS)
    sizes = {item.path: item.size for item in tree if isinstance(item, RepoFile)}
    files = weight_files(sizes)
    configs = [str(PurePosixPath(file).with_name(ADAPTER_CONFIG)) for file in adapter_files(files)]
    wanted = sorted({*files, *configs, "config.json", RECEIPT} & set(sizes))
    if not wanted:
        raise UnlearningError(f"{repo} at {commit} holds no {WEIGHTS}, shards of it or {ADAPTER_WEIGHTS}.")
    if limit is not None and (size := sum(sizes[name] for name in wanted)) > limit:
        raise TooLargeError(
            f"{repo} at {commit[:12]} would be {_gigabytes(size)} to fetch, and {_gigabytes(limit)} are allowed; pass "
            "max_parent_bytes (--max-parent-gb), or a folder that has it as parent."
        )
    # File by file: without a connection, a download of all gives whatever part of the revision is in the cache.
    for file in wanted:
        path = Path(retry(hf_hub_download, repo, file, revision=commit, token=token))
    return path.parents[file.count("/")]


def parent_limit(folder: Path) -> int:
    """How much may be fetched as the parent of a release that somebody else has written: twice the weights of the release
    (which may be stored in half the precision), but 1 GiB in any case."""
    return max(2 * sum((folder / name).stat().st_size for name in weight_files(files_in(folder))), 2**30)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def files_in(folder: Path) -> list[str]:
    """Every file and link under a folder, by its path with slashes; what is in a folder behind a link is not looked at."""
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(path.relative_to(folder).as_posix() for path in found)


@contextmanager
def reading(folder: Path) -> Iterator[dict[str, "Stored"]]:
    """The tensors in a folder's weight files, by name; read one by one, so that no model need fit in memory."""
    files = weight_files(files_in(folder))
    if not files:
        raise UnlearningError(
            f"{str(folder)!r} holds no {WEIGHTS}, shards of it or {ADAPTER_WEIGHTS}; pass the folder of a saved model."
        )
    with ExitStack() as stack:
        tensors: dict[str, Stored] = {}
        for file in files:
            try:
                handle = stack.enter_context(safe_open(folder / file, framework="pt"))
            except SafetensorError as error:
                raise UnlearningError(f"{file} in {str(folder)!r} is no whole safetensors file ({error}).") from error
            prefix = "" if "/" not in file else file.rpartition("/")[0] + "/"  # PEFT: a folder for each adapter
            for key in handle.keys():  # noqa: SIM118  (it is no dictionary)
                if prefix + key in tensors:
                    raise UnlearningError(
                        f"{str(folder)!r} holds {prefix + key!r} in two files; remove the stale one."
                    )
                tensors[prefix + key] = Stored(handle, key)
        yield tensors


class Stored:
    """A tensor in an open file."""

    def __init__(self, handle: safe_open, key: str):
        self._handle, self._key = handle, key

    def read(self) -> Tensor:
        return self._handle.get_tensor(self._key)

    @property
    def shape(self) -> list[int]:
        return self._handle.get_slice(self._key).get_shape()


def saved_digest(folder: str | Path) -> str:
    """`models.weights_digest` of saved weights: over tensors under the names in the files, not over the files."""
    with reading(Path(folder)) as tensors:
        return digest_tensors((name, tensors[name].read()) for name in sorted(tensors))


def saved_metadata(folder: str | Path) -> list[dict[str, str]]:
    """The different metadata that the headers of the weight files have."""
    found = []
    for name in weight_files(files_in(Path(folder))):
        with safe_open(Path(folder, name), framework="pt") as file:
            if (metadata := file.metadata() or {}) not in found:
                found.append(metadata)
    return sorted(found, key=lambda metadata: sorted(metadata.items()))


def relative_distance(before: str | Path, after: str | Path) -> float | None:
    """‖after − before‖ / ‖before‖ over all floating-point weights; None where the two have not the same tensors, or are
    adapters, which may lie on different models."""
    if any(adapter_files(files_in(Path(folder))) for folder in (before, after)):
        return None
    with reading(Path(before)) as old, reading(Path(after)) as new:
        old, new = ({name.removeprefix(TIMM_PREFIX): t for name, t in side.items()} for side in (old, new))
        if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
            return None
        moved = size = 0.0
        for name in sorted(old):
            a, b = old[name].read(), new[name].read()
            if a.is_floating_point():
                a, b = a.double(), b.double()
                moved += (b - a).square().sum().item()
                size += a.square().sum().item()
    return (moved / size) ** 0.5 if size else None
