"""Can the distance to a retrained model be told without one? `python recipes/experiments/closeness_estimates.py`.

Of each candidate, its Spearman correlation with the true distance, `jsd` and `jsd_p95`, over methods and settings: within each
case and request, where rows are ranked among those of their seed and the ranks of all seeds are taken together, and over all
cases and requests at once, where all rows are ranked together. Intervals (95 %) are of a bootstrap that draws methods, with all
their rows, a thousand times, and keeps the ranks. From `results/closeness.json`; `tables.py` does it too.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from outcomes import REFERENCES, REQUESTS, TITLES, Row, read
from scipy.stats import rankdata
from study import RESULTS, record

TRUE = ("jsd", "jsd_p95")
WITHIN, POOLED = 0.9, 0.85  # what is wanted of an estimate
FEWEST = 8  # methods and settings, for a correlation
TIMES = 1000

CANDIDATES: dict[str, Callable[[Row], float]] = {
    "rf_jsd": lambda row: row["rf_jsd"],
    "memory": lambda row: row["memory"],
    "lost_unseen_loss": lambda row: row["lost_unseen_loss"],
    "lost_retain_loss": lambda row: row["lost_retain_loss"],
    "jsd_to_original_unseen": lambda row: row["jsd_to_original_unseen"],
    "jsd_to_original_forget": lambda row: row["jsd_to_original_forget"],
    "distance_to_original": lambda row: row["distance_to_original"],
    "memory + harm": lambda row: row["memory"] + row["harm"],
    "rf_jsd + harm": lambda row: row["rf_jsd"] + row["harm"],
    "rf_jsd + memory": lambda row: row["rf_jsd"] + row["memory"],
    "rf_jsd + memory + harm": lambda row: row["rf_jsd"] + row["memory"] + row["harm"],
    "rf_jsd + jsd_to_original_unseen": lambda row: row["rf_jsd"] + row["jsd_to_original_unseen"],
    "memory + jsd_to_original_unseen": lambda row: row["memory"] + row["jsd_to_original_unseen"],
    "rf_jsd + memory + jsd_to_original_unseen": lambda row: (
        row["rf_jsd"] + row["memory"] + row["jsd_to_original_unseen"]
    ),
}


def usable(rows: list[Row]) -> list[Row]:
    """The rows with estimates, each with `harm`: the accuracy on unseen samples that the original has more, or 0."""
    originals = {
        (row["case"], row["request"], row["seed"]): row["unseen_accuracy"]
        for row in rows
        if row["method"] == "original"
    }
    found = []
    for row in rows:
        before = originals.get((row["case"], row["request"], row["seed"]))
        if row["method"] not in REFERENCES and "rf_jsd" in row and before is not None:
            harm = max(0.0, before - row["unseen_accuracy"])
            # RF-JSD is null where no class can be matched, as of a whole class in a model that has no unseen sample of it
            found.append({key: math.nan if value is None else value for key, value in row.items()} | {"harm": harm})
    return found


def correlation(x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> dict[str, Any] | None:
    """Pearson's, of ranks, with an interval over clusters."""
    names, of = np.unique(clusters, return_inverse=True)
    if len(names) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=TIMES)
    weights = np.vstack([np.ones(len(x)), draws[:, of]])
    weights = weights / weights.sum(axis=1, keepdims=True)
    mean_x, mean_y = weights @ x, weights @ y
    variances = (weights @ x**2 - mean_x**2) * (weights @ y**2 - mean_y**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (weights @ (x * y) - mean_x * mean_y) / np.sqrt(variances)
    low, high = np.nanquantile(r[1:], [0.025, 0.975])
    return {"rho": float(r[0]), "low": float(low), "high": float(high), "rows": len(x), "methods": len(names)}


def ranks(values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """From 0 to 1, among the values of the same seed."""
    found = np.full(len(values), 0.5)
    for seed in np.unique(seeds):
        at = seeds == seed
        if at.sum() > 1:
            found[at] = (rankdata(values[at]) - 1) / (at.sum() - 1)
    return found


def estimates(rows: list[Row]) -> dict[str, Any]:
    """Of each candidate and each true distance, the correlations `within` cases and requests and `pooled`, and whether it is
    good enough to be shown: `reached`."""
    rows = usable(rows)
    parts: dict[str, list[Row]] = defaultdict(list)
    for case in TITLES:
        for request in REQUESTS:
            those = [row for row in rows if (row["case"], row["request"]) == (case, request)]
            if those:
                parts[f"{case}, {request}"] = those
    return {name: {true: _of(parts, function, true) for true in TRUE} for name, function in CANDIDATES.items()}


def _of(parts: dict[str, list[Row]], function: Callable[[Row], float], true: str) -> dict[str, Any]:
    within, pooled = {}, []
    for part, rows in parts.items():
        values = np.array([(function(row), row[true], row["seed"]) for row in rows])
        clusters = np.array([f"{row['method']} {row['budget']}" for row in rows])
        known = np.isfinite(values).all(axis=1)
        (x, y, seeds), clusters = values[known].T, clusters[known]
        within[part] = correlation(ranks(x, seeds), ranks(y, seeds), clusters)
        pooled += [(a, b, f"{part} {cluster}") for a, b, cluster in zip(x, y, clusters, strict=True)]
    x, y, clusters = (np.array(column) for column in zip(*pooled, strict=True)) if pooled else [np.empty(0)] * 3
    overall = correlation(rankdata(x), rankdata(y), clusters)
    least = min((one["rho"] for one in within.values() if one), default=None)
    reached = overall is not None and least is not None and least >= WITHIN and overall["rho"] >= POOLED
    return {"within": within, "pooled": overall, "least_within": least, "reached": reached}


def write() -> None:
    """Make the record anew where it is not what the rows say."""
    file, found = RESULTS / "closeness_estimates.json", estimates(read())
    if not file.exists() or json.loads(file.read_text())["results"] != found:
        record("closeness_estimates", found)


if __name__ == "__main__":
    write()
