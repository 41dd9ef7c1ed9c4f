"""One way to write a record as bytes, in which no two records are written alike.

Every value is its type, the length of what follows and the content, so that it is clear where it ends; numbers are
written as numbers, whatever width they are stored in:

    encode(value) = type (1 byte) ‖ length of the content (8 bytes) ‖ content

    n  nothing             no content                    a  numbers of one kind   kind ‖ encode(shape) ‖ 8 bytes for each
    s  text                UTF-8                         l  list                  encode of each item
    b  bytes               as they are                   m  mapping               encode of keys and values, by the keys
    i  a whole number      decimal digits                p  a decoded image       encode of mode, size and pixels

Whole numbers of any width are written as int64 (kind i) or, from 2⁶³ on, uint64 (u), floats as float64 (f), booleans as
bytes (t). A list whose items are numbers of one type, and lists of them of equal lengths, is the array of the same numbers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import UnlearningError

WIDE = {"b": "|b1", "i": "<i8", "u": "<u8", "f": "<f8"}  # by the kind that numpy has for it
TAGS = {"b": b"t", "i": b"i", "u": b"u", "f": b"f"}


def encode(value: Any) -> bytes:
    """The bytes of a record, or of anything in it.

    >>> encode("a").hex(), encode(None) == encode("")
    ('73000000000000000161', False)
    """
    if value is None:
        return _item(b"n", b"")
    if isinstance(value, str):
        return _item(b"s", value.encode("utf-8", "surrogatepass"))
    if isinstance(value, (bytes, bytearray)):
        return _item(b"b", bytes(value))
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise _unwritable(f"the key {strange[0]!r}")
        return _item(b"m", b"".join(encode(key) + encode(value[key]) for key in sorted(value)))
    if isinstance(value, Image.Image):
        return _item(b"p", b"".join(map(encode, (value.mode, list(value.size), value.tobytes()))))
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return _array(_numbers(value))
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return _item(b"i", str(value).encode())
    if isinstance(value, (bool, int, float)):
        return _array(np.asarray(value))
    if isinstance(value, (list, tuple)):
        value = _plain(value)
        return _array(np.asarray(value)) if _is_array(value) else _item(b"l", b"".join(map(encode, value)))
    raise _unwritable(f"a {type(value).__name__}")


def _item(tag: bytes, content: bytes) -> bytes:
    return tag + len(content).to_bytes(8, "big") + content


def _numbers(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):  # numpy has no bfloat16
        value = (value.double() if value.is_floating_point() else value).detach().cpu().numpy()
    return np.asarray(value)


def _plain(value: Any) -> Any:
    """Lists of arrays as lists of lists, since the one may come in the form of the other."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        value = _numbers(value).tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _array(array: np.ndarray) -> bytes:
    if array.dtype.kind in "OSU":  # of texts, or of lists of several lengths
        return encode(array.tolist())
    if array.dtype.kind not in WIDE or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        raise _unwritable(f"an array of {array.dtype}")
    kind = array.dtype.kind if array.size else "f"  # an empty list has no type
    if kind == "u" and (array.dtype.itemsize < 8 or array.max() < 2**63):
        kind = "i"
    shape = b"".join(n.to_bytes(8, "big") for n in array.shape)
    return _item(b"a", TAGS[kind] + _item(b"b", shape) + array.astype(WIDE[kind]).tobytes())


def _is_array(value: list) -> bool:
    """Whether nested lists hold numbers of a single Python type, and are of equal lengths at every depth."""
    level: list[Any] = [value]
    while level and all(isinstance(item, list) for item in level):
        if len({len(item) for item in level}) != 1:
            return False
        level = [inside for item in level for inside in item]
    kinds = {type(item) for item in level}
    if kinds == {int}:
        return all(-(2**63) <= item < 2**63 for item in level)
    return not level or kinds in ({float}, {bool})


def _unwritable(what: str) -> UnlearningError:
    return UnlearningError(
        f"A record holds {what}, which has no digest; expected texts, bytes, images, numbers, and lists and mappings of them."
    )
