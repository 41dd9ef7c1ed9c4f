"""Writes notebooks/first_request.ipynb from start.md: `python docs/notebook.py`. `make style` does it too."""

import json
import re
from typing import Any

from links import DOCS, ROOT, relinked

FILE = ROOT / "notebooks" / "first_request.ipynb"
INSTALL = """\
import importlib.util

if importlib.util.find_spec("hf_unlearn") is None:
    # Once it is released on a package index; until then `pip install .` in a copy of the repository.
    %pip install -q hf_unlearn"""
RUN = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"^<!-- not run: (.+?) -->\n```python\n", re.MULTILINE)
ELSEWHERE = re.compile(
    r"^```bash\n.*?^```\n\n|^[^\n]*first_request\.ipynb[^\n]*\n\n", re.MULTILINE | re.DOTALL
)  # of the page alone


def notebook() -> dict[str, Any]:
    """Text and code of the page, one cell after the other, without outputs; code that the page does not run is text."""
    text = relinked(ELSEWHERE.sub("", (DOCS / "start.md").read_text()), DOCS)
    parts = RUN.split(NOT_RUN.sub(r"It \1, so it is not run here:\n\n```py\n", text))
    cells = [_cell(0, "code", INSTALL)]
    cells += [_cell(i, "code" if i % 2 else "markdown", part) for i, part in enumerate(parts) if part.strip()]
    cells.insert(0, cells.pop(1) | {"id": "title"})  # the title stands above the installation
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": f"cell-{number}" if number else "install", "metadata": {}}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}) | {"source": text.strip("\n")}


def as_json() -> str:
    return json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(as_json(), encoding="utf-8")
