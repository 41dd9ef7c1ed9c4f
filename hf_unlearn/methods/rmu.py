"""RMU: representation misdirection for unlearning (ICML 2024, the WMDP benchmark)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..data.batches import Batch
from ..errors import UnlearningError
from ..models import heads
from ..models.kinds import attends
from ..models.modes import evaluating
from ..tasks.losses import predicting
from .base import TASKS, MethodInfo, Paper, Term
from .paired import PairedLosses, PairedLossesConfig


def random_direction(size: int, seed: int) -> Tensor:
    """u: a vector of uniform numbers in [0, 1), with length 1."""
    u = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return u / u.norm()


def displacement(activations: Tensor, target: Tensor, read: Tensor) -> Tensor:
    """‖h − t‖²/d at every token, then the mean over the tokens of each sample that are `read`; [n] from [n, L, d].

    The division by the number of features d is the authors' code; the paper's formula has none. It scales both losses.
    """
    dtype = torch.promote_types(activations.dtype, torch.float32)
    squares = (activations.to(dtype) - target.to(dtype)).square().mean(dim=-1)
    return torch.where(read, squares, 0.0).sum(dim=1) / read.sum(dim=1)


def mlp_layers(block: nn.Module) -> list[str]:
    """Names of the linear layers of a block that are in no attention module."""
    linear = (nn.Linear, Conv1D, BaseTunerLayer)
    closed = [f"{n}." for n, m in block.named_modules() if n and (attends(m) or isinstance(m, BaseTunerLayer))]
    return [n for n, m in block.named_modules() if isinstance(m, linear) and not n.startswith(tuple(closed))]


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of a transformer by name: the longest list of modules that all have attention and an MLP."""
    lists = [
        [(f"{name}.{i}", block) for i, block in module.named_children()]
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        and all(mlp_layers(block) and any(map(attends, block.modules())) for block in module)
    ]
    found = max(lists, key=len, default=[])
    if not found:
        raise UnlearningError(
            f"rmu steers activations between the blocks of a transformer, and {type(model).__name__} has no list of blocks "
            "with attention and an MLP of linear layers; expected a model such as Llama, GPT-2, BERT or ViT."
        )
    return found


@dataclass
class RmuConfig(PairedLossesConfig):
    """RMU. Ours: `until`, a layer a third of the way up, a retain weight of 10, and that of a language model only those tokens count
    that predict the completion.

    The paper's 1200 is for a forget set of another kind than the retained texts. Where both are alike, it holds the
    forget activations too.
    """

    method = "rmu"

    layer: int | None = field(
        default=None, metadata={"help": "the block whose output is steered, from 0; default: a third of the depth"}
    )
    steering: float = field(default=6.5, metadata={"help": "c: the length of what forget activations are pushed to"})
    retain_weight: float = field(default=10.0, metadata={"help": "α: weight of the retained activations' term"})

    tokens: Literal["completion", "all"] = field(
        default="completion",
        metadata={
            "help": "which of a language model count: completion: those that predict the completion; all: all that are no padding, "
            "as in a classifier"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check("layer", self.layer is None or self.layer >= 0, "the number of a block, from 0, or null")
        self.check("steering", self.steering > 0, "a positive number")
        self.check("retain_weight", self.retain_weight >= 0, "a weight of 0 or more")

    @classmethod
    def paper(cls) -> "RmuConfig":
        """The values for Zephyr-7B (32 blocks), for at most 150 steps (`max_steps`), on all tokens. All MLP weights of the three
        blocks are trained; the authors' code trains the last matrix of each MLP only. Weight decay is on all that is trained, biases
        too."""
        arguments = {"learning_rate": 5e-5, "num_train_epochs": 1, "per_device_train_batch_size": 4}
        arguments |= {"weight_decay": 0.01, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "decay": "all"}
        return cls(layer=7, retain_weight=1200.0, tokens="all", until="end", epoch="forget", arguments=arguments)


class Rmu(PairedLosses):
    """Push forget activations of one layer to c·u, and keep retained activations where the frozen original has them.

    min mean‖h(x_f) − c·u‖² + α·mean‖h(x_r) − h_frozen(x_r)‖², on the MLP weights of that layer and the two before. The means
    are over the tokens that count, see `tokens`.
    """

    info = MethodInfo(
        name="rmu",
        kind="loss",
        summary="pushes activations of forget samples in one layer to a random direction, keeps those of retained ones",
        needs=("forget", "retain"),
        applies_to=TASKS,
        cost=12,  # 10 epochs of forget and retained samples, a step of which takes 0.6 of a plain one on as many samples
        paper=Paper(
            title="The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning",
            arxiv="2403.03218",
            bibtex="@inproceedings{li2024wmdp,\n  title={The {WMDP} Benchmark: Measuring and Reducing Malicious Use With "
            "Unlearning},\n  author={Li, Nathaniel and Pan, Alexander and Gopal, Anjali and Yue, Summer and Berrios, Daniel "
            "and Gatti, Alice and others},\n  booktitle={ICML},\n  year={2024}\n}",
        ),
    )
    config_class = RmuConfig
    config: RmuConfig
    learning_rate = 0.15
    adapter_learning_rate = 3e-3
    passes: ClassVar = {"paired": 10, "forget-paired": 40}

    def layer(self, blocks: list) -> int:
        layer = len(blocks) // 3 if self.config.layer is None else self.config.layer
        self.config.check("layer", layer < len(blocks), f"one of the model's blocks, 0 to {len(blocks) - 1}")
        return layer

    def trained_modules(self, model: nn.Module) -> list[str]:
        blocks = find_blocks(model)
        layer = self.layer(blocks)
        return [f"{n}.{linear}" for n, block in blocks[max(0, layer - 2) : layer + 1] for linear in mlp_layers(block)]

    def prepare(self, context) -> None:
        super().prepare(context)
        self.teacher = context.teacher("never")
        self.block, self.frozen_block = (self.steered(model) for model in (context.model, self.teacher.model))

    def steered(self, model: nn.Module) -> nn.Module:
        blocks = find_blocks(model)
        return blocks[self.layer(blocks)][1]

    def terms(self, model, batch) -> list[Term]:
        return [
            Term("forget", 1.0, lambda: self.forget_loss(model, batch["forget"])),
            Term("retain", self.config.retain_weight, lambda: self.retain_loss(model, batch["retain"])),
        ]

    def forget_loss(self, model: nn.Module, forget: Batch) -> Tensor:
        steered = activations(model, self.block, forget)
        target = self.config.steering * random_direction(steered.shape[-1], self.context.seed).to(steered.device)
        return self.mean(forget, steered, target)

    def retain_loss(self, model: nn.Module, retain: Batch) -> Tensor:
        with torch.no_grad(), self.teacher.frozen(), evaluating(self.teacher.model):
            frozen = activations(self.teacher.model, self.frozen_block, retain)
        return self.mean(retain, activations(model, self.block, retain), frozen)

    def mean(self, batch: Batch, found: Tensor, target: Tensor) -> Tensor:
        """Of the displacements: over the completion tokens of a step, or over its samples where all tokens count."""
        whole = self.config.tokens == "all"
        of_samples = displacement(found, target, read_tokens(batch, found, whole))
        return batch.mean_over_samples(of_samples) if whole else batch.mean(of_samples)


def activations(model: nn.Module, block: nn.Module, batch: Batch) -> Tensor:
    """What a block of the model puts out: [n, L, d]. The head of a language model, which nobody asks, is given nothing."""
    found = []
    hook = block.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        if batch.labels.ndim == 2:
            heads.read(model, batch.inputs, torch.zeros_like(batch.labels, dtype=torch.bool), heads.states)
        else:
            model(**batch.inputs)
    finally:
        hook.remove()
    return found[0][0] if isinstance(found[0], tuple) else found[0]


def read_tokens(batch: Batch, found: Tensor, whole: bool = False) -> Tensor:
    """Which tokens count: of a language model those that predict the completion, else (or of `whole` texts) all that are no
    padding."""
    if batch.labels.ndim == 2 and not whole:
        return predicting(batch.labels)
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    return torch.ones(found.shape[:2], dtype=torch.bool, device=found.device)
