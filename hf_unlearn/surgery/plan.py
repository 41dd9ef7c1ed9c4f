"""Where a model is edited: operators, what they read, and the plan of all."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

LinearMap = nn.Linear | nn.Conv2d | Conv1D
OPERATORS = (nn.Linear, nn.Conv2d, Conv1D)
LISTS = (nn.ModuleList, nn.Sequential)
BY_HAND = (
    'give the stages by hand: stages=[["name of an operator", ...], ...], the names of the linear layers and convolutions that '
    "read the activation of each stage, the classifier in the last one"
)

Node = Any  # of autograd's graph
Activation = tuple[Node, int]  # the node that made a tensor, and which of its outputs it is


@dataclass(frozen=True)
class Operator:
    """A linear map of the network.

    Attributes:
        name: among the model's modules.
        module: an `nn.Linear`, an `nn.Conv2d` without groups, or a `Conv1D` of transformers (its weight is [in, out]).
        norm, norm_name: the BatchNorm that alone reads what it gives, if there is one.
    """

    name: str
    module: LinearMap
    norm: _BatchNorm | None = None
    norm_name: str | None = None


@dataclass(frozen=True)
class Reading:
    """An activation, by the operators that read that very tensor.

    Attributes:
        stage: counted from 1, the stage nearest to the input.
        is_head: whether these operators give the logits.
    """

    stage: int
    operators: list[Operator]
    is_head: bool = False


@dataclass(frozen=True)
class Plan:
    """The readings in the order of the data flow.

    Attributes:
        stages: how many; the last one is the head, which may have several readings (BERT's pooler and its classifier).
        tokens: which tokens of the last block the logits come from: `first`, `last` (the end of a text) or `all`; None for a
            network without tokens.
        notes: what was passed over, in sentences.
    """

    readings: list[Reading]
    stages: int
    tokens: str | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for reading in self.readings:
            for operator in reading.operators:
                module, shape = operator.module, tuple(operator.module.weight.shape)
                what = type(module).__name__ + (f", before {operator.norm_name}" if operator.norm else "")
                lines.append(f"{reading.stage}  {operator.name}  {what} {shape}" + ("  head" * reading.is_head))
        if self.tokens:
            lines.append(f"The head reads {'all tokens' if self.tokens == 'all' else f'the {self.tokens} token'}.")
        return "\n".join([*lines, *self.notes])
