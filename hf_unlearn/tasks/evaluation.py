"""Forward passes over forget, retained and unseen samples, and the figures that are read off them.

A pass keeps a handful of numbers for each sample and one sum of probabilities for each forget class, never all logits.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .. import metrics, models
from ..data.batches import Batch, to_model
from ..data.samples import DrawnSamples, TrainingCollator
from ..data.schedule import Draw
from ..errors import UnlearningError
from ..models.modes import evaluating
from .figures import Figures, Measurement, figures


class Evaluator:
    """Shares forward passes out over the processes; every process gets the whole result, in the order of the samples."""

    def __init__(
        self,
        accelerator: Accelerator,
        samples: DrawnSamples,
        collator: TrainingCollator,
        num_labels: int,
        batch_size: int = 128,
        workers: int = 0,
        progress: bool = False,
    ):
        self.accelerator, self.samples, self.collator, self.num_labels = accelerator, samples, collator, num_labels
        self.batch_size, self.workers = batch_size, workers
        self.progress = progress and accelerator.is_local_main_process

    def batches(
        self, name: str, indices: np.ndarray, shard: tuple[int, int], description: str | None = None
    ) -> Iterator[tuple[np.ndarray, Batch]]:
        """(positions in `indices`, batch) of this shard. All shards have the same number of batches: short ones repeat
        samples, with weight 0."""
        rank, shards = shard
        positions = np.arange(rank, rank + shards * -(-len(indices) // shards), shards)
        draws = [Draw(name, name, int(indices[p % len(indices)]), 0, float(p < len(indices))) for p in positions]
        chunks = [slice(i, i + self.batch_size) for i in range(0, len(draws), self.batch_size)]
        loader = DataLoader(
            self.samples,
            batch_sampler=[draws[chunk] for chunk in chunks],
            collate_fn=self.collator,
            num_workers=self.workers,
            generator=torch.Generator(),  # so that a pass leaves the global generator alone
        )
        bar = tqdm(
            loader, desc=description, leave=False, disable=not self.progress or not description or len(chunks) < 8
        )
        for chunk, batch in zip(chunks, bar, strict=True):
            yield positions[chunk] % len(indices), batch

    def predictions(
        self,
        model: nn.Module,
        name: str,
        indices: np.ndarray,
        shard: tuple[int, int] | None = None,
        description: str = "",
    ) -> Iterator[tuple[np.ndarray, Batch, Any]]:
        """(positions, batch, what `predict` says) of the model in eval mode, on this process's share."""
        device = self.accelerator.device
        with evaluating(model):
            for positions, batch in self.batches(name, indices, shard or self.shard, description or name):
                batch = to_model(batch, model, device)
                yield positions, batch, self.predict(model, batch)

    # -- What differs for a language model

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """What a model in eval mode says of a batch: logits [n, classes], in float32 at least."""
        with torch.no_grad(), self.accelerator.autocast():
            logits = model(**batch.inputs).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def statistics(self, predicted: Any, batch: Batch) -> dict[str, Tensor]:
        """The signals of each sample; NaN is a ValueError."""
        return metrics.sample_statistics(predicted, batch.labels)

    def is_finite(self, predicted: Any) -> Tensor:
        """Of each sample."""
        return predicted.isfinite().all(dim=-1)

    def correct(self, predicted: Any, batch: Batch) -> Tensor:
        """1 or 0 for each sample."""
        return (predicted.argmax(dim=-1) == batch.labels).double()

    def distances(self, a: Any, b: Any, batch: Batch) -> dict[str, Tensor]:
        """JSD and L2 distance between the predictions of two models, for each sample."""
        p, q = (predicted.double().softmax(-1) for predicted in (a, b))
        return {"jsd": jsd(p, q), "activation_distance": (p - q).norm(dim=-1)}

    def features(
        self, model: nn.Module, name: str, indices: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        """(positions, labels, what the model's head reads), batch by batch, of all samples on every process."""
        with models.reading_features(model, self.num_labels) as read:
            for positions, batch, logits in self.predictions(model, name, indices, description=f"features of {name}"):
                places = torch.as_tensor(positions, device=logits.device)
                parts = (places, batch.labels, read(logits), batch.weight > 0)
                places, labels, features, real = self.accelerator.gather(parts)
                yield places[real].cpu().numpy(), labels[real].cpu().numpy(), features[real]

    def probabilities(self, model: nn.Module, name: str, indices: np.ndarray) -> Tensor:
        """What the model says of each of these samples, in their order, on every process: [n, classes]."""
        rows = torch.zeros(len(indices), self.num_labels, device=self.accelerator.device)
        for positions, batch, logits in self.predictions(model, name, indices):
            rows = rows.to(logits.dtype)
            real = batch.weight > 0
            rows[torch.as_tensor(positions, device=rows.device)[real]] = logits[real].softmax(dim=-1)
        return self.total(rows)

    @property
    def classes(self) -> np.ndarray:
        """Those whose mean answer a measurement keeps: of the forget samples, and of those of earlier requests."""
        sources = self.samples.sources.items()
        return np.unique(np.concatenate([of.labels for name, of in sources if name.startswith(("forget", "earlier"))]))

    @property
    def shard(self) -> tuple[int, int]:
        return self.accelerator.process_index, self.accelerator.num_processes

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        return cast(Tensor, self.accelerator.reduce(tensor, "sum"))

    def accuracy(self, model: nn.Module, name: str, indices: np.ndarray) -> float:
        """A ratio of counts, hence the same for any number of processes (to rounding, for a language model)."""
        correct = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for _, batch, predicted in self.predictions(model, name, indices):
            correct += (self.correct(predicted, batch) * (batch.weight > 0)).sum()
        return self.total(correct).item() / len(indices)

    def measure(self, model: nn.Module, name: str, indices: np.ndarray) -> Measurement:
        tally = Tally(self, name, indices)
        for part in self.predictions(model, name, indices):
            tally.add(*part)
        return tally.result()

    def compare(self, model: nn.Module, other: nn.Module, name: str, indices: np.ndarray) -> dict[str, float]:
        """Mean JSD and activation distance between two models on the same samples, see `distances`."""
        totals: dict[str, Tensor] = {}
        passes = self.predictions(model, name, indices), self.predictions(other, name, indices)
        for (_, batch, a), (_, _, b) in zip(*passes, strict=True):
            for key, values in self.distances(a, b, batch).items():
                totals[key] = totals.get(key, 0) + (values * batch.weight).sum()
        return {key: self.total(total).item() / len(indices) for key, total in totals.items()}

    def figures(self, model: dict[str, Measurement], original: dict[str, Measurement], **about: Any) -> Figures:
        """See the function of this name."""
        return figures(model, original, **about)

    def beside(self, row: dict, reference: dict, measured: dict, retrained: dict) -> dict[str, float | None]:
        """What a model's figures and measurements are beside those of a retrained model."""
        if any(reference[key] is None for key in ("retain_accuracy", "unseen_accuracy", "mia")):
            return {"avg_gap": None, "tow": None}
        return {"avg_gap": metrics.avg_gap(row, reference), "tow": metrics.tow(row, reference)}


class Tally:
    """What is kept of the batches of one pass of one model over one set."""

    def __init__(self, evaluator: Evaluator, name: str, indices: np.ndarray):
        self.evaluator, self.name, self.indices = evaluator, name, indices
        self.columns: dict[str, list[Tensor]] = {}
        device = evaluator.accelerator.device
        self.classes = torch.as_tensor(evaluator.classes, device=device)
        self.sums = torch.zeros(len(self.classes), evaluator.num_labels, dtype=torch.float64, device=device)

    def add(self, positions: np.ndarray, batch: Batch, predicted: Any, **columns: Tensor) -> None:
        """`columns` are further numbers of each sample, for `Measurement.signals`."""
        try:
            statistics = self.evaluator.statistics(predicted, batch) | columns
        except ValueError:
            bad = ~self.evaluator.is_finite(predicted)
            if not bad.any():
                raise
            row = self.indices[positions[int(bad.int().argmax())]]
            raise UnlearningError(
                f"The model's outputs for row {row} of {self.name} are NaN or infinite; check that sample, or run the "
                "model in float32."
            ) from None
        for key, value in statistics.items():
            self.columns.setdefault(key, []).append(value.double())
        classes = self.evaluator.num_labels
        labels = batch.labels if classes else torch.zeros_like(batch.labels[:, 0])
        self.columns.setdefault("labels", []).append(labels)
        self.columns.setdefault("positions", []).append(torch.as_tensor(positions, device=labels.device))
        if classes:
            kept = torch.isin(batch.labels, self.classes)
            p = predicted[kept].double().softmax(dim=-1) * batch.weight[kept, None]
            self.sums.index_add_(0, torch.searchsorted(self.classes, batch.labels[kept]), p)

    def result(self) -> Measurement:
        """Of all processes, in the order of the samples."""
        accelerator = self.evaluator.accelerator
        gathered = {key: cast(Tensor, accelerator.gather(torch.cat(values))) for key, values in self.columns.items()}
        rows = {key: values.cpu().numpy() for key, values in gathered.items()}
        order = rows.pop("positions")
        ordered = {key: np.empty(len(self.indices), value.dtype) for key, value in rows.items()}
        for key, value in rows.items():
            ordered[key][order] = value
        labels = ordered.pop("labels")
        if not self.evaluator.num_labels:
            return Measurement(labels, ordered, None)
        sums = self.evaluator.total(self.sums).cpu().numpy()
        return Measurement(labels, ordered, dict(zip(self.classes.tolist(), sums, strict=True)))


def jsd(p: Tensor, q: Tensor) -> Tensor:
    """`metrics.jsd_rows` of rows of probabilities in float64."""
    return torch.as_tensor(metrics.jsd_rows(p.cpu(), q.cpu())).to(p.device)
