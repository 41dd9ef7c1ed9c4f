"""The samples nearest to some points, in features that are read once and never held, and how many of them to take."""

import math
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor


class Neighbours:
    """The samples nearest to each of some points, from features that come in batches: memory is points x `length`."""

    def __init__(self, points: Tensor, length: int):
        self.points, self.length = F.normalize(points, dim=1), length
        self.cosines = points.new_empty(len(points), 0)
        self.indices = torch.empty(len(points), 0, dtype=torch.int64, device=points.device)

    def add(self, indices: np.ndarray, features: Tensor) -> None:
        cosines = torch.cat([self.cosines, self.points @ F.normalize(features, dim=1).T], dim=1)
        new = torch.as_tensor(indices, device=features.device).expand(len(self.points), -1)
        best = cosines.topk(min(self.length, cosines.shape[1]), dim=1)
        self.cosines, self.indices = best.values, torch.cat([self.indices, new], dim=1).gather(1, best.indices)

    def nearest(self, k: int) -> np.ndarray:
        """At most k samples: the nearest one of every point, then the second nearest ones, and so on."""
        order = self.cosines.argsort(dim=0, descending=True)  # of those that are as near, the most similar first
        ranked = self.indices.gather(0, order).T.flatten().cpu().numpy()
        _, first = np.unique(ranked, return_index=True)
        return ranked[np.sort(first)][:k]


def centres(features: Tensor, count: int, seed: int) -> Tensor:
    """The centres of so many clusters of the directions of the features."""
    means = KMeans(min(count, len(features)), n_init=cast(Any, 4), random_state=seed)
    found = means.fit(F.normalize(features, dim=1).cpu().numpy()).cluster_centers_
    return torch.as_tensor(found, dtype=features.dtype, device=features.device)


def plateau(sizes: list[int], histograms: list[np.ndarray], usable: list[bool]) -> int | None:
    """The usable size, of rising ones, at which the histogram of the teacher's answers changes least with log k.

    The change is KL(hist_{i−1}‖hist_i) over log(k_i/k_{i−1}), the mean of both sides of a size. None if there is none.
    """
    p = [histogram + 1e-12 for histogram in histograms]
    change = [
        (a * np.log(a / b)).sum() / math.log(new / old)
        for a, b, old, new in zip(p, p[1:], sizes, sizes[1:], strict=False)
    ]
    inner = [i for i in range(1, len(sizes) - 1) if usable[i]]
    return sizes[min(inner, key=lambda i: change[i - 1] + change[i])] if inner else None
