"""Contents of audit reports, as an audit writes them, with made-up figures."""

import numpy as np

HOSTILE = "<script>alert('&')</script> | \x1b[2J\u202e \ud800 `$x$` " + "w" * 80


def audit_content(
    kind="instance", level=2, retrained=True, task="image-classification", seed=0, classes=10, layers=14
):
    """A whole content; what a level does not measure is absent."""
    random = np.random.default_rng(seed)
    models = ("original", "unlearned", "retrained") if retrained else ("original", "unlearned")

    def some(n, low=0.0, high=1.0):
        return [float(x) for x in random.uniform(low, high, n)]

    def figures():
        keys = ("forget_accuracy", "retain_accuracy", "unseen_accuracy", "forget_loss", "retain_loss", "unseen_loss")
        return dict(zip((*keys, "rf_jsd", "mia", "auc"), some(9), strict=True))

    rows = {model: figures() for model in models}
    for row in rows.values():
        row |= {"auc_low": row["auc"] - 0.02, "auc_high": row["auc"] + 0.02}
    if retrained:
        rows["unlearned"] |= {"avg_gap": 0.0123, "tow": 0.94, "forget_quality": 0.00002, "activation_distance": 0.06}
    sentence = "No evidence that forget samples stand out from unseen ones; an AUC above .53 would have been seen."
    question = "Do forget samples stand out from unseen ones of their class?"
    findings = [
        finding("stands-out", question, sentence, 0.512, 0.49, 0.53, 0.31, 0.93),
        finding(
            "retain-harm", "Are retain samples worse off?", "Retain accuracy fell by 4 points.", fails=True, p=1e-5
        ),
        finding("head", "Has more than the head changed?", "All layers have changed.", kind="info"),
    ]
    content = {
        "format": 1,
        "version": "0.1.0",
        "date": "2026-02-03",
        "level": level,
        "seed": seed,
        "task": task,
        "request": {
            "kind": kind,
            "samples": {"forget": 500, "retain": 45000, "unseen": 10000},
            "forget_classes": [3] if kind == "class" else [],
            "class_names": None,
        },
        "models": {
            "original": "someone/vit-base-cifar10",
            "unlearned": "someone/vit-base-cifar10@request-42",
            "retrained": "someone/vit-base-cifar10-without-42" if retrained else None,
        },
        "verdict": {
            "outcome": "no evidence",
            "plain": "No sign was found that the model still remembers the forget samples.",
            "tested": "Tested, and corrected together: stands-out, retain-harm.",
            "headline": "No evidence of residual memory; an AUC above .53 would have been seen.",
            "findings": findings,
            "cannot": ["Whether single samples are exposed: this needs a reference model."],
        },
        "figures": rows,
        "reasons": {} if retrained else {"avg_gap": "there is no retrained model"},
        "distance": {
            "total": 0.021,
            "head_only": False,
            "layers": [{"name": f"encoder.layer.{i}", "relative": x} for i, x in enumerate(some(layers, 0, 0.05))],
        },
        "canary": {"planted": 50, "auc": 0.81, "noticed": True, "sentence": "50 planted wrong labels were noticed."},
        "cost": {"seconds": {"total": 83.21, "forward": 71.1}, "forward_passes": 8},
        "conventions": ["JSD with natural logarithm.", "Margin: log of p over 1 - p of the true class."],
    }
    if task == "causal-lm":
        return content | {"figures": {m: {"forget_loss": 2.5, "unseen_loss": 3.1, "min_k": 0.4} for m in models}}
    content["classes"] = [
        {"class": c, "name": f"class {c}", "forget": 50, "unseen": 1000, "rf_jsd": x, "auc": None if c == 2 else 0.5}
        for c, x in enumerate(some(classes, 0, 0.1))
    ]
    three = {"mean": 0.5, "p90": 3.25, "max": 9.125}
    content["worst"] = {
        model: {"forget_margin": three, "unseen_margin": three} | ({} if model == "retrained" else {"jsd": three})
        for model in models
    }
    content["distributions"] = {name: scores(name, models) for name in ("margin", "loss", "entropy")}
    reference = "retrained" if retrained else "original"
    content["locality"] = {name: locality(random, reference) for name in ("retain", "unseen")}
    if level >= 1:
        content |= level_1(random, models)
    if level >= 2:
        content["membership"] = {
            "rmia": {"auc": 0.52, "low": 0.49, "high": 0.55}
            | {
                name: {"value": at, "low": at - 0.01, "high": at + 0.02}
                for name, at in (("tpr_at_1_fpr", 0.013), ("worst_decile", 0.96), ("worst_decile_of_unseen", 0.95))
            },
            "accuracy": {"original": 0.94, "reference": 0.91},
            "notes": ["The population has 60 samples, fewer than 100."],
            "iam": {"mean": 0.93, "low": 0.9, "high": 0.97, "worst_decile": 0.4},
            "reference": "trained",
        }
    return content


def finding(
    name, question, sentence, value=None, low=None, high=None, p=None, p_corrected=None, fails=False, kind=None
):
    kind = kind or ("harm" if fails else "residual")
    found = {"name": name, "question": question, "sentence": sentence, "value": value, "low": low, "high": high}
    return found | {"p": p, "p_corrected": p_corrected, "fails": fails, "kind": kind}


def scores(name, models):
    edges = np.linspace(*((-4, 12) if name == "margin" else (0, 6)), 25)
    middle = (edges[1:] + edges[:-1]) / 2
    found = {"edges": edges.tolist()}
    for i, model in enumerate(models):
        found[model] = {}
        for j, part in enumerate(("forget", "retain", "unseen")):
            centre = edges.mean() + (3.0 if i == 0 and j < 2 else 0.3 * j)
            shares = np.exp(-(((middle - centre) / (0.15 * np.ptp(edges))) ** 2))
            found[model][part] = (shares / shares.sum()).tolist()
    return found


def locality(random, reference):
    edges = np.linspace(-0.1, 0.9, 11)
    rise = np.linspace(0.05, 0.3, 10) + random.uniform(0, 0.03, 10)
    return {
        "reference": reference,
        "edges": edges.tolist(),
        "counts": [int(n) for n in random.integers(1, 500, 10)],
        "bins": {
            m: [None, *(rise * s).tolist()[1:]]
            for m, s in (("accuracy", 0.5), ("confidence", 0.8), ("total_variation", 1))
        },
        "near": {"accuracy": 0.11, "confidence": 0.2, "total_variation": 0.29},
        "far": {"accuracy": 0.01, "confidence": 0.02, "total_variation": 0.08},
        "ratio": 3.625,
        "correlation": 0.61,
        "floor": None,
        "forget_nearer": 0.512,
    }


def level_1(random, models):
    depth, steps = 13, [0, 10, 25, 50, 100, 150, 200]
    t = np.asarray(steps) / 200
    probe = {model: np.clip(np.linspace(0.2, 0.95 - 0.1 * i, depth), 0, 1) for i, model in enumerate(models)}
    curves = {
        "original": np.ones(7),
        "unlearned": 0.6 + 0.3 * t,
        "retrained": 0.58 + 0.1 * t,
        "control": 0.5 + 0.2 * t,
    }
    kinds = {
        kind: {name: (shift * curve).tolist() for name, curve in curves.items() if name in (*models, "control")}
        for kind, shift in (("retain-only", 0.9), ("k-shot", 1.0))
    }
    if "retrained" not in models:
        kinds = {kind: found | {"retrained": None} for kind, found in kinds.items()}
    accuracies = ("forget_accuracy", "retain_accuracy", "unseen_accuracy")
    return {
        "stages": [
            {
                "name": f"vit.encoder.layer.{i}",
                "cka": 1 - 0.01 * i,
                "probe": {model: float(values[i]) for model, values in probe.items()},
                "control": 0.3 + 0.03 * i,
                "difference": 0.021 + 0.01 * i,
                "low": 0.012 + 0.01 * i,
                "high": 0.033 + 0.01 * i,
            }
            for i in range(depth)
        ],
        "quantization": [
            {
                "bits": bits,
                **dict(zip(accuracies, random.uniform(0.5, 1, 3).tolist(), strict=True)),
                "control": dict(zip(accuracies, random.uniform(0.5, 1, 3).tolist(), strict=True))
                if bits == 4
                else None,
            }
            for bits in (8, 4)
        ],
        "relearning": {
            "steps": steps,
            "kinds": kinds,
            "area": {
                kind: {name: sum(curve) / 7 for name, curve in of.items() if curve}
                | {"difference": 0.123, "low": 0.045, "high": 0.234}
                for kind, of in kinds.items()
            },
            "control": "the original's body with a new head, trained on the retain samples",
        },
        "connectivity": {
            "alphas": [0.0, 0.25, 0.5, 0.75, 1.0],
            "forget_loss": [0.02, 0.1, 0.4, 0.9, 1.4],
            "retain_loss": [0.02, 0.03, 0.06, 0.05, 0.04],
            "barrier": 0.021,
        },
    }


def least():
    """No more than every report has."""
    verdict = {
        "outcome": "cannot judge",
        "headline": "It cannot be judged.",
        "findings": [],
        "cannot": ["Anything at all."],
    }
    content = {
        key: audit_content(level=0)[key] for key in ("format", "version", "level", "seed", "task", "request", "models")
    }
    return content | {"verdict": verdict}


def without(content, *parts):
    return {name: part for name, part in content.items() if name not in parts}


def renamed(content, name):
    """With this name for all that has names of its own: classes, layers, models; and in sentences."""
    content["models"] = {model: f"{name} {model}" for model in content["models"]}
    verdict = content["verdict"]
    verdict |= {"headline": f"About {name}.", "cannot": [f"Whether {name}."]}
    verdict["findings"] = [
        one | {"question": f"Is {name}?", "sentence": f"It is {name}."} for one in verdict["findings"]
    ]
    for part, key in (("classes", "name"), ("stages", "name")):
        content[part] = [row | {key: f"{name} {i}"} for i, row in enumerate(content.get(part, []))]
    content["distance"]["layers"] = [row | {"name": name} for row in content["distance"]["layers"]]
    return content | {"conventions": [name], "reasons": {"uis": name}}
