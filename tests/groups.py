"""Gaussian classes in related groups, a multilayer perceptron that knows them by heart, and one that has not seen half of
a class."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_unlearn.data.digits import Samples

CLASSES, GROUPS, DIM, EACH = 20, 5, 48, 100


class GroupsConfig(PreTrainedConfig):
    model_type = "groups"

    def __init__(self, hidden=(256, 256), **kwargs):
        self.hidden = list(hidden)
        super().__init__(**kwargs)


class GroupsForImageClassification(PreTrainedModel):
    """A multilayer perceptron; its "images" are vectors."""

    config_class = GroupsConfig
    main_input_name = "pixel_values"

    def __init__(self, config: GroupsConfig):
        super().__init__(config)
        widths = [DIM, *config.hidden]
        layers = (layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(a, b), nn.ReLU()))
        self.layers, self.classifier = nn.Sequential(*layers), nn.Linear(widths[-1], config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As torch does."""

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.classifier(self.layers(pixel_values)))


AutoConfig.register("groups", GroupsConfig)
AutoModelForImageClassification.register(GroupsConfig, GroupsForImageClassification)


def perceptron(*hidden: int, seed: int = 0) -> GroupsForImageClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GroupsForImageClassification(GroupsConfig(hidden, num_labels=CLASSES))


def half_of_a_class(seed: int) -> dict[str, Samples]:
    """Half of the samples of one class are to be forgotten. Classes are mixtures of three Gaussians."""
    rng = np.random.default_rng(seed)
    group = np.repeat(rng.normal(size=(GROUPS, DIM)), CLASSES // GROUPS, axis=0)
    parts = (group + 0.3 * rng.normal(size=group.shape))[:, None] + 0.3 * rng.normal(size=(CLASSES, 3, DIM))
    labels = np.repeat(np.arange(CLASSES), EACH)

    def draw() -> Tensor:
        x = parts[labels, rng.integers(3, size=len(labels))] + 0.9 * rng.normal(size=(len(labels), DIM))
        return torch.tensor(x, dtype=torch.float32)

    x, unseen, y = draw(), draw(), torch.tensor(labels)
    gone = torch.zeros(len(y), dtype=torch.bool)
    gone[torch.nonzero(y == rng.integers(CLASSES))[: EACH // 2, 0]] = True
    sets = {"forget": (x[gone], y[gone]), "retain": (x[~gone], y[~gone]), "unseen": (unseen, y)}
    return {name: Samples(pixel_values=x, labels=y) for name, (x, y) in sets.items()}


@functools.cache
def fitted(seed: int, data_seed: int, retrained: bool) -> GroupsForImageClassification:
    """Trained on the forget and retained samples, or on the retained ones alone, until it knows them by heart."""
    data, model = half_of_a_class(data_seed), perceptron(256, 256, seed=seed)
    names = ("retain",) if retrained else ("forget", "retain")
    x, y = (torch.cat([data[name].columns[key] for name in names]) for key in ("pixel_values", "labels"))
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.Generator().manual_seed(seed)
    for _ in range(20):
        for rows in torch.randperm(len(y), generator=generator).split(64):
            F.cross_entropy(model(x[rows]).logits, y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, samples: Samples, label: int | None = None) -> float:
    """In percent; of one class if a label is given."""
    labels = samples.columns["labels"]
    right = (model(samples.columns["pixel_values"]).logits.argmax(dim=1) == labels).double()
    return 100 * (right if label is None else right[labels == label]).mean().item()
