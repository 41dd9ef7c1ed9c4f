"""The sections of a report that level 1 and 2 of an audit fill: features, rounding, relearning, attacks by a reference."""

from typing import Any

from .content import MODELS, SETS, At, Cell, Plot, Range, Section, Table, places, value


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
        title = KINDS.get(kind) or str(kind)
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


ANSWERS = {
    "truth_ratio": "truth ratio",
    "rouge_l": "ROUGE-L recall",
    "quality": "truth ratios as the retrained model's, p",
    "distance": "distance of the truth ratios to its",
}


def answers(content: dict[str, Any]) -> Section | None:
    """Each model in a column."""
    at = At(("answers", "models"))
    found = value(content, at)
    if not found:
        return None
    models = [model for model in MODELS if model in found]
    rows = [
        (name, *(at / model / key for model in models))
        for key, name in ANSWERS.items()
        if any(key in found[model] for model in models)
    ]
    text = (
        "Truth ratio: how much likelier wrong answers are than the right one. Near 0 the model knows it, above 1 it prefers wrong ones; "
        "what one that never saw it says, a retrained model tells. A model that only hides an answer keeps a low one. ROUGE-L recall: the share of the "
        "answer's words that it says by itself."
    )
    lines = [("Asked were", At(("answers", "questions")), "of the forgotten questions.")]
    return Section("answers", "Answers to forgotten questions", text, lines, [Table(("", *models), rows)])


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
