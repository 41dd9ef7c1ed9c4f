"""What each optimiser step trains on: a pure function of (seed, step).

Nothing here has a state, so the schedule is the same for every batch layout and number of processes, and a resumed run
continues it by its step number alone.
"""

import bisect
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .streams import in_turn

KINDS = ("mixed", "paired", "forget", "retain", "forget-paired")


class Draw(NamedTuple):
    """One sample of one step. `weight` is its share in the mean over the global batch (0 for padding), or its shares in
    several means; `sample_weight` is its share where all samples count the same, whatever their sizes."""

    group: str  # the part of the batch it belongs to: "mixed", "forget" or "retain"
    source: str  # the dataset it is read from: "forget" or "retain"
    index: int
    epoch: int
    weight: float | tuple[float, ...] = 1.0
    sample_weight: float = 1.0


class Schedule:
    """A list of epochs, each of one kind, cut into steps of `batch_size` samples (the global batch).

    - `mixed`: one shuffled pass over forget and retained samples together, forget samples at their natural rate
    - `paired`: each step has `batch_size` retained *and* `batch_size` forget samples; one pass over the retained ones,
      the forget set is cycled
    - `forget-paired`: the same the other way round, one pass over the forget set; epochs go on with the retained samples
      where the one before has ended
    - `forget`, `retain`: one shuffled pass over that set alone

    The last step of an epoch may be smaller. `retain_fraction` keeps one random subset of the retained samples, drawn
    once, for all epochs. A retained set that is a stream is read in its own order, one sample of each of its lanes in turn, and
    processes have lanes of their own where these can be shared out evenly.

    `sizes` says how much each sample counts in a mean, in whole numbers by `sample_index` (forget samples first, retained
    ones behind): [N], or [N, T] for T means of their own. Without it, all samples count the same.
    """

    def __init__(
        self,
        epochs: list[str],
        *,
        n_forget: int,
        n_retain: int,
        batch_size: int,
        seed: int = 0,
        retain_fraction: float = 1.0,
        retain_is_stream: bool = False,
        lane_starts: Sequence[int] = (0,),
        max_steps: int | None = None,
        sizes: np.ndarray | None = None,
    ):
        if unknown := set(epochs) - set(KINDS):
            raise ValueError(f"unknown kind of epoch {sorted(unknown)[0]!r}; expected one of {', '.join(KINDS)}")
        self.n_forget, self.batch_size, self.seed, self.retain_is_stream = n_forget, batch_size, seed, retain_is_stream
        self.sizes = sizes
        rng = np.random.default_rng([seed, 0])
        kept = math.floor(retain_fraction * n_retain + 1e-9)  # 0.29 * 100 is 28.999999999999996
        self.lane_starts = list(lane_starts)
        self.read_only(rng.choice(n_retain, kept, replace=False))
        self.epochs, self.starts = [], [0]  # the first step of every epoch
        for kind in epochs:
            self._append(kind)
        while max_steps is not None and self.starts[-1] < max_steps:
            self._append(epochs[-1])
        self.max_steps = self.starts[-1] if max_steps is None else max_steps

    def read_only(self, retain: np.ndarray) -> None:
        """Before the first step: the retained samples that are kept, as many as there are of them."""
        self.retain_subset = np.sort(retain)
        if self.retain_is_stream:
            streamed = in_turn(self.lane_starts, self.retain_subset)
            self._in_turn = self.n_forget + np.searchsorted(self.retain_subset, streamed)
        self._order.cache_clear()

    def _size(self, kind: str) -> int:
        """The samples of an epoch; of a paired one, of each set."""
        n_retain = len(self.retain_subset)
        return {"mixed": self.n_forget + n_retain, "paired": n_retain, "retain": n_retain}.get(kind, self.n_forget)

    def _append(self, kind: str) -> None:
        n_retain = len(self.retain_subset)
        if not self._size(kind) or (kind == "forget-paired" and not n_retain):
            raise ValueError(f"an epoch of kind {kind!r} has no samples: give it some, or another kind of epoch")
        self.epochs.append(kind)
        self.starts.append(self.starts[-1] + math.ceil(self._size(kind) / self.batch_size))

    def __len__(self) -> int:
        return self.max_steps

    def samples(self, steps: int | None = None) -> int:
        """How many samples the first so many steps draw, or all of them, each as often as it is drawn."""
        steps, total = self.max_steps if steps is None else steps, 0
        for kind, first in zip(self.epochs, self.starts, strict=False):
            sets = 2 if kind.endswith("paired") else 1
            total += min(max(0, steps - first) * self.batch_size, self._size(kind)) * sets
        return total

    def steps_within(self, samples: int) -> int:
        """How many of the steps draw no more than `samples` together."""
        return bisect.bisect_right(range(1, self.max_steps + 1), samples, key=self.samples)

    def epoch(self, step: int) -> int:
        """The epoch that `step` belongs to."""
        return int(np.searchsorted(self.starts, step, side="right")) - 1

    def progress(self, step: int) -> float:
        """Epochs done after `step` steps, with a fraction."""
        epoch = min(self.epoch(step), len(self.epochs) - 1)
        return epoch + (step - self.starts[epoch]) / (self.starts[epoch + 1] - self.starts[epoch])

    def step(self, step: int) -> dict[str, list[Draw]]:
        """The global batch of `step`, by group."""
        epoch = self.epoch(step)
        kind, start = self.epochs[epoch], (step - self.starts[epoch]) * self.batch_size
        main = {"paired": "retain", "forget-paired": "forget"}.get(kind, kind)
        order = self._order(epoch, main)[start : start + self.batch_size]
        groups = {main: [(epoch, int(i)) for i in order]}
        if kind == "paired":
            groups["forget"] = [(epoch, i) for _, i in self._cycled("forget", 1000 * epoch, start, len(order))]
        elif kind == "forget-paired":
            groups["retain"] = self._cycled("retain", 0, epoch * self.n_forget + start, len(order))
        return {
            group: [
                Draw(group, "forget" if i < self.n_forget else "retain", self._index(i), e) for e, i in groups[group]
            ]
            for group in ("forget", "retain", "mixed")
            if group in groups
        }

    def micro_batches(self, first_step: int, rank: int, world_size: int, accumulation: int) -> Iterator[list[Draw]]:
        """This process's micro-batches from `first_step` on: `accumulation` lists a step, equal in size up to one.

        A step with fewer samples than there are micro-batches is padded with a repeated sample of weight 0. Gradients
        are averaged over processes, so a weight is `world_size` times the share in the mean.
        """
        own_lanes = self.retain_is_stream and world_size > 1 and len(self.lane_starts) % world_size == 0
        last: dict[str, Draw] = {}  # of each group; a sample of a stream can be read twice, but no earlier one
        for step in range(first_step, self.max_steps):
            groups = {group: self.weighted(draws, world_size) for group, draws in self.step(step).items()}
            parts, first = (accumulation, 0) if own_lanes else (world_size * accumulation, rank * accumulation)
            for part in range(first, first + accumulation):
                batch = []
                for group, draws in groups.items():
                    mine = self._share(draws, rank, world_size) if own_lanes else draws
                    chosen = mine[part * len(mine) // parts : (part + 1) * len(mine) // parts]
                    batch += chosen or [_padding(last.get(group, draws[0]) if self.retain_is_stream else draws[0])]
                    last[group] = batch[-1]
                yield batch

    def _share(self, draws: list[Draw], rank: int, world_size: int) -> list[Draw]:
        """Those of a step that this process reads: of a stream, those of its own lanes, and as many others as make it even."""
        streamed: list[list[Draw]] = [[] for _ in range(world_size)]
        for draw in draws:
            if draw.source == "retain":
                streamed[(bisect.bisect_right(self.lane_starts, draw.index) - 1) % world_size].append(draw)
        others = [draw for draw in draws if draw.source == "forget"]
        ends = [len(draws) * (r + 1) // world_size - sum(map(len, streamed[: r + 1])) for r in range(world_size - 1)]
        cuts = [0, *np.maximum.accumulate(np.clip(ends, 0, len(others))).tolist(), len(others)]
        return others[cuts[rank] : cuts[rank + 1]] + streamed[rank]

    def weighted(self, draws: list[Draw], world_size: int = 1) -> list[Draw]:
        """The draws, of forget or retained samples, with the weights of a mean over them all."""
        share = world_size / len(draws)
        if self.sizes is None:
            return [draw._replace(weight=share, sample_weight=share) for draw in draws]
        sizes = self.sizes[[d.index if d.source == "forget" else self.n_forget + d.index for d in draws]]
        weights = world_size * sizes / np.maximum(sizes.sum(axis=0), 1)
        return [
            draw._replace(weight=tuple(weight.tolist()) if weights.ndim == 2 else float(weight), sample_weight=share)
            for draw, weight in zip(draws, weights, strict=True)
        ]

    def used(self) -> np.ndarray:
        """The `sample_index` of all samples that some step can draw: forget samples first, retained ones behind."""
        forget = np.arange(self.n_forget) if set(self.epochs) - {"retain"} else np.arange(0)
        retain = self.retain_subset if set(self.epochs) - {"forget"} else self.retain_subset[:0]
        return np.concatenate([forget, self.n_forget + retain])

    def _index(self, i: int) -> int:
        return int(i if i < self.n_forget else self.retain_subset[i - self.n_forget])

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a schedule lives as long as its trainer
    def _order(self, epoch: int, kind: str) -> np.ndarray:
        """The shuffled samples of an epoch: positions below `n_forget` are forget, the rest the retained subset."""
        total = self.n_forget + len(self.retain_subset)
        lo, hi = {"mixed": (0, total), "forget": (0, self.n_forget), "retain": (self.n_forget, total)}[kind]
        order = np.random.default_rng([self.seed, 1 + epoch, KINDS.index(kind)]).permutation(np.arange(lo, hi))
        if self.retain_is_stream and hi > self.n_forget:
            order[order >= self.n_forget] = self._in_turn
        return order

    def _cycled(self, group: str, round: int, start: int, count: int) -> list[tuple[int, int]]:
        """Samples `start` to `start + count` of an endless shuffled cycle over a set, of which this is the first round; each
        with its round."""
        size = self._size(group)
        first, last = start // size, (start + count - 1) // size
        # A step holds many rounds of a small set, which would push the order of the other samples out of the cache.
        order = Schedule._order if last - first < 3 else Schedule._order.__wrapped__
        rounds = [order(self, round + cycle, group) for cycle in range(first, last + 1)]
        places = (divmod(start + i, size) for i in range(count))
        return [(round + cycle, int(rounds[cycle - first][i])) for cycle, i in places]


def _padding(draw: Draw) -> Draw:
    weight = (0.0,) * len(draw.weight) if isinstance(draw.weight, tuple) else 0.0
    return draw._replace(weight=weight, sample_weight=0.0)
