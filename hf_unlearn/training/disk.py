"""Room on the disk, and what is said where there is none."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import nn
from transformers.trainer_utils import SaveStrategy

from ..errors import UnlearningError
from .arguments import UnlearningArguments


def check_disk(model: nn.Module, args: UnlearningArguments) -> None:
    """Room for the original, the result and one checkpoint with two moments of the optimizer."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    check_room(args, 2 * size + (0 if args.save_strategy == SaveStrategy.NO else size + 2 * trained))


def check_room(args: UnlearningArguments, needed: int) -> None:
    """Refuse to begin what the disk of the output folder has no room for."""
    folder = Path(args.output_dir).absolute()
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if free < needed:
        raise UnlearningError(
            f"{args.output_dir} has {free / 2**20:.0f} MiB free, and this run needs about {needed / 2**20:.0f} MiB; free "
            "some space, or choose another output_dir."
        )


# What safetensors says, and what torch.save says: its zip writer only notices that fewer bytes arrived than it wrote.
_DISK_FULL = ("No space left", "File too large", "quota exceeded", "iostream", "inline_container", "StreamWriter")


@contextmanager
def clear_write_errors(folder: str | Path) -> Iterator[None]:
    """A full disk, or a folder that cannot be written, in one sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for I/O
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(text in str(error) for text in _DISK_FULL)
        if isinstance(error, RuntimeError) and not full:
            raise
        why = "the disk is full" if full else str(error)
        raise UnlearningError(
            f"{folder} could not be written: {why}. The model is still in memory and complete checkpoints are as they "
            "were; make room and save again, or resume."
        ) from error
