"""Revisions on the Hub: what is pushed, what stays as it was, and what happens when anything on the way fails."""

import datetime
import json
import re
import shlex
import shutil
import threading

import datasets
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.hf_api import LFSFileInfo
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer

from hf_unlearn import DampConfig, UnlearningError, split_dataset, unlearn
from hf_unlearn import commands as cli
from hf_unlearn.hub import Parent, list_revisions, prepare, purge, purge_plan, push, rollback, tag, verify
from hf_unlearn.hub.names import METRICS, RECEIPT, is_released
from hf_unlearn.hub.receipt import SECRETS
from hf_unlearn.models.load import load_model
from hf_unlearn.models.weights import save_model, weights_digest
from tests import samples, tiny
from tests.hub.server import READER, WRITER
from tests.marks import slow_but
from tests.releases import contents, publish, write_release
from tests.runs import request, tiny_multitask

BRANCH = "unlearned/request-42"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The releases of an original and of an unlearned ViT."""
    root = tmp_path_factory.mktemp("folders")
    for seed, name in enumerate(("original", "unlearned", "other")):
        write_release(root / name, tiny.tiny_vit(seed=seed), tiny.tiny_image_processor(), unlearned=seed > 0)
    return root


@pytest.fixture
def original(hub, folders):
    """A repository with the original on `main`; its name."""
    return publish(hub, "me/vit", folders / "original")


def added(hub, name, revision):
    """The commits that a branch has and `main` has not."""
    known = {commit["id"] for commit in hub.history(name)}
    return [commit for commit in hub.history(name, revision) if commit["id"] not in known]


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


FAMILIES = {
    "vit": (tiny.tiny_vit, tiny.tiny_image_processor),
    "resnet": (tiny.tiny_resnet, None),
    "bert": (tiny.tiny_bert, tiny.tiny_tokenizer),
    "multitask": (tiny_multitask, tiny.tiny_image_processor),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(hub, tmp_path, family):
    build, make_processor = FAMILIES[family]
    name, before, after = f"me/{family}", build(seed=0), build(seed=1)
    publish(hub, name, write_release(tmp_path / "before", before, unlearned=False))
    main, commit = hub.files(name), hub.branches(name)["main"]
    folder = write_release(tmp_path / "after", after, make_processor and make_processor())
    pushed = push(folder, name, revision=BRANCH)

    assert hub.files(name) == main and hub.branches(name) == {"main": commit, BRANCH: pushed.commit}
    (new,) = added(hub, name, BRANCH)
    assert (new["id"], new["parent"]) == (pushed.commit, commit)
    assert pushed.url == f"{hub.url}/{name}/tree/unlearned%2Frequest-42"
    assert {**contents(folder), ".gitattributes": main[".gitattributes"]} == hub.files(name, BRANCH)
    assert weights_digest(load_model(name)) == weights_digest(before)
    assert weights_digest(load_model(name, revision=BRANCH)) == weights_digest(after)
    if family == "resnet":
        import timm

        for revision, model in (("main", before), (BRANCH, after)):
            found = timm.create_model(f"hf-hub:{name}@{revision}", pretrained=True).state_dict()
            assert samples.same_bits(found, model.timm_model.state_dict())
    if family == "bert":
        text = "the cat sees a dog"
        assert AutoTokenizer.from_pretrained(name, revision=BRANCH)(text) == make_processor()(text)
    if family == "vit":
        assert AutoImageProcessor.from_pretrained(name, revision=BRANCH).size == make_processor().size
    auto = AutoModel if family in ("bert", "multitask") else AutoModelForImageClassification
    found = auto.from_pretrained(name, revision=BRANCH).state_dict()
    expected = after.state_dict() if family != "bert" else after.bert.state_dict()
    assert samples.same_bits(found, expected)


@pytest.mark.parametrize("adapter", ["default", "unlearn"])
def test_adapter(hub, tmp_path, adapter):
    base = tiny.tiny_vit()
    save_model(base, tmp_path / "base")
    publish(hub, "me/vit", tmp_path / "base")
    inputs = tiny.random_inputs(base)
    with torch.no_grad():
        plain = base(**inputs).logits
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(load_model(tmp_path / "base"), config, adapter_name=adapter).eval()
    with torch.no_grad():
        expected = model(**inputs).logits
    save_model(model, tmp_path / "adapter")
    assert str(tmp_path).encode() in b"".join(contents(tmp_path / "adapter").values())
    pushed = push(tmp_path / "adapter", "me/vit", revision=BRANCH)

    names = {"adapter_config.json", "adapter_model.safetensors"}
    within = f"{adapter}/" if adapter != "default" else ""
    files = hub.files("me/vit", pushed.commit)
    assert set(files) == {within + name for name in names} | {".gitattributes"}  # and no weights of the original
    assert json.loads(files[f"{within}adapter_config.json"])["base_model_name_or_path"] == "me/vit"
    assert not any(str(tmp_path).encode() in content for _, content in hub.sent())
    loaded = PeftModel.from_pretrained(
        load_model("me/vit"), "me/vit", revision=BRANCH, subfolder=within.rstrip("/") or None
    )
    with torch.no_grad():
        found = loaded.eval()(**inputs).logits
    assert torch.equal(found, expected) and not torch.equal(found, plain)


def test_large_weights_in_shards(hub, tmp_path, original):
    """What the parent had in one file must not be left beside the shards."""
    model = tiny.tiny_vit(seed=1)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    push(tmp_path / "shards", original, revision=BRANCH)
    files = hub.files(original, BRANCH)
    assert "model.safetensors" not in files and "model.safetensors.index.json" in files
    assert weights_digest(load_model(original, revision=BRANCH)) == weights_digest(model)


def test_what_the_parent_leaves(hub, folders, tmp_path):
    old = {"pytorch_model.bin": b"old", "adapter_config.json": b"{}", "runs/events.out": b"x", "handler.py": b"x"}
    kept = {"LICENSE": b"Apache", "preprocessor_config.json": b'{"of": "the parent"}'}
    hub.put("me/vit", {**contents(folders / "original"), **old, **kept})
    shutil.copytree(folders / "unlearned", tmp_path / "release")
    for name in ("preprocessor_config.json", RECEIPT):  # beside a receipt it would go
        (tmp_path / "release" / name).unlink()
    push(tmp_path / "release", "me/vit", revision=BRANCH)
    files = hub.files("me/vit", BRANCH)
    assert files.keys() == {*contents(tmp_path / "release"), *kept, ".gitattributes"} - {METRICS}
    assert {name: files[name] for name in kept} == kept
    push(folders / "unlearned", "me/vit", revision="unlearned/with-processor")
    assert b"of" not in hub.files("me/vit", "unlearned/with-processor")["preprocessor_config.json"]
    assert old.keys() <= hub.files("me/vit").keys()


def test_default_branch_and_tag(hub, folders, original):
    first = push(folders / "unlearned", original, tag="v2")
    assert re.fullmatch(rf"unlearned/lotus-{datetime.date.today()}-[0-9a-f]{{8}}", first.revision)
    assert hub.tags(original) == {"v2": first.commit}
    assert push(folders / "unlearned", original, tag="v2") == first  # the same once more: nothing happens
    assert len(added(hub, original, first.revision)) == 1
    assert push(folders / "other", original).revision != first.revision
    with pytest.raises(UnlearningError, match="the tag 'v2' is already at commit"):
        push(folders / "other", original, revision="unlearned/b", tag="v2")


def test_new_repository(hub, folders, caplog):
    with pytest.raises(UnlearningError, match="there is no such repository, .*--create private or public"):
        push(folders / "original", "me/new", revision=BRANCH)
    assert not (hub.root / "models").exists()
    push(folders / "original", "me/empty", revision=BRANCH, private=True)
    assert "me/empty holds no model where 'unlearned/request-42' begins: who leaves out the revision" in caplog.text
    caplog.clear()
    push(folders / "original", "me/new", to_main=True, private=True)
    assert "holds no model" not in caplog.text
    assert json.loads((hub.root / "models/me/new/repo.json").read_text())["private"] is True
    assert contents(folders / "original").items() <= hub.files("me/new").items()


def test_main_only_if_asked(hub, folders, original):
    before = hub.branches(original)
    with pytest.raises(UnlearningError, match="revision is 'main', which a push leaves as it is; pass to_main=True"):
        push(folders / "unlearned", original, revision="main")
    assert hub.branches(original) == before
    pushed = push(folders / "unlearned", original, to_main=True, parent=Parent(original, before["main"]))
    assert hub.branches(original) == {"main": pushed.commit}
    with pytest.raises(UnlearningError, match="'main' of me/vit has gone on to commit .* nothing there was changed"):
        push(folders / "other", original, to_main=True, parent=Parent(original, before["main"]))
    assert hub.branches(original) == {"main": pushed.commit}


def test_parent(hub, folders, original):
    """A branch begins at its parent, though `main` has gone on; and what is not there is no parent."""
    first = hub.branches(original)["main"]
    hub.put(original, {"notes.txt": b"later"})
    push(folders / "unlearned", original, revision=BRANCH, parent=Parent(original, first))
    assert hub.history(original, BRANCH)[0]["parent"] == first
    push(folders / "other", original, revision="unlearned/next", parent=Parent(original, BRANCH))
    assert hub.history(original, "unlearned/next")[0]["parent"] == hub.branches(original)[BRANCH]
    with pytest.raises(UnlearningError, match="the repository has no such branch, tag or commit"):
        push(folders / "other", original, revision="unlearned/c", parent=Parent(original, "f" * 40))


# ---------------------------------------------------------------------------------------------------------------------
# What fails on the way


def attempt(folder, name, **kwargs):
    try:
        return push(folder, name, **kwargs), None
    except UnlearningError as error:
        return None, str(error)


def state(hub, name, folder, main):
    """`old` or `new`; nothing else may ever be seen."""
    branches = hub.branches(name)
    assert branches["main"] == main
    if branches.get(BRANCH, main) == main:
        return "old"
    (new,) = added(hub, name, BRANCH)
    assert new["parent"] == main and contents(folder).items() <= hub.files(name, BRANCH).items()
    return "new"


def command_in(message):
    command = message.partition("and this pushes it: ")[2]
    assert "\n" not in message and "  " not in message
    return shlex.split(command)


@pytest.mark.parametrize("how", slow_but(["lose"], ["drop", "lose", "half", 500]))
def test_every_request_failing(hub, folders, tmp_path, how, capsys):
    """For good: the old state or the new one, a complete folder, and the command in the error does the rest.
    Once: nobody notices."""
    folder = shutil.copytree(folders / "unlearned", tmp_path / "release")
    local = contents(folder)
    publish(hub, "me/count", folders / "original")
    hub.forget_requests()
    push(folder, "me/count", revision=BRANCH, tag="v2")
    requests = len(hub.requests)
    assert requests >= 10
    seen = set()
    for n in range(1, requests + 1):
        for times in (None, 1):
            name = publish(hub, f"me/{how}-{n}-{times}", folders / "original")
            main = hub.branches(name)["main"]
            hub.fail(how, at=n, times=times)
            pushed, error = attempt(folder, name, revision=BRANCH, tag="v2")
            hub.recover()
            assert contents(folder) == local
            if times == 1:
                assert pushed and error is None, (n, error)
            elif error:
                where = state(hub, name, folder, main)
                seen.add(where)
                assert re.search(r"cannot be reached|an error of its own \(500\)", error), (n, error)
                command = command_in(error)
                assert command[:4] == ["hf-unlearn", "push", str(folder), name]
                assert cli.main(command[1:]) == 0, capsys.readouterr().err
            assert state(hub, name, folder, main) == "new"
            assert hub.tags(name) == {"v2": hub.branches(name)[BRANCH]}
    assert seen == {"old", "new"}


EVERY = [(how, 1) for how in ("drop", "lose", "half", 401, 403, 409, 412, 429, 500)]


@pytest.mark.parametrize(("how", "step"), slow_but([("drop", 5)], [("drop", 5), *EVERY]))
def test_every_request_of_a_result_failing(hub, folders, tmp_path, how, step, capsys):
    """Either no release, or a complete folder and the command; and what passes is got over."""
    data = samples.request(n_forget=4, n_retain=8, n_unseen=4)
    args = samples.arguments(tmp_path / "run", max_steps=1)
    about = {"method": "finetune", "args": args, "processing_class": tiny.tiny_image_processor()}
    result = unlearn(load_model(folders / "original"), **data, **about)

    def push_result(name):
        where = {"parent": Parent(name, "main"), "folder": tmp_path / "releases" / name, "tag": "v2"}
        return result.push_to_hub(name, BRANCH, **where), where["folder"]

    publish(hub, "me/count", folders / "original")
    hub.forget_requests()
    push_result("me/count")
    requests = len(hub.requests)
    assert requests >= 14
    for n in range(1, requests + 1, step):
        for times in (None, 1):
            name = publish(hub, f"me/result-{how}-{n}-{times}", folders / "original")
            main = hub.branches(name)["main"]
            hub.fail(how, at=n, times=times)
            try:
                _, folder = push_result(name)
            except UnlearningError as error:
                assert times is None or how in (401, 403, 412), (n, str(error))
                hub.recover()
                folder = tmp_path / "releases" / name
                if "and this pushes it" in str(error):
                    command = command_in(str(error))
                    assert command[:4] == ["hf-unlearn", "push", str(folder), name]
                    assert cli.main(command[1:]) == 0, capsys.readouterr().err
                else:  # the parent was not read, and there is no release without it
                    assert not folder.exists() and (folder.with_name(f"{name.split('/')[1]}-unfinished")).is_dir()
                    push_result(name)
            hub.recover()
            assert state(hub, name, folder, main) == "new"
            assert hub.tags(name) == {"v2": hub.branches(name)[BRANCH]}
            found = verify(name, revision=BRANCH)
            assert found.ok, (n, times, found.line)


def test_a_parent_that_is_not_there(hub, folders, original, tmp_path):
    """A wrong name is told before anything is written."""
    args = samples.arguments(tmp_path / "run", max_steps=1)
    result = unlearn(load_model(folders / "original"), **samples.request(), method="finetune", args=args)
    for parent in (Parent(original, "unlearned/none"), Parent("me/none", "main")):
        with pytest.raises(UnlearningError, match=f"The parent {parent.repo_id}@{parent.commit} cannot be read: "):
            result.push_to_hub(original, BRANCH, parent=parent)
    assert not (tmp_path / "run" / "release").exists()


def test_large_files_are_sent_once(hub, folders, original):
    hub.fail("drop", fits="POST .*/commit/")
    assert "cannot be reached" in attempt(folders / "unlearned", original, revision=BRANCH)[1]
    hub.recover()
    assert (
        hub.branches(original)[BRANCH] == hub.branches(original)["main"]
    )  # an empty branch, and the weights in store
    hub.forget_requests()
    push(folders / "unlearned", original, revision=BRANCH)
    assert not [request for request in hub.requests if request.method == "PUT"]


def test_interrupted_after_main_has_gone_on(hub, folders, original, capsys):
    hub.fail("drop", fits="POST .*/commit/")
    error = attempt(folders / "unlearned", original, revision=BRANCH)[1]
    hub.recover()
    first = hub.branches(original)["main"]
    hub.put(original, {"notes.txt": b"later"})
    assert cli.main(command_in(error)[1:]) == 0, capsys.readouterr().err
    assert hub.history(original, BRANCH)[0]["parent"] == first


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "the Hub does not accept the token"),
        (403, "the token may not write there"),
        (409, "another operation on the repository is going on"),
        (412, "somebody else has pushed"),
        (429, "the Hub takes no more requests for now; try again later"),
        (500, r"the Hub has an error of its own \(500\); try again later"),
        (503, r"the Hub has an error of its own \(503\); try again later"),
        (418, r"the Hub refused the request \(418: Failure 418\)"),
    ],
)
def test_refused(hub, folders, original, status, sentence, capsys):
    main = hub.branches(original)["main"]
    hub.fail(status, fits="POST .*/commit/")
    with pytest.raises(UnlearningError, match=f"was not pushed to me/vit: {sentence}") as caught:
        push(folders / "unlearned", original, revision=BRANCH)
    assert state(hub, original, folders / "unlearned", main) == "old"
    hub.recover()
    assert cli.main(command_in(str(caught.value))[1:]) == 0
    assert state(hub, original, folders / "unlearned", main) == "new"


def test_no_token(hub, folders, original, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    hub.forget_requests()
    with pytest.raises(UnlearningError, match="there is no token; log in with `hf auth login`"):
        push(folders / "unlearned", original, revision=BRANCH)
    assert hub.requests == []
    push(folders / "unlearned", original, revision=BRANCH, token=WRITER)
    HfApi(token=WRITER).create_repo("me/private", private=True)
    with pytest.raises(UnlearningError, match="there is no such repository, or the token may not see it"):
        list_revisions("me/private")


def test_token_without_rights(hub, folders, original):
    with pytest.raises(UnlearningError, match="the token may not write there; use one with write access"):
        push(folders / "unlearned", original, revision=BRANCH, token=READER)
    with pytest.raises(UnlearningError, match="the Hub does not accept the token; log in again") as caught:
        push(folders / "unlearned", original, revision=BRANCH, token="hf_unknown")
    assert "hf_unknown" not in str(caught.value)
    assert list(hub.branches(original)) == ["main"]


def test_unreachable(folders, monkeypatch):
    """Without the fixture nobody listens at the address of the Hub."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UnlearningError, match="the Hub cannot be reached at http://127.0.0.1:") as caught:
        push(folders / "unlearned", "me/vit", revision=BRANCH, token=WRITER)
    assert command_in(str(caught.value))[1:4] == ["push", str(folders / "unlearned"), "me/vit"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnlearningError, match="HF_HUB_OFFLINE is set"):
        push(folders / "unlearned", "me/vit", revision=BRANCH, token=WRITER)


@pytest.mark.parametrize("name", ["vit", "me/", "a/b/c", "me/vit model", "me/../vit", "me/vit.git", "me/vité"])
def test_no_name_of_a_repository(folders, name):
    with pytest.raises(UnlearningError, match="is no name of a repository; expected owner/name"):
        push(folders / "unlearned", name)


@pytest.mark.parametrize(
    "name",
    ["a b", "unlearned/", "-a", "a..b", "a~1", "a:b", "a//b", "x.lock", "", "refs/heads/main", "HEAD", "c" * 40]
    + ["@", "x/.hidden", "x/y.lock/z"],
)
def test_no_name_of_a_branch(folders, name):
    with pytest.raises(UnlearningError, match="is no name of a branch; expected one such as unlearned/request-42"):
        push(folders / "unlearned", "me/vit", revision=name)


def test_folders_that_are_no_release(hub, tmp_path):
    with pytest.raises(UnlearningError, match="is no folder; pass one that result.save"):
        push(tmp_path / "none", "me/vit")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnlearningError, match="holds no model.safetensors and no adapter_model.safetensors"):
        push(tmp_path, "me/vit")


# ---------------------------------------------------------------------------------------------------------------------
# Races


def test_overtaken(hub, folders, original, monkeypatch):
    """Another push to the branch arrives while this one sends its weights."""
    send, first = HfApi.preupload_lfs_files, []

    def overtaken(self, *args, **kwargs):
        if not first:
            first.append(True)
            push(folders / "other", original, revision=BRANCH)
        return send(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", overtaken)
    local = contents(folders / "unlearned")
    with pytest.raises(UnlearningError, match="so somebody else has pushed to it; nothing there was changed, choose"):
        push(folders / "unlearned", original, revision=BRANCH)
    assert contents(folders / "unlearned") == local
    assert contents(folders / "other").items() <= hub.files(original, BRANCH).items()
    assert len(added(hub, original, BRANCH)) == 1
    with pytest.raises(UnlearningError, match="which holds something else, .*; nothing there was changed, choose"):
        push(folders / "unlearned", original, revision=BRANCH)
    push(folders / "unlearned", original, revision="unlearned/request-43")


def test_two_at_once(hub, folders, original):
    results, together = {}, threading.Barrier(2)

    def go(name):
        together.wait()
        results[name] = attempt(folders / name, original, revision=BRANCH)

    threads = [threading.Thread(target=go, args=(name,)) for name in ("unlearned", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [name for name, (pushed, _) in results.items() if pushed]
    (loser,) = results.keys() - {winner}
    assert "nothing there was changed, choose another revision" in results[loser][1]
    assert contents(folders / winner).items() <= hub.files(original, BRANCH).items()
    assert len(added(hub, original, BRANCH)) == 1


# ---------------------------------------------------------------------------------------------------------------------
# What is never pushed


@pytest.mark.parametrize(
    "name",
    [
        *(
            "training_args.bin",
            "optimizer.pt",
            "scheduler.pt",
            "trainer_state.json",
            "pytorch_model.bin",
            "rng_state.pth",
        ),
        *("model.pkl", "method.safetensors", "original.json", "events.out.tfevents.1", "receipt_secrets.json", ".env"),
        *("_unlearn/original/model.safetensors", "checkpoint-3/model.safetensors", "checkpoint-3/config.json"),
        *("checkpoint-3/adapter_model.safetensors", "_unlearn/adapter_model.safetensors", "a/b/adapter_config.json"),
        *("data.parquet", "forget.csv", "samples.json", "image.png", "model.py", "unlearn/README.md"),
    ],
)
def test_is_not_released(name):
    assert not is_released(name)


def test_a_token_or_a_path_in_a_file(hub, folders, tmp_path, original):
    for what, text in (("a token", WRITER), ("a local path", f"{tmp_path}/somewhere")):
        shutil.copytree(folders / "unlearned", tmp_path / "release", dirs_exist_ok=True)
        (tmp_path / "release" / "metrics.json").write_text(json.dumps({"x": text}))
        hub.forget_requests()
        with pytest.raises(UnlearningError, match=f"metrics.json holds {what}, which must not be pushed") as caught:
            push(tmp_path / "release", original, revision=BRANCH)
        assert hub.requests == [] and WRITER not in str(caught.value)


def test_a_path_that_json_escapes(hub, folders, tmp_path, original):
    saved = shutil.copytree(folders / "unlearned", tmp_path / "déjà" / "release")
    (saved / "metrics.json").write_text(json.dumps({"x": f"{saved}/somewhere"}))
    with pytest.raises(UnlearningError, match="metrics.json holds a local path"):
        push(saved, original, revision=BRANCH)


def test_a_card_with_placeholders_stays(hub, folders, tmp_path, original, caplog):
    shutil.copytree(folders / "unlearned", tmp_path / "release")
    (tmp_path / "release" / "README.md").write_text("# Model Card for Model ID\n[More Information Needed]\n")
    (tmp_path / "release" / "trainer_state.json").write_text("{}")
    push(tmp_path / "release", original, revision=BRANCH)
    assert "README.md" not in hub.files(original, BRANCH)
    assert "Not pushed: README.md, trainer_state.json; a release has no such files" in caplog.text


@pytest.fixture
def unlearned(hub, folders, original, tmp_path):
    """An image model from the Hub, a text model and an adapter, unlearned with everything that could leave a trace, and a
    class removed by an edit; their results and what must never be seen of them."""
    images, texts = samples.request(), samples.request(samples.sentences)
    planted = "zebra quokka okapi"
    texts["forget"] = texts["forget"].map(lambda row: {"text": f"{row['text']} {planted}"})
    traces = {"save_strategy": "epoch", "num_train_epochs": 1, "hub_token": WRITER}
    of_images = unlearn(original, **images, method="lotus", args=samples.arguments(tmp_path / "images", **traces))
    of_texts = unlearn(
        tiny.tiny_bert(),
        **texts,
        method="finetune",
        processing_class=tiny.tiny_tokenizer(),
        args=samples.arguments(tmp_path / "texts", **traces),
    )
    adapter = unlearn(
        load_model(original),
        **images,
        method="lotus",
        peft_config=True,
        args=samples.arguments(tmp_path / "lora", **traces),
    )
    of_class = unlearn(
        load_model(original),
        **datasets_without(0),
        method=DampConfig(tau=0.5),  # so that it passes over a stage, and names the class
        args=samples.arguments(tmp_path / "damp", hub_token=WRITER),
    )
    assert any("class 0" in note for note in of_class.trainer.method.notes)
    pixels = images["forget"].with_format("numpy")["pixel_values"][:]
    labels = [int(label) for label in images["forget"]["label"]]
    with of_images.trainer.original_model() as model, torch.no_grad():
        outputs = model(pixel_values=torch.tensor(pixels)).logits.numpy()
    markers = {
        "text": planted.encode(),
        "token": WRITER.encode(),
        "local path": str(tmp_path).encode(),
        "labels": json.dumps(labels).encode(),
        "labels in lines": json.dumps(labels, indent=2).encode(),
        "labels as bytes": torch.tensor(labels).numpy().tobytes(),
        **{f"teacher output {i}": row.tobytes() for i, row in enumerate(outputs)},
        **{f"image {i}": image.astype("float32").tobytes()[:64] for i, image in enumerate(pixels)},
    }
    return {"me/vit": of_images, "me/bert": of_texts, "me/lora": adapter, "me/damp": of_class}, markers


def datasets_without(label):
    """A request for a whole class."""
    return {**split_dataset(samples.images(96), labels=label), "unseen": samples.images(48, seed=3)}


def found_in(sent, markers):
    """Which of the markers were sent, pickles and states of optimizers included."""
    found = {name for name, marker in markers.items() for _, content in sent if marker in content}
    known = {"pickle": b"\x80\x02", "optimizer": b"exp_avg", "zip archive": b"PK\x03\x04"}
    texts = [(where, content) for where, content in sent if not where.startswith("PUT")]
    names = re.compile(rb"optimizer\.pt|training_args|checkpoint-|\b_unlearn|scheduler\.pt|rng_state|\.bin\b|\.pkl\b")
    found |= {name for name, begin in known.items() for _, content in sent if content.startswith(begin)}
    return found | {f"file {m[0].decode()}" for _, content in texts for m in names.finditer(content)}


@pytest.mark.slow
def test_nothing_leaks(hub, unlearned, tmp_path):
    results, markers = unlearned
    for name in results.keys() - {"me/vit"}:
        HfApi().create_repo(name, private=False)
    hub.forget_requests()
    for name, result in results.items():
        kept = {path.name for path in (tmp_path / result.trainer.args.output_dir).rglob("*")}
        is_edit = name == "me/damp"
        assert (
            is_edit or {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= kept
        )  # there is something to be left out
        pushed = result.push_to_hub(name, report=result.audit())
        files = hub.files(name, pushed.revision)
        weights = "unlearn/adapter_model.safetensors" if name == "me/lora" else "model.safetensors"
        made = {"README.md", "unlearning_receipt.json", "metrics.json", "audit.json", "audit.html"}
        assert {weights, *made} <= files.keys()
        assert not found_in([(path, files[path]) for path in files.keys() - {".gitattributes"}], markers)
        if is_edit:
            assert not [path for path in made if re.search(rb"class(es)? \[?\d", files[path])]
    assert len([r for r in hub.requests if "/commit/" in r.path]) == len(results)
    assert not found_in(list(hub.sent()), markers)

    # The same scan, of the markers in every form and of all that the runs have left on the disk.
    HfApi().create_repo("me/leak", private=True)
    for name, marker in markers.items():
        for path in (f"{name}.json", f"{name}.safetensors"):  # inside a commit, and as a large file
            hub.forget_requests()
            HfApi().upload_file(path_or_fileobj=b"{'a': 1} " + marker, path_in_repo=path, repo_id="me/leak")
            assert name in found_in(list(hub.sent()), markers), path
    hub.forget_requests()
    HfApi().upload_folder(folder_path=tmp_path / "images", repo_id="me/leak")
    found = found_in(list(hub.sent()), markers)
    assert {"zip archive", "file optimizer.pt", "file checkpoint-", "file scheduler.pt", "file rng_state"} <= found


def test_figures_only_beside_a_receipt(hub, folders, tmp_path, original, caplog):
    """Those that `result.save` writes are for the user: they may name the classes of forget samples."""
    shutil.copytree(folders / "unlearned", tmp_path / "saved")
    (tmp_path / "saved" / "unlearning_receipt.json").unlink()
    push(tmp_path / "saved", original, revision=BRANCH)
    assert "metrics.json" not in hub.files(original, BRANCH) and "metrics.json" in caplog.text
    assert "no receipt and no figures are pushed; for a release with all of them, use result" in caplog.text


# ---------------------------------------------------------------------------------------------------------------------
# From a run


def test_a_result(hub, original, tmp_path):
    """Loaded from the Hub, unlearned, pushed, loaded again, verified."""
    result = unlearn(original, **samples.request(), method="finetune", args=samples.arguments(tmp_path / "run"))
    main = hub.files(original)
    assert result.trainer.origin == {"repo": original, "revision": hub.branches(original)["main"]}
    assert not (tmp_path / "run" / "_unlearn" / "original").exists()  # it is on the Hub
    with result.trainer.original_model() as before:
        assert weights_digest(before) == weights_digest(load_model(original)) != weights_digest(result.model)
    hub.put(original, {"notes.txt": b"later"})
    hub.fail("drop", fits="POST .*/commit/")
    with pytest.raises(UnlearningError, match=f"{tmp_path}/run/release was not pushed to me/vit") as caught:
        result.push_to_hub(original, BRANCH)
    hub.recover()
    begun = Parent(original, hub.history(original)[1]["id"][:10])  # what an id begins with is written out
    written = prepare(result, tmp_path / "written", parent=begun)
    assert json.loads((written / "unlearning_receipt.json").read_text())["parent"] == {
        "repo": original,
        "commit": result.trainer.origin["revision"],
    }
    assert cli.main(command_in(str(caught.value))[1:]) == 0
    head = hub.history(original, BRANCH)[0]
    assert head["parent"] == result.trainer.origin["revision"] != hub.branches(original)["main"]
    assert weights_digest(load_model(original, revision=BRANCH)) == weights_digest(result.model)
    assert contents(tmp_path / "run" / "release").items() <= hub.files(original, BRANCH).items()
    assert hub.files(original) == {**main, "notes.txt": b"later"}
    receipt = json.loads(hub.files(original, BRANCH)["unlearning_receipt.json"])
    assert receipt["parent"] == {"repo": original, "commit": head["parent"]}
    found = verify(
        original, revision=BRANCH, forget=samples.request()["forget"], secrets=tmp_path / "run" / "_unlearn" / SECRETS
    )
    assert found.ok and {"parent", "weights", "records"} & {check.name for check in found.checks if check.passed}, (
        found.line
    )


def test_the_trainer(hub, original, tmp_path):
    args = samples.arguments(tmp_path / "run", hub_model_id="me/new", hub_private_repo=True, num_train_epochs=1)
    result = unlearn(tiny.tiny_vit(), **samples.request(), method="finetune", args=args)
    with pytest.raises(UnlearningError, match="push_to_hub was given language, tags; expected, of a release, only"):
        result.trainer.push_to_hub(tags=["cats"], language="en")  # which the Trainer's own takes for its card
    pushed = result.trainer.push_to_hub("Without the eight samples")
    assert re.fullmatch(rf"unlearned/finetune-{datetime.date.today()}-[0-9a-f]{{8}}", pushed.revision)
    assert hub.history("me/new", pushed.revision)[0]["title"] == "Without the eight samples"
    assert set(hub.files("me/new")) == {".gitattributes"}
    assert weights_digest(load_model("me/new", revision=pushed.revision)) == weights_digest(result.model)
    assert push(result, original, revision=BRANCH).repo_id == original
    assert weights_digest(load_model(original, revision=BRANCH)) == weights_digest(result.model)


# ---------------------------------------------------------------------------------------------------------------------
# Revisions that are there


@pytest.fixture
def pushed(hub, folders, original):
    """A branch with two pushed commits."""
    first = push(folders / "unlearned", original, revision=BRANCH)
    hub.put(original, contents(folders / "other"), BRANCH)
    return first


def test_list(hub, original, pushed, capsys):
    tag(original, "v1", revision="main")
    found = list_revisions(original)
    assert (found[0].name, {(r.name, r.kind) for r in found}) == (
        "main",
        {("main", "branch"), (BRANCH, "branch"), ("v1", "tag")},
    )
    assert {r.name: r.commit for r in found} == {**hub.branches(original), **hub.tags(original)}
    assert cli.main(["list", original]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("main") and hub.branches(original)["main"][:12] in lines[0]


def test_tag(hub, original, pushed, capsys):
    assert tag(original, "v2", revision=BRANCH) == hub.branches(original)[BRANCH]
    assert tag(original, "v2", revision=BRANCH) == hub.branches(original)[BRANCH]
    with pytest.raises(UnlearningError, match="me/vit was not tagged: the tag 'v2' is already at commit"):
        tag(original, "v2", revision="main")
    with pytest.raises(UnlearningError, match="the repository has no such branch"):
        tag(original, "v3", revision="unlearned/none")
    for name in ("main", BRANCH):  # then nobody could tell which of the two is loaded
        with pytest.raises(UnlearningError, match=f"[Tt]he tag '{name}' would have the name of a branch"):
            tag(original, name, revision=pushed.commit)
    assert cli.main(["tag", original, "v3", "--revision", pushed.commit]) == 0
    assert hub.tags(original)["v3"] == pushed.commit


def test_rollback(hub, folders, original, pushed, capsys):
    head, main = hub.branches(original)[BRANCH], hub.files(original)
    done = rollback(original, BRANCH)
    assert hub.files(original, BRANCH) == hub.files(original, pushed.commit) != hub.files(original, head)
    assert [c["id"] for c in hub.history(original, BRANCH)][:3] == [done.commit, head, pushed.commit]
    assert hub.files(original) == main
    assert cli.main(["rollback", original, "--revision", BRANCH, "--to", head]) == 0
    assert hub.files(original, BRANCH) == hub.files(original, head)
    assert rollback(original, BRANCH, to=head).commit == hub.branches(original)[BRANCH]  # there already
    with pytest.raises(
        UnlearningError, match="me/vit has no branch 'none'; expected one of main, unlearned/request-42"
    ):
        rollback(original, "none")
    with pytest.raises(UnlearningError, match="has no such branch, tag or commit"):
        rollback(original, BRANCH, to="f" * 40)


def test_rollback_with_failures(hub, original, pushed):
    head = hub.branches(original)[BRANCH]
    hub.forget_requests()
    rollback(original, BRANCH, to=pushed.commit)
    for n in range(1, len(hub.requests) + 1):
        for how in ("drop", "lose"):
            rollback(original, BRANCH, to=head)
            hub.fail(how, at=n, times=1)
            rollback(original, BRANCH, to=pushed.commit)
            hub.recover()
            assert hub.files(original, BRANCH) == hub.files(original, pushed.commit)


def large(hub, original, revision):
    return {entry["sha256"] for entry in hub.history(original, revision)[0]["files"].values() if "sha256" in entry}


def test_purge(hub, original, pushed, capsys):
    main = hub.branches(original)["main"]
    now = hub.files(original, BRANCH)
    (gone,), (in_main,), (in_branch,) = (large(hub, original, r) for r in (pushed.commit, "main", BRANCH))
    plan = purge_plan(original, BRANCH)
    assert plan.commits == [pushed.commit] and list(plan.files) == [gone]
    assert plan.held == {commit["id"]: ["main"] for commit in hub.history(original)} and main in plan.held
    assert plan.kept == {in_main: ["main"]}
    hub.forget_requests()
    for confirm in (None, "yes", original, f"{original}@main", f"{original}@{BRANCH}"):
        with pytest.raises(
            UnlearningError,
            match="Nothing was done; to do it, confirm with 'me/vit@unlearned/request-42:[0-9a-f]{12}'",
        ):
            purge(original, BRANCH, confirm=confirm)
    assert cli.main(["purge", original, "--revision", BRANCH]) == 0
    told = capsys.readouterr().out
    assert all(what in told for what in (gone, pushed.commit, main, "Nothing was done", "in use at main"))
    assert f"  {pushed.commit}\n" in told.partition("What stays")[0] and f"commit {main}, of main" in told
    assert not [r for r in hub.requests if r.method != "GET"] and gone in hub.large_files(original)

    assert told.rstrip().endswith(f"--confirm {plan.confirmation}")
    assert cli.main(["purge", original, "--revision", BRANCH, "--confirm", plan.confirmation]) == 0
    assert hub.files(original, BRANCH) == now and len(hub.history(original, BRANCH)) == 1
    assert hub.large_files(original) == {in_main, in_branch}
    assert hub.branches(original)["main"] == main and hub.files(original)
    assert purge_plan(original, BRANCH).describe().endswith("There is nothing else to remove.")


def test_purge_spares_what_a_tag_holds(hub, original, pushed):
    (held,) = large(hub, original, pushed.commit)
    tag(original, "v1", revision=pushed.commit)
    plan = purge(original, BRANCH, confirm=purge_plan(original, BRANCH).confirmation)
    assert plan.files == {} and plan.kept[held] == ["v1"]
    assert plan.commits == [] and plan.held[pushed.commit] == ["v1"]
    assert hub.files(original, "v1") and len(hub.history(original, BRANCH)) > 1  # there was nothing to do


def test_purge_goes_on(hub, original, pushed):
    (gone,) = large(hub, original, pushed.commit)
    hub.fail("drop", fits="super-squash")
    with pytest.raises(
        UnlearningError, match="was not purged completely, and a new plan goes on with it: the Hub can"
    ):
        purge(original, BRANCH, confirm=purge_plan(original, BRANCH).confirmation)
    hub.recover()
    plan = purge(original, BRANCH, confirm=purge_plan(original, BRANCH).confirmation)
    assert plan.files == {} and gone not in hub.large_files(original)
    assert len(hub.history(original, BRANCH)) == 1


@pytest.mark.parametrize("swapped", [True, False])
def test_purge_reads_the_list_of_large_files(hub, original, pushed, monkeypatch, swapped):
    """By the documentation `file_oid` is the SHA-256, by the field's name it might be `oid`; and no name need be there."""
    (gone,) = large(hub, original, pushed.commit)
    (hub.root / "models" / original / "lfs" / ("0" * 64)).write_bytes(b"of no commit, so it has no name")
    begin = LFSFileInfo.__init__

    def other(self, **kwargs):
        if swapped:
            kwargs |= {"oid": kwargs["fileOid"], "fileOid": kwargs["oid"]}
        begin(self, **kwargs)

    monkeypatch.setattr(LFSFileInfo, "__init__", other)
    assert list(purge_plan(original, BRANCH).files) == [gone]

    def strange(self, **kwargs):
        begin(self, **kwargs | {"oid": "a", "fileOid": "b"})

    monkeypatch.setattr(LFSFileInfo, "__init__", strange)
    with pytest.raises(
        UnlearningError, match="has no [0-9a-f]{64}, which a commit has, so what would be deleted cannot"
    ):
        purge(original, BRANCH, confirm=f"{original}@{BRANCH}")
    assert len(hub.history(original, BRANCH)) > 1 and gone in hub.large_files(original)


@pytest.mark.parametrize("what", ["tag", "branch", "commit"])
def test_a_conflict_that_passes(hub, folders, original, what):
    """The Hub answers 409 where a tag or branch exists, and where something else is going on."""
    hub.fail(409, times=1, fits=f"POST .*/{what}/")
    pushed = push(folders / "unlearned", original, revision=BRANCH, tag="v2")
    assert hub.tags(original) == {"v2": pushed.commit} and hub.branches(original)[BRANCH] == pushed.commit


def test_a_tag_that_is_never_made(hub, folders, original):
    hub.fail(409, fits="POST .*/tag/")
    with pytest.raises(UnlearningError, match="another operation on the repository is going on"):
        push(folders / "unlearned", original, revision=BRANCH, tag="v2")
    assert hub.tags(original) == {}


def test_commands_say_what_is_wrong(hub, folders, capsys):
    assert cli.main(["push", str(folders / "unlearned"), "me/none", "--revision", BRANCH]) == 2
    assert "there is no such repository" in capsys.readouterr().err
    assert cli.main(["push", str(folders / "unlearned"), "me/none", "--parent", "me/vit@"]) == 2
    assert "--parent is 'me/vit@'; expected OWNER/NAME@COMMIT, or a commit." in capsys.readouterr().err
    assert cli.main(["push", str(folders / "original"), "me/none", "--to-main", "--create", "public"]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.url}/me/none/tree/main\n")


# ---------------------------------------------------------------------------------------------------------------------
# Releases of every family


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "adapter"])
def test_a_result_of_every_family(hub, tmp_path, family):
    build, make_processor = FAMILIES["vit" if family == "adapter" else family]
    publish(
        hub,
        "me/model",
        write_release(tmp_path / "before", build(), make_processor and make_processor(), unlearned=False),
    )
    main = hub.files("me/model")
    data = {"bert": lambda: samples.request(samples.sentences), "multitask": lambda: request("multitask")}
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if family == "adapter" else None
    result = unlearn(
        "me/model",
        **data.get(family, samples.request)(),
        method="multitask" if family == "multitask" else "finetune",
        peft_config=config,
        args=samples.arguments(tmp_path / "run", num_train_epochs=1),
    )
    result.push_to_hub("me/model", BRANCH)
    assert hub.files("me/model") == main
    assert len(added(hub, "me/model", BRANCH)) == 1
    found = verify("me/model", revision=BRANCH)
    assert found.ok and {"weights", "parent", "files"} <= {check.name for check in found.checks if check.passed}, found
    assert not any(str(tmp_path).encode() in content for _, content in hub.sent())
    if family != "adapter":
        assert weights_digest(load_model("me/model", revision=BRANCH)) == weights_digest(result.model)
        return
    (path,) = [name for name in hub.files("me/model", BRANCH) if name.endswith("adapter_config.json")]
    within = path.rpartition("/")[0] or None
    loaded = PeftModel.from_pretrained(load_model("me/model"), "me/model", revision=BRANCH, subfolder=within)
    inputs = tiny.random_inputs(load_model("me/model"))
    with torch.no_grad():
        found, expected, before = (m.eval()(**inputs).logits for m in (loaded, result.model, load_model("me/model")))
    assert torch.equal(found, expected) and not torch.equal(found, before)


# ---------------------------------------------------------------------------------------------------------------------
# Other clients


@pytest.mark.slow
def test_datasets_of_a_revision(hub):
    HfApi().create_repo("me/data", repo_type="dataset")
    data = samples.sentences(6)
    data.push_to_hub("me/data", revision="main")
    HfApi().create_branch("me/data", branch=BRANCH, repo_type="dataset")
    data.select(range(2)).push_to_hub("me/data", revision=BRANCH)
    for revision, n in (("main", 6), (BRANCH, 2)):
        found = datasets.load_dataset("me/data", split="train", revision=revision)
        assert found["text"][:] == data["text"][:n]


@pytest.mark.slow
def test_evaluate_of_a_space(hub):
    import evaluate

    HfApi().create_repo("me/halves", repo_type="space", space_sdk="gradio")
    script = """
import datasets
import evaluate


class Halves(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float32")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions):
        return {"half": sum(predictions) / 2}
"""
    HfApi().upload_file(
        path_or_fileobj=script.encode(), path_in_repo="halves.py", repo_id="me/halves", repo_type="space"
    )
    assert evaluate.load("me/halves").compute(predictions=[1.0, 2.0]) == {"half": 1.5}
