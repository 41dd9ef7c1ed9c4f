"""Splits, columns, streams, augmentation and the checks of the data, without any training."""

import io
import random

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, TimmWrapperImageProcessor, default_data_collator

from hf_unlearn import UnlearningError, UnlearningTrainer, split_dataset
from hf_unlearn.data.batches import Batch
from hf_unlearn.data.collator import Collator
from hf_unlearn.data.overlap import check_overlaps
from hf_unlearn.data.samples import DrawnSamples, TrainingCollator, is_deterministic
from hf_unlearn.data.schedule import Draw, Schedule
from hf_unlearn.data.source import Columns, Source, StreamReader
from hf_unlearn.data.splits import split_unseen
from hf_unlearn.methods.frozen import OnlineTeacher
from hf_unlearn.training.context import Context
from hf_unlearn.training.teacher import TableTeacher
from tests.marks import slow_but
from tests.samples import arguments, for_trainer, images, pictures, request, sentences
from tests.tiny import MAX_LENGTH, PAD, tiny_bert, tiny_image_processor, tiny_tokenizer, tiny_vit


def named(n: int = 12) -> datasets.Dataset:
    features = datasets.Features(
        row=datasets.Value("int64"),
        label=datasets.ClassLabel(names=["cat", "dog", "bird"]),
        bad=datasets.Value("bool"),
    )
    rows = np.arange(n)
    return datasets.Dataset.from_dict({"row": rows, "label": rows % 3, "bad": rows % 4 == 0}, features=features)


class TestSplitDataset:
    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            ({"indices": [7, 2, 2]}, [2, 7]),
            ({"indices": np.array([0])}, [0]),
            ({"labels": 1}, [1, 4, 7, 10]),
            ({"labels": np.int64(1)}, [1, 4, 7, 10]),
            ({"labels": "bird"}, [2, 5, 8, 11]),
            ({"labels": ["cat", 2]}, [0, 2, 3, 5, 6, 8, 9, 11]),
            ({"where": "bad"}, [0, 4, 8]),
            ({"where": lambda row: row["row"] > 9}, [10, 11]),
        ],
    )
    def test_choice(self, choice, expected):
        parts = split_dataset(named(), **choice)
        assert parts["forget"]["row"][:] == expected
        assert parts["retain"]["row"][:] == [row for row in range(12) if row not in expected]

    @pytest.mark.parametrize(("choice", "size"), [({}, 6), ({"labels": 0}, 2), ({"where": "bad"}, 2)])
    def test_fraction_of_the_choice(self, choice, size):
        def rows(seed):
            parts = split_dataset(named(), fraction=0.5, seed=seed, **choice)
            forget, retain = parts["forget"]["row"][:], parts["retain"]["row"][:]
            assert sorted(forget + retain) == list(range(12))
            return forget

        assert len(rows(0)) == size
        assert rows(0) == rows(0)
        assert len({tuple(rows(seed)) for seed in range(10)}) > 1
        if choice:
            whole = split_dataset(named(), **choice)["forget"]["row"][:]
            assert set(rows(3)) < set(whole)

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({}, "no choice of rows; expected one of indices"),
            ({"indices": [1], "labels": 1}, "indices and labels; expected one"),
            ({"indices": [12]}, "Row 12 is asked for.* rows 0 to 11"),
            ({"indices": [-1]}, "Row -1 is asked for"),
            ({"indices": [True, False]}, "indices are of type bool; expected row numbers"),
            ({"indices": [0.5]}, "indices are of type float64; expected row numbers"),
            ({"indices": []}, "No row is chosen"),
            ({"labels": "fish"}, r"no class named 'fish'.*\['cat', 'dog', 'bird'\]"),
            ({"labels": 3}, "No row is chosen"),
            ({"where": "worse"}, "no column 'worse'; the dataset has row, label, bad"),
            ({"where": lambda row: False}, "No row is chosen"),
            ({"fraction": 1.5}, "fraction is 1.5; expected a share between 0 and 1"),
            ({"fraction": 0.01}, "No row is chosen"),
        ],
    )
    def test_refused(self, choice, message):
        with pytest.raises(UnlearningError, match=message):
            split_dataset(named(), **choice)

    def test_names_need_a_class_label(self):
        with pytest.raises(UnlearningError, match="no class named 'cat'; the dataset knows numbers only"):
            split_dataset(sentences(4), labels="cat")

    @pytest.mark.parametrize(
        "dataset", [datasets.DatasetDict(train=named(), test=named()), named().to_iterable_dataset(), np.zeros(3)]
    )
    def test_needs_a_dataset(self, dataset):
        with pytest.raises(UnlearningError, match=f"is a {type(dataset).__name__}|got a {type(dataset).__name__}"):
            split_dataset(dataset, indices=[0])


class TestSplitUnseen:
    @pytest.mark.parametrize("sizes", [[10, 10, 10], [7, 1, 4], [1, 1], [0, 5]])
    def test_disjoint_exhaustive_and_balanced(self, sizes):
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
        control, evidence = split_unseen(labels, seed=3)
        assert sorted([*control, *evidence]) == list(range(len(labels)))
        for c, size in enumerate(sizes):
            counts = (labels[control] == c).sum(), (labels[evidence] == c).sum()
            assert sum(counts) == size and abs(counts[0] - counts[1]) <= 1
        assert abs(len(control) - len(evidence)) <= 1

    def test_depends_on_the_seed_alone(self):
        labels = np.arange(40) % 4
        first, again, other = (split_unseen(labels, seed)[0] for seed in (0, 0, 1))
        assert np.array_equal(first, again) and not np.array_equal(first, other)


def collate(dataset, processing_class=None, columns=None, data_collator=None, channels=3) -> Batch:
    source = Source(dataset, "forget", columns)
    return Collator(source, processing_class, data_collator, channels)(source.rows(range(len(dataset))))


class TestImageColumns:
    @pytest.mark.parametrize("column", ["image", "img"])
    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
    def test_all_modes_become_pixel_values(self, column, mode):
        data = pictures(3, mode=mode, column=column)
        batch = collate(data, tiny_image_processor())
        expected = tiny_image_processor()([row[column].convert("RGB") for row in data], return_tensors="pt")
        assert batch["pixel_values"].shape == (3, 3, 16, 16)
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert batch.labels.tolist() == [0, 1, 2]

    def test_other_names_by_argument(self):
        data = pictures(2, column="photo").rename_column("label", "kind")
        batch = collate(data, tiny_image_processor(), Columns(image="photo", label="kind"))
        assert batch["pixel_values"].shape == (2, 3, 16, 16) and batch.labels.tolist() == [0, 1]

    def test_one_channel_models_get_grey_images(self):
        class Shapes:
            def __call__(self, given, return_tensors):
                return {"pixel_values": torch.stack([torch.tensor(np.asarray(image)) for image in given])}

        assert collate(pictures(2), Shapes(), channels=1)["pixel_values"].shape == (2, 20, 20)

    def test_timm_processor(self):
        config = {"input_size": [3, 16, 16], "interpolation": "bicubic", "crop_pct": 1.0, "mean": [0.5] * 3}
        processor = TimmWrapperImageProcessor(config | {"std": [0.5] * 3}, architecture="resnet18")
        batch = collate(pictures(2, mode="L"), processor)
        assert batch["pixel_values"].shape == (2, 3, 16, 16)
        assert batch["pixel_values"].abs().max() <= 1.001 and batch["pixel_values"].std() > 0.1

    @pytest.mark.parametrize("kind", ["numpy", "torch"])
    def test_formatted_datasets(self, kind):
        data = pictures(2)
        batch = collate(data.with_format(kind), tiny_image_processor())
        assert torch.equal(batch["pixel_values"], collate(data, tiny_image_processor())["pixel_values"])

    def test_raw_columns_need_a_processing_class(self):
        with pytest.raises(UnlearningError, match=r"raw columns \(image\) but there is no processing class"):
            collate(pictures(2))

    def test_unknown_columns_are_named(self):
        data = pictures(2, column="scan")
        with pytest.raises(UnlearningError, match="columns scan, label; expected an image .* image_column= or text"):
            collate(data, tiny_image_processor())
        with pytest.raises(UnlearningError, match="columns scan, label, and no input column 'scam'"):
            collate(data, tiny_image_processor(), Columns(image="scam"))
        with pytest.raises(
            UnlearningError, match=r"no label column \(labels or label\). Name yours with label_column="
        ):
            collate(data.rename_column("label", "kind"), tiny_image_processor())


class TestTextColumns:
    def test_padded_and_truncated(self):
        data = sentences(20)
        batch = collate(data, tiny_tokenizer())
        lengths = [min(len(text.split()) + 2, MAX_LENGTH) for text in data["text"]]
        assert max(lengths) == MAX_LENGTH < max(len(text.split()) for text in data["text"])
        assert batch["input_ids"].shape == (20, MAX_LENGTH)
        assert batch["attention_mask"].sum(dim=1).tolist() == lengths
        assert ((batch["input_ids"] == PAD) == (batch["attention_mask"] == 0)).all()
        assert set(batch.inputs) <= set(tiny_tokenizer().model_input_names)

    @pytest.mark.parametrize(
        "names", [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("mine", "other")]
    )
    def test_pairs(self, names):
        rows = [("a cat", "the dog sees"), ("a bird eats", "big")]
        data = datasets.Dataset.from_dict(
            {n: [row[i] for row in rows] for i, n in enumerate(names)} | {"label": [0, 1]}
        )
        columns = Columns(text="mine", text_pair="other") if names[0] == "mine" else None
        batch = collate(data, tiny_tokenizer(), columns)
        expected = tiny_tokenizer()(*zip(*rows, strict=True), padding=True, return_tensors="pt")
        assert torch.equal(batch["input_ids"], expected["input_ids"])

    def test_tokenized_columns_are_padded(self):
        tokenizer = tiny_tokenizer()
        data = sentences(4).map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text")
        batch, raw = collate(data, tokenizer), collate(sentences(4), tokenizer)
        assert torch.equal(batch["input_ids"], raw["input_ids"])
        assert torch.equal(batch["attention_mask"], raw["attention_mask"])

    def test_tokenized_on_the_fly_under_another_label_name(self):
        tokenizer = tiny_tokenizer()

        def transform(rows):
            return {**tokenizer(rows["text"], truncation=True), "labels": rows["label"]}

        batch, raw = collate(sentences(4).with_transform(transform), tokenizer), collate(sentences(4), tokenizer)
        assert torch.equal(batch["input_ids"], raw["input_ids"]) and batch.labels.tolist() == [0, 1, 2, 0]

    def test_users_data_collator(self):
        tokenizer = tiny_tokenizer()
        data = sentences(4).map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text")
        batch = collate(data, data_collator=DataCollatorWithPadding(tokenizer))
        assert torch.equal(batch["input_ids"], collate(data, tokenizer)["input_ids"])
        assert batch.labels.tolist() == [0, 1, 2, 0]


class TestProcessedColumns:
    def test_pass_through(self):
        data = images(5)
        batch = collate(data)
        assert torch.equal(batch["pixel_values"], data["pixel_values"][:]) and batch.labels.tolist() == [0, 1, 2, 3, 0]
        assert set(batch) == {"pixel_values", "labels"}

    def test_lists_and_torch_datasets_of_dicts(self):
        class Rows(torch.utils.data.Dataset):
            def __len__(self):
                return 3

            def __getitem__(self, i):
                return {"pixel_values": torch.full((3, 4, 4), float(i)), "labels": torch.tensor(i), "name": f"row {i}"}

        for dataset in (Rows(), [Rows()[i] for i in range(3)]):
            batch = collate(dataset)
            assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 1, 2] and batch.labels.tolist() == [0, 1, 2]
            assert set(batch.inputs) == {"pixel_values"}
            assert Source(dataset, "forget").labels.tolist() == [0, 1, 2]

    def test_users_data_collator(self):
        def doubling(rows):
            batch = default_data_collator(rows)
            return {**batch, "pixel_values": 2 * batch["pixel_values"]}

        batch = collate(images(3), data_collator=doubling)
        assert torch.equal(batch["pixel_values"], 2 * images(3)["pixel_values"][:])
        assert batch.labels.tolist() == [0, 1, 2]

    def test_sets_must_have_the_same_columns(self):
        example = Collator(Source(pictures(2), "forget"), tiny_image_processor(), None)
        example.check(Source(pictures(4, seed=1), "retain"))
        for other in (pictures(2, column="img"), pictures(2).rename_column("label", "labels"), images(2)):
            with pytest.raises(
                UnlearningError, match="retain has the columns .*, and forget has image, label; expected"
            ):
                example.check(Source(other, "retain"))


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "expected"),
        [([1, None, 0], [1, -1, 0]), ([1.0, 2.0], [1, 2]), ([1.0, float("nan")], [1, -1]), ([True, False], [1, 0])],
    )
    def test_numbers(self, labels, expected):
        assert Source(datasets.Dataset.from_dict({"label": labels}), "forget").labels.tolist() == expected

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([float("inf"), 1.0], "labels of forget are fractions; expected class numbers"),
            ([0.5, 1.0], "labels of forget are fractions; expected class numbers"),
            ([[1, 0], [0, 1]], r"not one class number a sample \(\[1, 0\]\)"),
            ([[1], [0, 1]], "not one class number a sample"),
        ],
    )
    def test_refused(self, labels, message):
        with pytest.raises(UnlearningError, match=message):
            _ = Source(datasets.Dataset.from_dict({"label": labels}), "forget").labels


class CountingStream(torch.utils.data.IterableDataset):
    def __init__(self, n):
        self.n, self.reads, self.epochs = n, 0, []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        for i in range(self.n):
            self.reads += 1
            yield {"value": i, "label": i % 4}


class TestStreams:
    def test_read_forward_only_and_again_in_every_epoch(self):
        stream = CountingStream(10)
        reader = StreamReader(stream)
        assert [reader.row(0, i)["value"] for i in (0, 3, 4, 9)] == [0, 3, 4, 9]
        assert (stream.reads, stream.epochs) == (10, [0])
        assert [reader.row(1, i)["value"] for i in (2, 5)] == [2, 5]
        assert (stream.reads, stream.epochs) == (16, [0, 1])
        assert reader.row(1, 4)["value"] == 4  # behind the position: from the start again
        assert (stream.reads, stream.epochs) == (21, [0, 1, 1])

    def test_an_epoch_of_the_schedule_is_one_pass(self):
        stream = CountingStream(24)
        source = Source(stream, "retain", size=24)
        schedule = Schedule(["mixed"] * 2, n_forget=8, n_retain=24, batch_size=8, retain_is_stream=True)
        for batch in schedule.micro_batches(0, 0, 1, 1):
            for draw in batch:
                if draw.source == "retain":
                    assert source.rows([draw.index], draw.epoch)[0]["value"] == draw.index
        assert (stream.reads, stream.epochs) == (48, [0, 1])

    def test_shorter_than_said(self):
        with pytest.raises(UnlearningError, match="ended after 10 samples, but retain_size says .* more than 10"):
            StreamReader(CountingStream(10)).row(0, 10)

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("method", slow_but(["lotus"], ["lotus", "finetune"]))
    def test_same_samples_as_from_a_map_style_set(self, tmp_path, workers, method):
        def epochs(retain):
            args = arguments(tmp_path, retain_size=24, dataloader_num_workers=workers)
            data = request() | {"retain": retain}
            trainer = UnlearningTrainer(tiny_vit(), args, method=method, **for_trainer(data))
            found = [{}, {}]
            for step, batch in enumerate(trainer.get_train_dataloader()):
                for i, epoch in enumerate(batch.epoch.tolist()):
                    sample = bool(batch.is_forget[i]), int(batch.sample_index[i])
                    found[epoch][sample] = step if sample[0] else None, batch["pixel_values"][i].sum().item()
            return found

        retain = request()["retain"]
        streamed = epochs(retain.to_iterable_dataset(num_shards=4))
        assert streamed == epochs(retain)
        assert all(len(epoch) == (8 + int(0.3 * 24) if method == "lotus" else 24) for epoch in streamed)

    def test_shuffled_anew_in_every_epoch(self, tmp_path):
        """A position names another sample in every epoch then, so a table by position would be wrong."""
        args = arguments(tmp_path, retain_size=24)
        retain = request()["retain"].to_iterable_dataset()
        data = request() | {"retain": retain}
        assert UnlearningTrainer(tiny_vit(), args, **for_trainer(data)).deterministic
        data["retain"] = retain.shuffle(seed=0, buffer_size=24)
        assert not UnlearningTrainer(tiny_vit(), args, **for_trainer(data)).deterministic


class Noise:
    """An augmentation that draws from every generator."""

    def __call__(self, x):
        return x + random.random() + np.random.random() + torch.rand(())


class TestAugmentation:
    def samples(self, augment=None, **kwargs):
        sources = {"forget": Source(images(8), "forget"), "retain": Source(images(12, seed=1), "retain")}
        return DrawnSamples(sources, augment or Noise(), **kwargs)

    def read(self, samples, batch_size, workers=0, epochs=(0, 1)):
        draws = [
            Draw("mixed", source, index, epoch)
            for epoch in epochs
            for source, n in (("forget", 8), ("retain", 12))
            for index in range(n)
        ]
        batches = [draws[i : i + batch_size] for i in range(0, len(draws), batch_size)]
        collator = TrainingCollator(Collator(samples.sources["forget"], None, None))
        found = {}
        own = torch.Generator()  # a loader draws a seed for its workers from the global one otherwise
        for batch in DataLoader(
            samples, batch_sampler=batches, collate_fn=collator, num_workers=workers, generator=own
        ):
            for i in range(len(batch.labels)):
                found[int(batch.epoch[i]), int(batch.sample_index[i])] = batch["pixel_values"][i]
        assert len(found) == len(draws)
        return found

    def test_depends_on_seed_epoch_and_sample_alone(self):
        reference = self.read(self.samples(), 40)
        for other in (self.read(self.samples(), 3), self.read(self.samples(), 7, workers=2)):
            assert all(torch.equal(reference[key], other[key]) for key in reference)
        plain = self.read(DrawnSamples(self.samples().sources), 40)
        shifts = {key: (reference[key] - plain[key]).mean().item() for key in reference}
        assert len({round(shift, 5) for shift in shifts.values()}) == len(shifts)  # every epoch and sample has its own
        changed = self.read(self.samples(seed=1), 40)
        assert not any(torch.equal(reference[key], changed[key]) for key in reference)

    @pytest.mark.parametrize("seeded", [True, False])
    def test_leaves_the_global_generators_alone(self, seeded):
        samples = self.samples() if seeded else DrawnSamples(self.samples().sources)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        self.read(samples, 8)
        assert random.getstate() == before[0]
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert torch.equal(torch.get_rng_state(), before[2])

    def test_an_error_puts_the_generators_back(self):
        def broken(x):
            torch.rand(3)
            raise RuntimeError("no")

        before = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="no"):
            self.samples(broken).__getitems__([Draw("mixed", "forget", 0, 0)])
        assert torch.equal(torch.get_rng_state(), before)

    def test_raw_images(self):
        sources = {"forget": Source(pictures(4), "forget")}
        flipped = DrawnSamples(sources, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        (_, _, row), *_ = flipped.__getitems__([Draw("forget", "forget", 1, 0)])
        assert np.array_equal(np.asarray(row["image"]), np.asarray(pictures(4)[1]["image"])[:, ::-1])

    def test_in_a_trainer_only_training_is_augmented(self, tmp_path):
        data = for_trainer(request())
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), augment=lambda x: x + 100, **data)
        assert all(batch["pixel_values"].mean() > 90 for batch in trainer.get_train_dataloader())
        for split, (name, indices) in trainer.indices.items():
            for _, batch in trainer.evaluator.batches(name, indices, (0, 1)):
                assert batch["pixel_values"].mean() < 10, split
        assert isinstance(Context(trainer).teacher("auto"), OnlineTeacher)


class TestDeterminism:
    def jittered(self, data):
        return data.with_transform(
            lambda rows: {
                "pixel_values": [torch.as_tensor(x) + torch.rand(()) for x in rows["pixel_values"]],
                "label": rows["label"],
            }
        )

    @pytest.mark.parametrize("which", ["forget", "retain"])
    def test_random_transform_is_found(self, which, tmp_path):
        data = request()
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), **for_trainer(data))
        assert trainer.deterministic and isinstance(Context(trainer).teacher("auto"), TableTeacher)
        data[which] = self.jittered(data[which])
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), **for_trainer(data))
        assert not trainer.deterministic and isinstance(Context(trainer).teacher("auto"), OnlineTeacher)
        with pytest.raises(UnlearningError, match='cache_teacher is "always", but reading a sample twice'):
            Context(trainer).teacher("always")

    def test_random_transform_repeats_for_a_sample(self, tmp_path):
        data = for_trainer(request() | {"retain": self.jittered(request()["retain"])})

        def pixels(batch_size):
            args = arguments(tmp_path, per_device_train_batch_size=batch_size)
            trainer = UnlearningTrainer(tiny_vit(), args, method="finetune", **data)
            found = {}
            for batch in trainer.get_train_dataloader():
                for i in range(len(batch.labels)):
                    found[int(batch.epoch[i]), int(batch.sample_index[i])] = batch["pixel_values"][i]
            return found

        a, b = pixels(8), pixels(5)
        assert len(a) == 48 and all(torch.equal(a[key], b[key]) for key in a)
        assert not torch.equal(a[0, 20], a[1, 20])

    def test_inputs_of_changing_size_are_not_deterministic(self):
        data = sentences(4).with_transform(
            lambda rows: rows | {"text": [" a" * random.randint(1, 30) for _ in rows["text"]]}
        )
        source = Source(data, "forget")
        random.seed(0)
        assert not is_deterministic(source, Collator(source, tiny_tokenizer(), None))


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


class TestOverlap:
    def looked_at(self, **sets):
        check_overlaps({name: Source(rows, name) for name, rows in sets.items()})

    def refused(self, forget, other, shared, rows):
        with pytest.raises(
            UnlearningError, match=f"{shared} of the .* samples stand in retain too .rows {rows} of fo"
        ):
            self.looked_at(forget=forget, retain=other)

    @pytest.mark.parametrize("make", [images, pictures, sentences])
    def test_shared_rows_are_counted_and_named(self, make):
        data = make(20)
        self.looked_at(forget=data.select(range(8)), retain=data.select(range(8, 20)))
        self.refused(data.select(range(8)), data.select(range(6, 20)), 2, "6, 7")

    def test_ten_rows_are_named_at_most(self):
        self.refused(images(20), images(20), 20, r"0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.")

    def test_labels_do_not_matter(self):
        data = pictures(4)
        other = data.map(lambda row: {"label": (row["label"] + 1) % 4})
        self.refused(data.select([1]), other, 1, "0")

    def test_text_pairs_are_compared_as_pairs(self):
        def pairs(*rows):
            return datasets.Dataset.from_dict(
                {
                    "sentence1": [row[0] for row in rows],
                    "sentence2": [row[1] for row in rows],
                    "label": [0] * len(rows),
                }
            )

        forget, retain = pairs(("a", "b"), ("ab", "")), pairs(("a", "c"), ("b", "a"), ("", "ab"))
        self.looked_at(forget=forget, retain=retain)
        self.refused(forget, pairs(("x", "y"), ("ab", "")), 1, "1")

    def test_images_on_disk_and_embedded(self, tmp_path):
        rng = np.random.default_rng(0)
        contents = [encoded(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(3)]
        for i, content in enumerate(contents):
            (tmp_path / f"{i}.png").write_bytes(content)
        on_disk = {"image": [str(tmp_path / f"{i}.png") for i in range(2)], "label": [0, 1]}
        embedded = {"image": [{"bytes": content, "path": None} for content in contents[1:]], "label": [1, 2]}
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        forget, retain = (datasets.Dataset.from_dict(d, features=features) for d in (on_disk, embedded))
        self.refused(forget, retain, 1, "1")

    def test_torch_datasets(self):
        rows = [{"pixel_values": torch.full((3, 2, 2), float(i)), "label": 0} for i in range(4)]
        self.refused(rows[:2], rows[1:], 1, "1")

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            *(("forget", "retain"), ("forget", "unseen"), ("forget", "test")),
            *(("unseen", "retain"), ("test", "retain"), ("test", "unseen")),
        ],
    )
    def test_allow(self, tmp_path, one, other):
        """Any two of the sets: unseen samples that were trained on, and evidence that has steered, say nothing."""
        data = request() | {"test": images(8, seed=9)}
        data[other] = datasets.concatenate_datasets(
            [data[other].with_format(None), data[one].with_format(None).select([3])]
        )
        data[other] = data[other].with_format("torch")
        size = len(data[one])
        with pytest.raises(
            UnlearningError, match=rf'1 of the {size} {one} samples stand in {other} too \(rows 3 of .*"allow"'
        ):
            UnlearningTrainer(tiny_vit(), arguments(tmp_path), **for_trainer(data))
        UnlearningTrainer(tiny_vit(), arguments(tmp_path), overlap="allow", **for_trainer(data))


class TestUnreadable:
    def broken(self, content) -> datasets.Dataset:
        good = [{"bytes": encoded(np.full((4, 4, 3), i, np.uint8)), "path": None} for i in range(4)]
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        stored = {"image": [*good[:2], content, *good[2:]], "label": [0, 1, 2, 3, 0]}
        return datasets.Dataset.from_dict(stored, features=features)

    @pytest.mark.parametrize(
        "content",
        [
            {"bytes": b"no image", "path": None},
            {"bytes": encoded(np.zeros((30, 30, 3), np.uint8))[:-20], "path": None},
            {"bytes": None, "path": "/nowhere/cat.png"},
            None,
        ],
        ids=["text", "truncated", "missing file", "nothing"],
    )
    def test_row_is_named_before_anything_is_read(self, content):
        with pytest.raises(UnlearningError, match=r"Row 2 of forget cannot be read \(.+\); remove the row or replace"):
            check_overlaps({"forget": Source(self.broken(content), "forget")})

    @pytest.mark.parametrize(
        "content",
        [
            {"bytes": b"no image", "path": None},
            {"bytes": None, "path": "/nowhere.png"},
            {"bytes": encoded(np.arange(2700, dtype=np.uint8).reshape(30, 30, 3), "jpeg")[:-200], "path": None},
        ],
        ids=["text", "missing file", "truncated"],
    )
    def test_row_is_named_when_it_is_read(self, content):
        with pytest.raises(UnlearningError, match="Row 2 of forget cannot be read"):
            Source(self.broken(content), "forget").rows([0, 1, 2, 3])

    def test_a_row_without_text(self):
        data = datasets.Dataset.from_dict({"text": ["a", None], "label": [0, 1]})
        with pytest.raises(UnlearningError, match="Row 1 of forget cannot be read .nothing is stored"):
            Source(data, "forget").digests()


class TestBatchMean:
    def test_one_batch(self):
        values = torch.arange(6.0)
        batch = Batch(weight=torch.full((6,), 1 / 6, dtype=torch.float64))
        assert batch.mean(values).item() == pytest.approx(values.mean().item(), rel=1e-7)
        assert batch.mean(values).dtype == torch.float32

    @pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 3), (2, 1), (2, 2), (4, 4)])
    @pytest.mark.parametrize("kind", ["mixed", "paired"])
    def test_micro_batches_add_up(self, world, accumulation, kind):
        """Summed over micro-batches and averaged over processes: the mean of the whole step, ragged last one too."""
        schedule = Schedule([kind], n_forget=5, n_retain=18, batch_size=8)
        value = {("forget", i): 1.0 + i for i in range(5)} | {("retain", i): -2.0 * i for i in range(18)}
        expected = [
            sum(np.mean([value[d.source, d.index] for d in draws]) for draws in schedule.step(step).values())
            for step in range(len(schedule))
        ]
        totals = np.zeros(len(schedule))
        for rank in range(world):
            for i, draws in enumerate(schedule.micro_batches(0, rank, world, accumulation)):
                for group in {draw.group for draw in draws}:
                    members = [draw for draw in draws if draw.group == group]
                    batch = Batch(weight=torch.tensor([draw.weight for draw in members], dtype=torch.float64))
                    values = torch.tensor([value[d.source, d.index] for d in members], dtype=torch.float64)
                    totals[i // accumulation] += batch.mean(values).item() / world
        assert totals == pytest.approx(expected, rel=1e-12)


def test_text_model_trains_on_raw_texts(tmp_path):
    """From raw columns to weights: a text classifier and its tokenizer, with a ragged last batch."""
    trainer = UnlearningTrainer(
        tiny_bert(),
        arguments(tmp_path, per_device_train_batch_size=6),
        method="finetune",
        processing_class=tiny_tokenizer(),
        **for_trainer(request(sentences)),
    )
    before = tiny_bert().state_dict()
    trainer.train()
    changed = [name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert trainer.state.global_step == 8 and "classifier.weight" in changed
