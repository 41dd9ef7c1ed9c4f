"""PDU: flat logits on forget samples, with a bound on the retained loss (2025)."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..tasks.losses import token_means, token_scores
from .base import MethodInfo, Paper, measured
from .preference import Held, HeldConfig


def margin_loss(logits: Tensor, tokens: Tensor | None = None) -> Tensor:
    """(max_k z_k − mean_k z_k)² of every token: 0 where all words are as likely. Which of them is true does not matter.

    >>> margin_loss(torch.tensor([[3.0, 0.0, 0.0]]))
    tensor([4.])
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (z.amax(dim=-1) - z.mean(dim=-1)).square()


def dual_step(weight: float, retain_loss: float, epsilon: float, rate: float) -> float:
    """λ ← max(0, λ + η·(L_r − ε)).

    >>> dual_step(1.0, retain_loss=0.5, epsilon=0.3, rate=5.0)
    2.0
    """
    return max(0.0, weight + rate * (retain_loss - epsilon))


@dataclass
class PduConfig(HeldConfig):
    """PDU. Ours: `until`, which waits for the bound too, and a bound that is read off the original."""

    method = "pdu"

    retain_weight: float = field(default=100.0, metadata={"help": "λ at the start"})
    epsilon: float | None = field(
        default=None,
        metadata={
            "help": "ε: the highest loss of retained samples that is allowed, a mean over completion tokens; null: 0.1 more than the "
            "original's (ours)"
        },
    )
    dual_rate: float = field(default=5.0, metadata={"help": "η: how fast λ follows the retained loss"})
    warmup: int = field(default=5, metadata={"help": "epochs before λ changes"})

    def __post_init__(self):
        super().__post_init__()
        self.check("epsilon", self.epsilon is None or self.epsilon >= 0, "a loss of 0 or more, or null")
        self.check("dual_rate", self.dual_rate >= 0, "a number of 0 or more")
        self.check("warmup", self.warmup >= 0, "a number of epochs of 0 or more")
        self.check("retain", self.retain != "none", "ce or kl, which is bounded")

    @classmethod
    def paper(cls) -> "PduConfig":
        """The authors' values for TOFU on Llama-3.2-1B and 3B, where all weights are trained, in batches of 4 on each of 8
        devices. Their code changes λ after every micro-batch, here it changes after every step."""
        arguments = {"learning_rate": 1e-5, "num_train_epochs": 10, "per_device_train_batch_size": 32}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.1, "max_grad_norm": 1.0}
        return cls(epsilon=0.3, until="end", epoch="forget", arguments=arguments)


class Pdu(Held):
    """min mean of (max z − mean z)² over D_f, subject to L_r ≤ ε: L_f + λ·(L_r − ε), with λ ← max(0, λ + η·(L_r − ε)) after
    every step.

    The loss counts the places that predict a completion; open-unlearning's code takes all of a text, and its padding. The run goes on
    until the bound holds (ours), though the forget samples be forgotten sooner. On TOFU in small wrong answers became likelier than the
    right one, which they are not in a retrained model (docs/language-models.md).
    """

    info = MethodInfo(
        name="pdu",
        kind="loss",
        summary="makes the logits of forget samples flat, with a weight of retained ones that follows a bound on their loss",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=4,  # 20 epochs of forget and retained samples where a tenth is forgotten
        paper=Paper(
            title="Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models",
            arxiv="2506.05314",
            bibtex="@article{entesari2025constrained,\n  title={Constrained Entropic Unlearning: A Primal-Dual Framework for "
            "Large Language Models},\n  author={Entesari, Taha and Hatami, Arman and Khaziev, Rinat and Ramakrishna, Anil and "
            "Fazlyab, Mahyar},\n  journal={arXiv preprint arXiv:2506.05314},\n  year={2025}\n}",
        ),
    )
    config_class = PduConfig
    config: PduConfig

    def prepare(self, context) -> None:
        super().prepare(context)
        self.weight, epsilon = self.config.retain_weight, self.config.epsilon
        if epsilon is None:
            epsilon = 0.1
            if self.config.retain == "ce":  # the mean that `retain_loss` is
                of = measured(context, "retain").signals
                epsilon += float(np.average(of["loss"], weights=of["tokens"]))
        self.epsilon, self.found = epsilon, 0.0  # L_r of the last step

    @property
    def retain_weight(self) -> float:
        return self.weight

    def on_step_begin(self, step: int) -> None:
        self.seen = torch.zeros(())

    def forget_loss(self, model, part) -> Tensor:
        return part.mean(token_means(token_scores(model, part, margin_loss), part.labels))

    def retain_loss(self, model, retain) -> Tensor:
        loss = super().retain_loss(model, retain)
        self.seen = self.seen.to(loss.device) + loss.detach()
        return loss

    def on_step_end(self, step: int) -> bool | None:
        self.found = self.context.over_processes(self.seen)
        if self.context.schedule.epoch(step - 1) >= self.config.warmup:
            self.weight = dual_step(self.weight, self.found, self.epsilon, self.config.dual_rate)
        self.context.log({"retain_weight": self.weight})
        return super().on_step_end(step)

    def is_known(self) -> bool:
        """Whether there is something left to do: forget samples are known better than unseen ones were, or retained ones worse than
        the bound allows."""
        return super().is_known() or self.found > self.epsilon

    def missed(self) -> str:
        if super().is_known():
            return super().missed()
        return (
            f"pdu has used up its {len(self.context.schedule)} steps, and the loss of retained samples is {self.found:.3g}, where "
            f"{self.epsilon:.3g} is allowed. Raise num_train_epochs, or retain_weight."
        )

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {
            "dual": torch.tensor([self.weight, self.epsilon, self.found], dtype=torch.float64)
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.weight, self.epsilon, self.found = state["dual"].tolist()
