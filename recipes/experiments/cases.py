"""The cases that closeness to retraining is judged on: data, requests, originals and retrained models, kept in the cache.

    python recipes/experiments/cases.py [CASE ...]     # trains what is missing, the first seed of every case first

| case     | model                                     | training samples                | trained for |
|----------|-------------------------------------------|---------------------------------|-------------|
| `resnet` | timm ResNet-18 at 32 px, from scratch      | 5,000 of CIFAR-10               | 20 epochs   |
| `vit`    | a ViT of 6 layers, 128 wide, from scratch  | 5,000 of CIFAR-10               | 20 epochs   |
| `minilm` | all-MiniLM-L6-v2, fine-tuned               | 2,400 of 20 Newsgroups, 64 tokens | 3 epochs  |
| `digits` | a small timm ResNet, from scratch          | 1,000 digits, 30 % wrong labels | 30 epochs   |
| `cifar10` | timm ResNet-18 at 32 px, from scratch     | all 50,000 of CIFAR-10          | 8 epochs    |

Of each case a request names a tenth of the samples at random (`scattered`), half of a class (`part`) or a whole one (`class`). For
each of three seeds of the data there is one original, and for each request three models retrained with seeds of their own, none of
them the original's; of `cifar10` one seed and one request, `scattered`. A folder holds the weights and `training.json`: the settings,
and the processor seconds of one thread.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from real_data import cache_folder, cifar10, minilm, newsgroups
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

SEEDS, RETRAINED = 3, 3
REQUESTS = ("scattered", "part", "class")
CLASS = 3  # the one that is forgotten, whole or in part
Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """How a case's models are made and trained."""

    data: Callable[[], tuple[Columns, Columns]]  # all training samples, and all unseen ones
    model: Callable[[], PreTrainedModel]
    size: int
    epochs: int
    rate: float  # at its peak
    batch_size: int = 128
    sgd: bool = True
    unseen: int = 4_000  # a half of them steers, the other one judges
    wrong_labels: float = 0.0
    augment: bool = False  # images are flipped and shifted at random
    requests: tuple[str, ...] = REQUESTS
    seeds: int = SEEDS

    def has(self, request: str, seed: int) -> bool:
        return request in self.requests and seed < self.seeds


@cache
def images() -> tuple[Columns, Columns]:
    def columns(split: str) -> Columns:
        data = cifar10()[split]
        pixels = np.stack([np.asarray(image) for image in data["image"]]).transpose(0, 3, 1, 2)
        return {"pixel_values": torch.tensor(pixels), "labels": torch.tensor(data["label"][:])}

    return columns("train"), columns("test")


@cache
def texts() -> tuple[Columns, Columns]:
    tokenizer = AutoTokenizer.from_pretrained(minilm())

    def columns(split: str) -> Columns:
        data = newsgroups()[split]
        length = {"truncation": True, "padding": "max_length", "max_length": 64}
        return dict(tokenizer(data["text"][:], return_tensors="pt", **length)) | {
            "labels": torch.tensor(data["label"][:])
        }

    return columns("train"), columns("test")


@cache
def digits() -> tuple[Columns, Columns]:
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (
        torch.tensor(data.images, dtype=torch.float32).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        * 15.9375
    )
    order = torch.tensor(np.random.default_rng(0).permutation(len(pixels)))
    columns = {"pixel_values": pixels.expand(-1, 3, -1, -1).to(torch.uint8), "labels": torch.tensor(data.target)}
    return tuple({k: v[part] for k, v in columns.items()} for part in (order[:1000], order[1000:]))


def resnet18() -> PreTrainedModel:
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=10))


def vit() -> PreTrainedModel:
    shape = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=10, **shape))


def bert() -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=20)


def small_resnet() -> PreTrainedModel:
    arguments = {"channels": [16, 32, 64, 128], "layers": [1, 1, 1, 1]}
    return TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture="resnet18", num_labels=10, model_args=arguments)
    )


CASES = {
    "resnet": Case(images, resnet18, size=5_000, epochs=20, rate=0.1),
    "vit": Case(images, vit, size=5_000, epochs=20, rate=1e-3, sgd=False),
    "minilm": Case(texts, bert, size=2_400, epochs=3, rate=3e-4, batch_size=32, sgd=False),
    "digits": Case(digits, small_resnet, size=1_000, epochs=30, rate=0.1, batch_size=64, unseen=797, wrong_labels=0.3),
    "cifar10": Case(
        images, resnet18, size=50_000, epochs=8, rate=0.1, unseen=10_000, requests=("scattered",), seeds=1
    ),
}


convolve = torch.nn.Conv2d._conv_forward


def convolve_small(self: torch.nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same convolution where the map is 2 by 2 or smaller: most taps meet padding there, and a matrix product is many times
    faster on a processor. Everything in a study runs on it, so that shares of its time can be compared.
    """
    side, stride = x.shape[-1], self.stride[0]
    if (
        self.kernel_size != (3, 3)
        or x.shape[-2:] not in ((1, 1), (2, 2))
        or self.padding != (1, 1)
        or self.groups != 1
    ):
        return convolve(self, x, weight, bias)
    if side == 1:
        return F.linear(x.flatten(1), weight[:, :, 1, 1], bias)[:, :, None, None]
    if stride == 2:
        return F.linear(x.flatten(1), weight[:, :, 1:, 1:].flatten(1), bias)[:, :, None, None]
    taps = torch.tensor(
        [[3 * (i - o + 1) + j - p + 1 for i in (0, 1) for j in (0, 1)] for o in (0, 1) for p in (0, 1)]
    )
    dense = weight.flatten(2)[:, :, taps.flatten()].unflatten(2, (4, 4)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    result = F.linear(x.flatten(1), dense).unflatten(1, (-1, 2, 2))
    return result if bias is None else result + bias[:, None, None]


def taken(columns: Columns, rows: np.ndarray) -> Columns:
    found = {name: column[torch.as_tensor(rows)] for name, column in columns.items()}
    if "pixel_values" in found:
        found["pixel_values"] = found["pixel_values"] / 127.5 - 1
    return found


def parts(name: str, request: str, seed: int) -> dict[str, Columns]:
    """`forget`, `retain`, and the two halves of the unseen samples."""
    case, rng = CASES[name], np.random.default_rng([seed, 11])
    train, unseen = case.data()
    if case.wrong_labels:  # in every split, that a retrained model meets them too
        train, unseen = (
            columns | {"labels": noisy(columns["labels"], case.wrong_labels, i)}
            for i, columns in enumerate((train, unseen))
        )
    chosen = rng.permutation(len(train["labels"]))[: case.size]
    labels = train["labels"].numpy()[chosen]
    of_class = np.flatnonzero(labels == CLASS)
    gone = {
        "scattered": np.arange(case.size // 10),
        "part": of_class[: len(of_class) // 2],
        "class": of_class,
    }[request]
    held = rng.permutation(len(unseen["labels"]))[: case.unseen]
    rows = {"forget": chosen[gone], "retain": np.delete(chosen, gone)}
    found = {part: taken(train, of) for part, of in rows.items()}
    return found | {"unseen": taken(unseen, held[0::2]), "test": taken(unseen, held[1::2])}


def noisy(labels: Tensor, share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(10, labels.shape, generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < share, drawn, labels)


def flipped_and_shifted(pixels: Tensor) -> Tensor:
    """Each image of a batch mirrored or not, and shifted by up to 4 pixels both ways; what comes in is grey."""
    side, padded = pixels.shape[-1], F.pad(pixels, (4, 4, 4, 4))
    top, left = torch.randint(9, (2, len(pixels), 1))
    rows, columns = top + torch.arange(side), left + torch.arange(side)
    mirrored = torch.rand(len(pixels), 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(len(pixels))[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def fit(case: Case, columns: Columns, seed: int) -> PreTrainedModel:
    """Plain training: SGD with momentum, or AdamW, on one cycle of the learning rate."""
    torch.manual_seed(seed)
    model, n = case.model(), len(columns["labels"])
    if case.sgd:
        optimizer = torch.optim.SGD(model.parameters(), lr=case.rate, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=case.rate, weight_decay=0.01)
    steps = case.epochs * -(-n // case.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, case.rate, steps, cycle_momentum=False)
    model.train()
    for _ in range(case.epochs):
        for rows in torch.randperm(n).split(case.batch_size):
            batch = {name: column[rows] for name, column in columns.items()}
            if case.augment:
                batch["pixel_values"] = flipped_and_shifted(batch["pixel_values"])
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0 if not case.sgd else 5.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def model_of(name: str, seed: int, request: str | None = None, again: int = 0) -> Path:
    """The folder of the original of a seed, or of one of the models that were retrained for a request; trained if it is not there."""
    case = CASES[name]
    what = "original" if request is None else f"{request}-retrained{again}"
    folder = cache_folder() / "closeness" / name / f"seed{seed}" / what
    if (folder / "training.json").exists():
        return folder
    data = parts(name, request or "scattered", seed)
    columns = data["retain"]
    if request is None:
        columns = {key: torch.cat([data["forget"][key], data["retain"][key]]) for key in columns}
    since = time.process_time()
    model = fit(case, columns, 1000 * seed + (0 if request is None else 100 + 10 * REQUESTS.index(request) + again))
    seconds = time.process_time() - since
    model.save_pretrained(folder)
    with torch.no_grad():
        scores = {}
        for part in ("forget", "retain", "test"):
            right = [
                model(**{k: v[rows] for k, v in data[part].items() if k != "labels"}).logits.argmax(-1)
                == data[part]["labels"][rows]
                for rows in torch.arange(len(data[part]["labels"])).split(500)
            ]
            scores[part] = torch.cat(right).float().mean().item()
    about = {
        "epochs": case.epochs,
        "learning_rate": case.rate,
        "optim": "sgd" if case.sgd else "adamw",
        "seconds": seconds,
    }
    (folder / "training.json").write_text(json.dumps(about | {"accuracy": scores}, indent=1))
    print(name, seed, what, f"{seconds:.0f} s", scores, flush=True)
    return folder


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.nn.Conv2d._conv_forward = convolve_small
    names = sys.argv[1:] or list(CASES)
    for request in REQUESTS:
        for seed in range(SEEDS):
            for name in names:
                if not CASES[name].has(request, seed):
                    continue
                model_of(name, seed)
                for again in range(RETRAINED):
                    model_of(name, seed, request, again)
