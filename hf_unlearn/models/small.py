"""Small models that are trained from new weights: for teachers, and on the digits."""

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
        pixels = F.avg_pool2d(pixel_values, max(1, min(pixel_values.shape[-2:]) // self.pixels))
        return ImageClassifierOutput(logits=self.classifier(self.blocks(pixels).mean((2, 3))))


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
