"""Streams of retained samples: read on, never back, in lanes that processes and workers share out among themselves.

A stream of `datasets` has shards. They are put into at most 64 lanes, and an epoch takes a sample of each lane in turn: which
ones a step has depends on the stream alone, however many processes and workers read it, and each of them opens only lanes of its
own. Where a lane begins is known by the number of samples if the shards are of equal size. A lane that is shorter is read again
from its beginning, of a longer one the rest is left out, and that is the same for every number of processes too.
"""

import logging
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from ..errors import UnlearningError
from .reasons import reason

logger = logging.getLogger(__name__)

LANES = 64  # that are open at once
BLOCK = 16  # rows that a worker hands over together

# Of each reader, and out of reach of the circles that it is in: where a loader is garbage together with its queues, it cannot tell
# its workers to end, and waits 5 seconds for each.
_loaders: weakref.WeakKeyDictionary[Any, Iterator[Any]] = weakref.WeakKeyDictionary()


def shards_of(stream: Any) -> int:
    return stream.num_shards if isinstance(stream, datasets.IterableDataset) else 1


def lane_starts(stream: Any, size: int) -> list[int]:
    """The first sample of every lane: as `datasets` cuts rows into shards, and shards into parts."""
    shards = shards_of(stream)
    lanes = min(shards, LANES, max(1, size))
    firsts = [lane * (shards // lanes) + min(lane, shards % lanes) for lane in range(lanes)]
    return [shard * (size // shards) + min(shard, size % shards) for shard in firsts]


def in_turn(starts: list[int], samples: np.ndarray) -> np.ndarray:
    """Samples, in rising order, in the order in which they are read: one of each lane in turn."""
    lanes = np.searchsorted(starts, samples, side="right") - 1
    _, first, counts = np.unique(lanes, return_index=True, return_counts=True)
    places = np.arange(len(samples)) - np.repeat(first, counts)
    return samples[np.lexsort((lanes, places))]


def in_parts(starts: list[int], samples: np.ndarray, parts: int) -> list[np.ndarray]:
    """Samples, in the order in which they are read, in parts of lanes of their own where these can be shared out evenly. All are as
    long: a short one repeats its last sample."""
    order = in_turn(starts, samples)
    lanes = np.searchsorted(starts, order, side="right") - 1
    of = (np.arange(len(order)) if len(starts) % parts else lanes) % parts
    found = [order[of == part] for part in range(parts)]
    longest = max(map(len, found))
    return [np.append(part, np.repeat((part if len(part) else order)[-1:], longest - len(part))) for part in found]


def _shard(stream: Any, shards: int, index: int, epoch: int) -> Iterator[Any]:
    if not isinstance(stream, datasets.IterableDataset):
        if hasattr(stream, "set_epoch"):
            stream.set_epoch(epoch)
        yield from stream
        return
    shard = stream.shard(shards, index)
    shard.set_epoch(epoch)  # by which a stream that is shuffled is shuffled anew; its shards keep their places
    if get_worker_info() is None:
        yield from shard
    else:  # where a plain pass gives shards to the workers itself
        for batch in shard.iter(1):
            yield {name: values[0] for name, values in batch.items()}


def _lane(stream: Any, lane: int, lanes: int, epoch: int) -> Iterator[Any]:
    shards = shards_of(stream)
    for index in np.array_split(np.arange(shards), lanes)[lane].tolist():
        yield from _shard(stream, shards, index, epoch)


class _Blocks(torch.utils.data.IterableDataset):
    """Rows of some lanes, as the workers hand them over: the lanes are shared out among them."""

    def __init__(self, stream: Any, mine: list[int], lanes: int, epoch: int):
        self.stream, self.mine, self.lanes, self.epoch = stream, mine, lanes, epoch

    def __iter__(self) -> Iterator[tuple[int, list[Any]]]:
        worker = get_worker_info()
        mine = self.mine if worker is None else self.mine[worker.id :: worker.num_workers]
        open_lanes = {lane: _lane(self.stream, lane, self.lanes, self.epoch) for lane in mine}
        while open_lanes:
            for lane, rows in list(open_lanes.items()):
                block = [row for row, _ in zip(rows, range(BLOCK), strict=False)]
                if len(block) < BLOCK:
                    del open_lanes[lane]
                yield lane, block


class StreamReader:
    """Access by position, which only goes forward in each lane: `row(epoch, position)`.

    Args:
        starts: the first position of every lane.
        mine: the lanes that the workers read ahead; others are opened when they are asked for.
        workers: 0: rows are read here, when they are asked for.
        told: the lanes that were said to be short.
    """

    def __init__(
        self,
        stream: Any,
        starts: list[int] | None = None,
        mine: list[int] | None = None,
        workers: int = 0,
        told: set[int] | None = None,
    ):
        self.stream, self.starts = stream, starts or [0]
        self.mine, self.workers = mine or [], min(workers, len(mine or []))
        self.epoch: int | None = None
        self.last: dict[int, tuple[int, int, Any]] = {}  # of each lane: epoch, position and row
        self.told = set() if told is None else told

    def row(self, epoch: int, position: int) -> Any:
        lane = bisect_right(self.starts, position) - 1
        place = position - self.starts[lane]
        if (epoch, position) == self.last.get(lane, ())[:2]:
            return self.last[lane][2]
        if epoch != self.epoch or place < self.places[lane]:
            self._begin(epoch)
        try:
            while True:
                row = self._next(lane)
                self.places[lane] += 1
                if self.places[lane] > place:
                    self.last[lane] = epoch, position, row
                    return row
        except StopIteration:
            raise UnlearningError(
                f"The stream of retained samples ended after {self.places[lane]} samples, but retain_size says that there are "
                f"more than {position}; pass its true size, and a stream that can be read again in every epoch."
            ) from None

    def _begin(self, epoch: int) -> None:
        self.epoch, self.places = epoch, [0] * len(self.starts)
        self.lanes: dict[int, Iterator[Any]] = {}
        self.ahead: dict[int, deque] = {}
        if self.workers:
            blocks = _Blocks(self.stream, self.mine, len(self.starts), epoch)
            own = torch.Generator()  # a loader draws a seed for its workers from the global one otherwise
            _loaders[self] = iter(DataLoader(blocks, batch_size=None, num_workers=self.workers, generator=own))
            self.ahead = {lane: deque() for lane in self.mine}

    def _next(self, lane: int) -> Any:
        try:
            if lane in self.ahead and lane not in self.lanes:
                while not self.ahead[lane]:
                    of, block = next(_loaders[self])
                    self.ahead[of].extend(block)
                    if len(block) < BLOCK:
                        self.ahead[of].append(StopIteration)
                row = self.ahead[lane].popleft()
                if row is not StopIteration:
                    return row
                self._starts_over(lane)
            if lane not in self.lanes:
                self.lanes[lane] = _lane(self.stream, lane, len(self.starts), self.epoch or 0)
            for row in self.lanes[lane]:
                return row
            self._starts_over(lane)
            self.lanes[lane] = _lane(self.stream, lane, len(self.starts), self.epoch or 0)
            return next(self.lanes[lane])
        except (UnlearningError, StopIteration):
            raise
        except Exception as error:
            todo = "leave it out, or mend the stream"
            if isinstance(error, OSError):  # those of a connection, too
                todo = (
                    "where a connection was lost, go on from the newest checkpoint with resume_from_checkpoint=True; else leave it "
                    "out, or mend the stream"
                )
            raise UnlearningError(
                f"Sample {self.starts[lane] + self.places[lane]} of the stream of retained samples cannot be read ({reason(error)}); "
                f"{todo}."
            ) from error

    def _starts_over(self, lane: int) -> None:
        if len(self.starts) == 1 or not self.places[lane]:
            raise StopIteration
        if not self.told:
            logger.warning(
                f"The shards of the stream of retained samples are of uneven sizes, or retain_size is not their sum: part {lane} of "
                f"{len(self.starts)} ended after {self.places[lane]} samples, and is read again from its beginning."
            )
        self.told.add(lane)
