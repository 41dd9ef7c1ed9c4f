"""A card for another address: what it says of where the model is changes, and what somebody has written into it stays.

The receipt goes with it, so that a release which is pushed holds against its own.
"""

from difflib import SequenceMatcher
from pathlib import Path

from ..errors import UnlearningError
from .canonical import body, digest_of, read_receipt
from .card import make_card, read_card, read_parent_card
from .card_parts import parts_of, read_parts
from .contents import Files
from .integrity import check_parts
from .names import CARD, RECEIPT
from .receipt import sealed, written
from .repository import Parent
from .subject import Failed, Subject


def card_and_receipt(folder: Path, repo_id: str, revision: str, token: str | bool | None = None) -> Files:
    """What of the two has to be another one than in the folder, for a release that is pushed to an address.

    A card that was edited gets a receipt that commits to it, if that is not signed. What `verify` would refuse all the same is
    refused here. (Of a receipt that is none, or was changed itself, nothing is made good.)
    """
    text = readdressed(folder, repo_id, revision, token)
    files: Files = {} if text is None else {CARD: text.encode()}
    try:
        receipt = read_receipt(folder)
    except UnlearningError:
        return files
    if receipt["format"] == 1 or receipt["digest"] != digest_of(body(receipt)):
        return files
    card = read_parts(folder / CARD) if text is None else parts_of(text)
    is_signed = "signature" in receipt
    if not is_signed and receipt["card"] != card.digests():
        receipt = sealed(receipt, card)
        files[RECEIPT] = written(receipt).encode()
    try:
        check_parts(receipt, card, Subject(folder))
    except Failed as failure:
        sign = ", or sign it as it is now with hub.receipt.seal(folder, sign_key=...)" if is_signed else ""
        raise UnlearningError(
            f"{failure}, so the release would fail its own verify; put that back, or write the card anew with "
            f"hub.card.write_card(folder, repo_id=..., revision=...){sign}"
        ) from failure
    return files


def readdressed(folder: Path, repo_id: str, revision: str, token: str | bool | None = None) -> str | None:
    """The card of a release for another repository or branch; None where it is for this one, or is not one of ours."""
    data = read_card(folder / CARD)
    ours = data.get("hf_unlearn")
    if not isinstance(ours, dict):
        return None
    old = ours.get("repository"), ours.get("revision")
    if old == (repo_id, revision):
        return None
    parent = Parent(ours["parent"], ours["parent_revision"]) if ours.get("parent_revision") else None
    parent_card = read_parent_card(parent.repo_id, parent.commit, token) if parent else data
    before, after = (
        str(make_card(folder, repo_id=name, revision=branch, parent=parent, parent_card=parent_card)).splitlines()
        for name, branch in (old, (repo_id, revision))
    )
    return _merged((folder / CARD).read_text().splitlines(), before, after)


def _merged(text: list[str], before: list[str], after: list[str]) -> str:
    """A text with the changes from one version of it to the next, each of which is looked for between its neighbours."""
    for tag, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        # A line on each side says where it is: else two equal lines could not be told apart.
        old = before[max(i - 1, 0) : j + 1]
        new = before[max(i - 1, 0) : i] + after[k:m] + before[j : j + 1]
        places = [n for n in range(len(text) - len(old) + 1) if text[n : n + len(old)] == old]
        if len(places) != 1:
            raise UnlearningError(
                f"{CARD} was written for another address, and edited where that stands ({old[0] or old[-1]!r}); write it anew with "
                "hub.card.write_card(folder, repo_id=..., revision=...), and edit that"
            )
        text = text[: places[0]] + new + text[places[0] + len(old) :]
    return "\n".join(text) + "\n"
