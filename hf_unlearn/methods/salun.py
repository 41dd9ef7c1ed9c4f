"""SalUn: any other method, on the weights that matter most to the forget data (ICLR 2024)."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import UnlearningError
from ..models.adapters import is_adapted
from ..tasks.base import Task
from ..tasks.losses import sample_losses
from .base import Method, MethodConfig, MethodInfo, Paper, Term
from .gradients import Gradient
from .table import get_method


def saliency_mask(gradient: Gradient, density: float) -> list[Tensor]:
    """Where |g| is among the largest `density`·N of all N values, in all tensors together; never where g is 0.

    The threshold is the exact k-th largest value. Values that equal it are all in.
    """
    sizes = [g.numel() for g in gradient]
    magnitudes = torch.empty(sum(sizes), dtype=torch.promote_types(gradient[0].dtype, torch.float32))
    for part, g in zip(magnitudes.split(sizes), gradient, strict=True):
        part.copy_(g.abs().flatten())
    place = len(magnitudes) - max(1, round(density * len(magnitudes)))
    magnitudes.numpy().partition(place)  # in place, where kthvalue takes three times the memory
    threshold = magnitudes[place].item()
    return [(g.abs() >= threshold) & (g != 0) for g in gradient]


@dataclass
class SalunConfig(MethodConfig):
    """SalUn. The method inside is given by its name and settings, or as a config."""

    method = "salun"

    density: float = field(
        default=0.5,
        metadata={"help": "share of the weights that is trained; in an adapter, of those that have a gradient"},
    )
    inner: str | MethodConfig = field(
        default="random_label", metadata={"help": "the loss method that trains them: a name, or a config"}
    )
    inner_settings: dict[str, Any] = field(default_factory=dict, metadata={"help": "settings of that method"})

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.inner, MethodConfig):
            self.inner, self.inner_settings = self.inner.method, dataclasses.asdict(self.inner)
        self.check("density", 0 < self.density <= 1, "a share in (0, 1]")

    @classmethod
    def paper(cls) -> "SalunConfig":
        """The authors' values for ResNet-18 on CIFAR-10, a tenth of the samples forgotten. Weight decay is on all weights, biases
        and norms too."""
        arguments = {"learning_rate": 0.013, "num_train_epochs": 10, "per_device_train_batch_size": 256}
        arguments |= {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 5e-4}
        arguments |= {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "freeze_batchnorm": False, "decay": "all"}
        return cls(arguments=arguments)


class Salun(Method):
    """Train with another method, and only the weights whose gradient of the forget loss is largest.

    m = |∇CE(D_f)| among the largest `density` of all weights, at the original; θ = m·θ_trained + (1 − m)·θ_original
    after every step. Weights outside of m keep their bits, whatever weight decay and momentum do.

    In an adapter (ours), m and its density are over the tensors that have a gradient at the original. One factor of a new
    LoRA's B·A is 0, and so is the gradient of the other, which therefore is trained whole: what m chooses are entries of B.
    """

    info = MethodInfo(
        name="salun",
        kind="loss",
        summary="runs another method on the weights that matter most to the forget samples, and on no others",
        needs=("forget", "retain"),
        cost=6,
        memory="a byte for each weight, and the weights that are not trained, half of all by default, beside what the inner method holds",
        paper=Paper(
            title="SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and "
            "Generation",
            arxiv="2310.12508",
            bibtex="@inproceedings{fan2024salun,\n  title={{SalUn}: Empowering Machine Unlearning via Gradient-based Weight "
            "Saliency in Both Image Classification and Generation},\n  author={Fan, Chongyu and Liu, Jiancheng and Zhang, "
            "Yihua and Wong, Eric and Wei, Dennis and Liu, Sijia},\n  booktitle={ICLR},\n  year={2024}\n}",
        ),
    )
    config_class = SalunConfig
    config: SalunConfig

    def __init__(self, config: SalunConfig | None = None):
        super().__init__(config)
        method = get_method(cast(str, self.config.inner))  # of a config, its name
        if method.info.kind != "loss" or "base_model" in method.info.needs or method.starts_over:
            raise UnlearningError(
                f"salun: inner is {self.config.inner!r}; expected a loss method that starts from the original."
            )
        self.inner = method(method.config_class.from_dict(self.config.inner_settings))
        self.inner.notes = self.notes
        self.takes_teacher, self.takes_alternatives = self.inner.takes_teacher, self.inner.takes_alternatives
        about: dict[str, Any] = {"needs": method.info.needs, "applies_to": method.info.applies_to}
        about["cost"] = method.info.cost + 0.5  # the gradients that are ranked
        self.info = dataclasses.replace(self.info, **about)

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return self.inner.arguments(family, width) | self.inner.config.arguments

    def learn_task(self, task: Task) -> None:
        self.inner.learn_task(task)

    def alternatives(self, row: dict[str, Any]) -> list[Any]:
        return self.inner.alternatives(row)

    def trained_modules(self, model: nn.Module) -> list[str] | None:
        return self.inner.trained_modules(model)

    def adapter(self, task: Task) -> dict[str, Any] | None:
        return self.inner.adapter(task)

    def adapter_arguments(self) -> dict[str, Any]:
        return self.inner.adapter_arguments()

    def retained_share(self, n_forget: int, n_retain: int) -> float:
        return self.inner.retained_share(n_forget, n_retain)

    def epochs(self, epochs: int) -> list[str]:
        return self.inner.epochs(epochs)

    @property
    def why_whole(self) -> str | None:
        return "ranks all weights together"

    def prepare(self, context) -> None:
        self.parameters = context.parameters
        forget = [("forget", i) for i in range(context.schedule.n_forget)]
        (gradient,) = context.gradients(self.forget_loss, [forget])
        ranked = [i for i, g in enumerate(gradient) if g.any() or not is_adapted(context.model)]
        self.masks = [torch.ones_like(g, dtype=torch.bool) for g in gradient]
        for i, mask in zip(ranked, saliency_mask([gradient[i] for i in ranked], self.config.density), strict=True):
            self.masks[i] = mask
        del gradient
        self._keep()
        self.inner.prepare(context)

    def _keep(self) -> None:
        """The weights outside of the mask, which never change."""
        self.kept = [p.detach()[~mask] for p, mask in zip(self.parameters, self.masks, strict=True)]

    def forget_loss(self, model, batch) -> Tensor:
        return batch.mean(sample_losses(model, batch))

    def on_epoch_begin(self, epoch: int) -> bool | None:
        return self.inner.on_epoch_begin(epoch)

    def on_step_begin(self, step: int) -> None:
        self.inner.on_step_begin(step)

    def losses(self, model, batch) -> dict[str, Tensor]:
        return self.inner.losses(model, batch)

    def terms(self, model, batch) -> list[Term]:
        return self.inner.terms(model, batch)

    @property
    def changes_weights(self) -> bool:
        return True

    @torch.no_grad()
    def on_step_end(self, step: int) -> bool | None:
        for parameter, mask, kept in zip(self.parameters, self.masks, self.kept, strict=True):
            parameter.masked_scatter_(~mask, kept)
        return self.inner.on_step_end(step)

    @property
    def report(self) -> dict[str, Any]:
        return {**self.inner.report, "trained_weights": sum(int(mask.sum()) for mask in self.masks)}

    def state_dict(self) -> dict[str, Tensor]:
        inner = {f"inner.{name}": tensor for name, tensor in self.inner.state_dict().items()}
        return inner | {"mask": torch.cat([mask.flatten() for mask in self.masks])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        parts = state["mask"].split([mask.numel() for mask in self.masks])
        self.masks = [part.view_as(mask).to(mask.device) for part, mask in zip(parts, self.masks, strict=True)]
        self._keep()
        inner = {name.removeprefix("inner."): tensor for name, tensor in state.items() if name != "mask"}
        self.inner.load_state_dict(inner)
