"""Random labels (Amnesiac unlearning): train wrong labels onto the forget samples."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.randomness import uniform
from ..tasks.losses import cross_entropy
from .base import Method, MethodConfig, MethodInfo, Paper


def wrong_labels(labels: Tensor, u: Tensor, num_labels: int) -> Tensor:
    """A label drawn uniformly from the *other* classes, from one number u in (0, 1) for each sample."""
    return (labels + 1 + (u * (num_labels - 1)).long()) % num_labels


@dataclass
class RandomLabelConfig(MethodConfig):
    """Random labels."""

    method = "random_label"

    relabel: Literal["once", "epoch"] = field(
        default="epoch", metadata={"help": "draw the wrong labels once (the paper), or anew every epoch"}
    )

    @classmethod
    def paper(cls) -> "RandomLabelConfig":
        return cls(relabel="once")


class RandomLabel(Method):
    """min CE(D_r) + CE(D_f with wrong labels), on both sets shuffled together."""

    info = MethodInfo(
        name="random_label",
        kind="loss",
        summary="trains wrong labels onto the forget samples, right ones onto the retained samples",
        needs=("forget", "retain"),
        cost=5.5,
        paper=Paper(
            title="Amnesiac Machine Learning",
            arxiv="2010.10981",
            bibtex="@inproceedings{graves2021amnesiac,\n  title={Amnesiac Machine Learning},\n  author={Graves, Laura "
            "and Nagisetty, Vineel and Ganesh, Vijay},\n  booktitle={AAAI},\n  year={2021}\n}",
        ),
    )
    config_class = RandomLabelConfig
    config: RandomLabelConfig

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
        return ["mixed"] * epochs

    def prepare(self, context) -> None:
        self.seed = context.seed

    def losses(self, model, batch) -> dict[str, Tensor]:
        logits = model(**batch.inputs).logits
        epoch = torch.zeros_like(batch.epoch) if self.config.relabel == "once" else batch.epoch
        u = uniform(self.seed, epoch, batch.sample_index, 1)[:, 0]
        labels = torch.where(batch.is_forget, wrong_labels(batch.labels, u, logits.shape[-1]), batch.labels)
        return {"loss": batch.mean(cross_entropy(logits, labels))}
