"""Digits with flipped labels, 3 seeds: a small timm ResNet and a small ViT, instances and a whole class forgotten.

    python recipes/experiments/digits.py [resnet-instance | resnet-class | vit-instance | vit-class]

All four go into one file, and some of them into one of their name.

`FROZEN` is fine-tuning of a network with BatchNorm in settings like LoTUS's, which leaves its statistics as they are: with them
alone, and at LoTUS's rate as well. Of a ViT fine-tuning has that rate by itself.
"""

import sys

from study import record, study, train
from torch.utils.data import Dataset

from hf_unlearn.data.digits import load_digits
from hf_unlearn.methods.lotus import Lotus, LotusConfig
from hf_unlearn.models.small import small_resnet, small_vit

FROZEN = {
    "finetune, BatchNorm frozen": ("finetune", {"freeze_batchnorm": True}),
    "finetune at LoTUS's rate": (
        "finetune",
        {key: Lotus().arguments("convolutional")[key] for key in ("freeze_batchnorm", "learning_rate")},
    ),
}
MODELS = {"resnet": (small_resnet, 30, "resnet18-cifar10"), "vit": (small_vit, 40, "vit")}


def fit(make, epochs: int):
    def fit(dataset: Dataset, seed: int):
        arguments = {"learning_rate": 2e-3, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 64}
        return train(make(seed), dataset, seed, num_train_epochs=epochs, **arguments)

    return fit


if __name__ == "__main__":
    studies = {}
    for name, (make, epochs, paper) in MODELS.items():
        baselines = {"finetune": ("finetune", {})} | (FROZEN if name == "resnet" else {})
        baselines["random_label"] = ("random_label", {})
        instance = baselines | {"lotus (paper)": (LotusConfig.paper(paper), {}), "lotus": ("lotus", {})}
        studies[f"{name}-instance"] = (load_digits, fit(make, epochs), instance)
        by_class = baselines | {
            "lotus (paper)": (LotusConfig.paper("resnet18-class"), {}),
            "lotus": (LotusConfig(class_mode=True), {}),
        }
        studies[f"{name}-class"] = (
            lambda seed: load_digits(seed, forget_class=seed),
            fit(make, epochs),
            by_class,
        )
    given = sys.argv[1:]
    record("-".join(["digits", *given]), {setting: study(*studies[setting]) for setting in given or studies})
