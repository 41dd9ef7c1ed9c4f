"""Small data sets and short runs that several tests share. Data sets are made once: nobody changes one in place."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_unlearn import UnlearningArguments
from tests.tiny import WORDS, tiny_vit

torch.set_num_threads(1)


@functools.cache
def images(n: int, seed: int = 0, num_labels: int = 4, size: int = 16, noise: float = 0.5) -> datasets.Dataset:
    """Processed images: a pattern for each class, and noise."""
    patterns = np.random.default_rng(99).normal(size=(num_labels, 3, size, size))
    rng = np.random.default_rng([seed, n])
    labels = np.arange(n) % num_labels
    pixels = (patterns[labels] + noise * rng.normal(size=(n, 3, size, size))).astype(np.float32)
    features = datasets.Features(
        pixel_values=datasets.Array3D((3, size, size), "float32"), label=datasets.ClassLabel(num_labels)
    )
    return datasets.Dataset.from_dict({"pixel_values": pixels, "label": labels}, features=features).with_format(
        "torch"
    )


@functools.cache
def pictures(n: int, seed: int = 0, num_labels: int = 4, mode: str = "RGB", column: str = "image") -> datasets.Dataset:
    """Raw images of 20 x 20 random pixels."""
    pixels = np.random.default_rng([seed, n]).integers(0, 256, (n, 20, 20, 4), dtype=np.uint8)
    content = {column: [Image.fromarray(p).convert(mode) for p in pixels], "label": np.arange(n) % num_labels}
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(num_labels)})
    return datasets.Dataset.from_dict(content, features=features)


@functools.cache
def sentences(n: int, seed: int = 0, num_labels: int = 3) -> datasets.Dataset:
    """Texts of 4 to 40 random words."""
    rng = np.random.default_rng([seed, n])
    texts = [" ".join(rng.choice(WORDS, rng.integers(4, 41))) for _ in range(n)]
    return datasets.Dataset.from_dict({"text": texts, "label": np.arange(n) % num_labels})


def request(make=images, n_forget: int = 8, n_retain: int = 24, n_unseen: int = 16, **kwargs: Any) -> dict[str, Any]:
    """Disjoint `forget`, `retain` and `unseen`, as `unlearn()` takes them."""
    sizes = {"forget": n_forget, "retain": n_retain, "unseen": n_unseen}
    return {name: make(n, seed=i + 1, **kwargs) for i, (name, n) in enumerate(sizes.items())}


def for_trainer(data: dict[str, Any]) -> dict[str, Any]:
    """The same, as `UnlearningTrainer` takes them."""
    return {f"{name}_dataset": dataset for name, dataset in data.items()}


def arguments(folder: Path, **changes: Any) -> UnlearningArguments:
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    short = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    return UnlearningArguments(output_dir=str(folder), **(quiet | short | changes))


def learnt(flipped: bool = True) -> dict[str, datasets.Dataset]:
    """A request whose forget and unseen samples have wrong labels, if flipped: only memory gets those right."""
    return dict(_learnt(flipped))


@functools.cache
def _learnt(flipped: bool) -> dict[str, datasets.Dataset]:
    data = request()
    if flipped:
        for name in ("forget", "unseen"):
            data[name] = data[name].map(lambda row: {"label": (int(row["label"]) + 1) % 4})
    return data


def fitted(build: Callable = tiny_vit, flipped: bool = True) -> PreTrainedModel:
    """A model that knows the forget and retained samples of `learnt` by heart."""
    model = build()
    model.load_state_dict(_fitted(build, flipped))
    return model.eval()


@functools.cache
def _fitted(build: Callable, flipped: bool) -> dict[str, torch.Tensor]:
    model, data = build(), learnt(flipped)
    samples = datasets.concatenate_datasets([data["forget"], data["retain"]])
    pixels, labels = samples["pixel_values"][:], samples["label"][:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
