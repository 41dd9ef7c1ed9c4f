"""Saving and loading weights, and their digests."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..errors import UnlearningError
from .find import WEIGHTS, WEIGHTS_INDEX
from .timm import TIMM_PREFIX, is_timm, timm_readable


@contextmanager
def patient_bars() -> Iterator[None]:
    """transformers' bars over weights appear only where these take a while."""

    def patient(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = {"delay": 2.0, **kwargs}
        return factory(*args, **kwargs) if before is None else before(factory, args, kwargs)

    before = logging.set_tqdm_hook(patient)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


@patient_bars()
def save_model(model: nn.Module, folder: str | os.PathLike[str], state_dict: dict[str, Tensor] | None = None) -> None:
    """Saves weights (safetensors) and config; of a `PeftModel` its adapters, of a plain torch module the weights.

    A timm model is saved under timm's own names, so that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads
    it as well as `from_pretrained` does, whether it was built from a config or loaded from either library.

    Args:
        model: The unwrapped model.
        folder: Where to; made if it does not exist, and weights of an earlier save in it are replaced.
        state_dict: The weights, when they had to be gathered from several processes.
    """
    folder = Path(folder)
    if isinstance(model, PeftModel):
        card = folder / "README.md"
        before = card.read_bytes() if card.exists() else None
        model.save_pretrained(str(folder), state_dict=state_dict)
        if before is not None:
            card.write_bytes(before)
        else:
            card.unlink(missing_ok=True)  # PEFT's, a form with nothing filled in
        return
    if not isinstance(model, PreTrainedModel):
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is None:
            safetensors.torch.save_model(model, str(folder / WEIGHTS))
        else:
            safetensors.torch.save_file(state_dict, folder / WEIGHTS)
        return
    (folder / WEIGHTS_INDEX).unlink(missing_ok=True)  # of an earlier save: save_pretrained removes only its shards
    if not is_timm(model.config):
        model.save_pretrained(folder, state_dict=state_dict)
        return
    state_dict = model.state_dict() if state_dict is None else state_dict
    state_dict = {key.removeprefix(TIMM_PREFIX): tensor for key, tensor in state_dict.items()}
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size="1000GB")  # timm reads a single file
    path = folder / "config.json"
    path.write_text(json.dumps(timm_readable(json.loads(path.read_text()), model), indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def own_memory(model: nn.Module) -> None:
    """Copies weights on a CPU out of the memory-mapped file in which `from_pretrained` leaves them.

    There they start at any address, and kernels then add in another order: the same weights and inputs give logits that
    differ in the last bit. They also change when the file is overwritten in place. Nor does bitsandbytes pack them anew.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
    keep_unpacked(model)


def keep_unpacked(model: nn.Module) -> None:
    """bitsandbytes packs 4-bit weights anew for some CPUs at their first forward pass in eval mode, which rounds their scales,
    leaves no gradient and cannot be undone. Where it has not yet, it will not."""
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise UnlearningError(
                    f"bitsandbytes has packed {name} for this processor in an earlier forward pass, and its weights are no longer what "
                    "they were; load the model anew."
                )
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (to type checkers a module has tensors only)


def weights_digest(model: nn.Module) -> str:
    """The digest of all tensors in the state dict; of a model that is cut up over processes, on all of them together."""
    return digest_tensors(sorted(model.state_dict().items()))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be cut up over processes, which all must ask for it then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, where another one lies, and cut up over processes as that is, if it is."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def bytes_of(tensor: Tensor) -> np.ndarray:
    # numpy has no bfloat16, and a tensor without dimensions cannot be viewed as bytes before it is flattened
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, given in the order of their names.

    Files are not hashed: sharding and metadata change files, not weights.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(bytes_of(whole(tensor).detach()).data)
    return digest.hexdigest()
