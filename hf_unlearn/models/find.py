"""What there is of a model on the Hub or in a folder, found without loading it, and what cannot be had in one sentence."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from torch import nn

from ..errors import UnlearningError
from .kinds import base_of

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
IMAGE_PROCESSOR = "preprocessor_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)

TOKEN = re.compile(r"[\x21-\x7e]+")
# What goes wrong between a name and a model, beside a mistake in the code.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, EntryNotFoundError, SafetensorError, httpx.HTTPError)


def check_token(token: str | bool | None) -> None:
    """Refuse a token that cannot be sent, before a client puts it into an error of its own.

    What was given is never part of the sentence, nor is the token of the login, which is sent where none is given.
    """
    if token is not None and not isinstance(token, (str, bool)):
        raise UnlearningError(
            f"token is a {type(token).__name__}; expected a text such as hf_..., True, False or None."
        )
    used = token if isinstance(token, str) else None if token is False else get_token()
    if used is not None and not TOKEN.fullmatch(used):
        given = "token" if isinstance(token, str) else "The token of the login (or HF_TOKEN)"
        raise UnlearningError(
            f"{given} is empty, or has a blank, a line break, a control or a non-ASCII character in it; expected hf_ and "
            "letters, as the settings of your account show it."
        )


def commit_of(name_or_path: str | os.PathLike[str], revision: str | None = None) -> str | None:
    """The commit at which a revision of a Hub repository is now; None of a folder, or where there is no model."""
    name = os.fspath(name_or_path)
    if os.path.isdir(name):
        return None
    check_token(None)
    try:
        path = find_file(name, "config.json", {"revision": revision} | reachable(name))
    except LOAD_ERRORS:
        return None
    return path and Path(path).parent.name  # in the cache: snapshots/COMMIT/config.json


def folder_of(model: nn.Module) -> str | None:
    """The local folder that a model was loaded from; None of one that was not."""
    name = getattr(getattr(base_of(model), "config", None), "name_or_path", None)
    return os.path.realpath(name) if name and os.path.isdir(name) else None


def hub_is_reachable() -> bool:
    """Whether anything listens at the address of the Hub, or of the proxy before it.

    Where nothing does, its client tries for 23 seconds to read one file, and again for the next.
    """
    url, proxies = urlsplit(constants.ENDPOINT), getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy)
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), timeout=5).close()
    except OSError:
        return False
    return True


def reachable(name: str) -> dict[str, bool]:
    """The argument of the Hub's client that makes it read its cache only, where it would wait for nobody."""
    read_on = os.path.isdir(name) or constants.HF_HUB_OFFLINE or hub_is_reachable()
    return {} if read_on else {"local_files_only": True}


def check_no_revision(name: str, revision: str | None) -> None:
    if revision is not None and os.path.isdir(name):
        raise UnlearningError(
            f"{name!r} is a local folder and {revision!r} a revision, which only repositories of the Hub have; leave it out, or "
            "give a Hub id."
        )


def split_revision(name: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The name and the revision of `OWNER/NAME@REVISION`; a folder has none.

    >>> split_revision("me/vit@unlearned/request-42")
    ('me/vit', 'unlearned/request-42')
    """
    if os.path.exists(name) or "@" not in str(name):
        return str(name), None
    repo, revision = str(name).split("@", 1)
    return repo, revision


def find_file(name: str, filename: str, where: Mapping[str, Any]) -> str | None:
    """The path of one file of a local folder or a Hub repository, or None where it does not have it."""
    if os.path.isdir(name):
        path = os.path.join(name, where.get("subfolder") or "", filename)
        return path if os.path.isfile(path) else None
    check_token(where.get("token"))
    try:
        return hf_hub_download(name, filename, **where)
    except LocalEntryNotFoundError:
        # The Hub did not answer. A repository in the cache still answers, for the files that it has.
        cached = {key: where[key] for key in ("revision", "cache_dir") if key in where}
        if isinstance(try_to_load_from_cache(name, "config.json", **cached), str):
            return None
        raise
    except EntryNotFoundError:
        return None


def resolved_commit(name: str, where: Mapping[str, Any]) -> str | None:
    """The commit of a model that was just loaded from the Hub, by its place in the cache; None of a local folder."""
    if os.path.isdir(name) or where.get("subfolder"):
        return None
    cached = {key: where[key] for key in ("revision", "cache_dir") if key in where}
    path = try_to_load_from_cache(name, "config.json", **cached)
    return Path(path).parent.name if isinstance(path, str) else None


def check_holds_model(name: str, where: Mapping[str, Any]) -> None:
    if find_file(name, ADAPTER_CONFIG, where):
        raise UnlearningError(
            f"{name!r} holds a PEFT adapter and not a model: load its base model, then "
            f"PeftModel.from_pretrained(base, {name!r}), and pass that."
        )
    if find_file(name, "config.json", where) is None:
        if find_file(name, f"unlearn/{ADAPTER_CONFIG}", where):
            raise UnlearningError(
                f"{name!r} holds the adapter of an unlearned model: load its base model, then PeftModel.from_pretrained(base, "
                f'{name!r}, subfolder="unlearn"), with the revision if there is one, and pass that.'
            )
        raise UnlearningError(f"{name!r} holds no model (no config.json): pass a folder or Hub id of a saved model.")


def check_has_weights(name: str, where: Mapping[str, Any]) -> None:
    if find_file(name, WEIGHTS, where) is None and find_file(name, WEIGHTS_INDEX, where) is None:
        raise UnlearningError(
            f"{name!r} has no {WEIGHTS}, and pickled weights are never loaded: convert them once, where you trust "
            "them, with from_pretrained(..., use_safetensors=False) and save_pretrained (timm: save_for_hf(..., "
            "safe_serialization=True)), and pass the new folder."
        )


def explain(error: BaseException, name: str, revision: str | None) -> str:
    """One sentence for what went wrong, found along the chain of causes; the first reason that applies wins."""
    chain, cause = [], error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    answer = next((cause.response.status_code for cause in chain if isinstance(cause, HfHubHTTPError)), None)
    if answer in (401, 403):
        refusal = (
            "may not be read with this token: log in again with `hf auth login`, or pass a token that may read it"
        )
    else:
        refusal = (
            f"cannot be had, because the Hub answers {answer}: check the name, try again later, or pass a local folder"
        )
    reasons: tuple[tuple[Any, str], ...] = (
        (GatedRepoError, "is gated: accept its terms on the Hub and log in with `hf auth login`"),
        (RevisionNotFoundError, f"has no revision {revision!r}: pass a branch, a tag or a commit that it has"),
        (
            RepositoryNotFoundError,
            "is neither a local folder nor a repository that you can read on the Hub: check the spelling, or log in "
            "with `hf auth login` if it is private",
        ),
        (
            HFValidationError,
            "is neither an existing folder nor a Hub id of the form owner/name: check the path",
        ),
        (HfHubHTTPError, refusal),
        (
            (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError),
            "is not in the local cache, and the Hub cannot be reached: check the connection (and HF_HUB_OFFLINE), or "
            "pass a local folder",
        ),
    )
    for kind, reason in reasons:
        if any(isinstance(cause, kind) for cause in chain):
            return f"{name!r} {reason}."
    lines = [line.strip(" \t.") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    what = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{name!r} cannot be loaded: {what}."
