"""The labels of the data and the classes of a model, matched by name."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from ..errors import UnlearningError


class Classes:
    """Classes by number and name.

    A name is found as it is written, else regardless of case and of how its words are joined, if that leaves one class;
    "3" and "LABEL_3" are class 3 where no class is called so.
    """

    def __init__(self, named: Iterable[tuple[str, int]], size: int):
        self.size, self.names = size, [""] * size
        self._exact: dict[str, set[int]] = defaultdict(set)
        self._alike: dict[str, set[int]] = defaultdict(set)
        for name, number in named:
            if 0 <= number < size and _as_number(name) != number:
                self.names[number] = self.names[number] or name
                self._exact[name].add(number)
                self._alike[_plain(name)].add(number)

    @classmethod
    def of_model(cls, config: PreTrainedConfig) -> "Classes":
        named = [(str(name), int(number)) for number, name in (config.id2label or {}).items()]
        numbers = defaultdict(set)
        for name, number in named:
            numbers[_plain(name)].add(number)
        for name, number in (config.label2id or {}).items():
            if (found := numbers[_plain(str(name))]) and int(number) not in found:
                raise UnlearningError(
                    f"The model calls class {min(found)} {name!r} in config.id2label, and class {number} in config.label2id; make "
                    "the two say the same."
                )
            named.append((str(name), int(number)))
        return cls(named, config.num_labels or 0)

    @property
    def has_names(self) -> bool:
        return bool(self._exact)

    def find(self, name: str, near: int | None = None) -> int:
        """The number of a class, -1 if there is none, or more than one of them and none of these is `near`."""
        number = self.called(name, near)
        if number is not None:
            return number
        number = _as_number(name)
        return -1 if number is None or number >= self.size else number

    def called(self, name: str, near: int | None = None) -> int | None:
        """As `find`, by names alone; None where no class is called so."""
        for found in (self._exact.get(name), self._alike.get(_plain(name))):
            if found:
                return near if near in found else min(found) if len(found) == 1 else -1
        return None

    def __str__(self) -> str:
        if not self.has_names:
            return f"0 to {self.size - 1}, the classes of the model's head"
        names = [name or str(number) for number, name in enumerate(self.names[:10])]
        return f"one of the model's classes ({', '.join(names)}{', ...' if self.size > 10 else ''})"


class Numbering:
    """From the labels of one set to the numbers of a model's classes.

    Attributes:
        names: of the set's classes, by position; None if it has numbers only.
        are_text: whether the names themselves are stored, and not positions.
        numbers: the model's class of each name; None if they are taken by position.
    """

    def __init__(self, classes: Classes, names: Sequence[str] | None, are_text: bool = False):
        self.classes, self.are_text, self.numbers = classes, are_text, None
        positions = None if names is None else [str(i) for i in range(len(names))]
        # A ClassLabel without names of its own has these; where the model calls another class so, that is worth saying.
        own = names is not None and list(names) != positions
        clash = positions and any(classes.called(name) is not None for name in positions)
        self.names = names if own or clash else None
        if names and self.names and (own or are_text) and (are_text or classes.has_names or self._are_numbers(names)):
            self.numbers = np.asarray([classes.find(name, near=i) for i, name in enumerate(names)], np.int64)

    def _are_numbers(self, names: Sequence[str]) -> bool:
        """Whether the names are numbers of classes; "1" to "4" of all four classes of a head only say which is which."""
        numbers = [_as_number(name) for name in names]
        shifted = len(names) == self.classes.size and max((n for n in numbers if n is not None), default=0) >= len(
            names
        )
        return None not in numbers and not shifted

    @cached_property
    def _by_label(self) -> dict[float | str, int]:
        numbers = range(self.classes.size) if self.numbers is None else self.numbers.tolist()
        return dict(enumerate(numbers))

    @property
    def is_identity(self) -> bool:
        return self.numbers is None or (self.numbers == np.arange(len(self.numbers))).all()

    def number(self, label: Any) -> int:
        """The model's class of one stored label; -1 if there is none."""
        if isinstance(label, str):
            if label not in self._by_label:
                self._by_label[label] = self.classes.find(label)
            return self._by_label[label]
        if np.ndim(label) != 0:
            return -1
        return self._by_label.get(label if isinstance(label, (int, float)) else np.asarray(label).item(), -1)

    def apply(self, positions: np.ndarray) -> np.ndarray:
        if self.numbers is None or not len(self.numbers):
            return positions
        known = (positions >= 0) & (positions < len(self.numbers))
        return np.where(known, self.numbers[np.where(known, positions, 0)], -1)

    @property
    def note(self) -> str | None:
        """What is worth saying about how names were matched."""
        if self.names is None or self.are_text:
            return None
        if self.numbers is None:
            fewer = (
                "" if len(self.names) == self.classes.size else f", {len(self.names)} for {self.classes.size} classes"
            )
            why = "the model has no names for its classes; set model.config.id2label to have them matched by name"
            if self.classes.has_names:
                why = f"the model's names are other numbers ({', '.join(self.classes.names[:4])}, ...); name the classes of both alike"
            return f"are taken by position ({_few([repr(name) for name in self.names], range(len(self.names)))}{fewer}): {why}"
        moved = [i for i, number in enumerate(self.numbers) if number not in (i, -1)]
        if not moved:
            return None
        shown = _few([f"{self.names[i]!r} ({i})" for i in moved], self.numbers[moved].tolist())
        return f"are matched to the model's classes by name, and so numbered anew ({shown})"


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _as_number(name: str) -> int | None:
    """3 of "3" and "LABEL_3"."""
    found = re.fullmatch(r"(?:label[_ ])?(\d+)", name.strip(), re.IGNORECASE)
    return int(found[1]) if found else None


def _few(names: Sequence[str], numbers: Sequence[int]) -> str:
    shown = [f"{name} is {number}" for name, number in zip(names[:4], numbers[:4], strict=True)]
    return ", ".join(shown) + (", ..." if len(names) > 4 else "")
