"""SatImp: gradient ascent, weighted by what of each token is left to forget and by how much it matters (ICML 2025)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import MethodInfo, Paper
from .preference import HeldConfig
from .wga import Wga


def satimp_weights(log_p: Tensor, beta1: float, beta2: float) -> Tensor:
    """w_t = p(y_t)^β₁·(1 − p(y_t))^β₂ of every token, without a gradient, from log p(y_t).

    >>> satimp_weights(torch.tensor([0.5]).log(), beta1=5.0, beta2=1.0)
    tensor([0.0156])
    """
    log_p = log_p.detach()
    return (beta1 * log_p).exp() * (-torch.expm1(log_p)).clamp(min=0) ** beta2


@dataclass
class SatimpConfig(HeldConfig):
    """SatImp with a retain term. Ours: `until`, and β₂ = 0.1: with 1, what is known by heart has next to no weight."""

    method = "satimp"

    beta1: float = field(
        default=5.0, metadata={"help": "β₁, of saturation: the higher, the sooner a token is left alone"}
    )
    beta2: float = field(
        default=0.1,
        metadata={"help": "β₂, of importance: the higher, the less a token counts of which the model is sure"},
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("beta1", "beta2"):
            self.check(name, getattr(self, name) >= 0, "a number of 0 or more")

    @classmethod
    def paper(cls) -> "SatimpConfig":
        """The values that open-unlearning has for TOFU, where all weights are trained. There the forget loss is weighted by 0.1
        and the retain loss by 1; here the retain loss is weighted by 10, which is the same direction."""
        arguments = {"learning_rate": 1e-5, "num_train_epochs": 5, "per_device_train_batch_size": 32}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.2, "max_grad_norm": 1.0}
        return cls(beta2=1.0, retain_weight=10.0, until="end", epoch="forget", arguments=arguments)


class Satimp(Wga):
    """min mean of w_t·log p(y_t) over the tokens of D_f, plus the retain term: WGA with a second weight, which is low for tokens
    that are no news.

    On TOFU in small the answers were still known after it (docs/language-models.md).
    """

    info = MethodInfo(
        name="satimp",
        kind="loss",
        summary="ascends on forget samples, most on tokens that the model neither takes for certain nor has forgotten",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=4,  # 20 epochs of forget and retained samples where a tenth is forgotten
        paper=Paper(
            title="Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning",
            arxiv="2505.11953",
            bibtex="@inproceedings{yang2025exploring,\n  title={Exploring Criteria of Loss Reweighting to Enhance {LLM} "
            "Unlearning},\n  author={Yang, Puning and Wang, Qizhou and Huang, Zhuo and Liu, Tongliang and Zhang, Chengqi and "
            "Han, Bo},\n  booktitle={ICML},\n  year={2025}\n}",
        ),
    )
    config_class = SatimpConfig
    config: SatimpConfig

    def weights(self, log_p: Tensor) -> Tensor:
        return satimp_weights(log_p, self.config.beta1, self.config.beta2)
