"""`unlearning_receipt.json`: what was done to which weights, in a form that anyone can check and nobody can learn from.

A receipt names its parent revision and commits, by digests, to the weights before and after, to the records that were to
be forgotten, to method, configuration and figures, and to every other file of the release. `hub.verify` checks it.
"""

import hashlib
import json
import os
import secrets as random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from peft import PeftModel, load_peft_weights
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import BaseImageProcessor, PreTrainedModel

from .. import __version__, models
from ..data.source import Source
from ..errors import UnlearningError
from ..models.adapters import is_adapted, is_quantized, own_adapters
from ..training.facts import versions
from ..training.record import Result, Run
from . import merkle
from .canonical import CANONICAL, FORMAT, KIND, body, canonical, digest_of, read_json, read_receipt
from .card_parts import CardParts, read_parts
from .client import check_token, reading
from .given import check_given
from .names import ADAPTER_CONFIG, CARD, CONFIG, METRICS, RECEIPT, WEIGHTS_INDEX, is_legal, is_released
from .records import SECRETS, Secrets, record_digests
from .repository import Parent
from .sequence import drift
from .signing import sign
from .weights import adapter_files, fetch_weights, files_in, saved_digest, saved_metadata, weight_files
from .withholding import FEWEST

# What may be beside a release without being of it, such as what a repository has of itself.
DOCUMENTS = (
    *("*.md", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.pdf", ".gitattributes", ".gitignore"),
    *(".DS_Store", "Thumbs.db", "desktop.ini"),  # which systems leave in the folders that they show
)


# ---------------------------------------------------------------------------------------------------------------------
# Making


def make_receipt(
    result: Result,
    folder: str | Path,
    *,
    parent: Parent | str | Path | None = None,
    dataset: Mapping[str, Any] | None = None,
    earlier: Sequence[Mapping[str, Any]] | None = None,
    sign_key: str | Path | None = None,
    token: str | bool | None = None,
    fewest: int = FEWEST,
) -> dict[str, Any]:
    """Write the receipt of a release into its folder, and its secrets beside the run; gives the receipt.

    Everything else must be in the folder already; a card that is written or changed later needs `seal`.

    Args:
        parent: the revision that the original was, with `repo_id` and `commit`; or its folder, whose path is not written;
            default: the revision it came from, if it came from the Hub unchanged.
        dataset: what is known of the dataset before it was split, such as its name and revision. (Not of a part of it:
            the fingerprint that `datasets` gives to a choice of rows lets anyone try out which rows were chosen.)
        earlier: what `evaluate_earlier` gave for the samples of earlier requests. Their names are published.
        sign_key: a PEM file with an Ed25519 private key.
        fewest: samples of an earlier request below which its figures are left out.
    """
    check_token(token)
    folder, run = Path(folder), result.run
    check_given(dataset, earlier)
    where, origin = _find_parent(parent, run.origin, token)
    if origin and is_adapted(result.model) and not own_adapters(result.model) and adapter_files(files_in(origin)):
        raise UnlearningError(
            "The adapter was trained on a model into which that of its parent was merged, and such a model is not on the Hub; "
            "call result.merge(), and publish that."
        )
    before = _weights_before(run, where, origin)
    previous = _link(where, origin)
    config, figures = read_json(folder / CONFIG), read_json(folder / METRICS)
    records = _keep_secrets(run.sources["forget"], run.private / SECRETS)
    receipt = {
        "kind": KIND,
        "format": FORMAT,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": run.task.name,
        "parent": where,
        "previous": previous,
        "weights": {"before": before, "after": saved_digest(folder), "metadata": saved_metadata(folder)},
        "drift": drift(folder, origin, read_receipt(origin) if previous and origin else None, token),
        "forget": {
            "root": merkle.root(records.leaves).hex(),
            "count": len(records.records),
            "columns": records.columns,
            "canonical": CANONICAL,
        },
        "method": method_digests(config),
        "seeds": run.seeds,
        "versions": versions(run),
        "image_processor": _image_processor(run.processing_class),
        "dataset": dict(dataset) if dataset else None,
        "metrics": {when: figures.get(when) for when in ("before", "after")},
        "earlier": [_published(row, fewest) for row in earlier or []],
        "files": file_digests(folder),
    }
    return _write_sealed(receipt, folder, sign_key)


def seal(folder: str | Path, sign_key: str | Path | None = None) -> dict[str, Any]:
    """Have the receipt in a folder commit to the card that is there now, which was made from it; gives the receipt."""
    return _write_sealed(body(read_receipt(Path(folder))), Path(folder), sign_key)


def _write_sealed(receipt: dict[str, Any], folder: Path, sign_key: str | Path | None) -> dict[str, Any]:
    receipt = sealed(receipt, read_parts(folder / CARD) if (folder / CARD).is_file() else None)
    if sign_key is not None:
        receipt["signature"] = sign(canonical(body(receipt)), sign_key)
    (folder / RECEIPT).write_text(written(receipt), encoding="utf-8")
    return receipt


def sealed(receipt: Mapping[str, Any], card: CardParts | None) -> dict[str, Any]:
    """The receipt that commits to a card, unsigned."""
    receipt = body(receipt) | {"card": card and card.digests()}
    return receipt | {"digest": digest_of(receipt)}


def written(receipt: Mapping[str, Any]) -> str:
    return json.dumps(receipt, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def method_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Of `unlearning_config.json`: the method's name, and digests of its configuration and of how it was trained."""
    return {
        "name": config["method"],
        "config": digest_of(config["config"]),
        "training": digest_of({key: value for key, value in config.items() if key not in ("method", "config")}),
    }


def _published(row: Mapping[str, Any], fewest: int) -> dict[str, Any]:
    """What `evaluate_earlier` found, without the exact losses, and without any figure of few samples: with those, a good
    guess of the samples can be told from a bad one."""
    enough = row["samples"] >= fewest
    coarse = {
        when: {key: value if enough else None for key, value in row[when].items() if key != "loss"}
        for when in ("before", "after")
    }
    return {"name": row["name"], "samples": row["samples"], **coarse}


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a release that is neither weights nor the receipt nor the card."""
    return {name: file_digest(folder / name) for name in plain_files(files_in(folder)) if is_released(name)}


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_files(names: Sequence[str]) -> list[str]:
    """All but the receipt, the card, and the weights, of which more is known than the bytes of their files."""
    others = {RECEIPT, CARD, *weight_files(names), WEIGHTS_INDEX}
    return [name for name in names if name not in others]


def is_document(name: str) -> bool:
    """Whether no program reads a file of this name together with a model."""
    return is_legal(name) or any(map(PurePosixPath(name).match, DOCUMENTS))


def _find_parent(
    parent: Parent | str | Path | None, origin: dict[str, str] | None, token: str | bool | None
) -> tuple[dict[str, str] | None, Path | None]:
    """Where on the Hub the parent is, and the folder with its weights and, where it has one, its receipt."""
    if isinstance(parent, (str, os.PathLike)):
        return None, Path(parent)
    if parent is not None:
        where = {"repo": parent.repo_id, "commit": parent.commit}
    elif origin is not None:
        where = {"repo": origin["repo"], "commit": origin["revision"]}
    else:
        return None, None
    with reading(f"The parent {where['repo']}@{where['commit']}, whose weights and receipt go into the receipt,"):
        return where, fetch_weights(where["repo"], where["commit"], token)


def _keep_secrets(source: Source, path: Path) -> Secrets:
    """New secrets, or those at `path` if they are of the very same records: proofs given before stay good then."""
    given, columns = source.as_given
    records = sorted(record_digests(given, columns))
    if path.exists():
        kept = Secrets.load(path)
        if (kept.columns, kept.records, kept.version) == (columns, records, CANONICAL):
            return kept
        path.rename(path.with_stem(f"{path.stem}-{merkle.root(kept.leaves).hex()[:8]}"))
    fresh = Secrets(random.token_bytes(32), columns, records)
    fresh.save(path)
    return fresh


def _image_processor(processor: Any) -> dict[str, str | None] | None:
    if not isinstance(processor, BaseImageProcessor):
        return None
    return {"class": type(processor).__name__, "backend": getattr(processor, "backend", None)}


def _link(where: dict[str, str] | None, origin: Path | None) -> dict[str, str | None] | None:
    """What names the predecessor: where its receipt is, and its digest."""
    if origin is None or not (origin / RECEIPT).is_file():
        return None
    receipt = read_receipt(origin)
    signer = {"signer": receipt["signature"]["fingerprint"]} if "signature" in receipt else {}
    return {**(where or {"repo": None, "commit": None}), "receipt": digest_of(body(receipt)), **signer}


def _weights_before(run: Run, where: dict[str, str] | None, origin: Path | None) -> str | None:
    """The digest of the original's saved weights; None if no parent is named and the original was not kept."""
    about = run.kept()
    if about is None:
        raise UnlearningError(f"{run.private} is gone, and the original with it; run again to keep it.")
    kept = run.private / about["folder"] if about["folder"] else None
    if origin is None:
        return saved_digest(kept) if kept else None
    name = f"{where['repo']} at {where['commit']}" if where else repr(str(origin))
    try:
        digest = saved_digest(origin)
        known = where and run.origin == {"repo": where["repo"], "revision": where["commit"]}
        if known or (kept and saved_digest(kept) == digest) or _is_original(run, about["digest"], origin):
            return digest
    except UnlearningError as error:  # which names a folder of the cache
        raise UnlearningError(str(error).replace(repr(str(origin)), name)) from error
    raise UnlearningError(
        f"{name} has other weights than the model that was unlearned; expected as parent the revision that model was "
        "loaded from."
    )


def _is_original(run: Run, digest: str, origin: Path) -> bool:
    """Whether a folder holds what the run began with, where names or precision of the files differ, or adapters lie in it.

    Of a model that came with adapters, those are compared; another one may be what the adapters in the folder make of their
    base, once they were merged.
    """
    model, adapters = run.model, adapter_files(files_in(origin))
    base = models.base_of(model)
    if not isinstance(base, PreTrainedModel):
        return False
    if own := own_adapters(model):
        live = [get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False) for name in own]
        saved = [load_peft_weights(str((origin / file).parent), device="cpu") for file in adapters]
        return _digests(live) == _digests(saved)
    # Quantised as the model was, and where
    about: dict[str, Any] = {"dtype": base.dtype}
    if is_quantized(base):
        about |= {"quantization_config": base.config.quantization_config, "device_map": {"": base.device}}
    saved = _merged(origin, adapters, base.dtype) if adapters else models.load_model(origin, **about)
    if is_adapted(model):
        state = model.get_base_model().state_dict().items()
        state = {
            n.replace(".base_layer.", "."): t for n, t in state if not model.peft_config.keys() & set(n.split("."))
        }
    elif not adapters:
        return models.weights_digest(saved) == digest
    else:
        with run.original() as begun:
            state = begun.state_dict()
    if not adapters:
        return _digests([state]) == _digests([saved.state_dict()])
    return _are_close(state, saved.state_dict())


def _digests(states: Sequence[Mapping[str, Tensor]]) -> list[str]:
    return sorted(models.digest_tensors(sorted(state.items())) for state in states)


def _merged(folder: Path, adapters: Sequence[str], dtype: torch.dtype) -> nn.Module:
    """The base that the adapters in a folder name, with all of them in its weights."""
    places = [(folder / file).parent for file in adapters]
    about = read_json(places[0] / ADAPTER_CONFIG)
    base = about.get("base_model_name_or_path")
    if base is None:
        raise UnlearningError(f"{str(folder)!r} holds an adapter that names no base model; expected one that does.")
    model = models.load_model(base, revision=about.get("revision"), dtype=dtype)
    for place in places:
        model = PeftModel.from_pretrained(model, str(place)).merge_and_unload()
    return model


def _are_close(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> bool:
    """Whether two models are the same up to the rounding of a merge, which may have been made on another device."""
    if live.keys() != saved.keys():
        return False
    try:
        assert_close(dict(live), dict(saved), check_device=False)
    except AssertionError:
        return False
    return True
