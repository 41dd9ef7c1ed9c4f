"""LoTUS: large-scale machine unlearning with a taste of uncertainty (CVPR 2025)."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.randomness import gumbel
from ..errors import UnlearningError
from .base import Method, MethodConfig, MethodInfo, Paper, measured

FLAT = 4.0  # where an answer of .999 among ten classes keeps half of its probability in the target


def temperature(forget_accuracy: float, unseen_accuracy: float, alpha: float) -> float:
    """τ = exp(α·(a_f − a_u)): the further the forget accuracy lies above the unseen one, the smoother the targets.

    >>> temperature(0.9, 0.9, alpha=8)
    1.0
    """
    return math.exp(alpha * (forget_accuracy - unseen_accuracy))


def targets(teacher_logits: Tensor, is_forget: Tensor, tau: float, noise: Tensor | None = None) -> Tensor:
    """Targets from the teacher's logits z, with Gumbel noise g; rows sum to 1.

    Forget samples get softmax((z + g)/τ). Retained samples get the limit τ → 0, a one-hot at argmax(z + g): a sample
    of softmax(z), so that in expectation they are plainly distilled.

    Args:
        noise: Gumbel(0, 1) noise shaped like the logits; drawn if None.
    """
    z = teacher_logits.to(torch.promote_types(teacher_logits.dtype, torch.float32))
    if noise is None:
        noise = -torch.empty_like(z).exponential_().log()
    z = z + noise.to(z.dtype)
    retain = F.one_hot(z.argmax(dim=-1), z.shape[-1]).to(z.dtype)
    return torch.where(is_forget[:, None], (z / tau).softmax(dim=-1), retain)


def lotus_ceiling(label_probabilities: np.ndarray) -> float:
    """The share of forget samples whose label stays the largest entry of their target, whatever τ is.

    argmax((z + g)/τ) does not depend on τ, and is a sample of softmax(z): it is the label with the teacher's probability of
    it. In the mean over the noise the largest entry is the teacher's own answer. So targets take confidence from the student,
    and hardly any accuracy where the teacher is sure.
    """
    return float(np.mean(label_probabilities))


@dataclass
class LotusConfig(MethodConfig):
    """LoTUS. `class_cure` and `tau_max` are ours, not the paper's; `paper()` switches the first one off."""

    method = "lotus"

    alpha: float | None = field(
        default=None,
        metadata={"help": "strength α of the temperature exp(α·(a_f − a_u)); default 2, or 32 in class mode"},
    )
    retain_fraction: float = field(default=0.3, metadata={"help": "share of the retained samples that is used"})
    class_mode: bool = field(
        default=False, metadata={"help": "a whole class is forgotten: the aim is a forget accuracy of 0 (a_u = 0)"}
    )
    gumbel: bool = field(default=True, metadata={"help": "Gumbel noise on the teacher's logits"})
    stop_margin: float = field(default=0.01, metadata={"help": "stop when a_f − a_u falls to minus this margin"})
    tau_max: float = field(default=1e4, metadata={"help": "cap of τ; beyond it targets are uniform anyway (ours)"})
    class_cure: Literal["mask", "monotone", "stop", "none"] = field(
        default="mask",
        metadata={
            "help": "what keeps class mode from learning the class again once a_f is near 0 (ours): mask the teacher's "
            "logit of the forgotten class, never lower τ, stop at chance level, or none (the paper)"
        },
    )
    cache_teacher: Literal["auto", "always", "never"] = field(
        default="auto",
        metadata={
            "help": "compute the teacher's logits once; auto: when reading a sample twice gives the same inputs"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.alpha is None:
            self.alpha = 32.0 if self.class_mode else 2.0
        self.check("alpha", self.alpha > 0, "a positive number")
        self.check("retain_fraction", 0 < self.retain_fraction <= 1, "a share in (0, 1]")
        self.check("stop_margin", self.stop_margin >= 0, "a margin of 0 or more")
        self.check("tau_max", self.tau_max >= 1, "a temperature of at least 1")

    @classmethod
    def paper(cls, setting: str = "resnet18-cifar100") -> "LotusConfig":
        """The paper's values: `resnet18-cifar10`, `resnet18-cifar100` (also MUFAC and Tiny-ImageNet), `vit`,
        `vit-imagenet` or `resnet18-class`. Weight decay is on all weights, biases and norms too."""
        settings = ("resnet18-cifar10", "resnet18-cifar100", "resnet18-class", "vit", "vit-imagenet")
        if setting not in settings:
            raise UnlearningError(f"LoTUS's paper has no setting {setting!r}; expected one of {', '.join(settings)}.")
        alpha = {"resnet18-cifar10": 8.0, "resnet18-class": 32.0}.get(setting, 2.0)
        if setting.startswith("vit"):
            batch_size = 256 if setting == "vit-imagenet" else 32
            arguments = {"learning_rate": 1e-6, "num_train_epochs": 3, "per_device_train_batch_size": batch_size}
        else:
            arguments = {"learning_rate": 1e-4, "num_train_epochs": 10, "per_device_train_batch_size": 128}
        arguments |= {"optim": "adamw_torch", "weight_decay": 5e-4, "lr_scheduler_type": "constant"}
        arguments |= {"max_grad_norm": 0.0, "freeze_batchnorm": False, "decay": "all"}
        return cls(alpha=alpha, class_mode=setting == "resnet18-class", class_cure="none", arguments=arguments)


class Lotus(Method):
    """Smooth what the model believes about forget samples, as far as it is surer there than on unseen ones.

    Every epoch: a_f = accuracy on D_f; d = a_f − a_u, with a_u the original's accuracy on unseen samples (0 in class
    mode); stop if d ≤ −margin; τ = exp(α·d). Every step, on D_f and a fixed share of D_r shuffled together: the mean
    cross-entropy of the student with `targets(teacher_logits, is_forget, τ)`. Labels are not used.
    """

    info = MethodInfo(
        name="lotus",
        kind="loss",
        summary="distils the original, with smoothed targets on forget samples until they look like unseen ones",
        needs=("forget", "retain", "unseen"),
        cost=5,
        paper=Paper(
            title="LoTUS: Large-Scale Machine Unlearning with a Taste of Uncertainty",
            arxiv="2503.18314",
            bibtex="@inproceedings{spartalis2025lotus,\n  title={{LoTUS}: Large-Scale Machine Unlearning with a Taste of "
            "Uncertainty},\n  author={Spartalis, Christoforos N. and Semertzidis, Theodoros and Gavves, Efstratios and "
            "Daras, Petros},\n  booktitle={CVPR},\n  year={2025}\n}",
        ),
    )
    config_class = LotusConfig
    config: LotusConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 3e-4 if family == "convolutional" else 0.03 / width,
            "num_train_epochs": 10,
            "per_device_train_batch_size": 64,
            "weight_decay": 5e-4,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "freeze_batchnorm": True,
        }

    def retained_share(self, n_forget: int, n_retain: int) -> float:
        return self.config.retain_fraction

    def epochs(self, epochs: int) -> list[str]:
        return ["mixed"] * epochs

    def prepare(self, context) -> None:
        self.context = context
        self.teacher = context.teacher(self.config.cache_teacher)
        self.tau = 1.0
        self.unseen_accuracy = 0.0 if self.config.class_mode else context.accuracy("control")
        self.forgotten = context.forget_classes if self.config.class_mode and self.config.class_cure == "mask" else []
        if len(self.forgotten) == context.num_labels:
            raise UnlearningError(
                "lotus: class_mode is on and every class of the model is in the forget set; expected some."
            )
        if not self.config.class_mode:
            self.look_ahead()

    def look_ahead(self) -> None:
        """Log how far targets can go, and say so where the first temperature makes them flat."""
        forget = measured(self.context, "forget")
        ceiling = lotus_ceiling(forget.signals["confidence"])
        tau = temperature(forget.accuracy, self.unseen_accuracy, cast(float, self.config.alpha))
        self.context.log({"lotus_ceiling": ceiling})
        if tau > FLAT:
            self.notes.append(
                f"lotus: the first temperature is {tau:.1f}, and above {FLAT:g} a sure answer keeps half of its probability or less (of ten "
                f"classes), while the largest entry of its target is still the label of {ceiling:.1%} of the forget samples: confidence goes, and a forget accuracy of "
                f"{self.unseen_accuracy:.1%}, as on unseen samples, is not what these targets ask for. A smaller alpha "
                "(`LotusConfig(alpha=...)`) keeps what is known of the classes; `rewind` and `auto` do not rest on targets."
            )

    def on_epoch_begin(self, epoch: int) -> bool:
        forget_accuracy = self.context.accuracy("forget")
        tau = temperature(forget_accuracy, self.unseen_accuracy, cast(float, self.config.alpha))
        if self.config.class_mode and self.config.class_cure == "monotone":
            tau = max(tau, self.tau)
        self.tau = min(tau, self.config.tau_max)
        self.context.log({"lotus_tau": self.tau, "lotus_forget_accuracy": forget_accuracy})
        return not self.is_done(forget_accuracy)

    def is_done(self, forget_accuracy: float) -> bool:
        if self.config.class_mode and self.config.class_cure == "stop":
            return forget_accuracy <= 1 / self.context.num_labels
        # Accuracies are ratios of counts; the last term keeps a gap of exactly the margin from being missed by rounding.
        return forget_accuracy - self.unseen_accuracy <= -self.config.stop_margin + 1e-9

    def losses(self, model, batch) -> dict[str, Tensor]:
        teacher = self.teacher.logits(batch)  # first: reading the table does not wait for the student on a GPU
        student = model(**batch.inputs).logits
        if self.forgotten:
            teacher[:, self.forgotten] = torch.where(batch.is_forget[:, None], -torch.inf, teacher[:, self.forgotten])
        if self.config.gumbel:
            noise = gumbel(self.context.seed, batch.epoch, batch.sample_index, teacher.shape[-1])
        else:
            noise = torch.zeros_like(teacher)
        target = targets(teacher, batch.is_forget, self.tau, noise)
        return {"loss": batch.mean(-(target * F.log_softmax(student.to(target.dtype), dim=-1)).sum(dim=-1))}

    def state_dict(self) -> dict[str, Tensor]:
        return {"tau": torch.tensor(self.tau, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.tau = state["tau"].item()
