"""What an audit has found, as text, Markdown, JSON and a page."""

import copy
import html.parser
import json
import re
import xml.etree.ElementTree as ET
from importlib import resources

import matplotlib
import numpy as np
import pytest

from hf_unlearn import UnlearningError
from hf_unlearn.audits import plots
from hf_unlearn.audits.content import At, number, plain, value
from hf_unlearn.audits.report import NEEDED, AuditReport
from hf_unlearn.audits.sections import sections
from hf_unlearn.audits.verdict import NEXT
from hf_unlearn.methods.datasheets import datasheets
from tests.audit_contents import HOSTILE, audit_content, least, renamed, without

CONTENTS = {
    "instance": audit_content(),
    "class": without(audit_content("class", level=1, retrained=False, classes=30), "distributions", "locality"),
    "causal-lm": audit_content(level=0, retrained=False, task="causal-lm"),
    "least": least(),
}
CASES = pytest.mark.parametrize("case", CONTENTS)


class Page(html.parser.HTMLParser):
    """The elements of a page, its figures, and the text that stands outside them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.ids, self.figures, self.outside, self.inside = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside += [] if tag in ("meta", "br", "wbr", "input") else [tag]
        self.ids += [found for name, found in attrs if name == "id"]
        if tag == "data":
            attrs = dict(attrs)
            self.figures.append((attrs["data-at"], attrs["value"], ""))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, text):
        if self.inside[-1:] == ["data"]:
            at, exact, shown = self.figures[-1]
            self.figures[-1] = (at, exact, shown + text)
        elif not {"svg", "style", "title"} & set(self.inside):  # the title says what the heading does
            self.outside.append(text)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, content in CONTENTS.items():
        AuditReport(content).to_html(folder / f"{name}.html")
    return {name: (folder / f"{name}.html").read_text() for name in CONTENTS}


def at(pointer: str) -> At:
    keys = [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]]
    return At(int(key) if key.isdigit() else key for key in keys)


def strings(content) -> list[str]:
    """Every text of a content."""
    if isinstance(content, dict):
        return strings(list(content.values()))
    return sum(map(strings, content), []) if isinstance(content, (list, tuple)) else [plain(content)]


def said_in(content) -> str:
    """Everything in a report that is not a figure."""
    found, absent = sections(content)
    rows = [
        [cell for cell in row if isinstance(cell, str)] for one in found for table in one.tables for row in table.rows
    ]
    about = [(one.title, one.text, [(table.head, table.caption) for table in one.tables]) for one in found]
    rows += [plot.x for one in found for plot in one.plots if isinstance(plot.x[0], str)]
    template = resources.files("hf_unlearn.audits").joinpath("templates/page.html").read_text()
    return "\n".join(strings([content, absent, rows, about, template]))


class TestNumbers:
    @pytest.mark.parametrize(
        ("place", "figure", "expected"),
        [
            (("figures", "unlearned", "auc"), 0.5, "0.500"),
            (("figures", "unlearned", "auc"), None, "–"),
            (("figures", "unlearned", "rf_jsd"), 0.01234, "0.0123"),
            (("figures", "unlearned", "forget_quality"), 1e-9, "< 0.001"),
            (("verdict", "findings", 0, "p"), 0.0123, "0.012"),
            (("cost", "seconds", "total"), 1234.56, "1,234.6"),
            (("request", "samples", "retain"), 45000, "45,000"),
            (("distance", "total"), 0.0000123, "1.2e-05"),
            (("distance", "total"), 0.0, "0.000"),
            (("figures", "original", "forget_loss"), -12345.6, "-12,346"),
        ],
    )
    def test_written(self, place, figure, expected):
        assert number(figure, At(place)) == expected

    def test_places(self):
        content = {"a/b": [{"~": 3}]}
        here = At(("a/b",)) / 0 / "~"
        assert here.pointer == "/a~1b/0/~0" and value(content, here) == 3 and at(here.pointer) == here
        assert value(content, At(("a/b", 1))) is None and value(content, At(("x", "y"))) is None


class TestJson:
    @CASES
    def test_there_and_back(self, case, tmp_path):
        report = AuditReport(CONTENTS[case])
        assert report.to_json(tmp_path / "audit.json") == tmp_path / "audit.json"
        assert (tmp_path / "audit.json").read_text() == report.to_json()
        assert AuditReport.from_json(tmp_path / "audit.json") == report

    def test_hostile(self, tmp_path):
        report = AuditReport(renamed(audit_content(level=0), HOSTILE))
        report.to_json(tmp_path / "audit.json")
        assert AuditReport.from_json(tmp_path / "audit.json") == report

    def test_infinite(self):
        with pytest.raises(ValueError, match="JSON"):
            AuditReport(CONTENTS["least"] | {"seed": float("nan")}).to_json()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is not JSON"),
            ("[]", "not an audit of format 1 but of None"),
            ('{"format": 2}', "not an audit of format 1 but of 2"),
            (
                json.dumps({key: 1 for key in ("format", *NEEDED) if key != "verdict"}),
                "lacks verdict and is not whole",
            ),
        ],
    )
    def test_refused(self, text, message, tmp_path):
        (tmp_path / "audit.json").write_text(text)
        with pytest.raises(UnlearningError, match=message):
            AuditReport.from_json(tmp_path / "audit.json")


class TestText:
    @CASES
    def test_summary(self, case):
        content = CONTENTS[case]
        lines = AuditReport(content).summary().splitlines()
        assert lines[0] == f"Verdict: {content['verdict']['outcome']}"
        said = [content["verdict"][key] for key in ("plain", "headline", "tested") if key in content["verdict"]]
        text = " ".join(" ".join(lines).split())
        assert text.startswith(" ".join([lines[0], *said, "What now: "]))
        assert max(map(len, lines)) <= 100 and all(len(line) <= 80 for line in lines if line.startswith("- "))
        for sentence in content["verdict"]["cannot"]:
            assert f"- {sentence}" in text

    @pytest.mark.parametrize("outcome", sorted(set(NEXT) - {"no evidence"}))
    def test_a_verdict_names_the_next_step(self, outcome):
        content = copy.deepcopy(CONTENTS["instance"])
        content["verdict"]["outcome"] = outcome
        report, step = AuditReport(content), NEXT[outcome].replace("`", '"')
        for text in (report.summary(), repr(report), report.to_markdown()):
            assert f"What now: {step}" in " ".join(text.split()).replace("`", '"')
        content["verdict"]["withheld"] = True
        assert "What now: Ask whoever made this model for the audit" in repr(AuditReport(content))

    def test_the_next_step_is_one_that_the_method_has(self):
        content = copy.deepcopy(CONTENTS["instance"])
        content["verdict"]["outcome"] = "residual memory"
        kinds = {name: {"name": name, "kind": datasheets()[name].kind} for name in ("damp", "lotus", "auto", "rewind")}
        steps = {name: AuditReport(content | {"method": method}).next_step for name, method in kinds.items()}
        assert steps["damp"].startswith("Take another method (")
        assert steps["lotus"].startswith("Unlearn for longer (more epochs), take another method (")
        assert steps["auto"] == steps["rewind"] and "(a larger `budget`), take another" in steps["auto"]
        for outcome in NEXT:
            content["verdict"]["outcome"] = outcome
            step = AuditReport(content | {"method": kinds["damp"]}).next_step
            assert not any(word in step for word in ("epochs", "budget", "rate", "longer")), outcome

    def test_figures_of_the_summary(self):
        content = CONTENTS["instance"]
        row = next(line for line in AuditReport(content).summary().splitlines() if "forget acc." in line)
        figures = [content["figures"][model]["forget_accuracy"] for model in ("original", "unlearned", "retrained")]
        assert row.split()[2:] == [f"{figure:.3f}" for figure in figures]

    def test_failures_come_first(self):
        report = AuditReport(CONTENTS["instance"])
        text = report.summary()
        assert text.index("[fails] Retain accuracy") < text.index("[no evidence]") < text.index("[note]")
        assert "seen. (95% interval 0.490 to 0.530; p 0.310; corrected 0.930)" in " ".join(text.split())
        assert "(p < 0.001)" in text

    def test_a_finding_says_no_figure_twice(self):
        """What its sentence says does not stand in brackets behind it."""
        content = copy.deepcopy(CONTENTS["instance"])
        finding = content["verdict"]["findings"][0]
        finding["sentence"] = "The AUC is 0.51, 95% interval 0.49 to 0.53."
        finding |= {"p": None, "p_corrected": None}
        assert "0.53.\n" in AuditReport(content).summary() and "0.530" not in AuditReport(content).summary()

    def test_figures_in_sentences(self):
        """Where a table would have one row; a figure stands apart from the words beside it."""
        content = copy.deepcopy(CONTENTS["instance"])
        content["classes"] = content["classes"][:1]
        found = {section.name: section for section in sections(content)[0]}
        assert not any(len(table.rows) == 1 for section in found.values() for table in section.tables)
        text = AuditReport(content).to_markdown()
        assert "- Class 0 class 0: forget 50 unseen 1,000 RF-JSD 0." in text

    def test_an_older_report(self):
        """Whose verdict is its headline alone."""
        content = copy.deepcopy(CONTENTS["instance"])
        for key in ("plain", "tested"):
            del content["verdict"][key]
        said = " ".join(AuditReport(content).summary().split())
        assert said.startswith(f"Verdict: {content['verdict']['outcome']} {content['verdict']['headline']} What now")

    @CASES
    def test_markdown(self, case):
        content = CONTENTS[case]
        text = AuditReport(content).to_markdown()
        assert text.startswith("**" + content["verdict"]["headline"].rstrip("*"))
        headings = [line for line in text.splitlines() if line.startswith("#")]
        assert all(line.startswith("### ") for line in headings)
        found, absent = sections(content)
        assert [f"### {one.title}" for one in found if one.brief] == [
            line for line in headings if not line.startswith("### What ")
        ]
        assert all(f"- {sentence.split(':')[0]}" in text for sentence in absent)
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert bool(tables) == bool(content.get("figures"))
        if content.get("figures"):
            assert f"{content['figures']['unlearned']['forget_loss']:.3f}" in text

    def test_a_long_table_in_markdown(self):
        text = AuditReport(CONTENTS["class"]).to_markdown()
        assert len(re.findall(r"^\| \d+ class", text, re.MULTILINE)) == 20 and "10 more rows" in text

    def test_nothing_measured(self):
        found, absent = sections(least())
        assert not found and len(absent) == 14
        assert any("level 2" in sentence for sentence in absent)
        for text in (AuditReport(least()).summary(), AuditReport(least()).to_markdown()):
            assert all(sentence in text for sentence in absent[:3])

    def test_reasons(self):
        assert "Avg Gap: there is no retrained model" in sections(CONTENTS["class"])[1]

    def test_hostile(self):
        report = AuditReport(renamed(audit_content(level=1), HOSTILE))
        text = report.summary()
        assert "\x1b" not in text and "\u202e" not in text
        text.encode()
        markdown = report.to_markdown()
        assert not re.search(r"(?<!\\)[`$*](?!\*)|<(?! 0\.001)|\x1b", markdown.replace("**", ""))
        for block in re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE):
            bars = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
            assert len(bars) == 1  # a name opens no cell


class TestPage:
    @CASES
    def test_every_figure_is_of_the_json(self, case, pages):
        content = json.loads(AuditReport(CONTENTS[case]).to_json())
        page = Page(pages[case])
        assert not page.inside
        for pointer, exact, shown in page.figures:
            figure = value(content, at(pointer))
            assert figure is not None and json.loads(exact) == figure, pointer
            assert shown == number(figure, at(pointer))
        said, names = (
            said_in(content),
            [
                content["models"]["unlearned"],
                content["models"]["original"],
                content["version"],
                content.get("date", ""),
                "95% interval",
            ]
            + [digest[:n] for digest in content.get("weights", {}).values() for n in (16, 8)],
        )
        for text in page.outside:  # what else has digits is a sentence, a name or how many rows there are
            if plain(text) not in said:
                for name in names:
                    text = text.replace(name, "")
                assert not re.search(r"\d", text) or text == "10 more", text

    def test_every_figure_of_the_json_is_there(self, pages):
        content = CONTENTS["instance"]
        shown = {pointer for pointer, _, _ in Page(pages["instance"]).figures}
        unshown = (
            "/counts",
            "/retain",
            "/format",
            "/class",
        )
        unshown += (
            "/canary",
            "/findings/0/value",
            "/noticed",
            "/fails",
            "/head_only",
            "/forget_classes",
            "/bits",
        )

        def missing(here: At):
            found = value(content, here)
            if isinstance(found, (dict, list)):
                for key in found if isinstance(found, dict) else range(len(found)):
                    yield from missing(here / key)
            elif isinstance(found, (int, float)) and here.pointer not in shown:
                yield here.pointer

        assert [one for one in missing(At()) if not any(part in one for part in unshown)] == []

    def test_the_title_names_the_request_and_the_models(self, tmp_path):
        content = copy.deepcopy(least()) | {
            "weights": {"original": "0123456789ab" * 4, "unlearned": "fedcba987654" * 4}
        }
        content["request"] |= {"kind": "instance", "samples": {"forget": 500}, "class_names": None}
        content["models"] = {"original": "me/vit@" + "c0ffee42" * 5, "unlearned": "me/vit@request-1"}
        models = "me/vit@request-1 (weights fedcba98), unlearned from me/vit@c0ffee42 (weights 01234567)"

        def title() -> str:
            text = AuditReport(content).to_html(tmp_path / "audit.html").read_text()
            said, heading = (re.search(f"<{tag}>(.*)</{tag}>", text)[1] for tag in ("title", "h1"))
            assert re.sub("<.*?>", "", heading) == said
            return said

        assert title() == f"Audit of 500 forgotten samples scattered among others: {models}"
        content["request"] |= {"kind": "class", "forget_classes": []}
        assert title() == f"Audit of 500 forgotten samples of whole classes: {models}"
        content["request"] |= {"forget_classes": [1, 0], "class_names": ["cat & dog", "bird"]}
        assert title() == f"Audit of 500 forgotten samples of classes 1 bird, 0 cat &amp; dog: {models}"
        content["models"] = {"original": "original", "unlearned": "a model in memory, by lotus"}
        assert "a model in memory, by lotus (weights fedcba98), unlearned from the original (" in title()

    @pytest.mark.parametrize(("noticed", "state"), [(True, "good"), (False, "open"), (None, "good")])
    def test_a_failed_self_test_takes_the_tick_away(self, noticed, state, tmp_path):
        content = least() | {"canary": {"noticed": noticed, "sentence": "Planted samples."}}
        content["verdict"]["outcome"] = "no evidence"
        page = AuditReport(content).to_html(tmp_path / "audit.html").read_text()
        assert re.search('<div class="verdict (.*)">', page)[1] == state

    @CASES
    def test_parts(self, case, pages):
        found, absent = sections(CONTENTS[case])
        page = Page(pages[case])
        assert set(page.ids) >= {section.name for section in found}
        assert page.tags.count("svg") == sum(len(section.plots) for section in found)
        text = plain(" ".join(page.outside))
        order = [CONTENTS[case]["verdict"]["headline"], *(section.text for section in found), "How to read it"]
        assert [text.rindex(plain(one)) for one in order] == sorted(text.rindex(plain(one)) for one in order)
        assert all(plain(sentence) in text for sentence in absent)

    @CASES
    def test_complete_in_itself(self, case, pages):
        text = pages[case]
        ids = Page(text).ids
        assert len(ids) == len(set(ids))
        for reference in re.findall(r'(?:href="|url\()#([^")]+)', text):
            assert reference in ids
        assert set(re.findall(r"https?://[^\s\"']+", text)) <= {
            "http://www.w3.org/1999/xlink",
            "http://www.w3.org/2000/svg",
        }
        assert not re.search(r"<(script|link|img|iframe|object)|@import|@font-face|\son\w+=", text)
        assert "default-src 'none'" in text and '<html lang="en">' in text

    def test_accessible(self, pages):
        for svg in re.findall(r"<svg.*?</svg>", pages["instance"], re.DOTALL):
            root = ET.fromstring(svg)
            named = [root.find(".//*[@id='" + name + "']").text for name in root.get("aria-labelledby").split()]
            assert root.get("role") == "img" and all(named)
        for cell in re.findall(r"<th\b[^>]*>", pages["instance"]):
            assert re.search(r'scope="(row|col|rowgroup)"', cell)

    def test_the_lines_are_of_the_json(self, pages):
        content = CONTENTS["instance"]
        drawn = {plot.name: plot for section in sections(content)[0] for plot in section.plots if plot.kind != "steps"}
        assert len(drawn) > 10
        for svg in re.findall(r"<svg.*?</svg>", pages["instance"], re.DOTALL):
            name = ET.fromstring(svg).get("aria-labelledby").split("-title")[0]
            for _, look, cells in drawn[name].series if name in drawn else []:
                values = [figure for figure in (value(content, cell) for cell in cells) if figure is not None]
                scale, origin = axis_of(svg, 1)
                np.testing.assert_allclose(
                    heights(svg, f"{name}-series-{look}"), scale * np.array(values) + origin, atol=0.01
                )

    @pytest.mark.slow
    def test_hostile(self, tmp_path):
        pages = []
        for name in ("name", HOSTILE):
            content = without(audit_content(level=1), "distributions", "locality")
            AuditReport(renamed(content, name)).to_html(tmp_path / "audit.html")
            pages.append(Page((tmp_path / "audit.html").read_text()))
        one, two = pages
        assert [tag for tag in one.tags if tag != "wbr"] == [tag for tag in two.tags if tag != "wbr"]
        assert one.ids == two.ids
        assert "".join(two.outside).count(plain(HOSTILE)) > 20

    def test_the_same_bytes(self, pages, tmp_path):
        before = dict(matplotlib.rcParams)
        with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path"}):
            AuditReport(copy.deepcopy(CONTENTS["class"])).to_html(tmp_path / "again.html")
        assert (tmp_path / "again.html").read_text() == pages["class"]
        assert dict(matplotlib.rcParams) == before


class TestPictures:
    def test_points_are_where_the_values_are(self):
        x, y = [0.0, 10.0, 25.0, 100.0], [0.9, None, 0.2, 0.55]
        svg = plots.picture("curve", x, [plots.Series("a", y, "unlearned")], title="t", x_label="x", y_label="y")
        drawn = marks(svg, "curve-series-unlearned")
        expected = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
        assert len(drawn) == 3
        for axis, sign in ((0, 1), (1, -1)):
            scale, origin = axis_of(svg, axis)
            assert np.sign(scale) == sign
            np.testing.assert_allclose(scale * np.array(expected)[:, axis] + origin, drawn[:, axis], atol=1e-3)

    def test_a_histogram(self):
        edges, shares = [0.0, 1.0, 2.0, 4.0], [0.5, 0.2, 0.3]
        series = [plots.Series("forget", shares, "forget"), plots.Series("unseen", shares[::-1], "unseen")]
        svg = plots.picture("bins", edges, series, title="t", kind="steps", highest=0.6)
        scale, origin = axis_of(svg, 1)
        for look, values in (("forget", shares), ("unseen", shares[::-1])):
            group = next(g for g in ET.fromstring(svg).findall(".//{*}g") if g.get("id") == f"bins-series-{look}")
            heights = np.array(re.findall(r"[ML] [-\d.]+ ([-\d.]+)", group.find(".//{*}path").get("d")), dtype=float)
            for share in values:
                assert np.isclose(heights, scale * share + origin, atol=1e-3).sum() == 2, look

    def test_names_are_text(self):
        svg = plots.picture(
            "p", [1, 2], [plots.Series("$a_b$ <&", [1, 2], "forget")] * 2, title="<t>", y_label="$y$ <x>"
        )
        root = ET.fromstring(svg)
        texts = [text.text for text in root.findall(".//{*}text")]
        assert "$a_b$ <&" in texts and "$y$ <x>" in texts and root.find("{*}title").text == "<t>"

    def test_nothing_to_draw(self):
        svg = plots.picture("p", [1], [plots.Series("a", [None], "control")], title="t")
        assert len(marks(svg, "p-series-control")) == 0


def marks(svg: str, name: str) -> np.ndarray:
    """The places of a line's points."""
    group = next(g for g in ET.fromstring(svg).findall(".//{*}g") if g.get("id") == name)
    return np.array([(use.get("x"), use.get("y")) for use in group.findall(".//{*}use")], dtype=float)


def heights(svg: str, name: str) -> np.ndarray:
    """The heights of a line's points, or of the tops of bars."""
    if len(points := marks(svg, name)):
        return points[:, 1]
    group = next(g for g in ET.fromstring(svg).findall(".//{*}g") if g.get("id") == name)
    return np.array([path.get("d").split()[5] for path in group.findall(".//{*}path")], dtype=float)


def axis_of(svg: str, axis: int) -> tuple[float, float]:
    """From values to places, by the ticks' labels."""
    ticks = []
    for group in ET.fromstring(svg).findall(".//{*}g"):
        if re.search(rf"-{'xy'[axis]}tick_\d+$", group.get("id", "")):
            mark, label = group.find(".//{*}use"), group.find(".//{*}text")
            ticks.append((float(label.text.replace("−", "-")), float(mark.get("xy"[axis]))))
    values, places = np.array(ticks).T
    scale, origin = np.polyfit(values, places, 1)
    return scale, origin
