"""What NPO and SimNPO have in common: a loss of each forget sample's likelihood, and a term that holds the retained ones."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from ..data.batches import Batch
from ..models import heads
from ..tasks.losses import divergence, log_likelihood, predicting
from .base import Term
from .paired import PairedLosses, PairedLossesConfig


def completion_lengths(labels: Tensor) -> Tensor:
    """|y|: how many completion tokens of each sample are predicted."""
    return predicting(labels).sum(dim=1)


def kl_to_original(model: nn.Module, batch: Batch, original: heads.Places) -> Tensor:
    """KL(π_ref ‖ π_θ) of every sample, as in TOFU's code: the mean over the places that predict its completion tokens.

    Only these places are ours: that code takes all of a text, its prompt too.
    """
    places = predicting(batch.labels)
    difference = heads.compared(original, lambda of_model, of_original: divergence(of_original, of_model))
    of_tokens, _ = heads.read(model, batch.inputs, places, difference)
    return heads.padded(of_tokens[:, 0], places).sum(dim=1) / places.sum(dim=1)


@dataclass
class PreferenceConfig(PairedLossesConfig):
    """Settings of a preference loss."""

    beta: float = field(default=1.0, metadata={"help": "β: the higher, the sooner a forgotten sample is left alone"})
    retain: Literal["ce", "kl", "none"] = field(
        default="ce",
        metadata={
            "help": "what holds the retained samples: ce: their loss, kl: KL of the model from the original, none: nothing"
        },
    )
    retain_weight: float = field(default=1.0, metadata={"help": "weight of the retain term"})

    def __post_init__(self):
        super().__post_init__()
        self.check("beta", self.beta > 0, "a positive number")
        self.check("retain_weight", self.retain_weight >= 0, "a weight of 0 or more")


class Preference(PairedLosses):
    """The mean of `forget_losses` over the forget samples plus the retain term, a mean over completion tokens."""

    config: PreferenceConfig
    kind = "forget-paired"

    def prepare(self, context) -> None:
        super().prepare(context)
        if self.config.retain == "kl":
            self.teacher = context.teacher("never")

    def terms(self, model, batch) -> list[Term]:
        forget = batch["forget"]
        found = [
            Term(
                "forget",
                1.0,
                lambda: forget.mean_over_samples(self.forget_losses(log_likelihood(model, forget), forget)),
            ),
            Term("retain", self.config.retain_weight, lambda: self.retain_loss(model, batch["retain"])),
        ]
        return found[:1] if self.config.retain == "none" else found

    def forget_losses(self, log_p: Tensor, forget) -> Tensor:
        """The loss of every forget sample, from log π_θ(y|x)."""
        raise NotImplementedError

    def retain_loss(self, model, retain) -> Tensor:
        if self.config.retain == "ce":
            return self.loss(model, retain)
        original = self.teacher.places(retain, predicting(retain.labels))
        return retain.mean(kl_to_original(model, retain, original))
