"""Records and proofs: no two records are digested alike, and no proof holds for a record that was not in the request."""

import itertools
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_unlearn import UnlearningError, models
from hf_unlearn.hub import check_inclusion, merkle, prove, verify
from hf_unlearn.hub.encoding import encode
from hf_unlearn.hub.records import Secrets, record_digests

OLD = Path(__file__).parents[1] / "receipts" / "format-1"
OLD_TEXTS = ["a cat", "the dog sees", "no bird", "a fish"]


# ---------------------------------------------------------------------------------------------------------------------
# The encoding


DIFFERENT = [
    *(
        None,
        "",
        "a",
        "1",
        "1.0",
        b"",
        b"a",
        [],
        {},
        [[]],
        [None],
        [""],
        [b""],
        ["a", "b"],
        ["ab"],
        ["a", "", "b"],
        ["a\0b"],
    ),
    *(
        {"a": "b"},
        {"a": None},
        {"a": {}},
        {"a": []},
        {"a": "", "b": ""},
        {"b": "", "c": ""},
        ["a", "b", None],
        [["a"], "b"],
    ),
    *(
        1,
        1.0,
        True,
        0,
        0.0,
        -0.0,
        False,
        5e-324,
        float("inf"),
        -1,
        255,
        256,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63) - 1,
        10**30,
    ),
    *([1], [1.0], [True], [1, 0], [[1, 0]], [[1], [0]], [1, None], [1, 1.0], [1, True], [1, "1"], [2**64, 1]),
    *(
        np.zeros((2, 3)),
        np.zeros((3, 2)),
        np.zeros(6),
        np.zeros((2, 3), int),
        np.zeros((2, 3), bool),
        0.1,
        np.float32(0.1),
    ),
    *(
        {"x": "a\0b", "y": "c"},
        {"x": "a", "y": "b\0c"},
        {"x": 1},
        {"x": 5e-324},
        "é",
        "e\u0301",
        "\ud800",
        [[1, 2], [3]],
    ),
]


def test_no_two_values_are_written_alike():
    written = [encode(value) for value in DIFFERENT]
    assert len(set(written)) == len(written)


def test_no_value_is_the_beginning_of_another():
    """So what is written one behind the other can be read in one way only."""
    written = sorted(encode(value) for value in DIFFERENT)
    assert not [1 for one, next_one in itertools.pairwise(written) if next_one.startswith(one)]


def test_random_nested_values():
    rng = np.random.default_rng(0)
    leaves = [None, "", "a", "\0", "ab", b"a", 0, 1, 0.0, 1.0, True, False, "n", "s\0\0\0\0\0\0\0\1a"]

    def value(depth):
        kind = rng.integers(3) if depth else 0
        if kind == 0:
            return leaves[rng.integers(len(leaves))]
        items = [value(depth - 1) for _ in range(rng.integers(3))]
        return items if kind == 1 else {f"{i}": item for i, item in enumerate(items)}

    seen = {}
    for _ in range(3000):
        drawn = value(3)
        assert seen.setdefault(encode(drawn), repr(drawn)) == repr(drawn)
    assert len(seen) > 500


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_whole_numbers_in_any_form(dtype):
    values = [[1, 2, 3], [4, 5, 6]]
    array = np.asarray(values, dtype)
    forms = [values, array, array.tolist(), list(array), [list(row) for row in array], tuple(map(tuple, values))]
    forms += [np.asfortranarray(array), array.astype(array.dtype.newbyteorder())]
    forms += [torch.as_tensor(array.astype("int64"))]
    assert len({encode(form) for form in forms}) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_in_any_form(dtype):
    tensor = torch.tensor([[0.5, -1.25]], dtype=dtype, requires_grad=True)
    forms = [tensor, tensor.detach().double().numpy(), tensor.detach().double().tolist(), list(tensor.detach())]
    assert len({encode(form) for form in forms}) == 1


@pytest.mark.parametrize("value", [object(), {1: "a"}, np.zeros(1, complex), np.datetime64("2020-01-01"), {1, 2}])
def test_what_has_no_digest(value):
    with pytest.raises(UnlearningError, match="which has no digest; expected texts"):
        encode(value)


def test_columns_and_formats_of_a_record():
    pair = {"text": ["a\0b", "a"], "text_pair": ["c", "b\0c"]}
    one, other = record_digests(datasets.Dataset.from_dict(pair), ["text", "text_pair"])
    assert one != other and len(one) == 32
    old = record_digests(datasets.Dataset.from_dict(pair), ["text", "text_pair"], version=1)
    assert old[0] == old[1] and len(old[0]) == 16  # which is why there is a new form
    assert record_digests({"text": "a"}, ["text"]) != record_digests({"sentence": "a"}, ["sentence"])
    features = datasets.Features(input_ids=datasets.List(datasets.Value("int32")))
    tokens = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]]}, features=features)
    for data in (
        tokens,
        tokens.with_format("torch"),
        [tokens[0], tokens[1]],
        [{"input_ids": [1, 2]}, {"input_ids": [3]}],
    ):
        assert record_digests(data, ["input_ids"]) == record_digests(tokens, ["input_ids"])
    features = datasets.Features(pixel_values=datasets.Array2D((1, 2), "float64"))
    near = datasets.Dataset.from_dict({"pixel_values": [[[0.0, 1.0]], [[0.0, 1.0 + 1e-12]]]}, features=features)
    assert len(set(record_digests(near, ["pixel_values"]))) == 2
    assert (
        record_digests({"pixel_values": [[0.0, 1.0]]}, ["pixel_values"]) == record_digests(near, ["pixel_values"])[:1]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Proofs


@pytest.fixture(scope="module")
def made():
    texts = [f"text {i}" for i in range(5)]
    records = sorted(record_digests(datasets.Dataset.from_dict({"text": texts}), ["text"]))
    secrets = Secrets(b"s" * 32, ["text"], records)
    return secrets, {"forget": forget_of(secrets)}


def forget_of(secrets):
    return {
        "root": merkle.root(secrets.leaves).hex(),
        "count": len(secrets.records),
        "columns": secrets.columns,
        "canonical": secrets.version,
    }


def test_columns_are_the_receipts(made):
    secrets, receipt = made
    proof = prove({"text": "text 1"}, secrets)
    assert check_inclusion(receipt, {"text": "text 1"}, proof)
    assert not check_inclusion(receipt, {"other": "text 1"}, proof | {"columns": ["other"]})
    assert not check_inclusion(receipt, {"text": "text 1", "other": "x"}, proof | {"columns": ["text", "other"]})
    assert not check_inclusion({"forget": receipt["forget"] | {"columns": ["other"]}}, {"text": "text 1"}, proof)


@pytest.mark.parametrize("version", [1, 2])
def test_a_proof_of_nothing_holds_for_no_record(version):
    """A receipt with the digest of nothing among its records, and a proof without columns."""
    nothing = record_digests({"text": "anything"}, [], version)[0]
    leaves = [merkle.leaf(merkle.salt(b"s" * 32, 0), nothing)]
    forget = {"root": merkle.root(leaves).hex(), "count": 1}
    proof = {"columns": [], "index": 0, "salt": merkle.salt(b"s" * 32, 0).hex(), "path": []}
    for stated in ({}, {"canonical": version}, {"canonical": version, "columns": []}):
        with pytest.raises(
            UnlearningError, match="(columns is no list of names|columns is missing or of another type)"
        ):
            check_inclusion({"forget": forget | stated}, {"text": "anything"}, proof)


@pytest.mark.parametrize(
    "broken",
    [
        *({"columns": value} for value in ([], None, "text", [1], {"text": 1}, 3)),
        *({"index": value} for value in (None, "1", 1.0, True, [1])),
        *({"salt": value} for value in (None, 3, "xyz", "", "00", "00" * 31, "00" * 33, ["00"] * 32)),
        *(
            {"path": value}
            for value in (None, 3, "00", {"00" * 32: 1}, [None], ["xyz"], ["00"], ["00" * 31], [["00" * 32]])
        ),
    ],
    ids=str,
)
def test_malformed_proofs(made, broken):
    secrets, receipt = made
    proof = prove({"text": "text 1"}, secrets)
    with pytest.raises(UnlearningError, match=r"^The proof cannot be read \(.*\); expected what prove\(\) gave\.$"):
        check_inclusion(receipt, {"text": "text 1"}, proof | broken)
    with pytest.raises(UnlearningError, match="The proof cannot be read"):
        check_inclusion(receipt, {"text": "text 1"}, {k: v for k, v in proof.items() if k not in broken})


@pytest.mark.parametrize("proof", [None, [], "proof", 3, {}])
def test_what_is_no_proof(made, proof):
    with pytest.raises(UnlearningError, match="The proof cannot be read"):
        check_inclusion(made[1], {"text": "text 1"}, proof)


@pytest.mark.parametrize(
    "receipt",
    [None, [], {}, {"forget": None}, {"forget": {"root": "0" * 64}}, {"forget": {"root": "0", "count": 1}}]
    + [{"forget": {"root": "0" * 64, "count": count}} for count in (0, -1, True, 1.0, "1", 2**63)]
    + [{"forget": {"root": "0" * 64, "count": 1, "columns": columns}} for columns in ([], "text", [1], None)],
    ids=str,
)
def test_what_is_no_receipt(made, receipt):
    with pytest.raises(UnlearningError, match=r"^The receipt cannot be read: .* is missing or of another type"):
        check_inclusion(receipt, {"text": "text 1"}, prove({"text": "text 1"}, made[0]))


def test_every_place_and_path_but_the_right_one(made):
    secrets, receipt = made
    proof = prove({"text": "text 1"}, secrets)
    for index in (-1, 5, 2**70, *(i for i in range(5) if i != proof["index"])):
        assert not check_inclusion(receipt, {"text": "text 1"}, proof | {"index": index})
    for path in ([], proof["path"][:-1], [*proof["path"], "00" * 32], proof["path"][::-1], ["00" * 32] * 10_000):
        assert not check_inclusion(receipt, {"text": "text 1"}, proof | {"path": path})
    for i in range(256):
        salt = bytearray.fromhex(proof["salt"])
        salt[i // 8] ^= 1 << i % 8
        assert not check_inclusion(receipt, {"text": "text 1"}, proof | {"salt": salt.hex()})


@pytest.mark.parametrize(
    "change",
    [{"columns": []}, {"columns": "text"}, {"format": 3}, {"format": "2"}, {"records": ["xyz"]}, {"secret": 3}],
)
def test_secrets_that_are_none(made, tmp_path, change):
    made[0].save(tmp_path / "secrets.json")
    assert Secrets.load(tmp_path / "secrets.json") == made[0]
    content = json.loads((tmp_path / "secrets.json").read_text()) | change
    (tmp_path / "secrets.json").write_text(json.dumps(content))
    with pytest.raises(UnlearningError, match="cannot be read as the secrets of a receipt"):
        Secrets.load(tmp_path / "secrets.json")


# ---------------------------------------------------------------------------------------------------------------------
# Receipts of format 1


def old_release(folder: Path) -> tuple[Path, Path]:
    """A release whose receipt, signature, secrets and proof were written when there was only format 1; and its parent."""
    shutil.copytree(OLD / "release", folder / "release")
    (folder / "parent").mkdir()
    for name, start in (("parent", 1.0), ("release", 2.0)):
        weights = torch.arange(start, start + 6.0).reshape(3, 2)
        tensors = {"classifier.weight": weights, "classifier.bias": torch.zeros(3)}
        save_file(tensors, folder / name / models.WEIGHTS, metadata={"format": "pt"})
    return folder / "release", folder / "parent"


def test_an_old_receipt_still_holds(tmp_path):
    release, parent = old_release(tmp_path)
    forget = datasets.Dataset.from_dict({"text": OLD_TEXTS})
    secrets = OLD / "receipt_secrets.json"
    found = verify(release, forget=forget, secrets=secrets, public_key=OLD / "public.pem", parent=parent)
    assert found.ok and found.unchecked == ["history"]
    assert found.uncovered == [
        "the metadata in the headers of the weights",
        "README.md but for the figures in its metadata",
    ]
    assert "4 of the 4 records" in found.checks[-1].sentence
    stranger = datasets.Dataset.from_dict({"text": ["a bird"]})
    assert verify(release, forget=stranger, secrets=secrets).failed == ["records"]


def test_an_old_proof_still_holds(tmp_path):
    receipt = json.loads((OLD / "release" / "unlearning_receipt.json").read_text())
    proof = json.loads((OLD / "proof.json").read_text())
    assert check_inclusion(receipt, {"text": "the dog sees"}, proof)
    assert prove({"text": "the dog sees"}, OLD / "receipt_secrets.json") == proof
    assert not check_inclusion(receipt, {"text": "the dog"}, proof)


def test_an_old_receipt_that_was_changed(tmp_path):
    release, _ = old_release(tmp_path)
    text = (release / "README.md").read_text()
    (release / "README.md").write_text(text.replace("value: 0.25", "value: 0.5"))
    assert verify(release).failed == ["card"]
