"""Commits hold what they were meant to, or the branch is put back; and a purge takes what its plan showed, or nothing."""

import shlex
import shutil

import pytest
from huggingface_hub import CommitOperationCopy, HfApi

from hf_unlearn import UnlearningError
from hf_unlearn import commands as cli
from hf_unlearn.hub import Parent, list_revisions, purge, purge_plan, purging, push, push_metric, rollback, tag
from hf_unlearn.models.load import load_model
from hf_unlearn.models.weights import weights_digest
from tests import tiny
from tests.hub.server import is_ignored
from tests.releases import CARD, contents, publish, write_release

BRANCH = "unlearned/request-42"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    for seed, name in enumerate(("original", "unlearned", "other")):
        write_release(root / name, tiny.tiny_vit(seed=seed), tiny.tiny_image_processor(), unlearned=seed > 0)
    return root


@pytest.fixture
def original(hub, folders):
    return publish(hub, "me/vit", folders / "original")


@pytest.fixture
def pushed(hub, folders, original):
    """A branch with two pushed commits, the first of which is given."""
    first = push(folders / "unlearned", original, revision=BRANCH)
    hub.put(original, contents(folders / "other"), BRANCH)
    return first


# ---------------------------------------------------------------------------------------------------------------------
# What a client leaves out


def test_the_hub_of_the_tests_ignores_as_git_does():
    patterns = "# weights\n*.safetensors\n!model.safetensors\n/audit.*\nunlearn/\n"
    ignored = ["adapter.safetensors", "a/b.safetensors", "audit.html", "unlearn/adapter_config.json"]
    assert [path for path in [*ignored, "model.safetensors", "config.json"] if is_ignored(path, patterns)] == ignored


@pytest.mark.parametrize("pattern", ["*.safetensors", "*", "metrics.json", "*.json\n*.safetensors"])
def test_ignored_files(hub, folders, original, pattern):
    """Without its weights, a release would load as the original under the card of another model."""
    main = hub.put(original, {".gitignore": pattern.encode()})
    before = hub.files(original)
    with pytest.raises(
        UnlearningError, match="did not hold what was pushed .* the new branch was deleted again; the .git"
    ):
        push(folders / "unlearned", original, revision=BRANCH)
    assert hub.branches(original) == {"main": main} and hub.files(original) == before
    with pytest.raises(
        UnlearningError, match="did not hold what was pushed .* the branch (was put back|is as it was)"
    ):
        push(folders / "unlearned", original, to_main=True)
    assert hub.files(original) == before
    HfApi().create_branch(original, branch=BRANCH)  # as an interrupted push leaves it
    with pytest.raises(UnlearningError, match="did not hold what was pushed"):
        push(folders / "unlearned", original, revision=BRANCH)
    assert hub.files(original, BRANCH) == before
    HfApi().delete_branch(original, branch=BRANCH)
    HfApi().delete_file(".gitignore", original)
    push(folders / "unlearned", original, revision=BRANCH)
    assert weights_digest(load_model(original, revision=BRANCH)) == weights_digest(tiny.tiny_vit(seed=1))


@pytest.mark.parametrize("to_main", [True, False])
def test_nobody_elses_push_is_undone(hub, folders, original, monkeypatch, to_main):
    """Somebody pushes onto what is to be put back, before that happens."""
    hub.put(original, {".gitignore": b"*.safetensors"})
    branch, create, calls = "main" if to_main else BRANCH, HfApi.create_commit, []

    def overtaken(self, *args, **kwargs):
        found = create(self, *args, **kwargs)
        if not calls:
            calls.append(hub.put(original, {"theirs.txt": b"theirs"}, branch))
        return found

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(UnlearningError, match="somebody else has pushed to the branch since, so it was left as it is"):
        push(folders / "unlearned", original, revision=None if to_main else BRANCH, to_main=to_main)
    assert hub.branches(original)[branch] == calls[0] and "theirs.txt" in hub.files(original, branch)


def test_a_lossy_rollback(hub, original, pushed, monkeypatch):
    head, create = hub.files(original, BRANCH), HfApi.create_commit
    lost = []

    def lossy(self, repo_id, operations, **kwargs):
        if not lost:
            lost.extend(
                o for o in operations if isinstance(o, CommitOperationCopy) and o.path_in_repo.startswith("model")
            )
        return create(self, repo_id, [o for o in operations if o not in lost], **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", lossy)
    monkeypatch.setattr(hub, "put", None)
    with pytest.raises(UnlearningError, match=r"did not hold what was pushed \(model.safetensors\), and the branch"):
        rollback(original, BRANCH)
    assert len(lost) == 1 and hub.files(original, BRANCH) == head


def test_a_tag_that_is_not_there(hub, folders, original, monkeypatch):
    monkeypatch.setattr(HfApi, "create_tag", lambda self, *args, **kwargs: None)
    with pytest.raises(UnlearningError, match="the tag 'v2' was made, and is not there; try again"):
        push(folders / "unlearned", original, revision=BRANCH, tag="v2")


def test_a_metric_without_its_script(hub):
    push_metric("jsd", "me/jsd")
    before = hub.files("me/jsd", kind="spaces")
    hub.put("me/jsd", {".gitignore": b"*.py", "jsd.py": b"old", "app.py": b"old"}, kind="spaces")
    old = hub.files("me/jsd", kind="spaces")
    with pytest.raises(
        UnlearningError, match="The metric jsd was not pushed to me/jsd: .* did not hold what was pushed"
    ):
        push_metric("jsd", "me/jsd")
    assert hub.files("me/jsd", kind="spaces") == old
    HfApi().delete_file(".gitignore", "me/jsd", repo_type="space")
    push_metric("jsd", "me/jsd")
    assert hub.files("me/jsd", kind="spaces") == before


# ---------------------------------------------------------------------------------------------------------------------
# A purge takes what was shown


def test_a_plan_that_no_longer_holds(hub, original, pushed):
    """Between the plan and its confirmation: a push, a tag that goes, a tag that comes."""
    tag(original, "v1", revision=pushed.commit)

    def move_on():
        hub.put(original, {"notes.txt": b"later"}, BRANCH)

    changes = [
        move_on,
        lambda: HfApi().delete_tag(original, tag="v1"),
        lambda: tag(original, "v2", revision=pushed.commit),
    ]
    for change in changes:
        plan = purge_plan(original, BRANCH)
        change()
        history, large = hub.history(original, BRANCH), hub.large_files(original)
        with pytest.raises(
            UnlearningError, match=r"Nothing was done \(what was confirmed is another plan: something has"
        ):
            purge(original, BRANCH, confirm=plan.confirmation)
        assert hub.history(original, BRANCH) == history and hub.large_files(original) == large


@pytest.mark.parametrize("step", ["permanently_delete_lfs_files", "super_squash_history"])
@pytest.mark.parametrize("change", ["push", "tag"])
def test_a_change_in_the_middle_of_a_purge(hub, original, pushed, monkeypatch, step, change):
    plan, read, done = purge_plan(original, BRANCH), purging._check_unchanged, []

    def changed(repository, plan):
        if not done and (step.startswith("permanently") or plan.files.keys().isdisjoint(hub.large_files(original))):
            done.append(True)
            if change == "push":
                hub.put(original, {"notes.txt": b"later"}, BRANCH)
            else:
                HfApi().create_tag(original, tag="v1", revision=pushed.commit)
        read(repository, plan)

    monkeypatch.setattr(purging, "_check_unchanged", changed)
    large, history = hub.large_files(original), len(hub.history(original, BRANCH))
    with pytest.raises(
        UnlearningError, match="is at another commit than a moment ago, so the plan no longer holds; make"
    ):
        purge(original, BRANCH, confirm=plan.confirmation)
    assert done and len(hub.history(original, BRANCH)) == history + (change == "push")
    assert (hub.large_files(original) == large) is step.startswith("permanently")


def test_a_purge_that_changes_the_content(hub, original, pushed, monkeypatch):
    squash = HfApi.super_squash_history

    def strange(self, *args, **kwargs):
        squash(self, *args, **kwargs)
        hub.put(original, {"config.json": b"{}"}, BRANCH)

    monkeypatch.setattr(HfApi, "super_squash_history", strange)
    with pytest.raises(UnlearningError, match=r"the branch has another content than before \(config.json\)"):
        purge(original, BRANCH, confirm=purge_plan(original, BRANCH).confirmation)


# ---------------------------------------------------------------------------------------------------------------------
# What passes


@pytest.mark.slow
@pytest.mark.parametrize("how", [409, "drop"])
def test_single_failures_pass(hub, folders, how):
    """Every request of every command fails once."""
    steps = {
        "push": lambda name: push(folders / "unlearned", name, revision=BRANCH, tag="v1"),
        "list": list_revisions,
        "rollback": lambda name: rollback(name, BRANCH, to="main"),
        "tag": lambda name: tag(name, "v2", revision=BRANCH),
        "purge": lambda name: purge(name, "main", confirm=purge_plan(name, "main").confirmation),
    }
    publish(hub, "me/count", folders / "original")
    counts = {}
    for step, act in steps.items():
        hub.forget_requests()
        act("me/count")
        counts[step] = len(hub.requests)
    expected = hub.files("me/count", BRANCH)
    for step, count in counts.items():
        for n in range(1, count + 1):
            name = publish(hub, f"me/{step}-{how}-{n}", folders / "original")
            for earlier, act in steps.items():
                if earlier == step:
                    hub.fail(how, at=n, times=1)
                act(name)
                hub.recover()
            assert hub.files(name, BRANCH) == expected and hub.tags(name).keys() == {"v1", "v2"}, (step, n)


def test_a_card_that_is_refused(hub, folders, original, tmp_path):
    """With the Hub's own reason."""
    folder = shutil.copytree(folders / "original", tmp_path / "release")
    (folder / "README.md").write_bytes(CARD.replace(b"- machine-unlearning", b"- [machine-unlearning"))
    with pytest.raises(
        UnlearningError, match=r"the Hub refuses the metadata of README.md \(while parsing .*\); mend them in"
    ):
        push(folder, original, revision=BRANCH)


def test_commands_can_be_pasted(hub, folders, original, capsys):
    branch = "it's;a$(test)&"
    push(folders / "unlearned", original, revision=branch)
    hub.put(original, contents(folders / "other"), branch)
    assert cli.main(["purge", original, "--revision", branch]) == 0
    words = shlex.split(capsys.readouterr().out.rstrip().rpartition("To do it: ")[2])
    assert words == ["--confirm", purge_plan(original, branch).confirmation]


# ---------------------------------------------------------------------------------------------------------------------
# Whose names a release has


@pytest.mark.parametrize("asked", [False, True])
def test_a_private_parent(hub, folders, asked):
    """Its name goes into a public release only if that is allowed; a private one, and its own repository, may have it."""
    api = HfApi()
    for name, private in (("me/secret", True), ("me/open", False), ("me/closed", True)):
        api.create_repo(name, private=private)
    commit = hub.put("me/secret", contents(folders / "original"))
    about = {"revision": BRANCH, "parent": Parent("me/secret", commit)}
    if asked:
        push(folders / "unlearned", "me/open", **about, name_private_parent=True)
    else:
        with pytest.raises(
            UnlearningError, match="me/open is public, and the release names its parent me/secret, which is"
        ) as e:
            push(folders / "unlearned", "me/open", **about)
        assert "name_private_parent=True (--name-private-parent)" in str(e.value)
        assert list(hub.branches("me/open")) == ["main"]
    for name in ("me/closed", "me/secret"):
        push(folders / "unlearned", name, **about)
    with pytest.raises(UnlearningError, match="names its parent me/none, which is private or not there"):
        push(folders / "unlearned", "me/open", revision="b", parent=Parent("me/none", "main"))
