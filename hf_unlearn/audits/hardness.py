"""How hard a request is, measured before anything is unlearned."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import UnlearningError
from ..methods.base import Context
from ..methods.gradients import Gradient, clip_, dots
from ..methods.hamu import Hamu, HamuConfig, Hardness, explain, solve
from ..metrics.tables import Summarised

EASY, HARD = 0.5, 0.9  # hardness01 of gradients at right angles, and of 37° between them
PAPER_RATIO = 0.5
SHOWN = 10
SIDES = ("retain", "forget")
PLAIN = {"objective": "ce", "radius": "retain"}  # what it is measured with: the paper's units, and the plain losses


@dataclass(frozen=True)
class Conflict:
    """A block of weights in which both gradients point the same way.

    Attributes:
        name: of the parameter, or of the module; `all` if there is one block only.
        cosine: cos θ in this block.
        share: ‖g_r‖‖g_f‖ of this block, as a share of S, the sum over all blocks.
    """

    name: str
    cosine: float
    share: float


@dataclass(frozen=True, repr=False)
class HardnessReport(Summarised):
    """How hard it is to forget one set without harm to the other.

    Attributes:
        hardness: of one step on both whole sets, with a learning rate of 1 and clipped gradients.
        config: of the HAMU whose step that is.
        forget_size, retain_size: samples.
        parameters: numbers that are trained.
        forget_norm, retain_norm: of the gradients before clipping.
        kappa_unclipped, cosine_unclipped: g_r·g_f and cos θ before clipping, which changes the first one only.
        conflicts: the blocks that make κ larger, those that do most first.
    """

    hardness: Hardness
    config: HamuConfig
    forget_size: int
    retain_size: int
    parameters: int
    forget_norm: float
    retain_norm: float
    kappa_unclipped: float
    cosine_unclipped: float
    conflicts: list[Conflict]

    @property
    def level(self) -> str:
        """`easy`, `in between` or `hard`."""
        if self.hardness.unavoidable or self.hardness.hardness01 > HARD:
            return "hard"
        return "easy" if self.hardness.hardness01 <= EASY else "in between"

    @property
    def paper_times(self) -> float | None:
        """How many times what is reachable the paper's ratio Q/η = 0.5 asks for."""
        return PAPER_RATIO / self.hardness.reachable if self.hardness.reachable else None

    @property
    def free(self) -> float:
        """The share of the reachable gain that costs the other side nothing."""
        hardness = self.hardness
        return (hardness.slack + hardness.asked) / hardness.reachable if hardness.reachable else 0.0

    def summary(self) -> str:
        """What was found and what to do, in words."""
        hardness, config = self.hardness, self.config
        meaning = {
            "easy": "what lowers the retain loss does not lower the forget loss",
            "in between": "what lowers the retain loss lowers the forget loss somewhat",
            "hard": "what lowers the retain loss lowers the forget loss as well",
        }[self.level]
        lines = [
            f"Hardness {hardness.hardness01:.3f} (0 opposite gradients, 1 the same): {self.level}; {meaning}.",
            f"  cosine {hardness.cosine:.4f}, kappa {hardness.kappa:.3g} ({self.kappa_unclipped:.3g} before clipping), over "
            f"{self.forget_size:,} forget and {self.retain_size:,} retained samples and {self.parameters:,} weights",
        ]
        if other := [f"{name}={getattr(config, name)!r}" for name in PLAIN if self._sets(name)]:
            lines += [
                f"  of the plain losses and the paper's radius, which a step is measured with here: {' and '.join(other)} "
                "changes what a run does, and none of these figures"
            ]
        asked = f"ratio {config.ratio:g}" + (" of what is reachable" if config.quota_scale == "relative" else "")
        side, price = ("forgetting", "retained") if config.variant == "q" else ("retaining", "forget")
        if not (hardness.infeasible or hardness.unavoidable):
            lines += [
                f"Damage is avoidable at {asked}: a step can gain that much {side} at no cost to the {price} side."
            ]
        if self.paper_times is None:
            lines += ["Nothing is reachable: one of the gradients is zero."]
        else:
            lines += [
                f"Reachable: a gain of {hardness.reachable:.3g} times the learning rate, {100 * self.free:.0f} % of it at no "
                f"cost. The paper's ratio of {PAPER_RATIO} asks {self.paper_times:.3g} times what is reachable."
            ]
        if self.conflicts:
            named = (f"{c.name} (cosine {c.cosine:.2f}, {100 * c.share:.1f} % of S)" for c in self.conflicts[:3])
            lines += ["Most in conflict: " + ", ".join(named)]
        lines += [self._advice()]
        return "\n".join(lines)

    def _sets(self, name: str) -> bool:
        """Whether the config asks for something else than it is measured with."""
        return getattr(self.config, name) not in (PLAIN[name], getattr(HamuConfig(), name))

    def _advice(self) -> str:
        if self.hardness.infeasible or self.hardness.unavoidable:
            return explain(self.hardness, self.config, cast(float, self.config.ratio))
        how = f"{self.config.ratio:g}"
        if self.level == "easy":
            return (
                f"What to do: unlearn; hamu with ratio {how} can improve both sides, and simpler methods may do too."
            )
        return (
            f"What to do: use a method that watches both sides, such as hamu with ratio {how}, follow hamu_unavoidable in its "
            'logs, and end before there is damage with stop="stop".'
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        values = dataclasses.asdict(self)
        values["hardness"]["hardness01"] = self.hardness.hardness01
        return values | {"level": self.level, "free": self.free, "paper_times": self.paper_times}

    def save(self, path: str | Path) -> None:
        """Write `to_dict()` as JSON."""
        try:
            Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise UnlearningError(f"The figures cannot be written to {str(path)!r}: {error.strerror}.") from None


def hardness(context: Context, method: Hamu, sizes: dict[str, int], max_norm: float) -> HardnessReport:
    """Of one step of the method, from the whole gradients of both sets of a run that has not begun.

    Args:
        sizes: of `retain` and `forget`.
        max_norm: of each gradient, by which it is clipped; 0: not at all.
    """
    method.prepare(context)
    both = context.gradients(method.loss, [[(name, i) for i in range(sizes[name])] for name in SIDES])
    retain, forget = both
    kappa, *squares = (dots(a, b).sum().item() for a, b in ((retain, forget), (retain, retain), (forget, forget)))
    norms = [math.sqrt(square) for square in squares]
    for name, norm in zip(SIDES, norms, strict=True):
        if not math.isfinite(norm):
            raise UnlearningError(
                f"The gradient of the {name} samples is NaN or infinite; check these samples, or use float32 weights."
            )
    for gradient in both:
        if max_norm > 0:
            clip_(gradient, max_norm)
    config = method.config
    how = method.ratio, config.variant, method.groups, config.on_infeasible, config.quota, config.quota_scale
    _, found = solve(retain, forget, 1.0, *how, PLAIN["radius"])
    return HardnessReport(
        hardness=found,
        config=dataclasses.replace(config, ratio=method.ratio),
        forget_size=sizes["forget"],
        retain_size=sizes["retain"],
        parameters=sum(parameter.numel() for parameter in context.parameters),
        forget_norm=norms[1],
        retain_norm=norms[0],
        kappa_unclipped=kappa,
        cosine_unclipped=kappa / math.prod(norms) if all(norms) else 0.0,
        conflicts=_conflicts(retain, forget, method.groups, _names(context.parameter_names, config.block)),
    )


def _names(parameters: list[str], block: str) -> list[str]:
    """Names of the blocks, in the order of HAMU's groups."""
    if block == "tensor":
        return parameters
    return list(dict.fromkeys(name.rpartition(".")[0] for name in parameters)) if block == "module" else ["all"]


def _conflicts(retain: Gradient, forget: Gradient, groups: list[list[int]], names: list[str]) -> list[Conflict]:
    products = [dots(a, b).double().cpu() for a, b in ((retain, forget), (retain, retain), (forget, forget))]
    kappa, rr, ff = (torch.stack([product[group].sum() for group in groups]) for product in products)
    reach = (rr * ff).sqrt()
    order = [i for i in kappa.argsort(descending=True).tolist() if kappa[i] > 0][:SHOWN]
    return [Conflict(names[i], (kappa[i] / reach[i]).item(), (reach[i] / reach.sum()).item()) for i in order]
