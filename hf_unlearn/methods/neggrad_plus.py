"""NegGrad+: descent on retained and ascent on forget samples in one loss (NeurIPS 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UnlearningError
from .ascent import AscentConfig
from .base import MethodInfo, Paper
from .paired import PairedLosses, PairedLossesConfig


def neggrad_loss(retain_loss: Tensor, forget_loss: Tensor, beta: float) -> Tensor:
    """β·CE(D_r) − (1 − β)·CE(D_f), to be minimised: descent on D_r, and *ascent* on D_f."""
    return beta * retain_loss - (1 - beta) * forget_loss


def squared_distance(weights: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """‖θ − θ₀‖² over all tensors together."""
    return torch.stack([(w - s).square().sum() for w, s in zip(weights, start, strict=True)]).sum()


@dataclass
class NeggradPlusConfig(AscentConfig, PairedLossesConfig):
    """NegGrad+. `until` and the bounded objective are ours."""

    method = "neggrad_plus"

    beta: float = field(
        default=0.95, metadata={"help": "weight β of the retained samples; 1 is fine-tuning, 0 is gradient ascent"}
    )

    pull: float = field(
        default=0.0, metadata={"help": "weight of ½‖θ − θ_original‖², added to the loss of retained samples; 0: none"}
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("beta", 0 <= self.beta <= 1, "a weight in [0, 1]")
        self.check("pull", self.pull >= 0, "a weight of 0 or more")

    @classmethod
    def paper(cls, setting: str = "small") -> "NeggradPlusConfig":
        """The authors' values for their `small` runs, or for the `large` ones (β = 0.9999), with SGD.

        The small runs are in eval mode and pulled towards the original, the large ones are neither; no weight decays in either. A
        step of the small runs has 32 retained and 64 forget samples; here it has 32 of each. The batch size of the large ones is
        not set.
        """
        if setting not in ("small", "large"):
            raise UnlearningError(f"NegGrad+'s paper has no setting {setting!r}; expected small or large.")
        small = setting == "small"
        arguments = {"learning_rate": 0.01, "num_train_epochs": 10 if small else 5, "optim": "sgd"}
        arguments |= {
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "freeze_batchnorm": small,
        }
        arguments |= {"per_device_train_batch_size": 32} if small else {}
        beta, pull = (0.95, 0.1) if small else (0.9999, 0.0)
        return cls(objective="ce", until="end", beta=beta, pull=pull, arguments=arguments)


class NeggradPlus(PairedLosses):
    """min β·CE(D_r) − (1 − β)·CE(D_f): every step has as many forget as retained samples.

    BatchNorm is frozen by default, because forget samples would enter its statistics in every step.
    """

    info = MethodInfo(
        name="neggrad_plus",
        kind="loss",
        summary="descends on retained samples and ascends on forget samples, in one weighted loss",
        needs=("forget", "retain"),
        cost=20,
        memory="what two forward passes have computed, of forget and of retained samples",
        paper=Paper(
            title="Towards Unbounded Machine Unlearning",
            arxiv="2302.09880",
            bibtex="@inproceedings{kurmanji2023towards,\n  title={Towards Unbounded Machine Unlearning},\n  author={Kurmanji, "
            "Meghdad and Triantafillou, Peter and Hayes, Jamie and Triantafillou, Eleni},\n  booktitle={NeurIPS},\n"
            "  year={2023}\n}",
        ),
    )
    config_class = NeggradPlusConfig
    config: NeggradPlusConfig

    @property
    def why_whole(self) -> str | None:
        return "adds the distance of all weights to its loss (which pull=0 does not)" if self.config.pull else None

    def prepare(self, context) -> None:
        super().prepare(context)
        self.start = [p.detach().clone() for p in context.parameters] if self.config.pull else []

    def losses(self, model, batch) -> dict[str, Tensor]:
        retain, forget = self.loss(model, batch["retain"]), self.forget_loss(model, batch["forget"])
        held = retain
        if self.start:  # added to every sample, so that it counts once a step however the batch is split
            away = squared_distance(self.context.parameters, self.start)
            held = retain + batch["retain"].mean(self.config.pull / 2 * away.expand(len(batch["retain"].labels)))
        loss = neggrad_loss(held, forget, self.config.beta)
        return {"loss": loss, "retain_loss": retain, "forget_loss": forget}
