"""ReGUn: forget samples get the answers that the original gives to unseen samples of their classes (2026)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UnlearningError
from ..tasks.losses import divergence, sample_losses
from .base import Method, MethodConfig, MethodInfo, Paper, measured
from .neighbours import Neighbours


def reference(class_means: Tensor, labels: Tensor) -> Tensor:
    """q = Σ_c (n_c/n)·p̄_c: the mean answer to unseen samples with the class histogram of a batch.

    Args:
        class_means: p̄, for each class the mean of the original's predictions on unseen samples of it, [classes, outputs].
        labels: of the batch, as rows of these.

    >>> reference(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 0, 0, 1])).tolist()
    [0.6875, 0.3125]
    """
    return class_means[labels].mean(dim=0)


def in_order(features: Iterable[tuple[np.ndarray, np.ndarray, Tensor]]) -> Tensor:
    """The features of all samples in their order, which several processes give in that of their shares."""
    indices, _, found = zip(*features, strict=True)
    return torch.cat(found)[np.argsort(np.concatenate(indices))]


def nearest_reference(forget: Tensor, features: Tensor, predictions: Tensor, k: int) -> Tensor:
    """q_x: for each forget sample the mean prediction of the k unseen samples nearest to it, by the cosine of features."""
    neighbours = Neighbours(forget, k)
    neighbours.add(np.arange(len(features)), features)
    return predictions[neighbours.indices].mean(dim=1)


@dataclass
class RegunConfig(MethodConfig):
    """ReGUn. `neighbours` is ours."""

    method = "regun"

    forget_weight: float = field(default=1.0, metadata={"help": "weight λ of the forget samples"})
    neighbours: int | None = field(
        default=None,
        metadata={
            "help": "a target for each forget sample: the mean over so many unseen samples that are nearest to it in the original's "
            "features; null: one for each batch, from unseen samples of its classes (the paper)"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("forget_weight", self.forget_weight >= 0, "a weight of 0 or more")
        self.check("neighbours", self.neighbours is None or self.neighbours >= 1, "at least 1, or null")


class Regun(Method):
    """min CE(D_r) + λ·KL(q‖p(x_f)), in pairs of a retained and a forget batch.

    q is the mean of the original's predictions on unseen samples, as many of each class as in the forget batch (the paper draws
    some for every batch; here it is the mean over all of the class). With `neighbours` (ours) every forget sample has a q of its
    own, from the unseen samples nearest to it in the original's features. Unseen are those of the control half alone.
    """

    info = MethodInfo(
        name="regun",
        kind="loss",
        summary="gives forget samples what the original says of unseen samples of their classes",
        needs=("forget", "retain", "unseen"),
        cost=10,
        memory="what two forward passes have computed, of forget and of retained samples",
        paper=Paper(
            title="Reference-Guided Machine Unlearning",
            arxiv="2603.11210",
            bibtex="@misc{mirlach2026reference,\n  title={Reference-Guided Machine Unlearning},\n  author={Mirlach, Jonas and "
            "Laguna, Sonia and Vogt, Julia E.},\n  year={2026},\n  eprint={2603.11210}\n}",
        ),
    )
    config_class = RegunConfig
    config: RegunConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 3e-4 if family == "convolutional" else 0.01 / width,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 64,
            "weight_decay": 5e-4,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "freeze_batchnorm": True,
        }

    def epochs(self, epochs: int) -> list[str]:
        return ["paired"] * epochs

    def prepare(self, context) -> None:
        self.context = context
        if not context.has("control"):
            raise UnlearningError("regun: no unseen sample may steer, since there is only one; expected at least two.")
        if context.is_class_request:
            self.notes.append(
                "regun is made for single samples: the original takes unseen samples of a class for what they are, and so does "
                "the model that is taught to answer like that."
            )
        if self.config.neighbours:
            forget, unseen = (in_order(context.features(of)) for of in ("forget", "control"))
            self.targets = nearest_reference(forget, unseen, context.probabilities("control"), self.config.neighbours)
            return
        classes, unseen = np.array(context.forget_classes), measured(context, "control")
        if len(absent := np.setdiff1d(classes, unseen.labels)):
            raise UnlearningError(
                f"regun takes its target from unseen samples of every forget class, and the control half of them has none of class "
                f"{absent[0]}; pass some, or set neighbours."
            )
        device = context.parameters[0].device
        self.means = torch.as_tensor(unseen.class_means(classes), device=device)
        self.rows = torch.as_tensor(np.searchsorted(classes, measured(context, "forget").labels), device=device)

    def on_step_begin(self, step: int) -> None:
        if not self.config.neighbours:  # of the whole step, however it is cut into batches
            samples = [index for _, index in self.context.step_samples("forget")]
            self.q = reference(self.means, self.rows[samples])

    def losses(self, model, batch) -> dict[str, Tensor]:
        retain, forget = batch["retain"], batch["forget"]
        student = model(**forget.inputs).logits
        q = self.targets[forget.sample_index] if self.config.neighbours else self.q.expand(len(student), -1)
        log_q = q.clamp_min(torch.finfo(q.dtype).tiny).log()  # of a model that is sure, some answers are 0
        gone = forget.mean(divergence(log_q, student))
        kept = retain.mean(sample_losses(model, retain))
        return {"loss": kept + self.config.forget_weight * gone, "retain_loss": kept, "forget_loss": gone}
