"""The one exception that this library raises on purpose."""


class UnlearningError(ValueError):
    """Something the user can mend: one sentence with what was given, what was expected and what to do."""


def in_one_sentence(error: BaseException) -> str:
    """What another library's exception says, in one line that ends in a full stop."""
    text = " ".join(str(error).split()).rstrip(".:; ")
    return f"{text[:300] or type(error).__name__}."
