"""Requests that follow one another: the chain of their receipts, how far the model has drifted, and what became of the
samples of earlier requests."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from huggingface_hub import hf_hub_download
from transformers import PreTrainedConfig

from ..data.overlap import shared_samples
from ..data.samples import DrawnSamples
from ..data.source import Source
from ..errors import UnlearningError
from ..tasks.checks import check_samples, number_classes
from ..tasks.figures import figures
from ..training.pieces import in_pieces
from ..training.record import Result, Run
from .canonical import body, digest_of, read_receipt
from .client import UnreadableError, reading, retry
from .names import RECEIPT
from .weights import fetch_weights, parent_limit, relative_distance

MOST = 1000  # earlier receipts that are fetched: whoever writes a chain could have written a longer one
FIGURES = ("accuracy", "loss", "auc", "auc_low", "auc_high")


def predecessors(receipt: Mapping[str, Any], token: str | bool | None = None) -> Iterator[tuple[dict, dict]]:
    """(link, receipt) of every earlier request, the newest first, and at most `MOST` of them; raises one of HUB_ERRORS where
    one cannot be had.

    A receipt that is not the one its successor names is the last, so that no chain goes round. A predecessor that was only
    a local folder (its link names no repository) ends the way.
    """
    for _ in range(MOST):
        if not ((link := receipt["previous"]) and link["repo"] and link["receipt"]):
            return
        path = retry(hf_hub_download, link["repo"], RECEIPT, revision=link["commit"], token=token)
        receipt = read_receipt(Path(path).parent)
        yield link, receipt
        if not is_named(receipt, link):
            return


def is_named(receipt: Mapping[str, Any], link: Mapping[str, Any]) -> bool:
    """Whether a receipt is the one that its successor names."""
    return digest_of(body(receipt)) == receipt["digest"] == link["receipt"]


def drift(
    folder: Path, origin: Path | None, previous: Mapping[str, Any] | None, token: str | bool | None = None
) -> dict[str, float | None]:
    """The relative L2 distance of a release to its parent, and to the original of the first request.

    None where those weights are not there any more, or are other tensors (an adapter beside a whole model).

    Args:
        origin: the folder of the parent.
        previous: the parent's receipt, if it has one.
    """
    if origin is None:
        return {"parent": None, "first": None}
    parent = relative_distance(origin, folder)
    if previous is None:
        return {"parent": parent, "first": parent}
    try:
        with reading("The first original of this chain of requests"):
            first = [previous, *(receipt for _, receipt in predecessors(previous, token))][-1]
            if first["previous"] or not first["parent"]:
                return {"parent": parent, "first": None}
            begun = fetch_weights(first["parent"]["repo"], first["parent"]["commit"], token, parent_limit(folder))
    except UnreadableError:
        raise
    except UnlearningError:  # it is not there, holds no weights, or is too large
        return {"parent": parent, "first": None}
    return {"parent": parent, "first": relative_distance(begun, folder)}


def evaluate_earlier(result: Result, earlier: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the model, before and after this request, makes of the samples of earlier requests.

    Accuracy, loss, and the AUC against unseen samples of the same classes with its interval: about .5 when the earlier
    samples look like unseen ones. A figure that cannot be had is None, with the reason under `reasons`. Samples of an
    earlier request in this one's retained set are refused: they would be learnt again.

    Args:
        earlier: `[{"name": "request-1", "forget": dataset}, ...]`.
    """
    run = result.run
    if not isinstance(earlier, Sequence) or isinstance(earlier, str):
        raise UnlearningError(
            f'earlier is given as {type(earlier).__name__}; expected a list such as [{{"name": "request-1", "forget": dataset}}].'
        )
    if not run.task.is_audited:
        raise UnlearningError(
            f"earlier is given for {run.task.noun}, whose requests are for single tasks; audit those by themselves."
        )
    sources = {f"earlier {i}": _source(run, item) for i, item in enumerate(earlier)}
    evaluator = copy.copy(run.evaluator)
    evaluator.samples = DrawnSamples(run.sources | sources, seed=cast(int, run.seeds["unlearning"]))
    sets = {name: (name, np.arange(len(source))) for name, source in sources.items()}
    if "evidence" in run.indices:
        sets["evidence"] = run.indices["evidence"]
    with run.original() as original:  # under an adapter this is `result.model`, with the adapter off
        before = {name: evaluator.measure(original, *chosen) for name, chosen in sets.items()}
    after = {name: evaluator.measure(result.model, *chosen) for name, chosen in sets.items()}
    rows = []
    for item, (name, source) in zip(earlier, sources.items(), strict=True):
        row = {"name": item["name"], "samples": source.count(), "reasons": {}}
        for when, measured in (("before", before), ("after", after)):
            values, reasons = _figures(measured, name)
            row |= {when: values, "reasons": reasons}
        rows.append(row)
    return rows


def _figures(measured: dict[str, Any], name: str) -> tuple[dict[str, float | None], dict[str, str]]:
    sets = {"forget": measured[name]} | {key: measured[key] for key in ("evidence",) if key in measured}
    values, reasons = figures(sets, sets, bootstrap=1000)
    values |= {key: values[f"forget_{key}"] for key in ("accuracy", "loss")}
    return {key: values.get(key) for key in FIGURES}, {key: why for key, why in reasons.items() if key in FIGURES}


def _source(run: Run, item: Mapping[str, Any]) -> Source:
    if not isinstance(item, Mapping) or set(item) != {"name", "forget"}:
        what = ", ".join(item) if isinstance(item, Mapping) else type(item).__name__
        raise UnlearningError(
            f'An earlier request is given as {what}; expected {{"name": "request-1", "forget": dataset}}.'
        )
    source = Source(item["forget"], f"the earlier request {item['name']!r}", run.columns, layout=run.task.layout)
    if source.is_stream or len(source) == 0:
        raise UnlearningError(f"{source.name} is {'a stream' if source.is_stream else 'empty'}; expected its samples.")
    if cut := run.sources["forget"].cut:
        source = in_pieces(source, run.task, run.processing_class, cut.length, cut.overlap)
    number_classes([source], cast(PreTrainedConfig, run.task.config))  # which a classifier has
    collator = run.evaluator.collator.collator
    collator.check(source)
    check_samples([source], collator, run.model)
    retain = run.sources.get("retain")
    if retain and not retain.is_stream and (shared := len(shared_samples(source, retain))):
        raise UnlearningError(
            f"{shared} of the {len(source)} samples of {source.name} stand in retain, which would bring them back; "
            "remove them from retain and unlearn again."
        )
    return source
