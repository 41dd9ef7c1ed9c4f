"""The documentation: its links, its code, and the site and the notebook that are made of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_unlearn import list_methods
from hf_unlearn.methods.datasheets import datasheets
from tests.browser import CHROMIUM, Browser

ROOT = Path(__file__).parents[1]
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md", "model_cards/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
RUN = [
    ROOT / "docs/start.md",
    *sorted((ROOT / "docs/how-to").glob("*.md")),
]  # Start first: others go on with its folders
ELSEWHERE = [ROOT / "docs" / name for name in ("ci.md", "compare.md")]  # in the nav of How-to
CODE = re.compile(r"^(?:<!-- not run: (.+?) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
REASONS = ("the Hub", "several GPUs")

sys.path.append(str(ROOT / "docs"))
import notebook  # noqa: E402


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    found = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in found]
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in (one or other for one, other in LINK.findall(FENCED.sub("", page.read_text()))):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), f"{page.name} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, which has no such heading"


def blocks(page: Path) -> list[tuple[str | None, int, str]]:
    """Of each block of Python, why it is not run (or None), the line it stands in, and the code."""
    text = page.read_text()
    return [(found[1], text[: found.start(2)].count("\n"), found[2]) for found in CODE.finditer(text)]


@pytest.mark.parametrize("page", [*RUN, *ELSEWHERE], ids=lambda page: page.stem)
def test_code_is_python_and_says_why_it_is_not_run(page):
    for why, line, code in blocks(page):
        compile(code, f"{page.name}:{line}", "exec")
        assert why is None or why.removeprefix("needs ") in REASONS, f"{page.name}:{line} is not run: {why}"
        assert why is None or page not in RUN or "from_pretrained" in code or "hub" in code or "me/" in code
    assert page in ELSEWHERE or page.stem == "several-gpus" or any(why is None for why, *_ in blocks(page))


@pytest.mark.slow
def test_code_of_start_and_how_to_runs(tmp_path, monkeypatch, capsys):
    """Page after page in one folder, each with names of its own; a traceback has the page and its line."""
    monkeypatch.chdir(tmp_path)
    for page in RUN:
        names: dict = {"__name__": page.stem}
        for why, line, code in blocks(page):
            if why is None:
                exec(compile("\n" * line + code, str(page), "exec"), names)
    printed = capsys.readouterr().out
    assert "unlearning_receipt.json" in printed and "True\n" in printed
    assert {"original", "release", "adapter", "merged", "audit.html", "page.html"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_the_notebook_is_start():
    written = (ROOT / "notebooks/first_request.ipynb").read_text()
    assert written == notebook.as_json(), "run `make style`"
    code = [cell["source"] for cell in json.loads(written)["cells"] if cell["cell_type"] == "code"]
    assert code[1:] == [code.strip("\n") for why, _, code in blocks(RUN[0]) if why is None]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """In a kernel of its own, with a training that is shorter than the real one."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    short = notebook.as_json().replace("epochs = 20", "epochs = 1")
    book = nbformat.reads(short, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in book.cells for out in cell.get("outputs", []))
    assert (
        "forget acc." in printed and "Verdict:" in printed and (tmp_path / "release/unlearning_receipt.json").is_file()
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs mkdocs, of the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_whole_and_asks_nothing_of_others(site, tmp_path):
    pages = {page.relative_to(site).as_posix(): page.read_text() for page in site.rglob("*.html")}
    assert {f"methods/{name}.html" for name in list_methods()} < set(pages)
    assert all(f"{page.relative_to(ROOT / 'docs').with_suffix('.html')}" in pages for page in RUN)
    assert (
        "<svg" in (site / "methods/pictures/lotus.svg").read_text()
        and 'id="hf_unlearn.unlearn"' in pages["reference/unlearning.html"]
    )
    for name, sheet in datasheets().items():  # a picture and the method's figures, or that there are none
        part = re.split('<h2 id="?how-close-it-comes', pages[f"methods/{name}.html"])[1].partition("<h2")[0]
        assert ".svg" in part or sheet.applies_to == ["multi-task"], name
        assert ("<td" in part) != ("Not measured here" in part), name
    for name, page in pages.items():
        loaded = re.findall(
            r"<(?:script|img|source|iframe)[^>]* src(?:set)?=\"?([^\" >]+)|<link[^>]* href=\"?([^\" >]+)", page
        )
        assert not [one for pair in loaded for one in pair if one.startswith(("http", "//"))], name
    if CHROMIUM is None:
        return
    browser = Browser(tmp_path)
    for name in ("index.html", "start.html", *(f"methods/{name}.html" for name in ("lotus", "multitask", "npo"))):
        browser.open(site / name, width=390)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390, name
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert all(url.startswith(("file:", "data:")) for url in asked)
    browser.close()
