"""The original: loaded, kept beside the run, and had again; and the weights that it was trained from."""

import copy
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .. import models
from ..data.types import ProcessingClass
from ..errors import UnlearningError
from ..models.adapters import Adapter
from ..models.types import ModelOrName, ModelSource
from ..tasks.base import Task
from .arguments import UnlearningArguments
from .output import COMPLETE, ORIGINAL, PRIVATE, check_not_original, read_original, taken_back
from .sharding import Sharding


def load_original(
    model: ModelOrName, processing_class: ProcessingClass | None, args: UnlearningArguments
) -> tuple[nn.Module, ProcessingClass | None, dict[str, str] | None, str | None]:
    """The model, with memory of its own, and what makes its inputs; where on the Hub it is, if that is known, and the local
    folder that it was loaded from, which is not written to."""
    origin = None
    if isinstance(model, (str, os.PathLike)):
        name, revision = models.split_revision(model)
        commit = models.commit_of(name, revision)
        model = models.load_model(name, revision=commit or revision)
        origin = {"repo": name, "revision": commit} if commit else None
        processing_class = processing_class or models.load_processor(name, model, commit or revision)
    folder = models.folder_of(model)
    check_not_original(args.output_dir, folder, "output_dir")
    models.own_memory(model)
    return model, processing_class, origin, folder


@contextmanager
def original_of(
    model: nn.Module,
    adapter: Adapter | None,
    private: Path,
    device: torch.device | str,
    sharding: Sharding | None = None,
) -> Iterator[nn.Module]:
    """The model as it was before unlearning, inside a `with` block; read from where it is kept, by the first process alone where
    it is cut up over all of them."""
    if adapter:
        with adapter.disabled():
            yield model
        return
    about = read_original(private)
    if about is None:
        raise UnlearningError(f"{private} is gone, and the original with it; run again to keep it.")
    kept = str(private / about["folder"]) if about["folder"] else about["repo"]

    def whole() -> nn.Module:
        if isinstance(model, PreTrainedModel):
            return cast(nn.Module, models.load_model(kept, revision=about.get("revision")))
        original = copy.deepcopy(sharding.form).to_empty(device="cpu") if sharding else copy.deepcopy(model)
        models.load_weights(original, kept)
        return original

    if sharding:
        weights = whole().state_dict() if sharding.accelerator.is_main_process else {}
        yield sharding.filled(copy.deepcopy(sharding.form), weights)
    else:
        yield whole().to(device)


@contextmanager
def files_taken_back(
    folder: Path, model: Callable[[], nn.Module], is_sharded: bool, made: list[Path]
) -> Iterator[None]:
    """A run that fails takes away what it has written, but for what it is begun again from: complete checkpoints, and the
    kept original where the model in memory is no longer that."""
    private = folder / PRIVATE
    about = private / ORIGINAL
    before = about.read_bytes() if about.exists() else None

    @functools.cache
    def is_original() -> bool:
        if is_sharded:
            return not about.exists()
        kept = read_original(private)
        return kept is None or kept["digest"] == models.weights_digest(model())

    def is_needed(path: Path) -> bool:
        checkpoint = path.name.startswith(PREFIX_CHECKPOINT_DIR)
        return (path / COMPLETE).exists() if checkpoint else not is_original()

    with taken_back(folder, (f"{PREFIX_CHECKPOINT_DIR}-*", PRIVATE, f"{PRIVATE}/*", "runs"), is_needed, made):
        try:
            yield
        except Exception:
            now = about.read_bytes() if about.exists() else None
            if before not in (None, now) and is_original():  # checkpoints of the run before count again
                about.write_bytes(before)
            raise


def base_weights(base: ModelSource | None, original: nn.Module, task: Task) -> dict[str, torch.Tensor]:
    """The weights that the original was trained from; `base` is a model, its name, a function, or "scratch"."""
    if base == "scratch":
        base = type(original)(copy.deepcopy(cast(PreTrainedModel, original).config))
    elif isinstance(base, (str, os.PathLike)):
        base = task.base(str(base))
    elif callable(base) and not isinstance(base, nn.Module):
        base = base()
    if not isinstance(base, nn.Module):
        raise UnlearningError(
            f"base_model is a {type(base).__name__}; expected a model, a Hub id, a folder or a function."
        )
    found, own = base.state_dict(), original.state_dict()
    shapes = ({(name, tensor.shape) for name, tensor in state.items()} for state in (found, own))
    if unlike := set.symmetric_difference(*shapes):
        raise UnlearningError(
            f"base_model is a {type(base).__name__} whose weights do not fit the original ({min(unlike)[0]}); expected "
            "the same architecture."
        )
    # One after the other: of a model that is cut up they are gathered for it.
    wholes = ((found[name], models.weights.whole(tensor)) for name, tensor in own.items())
    if all(torch.equal(theirs.to(ours), ours) for theirs, ours in wholes):
        raise UnlearningError(
            "base_model has the very weights of the original; pass what it was trained from, which has not seen the "
            'forget samples, or "scratch".'
        )
    return found
