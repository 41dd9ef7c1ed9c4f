"""AltPO: alternate preference optimization (COLING 2025)."""

from dataclasses import dataclass

from .base import MethodInfo, Paper
from .dpo import Dpo, DpoConfig


@dataclass
class AltpoConfig(DpoConfig):
    """AltPO with a retain term. Ours: `until`, and a retain weight of 20, as for NPO."""

    method = "altpo"

    @classmethod
    def paper(cls) -> "AltpoConfig":
        """The values in the authors' code for TOFU on Llama-2-7b, where all weights are trained. They have a row for each alternative;
        here each epoch draws one for each sample."""
        arguments = {"learning_rate": 5e-5, "num_train_epochs": 10, "per_device_train_batch_size": 35}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.1, "max_grad_norm": 1.0}
        return cls(retain_weight=1.0, until="end", epoch="forget", arguments=arguments)


class Altpo(Dpo):
    """Raise the likelihood of plausible other answers over that of the answer to forget: DPO, with a column `alternative` of several
    for each forget sample, of which each epoch draws one.

    In the paper the original itself has written them, asked for answers with other facts in them; they have to be in the data here.
    """

    info = MethodInfo(
        name="altpo",
        kind="loss",
        summary="raises the likelihood of plausible other answers, several from the data, over that of the one to forget",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=6,  # 20 epochs of forget samples, twice, and of retained ones, where a tenth is forgotten
        paper=Paper(
            title="Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language Models",
            arxiv="2409.13474",
            bibtex="@inproceedings{mekala2025alternate,\n  title={Alternate Preference Optimization for Unlearning Factual Knowledge "
            "in Large Language Models},\n  author={Mekala, Anmol and Dorna, Vineeth and Dubey, Shreya and Lalwani, Abhishek and "
            "Koleczek, David and Rungta, Mukund and Hasan, Sadid and Lobo, Elita},\n  booktitle={COLING},\n  year={2025}\n}",
        ),
    )
    config_class = AltpoConfig
