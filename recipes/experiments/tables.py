"""Writes the tables and pictures of README and docs from the committed results: `python recipes/experiments/tables.py`.

Pictures and estimates of the closeness study are made anew first. A table stands between `<!-- table: NAME -->` and `<!-- end -->`; a test holds every one of them against its JSON.
"""

import json
import re
from pathlib import Path

import closeness_estimates
import closeness_picture
import closeness_tables
import communication
import language_models
import memory
import numpy as np
import reproduction
import scaling
from study import mean, std

from hf_unlearn.commands import demo
from hf_unlearn.commands.speed import report
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.base import CLASSIFICATION
from hf_unlearn.metrics.tables import table

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def _results(name: str) -> dict:
    return json.loads((ROOT / "recipes/experiments/results" / f"{name}.json").read_text())["results"]


def _methods() -> str:
    lines = ["| method | what it does | applies to | needs | cost in epochs |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        info = method.info
        link = f"[`{name}`]({info.paper.url})" if info.paper else f"`{name}`"
        tasks = ", ".join(info.applies_to).replace(", ".join(CLASSIFICATION), "classifiers")
        tasks = tasks.replace("causal-lm", "language models").replace("multi-task", "multi-task models")
        summary = info.summary + " (kept for comparison)" * info.comparison
        lines.append(f"| {link} | {summary} | {tasks} | {', '.join(info.needs)} | {info.cost:g} |")
    return "\n".join(lines)


def _methods_by_model() -> str:
    lines = ["| models | methods |", "|---|---|"]
    titles = {"classifiers": CLASSIFICATION[0], "language models": "causal-lm", "several tasks": "multi-task"}
    for title, task in titles.items():
        names = (f"`{name}`" for name, method in METHODS.items() if task in method.info.applies_to)
        lines.append(f"| {title} | {', '.join(names)} |")
    return "\n".join(lines)


def _engine(results: dict) -> str:
    lines = ["| model | step | seconds | ratio | wanted |", "|---|---|---|---|---|"]
    for model, rows in results["rows"].items():
        for side, row in rows.items():
            wanted = f"{results['wanted']:g}" if side == "difference" else "-"
            lines.append(f"| {model} | {side} | {row['seconds']:.3f} | {row['ratio']:.3f} | {wanted} |")
    return "\n".join(lines)


def _quota(results: dict) -> str:
    lines = [
        "| model | R² of each seed | flagged at step 0, same samples on both sides | one class, ten steps: forget loss, retain loss |"
    ]
    lines += ["|---|---|---|---|"]
    for model, runs in results.items():
        r_squared = ", ".join(f"{run['r_squared']:.5f}" for run in runs)
        flagged = "yes" if all(run["same"]["unavoidable_at_step_0"] for run in runs) else "no"
        easy = "; ".join(f"{run['easy']['forget']:+.3f}, {run['easy']['retain']:+.4f}" for run in runs)
        lines.append(f"| {model} | {r_squared} | {flagged} | {easy} |")
    return "\n".join(lines)


SURGERY = {
    "forget_train": "forgotten classes, training",
    "forget_unseen": "forgotten classes, unseen",
    "retained": "other classes, unseen",
    "rdm": "RDM, correlation with retrained",
    "probe": "new probe",
    "new_head_forget": "new head, forgotten classes",
}


LOCALITY = {
    "forget_accuracy": "forget acc.",
    "retain_accuracy": "retain acc.",
    "avg_gap": "Avg Gap",
    "affected_gap": "Avg Gap, cats alone",
    "near": "TV near",
    "far": "TV far",
    "near_retain": "TV near, retained",
    "far_retain": "TV far, retained",
    "seconds": "seconds",
}


# Rows of the study on half of a class that are of the objective and the radius of before, which are no defaults any more.
OLDER = ("neggrad_plus", "grad_diff", "pcgrad", "gru", "orthograd", "hamu")
BEFORE = {"local_teacher": "local_teacher (defaults of before)"}
LOCAL_TEACHER = {
    "forget_accuracy": "forget acc.",
    "retain_accuracy": "retain acc.",
    "unseen_accuracy": "unseen acc.",
    "teacher_forget_accuracy": "teacher's forget acc.",
    "jsd": "JSD to retrained",
    "avg_gap": "Avg Gap",
    "affected_gap": "Avg Gap, the class alone",
    "share_of_training": "cost",
    "teacher": "of it the teacher",
}


HAMU = {
    "forget_accuracy": "forget acc.",
    "aim": "aim",
    "retain_accuracy": "retain acc.",
    "unseen_accuracy": "unseen acc.",
    "jsd": "JSD to retrained",
    "avg_gap": "Avg Gap",
    "epochs": "epochs",
}


def _several_tasks(rows: dict) -> str:
    """Scores of each task, and what they come to. Dense tasks forget in the same way whatever the objective of classes is."""
    if not any(key.startswith("forget_class") for key in rows["original"]["mean"]):
        rows = {name: row for name, row in rows.items() if name != "neither, cross-entropy"}
    scores = [key for key in rows["original"]["mean"] if key.startswith(("forget_", "retain_"))]
    columns = {key: key.replace("_", " ") for key in scores} | {
        "uis": "UIS", "uis_retrained": "UIS to retrained", "instance_interference": "instance interference", "share": "cost",
    }  # fmt: skip
    return _means(rows, columns, "std")


def _hamu(rows: list[dict], case: str, request: str) -> str:
    """Means over seeds; of a retrained model, what it and another one are apart."""
    of: dict[str, list[dict]] = {}
    for row in rows:
        if (row["case"], row["request"]) == (case, request):
            of.setdefault(row["row"], []).append({key: row[key] for key in HAMU if key in row})
    return _means({name: {"mean": mean(runs), "std": std(runs)} for name, runs in of.items()}, HAMU, "std")


def _with_spread(value: float, spread: float | None, digits: int) -> str:
    """Of one seed there is none."""
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _means(rows: dict, columns: dict[str, str], spread: str) -> str:
    """The columns that a row has, as mean ± `std` or half of a 95 % `interval`."""
    columns = {
        key: name for key, name in columns.items() if any(r["mean"].get(key) is not None for r in rows.values())
    }
    lines = [f"| | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        digits = {key: 0 if key == "seconds" else 3 for key in columns}
        cells = (
            "-" if row["mean"].get(key) is None else _with_spread(row["mean"][key], row[spread][key], n)
            for key, n in digits.items()
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _still_read(edits: list[dict]) -> str:
    """How well a probe reads the class by what each stage reads: of the original, behind the edit, and of a retrained model."""
    sides = {
        "original": [edit["damp"]["still_read"]["original"] for edit in edits],
        "damp": [edit["damp"]["still_read"]["edited"] for edit in edits],
        "retrained": [edit["retrained"]["still_read"] for edit in edits],
    }
    stages = list(sides["original"][0])
    header = [*(f"stage {i}" for i in range(1, len(stages))), "head"]
    lines = [f"| | {' | '.join(header)} |", "|---" * (len(stages) + 1) + "|"]
    for name, runs in sides.items():
        found = ([run[stage] for run in runs] for stage in stages)
        cells = [_with_spread(np.mean(v), np.std(v, ddof=1) if len(v) > 1 else None, 3) for v in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _surgery_cost(results: dict) -> str:
    lines = [
        "| model | edit | beside | seconds | seconds of the edit | ratio | wanted |",
        "|---|---|---|---|---|---|---|",
    ]
    beside = {"damp": "one forward pass", "ssd": "gradients of single samples"}
    for model, edits in results["rows"].items():
        for name, row in edits.items():
            what = f"{beside[name]}, {results['samples'][name]:,} samples"
            numbers = f"{row['plain']:.2f} | {row['edit']:.2f} | {row['ratio']:.3f} | {results['wanted'][name]:g}"
            lines.append(f"| {model} | {name} | {what} | {numbers} |")
    return "\n".join(lines)


def _memory(results: dict) -> str:
    """The most first, beside the plain Trainer of the same model; below them what was refused."""
    plain = {row["model"]: row["peak"] for row in results["rows"] if row["method"] == memory.PLAIN}
    lines = ["| model | method | peak, in copies of the weights | beyond the plain Trainer |", "|---|---|---|---|"]
    for row in sorted(results["rows"], key=lambda row: (row["model"], -row["peak"])):
        beyond = (row["peak"] - plain[row["model"]]) / row["weights"]
        lines.append(f"| {row['model']} | {row['method']} | {row['peak'] / row['weights']:.2f} | {beyond:+.2f} |")
    for row in results["refused"]:
        lines += ["", f"Refused on {row['model']}: {row['reason'].partition(';')[0]}."]
    return "\n".join(lines)


def _before_first_step(results: dict) -> str:
    lines = [
        "| retained rows | pictures, GB | before the first step, s | of these, overlaps, s | identity, s | pictures read | "
        "`datasets`: labels, s | pictures, s | times the latter | plain Trainer, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        passes = row["pass over pictures"]
        numbers = (row["before the first step"], row["overlaps"], row["identity"])
        lines.append(
            f"| {row['rows']:,} | {row['bytes'] / 1e9:.2f} | {' | '.join(f'{number:.2f}' for number in numbers)} | {row['read']:,} | "
            f"{row['pass over labels']:.2f} | {row['pass over pictures']:.2f} | {row['before the first step'] / passes:.2f} | "
            f"{row['plain Trainer']:.2f} |"
        )
    return "\n".join(lines)


def _queue(results: dict) -> str:
    """Every second batch, and the models beside them."""
    lines = [
        "| after | samples forgotten | drift (JSD) | unseen accuracy, first original's | AUC of all earlier samples |",
        "|---|---|---|---|---|",
    ]
    requests = samples = 0
    for number, row in enumerate(results["batches"], 1):
        requests, samples, drift = requests + row["requests"], samples + row["samples"], row["drift"]
        if number % 2 and number < len(results["batches"]):
            continue
        after = row["earlier"] and row["earlier"]["after"]
        auc = f"{after['auc']:.3f} ({after['auc_low']:.3f} to {after['auc_high']:.3f})" if after else "-"
        accuracy = f"{drift['now']:.3f}, {drift['first']:.3f}"
        lines.append(f"| {requests} requests | {samples} | {drift['jsd']:.4f} | {accuracy} | {auc} |")
    for name, row in results["others"].items():
        what = {"same data": "another training on all data", "retrained": "retrained without them"}[name]
        gone = results["samples"] if name == "retrained" else 0
        auc = f"{row['auc']:.3f}" if row["auc"] is not None else "-"
        lines.append(f"| {what} | {gone} | {row['jsd']:.4f} | {row['now']:.3f}, {row['first']:.3f} | {auc} |")
    return "\n".join(lines)


def render(name: str) -> str:
    """The table called NAME, or FILE.SETTING: one setting of a study, as mean and standard deviation over seeds."""
    if name == "methods":
        return _methods()
    if name == "methods-by-model":
        return _methods_by_model()
    if name in closeness_tables.TABLES:
        return closeness_tables.TABLES[name]()
    if name in reproduction.TABLES:
        return reproduction.TABLES[name]()
    file, _, setting = name.partition(".")
    if file in language_models.STUDIES:
        return language_models.render(file, setting)
    results = _results(file)
    if file == "compare":
        return f"```\n{results['texts'][setting]}\n```"
    if name == "benchmark":
        return report(results["rows"])
    if name == "quickstart":
        return f"```\n{demo.table(results['rows'])}\n```\n\nThe audit says: *{results['verdict']}*"
    if name == "memory":
        return _memory(results)
    if name == "communication":
        return communication.table(results["rows"])
    if name == "communication.arithmetic":
        return communication.arithmetic(results["rows"])
    if name == "scaling":
        return scaling.table(results["rows"])
    if name == "before_first_step":
        return _before_first_step(results)
    if name == "request_queue":
        return _queue(results)
    if name == "engine":
        return _engine(results)
    if name == "quota":
        return _quota(results)
    if name == "surgery-cost":
        return _surgery_cost(results)
    if file.startswith("damp-") and setting == "read":
        return _still_read(results["one"]["edits"])
    if file.startswith("damp-"):
        return _means(results[setting]["rows"], SURGERY, "std")
    if file == "locality":
        shown = {BEFORE.get(k, k): v for k, v in results[setting].items() if k not in OLDER}
        return _means(shown, LOCALITY, "interval")
    if file == "hamu":
        case, _, request = setting.partition(".")
        return _hamu(results["rows"], case, request)
    if file in ("multitask-cifar10", "multitask-scenes"):
        return _several_tasks(results[setting])
    if file == "cifar10":
        return table({row: {k: v for k, v in of.items() if k != "notes"} for row, of in results[setting].items()})
    if file == "local_teacher":
        return _means(results[setting], LOCAL_TEACHER, "std")
    rows = results[setting]
    rows["retrained"]["mean"]["avg_gap"] = None  # nought by definition
    return table({row: v["mean"] for row, v in rows.items()}, {row: v["std"] for row, v in rows.items()})


def updated(text: str) -> str:
    """`text` with every table written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{render(match[2])}\n{match[4]}", text)


if __name__ == "__main__":
    closeness_estimates.write()
    closeness_picture.write()
    language_models.write_picture()
    for document in DOCUMENTS:
        document.write_text(updated(document.read_text()))
