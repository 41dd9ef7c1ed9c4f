"""Releases that were vouched for and should not have been, true ones that were refused, and pushes that said the wrong thing."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants

from hf_unlearn import UnlearningError, models
from hf_unlearn.hub import Parent, check_inclusion, make_receipt, prepare, prove, push, verify
from hf_unlearn.hub.card import base_models
from hf_unlearn.hub.contents import check_private, without_local_bases
from hf_unlearn.hub.names import CARD, RECEIPT
from hf_unlearn.hub.records import SECRETS
from tests import samples
from tests.hub.test_receipt import flip, run, said, write_keys
from tests.marks import slow_but
from tests.releases import contents, publish
from tests.tiny import tiny_image_processor, tiny_vit

BRANCH = "unlearned/a"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A run on a parent that has a folder, its audit, and keys; none of it is to be changed."""
    root = tmp_path_factory.mktemp("made")
    models.save_model(tiny_vit(), root / "parent")
    tiny_image_processor().save_pretrained(root / "parent")
    key, public = write_keys(root / "keys")
    result = run(root / "run")
    about = {"result": result, "report": result.audit(), "parent": root / "parent", "key": key, "public": public}
    return SimpleNamespace(root=root, **about)


@pytest.fixture
def parent(hub, made) -> Parent:
    """The parent on `main` of me/vit."""
    publish(hub, "me/vit", made.parent)
    return Parent("me/vit", hub.branches("me/vit")["main"])


@pytest.fixture
def release(made, tmp_path) -> Path:
    """For me/vit, prepared without a connection."""
    return prepare(made.result, tmp_path / "release", repo_id="me/vit", revision=BRANCH, parent=made.parent)


@pytest.fixture
def pushed(made, parent, tmp_path) -> Path:
    """A signed release on a branch of me/vit; its folder."""
    about = {"repo_id": "me/vit", "revision": BRANCH, "parent": parent, "sign_key": made.key}
    folder = prepare(made.result, tmp_path / "pushed", **about)
    push(folder, "me/vit", revision=BRANCH, parent=parent)
    return folder


def edit(name: str, old: str, new: str, folder: Path) -> None:
    text = (folder / name).read_text()
    assert re.search(old, text, flags=re.MULTILINE), old
    (folder / name).write_text(re.sub(old, new, text, flags=re.MULTILINE))


def leading_elsewhere(card: str, revision: str | None) -> str:
    """The card of a release on a branch that tells to load another revision instead, or `main`."""
    if revision:
        return card.replace(BRANCH, revision)
    for line in (r"^> \*\*Pass .*\n", f', revision="{BRANCH}"', f" --revision {BRANCH}", f"^  revision: {BRANCH}\n"):
        card = re.sub(line, "", card, flags=re.MULTILINE)
    assert BRANCH not in card
    return card


# ---------------------------------------------------------------------------------------------------------------------
# Where the card leads to


@pytest.mark.parametrize("revision", [None, "unlearned/other", "unlearned/nowhere"])
def test_a_card_that_leads_to_another_model(hub, made, parent, pushed, revision):
    """Every line of it agrees with the others, and what is loaded is the original."""
    hub.put("me/vit", {}, "main")
    HfApi().create_branch("me/vit", branch="unlearned/other", revision=parent.commit)
    assert verify("me/vit", revision=BRANCH, public_key=made.public).exit_code == 0
    text = leading_elsewhere((pushed / CARD).read_text(), revision)
    hub.put("me/vit", {CARD: text.encode()}, BRANCH)
    found = verify("me/vit", revision=BRANCH, public_key=made.public)
    assert found.failed == ["card"] and found.exit_code == 1
    assert f"tells to load from me/vit at {revision or 'main'}, wh" in said(found, "card")


def test_a_copy_whose_card_leads_to_another_model(hub, made, pushed):
    """A true one loads the same from where it is from, which is said; one that leads to the original does not."""
    hub.put("you/vit", contents(pushed))
    found = verify("you/vit", public_key=made.public)
    assert found.failed == [] and f"from me/vit at {BRANCH}, where there are the same files for now" in found.line
    hub.put("you/vit", {CARD: leading_elsewhere((pushed / CARD).read_text(), None).encode()})
    assert verify("you/vit", public_key=made.public).failed == ["card"]
    hub.put("you/vit", {CARD: (pushed / CARD).read_text().replace("me/vit", "evil/vit").encode()})
    assert verify("you/vit", public_key=made.public).failed == ["card"]


def test_a_folder_whose_card_leads_somewhere(release):
    """Nothing is asked, so it is said."""
    for name in ("me/vit", "evil/vit"):
        (release / CARD).write_text((release / CARD).read_text().replace("me/vit", name))
        found = verify(release)
        assert found.ok
        assert f"tells to load from {name} at {BRANCH}, and what is there was not looked at" in found.line


def test_a_branch_that_has_gone_on(hub, made, pushed):
    """An earlier commit of it is a true release, which the card does not lead to any more."""
    before = hub.branches("me/vit")[BRANCH]
    hub.put("me/vit", {"notes.txt": b"x"}, BRANCH)
    found = verify("me/vit", revision=before, public_key=made.public)
    assert found.failed == [] and "which has gone on to commit" in found.line


# ---------------------------------------------------------------------------------------------------------------------
# True releases


def test_no_processor_of_another_model(hub, made, parent, tmp_path):
    """The model was in memory, so nothing says that what lies in the repository belongs to it."""
    result = run(tmp_path / "run", tiny_vit(seed=3), processing_class=None)
    result.push_to_hub("me/vit", BRANCH)
    assert "preprocessor_config.json" in hub.files("me/vit")
    assert "preprocessor_config.json" not in hub.files("me/vit", BRANCH)
    assert verify("me/vit", revision=BRANCH).failed == []


def test_no_processor_that_the_card_does_not_know(hub, made, parent, tmp_path):
    """Not even the parent's, which would be in the command that loads the model, were the card made again."""
    folder = prepare(run(tmp_path / "run", processing_class=None), tmp_path / "release", parent=parent)
    pushed = push(folder, "me/vit", revision=BRANCH, parent=parent)
    assert push(folder, "me/vit", revision=BRANCH, parent=parent) == pushed
    assert "preprocessor_config.json" not in hub.files("me/vit", BRANCH)
    assert verify("me/vit", revision=BRANCH).failed == []


def test_a_card_that_was_edited_before_the_push(hub, made, parent, tmp_path):
    folder = prepare(made.result, tmp_path / "release", repo_id="me/vit", revision=BRANCH, parent=parent)
    edit(CARD, "^library_name:", "license: mit\nlibrary_name:", folder)
    edit(CARD, "^## Limits\n", "## Limits\n\nMy own words.\n", folder)
    receipt = (folder / RECEIPT).read_bytes()
    push(folder, "me/vit", revision=BRANCH, parent=parent)
    found = verify("me/vit", revision=BRANCH)
    assert found.failed == found.uncovered == [] and "My own words." in hub.files("me/vit", BRANCH)[CARD].decode()
    assert (folder / RECEIPT).read_bytes() == receipt
    push(folder, "me/vit", revision="unlearned/b", parent=parent)
    assert verify("me/vit", revision="unlearned/b").failed == []

    edit(CARD, r"^# .*", "# Another title", folder)
    with pytest.raises(UnlearningError, match=r"'the title' in README.md was changed .*write_card\(") as caught:
        push(folder, "me/vit", revision=BRANCH)
    assert "hf-unlearn push" not in str(caught.value)


def test_a_signed_card_that_was_edited(hub, made, pushed, parent):
    edit(CARD, "^## Limits\n", "## Limits\n\nMy own words.\n", pushed)
    with pytest.raises(UnlearningError, match=r"'Limits' in README.md was changed .* sign it as it is now with hub"):
        push(pushed, "me/vit", revision="unlearned/b", parent=parent)
    assert "unlearned/b" not in hub.branches("me/vit")
    edit(CARD, "\nMy own words.\n", "", pushed)
    (pushed / CARD).write_text((pushed / CARD).read_text() + "\n## Contact\n\nWrite to us.\n")
    push(pushed, "me/vit", revision="unlearned/b", parent=parent)
    assert verify("me/vit", revision="unlearned/b", public_key=made.public).failed == []


def test_the_working_folder_says_nothing(hub, made, tmp_path, monkeypatch):
    """A base of the parent's card is a name, whatever lies under that name where `verify` is called."""
    files = contents(made.parent) | {CARD: b"---\nbase_model: org/base\nlicense: mit\n---\n# x\n"}
    commit = hub.put("me/vit", files)
    folder = prepare(made.result, tmp_path / "release", parent=Parent("me/vit", commit))
    push(folder, "me/vit", revision=BRANCH)
    (tmp_path / "org" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert verify("me/vit", revision=BRANCH).failed == []
    assert base_models({"base_model": ["org/base", "gpt2", "./x", "/x/y", "~/x", "a/b/c"]}) == ["org/base", "gpt2"]


def test_what_systems_leave_in_a_folder(release):
    (release / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    found = verify(release)
    assert found.failed == [] and ".DS_Store" in found.uncovered


# ---------------------------------------------------------------------------------------------------------------------
# What verify says nothing of


@pytest.mark.parametrize(
    "new",
    ["# certified\nlibrary_name:", "library_name: &certified", "library_name: !!str", "library_name:  # certified\n "],
)
def test_comments_and_anchors_in_the_metadata(release, new):
    assert not [what for what in verify(release).uncovered if "comments" in what]
    edit(CARD, "^library_name:", new, release)
    found = verify(release)
    assert found.ok and "comments, anchors and tags in the metadata of README.md" in found.uncovered


def test_a_byte_order_mark(release):
    (release / CARD).write_bytes(b"\xef\xbb\xbf" + (release / CARD).read_bytes())
    found = verify(release)
    assert found.failed == ["card"] and "it begins with a byte order mark" in said(found, "card")


@pytest.mark.parametrize("limit", [-1, "x", True, 1.5])
def test_no_number_of_bytes(release, limit):
    with pytest.raises(UnlearningError, match="max_parent_bytes is .*; expected a whole number of bytes"):
        verify(release, max_parent_bytes=limit)


def test_no_records(made, release):
    secrets = made.root / "run" / "_unlearn" / SECRETS
    with pytest.raises(UnlearningError, match="The given data holds no record; expected at least one"):
        verify(release, forget=samples.request()["forget"].select([]), secrets=secrets)


def test_a_receipt_of_a_later_version(made, release):
    record = samples.request()["forget"].select([0])
    receipt = json.loads((release / RECEIPT).read_text())
    proof = prove(record, made.root / "run" / "_unlearn" / SECRETS)
    assert check_inclusion(receipt, record, proof)
    receipt["forget"]["canonical"] = 3
    with pytest.raises(UnlearningError, match="canonical is 3; expected 1 or 2"):
        check_inclusion(receipt, record, proof)


@pytest.mark.parametrize("how", slow_but(["drop"], ["drop", 409]))
def test_one_failed_request(hub, made, pushed, how):
    """With nothing in the cache, and nobody notices."""
    empty = lambda: shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)  # noqa: E731
    empty()
    hub.forget_requests()
    whole, asked = verify("me/vit", revision=BRANCH, public_key=made.public), len(hub.requests)
    assert whole.unchecked == ["records"] and asked > 10
    for n in range(1, asked + 1):
        empty()
        hub.fail(how, at=n, times=1)
        found = verify("me/vit", revision=BRANCH, public_key=made.public)
        hub.recover()
        assert found.line == whole.line, n


# ---------------------------------------------------------------------------------------------------------------------
# What is prepared


def test_the_folder_of_the_original(made, tmp_path):
    """A release would replace it."""
    shutil.copytree(made.parent, tmp_path / "first")
    first = run(tmp_path / "run 1", models.load_model(tmp_path / "first"))
    original = prepare(first, tmp_path / "original")
    second = run(tmp_path / "run 2", models.load_model(original))
    before = contents(original)
    for call in (
        lambda: prepare(second, original),
        lambda: second.push_to_hub("me/vit", BRANCH, folder=original),
        lambda: prepare(made.result, original, parent=original),
    ):
        with pytest.raises(
            UnlearningError, match="is the folder that the original was loaded from, which would be lost"
        ):
            call()
    assert contents(original) == before


def test_the_audit_of_another_result(made, tmp_path, caplog):
    report = made.report
    prepare(made.result, tmp_path / "release", report=report)
    assert "weights it is of" not in caplog.text and verify(tmp_path / "release").failed == []
    assert not [what for what in verify(tmp_path / "release").uncovered if "audit.json" in what]
    for name, other in {
        "original": run(tmp_path / "run 1", tiny_vit(seed=1)),
        "unlearned": run(tmp_path / "run 2", method="random_label"),
    }.items():
        with pytest.raises(UnlearningError, match="report is of another (un|orig).* model than that of this result"):
            prepare(other, tmp_path / name, report=report)
        assert not (tmp_path / name).exists()
    other = run(tmp_path / "run 3", forget=samples.images(7, seed=61))
    with pytest.raises(UnlearningError, match=r"report is of \d+ forget samples and this result of 7"):
        prepare(other, tmp_path / "other", report=report)

    old = type(report)({key: value for key, value in report.content.items() if key != "weights"})
    found = verify(prepare(made.result, tmp_path / "old", report=old))
    assert "The audit does not say which weights it is of" in caplog.text
    assert found.failed == [] and "whether audit.json is of these weights, which it does not say" in found.uncovered


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dataset": 5}, "dataset is 5; expected what is known of it"),
        ({"dataset": "name"}, "dataset is 'name'; expected what is known of it"),
        ({"earlier": 5}, "earlier is 5; expected what evaluate_earlier gave"),
        ({"earlier": "name"}, "earlier is 'name'; expected what evaluate_earlier gave"),
        ({"earlier": [{"name": "a"}]}, "earlier is .*; expected what evaluate_earlier gave"),
        ({"report": "x"}, "report is 'x'; expected an AuditReport"),
        ({"report": {}}, "report is {}; expected an AuditReport"),
    ],
)
def test_what_cannot_go_into_a_release(made, tmp_path, given, sentence):
    with pytest.raises(UnlearningError, match=sentence):
        prepare(made.result, tmp_path / "release", **given)
    assert not (tmp_path / "release").exists()


def test_what_cannot_go_into_a_receipt(made, release):
    with pytest.raises(UnlearningError, match="dataset is 5"):
        make_receipt(made.result, release, dataset=5)


# ---------------------------------------------------------------------------------------------------------------------
# What is pushed

FREEBASE = {"0": "/m/0dgw9r", "1": "/people/person/nationality", "2": "/r/MachineLearning x"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", json.dumps({"id2label": FREEBASE, "label2id": {v: k for k, v in FREEBASE.items()}})),
        ("README.md", "| `/m/0dgw9r` | see /people/person/nationality. |"),
        ("LICENSE", "The text is in /usr/share/common-licenses/Apache-2.0 on Debian"),
        ("README.md", "s3://bucket/home/x gs://a/b nfs:/home/me/x"),
        ("README.md", "see https://x.y/home/a and /content/drive"),
        ("README.md", "docs at (/usr/share/doc/x), and /etc/hosts"),
        ("chat_template.jinja", "{% if x %}</think>/content/{{y}}"),
        ("generation_config.json", json.dumps({"a": "/s/b"})),
        ("unlearning_receipt.json", json.dumps({"value": "/" + 20 * "1C2/" + "TH9+g=="})),  # of a signature
        ("audit.html", '<data value="1" data-at="/figures/original/auc">1</data>'),
    ],
)
def test_what_is_no_path(tmp_path, name, text):
    files = {"config.json": json.dumps({"id2label": FREEBASE}).encode()} | {name: text.encode()}
    check_private(files, tmp_path / "release", None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", "-/home/me/secret"),
        ("README.md", "[x](/home/me/secret)"),
        ("README.md", "path=/home/me/x"),
        ("README.md", "it was /etc/hosts and /mlx/users/me/x"),
        ("README.md", '("/gpfs1/me/x")'),
        ("README.md", "trained with /data/imagenet"),
        ("config.json", json.dumps({"/mlx/users/me/secret": 1})),
        ("config.json", json.dumps({"x": [{"/home/me": 1}]})),
        ("config.json", json.dumps({"x": "see ~/models/secret"})),
        ("config.json", json.dumps({"x": "see /mlx/users/me"})),
        ("config.json", json.dumps({"name_or_path": "/content/drive/x"})),
        ("config.json", json.dumps({"name_or_path": "/usr/share/x"})),
        ("config.json", json.dumps({"id2label": {"0": "/home/me/cats"}})),
        ("config.json", json.dumps({"x": "/odd root/../models/bert", "y": "/odd/models/bert"})),
    ],
)
def test_a_path(tmp_path, name, text):
    with pytest.raises(UnlearningError, match=f"{name} holds a local path"):
        check_private({name: text.encode()}, tmp_path / "release", None)


def test_no_command_that_fails_again(hub, made, parent, release):
    (release / "LICENSE").write_text("trained in /scratch/me/run")
    with pytest.raises(UnlearningError, match=r"LICENSE holds a local path \(/scratch/me/run\)") as caught:
        push(release, "me/vit", revision=BRANCH)
    assert "hf-unlearn push" not in str(caught.value)


def test_a_second_request_on_a_branch(hub, made, parent, pushed, tmp_path):
    """Nobody else has done it, and the same command would not help."""
    other = prepare(made.result, tmp_path / "other", parent=parent)
    flip(other)
    with pytest.raises(UnlearningError, match="has gone on to commit .*, which holds something else") as caught:
        push(other, "me/vit", revision=BRANCH, parent=parent)
    assert str(caught.value).endswith("nothing there was changed, choose another revision.")
    assert "somebody" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "is_local"),
    [("gpt2", False), ("me/vit", False), ("./vit", True), ("/x/vit", True), ("a/b/c", True), ("~/vit", True)],
)
def test_the_name_of_a_base(tmp_path, monkeypatch, base, is_local):
    """It tells by itself, wherever the push is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "vit").mkdir(parents=True)
    files = {"adapter_config.json": json.dumps({"base_model_name_or_path": base}).encode()}
    assert without_local_bases(files)[1] == (["adapter_config.json"] if is_local else [])


def test_no_repository_is_created_for_nothing(hub, made, tmp_path):
    """A push that is refused leaves nothing behind."""
    HfApi().create_repo("me/secret", private=True)
    commit = hub.put("me/secret", contents(made.parent))
    folder = prepare(made.result, tmp_path / "release", parent=Parent("me/secret", commit))
    with pytest.raises(UnlearningError, match="me/new is public, and the release names its parent me/secret"):
        push(folder, "me/new", revision=BRANCH, private=False)
    assert not (hub.root / "models" / "me" / "new").exists()
    push(folder, "me/new", revision=BRANCH, private=True)
