"""The drawn samples of a step, read from their sets, and what makes training batches of them."""

from collections.abc import Callable
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from .batches import Batch
from .collator import Collator
from .randomness import seeded
from .schedule import Draw
from .source import Source


class DrawnSamples(torch.utils.data.Dataset):
    """A map-style dataset over `Draw`s: a list of draws gives rows, with what the batch must know about each of them.

    `augment` is a transform of the raw image or text. It, and any other randomness in reading a sample, is seeded by
    (seed, epoch, sample), so that every layout of batches and every resumed run sees the same augmented samples.
    """

    def __init__(
        self, sources: dict[str, Source], augment: Callable | None = None, seed: int = 0, seeded: bool = False
    ):
        self.sources, self.augment, self.seed = sources, augment, seed
        self.seeded = seeded or augment is not None

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources.values())

    def __getitems__(self, draws: list[Draw]) -> list[tuple[Draw, int, dict]]:
        if self.seeded:
            rows = [self._seeded_row(draw) for draw in draws]
        else:
            rows: list[dict] = [{}] * len(draws)
            for name, source in self.sources.items():
                for epoch in sorted({draw.epoch for draw in draws if draw.source == name}):
                    places = [i for i, draw in enumerate(draws) if (draw.source, draw.epoch) == (name, epoch)]
                    read = source.rows([draws[i].index for i in places], epoch)
                    for i, row in zip(places, read, strict=True):
                        rows[i] = row
        return [(draw, self.sample_index(draw), row) for draw, row in zip(draws, rows, strict=True)]

    def sample_index(self, draw: Draw) -> int:
        """One number for each sample: forget samples first, the others behind them."""
        return draw.index if draw.source == "forget" else len(self.sources["forget"]) + draw.index

    def _seeded_row(self, draw: Draw) -> dict:
        source = self.sources[draw.source]
        with seeded(self.seed, draw.epoch, self.sample_index(draw)):
            row = source.rows([draw.index], draw.epoch)[0]
            if self.augment is None:
                return row
            column = source.input_columns[0]
            return {**row, column: self.augment(row[column])}


class TrainingCollator:
    """`DrawnSamples` to what a method's `losses` gets: one `Batch`, or one for each group of a paired step.

    Args:
        counts: samples are weighed by sizes that are found as they come, see `weigh`.
    """

    def __init__(self, collator: Collator, counts: bool = False):
        self.collator, self.counts = collator, counts

    def __call__(self, samples: list[tuple[Draw, int, dict]]) -> Batch | dict[str, Batch]:
        groups = {}
        for sample in samples:
            groups.setdefault(sample[0].group, []).append(sample)
        batches = {group: self._batch(members) for group, members in groups.items()}
        return batches if len(batches) > 1 else next(iter(batches.values()))

    def _batch(self, samples: list[tuple[Draw, int, dict]]) -> Batch:
        places = [(draw.source, draw.index) for draw, _, _ in samples]
        batch = self.collator.collate([row for _, _, row in samples], places)
        batch["is_forget"] = torch.tensor([draw.source == "forget" for draw, _, _ in samples])
        batch["sample_index"] = torch.tensor([index for _, index, _ in samples])
        batch["epoch"] = torch.tensor([draw.epoch for draw, _, _ in samples])
        for name in ("weight", "sample_weight"):
            batch[name] = torch.tensor([getattr(draw, name) for draw, _, _ in samples], dtype=torch.float64)
        if self.counts:
            batch["weight"] *= self.collator.sizes_of(batch, places)
        return batch


def weigh(batches: list[Batch | dict[str, Batch]], accelerator: Accelerator) -> None:
    """Give the micro-batches of a step, whose samples were counted as they came, the weights of a mean over all of the step."""
    groups: dict[str, list[Batch]] = {}
    for batch in batches:
        for name, part in [("", batch)] if isinstance(batch, Batch) else batch.items():
            groups.setdefault(name, []).append(part)
    sums = [torch.stack([part.weight.sum() for part in groups[name]]).sum() for name in sorted(groups)]
    totals = accelerator.reduce(torch.stack(sums).to(accelerator.device), "sum")
    for name, total in zip(sorted(groups), cast(Tensor, totals), strict=True):
        for part in groups[name]:
            part["weight"] = part.weight.to(total.device) * (accelerator.num_processes / total)


def is_deterministic(source: Source, collator: Collator, samples: int = 16) -> bool:
    """Whether reading a sample in two epochs gives the same inputs; not so after a random transform, or in a stream
    that is shuffled anew in every epoch."""
    indices, read = source.first(samples), []
    for epoch in range(2):
        with seeded(epoch):  # every process finds the same
            read.append(_inputs(source, collator, indices, epoch))
    return _are_equal(*read)


def is_repeatable(source: Source, collator: Collator, samples: int = 16) -> bool:
    """Whether reading a stream twice in one epoch gives the same; not so where its rows are transformed at random."""
    read = []
    for seed in range(2):
        with seeded(seed):
            read.append(_inputs(source.read_by(0, 1, 0), collator, source.first(samples), 0))
    return _are_equal(*read)


def _inputs(source: Source, collator: Collator, indices: list[int], epoch: int) -> dict[str, torch.Tensor]:
    return collator.collate(source.rows(indices, epoch), [(source.name, index) for index in indices]).inputs


def _are_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a)
