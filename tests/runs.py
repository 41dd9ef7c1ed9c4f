"""What the tests of the training loop share: small requests, trainers for them, and runs in processes of their own."""

import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import time
from contextlib import redirect_stdout
from pathlib import Path

import datasets
import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback

from hf_unlearn import UnlearningArguments, UnlearningTrainer, models, trainer
from hf_unlearn.methods import METHODS, Method, MethodConfig, MethodInfo
from hf_unlearn.methods.finetune import cross_entropy
from tests.tiny import WORDS, tiny_bert, tiny_resnet, tiny_tokenizer, tiny_vit

BUILDERS = {"resnet": tiny_resnet, "vit": tiny_vit, "bert": tiny_bert}
TRAINED = [name for name, method in METHODS.items() if method.info.kind != "surgery"]

# In steps of 8 samples the last one of an epoch has a single sample, whether it is one of retained samples (33), of all
# samples (41), or of LoTUS's forget samples and 0.3 of the retained ones (8 + 9).
SIZES = {"forget": 8, "retain": 33, "unseen": 24}
LABELS = 3


# ---------------------------------------------------------------------------------------------------------------------
# Models and data


def rows(family: str, dtype: torch.dtype = torch.float32) -> dict[str, list[dict]]:
    """Processed images, or raw texts of different lengths; every class in every set."""
    rng = np.random.default_rng(0)
    sets = {}
    for name, size in SIZES.items():
        labels = rng.permutation(np.arange(size) % LABELS)
        if family == "bert":
            inputs = [{"text": " ".join(rng.choice(WORDS, rng.integers(2, 20)))} for _ in labels]
        else:
            inputs = [{"pixel_values": torch.from_numpy(rng.standard_normal((3, 16, 16))).to(dtype)} for _ in labels]
        sets[name] = [{**values, "labels": int(label)} for values, label in zip(inputs, labels, strict=True)]
    return sets


def request(family: str) -> dict[str, list[dict] | datasets.Dataset]:
    """`rows` as the user has them: texts in a `datasets.Dataset`, images in a torch dataset."""
    return {k: datasets.Dataset.from_list(v) if family == "bert" else v for k, v in rows(family).items()}


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, dropout: float = 0.0) -> PreTrainedModel:
    model = BUILDERS[family](num_labels=LABELS, seed=seed).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


@functools.cache
def _fitted(family: str) -> dict[str, Tensor]:
    model, sets = build(family), rows(family)
    samples = sets["forget"] + sets["retain"]
    if family == "bert":
        inputs = tiny_tokenizer()([sample["text"] for sample in samples], padding=True, return_tensors="pt")
    else:
        inputs = {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples])}
    labels = torch.tensor([sample["labels"] for sample in samples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        F.cross_entropy(model(**inputs).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def original(family: str, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> PreTrainedModel:
    """A model that knows its training samples by heart, so that there is something to forget."""
    model = build(family, dropout=dropout)
    model.load_state_dict(_fitted(family))
    return model.to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Methods of a user's own


class OwnConfig(MethodConfig):
    method = "own"


class OwnDifference(Method):
    """A gradient method: g = g_retain − g_forget / 2."""

    info = MethodInfo("own_difference", "gradient", "the difference of two gradients", needs=("forget", "retain"))
    config_class = OwnConfig

    def arguments(self, family):
        return {"learning_rate": 1e-2, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}

    def epochs(self, epochs):
        return ["paired"] * epochs

    def losses(self, model, batch):
        for name in ("forget", "retain"):
            part = batch[name]
            yield name, part.mean(cross_entropy(model(**part.inputs).logits, part.labels))

    def combine(self, gradients):
        return [r - 0.5 * f for r, f in zip(gradients["retain"], gradients["forget"], strict=True)]


class OwnPhases(Method):
    """A loss method: one epoch up on forget samples, one down on retained ones, and a part that is only logged."""

    info = MethodInfo("own_phases", "loss", "ascent, then descent", needs=("forget", "retain"))
    config_class = OwnConfig

    def arguments(self, family):
        return {"learning_rate": 1e-2, "optim": "sgd", "weight_decay": 0.0}

    def epochs(self, epochs):
        return ["forget", "retain"] * epochs

    def losses(self, model, batch):
        losses = cross_entropy(model(**batch.inputs).logits, batch.labels)
        signs = 1 - 2 * batch.is_forget.to(losses.dtype)
        return {"loss": batch.mean(signs * losses), "plain": batch.mean(losses)}


class OwnStopping(OwnPhases):
    """Fine-tuning that stops before epoch `last`."""

    def __init__(self, last: int):
        super().__init__()
        self.last = last

    def epochs(self, epochs):
        return ["retain"] * epochs

    def on_epoch_begin(self, epoch):
        return epoch < self.last


OWN = {
    "own_difference": OwnDifference,
    "own_phases": OwnPhases,
    "own_stopping": functools.partial(OwnStopping, last=1),
    "own_never": functools.partial(OwnStopping, last=0),
}


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def make_trainer(
    method: str,
    family: str,
    folder: str | Path,
    *,
    batch: int = 8,
    accumulation: int = 1,
    dtype: str = "float32",
    dropout: float = 0.0,
    lora: bool = False,
    patience: int | None = None,
    callbacks: list[TrainerCallback] | None = None,
    model: PreTrainedModel | None = None,
    **arguments,
) -> UnlearningTrainer:
    """A trainer with the method's own defaults, but for what makes a run short, quiet and comparable."""
    dtype = getattr(torch, dtype)
    settings = {"num_train_epochs": 2, "freeze_batchnorm": True, "save_strategy": "no", "logging_strategy": "no"}
    settings |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none"} | arguments
    callbacks = list(callbacks or [])
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(patience))
    torch.seed()  # nothing may depend on the state in which the user left the global generator
    return UnlearningTrainer(
        model or original(family, dtype, dropout),
        UnlearningArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **settings,
        ),
        method=OWN[method]() if method in OWN else method,
        **{f"{name}_dataset": dataset for name, dataset in request(family).items()},
        processing_class=tiny_tokenizer() if family == "bert" else None,
        peft_config=LoraConfig(r=2, target_modules="all-linear") if lora else None,
        base_model=functools.partial(build, family, dtype, seed=1),
        callbacks=callbacks,
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor], start: dict[str, Tensor] | None = None) -> float:
    """‖a − b‖ / ‖b − start‖ over all weights together; without a start, ‖a − b‖ / ‖b‖."""
    assert a.keys() == b.keys()

    def norm(x: dict[str, Tensor], y: dict[str, Tensor] | None) -> float:
        return sum((x[k].double() - (y[k].double() if y else 0)).square().sum() for k in x).sqrt().item()

    return norm(a, b) / norm(b, start)


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
