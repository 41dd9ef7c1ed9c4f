"""The house: every file in a room, every room above all that it imports, no circle, no long file, no long function."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

import hf_unlearn

PACKAGE = Path(hf_unlearn.__file__).parent
# From the ground up: a room knows only rooms before it. `hf_unlearn` itself hands public names on, and api is the front door.
ROOMS = (
    "errors", "data", "models", "metrics", "tasks", "methods", "surgery", "training", "audits", "hub", "api", "commands",
)  # fmt: skip
FACE = "__init__"  # its names are imported lazily; anybody may ask it for the version
LONGEST_FILE, LONGEST_FUNCTION = 450, 70
LONG_FILES: dict[str, str] = {}  # path: why it may be longer
LONG_FUNCTIONS: dict[str, str] = {}  # path:name: why it may be longer

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`models/load.py` -> models.load, `models/__init__.py` -> models, and the package's own face -> __init__."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(f".{FACE}")


MODULES = {name_of(path): path for path in FILES}


@functools.cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module of ours) of every import in a file, those in functions and for type checkers included."""
    parents, every = path.relative_to(PACKAGE).parent.parts, []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [
                alias.name.removeprefix("hf_unlearn.") for alias in node.names if alias.name.startswith("hf_unlearn.")
            ]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "hf_unlearn"):
            start = parents[: len(parents) - node.level + 1] if node.level else ()
            module = (
                (node.module or "") if node.level else (node.module or "").removeprefix("hf_unlearn").removeprefix(".")
            )
            base = ".".join([*start, *([module] if module else [])])
            found = [
                deeper if (deeper := f"{base}.{a.name}".removeprefix(".")) in MODULES else base for a in node.names
            ]
        else:
            continue
        every += [(node.lineno, name or FACE) for name in found]
    return every


def room(module: str) -> str:
    return "commands" if module == "__main__" else module.split(".")[0]


def test_every_file_stands_in_a_room():
    assert [module for module in MODULES if room(module) not in (*ROOMS, FACE)] == []
    assert not [
        module
        for module in MODULES
        if "." not in module and MODULES[module].name != f"{FACE}.py" and module not in ("errors", "api", "__main__")
    ]


def test_nothing_runs_back_up():
    up = [
        f"{module}:{line} imports {other}"
        for module, path in MODULES.items()
        if module != FACE
        for line, other in imports(path)
        if other != FACE and ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert up == []


def test_there_is_no_circle():
    graph = {m: {o for _, o in imports(p) if o not in (m, FACE)} for m, p in MODULES.items() if m != FACE}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def asks_the_task(node: ast.AST) -> bool:
    """Whether a comparison, or an `endswith`, is about the name of a task."""
    names = {"image-classification", "text-classification", "causal-lm", "multi-task", "classification"}
    is_suffix = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "endswith"
    compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else node.args if is_suffix else []
    compared = [
        part for side in compared for part in (side.elts if isinstance(side, (ast.Tuple, ast.List)) else [side])
    ]
    if not any(isinstance(part, ast.Constant) and part.value in names for part in compared):
        return False
    return any(word in ast.unparse(node) for word in ("task", "TASK"))  # which takes a while


def test_nobody_else_asks_which_task_it_is():
    """What differs between tasks is behind `tasks.base.Task`; models/ tells by its head which one a model has."""
    asked = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        if room(module) not in ("tasks", "models")
        for node in ast.walk(ast.parse(path.read_text()))
        if asks_the_task(node)
    ]
    assert asked == []


def test_audits_and_releases_know_no_trainer():
    """They are made of a record of the run; the way down from there leads past the Trainer as well."""
    graph = {m: {o for _, o in imports(p) if o in MODULES and o != FACE} for m, p in MODULES.items()}
    reached = {m for m in MODULES if room(m) in ("audits", "hub")}
    while further := {o for m in reached for o in graph[m]} - reached:
        reached |= further
    assert "training.record" in reached
    assert not reached & {"api", "training.trainer", "training.checkpoints", "training.recording"}


def test_no_file_is_long():
    long = {m: n for m, path in MODULES.items() if (n := len(path.read_text().splitlines())) > LONGEST_FILE}
    assert long.keys() == LONG_FILES.keys(), long


def test_no_function_is_long():
    long = {
        f"{module}:{node.name}": size
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (size := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert long.keys() == LONG_FUNCTIONS.keys(), long
