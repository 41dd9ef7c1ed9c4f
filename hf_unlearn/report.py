"""Tables of figures, as text and Markdown."""

NAMES = {
    "forget_accuracy": "forget acc.",
    "retain_accuracy": "retain acc.",
    "unseen_accuracy": "unseen acc.",
    "mia": "MIA",
    "auc": "AUC forget/unseen",
    "jsd": "JSD to retrained",
    "rf_jsd": "RF-JSD",
    "avg_gap": "Avg Gap",
    "seconds": "seconds",
}


def table(rows: dict[str, dict[str, float | None]]) -> str:
    """A Markdown table with a row for each model; columns that no row has are left out, missing values are dashes."""
    columns = [key for key in NAMES if any(key in row for row in rows.values())]
    cells = [["", *(NAMES[key] for key in columns)]]
    cells += [[name, *(_format(key, row.get(key)) for key in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _format(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "seconds":
        return f"{value:.1f}"
    if key.endswith("jsd"):
        return f"{value:.4f}"
    return f"{value:.3f}"
