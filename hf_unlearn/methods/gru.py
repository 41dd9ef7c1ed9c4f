"""GRU: gradient rectified unlearning (2025)."""

from dataclasses import dataclass

from .base import TASKS, MethodInfo, Paper
from .gradients import Gradient, combine_, dots
from .paired import PairedConfig, PairedGradients


def gru_update(retain: Gradient, forget: Gradient) -> Gradient:
    """The descent gradient of ascent on the forget loss, without its part that would raise the retain loss.

        g = −g_f + (max(0, g_r·g_f)/‖g_r‖²) g_r,   so that g·g_r ≥ 0

    Inner products are over all tensors together. A step along −g_f is a conflict when g_r·g_f > 0, not when it is < 0.
    """
    kappa, rr = dots(retain, forget).sum().item(), dots(retain, retain).sum().item()
    a = max(0.0, kappa) / rr if rr else 0.0
    return combine_(list(retain), forget, [[*range(len(retain))]], [(a, -1.0)])


@dataclass
class GruConfig(PairedConfig):
    """GRU. `until` is ours."""

    method = "gru"


class Gru(PairedGradients):
    """Ascend on the forget loss along the nearest direction that does not raise the retain loss."""

    info = MethodInfo(
        name="gru",
        kind="gradient",
        summary="ascends on forget samples along the nearest direction that does not harm the retained ones",
        needs=("forget", "retain"),
        applies_to=TASKS,
        cost=40,
        paper=Paper(
            title="GRU: Mitigating the Trade-off between Unlearning and Retention for LLMs",
            arxiv="2503.09117",
            bibtex="@inproceedings{wang2025gru,\n  title={{GRU}: Mitigating the Trade-off between Unlearning and "
            "Retention for {LLMs}},\n  author={Wang, Yue and Wang, Qizhou and Liu, Feng and Huang, Wei and Du, Yali and "
            "Du, Xiaojiang and Han, Bo},\n  booktitle={ICML},\n  year={2025}\n}",
        ),
    )
    config_class = GruConfig

    def combine(self, gradients: dict[str, Gradient]) -> Gradient:
        return gru_update(gradients["retain"], gradients["forget"])
