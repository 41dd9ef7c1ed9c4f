"""Every table of README and docs equals the committed results it was made of."""

import json
import subprocess

import pytest

from recipes.experiments import stories, tables
from recipes.experiments.study import RESULTS

WITH_TABLES = [document for document in tables.DOCUMENTS if "<!-- table:" in document.read_text()]


def test_where_there_are_tables():
    assert {"README.md", "closeness.md", "lotus.md", "hamu.md", "multitask.md", "surgery.md"} <= {
        path.name for path in WITH_TABLES
    }


@pytest.mark.parametrize("document", WITH_TABLES, ids=lambda path: path.name)
def test_tables_equal_their_results(document):
    text = document.read_text()
    assert text == tables.updated(text), (
        f"run recipes/experiments/tables.py: {document.name} is not what the JSON says"
    )


def test_a_changed_figure_is_noticed():
    text = (tables.ROOT / "README.md").read_text()
    block = tables.BLOCK.search(text)[0]
    assert tables.updated(text.replace(block, block.replace("0.", "0.9", 1))) == text


@pytest.mark.parametrize(
    "path", sorted((tables.ROOT / "recipes/experiments/results").glob("*.json")), ids=lambda p: p.stem
)
def test_results_say_what_made_them(path):
    about = json.loads(path.read_text())
    script = about["command"].split()[1]
    assert (tables.ROOT / script).is_file()
    rows = about["results"].get("rows", []) if isinstance(about["results"], dict) else []
    made_by = {about["commit"], *(row["commit"] for row in rows if "commit" in row)}
    if (tables.ROOT / ".git").exists() and not (tables.ROOT / ".git/shallow").exists():
        for commit in made_by:  # on the way to this commit: another branch may be gone tomorrow
            known = subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=tables.ROOT)
            assert known.returncode == 0, commit


def test_results_on_a_language_model_are_of_the_settings_that_stand_there():
    results = json.loads((RESULTS / "stories.json").read_text())["results"]["stories15m-instance"]
    assert results.keys() == {"original", "retrained", *stories.METHODS}
