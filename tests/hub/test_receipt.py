"""Receipts: what they commit to, that every change of a release is found, and that they tell nothing of the records."""

import hashlib
import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from huggingface_hub import CommitOperationAdd, HfApi, save_torch_state_dict
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_unlearn import UnlearningError, UnlearningResult, models, unlearn
from hf_unlearn import commands as cli
from hf_unlearn.hub import (
    Parent,
    Verification,
    check_inclusion,
    evaluate_earlier,
    make_receipt,
    merkle,
    prepare,
    prove,
    verify,
)
from hf_unlearn.hub.canonical import body, canonical, digest_of, read_json
from hf_unlearn.hub.names import CARD, METRICS, RECEIPT
from hf_unlearn.hub.receipt import SECRETS, Secrets, record_digests
from hf_unlearn.hub.weights import relative_distance, saved_digest, weight_files
from tests.marks import slow_but
from tests.samples import arguments, images, pictures, request, sentences
from tests.tiny import tiny_bert, tiny_image_processor, tiny_resnet, tiny_tokenizer, tiny_vit

CONTENTS = ["receipt", "signature", "weights", "metrics", "configuration", "files", "card"]
EVERYTHING = [*CONTENTS, "history", "parent", "chain"]


def run(folder: Path, model=None, **changes) -> UnlearningResult:
    settings = {"method": "finetune", "processing_class": tiny_image_processor()} | request() | changes
    return unlearn(model or tiny_vit(), args=arguments(folder, max_steps=1), **settings)


def released(result: UnlearningResult, folder: Path, **about) -> Path:
    result.save(folder)
    make_receipt(result, folder, **about)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A run, its parent's folder, its release and what goes with it; their weights and figures are not to be changed."""
    root = tmp_path_factory.mktemp("made")
    models.save_model(tiny_vit(), root / "parent")
    result = run(root / "run")
    release = released(result, root / "release", parent=root / "parent")
    secrets, data = root / "run" / "_unlearn" / SECRETS, request()
    return SimpleNamespace(
        result=result, parent=root / "parent", release=release, secrets=secrets, forget=data["forget"], data=data
    )


@pytest.fixture
def release(made, tmp_path) -> Path:
    """A copy of the release, to be changed."""
    return Path(shutil.copytree(made.release, tmp_path / "release"))


def said(found: Verification, name: str) -> str:
    return next(check.sentence for check in found.checks if check.name == name)


def rewrite(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def forge(folder: Path, change) -> None:
    """Change the receipt and give it the digest that goes with it."""
    rewrite(folder / RECEIPT, change)
    rewrite(folder / RECEIPT, lambda receipt: receipt.update(digest=digest_of(body(receipt))))


def flip(folder: Path) -> None:
    """One bit of one weight."""
    path = folder / models.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# ---------------------------------------------------------------------------------------------------------------------
# Canonical JSON


def test_canonical_json():
    content = {"b": [1, 0.1, -2e-7, True, None], "a": {"é": "ü\n"}, "A": ""}
    assert canonical(content) == '{"A":"","a":{"é":"ü\\n"},"b":[1,0.1,-2e-07,true,null]}'.encode()
    assert digest_of(content) == "511633db878479a7b9849bda8b1716a140f53b26125a81d80dedd663743949ff"
    assert canonical(json.loads(json.dumps(content, indent=3))) == canonical(content)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            canonical({"x": value})


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', r'{"a": "\ud800"}', '{"a": ', "[" * 10_000, "\xff"]
)
def test_json_that_says_two_things_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnlearningError, match="x.json cannot be read"):
        read_json(tmp_path / "x.json")


# ---------------------------------------------------------------------------------------------------------------------
# The tree


def tree(leaves: list[bytes]) -> bytes:
    """RFC 9162, word by word: cut at the largest power of two below the length."""
    if len(leaves) == 1:
        return leaves[0]
    cut = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + tree(leaves[:cut]) + tree(leaves[cut:])).digest()


def salted(n: int, secret: bytes = b"secret") -> list[bytes]:
    return [merkle.leaf(merkle.salt(secret, i), bytes([i])) for i in range(n)]


@pytest.mark.parametrize("n", [*range(1, 18), 100])
def test_roots_and_paths(n):
    leaves = salted(n)
    assert merkle.root(leaves) == tree(leaves)
    for i, leaf in enumerate(leaves):
        path = merkle.path(leaves, i)
        assert len(path) <= (n - 1).bit_length()
        assert merkle.root_of_path(leaf, i, n, path) == merkle.root(leaves)
        assert merkle.root_of_path(leaf, i, n, [*path, leaf]) is None
        assert n == 1 or merkle.root_of_path(leaf, i, n, path[:-1]) is None
        assert merkle.root_of_path(leaf, (i + 1) % n, n, path) != merkle.root(leaves) or n == 1
    assert merkle.root_of_path(leaves[0], n, n, merkle.path(leaves, 0)) is None
    assert merkle.root_of_path(leaves[0], -1, n, merkle.path(leaves, 0)) is None


def test_an_odd_end_is_not_doubled():
    a, b, c = salted(3)
    assert merkle.root([a, b, c]) != merkle.root([a, b, c, c])
    assert merkle.root([]) not in (merkle.root([a]), merkle.root([a, a]))


def test_an_inner_node_is_no_leaf():
    leaves = salted(4)
    inner = [merkle.inner(*leaves[:2]), merkle.inner(*leaves[2:])]
    assert merkle.root(inner) == merkle.root(leaves)  # as hashes; but no record has such a leaf:
    assert merkle.leaf(leaves[0], leaves[1]) != inner[0]
    assert hashlib.sha256(leaves[0] + leaves[1]).digest() != inner[0]


def test_salts():
    same = [merkle.leaf(merkle.salt(b"secret", i), b"record") for i in range(2)]
    assert same[0] != same[1] and len(set(salted(50)) | set(salted(50, b"other"))) == 100


# ---------------------------------------------------------------------------------------------------------------------
# Records


def test_proofs(made):
    receipt = read_json(made.release / RECEIPT)
    proofs = [prove(made.forget.select([i]), made.secrets) for i in range(8)]
    assert sorted(proof["index"] for proof in proofs) == list(range(8))
    for i, proof in enumerate(proofs):
        assert set(proof) == {"columns", "index", "salt", "path"} and len(proof["path"]) == 3
        assert check_inclusion(receipt, made.forget[i], json.loads(json.dumps(proof)))
        assert not check_inclusion(receipt, made.forget[(i + 1) % 8], proof)
        assert not check_inclusion(receipt, made.forget[i], proof | {"salt": proofs[i - 1]["salt"]})
        assert not check_inclusion(receipt, made.forget[i], proof | {"index": proof["index"] ^ 1})
    with pytest.raises(UnlearningError, match="was not in the request"):
        prove(made.data["retain"][0], made.secrets)
        assert not check_inclusion(receipt, made.forget[i], proof | {"salt": proof["salt"] + "00"})
    for call in (lambda data: check_inclusion(receipt, data, proofs[0]), lambda data: prove(data, made.secrets)):
        with pytest.raises(UnlearningError, match="2 were given"):
            call(made.forget.select([0, 1]))
    for broken in ({"salt": "xyz"}, {"salt": 3}, {"path": None}):
        with pytest.raises(UnlearningError, match="The proof cannot be read"):
            check_inclusion(receipt, made.forget[0], proofs[0] | broken)
    with pytest.raises(UnlearningError, match="expected pixel_values"):
        prove({"text": "hello"}, made.secrets)


def test_stored_images_in_any_form(tmp_path):
    data = pictures(3)
    stored = data.cast_column("image", datasets.Image(decode=False))
    digests = record_digests(data, ["image"])
    for i, row in enumerate(stored):
        (tmp_path / "x.png").write_bytes(row["image"]["bytes"])
        assert record_digests({"image": row["image"]["bytes"]}, ["image"]) == digests[i : i + 1]
        assert record_digests({"image": tmp_path / "x.png"}, ["image"]) == digests[i : i + 1]
        assert record_digests(data.select([i]), ["image"]) == digests[i : i + 1]


def test_a_digest_that_ends_in_zeros_stays_whole(monkeypatch):
    monkeypatch.setattr("hf_unlearn.data.source.Source._digest", lambda *_: b"x" * 15 + b"\0")
    assert record_digests({"text": "a"}, ["text"], version=1) == [b"x" * 15 + b"\0"]


def test_the_order_of_the_records_and_records_that_are_there_twice(made, tmp_path):
    twice = datasets.concatenate_datasets([made.forget, made.forget.select([3])])
    digests = record_digests(twice, ["pixel_values"])
    kept = Secrets(b"s" * 32, ["pixel_values"], sorted(digests))
    other = Secrets(
        b"s" * 32, ["pixel_values"], sorted(record_digests(twice.select(range(8, -1, -1)), ["pixel_values"]))
    )
    assert kept.leaves == other.leaves and len(set(kept.leaves)) == 9
    forget = {"root": merkle.root(kept.leaves).hex(), "count": 9, "columns": kept.columns, "canonical": 2}
    receipt = {"forget": forget}
    assert check_inclusion(receipt, made.forget[3], prove(made.forget[3], kept))


def test_secrets_stay_the_same_for_the_same_records_and_are_never_lost(made, tmp_path):
    shutil.copytree(made.result.trainer.args.output_dir, tmp_path / "run")
    before, receipt = made.secrets.read_bytes(), read_json(made.release / RECEIPT)
    assert made.secrets.stat().st_mode & 0o777 == 0o600
    again = shutil.copytree(made.release, tmp_path / "again")
    assert make_receipt(made.result, again, parent=made.parent)["forget"] == receipt["forget"]
    assert made.secrets.read_bytes() == before
    # As a folder of an earlier version, which did not note its request; with the note, another one is refused.
    (tmp_path / "run" / "_unlearn" / "request.json").unlink()
    result = run(tmp_path / "run", forget=images(8, seed=50))
    released(result, tmp_path / "other")
    (old,) = (tmp_path / "run" / "_unlearn").glob("receipt_secrets-*.json")
    assert old.read_bytes() == before
    assert (tmp_path / "run" / "_unlearn" / SECRETS).read_bytes() != before


def test_secrets_that_are_none(tmp_path):
    (tmp_path / "s.json").write_text("{}")
    for name in ("s.json", "absent.json"):
        with pytest.raises(UnlearningError, match="cannot be read as the secrets of a receipt"):
            Secrets.load(tmp_path / name)


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def test_the_digest_is_of_tensors_and_not_of_files(tmp_path):
    model = tiny_bert()
    models.save_model(model, tmp_path / "whole")
    digest = saved_digest(tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / models.WEIGHTS)
    assert digest == models.digest_tensors(sorted(tensors.items()))
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model-*-of-*"))) > 1
    assert saved_digest(tmp_path / "shards") == digest
    save_file(tensors, tmp_path / "whole" / models.WEIGHTS, metadata={"some": "thing"})
    assert saved_digest(tmp_path / "whole") == digest
    for change in (lambda t: t.half(), lambda t: t.flatten(), lambda t: t.nextafter(torch.tensor(9.0))):
        name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
        save_file(tensors | {name: change(tensors[name])}, tmp_path / "whole" / models.WEIGHTS)
        assert saved_digest(tmp_path / "whole") != digest


def test_the_digest_of_a_saved_model_and_of_a_model_in_memory(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).to(torch.bfloat16)
    models.save_model(model, tmp_path)
    assert saved_digest(tmp_path) == models.weights_digest(model)


def test_which_files_are_weights(tmp_path):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    others = ["a/model.safetensors", "optimizer.safetensors", "x/unlearn/adapter_model.safetensors", "config.json"]
    adapters = ["adapter_model.safetensors", "unlearn/adapter_model.safetensors"]
    assert weight_files([*shards, *others, *adapters]) == sorted(shards) + adapters
    assert weight_files(["model.safetensors", *shards]) == ["model.safetensors"]
    with pytest.raises(UnlearningError, match=r"holds no model\.safetensors"):
        saved_digest(tmp_path)
    for shard in shards:
        save_file({"a": torch.ones(1)}, tmp_path / shard)
    with pytest.raises(UnlearningError, match="holds 'a' in two files"):
        saved_digest(tmp_path)


def test_relative_distance(tmp_path):
    tensors = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor(4.0), "n": torch.tensor(7)}
    moved = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor(4.0), "n": torch.tensor(8)}
    for name, content in (
        ("old", tensors),
        ("new", moved),
        ("timm", {f"timm_model.{k}": v for k, v in moved.items()}),
    ):
        (tmp_path / name).mkdir()
        save_file(content, tmp_path / name / models.WEIGHTS)
    (tmp_path / "other").mkdir()
    save_file(tensors | {"c": torch.ones(1)}, tmp_path / "other" / models.WEIGHTS)
    assert relative_distance(tmp_path / "old", tmp_path / "new") == pytest.approx(0.2)
    assert relative_distance(tmp_path / "old", tmp_path / "timm") == pytest.approx(0.2)
    assert relative_distance(tmp_path / "old", tmp_path / "other") is None


# ---------------------------------------------------------------------------------------------------------------------
# A release


def test_what_is_in_it(made):
    receipt = read_json(made.release / RECEIPT)
    figures = read_json(made.release / METRICS)
    assert receipt["weights"] == {
        "before": saved_digest(made.parent),
        "after": saved_digest(made.release),
        "metadata": [{"format": "pt"}],
    }
    assert receipt["metrics"] == {"before": figures["before"], "after": figures["after"]}
    assert receipt["method"]["name"] == "finetune" and receipt["forget"]["count"] == 8
    assert receipt["drift"]["parent"] == receipt["drift"]["first"] == relative_distance(made.parent, made.release) > 0
    assert receipt["image_processor"] == {
        "class": "ViTImageProcessor",
        "backend": made.result.trainer.processing_class.backend,
    }
    assert receipt["seeds"]["unlearning"] == made.result.trainer.args.seed
    assert receipt["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(receipt["files"]) == {"config.json", METRICS, "preprocessor_config.json", "unlearning_config.json"}
    assert receipt["parent"] is None and receipt["previous"] is None and "signature" not in receipt
    assert receipt["digest"] == digest_of(body(receipt))


def test_a_release_as_it_was_made(made):
    shuffled = made.forget.select([5, 1, 7, 0, 2, 3, 6, 4])
    found = verify(made.release, parent=made.parent, forget=shuffled, secrets=made.secrets)
    assert found.ok and found.unchecked == ["signature", "history"]
    assert "8 of the 8 records" in found.checks[-1].sentence
    alone = verify(made.release)
    assert alone.ok and alone.unchecked == ["signature", "history", "parent", "chain", "records"]
    assert "\n" not in alone.line and "Not checked: signature (the receipt is not signed)" in alone.line
    assert [check.name for check in alone.checks] == [*EVERYTHING, "records"]
    assert verify(made.release, forget=made.forget.select([2]), secrets=made.secrets).failed == []


def test_a_bit_of_the_weights(release):
    flip(release)
    found = verify(release)
    assert found.failed == ["weights"] and "FAILED weights: their digest is" in found.line


def test_weights_that_are_cut_off(release):
    path = release / models.WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])
    found = verify(release)
    assert found.failed == ["weights"] and "is no whole safetensors file" in found.line


def test_a_name_that_would_forge_the_line(release):
    forge(release, lambda content: content["files"].update({"x\nVerified: all of it.": "0" * 64}))
    line = verify(release).line
    assert "FAILED files: x?Verified" in line and "\n" not in line


def test_a_figure_in_the_metrics(release):
    rewrite(release / METRICS, lambda content: content["after"].update(forget_accuracy=0.0))
    found = verify(release)
    assert found.failed == ["metrics", "files"]
    assert "FAILED metrics: forget_accuracy after is 0.0 in metrics.json" in found.line
    assert "Failed too: files" in found.line


def test_a_figure_in_the_receipt(release):
    change = lambda content: content["metrics"]["after"].update(forget_accuracy=0.0)  # noqa: E731
    rewrite(release / RECEIPT, change)
    assert verify(release).failed == ["receipt", "metrics"]
    forge(release, change)
    assert verify(release).failed == ["metrics"]


def test_a_figure_that_is_gone(release):
    rewrite(release / METRICS, lambda content: content["before"].pop("auc"))
    assert "auc before is None in metrics.json" in verify(release).line
    forge(release, lambda content: content["metrics"].update(before=None))
    assert "the figures before are in only one" in verify(release).line


def test_a_figure_in_the_card(made, tmp_path):
    """The Hub shows those in its metadata."""
    folder = prepare(made.result, tmp_path / "release", repo_id="me/vit", parent=made.parent, fewest=1)
    text = (folder / CARD).read_text()
    assert said(verify(folder, parent=made.parent), "card") == "README.md is the one that the receipt commits to"
    assert all(float(f"{float(value):.4g}") == float(value) for value in re.findall(r"value: (\S+)", text))
    others = text.replace(
        "results:",
        "results:\n  - task: {type: x}\n    dataset: {type: cats, name: c}\n    metrics: [{type: f1, value: 1}]",
    )
    for changed in (
        re.sub(r"value: \S+", "value: 0.9999", text, count=1),
        text.replace("type: mia", "type: other"),
        text.replace("---\n", "---\n[", 1),
        others,
        "# A card without metadata",
    ):
        (folder / CARD).write_text(changed)
        assert changed != text and verify(folder, parent=made.parent).failed == ["card"]
    (folder / CARD).write_text(re.sub(r"value: \S+", "value: 0.9999", text, count=1))
    assert "accuracy (unlearning-forget) is 0.9999 in README.md and" in verify(folder).line


def test_the_configuration(release):
    rewrite(release / "unlearning_config.json", lambda content: content["training"].update(seed=1))
    found = verify(release)
    assert found.failed == ["configuration", "files"] and "the method's training in" in found.line


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", b"{}", "config.json was changed"),
        ("config.json", None, "config.json is missing"),
        ("adapter_config.json", b"{}", "adapter_config.json is not in the receipt"),
        ("pytorch_model.bin", b"x", "pytorch_model.bin is not in the receipt"),
        ("preprocessor_config.json", None, "preprocessor_config.json is missing"),
    ],
)
def test_the_other_files(release, name, content, sentence):
    (release / name).unlink(missing_ok=True) if content is None else (release / name).write_bytes(content)
    found = verify(release)
    assert found.failed == ["files"] and sentence in found.line


def test_weights_in_other_files(release, tmp_path):
    """The digest is of all tensors together, and what is loaded are those in the files that belong to it."""
    tensors = load_file(release / models.WEIGHTS)
    sharded = Path(shutil.copytree(release, tmp_path / "sharded"))
    (sharded / models.WEIGHTS).unlink()
    save_torch_state_dict(tensors, str(sharded), max_shard_size="10KB")
    assert len(list(sharded.glob("model-*"))) > 1 and verify(sharded).ok
    index = sharded / models.WEIGHTS_INDEX
    rewrite(index, lambda content: content["weight_map"].pop("classifier.weight"))
    assert (
        "FAILED weights: model.safetensors.index.json names other tensors than the shards hold" in verify(sharded).line
    )
    index.unlink()
    assert verify(sharded).failed == ["weights"]

    moved = {name: tensors.pop(name) for name in ("classifier.weight", "classifier.bias")}
    save_file(tensors, release / models.WEIGHTS, metadata={"format": "pt"})
    save_file(moved, release / models.ADAPTER_WEIGHTS)
    assert "FAILED weights: they are not in the files that they belong in" in verify(release).line


def test_a_link_to_a_folder(made, release):
    (release / "unlearn").symlink_to(made.parent)
    assert "FAILED files: unlearn is not in the receipt" in verify(release).line


def test_documents_beside_the_release(release):
    for name in ("LICENSE", "figure.png", ".gitattributes"):
        (release / name).write_text("new")
    found = verify(release)
    assert found.ok and found.uncovered == [".gitattributes", "LICENSE", "figure.png"]
    assert found.line.endswith("Not covered: .gitattributes; LICENSE; figure.png.")


def test_another_parent(made, release, tmp_path):
    models.save_model(tiny_vit(seed=1), tmp_path / "other")
    found = verify(release, parent=tmp_path / "other")
    assert found.failed == ["parent"] and "the parent's weights have the digest" in found.line
    with pytest.raises(UnlearningError, match="other weights than the model that was unlearned"):
        make_receipt(made.result, release, parent=tmp_path / "other")


def test_a_record_that_was_not_in_the_request(made, tmp_path):
    strangers = datasets.concatenate_datasets([made.forget, images(2, seed=70)])
    found = verify(made.release, forget=strangers, secrets=made.secrets)
    assert found.failed == ["records"] and "2 of the 10 given records were not in the request" in found.line
    twice = made.forget.select([0, 0])
    assert "1 of the 2 given records" in verify(made.release, forget=twice, secrets=made.secrets).line
    rewrite(shutil.copy(made.secrets, tmp_path / "s.json") and tmp_path / "s.json", lambda s: s["records"].pop())
    found = verify(made.release, forget=made.forget, secrets=tmp_path / "s.json")
    assert found.failed == ["records"] and "the given secrets are of another receipt" in found.line
    with pytest.raises(UnlearningError, match="secrets is given alone"):
        verify(made.release, secrets=made.secrets)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r.pop("weights"), "weights is missing"),
        (lambda r: r.update(weights=3), "weights is missing or of another type"),
        (lambda r: r["forget"].pop("root"), "root is missing"),
        (lambda r: r.update(parent={"repo": "me/vit"}), "commit is missing"),
        (lambda r: r.update(signature=None), "signature is missing or of another type"),
        (lambda r: r.update(format=3), "of format 3; this version of hf_unlearn reads"),
    ],
)
def test_a_receipt_that_is_none(release, change, sentence):
    forge(release, change)
    found = verify(release)
    assert found.failed == ["receipt"] and sentence in found.line and found.receipt is None


def test_no_receipt(made):
    with pytest.raises(UnlearningError, match="holds no unlearning_receipt.json"):
        verify(made.parent)
    with pytest.raises(UnlearningError, match="is a folder, which has no revision 'main'"):
        verify(made.release, revision="main")


def test_it_tells_nothing_of_the_records(tmp_path):
    data = request(sentences)
    texts = [f"{text} markerword{i}" for i, text in enumerate(data["forget"]["text"])]
    data["forget"] = datasets.Dataset.from_dict({"text": texts, "label": [2, 1, 1, 0, 2, 2, 0, 1]})
    result = run(tmp_path / "run", tiny_bert(), processing_class=tiny_tokenizer(), **data)
    text = (released(result, tmp_path / "release") / RECEIPT).read_text()
    secrets = json.loads((tmp_path / "run" / "_unlearn" / SECRETS).read_text())
    kept = Secrets.load(tmp_path / "run" / "_unlearn" / SECRETS)
    private = [*texts, "markerword", secrets["secret"], *secrets["records"], str(tmp_path)]
    private += [hashlib.sha256(t.encode()).hexdigest() for t in texts]
    private += [merkle.salt(kept.secret, i).hex() for i in range(8)] + [leaf.hex() for leaf in kept.leaves]
    private += [data[name]._fingerprint for name in data]
    assert not [secret for secret in private if secret in text]
    values = list(numbers(json.loads(text)))
    lists = [v for v in values if isinstance(v, list)]
    assert lists == [["text"], [{"format": "pt"}]]  # nothing per sample, and no labels
    assert secrets["records"] == sorted(d.hex() for d in record_digests(data["forget"], ["text"]))


def numbers(value):
    """All values of a receipt that are no dictionaries."""
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif value != []:
        yield value


@pytest.mark.parametrize("build", slow_but([tiny_vit], [tiny_resnet, tiny_vit]), ids=["timm", "vit"])
def test_an_adapter(tmp_path, build):
    models.save_model(build(), tmp_path / "parent")
    result = run(tmp_path / "run", build(), peft_config=True)
    release = released(result, tmp_path / "release", parent=tmp_path / "parent")
    receipt = read_json(release / RECEIPT)
    assert receipt["drift"] == {"parent": None, "first": None}  # other tensors
    assert verify(release, parent=tmp_path / "parent").unchecked == ["signature", "history", "records"]
    (adapter,) = release.rglob("adapter_model.safetensors")
    save_file({k: v + 1 for k, v in load_file(adapter).items()}, adapter)
    assert verify(release).failed == ["weights"]
    models.save_model(build(seed=1), tmp_path / "other")
    with pytest.raises(UnlearningError, match="other weights than the model that was unlearned"):
        make_receipt(result, release, parent=tmp_path / "other")


def test_a_parent_whose_files_have_other_names_and_precision(tmp_path):
    model = tiny_resnet()
    model.save_pretrained(tmp_path / "parent")  # `timm_model.` before every name
    result = run(tmp_path / "run", models.load_model(tmp_path / "parent", dtype=torch.float64))
    release = released(result, tmp_path / "release", parent=tmp_path / "parent")
    assert verify(release, parent=tmp_path / "parent").failed == []
    assert read_json(release / RECEIPT)["drift"]["parent"] > 0


# ---------------------------------------------------------------------------------------------------------------------
# Signatures


def write_keys(
    folder: Path, kind=ed25519.Ed25519PrivateKey.generate, password: bytes | None = None
) -> tuple[Path, Path]:
    folder.mkdir()
    key, pem = kind(), serialization.Encoding.PEM
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden))
    (folder / "public.pem").write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return folder / "key.pem", folder / "public.pem"


def test_signatures(made, release, tmp_path):
    key, public = write_keys(tmp_path / "mine")
    stranger, strangers_public = write_keys(tmp_path / "stranger")
    make_receipt(made.result, release, parent=made.parent, sign_key=key)
    signature = read_json(release / RECEIPT)["signature"]
    assert "signature" in [check.name for check in verify(release, public_key=public).checks if check.passed]
    untrusted = verify(release)
    assert "signature" in untrusted.unchecked
    assert f"signed by the key {signature['fingerprint']}, which you did not vouch for" in untrusted.line
    assert verify(release, public_key=strangers_public).failed == ["signature"]

    forge(release, lambda receipt: receipt["versions"].update(torch="9"))  # by somebody without the key
    assert verify(release).failed == verify(release, public_key=public).failed == ["signature"]
    make_receipt(made.result, release, parent=made.parent, sign_key=stranger)  # by somebody with another key
    assert verify(release).failed == []
    assert verify(release, public_key=public).failed == ["signature"]
    rewrite(release / RECEIPT, lambda receipt: receipt["signature"].update(fingerprint=signature["fingerprint"]))
    assert verify(release, public_key=public).failed == ["signature"]  # another key under the name of mine
    rewrite(release / RECEIPT, lambda receipt: receipt.pop("signature"))
    assert "FAILED signature: the receipt is not signed" in verify(release, public_key=public).line


def test_keys_that_are_none(made, release, tmp_path):
    other = write_keys(tmp_path / "other", lambda: ec.generate_private_key(ec.SECP256R1()))
    locked = write_keys(tmp_path / "locked", password=b"word")
    _, public = write_keys(tmp_path / "mine")
    for key, sentence in (
        (other[0], "holds no Ed25519 private key"),
        (public, "holds no Ed25519 private key"),
        (locked[0], "is protected by a password"),
        (tmp_path / "absent.pem", "cannot be read: No such file"),
    ):
        with pytest.raises(UnlearningError, match=sentence):
            make_receipt(made.result, release, sign_key=key)
    with pytest.raises(UnlearningError, match="holds no Ed25519 public key"):
        verify(release, public_key=other[1])


def test_without_cryptography(made, release, tmp_path, monkeypatch):
    key, public = write_keys(tmp_path / "mine")
    make_receipt(made.result, release, parent=made.parent, sign_key=key)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    found = verify(release)
    assert found.ok and "signature (that needs the package cryptography" in found.line
    for call in (lambda: make_receipt(made.result, release, sign_key=key), lambda: verify(release, public_key=public)):
        with pytest.raises(UnlearningError, match=r"pip install 'hf_unlearn\[sign\]'"):
            call()


# ---------------------------------------------------------------------------------------------------------------------
# On the Hub


def upload(repo: str, folder: Path, branch: str = "main", start: str | None = None) -> Parent:
    """One commit with all of a folder, on a branch that begins at `start`."""
    if branch != "main":
        HfApi().create_branch(repo, branch=branch, revision=start, exist_ok=True)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    operations = [CommitOperationAdd(p.relative_to(folder).as_posix(), p.read_bytes()) for p in files]
    return Parent(repo, HfApi().create_commit(repo, operations, commit_message="x", revision=branch).oid)


def test_on_the_hub(hub, made, release, tmp_path):
    HfApi().create_repo("me/vit")
    first = upload("me/vit", made.parent)
    make_receipt(made.result, release, parent=first)
    assert read_json(release / RECEIPT)["parent"] == {"repo": "me/vit", "commit": first.commit}
    pushed = upload("me/vit", release, "unlearned/a", first.commit)
    found = verify("me/vit", revision="unlearned/a", forget=made.forget, secrets=made.secrets)
    assert found.ok and found.unchecked == ["signature"]
    assert found.what == f"me/vit at {pushed.commit[:12]}"
    assert verify(release).unchecked == ["signature", "history", "records"]  # the parent is fetched
    assert verify(release, parent=f"me/vit@{first.commit}").ok
    assert verify(release, parent="me/vit@unlearned/a").failed == ["parent", "chain"]

    # Swapped for a commit that is no ancestor, with the same weights; for one that is, with others; for one elsewhere.
    (made.parent / "README.md").write_text("A commit of its own.")
    aside = upload("me/vit", made.parent, "aside", first.commit)
    (made.parent / "README.md").unlink()
    models.save_model(tiny_vit(seed=1), tmp_path / "other")
    HfApi().create_repo("me/other")
    elsewhere = upload("me/other", tmp_path / "other")
    later = upload("me/vit", tmp_path / "other", "unlearned/b", first.commit)
    for parent, failed in ((aside, ["history"]), (later, ["parent"]), (elsewhere, ["parent"])):
        copy = Path(shutil.copytree(release, tmp_path / parent.commit))
        forge(copy, lambda r, p=parent: r.update(parent={"repo": p.repo_id, "commit": p.commit}))
        upload("me/vit", copy, "unlearned/b")
        assert verify("me/vit", revision="unlearned/b").failed == failed

    flip(release)
    upload("me/vit", release, "unlearned/a")
    assert verify("me/vit", revision="unlearned/a").failed == ["weights"]
    assert verify("me/vit", revision=pushed.commit).ok


def test_what_a_push_puts_there(hub, made, tmp_path):
    HfApi().create_repo("me/vit")
    parent = upload("me/vit", made.parent)
    key, public = write_keys(tmp_path / "mine")
    result = run(tmp_path / "run", "me/vit")
    rows = evaluate_earlier(result, [{"name": "request-1", "forget": images(8, seed=73)}])
    pushed = result.push_to_hub("me/vit", "unlearned/a", sign_key=key, earlier=rows)
    secrets = tmp_path / "run" / "_unlearn" / SECRETS
    given = {"forget": made.forget, "secrets": secrets, "public_key": public}
    found = verify("me/vit", revision="unlearned/a", **given)
    assert found.ok and found.unchecked == []
    assert found.receipt["parent"]["commit"] == parent.commit and found.receipt["earlier"][0]["samples"] == 8
    private = json.loads(secrets.read_text())
    for where, content in hub.sent():
        assert not [x for x in (private["secret"], *private["records"]) if x.encode() in content], where
    hub.put("me/vit", hub.files("me/vit", pushed.commit) | {"config.json": b"{}"}, "unlearned/a")
    assert verify("me/vit", revision="unlearned/a", **given).failed == ["files"]


def test_the_parent_by_default(hub, made, tmp_path):
    HfApi().create_repo("me/vit")
    parent = upload("me/vit", made.parent)
    result = run(tmp_path / "run", "me/vit")
    upload("me/vit", made.release)  # main moves on
    release = released(result, tmp_path / "release")
    assert read_json(release / RECEIPT)["parent"] == {"repo": "me/vit", "commit": parent.commit}
    assert verify(release).unchecked == ["signature", "history", "records"]


def test_a_hub_that_is_not_there(hub, made, release):
    HfApi().create_repo("me/vit")
    parent = upload("me/vit", made.parent)
    make_receipt(made.result, release, parent=parent)
    hub.fail("drop")
    found = verify(release)
    assert found.ok and found.unchecked == ["signature", "history", "parent", "chain", "records"]
    assert "the Hub cannot be reached" in found.line
    with pytest.raises(UnlearningError, match="the Hub cannot be reached"):
        verify("me/vit")
    before = (release / RECEIPT).read_bytes()
    with pytest.raises(
        UnlearningError, match=f"The parent me/vit@{parent.commit}, .* cannot be read: the Hub cannot be"
    ):
        make_receipt(made.result, release, parent=parent)
    assert (release / RECEIPT).read_bytes() == before
    hub.recover()
    assert verify(release).unchecked == ["signature", "history", "records"]
    with pytest.raises(UnlearningError, match="neither a local folder nor a repository"):
        verify("me/absent")
    with pytest.raises(UnlearningError, match="has no revision 'absent'"):
        verify("me/vit", revision="absent")


def test_a_connection_that_breaks(hub, made, release):
    """After any number of requests: what could not be asked is not checked, or one sentence says that nothing could."""
    HfApi().create_repo("me/vit")
    parent = upload("me/vit", made.parent)
    make_receipt(made.result, release, parent=parent)
    upload("me/vit", release, "unlearned/a", parent.commit)
    verify("me/vit", revision="unlearned/a")  # from here on, the files are in the cache
    begun, refused = len(hub.requests), 0
    assert verify("me/vit", revision="unlearned/a").unchecked == ["signature", "records"]
    for n in range(1, len(hub.requests) - begun + 1):
        hub.fail("drop", at=n)
        try:
            found = verify("me/vit", revision="unlearned/a")
            assert found.ok and len(found.unchecked) > 2
        except UnlearningError as error:
            refused += 1
            assert "the Hub cannot be reached" in str(error)
        hub.recover()
    assert 1 <= refused < n


def test_a_processor_that_the_parent_had(hub, made, release, tmp_path):
    HfApi().create_repo("me/vit")
    with_processor = Path(shutil.copytree(made.parent, tmp_path / "parent"))
    shutil.move(release / "preprocessor_config.json", with_processor)
    parent = upload("me/vit", with_processor)
    make_receipt(made.result, release, parent=parent)
    upload("me/vit", release, "unlearned/a", parent.commit)
    assert verify("me/vit", revision="unlearned/a").failed == []
    rewrite(with_processor / "preprocessor_config.json", lambda content: content.update(do_resize=False))
    (with_processor / models.WEIGHTS).unlink()
    upload("me/vit", with_processor, "unlearned/a")
    found = verify("me/vit", revision="unlearned/a")
    assert found.failed == ["files"] and "preprocessor_config.json is not in the receipt" in found.line


# ---------------------------------------------------------------------------------------------------------------------
# Requests that follow one another


@pytest.mark.slow
def test_a_chain_of_requests(hub, made, release, tmp_path):
    HfApi().create_repo("me/vit")
    steps = [upload("me/vit", made.parent)]
    make_receipt(made.result, release, parent=steps[0])
    steps.append(upload("me/vit", release, "unlearned/a", steps[0].commit))
    folders = [made.parent, release]
    for i in (2, 3):
        model = models.load_model("me/vit", revision=steps[-1].commit)
        result = run(tmp_path / f"run-{i}", model, forget=images(8, seed=60 + i))
        earlier = evaluate_earlier(result, [{"name": "request-1", "forget": made.forget}]) if i == 2 else None
        folders.append(released(result, tmp_path / f"release-{i}", parent=steps[-1], earlier=earlier))
        steps.append(upload("me/vit", folders[-1], f"unlearned/{i}", steps[-1].commit))
    receipts = [read_json(folder / RECEIPT) for folder in folders[1:]]
    for before, after in pairwise(receipts):
        assert (
            after["previous"]["receipt"] == before["digest"]
            and after["weights"]["before"] == before["weights"]["after"]
        )
    (row,) = receipts[1]["earlier"]
    assert row["name"] == "request-1" and row["after"].keys() == {"accuracy", "auc", "auc_low", "auc_high"}
    for receipt, folder, parent in zip(receipts, folders[1:], folders, strict=False):
        assert receipt["drift"]["parent"] == pytest.approx(relative_distance(parent, folder))
        assert receipt["drift"]["first"] == pytest.approx(relative_distance(made.parent, folder))
    found = verify("me/vit", revision="unlearned/3")
    assert found.ok and found.unchecked == ["signature", "records"]
    assert said(found, "chain") == "2 earlier receipts hold"
    assert said(verify(folders[3], parent=folders[2]), "chain") == "2 earlier receipts hold"
    so_far = "the receipt before holds, and so do all before it"
    hub.fail("drop", fits=f"GET .*{receipts[1]['previous']['commit']}")  # behind it nothing is asked for
    assert said(verify(folders[3], parent=folders[2], held=[receipts[1]["digest"]]), "chain") == so_far
    hub.recover()

    def broken(change) -> str:
        copy = Path(shutil.copytree(folders[3], tmp_path / "broken", dirs_exist_ok=True))
        forge(copy, change)
        found = verify(copy)
        assert found.failed == ["chain"]
        return found.line

    assert "the parent has a receipt, and this one does not name it" in broken(lambda r: r.update(previous=None))
    other = receipts[0]["digest"]
    assert "is not the one that its successor names" in broken(lambda r: r["previous"].update(receipt=other))
    skipped = {"repo": "me/vit", "commit": steps[1].commit, "receipt": other}
    assert "ends with other weights than its successor begins with" in broken(lambda r: r.update(previous=skipped))
    absent = {"repo": "me/vit", "commit": steps[0].commit, "receipt": other}
    assert "has no receipt at" in broken(lambda r: r.update(previous=absent))


def test_a_chain_of_folders(made, tmp_path):
    result = run(tmp_path / "run", models.load_model(made.release), forget=images(8, seed=61))
    second = released(result, tmp_path / "second", parent=made.release)
    receipt = read_json(second / RECEIPT)
    assert receipt["previous"] == {
        "repo": None,
        "commit": None,
        "receipt": read_json(made.release / RECEIPT)["digest"],
    }
    assert receipt["drift"]["first"] is None and str(tmp_path) not in (second / RECEIPT).read_text()
    assert verify(second, parent=made.release).unchecked == ["signature", "history", "records"]
    copy = Path(shutil.copytree(made.release, tmp_path / "copy"))
    forge(copy, lambda r: r["metrics"]["after"].update(auc=0.5))
    found = verify(second, parent=copy)
    assert found.failed == ["chain"] and "the parent's receipt is not the one that its successor names" in found.line


def from_pretrained(revision: str) -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained("me/vit", revision=revision)


@pytest.mark.parametrize(
    "load",
    slow_but(
        [from_pretrained],
        [from_pretrained, lambda r: models.load_model("me/vit", revision=r), lambda r: f"me/vit@{r}"],
    ),
    ids=["from_pretrained", "load_model", "name"],
)
def test_a_second_request_finds_its_parent(hub, made, tmp_path, load):
    HfApi().create_repo("me/vit")
    upload("me/vit", made.parent)
    run(tmp_path / "first", "me/vit").push_to_hub("me/vit", "unlearned/a")
    hub.put("me/vit", {"notes.txt": b"main goes on"})
    first = verify("me/vit", revision="unlearned/a").receipt
    result = run(tmp_path / "second", load("unlearned/a"), forget=images(8, seed=61))
    result.push_to_hub("me/vit", "unlearned/b")
    found = verify("me/vit", revision="unlearned/b")
    commit = hub.branches("me/vit")["unlearned/a"]
    assert found.receipt["parent"] == {"repo": "me/vit", "commit": commit}
    assert found.receipt["previous"] == {"repo": "me/vit", "commit": commit, "receipt": first["digest"]}
    assert hub.history("me/vit", "unlearned/b")[0]["parent"] == commit
    assert found.ok and said(found, "chain") == "1 earlier receipts hold"


def test_a_model_that_was_changed_has_no_parent(hub, made, tmp_path, caplog):
    HfApi().create_repo("me/vit")
    upload("me/vit", made.parent)
    model = models.load_model("me/vit")
    with torch.no_grad():
        model.classifier.bias += 1
    run(tmp_path / "run", model).push_to_hub("me/vit", "unlearned/a")
    receipt = verify("me/vit", revision="unlearned/a").receipt
    assert receipt["parent"] is receipt["previous"] is None and "names no parent: me/vit at" in caplog.text


@pytest.fixture
def adapter(hub, made, tmp_path) -> dict:
    """The receipt of an adapter on the branch `unlearned/a`."""
    HfApi().create_repo("me/vit")
    upload("me/vit", made.parent)
    run(tmp_path / "first", "me/vit", peft_config=True).push_to_hub("me/vit", "unlearned/a")
    return verify("me/vit", revision="unlearned/a").receipt


def with_adapter() -> PeftModel:
    where = {"revision": "unlearned/a", "subfolder": "unlearn"}
    return PeftModel.from_pretrained(models.load_model("me/vit"), "me/vit", **where)


@pytest.mark.parametrize("given", slow_but([False], [True, False]), ids=["given", "found"])
@pytest.mark.parametrize("kind", ["stacked", "merged"])
def test_a_second_request_over_an_adapter(hub, adapter, tmp_path, kind, given):
    model = with_adapter()
    if kind == "merged":
        model = model.merge_and_unload()
    settings = {"peft_config": True if kind == "stacked" else None}
    result = run(tmp_path / "second", model, forget=images(8, seed=61), **settings)
    result.push_to_hub("me/vit", "unlearned/b", parent=Parent("me/vit", "unlearned/a") if given else None)
    found = verify("me/vit", revision="unlearned/b")
    commit = hub.branches("me/vit")["unlearned/a"]
    assert found.receipt["previous"] == {"repo": "me/vit", "commit": commit, "receipt": adapter["digest"]}
    assert found.receipt["drift"] == {"parent": None, "first": None} or kind == "merged"
    assert found.ok and found.unchecked == ["signature", "records"]
    assert said(found, "chain") == "1 earlier receipts hold"


@pytest.mark.slow
def test_what_is_no_parent_of_what_lies_over_an_adapter(hub, adapter, tmp_path):
    with pytest.raises(
        UnlearningError, match="holds the adapter of an unlearned model: load its base model, then Peft"
    ):
        unlearn("me/vit@unlearned/a", **request())
    stacked = run(tmp_path / "stacked", with_adapter(), peft_config=True)
    with pytest.raises(UnlearningError, match="me/vit at [0-9a-f]{40} has other weights than the model that was"):
        stacked.push_to_hub("me/vit", "unlearned/b", parent=Parent("me/vit", "main"))
    over = run(tmp_path / "over", with_adapter().merge_and_unload().requires_grad_(True), peft_config=True)
    for parent in (Parent("me/vit", "unlearned/a"), None):
        with pytest.raises(UnlearningError, match=r"call result.merge\(\)"):
            over.push_to_hub("me/vit", "unlearned/b", parent=parent)
    over.merge()
    over.push_to_hub("me/vit", "unlearned/b")
    assert verify("me/vit", revision="unlearned/b").receipt["previous"]["receipt"] == adapter["digest"]
    hub.put("me/empty", {})
    with pytest.raises(UnlearningError, match="me/empty at [0-9a-f]{40} holds no model.safetensors"):
        over.push_to_hub("me/vit", "unlearned/c", parent=Parent("me/empty", "main"))


def test_earlier_requests(made):
    trainer, result = made.result.trainer, made.result
    same = {"name": "this one", "forget": made.forget}
    other = {"name": "class 9", "forget": images(4, seed=71, num_labels=4).select([0, 1])}
    rows = evaluate_earlier(result, [same, other])
    assert [(row["name"], row["samples"]) for row in rows] == [("this one", 8), ("class 9", 2)]
    for when in ("before", "after"):
        for key in ("accuracy", "loss", "auc"):
            expected = result.metrics[when]["auc" if key == "auc" else f"forget_{key}"]
            assert rows[0][when][key] == pytest.approx(expected)
    assert trainer.evaluator.samples.sources.keys() == {"forget", "retain", "unseen"}
    with pytest.raises(UnlearningError, match="3 of the 3 samples of the earlier request 'x' stand in retain"):
        evaluate_earlier(result, [{"name": "x", "forget": made.data["retain"].select(range(3))}])
    for item in (made.forget, {"forget": made.forget}):
        with pytest.raises(UnlearningError, match="An earlier request is given as"):
            evaluate_earlier(result, [item])
    for given in (5, "request-1", {"name": "x", "forget": made.forget}):
        with pytest.raises(UnlearningError, match=r"earlier is given as \w+; expected a list such as \[\{"):
            evaluate_earlier(result, given)
    with pytest.raises(UnlearningError, match="is empty"):
        evaluate_earlier(result, [{"name": "x", "forget": made.forget.select([])}])
    with pytest.raises(UnlearningError, match="have labels the model does not have"):
        evaluate_earlier(result, [{"name": "x", "forget": images(8, seed=3, num_labels=8)}])


def test_a_figure_of_an_earlier_request_that_cannot_be_had(tmp_path):
    data = request()
    data["unseen"] = None
    result = run(tmp_path, **data)
    (row,) = evaluate_earlier(result, [{"name": "x", "forget": images(4, seed=72)}])
    assert row["after"]["auc"] is None and row["reasons"] == {"auc": "needs unseen samples"}
    assert row["after"]["accuracy"] is not None


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_the_command(made, release, tmp_path, capsys):
    made.forget.with_format(None).save_to_disk(tmp_path / "forget")
    given = ["--parent", str(made.parent), "--forget", str(tmp_path / "forget"), "--secrets", str(made.secrets)]
    assert cli.main(["verify", str(release), *given]) == 0
    assert "records. Not checked: signature" in capsys.readouterr().out
    flip(release)
    assert cli.main(["verify", str(release)]) == 1
    out = capsys.readouterr().out
    assert "FAILED weights" in out and out.count("\n") == 1
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err
