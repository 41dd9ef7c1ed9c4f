"""Pictures as an image processor reads them: eight bits a channel, in as many channels as the model has."""

from typing import Any

import numpy as np
from PIL import Image

from ..errors import UnlearningError

EXPECTED = "expected pictures of 8 or 16 bits a channel"


def as_picture(value: Any, channels: int | None, rescales: bool = False) -> Any:
    """A stored picture (of PIL, or an array) in 8 bits: 16 of them are scaled, never cut off.

    Args:
        channels: of the model; 1: grey.
        rescales: whether the processor takes pixels for 0 to 255, and divides them.
    """
    if isinstance(value, Image.Image):
        if value.mode.startswith(("I", "F")):
            value = Image.fromarray(_eight_bits(np.asarray(value), rescales=True))
        mode = "L" if channels == 1 else "RGB"
        return value if value.mode == mode else value.convert(mode)
    if value is None or isinstance(value, dict):
        what = "is empty" if value is None else f"is a dictionary of {', '.join(map(str, value))}"
        raise UnlearningError(f"The picture {what}; expected a picture (cast a column of files to datasets.Image()).")
    array = np.asarray(value)
    if array.ndim not in (2, 3) or not array.size:
        raise UnlearningError(
            f"The picture is a {type(value).__name__} of shape {array.shape}; expected rows and columns of pixels, with a third "
            "axis for the channels if there are several."
        )
    pixels = _eight_bits(array, rescales)
    one = next((axis for axis in (0, array.ndim - 1) if array.ndim == 3 and array.shape[axis] == 1), None)
    grey = pixels if array.ndim == 2 else None if one is None else pixels.squeeze(one)
    if grey is not None and grey.dtype == np.uint8:
        return as_picture(Image.fromarray(grey), channels)
    return value if pixels is array else pixels


def _eight_bits(array: np.ndarray, rescales: bool) -> np.ndarray:
    """Whole numbers as bytes. Fractions stay as they are, where they can be what the processor expects."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16 or array.dtype == np.dtype(">u2"):
        return np.round(array / 257).astype(np.uint8)  # 65535 is 255
    if array.dtype.kind not in "iuf":
        raise UnlearningError(f"The pixels of the picture are of type {array.dtype}; {EXPECTED}.")
    low, high = array.min(), array.max()
    if array.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise UnlearningError(
                f"The pixels of the picture are from {low} to {high} in numbers of {8 * array.dtype.itemsize} bits, of which it "
                f"is not known what white is; {EXPECTED}."
            )
        return array.astype(np.uint8)
    if not np.isfinite([low, high]).all():
        raise UnlearningError(f"Some pixels of the picture are NaN or infinite; {EXPECTED}.")
    if rescales and (low < 0 or 0 < high <= 1 or high > 255):
        raise UnlearningError(
            f"The pixels of the picture are from {low:g} to {high:g}, and the image processor takes them for 0 to 255; "
            f"{EXPECTED}, or a processor with do_rescale=False."
        )
    return array
