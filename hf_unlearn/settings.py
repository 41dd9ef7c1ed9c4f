"""Settings as text, from a YAML file and the command line, and what they mean for a dataclass field.

The type of the field decides how a text is read, so that `1e-4` is a number, `save_strategy: no` is a word, and a
revision called `1.10` keeps its zero.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from .errors import UnlearningError


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


def read_settings(argv: Sequence[str], recipe_file: str | Path | None = None) -> dict[str, Setting]:
    """Settings by name; the command line goes before the file.

    Args:
        argv: `key=value`, `--key=value` and `--key value`; `--key` alone is true. `--config FILE`, or a FILE without
            `=`, names the recipe file.
        recipe_file: a YAML file.
    """
    given: dict[str, Setting] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not equals and word.startswith("--"):
            text = words.pop(0) if words and not words[0].startswith("--") else "true"
        elif not equals:
            key, text = "config", word
        if key != "config":
            given[key.replace("-", "_")] = Setting(_read_value(text), "on the command line")
        elif recipe_file is None:
            recipe_file = text
        else:
            raise UnlearningError(
                f"There is {text!r} beside the recipe {str(recipe_file)!r}; expected one recipe file, and settings "
                "written as key=value."
            )
    return {**(_read_file(recipe_file) if recipe_file else {}), **given}


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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UnlearningError(f"The recipe {str(path)!r} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content or {}, dict):
        raise UnlearningError(f"The recipe {str(path)!r} holds no settings; expected lines such as `method: lotus`.")
    return {key.replace("-", "_"): Setting(value, f"in {path}") for key, value in (content or {}).items()}


def field_types(cls: type) -> dict[str, Any]:
    """The types of the fields that can be set; what a config asks of the training is set directly."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init and f.name != "arguments"}


NULL = ("", "~", "null")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    list: "a list",
}


def typed(key: str, setting: Setting, hint: Any) -> Any:
    try:
        return _convert(setting.value, hint)
    except ValueError:
        raise UnlearningError(f"{key} is {setting.value!r} ({setting.origin}); expected {expected(hint)}.") from None


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the first of the hint's types that it can be; text is tried last. A ValueError if it can be none."""
    options = _options(hint)
    if types.NoneType in options and isinstance(value, Unquoted) and value.lower() in NULL:
        return None
    takes_text = str in options and isinstance(value, str)
    if takes_text and not isinstance(value, Unquoted):
        return value
    for option in sorted(options, key=lambda option: option is str):
        if takes_text and _kind(option) is list:
            continue  # one text is not a list of one where it may stand for itself
        try:
            return _as(value, option)
        except (ValueError, TypeError, KeyError):
            continue
    raise ValueError(value)


def _as(value: Any, option: Any) -> Any:
    kind, inner = _kind(option), typing.get_args(option)
    if kind is list:
        if isinstance(value, str):
            value = [Unquoted(part.strip()) for part in value.split(",")] if isinstance(value, Unquoted) else [value]
        items = [_convert(item, inner[0] if inner else str) for item in value]
        return tuple(items) if typing.get_origin(option) is tuple else items
    if kind is dict and isinstance(value, dict):
        return {key: _guess(item) for key, item in value.items()}
    if not isinstance(value, str):
        raise TypeError(value)
    if kind is Literal:
        return {str(choice).lower(): choice for choice in inner}[value.lower()]
    if kind is bool:
        return BOOLEANS[value.lower()]
    if kind in (int, float, str) or issubclass(kind, enum.Enum):
        return kind(value)
    raise TypeError(value)


def _guess(value: Any) -> Any:
    """A value inside a mapping, whose type nothing tells."""
    if isinstance(value, dict):
        return {key: _guess(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_guess(item) for item in value]
    return _convert(value, bool | int | float | str | None)


def _options(hint: Any) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _kind(option: Any) -> Any:
    origin = typing.get_origin(option) or option
    return list if origin is tuple else origin


def expected(hint: Any) -> str:
    words = []
    for option in _options(hint):
        kind = _kind(option)
        if kind is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
            choices = typing.get_args(option) if kind is Literal else [member.value for member in kind]
            words.append("one of " + ", ".join(map(str, choices)))
        elif kind in WORDS and not (kind is str and words and words[-1].startswith("one of")):
            words.append(WORDS[kind])
    return " or ".join(dict.fromkeys(words)) or "nothing, because it cannot be set in a recipe"


def show_default(f: dataclasses.Field) -> str:
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
        return "required"
    value = f.default if f.default is not dataclasses.MISSING else f.default_factory()
    return f"default {show(value)}"


def show(value: Any) -> str:
    """A value as a recipe has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, enum.Enum) else value)
