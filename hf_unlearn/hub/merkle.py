"""A salted Merkle tree: one hash that commits to a list of records and shows none of them.

The tree is that of RFC 9162: a list is cut at the largest power of two below its length, and an odd end is carried up
instead of being doubled. The salts of all leaves come from one secret. Who has a record, its salt and its path can show
that it is under the root; who has not cannot even try out a guess of a record, because its leaf needs the salt.
"""

import hashlib
import hmac
from collections.abc import Sequence

# What is hashed begins with what it is, so that an inner node can never pass for a leaf, nor a salt for either.
LEAF, INNER, SALT = b"\x00", b"\x01", b"hf_unlearn salt\x00"
SALT_BYTES = 32
EMPTY = hashlib.sha256(b"").digest()


def salt(secret: bytes, index: int) -> bytes:
    """The salt of one leaf: HMAC-SHA256 of its place under the secret, so one salt tells nothing of another."""
    return hmac.new(secret, SALT + index.to_bytes(8, "big"), hashlib.sha256).digest()


def leaf(salt: bytes, record: bytes) -> bytes:
    """The hash of a record's digest. The salt has a fixed length, so it is clear where it ends."""
    return hashlib.sha256(LEAF + salt + record).digest()


def inner(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(INNER + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The hash at the top; of a single leaf that leaf itself."""
    level = list(leaves)
    if not level:
        return EMPTY
    while len(level) > 1:
        level = _next(level)
    return level[0]


def path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes beside the way from one leaf to the root, lowest first: at most ⌈log₂ n⌉."""
    level, siblings = list(leaves), []
    while len(level) > 1:
        if (index ^ 1) < len(level):
            siblings.append(level[index ^ 1])
        level, index = _next(level), index // 2
    return siblings


def root_of_path(found: bytes, index: int, count: int, siblings: Sequence[bytes]) -> bytes | None:
    """The root that a leaf at this place of `count` leads to; None where the path has another length than it must."""
    if not 0 <= index < count:
        return None
    rest = iter(siblings)
    try:
        while count > 1:
            if index ^ 1 < count:
                sibling = next(rest)
                found = inner(sibling, found) if index % 2 else inner(found, sibling)
            index, count = index // 2, (count + 1) // 2
    except StopIteration:
        return None
    return None if next(rest, None) is not None else found


def _next(level: list[bytes]) -> list[bytes]:
    pairs = [inner(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + level[len(level) - len(level) % 2 :]
