"""The border of the library: whatever comes from below leaves it as one sentence, with the exception as its cause."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import Failure, UnlearningError, in_one_sentence


@contextmanager
def border(doing: str) -> Iterator[None]:
    """Another library's exception, or one of a user's own method or callback, becomes a `Failure`.

    A lack of memory stays what it is, so that callers can try again with less; so does Ctrl-C.
    """
    try:
        yield
    except (UnlearningError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise Failure(f"{doing} failed with a {type(error).__name__}: {in_one_sentence(error)}") from error
