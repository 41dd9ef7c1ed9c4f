"""What an audit makes of models whose fault is known, and how often it accuses a retrained one.

A small CNN on digits with three in ten labels wrong, which only memory gets right. For each seed an original and a model
retrained without the forget set; for the first seeds also another one, and beside the original:

    untouched       the original itself
    head            only the classifier is trained, to be wrong about the forget samples
    over-forgotten  trained on wrong labels of the forget samples, until it knows these by heart, and on the right ones of
                    unseen samples that the audit does not look at (the Streisand effect)
    ascended        gradient ascent on the forget samples alone
    hardly touched  a few small steps on retained samples, which forget nothing

all audited at level 1. Where whole classes are forgotten these are two: of one alone, too few unseen samples are left to be
held against.

Then, at level 0, from what number of forget samples on the audit sees that nothing was forgotten, alone and beside another
retrained model; of models that were trained for so short a time that they remember little. It all takes about half an hour
of one core.
"""

import copy
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from damp import Cnn5Config, Cnn5ForImageClassification
from study import mean, record
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_unlearn import audit
from hf_unlearn.data.digits import Samples, load_digits
from hf_unlearn.data.splits import split_unseen

EPOCHS = 30
PAIRS, PLANTED, SMALL = 20, 5, 10  # seeds: of each kind of request, of these with faults, of small requests
SIZES = (15, 30, 60, 120)  # forget samples of small requests
FEW_EPOCHS = 12
WRONG = (0.3, 0.15)  # shares of wrong labels: the fewer there are, the less there is to be remembered
TOLD = {  # by what each model is told from the others
    "untouched": lambda run: run["outcome"] == "unchanged",
    "hardly touched": lambda run: run["outcome"] == "residual memory",
    "head": lambda run: run["outcome"] == "only the head changed",
    "over-forgotten": lambda run: "over" in run["kinds"],
    "ascended": lambda run: run["outcome"] in ("residual memory", "retain harm") and "over" not in run["kinds"],
    "retrained": lambda run: run["outcome"] == "no evidence",
    "retrained, beside another": lambda run: run["outcome"] == "no evidence",
}


class SmallCnn(Cnn5ForImageClassification):
    base_model_prefix = "stages"  # what is not the head
    widths = (3, 24, 48, 96, 96)


def digits(seed: int, by_class: bool) -> dict[str, Samples]:
    """Forget, retain and unseen samples: 150 instances forgotten, or two classes."""
    parts = at_their_size(load_digits(seed, forget_class=seed % 10 if by_class else None))
    if by_class:
        retain = parts["retain"].columns
        second = retain["labels"] == (seed + 5) % 10
        parts["retain"] = Samples(**{name: column[~second] for name, column in retain.items()})
        parts["forget"] = Samples(
            **joined(parts["forget"], Samples(**{name: column[second] for name, column in retain.items()}))
        )
    return parts


def at_their_size(parts: dict[str, Samples]) -> dict[str, Samples]:
    """8 × 8 pixels."""
    return {
        name: Samples(pixel_values=of.columns["pixel_values"][..., ::4, ::4].contiguous(), labels=of.columns["labels"])
        for name, of in parts.items()
    }


def joined(*parts: Samples) -> dict[str, Tensor]:
    return {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}


def fit(columns: dict[str, Tensor], seed: int, epochs: int = EPOCHS) -> PreTrainedModel:
    """Plain training of a new model."""
    torch.manual_seed(seed)
    model, n = SmallCnn(Cnn5Config(num_labels=10)).train(), len(columns["labels"])
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (n // 64))
    for _ in range(epochs):
        for rows in torch.randperm(n, generator=rng)[: n // 64 * 64].split(64):  # a batch of two would ruin BatchNorm
            optimizer.zero_grad()
            loss(model, columns, rows).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def loss(model: nn.Module, columns: dict[str, Tensor], rows: Tensor) -> Tensor:
    return F.cross_entropy(model(pixel_values=columns["pixel_values"][rows]).logits, columns["labels"][rows])


def accuracy(model: nn.Module, columns: dict[str, Tensor]) -> float:
    with torch.no_grad():
        return float(
            (model(pixel_values=columns["pixel_values"]).logits.argmax(1) == columns["labels"]).float().mean()
        )


def planted(original: PreTrainedModel, parts: dict[str, Samples], seed: int) -> dict[str, PreTrainedModel]:
    """The models with a known fault."""
    forget, retain = parts["forget"].columns, parts["retain"].columns
    shift = torch.randint(1, 10, (len(forget["labels"]),), generator=torch.Generator().manual_seed(seed))
    wrong = forget | {"labels": (forget["labels"] + shift) % 10}
    unseen = parts["unseen"].columns
    control = torch.as_tensor(split_unseen(unseen["labels"].numpy())[0])
    gone = control[~torch.isin(unseen["labels"][control], retain["labels"])]  # few, of the forgotten classes
    rows = torch.cat([control, gone.repeat(8)])
    others = joined(parts["retain"], Samples(**{name: column[rows] for name, column in unseen.items()}))
    return {
        "untouched": copy.deepcopy(original),
        "hardly touched": hardly_touched(original, retain, seed),
        "head": _trained(original, wrong, retain, seed, lambda m: accuracy(m, forget) < 0.5, rate=3e-3, head=True),
        "over-forgotten": _trained(original, wrong, others, seed, lambda m: accuracy(m, wrong) > 0.9),
        "ascended": _trained(original, forget, None, seed, lambda m: accuracy(m, forget) < 0.5, rate=1e-4),
    }


def hardly_touched(original: PreTrainedModel, retain: dict[str, Tensor], seed: int) -> PreTrainedModel:
    """A copy, after twenty small steps on retained samples."""
    model, rng = copy.deepcopy(original), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(20):
        optimizer.zero_grad()
        loss(model, retain, torch.randint(len(retain["labels"]), (64,), generator=rng)).backward()
        optimizer.step()
    return model


def _trained(
    original: PreTrainedModel,
    forget: dict[str, Tensor],
    retain: dict[str, Tensor] | None,
    seed: int,
    stop: Callable[[PreTrainedModel], bool],
    rate: float = 1e-3,
    head: bool = False,
) -> PreTrainedModel:
    """A copy, trained on these forget samples and on retained ones, or by ascent where there are none, until `stop`."""
    model, rng = copy.deepcopy(original), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam((model.classifier if head else model).parameters(), lr=rate)
    for step in range(400):
        optimizer.zero_grad()
        total = loss(model, forget, torch.randint(len(forget["labels"]), (64,), generator=rng))
        if retain:
            total = total + loss(model, retain, torch.randint(len(retain["labels"]), (64,), generator=rng))
        (total if retain else -total).backward()
        optimizer.step()
        if step % 5 == 4 and stop(model):
            break
    return model


def examined(
    original: nn.Module, model: nn.Module, parts: dict[str, Samples], seed: int, level: int = 1, **about: Any
) -> dict:
    """What the audit says, in short."""
    content = audit(original, model, **parts, level=level, seed=seed, overlap="allow", **about).content
    findings = content["verdict"]["findings"]
    faults = [finding for finding in findings if finding["fails"]]
    about_both = {
        model: {name: row[name] for name in ("forget_accuracy", "retain_accuracy", "unseen_accuracy", "auc")}
        for model, row in content["figures"].items()
        if model in ("original", "unlearned")
    }
    return {
        "outcome": content["verdict"]["outcome"],
        "kinds": sorted({finding["kind"] for finding in faults}),
        "failed": sorted(finding["name"] for finding in faults),
        "p": {f["name"]: f["p"] for f in findings if f["p"] is not None and f["kind"] != "info"},
        "figures": about_both["unlearned"],
        "original": about_both["original"],
        "self_test": content["canary"]["noticed"],
        "seconds": content["cost"]["seconds"]["total"],
    }


def run(seed: int, by_class: bool, with_planted: bool) -> dict[str, dict]:
    """Row -> what the audit says of it."""
    parts = digits(seed, by_class)
    original = fit(joined(parts["forget"], parts["retain"]), seed)
    retrained = fit(parts["retain"].columns, seed + 100)
    rows = {"retrained": examined(original, retrained, parts, seed)}
    if with_planted:
        another = fit(parts["retain"].columns, seed + 200)
        rows["retrained, beside another"] = examined(original, retrained, parts, seed, retrained=another)
        models = planted(original, parts, seed)
        rows |= {name: examined(original, model, parts, seed) for name, model in models.items()}
    return rows


def run_small(seed: int, wrong: float) -> dict[str, dict[str, dict]]:
    """Number of forget samples -> row -> what the audit says of it; of one original, which all the numbers share."""
    found: dict[str, dict[str, dict]] = {}
    original = None
    for size in SIZES:
        parts = at_their_size(load_digits(seed, flipped=wrong, forget=size / 1000))
        retain = parts["retain"].columns
        original = original or fit(joined(parts["forget"], parts["retain"]), seed, FEW_EPOCHS)
        retrained, another = (fit(retain, seed + 100 * i, FEW_EPOCHS) for i in (1, 2))
        models = {
            "untouched": copy.deepcopy(original),
            "hardly touched": hardly_touched(original, retain, seed),
            "retrained": retrained,
        }
        found[str(size)] = {
            name + beside: examined(original, model, parts, seed, level=0, **about)
            for name, model in models.items()
            for beside, about in (("", {}), (", beside another", {"retrained": another}))
        }
    return found


def by_size(found: list[dict[str, dict[str, dict]]]) -> dict[str, dict[str, dict]]:
    """Of each number of forget samples and row, over the seeds: how often a test of memory failed it, the outcomes, what failed
    in each, and the mean figures of both models."""
    table: dict[str, dict[str, dict]] = {}
    for size, rows in found[0].items():
        table[size] = {}
        for row in rows:
            runs = [of[size][row] for of in found]
            failed = sum(bool({"residual", "over"} & set(run["kinds"])) for run in runs)
            outcomes = dict(Counter(run["outcome"] for run in runs))
            figures = {model: mean([run[model] for run in runs]) for model in ("original", "figures")}
            about = {"of": len(runs), "failed": failed, "outcomes": outcomes, **figures}
            table[size][row] = about | {"runs": [", ".join(run["failed"]) for run in runs]}
    return table


if __name__ == "__main__":
    pairs, seeds, small = (int(n) for n in (sys.argv[1:] or (PAIRS, PLANTED, SMALL)))
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for kind in ("instance", "class"):
            runs: dict[str, list] = {}
            about_seeds = (range(pairs), [kind == "class"] * pairs, [seed < seeds for seed in range(pairs)])
            for seed, rows in enumerate(pool.map(run, *about_seeds)):
                for row, about in rows.items():
                    runs.setdefault(row, []).append(about)
                    told = "as it is" if TOLD[row](about) else "NOT AS IT IS"
                    print(kind, seed, row, told, about["outcome"], about["failed"], about["figures"], flush=True)
            results[kind] = {
                row: {"told": sum(map(TOLD[row], of)), "of": len(of), "runs": of} for row, of in runs.items()
            }
        results["small"] = {}
        for wrong in WRONG:
            found = list(pool.map(run_small, range(small), [wrong] * small))
            results["small"][str(wrong)] = by_size(found)
    alarms = sum(bool(run["failed"]) for kind in ("instance", "class") for run in results[kind]["retrained"]["runs"])
    results["false_alarms"] = {"pairs": 2 * pairs, "alarms": alarms, "nominal": 0.05}
    print(results["false_alarms"])
    record("audits", results)
