"""What an edit costs: the whole of DAMP beside a plain forward pass, and SSD beside the gradients of single samples.

    python recipes/experiments/surgery_cost.py [rounds]

The sides take turns; what counts is the median of the ratios of turns that followed each other, in processor time of one
thread. Ten classes of noise, each around a picture of its own, so that there is something to remove; a tenth is forgotten.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from study import record
from torch import Tensor
from transformers import PreTrainedModel

from hf_unlearn.commands.speed import build
from hf_unlearn.surgery import damp_edit, ssd_edit

FORWARD, SINGLE, BATCH, CLASSES = 5000, 500, 100, 10  # samples of both sides of DAMP, and of SSD
WANTED = {"damp": 1.3, "ssd": 1.2}
Batches = list[dict[str, Tensor]]


def samples(n: int) -> tuple[Batches, Batches]:
    """Batches of class 0, and of all others."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(CLASSES, 3, 32, 32, generator=generator)
    labels = torch.arange(n) % CLASSES

    def batches(rows: Tensor) -> Batches:
        return [
            {
                "pixel_values": pictures[labels[r]] + torch.randn(len(r), 3, 32, 32, generator=generator),
                "labels": labels[r],
            }
            for r in rows.split(BATCH)
        ]

    return batches(torch.nonzero(labels == 0)[:, 0]), batches(torch.nonzero(labels)[:, 0])


def forward(model: PreTrainedModel, data: tuple[Batches, Batches]) -> None:
    with torch.no_grad():
        for batch in (*data[0], *data[1]):
            model(pixel_values=batch["pixel_values"])


def gradients(model: PreTrainedModel, data: tuple[Batches, Batches]) -> None:
    """The gradient of every sample by itself, and nothing made of it."""
    parameters = list(model.parameters())
    for batch in (*data[0], *data[1]):
        for pixels, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            loss = torch.nn.functional.cross_entropy(model(pixel_values=pixels[None]).logits, label[None])
            torch.autograd.grad(loss, parameters, allow_unused=True)


def measure(
    model: PreTrainedModel, plain: Callable, edit: Callable, data: tuple[Batches, Batches], rounds: int
) -> dict[str, float]:
    """Seconds of both sides, and the ratio of the edit to what it cannot do without; every edit is of a fresh copy."""

    def turns() -> Iterator[tuple[float, float]]:
        for _ in range(rounds + 1):
            since = time.process_time()
            plain(model, data)
            between, fresh = time.process_time() - since, copy.deepcopy(model)
            since = time.process_time()
            edit(fresh, *data)
            yield between, time.process_time() - since

    _, *times = turns()  # the first warms up
    seconds, whole = (statistics.median(side) for side in zip(*times, strict=True))
    return {"plain": seconds, "edit": whole, "ratio": statistics.median(b / a for a, b in times)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("resnet18", "vit"):
        model = build(name, 32).eval()
        rows[name] = {
            "damp": measure(model, forward, damp_edit, samples(FORWARD), rounds),
            "ssd": measure(model, gradients, ssd_edit, samples(SINGLE), rounds),
        }
        print(name, rows[name], flush=True)
    about = {"samples": {"damp": FORWARD, "ssd": SINGLE}, "batch": BATCH, "rounds": rounds}
    record("surgery-cost", {"wanted": WANTED, **about, "rows": rows})
