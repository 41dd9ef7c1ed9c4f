"""The client of the Hub: its token, what is asked again, and errors in one sentence."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from ..errors import UnlearningError
from ..models.find import check_token

T = TypeVar("T")

TRIES, WAIT = 4, 1.0  # seconds before the second try, twice as many before each further one
TRANSIENT = (408, 409, 429, 500, 502, 503, 504)
CONFLICTS = (408, 409)  # what may pass too, and the client does not try again by itself
WRAPPING = (LocalEntryNotFoundError, RuntimeError)
# What the Hub client raises when something cannot be had.
HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError)


class UnreadableError(UnlearningError):
    """What has to be read of the Hub may be there, and cannot be had now."""


# ---------------------------------------------------------------------------------------------------------------------
# The token


def reader(token: str | bool | None) -> HfApi:
    """A client that may do without a token."""
    check_token(token)
    return HfApi(token=token)


def client(token: str | bool | None) -> HfApi:
    """A client that may write."""
    check_token(token)
    if token is False or not (isinstance(token, str) or get_token()):
        raise UnlearningError(
            "there is no token; log in with `hf auth login` and a token that may write, set HF_TOKEN, or pass token="
        )
    return HfApi(token=token)


# ---------------------------------------------------------------------------------------------------------------------
# Once more


def retry(call: Callable[..., T], *args: Any, on: tuple[int | None, ...] = (None, *TRANSIENT), **kwargs: Any) -> T:
    """Call again, a few times, after what may pass: no connection, too many requests, an error of the server.

    Args:
        on: the answers that may pass, None for none at all. Of what the client asks again by itself, as it does for lists of
            files and commits and for uploads, only `CONFLICTS`.
    """
    for attempt in range(TRIES):
        try:
            return call(*args, **kwargs)
        # An error page is no JSON; a file that is not in the cache either, and an upload, have the reason behind them.
        except (httpx.HTTPError, json.JSONDecodeError, *WRAPPING) as error:
            if attempt == TRIES - 1 or not may_pass(error) or status(error) not in on:
                raise
            time.sleep(WAIT * 2**attempt)
    raise AssertionError


def chain(error: BaseException) -> list[BaseException]:
    """An error and its causes."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(cause)
    return found


def status(error: BaseException) -> int | None:
    """What the Hub answered, if it did."""
    answers = chain(error) if isinstance(error, WRAPPING) else [error]
    return next((cause.response.status_code for cause in answers if isinstance(cause, HfHubHTTPError)), None)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may be answered another time."""
    causes = chain(error)
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return False
    if isinstance(error, WRAPPING) and not any(isinstance(cause, httpx.HTTPError) for cause in causes):
        return False
    return status(error) in (None, *TRANSIENT)


def is_absent(error: BaseException) -> bool:
    """Whether the Hub said that there is no such repository, revision or file.

    Without a token, it answers 401 for what is not there and for what is private.
    """
    for cause in chain(error):
        if isinstance(cause, HFValidationError):
            return True
        if isinstance(cause, HfHubHTTPError):
            answer, sent = cause.response.status_code, cause.response.request.headers
            return answer == 404 or (answer == 401 and "authorization" not in sent)
    return False


# ---------------------------------------------------------------------------------------------------------------------
# In one sentence


@contextmanager
def telling(what: str, command: Callable[[], str] | None = None) -> Iterator[None]:
    """What went wrong, in one sentence, with the command that tries again."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, httpx.HTTPError) as error:  # an UnlearningError is a ValueError
        why = str(error).rstrip(".") if isinstance(error, UnlearningError) else reason(error)
        # What was refused here would be refused again.
        again = None if isinstance(error, UnlearningError) else command
        later = f"; the folder is complete, and this pushes it: {again()}" if again else "."
        raise UnlearningError(f"{what}: {why}{later}") from _without_token(error)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """The same of what is read; an `UnreadableError` where it may be there all the same."""
    try:
        yield
    except (*HUB_ERRORS, json.JSONDecodeError) as error:
        kind = UnlearningError if is_absent(error) else UnreadableError
        raise kind(f"{what} cannot be read: {reason(error)}.") from _without_token(error)


def reason(error: BaseException) -> str:
    """Why the Hub did not do it, found along the chain of causes."""
    causes = chain(error)
    if lines := _refused_card(causes[0]):
        return lines
    for error in causes:
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so the Hub is not asked"
        if isinstance(error, RevisionNotFoundError):
            return "the repository has no such branch, tag or commit"
        if isinstance(error, (RepositoryNotFoundError, HfHubHTTPError)) and not isinstance(error, EntryNotFoundError):
            if status(error) in (401, 404) and is_absent(error):
                return (
                    "there is no such repository, or the token may not see it; check the name, or have it created "
                    "(private=True or False; --create private or public)"
                )
            return _refusal(error)
        if isinstance(error, httpx.HTTPError) and not isinstance(error, HfHubHTTPError):
            return f"the Hub cannot be reached at {constants.ENDPOINT}; check the connection and try again"
    lines = str(causes[0]).strip().splitlines() or [type(causes[0]).__name__]
    return " ".join(line.strip() for line in lines[:2]).rstrip(".")


def _refused_card(error: BaseException) -> str | None:
    """What the client makes of the Hub's answer to a card, where it has refused its metadata."""
    first, *lines = str(error).strip().splitlines() or [""]
    if not (isinstance(error, ValueError) and first.startswith("Invalid metadata in ")):
        return None
    why = "; ".join(line.strip().removeprefix("- ").rstrip(".") for line in lines if line.strip())
    return f"the Hub refuses the metadata of README.md ({why or 'without a reason'}); mend them in the folder"


def _refusal(error: HfHubHTTPError) -> str:
    known = {
        401: "the Hub does not accept the token; log in again with `hf auth login`, or pass another one",
        403: "the token may not write there; use one with write access to the repository",
        409: "another operation on the repository is going on; try again in a moment",
        412: "somebody else has pushed to the branch in the meantime; choose another revision",
        429: "the Hub takes no more requests for now; try again later",
    }
    answer = error.response.status_code
    if answer in known:
        return known[answer]
    if answer >= 500:
        return f"the Hub has an error of its own ({answer}); try again later"
    said = " ".join((error.server_message or "").split())
    return f"the Hub refused the request ({answer}{f': {said}' if said else ''})"


def _without_token(error: BaseException) -> BaseException | None:
    """The cause that a traceback may show: none where one of the errors has written a token out."""
    return None if any("bearer " in f"{cause!r} {cause}".lower() for cause in chain(error)) else error
