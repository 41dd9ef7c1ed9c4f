"""What is published tells nobody which samples were to be forgotten, nor whose machine this was, nor a token."""

import functools
import json
import re
import shutil
import struct
import traceback

import datasets
import numpy as np
import pytest
import torch

from hf_unlearn import UnlearningError, unlearn
from hf_unlearn.hub import (
    Parent,
    list_revisions,
    make_card,
    make_receipt,
    prepare,
    purge,
    purge_plan,
    push,
    push_metric,
    rollback,
    tag,
    verify,
)
from hf_unlearn.hub.names import is_released
from tests import samples, tiny
from tests.hub.server import WRITER
from tests.marks import slow_but
from tests.releases import contents, publish, write_release

BRANCH = "unlearned/request-42"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("plain") / "release", tiny.tiny_vit(), tiny.tiny_image_processor())


@pytest.fixture
def release(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "release")


@pytest.fixture
def repository(hub, plain):
    return publish(hub, "me/vit", plain)


# ---------------------------------------------------------------------------------------------------------------------
# Guesses of a forgotten sample

GUESSES = 400


@functools.cache
def training_data():
    """What an attacker knows: every training sample, one of which was to be forgotten."""
    data = samples.images(GUESSES, seed=5, noise=2.0)
    return data.map(
        lambda row, i: {"label": int(row["label"]) if i % 5 else (int(row["label"]) + 1) % 4}, with_indices=True
    )


def request_of(chosen, data):
    rest = [i for i in range(len(data)) if i not in chosen]
    return {
        "forget": data.select(chosen),
        "retain": data.select(rest),
        "unseen": samples.images(40, seed=6, noise=2.0),
    }


@functools.cache
def fitted_to_all():
    model, data = tiny.tiny_vit(), training_data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    pixels, labels = data["pixel_values"][:], torch.as_tensor(data["label"][:])
    for _ in range(30):
        torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def released(folder, chosen, **about):
    """A release, with an audit, of a request for some of the training samples."""
    model = tiny.tiny_vit()
    model.load_state_dict(fitted_to_all())
    names = ["airplane", "automobile", "bird", "cat"]
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    args = samples.arguments(folder / "run", max_steps=3)
    data = request_of(chosen, training_data())
    result = unlearn(model, **data, method="finetune", args=args, processing_class=tiny.tiny_image_processor())
    return result, prepare(result, folder / "release", report=result.audit(), **about)


def numbers_in(value, path=()):
    """Every number that is published, with its place."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in numbers_in(item, (*path, key)).items()}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in numbers_in(item, (*path, i)).items()}
    return {path: value} if isinstance(value, (int, float)) and not isinstance(value, bool) else {}


def figures_of_guesses(result):
    """By (when, name), the figure of every guess, as who has the models and the data works it out."""
    data, found = training_data(), {}
    pixels, labels = data["pixel_values"][:], torch.as_tensor(data["label"][:])
    with result.trainer.original_model() as original:
        outputs = {"before": original(pixel_values=pixels).logits, "after": result.model(pixel_values=pixels).logits}
    for when, logits in outputs.items():
        logits = logits.detach().double()
        right = (logits.argmax(1) == labels).double().numpy()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none").numpy()
        for name, score in (("accuracy", right), ("loss", loss)):
            found[when, f"forget_{name}"] = score
            found[when, f"retain_{name}"] = (score.sum() - score) / (len(score) - 1)
    return found


def consistent(published, guesses):
    """Which guesses fit all the figures that are there to be held against them."""
    fits = np.ones(GUESSES, bool)
    for (when, name), values in guesses.items():
        figure = (published.get(when) or {}).get(name)
        if figure is not None:
            fits &= np.isclose(values, figure, rtol=1e-3, atol=1e-6)
    return np.flatnonzero(fits)


@pytest.mark.slow
def test_no_guess_is_told_from_another(tmp_path):
    """A request of one sample, 400 guesses: with its figures two are left, and of what is published all."""
    secret = 123
    result, folder = released(tmp_path, [secret])
    guesses = figures_of_guesses(result)
    told = consistent(result.metrics, guesses)
    assert secret in told and len(told) <= 2  # so the attack works
    for file in ("metrics.json", "unlearning_receipt.json"):
        content = json.loads((folder / file).read_text())
        assert len(consistent(content.get("metrics", content), guesses)) == GUESSES
    audit = json.loads((folder / "audit.json").read_text())["figures"]
    assert len(consistent({"before": audit["original"], "after": audit["unlearned"]}, guesses)) == GUESSES


@pytest.mark.slow
def test_what_is_published_is_the_same_for_every_sample(tmp_path):
    """Of single samples of two classes, everything but the weights and what is hashed: no number, word or plot differs."""
    texts = {}
    for name, chosen in {"one": [121], "two": [122]}.items():
        _, folder = released(tmp_path / name, chosen, repo_id="me/vit", revision=BRANCH)
        texts[name] = {
            path: without_what_differs(content.decode())
            for path, content in contents(folder).items()
            if not path.endswith(".safetensors")
        }
    assert int(training_data()[121]["label"]) != int(training_data()[122]["label"])
    assert texts["one"].keys() == texts["two"].keys() >= {"README.md", "audit.html", "audit.json", "metrics.json"}
    for path, text in texts["one"].items():
        assert text == texts["two"][path], path
    assert "fewer than 30" in texts["one"]["README.md"] and "fewer than 30" in texts["one"]["audit.html"]


def without_what_differs(text):
    """What is published, less hashes, seconds, the distance of the weights and the path in a page's plots."""
    text = re.sub(r"\b[0-9a-f]{32}(?:[0-9a-f]{32})?\b", "HASH", text)
    text = re.sub(
        r'"(prepare|unlearn|total|unlearning|forward|created|date|relative|parent|first)": \S+', r'"\1"', text
    )
    text = re.sub(r"\| (unlearning|with the measurements) \|.*", "", text)
    text = re.sub(r"\n\| ?(?:seconds|vit\.|classifier|.*layer).*", "", text)
    text = re.sub(r'<section id="(cost|distance)">.*?</section>', "", text, flags=re.S)
    return re.sub(r"- ([^\n]*) seconds[^\n]*", "", text)


@pytest.mark.parametrize("n", slow_but([30], [1, 30, 60]))
def test_no_class_is_told(tmp_path, n):
    """Of samples that are all of one class, its name and number are nowhere, nor a count of its samples."""
    data = training_data()
    label = 2
    chosen = [i for i in range(len(data)) if int(data[i]["label"]) == label][:n]
    result, folder = released(tmp_path, chosen, class_names=True)
    assert result.audit().content["request"]["forget_classes"] == [label]
    for path, content in contents(folder).items():
        if path in ("config.json", "model.safetensors", "preprocessor_config.json"):
            continue  # the model's own list of all classes
        text = content.decode()
        assert not re.search(r"\bbird\b|\bclass(es)? \[?\d", text), path
        if path.endswith(".json"):
            found = json.loads(text)
            for key in ("forget_classes", "classes", "class_names"):
                assert not found.get("request", found).get(key) and not found.get(key), (path, key)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens

MALFORMED = [
    "hf_secret\nvalue",
    "hf_secret\tvalue",
    "hf_secret\0value",
    "hf_sécret",
    " hf_secret",
    "hf secret",
    "\r\nhf_x",
    "",
]
CALLS = {
    "push": lambda folder, token: push(folder, "me/vit", revision=BRANCH, token=token),
    "list_revisions": lambda folder, token: list_revisions("me/vit", token=token),
    "tag": lambda folder, token: tag("me/vit", "v1", revision="main", token=token),
    "rollback": lambda folder, token: rollback("me/vit", "main", token=token),
    "purge_plan": lambda folder, token: purge_plan("me/vit", "main", token=token),
    "purge": lambda folder, token: purge("me/vit", "main", confirm="x", token=token),
    "push_metric": lambda folder, token: push_metric("jsd", "me/jsd", token=token),
    "verify": lambda folder, token: verify("me/vit", token=token),
    "make_card": lambda folder, token: make_card(folder, parent=Parent("me/vit", "0" * 40), token=token),
    "make_receipt": lambda folder, token: make_receipt(None, folder, token=token),
    "prepare": lambda folder, token: prepare(None, folder, token=token),
}


@pytest.mark.parametrize("where", ["argument", "login"])
@pytest.mark.parametrize("call", CALLS)
def test_a_malformed_token(hub, repository, release, monkeypatch, call, where):
    """Nobody is asked, and neither sentence nor traceback has it."""
    hub.forget_requests()
    for token in MALFORMED:
        if where == "login":
            if "\0" in token or "\n" in token or token.strip() in ("", "hf_secret"):
                continue  # no variable can have it, or the client takes it away
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(
            UnlearningError, match="has a blank, a line break, a control or a non-ASCII character"
        ) as caught:
            CALLS[call](release, token if where == "argument" else None)
        told = "".join(traceback.format_exception(caught.value))
        assert not re.search("secret|hf_x|sécret", told)
    assert hub.requests == []


def test_what_is_no_token_at_all(release):
    for call in CALLS.values():
        with pytest.raises(UnlearningError, match="token is a (bytes|int); expected a text such as hf_..."):
            call(release, b"hf_secret")
        with pytest.raises(UnlearningError, match="token is a (bytes|int); expected a text such as hf_..."):
            call(release, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def safetensors_with(note):
    header = json.dumps(
        {"__metadata__": {"note": note}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


PLACES = {
    "model.safetensors": safetensors_with,
    "tokenizer.json": lambda text: json.dumps({"model": {"vocab": {text: 0}}}).encode(),
    "vocab.txt": str.encode,
    "merges.txt": str.encode,
    "tokenizer.model": lambda text: b"\0\1" + text.encode(),
    "config.json": lambda text: json.dumps({"x": [text]}).encode(),
    "README.md": lambda text: b"# A card\n" + text.encode(),
    "LICENSE": str.encode,
    "audit.html": lambda text: f"<p>{text}</p>".encode(),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_token_is_found_everywhere(hub, repository, release, name):
    (release / name).write_bytes(PLACES[name](WRITER))
    hub.forget_requests()
    with pytest.raises(UnlearningError, match=f"{re.escape(name)} holds a token, which must not be pushed") as caught:
        push(release, repository, revision=BRANCH)
    assert hub.requests == [] and WRITER not in str(caught.value)


@pytest.mark.parametrize("name", PLACES)
def test_a_path_of_this_machine_is_found_everywhere(hub, repository, release, name):
    (release / name).write_bytes(PLACES[name](f"{release}/x"))
    with pytest.raises(UnlearningError, match=f"{re.escape(name)} holds a local path"):
        push(release, repository, revision=BRANCH)


PATHS = ["/mnt/data/bert", "/scratch/me/run", "/data/x", "C:\\Users\\me\\run", "\\\\server\\share\\run", "file:///x/y"]


@pytest.mark.parametrize("path", [*PATHS, "~/models/bert", "/odd-root/models/bert"])
def test_a_path_of_another_machine(hub, repository, release, path):
    """In a configuration any whole value; in a text what begins as roots of machines do."""
    for name in ("config.json", "README.md", "tokenizer_config.json"):
        shutil.copytree(release, folder := release.with_name("copy"), dirs_exist_ok=True)
        is_json = name.endswith(".json")
        if not is_json and path not in PATHS:
            continue
        (folder / name).write_text(json.dumps({"name_or_path": path}) if is_json else f"Trained in `{path}` once.\n")
        with pytest.raises(UnlearningError, match=f"{name} holds a local path"):
            push(folder, repository, revision=BRANCH)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "text",
    [
        "https://hf.co/data/x",
        "and/or",
        "</data>",
        "http://a.b/mnt/c",
        "1/2 of x/tmp/y",
        "c: d",
        "a \\n b",
        "$x:\\alpha$",
    ],
)
def test_what_is_no_path(hub, repository, release, text):
    (release / "README.md").write_text(f"# A card\n{text}\n")
    (release / "config.json").write_text(json.dumps({"x": text}))
    push(release, repository, revision=BRANCH)


@pytest.mark.parametrize(
    "name",
    ["LICENSE.pkl", "NOTICE.py", "COPYING.bin", "LICENSE-x.pkl", "LICENSE.d", "LICENSES", "license", "NOTICE.html"],
)
def test_no_licence(name):
    assert not is_released(name)


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "LICENSE.txt",
        "LICENSE.md",
        "LICENSE-MIT",
        "LICENSE-APACHE-2.0",
        "LICENCE",
        "COPYING.LESSER",
        "NOTICE",
    ],
)
def test_a_licence(name):
    assert is_released(name)


def test_a_licence_is_text(hub, repository, release):
    (release / "LICENSE").write_bytes(b"\x80\x04\x95pickled")
    with pytest.raises(UnlearningError, match="LICENSE is no text, which a file of that name has to be; take it out"):
        push(release, repository, revision=BRANCH)


def test_half_an_adapter_stays(hub, repository, release):
    (release / "backup").mkdir()
    (release / "backup/adapter_config.json").write_text('{"base_model_name_or_path": "me/other"}')
    push(release, repository, revision=BRANCH)
    assert not [name for name in hub.files(repository, BRANCH) if "backup" in name]


def test_links_are_not_followed(hub, repository, release, tmp_path):
    (tmp_path / "secret.txt").write_text("what is elsewhere")
    (release / "LICENSE").symlink_to(tmp_path / "secret.txt")
    hub.forget_requests()
    with pytest.raises(
        UnlearningError, match="LICENSE in .* is a link, and what it leads to may be anything; put the file"
    ):
        push(release, repository, revision=BRANCH)
    (release / "LICENSE").unlink()
    (tmp_path / "elsewhere").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "elsewhere" / name).write_text("{}")
    (release / "unlearn").symlink_to(tmp_path / "elsewhere")
    push(release, repository, revision=BRANCH)
    assert not [name for name in hub.files(repository, BRANCH) if name.startswith("unlearn/")]
    assert not any(b"what is elsewhere" in content for _, content in hub.sent())


def test_the_data_of_these_tests():
    """As many classes as samples of each are needed, and datasets as `unlearn` takes them."""
    data = training_data()
    assert isinstance(data, datasets.Dataset) and np.bincount([int(x) for x in data["label"][:]]).min() >= 60
