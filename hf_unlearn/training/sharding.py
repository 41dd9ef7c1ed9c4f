"""A model whose weights FSDP2 cuts up over the processes: how it is cut, and how other models are cut alike.

Whatever stands beside it (a teacher, the original, a merged model) is made of its `form`, a copy that takes no memory for
parameters, so that no process ever holds a second whole model on its device.
"""

import copy
import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.optim import SGD, Optimizer
from transformers import PreTrainedModel

from ..models import base_of
from ..models.adapters import tuner_layers
from ..models.weights import bytes_of, cut_as, whole

ALIGNED = 64  # bytes


def form(model: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and no memory; its buffers are real."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, cast(dict[int, Any], empty))


class Sharding:
    """How one run cuts models up.

    Attributes:
        form: of the model that is trained, as it was before it was cut.
        folder: where whole weights lie while they are asked for.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, folder: str):
        self.accelerator, self.form, self.folder = accelerator, form(model), Path(folder)
        plugin = cast(Any, accelerator.state.fsdp_plugin)
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = _classes_to_cut(base_of(model))

    def cut(self, model: nn.Module, optimizer: Optimizer | None) -> tuple[nn.Module, Optimizer | None]:
        """The model that is trained, in place; accelerate takes it together with an optimizer only, which goes on with the
        pieces. The Trainer makes its own later, if none is given."""
        accelerator = self.accelerator
        model, prepared = accelerator.prepare(model, optimizer or SGD(model.parameters()))
        if optimizer is None:
            accelerator._optimizers.remove(prepared)
        # The Trainer prepares both once more. accelerate would then look pieces up by their address, and empty ones have none.
        accelerator.prepare = cast(Any, self._prepared)
        return model, optimizer and prepared

    def _prepared(self, *objects: Any) -> Any:
        found = [self.accelerator.prepare_optimizer(x) if isinstance(x, Optimizer) else x for x in objects]
        return found if len(found) > 1 else found[0]

    def twin(self, model: nn.Module) -> nn.Module:
        """A frozen copy of a model that was cut, made of the pieces that lie in this process."""
        twin = self._cut_frozen(copy.deepcopy(self.form))
        twin.load_state_dict(
            {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, assign=True
        )
        return _tied(twin)

    def filled(self, shape: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
        """A frozen model of this form, with whole weights that the first process has."""
        model = self._cut_frozen(shape)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, dict(weights), options=options)
        return _tied(model)

    def of_whole(self, model: nn.Module) -> nn.Module:
        """A model that every process has whole, frozen and cut."""
        return self._cut_frozen(model)

    @property
    def keeps_pieces(self) -> bool:
        """Whether checkpoints hold pieces, and no whole weights."""
        return "SHARDED" in str(cast(Any, self.accelerator.state.fsdp_plugin).state_dict_type)

    def whole_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Of a model that was cut, for the first process; the others get none. They are gathered one after the other into a file, and
        stay there: what is asked of them is read from it, so that no process has all of them in its memory."""
        first, places = self.accelerator.is_main_process, {}
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) if first else nullcontext() as file:
            for name, tensor in model.state_dict().items():
                tensor = whole(tensor)
                if file is not None:
                    places[name] = file.seek(-file.tell() % ALIGNED, os.SEEK_CUR), tensor.dtype, tensor.shape
                    file.write(bytes_of(tensor).data)
            if file is not None:
                file.flush()
            return {name: _in_file(cast(BinaryIO, file), *place) for name, place in places.items()}

    def merged(self, model: nn.Module) -> nn.Module:
        """A plain model with the weights that `model`, which was cut, has with its active adapters. They are merged by the
        first process, on its CPU."""
        weights, adapted = self.whole_weights(model), cast(PeftModel, copy.deepcopy(self.form))
        plain = copy.deepcopy(adapted).unload()
        if not self.accelerator.is_main_process:
            return self.filled(plain, {})
        adapted.load_state_dict(weights, assign=True)
        for layer, live in zip(tuner_layers(adapted), tuner_layers(model), strict=True):
            layer._active_adapter = live._active_adapter
        return self.filled(plain, adapted.merge_and_unload(safe_merge=True).state_dict())

    def _cut_frozen(self, model: nn.Module) -> nn.Module:
        plugin = cast(Any, self.accelerator.state.fsdp_plugin)
        spares_memory, plugin.cpu_ram_efficient_loading = plugin.cpu_ram_efficient_loading, False
        try:
            return fsdp2_prepare_model(self.accelerator, model).eval().requires_grad_(False)
        finally:
            plugin.cpu_ram_efficient_loading = spares_memory


def _in_file(file: BinaryIO, at: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """A tensor whose memory is a part of a file, which stays as it is if the tensor is changed."""
    if not shape.numel():
        return torch.empty(shape, dtype=dtype)
    numbers = np.memmap(file, mode="c", offset=at, shape=(dtype.itemsize * shape.numel(),))
    return torch.from_numpy(numbers).view(dtype).view(shape)


def _classes_to_cut(model: nn.Module) -> list[str] | None:
    """The classes that transformers says a model is cut at, but for those around its input embeddings: accelerate cuts these by
    themselves, and would cut them twice (ViT, BERT)."""
    if not isinstance(model, PreTrainedModel) or not model._no_split_modules:
        return None
    inner = model.get_input_embeddings()
    around = {type(m).__name__ for m in model.modules() if m is not inner and inner in list(m.modules())}
    return [name for name in model._no_split_modules if name not in around]


def _tied(model: nn.Module) -> nn.Module:
    """With the weights shared again that loading has parted."""
    if isinstance(base := base_of(model), PreTrainedModel):
        base.tie_weights()
    return model


def is_cut(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def keeps_nothing(optimizer: Any) -> bool:
    """Whether an optimizer has no state: SGD without momentum, itself or as accelerate has prepared it."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return isinstance(inner, SGD) and not any(group["momentum"] for group in inner.param_groups)


def pieces(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What this process holds of whole weights that every process has, cut as the model is."""
    like = model.state_dict()
    return {name: cut_as(tensor.to(like[name].dtype), like[name]) for name, tensor in weights.items()}
