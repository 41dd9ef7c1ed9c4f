"""Who pays for forgetting: the distance to a retrained model by similarity to the forget set.

    s(x) = cosine of x to the centroid of the forget set, in the features that the original's head reads
    Δacc(B) = Acc_ret(B) − Acc_un(B),   Δconf(B) = mean of p_ret(x)_y − p_un(x)_y,   TV(B) = mean of ½‖p_ret(x) − p_un(x)‖₁

over the samples in each of ten bins of s, of equal width. Zero is agreement, positive differences are damage. Beside them:
the means over the nearest 5% and the farthest half of the samples, the ratio of their TV, and Spearman's correlation of s
and TV. The floor is the same between two retrained models. Of a scattered forget set, whose samples are hardly nearer to
their centroid than others are, similarity to the centroid says little.

References:
    Dolgova and Stich, *Forgetting Has Neighbors: Localized Collateral Forgetting in Machine Unlearning*, arXiv 2605.31317.
    TV, the ratio, the correlation and the floor are ours.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import spearmanr
from torch import Tensor, nn

from ..errors import UnlearningError
from ..methods.local_teacher import SCATTERED, forget_nearer, similarity
from ..models.adapters import Adapter
from ..tasks.evaluation import Evaluator
from ..training.record import Result, Run
from .plots import Series, picture

MEASURES = ("accuracy", "confidence", "total_variation")
SPLITS = {"retain": "retain", "unseen": "evidence"}  # what is compared, by what the run calls it
NEAR, FAR = 0.05, 0.5  # shares of the samples

Reference: TypeAlias = Literal["retrained", "original"]


@dataclass
class Locality:
    """The difference between two models, reference − model, near the forget set and far from it.

    Attributes:
        reference: what the model is held beside: a `retrained` model, or the `original`.
        edges: of the bins of similarity.
        counts: samples in each bin.
        bins: measure -> its mean in each bin; None where a bin is empty. Measures are `accuracy`, `confidence` (of the true
            class) and `total_variation`.
        near, far: measure -> its mean over the nearest 5% and the farthest half.
        ratio: total variation near / far; None where there is none far.
        correlation: Spearman's, of similarity and total variation; None where one of them is constant.
        floor: the same between two retrained models.
        forget_nearer: how often a forget sample is nearer to the centroid than one of these samples; near 1/2, the bins mean
            little. None where it is not known.
    """

    reference: Reference
    edges: list[float]
    counts: list[int]
    bins: dict[str, list[float | None]]
    near: dict[str, float]
    far: dict[str, float]
    ratio: float | None
    correlation: float | None
    floor: "Locality | None" = None
    forget_nearer: float | None = None

    def summary(self) -> str:
        """What is compared, and one line for each place."""

        def line(where: str, values: dict[str, float], floor: dict[str, float] | None) -> str:
            said = f"{where}: accuracy {values['accuracy']:+.3f}, confidence {values['confidence']:+.3f}, "
            said += f"total variation {values['total_variation']:.3f}"
            return said + (f" (two retrained models: {floor['total_variation']:.3f})" if floor else "")

        near, far = (self.floor.near, self.floor.far) if self.floor else (None, None)
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        correlation = "-" if self.correlation is None else f"{self.correlation:.2f}"
        lines = [f"{self.reference} − unlearned, by similarity to the forget set"]
        lines += [line("nearest 5%", self.near, near), line("farthest half", self.far, far)]
        lines.append(f"near/far ratio {ratio}, rank correlation with similarity {correlation}")
        if self.forget_nearer is not None and self.forget_nearer < SCATTERED:
            lines.append(
                f"a forget sample is nearer to the centroid than these in only {100 * self.forget_nearer:.0f} % of pairs: the forget "
                "set is scattered, and what is near it or far says little"
            )
        return "\n".join(lines)

    def svg(self, measure: str = "total_variation", width: int = 480, height: int = 240) -> str:
        """A measure by similarity as a picture: the model's line, and the floor's."""
        series = [Series("unlearned", self.bins[measure], "unlearned")]
        if self.floor:
            series.append(Series("two retrained models", self.floor.bins[measure], "retrained"))
        name = measure.replace("_", " ")
        return picture(
            f"locality-{measure}",
            self.edges,
            series,
            title=f"{name.capitalize()} by similarity to the forget set",
            kind="middles",
            x_label="similarity to the forget set",
            y_label=f"{self.reference} − unlearned, {name}",
            width=width,
            height=height,
        )


def compare_locally(
    similarities: ArrayLike,
    differences: Mapping[str, ArrayLike],
    bins: int = 10,
    floor: Locality | None = None,
    forget_similarities: ArrayLike | None = None,
    reference: Reference = "retrained",
) -> Locality:
    """From numbers of each sample: its similarity, and the difference of the two models in each measure. Those of the forget
    samples themselves tell whether similarity says anything.

    >>> about = compare_locally([0.0, 1.0], dict.fromkeys(MEASURES, [0.1, 0.3]), bins=2)
    >>> about.bins["accuracy"], round(about.ratio, 3)
    ([0.1, 0.3], 3.0)
    """
    s = np.asarray(similarities, dtype=np.float64)
    found = {measure: np.asarray(values, dtype=np.float64) for measure, values in differences.items()}
    edges = np.linspace(s.min(), s.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, s, side="right") - 1, 0, bins - 1)  # the last bin is closed
    counts, order = np.bincount(place, minlength=bins), np.argsort(-s, kind="stable")
    near, far = order[: max(1, round(NEAR * len(s)))], order[len(s) - max(1, round(FAR * len(s))) :]
    variation = found["total_variation"]
    varies = np.ptp(s) > 0 and np.ptp(variation) > 0
    return Locality(
        reference=reference,
        edges=edges.tolist(),
        counts=counts.tolist(),
        bins={m: [float(v[place == b].mean()) if counts[b] else None for b in range(bins)] for m, v in found.items()},
        near={measure: float(values[near].mean()) for measure, values in found.items()},
        far={measure: float(values[far].mean()) for measure, values in found.items()},
        ratio=float(variation[near].mean() / variation[far].mean()) if variation[far].any() else None,
        correlation=float(cast(Any, spearmanr(s, variation)).statistic) if varies else None,
        floor=floor,
        forget_nearer=None if forget_similarities is None else forget_nearer(np.asarray(forget_similarities), s),
    )


def locality(
    result: Result, retrained: nn.Module | None = None, second: nn.Module | None = None, bins: int = 10
) -> dict[str, Locality]:
    """The difference of an unlearned model to a `retrained` one, on `retain` and on `unseen` samples, by similarity.

    Without a retrained model it is the difference to the original, which tells where the model has changed. With a
    `second` one, retrained with another seed, `floor` is the difference that two retrained models have.

    Example:
        >>> print(locality(result, retrained)["unseen"].summary())  # doctest: +SKIP
    """
    run = result.run
    evaluator = run.evaluator
    if not run.task.has_classes:
        raise UnlearningError(f"locality compares the classes of predictions, and the model is for {run.task.name}.")
    if second is not None and retrained is None:
        raise UnlearningError("A second retrained model is given without a first one; pass it as retrained=.")
    others = [model.to(run.device) for model in (retrained, second) if model is not None]
    splits = [(name, run.indices[split]) for name, split in SPLITS.items() if split in run.indices]
    found = {}
    with _original(run) as original:
        forget = torch.cat([h for _, _, h in evaluator.features(original, *run.indices["forget"])])
        own = similarity(forget, forget).cpu().numpy()
        for name, (source, indices) in splits:
            rows = [
                (positions, similarity(h, forget).cpu())
                for positions, _, h in evaluator.features(original, source, indices)
            ]
            positions, s = (np.concatenate(column) for column in zip(*rows, strict=True))
            s = s[np.argsort(positions)]
            first, reference = (others[0], "retrained") if others else (original, "original")
            floor = None
            if len(others) == 2:
                floor = compare_locally(s, differences(evaluator, others[0], others[1], source, indices), bins)
            columns = differences(evaluator, first, result.model, source, indices)
            found[name] = compare_locally(s, columns, bins, floor, own, reference)
    return found


def differences(
    evaluator: Evaluator, reference: nn.Module, model: nn.Module, source: str, indices: np.ndarray
) -> dict[str, np.ndarray]:
    """Of each sample, reference − model: whether it is right, its probability of the true class; and the TV."""
    found = {measure: np.empty(len(indices)) for measure in MEASURES}
    passes = evaluator.predictions(reference, source, indices), evaluator.predictions(model, source, indices)
    for (positions, batch, a), (_, _, b) in zip(*passes, strict=True):
        p, q, true = a.double().softmax(-1), b.double().softmax(-1), batch.labels[:, None]
        right = [(x.argmax(dim=-1) == batch.labels).double() for x in (p, q)]
        columns = right[0] - right[1], (p - q).gather(1, true)[:, 0], (p - q).abs().sum(dim=-1) / 2
        places = torch.as_tensor(positions, device=p.device)
        places, columns = evaluator.accelerator.gather((places, columns))
        for measure, values in zip(MEASURES, columns, strict=True):
            found[measure][places.cpu().numpy()] = values.cpu().numpy()
    return found


class _Unadapted(nn.Module):
    """The original, as a model whose adapter is switched off in every pass."""

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.model, self.disabled = adapter.model, adapter.disabled

    def forward(self, **inputs: Tensor) -> Any:
        with self.disabled():
            return self.model(**inputs)


@contextlib.contextmanager
def _original(run: Run) -> Iterator[nn.Module]:
    if run.adapter:
        yield _Unadapted(run.adapter)
        return
    with run.original() as original:
        yield original
