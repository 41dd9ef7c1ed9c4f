"""GRU: gradient rectified unlearning (2025)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..models.weights import cut_as
from .base import TASKS, MethodInfo, Paper
from .gradients import Gradient, combine_, dots, share
from .paired import PairedAscentConfig, PairedGradients


def gru_update(retain: Gradient, forget: Gradient) -> Gradient:
    """The descent gradient of ascent on the forget loss, without its part that would raise the retain loss.

        g = −g_f + (max(0, g_r·g_f)/‖g_r‖²) g_r,   so that g·g_r ≥ 0

    Inner products are over all tensors together. A step along −g_f is a conflict when g_r·g_f > 0, not when it is < 0.
    """
    a = share(dots(retain, forget).sum(), dots(retain, retain).sum())
    return combine_(list(retain), forget, [[*range(len(retain))]], [(a, -1.0)])


def running_mean(mean: Gradient, gradient: Gradient, gamma: float) -> Gradient:
    """ḡ ← γ·g + (1 − γ)·ḡ, tensor by tensor."""
    return [gamma * g + (1 - gamma) * m for g, m in zip(gradient, mean, strict=True)]


@dataclass
class GruConfig(PairedAscentConfig):
    """GRU. `until`, the bounded objective and a γ of 1 are ours."""

    method = "gru"

    gamma: float = field(
        default=1.0,
        metadata={
            "help": "weight γ of a step's retain gradient in the running mean over steps that takes its place; 1: no mean"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("gamma", 0 < self.gamma <= 1, "a weight in (0, 1]")

    @classmethod
    def paper(cls) -> "GruConfig":
        """The plain losses, the γ of the authors' code, and no stopping by unseen samples. Learning rate and clipping are ours:
        theirs are Adam's, which does not keep to the direction."""
        return cls(objective="ce", gamma=0.8, until="end")


class Gru(PairedGradients):
    """Ascend on the forget loss along the nearest direction that does not raise the retain loss."""

    info = MethodInfo(
        name="gru",
        kind="gradient",
        summary="ascends on forget samples along the nearest direction that does not harm the retained ones",
        needs=("forget", "retain"),
        applies_to=TASKS,
        cost=40,
        memory="two gradients, of the forget and of the retained loss",
        paper=Paper(
            title="GRU: Mitigating the Trade-off between Unlearning and Retention for LLMs",
            arxiv="2503.09117",
            bibtex="@inproceedings{wang2025gru,\n  title={{GRU}: Mitigating the Trade-off between Unlearning and "
            "Retention for {LLMs}},\n  author={Wang, Yue and Wang, Qizhou and Liu, Feng and Huang, Wei and Du, Yali and "
            "Du, Xiaojiang and Han, Bo},\n  booktitle={ICML},\n  year={2025}\n}",
        ),
    )
    config_class = GruConfig
    config: GruConfig

    def prepare(self, context) -> None:
        super().prepare(context)
        self.mean: Gradient = []  # of the retain gradients so far

    def combine(self, gradients: dict[str, Gradient]) -> Gradient:
        retain, gamma = gradients["retain"], self.config.gamma
        if gamma < 1:
            retain = self.mean = running_mean(self.mean or [0 * g for g in retain], retain, gamma)
        return gru_update(retain, gradients["forget"])

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {f"mean.{i}": tensor for i, tensor in enumerate(self.mean)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        parameters = self.context.parameters if "mean.0" in state else []
        self.mean = [cut_as(state[f"mean.{i}"], p) for i, p in enumerate(parameters)]
