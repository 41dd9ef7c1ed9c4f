"""A run in a folder that is taken away after it: to look at a request, or to try a method on a model that nobody needs."""

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..data.samples import seeded
from ..errors import UnlearningError
from ..models import adapters
from ..models.types import ModelOrName
from .arguments import UnlearningArguments
from .trainer import UnlearningTrainer


@contextlib.contextmanager
def set_up(model: ModelOrName, args: UnlearningArguments | None, **given: Any) -> Iterator[UnlearningTrainer]:
    """The trainer of a run, for a `with` block. If it is not begun inside, the model is afterwards as it was.

    Args:
        given: what the trainer takes beside model and arguments.
    """
    if args is not None and not isinstance(args, UnlearningArguments):
        raise UnlearningError(f"args is a {type(args).__name__}; expected UnlearningArguments.")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        args = UnlearningArguments(folder, report_to="none", disable_tqdm=True) if args is None else copy.copy(args)
        args.output_dir, args.measure = folder, False
        stack.enter_context(seeded(0))  # the Trainer seeds the global generators, and they are the caller's
        if isinstance(model, nn.Module):
            stack.enter_context(_as_it_was(model))
        yield UnlearningTrainer(model, args, **given)


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Afterwards: no adapter of ours, the same weights trained, the same modes, on the same device."""
    parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    try:
        yield
    finally:
        adapters.detach(model)
        for parameter, trained in parameters:
            parameter.requires_grad = trained
        for module, training in modes:
            module.training = training
        if next(model.parameters()).device != device:
            model.to(device)
