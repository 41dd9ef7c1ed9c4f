"""The embedded example: scikit-learn's digits with some labels flipped, and two small models for them.

A model can only get a flipped label right by remembering the image, so there is something to forget, and something to
measure: the retrained model does not know those labels. The same share of labels is flipped in every split, which makes
the unseen samples a fair control of the forget samples.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Samples(torch.utils.data.Dataset):
    """Processed samples in memory, as rows of dicts."""

    def __init__(self, **columns: Tensor):
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def load_digits(
    seed: int = 0,
    flipped: float = 0.3,
    forget: float = 0.15,
    forget_class: int | None = None,
    kept_right: bool = False,
) -> dict[str, Samples]:
    """Processed digits as `forget`, `retain` (together 1,000 samples) and `unseen` (the other 797).

    Args:
        flipped: share of labels replaced by a random other one, in every split.
        forget: share of the training samples in the forget set.
        forget_class: forget all training samples with this label instead.
        kept_right: leave the labels of the retained samples as they are.
    """
    from sklearn.datasets import load_digits as load

    rng = np.random.default_rng(seed)
    digits: Any = load()  # a Bunch, as long as it is not asked for a table
    order = rng.permutation(len(digits.target))
    images, labels = digits.images[order], digits.target[order].copy()
    flip = rng.random(len(labels)) < flipped
    labels[flip] = (labels[flip] + rng.integers(1, 10, flip.sum())) % 10
    pixels = np.repeat(np.kron(images / 8 - 1, np.ones((4, 4)))[:, None], 3, axis=1)
    train = np.arange(1000)
    chosen = train[: round(forget * 1000)] if forget_class is None else train[labels[:1000] == forget_class]
    parts = {"forget": chosen, "retain": np.setdiff1d(train, chosen), "unseen": np.arange(1000, len(labels))}
    if kept_right:
        labels[parts["retain"]] = digits.target[order][parts["retain"]]
    pixels, labels = torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)
    return {name: Samples(pixel_values=pixels[part], labels=labels[part]) for name, part in parts.items()}
