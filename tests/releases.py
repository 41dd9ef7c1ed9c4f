"""Folders and repositories with a release in them, as several tests of the Hub share them."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_unlearn.models.weights import save_model
from tests.hub.server import LocalHub

CONFIG = '{"method": "lotus", "config": {}}'
CARD = b"---\ntags:\n- machine-unlearning\n---\n# A model\n"


def write_release(folder: Path, model: PreTrainedModel, processor: Any = None, unlearned: bool = True) -> Path:
    """What a release has, around a model."""
    save_model(model, folder)
    if processor is not None:
        processor.save_pretrained(folder)
    (folder / "README.md").write_bytes(CARD)
    if unlearned:
        for name in ("unlearning_config.json", "unlearning_receipt.json", "metrics.json", "audit.json", "audit.html"):
            (folder / name).write_text("{}\n" if name != "unlearning_config.json" else CONFIG)
    return folder


def publish(hub: LocalHub, name: str, folder: Path) -> str:
    """A repository with a folder on `main`; its name."""
    hub.put(name, contents(folder))
    return name


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
