"""What a receipt commits to of a card: each key of its metadata and each section by a digest, but for what depends on the
place of the release (its title, `How to load` down to the command), which can be written again instead.

Sections that somebody adds are told apart from those that belong to the release.
"""

import hashlib
import re
import shlex
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import UnlearningError
from .canonical import digest_of
from .names import CARD

INTRODUCTION, HOW_TO_LOAD, BELOW = "the introduction", "How to load", "How to load, below the command"
PLACED = ("base_model", "base_model_relation")  # the keys of the metadata that depend on the place
ADDRESS = ("repository", "revision")  # and those of our own block in them
COMMAND = re.compile(r"`(hf-unlearn verify [^`]+)`")


class Place(NamedTuple):
    """What a card says of the place where its release is: the texts that depend on it."""

    title: str
    notice: str
    how_to_load: str

    def named(self) -> dict[str, str]:
        return dict(zip(("the title", "the notice", HOW_TO_LOAD), self, strict=True))


@dataclass(frozen=True)
class CardParts:
    """A card in its parts.

    Attributes:
        metadata: as YAML has it, with every value as the text that stands there.
        place: the texts that depend on where the release is.
        sections: the other sections by their headings, and the introduction.
        is_annotated: whether its metadata have comments, anchors or tags, of which YAML gives nothing.
    """

    metadata: dict[str, Any]
    place: Place
    sections: dict[str, str]
    is_annotated: bool = False

    @property
    def results(self) -> list[Any]:
        """The results of each model in `model-index`."""
        index = self.metadata.get("model-index")
        index = index if isinstance(index, list) else [index] if index else []
        return [model.get("results") if isinstance(model, dict) else model for model in index]

    @property
    def about(self) -> dict[str, Any]:
        """The block of its own that hf_unlearn has in the metadata."""
        about = self.metadata.get("hf_unlearn")
        return about if isinstance(about, dict) else {}

    @property
    def base_models(self) -> list[str]:
        return _names(self.metadata.get("base_model"))

    @property
    def parent_bases(self) -> list[str]:
        """What the parent's card named as its base."""
        return _names(self.about.get("parent_base"))

    def digests(self) -> dict[str, dict[str, str]]:
        """What a receipt has of a card; of one that somebody else has written, the whole."""
        metadata = {key: value for key, value in self.metadata.items() if key not in PLACED}
        if "model-index" in metadata:
            metadata["model-index"] = self.results
        if self.about:
            metadata["hf_unlearn"] = {key: value for key, value in self.about.items() if key not in ADDRESS}
        sections = self.sections | ({} if COMMAND.search(self.place.how_to_load) else self.place.named())
        return {
            "metadata": {key: digest_of(value) for key, value in metadata.items()},
            "sections": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sections.items()},
        }

    def address(self) -> tuple[str | None, str | None]:
        """The repository and the branch that the card tells to load, by the command that it gives; None for a folder."""
        if (found := COMMAND.search(self.place.how_to_load)) is None:
            raise UnlearningError(
                f"{HOW_TO_LOAD} in {CARD} has no command that verifies; expected that it was left as it was."
            )
        try:
            words = shlex.split(found[1])
        except ValueError:
            words = []
        if len(words) == 3:
            return (None if words[2] == "." else words[2]), None
        if len(words) == 5 and words[3] == "--revision":
            return words[2], words[4]
        raise UnlearningError(f"{found[1]} in {CARD} cannot be read; expected the command as hf_unlearn wrote it.")


def read_parts(path: Path) -> CardParts:
    """The parts of a card; an error in one sentence where they cannot be told."""
    try:
        return parts_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = getattr(error, "problem", None) or getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise UnlearningError(f"{path.name} cannot be read ({why}); expected a card as hf_unlearn wrote it.") from None


def parts_of(text: str) -> CardParts:
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark, behind which no client finds its metadata")
    text = text.replace("\r\n", "\n")
    found = re.match(r"---\n(.*?)^---\n", text, flags=re.DOTALL | re.MULTILINE)
    metadata = yaml.load(found[1], Loader=_Loader) if found else {}
    if not isinstance(metadata, dict):
        raise ValueError("its metadata are no mapping")
    head, *rest = re.split(r"^## ", text[found.end() if found else 0 :], flags=re.MULTILINE)
    lines = head.strip().split("\n")
    title = lines.pop(0) if lines[0].startswith("# ") else ""
    notice = "\n".join(line for line in lines if line.startswith("> **Pass "))
    introduction = "\n".join(line for line in lines if not line.startswith("> **Pass ")).strip()
    sections: dict[str, str] = {INTRODUCTION: introduction} if introduction else {}
    for part in rest:
        name, _, content = part.partition("\n")
        if (name := name.strip()) in sections:
            raise ValueError(f"it has two sections {name!r}")
        sections[name] = content.strip()
    how_to_load = sections.pop(HOW_TO_LOAD, "")
    if (command := COMMAND.search(how_to_load)) and BELOW in sections:
        raise ValueError(f"it has two sections {BELOW!r}")
    if command:
        sections[BELOW] = how_to_load[command.end() :]
        how_to_load = how_to_load[: command.end()]
    return CardParts(metadata, Place(title, notice, how_to_load), sections, bool(found) and _is_annotated(found[1]))


def _is_annotated(block: str) -> bool:
    """Whether there is something between the tokens of YAML, which can only be a comment, or a token that names no value."""
    end = 0
    for token in yaml.scan(block, Loader=_Loader):
        start, stop = token.start_mark.index, token.end_mark.index
        is_block = isinstance(token, yaml.ScalarToken) and token.style in ("|", ">")
        if isinstance(token, (yaml.AnchorToken, yaml.TagToken, yaml.DirectiveToken)) or block[end:start].strip():
            return True
        if is_block and "#" in block[start:stop].partition("\n")[0]:
            return True
        end = max(end, stop)
    return bool(block[end:].strip())


def _names(given: Any) -> list[str]:
    return [str(name) for name in (given if isinstance(given, list) else [given] if given else [])]


class _Loader(yaml.BaseLoader):
    """Every value as text; no key twice, and no aliases, of which a few lines make more than fits into a memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("its metadata have an alias")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.YAMLError("a key of its metadata stands there twice")
        if not all(isinstance(key, str) for key in mapping):
            raise yaml.YAMLError("a key of its metadata is no text")
        return mapping
