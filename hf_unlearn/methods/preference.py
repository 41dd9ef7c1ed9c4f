"""What NPO and SimNPO have in common: a loss of each forget sample's likelihood, and a term that holds the retained ones."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..tasks.losses import IGNORED, cross_entropy, divergence, next_tokens
from .paired import PairedConfig, PairedLosses


def completion_lengths(labels: Tensor) -> Tensor:
    """|y|: how many completion tokens of each sample are predicted."""
    return (next_tokens(labels) != IGNORED).sum(dim=1)


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """log π(y|x) of every sample: the sum over its completion tokens."""
    return -cross_entropy(logits, labels) * completion_lengths(labels)


def kl_to_original(logits: Tensor, original_logits: Tensor, labels: Tensor) -> Tensor:
    """KL(π_θ ‖ π_ref) of every sample: the mean over the places that predict its completion tokens."""
    kept = next_tokens(labels) != IGNORED
    return torch.where(kept, divergence(logits, original_logits), 0.0).sum(dim=1) / kept.sum(dim=1)


@dataclass
class PreferenceConfig(PairedConfig):
    """Settings of a preference loss."""

    beta: float = field(default=1.0, metadata={"help": "β: the higher, the sooner a forgotten sample is left alone"})
    retain: Literal["ce", "kl", "none"] = field(
        default="ce",
        metadata={"help": "what holds the retained samples: ce: their loss, kl: KL to the original, none: nothing"},
    )
    retain_weight: float = field(default=1.0, metadata={"help": "weight of the retain term"})

    def __post_init__(self):
        super().__post_init__()
        self.check("beta", self.beta > 0, "a positive number")
        self.check("retain_weight", self.retain_weight >= 0, "a weight of 0 or more")


class Preference(PairedLosses):
    """The mean of `forget_losses` over the forget samples plus the retain term, a mean over completion tokens."""

    config: PreferenceConfig

    def prepare(self, context) -> None:
        super().prepare(context)
        if self.config.retain == "kl":
            self.teacher = context.teacher("never")

    def losses(self, model, batch) -> dict[str, Tensor]:
        forget = batch["forget"]
        logits = model(**forget.inputs).logits
        forget_loss = forget.mean_over_samples(self.forget_losses(logits, forget))
        if self.config.retain == "none":
            return {"loss": forget_loss}
        retain_loss = self.retain_loss(model, batch["retain"])
        loss = forget_loss + self.config.retain_weight * retain_loss
        return {"loss": loss, "retain_loss": retain_loss, "forget_loss": forget_loss}

    def forget_losses(self, logits: Tensor, forget) -> Tensor:
        """The loss of every forget sample."""
        raise NotImplementedError

    def retain_loss(self, model, retain) -> Tensor:
        if self.config.retain == "ce":
            return self.loss(model, retain)
        original = self.teacher.logits(retain)
        return retain.mean(kl_to_original(model(**retain.inputs).logits, original, retain.labels))
