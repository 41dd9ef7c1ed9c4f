"""Receipts as JSON: the one way to write what is hashed and signed, and reading what can be read in one way only."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UnlearningError
from .names import RECEIPT

KIND, FORMAT = "hf_unlearn receipt", 1

# What a receipt must have: a value of this type, or of one of these.
SHAPE = {
    "kind": str,
    "format": int,
    "parent": ({"repo": str, "commit": str}, None),
    "previous": (dict.fromkeys(("repo", "commit", "receipt"), (str, None)), None),
    "weights": {"before": (str, None), "after": str},
    "forget": {"root": str, "count": int},
    "method": {"name": str, "config": str, "training": str},
    "metrics": {"before": (dict, None), "after": (dict, None)},
    "files": dict,
    "digest": str,
    "signature": dict.fromkeys(("algorithm", "public_key", "fingerprint", "value"), str),  # may be left out
}


def canonical(content: Any) -> bytes:
    """The one way to write a JSON value: keys in the order of their code points, no spaces, UTF-8, no NaN or infinity,
    numbers as Python writes them (the shortest text that reads back as the same float).

    >>> canonical({"b": [1, 0.5, None], "a": "é"}).decode()
    '{"a":"é","b":[1,0.5,null]}'
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(content: Any) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()


def body(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """What the digest and the signature are of: all of a receipt but these two."""
    return {key: value for key, value in receipt.items() if key not in ("digest", "signature")}


def read_json(path: Path) -> Any:
    """What a JSON file says; a key that stands twice, NaN and infinity are refused."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        canonical(content)  # which 1e999, or half of a surrogate pair, has not
        return content
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnlearningError(
            f"{path.name} cannot be read ({reason}); expected a file as hf_unlearn wrote it."
        ) from None


def read_receipt(folder: Path) -> dict[str, Any]:
    """The receipt in a folder, with all that a receipt must have; whether it is true is not looked at."""
    receipt = read_json(folder / RECEIPT)
    if misfit := next(_misfits(receipt, SHAPE), None):
        raise UnlearningError(
            f"{RECEIPT} is none: {misfit} is missing or of another type; expected one that hf_unlearn wrote."
        )
    if (receipt["kind"], receipt["format"]) != (KIND, FORMAT):
        raise UnlearningError(
            f"{RECEIPT} is a {receipt['kind']!r} of format {receipt['format']}; this version of hf_unlearn reads {KIND!r} of "
            f"format {FORMAT}."
        )
    return receipt


def _misfits(value: Any, shape: Any, name: str = "all") -> Iterator[str]:
    """Names of what is not of the shape that it must have."""
    options = shape if isinstance(shape, tuple) else (shape,)
    if value is None and None in options:
        return
    if not isinstance(value, dict if isinstance(options[0], dict) else options[0]):
        yield name
    elif isinstance(options[0], dict):
        for key, inside in options[0].items():
            if key in value:
                yield from _misfits(value[key], inside, key)
            elif key != "signature":
                yield key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands in it twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
