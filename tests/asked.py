"""A small request in files, and its original, as `choose` and `compare` are given them."""

import hashlib
from pathlib import Path

from tests.samples import fitted, learnt

SETS = ("forget", "retain", "unseen")


def write_request(folder: Path) -> Path:
    """The model and the three sets, each in a folder of its name."""
    fitted().save_pretrained(folder / "model")
    for name, data in learnt().items():
        data.save_to_disk(folder / name)
    return folder


def options(folder: Path, model: str = "model") -> list[str]:
    """What both commands need."""
    return [str(folder / model), *(word for name in SETS for word in (f"--{name}", str(folder / name)))]


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, by a digest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
