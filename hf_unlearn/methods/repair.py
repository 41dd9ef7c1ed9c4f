"""Going on when enough is forgotten, until retained samples are right again (ours)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..tasks.base import Task
from .base import measured
from .paired import PairedAscentConfig, PairedGradients


@dataclass
class RepairConfig(PairedAscentConfig):
    """Settings of a method that can go on without asking for more forgetting."""

    then: Literal["repair", "end"] | None = field(
        default=None,
        metadata={
            "help": "what follows when `until` is reached: repair: steps that ask for no forgetting, or for it again where forget samples "
            "come back, until as many retained samples are right as were by the original, less `harm`; end: nothing; null: repair of a "
            "classifier, end of a language model (ours)"
        },
    )
    harm: float = field(
        default=0.005,
        metadata={"help": "share of the retained samples that a repair may leave wrong, of those that were right"},
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("harm", 0 <= self.harm <= 1, "a share in [0, 1]")
        in_vain = self.then == "repair" and self.until == "end"
        self.check("then", not in_vain, 'end or null, since until="end" reaches no aim')
        if "end" in (self.then, self.until):
            self.check_unrepaired()

    def check_unrepaired(self) -> None:
        """Refuse a `harm` that was set where nothing would read it."""
        self.check(
            "harm",
            self.harm == type(self).harm,
            "its default, since nothing is repaired where then is end, or until, or the model a language model",
        )


class Repair(PairedGradients):
    """Steps ask for forgetting, as `asks` says, or only repair."""

    config: RepairConfig
    then = "repair"

    def learn_task(self, task: Task) -> None:
        super().learn_task(task)
        self.then = self.config.then or ("repair" if task.right_or_wrong else "end")
        if self.then == "end":
            self.config.check_unrepaired()

    def prepare(self, context) -> None:
        super().prepare(context)
        self.asks, self.retain_aim = True, 0.0
        if self.looks and self.then == "repair" and context.has("retain"):
            self.retain_aim = measured(context, "retain").accuracy - self.config.harm

    def is_known(self) -> bool:
        """Whether there is more to do: to forget, or to repair."""
        self.asks = super().is_known()
        return self.asks or (self.retain_aim > 0 and measured(self.context, "retain").accuracy < self.retain_aim)

    def missed(self) -> str:
        if self.asks:
            return super().missed()
        right = measured(self.context, "retain").accuracy
        return (
            f"{self.info.name} has used up its {len(self.context.schedule)} steps, and retained samples have not come back: "
            f"{100 * right:.1f} % of them are right, and the aim is {100 * self.retain_aim:.1f} %. Raise num_train_epochs and, where "
            "they are set, max_steps or a budget, or lower ratio."
        )

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"repair": torch.tensor([self.asks, self.retain_aim], dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        asks, self.retain_aim = state["repair"].tolist()
        self.asks = bool(asks)
