"""Whether what is in a release is what its receipt says: weights, figures, configuration, card and every other file."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

from safetensors import safe_open

from .. import __version__
from ..errors import UnlearningError
from .canonical import misfits, read_json
from .card import make_card, results, with_uis
from .card_parts import HOW_TO_LOAD, PLACED, CardParts, parts_of, read_parts
from .client import HUB_ERRORS, is_absent, reader
from .names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AUDIT, CARD, CONFIG, MAIN, METRICS, PROCESSORS, WEIGHTS_INDEX, fits
from .receipt import file_digest, is_document, method_digests, plain_files
from .repository import Blob, Parent, Repository
from .subject import Failed, Subject, Unchecked
from .weights import saved_digest, saved_metadata, weight_files

RUN = {"task?": (str, None), "request?": ({"kind?": (str, None)}, None)}
SHAPES = {
    AUDIT: {},
    METRICS: {"before?": (dict, None), "after?": (dict, None), "run?": (RUN, None)},
    CONFIG: {"method": str, "config": dict},
    WEIGHTS_INDEX: {"weight_map": dict, "metadata?": dict},
}


def read_checked(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a release, with what it must have."""
    try:
        content = read_json(folder / name)
    except UnlearningError as error:
        raise Failed(str(error).rstrip(".")) from error
    if misfit := next(misfits(content, SHAPES[name], "it"), None):
        raise Failed(f"{name} is not as hf_unlearn writes it: {misfit}")
    return content


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def digest_in(folder: Path) -> str:
    try:
        return saved_digest(folder)
    except UnlearningError as error:
        raise Failed(str(error).rstrip(".")) from error


def check_weights(receipt: dict[str, Any], release: Subject) -> str:
    folder, stated = release.folder, receipt["weights"]
    if (found := digest_in(folder)) != stated["after"]:
        raise Failed(f"their digest is {found[:12]}…, and in the receipt it is {stated['after'][:12]}…")
    names = weight_files(release.files())
    adapters = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name == ADAPTER_WEIGHTS}
    configured = {path.parent for path in map(PurePosixPath, receipt["files"]) if path.name == ADAPTER_CONFIG}
    if adapters != configured or (adapters and len(names) > len(adapters)):  # the digest is of all tensors together
        raise Failed("they are not in the files that they belong in, so something else would be loaded")
    if len(names) > 1 and not adapters:
        _check_index(folder, names)
    elif WEIGHTS_INDEX in release.files():
        raise Failed(f"{WEIGHTS_INDEX} is there, and the weights are not in shards")
    if "metadata" not in stated:
        release.uncovered.append("the metadata in the headers of the weights")
    elif (metadata := saved_metadata(folder)) != stated["metadata"]:
        raise Failed(f"the metadata in their headers are {metadata}, and in the receipt {stated['metadata']}")
    return "the weights have the digest in the receipt"


def _check_index(folder: Path, shards: list[str]) -> None:
    """A shard that the index does not name is not loaded."""
    stored = {}
    for shard in shards:
        with safe_open(folder / shard, framework="pt") as file:
            stored |= dict.fromkeys(file.keys(), shard)
    index = read_checked(folder, WEIGHTS_INDEX)
    if index["weight_map"] != stored:
        raise Failed(f"{WEIGHTS_INDEX} names other tensors than the shards hold")
    sizes = index.get("metadata", {})
    if index.keys() - {"weight_map", "metadata"} or not all(isinstance(size, (int, float)) for size in sizes.values()):
        raise Failed(f"{WEIGHTS_INDEX} says more than where the tensors are and how large they are")


# ---------------------------------------------------------------------------------------------------------------------
# Figures and configuration


def check_metrics(receipt: dict[str, Any], release: Subject) -> str:
    found = read_checked(release.folder, METRICS)
    for when, figures in receipt["metrics"].items():
        stored = found.get(when)
        if figures == stored:
            continue
        if figures is None or stored is None:
            raise Failed(f"the figures {when} are in only one of {METRICS} and the receipt")
        key = next(k for k in sorted({*figures, *stored}) if figures.get(k) != stored.get(k) or k not in figures)
        raise Failed(f"{key} {when} is {stored.get(key)} in {METRICS} and {figures.get(key)} in the receipt")
    return f"the figures are those of {METRICS}"


def check_configuration(receipt: dict[str, Any], release: Subject) -> str:
    found = method_digests(read_checked(release.folder, CONFIG))
    for key, value in receipt["method"].items():
        if found.get(key) != value:
            raise Failed(f"the method's {key} in {CONFIG} is not that of the receipt")
    return f"method, configuration and training are those of {CONFIG}"


# ---------------------------------------------------------------------------------------------------------------------
# The card


def check_card(receipt: dict[str, Any], release: Subject) -> str:
    """The card is the one that the receipt commits to, but for sections that somebody has added."""
    path, stated = release.folder / CARD, receipt.get("card")
    if not path.is_file():
        if stated:
            raise Failed(f"{CARD} is missing")
        return "the release has no card"
    if receipt["format"] > 1 and stated is None:
        raise Failed(f"{CARD} is not in the receipt")
    try:
        card = read_parts(path)
    except UnlearningError as error:
        raise Failed(str(error).rstrip(".")) from error
    check_parts(receipt, card, release)
    if stated is None:
        release.uncovered.append(f"{CARD} but for the figures in its metadata")
        return f"the figures in the metadata of {CARD} are those of the receipt"
    return f"{CARD} is the one that the receipt commits to"


def check_parts(receipt: dict[str, Any], card: CardParts, release: Subject) -> None:
    """The same of a card in its parts, which need not be in the release yet."""
    _check_shown_figures(receipt, card, release.folder)
    if (stated := receipt.get("card")) is None:
        return
    found = card.digests()
    if changed := _differences(found["metadata"], stated["metadata"]):
        raise Failed(f"{changed[0]} in the metadata of {CARD} is not as the receipt has it")
    if changed := _differences(found["sections"], stated["sections"], added=False):
        raise Failed(f"{changed[0]!r} in {CARD} was changed or is missing")
    added = sorted(found["sections"].keys() - stated["sections"].keys())
    release.uncovered.extend(f"the section {name!r} of {CARD}, which was added to it" for name in added)
    if card.is_annotated:
        release.uncovered.append(f"comments, anchors and tags in the metadata of {CARD}")
    _check_base(card)
    if HOW_TO_LOAD not in stated["sections"]:
        repo, revision = _check_place(receipt, card, release)
        _check_address(repo, revision, release)


def _differences(found: dict[str, str], stated: dict[str, str], added: bool = True) -> list[str]:
    keys = {*found, *stated} if added else stated
    return sorted(key for key in keys if found.get(key) != stated.get(key))


def _check_shown_figures(receipt: dict[str, Any], card: CardParts, folder: Path) -> None:
    """The figures in the metadata, which the Hub shows, are the receipt's."""
    run = read_checked(folder, METRICS).get("run") or {}
    columns = with_uis(
        {"original": receipt["metrics"]["before"] or {}, "unlearned": receipt["metrics"]["after"] or {}},
        (run.get("request") or {}).get("kind") == "class",
    )
    known = {
        (r.dataset_type, r.metric_type): r.metric_value for r in results(columns["unlearned"], run.get("task") or "")
    }
    for dataset, metric, value in _shown_figures(card):
        expected = known.get((dataset, metric))
        if expected is None and not dataset.startswith("unlearning-"):
            continue  # somebody else's, of which only a receipt that commits to the metadata can say anything
        if expected is None or not _is_close(value, expected):
            raise Failed(f"{metric} ({dataset}) is {value} in {CARD} and {expected} by the receipt")


def _shown_figures(card: CardParts) -> Iterator[tuple[str, str, str]]:
    for model in card.results:
        for result in model if isinstance(model, list) else [model]:
            try:
                for metric in result["metrics"]:
                    yield str(result["dataset"]["type"]), str(metric["type"]), str(metric["value"])
            except (KeyError, TypeError, IndexError):
                raise Failed(f"model-index in the metadata of {CARD} is not as hf_unlearn writes it") from None


def _is_close(value: str, expected: float) -> bool:
    try:
        return math.isclose(float(value), expected, rel_tol=1e-3, abs_tol=1e-9)
    except ValueError:
        return False


def _check_base(card: CardParts) -> None:
    """A card names the parent as its base, or in the parent's own repository the base of that."""
    bases = set(card.base_models)
    if not (bases <= {card.about.get("parent")} or bases <= set(card.parent_bases)):
        raise Failed(f"{CARD} names {', '.join(sorted(bases))} as base, which the receipt does not know")


def _check_place(receipt: dict[str, Any], card: CardParts, release: Subject) -> tuple[str | None, str | None]:
    """The rest of a card depends on where it is, and is made again from the files of the release; the address that it gives."""
    try:
        repo, revision = card.address()
    except UnlearningError as error:
        raise Failed(str(error).rstrip(".")) from error
    about = card.about
    if "repository" in about and (about["repository"], about.get("revision")) not in (
        (repo, revision),
        (repo, revision or MAIN),
    ):
        raise Failed(f"the address in the metadata of {CARD} is not the one that {HOW_TO_LOAD!r} gives")
    if receipt["version"] != __version__:
        release.uncovered.append(
            f"the title, the name in model-index and {HOW_TO_LOAD!r} of {CARD}, which hf_unlearn {receipt['version']} wrote and {__version__} cannot write "
            "again"
        )
        return repo, revision
    parent = Parent(about["parent"], cast(str, about.get("parent_revision"))) if "parent" in about else None
    known = {key: card.metadata.get(key) for key in PLACED} | {"base_model": card.parent_bases}
    try:
        again = make_card(release.folder, repo_id=repo, revision=revision, parent=parent, parent_card=known)
        again = parts_of(str(again))
    except Exception as error:  # a template over files that anyone may have written fails in any way
        raise Failed(f"{CARD} cannot be made again from the files of the release ({type(error).__name__})") from error
    for what, expected in again.place.named().items():
        if card.place.named()[what] != expected:
            raise Failed(f"{what!r} in {CARD} was changed or is missing")
    for key in (*PLACED, "model-index"):
        if card.metadata.get(key) != again.metadata.get(key):
            raise Failed(f"{key} in the metadata of {CARD} is not the one that belongs there")
    return repo, revision


def _check_address(repo: str | None, revision: str | None, release: Subject) -> None:
    """What the card tells to load is this release: this very commit, or one with the same files."""
    if repo is None:
        return
    where = f"{repo} at {revision or MAIN}"
    told = f"{HOW_TO_LOAD!r} of {CARD} tells to load from {where}"
    if release.repo is None or release.commit is None:
        release.uncovered.append(f"{told}, and what is there was not looked at")
        return
    here, there = (Repository(reader(release.token), name) for name in (release.repo, repo))
    try:
        commit = there.commit_of(revision or MAIN)
        is_same = (repo, commit) == (release.repo, release.commit) or _loaded(there, commit) == _loaded(
            here, release.commit
        )
        has_gone_on = (
            repo == release.repo and not is_same and release.commit in {c.commit_id for c in there.history(commit)}
        )
    except HUB_ERRORS as error:
        if not is_absent(error):
            raise
        raise Failed(f"{told}, which is not there, or may not be seen") from error
    if has_gone_on:
        release.uncovered.append(f"{told}, which has gone on to commit {commit[:12]}")
    elif not is_same:
        raise Failed(f"{told}, where there are other files than in this release")
    elif repo != release.repo:
        release.uncovered.append(f"{told}, where there are the same files for now")


def _loaded(repository: Repository, commit: str) -> dict[str, Blob]:
    """The files of a commit that a program may read."""
    return {name: blob for name, blob in repository.tree(commit).items() if not is_document(name)}


# ---------------------------------------------------------------------------------------------------------------------
# The other files


def check_files(receipt: dict[str, Any], release: Subject) -> str:
    files, present = receipt["files"], plain_files(release.files())
    problems = [f"{name} is missing" for name in sorted(set(files) - set(present))]
    changed = (name for name in present if name in files and file_digest(release.folder / name) != files[name])
    problems += [f"{name} was changed" for name in changed]
    strange = [name for name in present if name not in files]
    documents = [name for name in strange if is_document(name)]
    processors = [name for name in strange if fits(name, PROCESSORS)]
    problems += [f"{name} is not in the receipt" for name in strange if name not in (*documents, *processors)]
    kept = set() if problems else _kept_from_parent([*documents, *processors], receipt["parent"], release)
    if kept is None and processors:
        raise Unchecked(f"whether {', '.join(processors)} are the parent's cannot be asked")
    kept = kept or set()
    problems += [f"{name} is not in the receipt" for name in processors if name not in kept]
    if problems:
        raise Failed("; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else ""))
    release.uncovered.extend(name for name in documents if name not in kept)
    if AUDIT in files and "weights" not in read_checked(release.folder, AUDIT):
        release.uncovered.append(f"whether {AUDIT} is of these weights, which it does not say")
    words = f"all {len(files)} other files have the digests in the receipt"
    return words + (f", and {', '.join(sorted(kept))} as the parent has it" if kept else "")


def _kept_from_parent(names: list[str], parent: dict[str, str] | None, release: Subject) -> set[str] | None:
    """Those files that are the very same in the parent, of which a branch keeps some; None where it cannot be asked."""
    if not names or parent is None or release.repo not in (None, parent["repo"]):
        return set()
    try:
        before = Repository(reader(release.token), parent["repo"]).tree(parent["commit"])
    except HUB_ERRORS:
        return None
    return {name for name in names if name in before and before[name].oid in _hashes(release.folder / name)}


def _hashes(path: Path) -> tuple[str, str]:
    """A file's SHA-256, which the Hub has of large files, and git's own hash, which it has of the others."""
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
