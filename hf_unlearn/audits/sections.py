"""What a report shows, before it is text, Markdown or a page: sections of tables and plots that point into its content.

A cell is a text, or an `At`: the place of a figure in the content. Whoever writes a table looks the figure up there and
writes it with `number`, so that every figure shown is one of the content and is written the same everywhere.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..methods.local_teacher import SCATTERED
from ..metrics.tables import NAMES

MODELS = ("original", "unlearned", "retrained")
SETS = ("forget", "retain", "unseen")
MOST = 12  # layers that are named beside the plot of all
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NO_VALUE = "–"

GROUPS = {  # the figures of each model, so that a forget accuracy never stands without its control
    "Removal": (
        *("forget_accuracy", "unseen_accuracy", "kept_accuracy", "forget_loss", "unseen_loss"),
        *("rf_jsd", "jsd", "closed", "avg_gap", "affected_gap", "tow", "forget_quality", "activation_distance"),
    ),
    "Privacy": ("auc", "mia"),
    "Use": ("retain_accuracy", "retain_loss"),
}
FIGURES = NAMES | {
    "forget_loss": "forget loss",
    "unseen_loss": "unseen loss",
    "retain_loss": "retain loss",
    "tow": "ToW",
    "forget_quality": "forget quality, p",
    "activation_distance": "distance of outputs",
}


class At(tuple):
    """The keys that lead to a figure: `At(("figures", "unlearned", "auc"))`."""

    def __truediv__(self, key: str | int) -> "At":
        return At((*self, key))

    @property
    def pointer(self) -> str:
        """As a JSON pointer (RFC 6901)."""
        return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in self)


@dataclass(frozen=True)
class Range:
    """A figure and the ends of its interval."""

    value: At
    low: At
    high: At


Cell = str | At | Range
Line = str | tuple[Cell, ...]  # a sentence, with figures between its parts


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its name; a row of one cell heads those that follow."""

    head: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture of figures of the content, for `plots.picture`; series are (label, look, places of the values)."""

    name: str
    title: str
    x: list[At] | list[str]  # names stand for themselves: the places are then 1, 2, 3 ...
    series: list[tuple[str, str, list[At]]]
    x_label: str
    y_label: str
    kind: str = "line"
    same_height: tuple[At, ...] = ()  # lists of the content up to whose highest value the y axis goes
    minor: bool = False  # folded away
    named: bool = False  # the names in `x` are short enough to stand below the axis

    def table(self) -> Table:
        """The same figures."""
        columns = [places for _, _, places in self.series]
        if self.kind in ("steps", "middles"):
            head, x = ("from", "to"), list(zip(self.x, self.x[1:], strict=False))
        else:
            head, x = (self.x_label,), [(one,) for one in self.x]
        rows = [(*here, *values) for here, *values in zip(x, *columns, strict=True)]
        return Table((*head, *(label for label, _, _ in self.series)), rows)


@dataclass(frozen=True)
class Section:
    """A part of the report; `lines` are sentences about the content, `text` says how it is read."""

    name: str
    title: str
    text: str
    lines: list[Line] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    brief: bool = True  # short enough for a model card


def value(content: dict[str, Any], at: At) -> Any:
    """What stands at a place; None where there is none."""
    here: Any = content
    for key in at:
        if isinstance(here, dict):
            here = here.get(key)
        elif isinstance(here, list) and isinstance(key, int) and key < len(here):
            here = here[key]
        else:
            return None
    return here


def number(figure: float | None, at: At) -> str:
    """A figure as it is written everywhere: three digits, or what suits its kind.

    >>> number(0.53, At(("figures", "unlearned", "auc"))), number(10000, At(("cost", "forward_passes")))
    ('0.530', '10,000')
    >>> number(0.00004, At(("verdict", "findings", 0, "p"))), number(None, At(("figures",)))
    ('< 0.001', '–')
    """
    if figure is None:
        return NO_VALUE
    if isinstance(figure, int):
        return f"{figure:,}"
    name = str(at[-1])
    if name in ("p", "p_corrected", "forget_quality") and figure < 0.001:
        return "< 0.001"
    if "seconds" in at:
        return f"{figure:,.1f}"
    if abs(figure) >= 1000:
        return f"{figure:,.0f}"
    if 0 < abs(figure) < 0.001:
        return f"{figure:.1e}"
    return f"{figure:.{4 if name.endswith('jsd') else 3}f}"


def plain(text: object) -> str:
    """Text in one line, without what would move a terminal's cursor, turn the direction of writing or break an encoding."""
    return UNSAFE.sub("\ufffd", " ".join(str(text).split()))


def class_name(content: dict[str, Any], row: dict[str, Any]) -> str:
    """A class by its number and, where it has one, its name."""
    return f"{row['class']}" if row.get("name") is None else f"{row['class']} {row['name']}"


def places(content: dict[str, Any], at: At) -> list[At]:
    """The places of a list's items."""
    return [at / i for i in range(len(value(content, at) or []))]


def in_words(head: tuple[str, ...], row: tuple[Cell, ...]) -> Line:
    """A row of a table as a sentence, where it is the only one."""
    return (f"{row[0]}:", *(part for pair in zip(head[1:], row[1:], strict=True) for part in pair))


def sections(content: dict[str, Any]) -> tuple[list[Section], list[str]]:
    """The parts that were measured, in the order in which they are read, and a sentence for each that was not."""
    found, absent = [], []
    for build, sentence in PARTS.items():
        section = build(content)
        if section is None:
            absent.append(sentence)
        else:
            found.append(section)
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
                FIGURES.get(key, key.replace("_", " ")),
                *(_figure(content, At(("figures", model, key))) for model in models),
            )
            for key in shown
        ]
    text = "A forget accuracy means something only beside that of unseen samples, which no model was trained on."
    if "retrained" in models:
        text += " The retrained model never saw the forget samples: the closer to it, the better."
    else:
        text += " There is no retrained model to compare with."
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
    names = SCORES | ({"margin": "likelihood"} if content["task"] == "causal-lm" else {})
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


def stages(content: dict[str, Any]) -> Section | None:
    """Probes and CKA by depth."""
    found = content.get("stages")
    if not found:
        return None
    at = At(("stages",))
    names = [stage["name"] for stage in found]
    models = [model for model in MODELS if any(stage.get("probe", {}).get(model) is not None for stage in found)]
    series = [(model, model, [at / i / "probe" / model for i in range(len(found))]) for model in models]
    if any(stage.get("control") is not None for stage in found):
        series.append(("control", "control", [at / i / "control" for i in range(len(found))]))
    cka = [("CKA", "unlearned", [at / i / "cka" for i in range(len(found))])]
    drawn = [Plot("stages-probe", "Probe accuracy", names, series, "stage", "accuracy")] if series else []
    drawn.append(Plot("stages-cka", "CKA to the original", names, cka, "stage", "CKA"))
    columns = [*cka, *series]
    rows = [(f"{i + 1}. {name}", *(cells[i] for _, _, cells in columns)) for i, name in enumerate(names)]
    head = ("stage", *(label for label, _, _ in columns))
    tables = [Table(head, rows, "CKA, and the accuracy of the probe")]
    if any(stage.get("difference") is not None for stage in found):
        over = [Range(*(at / i / key for key in ("difference", "low", "high"))) for i in range(len(found))]
        rows = [(row[0], cell) for row, cell in zip(rows, over, strict=True)]
        tables.append(Table(("stage", "difference"), rows, "Accuracy of the probe, unlearned − control, 95% interval"))
    text = (
        "A linear probe tells what can still be read from the features of a stage. One that reads the forget samples as well as "
        "in the original, where the control does not, has found what only the last layer hides. A CKA of 1 is an unchanged stage."
    )
    return Section(
        "stages",
        "Features, stage by stage",
        text,
        tables=tables,
        plots=drawn,
    )


def quantization(content: dict[str, Any]) -> Section | None:
    """Accuracies by precision."""
    found = content.get("quantization")
    if not found:
        return None
    at = At(("quantization",))
    full = At(("figures", "unlearned"))
    names = [f"{row['bits']} bits" for row in found]
    keys = [f"{name}_accuracy" for name in SETS]
    series = []
    for name, key in zip(SETS, keys, strict=True):
        series.append((name, name, [full / key, *(at / i / key for i in range(len(found)))]))
    rows: list[tuple[Cell, ...]] = [("full", *(full / key for key in keys))]
    for i, row in enumerate(found):
        rows.append((names[i], *(at / i / key for key in keys)))
        if row.get("control"):
            rows.append((f"{names[i]}, control", *(at / i / "control" / key for key in keys)))
    plot = Plot("quantization", "Accuracy by precision", ["full", *names], series, "precision", "accuracy", named=True)
    text = (
        "Weights rounded to few bits: where a small change of the weights only hid the forget samples, rounding brings their "
        "accuracy back above that of unseen ones."
    )
    if any(row.get("control") for row in found):
        text += " The control is the retrained model."
    return Section("quantization", "Rounded weights", text, tables=[Table(("precision", *SETS), rows)], plots=[plot])


KINDS = {"retain-only": "Trained on retain samples", "k-shot": "Trained on a few forget samples"}


def relearning(content: dict[str, Any]) -> Section | None:
    """A picture for each kind of relearning, and the areas under the curves."""
    at = At(("relearning",))
    kinds = value(content, at / "kinds")
    if not kinds:
        return None
    drawn, rows, over, models = [], [], [], (*MODELS, "control")
    area = at / "area"
    measured = [name for name in models if any(value(content, area / kind / name) is not None for kind in kinds)]
    for i, kind in enumerate(kinds):
        series = [
            (model, model, places(content, at / "kinds" / kind / model))
            for model in models
            if value(content, at / "kinds" / kind / model)
        ]
        title = KINDS.get(kind, kind)
        steps = places(content, at / "steps")
        drawn.append(Plot(f"relearning-{i}", title, steps, series, "step", "forget accuracy"))
        if value(content, area / kind):
            rows.append((title, *(area / kind / name for name in measured)))
            over.append((title, Range(*(area / kind / key for key in ("difference", "low", "high")))))
    control = value(content, at / "control")
    text = (
        "How fast the forget samples come back in further training. Knowledge that was removed comes back as slowly as in a "
        "model that never had it; knowledge that was hidden comes back at once."
    )
    tables = [Table(("", *measured), rows, "Area under the curve")] if rows else []
    if rows and "control" in measured:
        tables.append(Table(("", "difference"), over, "Area under the curve, unlearned − control, 95% interval"))
    lines = [f"The control: {control}"] if control else []
    return Section("relearning", "Relearning", text, lines, tables, drawn)


def connectivity(content: dict[str, Any]) -> Section | None:
    """The losses on the straight line between the weights of the original and the unlearned model."""
    at = At(("connectivity",))
    if not content.get("connectivity"):
        return None
    series = [
        (name, name, places(content, at / f"{name}_loss"))
        for name in ("forget", "retain")
        if value(content, at / f"{name}_loss")
    ]
    plot = Plot("connectivity", "Loss on the way", places(content, at / "alphas"), series, "share of the way", "loss")
    lines = [("The loss on retain samples rises", at / "barrier", "above the straight line between its ends.")]
    text = (
        "The losses on the straight line from the original (0) to the unlearned model (1). Without a barrier between them, the "
        "unlearned model lies in the original's valley, from where little training leads back."
    )
    return Section("connectivity", "The way between the models", text, lines, plots=[plot], brief=False)


def membership(content: dict[str, Any]) -> Section | None:
    """The attacks with a reference model."""
    found = content.get("membership")
    if not found:
        return None
    at, ends = At(("membership",)), ("low", "high")
    rows: list[tuple[Cell, ...]] = []
    if found.get("rmia"):
        of = at / "rmia"
        rows.append(("RMIA, AUC", Range(of / "auc", *(of / end for end in ends))))
        for key, title in (
            ("tpr_at_1_fpr", "RMIA, true positives at 1% false ones"),
            ("worst_decile", "RMIA, worst tenth"),
            ("worst_decile_of_unseen", "RMIA, worst tenth of as many unseen samples"),
        ):
            rows.append((title, Range(of / key / "value", *(of / key / end for end in ends))))
    if value(content, at / "iam" / "mean") is not None:
        rows.append(("IAM, degree of unlearning", Range(at / "iam" / "mean", *(at / "iam" / end for end in ends))))
        rows.append(("IAM, worst tenth", at / "iam" / "worst_decile"))
    for name in found.get("accuracy", {}):
        rows.append((f"unseen accuracy, {name} model", at / "accuracy" / name))
    text = (
        "Attacks that compare each sample with a reference model that never saw it. For RMIA 0.5 is guessing, and true positives "
        "as many as false ones; its worst tenth is high even where nothing is remembered, and means something only beside that "
        "of unseen samples. For IAM 1 is a sample treated as one never seen."
    )
    lines = [f"The reference model was {found['reference']}."] if found.get("reference") else []
    lines += found.get("notes", [])
    return Section("membership", "Membership of single samples", text, lines, [Table(("attack", "value"), rows)])


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
    connectivity: "The way between the models: part of level 1.",
    membership: "Membership of single samples: part of level 2, for classifiers.",
    classes: "Figures of each class: they need samples with labels.",
    distance: "Change of the weights, layer by layer.",
    canary: "Self-test with planted samples.",
    cost: "Cost of the audit.",
    conventions: "Conventions of the figures.",
}


def samples(content: dict[str, Any]) -> Iterator[tuple[str, At]]:
    """How many samples each set has."""
    for name in SETS:
        if value(content, At(("request", "samples", name))) is not None:
            yield name, At(("request", "samples", name))
