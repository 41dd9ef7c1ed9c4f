"""The fields of a dataclass and the types of their values: what fits, and the words for what was expected."""

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from ..errors import UnlearningError

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    list: "a list",
}


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The types of the fields that `cls` is made with."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a user's own class, with types that are only imported for type checkers
        hints = {}
    return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(cls) if f.init}


def options(hint: Any) -> tuple:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def kind(option: Any) -> Any:
    """A type without its parameters; tuples are lists."""
    origin = typing.get_origin(option) or option
    return list if origin is tuple else origin


def expected(hint: Any) -> str:
    """A type in words; empty where it is none that a text can be read as."""
    words = []
    for option in options(hint):
        if choices := _choices(option):
            words.append(" or ".join(filter(None, (", ".join(choices[:-1]), choices[-1]))))
        elif kind(option) in WORDS and not (option is str and words):
            words.append(WORDS[kind(option)])
    return " or ".join(dict.fromkeys(words))


def _choices(option: Any) -> list[str]:
    if kind(option) is Literal:
        return [str(choice) for choice in typing.get_args(option)]
    if isinstance(option, type) and issubclass(option, enum.Enum):
        return [str(member.value) for member in option]
    return []


def check_fields(settings: Any, owner: str, names: Iterable[str] | None = None) -> None:
    """Refuse a value that is not of its field's type: a flag or a number as text, an infinite number, an unknown word.

    Numbers of numpy become those of Python, which JSON can hold.
    """
    hints = field_types(type(settings))
    for name in hints if names is None else names:
        value = getattr(settings, name)
        if isinstance(value, (np.number, np.bool_)):
            value = value.item()
            setattr(settings, name, value)
        if not fits(value, hints[name]):
            words = expected(hints[name])
            if isinstance(value, float):  # infinite or NaN
                words = words.replace("a number", "a finite number")
            raise UnlearningError(f"{owner}: {name} is {value!r}; expected {words}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type; of other types than those that a recipe can hold, anything is."""
    return any(_fits(value, option) for option in options(hint))


def _fits(value: Any, option: Any) -> bool:
    base, inner = kind(option), typing.get_args(option)
    if base is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if base is bool:
        return isinstance(value, bool)
    if base in (int, float):
        number = isinstance(value, (int, base)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if base is dict:
        return isinstance(value, dict) or dataclasses.is_dataclass(value)
    if base is list:
        return isinstance(value, (list, tuple)) and all(fits(item, inner[0]) for item in value if inner)
    if isinstance(base, type) and issubclass(base, enum.Enum):
        return value in [member.value for member in base]
    return base is Any or not isinstance(base, type) or isinstance(value, base)
