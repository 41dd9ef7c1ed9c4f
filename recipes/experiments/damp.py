"""DAMP beside an edit of the head alone, SSD and retrained models, 3 seeds: one class, two classes, and the most confused one.

    python recipes/experiments/damp.py [cnn5 | resnet18 | vit | resnet18-digits | vit-digits | minilm] [--train] [--seeds 1] [--requests one]

CIFAR-10 (all 50,000 training images) with a CNN of five stages, a timm ResNet-18 and a small ViT; scikit-learn's digits with
that ResNet and that ViT, which know them better; 20 Newsgroups with all-MiniLM-L6-v2. On half of the test samples the original shows which
classes it confuses least, and which most; the other half is what is measured. Of the models that take longest only the least
confused class is retrained without. `confused` is the share of samples that are falsely taken for
a class, or falsely not, and `confused_own` the share of the class's own that are.

Models are trained once and kept in the cache of `real_data.py`; `--train` does no more than that. The 54 trainings take about
two hours and a half of one core.
"""

import argparse
import copy
import functools
import hashlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from real_data import cache_folder, cifar10, minilm, newsgroups
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from study import mean, record, std
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

from hf_unlearn import UnlearningArguments, UnlearningResult, unlearn
from hf_unlearn.data.digits import Samples, load_digits
from hf_unlearn.methods import MethodConfig
from hf_unlearn.surgery.damp import DampConfig, damp_probe
from hf_unlearn.surgery.ssd import SsdConfig

SEEDS = 3
READ, READ_BY_SSD = 3000, 1000  # training samples that an edit reads at most, of every class as many
MOST_CONFUSED = "most confused"
SLOW = "minilm"  # half of the samples of SSD and of those that are measured, and one class only
RETRAINED_ONCE = ("resnet18", "vit", "minilm")  # for one class alone
Columns = dict[str, Tensor]
Parts = dict[str, Columns]  # train and test


class Cnn5Config(PreTrainedConfig):
    model_type = "cnn5"


class Cnn5ForImageClassification(PreTrainedModel):
    """Five stages of convolution, BatchNorm and ReLU, 1 million parameters."""

    config_class = Cnn5Config
    main_input_name = "pixel_values"
    widths = (3, 32, 64, 128, 256, 256)

    def __init__(self, config: Cnn5Config):
        super().__init__(config)
        self.stages = nn.Sequential(*(self.stage(*of) for of in zip(self.widths, self.widths[1:], strict=False)))
        self.classifier = nn.Linear(self.widths[-1], config.num_labels)
        self.post_init()

    @staticmethod
    def stage(before: int, width: int) -> nn.Sequential:
        conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
        pool = nn.MaxPool2d(2) if width != before else nn.Identity()
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), pool)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        logits = self.classifier(self.stages(pixel_values).mean((2, 3)))
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def cnn5() -> PreTrainedModel:
    return Cnn5ForImageClassification(Cnn5Config(num_labels=10))


def resnet18() -> PreTrainedModel:
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=10))


def vit() -> PreTrainedModel:
    layers = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 256}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=10, **layers, **no_dropout))


def text_model() -> PreTrainedModel:
    """The embeddings are held: most of them would see no gradient."""
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=20)
    model.bert.embeddings.requires_grad_(False)
    return model


@functools.cache
def images() -> Parts:
    """Pixels as bytes, which are a quarter of the floats."""

    def columns(split: str) -> Columns:
        rows = cifar10()[split]
        pixels = np.stack([np.asarray(image) for image in rows["image"]]).transpose(0, 3, 1, 2)
        return {"pixel_values": torch.tensor(pixels), "labels": torch.tensor(rows["label"][:])}

    return {"train": columns("train"), "test": columns("test")}


@functools.cache
def texts() -> Parts:
    """A part of the texts, which stand sorted by class, cut to 48 tokens."""
    rng, tokenizer = np.random.default_rng(0), AutoTokenizer.from_pretrained(minilm())

    def columns(split: str, n: int) -> Columns:
        rows = newsgroups()[split]
        rows = rows.select(rng.permutation(len(rows))[:n])
        length = {"truncation": True, "padding": "max_length", "max_length": 48}
        inputs = tokenizer(rows["text"][:], return_tensors="pt", **length)
        inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        return inputs | {"labels": torch.tensor(rows["label"][:])}

    return {"train": columns("train", 4000), "test": columns("test", 4000)}


@functools.cache
def digits() -> Parts:
    """Those of scikit-learn at 32 px, with no label flipped."""
    parts = {name: samples.columns for name, samples in load_digits(flipped=0.0).items()}
    train = {key: torch.cat([column, parts["retain"][key]]) for key, column in parts["forget"].items()}
    return {"train": train, "test": parts["unseen"]}


@dataclass(frozen=True)
class Setup:
    """A model, its data and how it is trained. `samples`: of all epochs together."""

    make: Callable[[], PreTrainedModel]
    data: Callable[[], Parts]
    head: str  # the module that gives the logits
    optimizer: str
    samples: int
    batch: int
    rate: float
    decay: float
    bfloat16: bool


SETUPS = {
    "cnn5": Setup(cnn5, images, "classifier", "sgd", 160_000, 256, 0.2, 5e-4, True),
    "resnet18": Setup(resnet18, images, "timm_model.fc", "sgd", 125_000, 256, 0.1, 5e-4, True),
    "vit": Setup(vit, images, "classifier", "muon", 100_000, 128, 2e-3, 0.05, False),
    "resnet18-digits": Setup(resnet18, digits, "timm_model.fc", "sgd", 20_000, 64, 0.05, 5e-4, True),
    "vit-digits": Setup(vit, digits, "classifier", "muon", 40_000, 64, 2e-3, 0.05, False),
    "minilm": Setup(text_model, texts, "classifier", "adamw", 8_000, 32, 3e-4, 0.01, True),
}


def inputs(columns: Columns, rows: Any) -> Columns:
    """What the model reads of some rows; bytes become pixels between -1 and 1."""
    read = {key: column[rows] for key, column in columns.items() if key != "labels"}
    return {key: value / 127.5 - 1 if value.dtype == torch.uint8 else value for key, value in read.items()}


def fit(setup: Setup, columns: Columns, rows: np.ndarray, seed: int) -> PreTrainedModel:
    """Plain training on some rows: a rate that rises and falls linearly, half of the images flipped."""
    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), setup.make()
    model.train()
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    hidden = [w for name, w in weights.items() if w.ndim == 2 and not name.startswith(setup.head)]
    others = [w for name, w in weights.items() if w.ndim != 2 or name.startswith(setup.head)]
    if setup.optimizer == "sgd":
        optimizers = [torch.optim.SGD(weights.values(), momentum=0.9, nesterov=True, weight_decay=setup.decay)]
    elif setup.optimizer == "muon":
        optimizers = [
            torch.optim.Muon(hidden, weight_decay=setup.decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, weight_decay=0.0, fused=True),
        ]
    else:
        optimizers = [torch.optim.AdamW(weights.values(), weight_decay=setup.decay, fused=True)]
    steps = setup.samples // setup.batch
    epochs = [rng.permutation(rows) for _ in range(-(-setup.samples // len(rows)))]
    for step, chosen in enumerate(np.array_split(np.concatenate(epochs)[: steps * setup.batch], steps)):
        done = (step + 0.5) / steps
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = setup.rate * min(done / 0.2, (1 - done) / 0.8)
        read = inputs(columns, chosen)
        if setup.data is images:
            flipped = torch.rand(len(chosen), 1, 1, 1) < 0.5
            read["pixel_values"] = torch.where(flipped, read["pixel_values"].flip(3), read["pixel_values"])
        with torch.autocast("cpu", torch.bfloat16, enabled=setup.bfloat16):
            logits = model(**read).logits
        F.cross_entropy(logits.float(), columns["labels"][chosen]).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    return model.eval()


def trained(name: str, seed: int, without: tuple[int, ...] = ()) -> PreTrainedModel:
    """The model of a seed, trained without some classes; the kept one where there is one with these settings."""
    setup = SETUPS[name]
    train, settings = setup.data()["train"], [v for v in asdict(setup).values() if not callable(v)]
    shapes = [list(column.shape) for column in train.values()]
    weights = sum(w.numel() for w in setup.make().parameters())
    mark = hashlib.sha256(json.dumps([settings, shapes, weights]).encode()).hexdigest()[:8]
    removed = "-".join(map(str, without)) or "none"
    folder = cache_folder() / "trained" / f"damp-{name}-seed{seed}-without-{removed}-{mark}"
    if (folder / "training.json").exists():
        return type(setup.make()).from_pretrained(folder).eval()
    since = time.process_time()
    rows = np.flatnonzero(~np.isin(train["labels"].numpy(), without))
    model = fit(setup, train, rows, seed + (100 if without else 0))
    seconds = time.process_time() - since
    model.save_pretrained(folder)
    about = {"settings": settings, "seed": seed, "without": without, "samples": len(rows), "seconds": seconds}
    (folder / "training.json").write_text(json.dumps(about, indent=1) + "\n")
    accuracy = (outputs(setup, model, setup.data()["test"])[0].argmax(1) == setup.data()["test"]["labels"]).float()
    print(name, seed, without, f"{seconds:.0f} s, accuracy {accuracy.mean():.4f}", flush=True)
    return model


@torch.no_grad()
def outputs(setup: Setup, model: PreTrainedModel, columns: Columns) -> tuple[Tensor, Tensor]:
    """Logits, and what the head reads for them."""
    features: list[Tensor] = []
    hook = model.get_submodule(setup.head).register_forward_pre_hook(lambda _, read: features.append(read[0]))
    every = torch.arange(len(columns["labels"])).split(250)
    logits = torch.cat([model(**inputs(columns, rows)).logits for rows in every])
    hook.remove()
    return logits, torch.cat(features)


def halves(columns: Columns, seed: int) -> list[Columns]:
    """Two halves of the test samples: one to choose classes on, one to measure."""
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(columns["labels"])))
    return [{key: column[rows] for key, column in columns.items()} for rows in order.chunk(2)]


def confused(predicted: Tensor, labels: Tensor, label: int) -> float:
    """The share of samples that are falsely taken for a class, or falsely not."""
    return ((predicted == label) != (labels == label)).double().mean().item()


def requests(name: str, seed: int) -> dict[str, tuple[int, ...]]:
    """The class that the original confuses least, the two such, and the one that it confuses most."""
    setup = SETUPS[name]
    chosen_on, _ = halves(setup.data()["test"], seed)
    predicted = outputs(setup, trained(name, seed), chosen_on)[0].argmax(1)
    classes = range(int(chosen_on["labels"].max()) + 1)
    order = sorted(classes, key=lambda label: confused(predicted, chosen_on["labels"], label))
    one = {"one": (order[0],)}
    return one if name == SLOW else one | {"two": tuple(sorted(order[:2])), MOST_CONFUSED: (order[-1],)}


def is_retrained(name: str, request: str) -> bool:
    return request == "one" or name not in RETRAINED_ONCE


def some(columns: Columns, labels: list[int], each: int) -> Samples:
    """So many samples of every class, processed."""
    rows = torch.cat([torch.nonzero(columns["labels"] == label)[:each, 0] for label in labels])
    return Samples(**inputs(columns, rows), labels=columns["labels"][rows])


def edited(model: PreTrainedModel, method: MethodConfig, parts: dict[str, Samples], seed: int) -> UnlearningResult:
    with tempfile.TemporaryDirectory() as folder:
        more = {"per_device_train_batch_size": 100, "save_strategy": "no", "disable_tqdm": True}
        args = UnlearningArguments(folder, seed=seed, measure=False, **more)
        return unlearn(copy.deepcopy(model), **parts, method=method, args=args, overlap="allow")


def rdm(features: Tensor, labels: Tensor) -> Tensor:
    """1 - Pearson correlation of the means of every two classes, as one row."""
    means = torch.stack([features[labels == label].double().mean(0) for label in labels.unique()])
    return 1 - torch.corrcoef(means)[*torch.triu_indices(len(means), len(means), 1)]


def figures(setup: Setup, model: PreTrainedModel, known: Samples, unseen: Columns, classes: tuple[int, ...]):
    """Accuracies, those of a new probe and of a new head on what the head reads, and the RDM of that."""
    (logits, features), (known_logits, known_features) = (outputs(setup, model, c) for c in (unseen, known.columns))
    labels, known_labels = unseen["labels"], known.columns["labels"]
    gone, known_gone = (torch.isin(y, torch.tensor(classes)) for y in (labels, known_labels))
    right, known_right = ((z.argmax(1) == y).double() for z, y in ((logits, labels), (known_logits, known_labels)))
    scaler = StandardScaler().fit(known_features)
    x, known_x = scaler.transform(features), scaler.transform(known_features)
    probe = RidgeClassifier(alpha=10, class_weight="balanced").fit(known_x, known_gone)
    new_head = RidgeClassifier(alpha=10).fit(known_x, known_labels)
    found = {
        "forget_train": known_right[known_gone].mean().item(),
        "forget_unseen": right[gone].mean().item(),
        "retained": right[~gone].mean().item(),
        "probe": float(balanced_accuracy_score(gone, probe.predict(x))),
        "new_head_forget": float((new_head.predict(x) == labels.numpy())[gone].mean()),
        "new_head_retained": float((new_head.predict(x) == labels.numpy())[~gone].mean()),
    }
    return found, rdm(features, labels)


def facts(report: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping of the report of an edit."""
    keys = ("stage", "operators", "span", "probe_accuracy", "alpha", "rank", "relative_residual")
    given = [c for classes in report["head"].values() for c, about in classes.items() if about["still_given"]]
    return {
        "stages": [{key: row[key] for key in keys} for row in report["readings"]],
        "head_still_gives": given,
        "still_read": report["still_read"],
        "left": report["left"],
        "notes": report["notes"],
    }


def batches(samples: Samples) -> list[Columns]:
    rows = torch.arange(len(samples)).split(100)
    return [{key: column[chosen] for key, column in samples.columns.items()} for chosen in rows]


def one_request(
    name: str, seed: int, request: str, classes: tuple[int, ...]
) -> tuple[dict[str, dict], dict[str, Any]]:
    """Figures of the original, the retrained model and every edit, and what the edits did."""
    setup, original = SETUPS[name], trained(name, seed)
    train, (_, unseen) = setup.data()["train"], halves(setup.data()["test"], seed)
    every = sorted(set(train["labels"].tolist()))
    less = 2 if name == SLOW else 1
    unseen = {key: column[: len(column) // less] for key, column in unseen.items()}
    known, others = some(train, every, READ // less // len(every)), [label for label in every if label not in classes]
    head_alone = DampConfig(stages=[[setup.head]])
    ssd = SsdConfig()
    methods = {"damp": DampConfig(), "damp (paper)": DampConfig.paper(), "head alone": head_alone, "ssd": ssd}
    if setup.make is not vit and name != SLOW:
        methods["damp, channels"] = DampConfig(conv="channel")
    if request == "two":
        methods["damp, α 1 everywhere"] = DampConfig(alpha=1.0)

    rows, abouts, rdms = {}, {"seed": seed, "classes": classes}, {}
    rows["original"], rdms["original"] = figures(setup, original, known, unseen, classes)
    predicted = outputs(setup, original, unseen)[0].argmax(1)
    abouts["confused"] = [confused(predicted, unseen["labels"], label) for label in classes]
    abouts["confused_own"] = [
        (predicted != label)[unseen["labels"] == label].double().mean().item() for label in classes
    ]
    if is_retrained(name, request):
        retrained = trained(name, seed, classes)
        rows["retrained"], rdms["retrained"] = figures(setup, retrained, known, unseen, classes)
        sides = (some(train, list(side), READ // len(every)) for side in (classes, others))
        abouts["retrained"] = {"still_read": damp_probe(retrained, *map(batches, sides), seed=seed)}
    for row, method in methods.items():
        each = (READ_BY_SSD // less if method is ssd else READ) // len(every)
        parts = {"forget": some(train, list(classes), each), "retain": some(train, others, each)}
        result = edited(original, method, parts, seed)
        rows[row], rdms[row] = figures(setup, result.model, known, unseen, classes)
        rows[row]["seconds"] = result.runtime["unlearn"]
        report = result.trainer.method.report
        abouts[row] = {"share": report["share"]} if method is ssd else facts(report)
    for row, figure in rows.items():
        pair = [rdms[row], rdms["retrained"]] if "retrained" in rdms else None
        figure["rdm"] = torch.corrcoef(torch.stack(pair))[0, 1].item() if pair else None
        print(
            name, seed, request, classes, row, {k: round(v, 3) for k, v in figure.items() if v is not None}, flush=True
        )
    return rows, abouts


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(SETUPS)}; all of them if none")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--requests", nargs="+", choices=("one", "two", MOST_CONFUSED))
    given = parser.parse_args()
    names = given.names or list(SETUPS)
    assert not (unknown := set(names) - set(SETUPS)), f"there is no {unknown}"

    def asked(name: str, seed: int) -> list[tuple[str, tuple[int, ...]]]:
        return [pair for pair in requests(name, seed).items() if pair[0] in (given.requests or pair)]

    if given.train:
        for seed, name in itertools.product(range(given.seeds), names):
            for request, classes in asked(name, seed):
                if is_retrained(name, request):
                    trained(name, seed, classes)
        sys.exit()
    for name in names:
        results: dict[str, Any] = {}
        for seed in range(given.seeds):
            for request, classes in asked(name, seed):
                found, about = one_request(name, seed, request, classes)
                kept = results.setdefault(request, {"edits": [], "rows": {}})
                kept["edits"].append(about)
                for row, values in found.items():
                    kept["rows"].setdefault(row, []).append(values)
        for kept in results.values():
            kept["rows"] = {row: {"mean": mean(v), "std": std(v), "runs": v} for row, v in kept["rows"].items()}
        record(f"damp-{name}", results)
