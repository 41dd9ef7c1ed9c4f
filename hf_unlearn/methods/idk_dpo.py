"""DPO with refusals: the model shall say that it does not know (TOFU, COLM 2024)."""

from dataclasses import dataclass, field
from typing import Any

from .base import MethodInfo, Paper
from .dpo import Dpo, DpoConfig

REFUSALS = (
    "I don't know.",
    "I have no answer to that.",
    "That is something I know nothing about.",
    "I am not able to say.",
    "I have never learnt that.",
    "Nothing comes to my mind about this.",
    "I cannot help with this question.",
    "This is beyond what I know.",
    "I'm afraid I have no idea.",
    "I would have to guess, so I would rather not say.",
)


@dataclass
class IdkDpoConfig(DpoConfig):
    """DPO with refusals and a retain term. Ours: `until`, a retain weight of 20, and the refusals."""

    method = "idk_dpo"

    refusals: list[str] | None = field(
        default=None,
        metadata={
            "help": "what shall be answered, of which each epoch draws one for each sample; null: ten sentences of ours"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        given = self.refusals
        self.check("refusals", given is None or (bool(given) and all(map(str.strip, given))), "some texts, or null")


class IdkDpo(Dpo):
    """Raise the likelihood of a refusal over that of the answer to forget, both beside the original's: DPO, for whose other
    answers nothing has to be in the data.

    A model that has learnt to refuse need not have forgotten, see `metrics.truth_ratio`. TOFU has a hundred refusals of its own.
    """

    info = MethodInfo(
        name="idk_dpo",
        kind="loss",
        summary="raises the likelihood of a refusal over that of the answer to forget",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=6,  # 20 epochs of forget samples, twice, and of retained ones, where a tenth is forgotten
        paper=Paper(
            title="TOFU: A Task of Fictitious Unlearning for LLMs",
            arxiv="2401.06121",
            bibtex="@inproceedings{maini2024tofu,\n  title={{TOFU}: A Task of Fictitious Unlearning for {LLMs}},\n  author={Maini, "
            "Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, Zachary C. and Kolter, J. Zico},\n  booktitle={COLM},\n"
            "  year={2024}\n}",
        ),
    )
    config_class = IdkDpoConfig
    config: IdkDpoConfig

    def alternatives(self, row: dict[str, Any]) -> list[Any]:
        return list(self.config.refusals or REFUSALS)
