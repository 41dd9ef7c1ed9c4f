"""The exception that this library raises on purpose, and what it makes of those of others."""


class UnlearningError(ValueError):
    """Something the user can mend: one sentence with what was given, what was expected and what to do."""


class Failure(UnlearningError):
    """An exception of another library, or of a user's own method or callback, as one sentence; it is the cause."""


def in_one_sentence(error: BaseException) -> str:
    """What another library's exception says, in one line that ends in a full stop."""
    text = " ".join(str(error).split()).rstrip(".:; ")
    return f"{text[:300] or type(error).__name__}."
