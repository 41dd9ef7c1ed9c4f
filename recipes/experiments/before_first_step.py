"""How long it takes until the first step, by the number of retained samples, beside a pass of `datasets` over one column.

    python recipes/experiments/before_first_step.py [--sizes 10000 100000 1000000]

Pictures of 16 x 16 pixels, as PNG files of about 1.4 kB, lie in an Arrow file; `split_dataset` takes 100 of them to forget. The clock
runs from making the trainer (without measuring, on a ViT that fits the pictures) to its first step. The passes that it is held
against read the label of every retained row, and the file of every retained row, a thousand rows at a time. A plain Trainer on the
retained rows is held against it as well, from when it is made to its first step.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from study import record
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import hf_unlearn.data.source as reading
import hf_unlearn.training.request as requests
from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_dataset
from hf_unlearn.training.fingerprint import outline

FORGET, UNSEEN, PIECE = 100, 1_000, 10_000
FEATURES = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(10))


def files(rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Different PNG files; what stands behind the end of one is not read as a picture."""
    kept = []
    for _ in range(256):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file := io.BytesIO(), "png")
        kept.append(file.getvalue())
    for i in range(count):
        yield kept[i % len(kept)] + rng.bytes(int(rng.integers(1, 1_000)))


def arrow_file(path: Path, count: int, seed: int) -> datasets.Dataset:
    rng = np.random.default_rng(seed)
    schema = FEATURES.arrow_schema
    content = files(rng, count)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, count, PIECE):
            rows = [{"bytes": next(content), "path": None} for _ in range(min(PIECE, count - start))]
            labels = (np.arange(start, start + len(rows)) % 10).tolist()
            table = pa.table({"image": rows, "label": labels}, schema=schema)
            writer.write_table(table, max_chunksize=1_000)  # as `datasets` writes them
    return datasets.Dataset.from_file(str(path))


class Started(TrainerCallback):
    at = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.at = time.perf_counter()
        control.should_training_stop = True


def seconds(work: Any) -> float:
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


def one_pass(dataset: datasets.Dataset, column: str) -> None:
    chosen = dataset.select_columns(column)
    if column == "image":
        chosen = chosen.cast_column(column, datasets.Image(decode=False))
    for _ in chosen.iter(1_000):
        pass


def plain_trainer(
    model: ViTForImageClassification, data: datasets.Dataset, processor: ViTImageProcessor, folder: Path
) -> float:
    """Seconds until its first step."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        pixels = processor([row["image"] for row in rows], return_tensors="pt")
        return {**pixels, "labels": torch.tensor([row["label"] for row in rows])}

    args = TrainingArguments(str(folder), save_strategy="no", report_to="none", disable_tqdm=True, max_steps=1,
                             remove_unused_columns=False)  # fmt: skip
    started, since = Started(), time.perf_counter()
    Trainer(model, args, train_dataset=data, data_collator=collate, callbacks=[started]).train()
    return started.at - since


def run(count: int, folder: Path) -> dict[str, Any]:
    data = arrow_file(folder / f"{count}.arrow", count + FORGET, seed=0)
    chosen = np.random.default_rng(1).choice(len(data), FORGET, replace=False)
    parts = split_dataset(data, indices=chosen)
    unseen = arrow_file(folder / f"{count}-unseen.arrow", UNSEEN, seed=2)
    config = ViTConfig(image_size=16, patch_size=4, num_labels=10, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=64)  # fmt: skip
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    args = UnlearningArguments(str(folder / f"run-{count}"), measure=False, num_train_epochs=1, save_strategy="no",
                               report_to="none", disable_tqdm=True, max_steps=1)  # fmt: skip
    model, started, opened, overlaps = ViTForImageClassification(config), Started(), [0], [0.0]
    check, checked = reading._image_bytes, requests.check_overlaps

    def count_of(stored: dict) -> bytes:
        opened[0] += 1
        return check(stored)

    def timed(sources: Any) -> None:
        overlaps[0] = seconds(lambda: checked(sources))

    reading._image_bytes, requests.check_overlaps = count_of, timed
    since = time.perf_counter()
    sets = {"forget_dataset": parts["forget"], "retain_dataset": parts["retain"], "unseen_dataset": unseen}
    trainer = UnlearningTrainer(
        model, args, method="finetune", processing_class=processor, callbacks=[started], **sets
    )
    trainer.train()
    reading._image_bytes, requests.check_overlaps = check, checked
    retain = trainer.sources["retain"]
    row = {
        "rows": len(retain),
        "bytes": int(retain.columns[0].lengths.sum()),
        "before the first step": started.at - since,
        "overlaps": overlaps[0],
        "identity": seconds(lambda: outline(retain, "key")),
        "read": opened[0] - FORGET - UNSEEN,
        "plain Trainer": plain_trainer(model, parts["retain"], processor, folder / f"plain-{count}"),
        "pass over labels": seconds(lambda: one_pass(parts["retain"], "label")),
        "pass over pictures": seconds(lambda: one_pass(parts["retain"], "image")),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    with tempfile.TemporaryDirectory() as folder:
        run(1_000, Path(folder))  # what is imported, and made once, by the first of all runs
        record("before_first_step", {"rows": [run(size, Path(folder)) for size in parser.parse_args().sizes]})
