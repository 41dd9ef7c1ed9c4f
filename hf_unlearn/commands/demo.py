"""`hf-unlearn quickstart`: a deletion request from the first step to the last, on data that ships."""

import json
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import ConcatDataset, Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..api import unlearn
from ..audits import AuditReport
from ..audits.plots import points
from ..data.digits import load_digits
from ..hub.names import AUDIT_PAGE, CARD
from ..hub.release import prepare
from ..models.small import small_resnet
from ..training.arguments import UnlearningArguments
from ..training.progress import make_readable

EPOCHS, LEARNING_RATE = 30, 2e-3  # of the original and of the retrained models
METHODS = ("finetune", "auto")
RESULTS, PICTURE, RELEASE = "results.json", "distance.svg", "unlearned"
WIDTH = 80  # of a terminal
COLUMNS = {
    "forget": "forget_accuracy",
    "retain": "retain_accuracy",
    "unseen": "unseen_accuracy",
    "AUC": "auc",
    "distance": "jsd",
    "seconds": "seconds",
}
STORY = """\
150 of 1,000 digits come from an annotator who got three labels in ten wrong,
and have to go. A small ResNet has learnt them all by heart. Unseen samples are
others of the same annotator, which no model was trained on."""
READ = """\
Forget, retain and unseen are accuracies. AUC tells forget samples from unseen
ones; 0.5 is no trace. Distance is that of the answers on forget samples to
those of two retrained models (JSD); of a retrained model, to the other's."""
NEXT = """\
Next: your own model and data, in ten lines: README.md, "In a script".
What to take for a request: hf-unlearn choose; all methods: hf-unlearn methods."""


def train(model: PreTrainedModel, dataset: Dataset, seed: int, folder: Path, epochs: int) -> PreTrainedModel:
    """Plain training, as the original and the retrained models get it."""
    args = TrainingArguments(
        str(folder),
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, args, train_dataset=dataset)
    make_readable(trainer.callback_handler)
    trainer.train()
    return model.eval()


def run(output: str = "quickstart", seed: int = 0, epochs: int = EPOCHS) -> dict[str, Any]:
    """Runs the quickstart, and returns what it has found: `rows` of figures, and the verdict."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # a model this small gains nothing from more, and waits for them where cores are busy
    started, folder = time.perf_counter(), Path(output)
    with tempfile.TemporaryDirectory() as work:  # what runs write, such as the original, is not needed afterwards
        rows, report = request(Path(work), folder, seed, epochs)
    found = {"rows": rows, "verdict": report.verdict.headline}
    (folder / RESULTS).write_text(json.dumps({"command": "hf-unlearn quickstart", **found}, indent=2) + "\n")
    (folder / PICTURE).write_text(picture(rows) + "\n")
    said = [f"The audit says: {found['verdict']}", f"What now: {report.next_step}"]
    print(f"\n{table(rows)}\n\n{READ}\n", *(textwrap.fill(one, WIDTH) for one in said), "", sep="\n")
    release = folder / RELEASE
    for what, path in (("page", release / AUDIT_PAGE), ("card", release / CARD), ("picture", folder / PICTURE)):
        print(f"  {what:8}{path}")
    print(f"\n{NEXT}\n{time.perf_counter() - started:.0f} seconds in all.")
    return found


def request(work: Path, folder: Path, seed: int, epochs: int) -> tuple[dict[str, Any], AuditReport]:
    """The figures of every model, and the audit of the last method's, whose release is written."""
    data = load_digits(seed, kept_right=True)
    print(f"{STORY}\n\n1. Training the original.", flush=True)
    original = train(small_resnet(seed), ConcatDataset([data["forget"], data["retain"]]), seed, work, epochs)
    weights = {name: value.clone() for name, value in original.state_dict().items()}
    print("2. For reference: retraining two models without the 150, with other seeds.", flush=True)
    since = time.perf_counter()
    retrained = [train(small_resnet(i), data["retain"], i, work, epochs) for i in (seed + 1, seed + 2)]
    seconds, rows = (time.perf_counter() - since) / len(retrained), {}
    for number, method in enumerate(METHODS, 3):
        print(f'{number}. unlearn(model, forget=..., retain=..., unseen=..., method="{method}")', flush=True)
        original.load_state_dict(weights)
        args = UnlearningArguments(str(work / method), seed=seed, logging_strategy="no", save_strategy="no")
        known = {"original_epochs": epochs, "original_learning_rate": LEARNING_RATE} if method == "auto" else {}
        result = unlearn(original, **data, method=method, args=args, **known)
        compared = [result.compare(model) for model in retrained]
        found = {name: _mean([rows_of[name] for rows_of in compared]) for name in compared[0]}
        rows["original"] = found["original"]
        rows[method] = found["unlearned"] | {"seconds": result.runtime["unlearn"]}
        rows["retrained"] = found["retrained"] | {"seconds": seconds}
    source, indices = result.trainer.indices["forget"]
    between = result.trainer.evaluator.compare(retrained[0], retrained[1], source, indices)["jsd"]
    rows["retrained"] = rows.pop("retrained") | {"jsd": between}  # which stands last
    print(f"{len(METHODS) + 3}. result.audit(level=1)", flush=True)
    report = result.audit(level=1)
    prepare(result, folder / RELEASE, report=report)
    return rows, report


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a model, with its mean distance to the retrained ones."""
    return rows[0] | {"jsd": sum(row["jsd"] for row in rows) / len(rows)}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Fits into a terminal."""
    lines = [["", *COLUMNS]]
    for name, row in rows.items():
        shown = [row.get(key) for key in COLUMNS.values()]
        lines.append([name, *("-" if value is None else f"{value:.{1 if value > 2 else 3}f}" for value in shown)])
    return "\n".join("".join(cell.rjust(11) if i else cell.ljust(10) for i, cell in enumerate(one)) for one in lines)


def picture(rows: dict[str, dict[str, Any]]) -> str:
    """Distance over time, every model that took some a point."""
    places = {name: (row["seconds"], row["jsd"]) for name, row in rows.items() if row.get("seconds") is not None}
    return points(
        "quickstart",
        places,
        ("original", rows["original"]["jsd"]),
        title="How far from a retrained model, over what it costs",
        x_label="seconds",
        y_label="distance",
    )
