"""`verify`: does a release hold what its receipt says, and was it made from what the receipt says?

Every check ends in passed, failed, or not checked with the reason; what was not checked never counts as passed.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from safetensors import safe_open
from yaml import YAMLError

from .. import models
from ..errors import UnlearningError
from . import merkle, signing
from .canonical import body, canonical, digest_of, read_json, read_receipt
from .card import read_card, results, with_uis
from .client import check_token
from .names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, CONFIG, METRICS, PROCESSORS, RECEIPT, WEIGHTS_INDEX, fits
from .receipt import Secrets, file_digest, fixed_files, method_digests, record_digests
from .sequence import is_named, predecessors
from .weights import HUB_ERRORS, fetch_weights, files_in, saved_digest, weight_files


class Check(NamedTuple):
    """One question and its answer: passed is None where it was not checked, and the sentence says why."""

    name: str
    passed: bool | None
    sentence: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found out.

    Attributes:
        what: the folder, or the repository and commit.
        receipt: as it was read; None if it could not be.
        checks: in the order they were made.
    """

    what: str
    receipt: dict[str, Any] | None
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether nothing failed. What was not checked is in `unchecked`."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        return [check.name for check in self.checks if check.passed is False]

    @property
    def unchecked(self) -> list[str]:
        return [check.name for check in self.checks if check.passed is None]

    @property
    def line(self) -> str:
        """One line: the first failure with its reason and the names of the others, or what holds; what was not checked."""
        failures = [check for check in self.checks if check.passed is False]
        if failures:
            words = f"FAILED {failures[0].name}: {failures[0].sentence}."
            if others := ", ".join(check.name for check in failures[1:]):
                words += f" Failed too: {others}."
            skipped = ", ".join(self.unchecked)
        else:
            words = f"Verified: {', '.join(check.name for check in self.checks if check.passed)}."
            skipped = "; ".join(f"{check.name} ({check.sentence})" for check in self.checks if check.passed is None)
        line = f"{self.what}: {words}" + (f" Not checked: {skipped}." if skipped else "")
        return "".join(c if c.isprintable() else "?" for c in line)  # names in a receipt may be anything

    def __str__(self) -> str:
        return self.line


class _Failed(Exception):
    """A check found that something is not as the receipt says."""


class _Unchecked(Exception):
    """What a check needs cannot be had."""


def verify(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    forget: Any = None,
    secrets: str | Path | None = None,
    parent: str | Path | None = None,
    public_key: str | Path | None = None,
    token: str | None = None,
) -> Verification:
    """Recompute everything that a release's receipt says and that can be had.

    Args:
        repo_or_folder: a Hub id or a local folder.
        revision: branch, tag or commit on the Hub; default: main.
        forget: records that are said to have been in the request (some of them, or all), with `secrets`.
        secrets: the `receipt_secrets.json` that was written beside the run.
        parent: what the model was unlearned from, where it is not to be fetched from where the receipt says: a folder,
            or a Hub id with the commit behind an @.
        public_key: a PEM file with the Ed25519 key that must have signed the receipt.
    """
    check_token(token)
    if (forget is None) != (secrets is None):
        raise UnlearningError(
            f"{'secrets' if forget is None else 'forget'} is given alone; expected the records and the secrets of the "
            "receipt together."
        )
    release = _Release.open(repo_or_folder, revision, token)
    if not (release.folder / RECEIPT).is_file():
        raise UnlearningError(f"{release.what} holds no {RECEIPT}; pass a release that hf_unlearn wrote.")
    try:
        receipt = read_receipt(release.folder)
    except UnlearningError as error:
        return Verification(release.what, None, [Check("receipt", False, str(error).rstrip("."))])
    origin = _Origin(receipt["parent"], parent, token)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("receipt", lambda: _check_digest(receipt)),
        ("signature", lambda: _check_signature(receipt, public_key)),
        ("weights", lambda: _check_weights(receipt, release.folder)),
        ("metrics", lambda: _check_metrics(receipt, release.folder)),
        ("configuration", lambda: _check_configuration(receipt, release.folder)),
        ("files", lambda: _check_files(receipt, release, token)),
        ("history", lambda: _check_history(receipt, release, token)),
        ("parent", lambda: _check_parent(receipt, origin)),
        ("chain", lambda: _check_chain(receipt, origin, token)),
        ("records", lambda: _check_records(receipt, forget, secrets)),
    ]
    return Verification(release.what, receipt, [_made(name, step) for name, step in steps])


def _made(name: str, step: Callable[[], str]) -> Check:
    try:
        return Check(name, True, step())
    except _Unchecked as reason:
        return Check(name, None, str(reason))
    except _Failed as failure:
        return Check(name, False, str(failure))


# ---------------------------------------------------------------------------------------------------------------------
# What is checked, and against what


@dataclass(frozen=True)
class _Release:
    folder: Path
    repo: str | None = None
    commit: str | None = None

    @property
    def what(self) -> str:
        return f"{self.repo} at {self.commit[:12]}" if self.repo else str(self.folder)

    @classmethod
    def open(cls, repo_or_folder: str | Path, revision: str | None, token: str | None) -> "_Release":
        name = str(repo_or_folder)
        if Path(name).is_dir():
            if revision is not None:
                raise UnlearningError(f"{name!r} is a folder, which has no revision {revision!r}; leave revision out.")
            return cls(Path(name))
        try:
            commit = HfApi(token=token).repo_info(name, revision=revision).sha
            return cls(Path(snapshot_download(name, revision=commit, token=token)), name, commit)
        except HUB_ERRORS as error:
            raise UnlearningError(models.explain(error, name, revision)) from error


class _Origin:
    """The parent's folder, fetched when a check first asks for it."""

    def __init__(self, claimed: dict[str, str] | None, given: str | Path | None, token: str | None):
        self.claimed, self.given, self.token = claimed, given, token

    @cached_property
    def folder(self) -> Path:
        return self._from_claim() if self.given is None else self._from_given(str(self.given))

    def _from_claim(self) -> Path:
        if self.claimed is None:
            raise _Unchecked("the receipt names no parent on the Hub; pass its folder as parent")
        repo, commit = self.claimed["repo"], self.claimed["commit"]
        try:
            return fetch_weights(repo, commit, self.token)
        except HUB_ERRORS as error:
            raise _Unchecked(models.explain(error, f"{repo}@{commit}", commit).rstrip(".")) from None

    def _from_given(self, given: str) -> Path:
        if Path(given).is_dir():
            return Path(given)
        repo, _, revision = given.partition("@")
        try:
            commit = HfApi(token=self.token).repo_info(repo, revision=revision or None).sha
            folder = fetch_weights(repo, commit, self.token)
        except HUB_ERRORS as error:
            raise UnlearningError(models.explain(error, repo, revision or None)) from error
        if self.claimed and (repo, commit) != (self.claimed["repo"], self.claimed["commit"]):
            raise _Failed(
                f"the given parent is {repo} at {commit[:12]}, and the receipt names {self.claimed['repo']} at "
                f"{self.claimed['commit'][:12]}"
            )
        return folder


def _check_digest(receipt: dict[str, Any]) -> str:
    if receipt["digest"] != digest_of(body(receipt)):
        raise _Failed("its content was changed after its digest was written")
    return "the receipt has its own digest"


def _check_signature(receipt: dict[str, Any], public_key: str | Path | None) -> str:
    vouched = None if public_key is None else signing.load_public_key(public_key)
    if "signature" not in receipt:
        if vouched:
            raise _Failed("the receipt is not signed")
        raise _Unchecked("the receipt is not signed")
    signature = receipt["signature"]
    if not signing.is_installed():
        raise _Unchecked("that needs the package cryptography: pip install 'hf_unlearn[sign]'")
    if not signing.is_signed(canonical(body(receipt)), signature):
        raise _Failed("it does not belong to this content and this key")
    if vouched is None:
        raise _Unchecked(f"signed by the key {signature['fingerprint']}, which you did not vouch for; pass public_key")
    if signature["fingerprint"] != signing.fingerprint(vouched):
        raise _Failed(f"signed by another key than the given one, {signature['fingerprint']}")
    return f"signed by the given key, {signature['fingerprint']}"


def _check_weights(receipt: dict[str, Any], folder: Path) -> str:
    if (found := _digest(folder)) != receipt["weights"]["after"]:
        raise _Failed(f"their digest is {found[:12]}…, and in the receipt it is {receipt['weights']['after'][:12]}…")
    names = weight_files(files_in(folder))
    adapters = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name == ADAPTER_WEIGHTS}
    configured = {path.parent for path in map(PurePosixPath, receipt["files"]) if path.name == ADAPTER_CONFIG}
    if adapters != configured or (adapters and len(names) > len(adapters)):  # the digest is of all tensors together
        raise _Failed("they are not in the files that they belong in, so something else would be loaded")
    if len(names) > 1 and not adapters:
        _check_index(folder, names)
    return "the weights have the digest in the receipt"


def _check_index(folder: Path, shards: list[str]) -> None:
    """A shard that the index does not name is not loaded."""
    stored = {}
    for shard in shards:
        with safe_open(folder / shard, framework="pt") as file:
            stored |= dict.fromkeys(file.keys(), shard)
    if _content(folder, WEIGHTS_INDEX).get("weight_map") != stored:
        raise _Failed(f"{WEIGHTS_INDEX} names other tensors than the shards hold")


def _digest(folder: Path) -> str:
    try:
        return saved_digest(folder)
    except UnlearningError as error:
        raise _Failed(str(error).rstrip(".")) from error


def _content(folder: Path, name: str) -> Any:
    try:
        content = read_json(folder / name)
    except UnlearningError as error:
        raise _Failed(str(error).rstrip(".")) from error
    if not isinstance(content, Mapping):
        raise _Failed(f"{name} is no JSON object")
    return content


def _check_metrics(receipt: dict[str, Any], folder: Path) -> str:
    found = _content(folder, METRICS)
    for when, figures in receipt["metrics"].items():
        stored = found.get(when)
        if figures == stored:
            continue
        if not (isinstance(figures, Mapping) and isinstance(stored, Mapping)):
            raise _Failed(f"the figures {when} are in only one of {METRICS} and the receipt")
        key = next(k for k in sorted({*figures, *stored}) if figures.get(k) != stored.get(k) or k not in figures)
        raise _Failed(f"{key} {when} is {stored.get(key)} in {METRICS} and {figures.get(key)} in the receipt")
    return f"the figures are those of {METRICS}" + _check_card(receipt, found.get("run") or {}, folder)


def _check_card(receipt: dict[str, Any], run: Mapping[str, Any], folder: Path) -> str:
    """The figures in the metadata of a card, which the Hub shows, are the receipt's; those of somebody else are let be."""
    try:
        card = read_card(folder / CARD)
    except (OSError, ValueError, YAMLError):
        raise _Failed(f"the metadata of {CARD} cannot be read") from None
    shown = [
        (result["dataset"]["type"], metric["type"], metric["value"])
        for model in card.get("model-index") or []
        for result in model["results"]
        for metric in result["metrics"]
        if result["dataset"]["type"].startswith("unlearning-")
    ]
    before, after = receipt["metrics"]["before"], receipt["metrics"]["after"]
    columns = with_uis(
        {"original": before or {}, "unlearned": after or {}}, run.get("request", {}).get("kind") == "class"
    )
    known = {
        (r.dataset_type, r.metric_type): r.metric_value for r in results(columns["unlearned"], run.get("task") or "")
    }
    for dataset, metric, value in shown:
        if (expected := known.get((dataset, metric))) is None or not _is_close(value, expected):
            raise _Failed(f"{metric} ({dataset}) is {value} in {CARD} and {expected} by the receipt")
    return f" and of {CARD}" if shown else ""


def _is_close(value: Any, expected: float) -> bool:
    return isinstance(value, (int, float)) and math.isclose(value, expected, rel_tol=1e-3, abs_tol=1e-9)


def _check_configuration(receipt: dict[str, Any], folder: Path) -> str:
    try:
        found = method_digests(_content(folder, CONFIG))
    except KeyError as error:
        raise _Failed(f"{CONFIG} has no {error.args[0]}") from None
    for key, value in receipt["method"].items():
        if found.get(key) != value:
            raise _Failed(f"the method's {key} in {CONFIG} is not that of the receipt")
    return f"method, configuration and training are those of {CONFIG}"


def _check_files(receipt: dict[str, Any], release: _Release, token: str | None) -> str:
    files, present = receipt["files"], fixed_files(files_in(release.folder))
    problems = [f"{name} is missing" for name in sorted(set(files) - set(present))]
    strange = [name for name in present if name not in files]
    kept = _kept_from_parent([name for name in strange if fits(name, PROCESSORS)], receipt["parent"], release, token)
    problems += [f"{name} is not in the receipt" for name in strange if name not in kept]
    changed = (name for name in present if name in files and file_digest(release.folder / name) != files[name])
    problems += [f"{name} was changed" for name in changed]
    if problems:
        raise _Failed("; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else ""))
    words = f"all {len(files)} other files have the digests in the receipt"
    return words + (f", and {', '.join(sorted(kept))} as the parent has it" if kept else "")


def _kept_from_parent(
    names: list[str], parent: dict[str, str] | None, release: _Release, token: str | None
) -> set[str]:
    """Those files that are the very same in the parent: a branch keeps its parent's processor if the release has none."""
    if not names or parent is None or release.repo != parent["repo"]:
        return set()
    api = HfApi(token=token)
    try:
        now, before = (
            {info.path: info.blob_id for info in api.get_paths_info(release.repo, names, revision=commit)}
            for commit in (release.commit, parent["commit"])
        )
    except HUB_ERRORS:
        return set()
    return {name for name in names if now[name] == before.get(name)}


def _check_history(receipt: dict[str, Any], release: _Release, token: str | None) -> str:
    """On the Hub, the parent must be an ancestor of the release."""
    parent = receipt["parent"]
    if release.repo is None:
        raise _Unchecked("a folder has no commits")
    if parent is None or parent["repo"] != release.repo:
        raise _Unchecked("the parent is not in this repository" if parent else "the receipt names no parent")
    try:
        commits = [c.commit_id for c in HfApi(token=token).list_repo_commits(release.repo, revision=release.commit)]
    except HUB_ERRORS as error:
        raise _Unchecked(models.explain(error, release.repo, release.commit).rstrip(".")) from None
    if len(commits) == 1:
        raise _Unchecked("the history of this branch was cut off, as a purge does")
    if parent["commit"] not in commits[1:]:
        raise _Failed(f"the parent {str(parent['commit'])[:12]} is none of the commits before {release.commit[:12]}")
    return "the parent is one of the commits before"


def _check_parent(receipt: dict[str, Any], origin: _Origin) -> str:
    folder, expected = origin.folder, receipt["weights"]["before"]
    if expected is None:
        raise _Unchecked("the receipt has no digest of the weights before")
    if (found := _digest(folder)) != expected:
        raise _Failed(
            f"the parent's weights have the digest {found[:12]}…, and in the receipt those before are {expected[:12]}…"
        )
    return "the parent's weights have the digest in the receipt"


def _check_chain(receipt: dict[str, Any], origin: _Origin, token: str | None) -> str:
    """Each receipt names the one before by its digest, and begins with the weights that one ended with."""
    link = receipt["previous"]
    if link is None or link["receipt"] is None:
        if not (origin.folder / RECEIPT).is_file():
            return "it is the first request"
        if link is None:
            raise _Failed("the parent has a receipt, and this one does not name it")
        raise _Unchecked("the receipt was written without a connection and does not name that of the parent")
    if link["repo"] is None or origin.given is not None:
        before = _earlier(origin.folder)
        _check_link(receipt, link, before)
        count, receipt = 1, before
    else:
        count = 0
    try:
        for link, before in predecessors(receipt, token):
            _check_link(receipt, link, before)
            count, receipt = count + 1, before
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        link = receipt["previous"]
        raise _Failed(
            f"{link['repo']} has no receipt at {str(link['commit'])[:12]}, which its successor names"
        ) from None
    except HUB_ERRORS as error:
        link = receipt["previous"]
        reason = models.explain(error, f"{link['repo']}@{link['commit']}", link["commit"]).rstrip(".")
        raise _Unchecked(f"{count} earlier receipts hold, and of the one before, {reason}") from None
    except UnlearningError as error:
        raise _Failed(str(error).rstrip(".")) from error
    if receipt["previous"]:
        raise _Unchecked(f"{count} earlier receipts hold, and the last of them does not say where the one before is")
    return f"{count} earlier receipts hold"


def _earlier(folder: Path) -> dict[str, Any]:
    if not (folder / RECEIPT).is_file():
        raise _Failed("the receipt names a predecessor, and the parent has no receipt")
    try:
        return read_receipt(folder)
    except UnlearningError as error:
        raise _Failed(str(error).rstrip(".")) from error


def _check_link(receipt: dict[str, Any], link: dict[str, Any], before: dict[str, Any]) -> None:
    where = f"the receipt at {link['commit'][:12]}" if link["commit"] else "the parent's receipt"
    if not is_named(before, link):
        raise _Failed(f"{where} is not the one that its successor names")
    if before["weights"]["after"] != receipt["weights"]["before"]:
        raise _Failed(f"{where} ends with other weights than its successor begins with")


def _check_records(receipt: dict[str, Any], forget: Any, secrets: str | Path | None) -> str:
    if forget is None:
        raise _Unchecked("no records and secrets were given")
    known = Secrets.load(secrets)
    root, count = receipt["forget"]["root"], receipt["forget"]["count"]
    if len(known.records) != count or merkle.root(known.leaves).hex() != root:
        raise _Failed("the given secrets are of another receipt")
    given, asked = Counter(record_digests(forget, known.columns)), Counter(known.records)
    if strangers := (given - asked).total():
        raise _Failed(f"{strangers} of the {given.total()} given records were not in the request")
    return f"{given.total()} of the {count} records of the request were given, and all of them were in it"
