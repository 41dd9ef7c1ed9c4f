"""Whether a checkpoint is as it was when it was complete."""

import json
import zlib
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from ..errors import UnlearningError


def checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of each file, by its place in the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in files}


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file, of which a gigabyte takes about a second: by these a damaged one is known."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def check_whole(checkpoint: Path, files: dict[str, list[int]], best: bool) -> None:
    """Refuse a checkpoint of which a file was lost or changed since it was complete: the run would go on elsewhere."""
    for name, checksum in files.items():
        path = checkpoint / name
        if not path.is_file() or _checksum(path) != checksum:
            what = f"{name} is not as it was written" if path.is_file() else f"{name} is missing"
            raise UnlearningError(
                f"{checkpoint} cannot be resumed, because its {what}; pass another checkpoint, or start anew without "
                "resume_from_checkpoint."
            )
    best_of = json.loads((checkpoint / TRAINER_STATE_NAME).read_text())["best_model_checkpoint"] if best else None
    if best_of and not Path(best_of).is_dir():
        raise UnlearningError(
            f"{checkpoint} cannot be resumed, because {best_of}, the best checkpoint until then, is missing; put it back, or "
            "start anew without resume_from_checkpoint."
        )
