"""The settings of DAMP."""

from dataclasses import dataclass, field
from typing import Literal

from ..methods.base import MethodConfig

HIGHEST = 5.0  # of α in the head: there, what varies along a direction within the retained classes is 4 times as large


@dataclass
class DampConfig(MethodConfig):
    """DAMP. Beyond the paper: the affine span, the balanced probe, and whatever sets α by hand."""

    method = "damp"

    span: Literal["auto", "linear", "affine"] = field(
        default="auto",
        metadata={
            "help": "what retained means span: a linear space (the paper), an affine one, whose edit changes biases too (ours), "
            "or affine where the edited head still gives the forgotten class (auto)"
        },
    )
    stages: int | list[list[str]] = field(
        default=5, metadata={"help": "L, or the names of the operators that read the activation of each stage"}
    )
    readers: Literal["next", "all_residual"] = field(
        default="next",
        metadata={"help": "which operators are edited: those right behind a stage, or all up to the next one"},
    )
    conv: Literal["channel", "unfold"] = field(
        default="unfold",
        metadata={"help": "what is edited of convolutions: whole patches (unfold), or channels, the same at each tap"},
    )
    pooling: Literal["auto", "head"] = field(
        default="auto",
        metadata={"help": "tokens of the inner stages: their mean, or those that the head reads (head)"},
    )
    probe: Literal["ridge", "logistic"] = field(default="ridge", metadata={"help": "how the probe is fitted"})
    balanced: bool = field(
        default=True,
        metadata={"help": "balanced accuracy of the probe (ours), or the raw one, high when few samples must go"},
    )
    alpha: float | None = field(
        default=None,
        metadata={"help": "α of every stage, without a probe (ours); null: by depth and probe (the paper)"},
    )
    force_head_alpha: float | None = field(
        default=None,
        metadata={"help": "α of the head, such as 1, whatever its probe says and without overshoot (ours)"},
    )
    overshoot: bool = field(
        default=True,
        metadata={
            "help": "raise α of the head, above 1 if need be, where more than 1 % of the forget samples would still be given a "
            "forgotten class, as far as no more than 1 % of the retained samples change theirs (ours)"
        },
    )
    ease: bool = field(
        default=True,
        metadata={
            "help": "take half or nothing of α below the head where that alone leaves at most 1 % of the forget samples "
            "with a forgotten class, or half as many: what these layers make of them may be out of the head's reach (ours)"
        },
    )
    tau: float = field(
        default=0.02, metadata={"help": "directions are dropped where ‖d_f‖/‖μ_f‖ is less: noise, not the class"}
    )
    rcond: float = field(
        default=1e-3, metadata={"help": "singular values of the retained means below this share are noise"}
    )
    probe_samples: int = field(default=4000, metadata={"help": "samples of the probe, both sides together"})

    def __post_init__(self):
        super().__post_init__()
        by_hand = isinstance(self.stages, list) and all(isinstance(s, list) and s for s in self.stages)
        ok = self.stages >= 1 if isinstance(self.stages, int) else by_hand and len(self.stages) > 0
        self.check("stages", ok, "a number of at least 1, or a list with a list of names for each stage")
        self.check("alpha", self.alpha is None or 0 <= self.alpha <= 1, "a share in [0, 1], or null")
        forced = self.force_head_alpha
        self.check(
            "force_head_alpha", forced is None or 0 <= forced <= HIGHEST, f"a number in [0, {HIGHEST}], or null"
        )
        self.check("tau", 0 <= self.tau < 1, "a share in [0, 1)")
        self.check("rcond", 0 <= self.rcond < 1, "a share in [0, 1)")
        self.check("probe_samples", self.probe_samples >= 20, "at least 20")

    @classmethod
    def paper(cls) -> "DampConfig":
        """The paper's algorithm: the linear span, fixed biases, and the probe's raw accuracy. It does not say how a
        convolution is edited: here by channels."""
        return cls(span="linear", conv="channel", balanced=False, overshoot=False, ease=False)
