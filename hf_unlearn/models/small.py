"""Small models that are trained from new weights: for teachers, and on the digits."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

SIZE = 32  # pixels; each of the 8 x 8 becomes a 4 x 4 block


def small_resnet(seed: int = 0) -> PreTrainedModel:
    """A timm ResNet of four narrow blocks, 0.2 million parameters."""
    torch.manual_seed(seed)
    config = TimmWrapperConfig(
        architecture="resnet18",
        num_labels=10,  # pyright: ignore[reportCallIssue] - of every config, though not a field
        model_args={"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 96], "stem_type": "deep", "stem_width": 8},
    )
    return TimmWrapperForImageClassification(config)


def small_vit(seed: int = 0) -> PreTrainedModel:
    """A ViT of two layers, 0.1 million parameters. Its initial weights are larger than usual: it is trained for seconds."""
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=2,
        initializer_range=0.1,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=10,  # pyright: ignore[reportCallIssue] - of every config, though not a field
    )
    return ViTForImageClassification(config)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet8(nn.Module):
    """The ResNet of 6n + 2 layers with n = 1, for images of about `pixels`; those of twice the size and more are averaged down."""

    def __init__(self, num_labels: int, channels: int = 3, pixels: int = 32):
        super().__init__()
        self.pixels = pixels
        stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.blocks = nn.Sequential(*stem, Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.classifier = nn.Linear(64, num_labels)

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        pixels = averaged(pixel_values, self.pixels)
        return ImageClassifierOutput(logits=self.classifier(self.blocks(pixels).mean((2, 3))))


class PatchNet(nn.Module):
    """A convolution whose filters are whitened patches of images and stay as they are, and a linear head on its averages over the
    quarters of an image. What the head reads of an image can be kept, since only the head is trained."""

    filters: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, num_labels: int, channels: int = 3, pixels: int = 32, filters: int = 128, size: int = 5):
        super().__init__()
        self.pixels, width = pixels, 8 * filters
        self.register_buffer("filters", torch.randn(filters, channels, size, size))
        for name, value in (
            ("bias", torch.zeros(filters)),
            ("mean", torch.zeros(width)),
            ("scale", torch.ones(width)),
        ):
            self.register_buffer(name, value)
        self.classifier = nn.Linear(width, num_labels)

    @torch.no_grad()
    def learn_patches(self, pixel_values: Tensor) -> None:
        """w(x) = P(x − m) whitens a patch x; the filters give ⟨w(x), w(x_i)/‖w(x_i)‖⟩ of patches x_i that are drawn from the images."""
        count, *shape = self.filters.shape
        x = F.unfold(averaged(pixel_values, self.pixels), shape[-1]).transpose(1, 2).flatten(0, 1)
        m, (size, axes) = x.mean(0), torch.linalg.eigh(x.T.cov())
        p = axes * (size.clamp(min=0) + 0.1 * size.mean() + 1e-9).rsqrt() @ axes.T
        drawn = torch.randint(len(x), (count,)).to(x.device)
        filters = F.normalize((x[drawn] - m) @ p, dim=1) @ p
        self.filters.copy_(filters.view(-1, *shape))
        self.bias.copy_(-filters @ m)
        found = self.read(pixel_values)
        self.mean.copy_(found.mean(0))
        scale = found.std(0, correction=0)
        self.scale.copy_(scale.clamp(min=0.1 * scale.mean() + 1e-6))

    def read(self, pixel_values: Tensor) -> Tensor:
        z = F.conv2d(averaged(pixel_values, self.pixels), self.filters, self.bias)
        return torch.cat([F.adaptive_avg_pool2d(F.relu(side), 2).flatten(1) for side in (z, -z)], dim=1)

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the head reads, standardised; as long as it has to be for the learning rates of other networks."""
        return 16 / len(self.mean) ** 0.5 * (self.read(pixel_values) - self.mean) / self.scale

    def forward(self, pixel_values: Tensor | None = None, features: Tensor | None = None) -> ImageClassifierOutput:
        if features is None:
            features = self.features(cast(Tensor, pixel_values))
        return ImageClassifierOutput(logits=self.classifier(features))


def averaged(pixel_values: Tensor, pixels: int) -> Tensor:
    """Images of twice as many `pixels` and more, averaged down."""
    return F.avg_pool2d(pixel_values, max(1, min(pixel_values.shape[-2:]) // pixels))


def small_transformer(num_labels: int, vocabulary: int, positions: int) -> PreTrainedModel:
    """A BERT of two layers, without dropout."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=vocabulary,
            max_position_embeddings=positions,
            num_labels=num_labels,  # pyright: ignore[reportCallIssue] - of every config, though not a field
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
