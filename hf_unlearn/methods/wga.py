"""WGA: gradient ascent, weighted by how sure the model is of each token (ICLR 2025)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..models import heads
from ..tasks.losses import token_means, token_scores
from .base import MethodInfo, Paper
from .preference import Held, HeldConfig


def wga_weights(log_p: Tensor, alpha: float) -> Tensor:
    """w_t = p(y_t)^α of every token, without a gradient, from log p(y_t).

    >>> wga_weights(torch.tensor([0.0, -1.0]), alpha=2.0)
    tensor([1.0000, 0.1353])
    """
    return (alpha * log_p.detach()).exp()


@dataclass
class WgaConfig(HeldConfig):
    """WGA with a retain term. `until` is ours."""

    method = "wga"

    alpha: float = field(
        default=1.0,
        metadata={
            "help": "α: the higher, the sooner a token is left alone; 0 is gradient ascent (open-unlearning's beta)"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("alpha", self.alpha >= 0, "a number of 0 or more")

    @classmethod
    def paper(cls) -> "WgaConfig":
        """The values that open-unlearning has for TOFU, where all weights are trained."""
        arguments = {"learning_rate": 1e-5, "num_train_epochs": 5, "per_device_train_batch_size": 32}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.2, "max_grad_norm": 1.0}
        return cls(until="end", epoch="forget", arguments=arguments)


class Wga(Held):
    """min mean of w_t·log p(y_t) over the tokens of D_f, plus the retain term: ascent that each token leaves as it is forgotten.

    Plain ascent has its largest slope where a token is forgotten already; w_t takes that factor 1/p away.

    On TOFU in small it hid the answers, and the truth ratio stayed nearer to the original's (docs/language-models.md).
    """

    info = MethodInfo(
        name="wga",
        kind="loss",
        summary="ascends on forget samples, on each token by how sure of it the model still is",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=4,  # 20 epochs of forget and retained samples where a tenth is forgotten
        paper=Paper(
            title="Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
            arxiv="2502.19301",
            bibtex="@inproceedings{wang2025rethinking,\n  title={Rethinking {LLM} Unlearning Objectives: A Gradient Perspective "
            "and Go Beyond},\n  author={Wang, Qizhou and Zhou, Jin Peng and Zhou, Zhanke and Shin, Saebyeol and Han, Bo and "
            "Weinberger, Kilian Q.},\n  booktitle={ICLR},\n  year={2025}\n}",
        ),
    )
    config_class = WgaConfig
    config: WgaConfig

    def weights(self, log_p: Tensor) -> Tensor:
        return wga_weights(log_p, self.config.alpha)

    def forget_loss(self, model, part) -> Tensor:
        log_p = token_scores(model, part, heads.log_probabilities)
        return part.mean(token_means(self.weights(log_p) * log_p, part.labels))
