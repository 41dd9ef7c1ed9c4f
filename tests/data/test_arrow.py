"""Sets in Arrow are told apart by arrays: as digests of every sample would, and without reading the samples."""

import io
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_unlearn import UnlearningError
from hf_unlearn.data import source as reading
from hf_unlearn.data.arrow import Values, feed
from hf_unlearn.data.overlap import check_overlaps, shared_samples
from hf_unlearn.data.source import Columns, Source
from hf_unlearn.training import fingerprint
from hf_unlearn.training.fingerprint import outline

N = 40


def encoded(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return file.getvalue()


def pictures(numbers) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    files = [encoded(rng.integers(0, 256, (5, 5, 3), np.uint8)) for _ in range(2 * N)]
    rows = {"image": [{"bytes": files[i], "path": None} for i in numbers], "label": [i % 4 for i in numbers]}
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    )


def texts(numbers) -> datasets.Dataset:
    rows = {"text": ["a cat " * (i % 7) + f"sees {i}" for i in numbers], "label": [i % 4 for i in numbers]}
    return datasets.Dataset.from_dict(rows)


def pairs(numbers) -> datasets.Dataset:
    rows = {"text": [f"é{i % 5}" for i in numbers], "text_pair": [f"{i // 5}" for i in numbers]}
    return datasets.Dataset.from_dict(rows | {"label": [i % 4 for i in numbers]})


def tokens(numbers) -> datasets.Dataset:
    rows = {"input_ids": [[2, *range(i % 9), i] for i in numbers], "label": [i % 4 for i in numbers]}
    return datasets.Dataset.from_dict(rows)


def arrays(numbers) -> datasets.Dataset:
    values = np.random.default_rng(1).normal(size=(2 * N, 2, 3, 3)).astype(np.float32)
    rows = {"pixel_values": [values[i] for i in numbers], "label": [i % 4 for i in numbers]}
    features = datasets.Features(pixel_values=datasets.Array3D((2, 3, 3), "float32"), label=datasets.Value("int64"))
    return datasets.Dataset.from_dict(rows, features=features)


def lists(numbers) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"pixel_values": row["pixel_values"], "label": 0} for row in arrays(numbers)])


def vectors(numbers) -> datasets.Dataset:
    features = datasets.Features(
        inputs_embeds=datasets.List(datasets.Value("float64"), length=3), label=datasets.Value("int64")
    )
    rows = {"inputs_embeds": [[i, i * i, 0.5] for i in numbers], "label": [0 for _ in numbers]}
    return datasets.Dataset.from_dict(rows, features=features)


KINDS = [pictures, texts, pairs, tokens, arrays, lists, vectors]


def layouts(make, numbers) -> list[datasets.Dataset]:
    """The same rows: as they are, chosen from more of them in another order, in several chunks, and cut out."""
    numbers, more = list(numbers), list(numbers)[::-1] + list(range(N, N + 5))
    chunks = datasets.concatenate_datasets([make(numbers[:7]), make(numbers[7:9]), make(numbers[9:])])
    cut = make([N + 7, *numbers, N + 8]).select(range(1, len(numbers) + 1))
    return [make(numbers), make(more).select([more.index(i) for i in numbers]), chunks, cut]


@pytest.mark.parametrize("make", KINDS)
def test_as_digests_of_all_samples_find(make):
    forget, retain = [3, 4, 5, 30, 35], [*range(6, 30), 4, *range(31, 36)]
    expected = [i for i, number in enumerate(forget) if number in retain]
    for one in layouts(make, forget):
        for other in layouts(make, retain):
            sets = Source(one, "forget"), Source(other, "retain")
            assert shared_samples(*sets).tolist() == expected
            assert all(source.columns for source in sets) and sets[1]._digests is None  # which would have read all
            with pytest.raises(UnlearningError, match="2 of the 5 forget samples stand in retain too .rows 1, 4 of"):
                check_overlaps(dict(zip(("forget", "retain"), sets, strict=True)))


@pytest.mark.parametrize("make", KINDS)
def test_the_outline_of_a_set_is_that_of_its_rows(make, monkeypatch):
    """However they are laid out; another row, another order and other labels are noticed."""
    for whole in (2**20, 0):
        monkeypatch.setattr(fingerprint, "WHOLE", whole)
        same = [outline(Source(data, "retain"), "key") for data in layouts(make, range(N))]
        assert all(found == same[0] for found in same)
        assert outline(Source(make(range(N)), "retain"), "another")["inputs"] != same[0]["inputs"]
        for other in (range(1, N + 1), [*range(N - 1), N], [1, 0, *range(2, N)]):
            assert outline(Source(make(other), "retain"), "key")["inputs"] != same[0]["inputs"]
        relabelled = make(range(N)).remove_columns("label").add_column("label", [3] * N)
        found = outline(Source(relabelled, "retain"), "key")
        assert (found["inputs"], found["labels"] == same[0]["labels"]) == (same[0]["inputs"], False)


def test_one_byte_in_the_middle(monkeypatch):
    """It is noticed in all pictures up to a size, and beyond that in those that are read."""
    rows = [*pictures(range(N)).cast_column("image", datasets.Image(decode=False))]
    content = rows[7]["image"]["bytes"]
    rows[7]["image"] = {"bytes": content[:50] + bytes([content[50] ^ 1]) + content[51:], "path": None}
    other = datasets.Dataset.from_list(rows, features=pictures([0]).features)
    for spread, noticed in ((256, True), (3, False)):
        monkeypatch.setattr(fingerprint, "SPREAD", spread)
        monkeypatch.setattr(fingerprint, "WHOLE", 0 if spread == 3 else 2**20)
        a, b = (outline(Source(data, "retain"), "k")["inputs"] for data in (pictures(range(N)), other))
        assert (a != b) == noticed


def test_no_retained_picture_is_read(monkeypatch):
    """None but those that have the length of a forget sample, and its ends; and no row is read for labels."""
    forget = pictures(range(3))
    stored = [row["image"]["bytes"] for row in forget.cast_column("image", datasets.Image(decode=False))]
    twin = stored[0][:45] + bytes([stored[0][45] ^ 1]) + stored[0][46:]  # alike but in the middle
    other_end = stored[1][:-20] + bytes(20)
    files = [stored[2] + b"x" * (1 + i % 50) for i in range(500)] + [twin, other_end]
    rows = {"image": [{"bytes": file, "path": None} for file in files], "label": [i % 4 for i in range(len(files))]}
    retain = datasets.Dataset.from_dict(rows, features=forget.features).select(range(len(files)))
    sets = {"forget": Source(forget, "forget"), "retain": Source(retain, "retain")}
    opened, checked = [], reading._image_bytes
    monkeypatch.setattr(reading, "_image_bytes", lambda stored: opened.append(stored["bytes"]) or checked(stored))
    probed, probe = [], Values.probes
    monkeypatch.setattr(Values, "probes", lambda values, rows: probed.append(rows) or probe(values, rows))
    with pytest.raises(UnlearningError, match="Row 500 of retain cannot be read"):  # the twin: its checksum is wrong
        check_overlaps(sets)
    assert opened == [*stored, twin]
    assert {500, 501} <= {int(row) for row in probed[0]} and len(probed[0]) < 30

    def read(*args):
        raise AssertionError("rows were read")

    monkeypatch.setattr(datasets.Dataset, "__getitem__", read)
    monkeypatch.setattr(datasets.Dataset, "__iter__", read)
    assert sets["retain"].labels.tolist() == rows["label"] and sets["retain"].class_names is None


@pytest.mark.parametrize("stored", [None, {"bytes": None, "path": "/nowhere/cat.png"}, {"bytes": b"", "path": None}])
def test_a_retained_picture_that_is_not_there(stored):
    rows = [*pictures(range(4)).cast_column("image", datasets.Image(decode=False))]
    rows[2]["image"] = stored
    retain = datasets.Dataset.from_list(rows, features=pictures([0]).features)
    with pytest.raises(UnlearningError, match="Row 2 of retain cannot be read"):
        check_overlaps({"forget": Source(pictures([9]), "forget"), "retain": Source(retain, "retain")})


def test_pictures_that_are_files(tmp_path):
    """The same content is found wherever it stands."""
    retain = pictures(range(6))
    paths = []
    for i, row in enumerate(retain.cast_column("image", datasets.Image(decode=False))):
        paths.append(str(tmp_path / f"{i}.png"))
        (tmp_path / f"{i}.png").write_bytes(row["image"]["bytes"])
    files = datasets.Dataset.from_dict({"image": paths, "label": range(6)}).cast_column("image", datasets.Image())
    sets = Source(pictures([4, 9]), "forget"), Source(files, "retain")
    assert shared_samples(*sets).tolist() == [0]
    assert sets[1].columns[0].lengths.tolist() == Source(retain, "retain").columns[0].lengths.tolist()
    assert outline(sets[1], "k")["inputs"] != outline(Source(files.select(range(5)), "retain"), "k")["inputs"]


def test_a_worker_is_not_sent_what_is_stored_twice():
    source = Source(texts(range(N)), "retain")
    assert source.columns and len(source.labels) == N
    sent = pickle.loads(pickle.dumps(source))
    assert not {"columns", "_stored_labels"} & vars(sent).keys() and sent.labels.tolist() == source.labels.tolist()
    assert sent.columns[0].lengths.tolist() == source.columns[0].lengths.tolist()


def test_what_only_reading_tells():
    """Conversations, truths, and lists with gaps are read row by row, and found all the same."""
    talk = [[{"role": "user", "content": f"Hello {i}"}] for i in range(4)]
    gaps = [[1.0, None, float(i)] for i in range(4)]
    for name, values in (
        ("messages", talk),
        ("pixel_values", gaps),
        ("pixel_values", [[True, i > 2] for i in range(4)]),
    ):
        data = datasets.Dataset.from_dict({name: values, "label": range(4)})
        one, other = (Source(data.select(rows), "a", Columns(text=name)) for rows in ([3], [0, 1, 3]))
        assert other.columns is None and shared_samples(one, other).tolist() == [0]
        held = []
        feed(held.append, data, name)
        feed(held.append, data.select([0, 1, 2, 3]), name)
        assert held[: len(held) // 2] == held[len(held) // 2 :]


@pytest.mark.parametrize(
    "values", [[2, None, 0], [1.0, float("nan"), 3.0], [True, False, None], ["b", None, "a"], ["b", "b", "c"]]
)
def test_labels_as_the_rows_have_them(values):
    """Of an Arrow column in several chunks and another order, and of a list of rows."""
    rows = [{"text": "a", "label": value} for value in values]
    data = datasets.concatenate_datasets([datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows)])
    source, expected = Source(data.select([2, 4, 0]), "forget"), Source([rows[2], rows[1], rows[0]], "forget")
    for name in ("positions", "class_names", "has_text_labels"):
        assert np.array_equal(getattr(source, name), getattr(expected, name)), name
