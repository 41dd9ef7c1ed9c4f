"""Digits with flipped labels, 3 seeds: a small timm ResNet and a small ViT, instances and a whole class forgotten."""

from study import record, study, train
from torch.utils.data import Dataset

from hf_unlearn.data.digits import load_digits
from hf_unlearn.methods.lotus import LotusConfig
from hf_unlearn.models.small import small_resnet, small_vit

MODELS = {"resnet": (small_resnet, 30, "resnet18-cifar10"), "vit": (small_vit, 40, "vit")}


def fit(make, epochs: int):
    def fit(dataset: Dataset, seed: int):
        arguments = {"learning_rate": 2e-3, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 64}
        return train(make(seed), dataset, seed, num_train_epochs=epochs, **arguments)

    return fit


if __name__ == "__main__":
    results = {}
    for name, (make, epochs, paper) in MODELS.items():
        baselines = {"finetune": ("finetune", {}), "random_label": ("random_label", {})}
        instance = baselines | {"lotus (paper)": (LotusConfig.paper(paper), {}), "lotus": ("lotus", {})}
        results[f"{name}-instance"] = study(load_digits, fit(make, epochs), instance)
        by_class = baselines | {
            "lotus (paper)": (LotusConfig.paper("resnet18-class"), {}),
            "lotus": (LotusConfig(class_mode=True), {}),
        }
        results[f"{name}-class"] = study(
            lambda seed: load_digits(seed, forget_class=seed), fit(make, epochs), by_class
        )
    record("digits", results)
