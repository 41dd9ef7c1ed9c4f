"""The tables of `docs/reproduction.md`: what a paper says, beside what the committed results have of it.

Figures of the papers are typed in here, once, with where they are from; all others are read from `results/`.
"""

import json
from collections.abc import Callable
from pathlib import Path

NOT_RUN = "not run"
RESULTS = Path(__file__).parent / "results"

# CIFAR-10, a tenth forgotten, means of 3 seeds: Avg Gap of a ResNet-18 and of a ViT, as saved with the authors' code.
LOTUS = {
    "finetune": (0.1375, 0.0075),
    "neggrad_plus": (0.0975, 0.0125),
    "random_label": (0.0925, 0.0125),
    "bad_teacher": (0.2650, 0.0375),
    "scrub": (0.0750, 0.0050),
    "ssd": (0.0825, 0.0075),
    "unsir": (0.1075, 0.0100),
    "lotus": (0.0375, 0.0050),
}
# CIFAR-100, half of the class couch, ResNet-56, means of 5 runs: AvgGap and that of the class alone, in points; seconds.
LOCAL_TEACHER = {"retrained": (0.0, 0.0, 1558.9), "random_label": (12.2, 12.6, 154.4), "finetune": (21.2, 15.0, 158.6)}
LOCAL_TEACHER |= {"gradient_ascent": (7.7, 24.3, 1.8), "salun": (10.6, 15.0, 361.1), "amun": (13.0, 12.4, 171.0)}
LOCAL_TEACHER |= {"local_teacher (paper)": (2.4, 4.9, 226.5)}
# Accuracy on the other classes and on the forgotten ones: of DAMP, and of a retrained model.
DAMP = {
    "CNN-5, CIFAR-10, one class": ((0.9033, 0.0), (0.9070, 0.0), "damp-cnn5", "one"),
    "ResNet-18, Tiny ImageNet, one class": ((0.5280, 0.0), (0.5312, 0.0), None, None),
    "ViT, CIFAR-100, one class": ((0.4802, 0.0), (0.5018, 0.0), None, None),
    "CNN-5, Tiny ImageNet, several classes": ((0.3468, 0.0), (0.5469, 0.0), None, None),
}
# One class of CIFAR-10, ResNet-18: accuracy on the other classes and on it, as another paper's table has them.
BY_CLASS = {"original": (0.9489, 0.9489), "retrained": (0.9481, 0.0), "scrub": (0.9479, 0.0), "ssd": (0.8576, 0.0437)}
# How much lower UIS is than that of the strongest rival.
MULTITASK = {"partial": -0.529, "full": -0.303}


def _results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def _closeness(case: str, request: str, method: str, key: str) -> str:
    """Of the first seed, the only one that all methods have, at the budget of all studies."""
    about = {"case": case, "request": request, "method": method, "budget": 0.2, "seed": 0}
    rows = [row for row in _results("closeness")["rows"] if about.items() <= row.items()]
    return f"{rows[0][key]:.3f}" if rows else NOT_RUN


def _of(rows: dict, name: str, key: str, scale: float = 1.0, digits: int = 3) -> str:
    found = rows.get(name, {}).get("mean", {}).get(key)
    return NOT_RUN if found is None else f"{scale * found:.{digits}f}"


def lotus() -> str:
    found = _results("cifar10")
    header, rows = [""], [[name] for name in LOTUS]
    for i, (case, model) in enumerate({"cifar10-resnet18": "ResNet-18", "cifar10-vit": "ViT"}.items()):
        header += [f"{model}: Avg Gap, paper", "here"]
        for row, (name, said) in zip(rows, LOTUS.items(), strict=True):
            ours = found.get(case, {}).get("lotus (paper)" if name == "lotus" else name)
            row += [f"{said[i]:.4f}", f"{ours['avg_gap']:.4f}" if ours else NOT_RUN]
    return _table(header, rows)


def hamu() -> str:
    fits = [run["r_squared"] for runs in _results("quota").values() for run in runs]
    found = {
        (row["case"], row["row"]): f"{row['forget_accuracy']:.3f}"
        for row in _results("hamu")["rows"]
        if row["request"] == "scattered" and row["seed"] == 0
    }
    return _table(
        ["", "paper", "here"],
        [
            ["the gain in forget loss is linear in Q/η, R²", "0.999", f"{min(fits):.4f} to {max(fits):.4f}, digits, six runs"],
            ["κ and the hardness ρ of the request, Pearson", "0.994 (Q), 0.986 (U)", NOT_RUN],
            ["both losses improve at ρ = 0, in 5 epochs", "yes", "yes, one class of digits, ten steps ([quota](hamu.md))"],
            ["at Q/η = 0.5, 25 epochs, forget accuracy falls", "in figures alone", "; ".join(
                f"{found[case, 'original']} stays {found[case, 'hamu (paper)']}, digits, {model}: the quota is out of reach at the first "
                "step, and the run ends" for case, model in (("digits", "ResNet"), ("digits-vit", "ViT"))
            )],
            ["language model, semantic duplicates in the retained set", "both losses improve", NOT_RUN],
        ],
    )  # fmt: skip


def damp() -> str:
    rows = []
    for setting, (edited, retrained, file, request) in DAMP.items():
        found = _results(file)[request]["rows"] if file else {}
        cells = [f"{one:.4f} / {other:.4f}" for one, other in (edited, retrained)]
        for row in ("damp (paper)", "damp", "retrained"):
            pair = [_of(found, row, key) for key in ("retained", "forget_unseen")]
            cells.append(NOT_RUN if NOT_RUN in pair else " / ".join(pair))
        rows.append([setting, *cells])
    header = ["other classes / forgotten ones", "DAMP, paper", "retrained, paper"]
    return _table([*header, "`paper()`, here", "defaults, here", "retrained, here"], rows)


def local_teacher() -> str:
    found = _results("locality")["resnet18-half-a-class"]
    seconds = found["retrained"]["mean"]["seconds"]
    rows = []
    for name, (gap, affected, took) in LOCAL_TEACHER.items():
        ours = [_of(found, name, key, 100, 1) for key in ("avg_gap", "affected_gap")]
        cost = _of(found, name, "seconds", 1 / seconds, 2)
        if name == "retrained":
            ours[0] = "0.0"
        rows.append(
            [name, f"{gap} / {affected}", f"{took / LOCAL_TEACHER['retrained'][2]:.2f}", " / ".join(ours), cost]
        )
    rows = [[NOT_RUN if NOT_RUN in cell else cell for cell in row] for row in rows]
    header = ["", "Avg Gap / of the class, paper", "cost, paper", "Avg Gap / of the class, here", "cost, here"]
    return _table(header, rows)


def multitask() -> str:
    rows = []
    for request, said in MULTITASK.items():
        found = _results("multitask-toy")[request]
        ours, bounded, plain = (
            found[row]["mean"] for row in ("multitask", "neither (NegGrad+)", "neither, cross-entropy")
        )
        # A rival that has not forgotten as much is none.
        beside = (
            "its aim was missed" if plain["aim_missed"] > 0.02 else f"{100 * (ours['uis'] / plain['uis'] - 1):+.1f} %"
        )
        cost = f"{ours['seconds'] / bounded['seconds']:.1f} times"
        rows.append(
            [request, f"{100 * said:+.1f} %", f"{100 * (ours['uis'] / bounded['uis'] - 1):+.1f} %", beside, cost]
        )
    header = ["request", "UIS beside the best rival, paper", "beside NegGrad+, bounded alike, here"]
    return _table([*header, "beside NegGrad+ on the cross-entropy, here", "seconds of NegGrad+, here"], rows)


def salun() -> str:
    rows = []
    for name, case in (("CIFAR-10, 5,000 images, ResNet-18", "resnet"), ("CIFAR-10, 5,000 images, ViT", "vit"), ("digits, small ResNet", "digits")):  # fmt: skip
        accuracy = [_closeness(case, "scattered", method, "forget_accuracy") for method in ("salun", "retrained")]
        rows.append([name, *accuracy, _closeness(case, "scattered", "salun", "avg_gap")])
    return _table(["a tenth at random", "forget accuracy", "of retrained models", "Avg Gap, without MIA"], rows)


def by_class() -> str:
    cnn = _results("damp-cnn5")["one"]["rows"]
    rows = []
    for name, said in BY_CLASS.items():
        pair = [_of(cnn, name, key) for key in ("retained", "forget_unseen")]
        digits = [_closeness("digits", "class", name, key) for key in ("unseen_accuracy", "forget_accuracy")]
        cells = (NOT_RUN if NOT_RUN in both else " / ".join(both) for both in (pair, digits))
        rows.append([name, " / ".join(f"{value:.4f}" for value in said), *cells])
    header = ["other classes / the forgotten one", "CIFAR-10, ResNet-18, published"]
    return _table([*header, "CIFAR-10, CNN of five stages, here", "digits, small ResNet, here"], rows)


def npo() -> str:
    found = _results("stories")["stories15m-instance"]
    names = ("original", "retrained", "npo", "simnpo", "grad_diff")
    keys = ("forget_loss", "unseen_loss", "retain_loss", "jsd")
    rows = [[name, *(_of(found, name, key) for key in keys)] for name in names]
    return _table(["stories15M", "forget loss", "unseen loss", "retain loss", "JSD to retrained"], rows)


TABLES: dict[str, Callable[[], str]] = {
    f"reproduction.{make.__name__}": make
    for make in (lotus, hamu, damp, local_teacher, multitask, salun, by_class, npo)
}
