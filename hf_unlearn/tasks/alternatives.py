"""Other answers to forget samples of a language model, as a set of their own."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..data.collator import Collator
from ..data.randomness import uniform
from ..data.source import Source
from ..errors import UnlearningError
from .completions import ALTERNATIVE, CompletionCollator

NAME = "alternatives"


def alternatives_in(row: dict[str, Any]) -> list[Any]:
    """Those of a row: what stands in its column, one of them or several; each is a text, messages, or token ids."""
    given = row.get(ALTERNATIVE)
    if not isinstance(given, (str, list, tuple)) or not given:
        return []
    several = not isinstance(given, str) and isinstance(given[0], (str, list, tuple))
    return [answer for answer in given if answer] if several else [given]


def _rows(source: Source, chunk: int = 256) -> Iterator[dict[str, Any]]:
    for start in range(0, len(source), chunk):
        yield from source.rows(range(start, min(start + chunk, len(source))))


class Alternatives:
    """The forget samples with other answers, one or several each.

    Args:
        of: the answers that a row is to be given.

    Attributes:
        source: a row for each of these, sample by sample.
    """

    def __init__(self, forget: Source, collator: Collator, of: Callable[[dict], list[Any]], seed: int):
        assert isinstance(collator, CompletionCollator)  # of a language model
        self.seed, self.starts, rows = seed, [0], []
        for index, row in enumerate(_rows(forget)):
            if not (answers := of(row)):
                raise UnlearningError(
                    f"Row {index} of {forget.name} has no other answer that could be given to it; expected a column {ALTERNATIVE} (a "
                    "text, or a list of them), or the columns chosen and rejected."
                )
            rows += [collator.answered(row, answer) for answer in answers]
            self.starts.append(len(rows))
        self.source = Source(rows, NAME, forget.given, layout=forget.layout)
        collator.sizes({"forget": self.source})  # refuses those without a token

    def drawn(self, sample_index: Tensor, epoch: Tensor) -> list[int]:
        """A row for each of these samples, drawn by (seed, epoch, sample)."""
        shares = uniform(self.seed, epoch.cpu(), sample_index.cpu(), 1)[:, 0]
        starts = torch.tensor(self.starts)
        first, count = starts[:-1][sample_index.cpu()], starts.diff()[sample_index.cpu()]
        return (first + (shares * count).long()).tolist()
