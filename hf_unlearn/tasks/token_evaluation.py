"""Forward passes of a language model. The numbers of a sample are means over its own completion tokens, and every sample counts the
same, however long it is."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batches import Batch
from ..metrics.tokens import extraction_strength_rows
from ..models import heads
from ..models.modes import gather
from .evaluation import Evaluator, jsd
from .losses import next_tokens, predicting


@dataclass(frozen=True)
class Tokens:
    """What a model says of the completions of a batch of n texts.

    Attributes:
        scores: of each completion token, see `heads.token_scores`: [T, 3].
        places: those that predict one, bool [n, L].
        found: the same, with what makes logits of them.
    """

    scores: Tensor
    places: Tensor
    found: heads.Places

    def by_sample(self, column: int) -> Tensor:
        """A score of each token, [n, L] in float64, 0 where there is none."""
        return heads.padded(self.scores[:, column].double(), self.places)

    def mean(self, scores: Tensor) -> Tensor:
        """Of each sample, from scores [T]."""
        return heads.padded(scores.double(), self.places).sum(dim=1) / self.places.sum(dim=1)


def tokens_of(model: nn.Module, batch: Batch) -> Tokens:
    """One forward pass without gradients."""
    places = predicting(batch.labels)
    score = heads.scored(next_tokens(batch.labels)[places], heads.token_scores)
    with torch.no_grad():
        scores, found = heads.read(model, batch.inputs, places, score)
    return Tokens(scores, places, found)


class TokenEvaluator(Evaluator):
    """What is predicted are `Tokens`."""

    def predict(self, model: nn.Module, batch: Batch) -> Tokens:
        with self.accelerator.autocast():
            found = tokens_of(model, batch)
        gather(heads.head_of(model))  # which `distances` asks after the forward pass
        return found

    def statistics(self, predicted: Tokens, batch: Batch) -> dict[str, Tensor]:
        """As `metrics.token_statistics`, the extraction strength, and how many completion tokens a sample has."""
        if bool(predicted.scores.isnan().any()):
            raise ValueError("NaN")
        log_p, right, mean = predicted.scores.T
        loss = -predicted.mean(log_p)
        extraction = extraction_strength_rows(predicted.by_sample(1), predicted.places)
        return {
            "loss": loss,
            "entropy": -predicted.mean(mean),
            "confidence": predicted.mean(log_p.double().exp()),
            "margin": -loss,
            "correct": predicted.mean(right),
            "extraction": torch.from_numpy(extraction).to(loss.device),
            "tokens": predicted.places.sum(dim=1).double(),
        }

    def is_finite(self, predicted: Tokens) -> Tensor:
        return ~heads.padded(predicted.scores.isnan().any(dim=1), predicted.places).any(dim=1)

    def correct(self, predicted: Tokens, batch: Batch) -> Tensor:
        """The share of the sample's completion tokens that is predicted."""
        return predicted.mean(predicted.scores[:, 1])

    @torch.no_grad()
    def distances(self, a: Tokens, b: Tokens, batch: Batch) -> dict[str, Tensor]:
        """The means over the predictions of the sample's completion tokens."""

        def difference(*logits: Tensor) -> Tensor:
            p, q = (z.double().softmax(-1) for z in logits)
            return torch.stack([jsd(p, q), (p - q).norm(dim=-1)], dim=1)

        with self.accelerator.autocast():
            found = heads.compared(b.found, difference)(a.found)
        return {"jsd": a.mean(found[:, 0]), "activation_distance": a.mean(found[:, 1])}
