"""Class means of the activations that operators read, and a few single samples of them, in one pass over the data."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..data import randomness
from ..data.batches import Batch
from ..errors import UnlearningError
from ..models.modes import evaluating
from .checks import check_labels, ready
from .plan import Plan


@dataclass
class Statistics:
    """Of the samples of one loader, those of all processes together.

    Attributes:
        counts: how many there are of each class.
        means: for every reading μ_c, one row for each class in `counts`, in float64 on the CPU.
        samples: for every reading the activations of the same few samples, in random order; of patches, the mean of each
            channel, so that a probe has no k·k times as many features to fit.
        examples: what the model itself reads of fewer of these samples, and their labels.
        batch_size: the most samples of a batch.
    """

    counts: dict[int, int]
    means: list[Tensor]
    samples: list[Tensor]
    examples: list[dict[str, Tensor]]
    batch_size: int

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """This process's share of the examples, those of one shape together, in batches no larger than the loader's."""
        process, groups = PartialState(), {}
        for example in self.examples[process.process_index :: process.num_processes]:
            groups.setdefault(tuple(value.shape for value in example.values()), []).append(example)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                yield {name: torch.stack([example[name] for example in batch]) for name in batch[0]}


@torch.no_grad()
def collect(
    model: nn.Module,
    plan: Plan,
    loader: Iterable[Mapping],
    *,
    conv: str = "channel",
    pooling: str = "auto",
    samples: int = 2000,
    examples: int = 0,
    seed: int = 0,
) -> Statistics:
    """The statistics of what the operators of each reading read, pooled to one vector a sample, in eval mode.

    They do not depend on how samples are shared out over batches and processes (the single samples, where batches have a
    `sample_index`); rows of weight 0 do not count.

    Args:
        loader: this process's share of the data: mappings with the model's inputs and `labels`.
        conv: of a convolution's input, `channel` takes the mean over places and `unfold` the mean patch.
        pooling: `auto` takes the mean over tokens, and of the last stage the tokens that the head reads; `head` takes those
            in every stage. Where the head reads the last token, every stage is read there.
        samples: at most so many single samples are kept, those with the lowest random number.
        examples: and of so many also what the model reads.
    """
    process = PartialState()
    totals: list[Tensor] = []  # class sums of every reading, and behind them the counts
    waiting: list[tuple[Tensor, list[Tensor]]] = []  # random numbers of samples, and their rows of every reading
    inputs: list[tuple[float, dict[str, Tensor]]] = []  # random numbers of the examples, and the examples
    limit, seen, largest = 1.0, 0, 0
    with evaluating(model), Activations(plan, conv, pooling) as activations:
        for batch in loader:
            batch = activations.batch = ready(batch, model)
            logits = model(**batch.inputs).logits
            valid = batch.get("weight", torch.ones_like(batch.labels)) > 0
            z = activations.take(logits)
            if not totals and len(batch.labels) > 1:
                activations.check_layout(model, z)
            valid = valid.cpu()
            labels, z = batch.labels.cpu()[valid], [x.cpu()[valid] for x in z]
            check_labels(labels, logits.shape[-1])
            if not totals:
                totals = [torch.zeros(logits.shape[-1], x.shape[1], dtype=torch.float64) for x in z]
                totals += [torch.zeros(logits.shape[-1], dtype=torch.long)]
            for total, x in zip(totals, [*z, torch.ones_like(labels)], strict=True):
                total.index_add_(0, labels, x.to(total.dtype))

            numbers = torch.arange(seen, seen + len(valid)) * process.num_processes + process.process_index
            index = batch.get("sample_index", numbers).cpu()[valid]
            keys = randomness.uniform(seed, torch.zeros_like(index), index, 1)[:, 0]
            rows = [x[keys < limit].unflatten(1, (-1, n)).mean(2) for x, n in zip(z, activations.taps, strict=True)]
            waiting.append((keys[keys < limit], rows))
            seen, largest = seen + len(valid), max(largest, len(batch.labels))
            inputs = _with_examples(inputs, keys, batch, valid.nonzero()[:, 0], examples)
            if sum(len(keys) for keys, _ in waiting) > 2 * samples:
                waiting = [_lowest(waiting, samples)]
                limit = waiting[0][0][-1].item() if samples else 0.0
    return _of_all_processes(
        plan, [(totals, _lowest(waiting, samples), inputs, largest)] if totals else [], samples, examples
    )


def _of_all_processes(plan: Plan, found: list[tuple], samples: int, examples: int) -> Statistics:
    """The statistics from what each process has `found`, if anything: class sums and counts, the keys and rows of its samples,
    its examples, and the size of its largest batch."""
    everyone = gather_object(found)
    if not everyone:
        return Statistics({}, [], [], [], 0)
    totals = zip(*(totals for totals, *_ in everyone), strict=True)
    *sums, counts = (cast(Tensor, sum(parts)) for parts in totals)
    inputs = sorted((of for *_, part, _ in everyone for of in part), key=lambda of: of[0])[:examples]
    for reading, total in zip(plan.readings, sums, strict=True):
        if not total.isfinite().all():
            raise UnlearningError(
                f"What {reading.operators[0].name} reads is NaN or infinite for a sample of class "
                f"{(~total.isfinite()).any(dim=1).int().argmax()}; check the data, or run the model in float32."
            )
    present = counts.nonzero()[:, 0]
    return Statistics(
        dict(zip(present.tolist(), counts[present].tolist(), strict=True)),
        [total[present] / counts[present, None] for total in sums],
        _lowest([part for _, part, *_ in everyone], samples)[1],
        [example for _, example in inputs],
        max(most for *_, most in everyone),
    )


def _with_examples(
    kept: list[tuple[float, dict[str, Tensor]]], keys: Tensor, batch: Batch, rows: Tensor, n: int
) -> list[tuple[float, dict[str, Tensor]]]:
    """The `n` examples with the lowest keys, of those kept and those in these rows of a batch."""
    highest, columns = kept[-1][0] if n and len(kept) == n else 1.0, batch.inputs | {"labels": batch.labels}
    new = [
        (key, {name: value[row].cpu().clone() for name, value in columns.items()})
        for key, row in zip(keys.tolist(), rows.tolist(), strict=True)
        if n and key < highest
    ]
    return sorted(kept + new, key=lambda of: of[0])[:n]


def _lowest(parts: list[tuple[Tensor, list[Tensor]]], n: int) -> tuple[Tensor, list[Tensor]]:
    """The keys and rows with the `n` lowest keys, in the order of the keys."""
    keys = torch.cat([keys for keys, _ in parts])
    order = keys.argsort()[:n]
    return keys[order], [torch.cat(rows)[order] for rows in zip(*(rows for _, rows in parts), strict=True)]


def at_head(plan: Plan, side: Statistics) -> Statistics:
    """What the operators read that give the logits."""
    heads = [i for i, reading in enumerate(plan.readings) if reading.is_head]
    means, samples = ([column[i] for i in heads] for column in (side.means, side.samples))
    return dataclasses.replace(side, means=means, samples=samples)


class Activations:
    """Hooks that pool what every reading's operators read in a forward pass."""

    def __init__(self, plan: Plan, conv: str, pooling: str):
        self.plan, self.conv, self.pooling = plan, conv, pooling
        modules = [reading.operators[0].module for reading in plan.readings]
        is_patch = [conv == "unfold" and isinstance(module, nn.Conv2d) for module in modules]
        self.taps = [
            module.kernel_size[0] * module.kernel_size[1] if p and isinstance(module, nn.Conv2d) else 1
            for module, p in zip(modules, is_patch, strict=True)
        ]
        self.batch: Batch  # of the coming forward pass
        self.read: dict[int, Tensor] = {}
        self.scores: Tensor  # what the head gives, for each token

    def __enter__(self) -> "Activations":
        self.handles = []
        for i, reading in enumerate(self.plan.readings):
            module = reading.operators[0].module
            self.handles.append(module.register_forward_pre_hook(self._hook(i), with_kwargs=True))
            if reading.is_head and self.plan.tokens == "last":
                self.handles.append(module.register_forward_hook(self._keep_scores))
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, i: int):
        reading = self.plan.readings[i]
        module = reading.operators[0].module
        at_head = reading.stage == self.plan.stages or self.pooling == "head"
        tokens = self.plan.tokens if at_head else "all"

        def before(_, args: tuple, kwargs: dict) -> None:
            z = (*args, *kwargs.values())[0]
            if isinstance(module, nn.Conv2d):
                z = mean_patch(z, module) if self.conv == "unfold" else z.mean((2, 3), dtype=_wide(z))
            elif self.plan.tokens == "last":  # which is known when the scores are
                z = z.reshape(len(self.batch.labels), -1, z.shape[-1])
            else:
                z = pool_tokens(z, len(self.batch.labels), tokens, self.batch.get("attention_mask"))
            self.read[i] = z

        return before

    def _keep_scores(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.scores = output

    def check_layout(self, model: nn.Module, z: list[Tensor]) -> None:
        """The first sample alone must give what it gives among others; not so where a layer reads [T, B, d]."""
        whole, self.batch = self.batch, Batch({name: values[:1] for name, values in self.batch.items()})
        alone = self.take(model(**self.batch.inputs).logits)
        self.batch = whole
        for reading, x, among in zip(self.plan.readings, alone, z, strict=True):
            if (x[0] - among[0]).norm() > 0.1 * among[0].norm():
                raise UnlearningError(
                    f"What {reading.operators[0].name} reads for a sample depends on the others in the batch, so its axes are not "
                    "those of samples, places and features; give the stages by hand, without it."
                )

    def take(self, logits: Tensor) -> list[Tensor]:
        """One row a sample, of every reading; the token at which the head's scores are the logits, if it reads one."""
        z = [self.read.pop(i) for i in range(len(self.plan.readings))]
        if self.plan.tokens != "last":
            return z
        scores = self.scores.reshape(len(logits), -1, logits.shape[-1]).nan_to_num()  # NaN is told of later
        is_read = (scores == logits[:, None].nan_to_num()).all(dim=-1)
        if not is_read.any(dim=1).all():
            raise UnlearningError(
                "The logits are at no token what the head gives there, so it cannot be told which token is read; expected a "
                "classifier that reads one token."
            )
        token = is_read.int().argmax(dim=1)
        rows = torch.arange(len(token), device=token.device)
        return [x if x.ndim == 2 else x[rows, token].to(_wide(x)) for x in z]


def pool_tokens(z: Tensor, batch_size: int, tokens: str | None, mask: Tensor | None) -> Tensor:
    """[B, d] from what a linear layer reads: [B, d], [B, T, d], [B, H, W, d] or [B·windows, T, d].

    `first` takes the first token, anything else the mean over tokens, without those that `mask` [B, T] leaves out.
    """
    z = z.reshape(batch_size, -1, z.shape[-1])
    if tokens == "first" or z.shape[1] == 1:
        return z[:, 0].to(_wide(z), copy=True)  # the model may go on to write into z
    if mask is None or mask.shape != z.shape[:2]:
        return z.mean(1, dtype=_wide(z))
    shown = mask[..., None] > 0  # what stands at padding may be NaN
    return torch.where(shown, z, 0).sum(1, dtype=_wide(z)) / shown.sum(1)


def mean_patch(z: Tensor, conv: nn.Conv2d) -> Tensor:
    """The mean of the patches that a convolution reads, [B, C·k·k] in the order of its flattened weight.

    The mean over places of what the convolution gives is its weight times this vector, padding included.
    """
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    z = F.pad(z, conv._reversed_padding_repeated_twice, mode)
    sizes = zip(z.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True)
    height, width = ((size - d * (k - 1) - 1) // stride * stride + 1 for size, k, stride, d in sizes)
    starts = [[d * i for i in range(k)] for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    rows = [z[:, :, i : i + height : conv.stride[0]].mean(2, dtype=_wide(z)) for i in starts[0]]
    taps = [row[:, :, j : j + width : conv.stride[1]].mean(2) for row in rows for j in starts[1]]
    return torch.stack(taps, dim=2).flatten(1)


def _wide(z: Tensor) -> torch.dtype:
    return torch.promote_types(z.dtype, torch.float32)
