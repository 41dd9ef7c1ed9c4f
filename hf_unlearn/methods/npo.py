"""NPO: negative preference optimization (COLM 2024)."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tasks.losses import log_likelihood
from .base import MethodInfo, Paper
from .preference import Held, PreferenceConfig, original_log_p


def npo_loss(log_p: Tensor, log_p_ref: Tensor, beta: float) -> Tensor:
    """−(2/β)·log σ(−β·log(π_θ(y|x)/π_ref(y|x))) of every sample, from log π_θ and log π_ref.

    Its gradient is that of log π_θ, which ascent on the loss descends on, times 2π_θ^β/(π_θ^β + π_ref^β): 1 at the
    original, 0 once the sample is forgotten. For β → 0 it is gradient ascent.

    >>> npo_loss(torch.tensor([-3.0]), torch.tensor([-3.0]), beta=2.0)  # log 2
    tensor([0.6931])
    """
    return -2 / beta * F.logsigmoid(-beta * (log_p - log_p_ref))


@dataclass
class NpoConfig(PreferenceConfig):
    """NPO with a retain term. Ours: `until`, and a retain weight of 20.

    The forget loss adds up the tokens of a sample and the retain loss averages them, so with the paper's 1 it is outweighed
    by as much as a completion has tokens.
    """

    method = "npo"

    beta: float = field(default=0.1, metadata={"help": "β: the higher, the sooner a forgotten sample is left alone"})
    retain_weight: float = field(default=20.0, metadata={"help": "weight of the retain term"})

    @classmethod
    def paper(cls) -> "NpoConfig":
        """The paper's values for TOFU on Llama-2-7b with the retain loss (NPO+RT), where all weights are trained: 20 steps on
        forget01, of 40 questions."""
        arguments = {"learning_rate": 1e-5, "num_train_epochs": 10, "per_device_train_batch_size": 32}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.1, "max_grad_norm": 1.0}
        return cls(retain_weight=1.0, until="end", epoch="forget", arguments=arguments)


class Npo(Held):
    """Lower the likelihood of forget samples below the original's, the less the further it has fallen.

    The original's log-likelihood of each forget sample is measured once, before the first step.
    """

    info = MethodInfo(
        name="npo",
        kind="loss",
        summary="lowers the likelihood of forget samples below the original's, ever less the further it falls",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=4,  # 20 epochs of forget and retained samples where a tenth is forgotten
        paper=Paper(
            title="Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
            arxiv="2404.05868",
            bibtex="@inproceedings{zhang2024negative,\n  title={Negative Preference Optimization: From Catastrophic "
            "Collapse to Effective Unlearning},\n  author={Zhang, Ruiqi and Lin, Licong and Bai, Yu and Mei, Song},\n"
            "  booktitle={COLM},\n  year={2024}\n}",
        ),
    )
    config_class = NpoConfig
    config: NpoConfig

    def prepare(self, context) -> None:
        super().prepare(context)
        self.original_losses = torch.from_numpy(context.measure("forget").signals["loss"])  # means over tokens

    def forget_loss(self, model, part) -> Tensor:
        log_p = log_likelihood(model, part)
        log_p_ref = original_log_p(log_p, part, self.original_losses)
        return part.mean_over_samples(npo_loss(log_p, log_p_ref, self.config.beta))
