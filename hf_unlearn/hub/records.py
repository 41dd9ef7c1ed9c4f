"""The records of a request: their digests, the secrets that show that they are under a receipt's root, and proofs.

The digest of a record is SHA-256 over `encode({column: what is stored there, ...})`, of an image the bytes of its file.
"""

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import datasets

from ..data.source import Source
from ..data.types import Data
from ..errors import UnlearningError
from ..training.output import PRIVATE
from . import merkle
from .canonical import CANONICAL, FORGET, is_columns, misfits
from .encoding import encode

SECRETS = "receipt_secrets.json"
Records: TypeAlias = Data | Mapping[str, Any]  # a data set, or a single record


def record_digests(data: Records, columns: Sequence[str], version: int = CANONICAL) -> list[bytes]:
    """A digest of each record's input, as stored: of an image file its bytes, of a text its characters.

    Args:
        data: a dataset, or a single record: a dict whose values may also be the path (`pathlib.Path`) or the bytes of an
            image file.
        columns: those that hold the input.
        version: `canonical` in the receipt; 1 where it does not say.
    """
    if isinstance(data, Mapping) and not isinstance(data, datasets.DatasetDict):
        data = [{name: _stored(value) for name, value in data.items()}]
    if isinstance(data, Sized) and len(data) == 0:
        raise UnlearningError("The given data holds no record; expected at least one.")
    source = Source(cast(Data, data), "the given data")  # which refuses several splits
    if missing := [name for name in columns if name not in source.column_names]:
        raise UnlearningError(
            f"The given data has the columns {', '.join(source.column_names)}; expected {missing[0]}, which the forgotten "
            "records have."
        )
    source.input_columns = list(columns)
    if version == 1:
        return _digests_of_version_1(source)
    rows = source.stored(dtype=None)
    return [hashlib.sha256(encode(dict(zip(columns, row, strict=True)))).digest() for row in rows]


def _digests_of_version_1(source: Source) -> list[bytes]:
    """16 bytes of BLAKE2b over the values without their types and lengths, so that some records have the same."""
    return [bytes(digest).ljust(16, b"\0") for digest in source.digests()]  # numpy cuts zeros off at the end


def _stored(value: Any) -> Any:
    """What `datasets` stores of an image file."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    return {"bytes": None, "path": str(value)} if isinstance(value, Path) else value


class Secrets(NamedTuple):
    """What shows that records are under a receipt's root. It stays with who made the receipt.

    The records stand in the order of their digests, so that the root does not depend on the order of the dataset.
    """

    secret: bytes
    columns: list[str]
    records: list[bytes]
    version: int = CANONICAL

    @property
    def leaves(self) -> list[bytes]:
        return [merkle.leaf(merkle.salt(self.secret, i), record) for i, record in enumerate(self.records)]

    def place(self, record: bytes) -> int | None:
        """Where a record is; None if it was not in the request."""
        index = bisect_left(self.records, record)
        return index if self.records[index : index + 1] == [record] else None

    def save(self, path: Path) -> None:
        content = {"format": self.version, "secret": self.secret.hex(), "columns": self.columns}
        content["records"] = [record.hex() for record in self.records]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Secrets":
        try:
            content = json.loads(Path(path).read_text())
            columns, version = content["columns"], content["format"]
            if not is_columns(columns) or version not in (1, CANONICAL):
                raise ValueError
            records = sorted(bytes.fromhex(record) for record in content["records"])
            return cls(bytes.fromhex(content["secret"]), columns, records, version)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnlearningError(
                f"{str(path)!r} cannot be read as the secrets of a receipt ({type(error).__name__}); expected the "
                f"{SECRETS} that was written beside the run, in its folder {PRIVATE}."
            ) from error


def prove(record: Records, secrets: "Secrets | str | Path") -> dict[str, Any]:
    """What the holder of a record needs to check that it was in the request; it says nothing of other records.

    Args:
        record: a dict such as `{"text": "..."}` or `{"image": Path("me.jpg")}`, or a dataset of one row.
        secrets: the file that was written beside the run.
    """
    secrets = secrets if isinstance(secrets, Secrets) else Secrets.load(secrets)
    if (index := secrets.place(_one_digest(record, secrets.columns, secrets.version))) is None:
        raise UnlearningError(
            "The record was not in the request. (An image must be given as it was stored: the path or the bytes of its "
            "file, or dataset.select([row]).)"
        )
    return {
        "columns": secrets.columns,
        "index": index,
        "salt": merkle.salt(secrets.secret, index).hex(),
        "path": [node.hex() for node in merkle.path(secrets.leaves, index)],
    }


def check_inclusion(receipt: Mapping[str, Any], record: Records, proof: Mapping[str, Any]) -> bool:
    """Whether a record is among those that a receipt is about, by a proof that `prove` gave.

    Which columns a record consists of, the receipt says; an old one, of format 1, does not, and there the proof does.
    """
    forget: Any = receipt.get("forget") if isinstance(receipt, Mapping) else None
    if misfit := next(misfits(forget, FORGET, "forget"), None):
        raise UnlearningError(f"The receipt cannot be read: {misfit}; expected one that hf_unlearn wrote.")
    columns, index, salt, siblings = _read_proof(proof)
    version = forget.get("canonical", 1)
    if version not in (1, CANONICAL):
        raise UnlearningError(
            f"The receipt cannot be read: canonical is {version}; expected 1 or {CANONICAL}, which this version of hf_unlearn knows."
        )
    if (version > 1 and "columns" not in forget) or forget.get("columns", columns) != columns:
        return False
    leaf = merkle.leaf(salt, _one_digest(record, columns, version))
    found = merkle.root_of_path(leaf, index, forget["count"], siblings)
    return found is not None and found.hex() == forget["root"]


def _read_proof(proof: Any) -> tuple[list[str], int, bytes, list[bytes]]:
    try:
        columns, index, nodes = proof["columns"], proof["index"], [proof["salt"], *proof["path"]]
        salt, *siblings = map(bytes.fromhex, nodes)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UnlearningError(f"The proof cannot be read ({error}); expected what prove() gave.") from None
    for what, holds in (
        ("columns is no list of names", is_columns(columns)),
        ("index is no number", type(index) is int),
        ("path is no list", isinstance(proof["path"], list)),
        (
            f"a hash has not {merkle.SALT_BYTES} bytes",
            all(len(node) == merkle.SALT_BYTES for node in (salt, *siblings)),
        ),
    ):
        if not holds:
            raise UnlearningError(f"The proof cannot be read ({what}); expected what prove() gave.")
    return columns, index, salt, siblings


def _one_digest(record: Records, columns: Sequence[str], version: int) -> bytes:
    digests = record_digests(record, columns, version)
    if len(digests) != 1:
        raise UnlearningError(f"A proof is of one record, and {len(digests)} were given; pass dataset.select([row]).")
    return digests[0]
