"""Receipts as JSON: the one way to write what is hashed and signed, and reading what can be read in one way only."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UnlearningError
from .names import RECEIPT

KIND, FORMAT = "hf_unlearn receipt", 2
FORMATS = (1, 2)  # those that are read; receipts are written in the last one
# Of a receipt's list of records: how they are digested (see `records`). Receipts of format 1 do not say it.
CANONICAL = 2
OTHERWISE = "is missing or of another type"


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**63


def is_columns(value: Any) -> bool:
    """Whether this names the columns of a record, of which there is at least one."""
    return isinstance(value, list) and value != [] and all(isinstance(name, str) for name in value)


def is_figures(value: Any) -> bool:
    return isinstance(value, dict) and all(
        number is None or (type(number) in (int, float) and abs(number) < 1e300) for number in value.values()
    )


def are_digests(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_digest, value.values()))


def are_metadata(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


# What a receipt must have: a value of this type, one for which this function holds, or one of these. A key with a question
# mark may be left out; beside the keys of `Exactly`, there may be no other.
class Exactly(dict):
    pass


SIGNATURE = Exactly.fromkeys(("algorithm", "public_key", "fingerprint", "value"), str)
FORGET = {"root": is_digest, "count": is_count, "canonical?": int, "columns?": is_columns}
LINK = {"repo": (str, None), "commit": (str, None), "receipt": (is_digest, None), "signer?": str}
SHAPE = {
    "kind": str,
    "format": int,
    "parent": ({"repo": str, "commit": str}, None),
    "previous": (LINK, None),
    "weights": {"before": (is_digest, None), "after": is_digest},
    "forget": FORGET,
    "method": {"name": str, "config": str, "training": str},
    "metrics": {"before": (is_figures, None), "after": (is_figures, None)},
    "files": are_digests,
    "digest": str,
    "signature?": SIGNATURE,
}
# And what one of format 2 must have beside these.
SHAPE_2 = {
    "version": str,
    "weights": {"metadata": are_metadata},
    "forget": {"canonical": int, "columns": is_columns},
    "card": ({"metadata": are_digests, "sections": are_digests}, None),
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
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is missing" if not path.exists() else "it is no file")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        canonical(content)  # which 1e999, or half of a surrogate pair, has not
        return content
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnlearningError(
            f"{path.name} cannot be read ({reason}); expected a file as hf_unlearn wrote it."
        ) from None


def check_json(value: Any, name: str) -> None:
    """Refuse what does not read back from JSON as it was written, and so would not have the digest that it had."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            if not isinstance(key, str):
                raise UnlearningError(
                    f"{name} has the key {key!r}, which JSON makes a text of; expected texts as keys."
                )
            check_json(inside, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, inside in enumerate(value):
            check_json(inside, f"{name}[{i}]")
    elif not isinstance(value, (str, int, float, type(None))):
        raise UnlearningError(
            f"{name} is a {type(value).__module__}.{type(value).__name__}; expected a text, a number of Python, True, False "
            "or None, or lists and dicts of them: for a date .isoformat(), for a number of numpy .item()."
        )
    else:
        try:
            if json.loads(canonical(value)) == value:
                return
        except ValueError:  # NaN and infinity; half of a surrogate pair; a number of thousands of digits
            pass
        raise UnlearningError(
            f"{name} is {str(value)[:40]!r}, which JSON has not; expected a value that it has, such as None."
        )


def read_receipt(folder: Path) -> dict[str, Any]:
    """The receipt in a folder, with all that a receipt must have; whether it is true is not looked at."""
    receipt = read_json(folder / RECEIPT)
    misfit = next(misfits(receipt, SHAPE), None)
    if not misfit and (receipt["kind"] != KIND or receipt["format"] not in FORMATS):
        raise UnlearningError(
            f"{RECEIPT} is a {receipt['kind']!r} of format {receipt['format']}; this version of hf_unlearn reads {KIND!r} of "
            f"the formats {', '.join(map(str, FORMATS))}."
        )
    if not misfit and receipt["format"] == 2:
        misfit = next(misfits(receipt, SHAPE_2), None)
    if not misfit and receipt["forget"].get("canonical", 1) not in FORMATS[: receipt["format"]]:
        misfit = f"canonical {OTHERWISE}"
    if misfit:
        raise UnlearningError(f"{RECEIPT} is none: {misfit}; expected one that hf_unlearn wrote.")
    return receipt


def misfits(value: Any, shape: Any, name: str = "all") -> Iterator[str]:
    """Sentences of what is not of the shape that it must have."""
    options = shape if isinstance(shape, tuple) else (shape,)
    shape = options[0]
    if value is None and None in options:
        return
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{name} {OTHERWISE}"
            return
        for key, inside in shape.items():
            if (known := key.removesuffix("?")) in value:
                yield from misfits(value[known], inside, known)
            elif known == key:
                yield f"{key} {OTHERWISE}"
        if isinstance(shape, Exactly):
            yield from (f"{name} has {key!r} beside what belongs there" for key in value if key not in shape)
    elif not (type(value) is shape if isinstance(shape, type) else shape(value)):
        yield f"{name} {OTHERWISE}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands in it twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
