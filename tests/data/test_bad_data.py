"""Data that a model cannot read, or would read wrongly, is refused in one sentence before any forward pass."""

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hf_unlearn import UnlearningError, UnlearningTrainer, audit, unlearn
from hf_unlearn.data.overlap import check_overlaps
from hf_unlearn.data.pictures import as_picture
from hf_unlearn.data.source import Source
from hf_unlearn.tasks import checks
from tests.data.test_data import encoded
from tests.samples import arguments, for_trainer, images, pictures, request, same_bits, sentences, weights
from tests.tiny import (
    MAX_LENGTH,
    tiny_bert,
    tiny_gpt2_classifier,
    tiny_image_processor,
    tiny_llama_lm,
    tiny_resnet,
    tiny_tokenizer,
    tiny_vit,
)
from tests.training.test_errors import files


def rows_of(data: datasets.Dataset, **changed) -> list[dict]:
    """The rows as a list of dicts, with values of row 3 replaced; a value that is ... is left out."""
    rows = [dict(row) for row in data]
    for name, value in changed.items():
        rows[3][name] = value
    rows[3] = {name: value for name, value in rows[3].items() if value is not ...}
    return rows


def refused(folder, message: str, model, data: dict, **more) -> None:
    """Refused in one sentence; no pass of the model came to its end, and model and disk are as they were."""
    passes, before = [], weights(model)
    model.register_forward_hook(lambda module, inputs, output: passes.append(output.logits.device.type))
    args = arguments(folder / "out", **more.pop("args", {}))
    with pytest.raises(UnlearningError, match=message) as caught:
        unlearn(model, **data, args=args, **{"method": "finetune", **more})
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 500, text
    assert "cpu" not in passes  # shapes alone may have gone through
    assert same_bits(before, weights(model)) and files(folder) == []


PIXELS = images(8, seed=1)
TEXTS = sentences(8, seed=1)
PICTURES = pictures(8, seed=1)


def a_pixel(value: float) -> torch.Tensor:
    pixels = PIXELS[3]["pixel_values"].clone()
    pixels[0, 0, 0] = value
    return pixels


def ragged(sizes: list[int]) -> datasets.Dataset:
    rng = np.random.default_rng(7)
    return datasets.Dataset.from_list(
        [{"pixel_values": rng.normal(size=(3, size, size)).tolist(), "label": i % 4} for i, size in enumerate(sizes)]
    )


class Lying(torch.utils.data.Dataset):
    """Says that it is longer than it is."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return rows_of(PIXELS)[i]


class TestProcessedPictures:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: rows_of(PIXELS, pixel_values=None), "Row 3 of forget cannot be read .nothing is stored"),
            (lambda: rows_of(PIXELS, pixel_values=...), "Row 3 of forget cannot be read .nothing is stored"),
            (lambda: rows_of(PIXELS, pixel_values="x.png"), "Row 3 of forget cannot be read"),
            (lambda: rows_of(PIXELS, pixel_values={"a": 1}), "Row 3 of forget .*dictionary of a, and no picture"),
            (lambda: rows_of(PIXELS, pixel_values=object()), "Row 3 of forget .*it is a object, and no array of numbers"),
            (lambda: rows_of(PIXELS, pixel_values=torch.zeros(3, 16, 16).to_sparse()), "Row 3 of forget cannot be read"),
            (lambda: rows_of(PIXELS, pixel_values=torch.zeros(3, 20, 20)), r"Row 3 of forget has pixel_values of shape \(3, 20, 20\), and row 0 of forget of shape \(3, 16, 16\)"),
            (lambda: rows_of(PIXELS, pixel_values=torch.zeros(16, 16)), r"Row 3 of forget has pixel_values of shape \(16, 16\)"),
            (lambda: rows_of(PIXELS, pixel_values=a_pixel(float("nan"))), "pixel_values of row 3 of forget are NaN or infinite"),
            (lambda: rows_of(PIXELS, pixel_values=a_pixel(float("-inf"))), "pixel_values of row 3 of forget are NaN or infinite"),
            (lambda: [{**row, "pixel_values": (row["pixel_values"] * 9).to(torch.uint8)} for row in rows_of(PIXELS)], "pixel_values of forget are of type uint8; expected fractions"),
            (lambda: [{**row, "pixel_values": row["pixel_values"].to(torch.complex64)} for row in rows_of(PIXELS)], "pixel_values of forget are of type complex64"),
            (lambda: [{**row, "pixel_values": [["1", "2"]]} for row in rows_of(PIXELS)], "Row 0 of forget cannot be read"),
            (lambda: ragged([16] * 7 + [20]), r"Row 7 of forget has pixel_values of shape \(3, 20, 20\)"),
            (lambda: ragged([20] * 8), r"pixel_values of forget are|model cannot read forget, .*\(3, 20, 20\)"),
            (lambda: images(8, seed=1, size=20), r"The model cannot read forget, .*\(3, 20, 20\) .ValueError: Input image size"),
            (lambda: [{**row, "pixel_values": row["pixel_values"][:1]} for row in rows_of(PIXELS)], r"The model cannot read forget, .*\(1, 16, 16\)"),
            (lambda: [*rows_of(PIXELS)[:5], (1, 2)], "A row of forget is a tuple; expected a dict"),
            (lambda: [*rows_of(PIXELS)[:5], None], "A row of forget is a NoneType; expected a dict"),
            (Lying, "Row 8 of forget cannot be read .IndexError"),
        ],
    )  # fmt: skip
    def test_forget(self, tmp_path, make, message):
        refused(tmp_path, message, tiny_vit(), request() | {"forget": make()})

    def test_sets_of_two_sizes(self, tmp_path):
        data = request() | {"unseen": images(16, seed=3, size=20)}
        refused(
            tmp_path, r"pixel_values of unseen are of shape \(3, 20, 20\), and those of forget", tiny_resnet(), data
        )

    def test_a_transform_that_fails_deep_in_a_set(self, tmp_path):
        """A row that is not looked at before is named when it is read."""

        def transform(rows):
            if any(label == 1 and i.sum() < -20 for i, label in zip(rows["pixel_values"], rows["label"], strict=True)):
                raise KeyError("no such thing")
            return rows

        data = images(200, seed=1).with_transform(lambda rows: rows)
        bad = next(
            i
            for i in range(200)
            if int(images(200, seed=1)["label"][i]) == 1 and images(200, seed=1)["pixel_values"][i].sum() < -20
        )
        data = data.with_transform(
            lambda rows: transform({k: [torch.as_tensor(x) for x in v] for k, v in rows.items()})
        )
        source = Source(data, "retain")
        with pytest.raises(
            UnlearningError, match=rf"Row {bad} of retain cannot be read .KeyError: 'no such thing'"
        ) as caught:
            source.rows(range(bad + 1))
        assert isinstance(caught.value.__cause__, KeyError)


class TestLabels:
    @pytest.mark.parametrize(
        ("label", "message"),
        [
            (None, r"1 of the 8 samples of forget have labels the model does not have \(row 3: no label\)"),
            (..., "row 3: no label"),
            (0.5, "labels of forget are fractions"),
            (float("nan"), "row 3: no label"),
            (float("inf"), "labels of forget are fractions"),
            (1 + 2j, "not one class number a sample"),
            ("cat", "labels of forget are partly text"),
            (b"cat", "not one class number a sample"),
            ([1], "not one class number a sample"),
            ({"a": 1}, "not one class number a sample"),
            (torch.tensor([1, 2]), "not one class number a sample"),
            (4, "row 3: label 4"),
            (2**40, f"row 3: label {2**40}"),
            (-2, "row 3: label -2"),
        ],
    )
    @pytest.mark.parametrize("which", ["forget", "unseen"])
    def test_of_one_row(self, tmp_path, label, message, which):
        data = request()
        data[which] = rows_of(data[which], label=label)
        message = message.replace("forget", which).replace("8 samples", f"{len(data[which])} samples")
        refused(tmp_path, message, tiny_vit(), data)

    def test_a_transform_that_changes_them(self, tmp_path):
        data = request()
        data["retain"] = data["retain"].with_transform(
            lambda rows: {
                "pixel_values": list(map(torch.as_tensor, rows["pixel_values"])),
                "label": [0] * len(rows["label"]),
            }
        )
        refused(tmp_path, "Row 2 of retain has the label 2 as it is stored, and 0 in a batch", tiny_vit(), data)

    @pytest.mark.parametrize(
        ("collate", "message"),
        [
            (lambda rows: {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}, "A batch of forget has no labels"),
            (lambda rows: {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": torch.zeros(len(rows), 4)}, "A batch of forget has labels of type Tensor"),
            (lambda rows: {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": torch.ones(len(rows))}, "Row 0 of forget has the label 0 as it is stored, and 1.0 in a batch"),
            (lambda rows: 7, "Row 0 of forget cannot be read: TypeError"),
            (lambda rows: {}["x"], "Row 0 of forget cannot be read: KeyError: 'x'"),
            ("default", "data_collator is 'default'; expected a function"),
        ],
    )  # fmt: skip
    def test_data_collators(self, tmp_path, collate, message):
        refused(tmp_path, message, tiny_vit(), request(), data_collator=collate)


def stored(content: dict | None) -> datasets.Dataset:
    """Pictures in files, one of them with this content."""
    whole = [{"bytes": encoded(np.asarray(picture)), "path": None} for picture in PICTURES["image"]]
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    rows = {"image": [*whole[:3], content, *whole[4:]], "label": [i % 4 for i in range(8)]}
    return datasets.Dataset.from_dict(rows, features=features)


def half(kind: str) -> dict:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(pixels, kind)
    return {"bytes": content[: len(content) // 2], "path": None}


class TestPictures:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: stored(None), "Row 3 of forget cannot be read .nothing is stored"),
            (lambda: stored({"bytes": b"", "path": None}), "Row 3 of forget cannot be read .nothing is stored"),
            (lambda: stored({"bytes": b"no picture", "path": None}), "Row 3 of forget cannot be read .cannot identify"),
            (lambda: stored({"bytes": None, "path": "/no/such.png"}), "Row 3 of forget cannot be read .*No such file"),
            *((lambda kind=kind: stored(half(kind)), "Row 3 of forget cannot be read") for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff")),
            (lambda: rows_of(PICTURES, image=None), "Row 3 of forget cannot be read .nothing is stored"),
            (lambda: rows_of(PICTURES, image="cat.png"), "Row 3 of forget .*holds text .'cat.png'"),
            (lambda: rows_of(PICTURES, image=b"cat.png"), "Row 3 of forget .*holds text"),
            (lambda: rows_of(PICTURES, image={"x": 1}), "Row 3 of forget .*dictionary of x, and no picture"),
            (lambda: rows_of(PICTURES, image=5), "Row 3 of forget .*int of shape"),
            (lambda: rows_of(PICTURES, image=np.zeros((2, 3, 20, 20), np.uint8)), r"Row 3 of forget .*shape \(2, 3, 20, 20\)"),
            (lambda: rows_of(PICTURES, image=np.zeros((20, 20, 7), np.uint8)), "Row 3 of forget cannot be read"),
            (lambda: rows_of(PICTURES, image=np.random.default_rng(0).random((20, 20, 3))), "Row 3 of forget .*takes them for 0 to 255"),
            (lambda: rows_of(PICTURES, image=np.full((20, 20, 3), np.nan)), "Row 3 of forget .*NaN or infinite"),
            (lambda: rows_of(PICTURES, image=np.full((20, 20, 3), 1j)), "Row 3 of forget .*of type complex128"),
            (lambda: rows_of(PICTURES, image=np.full((20, 20, 3), 4000, np.int32)), "Row 3 of forget .*from 4000 to 4000 in numbers of 32 bits"),
            (lambda: rows_of(PICTURES, image=Image.fromarray(np.full((20, 20), 4000, np.int32))), "Row 3 of forget .*32 bits"),
            (lambda: rows_of(PICTURES, image=Image.fromarray(np.full((20, 20), 0.5, np.float32))), "Row 3 of forget .*from 0.5 to 0.5"),
            (lambda: PICTURES.cast_column("image", datasets.Image(decode=False)), "Row 0 of forget .*dictionary of bytes, path.*cast"),
            (lambda: datasets.Dataset.from_dict({"image": ["a.png"] * 8, "label": [0] * 8}), "Row 0 of forget .*holds text"),
            (lambda: datasets.Dataset.from_dict({"image": [1.5] * 8, "label": [0] * 8}), "Row 0 of forget .*of shape"),
        ],
    )  # fmt: skip
    def test_forget(self, tmp_path, make, message):
        data = request(pictures) | {"forget": make(), "processing_class": tiny_image_processor()}
        refused(tmp_path, message, tiny_vit(), data)

    @pytest.mark.parametrize(
        ("processing", "message"),
        [
            (tiny_image_processor(20), r"The model cannot read forget, .*\(3, 20, 20\) .*own image processor"),
            (tiny_tokenizer(), "Row 0 of forget .*and the tokenizer reads text"),
            ("google/vit", "processing_class is 'google/vit'; expected an image processor"),
        ],
    )
    def test_processing_classes(self, tmp_path, processing, message):
        refused(tmp_path, message, tiny_vit(), request(pictures) | {"processing_class": processing})

    def test_a_convolutional_network_reads_any_size(self, tmp_path):
        data = request(pictures) | {"processing_class": tiny_image_processor(20)}
        data = {k: v for k, v in data.items() if k != "processing_class"}
        UnlearningTrainer(
            tiny_resnet(), arguments(tmp_path), processing_class=tiny_image_processor(20), **for_trainer(data)
        )

    def test_half_a_jpeg_without_the_look_for_overlap(self, tmp_path):
        data = request(pictures) | {"forget": stored(half("jpeg")), "processing_class": tiny_image_processor()}
        refused(tmp_path, "Row 3 of forget cannot be read .image file is truncated", tiny_vit(), data, overlap="allow")

    @pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
    def test_whole_files_are_fine(self, kind):
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        source = Source(stored({"bytes": encoded(pixels, kind), "path": None}), "forget")
        check_overlaps({"forget": source})


class TestDepth:
    """Pictures of other depths have the same shades as in eight bits."""

    GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)

    @pytest.mark.parametrize("order", ["<u2", ">u2"])
    def test_sixteen_bits(self, order):
        deep = Image.frombytes(
            "I;16" if order == "<u2" else "I;16B", (16, 16), (self.GREYS.astype(order) * 257).tobytes()
        )
        for channels, mode in ((1, "L"), (3, "RGB")):
            found = as_picture(deep, channels)
            assert found.mode == mode and np.array_equal(np.asarray(found.convert("L")), self.GREYS)

    def test_a_png_of_sixteen_bits(self):
        data = datasets.Dataset.from_dict(
            {"image": [{"bytes": encoded(self.GREYS.astype(np.uint16) * 257), "path": None}], "label": [0]},
            features=datasets.Features(image=datasets.Image(), label=datasets.Value("int64")),
        )
        for image in (data[0]["image"], data.with_format("numpy")[0]["image"], data.with_format("torch")[0]["image"]):
            assert np.array_equal(np.asarray(as_picture(image, 3).convert("L")), self.GREYS)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32])
    def test_eight_bits_in_wider_numbers(self, dtype):
        image = as_picture(self.GREYS.astype(dtype), 3, rescales=True)
        assert np.array_equal(np.asarray(image.convert("L") if dtype != np.float32 else image), self.GREYS)

    def test_black_and_white(self):
        pixels = self.GREYS > 100
        for image in (pixels, Image.fromarray(pixels)):
            assert set(np.unique(np.asarray(as_picture(image, 3)))) == {0, 255}

    def test_pixels_of_a_processor_that_does_not_rescale(self):
        pixels = np.random.default_rng(0).random((16, 16, 3))
        assert as_picture(pixels, 3) is pixels


def tokenized(**changed) -> list[dict]:
    tokenizer = tiny_tokenizer()
    data = TEXTS.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text")
    return rows_of(data, **changed)


def padded_by(token: str | None):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = token
    return tokenizer


def bare_tokenizer():
    """As that of GPT-2: nothing around a text."""
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = None
    return tokenizer


class TestTexts:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: rows_of(TEXTS, text=None), "Row 3 of forget cannot be read .nothing is stored"),
            (lambda: rows_of(TEXTS, text=...), "Row 3 of forget cannot be read .nothing is stored"),
            (lambda: rows_of(TEXTS, text=7), "Row 3 of forget .*holds 7, and the tokenizer reads text"),
            (lambda: rows_of(TEXTS, text=["a", "cat"]), r"Row 3 of forget .*holds \['a', 'cat'\], and the tokenizer"),
            (lambda: rows_of(TEXTS, text=float("nan")), "Row 3 of forget .*holds nan, and the tokenizer"),
            (lambda: datasets.Dataset.from_dict({"text": list(range(8)), "label": [0] * 8}), "Row 0 of forget .*holds 0, and the"),
            (lambda: pd.DataFrame({"text": ["a"] * 7 + [None], "label": [0] * 8}), "Row 7 of forget cannot be read .nothing is stored"),
            (lambda: pd.DataFrame({"text": ["a", 1], "label": [0, 1]}), "forget is a table that cannot be made a datasets.Dataset"),
            (lambda: {"text": ["a"], "label": [0]}, r"forget is a dict with text, label; expected rows.*from_dict\(\)"),
            (lambda: datasets.DatasetDict(train=TEXTS, test=TEXTS), "forget is a DatasetDict with train, test; pass one of them"),
            (lambda: datasets.IterableDatasetDict(train=TEXTS.to_iterable_dataset()), "forget is a IterableDatasetDict with train; pass one"),
            (lambda: "data.csv", "A row of forget is a str; expected a dict"),
            (lambda: np.zeros((8, 3)), "A row of forget is a ndarray; expected a dict"),
            (lambda: pd.Series(["a", "b"]), "A row of forget is a str; expected a dict"),
            (lambda: (row for row in TEXTS), "forget is a generator; expected a datasets.Dataset"),
        ],
    )  # fmt: skip
    def test_forget(self, tmp_path, make, message):
        data = request(sentences) | {"forget": make(), "processing_class": tiny_tokenizer()}
        refused(tmp_path, message, tiny_bert(), data, args={"max_steps": 1})

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"input_ids": None}, "Row 3 of forget cannot be read .nothing is stored"),
            ({"input_ids": [2, 24, 3], "attention_mask": [1, 1, 1]}, "Row 3 of forget .*token has the id 24, and the model knows 0 to 23"),
            ({"input_ids": [2, -1, 3], "attention_mask": [1, 1, 1]}, "Row 3 of forget .*token has the id -1"),
            ({"input_ids": [2, 5.5, 3], "attention_mask": [1, 1, 1]}, "Row 3 of forget cannot be read"),
            ({"input_ids": "2 5 3"}, "Row 3 of forget cannot be read"),
            ({"input_ids": ["2", "5", "3"]}, "Row 3 of forget cannot be read"),
            ({"input_ids": [], "attention_mask": [], "token_type_ids": []}, "Row 3 of forget .*text is empty"),
            ({"input_ids": [2] * 70, "attention_mask": [1] * 70, "token_type_ids": [0] * 70}, "Row 3 of forget .*70 tokens, and the model reads 64"),
        ],
    )  # fmt: skip
    def test_tokens(self, tmp_path, changed, message):
        others = {name: rows for name, rows in request(sentences).items() if name != "forget"}
        tokenizer = tiny_tokenizer()
        data = {
            name: part.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text")
            for name, part in others.items()
        }
        refused(tmp_path, message, tiny_bert(), data | {"forget": tokenized(**changed), "processing_class": tokenizer})

    def test_a_tokenizer_of_another_model(self, tmp_path):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["zebra"])
        rows = rows_of(TEXTS, text="a zebra")
        data = request(sentences) | {"forget": rows, "processing_class": tokenizer}
        refused(
            tmp_path,
            "Row 3 of forget .*token has the id 24, and .*expected the tokenizer of this model",
            tiny_bert(),
            data,
        )

    def test_an_image_processor(self, tmp_path):
        data = request(sentences) | {"processing_class": tiny_image_processor()}
        refused(tmp_path, "Row 0 of forget .*holds text", tiny_bert(), data)

    def test_no_padding_token(self, tmp_path):
        data = request(sentences) | {"processing_class": padded_by(None)}
        refused(tmp_path, "tokenizer has no padding token, .*set tokenizer.pad_token", tiny_bert(), data)

    @pytest.mark.parametrize(("known", "message"), [(None, "pad_token_id is None"), (5, "pad_token_id is 5")])
    def test_a_decoder_that_does_not_know_the_padding(self, tmp_path, known, message):
        model = tiny_gpt2_classifier()
        model.config.pad_token_id = known
        data = request(sentences) | {"processing_class": tiny_tokenizer()}
        refused(tmp_path, f"The tokenizer pads with the token 0, and model.config.{message}, by which", model, data)

    @pytest.mark.parametrize("known", [None, 5])
    def test_an_encoder_need_not_know_it(self, tmp_path, known):
        model = tiny_bert()
        model.config.pad_token_id = known
        UnlearningTrainer(
            model,
            arguments(tmp_path),
            method="finetune",
            processing_class=tiny_tokenizer(),
            **for_trainer(request(sentences)),
        )

    @pytest.mark.parametrize("text", ["", "   ", "\n"])
    @pytest.mark.parametrize("which", ["forget", "retain"])
    def test_an_empty_text(self, tmp_path, text, which):
        data = request(sentences)
        data[which] = rows_of(data[which], text=text)
        message = f"Row 3 of {which} .*text is empty: it has no token"
        refused(tmp_path, message, tiny_gpt2_classifier(), data | {"processing_class": bare_tokenizer()})

    def test_a_table(self, tmp_path):
        data = request(sentences)
        for name, part in data.items():
            data[name] = part.to_pandas()
        data["retain"].index = range(100, 124)
        for given in (data, request(sentences) | {"retain": request(sentences)["retain"].with_format("pandas")}):
            trainer = UnlearningTrainer(
                tiny_bert(),
                arguments(tmp_path),
                processing_class=tiny_tokenizer(),
                method="finetune",
                **for_trainer(given),
            )
            assert trainer.sources["retain"].labels.tolist() == [i % 3 for i in range(24)]
            assert next(iter(trainer.get_train_dataloader()))["input_ids"].shape[1] <= MAX_LENGTH


class Broken(torch.utils.data.IterableDataset):
    def __init__(self, rows, fails_at=None):
        self.rows, self.fails_at = rows, fails_at

    def __iter__(self):
        for i, row in enumerate(self.rows):
            if i == self.fails_at:
                raise OSError("connection lost")
            yield row


class Once(torch.utils.data.IterableDataset):
    """A stream that is used up when it has been read."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


class TestStreams:
    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (0, "retain_size is 0; expected 1 or more"),
            (-3, "retain_size is -3; expected 1 or more"),
            (25, "stream of retained samples ended after 24 samples, but retain_size"),
            (10_000, "stream of retained samples ended after 24 samples, but retain_size"),
        ],
    )
    def test_sizes(self, tmp_path, size, message):
        data = request() | {"retain": request()["retain"].to_iterable_dataset()}
        refused(tmp_path, message, tiny_vit(), data, args={"retain_size": size})

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda rows: Broken([]), "ended after 0 samples"),
            (lambda rows: Broken(rows, 20), "Sample 20 of the stream .*connection lost"),
            (lambda rows: Broken(rows, 0), "Sample 0 of the stream .*connection lost"),
            (lambda rows: Once(rows), "ended after .* can be read again in every epoch"),
            (lambda rows: Broken([*rows[:20], (1, 2), *rows[21:]]), "A row of retain is a tuple"),
            (lambda rows: Broken(rows_of(rows, label=0.5)), "A sample of retain has the label 0.5; expected 0 to 3"),
            (lambda rows: Broken(rows_of(rows, label=...)), "A sample of retain has the label None"),
            (lambda rows: Broken(rows_of(rows, label=[1])), r"A sample of retain has the label \[1\]"),
            (lambda rows: Broken(rows_of(rows, pixel_values=torch.zeros(3, 20, 20))), "Row 3 of retain has pixel_values of shape"),
        ],
    )  # fmt: skip
    def test_samples(self, tmp_path, make, message):
        retain = make(rows_of(request()["retain"]))
        refused(tmp_path, message, tiny_vit(), request() | {"retain": retain}, args={"retain_size": 24})


class TestLanguageModels:
    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": "a cat", "completion": None}, "Row 1 of forget cannot be read .nothing is stored"),
            ({"prompt": None, "completion": "a cat"}, "Row 1 of forget cannot be read .nothing is stored"),
            ({"prompt": "a cat", "completion": 5}, "Row 1 of forget cannot be read: a completion is 5; expected text"),
            ({"prompt": "a cat"}, "Row 1 of forget cannot be read .nothing is stored"),
        ],
    )
    def test_completions(self, tmp_path, row, message):
        good = [{"prompt": "a cat", "completion": f"{word} dog"} for word in ("sees", "eats", "likes")]
        data = {"forget": [good[0], row], "retain": good[1:2], "unseen": good[2:]}
        refused(tmp_path, message, tiny_llama_lm(), data | {"processing_class": tiny_tokenizer()}, method="grad_diff")

    def test_token_ids(self, tmp_path):
        good = [{"input_ids": [2, i, 3]} for i in range(4, 8)]
        data = {"forget": [good[0], {"input_ids": [2, 99, 3]}], "retain": good[1:2], "unseen": good[2:]}
        message = "Row 1 of forget .*token has the id 99, and the model knows 0 to 23"
        refused(tmp_path, message, tiny_llama_lm(), data | {"processing_class": tiny_tokenizer()}, method="grad_diff")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"forget": images(8, seed=1, size=20)}, "The model cannot read forget"),
        ({"unseen": rows_of(images(16, seed=3), pixel_values=a_pixel(float("nan")))}, "of row 3 of unseen are NaN"),
        ({"retain": rows_of(images(24, seed=2), label=0.5)}, "labels of retain are fractions"),
        ({"retain": rows_of(images(24, seed=2), pixel_values=None)}, "Row 3 of retain cannot be read"),
    ],
)
def test_audits_read_with_the_same_eyes(changed, message):
    passes, models = [], (tiny_vit(), tiny_vit(seed=1))
    for model in models:
        model.register_forward_hook(lambda module, inputs, output: passes.append(output.logits.device.type))
    with pytest.raises(UnlearningError, match=message):
        audit(*models, **request() | changed)
    assert "cpu" not in passes


def test_a_model_is_tried_once_for_pictures_of_a_shape(tmp_path, monkeypatch):
    """And anew where the pictures are of another shape, or any weight of the model is."""
    monkeypatch.setattr(checks, "_read_as_shapes", set())
    tried = []
    makers = (tiny_vit, 1), (lambda: tiny_vit(seed=1), 1), (lambda: tiny_vit(num_labels=5), 2), (tiny_resnet, 3)
    for make, wanted in makers:
        for _ in range(2):
            model = make()
            model.register_forward_hook(lambda module, inputs, output: tried.append(output.logits.device.type))
            UnlearningTrainer(model, arguments(tmp_path), method="finetune", **for_trainer(request()))
        assert tried == ["meta"] * wanted
    refused(tmp_path, "The model cannot read forget", tiny_vit(), request() | {"forget": images(8, seed=1, size=20)})
