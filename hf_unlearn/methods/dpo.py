"""DPO: direct preference optimization (NeurIPS 2023), of another answer over the one to forget."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tasks.alternatives import NAME, alternatives_in
from ..tasks.losses import log_likelihood
from .base import MethodInfo, Paper, measured
from .preference import Held, PreferenceConfig, original_log_p


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """−(2/β)·log σ(β·(c − r)) of every sample, from the log-ratios c and r, log(π_θ(y|x)/π_ref(y|x)) of the answer to give and
    of the one to forget.

    The factor 2/β is not the paper's: it is NPO's, which this is with c = 0.

    >>> dpo_loss(torch.zeros(1), torch.zeros(1), beta=2.0)  # log 2
    tensor([0.6931])
    """
    return -2 / beta * F.logsigmoid(beta * (chosen - rejected))


@dataclass
class DpoConfig(PreferenceConfig):
    """DPO with a retain term. Ours: `until`, and a retain weight of 20, as for NPO."""

    method = "dpo"

    beta: float = field(default=0.1, metadata={"help": "β: the higher, the sooner a forgotten sample is left alone"})
    retain_weight: float = field(default=20.0, metadata={"help": "weight of the retain term"})

    @classmethod
    def paper(cls) -> "DpoConfig":
        """The values that NPO's paper (arXiv 2404.05868) has for DPO on TOFU with Llama-2-7b and the retain loss, where all weights
        are trained."""
        arguments = {"learning_rate": 1e-5, "num_train_epochs": 10, "per_device_train_batch_size": 32}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.1, "max_grad_norm": 1.0}
        return cls(retain_weight=1.0, until="end", epoch="forget", arguments=arguments)


class Dpo(Held):
    """Raise the likelihood of another answer over that of the answer to forget, both beside the original's.

    The other answer of each forget sample stands in the data: in the column `alternative` (a text, or several, of which each
    epoch draws one), or, as preferences have it, as `chosen` beside the `rejected` one, which the model has learnt. The
    original's log-likelihoods are measured once, before the first step.

    On TOFU in small it hid the answers, and the truth ratio stayed nearer to the original's (docs/language-models.md).
    """

    info = MethodInfo(
        name="dpo",
        kind="loss",
        summary="raises the likelihood of another answer, from the data, over that of the one to forget",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=6,  # 20 epochs of forget samples, twice, and of retained ones, where a tenth is forgotten
        paper=Paper(
            title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
            arxiv="2305.18290",
            bibtex="@inproceedings{rafailov2023direct,\n  title={Direct Preference Optimization: Your Language Model is Secretly a "
            "Reward Model},\n  author={Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, "
            "Christopher D. and Finn, Chelsea},\n  booktitle={NeurIPS},\n  year={2023}\n}",
        ),
    )
    config_class: ClassVar[type[DpoConfig]] = DpoConfig
    config: DpoConfig
    takes_alternatives = True

    def alternatives(self, row: dict[str, Any]) -> list[Any]:
        return alternatives_in(row)

    def prepare(self, context) -> None:
        super().prepare(context)
        self.original_losses, self.alternative_losses = (
            torch.from_numpy(measured(context, split).signals["loss"]) for split in ("forget", NAME)
        )

    def forget_loss(self, model, part) -> Tensor:
        chosen, rejected = (
            (log_p := log_likelihood(model, batch)) - original_log_p(log_p, batch, losses)
            for batch, losses in (
                (self.context.alternatives(part), self.alternative_losses),
                (part, self.original_losses),
            )
        )
        return part.mean_over_samples(dpo_loss(chosen, rejected, self.config.beta))
