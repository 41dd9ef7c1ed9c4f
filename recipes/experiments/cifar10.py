"""LoTUS beside its eight rivals, as in its paper and in small: a tenth of 20,000 images of CIFAR-10 forgotten, one seed.

    python recipes/experiments/cifar10.py [cifar10-resnet18] [cifar10-vit]     # about two hours of one core the first

Every method has the settings that the authors of LoTUS gave it (10 epochs of the ResNet-18, 3 of the ViT), and LoTUS its defaults here as
well. SCRUB and NegGrad+, which do not run as written there, run as their own papers have them, at that learning rate; SSD dampens
once. Images are flipped and shifted at random in every training, so that the ResNet-18 is 5 points better on what it has
seen, which is the paper's regime. Trainings are 15 epochs and not 150. Distances are to three retrained models with seeds of their
own. Models and rows are kept in the cache, and a later call goes on from there. The data comes from a package registry, see
`real_data.py`.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import closeness
import numpy as np
import torch
from study import record
from torch import Tensor
from torch.utils.data import Dataset

from hf_unlearn import UnlearningArguments, metrics, unlearn
from hf_unlearn.methods import MethodConfig, get_method
from hf_unlearn.methods.lotus import LotusConfig
from hf_unlearn.models import load_model

TRAINING = {"size": 20_000, "epochs": 15, "augment": True}
cases.CASES |= {
    "cifar10-resnet18": cases.Case(cases.images, cases.resnet18, rate=0.1, **TRAINING),
    "cifar10-vit": cases.Case(cases.images, cases.vit, rate=1e-3, sgd=False, **TRAINING),
}
REQUEST, SEED = "scattered", 0


class Augmented(Dataset):
    def __init__(self, columns: cases.Columns):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        pixels = cases.flipped_and_shifted(self.columns["pixel_values"][i : i + 1])[0]
        return {"pixel_values": pixels, "labels": self.columns["labels"][i]}


def methods(name: str) -> dict[str, MethodConfig]:
    """The settings of LoTUS's authors for all of them."""
    epochs, batch_size = (3, 32) if name == "cifar10-vit" else (10, 128)
    shared = {"num_train_epochs": epochs, "per_device_train_batch_size": batch_size, "lr_scheduler_type": "constant"}
    shared |= {"max_grad_norm": 0.0, "freeze_batchnorm": False, "decay": "all", "weight_decay": 5e-4}
    sgd = shared | {"learning_rate": 1e-3, "optim": "sgd", "optim_args": "momentum=0.9"}
    adam = shared | {"learning_rate": 1e-4, "optim": "adamw_torch", "weight_decay": 0.0}
    scrub = shared | {"learning_rate": 5e-4, "optim": "adamw_torch", "weight_decay": 0.1}

    def config(method: str, arguments: dict[str, Any], **settings: Any) -> MethodConfig:
        return get_method(method).config_class(arguments=arguments, **settings)

    return {
        "finetune": config("finetune", sgd),
        "neggrad_plus": config("neggrad_plus", sgd, objective="ce", until="end", beta=0.95),
        "random_label": config("random_label", sgd),
        "bad_teacher": config("bad_teacher", adam),
        "scrub": config("scrub", scrub, first="forget"),
        "ssd": config("ssd", {}, alpha=10.0, importance="batch"),
        "unsir": config("unsir", sgd | {"weight_decay": 0.0, "num_train_epochs": 2}, samples=256, retain_fraction=0.2),
        "salun": config("salun", sgd, density=0.1),
        "lotus (paper)": LotusConfig.paper("vit" if name == "cifar10-vit" else "resnet18-cifar10"),
        "lotus": LotusConfig(),
    }


def figures(said: dict[str, np.ndarray], retrained: list[dict[str, np.ndarray]], data: dict) -> dict[str, float]:
    """Of a model's probabilities, without augmentation, beside those of the retrained ones."""
    scores, labels = _scores(said, data), {split: data[split]["labels"].numpy() for split in closeness.SETS}
    p = {split: np.take_along_axis(said[split], labels[split][:, None], 1)[:, 0] for split in closeness.SETS}
    auc = metrics.matched_auc(p["forget"], labels["forget"], p["test"], labels["test"], bootstrap=200)
    return scores | {
        "auc": auc.auc,
        "jsd": float(np.mean([metrics.jsd(said["forget"], other["forget"]) for other in retrained])),
        "avg_gap": float(np.mean([metrics.avg_gap(scores, _scores(other, data)) for other in retrained])),
    }


def _scores(said: dict[str, np.ndarray], data: dict) -> dict[str, float]:
    sides = {"forget": "forget", "retain": "retain", "unseen": "test"}
    accuracy = {side: metrics.accuracy(said[of].argmax(-1), data[of]["labels"]) for side, of in sides.items()}
    entropy = [-(said[of] * np.log(said[of].clip(1e-12))).sum(-1) for of in ("retain", "test", "forget")]
    return {f"{side}_accuracy": value for side, value in accuracy.items()} | {"mia": metrics.mia(*entropy)}


def run(name: str, config: MethodConfig, data: dict, known: dict) -> dict[str, float]:
    case, before, since = cases.CASES[name], closeness.step_seconds(name, data), time.process_time()
    sets = {split: Augmented(data[split]) for split in ("forget", "retain")}
    with tempfile.TemporaryDirectory() as folder:
        args = UnlearningArguments(
            folder, seed=SEED, save_strategy="no", report_to="none", disable_tqdm=True, measure=False
        )
        about = {"unseen": closeness.Rows(data["unseen"]), "method": config, "args": args, "overlap": "allow"}
        result = unlearn(load_model(cases.model_of(name, SEED)), **sets, **about)
        seconds = time.process_time() - since
    steps = case.epochs * -(-case.size // case.batch_size)
    whole, said = steps * (before + closeness.step_seconds(name, data)) / 2, closeness.outputs(result.model, data)
    sides = said["forget"], data["forget"]["labels"], known["original"]["test"], data["test"]["labels"]
    return figures(said, known["retrained"], data) | {
        "rf_jsd": metrics.rf_jsd(*sides),
        "share": seconds / whole,
        "notes": result.trainer.method.notes,
    }


def study(name: str) -> dict[str, Any]:
    data = cases.parts(name, REQUEST, SEED)
    retrained = [cases.model_of(name, SEED, REQUEST, again) for again in range(cases.RETRAINED)]
    known: dict[str, Any] = {"original": closeness.outputs(load_model(cases.model_of(name, SEED)), data)}
    known["retrained"] = [closeness.outputs(load_model(folder), data) for folder in retrained]
    others = [[b for b in known["retrained"] if b is not a] for a in known["retrained"]]
    floors = [figures(a, b, data) for a, b in zip(known["retrained"], others, strict=True)]
    rows = {
        "original": figures(known["original"], known["retrained"], data),
        "retrained": {key: float(np.mean([row[key] for row in floors])) for key in floors[0]},
    }
    for row, config in methods(name).items():
        file = retrained[0].parent / f"{row}.json"
        rows[row] = kept(file, lambda config=config: run(name, config, data, known))
        print(name, row, {k: round(v, 3) for k, v in rows[row].items() if k != "notes"}, flush=True)
    return rows


def kept(file: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    if not file.exists():
        file.write_text(json.dumps(make(), indent=1))
    return json.loads(file.read_text())


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.nn.Conv2d._conv_forward = cases.convolve_small
    record("cifar10", {name: study(name) for name in sys.argv[1:] or ("cifar10-resnet18", "cifar10-vit")})
