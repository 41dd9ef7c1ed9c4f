"""SimNPO: negative preference optimization without a reference model (NeurIPS 2025)."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from ..tasks.losses import log_likelihood
from .base import MethodInfo, Paper
from .preference import Held, PreferenceConfig, completion_lengths


def simnpo_loss(log_p: Tensor, lengths: Tensor, beta: float, gamma: float = 0.0) -> Tensor:
    """−(2/β)·log σ(−(β/|y|)·log π_θ(y|x) − γ) of every sample, from log π_θ and the number of its tokens |y|."""
    return -2 / beta * F.logsigmoid(-beta / lengths * log_p - gamma)


@dataclass
class SimnpoConfig(PreferenceConfig):
    """SimNPO with a retain term. `until` is ours."""

    method = "simnpo"

    beta: float = field(default=2.5, metadata={"help": "β: the higher, the sooner a forgotten sample is left alone"})
    gamma: float = field(
        default=0.0,
        metadata={"help": "γ: the margin; the higher, the later it is left alone (β·δ, where open-unlearning has δ)"},
    )

    @classmethod
    def paper(cls) -> "SimnpoConfig":
        """The authors' values for TOFU (forget05) on Llama-2-7b, where all weights are trained.

        They weight the forget loss by 0.1375 and the retain loss by 1; here the retain loss is weighted by 1/0.1375, which
        is the same direction.
        """
        arguments = {"learning_rate": 1e-5, "num_train_epochs": 10, "per_device_train_batch_size": 32}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.1, "max_grad_norm": 1.0}
        return cls(retain_weight=1 / 0.1375, until="end", epoch="forget", arguments=arguments)


class Simnpo(Held):
    """Lower the likelihood of forget samples by token, the less the lower it is; without a reference."""

    info = MethodInfo(
        name="simnpo",
        kind="loss",
        summary="lowers the likelihood of forget samples by token, ever less the lower it is",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=4,  # 20 epochs of forget and retained samples where a tenth is forgotten
        paper=Paper(
            title="Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
            arxiv="2410.07163",
            bibtex="@inproceedings{fan2025simplicity,\n  title={Simplicity Prevails: Rethinking Negative Preference "
            "Optimization for {LLM} Unlearning},\n  author={Fan, Chongyu and Liu, Jiancheng and Lin, Licong and Jia, "
            "Jinghan and Zhang, Ruiqi and Mei, Song and Liu, Sijia},\n  booktitle={NeurIPS},\n  year={2025}\n}",
        ),
    )
    config_class = SimnpoConfig
    config: SimnpoConfig

    def forget_loss(self, model, part) -> Tensor:
        log_p, lengths = log_likelihood(model, part), completion_lengths(part.labels)
        return part.mean_over_samples(simnpo_loss(log_p, lengths, self.config.beta, self.config.gamma))
