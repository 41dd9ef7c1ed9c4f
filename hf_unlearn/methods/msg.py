"""MSG, masked small gradients: weights that tell both sets alike are drawn anew (second place in the contest of NeurIPS 2023)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UnlearningError
from ..models.adapters import is_adapted
from ..tasks.losses import sample_losses
from .base import Method, MethodConfig, MethodInfo, Paper
from .gradients import Gradient

LAYERS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def smallest(gradient: Tensor, share: float) -> Tensor:
    """Where |g| is among the smallest `share`·N of a tensor: exactly so many, of equal ones those that come first.

    >>> smallest(torch.tensor([3.0, -1.0, 0.5, -4.0]), 0.5).tolist()
    [False, True, True, False]
    """
    mask = torch.zeros(gradient.numel(), dtype=torch.bool, device=gradient.device)
    if n := round(share * gradient.numel()):  # sorting takes four copies of the tensor
        mask[gradient.abs().flatten().argsort(stable=True)[:n]] = True
    return mask.view_as(gradient)


@dataclass
class MsgConfig(MethodConfig):
    """MSG."""

    method = "msg"

    share: float = field(default=0.3, metadata={"help": "share p of each layer's weights that is drawn anew"})
    elsewhere: float = field(default=0.1, metadata={"help": "factor of the gradient of all other weights"})

    def __post_init__(self):
        super().__post_init__()
        self.check("share", 0 <= self.share <= 1, "a share in [0, 1]")
        self.check("elsewhere", 0 <= self.elsewhere <= 1, "a factor in [0, 1]")

    @classmethod
    def paper(cls) -> "MsgConfig":
        """The values of the contest, for ResNet-18 on faces. Its learning rate rises for half of the epochs and falls again,
        there once an epoch and here in every step. Weight decay is on all weights, biases and norms too."""
        arguments = {"learning_rate": 1e-3, "num_train_epochs": 5, "per_device_train_batch_size": 64}
        arguments |= {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 5e-4, "max_grad_norm": 0.0}
        arguments |= {"lr_scheduler_type": "linear", "warmup_steps": 0.5, "freeze_batchnorm": False, "decay": "all"}
        return cls(arguments=arguments)


class Msg(Method):
    """g = ∇[CE(S) − CE(D_f)] at the original, with S as many retained samples as there are forget samples. In every layer
    the `share` p of the weights with the smallest |g| is drawn anew; then min CE(D_r), with the gradient of these weights as it
    is and that of all others times 0.1.

    Layers are linear ones and convolutions (in the contest, convolutions alone), and new weights are drawn as the architecture
    draws them. Plain SGD with momentum by default: Adam would undo any factor of a gradient.
    """

    info = MethodInfo(
        name="msg",
        kind="gradient",
        summary="draws the weights with the smallest gradients anew, then trains mostly these on the retained samples",
        needs=("forget", "retain"),
        cost=5.2,
        paper=Paper(
            title="Deep Unlearn: Benchmarking Machine Unlearning for Image Classification",
            arxiv="2410.01276",
            bibtex="@misc{cadet2024deep,\n  title={Deep Unlearn: Benchmarking Machine Unlearning for Image Classification},\n"
            "  author={Cadet, Xavier F. and Borovykh, Anastasia and Malekzadeh, Mohammad and Ahmadi-Abhari, Sara and Haddadi, "
            "Hamed},\n  year={2024},\n  eprint={2410.01276}\n}",
        ),
    )
    config_class = MsgConfig
    config: MsgConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 0.02,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 64,
            "optim": "sgd",
            "optim_args": "momentum=0.9",
            "weight_decay": 5e-4,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.5,
            "max_grad_norm": 0.0,
            "freeze_batchnorm": False,
        }

    def epochs(self, epochs: int) -> list[str]:
        return ["retain"] * epochs

    @property
    def why_whole(self) -> str | None:
        return "ranks the gradients of all weights"

    def prepare(self, context) -> None:
        if is_adapted(context.model):
            raise UnlearningError(
                "msg draws some of the weights of a whole model anew, and an adapter is trained; expected a plain model."
            )
        schedule = context.schedule
        rng = np.random.default_rng([context.seed, 5])
        n = min(schedule.n_forget, len(schedule.retain_subset))
        drawn = np.sort(rng.choice(schedule.retain_subset, n, replace=False))
        groups = [("retain", int(i)) for i in drawn], [("forget", i) for i in range(schedule.n_forget)]
        layers = {f"{name}.weight" for name, module in context.model.named_modules() if isinstance(module, LAYERS)}
        gradient, forget = context.gradients(self.loss, list(groups))
        for part in gradient:
            part -= forget.pop(0)  # so that there are no two gradients beside the new weights
        fresh, self.masks = dict(context.untrained_model().named_parameters()), []
        for name, weight in zip(context.parameter_names, context.parameters, strict=True):
            mask = smallest(gradient.pop(0), self.config.share if name in layers else 0.0)
            with torch.no_grad():
                weight.copy_(torch.where(mask, fresh.pop(name), weight))
            self.masks.append(mask)

    def loss(self, model, batch) -> Tensor:
        return batch.mean(sample_losses(model, batch))

    def losses(self, model, batch):
        yield "retain", self.loss(model, batch)

    def combine(self, gradients: dict[str, Gradient]) -> Gradient:
        pairs = zip(self.masks, gradients["retain"], strict=True)
        return [torch.where(mask, g, self.config.elsewhere * g) for mask, g in pairs]

    @property
    def report(self) -> dict[str, Any]:
        return {"drawn_anew": sum(int(mask.sum()) for mask in self.masks)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"mask": torch.cat([mask.flatten() for mask in self.masks])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        parts = state["mask"].split([mask.numel() for mask in self.masks])
        self.masks = [part.view_as(mask).to(mask.device) for part, mask in zip(parts, self.masks, strict=True)]
