"""Multi-task unlearning on a toy, on CIFAR-10, on drawn scenes and on 20 Newsgroups, beside models retrained without the labels.

    python recipes/experiments/multitask.py [toy | cifar10 | scenes | newsgroups] [--seeds 3]

- toy: three noisy labels of points in twenty dimensions, a perceptron of the user's own, 600 points
- cifar10: the class of an image, whether it is a vehicle, and how it was turned, a small timm ResNet, 10,000 images
- scenes: what each pixel of a drawn scene is made of, how far it is and where it faces, a small ViT, 600 pictures
- newsgroups: the group of a text, its first-level group and whether it is long, all-MiniLM-L6-v2 in a LoRA adapter

A tenth of the instances is forgotten, on the first task alone (partial), and but for the newsgroups on all of them too (full).
Beside the method: neither of its two parts, which is NegGrad+, with the same bounded objective and with the cross-entropy, and
on the toy each part alone. Models with heads are kept in the cache folder: take them away
after a change of data or training. `share` is processor time over that of training the original, when that was.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig
from real_data import cache_folder
from study import mean, record, std
from torch import nn
from torch.utils.data import ConcatDataset
from transformers import (
    AutoTokenizer,
    TimmWrapperConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    set_seed,
)

from hf_unlearn import UnlearningArguments, unlearn
from hf_unlearn.data.digits import Samples
from hf_unlearn.methods import MethodConfig, Multitask, MultitaskConfig, RewindConfig
from hf_unlearn.models.multitask import MultiTaskModel, MultiTaskModelConfig
from hf_unlearn.tasks.several import Tasks

NEITHER = {"samples": 0, "energy": 0.0}
VARIANTS = {
    "multitask": MultitaskConfig(),
    "task part alone": MultitaskConfig(samples=0),
    "instance part alone": MultitaskConfig(energy=0.0),
    "neither (NegGrad+)": MultitaskConfig(**NEITHER),
    "neither, cross-entropy": MultitaskConfig(**NEITHER, objective="ce"),
}


def cheap(refresh: int) -> dict[str, MethodConfig]:
    """Of models with heads: what costs a fraction of their training."""
    return {
        "multitask": MultitaskConfig(batches=8, refresh=refresh, samples=2),
        "neither (NegGrad+)": MultitaskConfig(**NEITHER, refresh=refresh),
        "neither, cross-entropy": MultitaskConfig(**NEITHER, refresh=refresh, objective="ce"),
    }


Parts = dict[str, Samples]


class Clock(TrainerCallback):
    """Processor time of the steps."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.since = time.process_time()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.process_time() - self.since


def task_study(
    data: Callable[[int], Parts],
    fit: Callable[[list[Samples], int, str], tuple[nn.Module, float]],
    tasks: list[str],
    targets: list[str],
    own_losses: Callable | None = None,
    seeds: range = range(3),
    variants: dict[str, MethodConfig] = VARIANTS,
    steps: dict[str, int] | None = None,
    peft_config: Any = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Figures of the original, of a model retrained without the targets' labels of the forget samples, of a second one
    with another seed (the floor), and of every variant. `fit` gives a model and the seconds of its training."""
    runs: dict[str, list[dict]] = {}
    for seed in seeds:
        parts = data(seed)
        known = parts["forget"].columns
        missing = {t: float("nan") if known[t].is_floating_point() else -100 for t in targets}
        without = Samples(**known | {t: torch.full_like(known[t], blank) for t, blank in missing.items()})
        request = "full" if targets == tasks else "partial"
        retrained = [fit([without, parts["retain"]], seed + offset, request)[0] for offset in (100, 200)]
        original, training = fit([parts["forget"], parts["retain"]], seed, "original")
        for name, config in variants.items():
            kinds = dict.fromkeys(tasks, "classification") if own_losses else None
            is_ours = isinstance(config, MultitaskConfig)
            method = Multitask(config, own_losses, kinds) if is_ours else config
            more = (arguments if is_ours else {}) | ({"max_steps": steps[name]} if steps and name in steps else {})
            with tempfile.TemporaryDirectory() as folder:
                args = UnlearningArguments(
                    folder, seed=seed, save_strategy="no", logging_strategy="no", disable_tqdm=True, **more
                )
                how = {
                    "tasks": targets,
                    "method": method,
                    "args": args,
                    "peft_config": peft_config,
                    "overlap": "allow",
                    "callbacks": [clock := Clock()],
                }
                result = unlearn(copy.deepcopy(original), **parts, **how)
                rows = result.compare(retrained[0])
                floor = result.compare(retrained[1])["retrained"]
            measured = [result.trainer.measure(model) for model in retrained]
            floor |= result.trainer.evaluator.beside(floor, rows["retrained"], measured[1], measured[0])
            found = rows["unlearned"] | {
                "seconds": result.runtime["unlearn"],
                "share": clock.seconds / training,
                "steps": result.trainer.state.global_step,
            }
            if is_ours:
                found["aim_missed"] = max(found[f"forget_{t}"] - result.trainer.method.aim[t] for t in targets)
            for row, values in (
                ("original", rows["original"]), ("retrained", rows["retrained"]), ("retrained, other seed", floor), (name, found),
            ):  # fmt: skip
                runs.setdefault(row, [])
                if len(runs[row]) == seed:
                    runs[row].append(values)
            shown = {k: round(v, 3) for k, v in found.items() if v is not None and not k.startswith("auc")}
            print(seed, targets, name, shown, *result.trainer.method.notes, flush=True)
    return {row: {"mean": mean(values), "std": std(values), "runs": values} for row, values in runs.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The toy, with a model of the user's own

TOY_TASKS, TOY_CLASSES, TOY_WIDTH = ["a", "b", "c"], 4, 20


class ToyModel(nn.Module):
    """Two hidden layers of 128, and a head for each task."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(TOY_WIDTH, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(128, TOY_CLASSES) for task in TOY_TASKS})

    def forward(self, x):
        features = self.body(x)
        return {task: head(features) for task, head in self.heads.items()}


def toy_losses(model: nn.Module, batch: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    logits, found = model(batch.inputs["x"]), {}
    for task in TOY_TASKS:
        labels = batch.labels[task].nan_to_num(-100).long()
        losses = F.cross_entropy(logits[task], labels, reduction="none", ignore_index=-100)
        found[task] = losses, (logits[task].argmax(dim=1) == labels).double()
    return found


def toy_data(seed: int, noise: float = 0.6) -> Parts:
    """Labels are the largest of four noisy linear functions, other ones for each task."""
    generator = torch.Generator().manual_seed(seed)
    ends = {"forget": (0, 60), "retain": (60, 600), "unseen": (600, 1200), "test": (1200, 3200)}
    columns = {"x": torch.randn(3200, TOY_WIDTH, generator=generator)}
    for task in TOY_TASKS:
        weight = torch.randn(TOY_WIDTH, TOY_CLASSES, generator=generator)
        disturbed = columns["x"] @ weight + noise * TOY_WIDTH**0.5 * torch.randn(
            3200, TOY_CLASSES, generator=generator
        )
        columns[task] = disturbed.argmax(dim=1)
    return {
        name: Samples(**{key: value[slice(*part)] for key, value in columns.items()}) for name, part in ends.items()
    }


def toy_fit(sets: list[Samples], seed: int, what: str, epochs: int = 150) -> tuple[nn.Module, float]:
    torch.manual_seed(seed)
    since = time.process_time()
    model = ToyModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    columns = {key: torch.cat([part.columns[key] for part in sets]) for key in sets[0].columns}
    for _ in range(epochs):
        for rows in torch.randperm(len(columns["x"])).split(64):
            logits = model(columns["x"][rows])
            labelled = [task for task in TOY_TASKS if (columns[task][rows] >= 0).any()]
            sum(F.cross_entropy(logits[t], columns[t][rows], ignore_index=-100) for t in labelled).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval(), time.process_time() - since


TOY = {"own_losses": toy_losses, "max_steps": 1500}


# ---------------------------------------------------------------------------------------------------------------------
# Models with heads


def fit_model(name: str, make: Callable[[int], MultiTaskModel], epochs: int, learning_rate: float) -> Callable:
    """Plain training with transformers, of which a model is kept."""

    def fit(sets: list[Samples], seed: int, what: str) -> tuple[MultiTaskModel, float]:
        folder = cache_folder() / "multitask" / name / f"{what}-seed{seed}"
        if (folder / "training.json").exists():
            return MultiTaskModel.from_pretrained(folder).eval(), json.loads((folder / "training.json").read_text())
        model = make(seed)
        tasks = Tasks(model)

        def collate(rows: list[dict]) -> dict:
            inputs = {key: torch.stack([row[key] for row in rows]) for key in rows[0] if key not in tasks.names}
            return inputs | {"labels": {name: tasks.stack(name, [row[name] for row in rows]) for name in tasks.names}}

        since = time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            args = TrainingArguments(
                scratch, seed=seed, learning_rate=learning_rate, num_train_epochs=epochs, lr_scheduler_type="cosine",
                per_device_train_batch_size=64, save_strategy="no", logging_strategy="no", disable_tqdm=True,
                remove_unused_columns=False,
            )  # fmt: skip
            Trainer(model, args, train_dataset=ConcatDataset(sets), data_collator=collate).train()
        seconds = time.process_time() - since
        model.save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(seconds))
        return model.eval(), seconds

    return fit


def _parts(columns: dict[str, torch.Tensor], forget: int, train: int) -> Parts:
    slices = {"forget": slice(0, forget), "retain": slice(forget, train), "unseen": slice(train, None)}
    return {name: Samples(**{key: value[part] for key, value in columns.items()}) for name, part in slices.items()}


CIFAR_TASKS = {
    "class": {"kind": "classification", "size": 10},
    "vehicle": {"kind": "classification", "size": 2},
    "rotation": {"kind": "classification", "size": 4},
}
VEHICLES = (0, 1, 8, 9)


def cifar_data(seed: int, train: int = 10_000, unseen: int = 3_000) -> Parts:
    from real_data import cifar10

    sets, rng = cifar10(), np.random.default_rng(seed)
    rows = [
        sets["train"].select(rng.permutation(50_000)[:train]),
        sets["test"].select(rng.permutation(10_000)[:unseen]),
    ]
    pixels = np.concatenate([np.stack([np.asarray(image) for image in part["image"]]) for part in rows])
    labels = torch.tensor([label for part in rows for label in part["label"]])
    turns = torch.as_tensor(rng.integers(0, 4, len(labels)))
    pixels = (torch.as_tensor(pixels).permute(0, 3, 1, 2).float() / 255 - 0.47) / 0.25
    pixels = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(pixels, turns, strict=True)])
    vehicle = torch.isin(labels, torch.tensor(VEHICLES)).long()
    return _parts({"pixel_values": pixels, "class": labels, "vehicle": vehicle, "rotation": turns}, train // 10, train)


def cifar_model(seed: int) -> MultiTaskModel:
    set_seed(seed)
    narrow = {"layers": [1, 1, 1, 1], "channels": [24, 48, 96, 128], "stem_type": "deep", "stem_width": 12}
    backbone = TimmWrapperConfig(architecture="resnet18", model_args=narrow)
    return MultiTaskModel(MultiTaskModelConfig(backbone=backbone, tasks=CIFAR_TASKS))


SCENE_TASKS = {
    "material": {"kind": "segmentation", "size": 4},
    "depth": {"kind": "depth"},
    "normals": {"kind": "normals"},
}


def scene_data(seed: int, train: int = 600, unseen: int = 1_200, side: int = 16) -> Parts:
    """Tilted discs before a wall: a noisy picture, and for each pixel what it shows is made of, how far it is and where it faces.

    A picture does not tell all of it: colours of materials overlap, and one shade is of many tilts. So what was trained on is
    known better than what was not.
    """
    rng, n = np.random.default_rng(seed), train + unseen
    rows, columns = np.mgrid[0:side, 0:side] / side
    colours = rng.uniform(0, 1, (4, 3))
    depth = np.full((n, side, side), 3.0)
    material = np.zeros((n, side, side), dtype=np.int64)
    normals = np.zeros((n, 3, side, side))
    normals[:, 2] = 1
    pixels = np.broadcast_to(colours[0][:, None, None], (n, 3, side, side)).copy()
    for _ in range(3):
        y, x, radius = (rng.uniform(low, high, (n, 1, 1)) for low, high in ((0.2, 0.8), (0.2, 0.8), (0.15, 0.3)))
        kind, near = rng.integers(1, 4, n), rng.uniform(1, 2.5, (n, 1, 1))
        facing = np.stack([*rng.normal(0, 0.7, (2, n)), np.ones(n)], axis=1)
        facing /= np.linalg.norm(facing, axis=1, keepdims=True)
        slope = facing[:, :2, None, None] / facing[:, 2:, None, None]
        at = near - slope[:, 0] * (rows - y) - slope[:, 1] * (columns - x)
        hit = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2) & (at < depth) & (at > 0.2)
        shade = facing @ np.array([0.5, 0.3, 0.8])
        seen = (colours[kind] + rng.normal(0, 0.25, (n, 3))) * shade[:, None]
        depth, material = np.where(hit, at, depth), np.where(hit, kind[:, None, None], material)
        normals = np.where(hit[:, None], facing[:, :, None, None], normals)
        pixels = np.where(hit[:, None], seen[:, :, None, None], pixels)
    pixels += rng.normal(0, 0.05, pixels.shape)
    found = {"pixel_values": pixels, "depth": depth, "normals": normals}
    columns = {key: torch.tensor(value, dtype=torch.float32) for key, value in found.items()}
    return _parts(columns | {"material": torch.tensor(material)}, train // 10, train)


def scene_model(seed: int) -> MultiTaskModel:
    set_seed(seed)
    size = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    return MultiTaskModel(
        MultiTaskModelConfig(backbone=ViTConfig(image_size=16, patch_size=4, **size), tasks=SCENE_TASKS)
    )


TEXT_TASKS = {
    "group": {"kind": "classification", "size": 20},
    "area": {"kind": "classification", "size": 7},
    "long": {"kind": "classification", "size": 2},
}


def text_data(seed: int, train: int = 600, unseen: int = 1000, tokens: int = 48) -> Parts:
    from real_data import minilm, newsgroups

    sets, rng = newsgroups(), np.random.default_rng(seed)
    rows = [
        sets[name].select(rng.permutation(len(sets[name]))[:n]) for name, n in (("train", train), ("test", unseen))
    ]
    texts = [text for part in rows for text in part["text"]]
    groups = torch.tensor([label for part in rows for label in part["label"]])
    names = sets["train"].features["label"].names
    areas = sorted({name.split(".")[0] for name in names})
    area = torch.tensor([areas.index(names[label].split(".")[0]) for label in groups.tolist()])
    words = torch.tensor([len(text.split()) for text in texts])
    length = {"truncation": True, "padding": "max_length", "max_length": tokens}
    inputs = AutoTokenizer.from_pretrained(minilm())(texts, return_tensors="pt", **length)
    columns = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    return _parts(
        columns | {"group": groups, "area": area, "long": (words > words[:train].median()).long()}, train // 10, train
    )


def text_model(seed: int) -> MultiTaskModel:
    from real_data import minilm

    set_seed(seed)
    return MultiTaskModel.from_backbone(minilm(), TEXT_TASKS, pooling="mean")


STUDIES = ("toy", "cifar10", "scenes", "newsgroups")
STEPS = {"multitask": 160, "neither (NegGrad+)": 280, "neither, cross-entropy": 280}


def with_heads(
    name: str, data: Callable, make: Callable, tasks: list[str], epochs: int, rate: float, refresh: int, **how: Any
) -> dict:
    """Both requests, of models that are kept; the first task is the target of the partial one."""
    variants = cheap(refresh) | {"rewind": RewindConfig(original_epochs=epochs, original_learning_rate=rate)}
    fit = fit_model(name, make, epochs, rate)
    requests = {"partial": tasks[:1], "full": tasks}
    return {
        request: task_study(data, fit, tasks, targets, variants=variants, steps=STEPS, **how)
        for request, targets in requests.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("studies", nargs="*", default=STUDIES, choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(options.seeds)
    for name in options.studies:
        if name == "toy":
            how = (toy_data, toy_fit, TOY_TASKS)
            results = {
                r: task_study(*how, t, seeds=seeds, **TOY) for r, t in (("partial", ["a"]), ("full", TOY_TASKS))
            }
        elif name == "cifar10":
            of = (cifar_data, cifar_model, list(CIFAR_TASKS), 20, 2e-3, 50)
            results = with_heads(name, *of, seeds=seeds, learning_rate=0.1)
        elif name == "scenes":
            of = (scene_data, scene_model, list(SCENE_TASKS), 120, 1e-3, 10)
            results = with_heads(name, *of, seeds=seeds, learning_rate=0.03)
        else:
            lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
            fit, targets = fit_model(name, text_model, 10, 3e-4), ["group"]
            how = {"max_steps": 100, "per_device_train_batch_size": 16, "peft_config": lora, "seeds": seeds}
            results = {"partial": task_study(text_data, fit, list(TEXT_TASKS), targets, variants=cheap(10), **how)}
        record(f"multitask-{name}", results)
