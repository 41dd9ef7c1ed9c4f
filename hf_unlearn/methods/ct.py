"""CT, convolution transpose: kernels are turned about their diagonal, then repaired (fifth place in the contest of NeurIPS 2023)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.randomness import seeded
from ..errors import UnlearningError
from ..models.adapters import is_adapted
from ..models.kinds import architecture_family
from ..models.weights import cut_as
from .base import MethodConfig, MethodInfo
from .finetune import Finetune
from .msg import Msg


def transposed(kernels: Tensor) -> Tensor:
    """W ← Wᵀ over the two spatial axes, [out, in, height, width].

    >>> transposed(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).tolist()
    [[[[1.0, 3.0], [2.0, 4.0]]]]
    """
    return kernels.transpose(-1, -2)


@dataclass
class CtConfig(MethodConfig):
    """CT."""

    method = "ct"

    sigma: float = field(default=0.02, metadata={"help": "σ of the noise on the weights of a transformer"})

    def __post_init__(self):
        super().__post_init__()
        self.check("sigma", self.sigma >= 0, "a standard deviation of 0 or more")

    @classmethod
    def paper(cls) -> "CtConfig":
        """The values of the contest, for ResNet-18 on faces. Its learning rate falls once an epoch, here in every step.
        Weight decay is on all weights, biases and norms too."""
        arguments = {"learning_rate": 1e-3, "num_train_epochs": 3, "per_device_train_batch_size": 64}
        arguments |= {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 5e-4}
        arguments |= {"lr_scheduler_type": "cosine", "max_grad_norm": 0.0, "freeze_batchnorm": False, "decay": "all"}
        return cls(arguments=arguments)


class Ct(Finetune):
    """W ← Wᵀ over the spatial axes of every convolution, then min CE(D_r). No forget sample is read.

    A kernel that is not square stays as it is, and so does one of a single weight. A transformer gets noise on all of its
    weights instead: w ← w + N(0, σ²).
    """

    info = MethodInfo(
        name="ct",
        kind="loss",
        summary="transposes the kernels of all convolutions, then trains on the retained samples alone",
        needs=("forget", "retain"),
        cost=3,
        paper=Msg.info.paper,
    )
    config_class = CtConfig
    config: CtConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        rate = 2e-3 if family == "convolutional" else 0.03 / width
        changes = {"learning_rate": rate, "num_train_epochs": 3, "lr_scheduler_type": "cosine"}
        return super().arguments(family, width) | changes

    @torch.no_grad()
    def prepare(self, context) -> None:
        if is_adapted(context.model):
            raise UnlearningError(
                "ct disturbs the weights of a whole model, and an adapter is trained; expected a plain model."
            )
        if architecture_family(context.model) == "transformer":
            with seeded(context.seed):
                for weight in context.parameters:
                    noise = torch.randn(weight.shape, dtype=torch.float32)  # on the CPU: the same on every device
                    weight.add_(self.config.sigma * cut_as(noise.to(weight.dtype), weight))
            return
        convolutions = [module for module in context.model.modules() if isinstance(module, nn.Conv2d)]
        kernels = [
            c.weight for c in convolutions if c.weight.requires_grad and c.kernel_size[0] == c.kernel_size[1] > 1
        ]
        if not kernels:
            raise UnlearningError(
                "ct transposes the kernels of convolutions, and the model has none that is square, larger than one weight and "
                "trained; expected another method."
            )
        for kernel in kernels:
            kernel.copy_(transposed(kernel).clone())
