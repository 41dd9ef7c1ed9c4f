"""Settings as text, from a YAML file and the command line, and what they mean for a dataclass field.

The type of the field decides how a text is read, so that `1e-4` is a number, `save_strategy: no` is a word, and a
revision called `1.10` keeps its zero.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from ..errors import UnlearningError
from ..methods.fields import expected, field_types, kind, options
from .text import show


class Unquoted(str):
    """Text that stood without quotes: it may mean a number, true, false or null."""


class Setting(NamedTuple):
    value: Any  # text, or a list or mapping of texts
    origin: str  # where it was given, for error messages


class _Loader(yaml.BaseLoader):
    """YAML's structure with all scalars left as text, because YAML 1.1 takes `no` for false and 1e-4 for text."""

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text = super().construct_scalar(node)
        return Unquoted(text) if node.style is None else text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if twice := _given_twice([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]):
            raise yaml.MarkedYAMLError(problem=f"{twice}; expected it once", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _given_twice(keys: Sequence[str]) -> str | None:
    """What is given twice, `learning-rate` beside `learning_rate` too, so that one of the values would be lost."""
    first: dict[str, str] = {}
    for key in keys:
        before = first.setdefault(key.replace("-", "_"), key)
        if before != key or keys.count(key) > 1:
            return f"{key!r} is given twice" if before == key else f"{before!r} and {key!r} are the same setting"
    return None


def read_settings(argv: Sequence[str], recipe_file: str | Path | None = None) -> dict[str, Setting]:
    """Settings by name; the command line goes before the file.

    Args:
        argv: `key=value`, `--key=value` and `--key value`; `--key` alone is true. `--config FILE`, or a FILE without
            `=`, names the recipe file.
        recipe_file: a YAML file.
    """
    given: list[tuple[str, Setting]] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not equals and word.startswith("--"):
            text = words.pop(0) if words and not words[0].startswith("--") else "true"
        elif not equals:
            key, text = "config", word
        if key != "config":
            given.append((key, Setting(_read_value(text), "on the command line")))
        elif recipe_file is None:
            recipe_file = text
        else:
            raise UnlearningError(
                f"There is {text!r} beside the recipe {str(recipe_file)!r}; expected one recipe file, and settings "
                "written as key=value."
            )
    if twice := _given_twice(list(dict.fromkeys(key for key, _ in given))):  # of one and the same key the last wins
        raise UnlearningError(f"On the command line {twice}; expected it once.")
    of_file = _read_file(recipe_file) if recipe_file is not None else {}
    return of_file | {key.replace("-", "_"): setting for key, setting in given}


def _read_value(text: str) -> Any:
    if text[:1] in ("[", "{", '"', "'"):
        try:
            return yaml.load(text, _Loader)
        except yaml.YAMLError:
            pass  # text that happens to begin like that
    return Unquoted(text)


def _read_file(path: str | Path) -> dict[str, Setting]:
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UnlearningError(f"The recipe {str(path)!r} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UnlearningError(f"The recipe {str(path)!r} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content or {}, dict):
        raise UnlearningError(f"The recipe {str(path)!r} holds no settings; expected lines such as `method: lotus`.")
    return {key.replace("-", "_"): Setting(value, f"in {path}") for key, value in (content or {}).items()}


NULL = ("", "~", "null")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def settable(cls: type) -> dict[str, Any]:
    """The fields that can be set, with their types; what a config asks of the training is set directly."""
    return {name: hint for name, hint in field_types(cls).items() if name != "arguments"}


def typed(key: str, setting: Setting, hint: Any) -> Any:
    try:
        return _convert(setting.value, hint)
    except ValueError:
        raise UnlearningError(f"{key} is {setting.value!r} ({setting.origin}); expected {words(hint)}.") from None


def words(hint: Any) -> str:
    return expected(hint) or "nothing, because it cannot be set in a recipe"


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the first of the hint's types that it can be; text is tried last. A ValueError if it can be none."""
    kinds = options(hint)
    if types.NoneType in kinds and isinstance(value, Unquoted) and value.lower() in NULL:
        return None
    takes_text = str in kinds and isinstance(value, str)
    if takes_text and not isinstance(value, Unquoted):
        return value
    for option in sorted(kinds, key=lambda option: option is str):
        if takes_text and kind(option) is list:
            continue  # one text is not a list of one where it may stand for itself
        try:
            return _as(value, option)
        except (ValueError, TypeError, KeyError):
            continue
    raise ValueError(value)


def _as(value: Any, option: Any) -> Any:
    base, inner = kind(option), typing.get_args(option)
    if base is list:
        if isinstance(value, str):
            value = [Unquoted(part.strip()) for part in value.split(",")] if isinstance(value, Unquoted) else [value]
        items = [_convert(item, inner[0] if inner else str) for item in value]
        return tuple(items) if typing.get_origin(option) is tuple else items
    if base is dict and isinstance(value, dict):
        return {key: _guess(item) for key, item in value.items()}
    if not isinstance(value, str):
        raise TypeError(value)
    if base is Literal:
        return {str(choice).lower(): choice for choice in inner}[value.lower()]
    if base is bool:
        return BOOLEANS[value.lower()]
    if base in (int, float, str) or issubclass(base, enum.Enum):
        return base(value)
    raise TypeError(value)


def _guess(value: Any) -> Any:
    """A value inside a mapping, whose type nothing tells."""
    if isinstance(value, dict):
        return {key: _guess(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_guess(item) for item in value]
    return _convert(value, bool | int | float | str | None)


def show_default(f: dataclasses.Field) -> str:
    if f.default is not dataclasses.MISSING:
        return f"default {show(f.default)}"
    if f.default_factory is not dataclasses.MISSING:
        return f"default {show(f.default_factory())}"
    return "required"
