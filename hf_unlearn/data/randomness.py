"""Random numbers that depend on (seed, epoch, sample) and on nothing else.

A generator that is advanced batch by batch gives other numbers when the batch size, the number of processes or the
place of a resume changes. These are counter based: every number is a hash of its own coordinates (the finaliser of
splitmix64), so any process can draw the noise of any sample at any time, on any device, and gets the same bits. What draws from the global
generators, such as a user's transform, does so inside `seeded`.
"""

import random
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer; int64 arithmetic wraps as unsigned does


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right (torch shifts int64 arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def uniform(seed: int, epoch: Tensor, sample_index: Tensor, n: int) -> Tensor:
    """Numbers in (0, 1), float64, one row of `n` for each sample; `epoch` and `sample_index` are int64 vectors."""
    row = _mix(_mix(epoch + seed * 1_000_003 + 1) + sample_index * GOLDEN)
    column = torch.arange(1, n + 1, device=row.device) * GOLDEN
    return (_shift(_mix(row[:, None] + column), 11).double() + 0.5) * 2.0**-53


def gumbel(seed: int, epoch: Tensor, sample_index: Tensor, n: int) -> Tensor:
    """Gumbel(0, 1) noise, one row of `n` for each sample."""
    return -torch.log(-torch.log(uniform(seed, epoch, sample_index, n)))


@contextmanager
def seeded(*key: int):
    """Python, NumPy and torch (CPU) random numbers that depend on `key` only; the generators are put back after."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seed = int(np.random.SeedSequence([k % 2**32 for k in key]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
