"""UNDIAL: self-distillation on the original's logits, with those of the true tokens lowered (NAACL 2025)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models import heads
from ..tasks.losses import next_tokens, predicting, token_means
from .base import MethodInfo, Paper
from .preference import Held, HeldConfig


def undial_loss(logits: Tensor, original: Tensor, tokens: Tensor, beta: float) -> Tensor:
    """−Σ_k q_k·log p_k of every token, with q = softmax(z° − β·e_y) of the original's logits z°.

    >>> z = torch.tensor([[0.0, 0.0]])
    >>> undial_loss(z, z, torch.tensor([1]), beta=3.0)  # log 2
    tensor([0.6931])
    """
    z, original = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits, original))
    lowered = original.scatter_add(1, tokens[:, None], torch.full_like(original[:, :1], -beta))
    return -(lowered.softmax(dim=-1) * z.log_softmax(dim=-1)).sum(dim=-1)


@dataclass
class UndialConfig(HeldConfig):
    """UNDIAL. Ours: `until`, and a retain term; the paper has none."""

    method = "undial"

    beta: float = field(default=10.0, metadata={"help": "β: by how much the logits of the true tokens are lowered"})

    def __post_init__(self):
        super().__post_init__()
        self.check("beta", self.beta > 0, "a positive number")

    @classmethod
    def paper(cls) -> "UndialConfig":
        """The authors' values for Llama-2-7b, where a LoRA of rank 8 and alpha 16 is trained, without a retain term."""
        arguments = {"learning_rate": 1e-4, "num_train_epochs": 10, "per_device_train_batch_size": 32}
        arguments |= {"weight_decay": 0.0, "lr_scheduler_type": "linear", "max_grad_norm": 1.0}
        return cls(retain="none", until="end", epoch="forget", arguments=arguments)


class Undial(Held):
    """min CE(softmax(z° − β·e_y), p) over the tokens of D_f, plus the retain term; z° are the frozen original's logits.

    The target stays as it is while the model moves, so that the loss has a lower bound. It counts the tokens of completions;
    open-unlearning's code takes all of a text, and its padding. On TOFU in small it hid the answers, and the truth ratio stayed nearer
    to the original's (docs/language-models.md).
    """

    info = MethodInfo(
        name="undial",
        kind="loss",
        summary="distils the original on forget samples, with the logits of their true tokens lowered",
        needs=("forget", "retain"),
        applies_to=("causal-lm",),
        cost=5,  # 20 epochs of forget and retained samples where a tenth is forgotten, and the original's forward passes
        paper=Paper(
            title="UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models",
            arxiv="2402.10052",
            bibtex="@inproceedings{dong2025undial,\n  title={{UNDIAL}: Self-Distillation with Adjusted Logits for Robust "
            "Unlearning in Large Language Models},\n  author={Dong, Yijiang River and Lin, Hongzhou and Belkin, Mikhail and "
            "Huerta, Ramon and Vuli\\'c, Ivan},\n  booktitle={NAACL},\n  year={2025}\n}",
        ),
    )
    config_class = UndialConfig
    config: UndialConfig

    def prepare(self, context) -> None:
        super().prepare(context)
        self.teacher = context.teacher("never")

    def forget_loss(self, model, part) -> Tensor:
        places = predicting(part.labels)
        tokens, original = next_tokens(part.labels)[places], self.teacher.places(part, places)

        def losses(found: heads.Places) -> Tensor:
            def function(logits: Tensor, of_original: Tensor, y: Tensor) -> Tensor:
                return undial_loss(logits, original.logits(of_original), y, self.config.beta)

            return found.in_chunks(function, original.states, tokens)[:, None]

        of_tokens, _ = heads.read(model, part.inputs, places, losses)
        return part.mean(token_means(heads.padded(of_tokens[:, 0], places), part.labels))
