"""The model card of an unlearned model, from the JSON files in its folder and the metadata of its parent's card."""

import functools
import json
import logging
import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from ..audits.report import AuditReport
from ..errors import UnlearningError
from ..methods.local_teacher import SCATTERED
from ..metrics import uis
from ..metrics.tables import NAMES, SCORES
from ..tasks import TASKS, Task
from .client import check_token, reading, retry
from .names import ADAPTER_CONFIG, AUDIT, AUDIT_PAGE, CARD, CONFIG, MAIN, METRICS, RECEIPT, is_model_name
from .repository import Parent

logger = logging.getLogger(__name__)

TAGS = ("machine-unlearning", "unlearning", "hf_unlearn")
KEPT = ("license", "license_name", "license_link", "language", "datasets", "pipeline_tag")  # of the parent's card
PROCESSORS = {"preprocessor_config.json": "AutoImageProcessor", "tokenizer_config.json": "AutoTokenizer"}
# Figures of single samples, with the set that they are of. A forget figure stands only beside that of unseen samples.
SETS = {"forget_accuracy": "forget", "unseen_accuracy": "unseen", "retain_accuracy": "retain"}
ROWS = (
    *SETS,
    *("kept_accuracy", "auc", "mia", "rf_jsd", "uis", "uis_target", "uis_nontarget"),
    *("task_interference", "instance_interference"),
)
UNTRAINED = ("bf16", "fp16", "seed")  # the training arguments that mean something where no step is made
LABELS = {"unseen_accuracy": "unseen acc. (never-seen control)"}


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of n samples.

    >>> tuple(round(x, 3) for x in wilson(0.5, 100))
    (0.404, 0.596)
    """
    middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, (middle - half) / (1 + z**2 / n)), min(1.0, (middle + half) / (1 + z**2 / n))


def with_uis(columns: dict[str, dict[str, Any]], is_class: bool) -> dict[str, dict[str, Any]]:
    """The figures with the UIS to the original, where they have the accuracies for it and not the score.

    Of a request for whole classes, the test accuracy is that of the classes that stay.
    """
    reference = columns.get("original", {})
    test = "kept_accuracy" if reference.get("kept_accuracy") is not None else "unseen_accuracy"
    if reference.get("uis") is not None or not reference.get(test) or reference.get("forget_accuracy") is None:
        return columns
    scores: dict[str, dict[str, dict[str, Any]]] = {
        name: {"task": {"test": row.get(test), "forget": row.get("forget_accuracy")}} for name, row in columns.items()
    }
    return {
        name: row | {"uis": uis(scores[name], scores["original"], ["task"], class_unlearning=is_class)["uis"]}
        if None not in scores[name]["task"].values()
        else row
        for name, row in columns.items()
    }


def controlled(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures without those of forget samples that have no figure of unseen samples beside them."""
    return {
        key: value
        for key, value in figures.items()
        if value is not None
        and (not key.startswith("forget_") or figures.get(key.replace("forget", "unseen", 1)) is not None)
    }


def figures_table(columns: Mapping[str, Mapping[str, Any]], measured: Mapping[str, int], intervals: bool) -> str:
    """A Markdown table with a column for each model, with 95 % intervals where they can be had.

    Args:
        measured: set -> number of samples that its accuracy is of.
        intervals: whether accuracies are shares of samples (of a language model they are not).
    """
    shown = {name: controlled(figures) for name, figures in columns.items()}
    scores = sorted({key for row in shown.values() for key in row if SCORES.fullmatch(key)}, key=_by_task)
    keys = [key for key in (*scores, *ROWS) if any(key in row for row in shown.values())]
    lines = [["", *shown], ["---"] * (len(shown) + 1)]
    for key in keys:
        n = measured.get(SETS.get(key, "")) if intervals else None
        label = LABELS.get(key) or NAMES.get(key) or escape(key.replace("_", " ", 1))
        lines.append([label, *(_cell(key, row, n) for row in shown.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_task(key: str) -> tuple[str, int]:
    split, task = cast(re.Match, SCORES.fullmatch(key)).groups()
    return task, ("forget", "unseen", "retain").index(split)


def _cell(key: str, row: Mapping[str, Any], n: int | None) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if n and low is None:
        low, high = wilson(value, n)
    text = show(key, value)
    return text if low is None or high is None else f"{text} ({show(key, low)} to {show(key, high)})"


def show(key: str, value: float) -> str:
    """A figure as the table has it."""
    return f"{value:.{4 if key.endswith('jsd') else 1 if key.startswith('uis') else 3}f}"


def escape(text: str) -> str:
    """Names that a user has chosen, as plain text in Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#$" else c for c in " ".join(str(text).split()))


# ---------------------------------------------------------------------------------------------------------------------
# Metadata


def results(figures: Mapping[str, Any], task: str) -> list[EvalResult]:
    """The figures of the unlearned model for the card's `model-index`, with four digits."""
    figures, found = controlled(figures), []
    tag = TASKS[task].pipeline_tag if task in TASKS else None
    names = {"forget": "Samples to forget (not published)", "retain": "Retained samples", "unseen": "Unseen samples"}

    def add(split: str, name: str, metric: str, key: str) -> None:
        found.append(
            EvalResult(
                task_type=tag or task,
                dataset_type=f"unlearning-{split}",
                dataset_name=name,
                metric_type=metric,
                metric_value=float(f"{figures[key]:.4g}"),
                metric_name=NAMES.get(key),
            )
        )

    for split, name in names.items():
        if f"{split}_accuracy" in figures:
            add(split, name, "accuracy", f"{split}_accuracy")
    for key in ("rf_jsd", "uis", "auc", "mia"):
        if key in figures:
            add("request", "Samples to forget against unseen samples", {"auc": "roc_auc"}.get(key, key), key)
    return found


def base_model(
    parent: str | None, repo_id: str | None, parent_card: Mapping[str, Any], library: str | None
) -> dict[str, Any]:
    """`base_model` and its relation. Of a revision of the parent's own repository they are the parent's, never itself; and
    so of a parent that is not on the Hub."""
    if parent not in (None, repo_id):
        return {"base_model": parent, "base_model_relation": "adapter" if library == "peft" else "finetune"}
    bases = [base for base in base_models(parent_card) if base != repo_id]
    if not bases:
        return {}
    relation = parent_card.get("base_model_relation")
    return {"base_model": bases[0] if len(bases) == 1 else bases} | (
        {"base_model_relation": relation} if relation else {}
    )


def base_models(card: Mapping[str, Any]) -> list[str]:
    """What a card names as `base_model`, but for what can be no name on the Hub."""
    given = card.get("base_model")
    given = [given] if isinstance(given, str) else given or []
    return [base for base in given if is_model_name(base)]


def is_local(name: str) -> bool:
    """Whether the name of a model is a place on this machine, or cannot be an id on the Hub."""
    return os.path.exists(os.path.expanduser(name)) or not is_model_name(name)


def read_card(path: str | Path) -> dict[str, Any]:
    """The metadata of a card; nothing where there is no file."""
    return ModelCard.load(Path(path), ignore_metadata_errors=True).data.to_dict() if Path(path).is_file() else {}


def read_parent_card(repo_id: str, commit: str | None, token: str | bool | None = None) -> dict[str, Any]:
    """The metadata of a card on the Hub; nothing where there is none, and with a warning where it is no YAML."""
    check_token(token)
    try:
        with reading(f"The card of {repo_id}, whose licence goes on,"):
            path = retry(hf_hub_download, repo_id, CARD, revision=commit, token=token)
    except UnlearningError as error:
        if isinstance(error.__cause__, RemoteEntryNotFoundError):
            return {}
        raise
    try:
        return read_card(path)
    except (ValueError, yaml.YAMLError) as error:
        logger.warning(
            f"The card of {repo_id} has metadata that are no YAML ({type(error).__name__}): its licence, languages and datasets "
            "are not in the new card."
        )
    return {}


# ---------------------------------------------------------------------------------------------------------------------
# The card


def make_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    parent: Parent | None = None,
    parent_card: Mapping[str, Any] | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """The card of a folder that `release.prepare` or `UnlearningResult.save` has written.

    Args:
        repo_id, revision: where the folder is going to be; None: the card tells how to load it from the folder.
        parent: the repository and commit that was unlearned; default: the original, if it came from the Hub unchanged.
        parent_card: the metadata of the parent's card; default: read from the Hub.
    """
    folder = Path(folder)
    metrics, config = _read(folder / METRICS), _read(folder / CONFIG)
    audit, receipt = _read(folder / AUDIT), _read(folder / RECEIPT)
    run = metrics.get("run") or {}
    if parent is None and (origin := run.get("original")):
        parent = Parent(origin["repo"], origin["revision"])
    if parent_card is None:
        parent_card = read_parent_card(parent.repo_id, parent.commit, token) if parent else {}
    task = run.get("task") or audit.get("task") or ""
    kind = TASKS.get(task)
    unknown = {"name": config.get("method", "unknown"), "summary": None, "needs": [], "paper": None}
    method = run.get("method") or unknown
    audit = {"method": run["method"]} | audit if audit and run.get("method") else audit
    columns = with_uis(_columns(metrics, audit), run.get("request", {}).get("kind") == "class")
    found = results(columns["unlearned"], task) if columns else []
    library = run.get("library")
    data = _metadata(kind, method["name"], library, found, repo_id, revision, parent, parent_card, bool(receipt))
    training = config.get("training") or {}
    if method.get("kind") == "surgery":
        training = {key: value for key, value in training.items() if key in UNTRAINED}
    accuracies = bool(kind and kind.has_classes)
    unlearned = columns.get("unlearned", {})
    text = _template().render(
        run=run,
        metrics=metrics,
        method=method,
        config=config,
        training=training,
        audit=audit,
        scattered=SCATTERED,
        receipt=receipt,
        audit_text=AuditReport(audit).to_markdown() if audit else None,
        next_step=AuditReport(audit).next_step if audit else None,
        has_audit_page=(folder / AUDIT_PAGE).is_file(),
        metadata=data.to_yaml(),
        title=repo_id.split("/")[-1] if repo_id else "A model",
        repo_id=repo_id,
        revision=None if revision == MAIN else revision,
        original=parent and parent.repo_id,
        commit=parent and parent.commit,
        licence=data.license,
        table=figures_table(columns, run.get("measured", {}), accuracies) if columns else None,
        columns=columns,
        intervals=accuracies,
        withheld=_has_forget(unlearned) and not _has_forget(controlled(unlearned)),
        auto_class=kind.auto_class if kind else "AutoModel",
        processors=[name for file, name in PROCESSORS.items() if (folder / file).is_file()],
        own_adapter=(folder / ADAPTER_CONFIG).is_file(),
    )
    return ModelCard(text)


def _metadata(
    kind: type[Task] | None,
    method: str,
    library: str | None,
    found: list[EvalResult],
    repo_id: str | None,
    revision: str | None,
    parent: Parent | None,
    parent_card: Mapping[str, Any],
    has_receipt: bool,
) -> ModelCardData:
    bases = base_models(parent_card)
    about: dict[str, Any] = {"pipeline_tag": kind.pipeline_tag} if kind and kind.pipeline_tag else {}
    about |= {key: parent_card[key] for key in KEPT if parent_card.get(key)}
    about |= base_model(parent and parent.repo_id, repo_id, parent_card, library)
    about |= {"eval_results": found, "model_name": repo_id or f"unlearned with {method}"} if found else {}
    return ModelCardData(
        **about,
        library_name=library,
        tags=[*TAGS, method],
        hf_unlearn={
            "method": method,
            **({"parent": parent.repo_id, "parent_revision": parent.commit} if parent else {}),
            **({"parent_base": bases} if bases else {}),
            **({"receipt": RECEIPT} if has_receipt else {}),
            **({"repository": repo_id} if repo_id else {}),  # where the card is for: see `readdress`
            **({"revision": revision} if revision else {}),
        },
    )


def write_card(folder: str | Path, **about: Any) -> Path:
    """Writes `README.md`, whole or not at all; the arguments are those of `make_card`."""
    path = Path(folder, CARD)
    unfinished = path.with_suffix(".unfinished")
    make_card(folder, **about).save(unfinished)
    return unfinished.replace(path)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _columns(metrics: dict[str, Any], audit: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of the original and the unlearned model, and of a retrained one if the audit has measured the same
    samples."""
    if not metrics.get("before"):
        return {}
    columns = {"original": metrics["before"], "unlearned": metrics["after"]}
    audited = audit.get("figures") or {}
    if audited.get("retrained") and _same_samples(columns["original"], audited["original"]):
        columns["retrained"] = audited["retrained"]
    return columns


def _has_forget(figures: Mapping[str, Any]) -> bool:
    return any(key.startswith("forget_") and not key.endswith("_loss") for key in figures)


def _same_samples(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two measurements of the original are of the same samples, as far as their accuracies tell."""
    pairs = [(one.get(key), other.get(key)) for key in SETS]
    return all(a is not None and b is not None and abs(a - b) < 1e-6 for a, b in pairs)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown, see `escape`
    )
    environment.filters |= {"plain": escape, "json": functools.partial(json.dumps, indent=2, sort_keys=True)}
    environment.filters["shell"] = shlex.quote
    return environment.get_template("card.md")
