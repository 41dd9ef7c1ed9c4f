"""Datasheets: what is said of each method before it is used, kept as JSON, so that it takes neither torch nor a method's code.

The classes are the truth; `make style` writes the JSON from them, and a test holds the two together.
"""

import dataclasses
import functools
import inspect
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .table import METHODS

if TYPE_CHECKING:
    from .base import Method

FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Datasheet:
    """What a method is and what it takes.

    Attributes:
        settings: of each field of its config, `name`, `default` and `help`, and the `paper`'s value where that differs.
        arguments: training arguments by name, for each family of models, and for the `paper` where it has any.
        comparison: whether it is kept for comparison alone.
        presets: what its paper's settings are, in words; None where it has none.
    """

    name: str
    kind: str
    summary: str
    needs: list[str]
    applies_to: list[str]
    cost: float
    memory: str | None
    paper: dict[str, str] | None
    comparison: bool
    description: str
    config: str
    settings: list[dict[str, Any]]
    arguments: dict[str, dict[str, Any]]
    presets: str | None


@functools.cache
def datasheets() -> dict[str, Datasheet]:
    """The datasheets of all methods, by name."""
    return {name: Datasheet(**sheet) for name, sheet in json.loads(FILE.read_text(encoding="utf-8")).items()}


def list_methods(filter: str | None = None, task: str | None = None) -> list[str]:
    """Names of the methods, those matching a pattern such as `"*label*"` or applying to a task if given."""
    names = [name for name in METHODS if fnmatch(name, filter or "*")]
    return names if task is None else [name for name in names if task in datasheets()[name].applies_to]


def datasheet_of(method: "type[Method]") -> Datasheet:
    """The datasheet as the class has it."""
    info, config_class = method.info, method.config_class
    preset = getattr(config_class, "paper", None)
    paper = preset() if preset else None
    default, settings = config_class(), []
    for f in dataclasses.fields(config_class):
        if f.name != "arguments":
            setting = {"name": f.name, "default": getattr(default, f.name), "help": f.metadata.get("help", "")}
            if paper and getattr(paper, f.name) != setting["default"]:
                setting["paper"] = getattr(paper, f.name)
            settings.append(setting)
    arguments = {
        "convolutional": method().arguments("convolutional"),
        "transformer, 768 wide": method().arguments("transformer", 768),
    }
    return Datasheet(
        name=info.name,
        kind=info.kind,
        summary=info.summary,
        needs=list(info.needs),
        applies_to=list(info.applies_to),
        cost=info.cost,
        memory=info.memory,
        paper=info.paper and {"title": info.paper.title, "url": info.paper.url},
        comparison=info.comparison,
        description=inspect.getdoc(method) or "",
        config=config_class.__name__,
        settings=settings,
        arguments=arguments | ({"paper": paper.arguments} if paper else {}),
        presets=(inspect.getdoc(preset) or "one") if preset else None,
    )


def as_json() -> str:
    """All datasheets as the classes have them."""
    sheets = {name: dataclasses.asdict(datasheet_of(method)) for name, method in METHODS.items()}
    return json.dumps(sheets, indent=1, ensure_ascii=False) + "\n"
