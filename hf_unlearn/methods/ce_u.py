"""CE-U: cross-entropy unlearning, towards the model's own answer without the true token (2025)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..tasks.losses import IGNORED, predicting, token_scores
from .base import MethodInfo, Paper
from .delete import erased
from .preference import Held, HeldConfig


def ce_u_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """−Σ_k q_k·log p_k of every token, with q = softmax(z) with z_y = −∞, without a gradient.

    Its gradient in z is p − q: bounded, and largest where the model is sure of the true token.

    >>> ce_u_loss(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([1]))  # log 3
    tensor([1.0986])
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -(erased(z.detach(), tokens) * z.log_softmax(dim=-1)).sum(dim=-1)


@dataclass
class CeUConfig(HeldConfig):
    """CE-U. Ours: `until`, and a retain term; the paper has none."""

    method = "ce_u"

    skip: int = field(
        default=1,
        metadata={
            "help": "how many tokens at the start of each answer are left alone, which many answers have in common"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("skip", self.skip >= 0, "a whole number of 0 or more")

    @classmethod
    def paper(cls) -> "CeUConfig":
        """The loss of the paper, without a retain term and without the first token of an answer, with the training of TOFU's other
        methods in open-unlearning, where all weights are trained."""
        arguments = {"learning_rate": 1e-5, "num_train_epochs": 10, "per_device_train_batch_size": 32}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.1, "max_grad_norm": 1.0}
        return cls(retain="none", until="end", epoch="forget", arguments=arguments)


class CeU(Held):
    """min CE(q, p) over the tokens of D_f, plus the retain term; q is what the model says now, renormalised without the true
    token.

    The first `skip` tokens of an answer are left alone, unless it has no others. How much an answer counts goes by all of its tokens.
    """

    info = MethodInfo(
        name="ce_u",
        kind="loss",
        summary="trains forget samples towards what the model says itself, without the true token",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=4,  # 20 epochs of forget and retained samples where a tenth is forgotten
        paper=Paper(
            title="CE-U: Cross Entropy Unlearning",
            arxiv="2503.01224",
            bibtex="@article{yang2025ceu,\n  title={{CE-U}: Cross Entropy Unlearning},\n  author={Yang, Bo},\n  journal={arXiv "
            "preprint arXiv:2503.01224},\n  year={2025}\n}",
        ),
    )
    config_class = CeUConfig
    config: CeUConfig

    def forget_loss(self, model, part) -> Tensor:
        losses = token_scores(model, part, ce_u_loss)
        first = (part.labels != IGNORED).cumsum(dim=1) <= self.config.skip
        counted, every = predicting(part.labels.masked_fill(first, IGNORED)), predicting(part.labels)
        counted = counted.where(counted.any(dim=1, keepdim=True), every)
        return part.mean((losses * counted).sum(dim=1) / counted.sum(dim=1))
