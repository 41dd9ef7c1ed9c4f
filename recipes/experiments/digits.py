"""Digits with flipped labels, a small timm ResNet, 3 seeds: LoTUS beside fine-tuning in settings like its own, 150 of 1,000 forgotten.

About 5 minutes on one core. `FROZEN` is fine-tuning which leaves the statistics of BatchNorm as they are: with that alone, and at
LoTUS's rate as well.
"""

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
MODELS = {"resnet": (small_resnet, 30), "vit": (small_vit, 40)}  # of other studies, too


def fit(make, epochs: int):
    def fit(dataset: Dataset, seed: int):
        arguments = {"learning_rate": 2e-3, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 64}
        return train(make(seed), dataset, seed, num_train_epochs=epochs, **arguments)

    return fit


if __name__ == "__main__":
    methods = {
        "finetune": ("finetune", {}),
        **FROZEN,
        "random_label": ("random_label", {}),
        "lotus (paper)": (LotusConfig.paper("resnet18-cifar10"), {}),
        "lotus": ("lotus", {}),
    }
    record("digits", {"resnet": study(load_digits, fit(*MODELS["resnet"]), methods)})
