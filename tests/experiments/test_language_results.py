"""What the docs and `auto` rest on, in the committed results of language models."""

import json

from recipes.experiments.study import RESULTS


def results(name):
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def test_why_auto_is_rmu():
    seeds = results("tofu-small")["seeds"]
    assert len(seeds) >= 2
    for rows in seeds.values():
        readings = {name: row["reading"] for name, row in rows.items() if "reading" in row}
        assert [name for name, reading in readings.items() if reading == "as retrained"] == ["rmu"]
        relearned = rows["rmu"]["states"]["relearned forget"]["forget_quality"]
        assert relearned < 0.05 <= rows["rmu"]["states"]["as is"]["forget_quality"]  # which the note of auto says


def test_what_a_step_takes():
    rows = {row["side"]: row for row in results("lm-speed")["rows"]}
    assert all(rows[side]["met"] for side in ("npo, LoRA", "npo, LoRA, checkpointing", "evaluation"))
    assert all(rows[side]["time"] < 1.5 for side in ("grad_diff", "npo", "simnpo"))
