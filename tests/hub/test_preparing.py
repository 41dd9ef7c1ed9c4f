"""A release is prepared with all that it has to say of its parent, or not at all; and pushed under its new address."""

import json
import re
import shlex

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model

from hf_unlearn import UnlearningError, unlearn
from hf_unlearn import commands as cli
from hf_unlearn.hub import Parent, make_card, prepare, push, verify
from hf_unlearn.hub.names import CARD, RECEIPT
from hf_unlearn.models.load import load_model
from hf_unlearn.models.weights import save_model
from tests import samples, tiny
from tests.marks import slow_but
from tests.releases import contents, publish

BRANCH = "unlearned/request-42"


@pytest.fixture(scope="module")
def parent_folder(tmp_path_factory):
    """What was unlearned: a release itself, with a licence and a receipt."""
    folder = tmp_path_factory.mktemp("parent")
    args = samples.arguments(folder / "run", max_steps=1)
    first = unlearn(tiny.tiny_vit(), **samples.request(n_forget=4), method="finetune", args=args)
    release = prepare(first, folder / "release")
    (release / CARD).write_text("---\nlicense: mit\nbase_model: google/vit\n---\n# The parent\n")
    return release


@pytest.fixture(scope="module")
def result(parent_folder, tmp_path_factory):
    args = samples.arguments(tmp_path_factory.mktemp("run") / "run", max_steps=1)
    about = {"method": "finetune", "args": args, "processing_class": tiny.tiny_image_processor()}
    return unlearn(load_model(parent_folder), **samples.request(), **about)


def facts(folder):
    """What a release says of its parent."""
    receipt = json.loads((folder / RECEIPT).read_text())
    licence = ModelCard.load(folder / CARD).data.license
    return receipt["weights"]["before"], receipt["previous"]["receipt"], receipt["drift"]["parent"], licence


HOWS = slow_but(["drop"], ["drop", 409, "lose", "half", 401, 403, 429, 500])


@pytest.mark.parametrize("how", HOWS)
def test_every_request_of_prepare_failing(hub, result, parent_folder, tmp_path, how):
    """With nothing in the cache: once, and nobody notices; for good, and there is no release at all."""

    def attempt(name, n=None, times=None):
        commit = hub.put(name, contents(parent_folder))
        hub.forget_requests()
        if n:
            hub.fail(how, at=n, times=times)
        try:
            return facts(prepare(result, tmp_path / name, parent=Parent(name, commit[:10]), token=None))
        finally:
            hub.recover()

    expected = attempt(f"me/{how}-count")
    assert None not in expected and expected[-1] == "mit"
    requests = len(hub.requests)
    assert requests >= 8
    for n in range(1, requests + 1):
        if how not in (401, 403):  # which say that the token may not
            assert attempt(f"me/{how}-{n}-once", n, 1) == expected, n
        with pytest.raises(UnlearningError, match="cannot be read: |, whose licence goes on, cannot be read"):
            attempt(f"me/{how}-{n}-for-good", n)
        assert not (tmp_path / f"me/{how}-{n}-for-good").exists()


# ---------------------------------------------------------------------------------------------------------------------
# The card, where it is pushed to


@pytest.fixture
def original(hub, parent_folder):
    return publish(hub, "me/vit", parent_folder)


def code_of(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_card_has_the_address(hub, result, original, tmp_path):
    """Prepared for a folder, pushed by the command: into the original's repository, and into another one."""
    parent = Parent(original, hub.branches(original)["main"])
    folder = prepare(result, tmp_path / "release", parent=parent)
    written = (folder / CARD).read_text()
    assert 'from_pretrained(".")' in written and ModelCard(written).data.base_model == original
    hub.put("me/new", {"config.json": b"{}"})
    for name in (original, "me/new"):
        assert cli.main(["push", str(folder), name, "--revision", BRANCH]) == 0
        text = hub.files(name, BRANCH)[CARD].decode()
        assert f'from_pretrained("{name}", revision="{BRANCH}")' in text and '(".")' not in text
        assert f"hf-unlearn verify {name} --revision {BRANCH}" in text
        data = ModelCard(text).data
        assert data.base_model == ("google/vit" if name == original else original)
        assert data.license == "mit" and data.model_name in (None, name)
        assert verify(name, revision=BRANCH).ok
    assert (folder / CARD).read_text() == written
    expected = prepare(result, tmp_path / "again", parent=parent, repo_id=original, revision=BRANCH)
    differs = [
        (a, b)
        for a, b in zip(
            (expected / CARD).read_text().splitlines(),
            hub.files(original, BRANCH)[CARD].decode().splitlines(),
            strict=True,
        )
        if a != b
    ]
    assert not [pair for pair in differs if " s |" not in pair[0] and " s on" not in pair[0]]


def test_an_edited_card(hub, result, original, tmp_path):
    """What somebody wrote stays; where it stands in the place of an address, that is said."""
    folder = prepare(result, tmp_path / "release", parent=Parent(original, hub.branches(original)["main"]))
    text = (folder / CARD).read_text()
    mine = text.replace("## Verdict\n", "## Verdict\n\nMine, all mine.\n").replace("## Limits", "## My limits")
    (folder / CARD).write_text(mine)
    push(folder, original, revision=BRANCH)
    pushed = hub.files(original, BRANCH)[CARD].decode()
    assert (
        "Mine, all mine." in pushed and "## My limits" in pushed and f'("{original}", revision="{BRANCH}")' in pushed
    )
    (folder / CARD).write_text(mine.replace('from_pretrained(".")', 'from_pretrained("here")'))
    with pytest.raises(
        UnlearningError, match="README.md was written for another address, and edited where that stands"
    ):
        push(folder, original, revision="unlearned/other")
    assert "unlearned/other" not in hub.branches(original)
    (folder / CARD).write_text("# A card of my own\n")
    push(folder, original, revision="unlearned/own")
    assert hub.files(original, "unlearned/own")[CARD] == b"# A card of my own\n"


def test_the_command_in_a_card_can_be_pasted(result, tmp_path):
    folder = prepare(result, tmp_path / "release")
    branch = "it's;a$(test)&"
    text = make_card(folder, repo_id="me/vit", revision=branch, parent_card={}).text
    (command,) = re.findall(r"`(hf-unlearn verify .*?)`", text)
    assert shlex.split(command) == ["hf-unlearn", "verify", "me/vit", "--revision", branch]


# ---------------------------------------------------------------------------------------------------------------------
# Adapters


def test_an_adapter_over_a_local_base(hub, original, parent_folder, tmp_path):
    """It belongs to the parent, or to the model in the repository; never to a repository that has none."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    save_model(get_peft_model(load_model(parent_folder), config, adapter_name="unlearn"), tmp_path / "adapter")
    hub.put("me/new", {"config.json": b"{}"})

    def base(name, revision):
        return json.loads(hub.files(name, revision)["unlearn/adapter_config.json"])["base_model_name_or_path"]

    with pytest.raises(
        UnlearningError, match="names a local folder as its base, and me/new holds no model; say where the"
    ):
        push(tmp_path / "adapter", "me/new", revision=BRANCH)
    push(tmp_path / "adapter", "me/new", revision=BRANCH, parent=Parent(original, hub.branches(original)["main"]))
    push(tmp_path / "adapter", original, revision=BRANCH)
    assert base("me/new", BRANCH) == base(original, BRANCH) == original


def test_the_code_of_an_adapter_on_what_timm_wrote(hub, tmp_path):
    model, config = tiny.tiny_resnet(), {}
    config["model_args"] = model.config.model_args
    timm.models.save_for_hf(model.timm_model, tmp_path / "timm", model_config=config, safe_serialization=True)
    name = publish(hub, "me/resnet", tmp_path / "timm")
    lora = LoraConfig(r=2, target_modules=["fc"])
    args = samples.arguments(tmp_path / "run", max_steps=1)
    result = unlearn(load_model(name), **samples.request(), method="finetune", args=args, peft_config=lora)
    result.push_to_hub(name, BRANCH)
    (code,) = code_of(hub.files(name, BRANCH)[CARD].decode())
    names = {}
    exec(code, names)
    assert isinstance(names["model"], PeftModel)
    inputs = tiny.random_inputs(model)
    with torch.no_grad():
        found, expected = (m.eval()(**inputs).logits for m in (names["model"], result.model))
    assert torch.equal(found, expected)
