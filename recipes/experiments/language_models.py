"""Tables and picture of docs/language-models.md, from the committed results of `tofu.py` and `lm_speed.py`; `tables.py` writes them."""

import json
from pathlib import Path

from hf_unlearn.commands import language_speed
from hf_unlearn.commands.tofu_report import cells, picture

RESULTS, PICTURES = Path(__file__).parent / "results", Path(__file__).parents[2] / "docs" / "pictures"
STUDIES = ("tofu-small", "tofu-forget01", "tofu-forget05", "tofu-forget10", "lm-speed")
ABSENT = "Not run yet."


def read(study: str) -> dict | None:
    path = RESULTS / f"{study}.json"
    return json.loads(path.read_text())["results"] if path.exists() else None


def render(study: str, table: str) -> str:
    """`kept` or `after` of a benchmark, or the table of steps."""
    if (results := read(study)) is None:
        return ABSENT
    if study == "lm-speed":
        return language_speed.report(results["rows"])
    lines = cells(results["seeds"])[("kept", "after").index(table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def write_picture() -> None:
    if results := read("tofu-small"):
        drawn = picture(results["seeds"], "Two authors of twenty, forgotten by stories15M")
        (PICTURES / "language-models.svg").write_text(drawn + "\n")
