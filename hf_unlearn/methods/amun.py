"""AMUN: forget samples give way to their nearest adversarial examples, with the answers that these get (ICML 2025)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from ..data.batches import Batch
from ..errors import UnlearningError
from ..models import embedding_of
from ..tasks.losses import IGNORED, cross_entropy
from .base import Method, MethodConfig, MethodInfo, Paper

ROWS_AT_ONCE = 64  # forget samples in one pass of the attack
DOUBLINGS = 30  # of ε at most


def norms(x: Tensor) -> Tensor:
    """‖x‖ of every row, with as many dimensions as x; never 0."""
    return x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny).view(-1, *[1] * (x.ndim - 1))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """m = z_y − log Σ_{k≠y} exp(z_k) of every row. The cross-entropy is log(1 + exp(−m)), whose gradient has the same direction
    and is rounded to 0 where the model is sure."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.logsumexp(dim=1)


def pgd(logits: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, epsilon: float, steps: int) -> Tensor:
    """L2-PGD: `steps` steps of 2.5·ε/`steps` up the cross-entropy, each back into the ball ‖x_adv − x‖ ≤ ε."""
    delta = torch.zeros_like(x)
    for _ in range(steps):
        point = (x + delta).requires_grad_()
        (g,) = torch.autograd.grad(-margin(logits(point), labels).sum(), [point])
        delta = delta + 2.5 * epsilon / steps * (g / norms(g))
        delta = delta * (epsilon / norms(delta)).clamp(max=1)
    return x + delta


def adversarial(
    logits: Callable[[Tensor, Tensor], Tensor], x: Tensor, labels: Tensor, epsilon: float, steps: int
) -> tuple[Tensor, Tensor]:
    """(x_adv, its answer) of every row: PGD with ε, 2ε, 4ε …, until the answer is not the label.

    A row whose answer never changes keeps x, with `IGNORED` for its answer.

    Args:
        logits: of changed inputs, and which rows of x they are.
    """
    found, answers = x.clone(), torch.full_like(labels, IGNORED)
    left = torch.arange(len(x), device=x.device)
    for doubling in range(DOUBLINGS + 1):
        points = pgd(lambda point, rows=left: logits(point, rows), x[left], labels[left], epsilon * 2**doubling, steps)
        with torch.no_grad():
            said = logits(points, left).argmax(dim=-1)
        changed = said != labels[left]
        found[left[changed]], answers[left[changed]] = points[changed], said[changed]
        left = left[~changed]
        if len(left) == 0:
            break
    return found, answers


@dataclass
class AmunConfig(MethodConfig):
    """AMUN."""

    method = "amun"

    epsilon: float = field(
        default=0.1,
        metadata={"help": "first radius ε of the attack, in the units of what the model reads; it is doubled"},
    )
    steps: int = field(default=10, metadata={"help": "steps of the attack at each radius"})

    def __post_init__(self):
        super().__post_init__()
        self.check("epsilon", self.epsilon > 0, "a positive radius")
        self.check("steps", self.steps >= 1, "at least 1")

    @classmethod
    def paper(cls) -> "AmunConfig":
        """PGD of 50 steps, and ten epochs. Learning rate and optimizer are ours."""
        return cls(steps=50, arguments={"num_train_epochs": 10, "freeze_batchnorm": False})


class Amun(Method):
    """For every x in D_f: PGD in an L2 ball of radius ε, which doubles until the answer changes; then min CE(D_r) + CE(x_adv, its
    answer), on both sets shuffled together.

    The attack is on the original in eval mode, on the samples as they are, once. Of texts (ours) x is the embeddings of their
    tokens, and x_adv takes their place behind the layer that makes them. What is found is in no checkpoint: it is nearly the
    forget samples themselves, and the original gives it again.
    """

    info = MethodInfo(
        name="amun",
        kind="loss",
        summary="trains on the nearest adversarial examples of forget samples, with the answers that these get",
        needs=("forget", "retain"),
        cost=12,
        memory="the samples that it makes, and what a forward pass computes of 64 of them at once while it does",
        paper=Paper(
            title="Not All Wrong is Bad: Using Adversarial Examples for Unlearning",
            arxiv="2503.00917",
            bibtex="@inproceedings{ebrahimpour2025not,\n  title={Not All Wrong is Bad: Using Adversarial Examples for "
            "Unlearning},\n  author={Ebrahimpour-Boroojeny, Ali and Sundaram, Hari and Chandrasekaran, Varun},\n  "
            "booktitle={ICML},\n  year={2025}\n}",
        ),
    )
    config_class = AmunConfig
    config: AmunConfig

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 1e-3 if family == "convolutional" else 0.03 / width,
            "num_train_epochs": 10,
            "per_device_train_batch_size": 64,
            "weight_decay": 5e-4,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "freeze_batchnorm": True,
        }

    def epochs(self, epochs: int) -> list[str]:
        return ["mixed"] * epochs

    @property
    def why_whole(self) -> str | None:
        return "attacks other samples in each process"

    def prepare(self, context) -> None:
        model, forget = context.model, [("forget", i) for i in range(context.schedule.n_forget)]
        inputs, state = context.batch(forget[:1]).inputs, PartialState()
        self.pixels = next((name for name, x in inputs.items() if x.is_floating_point()), None)
        self.embeddings = nn.Identity() if self.pixels else embedding_of(model)
        if self.pixels is None and not context.is_deterministic:
            raise UnlearningError(
                "amun: reading a text twice gives different tokens (augment, or a random transform), and each is attacked once; "
                "expected fixed texts."
            )
        points: list[Tensor] = []  # of each forget sample what takes its place
        answers: list[Tensor] = []
        with context.evaluating():
            for chunk in range(0, len(forget), ROWS_AT_ONCE):
                batch = context.batch(forget[chunk : chunk + ROWS_AT_ONCE])
                x = batch.inputs[self.pixels] if self.pixels else self.embeddings(batch["input_ids"]).detach()
                is_read = self.is_read(batch.inputs, x)
                found, said = torch.zeros_like(x), torch.zeros_like(batch.labels)
                if chunk // ROWS_AT_ONCE % state.num_processes == state.process_index:
                    found, said = self.attack(model, batch, x, is_read)
                points += [point[entries] for point, entries in zip(found, is_read, strict=True)]
                answers.append(said)
        sizes = [len(point) for point in points]
        self.points = cast(Tensor, reduce(torch.cat(points), "sum")).split(
            sizes
        )  # what the other processes have found is 0 here
        self.answers = cast(Tensor, reduce(torch.cat(answers), "sum"))
        if stuck := int(self.answers.eq(IGNORED).sum()):
            self.notes.append(
                f"amun: the answer to {stuck} of {len(forget)} forget samples is the same however far they are moved; they are "
                "left out."
            )

    def attack(self, model: nn.Module, batch: Batch, x: Tensor, is_read: Tensor) -> tuple[Tensor, Tensor]:
        def logits(points: Tensor, rows: Tensor) -> Tensor:
            inputs = {name: value[rows] for name, value in batch.inputs.items()}
            return self.logits(model, inputs, lambda given: torch.where(is_read[rows], points, given))

        return adversarial(logits, x, batch.labels, self.config.epsilon, self.config.steps)

    def is_read(self, inputs: dict[str, Tensor], x: Tensor) -> Tensor:
        """Which entries of x have a say: all pixels; of embeddings those of all tokens but padding."""
        if self.pixels:
            return torch.ones_like(x, dtype=torch.bool)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        return mask.bool()[..., None].expand_as(x)

    def logits(self, model: nn.Module, inputs: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> Tensor:
        """What the model says where its pixels, or the embeddings of its tokens, are changed."""
        if self.pixels:
            return model(**(inputs | {self.pixels: change(inputs[self.pixels])})).logits
        hook = self.embeddings.register_forward_hook(lambda module, args, output: change(cast(Tensor, output)))
        try:
            return model(**inputs).logits
        finally:
            hook.remove()

    def losses(self, model, batch) -> dict[str, Tensor]:
        is_forget, labels = batch.is_forget, batch.labels.clone()
        index = batch.sample_index[is_forget]
        labels[is_forget] = self.answers[index]

        def replaced(x: Tensor) -> Tensor:
            there = self.is_read(batch.inputs, x) & is_forget.view(-1, *[1] * (x.ndim - 1))
            points = [self.points[i].to(x.dtype) for i in batch["rows"][batch["rows"] < len(self.points)]]
            return x.masked_scatter(there, torch.cat(points)) if points else x

        return {"loss": batch.mean(cross_entropy(self.logits(model, batch.inputs, replaced), labels))}
