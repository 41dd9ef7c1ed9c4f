"""What README and docs say of closeness to retraining follows from the rows of the study."""

import itertools
import json
import random
import re
from dataclasses import replace
from xml.etree import ElementTree

import closeness_estimates
import closeness_picture
import closeness_tables
import outcomes
import pytest
import tables
from scipy.stats import spearmanr

from hf_unlearn.commands import main
from hf_unlearn.methods import METHODS, list_methods
from hf_unlearn.methods.datasheets import datasheets
from tests.browser import CHROMIUM, Browser

FIGURES = {
    "jsd_p95": 0.3, "jsd_unseen": 0.05, "avg_gap": 0.03, "auc": 0.5, "auc_low": 0.45, "auc_high": 0.55,
    "forget_accuracy": 0.6, "retain_accuracy": 0.9, "unseen_accuracy": 0.6, "share_of_training": 0.2,
}  # fmt: skip
ESTIMATES = dict.fromkeys(
    ("rf_jsd", "memory", "lost_unseen_loss", "lost_retain_loss", "jsd_to_original_unseen", "jsd_to_original_forget"),
    0.1,
) | {"distance_to_original": 1.0}


def row(method, case="digits", request="scattered", seed=0, budget=0.2, **figures):
    about = {"case": case, "request": request, "seed": seed, "method": method, "budget": budget}
    return about | FIGURES | ({} if method in outcomes.REFERENCES else ESTIMATES) | figures


def request(case="digits", request="scattered", seed=0, floor=0.1, original=0.3, **methods):
    """Rows of one seed; `methods` are by their JSD in multiples of the floor."""
    about = {"case": case, "request": request, "seed": seed}
    return [
        row("original", jsd=original, share_of_training=0.0, unseen_accuracy=0.58, **about),
        row("retrained", jsd=floor, share_of_training=1.0, avg_gap=0.02, **about),
        *(row(name, jsd=ratio * floor, **about) for name, ratio in methods.items()),
    ]


class TestOutcomes:
    def test_means_are_of_ratios_to_the_floor_of_the_same_seed(self):
        rows = request(seed=0, floor=0.1, auto=1.0) + request(seed=1, floor=0.2, auto=2.0, lotus=3.0)
        (group,) = outcomes.groups(rows)
        assert [(one.name, one.seeds) for one in group.methods] == [("auto", 2), ("lotus", 1)]
        auto = group.methods[0]
        assert auto["ratio"] == pytest.approx(1.5) and auto["jsd"] == pytest.approx(0.25)
        assert auto["gap_ratio"] == pytest.approx(1.5) and auto["unseen_below"] == 0 and auto["remembered"] == 0
        assert group.retrained["ratio"] == 1 and group.original["unseen_below"] == pytest.approx(0.02)

    def test_rows_without_their_references_are_left_out(self):
        rows = request(auto=1.0) + request(seed=1, auto=9.0)[:1] + [row("auto", seed=1, jsd=0.9)]
        assert [one.seeds for one in outcomes.groups(rows)[0].methods] == [1]

    def test_a_figure_that_one_seed_lacks_is_left_out_and_a_request_without_methods_too(self):
        rows = request(auto=1.0) + request(seed=1, auto=1.0) + request("vit")
        rows[-3] |= {"rf_jsd": None}
        (group,) = outcomes.groups(rows)
        assert "rf_jsd" not in group.methods[0].figures and "memory" in group.methods[0].figures

    def test_another_budget_is_a_row_of_its_own(self):
        rows = request(auto=1.0) + [row("auto", budget=0.1, jsd=0.12), row("retrained", budget=0.1, jsd=0.1)]
        assert [one.name for one in outcomes.groups(rows)[0].methods] == ["auto", "auto, budget 0.1"]

    def test_kept_for_comparison_is_what_is_no_nearer_in_two_of_three(self):
        def found(*ratios):
            requests = zip(outcomes.REQUESTS, ratios, strict=False)
            rows = [one for name, ratio in requests for one in request(request=name, original=0.2, lotus=ratio)]
            return outcomes.kept_for_comparison(outcomes.groups(rows))["lotus"]

        assert [found(2.5, 2.5, 1.5), found(2.0, 2.0, 1.5), found(2.5, 1.5, 1.5), found(2.5, 1.5)] == [1, 1, 0, 0]
        best = request(original=0.2, lotus=2.5) + [row("lotus", budget=0.1, jsd=0.15)]
        assert not outcomes.kept_for_comparison(outcomes.groups(best))["lotus"]

    def test_what_the_defaults_have_reached(self):
        """As near to retrained models as these are to each other, for a fifth of the training, and not much worse on unseen
        samples: the goal is a point at most, which the ViT misses by a twentieth of one. On the whole of CIFAR-10, where a fifth is
        1.6 epochs, `auto` misses the first too, and both lose two to three points. On the fine-tuned MiniLM, where a fifth is half
        an epoch, both come a quarter of the way from the original."""
        found = [(group, one) for group in outcomes.groups(outcomes.read()) for one in group.methods]
        mine = [(group, one) for group, one in found if one.name in ("auto", "rewind")]
        assert {group.case for group, _ in mine} >= {"digits", "vit", "resnet", "minilm"}
        for group, one in mine:
            most, below = {"cifar10": (1.15, 0.03), "minilm": (1.6, 0.015)}.get(group.case, (1.05, 0.015))
            assert one["jsd"] < group.original["jsd"], group.title
            assert one["ratio"] <= most and one["unseen_below"] <= below and one["share_of_training"] <= 0.3, (
                group.title
            )

    def test_retained_samples_pay_where_the_original_was_trained_from_new_weights(self):
        for group in outcomes.groups(outcomes.read()):
            mine = [one["retain_accuracy"] for one in group.methods if one.name in ("auto", "rewind")]
            lost = group.retrained["retain_accuracy"] - max(mine)
            assert lost < 0.01 if group.case == "minilm" else lost > 0.09, (group.title, lost)

    def test_a_larger_budget_comes_nearer(self):
        """Which the verdict of an audit advises where something is left."""
        found = [{one.name: one["ratio"] for one in group.methods} for group in outcomes.groups(outcomes.read())]
        pairs = [(of["rewind"], of["rewind, budget 0.1"]) for of in found if "rewind, budget 0.1" in of]
        assert len(pairs) >= 5 and all(larger < smaller for larger, smaller in pairs)

    def test_what_is_of_fewer_seeds_is_held_against_the_originals_of_these(self):
        rows = request(seed=0, original=0.3, auto=1.0, lotus=2.5) + request(seed=1, original=0.2, auto=1.0)
        (group,) = outcomes.groups(rows)
        lotus = group.methods[1]
        assert (group.original["ratio"], lotus["original_ratio"]) == (pytest.approx(2.5), pytest.approx(3))
        assert lotus["of_original"] == pytest.approx(2.5 / 3)
        assert outcomes.groups(outcomes.shared(rows))[0].original["ratio"] == pytest.approx(3)  # the first seed alone

    def test_flags_are_what_the_committed_rows_say(self):
        said = outcomes.kept_for_comparison(outcomes.groups(outcomes.read()))
        flags = {name: METHODS[name].info.comparison for name in said}
        assert not any(said.values()), "README says that no method is kept for comparison at present"
        assert flags == said, "set MethodInfo.comparison, then `make style` and recipes/experiments/tables.py"


def crowd():
    rng = random.Random(0)
    names = [name for name in list_methods() if name not in ("auto", "rewind", "multitask", "retrain")]
    rows = request(auto=0.95, rewind=1.02, **{name: rng.uniform(1.2, 3.5) for name in names})
    return [one | {"share_of_training": 10 ** rng.uniform(-1.1, 0)} if one["method"] in names else one for one in rows]


class TestPicture:
    def test_every_method_is_a_named_point_and_nothing_is_fetched(self):
        files = closeness_picture.pictures(outcomes.groups(crowd() + request("vit", auto=1.1, damp=2.0)))
        assert files.keys() == {"closeness.svg", "closeness-narrow.svg"}
        wide, narrow = (ElementTree.fromstring(files[name]) for name in ("closeness.svg", "closeness-narrow.svg"))
        assert (wide.get("width"), narrow.get("width")) == ("880", "440")
        texts = [text.text for text in wide.iter("{http://www.w3.org/2000/svg}text")]
        assert {one["method"] for one in crowd()} <= set(texts) and texts.count("original") == texts.count("auto") == 2
        assert len(list(wide.iter("{http://www.w3.org/2000/svg}circle"))) == len(crowd()) - 2 + 2
        assert not re.search(r"href|url\(|@import|<script", files["closeness.svg"])
        assert "prefers-color-scheme: dark" in files["closeness.svg"]

    def test_the_band_ends_where_retrained_models_stand(self):
        svg = closeness_picture.picture(outcomes.groups(request(auto=0.8, lotus=2.0)), 1)
        top = float(re.search(r'class="band" x="\d+" y="([\d.]+)"', svg)[1])
        below, above = (
            float(re.search(rf'class="dot {look}" cx="[\d.]+" cy="([\d.]+)"', svg)[1]) for look in ("auto", "dot")
        )
        assert above < top < below and 'class="retrained" d="M' in svg and f" {top - 6:.1f}l6 6" in svg

    def test_names_in_a_crowd_do_not_cover_each_other(self):
        room = closeness_picture.Box(0, 0, 370, 320)
        rng = random.Random(1)
        labels = [
            closeness_picture.Label("some_method", "dot", rng.gauss(185, 50), rng.gauss(160, 60)) for _ in range(24)
        ]
        boxes = [label.box for label in closeness_picture.placed(labels, room, [])]
        covered = sum(a.overlap(b) for a, b in itertools.combinations(boxes, 2))
        assert covered < 0.02 * sum(box.width * box.height for box in boxes)
        assert all(box.overlap(room) == pytest.approx(box.width * box.height) for box in boxes)

    def test_the_name_of_the_line_covers_no_point(self):
        room = closeness_picture.Box(0, 0, 370, 320)
        dots = [closeness_picture.Box(x, 100, 8, 8) for x in (320, 340)]
        free = closeness_picture._free(closeness_picture.Box(310, 95, 52, 14), room, dots)
        assert not any(map(free.overlap, dots)) and free.x > 250 and free.y == 95

    @pytest.mark.slow
    @pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
    def test_in_a_browser_names_are_inside_and_apart(self, tmp_path):
        (tmp_path / "picture.svg").write_text(closeness_picture.picture(outcomes.groups(crowd()), 1))
        browser = Browser(tmp_path / "profile")
        try:
            browser.open(tmp_path / "picture.svg", width=440)
            boxes = browser.evaluate(
                "[...document.querySelectorAll('text')].map(t => t.getBoundingClientRect())"
                ".map(b => [b.x, b.y + 2, b.width, b.height - 4])"
            )
        finally:
            browser.close()
        boxes = [closeness_picture.Box(*box) for box in boxes]
        assert len(boxes) > 30
        page = closeness_picture.Box(0, 0, closeness_picture.WIDTH, closeness_picture.HEIGHT)
        assert all(box.overlap(page) == pytest.approx(box.width * box.height, rel=0.01) for box in boxes)
        covered = sum(a.overlap(b) for a, b in itertools.combinations(boxes, 2))
        assert covered < 0.05 * sum(box.width * box.height for box in boxes)

    def test_the_committed_pictures_are_of_the_committed_rows(self):
        made = closeness_picture.pictures(outcomes.groups(outcomes.shared(outcomes.read())))
        kept = {path.name: path.read_text() for path in closeness_picture.FOLDER.glob("closeness*.svg")}
        assert kept == made, "run recipes/experiments/tables.py"


class TestEstimates:
    @staticmethod
    def rows(methods=9, seeds=2):
        """RF-JSD orders methods as the truth does within every seed, though seeds and cases lie at other heights."""
        rng, found = random.Random(0), []
        for (i, case), seed in itertools.product(enumerate(("digits", "vit")), range(seeds)):
            found += request(case, seed=seed)
            for m in range(methods):
                estimates = {"rf_jsd": 100 * seed + m, "memory": rng.random(), "lost_retain_loss": -m}
                found.append(row(f"m{m}", case, seed=seed, jsd=1 + i + m, jsd_p95=1 + i + m, **estimates))
        return found

    def test_within_requests_ranks_are_those_of_a_seed(self):
        found = closeness_estimates.estimates(self.rows())
        one = found["rf_jsd"]["jsd"]
        assert one["least_within"] == pytest.approx(1) and one["within"].keys() == {
            "digits, scattered",
            "vit, scattered",
        }
        assert one["pooled"]["rho"] < 0.9 and not one["reached"]  # its height says which seed it was
        assert found["lost_retain_loss"]["jsd_p95"]["least_within"] == pytest.approx(-1)
        assert found["distance_to_original"]["jsd"]["pooled"] is None  # the same of all

    def test_correlations_are_spearmans(self):
        rows = self.rows(seeds=1)
        found = closeness_estimates.estimates(rows)
        assert found["rf_jsd"]["jsd"]["reached"]
        those = [one for one in rows if one["method"].startswith("m")]
        expected = spearmanr([one["memory"] for one in those], [one["jsd"] for one in those]).statistic
        pooled = found["memory"]["jsd"]["pooled"]
        assert pooled["rho"] == pytest.approx(expected, abs=1e-4) and pooled["low"] < pooled["rho"] < pooled["high"]
        assert (pooled["rows"], pooled["methods"]) == (18, 18)

    def test_few_methods_and_missing_estimates(self):
        assert closeness_estimates.estimates(self.rows(methods=4))["rf_jsd"]["jsd"]["least_within"] is None
        rows = [one | {"rf_jsd": None} if one["method"] == "m0" else one for one in self.rows()]
        assert closeness_estimates.estimates(rows)["rf_jsd"]["jsd"]["pooled"]["rows"] == 32
        old = [{k: v for k, v in one.items() if k not in ESTIMATES} for one in rows]
        assert closeness_estimates.estimates(old)["rf_jsd"]["jsd"]["pooled"] is None

    def test_harm_is_what_was_lost_of_the_originals_accuracy(self):
        rows = request() + [row("lotus", jsd=0.2, unseen_accuracy=0.5), row("auto", jsd=0.1)]
        assert [one["harm"] for one in closeness_estimates.usable(rows)] == [pytest.approx(0.08), 0]

    def test_verdict(self):
        said = [closeness_tables.verdict(closeness_estimates.estimates(self.rows(**k))) for k in ({}, {"seeds": 1})]
        assert (
            said[0].startswith("No candidate reaches a rank correlation of 0.9") and "shows such a number" in said[0]
        )
        assert "is reached by rf_jsd" in said[1]
        assert "Too few" in closeness_tables.verdict(closeness_estimates.estimates([]))

    def test_the_committed_record_is_of_the_committed_rows(self):
        kept = json.loads((outcomes.FILE.parent / "closeness_estimates.json").read_text())["results"]
        made = closeness_estimates.estimates(outcomes.read())
        for name, true in itertools.product(closeness_estimates.CANDIDATES, closeness_estimates.TRUE):
            a, b = (one[name][true] for one in (kept, made))
            assert a["within"].keys() == b["within"].keys(), "run recipes/experiments/tables.py"
            assert (a["pooled"] or {}) == pytest.approx(b["pooled"] or {}, abs=1e-3)


class TestTables:
    def test_goals(self):
        rows = request(auto=1.04) + request("vit", auto=1.3)
        rows[-1] |= {"unseen_accuracy": 0.585, "auc_low": 0.51, "share_of_training": 0.24, "avg_gap": 0.05}
        rows += [row("rewind", budget=0.1, jsd=0.119, share_of_training=0.11)]
        text = closeness_tables.goals(outcomes.groups(rows))
        assert "| digits, a tenth at random | auto | 1.04 ✓ | 1.5 (0.030) ✓ | +0.0 ✓ | 0 % ✓ | 0.200 ✓ |" in text
        assert "| digits, a tenth at random | rewind, budget 0.1 | 1.19 ✓ |" in text
        assert "| ViT, a tenth at random | auto | 1.30 ✗ | 2.5 (0.050) ✗ | +1.5 ✗ | 100 % ✗ | 0.240 ✗ |" in text
        assert "| met in | auto | 1 of 2 |" in text
        assert "- `auto`: met in some: the distance, Avg Gap, unseen accuracy, the AUC, the cost." in text
        assert "- `rewind, budget 0.1`: met everywhere: the distance, Avg Gap" in text

    def test_what_audits_found(self):
        about = {"case": "digits", "request": "part"}
        found = [("retrained0", "no evidence", {}), ("retrained1", "retain harm", {"harm_retain": "harm"})]
        found += [("auto", "residual memory", {"membership": "residual"})]
        rows = [about | {"of": of, "outcome": outcome, "fails": fails} for of, outcome, fails in found]
        line = closeness_tables.audited(rows).splitlines()[-1]
        assert line == (
            "| digits, half of a class | no evidence 1; retain harm 1 (harm_retain) | residual memory 1 (membership) | not run |"
        )

    def test_which_method(self):
        rows = request(auto=1.04, rewind=1.0, damp=2.0, lotus=1.5, finetune=0.99) + request(
            "minilm", auto=1.1, lotus=3.5
        )
        costs = {"damp": 0.01, "lotus": 0.02, "finetune": 0.9}
        rows = [one | {"share_of_training": costs.get(one["method"], 0.2)} for one in rows]
        text = closeness_tables.which(outcomes.groups(rows))
        assert (
            "| single samples, wrong labels | none, or not known | `lotus` | 2 % | digits 1.50 (original 3.00) |"
            in text
        )
        assert "| `auto` | 20 % | digits 1.04 (original 3.00) |" in text  # what is nearer is so by less than matters
        assert "| `finetune` | 90 % | digits 0.99 (original 3.00) |" in text
        assert "| known | `auto` | 20 % | MiniLM 1.10 (original 3.00) |" in text and "MiniLM 3.50" not in text
        assert text.endswith("in brackets: digits 0.90 (0.90), MiniLM 0.90 (0.90).")
        assert "| a whole class | known | `retrain` | 100 % | `auto`: not measured |" in text

    def test_which_requests_have_run(self):
        text = closeness_tables.cases(
            outcomes.groups(request(auto=1.04, rewind=1.0) + request(request="part", auto=1.1))
        )
        assert "| 1,000 | 30 | 0.1 | a tenth at random (2), half of a class (1) |" in text and text.endswith(
            "| not run |"
        )

    def test_measured_and_caption(self):
        found = outcomes.groups(request(auto=1.04) + request("vit", auto=1.1) + request("vit", seed=1, auto=1.1))
        table = closeness_tables.measured(found)
        assert (
            "| auto | 1 | 1.04 | 0.35 | 0.300 | 0.030 | 0.600 | 0.900 | 0.600 | 0.500 (0.450 to 0.550) | 0.20 |"
            in table
        )
        said = closeness_tables.caption(found)
        assert "1,000 training samples of which 30 % have labels drawn anew (1 seed)" in said
        assert "CIFAR-10, a ViT, 5,000 training samples (2 seeds)" in said

    def test_methods_kept_for_comparison_are_marked(self, monkeypatch, capsys):
        monkeypatch.setitem(datasheets(), "lotus", replace(datasheets()["lotus"], comparison=True))
        assert main(["methods", "lo*"]) == 0
        out = capsys.readouterr().out
        assert out.count("(kept for comparison)") == 1 and "look like unseen ones (kept for comparison)" in out
        assert main(["methods", "lotus"]) == 0
        assert "no nearer to retrained models than the original" in " ".join(capsys.readouterr().out.split())

    def test_the_table_of_methods_marks_them(self, monkeypatch):
        lotus = METHODS["lotus"]
        monkeypatch.setattr(lotus, "info", replace(lotus.info, comparison=True))
        assert tables.render("methods").count("look like unseen ones (kept for comparison) |") == 1
