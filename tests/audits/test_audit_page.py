"""The page of an audit, opened in a browser."""

import json
import re

import pytest

from hf_unlearn.audits.content import number, plain, value
from hf_unlearn.audits.report import AuditReport
from tests.audit_contents import HOSTILE, audit_content, least, renamed
from tests.audits.test_audit_report import at
from tests.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed, so the report was not opened in a browser"),
]

CONTENTS = {
    "whole": audit_content(classes=30, layers=60),
    "hostile": renamed(audit_content("class", level=1, retrained=False, classes=3), HOSTILE),
    "least": least(),
}

OVERFLOW = """(() => {
    document.querySelectorAll('details').forEach(one => one.open = true);
    const width = document.documentElement.clientWidth, beyond = [];
    if (document.documentElement.scrollWidth > width) beyond.push('the page: ' + document.documentElement.scrollWidth);
    for (const one of document.body.querySelectorAll('*')) {
        const box = one.getBoundingClientRect();
        if (box.right > width + 0.5 || box.left < -0.5) beyond.push(one.tagName + ' ' + one.textContent.slice(0, 40));
        const parent = one.parentElement.getBoundingClientRect();
        if (one.matches('table, svg') && box.right > parent.right + 0.5) beyond.push('within ' + one.textContent.slice(0, 40));
        if (one.matches('th, td') && one.scrollWidth > one.clientWidth + 1) beyond.push('cell ' + one.textContent);
    }
    return beyond;
})()"""
TEXT, PAGE = "document.body.innerText", rb"/Type\s*/Page\b"
FIGURES = "[...document.querySelectorAll('data')].map(one => [one.dataset.at, one.value, one.innerText])"
CONTRAST = """(() => {
    const light = colour => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255);
        const linear = parts.map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const behind = one => {
        const colour = getComputedStyle(one).backgroundColor;
        return colour == 'rgba(0, 0, 0, 0)' ? behind(one.parentElement) : colour;
    };
    const faint = [];
    for (const one of document.body.querySelectorAll('*')) {
        if (![...one.childNodes].some(node => node.nodeType == 3 && node.textContent.trim())) continue;
        const style = getComputedStyle(one);
        const [a, b] = [light(one.namespaceURI.endsWith('svg') ? style.fill : style.color), light(behind(one))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5 && one.tagName != 'title' && one.tagName != 'desc') faint.push([one.textContent, ratio]);
    }
    return faint;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, content in CONTENTS.items():
        AuditReport(content).to_html(folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in CONTENTS}


def complaints(browser) -> list[str]:
    """What was asked of the network beyond the page itself, and every message of the console."""
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    told = [e for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled")]
    thrown = [
        e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening")
    ]
    return asked[1:] + told + thrown


@pytest.mark.parametrize("name", CONTENTS)
class TestPage:
    @pytest.mark.parametrize("width", [390, 1280])
    def test_fits(self, name, width, browser, pages):
        browser.open(pages[name], width=width)
        assert browser.evaluate("innerWidth") == width
        assert browser.evaluate(OVERFLOW) == []
        assert complaints(browser) == []

    def test_fits_on_paper(self, name, browser, pages):
        browser.open(pages[name], width=718, media="print")  # A4 without its margins
        assert browser.evaluate(OVERFLOW) == []
        assert browser.pdf().startswith(b"%PDF")

    def test_prints_a_summary_on_one_page_or_all_of_it(self, name, browser, pages):
        browser.open(pages[name], width=718, media="print")
        assert {"What now", "The summary"} <= set(re.findall("What now|The summary", shown := browser.evaluate(TEXT)))
        assert "How to read it" not in shown and "AUC forget/unseen" in shown or name == "least"
        browser.open(pages[name], width=718)
        assert "The summary" not in browser.evaluate(TEXT) and len(re.findall(PAGE, browser.pdf())) == 1
        browser.evaluate("document.querySelector('#whole').click()")
        assert len(re.findall(PAGE, browser.pdf())) > (1 if name == "least" else 5)
        browser.call("Emulation.setEmulatedMedia", media="print", features=[])
        assert browser.evaluate(OVERFLOW) == [] and "How to read it" in browser.evaluate(TEXT)

    def test_every_figure_is_of_the_json(self, name, browser, pages):
        browser.open(pages[name])
        browser.evaluate(OVERFLOW)  # which unfolds what is folded
        content = json.loads(AuditReport(CONTENTS[name]).to_json())
        shown = browser.evaluate(FIGURES)
        assert len(shown) > (4 if name == "least" else 100)
        for pointer, exact, text in shown:
            figure = value(content, at(pointer))
            assert json.loads(exact) == figure and text == number(figure, at(pointer)), pointer

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_contrast(self, name, scheme, browser, pages):
        browser.open(pages[name], scheme=scheme)
        assert browser.evaluate(CONTRAST) == []
        paper = [
            int(x) for x in re.findall(r"\d+", browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        ]
        assert (min(paper) > 200) == (scheme == "light")

    def test_verdict_is_seen_first(self, name, browser, pages):
        browser.open(pages[name], width=390, height=844)
        top = "document.querySelector('.plain').getBoundingClientRect().top"
        assert browser.evaluate(top) < 844 / 2


def test_outcomes_differ_in_more_than_colour(browser, tmp_path):
    looks = set()
    for outcome in ("no evidence", "cannot judge", "residual memory"):
        content = audit_content(level=0, classes=2, layers=2)
        content["verdict"]["outcome"] = outcome
        AuditReport(content).to_html(tmp_path / "audit.html")
        browser.open(tmp_path / "audit.html")
        mark = browser.evaluate("getComputedStyle(document.querySelector('.outcome'), '::before').content")
        looks |= {mark, browser.evaluate("getComputedStyle(document.querySelector('.verdict')).borderLeftStyle")}
    assert len(looks) == 6


def test_many_failures_are_summed_up_on_one_page(browser, tmp_path):
    content = audit_content()
    failing = next(one for one in content["verdict"]["findings"] if one["fails"])
    long = failing | {"question": "Does fine-tuning bring forget samples back, more than it does unseen ones?"}
    content["verdict"]["findings"] += 12 * [long | {"sentence": 3 * "The accuracy is far above that of the control. "}]
    browser.open(AuditReport(content).to_html(tmp_path / "page.html"), width=718)
    assert len(re.findall(PAGE, browser.pdf())) == 1


def test_names_stay_text(browser, pages):
    browser.open(pages["hostile"])
    assert browser.evaluate("document.scripts.length") == 0
    assert " ".join(plain(HOSTILE).split()) in browser.evaluate("document.querySelector('.headline').innerText")
    assert browser.evaluate("document.querySelectorAll('#classes tbody tr').length") == 3


def test_an_overflow_is_found(browser, tmp_path):
    """What the tests above look for."""
    (tmp_path / "wide.html").write_text("<meta name=viewport content='width=device-width'><p style='width:500px'>x")
    browser.open(tmp_path / "wide.html", width=390)
    assert len(browser.evaluate(OVERFLOW)) == 2
