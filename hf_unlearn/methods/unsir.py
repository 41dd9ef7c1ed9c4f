"""UNSIR: unlearning by error-maximising noise, in an impair and a repair step (2021)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .. import models
from ..tasks.losses import cross_entropy, sample_losses
from .base import Method, MethodConfig, MethodInfo, Paper

ROWS_AT_ONCE = 16  # of noise in one forward pass, so that it keeps no more activations than a small training step


def noise_loss(logits: Tensor, labels: Tensor, noise: Tensor, penalty: float) -> Tensor:
    """−CE(f(N), y) + λ‖N‖² of every noise sample N, to be minimised over N: the error is *maximised*."""
    return -cross_entropy(logits, labels) + penalty * noise.flatten(1).square().sum(dim=1)


def learn_noise(
    logits: Callable[[Tensor], Tensor], noise: Tensor, labels: Tensor, steps: int, rate: float, penalty: float
) -> Tensor:
    """`steps` steps of Adam on `noise_loss`, from `noise` on; every sample is learned by itself."""
    noise = noise.clone().requires_grad_()
    optimizer = torch.optim.Adam([noise], lr=rate)
    for _ in range(steps):
        loss = noise_loss(logits(noise), labels, noise, penalty).sum()
        (noise.grad,) = torch.autograd.grad(loss, [noise])
        optimizer.step()
    return noise.detach()


@dataclass
class UnsirConfig(MethodConfig):
    """UNSIR. Ours: `tokens`, and noise that is learned in eval mode."""

    method = "unsir"

    samples: int = field(default=32, metadata={"help": "noise samples of each forget class"})
    steps: int = field(default=40, metadata={"help": "steps in which the noise is learned"})
    rate: float = field(default=0.1, metadata={"help": "Adam's learning rate for the noise"})
    penalty: float = field(default=0.1, metadata={"help": "weight λ of the squared norm of the noise"})
    noise_mode: Literal["eval", "train"] = field(
        default="eval",
        metadata={
            "help": "how the model is while the noise is learned. eval: each noise sample by itself (ours); train: all of a class "
            "together, by whose statistics BatchNorm goes, and keeps them (the authors' code)"
        },
    )
    retain_fraction: float = field(default=1.0, metadata={"help": "share of the retained samples that is used"})
    tokens: int = field(default=32, metadata={"help": "length of a noise text, in tokens (ours)"})

    def __post_init__(self):
        super().__post_init__()
        self.check("samples", self.samples >= 1, "at least 1")
        self.check("steps", self.steps >= 0, "a number of steps")
        self.check("rate", self.rate > 0, "a positive number")
        self.check("penalty", self.penalty >= 0, "a weight of 0 or more")
        self.check("retain_fraction", 0 < self.retain_fraction <= 1, "a share in (0, 1]")
        self.check("tokens", self.tokens >= 1, "at least 1")

    @classmethod
    def paper(cls) -> "UnsirConfig":
        """The authors' values for ResNet-18 on CIFAR-10, where 1,000 of 5,000 samples of each retained class are used. Their
        repair step has half of this learning rate."""
        arguments = {"learning_rate": 0.02, "num_train_epochs": 2, "per_device_train_batch_size": 256}
        arguments |= {"weight_decay": 0.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
        return cls(
            samples=256, noise_mode="train", retain_fraction=0.2, arguments=arguments | {"freeze_batchnorm": False}
        )


class Unsir(Method):
    """Learn noise that the model is most wrong about as the forget class; impair: one epoch on that noise, labelled with
    the forget class, and on retained samples; repair: the other epochs, on retained samples alone.

    No forget sample is read but for its label and its shape: in the impair epoch every step has as many noise as
    retained samples. For text the noise lives in the input embeddings (our extension), at their scale. The method is
    made for whole classes.
    """

    info = MethodInfo(
        name="unsir",
        kind="loss",
        summary="trains learned noise onto the forget class, then repairs on the retained samples",
        needs=("forget", "retain"),
        cost=3,
        memory="what a forward pass computes of 16 noise samples while they are learned, and then of two batches at once",
        paper=Paper(
            title="Fast Yet Effective Machine Unlearning",
            arxiv="2111.08947",
            bibtex="@article{tarun2023fast,\n  title={Fast Yet Effective Machine Unlearning},\n  author={Tarun, Ayush K. and "
            "Chundawat, Vikram S. and Mandal, Murari and Kankanhalli, Mohan},\n  journal={IEEE Transactions on Neural "
            "Networks and Learning Systems},\n  year={2023}\n}",
        ),
    )
    config_class = UnsirConfig
    config: UnsirConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 1e-3 if family == "convolutional" else 0.06 / width,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 64,
            "weight_decay": 0.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "freeze_batchnorm": True,
        }

    def retained_share(self, n_forget: int, n_retain: int) -> float:
        return self.config.retain_fraction

    def epochs(self, epochs: int) -> list[str]:
        return ["paired"] + ["retain"] * (epochs - 1)

    def prepare(self, context) -> None:
        if not context.is_class_request:
            self.notes.append(
                "unsir is made for whole classes, and the retained samples have some of every forget class."
            )
        model, config = context.model, self.config
        inputs = context.batch([("forget", 0)]).inputs
        if "input_ids" in inputs:
            embedding = models.embedding_of(model).weight.detach()
            self.name, shape, scale = "inputs_embeds", (config.tokens, embedding.shape[1]), embedding.std()
        else:
            self.name, pixels = next((name, x) for name, x in inputs.items() if x.is_floating_point())
            shape, scale = pixels.shape[1:], torch.ones((), device=pixels.device)
        classes = torch.tensor(context.forget_classes, device=scale.device)
        labels = classes.repeat_interleave(config.samples)
        generator = torch.Generator().manual_seed(context.seed)
        noise = torch.randn(len(labels), *shape, generator=generator).to(scale.device, torch.float32)

        def logits(part: Tensor) -> Tensor:
            return model(**{self.name: (scale * part).to(scale.dtype)}).logits

        about = (config.steps, config.rate, config.penalty)
        rows = ROWS_AT_ONCE if config.noise_mode == "eval" else config.samples
        with context.training() if config.noise_mode == "train" else context.evaluating():
            parts = zip(noise.split(rows), labels.split(rows), strict=True)
            learned = torch.cat([learn_noise(logits, part, y, *about) for part, y in parts])
        self.classes, self.noise = classes, scale * learned.view(len(classes), config.samples, *shape)

    def losses(self, model, batch) -> dict[str, Tensor]:
        if "retain" not in batch:  # repair
            return {"loss": batch.mean(sample_losses(model, batch))}
        retain, forget = batch["retain"], batch["forget"]
        rows = torch.searchsorted(self.classes, forget.labels), forget.sample_index % self.config.samples
        dtype = next(model.parameters()).dtype
        impaired = cross_entropy(model(**{self.name: self.noise[rows].to(dtype)}).logits, forget.labels)
        kept = sample_losses(model, retain)
        loss = (forget.mean(impaired) + retain.mean(kept)) / 2  # the mean over both, which are equally many
        return {"loss": loss, "noise_loss": forget.mean(impaired), "retain_loss": retain.mean(kept)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"noise": self.noise}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.noise = state["noise"].to(self.noise.device)
