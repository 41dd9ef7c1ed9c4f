"""Tasks: what differs between classifiers, language models and models of several tasks."""

from collections.abc import Mapping, Sequence

from torch import nn

from .. import models
from .base import Supervision, Task
from .causal_lm import CausalLM
from .classification import ImageClassification, TextClassification
from .multitask import MultiTask
from .several import Losses

TASKS: dict[str, type[Task]] = {
    kind.name: kind for kind in (ImageClassification, TextClassification, CausalLM, MultiTask)
}


def task_of(
    model: nn.Module, own_losses: Losses | None = None, own_tasks: Sequence[str] | Mapping[str, str] | None = None
) -> Task:
    """The task of a model, from its head; with losses of the user's own (see `Multitask`), several tasks."""
    if own_losses:
        return MultiTask(model, own_losses, own_tasks)
    return TASKS[models.task_of(model)](model)


__all__ = ["TASKS", "Supervision", "Task", "task_of"]
