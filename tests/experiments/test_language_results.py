"""What the docs and `auto` rest on, in the committed results of language models."""

import json

import pytest

from recipes.experiments.study import RESULTS


def results(name):
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def test_why_auto_is_rmu():
    seeds = results("tofu-small")["seeds"]
    assert len(seeds) >= 2
    readings = [{name: row["reading"] for name, row in rows.items() if "reading" in row} for rows in seeds.values()]
    in_all = set.intersection(*map(set, readings))
    assert [name for name in in_all if all(of[name] == "as retrained" for of in readings)] == ["rmu"]
    for rows in seeds.values():
        relearned = rows["rmu"]["states"]["relearned forget"]["forget_quality"]
        assert relearned < 0.05 <= rows["rmu"]["states"]["as is"]["forget_quality"]  # which the note of auto says


def test_what_the_datasheets_say_of_the_readings():
    rows = results("tofu-small")["seeds"]["0"]
    hidden, known, harm = (
        ("dpo", "wga", "undial"),
        ("satimp", "idk_dpo", "finetune"),
        ("task_vector", "gradient_ascent"),
    )
    assert {rows[name]["reading"] for name in hidden} == {"hidden"}
    assert {rows[name]["reading"] for name in known} == {"still known"}
    kept = {name: rows[name]["states"]["as is"]["utility"] for name in ("original", *harm)}
    assert all("harm" in rows[name]["reading"] and kept[name] < 0.05 * kept["original"] for name in harm)


def test_of_196_authors_rmu_is_as_near_as_another_retrained_model():
    """Where it was not chosen, at a tenth of the seconds; no other method is."""
    (rows,) = results("tofu-forget01")["seeds"].values()
    assert [name for name, row in rows.items() if row.get("reading") == "as retrained"] == ["rmu"]
    p = {name: row["states"]["as is"].get("forget_quality") for name, row in rows.items()}
    assert p["rmu"] >= p["retrained again"] and p["original"] < 0.05
    assert abs(rows["rmu"]["privleak"] - rows["retrained again"]["privleak"]) < 10
    utility = {name: row["states"]["as is"]["utility"] for name, row in rows.items()}
    assert utility["rmu"] > 0.95 * utility["original"] and rows["rmu"]["seconds"] < 0.1 * rows["retrained"]["seconds"]


@pytest.mark.parametrize("study", ["tofu-small", "tofu-forget01"])
def test_relearning_on_forgotten_answers_brings_the_others_back(study):
    """By every method, which the docs say: their truth ratios are nearer to the original's after the same than to the retrained model's."""
    for rows in results(study)["seeds"].values():
        ratio = {name: row["states"]["relearned forget"]["ratio"] for name, row in rows.items()}
        middle = (ratio["original"] * ratio["retrained"]) ** 0.5
        methods = {name: of for name, of in ratio.items() if "original" not in name and "retrained" not in name}
        assert methods and all(of < middle for of in methods.values()), methods


def test_by_privleak_rmu_leaves_the_forgotten_texts_known():
    """Less than the original does, and more than a retrained model; which README, docs and the note of auto say."""
    for rows in results("tofu-small")["seeds"].values():
        leaks = {name: rows[name]["privleak"] for name in ("original", "rmu", "retrained again")}
        assert leaks["original"] < leaks["rmu"] < -50 and abs(leaks["retrained again"]) < 10


def test_wrong_answers_become_likelier_by_pdu_than_in_a_retrained_model():
    rows = results("tofu-small")["seeds"]["0"]
    ratio = {name: rows[name]["states"]["as is"]["ratio"] for name in ("pdu", "retrained", "retrained again")}
    assert ratio["pdu"] > 1 > max(ratio["retrained"], ratio["retrained again"])


def test_what_a_step_takes():
    rows = {row["side"]: row for row in results("lm-speed")["rows"]}
    assert all(rows[side]["met"] for side in ("npo, LoRA", "npo, LoRA, checkpointing", "evaluation"))
    assert all(rows[side]["time"] < 1.5 for side in ("grad_diff", "npo", "simnpo"))
