"""CIFAR-10, 1,200 training images, a timm ResNet-18 at 32 px, 3 seeds: a tenth of the images forgotten.

About 8 minutes on 2 cores. The data comes from a package registry, see `real_data.py`.
"""

import datasets
import numpy as np
import torch
from digits import FROZEN
from real_data import cifar10
from study import record, study, train
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from hf_unlearn.data.digits import Samples
from hf_unlearn.methods.lotus import LotusConfig

TRAIN, FORGET, UNSEEN = 1200, 120, 1000


def processed(images: datasets.Dataset) -> Samples:
    pixels = np.stack([np.asarray(image) for image in images["image"]]).transpose(0, 3, 1, 2)
    pixels = torch.tensor(pixels / 127.5 - 1, dtype=torch.float32)
    return Samples(pixel_values=pixels, labels=torch.tensor(images["label"][:]))


def data(seed: int) -> dict[str, Samples]:
    both, rng = cifar10(), np.random.default_rng(seed)
    chosen = rng.permutation(50_000)[:TRAIN]
    return {
        "forget": processed(both["train"].select(chosen[:FORGET])),
        "retain": processed(both["train"].select(chosen[FORGET:])),
        "unseen": processed(both["test"].select(rng.permutation(10_000)[:UNSEEN])),
    }


def fit(dataset: torch.utils.data.Dataset, seed: int):
    torch.manual_seed(seed)
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=10))
    arguments = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 64}
    return train(model, dataset, seed, num_train_epochs=15, **arguments)


if __name__ == "__main__":
    methods = {
        "finetune": ("finetune", {}),
        **FROZEN,
        "random_label": ("random_label", {}),
        "lotus (paper)": (LotusConfig.paper("resnet18-cifar10"), {}),
        "lotus": ("lotus", {}),
    }
    record("cifar10", {"resnet18-instance": study(data, fit, methods)})
