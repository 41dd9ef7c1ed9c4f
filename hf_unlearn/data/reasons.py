"""What is said of a row that cannot be read."""

from ..errors import UnlearningError


def unreadable(index: int, name: str, why: Exception) -> UnlearningError:
    return UnlearningError(
        f"Row {index} of {name} cannot be read ({reason(why)}); remove the row or replace its content."
    )


def reason(error: BaseException) -> str:
    """What an exception says, in one line; its kind too, unless it is our own."""
    if isinstance(error, UnlearningError):
        return str(error).rstrip(".")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = lines[0][:150].rstrip(". ")
    if isinstance(error, OSError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
