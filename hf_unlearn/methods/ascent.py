"""What forgetting ascends on, for all methods that push a loss up."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..tasks.base import Task
from .base import MethodConfig

OFFSET = 0.05  # keeps the slope of log(1 + offset − p) finite where the model is sure


def ascended(losses: Tensor, objective: str) -> Tensor:
    """What is ascended on, from the cross-entropies ℓ = −log p of samples: `ce`, ℓ itself, or `bounded`, log(1.05 − p).

    The slope of the second in ℓ is p/(1.05 − p): 20 where a sample is known, 0 where it is not.

    >>> ascended(torch.tensor([0.0, 9.0]), "bounded")
    tensor([-2.9957,  0.0487])
    """
    return torch.log1p(OFFSET - torch.exp(-losses)) if objective == "bounded" else losses


@dataclass
class AscentConfig(MethodConfig):
    """Settings of a method that pushes the loss of forget samples up."""

    objective: Literal["bounded", "ce"] | None = field(
        default=None,
        metadata={
            "help": "what forgetting ascends on, logged as `forget_loss`: ce: the cross-entropy −log p (the papers), whose slope is "
            "largest where a sample is forgotten already; bounded: log(1.05 − p), whose slope is largest where it is known, with p "
            "of the true class, or of a text exp(−its mean loss); null: bounded of a classifier, ce of a language model (ours)"
        },
    )

    def objective_of(self, task: Task) -> str:
        """`objective`, or what null means for this task."""
        return self.objective or ("bounded" if task.right_or_wrong else "ce")
