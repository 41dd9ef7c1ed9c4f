"""What a report shows, before it is text, Markdown or a page: its sections, and those of them that forward passes give."""

from collections.abc import Callable
from typing import Any

from ..methods.local_teacher import SCATTERED
from ..metrics.tables import NAMES
from ..tasks import TASKS
from .content import MODELS, At, Cell, Plot, Range, Section, Table, class_name, in_words, places, value
from .deeper_sections import answers, connectivity, membership, quantization, relearning, stages

MOST = 12  # layers that are named beside the plot of all

GROUPS = {  # the figures of each model, so that a forget accuracy never stands without its control
    "Removal": (
        *("forget_accuracy", "unseen_accuracy", "kept_accuracy", "forget_loss", "unseen_loss"),
        *("forget_probability", "unseen_probability", "forget_extraction", "unseen_extraction"),
        *("rf_jsd", "jsd", "closed", "avg_gap", "affected_gap", "tow", "forget_quality", "activation_distance"),
    ),
    "Privacy": ("auc", "mia"),
    "Use": ("retain_accuracy", "retain_loss", "retain_probability", "retain_extraction"),
}
FIGURES = NAMES | {
    "forget_loss": "forget loss",
    "unseen_loss": "unseen loss",
    "retain_loss": "retain loss",
    **{
        f"{split}_{figure}": f"{split} {name}"
        for split in ("forget", "unseen", "retain")
        for figure, name in (("probability", "probability"), ("extraction", "extraction strength"))
    },
    "tow": "ToW",
    "forget_quality": "forget quality, p",
    "activation_distance": "distance of outputs",
}

MEANING = {  # of figures whose names do not say it
    "forget_probability": "Probability: of a completion's tokens, their geometric mean. Accuracies are the share of tokens that are the "
    "likeliest ones (exact memorisation).",
    "forget_extraction": "Extraction strength: the share of a completion that greedy decoding gives right after the shortest prefix from "
    "which it does.",
    "auc": "AUC: how well the margin tells forget samples from unseen ones of their class; 0.5 is not at all.",
    "mia": "MIA: the share of forget samples that an attack on the entropy takes for training samples.",
    "rf_jsd": "RF-JSD: how far mean answers on forget samples are from the original's on unseen ones, class by class; 0 is not the aim.",
    "tow": "ToW: the product of 1 − distance to the retrained model over the three accuracies; 1 is alike.",
    "activation_distance": "Distance of outputs: mean L2 between the probabilities of a model and of the retrained one.",
    "forget_quality": "Forget quality: how often two like models differ as much in their margins (p-value).",
}


def sections(content: dict[str, Any]) -> tuple[list[Section], list[str]]:
    """The parts that were measured, in the order in which they are read, and a sentence for each that was not."""
    found, absent = [], []
    for build, sentence in PARTS.items():
        section = build(content)
        if section is not None:
            found.append(section)
        elif sentence:
            absent.append(sentence)
    for name, reason in content.get("reasons", {}).items():
        absent.append(f"{FIGURES.get(name, name.replace('_', ' '))}: {reason}")
    return found, absent


def figures(content: dict[str, Any]) -> Section | None:
    """Each model in a column."""
    models = [model for model in MODELS if content.get("figures", {}).get(model)]
    if not models:
        return None
    known = dict.fromkeys(
        key for model in models for key, figure in content["figures"][model].items() if figure is not None
    )
    grouped = {key for keys in GROUPS.values() for key in keys}
    ends = {f"{key}_{end}" for key in known for end in ("low", "high")}
    groups = GROUPS | {"Other": tuple(key for key in known if key not in grouped | ends)}
    rows: list[tuple[Cell, ...]] = []
    for group, keys in groups.items():
        shown = [key for key in keys if key in known]
        rows += [(group,)] if shown else []
        rows += [
            (
                FIGURES.get(key) or key.replace("_", " "),
                *(_figure(content, At(("figures", model, key))) for model in models),
            )
            for key in shown
        ]
    text = "A forget accuracy means something only beside that of unseen samples, which no model was trained on."
    if "retrained" in models:
        text += " The retrained model never saw the forget samples: the closer to it, the better."
    else:
        text += " There is no retrained model to compare with."
    text = " ".join([text, *(meaning for key, meaning in MEANING.items() if key in known)])
    return Section("figures", "Before and after", text, tables=[Table(("", *models), rows)])


def _figure(content: dict[str, Any], at: At) -> Cell:
    """A figure, with its interval where the content has one."""
    parent, name = At(at[:-1]), at[-1]
    if value(content, parent / f"{name}_low") is None:
        return at
    return Range(at, parent / f"{name}_low", parent / f"{name}_high")


WORST = {"forget_margin": "margin, forget", "unseen_margin": "margin, unseen", "jsd": "JSD to retrained, forget"}


def worst(content: dict[str, Any]) -> Section | None:
    """What means do not tell."""
    found = content.get("worst")
    if not found:
        return None
    rows: list[tuple[Cell, ...]] = []
    for model in (model for model in MODELS if model in found):
        rows.append((model,))
        for key in found[model]:
            rows.append((WORST[key], *(At(("worst", model, key, figure)) for figure in ("mean", "p90", "max"))))
    text = (
        "A good mean can hide a few exposed samples: those with the highest margins (of a language model: likelihoods). They "
        "mean something beside the same of unseen samples."
    )
    table = Table(("", "mean", "90th percentile", "highest"), rows)
    return Section("worst", "Worst cases", text, tables=[table], brief=False)


SCORES = {"margin": "margin", "loss": "loss", "entropy": "entropy"}  # a language model has a likelihood as margin


def distributions(content: dict[str, Any]) -> Section | None:
    """A picture for each score and model: forget filled, unseen as a line."""
    drawn = []
    kind = TASKS.get(content["task"])
    names = SCORES | ({"margin": kind.scores["margin"]} if kind and kind.is_audited else {})
    for score, label in names.items():
        at = At(("distributions", score))
        models = [model for model in MODELS if value(content, at / model / "forget")]
        every = tuple(at / model / name for model in models for name in ("forget", "unseen"))
        for model in models:
            named = [name for name in ("forget", "unseen") if value(content, at / model / name)]
            series = [(name, name, places(content, at / model / name)) for name in named]
            title = f"{label.capitalize()}, {model}"
            edges = places(content, at / "edges")
            first = not drawn or drawn[0].name.split("-")[1] == score
            drawn.append(
                Plot(f"scores-{score}-{model}", title, edges, series, label, "share", "steps", every, minor=not first)
            )
    if not drawn:
        return None
    text = (
        "Where the two shapes of a model lie on each other, a sample's score does not tell whether it was forgotten or never "
        "seen. Forget samples to the side of the sure ones are remembered; to the other side they stand out by being treated "
        "worse. The first and the last bin hold all samples beyond them, too."
    )
    if content["request"]["kind"] == "class":
        text += " Unseen samples are those of the forgotten classes here, if there are any."
    return Section("distributions", "Scores of forget and unseen samples", text, plots=drawn, brief=False)


MEASURES = {"total_variation": "total variation", "accuracy": "accuracy", "confidence": "confidence"}


def locality(content: dict[str, Any]) -> Section | None:
    """The difference to the reference by similarity, and how it is near and far."""
    sets = [name for name in ("unseen", "retain") if value(content, At(("locality", name)))]
    if not sets:
        return None
    reference = "retrained" if value(content, At(("models", "retrained"))) else "original"
    drawn, tables, lines = [], [], []
    for name in sets:
        at = At(("locality", name))
        nearer = value(content, at / "forget_nearer")
        if nearer is not None and nearer < SCATTERED:
            start = f"A forget sample is nearer to the centroid than one of the {name} samples in a share of"
            end = "of pairs only: the forget set is scattered, and what is near it or far says little."
            lines.append((start, at / "forget_nearer", end))
        rows = [(label, at / "near" / measure, at / "far" / measure) for measure, label in MEASURES.items()]
        title = f"{name.capitalize()} samples, {reference} − unlearned"
        of = f"{title}; the {reference} model is {content['models'][reference]}"
        tables.append(Table(("", "nearest 5%", "farthest half"), rows, of))
        for measure, label in MEASURES.items():
            series = [("unlearned", "unlearned", places(content, at / "bins" / measure))]
            drawn.append(
                Plot(
                    f"locality-{name}-{measure}",
                    title,
                    places(content, at / "edges"),
                    series,
                    "similarity to the forget set",
                    f"difference, {label}",
                    "middles",
                    minor=measure == "total_variation",
                )
            )
    text = (
        f"The {reference} model's accuracy and confidence less the unlearned one's, by how similar a sample is to the forget set: "
        "above 0 the unlearned model is worse. Total variation has no sign: it is above 0, and can rise to the right, between any "
        "two models that were trained apart."
    )
    rows = [(name, At(("locality", name, "ratio")), At(("locality", name, "correlation"))) for name in sets]
    tables.append(Table(("", "near / far", "rank correlation"), rows, "Total variation"))
    return Section("locality", "Who pays for forgetting", text, lines, tables, drawn)


def classes(content: dict[str, Any]) -> Section | None:
    """Those on which the models differ most come first."""
    found = content.get("classes")
    if not found:
        return None
    worst = sorted(range(len(found)), key=lambda i: (-(found[i].get("rf_jsd") or 0), i))
    at = At(("classes",))
    names = {"forget": "forget", "unseen": "unseen", "rf_jsd": "RF-JSD", "auc": "AUC"}
    keys = [key for key in names if any(row.get(key) is not None for row in found)]
    rows = [(class_name(content, found[i]), *(at / i / key for key in keys)) for i in worst]
    head = ("class", *(names[key] for key in keys))
    text = "Samples of each forget class, and how far they are from unseen ones: a good mean can hide one class."
    if len(rows) == 1:
        return Section("classes", "Class by class", text, [in_words(head, ("Class " + rows[0][0], *rows[0][1:]))])
    return Section("classes", "Class by class", text, tables=[Table(head, rows)])


def distance(content: dict[str, Any]) -> Section | None:
    """Where in the network the weights have moved."""
    found = content.get("distance")
    if not found:
        return None
    at = At(("distance",))
    layers = found.get("layers") or []
    cells = [at / "layers" / i / "relative" for i in range(len(layers))]
    names = [layer["name"] for layer in layers]
    plot = Plot(
        "distance",
        "By layer, from input to output",
        names,
        [("distance", "unlearned", cells)],
        "layer",
        "distance",
        "bars",
    )
    head_only = "Only the head has changed." if found.get("head_only") else "Not only the head has changed."
    text = "The change of the weights relative to their length."
    lines = [head_only, ("All weights together have moved by", at / "total", "of their length.")]
    most = sorted(range(len(layers)), key=lambda i: (-(layers[i]["relative"] or 0), i))[:MOST]
    table = Table(("layer", "distance"), [(names[i], cells[i]) for i in most], "Layers that have moved most")
    shown = ([table], [plot]) if layers else ([], [])
    return Section("distance", "Change of the weights", text, lines, *shown, brief=False)


def canary(content: dict[str, Any]) -> Section | None:
    """Whether the audit would have noticed."""
    found = content.get("canary")
    if not found:
        return None
    text = "Samples were planted among the forgotten ones, to see whether this audit would have noticed them."
    return Section("canary", "Self-test", text, [found["sentence"]] if found.get("sentence") else [])


def cost(content: dict[str, Any]) -> Section | None:
    """Time, passes, and what else was counted."""
    found = content.get("cost")
    if not found:
        return None
    at = At(("cost",))
    rows: list[tuple[Cell, ...]] = []
    for name in found.get("seconds", {}):
        rows.append((f"seconds, {name.replace('_', ' ')}", at / "seconds" / name))
    rows += [(key.replace("_", " "), at / key) for key in found if key != "seconds"]
    text = "What this audit took, in forward passes of single samples and in seconds."
    if "unlearning" in found.get("seconds", {}):
        text += " Unlearning itself is not part of the total."
    return Section("cost", "Cost", text, tables=[Table(("", "value"), rows)])


def conventions(content: dict[str, Any]) -> Section | None:
    """How the figures are defined."""
    found = content.get("conventions")
    return Section("conventions", "Conventions", "How the figures were computed.", found) if found else None


PARTS: dict[Callable[[dict[str, Any]], Section | None], str] = {
    figures: "Figures before and after.",
    distributions: "Distributions of scores: they need samples with labels.",
    worst: "Worst cases: they need 30 forget samples.",
    locality: "Who pays for forgetting: it needs classes, and samples beside the forgotten ones.",
    stages: "Probes and CKA of each stage: part of level 1, for classifiers.",
    quantization: "Rounded weights: part of level 1, for classifiers.",
    relearning: "Relearning: part of level 1.",
    answers: "",  # of few models, and nothing that others miss
    connectivity: "The way between the models: part of level 1.",
    membership: "Membership of single samples: part of level 2, for classifiers.",
    classes: "Figures of each class: they need samples with labels.",
    distance: "Change of the weights, layer by layer.",
    canary: "Self-test with planted samples.",
    cost: "Cost of the audit.",
    conventions: "Conventions of the figures.",
}
