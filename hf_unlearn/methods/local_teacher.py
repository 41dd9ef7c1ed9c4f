"""Local Teacher Distillation: what a model that only knows the retained neighbours says of the forget samples (2026)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast
from torch import Tensor, nn

from .. import models
from ..data.batches import Batch
from ..data.samples import seeded
from ..models.adapters import tuner_layers
from ..models.small import PatchNet
from ..tasks.losses import cross_entropy
from .base import Method, MethodConfig, MethodInfo, Paper
from .neighbours import Neighbours, centres, plateau
from .teachers import check_teacher, fit, new_optimizer, new_teacher, readable

SCATTERED = 0.8  # below: how often a forget sample is nearer to the centroid than a retained one is
SWEEP = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5.5)  # sizes of the support that k="auto" tries, in halves of the default
KNOWN = 0.95  # an accuracy of the teacher on the forget samples that has to be explained
ROWS_AT_ONCE = 256  # forget samples in one pass of a teacher
HELD = 2**28  # bytes of a support that is read once
FEW = 64  # forget samples, up to which their neighbours are too few for a network of convolutions


def similarity(features: Tensor, forget_features: Tensor) -> Tensor:
    """s(x, D_f), the cosine of each feature row h to the forget centroid: ⟨h/‖h‖, u/‖u‖⟩ with u = Σ_{D_f} h."""
    u = forget_features.sum(dim=0)
    return F.normalize(features, dim=1) @ F.normalize(u, dim=0)


def forget_nearer(forget: np.ndarray, others: np.ndarray) -> float:
    """How often a forget sample is nearer to the centroid than another one: 1/2 where the centroid says nothing.

    >>> forget_nearer(np.array([0.9, 0.4]), np.array([0.5, 0.3]))
    0.75
    """
    return float(np.searchsorted(np.sort(others), forget).mean() / len(others))


def truncate_targets(probabilities: Tensor, top: int = 3) -> Tensor:
    """ŷ: the `top` largest entries of each row, divided by their sum; the others are 0.

    >>> truncate_targets(torch.tensor([[0.4, 0.1, 0.2, 0.2]]), top=1)
    tensor([[1., 0., 0., 0.]])
    """
    kept = probabilities.topk(min(top, probabilities.shape[-1]), dim=-1)
    y = torch.zeros_like(probabilities).scatter(-1, kept.indices, kept.values)
    return y / y.sum(dim=-1, keepdim=True)


def distillation_loss(student: Tensor, targets: Tensor, labels: Tensor, is_forget: Tensor, beta: float) -> Tensor:
    """CE(onehot(y), f(x)) of retained samples, β·CE(ŷ, f(x)) of forget samples; from the student's logits."""
    log_q = student.to(torch.promote_types(student.dtype, torch.float32)).log_softmax(dim=-1)
    soft = -(targets.to(log_q.dtype) * log_q).sum(dim=-1)
    return torch.where(is_forget, beta * soft, cross_entropy(student, labels))


@dataclass
class LocalTeacherConfig(MethodConfig):
    """Local Teacher Distillation. Similarities but `centroid`, and teachers of patches and pretrained ones, are ours."""

    method = "local_teacher"

    k: int | Literal["auto"] | None = field(
        default=None,
        metadata={
            "help": "size of the support; auto: where the answers of teachers change least (24 teachers are trained); "
            "default: twice the training samples of a forget class; without a centroid 4 for each forget sample, and at most "
            "twice the training samples of all forget classes"
        },
    )
    similarity: Literal["auto", "centroid", "per_example", "cluster"] = field(
        default="auto",
        metadata={
            "help": "support near the forget set's centroid, near each of its samples, or near the centres of its clusters; "
            "auto: the centroid, or each sample where they are of several classes or scattered; never the clusters"
        },
    )
    clusters: int = field(default=8, metadata={"help": "number of clusters"})
    top: int = field(default=3, metadata={"help": "classes that are kept of a teacher's answer"})
    temperature: float = field(default=1.0, metadata={"help": "temperature T of the teacher's answer"})
    forget_weight: float = field(default=2.0, metadata={"help": "weight β of the forget samples"})
    retain_per_forget: float | None = field(
        default=None,
        metadata={
            "help": "retained samples that an epoch reads for each forget sample: of the support up to half of them, the others drawn "
            "once from all (ours); cheaper, and 8 of them left the class worse off in one of three runs; default: all retained samples"
        },
    )
    frozen: float = field(
        default=0.5,
        metadata={
            "help": "share of the model's layers, the first ones, that stay as they are (ours); not of a model that comes with "
            "an adapter"
        },
    )
    until: Literal["teacher", "end"] = field(
        default="teacher",
        metadata={
            "help": "teacher: end with the epoch in which no more forget samples are right than the teacher has right (ours); end: "
            "all epochs"
        },
    )
    teacher: str = field(
        default="auto",
        metadata={
            "help": "from scratch: transformer for texts, resnet8 for images, or patches, a linear model of whitened patches "
            f"(ours); auto: by the data, and of images patches for up to {FEW} forget samples, resnet8 for more; or a public checkpoint "
            "that has never seen the forget samples: a Hub id or a folder (ours)"
        },
    )
    teacher_pixels: int = field(
        default=16,
        metadata={
            "help": "the size of the images that resnet8 and patches read; larger ones are averaged down to it, or to less than twice (ours)"
        },
    )
    teacher_accuracy: float = field(default=0.99, metadata={"help": "accuracy on the support that ends its training"})
    teacher_epochs: int = field(default=250, metadata={"help": "epochs of its training at most"})
    teacher_optim: Literal["auto", "sgd", "adamw"] = field(
        default="auto", metadata={"help": "its optimizer; auto: adamw for transformers, sgd with momentum for others"}
    )
    teacher_lr: float | None = field(
        default=None,
        metadata={
            "help": "its learning rate, a tenth of it in the last fifth of the epochs; default 0.05, or 0.05/width of a "
            "transformer"
        },
    )
    teacher_decay: float = field(default=1e-4, metadata={"help": "its weight decay"})
    teacher_batch: int = field(default=64, metadata={"help": "its batch size"})

    def __post_init__(self):
        super().__post_init__()
        self.check("k", self.k in (None, "auto") or self.k >= 1, 'at least 1, "auto" or None')
        self.check("clusters", self.clusters >= 1, "at least 1")
        self.check("top", self.top >= 1, "at least 1")
        self.check("temperature", self.temperature > 0, "a positive temperature")
        self.check("forget_weight", self.forget_weight >= 0, "a weight of 0 or more")
        share = self.retain_per_forget
        self.check("retain_per_forget", share is None or share > 0, "a positive number, or None")
        self.check("frozen", 0 <= self.frozen < 1, "a share in [0, 1)")
        self.check("teacher_pixels", self.teacher_pixels >= 8, "8 or more")
        self.check("teacher_accuracy", 0 < self.teacher_accuracy <= 1, "an accuracy in (0, 1]")
        self.check("teacher_epochs", self.teacher_epochs >= 1, "at least 1")
        self.check("teacher_lr", self.teacher_lr is None or self.teacher_lr > 0, "a positive number, or None")
        self.check("teacher_decay", self.teacher_decay >= 0, "0 or more")
        self.check("teacher_batch", self.teacher_batch >= 1, "at least 1")

    @classmethod
    def paper(cls) -> "LocalTeacherConfig":
        """ResNet-56 on CIFAR-100, half of a class forgotten. Weight decay is on all weights, biases and norms too."""
        arguments = {"learning_rate": 1e-4, "num_train_epochs": 20, "per_device_train_batch_size": 256}
        arguments |= {"optim": "adamw_torch", "weight_decay": 1e-6, "lr_scheduler_type": "constant"}
        arguments |= {"max_grad_norm": 0.0, "freeze_batchnorm": False, "decay": "all"}
        teacher = {"teacher": "resnet8", "teacher_optim": "sgd", "teacher_lr": 0.2, "teacher_batch": 256}
        return cls(
            k=1000, similarity="centroid", frozen=0.0, until="end", teacher_pixels=32, **teacher, arguments=arguments
        )


class LocalTeacher(Method):
    """Embed D_f ∪ D_r with the original; S_k = the k retained samples nearest to D_f; train a small teacher g on S_k from
    scratch; minimise Σ_{D_r} CE(y, f(x)) + β·Σ_{D_f} CE(ŷ, f(x)) over both sets shuffled together, where ŷ are the
    three largest probabilities of g(x), renormalised. The sums are divided by the size of the batch.

    The teacher sees raw inputs, never the original's features: those know the forget samples, and so would it.
    """

    info = MethodInfo(
        name="local_teacher",
        kind="loss",
        summary="gives forget samples the labels of a small model that was trained on their retained neighbours alone",
        needs=("forget", "retain"),
        cost=6,
        paper=Paper(
            title="Forgetting Has Neighbors: Localized Collateral Forgetting in Machine Unlearning",
            arxiv="2605.31317",
            bibtex="@misc{dolgova2026forgetting,\n  title={Forgetting Has Neighbors: Localized Collateral Forgetting in "
            "Machine Unlearning},\n  author={Dolgova, Polina and Stich, Sebastian U.},\n  eprint={2605.31317},\n  "
            "archivePrefix={arXiv},\n  year={2026}\n}",
        ),
    )
    config_class = LocalTeacherConfig
    config: LocalTeacherConfig
    takes_teacher = True

    def arguments(self, family: str, width: int = 768) -> dict[str, Any]:
        return {
            "learning_rate": 1e-3 if family == "convolutional" else 0.1 / width,
            "num_train_epochs": 10,
            "per_device_train_batch_size": 64,
            "weight_decay": 1e-6,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "freeze_batchnorm": True,
        }

    def trained_modules(self, model: nn.Module) -> list[str] | None:
        self.held: set[str] = set()  # names of what is trained but for `frozen`
        if not self.config.frozen or tuner_layers(model):
            return None
        owned = {name: dict(layer.named_parameters(name, recurse=False)) for name, layer in model.named_modules()}
        layers = [name for name, parameters in owned.items() if parameters]
        first = math.floor(self.config.frozen * len(layers))
        self.held = {n for layer in layers[:first] for n, p in owned[layer].items() if p.requires_grad}
        return layers[first:]

    def retained_share(self, n_forget: int, n_retain: int) -> float:
        most = self.config.retain_per_forget
        return 1.0 if most is None else min(1.0, math.ceil(most * n_forget) / n_retain)

    def epochs(self, epochs: int) -> list[str]:
        return ["mixed"] * epochs

    def prepare(self, context) -> None:
        self.context, self.kept = context, None  # of each forget sample the `top` largest of ŷ, and their classes
        ranked, half = self.neighbours()
        k = self.stable_k(ranked, half) if self.config.k == "auto" else self.config.k or 2 * half
        self.support = support = ranked[:k]
        self.choose_retained()
        self.teacher, reached = self.trained_teacher(support)
        classes, (known, _) = len(np.unique(self.labels[support])), self.answers([self.teacher])
        self.facts |= {"k": len(support), "lowest_similarity": float(self.s[support].min()), "classes": classes}
        self.facts |= {"teacher_accuracy": reached, "teacher_forget_accuracy": known}
        if classes < min(3, context.num_labels):
            self.note(
                f"the {len(support)} neighbours are of {classes} class(es) only; expected three, from a larger k"
            )
        many = context.schedule.n_forget > 10  # fewer may well be all right, or all wrong
        if many and known == 0 and not context.is_class_request:
            self.note("the teacher is right on no forget samples; try another k")
        if many and known >= KNOWN:
            self.note(
                f"the teacher is right on {100 * known:.0f} % of the forget samples: they are easy, their neighbours are of "
                "their class alone (try another k), or the teacher has seen them before (a leak)"
            )
        if self.shares_frozen:
            self.note(
                "the teacher has weights that are frozen in the original; they must never have seen the forget samples"
            )
        if reached < self.config.teacher_accuracy:
            self.note(f"the teacher's accuracy on its support ended at {reached:.3f}; try more teacher_epochs")

    def choose_retained(self) -> None:
        """What an epoch reads of the retained samples: of the support at most half of it, and others from all the rest."""
        schedule = self.context.schedule
        count = len(schedule.retain_subset)
        if count == len(self.s):
            return
        near = self.support[: math.ceil(count / 2)]
        others = np.setdiff1d(np.arange(len(self.s)), near)
        drawn = np.random.default_rng([self.context.seed, 6]).choice(others, count - len(near), replace=False)
        schedule.read_only(np.concatenate([near, drawn]))

    def on_epoch_begin(self, epoch: int) -> bool | None:
        if epoch == 0 or self.config.until == "end":
            return None
        return self.context.accuracy("forget") > self.facts["teacher_forget_accuracy"]

    def note(self, text: str) -> None:
        self.notes.append(f"local_teacher: {text}.")

    def neighbours(self) -> tuple[np.ndarray, int]:
        """The retained samples that are nearest to the forget set, the nearest first; and half of the default k."""
        config, features = self.config, self.context.features
        _, forget_labels, forget = zip(*features("forget"), strict=True)
        forget, classes = torch.cat(forget), np.unique(np.concatenate(forget_labels))
        u, kind = forget.sum(dim=0, keepdim=True), config.similarity
        if kind == "auto":
            kind = "centroid" if len(classes) == 1 else "per_example"
        points = centres(forget, config.clusters, self.context.seed) if kind == "cluster" else forget
        # Points share neighbours: lists eight times as long as they would have to be otherwise mostly hold enough of them.
        most = self.wanted(2 * len(forget))
        lists = Neighbours(points, min(most, math.ceil(8 * most / len(points))))
        parts = []
        for indices, labels, h in features("retain"):
            parts.append((indices, labels, similarity(h, u).cpu().numpy()))
            if kind != "centroid":
                lists.add(indices, h)
        indices, labels, s = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(indices)
        self.labels, self.s = labels[order], s[order]
        nearer = forget_nearer(similarity(forget, u).cpu().numpy(), s)
        if config.similarity == "auto" and nearer < SCATTERED:
            kind = "per_example"
        self.facts = {"similarity": kind, "forget_nearer": nearer}
        if kind == "centroid" or config.similarity == "auto":
            self.explain(kind, len(classes), nearer)
        of_classes = int(np.isin(labels, classes).sum()) + len(forget)
        half = math.ceil(of_classes / len(classes)) if kind == "centroid" else min(2 * len(forget), of_classes)
        most = min(self.wanted(half), len(s))
        if kind == "centroid":
            nearest = np.argpartition(-self.s, most - 1)[:most]
            return nearest[np.argsort(-self.s[nearest], kind="stable")], half
        while len(found := lists.nearest(most)) < most:
            lists = Neighbours(points, min(most, 4 * lists.length))
            for indices, _, h in features("retain"):
                lists.add(indices, h)
        return found, half

    def wanted(self, half: int) -> int:
        """How many neighbours are needed at most."""
        return math.ceil(SWEEP[-1] * half) if self.config.k == "auto" else self.config.k or 2 * half

    def explain(self, kind: str, classes: int, nearer: float) -> None:
        """Say why the support is not chosen by the centroid, or should not be."""
        advice = "; expected similarity=per_example" if kind == "centroid" else ""
        if nearer < SCATTERED:
            found = f"a forget sample is nearer to the centroid of them all than a retained one in only {100 * nearer:.0f} %"
            self.note(f"{found} of pairs, which is scattered, and the support is chosen by {kind}{advice}")
        elif classes > 1:
            self.note(
                f"the forget samples are of {classes} classes, each with neighbours of its own, and the support is chosen by "
                f"{kind}{advice}"
            )

    def stable_k(self, ranked: np.ndarray, half: int) -> int:
        """Without a retrained model: where the answers of three teachers together change least from one k to the next.

        With too small a k they change little too, because the support is of the forget class and so is every answer: sizes
        whose teachers are right on `KNOWN` of the forget samples are not chosen.
        """
        curve = []
        for k in sorted({min(len(ranked), math.ceil(share * half)) for share in SWEEP}):
            accuracy, histogram = self.answers([self.trained_teacher(ranked[:k], seed)[0] for seed in range(3)])
            classes = len(np.unique(self.labels[ranked[:k]]))
            curve.append({"k": k, "accuracy": accuracy, "classes": classes, "histogram": histogram.tolist()})
        self.facts["curve"] = curve
        least, wanted = -1 if self.context.is_class_request else 0, min(3, self.context.num_labels)
        usable = [row["classes"] >= wanted and least < row["accuracy"] < KNOWN for row in curve]
        histograms = [np.array(row["histogram"]) for row in curve]
        k = plateau([row["k"] for row in curve], histograms, usable)
        if k is None:
            self.note(
                f"k=auto found no size with smaller and larger ones beside it, neighbours of {wanted} classes, and teachers that are "
                f"right on some forget samples and on less than {100 * KNOWN:.0f} %; k is the default, {min(2 * half, len(ranked))}"
            )
        return k or 2 * half

    def trained_teacher(self, support: np.ndarray, seed: int = 0) -> tuple[nn.Module, float]:
        """A teacher that has learned the support, the same on every process, and its accuracy there."""
        config, context = self.config, self.context
        samples = [("retain", int(index)) for index in np.sort(support)]
        first = context.batch(samples[:2])
        size = sum(x.nbytes for x in first.values()) * len(samples) / len(first.labels)
        # A stream is read from its beginning every time.
        held = context.is_deterministic and (size <= HELD or context.schedule.retain_is_stream)
        whole = context.batch(samples) if held else None

        def batches(epoch: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
            order = np.random.default_rng([context.seed, 4, seed, epoch]).permutation(len(samples))
            for rows in np.array_split(order, math.ceil(len(order) / config.teacher_batch)):
                if whole is not None:
                    batch = Batch({key: value[rows] for key, value in whole.items()})
                else:
                    batch = context.batch([samples[row] for row in rows], None if context.is_deterministic else epoch)
                yield readable(teacher, batch.inputs), batch.labels

        with seeded(context.seed, 4, seed):
            given = config.teacher if context.given_teacher is None else context.given_teacher
            small = context.schedule.n_forget <= FEW
            teacher = new_teacher(given, context.model, context.task, config.teacher_pixels, small)
            teacher.to(models.pretrained(context.model).device).requires_grad_(True)
            teacher.to(torch.promote_types(next(context.model.parameters()).dtype, torch.float32))
            inputs = readable(teacher, first.inputs)
            self.shares_frozen = check_teacher(teacher, context.model, inputs, context.num_labels, self.held)
            if isinstance(teacher, PatchNet):
                drawn = np.random.default_rng([context.seed, 7, seed]).permutation(len(samples))[:ROWS_AT_ONCE]
                some = context.batch([samples[row] for row in np.sort(drawn)])
                teacher.learn_patches(readable(teacher, some.inputs)["pixel_values"])
                if whole is not None:
                    images = readable(teacher, whole.inputs)["pixel_values"].split(ROWS_AT_ONCE)
                    whole = Batch({"features": torch.cat([*map(teacher.features, images)]), "labels": whole.labels})
            optimizer = new_optimizer(teacher, config.teacher_optim, config.teacher_lr, config.teacher_decay)
            reached = fit(teacher, batches, optimizer, config.teacher_epochs, config.teacher_accuracy)
        for tensor in teacher.state_dict().values():
            tensor.copy_(broadcast(tensor))
        return teacher.eval().requires_grad_(False), reached

    def probabilities(self, teacher: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """p = softmax(g(x)/T)."""
        with torch.no_grad():
            return (teacher(**readable(teacher, inputs)).logits / self.config.temperature).softmax(dim=-1)

    def said(self, teachers: list[nn.Module]) -> Iterator[tuple[Tensor, Tensor]]:
        """The probabilities of some teachers together, and the labels, of D_f."""
        forget = [("forget", index) for index in range(self.context.schedule.n_forget)]
        for start in range(0, len(forget), ROWS_AT_ONCE):
            batch = self.context.batch(forget[start : start + ROWS_AT_ONCE])
            yield cast(Tensor, sum(self.probabilities(teacher, batch.inputs) for teacher in teachers)), batch.labels

    def answers(self, teachers: list[nn.Module]) -> tuple[float, np.ndarray]:
        """The accuracy on D_f of some teachers together, and the share of each class in their answers."""
        right, histogram = 0, np.zeros(self.context.num_labels)
        for together, labels in self.said(teachers):
            answer = together.argmax(dim=-1)
            right += (answer == labels).sum().item()
            histogram += answer.bincount(minlength=len(histogram)).cpu().numpy()
        return right / self.context.schedule.n_forget, histogram / self.context.schedule.n_forget

    def targets(self, batch: Batch) -> Tensor:
        """ŷ of forget samples: kept where training always reads them the same, and of what it reads now otherwise."""
        if not self.context.is_deterministic:
            return truncate_targets(self.probabilities(self.teacher, batch.inputs), self.config.top)
        if self.kept is None:
            parts = [truncate_targets(p, self.config.top) for p, _ in self.said([self.teacher])]
            self.kept = torch.cat([torch.cat(y.topk(min(self.config.top, y.shape[-1])), dim=-1) for y in parts])
        values, classes = self.kept[batch.sample_index].chunk(2, dim=-1)
        return values.new_zeros(len(values), self.context.num_labels).scatter(-1, classes.long(), values)

    def losses(self, model, batch) -> dict[str, Tensor]:
        student = model(**batch.inputs).logits
        targets = torch.zeros_like(student)
        places = np.flatnonzero(batch["rows"] < self.context.schedule.n_forget)
        if len(places):
            forget = torch.from_numpy(places).to(student.device)
            y = self.targets(Batch({key: value[forget] for key, value in batch.items() if isinstance(value, Tensor)}))
            targets = targets.to(y.dtype).index_copy(0, forget, y)
        beta = self.config.forget_weight
        return {"loss": batch.mean(distillation_loss(student, targets, batch.labels, batch.is_forget, beta))}

    @property
    def report(self) -> dict[str, Any]:
        return self.facts

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.clone().contiguous() for name, tensor in self.teacher.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.teacher.load_state_dict(state)
        self.kept = None
