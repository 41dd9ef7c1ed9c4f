"""`verify`: does a release hold what its receipt says, and was it made from what the receipt says?

Every check ends in passed, failed, or not checked with the reason; what was not checked never counts as passed.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UnlearningError
from . import merkle, signing
from .canonical import body, canonical, digest_of, read_receipt
from .client import HUB_ERRORS, check_token
from .integrity import check_card, check_configuration, check_files, check_metrics, check_weights
from .lineage import Origin, check_chain, check_history, check_parent
from .names import RECEIPT
from .records import Records, Secrets, record_digests
from .subject import Failed, Subject, Unchecked


class Check(NamedTuple):
    """One question and its answer: passed is None where it was not checked, and the sentence says why."""

    name: str
    passed: bool | None
    sentence: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found out.

    Attributes:
        what: the folder, or the repository and commit.
        receipt: as it was read; None if it could not be.
        checks: in the order they were made.
        uncovered: what is in the release, or beside it, of which no check says anything.
        later: the releases that are known to be newer than this one.
    """

    what: str
    receipt: dict[str, Any] | None
    checks: list[Check]
    uncovered: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing failed. What was not checked is in `unchecked`."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        return [check.name for check in self.checks if check.passed is False]

    @property
    def unchecked(self) -> list[str]:
        return [check.name for check in self.checks if check.passed is None]

    @property
    def is_unvouched(self) -> bool:
        """Whether there is a signature, and it was not checked whose it is."""
        return self.receipt is not None and "signature" in self.receipt and "signature" in self.unchecked

    @property
    def exit_code(self) -> int:
        """Of the command: 0 if nothing failed, 1 if something did, 3 if only whose the signature is was not checked.

        (2 says that the command could not do its work at all.)
        """
        return 1 if self.failed else 3 if self.is_unvouched else 0

    @property
    def line(self) -> str:
        """One line: the first failure with its reason and the names of the others, or what holds; and what is not known."""
        failures = [check for check in self.checks if check.passed is False]
        if failures:
            words = f"FAILED {failures[0].name}: {failures[0].sentence}."
            if others := ", ".join(check.name for check in failures[1:]):
                words += f" Failed too: {others}."
            skipped = ", ".join(self.unchecked)
        else:
            begin = "Verified, but not who signed it" if self.is_unvouched else "Verified"
            words = f"{begin}: {', '.join(check.name for check in self.checks if check.passed)}."
            skipped = "; ".join(f"{check.name} ({check.sentence})" for check in self.checks if check.passed is None)
        line = f"{self.what}: {words}"
        for what, said in (
            ("Not the newest release, which is", "; ".join(self.later)),
            ("Not checked:", skipped),
            ("Not covered:", "; ".join(self.uncovered)),
        ):
            line += f" {what} {said}." if said else ""
        return "".join(c if c.isprintable() else "?" for c in line)  # names in a receipt may be anything

    def __str__(self) -> str:
        return self.line


def verify(
    repo_or_folder: str | Path,
    *,
    revision: str | None = None,
    forget: Records | None = None,
    secrets: str | Path | None = None,
    parent: str | Path | None = None,
    public_key: str | Path | None = None,
    max_parent_bytes: int | None = None,
    held: Collection[str] = (),
    token: str | None = None,
) -> Verification:
    """Recompute everything that a release's receipt says and that can be had.

    Args:
        repo_or_folder: a Hub id or a local folder.
        revision: branch, tag or commit on the Hub; default: main.
        forget: records that are said to have been in the request (some of them, or all), with `secrets`.
        secrets: the `receipt_secrets.json` that was written beside the run.
        parent: what the model was unlearned from, where it is not to be fetched from where the receipt says: a folder,
            or a Hub id with the commit behind an @.
        public_key: a PEM file with the Ed25519 key that must have signed the receipt.
        max_parent_bytes: how much may be fetched as the parent that the receipt names; default: twice the weights of the
            release, or 1 GiB if that is more. A larger one is not checked.
        held: digests of receipts whose chains have been found to hold just now; there is no need to go behind them.
    """
    check_token(token)
    if (forget is None) != (secrets is None):
        raise UnlearningError(
            f"{'secrets' if forget is None else 'forget'} is given alone; expected the records and the secrets of the "
            "receipt together."
        )
    if max_parent_bytes is not None and (type(max_parent_bytes) is not int or max_parent_bytes < 0):
        raise UnlearningError(
            f"max_parent_bytes is {max_parent_bytes!r}; expected a whole number of bytes, 0 or more, or None."
        )
    release = Subject.open(repo_or_folder, revision, token)
    if not (release.folder / RECEIPT).is_file():
        raise UnlearningError(f"{release.what} holds no {RECEIPT}; pass a release that hf_unlearn wrote.")
    try:
        receipt = read_receipt(release.folder)
    except UnlearningError as error:
        return Verification(release.what, None, [Check("receipt", False, str(error).rstrip("."))])
    origin = Origin(receipt["parent"], parent, release, max_parent_bytes)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("receipt", lambda: _check_digest(receipt)),
        ("signature", lambda: _check_signature(receipt, public_key)),
        ("weights", lambda: check_weights(receipt, release)),
        ("metrics", lambda: check_metrics(receipt, release)),
        ("configuration", lambda: check_configuration(receipt, release)),
        ("files", lambda: check_files(receipt, release)),
        ("card", lambda: check_card(receipt, release)),
        ("history", lambda: check_history(receipt, release)),
        ("parent", lambda: check_parent(receipt, origin)),
        ("chain", lambda: check_chain(receipt, origin, release, held)),
        ("records", lambda: _check_records(receipt, forget, secrets)),
    ]
    checks = [_made(name, step) for name, step in steps]
    release.uncovered.extend(f"{name}, which is not of the release" for name in release.left_by_clients())
    return Verification(release.what, receipt, checks, release.uncovered, release.later)


def _made(name: str, step: Callable[[], str]) -> Check:
    try:
        return Check(name, True, step())
    except Unchecked as reason:
        return Check(name, None, str(reason))
    except Failed as failure:
        return Check(name, False, str(failure))
    except HUB_ERRORS as error:
        return Check(name, None, f"the Hub cannot be asked ({type(error).__name__})")
    except (OSError, RecursionError) as error:  # a file that is none, or may not be read; lists in lists in lists
        return Check(name, False, f"it cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})")


def _check_digest(receipt: dict[str, Any]) -> str:
    if receipt["digest"] != digest_of(body(receipt)):
        raise Failed("its content was changed after its digest was written")
    return "the receipt has its own digest"


def _check_signature(receipt: dict[str, Any], public_key: str | Path | None) -> str:
    vouched = None if public_key is None else signing.load_public_key(public_key)
    if "signature" not in receipt:
        if vouched:
            raise Failed("the receipt is not signed")
        raise Unchecked("the receipt is not signed")
    signature = receipt["signature"]
    if not signing.is_installed():
        raise Unchecked("that needs the package cryptography: pip install 'hf_unlearn[sign]'")
    if not signing.is_signed(canonical(body(receipt)), signature):
        raise Failed("it does not belong to this content and this key")
    if vouched is None:
        raise Unchecked(
            f"signed by the key {signature['fingerprint']}, which you did not vouch for; pass public_key (--public-key)"
        )
    if signature["fingerprint"] != signing.fingerprint(vouched):
        raise Failed(f"signed by another key than the given one, {signature['fingerprint']}")
    return f"signed by the given key, {signature['fingerprint']}"


def _check_records(receipt: dict[str, Any], forget: Records | None, secrets: str | Path | None) -> str:
    if forget is None or secrets is None:
        raise Unchecked("no records and secrets were given")
    known = Secrets.load(secrets)
    root, count = receipt["forget"]["root"], receipt["forget"]["count"]
    stated = receipt["forget"].get("canonical", 1), receipt["forget"].get("columns", known.columns)
    if (
        (known.version, known.columns) != stated
        or len(known.records) != count
        or merkle.root(known.leaves).hex() != root
    ):
        raise Failed("the given secrets are of another receipt")
    given, asked = Counter(record_digests(forget, known.columns, known.version)), Counter(known.records)
    if strangers := (given - asked).total():
        raise Failed(f"{strangers} of the {given.total()} given records were not in the request")
    return f"{given.total()} of the {count} records of the request were given, and all of them were in it"
