"""A hundred small requests in a row on the digits: is anything lost, do the receipts hold, how far does the model drift?

    python recipes/experiments/request_queue.py [--method lotus]

A small ViT is trained on digits with flipped labels. 100 requests of 1 to 3 rows come one after the other, some for rows that
were asked for before, and are unlearned in batches of ten. Beside them stand two models with other seeds: one trained on the
same data, whose distance is what two trainings differ by anyway, and one retrained without all rows that were asked for.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from digits import MODELS, fit
from study import record
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import PreTrainedModel

from hf_unlearn import RequestQueue, audit, models
from hf_unlearn.commands.drift import Budget, drift_picture
from hf_unlearn.data.digits import Samples, load_digits
from hf_unlearn.data.splits import split_unseen
from hf_unlearn.metrics import jsd

REQUESTS, BATCH = 100, 10
PICTURE = Path(__file__).parents[2] / "docs/pictures/queue.svg"
RECIPE = """
model: {folder}/original
dataset: {folder}/data
method: {method}
batch_requests: {batch}
save_strategy: no
logging_strategy: no
report_to: none
disable_tqdm: true
"""


def stored(samples: Dataset) -> datasets.Dataset:
    """As a folder has them."""
    rows: list[dict[str, Any]] = [samples[i] for i in range(len(samples))]  # pyright: ignore[reportArgumentType]
    pixels = np.stack([row["pixel_values"].numpy() for row in rows])
    features = datasets.Features(
        pixel_values=datasets.Array3D(pixels.shape[1:], "float32"), label=datasets.ClassLabel(10)
    )
    return datasets.Dataset.from_dict(
        {"pixel_values": pixels, "label": [int(row["labels"]) for row in rows]}, features=features
    )


def asked(rows: int) -> dict[str, dict[str, list[int]]]:
    """Requests of 1 to 3 of the rows, one in five of them for a row that an earlier one has named."""
    rng, requests, taken = np.random.default_rng(0), {}, []
    for number in range(REQUESTS):
        chosen = rng.choice(rows, rng.integers(1, 4), replace=False).tolist()
        if taken and rng.random() < 0.2:
            chosen[0] = int(rng.choice(taken))
        taken += chosen
        requests[f"request-{number}"] = {"rows": chosen}
    return requests


def run(folder: Path, method: str) -> dict[str, Any]:
    parts = load_digits(0)
    train = ConcatDataset([parts["forget"], parts["retain"]])
    data = {"train": stored(train), "test": stored(parts["unseen"])}
    datasets.DatasetDict(data).save_to_disk(folder / "data")
    make, epochs = MODELS["vit"]
    original = fit(make, epochs)(train, 0)
    models.save_model(original, folder / "original")
    requests = asked(len(train))
    gone = sorted({row for request in requests.values() for row in request["rows"]})
    kept = Subset(train, sorted(set(range(len(train))) - set(gone)))
    others = {"same data": fit(make, epochs)(train, 1), "retrained": fit(make, epochs)(kept, 2)}

    (folder / "queue").mkdir()
    (folder / "queue/queue.yaml").write_text(RECIPE.format(folder=folder, method=method, batch=BATCH))
    queue = RequestQueue(folder / "queue")
    for name, request in requests.items():  # one after the other
        queue.add({name: request})
        queue.run()
    status, batches = queue.status(), queue.folder.batches()
    last = models.load_model(batches[-1].release)
    sets = {"forget": Subset(train, gone), "retain": kept, "unseen": parts["unseen"]}
    report = audit(original, last, **sets, retrained=others["retrained"], overlap="allow")
    return {
        "requests": status.requests,
        "samples": len(gone),
        "in_one_batch_each": sorted(name for batch in batches for name in batch.requests) == sorted(requests),
        "rows_in_receipts": sum(batch.samples for batch in batches),
        "receipts": len(batches),
        "receipts_that_hold": sum(not found.failed for found in queue.verify()),
        "batches": [
            {key: row[key] for key in ("samples", "drift", "earlier")} | {"requests": len(row["requests"])}
            for row in status.batches
        ],
        "retraining": status.retraining,
        "others": {
            name: distance(original, model, parts["unseen"])
            | {"auc": report.content["figures"]["retrained"]["auc"] if name == "retrained" else None}
            for name, model in others.items()
        },
        "verdict": report.content["verdict"]["headline"],
        "figures": report.content["figures"],
    }


def distance(original: PreTrainedModel, other: PreTrainedModel, unseen: Samples) -> dict[str, float]:
    """As a queue measures its drift, on the same half of the unseen samples."""
    labels = unseen.columns["labels"]
    _, half = split_unseen(labels.numpy())
    with torch.no_grad():
        logits = [model.eval()(unseen.columns["pixel_values"][half]).logits.double() for model in (original, other)]
    first, now = ((answers.argmax(-1) == labels[half]).double().mean().item() for answers in logits)
    return {"jsd": jsd(*(answers.softmax(-1) for answers in logits)), "first": first, "now": now}


def draw(results: dict[str, Any]) -> str:
    """The picture of a queue, with the distance of another training on the same data."""
    rows = [(row["requests"], row["drift"]) for row in results["batches"]]
    return drift_picture(rows, Budget(), results["others"]["same data"]["jsd"], width=480, height=300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", default="lotus")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), options.method)
    record("request_queue", results)
    PICTURE.write_text(draw(results) + "\n")
