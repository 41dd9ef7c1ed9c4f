"""Requests that come one after the other, unlearned in batches: each batch a revision and a receipt on top of the last."""

import datetime as dates
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedModel

from .. import models
from ..api import UnlearningResult, unlearn
from ..errors import UnlearningError
from ..hub.canonical import read_receipt
from ..hub.names import AUDIT, AUDIT_PAGE, MAIN, check_names
from ..hub.receipt import SECRETS
from ..hub.release import prepare
from ..hub.repository import Parent
from ..hub.revisions import Pushed, push
from ..hub.sequence import evaluate_earlier
from ..hub.verification import Check, Verification, verify
from ..methods import MethodConfig
from ..tasks import TASKS
from ..training.arguments import UnlearningArguments
from ..training.output import COMPLETE, PRIVATE
from . import recipe, request_files, steps
from .drift import drift_of, drift_picture
from .recipe import RecipeArguments
from .request_files import DONE, FORMAT, MEASURED, RECIPE, Batch, Folder
from .request_samples import QueuedSamples
from .request_status import Policy, Status
from .settings import Setting, Unquoted, read_settings, settable, typed

PICTURE, RUN = "drift.svg", "run"
# What a queue decides by itself.
OWN = (
    *("output_dir", "forget_ids", "forget_labels", "forget_where", "forget_fraction", "resume", "merge", "tasks"),
    "resume_from_checkpoint",
)


class RequestQueue:
    """A folder of requests, with a recipe that says how each batch of them is unlearned.

    `queue.yaml` in it is a recipe (see `hf-unlearn run --help`) without what is to be forgotten, and with the fields of
    `Policy`, all optional. Requests name rows or ids of its dataset, nothing else is kept of the samples.

    Example:
        >>> queue = RequestQueue("requests")  # doctest: +SKIP
        >>> queue.add({"ticket-17": {"ids": ["u-2041"]}})  # doctest: +SKIP
        >>> queue.run()  # a batch, if one is due  # doctest: +SKIP
        >>> print(queue.status().summary())  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Folder(folder)
        file = self.folder.path / RECIPE
        if not file.is_file():
            raise UnlearningError(
                f"{folder} is no queue: it has no {RECIPE}; expected there a recipe, with lines such as `model: me/vit`, "
                "`dataset: me/pictures` and `method: lotus`."
            )
        settings = read_settings([], file)
        kinds = settable(Policy)
        self.policy = Policy(**{key: typed(key, settings[key], kinds[key]) for key in kinds if key in settings})
        self.settings = {key: setting for key, setting in settings.items() if key not in kinds}
        if given := [key for key in self.settings if key in OWN]:
            raise UnlearningError(f"{file} has {given[0]}, which a queue decides by itself; remove it.")
        self.recipe, _, args = self._settled({})
        self.samples = QueuedSamples(self.folder, self.recipe, args)
        if not args.measure:
            raise UnlearningError(f"{file} has measure, and measure is false; expected true, since drift is measured.")

    # -- Requests

    def add(self, requests: Mapping[str, Mapping[str, Any]] | str | os.PathLike[str]) -> list[str]:
        """Put requests into the queue, and give the names of those that were not there yet.

        Args:
            requests: {name: {"rows": [...]}} or {name: {"ids": [...]}}; or a file or a folder of such files (see
                `read_requests`). A name is never published, and stands for the same rows for ever.
        """
        found = self.read(requests)
        about = {
            "dataset": self.samples.about(),
            "added": _now().isoformat(timespec="seconds"),
            "size": self.samples.rows.size,
        }
        known, taken = self.folder.requests(), self.samples.taken()
        for name, request in found.items():
            if name not in known:  # else it has been looked at, and its rows may be gone since
                self.samples.rows.of(name, request | about, may_be_gone=taken)
        with self.folder.held("adding"):
            return self.folder.keep({name: request | about for name, request in found.items()})

    def read(
        self, requests: Mapping[str, Mapping[str, Any]] | str | os.PathLike[str]
    ) -> dict[str, dict[str, list[Any]]]:
        """Requests as `add` takes them, looked over and by name."""
        if isinstance(requests, Mapping):
            return {name: request_files.checked(name, item, "given") for name, item in requests.items()}
        return request_files.read_requests(requests, self.recipe.id_column is not None)

    def status(self) -> Status:
        requests, batches = self.folder.requests(), self.folder.batches()
        waiting = _waiting(requests, batches)
        age = _age(requests[waiting[0]]) if waiting else 0.0
        rows = []
        for batch in batches:
            measured, done = batch.measured or {}, batch.done
            about = {
                "number": batch.number,
                "requests": batch.requests,
                "samples": batch.samples,
                "began": batch.began,
            }
            about |= {
                "copies": measured.get("copies", 0),
                "drift": measured.get("drift"),
                "earlier": measured.get("earlier"),
                "is_done": done is not None,
            }
            rows.append(about | {"revision": done and done["pushed"] and done["pushed"]["revision"]})
        drifts = [row["drift"] for row in rows if row["drift"]]
        unfinished = any(not row["is_done"] for row in rows)
        unnamed = ([0] + [(batch.measured or {}).get("unnamed", 0) for batch in self.folder.released()])[-1]
        return Status(
            requests=len(requests),
            waiting=waiting,
            oldest_days=age,
            batches=rows,
            unnamed=unnamed,
            is_due=unfinished or self._is_due(waiting, age),
            retraining=self.policy.exceeded(drifts[-1]) if drifts else None,
        )

    def requested(self) -> np.ndarray:
        """The rows of all requests, waiting ones too, and those that hold copies of them, in rising order: what a retraining leaves
        out."""
        return self.samples.requested()

    # -- Batches

    def run(
        self, *, now: bool = False, push_to: str | None = None, private: bool | None = None, token: str | None = None
    ) -> list[Batch]:
        """Finish the batch that was begun, then unlearn one batch after the other as long as one is due; gives them.

        Args:
            now: do not wait until a batch is due.
            push_to: `OWNER/NAME` on the Hub that gets each batch as a revision; default: that of the recipe.
            private: whether a repository that does not exist is created as a private or a public one; default: not at all.
            token: default: the one of the login.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UnlearningError("A queue was started in several processes; expected one, without accelerate launch.")
        finished = []
        with self.folder.held("running"):
            address = self._address(push_to)
            for batch in self.folder.batches():
                if batch.done:  # and the process that did it was killed right then
                    shutil.rmtree(batch.folder / RUN, ignore_errors=True)
            while batch := self._next(now):
                self._finish(batch, address, private, token)
                finished.append(batch)
        return finished

    def verify(self, token: str | None = None) -> list[Verification]:
        """Each release held against its receipt, its parent, and the digest that the queue kept of the receipt, the first one
        first; on the Hub where it was pushed."""
        found, parent = [], self.recipe.model if Path(self.recipe.model).is_dir() else None
        held: set[str] = set()  # receipts whose chains hold: each chain is followed to the last of them
        for batch in self.folder.released():
            done = batch.done or {}
            where, revision = batch.release, None
            if pushed := done["pushed"]:
                where, revision = pushed["repo"], pushed["revision"]
            one = verify(where, revision=revision, parent=parent, held=held, token=token)
            if one.receipt and any(check.name == "chain" and check.passed for check in one.checks):
                held.add(one.receipt["digest"])
            is_kept = one.receipt is not None and one.receipt["digest"] == done["receipt"]
            same = (
                "the digest of the receipt is that of the batch"
                if is_kept
                else "it is another receipt than the batch's"
            )
            found.append(replace(one, checks=[*one.checks, Check("queue", is_kept, same)]))
            parent = None if pushed else batch.release  # a receipt names its parent on the Hub
        return found

    def picture(self) -> str:
        """The drift from batch to batch, beside its budget, as an SVG element."""
        rows = [(len(batch.requests), (batch.measured or {})["drift"]) for batch in self.folder.released()]
        return drift_picture(rows, self.policy)

    def _next(self, now: bool) -> Batch | None:
        """The batch that was begun; else a new one, if it is due."""
        batches, requests = self.folder.batches(), self.folder.requests()
        if unfinished := [batch for batch in batches if not batch.done]:
            return unfinished[0]
        waiting = _waiting(requests, batches)
        if not waiting or not (now or self._is_due(waiting, _age(requests[waiting[0]]))):
            return None
        chosen = waiting[: self.policy.batch_requests]
        return self.folder.begin(
            requests=chosen,
            samples=len(self.samples.new_rows(requests, chosen)),
            known=max(request["number"] for request in requests.values()),
            began=_now().isoformat(timespec="seconds"),
        )

    def _is_due(self, waiting: list[str], age: float) -> bool:
        return len(waiting) >= self.policy.batch_requests or bool(waiting and age >= self.policy.batch_days)

    def _finish(self, batch: Batch, address: str | None, private: bool | None, token: str | None) -> None:
        """The steps of a batch, but for those that a run before has done."""
        about: dict[str, Any] = {"receipt": None, "pushed": None}
        if batch.samples:  # else earlier batches have forgotten all of it
            if not batch.release.exists():
                self._unlearn(batch, address, token)
            receipt = read_receipt(batch.release)
            about["receipt"] = receipt["digest"]
            if address:
                parent = receipt["parent"] and Parent(receipt["parent"]["repo"], receipt["parent"]["commit"])
                where: dict[str, Any] = {"parent": parent, "private": private, "token": token}
                pushed = cast(Pushed, push(batch.release, address, revision=self._branch(batch), **where))
                about["pushed"] = {"repo": pushed.repo_id, "revision": pushed.revision, "commit": pushed.commit}
            request_files.copy(batch.folder / RUN / PRIVATE / SECRETS, batch.folder / SECRETS)
            for name in (AUDIT, AUDIT_PAGE):  # the whole of it, of which a part is published
                if (batch.folder / RUN / name).exists():
                    request_files.copy(batch.folder / RUN / name, batch.folder / name)
        request_files.write(batch.folder / DONE, {"format": FORMAT, **about})
        shutil.rmtree(batch.folder / RUN, ignore_errors=True)
        if batch.samples:
            (self.folder.path / PICTURE).write_text(self.picture() + "\n", encoding="utf-8")

    def _unlearn(self, batch: Batch, address: str | None, token: str | None) -> None:
        """From the last release to the next one."""
        released, changes = self.folder.released(), {"output_dir": str(batch.folder / RUN)}
        begun = released[0].measured if released else None  # what the first batch has found out
        if begun:
            changes |= {"model": str(released[-1].release), "revision": None}
            changes |= {"base_model": begun["base_model"]} if begun["base_model"] else {}
            self._check_original(begun["original"])
        settings, config, args = self._settled(changes)
        model, processing_class = steps.load_model(settings, args)
        task = TASKS[models.task_of(model)]
        if not task.is_audited:
            raise UnlearningError(
                f"The model is for {task.name}, and a queue measures what is left of earlier requests, which such a model does "
                f"not allow; expected one for {', '.join(name for name, kind in TASKS.items() if kind.is_audited)}."
            )
        earlier = self.samples.earlier()
        data, copied = self.samples.of_batch(batch, task)
        is_begun = any(Path(args.output_dir).glob(f"checkpoint-*/{COMPLETE}"))
        about: dict[str, Any] = steps.settings(settings, args, model, data)
        about |= {"merge": True, "resume_from_checkpoint": is_begun}
        result = unlearn(model, **data, method=config, args=args, processing_class=processing_class, **about)
        report = None if settings.audit is None else steps.audit_and_report(result, settings.audit)
        rows = evaluate_earlier(result, earlier) if earlier else []
        begun = begun or self._begun(result)
        content = {key: begun[key] for key in ("original", "base_model")}
        first = models.load_model(begun["original"]["model"], revision=begun["original"]["revision"], task=task.name)
        content |= {"drift": drift_of(result, first), "figures": result.metrics["after"]}
        content |= {"earlier": rows[0] if rows else None, "unnamed": self.samples.unnamed(), "copies": copied}
        request_files.write(batch.folder / MEASURED, {"format": FORMAT, **content})
        parent = self._parent(released[-1] if released else None, begun["original"])
        where: dict[str, Any] = {"repo_id": address, "revision": address and self._branch(batch), "token": token}
        prepare(result, batch.release, report=report, earlier=rows[1:], parent=parent, retained=False, **where)
        result.trainer.accelerator.end_training()

    def _begun(self, result: UnlearningResult) -> dict[str, Any]:
        """What every later batch has to know of the first one: the original, and where its training began.

        A method that goes back to that start would take the card of a release for it, which names the original.
        """
        config, start = cast(PreTrainedModel, models.base_of(result.run.model)).config, result.trainer.start
        is_local, base = Path(self.recipe.model).is_dir(), start.past.base if start else None
        revision = None if is_local else config._commit_hash or self.recipe.revision or MAIN
        return {
            "original": {"model": self.recipe.model, "revision": revision, "asked": self.recipe.revision},
            "base_model": base if isinstance(base, str) else None,
        }

    def _check_original(self, original: Mapping[str, Any]) -> None:
        now, then = (self.recipe.model, self.recipe.revision), (original["model"], original["asked"])
        if now != then:
            raise UnlearningError(
                f"{RECIPE} names the model {now[0]} (revision {now[1]}), and this queue began with {then[0]} (revision {then[1]}); "
                "put that back, or begin a new queue in another folder."
            )

    def _parent(self, previous: Batch | None, original: Mapping[str, Any]) -> Parent | Path:
        if previous is None:
            revision = original["revision"]
            return Parent(original["model"], revision) if revision else Path(original["model"])
        pushed = (previous.done or {})["pushed"]
        return Parent(pushed["repo"], pushed["commit"]) if pushed else previous.release

    # -- What the queue is made with

    def _settled(self, changes: Mapping[str, str | None]) -> tuple[RecipeArguments, MethodConfig, UnlearningArguments]:
        """The recipe of a batch."""
        own = {"forget_ids": str(self.folder.path / request_files.REQUESTS)} | dict(changes)
        values = {key: Unquoted("null") if value is None else value for key, value in own.items()}
        return recipe.read(self.settings | {key: Setting(value, "by the queue") for key, value in values.items()})

    def _branch(self, batch: Batch) -> str:
        return f"{self.recipe.push_revision or 'unlearned/batch'}-{batch.number:04}"

    def _address(self, push_to: str | None) -> str | None:
        """Where batches are pushed to, which is the same for all of them."""
        address = push_to or self.recipe.push_to
        if address:
            check_names(address, f"{self.recipe.push_revision or 'unlearned/batch'}-0001")
        for batch in self.folder.released():
            pushed = (batch.done or {})["pushed"]
            if (pushed and pushed["repo"]) != address:
                was = f"to {pushed['repo']}" if pushed else "nowhere"
                raise UnlearningError(
                    f"push_to is {address}, and batch {batch.number} was pushed {was}; expected the same for all batches, whose "
                    "receipts name each other."
                )
        return address


def _waiting(requests: Mapping[str, Any], batches: list[Batch]) -> list[str]:
    taken = {name for batch in batches for name in batch.requests}
    return [name for name in requests if name not in taken]


def _now() -> dates.datetime:
    return dates.datetime.now(dates.UTC)


def _age(request: Mapping[str, Any]) -> float:
    """In days."""
    return (_now() - dates.datetime.fromisoformat(request["added"])).total_seconds() / 86400
