"""The losses as they come: their named parts, for the logs, and whether all of them were finite."""

import torch
from accelerate.utils import gather_object
from torch import Tensor


class Watch:
    """Reads nothing from the device until it is asked.

    Attributes:
        pending: values that wait for the next losses to be logged.
    """

    def __init__(self) -> None:
        self.pending: dict[str, float] = {}
        self.begin(0)

    def begin(self, step: int) -> None:
        """A run goes on from `step`."""
        self.parts: dict[str, Tensor] = {}  # summed since the step they were last logged at
        self.since = step
        self._finite: Tensor | None = None

    def add(self, name: str, value: Tensor) -> None:
        """A part of the loss, by its name."""
        self.parts[name] = self.parts.get(name, 0) + value.detach()

    def means(self, step: int) -> dict[str, float]:
        """Parts as the Trainer logs the loss itself: a mean over processes and the steps since the last log."""
        sums = gather_object([{name: value.item() for name, value in self.parts.items()}])
        count = len(sums) * (step - self.since)
        self.parts, self.since = {}, step
        return {name: sum(parts.get(name, 0.0) for parts in sums) / count for name in sorted(set().union(*sums))}

    def see(self, loss: Tensor) -> None:
        """Remember on the device whether every loss was finite; `all_finite` reads it now and then."""
        finite = torch.isfinite(loss.detach())
        self._finite = finite if self._finite is None else self._finite & finite

    def all_finite(self) -> bool:
        return self._finite is None or bool(self._finite.item())
