"""What methods on the likelihood of texts have in common: a loss of the forget samples, and a term that holds the retained ones."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from ..data.batches import Batch
from ..models import heads
from ..tasks.losses import predicting, token_means
from .base import Term
from .paired import PairedLosses, PairedLossesConfig


def completion_lengths(labels: Tensor) -> Tensor:
    """|y|: how many completion tokens of each sample are predicted."""
    return predicting(labels).sum(dim=1)


def original_log_p(log_p: Tensor, part: Batch, losses: Tensor) -> Tensor:
    """log π_ref(y|x) of every sample beside its log π_θ(y|x), from the original's `losses` by `sample_index`, means over tokens."""
    return -losses[part["rows"]].to(log_p) * completion_lengths(part.labels)


def kl_to_original(model: nn.Module, batch: Batch, original: heads.Places) -> Tensor:
    """KL(π_ref ‖ π_θ) of every sample, as in TOFU's code: the mean over the places that predict its completion tokens.

    Only these places are ours: that code takes all of a text, its prompt too.
    """
    places = predicting(batch.labels)
    difference = heads.compared(original, lambda of_model, of_original: heads.divergences(of_original, of_model))
    of_tokens, _ = heads.read(model, batch.inputs, places, difference)
    return token_means(heads.padded(of_tokens[:, 0], places), batch.labels)


@dataclass
class HeldConfig(PairedLossesConfig):
    """Settings of a loss of forget samples with a retain term."""

    retain: Literal["ce", "kl", "none"] = field(
        default="ce",
        metadata={
            "help": "what holds the retained samples: ce: their loss, kl: KL of the model from the original, none: nothing"
        },
    )
    retain_weight: float = field(default=1.0, metadata={"help": "weight of the retain term"})

    def __post_init__(self):
        super().__post_init__()
        self.check("retain_weight", self.retain_weight >= 0, "a weight of 0 or more")


@dataclass
class PreferenceConfig(HeldConfig):
    """Settings of a preference loss."""

    beta: float = field(default=1.0, metadata={"help": "β: the higher, the sooner a forgotten sample is left alone"})

    def __post_init__(self):
        super().__post_init__()
        self.check("beta", self.beta > 0, "a positive number")


class Held(PairedLosses):
    """`forget_loss`, of the forget samples of a language model, plus the retain term, a mean over completion tokens."""

    config: HeldConfig
    kind = "forget-paired"

    def prepare(self, context) -> None:
        super().prepare(context)
        if self.config.retain == "kl":
            self.teacher = context.teacher("never")

    @property
    def retain_weight(self) -> float:
        return self.config.retain_weight

    def terms(self, model, batch) -> list[Term]:
        found = [
            Term("forget", 1.0, lambda: self.forget_loss(model, batch["forget"])),
            Term("retain", self.retain_weight, lambda: self.retain_loss(model, batch["retain"])),
        ]
        return found[:1] if self.config.retain == "none" else found

    def retain_loss(self, model, retain) -> Tensor:
        if self.config.retain == "ce":
            return self.loss(model, retain)
        original = self.teacher.places(retain, predicting(retain.labels))
        return retain.mean(kl_to_original(model, retain, original))
