"""PCGrad: gradient surgery for multi-task learning (NeurIPS 2020), on forgetting and retaining as two tasks."""

from dataclasses import dataclass

from .base import TASKS, MethodInfo, Paper
from .gradients import Gradient, combine_, dots, share
from .paired import PairedAscentConfig, PairedGradients


def pcgrad_update(retain: Gradient, forget: Gradient) -> Gradient:
    """The descent gradient of the two tasks g_1 = g_r and g_2 = −g_f, each without its part against the other.

        g_1·g_2 < 0:  g = (g_1 − (g_1·g_2/‖g_2‖²) g_2) + (g_2 − (g_1·g_2/‖g_1‖²) g_1)
        otherwise:    g = g_1 + g_2

    Inner products are over all tensors together. The gradients conflict when g_r·g_f > 0, with g_f as it is.
    """
    kappa, rr, ff = (dots(x, y).sum() for x, y in ((retain, forget), (retain, retain), (forget, forget)))
    a, b = 1 + share(kappa, rr), -1 - share(kappa, ff)
    return combine_(list(retain), forget, [[*range(len(retain))]], [(a, b)])


@dataclass
class PcgradConfig(PairedAscentConfig):
    """PCGrad. `until` and the bounded objective are ours."""

    method = "pcgrad"

    @classmethod
    def paper(cls) -> "PcgradConfig":
        """The plain losses, and no stopping by unseen samples. Learning rate, epochs and clipping are ours: the paper is not of
        unlearning."""
        return cls(objective="ce", until="end")


class Pcgrad(PairedGradients):
    """Descend on the retain loss and ascend on the forget loss, each without its part against the other."""

    info = MethodInfo(
        name="pcgrad",
        kind="gradient",
        summary="descends on retained and ascends on forget samples, each without its part against the other",
        needs=("forget", "retain"),
        applies_to=TASKS,
        cost=40,
        memory="two gradients, of the forget and of the retained loss",
        paper=Paper(
            title="Gradient Surgery for Multi-Task Learning",
            arxiv="2001.06782",
            bibtex="@inproceedings{yu2020gradient,\n  title={Gradient Surgery for Multi-Task Learning},\n  author={Yu, "
            "Tianhe and Kumar, Saurabh and Gupta, Abhishek and Levine, Sergey and Hausman, Karol and Finn, Chelsea},\n"
            "  booktitle={NeurIPS},\n  year={2020}\n}",
        ),
    )
    config_class = PcgradConfig

    def combine(self, gradients: dict[str, Gradient]) -> Gradient:
        return pcgrad_update(gradients["retain"], gradients["forget"])
