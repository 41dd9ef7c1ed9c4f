"""Retained samples from streams: in shards, with workers, in two processes, resumed; and of language models."""

import gc
import io
import json
import multiprocessing
import tarfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets.distributed import split_dataset_by_node
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_unlearn import UnlearningArguments, UnlearningError, UnlearningTrainer
from hf_unlearn.data.batches import Batch
from hf_unlearn.data.samples import weigh
from hf_unlearn.data.schedule import Schedule
from hf_unlearn.data.source import Source
from hf_unlearn.data.streams import StreamReader, in_parts, in_turn, lane_starts
from tests.marks import slow_but
from tests.runs import Record, StopAt, distance, launch, make_trainer, request, same_bits, weights
from tests.samples import pictures
from tests.streamed import CASES, opened, stream_of, trainer_of
from tests.tiny import tiny_image_processor, tiny_vit


def numbers(size: int, shards: int) -> datasets.IterableDataset:
    return datasets.Dataset.from_dict(
        {"value": range(size), "label": [i % 3 for i in range(size)]}
    ).to_iterable_dataset(shards)


class TestLanes:
    @pytest.mark.parametrize(("size", "shards"), [(24, 4), (26, 4), (33, 1), (7, 7), (200, 97), (130, 65)])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_position_is_a_row_in_every_epoch(self, size, shards, workers):
        """As the same rows have it that are no stream; `datasets` gives its shards in another order in later epochs."""
        if workers and size > 26:
            pytest.skip("read in the same way")
        stream = numbers(size, shards)
        starts = lane_starts(stream, size)
        assert len(starts) == min(shards, 64)
        order = in_turn(starts, np.arange(size))
        assert sorted(order) == list(range(size))
        reader = StreamReader(stream, starts, list(range(len(starts))), workers)
        for epoch in (0, 2, 3):
            assert [reader.row(epoch, int(i))["value"] for i in order] == order.tolist()

    def test_first(self):
        source = Source(numbers(26, 4), "retain", size=26)
        assert source.first(6) == [0, 7, 14, 20, 1, 8]  # as the shards have 7, 7, 6 and 6
        assert source.first(100) == in_turn(source.lane_starts, np.arange(26)).tolist()
        assert Source(numbers(5, 1), "retain", size=5).first(3) == [0, 1, 2]

    def test_parts(self):
        """Of lanes of their own, and as long; where lanes cannot be shared out evenly, of all of them."""
        starts, samples = [0, 7, 14, 20], np.setdiff1d(np.arange(26), [8, 9])
        first, second = in_parts(starts, samples, 2)
        assert first.tolist() == [0, 14, 1, 15, 2, 16, 3, 17, 4, 18, 5, 19, 6]
        assert second.tolist() == [7, 20, 10, 21, 11, 22, 12, 23, 13, 24, 25, 25, 25]
        for parts in (1, 3, 5):
            found = in_parts(starts, samples, parts)
            assert sorted(set(np.concatenate(found))) == samples.tolist() and len({len(part) for part in found}) == 1
        assert [part.tolist() for part in in_parts([0], np.arange(2), 3)] == [[0], [1], [1]]

    @pytest.mark.parametrize("kind", ["mixed", "paired", "forget-paired", "retain"])
    @pytest.mark.parametrize("fraction", [1.0, 0.3])
    def test_steps_are_the_same_for_every_number_of_processes(self, kind, fraction):
        starts = [0, 7, 14, 20]
        plan = Schedule([kind] * 2, n_forget=9, n_retain=26, batch_size=8, retain_is_stream=True, lane_starts=starts,
                        retain_fraction=fraction)  # fmt: skip

        def steps(world: int, accumulation: int) -> list[dict]:
            parts = [plan.micro_batches(0, rank, world, accumulation) for rank in range(world)]
            found = []
            for step in range(len(plan)):
                drawn, sizes = {}, []
                for rank, part in enumerate(parts):
                    mine = [draw for _ in range(accumulation) for draw in next(part)]
                    own = [draw for draw in mine if draw.weight and draw.source == "retain"]
                    assert world in (1, 3) or all(np.searchsorted(starts, d.index, "right") % 2 != rank for d in own)
                    sizes.append(len([draw for draw in mine if draw.weight]))
                    for draw in mine:
                        if draw.weight:
                            drawn[draw[:4]] = draw.weight / world
                assert max(sizes) - min(sizes) <= 2 + len(plan.step(step)), "the processes have unequal parts"
                found.append({key: drawn[key] for key in sorted(drawn)})
            return found

        expected = steps(1, 1)
        for layout in ((1, 4), (2, 1), (2, 2), (3, 1)):
            assert steps(*layout) == [pytest.approx(step) for step in expected]

    def test_uneven_shards(self, caplog):
        """A short one is read again, and said so; what is behind the end of a long one is left out."""
        rows = [{"value": i} for i in range(8)]
        parts = [datasets.Dataset.from_list(rows[a:b]).to_iterable_dataset() for a, b in ((0, 5), (5, 8))]
        stream = datasets.concatenate_datasets(parts)
        reader = StreamReader(stream, lane_starts(stream, 8), [0, 1], 0)
        assert [reader.row(0, i)["value"] for i in range(8)] == [0, 1, 2, 3, 5, 6, 7, 5]
        assert [r.message for r in caplog.records] == [
            "The shards of the stream of retained samples are of uneven sizes, or retain_size is not their sum: part 1 of 2 ended "
            "after 3 samples, and is read again from its beginning."
        ]

    def test_a_row_can_be_read_twice(self):
        reader = StreamReader(numbers(24, 4), [0, 6, 12, 18])
        assert [reader.row(0, i)["value"] for i in (0, 6, 0, 6, 1, 7, 1)] == [0, 6, 0, 6, 1, 7, 1]
        assert reader.places == [2, 2, 0, 0]


def test_workers_end_with_their_reader():
    """At once, in a circle as in a trainer too: a loader that cannot reach them waits 5 seconds for each."""
    stream = numbers(24, 4)
    reader = StreamReader(stream, lane_starts(stream, 24), list(range(4)), 2)
    reader.circle = reader
    assert reader.row(0, 0)["value"] == 0 and len(active := multiprocessing.active_children()) >= 2
    del reader
    since = time.monotonic()
    gc.collect()
    assert time.monotonic() - since < 4 and len(multiprocessing.active_children()) <= len(active) - 2


def test_weights_that_are_counted_in_the_step():
    """Those that a set in memory has, of micro-batches and groups."""
    counts = {"forget": [3.0, 1.0, 4.0], "retain": [2.0, 0.0, 6.0]}  # 0: padding
    batches = [
        {name: Batch(weight=torch.tensor(values[part], dtype=torch.float64) / 3) for name, values in counts.items()}
        for part in (slice(0, 2), slice(2, 3))
    ]
    weigh(batches, Accelerator(cpu=True))
    for name, values in counts.items():
        found = torch.cat([batch[name].weight for batch in batches])
        assert found.tolist() == pytest.approx([value / sum(values) for value in values])


@pytest.mark.parametrize("name", slow_but(["completions"], ["completions", "uneven"]))
def test_batches_and_workers(name, tmp_path):
    """8, 2 × 4 accumulated, and any number of workers give the same weights."""
    found = []
    for layout in ({}, {"batch": 4, "accumulation": 2, "dataloader_num_workers": 0}):
        trainer = trainer_of(tmp_path / str(len(found)), **CASES[name] | layout, callbacks=[start := Record()])
        trainer.train()
        found.append(weights(trainer.model))
    assert distance(*found, start.weights[0]) < 1e-9


@pytest.mark.parametrize("name", slow_but(["completions"], ["completions", "uneven"]))
def test_resumed(name, tmp_path):
    saving = CASES[name] | {"save_strategy": "steps", "save_steps": 2}
    expected = trainer_of(tmp_path / "a", **CASES[name])
    expected.train()
    with pytest.raises(UnlearningError, match="killed"):
        trainer_of(tmp_path / "b", **saving, callbacks=[StopAt(3)]).train()
    resumed = trainer_of(tmp_path / "b", **saving)
    resumed.train(resume_from_checkpoint=True)
    assert same_bits(weights(resumed.model), weights(expected.model))
    other = trainer_of(tmp_path / "b", **saving | {"shards": None})
    with pytest.raises(UnlearningError, match="retain has other samples than it had, or another order"):
        other.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("workers", slow_but([0], [0, 2]))
def test_a_lost_connection(workers, tmp_path):
    """The run ends in one sentence that says what to do, and that ends in the bits of a run that lost none."""
    about: dict[str, Any] = {
        **CASES["mixed"],
        "dataloader_num_workers": workers,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    expected = trainer_of(tmp_path / "a", **about)
    expected.train()
    unplugged = tmp_path / "b" / "unplugged"

    class Unplug(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            unplugged.touch()

    sentence = r"Sample \d+ of the stream .* \(.*Connection.*\); where a connection was lost, go on .* with resume_from_checkpoint=True; else"
    with pytest.raises(UnlearningError, match=sentence):
        trainer_of(tmp_path / "b", **about, callbacks=[Unplug()]).train()
    unplugged.unlink()
    resumed = trainer_of(tmp_path / "b", **about)
    resumed.train(resume_from_checkpoint=True)
    assert same_bits(weights(resumed.model), weights(expected.model))


def test_measured_in_between(tmp_path):
    """A look at the stream's first samples does not move the place where training reads."""
    case = CASES["mixed"] | {"num_train_epochs": 1}
    found = []
    for looks in ({}, {"measure": True, "eval_strategy": "steps", "eval_steps": 2}):
        trainer = trainer_of(tmp_path / str(len(found)), **case | looks)
        trainer.train()
        found.append(weights(trainer.model))
    assert same_bits(*found) and trainer.metrics["after"]["retain_accuracy"] is not None


def test_said_where_it_cannot_be_shared_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(UnlearningArguments, "world_size", 3)
    trainer_of(tmp_path, **CASES["mixed"])
    assert "has 4 shards, or parts of equal numbers of them, which 3 processes cannot share out evenly" in caplog.text


def test_a_part_of_a_stream(tmp_path):
    part = split_dataset_by_node(numbers(24, 4), rank=0, world_size=2)
    with pytest.raises(
        UnlearningError, match="is one process's part of a stream .split_dataset_by_node.; pass the whole"
    ):
        make_trainer("finetune", "vit", tmp_path, data=request("vit") | {"retain": part}, retain_size=24)


def test_random_transforms_have_no_workers(tmp_path, caplog):
    def noisy(row):
        return row | {"pixel_values": np.asarray(row["pixel_values"]) + np.random.normal()}

    data = request("vit")
    kept = datasets.Dataset.from_list([row | {"pixel_values": row["pixel_values"].numpy()} for row in data["retain"]])
    data["retain"] = kept.to_iterable_dataset(3).map(noisy)
    make_trainer("finetune", "vit", tmp_path, data=data, retain_size=33, dataloader_num_workers=2)
    assert "is transformed at random, which workers would do otherwise than one process" in caplog.text


def shard(path: Path, first: int, count: int) -> str:
    rng = np.random.default_rng(first)
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file := io.BytesIO(), "png")
            for name, content in ((f"{i:03}.png", file.getvalue()), (f"{i:03}.cls", str(i % 4).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.mark.slow
def test_shards_of_webdataset(tmp_path):
    """Tar files of pictures and labels, through `datasets`."""
    files = [shard(tmp_path / f"{i}.tar", 6 * i, 6) for i in range(4)]
    stream = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    assert stream.num_shards == 4
    named = {"png": "image", "cls": "label"}
    stream = stream.select_columns(list(named)).rename_columns(named)
    args = UnlearningArguments(str(tmp_path / "out"), num_train_epochs=1, per_device_train_batch_size=8, report_to="none",
                               retain_size=24, save_strategy="no", disable_tqdm=True, dataloader_num_workers=2)  # fmt: skip
    trainer = UnlearningTrainer(tiny_vit(), args, method="finetune", forget_dataset=pictures(8), retain_dataset=stream,
                                processing_class=tiny_image_processor())  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 3 and np.isfinite(trainer.metrics["after"]["retain_loss"])


def test_each_process_opens_shards_of_its_own(tmp_path):
    for rank in range(2):
        source = Source(stream_of(tmp_path, "vit"), "retain", size=24)
        read, lanes = source.read_by(rank, 2, 0), source.lane_starts
        plan = Schedule(["mixed"] * 2, n_forget=9, n_retain=24, batch_size=8, retain_is_stream=True, lane_starts=lanes)
        for batch in plan.micro_batches(0, rank, 2, 1):
            for draw in batch:
                if draw.source == "retain":
                    read.rows([draw.index], draw.epoch)
        assert opened(tmp_path, 0) == {6 * rank, 12 + 6 * rank}


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Each opens shards of its own, and together they do what one does; of a single shard both read all."""
    launch("streams", tmp_path)
    for name, case in CASES.items():
        trainer = trainer_of(tmp_path / f"{name}-one", **case, callbacks=[start := Record()])
        trainer.train()
        found = load_file(tmp_path / f"{name}.safetensors")
        assert distance(found, weights(trainer.model), start.weights[0]) < 1e-9, name
        first, second = map(set, json.loads((tmp_path / f"{name}.json").read_text()))
        if case.get("shards", "even") is None:
            assert first == second == {0}
        else:
            assert not first & second and len(first) == len(second) == 2, name
