"""What "Verified" means: whatever is changed in a release is found or named as not covered, and nothing true is refused."""

import datetime
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_unlearn import UnlearningError, models
from hf_unlearn import commands as cli
from hf_unlearn.hub import Parent, make_receipt, prepare, verify
from hf_unlearn.hub.canonical import body, canonical, digest_of
from hf_unlearn.hub.card import write_card
from hf_unlearn.hub.names import CARD, CONFIG, METRICS, RECEIPT, WEIGHTS, WEIGHTS_INDEX
from hf_unlearn.hub.receipt import seal
from hf_unlearn.hub.signing import sign
from hf_unlearn.hub.weights import parent_limit
from tests.hub.test_proofs import old_release
from tests.hub.test_receipt import flip, forge, released, rewrite, run, said, upload, write_keys
from tests.marks import slow_but
from tests.samples import images
from tests.tiny import tiny_vit

BRANCH = "unlearned/a"


def leading_to(repo: str, branch: str | None = None) -> str:
    """What is said of the card in a folder, from which nobody is asked."""
    where = f"{repo} at {branch or 'main'}"
    return f"'How to load' of README.md tells to load from {where}, and what is there was not looked at"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A signed release with everything, its parent's folder, and the keys; none of it is to be changed."""
    root = tmp_path_factory.mktemp("made")
    models.save_model(tiny_vit(), root / "parent")
    key, public = write_keys(root / "keys")
    result = run(root / "run")
    report = result.audit()
    about = {
        "repo_id": "me/vit",
        "revision": BRANCH,
        "parent": root / "parent",
        "sign_key": key,
        "report": report,
        "fewest": 1,
    }
    return SimpleNamespace(
        result=result,
        release=prepare(result, root / "release", **about),
        parent=root / "parent",
        key=key,
        public=public,
    )


@pytest.fixture
def release(made, tmp_path) -> Path:
    """A copy of the release, to be changed."""
    return Path(shutil.copytree(made.release, tmp_path / "release"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_as_it_was_made(made):
    found = verify(made.release, public_key=made.public, parent=made.parent)
    assert found.ok and found.unchecked == ["history", "records"] and found.later == []
    assert found.uncovered == [leading_to("me/vit", BRANCH)]
    assert found.exit_code == 0
    assert set(contents(made.release)) >= {CARD, CONFIG, METRICS, RECEIPT, WEIGHTS, "audit.json", "audit.html"}


# ---------------------------------------------------------------------------------------------------------------------
# Changes of every kind


def text(name: str, old: str, new: str, count: int = 1):
    def change(folder: Path) -> None:
        content = (folder / name).read_text()
        assert re.search(old, content, flags=re.MULTILINE), (name, old)
        (folder / name).write_text(re.sub(old, new, content, count=count, flags=re.MULTILINE))

    return change


def in_receipt(path: str, value, honest_digest: bool = True):
    """A value in the receipt, by somebody who can write a digest and has no key."""

    def change(folder: Path) -> None:
        def put(receipt: dict) -> None:
            *way, last = path.split(".")
            for key in way:
                receipt = receipt[key]
            receipt[last] = value

        (forge if honest_digest else lambda f, c: rewrite(f / RECEIPT, c))(folder, put)

    return change


def weights(change):
    def apply(folder: Path) -> None:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            metadata = file.metadata()
        tensors, metadata = change(load_file(folder / WEIGHTS), metadata)
        save_file(tensors, folder / WEIGHTS, metadata=metadata)

    return apply


def absent(name: str):
    return lambda folder: (folder / name).unlink()


def added(name: str, content: bytes = b"{}"):
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def metadata_key(key: str, value):
    """Set, or with None remove, a key of the card's metadata."""

    def change(folder: Path) -> None:
        _, block, rest = (folder / CARD).read_text().split("---\n", 2)
        metadata = yaml.safe_load(block)
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = value
        (folder / CARD).write_text(f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n{rest}")

    return change


SECTIONS = (
    "Verdict",
    "Request",
    "Method",
    "Before and after",
    "Audit",
    "Locality",
    "Cost",
    "Limits",
    "How it was made",
)
FILES = ("config.json", "preprocessor_config.json", METRICS, CONFIG, "audit.json", "audit.html")
RESULT = {"task": {"type": "x"}, "dataset": {"type": "cats", "name": "c"}, "metrics": [{"type": "f1", "value": 1}]}
CARD_CHANGES = {
    "deleted": absent(CARD),
    "emptied": lambda folder: (folder / CARD).write_text(""),
    "another": lambda folder: (folder / CARD).write_text("---\nlicense: mit\n---\n# Another card\n"),
    "no metadata": text(CARD, r"\A---\n(.|\n)*?^---\n", ""),
    "a figure in the table": text(CARD, r"^(\| forget acc\. \| )\S+", r"\g<1>0.001"),
    "another figure in the table": text(CARD, r"^(\| AUC .*\| )\d\.\d+", r"\g<1>0.500"),
    "a row of the table": text(CARD, r"^\| forget acc.*\n", ""),
    "a further row": text(CARD, r"^(\| forget acc.*\n)", r"\1| certified | 1.000 | 1.000 |\n"),
    "no model-index": metadata_key("model-index", None),
    "an empty model-index": metadata_key("model-index", []),
    "a further result": metadata_key("model-index", [{"name": "me/vit", "results": [RESULT]}]),
    "a result beside": text(CARD, r"^  results:\n", f"  results:\n  - {json.dumps(RESULT)}\n"),
    "a second model": text(
        CARD, r"^model-index:\n", f"model-index:\n- {json.dumps({'name': 'x', 'results': [RESULT]})}\n"
    ),
    "a figure in the metadata": text(CARD, r"value: \S+", "value: 0.9999"),
    "the metric's name": text(CARD, "type: mia", "type: other"),
    "a licence": metadata_key("license", "mit"),
    "base_model": metadata_key("base_model", "evil/model"),
    "base_models": metadata_key("base_model", ["evil/model"]),
    "a key": metadata_key("new_version", "evil/model"),
    "no tags": metadata_key("tags", None),
    "the library": metadata_key("library_name", "timm"),
    "the parent": metadata_key("hf_unlearn", {"method": "finetune", "parent": "evil/model", "receipt": RECEIPT}),
    "the method": metadata_key("hf_unlearn", {"method": "retrain", "receipt": RECEIPT}),
    "the parent in the text": text(CARD, "A model whose original is not named here", "[`evil/model`](https://x)"),
    "the title": text(CARD, r"^# .*", "# A model that never saw the data"),
    "no title": text(CARD, r"^# .*\n", ""),
    "what is to be loaded": text(CARD, r'from_pretrained\("me/vit"', 'from_pretrained("evil/vit"'),
    "which revision is to be loaded": text(CARD, r'revision="unlearned/a"\)', 'revision="main")'),
    "the notice": text(CARD, r"^> \*\*Pass.*\n", ""),
    "the notice's branch": text(CARD, r'Pass `revision="unlearned/a"', 'Pass `revision="main"'),
    "the command": text(CARD, "`hf-unlearn verify me/vit --revision", "`hf-unlearn verify me/vit -x --revision"),
    "no command": text(CARD, "`hf-unlearn verify [^`]*`", "Nothing"),
    "no section How to load": text(CARD, "^## How to load", "## How to use"),
    "a section twice": text(CARD, "^## Limits", "## Verdict\n\nAll is well.\n\n## Limits"),
    "the list of classes": text(CARD, "were retained", "were not retained"),
    "an alias": text(CARD, r"\A---\n", "---\nx: &x [a]\ny: [*x, *x]\n"),
    "the name in model-index": text(CARD, "^- name: me/vit", "- name: evil/model"),
    "a key twice": text(CARD, r"\A---\n", "---\nlibrary_name: timm\n"),
    "no YAML": text(CARD, r"\A---\n", "---\n[\n"),
    "no UTF-8": lambda folder: (folder / CARD).write_bytes(b"\xff" + (folder / CARD).read_bytes()),
    **{f"a line in {name}": text(CARD, f"^## {name}\n", f"## {name}\n\nAll is well.\n") for name in SECTIONS},
    **{f"no {name}": text(CARD, f"^## {name}\n(.|\\n)*?(?=^## )", "") for name in SECTIONS[:-1]},
    "a line below the command": text(
        CARD, "^Who holds a forgotten record", "All is well. Who holds a forgotten record"
    ),
    "a line at the end": lambda folder: (folder / CARD).write_text((folder / CARD).read_text() + "All is well.\n"),
}
WEIGHT_CHANGES = {
    "a bit": flip,
    "cut off": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4]),
    "longer": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0" * 4),
    "empty": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "absent": absent(WEIGHTS),
    "a name": weights(lambda t, m: ({k.replace("classifier", "klassifier"): v for k, v in t.items()}, m)),
    "a tensor less": weights(lambda t, m: (dict(list(t.items())[1:]), m)),
    "a tensor more": weights(lambda t, m: (t | {"x": torch.zeros(1)}, m)),
    "another precision": weights(lambda t, m: ({k: v.half() for k, v in t.items()}, m)),
    "another shape": weights(lambda t, m: ({k: v.flatten() for k, v in t.items()}, m)),
    "header metadata": weights(lambda t, m: (t, m | {"certified": "yes"})),
    "other header metadata": weights(lambda t, m: (t, {"format": "tf"})),
    "no header metadata": weights(lambda t, m: (t, None)),
    "a stray index": added(WEIGHTS_INDEX, b'{"metadata": {}, "weight_map": {"a": "x.safetensors"}}'),
    "a stray empty index": added(WEIGHTS_INDEX, b""),
    "a stray shard": added("model-00001-of-00002.safetensors"),
    "a stray adapter": lambda folder: save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors"),
    "a stray adapter's folder": added("unlearn/adapter_config.json"),
    "a pickle": added("pytorch_model.bin"),
    "code": added("modeling_vit.py"),
}
FILE_CHANGES = {
    **{f"{name} absent": absent(name) for name in FILES},
    **{f"{name} longer": lambda f, n=name: (f / n).write_bytes((f / n).read_bytes() + b" ") for name in FILES},
    "another class": lambda folder: rewrite(folder / "config.json", lambda c: c.update(id2label={"0": "x"})),
    "a figure": lambda folder: rewrite(folder / METRICS, lambda c: c["after"].update(forget_accuracy=0.0)),
    "a seed": lambda folder: rewrite(folder / CONFIG, lambda c: c["training"].update(seed=1)),
    "a tokenizer": added("tokenizer.json"),
    "a chat template": added("chat_template.jinja"),
    "a generation config": added("generation_config.json"),
    "a folder": added("other/config.json"),
    "a hidden file": added(".env"),
    "a file in .cache": added(".cache/x"),
}
RECEIPT_CHANGES = {
    "its digest": in_receipt("digest", "0" * 64, honest_digest=False),
    "a value, without the digest": in_receipt("created", "2020-01-01", honest_digest=False),
    "when": in_receipt("created", "2020-01-01T00:00:00+00:00"),
    "the root": in_receipt("forget.root", "0" * 64),
    "the count": in_receipt("forget.count", 9),
    "the columns": in_receipt("forget.columns", ["other"]),
    "no columns": in_receipt("forget.columns", []),
    "the form of records": in_receipt("forget.canonical", 1),
    "a later form of records": in_receipt("forget.canonical", 3),
    "format 1": in_receipt("format", 1),
    "a true format": in_receipt("format", True),
    "format 3": in_receipt("format", 3),
    "the kind": in_receipt("kind", "a receipt"),
    "the version": in_receipt("version", "0.0.0"),
    "no card": in_receipt("card", None),
    "a card without sections": in_receipt("card.sections", {}),
    "a parent": in_receipt("parent", {"repo": "evil/model", "commit": "0" * 40}),
    "a predecessor": in_receipt("previous", {"repo": None, "commit": None, "receipt": "0" * 64}),
    "the weights after": in_receipt("weights.after", "0" * 64),
    "the weights before": in_receipt("weights.before", "0" * 64),
    "the headers": in_receipt("weights.metadata", []),
    "no files": in_receipt("files", {}),
    "the method": in_receipt("method.name", "retrain"),
    "a figure": in_receipt("metrics.after.forget_accuracy", 0.0),
    "a text as a figure": in_receipt("metrics.after.forget_accuracy", "0"),
    "no figures": in_receipt("metrics.before", None),
    "drift": in_receipt("drift.parent", 0.0),
    "a dataset": in_receipt("dataset", {"name": "x"}),
    "a further key": in_receipt("certified", True),
    "the algorithm": in_receipt("signature.algorithm", "none", honest_digest=False),
    "the fingerprint": in_receipt("signature.fingerprint", "SHA256:00", honest_digest=False),
    "the signature": in_receipt("signature.value", "AAAA", honest_digest=False),
    "no text as a signature": in_receipt("signature.value", None, honest_digest=False),
    "the key": in_receipt("signature.public_key", "AAAA", honest_digest=False),
    "a further key in the signature": in_receipt("signature.certified_by", "an authority", honest_digest=False),
    "no signature": lambda folder: rewrite(folder / RECEIPT, lambda receipt: receipt.pop("signature")),
    "other bits behind the signature": lambda folder: rewrite(folder / RECEIPT, _other_padding),
    "no JSON": added(RECEIPT, b"{"),
    "a list": added(RECEIPT, b"[]"),
    "a number": added(RECEIPT, b"3"),
    "lists in lists": added(RECEIPT, b"[" * 100_000),
}
TAMPERINGS = {
    f"{kind}: {name}": change
    for kind, changes in (
        ("card", CARD_CHANGES),
        ("weights", WEIGHT_CHANGES),
        ("files", FILE_CHANGES),
        ("receipt", RECEIPT_CHANGES),
    )
    for name, change in changes.items()
}


def _other_padding(receipt: dict) -> None:
    """The same 64 bytes in Base64, with other bits where the last character has some to spare."""
    value = receipt["signature"]["value"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    receipt["signature"]["value"] = value[:-3] + alphabet[alphabet.index(value[-3]) ^ 1] + "=="


def test_there_are_enough():
    assert len(TAMPERINGS) >= 100


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampering(made, release, name):
    before = contents(release)
    TAMPERINGS[name](release)
    assert contents(release) != before
    found = verify(release, public_key=made.public, parent=made.parent)
    assert found.failed and found.exit_code == 1 and "FAILED" in found.line and "\n" not in found.line
    if not name.startswith("receipt"):  # what somebody sees who has nothing but the release
        assert verify(release).failed


@pytest.mark.parametrize("block", slow_but(range(3), range(20)))
def test_random_changes(made, release, block):
    """Of any bytes in any file: found, or without any meaning; and nothing but a sentence comes out."""
    rng = np.random.default_rng(block)
    original = contents(release)
    for _ in range(30):
        name = sorted(original)[rng.integers(len(original))]
        content = bytearray(original[name])
        at, n = rng.integers(len(content)), rng.integers(1, 9)
        match rng.integers(4):
            case 0:
                content[at] ^= 1 << rng.integers(8)
            case 1:
                content[at : at + n] = rng.bytes(n)
            case 2:
                content[at:at] = rng.bytes(n)
            case 3:
                del content[at : at + n]
        (release / name).write_bytes(content)
        found = verify(release, public_key=made.public)
        if found.ok and bytes(content) != original[name]:
            assert name in (RECEIPT, CARD)
            assert _meaning(name, bytes(content)) == _meaning(name, original[name]), (block, name, at)
        (release / name).write_bytes(original[name])


def _meaning(name: str, content: bytes) -> object:
    if name == RECEIPT:
        return json.loads(content)
    _, metadata, text = content.decode().split("---\n", 2)
    return yaml.safe_load(metadata), [line.rstrip() for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize("block", slow_but(range(2), range(10)))
def test_random_values(release, block):
    """Any value anywhere in the JSON files of a release, whose receipt is made to fit: a verdict, and no traceback."""
    rng = np.random.default_rng(100 + block)
    values = [
        None,
        True,
        0,
        -1,
        1e308,
        10**400,
        "",
        "\n",
        "a" * 1000,
        [],
        [[]],
        {},
        {"a": {}},
        [None],
        "../../x",
        {"": 0},
    ]
    original = contents(release)
    names = [RECEIPT, RECEIPT, METRICS, CONFIG, "audit.json", "config.json"]
    for _ in range(20):
        name = names[rng.integers(len(names))]
        content = json.loads(original[name])
        places = list(_places(content))
        holder, key = places[rng.integers(len(places))]
        if rng.integers(4):
            holder[key] = values[rng.integers(len(values))]
        else:
            del holder[key]
        (release / name).write_text(json.dumps(content))
        if name != RECEIPT:
            forge(release, lambda r, n=name: r["files"].update({n: models_digest(release / n)}))
        else:
            rewrite(release / RECEIPT, lambda r: isinstance(r, dict) and r.update(digest=digest_of(body(r))))
        assert verify(release).line.isprintable()
        for changed in (name, RECEIPT):
            (release / changed).write_bytes(original[changed])


def models_digest(path: Path) -> str:
    from hashlib import sha256

    return sha256(path.read_bytes()).hexdigest()


def _places(value):
    """Every item of nested lists and dictionaries, as its holder and its key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


@pytest.mark.parametrize("name", [CARD, RECEIPT, METRICS, CONFIG, WEIGHTS, "config.json"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "loop", "unreadable"])
def test_what_is_no_file(release, name, kind):
    path = release / name
    content = path.read_bytes()
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(name)
        case "unreadable":
            path.write_bytes(content)
            path.chmod(0)
    if name == RECEIPT and kind != "unreadable":
        with pytest.raises(UnlearningError, match="holds no unlearning_receipt.json"):
            verify(release)
    elif kind != "unreadable" or os.geteuid():  # whom nothing is unreadable for
        assert verify(release).failed


# ---------------------------------------------------------------------------------------------------------------------
# What is true and must not be refused


def test_what_a_client_leaves_in_a_folder(release):
    for name in (".cache/huggingface/download/config.json.metadata", ".cache/huggingface/.gitignore", ".git/config"):
        added(name)((release / name).parent.mkdir(parents=True, exist_ok=True) or release)
    found = verify(release)
    assert found.ok and found.uncovered == [
        leading_to("me/vit", BRANCH),
        ".git, which is not of the release",
        ".cache/huggingface, which is not of the release",
    ]


def test_sections_that_somebody_adds(release):
    with open(release / CARD, "a") as file:
        file.write("\n## Contact\n\nWrite to us.\n")
    found = verify(release)
    assert found.ok and "Not covered: the section 'Contact' of README.md, which was added to it" in found.line


def test_lines_of_another_system(release):
    (release / CARD).write_bytes((release / CARD).read_bytes().replace(b"\n", b"\r\n"))
    assert verify(release).failed == []


def test_a_card_of_another_version(made, release, tmp_path):
    """Its digests hold for all of it but the title and how to load, which is said."""
    forge(release, lambda receipt: receipt.update(version="0.0.1") or receipt.pop("signature"))
    found = verify(release)
    assert found.ok and "and 'How to load' of README.md, which hf_unlearn 0.0.1 wrote" in found.line
    text(CARD, r"^(\| forget acc\. \| )\S+", r"\g<1>0.001")(release)
    assert verify(release).failed == ["card"]


@pytest.mark.parametrize("repo", ["me/vit", "you/vit"], ids=["the parent's repository", "another"])
@pytest.mark.parametrize("branch", [None, BRANCH])
def test_a_card_that_is_made_again_for_another_place(made, tmp_path, repo, branch):
    """The signature is of a card without a place, and holds for the same card anywhere."""
    parent, parent_card = Parent("me/vit", "0" * 40), {"base_model": "google/vit", "license": "mit"}
    folder = Path(shutil.copytree(made.release, tmp_path / "release"))
    about = {"parent": parent, "parent_card": parent_card}
    write_card(folder, **about)
    seal(folder, made.key)
    assert verify(folder, public_key=made.public).ok
    write_card(folder, repo_id=repo, revision=branch, **about)
    found = verify(folder, public_key=made.public)
    assert found.ok and found.uncovered == [leading_to(repo, branch)]
    base = "google/vit" if repo == "me/vit" else "me/vit"
    text(CARD, f"base_model: {base}", "base_model: evil/vit")(folder)
    assert verify(folder).failed == ["card"]


# ---------------------------------------------------------------------------------------------------------------------
# Signatures


def test_a_signature_that_was_not_checked(made, release, capsys):
    found = verify(release)
    assert found.ok and found.exit_code == 3 and "Verified, but not who signed it: receipt" in found.line
    assert "which you did not vouch for; pass public_key (--public-key)" in found.line
    assert cli.main(["verify", str(release)]) == 3
    assert cli.main(["verify", str(release), "--public-key", str(made.public)]) == 0
    flip(release)
    assert cli.main(["verify", str(release), "--public-key", str(made.public)]) == 1
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["verify", "--help"])
    assert "3 nothing failed, but the receipt is signed" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def chain(made, tmp_path) -> tuple[Path, Path]:
    """The releases of two requests in folders, both signed."""
    first = Path(shutil.copytree(made.release, tmp_path / "first"))
    result = run(tmp_path / "run", models.load_model(first), forget=images(8, seed=61))
    return first, released(result, tmp_path / "second", parent=first, sign_key=made.key)


def test_signatures_in_a_chain(made, chain, tmp_path):
    first, second = chain
    receipt = json.loads((second / RECEIPT).read_text())
    signature = json.loads((first / RECEIPT).read_text())["signature"]
    assert receipt["previous"]["signer"] == signature["fingerprint"]
    found = verify(second, parent=first, public_key=made.public)
    assert found.failed == [] and "the parent's receipt is signed by SHA256:" in said(found, "chain")
    other, _ = write_keys(tmp_path / "other")

    def sentence(change) -> str:
        copy = Path(shutil.copytree(first, tmp_path / "copy", dirs_exist_ok=True))
        rewrite(copy / RECEIPT, change)
        found = verify(second, parent=copy, public_key=made.public)
        assert found.failed == ["chain"]
        return said(found, "chain")

    def by_another(receipt: dict) -> None:
        receipt["signature"] = sign(canonical(body(receipt)), other)

    assert "and is not any more" in sentence(lambda r: r.pop("signature"))
    assert "and is not any more" in sentence(by_another)
    assert "a signature that does not belong" in sentence(lambda r: r["signature"].update(value="AAAA"))
    assert "has 'x' beside what belongs there" in sentence(lambda r: r["signature"].update(x="y"))


# ---------------------------------------------------------------------------------------------------------------------
# What a receipt may say


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({1: "a"}, "dataset has the key 1, which JSON makes a text of"),
        ({"a": {None: 1}}, r"dataset\['a'\] has the key None"),
        ({"a": datetime.date(2020, 1, 1)}, r"dataset\['a'\] is a datetime.date"),
        ({"a": [0.5, float("nan")]}, r"dataset\['a'\]\[1\] is 'nan', which JSON has not"),
        ({"a": float("inf")}, "is 'inf', which JSON has not"),
        ({"a": np.int64(3)}, r"is a numpy.int64; expected a text, .* \.item\(\)"),
        ({"a": np.float32(3)}, "is a numpy.float32"),
        ({"a": np.zeros(2)}, "is a numpy.ndarray"),
        ({"a": {1, 2}}, "is a builtins.set"),
        ({"a": b"x"}, "is a builtins.bytes"),
        ({"a": "\ud800"}, "which JSON has not"),
        ({"a": Path("x")}, "Path; expected a text"),
    ],
    ids=str,
)
def test_values_that_do_not_read_back(made, release, value, sentence):
    before = contents(release)
    with pytest.raises(UnlearningError, match=sentence):
        make_receipt(made.result, release, parent=made.parent, dataset=value)
    with pytest.raises(UnlearningError, match="earlier"):
        make_receipt(made.result, release, parent=made.parent, earlier=[value])
    assert contents(release) == before


def test_values_that_do(made, release):
    value = {"name": "é", "n": 3, "share": np.float64(0.1), "none": None, "rows": [1, 2.5, True], "t": (1, 2), "a": {}}
    make_receipt(made.result, release, parent=made.parent, dataset=value)
    assert verify(release, parent=made.parent).failed == []


# ---------------------------------------------------------------------------------------------------------------------
# On the Hub


@pytest.fixture
def on_hub(hub, made, tmp_path) -> SimpleNamespace:
    """The repository me/vit with the parent on main and a release on a branch, and what is in its folder."""
    HfApi().create_repo("me/vit")
    first = upload("me/vit", made.parent)
    folder = prepare(made.result, tmp_path / "release", repo_id="me/vit", revision=BRANCH, parent=first)
    return SimpleNamespace(hub=hub, first=first, folder=folder, pushed=upload("me/vit", folder, BRANCH, first.commit))


def forget_downloads() -> None:
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, None], ids=["once", "from then on"])
def test_every_request_fails(on_hub, times):
    """With nothing in the cache: a verdict with what could not be asked, or one sentence; never a false one."""
    forget_downloads()
    begun = len(on_hub.hub.requests)
    whole = verify("me/vit", revision=BRANCH)
    assert whole.ok and whole.unchecked == ["signature", "records"] and whole.uncovered == []
    asked = len(on_hub.hub.requests) - begun
    verdicts = []
    for n in range(1, asked + 1):
        for how in ("drop", 503, 409):
            forget_downloads()
            on_hub.hub.fail(how, at=n, **({"times": times} if times else {}))
            try:
                found = verify("me/vit", revision=BRANCH)
                assert found.ok, (n, how, found.line)
                verdicts.append(found.unchecked)
            except UnlearningError as error:
                assert "me/vit" in str(error) and "\n" not in str(error)
                verdicts.append(None)
            on_hub.hub.recover()
    assert len(verdicts) == 3 * asked and asked > 10


def test_a_folder_that_was_downloaded(on_hub, tmp_path):
    from huggingface_hub import snapshot_download

    folder = snapshot_download("me/vit", revision=BRANCH, local_dir=tmp_path / "local")
    assert (Path(folder) / ".cache" / "huggingface").is_dir()
    found = verify(folder)
    client = ".cache/huggingface, which is not of the release"
    assert found.failed == [] and found.uncovered == [leading_to("me/vit", BRANCH), client]


def test_a_branch_that_was_set_back(on_hub, made, tmp_path):
    """By a commit with the older content, and by force, which only another branch or a tag can tell."""
    later = prepare(made.result, tmp_path / "later", repo_id="me/vit", revision=BRANCH, parent=on_hub.first)
    stamp = "2100-01-01T00:00:00+00:00"
    forge(later, lambda receipt: receipt.update(created=stamp))
    second = upload("me/vit", later, BRANCH)
    newest = verify("me/vit", revision=BRANCH)
    assert newest.ok and newest.later == []
    upload("me/vit", on_hub.folder, BRANCH)
    found = verify("me/vit", revision=BRANCH)
    assert found.later == [f"the commit {second.commit[:12]} of the same branch, made {stamp}"]
    assert f"Not the newest release, which is the commit {second.commit[:12]}" in found.line

    HfApi().create_tag("me/vit", tag="v2", revision=second.commit)
    HfApi().delete_branch("me/vit", branch=BRANCH)
    HfApi().create_branch("me/vit", branch=BRANCH, revision=on_hub.pushed.commit)
    found = verify("me/vit", revision=BRANCH)
    assert found.later == [f"v2 at {second.commit[:12]}, which was made from this one, {stamp}"]


def test_a_parent_of_any_size(on_hub, made, tmp_path, capsys):
    """Only its weights are fetched, and those not if they are larger than the release lets expect."""
    HfApi().create_repo("me/other")
    on_hub.hub.put(
        "me/other", contents(made.parent) | {"data.bin": b"x" * 5_000_000, "x.safetensors": b"x" * 5_000_000}
    )
    other = Parent("me/other", on_hub.hub.branches("me/other")["main"])
    forge(on_hub.folder, lambda r: r.update(parent={"repo": other.repo_id, "commit": other.commit}))
    begun = len(on_hub.hub.requests)
    assert "parent" in [check.name for check in verify(on_hub.folder).checks if check.passed]
    assert not [r for r in on_hub.hub.requests[begun:] if "data.bin" in r.path or "x.safetensors" in r.path]

    assert parent_limit(on_hub.folder) == 2**30  # or twice the weights, where they are more
    size = (made.parent / WEIGHTS).stat().st_size
    begun = len(on_hub.hub.requests)
    found = verify(on_hub.folder, max_parent_bytes=size)
    assert {"parent", "chain"} <= set(found.unchecked) and found.failed == []
    assert "pass max_parent_bytes (--max-parent-gb)" in said(found, "parent")
    assert not [r for r in on_hub.hub.requests[begun:] if WEIGHTS in r.path]
    assert cli.main(["verify", str(on_hub.folder), "--max-parent-gb", "0.000001"]) == 0
    assert "me/other at" in capsys.readouterr().out
    assert verify(on_hub.folder, max_parent_bytes=0, parent=made.parent).unchecked == [
        "signature",
        "history",
        "records",
    ]


def test_a_copy_of_the_repository(on_hub, tmp_path):
    """It is true, and its card leads to where it is from."""
    HfApi().create_repo("you/vit")
    upload("you/vit", on_hub.folder)
    found = verify("you/vit")
    assert found.failed == []
    told = f"'How to load' of README.md tells to load from me/vit at {BRANCH}, where there are the same files for now"
    assert told in found.uncovered


def test_an_old_release_on_the_hub(hub, tmp_path):
    release, _ = old_release(tmp_path)
    HfApi().create_repo("me/bert")
    upload("me/bert", release)
    assert verify("me/bert").failed == []
