"""Queues of requests: batches on top of each other, nothing lost and nothing done twice, killed wherever it may be."""

import copy
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file

from hf_unlearn import RequestQueue, UnlearningError, models, unlearn
from hf_unlearn import commands as cli
from hf_unlearn.commands import request_files, request_queue
from hf_unlearn.commands.drift import Budget, drift_of
from hf_unlearn.hub import check_inclusion, prove, verify
from tests.samples import arguments, images, request, same_bits
from tests.tiny import tiny_vit

REQUESTS = {"anna": [3, 17], "bert": [5], "carl": [17, 20, 21], "dora": [3, 5]}  # the last asks for nothing new


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A dataset with ids, and a model."""
    folder = tmp_path_factory.mktemp("place")
    train = images(32, seed=1).with_format(None)
    train = train.add_column("user", [f"u{row // 2}" for row in range(len(train))])
    unseen = images(24, seed=2).with_format(None).add_column("user", ["v"] * 24)
    datasets.DatasetDict({"train": train, "test": unseen}).save_to_disk(folder / "data")
    models.save_model(tiny_vit(), folder / "vit")
    return folder


def begun(folder: Path, place: Path, **changes: str | int) -> RequestQueue:
    folder.mkdir()
    quick = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "save_strategy": "no", "report_to": "none"}
    content = {"model": place / "vit", "dataset": place / "data", "method": "finetune", "disable_tqdm": "true"}
    content |= quick | {"batch_requests": 2} | changes
    (folder / "queue.yaml").write_text("".join(f"{key}: {value}\n" for key, value in content.items()))
    return RequestQueue(folder)


def rows(requests: dict[str, list[int]]) -> dict[str, dict[str, list[int]]]:
    return {name: {"rows": given} for name, given in requests.items()}


@pytest.fixture(scope="module")
def done(place, tmp_path_factory) -> Path:
    """Four requests in two batches, through the command line."""
    folder = tmp_path_factory.mktemp("done") / "queue"
    begun(folder, place)
    for name, given in REQUESTS.items():
        cli.main(["queue", "add", str(folder), "--rows", ",".join(map(str, given)), "--name", name])
    assert cli.main(["queue", "run", str(folder)]) == 0
    return folder


def weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def is_complete(queue: RequestQueue, requests: dict[str, list[int]]) -> None:
    """Every request is in one batch that is done, every row in one receipt, and each receipt follows the one before."""
    batches = queue.folder.batches()
    assert sorted(name for batch in batches for name in batch.requests) == sorted(requests)
    assert all(batch.done for batch in batches) and queue.status().waiting == []
    assert sum(batch.samples for batch in batches) == len({row for given in requests.values() for row in given})
    assert not [found for found in queue.verify() if found.failed]
    assert not list(queue.folder.path.glob("batches/*/run"))


@pytest.mark.slow
def test_two_batches(done, place, capsys):
    queue = RequestQueue(done)
    is_complete(queue, REQUESTS)
    first, second = queue.folder.batches()
    assert (first.requests, first.samples) == (["anna", "bert"], 3)
    assert (second.requests, second.samples) == (["carl", "dora"], 2)  # 17, 3 and 5 are forgotten
    assert list(queue.requested()) == [3, 5, 17, 20, 21]
    receipts = [json.loads((batch.release / "unlearning_receipt.json").read_text()) for batch in (first, second)]
    assert [receipt["forget"]["count"] for receipt in receipts] == [3, 2]
    assert receipts[1]["previous"]["receipt"] == receipts[0]["digest"] == first.done["receipt"]
    assert receipts[1]["weights"]["before"] == receipts[0]["weights"]["after"]
    run = json.loads((second.release / "metrics.json").read_text())["run"]
    assert run["request"]["samples"]["retain"] == 32 - 5

    measured = second.measured
    assert measured["drift"]["samples"] == 12 and 0 < measured["drift"]["jsd"] < np.log(2)
    assert measured["earlier"]["samples"] == 3 and measured["earlier"]["after"]["auc"] is not None
    assert receipts[1]["earlier"] == []  # of so few samples nothing is published
    assert (done / "drift.svg").read_text().startswith("<svg")
    data = datasets.load_from_disk(place / "data")["train"].with_format("torch")
    record = data.select([20]).select_columns(["pixel_values"])
    assert check_inclusion(receipts[1], record, prove(record, second.folder / "receipt_secrets.json"))
    assert (second.folder / "receipt_secrets.json").stat().st_mode & 0o777 == 0o600

    capsys.readouterr()
    assert cli.main(["queue", "status", str(done), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "4 requests: 4 done, 0 waiting" in said and "2 receipts hold, each with the release" in said
    assert "unchecked: records of 2" in said and "unchecked: parent" not in said
    assert cli.main(["queue", "add", str(done), "--rows", "3,17", "--name", "anna"]) == 0
    assert "0 requests added, 1 were there already" in capsys.readouterr().out
    assert queue.run(now=True) == []


def test_what_is_published_names_no_request(done):
    for path in done.glob("batches/*/release/*"):
        text = path.read_bytes()
        assert not [name for name in REQUESTS if name.encode() in text.lower()], path
        assert b"rows" not in text or path.suffix == ".md", path


def test_drift(done):
    first, last = ((batch.measured, batch.release) for batch in RequestQueue(done).folder.batches())
    before, after = (json.loads((release / "metrics.json").read_text()) for _, release in (first, last))
    drift = last[0]["drift"]
    assert drift["first"] == first[0]["drift"]["first"] == pytest.approx(before["before"]["unseen_accuracy"], abs=1e-3)
    assert drift["now"] == pytest.approx(after["after"]["unseen_accuracy"], abs=1e-3)

    result = unlearn(tiny_vit(), **request(), method="finetune", args=arguments(done.parent / "run", max_steps=1))
    name, rows = result.run.indices["evidence"]
    same = drift_of(result, copy.deepcopy(result.model))
    assert (same["jsd"], same["samples"]) == (0, len(rows)) and same["first"] == same["now"]
    measured = drift_of(result, tiny_vit())
    assert measured["jsd"] == result.run.evaluator.compare(tiny_vit(), result.model, name, rows)["jsd"] > 0
    retain = result.run.sources["retain"]
    retain.labels[:] = 1 + (retain.labels % 3)  # of class 0 nothing is left
    assert drift_of(result, tiny_vit())["samples"] == (result.run.sources[name].labels[rows] != 0).sum() < len(rows)
    retain.labels[:] = 99  # and then of none that an unseen sample is of
    assert drift_of(result, tiny_vit()) == {"jsd": None, "first": None, "now": None, "samples": 0}


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        ({"jsd": None, "first": None, "now": None}, None),
        ({"jsd": 0.05, "first": 0.9, "now": 0.885}, None),
        ({"jsd": 0.051, "first": 0.9, "now": 0.9}, "0.0510 (JSD) from the first original's, and the budget is 0.05."),
        ({"jsd": 0.0, "first": 0.9, "now": 0.875}, "0.025 below the first original's, and the budget is 0.02."),
    ],
)
def test_budget(drift, said):
    why = Budget().exceeded(drift)
    assert why is None if said is None else why.startswith("Retraining is due: ") and why.endswith(said)


def test_a_spent_budget_is_said(done, tmp_path, capsys):
    folder = Path(shutil.copytree(done, tmp_path / "queue"))
    with open(folder / "queue.yaml", "a") as file:
        file.write("drift_budget: 1e-9\n")
    assert cli.main(["queue", "status", str(folder)]) == 3
    assert "Retraining is due" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# When, and what is refused


def test_when_a_batch_is_due(place, tmp_path, monkeypatch):
    queue = begun(tmp_path / "queue", place, batch_requests=3, batch_days=2, overlap="allow")
    began = []
    monkeypatch.setattr(RequestQueue, "_finish", lambda self, batch, *_: began.append(write_done(batch)))
    queue.add(rows({"a": [0], "b": [1]}))
    assert not queue.status().is_due and queue.run() == []
    queue.add(rows({"c": [2], "d": [3]}))
    assert queue.status().is_due
    assert [batch.requests for batch in queue.run()] == [["a", "b", "c"]] and queue.status().waiting == ["d"]
    later = request_queue._now() + timedelta(days=2.5)
    monkeypatch.setattr(request_queue, "_now", lambda: later)
    assert queue.status().oldest_days == pytest.approx(2.5, abs=0.01)
    assert [batch.requests for batch in queue.run()] == [["d"]]
    queue.add(rows({"e": [4]}))
    assert queue.run() == [] and [batch.requests for batch in queue.run(now=True)] == [["e"]]
    assert len(began) == 3


def write_done(batch: request_files.Batch) -> None:
    request_files.write(batch.folder / "done.json", {"format": 1, "receipt": None, "pushed": None})


def test_ways_to_ask(place, tmp_path):
    queue = begun(tmp_path / "queue", place, id_column="user")
    folder = tmp_path / "asked"
    folder.mkdir()
    (folder / "a.txt").write_text("u1\nu3\n")
    (folder / "b.json").write_text('{"ids": ["u4"], "name": "x"}')
    (folder / "c.jsonl").write_text('{"ids": ["u5"]}\n{"rows": [9, 8]}\n')
    (folder / "notes.md").write_text("nothing")
    assert queue.add(folder) == ["a", "x", "c-1", "c-2"]
    assert queue.add(folder / "c.jsonl") == []  # they are there
    assert list(queue.requested()) == [2, 3, 6, 7, 8, 9, 10, 11]
    kept = json.loads((tmp_path / "queue" / "requests" / "a.json").read_text())
    assert kept["ids"] == ["u1", "u3"] and set(kept) == {"format", "number", "ids", "dataset", "added", "size"}


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ({"a": {"rows": [40]}}, "asks for row 40; expected 0 to 31"),
        ({"a": {"ids": ["u99"]}}, "asks for 'u99', which is not in the column 'user'"),
        ({"a": {"rows": [-1]}}, "The rows of the request 'a' (given) cannot be used"),
        ({"a": {"rows": []}}, "The rows of the request 'a' (given) cannot be used"),
        ({"a": {"ids": [True]}}, "The ids of the request 'a' (given) cannot be used"),
        ({"a": {"text": "me"}}, "has the keys text; expected"),
        ({"a": {"rows": [1], "ids": ["u1"]}}, "has the keys rows, ids; expected"),
        ({"../a": {"rows": [1]}}, "A request is called '../a' (given); expected letters"),
    ],
)
def test_requests_that_are_refused(place, tmp_path, requests, said):
    queue = begun(tmp_path / "queue", place, id_column="user")
    with pytest.raises(UnlearningError, match=re.escape(said)):
        queue.add({"good": {"rows": [1]}} | requests)
    assert queue.folder.requests() == {}  # all or none
    queue.add({"a": {"rows": [2]}})
    with pytest.raises(UnlearningError, match="has a request 'a' of other rows"):
        queue.add({"a": {"rows": [3]}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output_dir": "x"}, "has output_dir, which a queue decides by itself"),
        ({"forget_fraction": 0.1}, "has forget_fraction, which a queue decides by itself"),
        ({"batch_requests": 0}, "batch_requests is 0 and batch_days is 7.0"),
        ({"drift_budget": 0}, "drift_budget is 0.0; expected a number above 0"),
        ({"alhpa": 1}, "There is no setting 'alhpa'"),
        ({"measure": "false"}, "measure is false; expected true"),
    ],
)
def test_queues_that_are_refused(place, tmp_path, changes, said):
    with pytest.raises(UnlearningError, match=re.escape(said)):
        begun(tmp_path / "queue", place, **changes)


def test_a_queue_has_unseen_samples(place, tmp_path):
    queue = begun(tmp_path / "queue", place, dataset=tmp_path / "data")
    train = datasets.load_from_disk(place / "data")["train"]
    datasets.DatasetDict({"train": train}).save_to_disk(tmp_path / "data")
    with pytest.raises(UnlearningError, match="no split of samples that the model was not trained on.* unseen_split"):
        queue.add(rows({"a": [1]}))
    assert queue.folder.requests() == {}


def test_what_may_not_change(done, place, tmp_path):
    with pytest.raises(UnlearningError, match=r"is no queue: it has no queue\.yaml"):
        RequestQueue(tmp_path)
    folder = Path(shutil.copytree(done, tmp_path / "queue"))
    queue = RequestQueue(folder)
    with pytest.raises(UnlearningError, match="push_to is me/vit, and batch 1 was pushed nowhere"):
        queue.run(push_to="me/vit")
    with queue.folder.held("running"), pytest.raises(UnlearningError, match="Another process is running at"):
        queue.run()
    queue.add(rows({"e": [7]}))
    text = (folder / "queue.yaml").read_text()
    (folder / "queue.yaml").write_text(text.replace(str(place / "vit"), str(place / "other")))
    with pytest.raises(UnlearningError, match="names the model .*other .* and this queue began with"):
        RequestQueue(folder).run(now=True)
    shutil.rmtree(folder / "batches" / "0003")
    shutil.copytree(place / "data", tmp_path / "data")
    (folder / "queue.yaml").write_text(text.replace(str(place / "data"), str(tmp_path / "data")))
    with pytest.raises(UnlearningError, match="The request 'anna' is of .* and queue.yaml says otherwise"):
        RequestQueue(folder).requested()
    for path in folder.glob("requests/*.json"):
        path.write_text(path.read_text().replace(str(place / "data"), str(tmp_path / "data")))
    for rows_now, said in (
        (range(30), "The dataset has 30 rows, and had 32"),
        (range(31, -1, -1), "3 of the 3 rows of batch 1 hold other samples"),
    ):
        data = datasets.load_from_disk(place / "data")
        data["train"] = data["train"].select(rows_now)
        data.save_to_disk(tmp_path / "data")
        with pytest.raises(UnlearningError, match=said):
            RequestQueue(folder).run(now=True)


@pytest.mark.slow
def test_samples_of_ids_that_are_done(place, tmp_path):
    """They are deleted, and later others come."""
    full = datasets.load_from_disk(place / "data")
    copied = full["train"].select([*range(20), 2, *range(21, 32)]).remove_columns("user")  # u10 has a sample of u1
    full["train"] = copied.add_column("user", full["train"]["user"][:])

    def on_disk(train: datasets.Dataset) -> RequestQueue:
        datasets.DatasetDict({"train": train, "test": full["test"]}).save_to_disk(tmp_path / "data")
        return RequestQueue(tmp_path / "queue")

    about: dict = {"id_column": "user", "dataset": tmp_path / "data", "batch_requests": 1}
    begun(tmp_path / "queue", place, **about)
    queue = on_disk(full["train"])
    queue.add({"a": {"ids": ["u1"]}})
    assert list(queue.requested()) == [2, 3, 20]  # the copy too
    queue.run()
    queue = on_disk(full["train"].select([0, 1, *range(4, 32)]))  # without u1
    assert queue.add({"a": {"ids": ["u1"]}, "b": {"ids": ["u1", "u4"]}}) == ["b"]
    with pytest.raises(UnlearningError, match="'u99', which is not in the column"):
        queue.add({"c": {"ids": ["u1", "u99"]}})
    assert [batch.samples for batch in queue.run()] == [2]
    users = [{"u0": "u1"}.get(user, user) for user in full["train"]["user"]]  # two new samples of u1
    queue = on_disk(full["train"].remove_columns("user").add_column("user", users))
    queue.add({"c": {"ids": ["u5"]}})
    (batch,) = queue.run()
    run = json.loads((batch.release / "metrics.json").read_text())["run"]
    assert run["request"]["samples"] | {"forget": 2, "retain": 32 - 8 - 1} == run["request"]["samples"]
    assert batch.measured["earlier"]["samples"] == 4 and "1 copies left out of retain" in queue.status().summary()
    assert queue.status().unnamed == 2 and "2 rows of ids that are done were new" in queue.status().summary()
    queue.add({"d": {"ids": ["u1"]}})
    assert [batch.samples for batch in queue.run()] == [2] and queue.status().unnamed == 0
    assert sum(batch.samples for batch in queue.folder.batches()) == 8


# ---------------------------------------------------------------------------------------------------------------------
# On the Hub


@pytest.mark.slow
def test_each_batch_is_a_revision(place, tmp_path, hub):
    HfApi().create_repo("me/vit")
    HfApi().upload_folder(repo_id="me/vit", folder_path=place / "vit")
    queue = begun(tmp_path / "queue", place, batch_requests=1, model="me/vit", push_to="me/vit")
    queue.add(rows({"anna": [3, 17], "bert": [5]}))
    hub.fail("drop", fits="POST .*/commit/")
    with pytest.raises(UnlearningError, match="was not pushed to me/vit"):
        queue.run()
    hub.recover()
    release = weights(queue.folder.batches()[0].release)
    queue.run()  # it goes on with the push
    is_complete(queue, {"anna": [3, 17], "bert": [5]})
    branches = hub.branches("me/vit")
    assert sorted(branches) == ["main", "unlearned/batch-0001", "unlearned/batch-0002"]
    first, second = (batch.done["pushed"]["commit"] for batch in queue.folder.batches())
    assert (branches["unlearned/batch-0001"], branches["unlearned/batch-0002"]) == (first, second)
    assert same_bits(release, weights(queue.folder.batches()[0].release))
    found = verify("me/vit", revision="unlearned/batch-0002")
    assert found.ok and "1 earlier receipts hold" in [check.sentence for check in found.checks]
    kept = queue.folder.batches()[0].folder / "done.json"
    kept.write_text(kept.read_text().replace(queue.folder.batches()[0].done["receipt"], "0" * 64))
    verified = queue.verify()
    assert [found.failed for found in verified] == [["queue"], []]  # the branch holds another release
    chains = [check.sentence for found in verified for check in found.checks if check.name == "chain"]
    assert chains == ["it is the first request", "the receipt before holds, and so do all before it"]
    for where, content in hub.sent():
        assert b"anna" not in content and b"bert" not in content, where


# ---------------------------------------------------------------------------------------------------------------------
# Killed


STEPS = (
    *("anna.json", "carl.json", "batch.json", "unlearn", "evaluate_earlier", "measured.json", "prepare"),
    *("receipt_secrets.json", "done.json", "run"),
)


def asked_at_each_step(kill: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `kill` asked before and after each step of a queue."""

    def around(owner, name: str, label: Callable[..., str]):
        step = getattr(owner, name)

        def stepped(*args, **kwargs):
            kill(f"before {label(*args)}")
            value = step(*args, **kwargs)
            kill(f"after {label(*args)}")
            return value

        monkeypatch.setattr(owner, name, stepped)

    around(os, "replace", lambda source, target: Path(target).name)
    around(request_queue.shutil, "rmtree", lambda path, *_: Path(path).name)
    for name in ("unlearn", "evaluate_earlier", "prepare"):
        around(request_queue, name, lambda *_, name=name: name)


def killed(work: Callable[[], None], marks: Path) -> bool:
    """Do the work in a process that is killed at the first step where none was killed yet; whether one was."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with pytest.MonkeyPatch.context() as patch:

                def kill(label: str) -> None:
                    mark = marks / label
                    if label.split()[1] in STEPS and not mark.exists():
                        mark.touch()
                        os.kill(os.getpid(), signal.SIGKILL)

                asked_at_each_step(kill, patch)
                work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.slow
def test_killed_at_every_step(done, place, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    begun(tmp_path / "queue", place)
    while killed(lambda: RequestQueue(tmp_path / "queue").add(rows(REQUESTS)) and None, marks):
        RequestQueue(tmp_path / "queue").status()
    while killed(lambda: RequestQueue(tmp_path / "queue").run() and None, marks):
        RequestQueue(tmp_path / "queue").status()
    assert {mark.name for mark in marks.iterdir()} == {
        f"{when} {step}" for step in STEPS for when in ("before", "after")
    }
    queue = RequestQueue(tmp_path / "queue")
    is_complete(queue, REQUESTS)
    for killed_batch, batch in zip(queue.folder.batches(), RequestQueue(done).folder.batches(), strict=True):
        assert killed_batch.requests == batch.requests
        assert same_bits(weights(killed_batch.release), weights(batch.release))
