"""What the benchmark of language models comes to: each row held against the retrained model of its seed, as table and picture."""

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import metrics
from ..audits.plots import Point, plane
from .text import columns
from .tofu_benchmark import AFTER, AGAIN, AS_IS, ORIGINAL, RETRAINED, TRAINED, Row

HALF, ALIKE, HARM = 0.5, 0.05, 0.8
HEADS = ("", "p", "KS", "utility", "likely", "ratio", "extract", "PrivLeak", "reading")
HEADS_AFTER = ("", "p: forget", "retain", "4 bits", "ratio: forget", "retain", "4 bits", "seconds")
NOTE = f"""p: forget quality, of the two-sided KS test against the retrained model; KS: its distance.
utility: harmonic mean of probability, ROUGE-L and truth score of retained questions.
likely: probability of forgotten answers. ratio: geometric mean of their truth ratios.
extract: extraction strength. PrivLeak: 0 is as retrained, below it is remembered.
reading: "still known", where the likelihood of forgotten answers has gone less than half
of the way from the original's to the retrained model's; "hidden", where it has, and the
truth ratio has not; "as retrained", where both have and p is {ALIKE:g} or more; else "unlike
retrained". "harm": less than {HARM:.0%} of the original's utility is left.
Below: after 20 steps on 10 forget samples (asked about the others), on 10 retained ones,
and with weights rounded to 4 bits; each against the retrained model after the same."""


def figures(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows of one seed, each with `forget_quality` and `ks_distance` of every state of it, its `privleak`, and its `reading`.

    Without a retrained model there is nothing to hold them against.
    """
    found = {}
    for name, row in rows.items():
        if "error" in row:
            found[name] = row
            continue
        about = {key: row[key] for key in ("seconds", "peak", "steps", "notes") if key in row}
        found[name] = about | {"states": {state: _state(of) for state, of in row["asked"].items()}}
    if RETRAINED not in rows:
        return found
    retrained = rows[RETRAINED]
    for name, row in found.items():
        if "error" in row or name == RETRAINED:
            continue
        for state, of in row["states"].items():
            pair = (rows[name]["asked"][state]["forget"]["ratios"], retrained["asked"][state]["forget"]["ratios"])
            of |= {"forget_quality": metrics.forget_quality(*pair), "ks_distance": metrics.ks_distance(*pair)}
        scores = (each["min_k"][side] for each in (rows[name], retrained) for side in ("forget", "unseen"))
        try:
            row["privleak"] = metrics.privleak(*scores)
        except ValueError:  # the retrained model tells them apart
            row["privleak"] = None
        if name not in TRAINED and ORIGINAL in found:
            row["reading"] = reading(*(found[of]["states"][AS_IS] for of in (name, ORIGINAL, RETRAINED)))
    return found


def _state(asked: Row) -> Row:
    forget = {key: value for key, value in asked["forget"].items() if key != "ratios"}
    with np.errstate(divide="ignore"):
        ratio = float(np.exp(np.log(asked["forget"]["ratios"]).mean()))
    retain = {key: value for key, value in asked["retain"].items() if key != "ratios"}
    return {"utility": asked["utility"], "ratio": ratio, "forget": forget, "retain": retain}


def reading(row: Row, original: Row, retrained: Row) -> str:
    """In words, how far a method has come; see `NOTE`."""

    def way(of: Any) -> float:
        """From the original (0) to the retrained model (1)."""
        whole = of(retrained) - of(original)
        return (of(row) - of(original)) / whole if whole else 1.0

    if way(lambda state: state["forget"]["probability"]) < HALF:
        said = "still known"
    elif way(lambda state: float(np.log(max(state["ratio"], 1e-300)))) < HALF:
        said = "hidden"
    else:
        said = "as retrained" if row["forget_quality"] >= ALIKE else "unlike retrained"
    return said + ", harm" * (row["utility"] < HARM * original["utility"])


# ---- Seeds together --------------------------------------------------------------------------------------------------


def _over(seeds: Mapping[str, Mapping[str, Row]], name: str, of: Any, middle: Any = statistics.mean) -> float | None:
    values = [of(rows[name]) for rows in seeds.values() if name in rows and "error" not in rows[name]]
    values = [value for value in values if value is not None]
    return middle(values) if values else None


def names(seeds: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Rows that have a result, those that were trained first."""
    found = dict.fromkeys(name for rows in seeds.values() for name, row in rows.items() if "error" not in row)
    return [*(name for name in TRAINED if name in found), *(name for name in found if name not in TRAINED)]


def cells(seeds: Mapping[str, Mapping[str, Row]]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The two tables: as it is, and after relearning and rounding. Means over seeds; of p the median, all readings."""

    def shown(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else f"{value:{form}}"

    first: list[tuple[str, ...]] = [HEADS]
    second: list[tuple[str, ...]] = [HEADS_AFTER]
    for name in names(seeds):

        def figure(of: Any, form: str = ".3f", middle: Any = statistics.mean, name: str = name) -> str:
            return shown(_over(seeds, name, of, middle), form)

        def p(state: str, figure: Any = figure) -> str:
            return figure(lambda row: row["states"][state].get("forget_quality"), ".2g", statistics.median)

        readings = [row["reading"] for rows in seeds.values() if "reading" in (row := rows.get(name, {}))]
        first.append(
            (
                name,
                p(AS_IS),
                figure(lambda row: row["states"][AS_IS].get("ks_distance")),
                figure(lambda row: row["states"][AS_IS]["utility"]),
                figure(lambda row: row["states"][AS_IS]["forget"]["probability"]),
                figure(lambda row: row["states"][AS_IS]["ratio"]),
                figure(lambda row: row["states"][AS_IS]["forget"]["extraction_strength"]),
                figure(lambda row: row.get("privleak"), ".0f"),
                " / ".join(dict.fromkeys(readings)) or "-",
            )
        )
        after = (figure(lambda row, state=state: row["states"][state]["ratio"]) for state in AFTER)
        second.append(
            (
                name,
                *map(p, AFTER),
                *after,
                figure(lambda row: row["seconds"], ".0f"),
            )
        )
    return first, second


def table(seeds: Mapping[str, Mapping[str, Row]]) -> str:
    """Both tables as text, what they mean, and what methods had to say."""
    first, second = cells(seeds)
    lines = [*columns(first), "", *columns(second), "", NOTE]
    notes: dict[str, list[str]] = {}
    for rows in seeds.values():
        for name, row in rows.items():
            for note in [f"not run: {row['error']}"] if "error" in row else row.get("notes", []):
                notes.setdefault(note, [])
                notes[note] += [name] * (name not in notes[note])
    return "\n".join([*lines, *(f"{', '.join(of)}: {note}" for note, of in notes.items())])


def picture(seeds: Mapping[str, Mapping[str, Row]], title: str) -> str:
    """Forget quality over utility: a point for each row, and fainter ones after relearning and rounding."""
    points = []
    for name in names(seeds):
        for state in (AS_IS, *AFTER):
            x = _over(seeds, name, lambda row, state=state: row["states"][state]["utility"])
            p = _over(
                seeds, name, lambda row, state=state: row["states"][state].get("forget_quality"), statistics.median
            )
            if x is None or (p is None and (name != RETRAINED or state != AS_IS)):
                continue  # to itself a retrained model has no distance
            look = name if name in (ORIGINAL, RETRAINED) else RETRAINED if name == AGAIN else "unlearned"
            points.append(Point(name, x, 1.0 if p is None else p, look, None if state == AS_IS else state))
    return plane(
        "benchmark",
        points,
        title=title,
        x_label="utility on retained questions",
        y_label="forget quality (p, against retrained)",
        level=("5 %", ALIKE),
    )
