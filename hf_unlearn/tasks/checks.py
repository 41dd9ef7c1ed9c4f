"""What is wrong with a request's data, found before any forward pass: by all labels, and by some rows of every set."""

import logging
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .. import models
from ..data.batches import Batch, to_model
from ..data.collator import Collator
from ..data.labels import Classes, Numbering
from ..data.reasons import reason
from ..data.samples import seeded
from ..data.source import Source
from ..errors import UnlearningError
from ..models.modes import evaluating

logger = logging.getLogger(__name__)

_read_as_shapes: set[tuple] = set()  # models that were seen to read inputs of some shapes, by all that this hangs on

SAMPLES = 16  # rows of each set that are looked at
STREAMED = 256  # and samples of a stream, for their labels and for the stream being as long as it is said to be


def number_classes(sources: Iterable[Source], config: PreTrainedConfig) -> None:
    """Number the classes of every set as the model does, by name where both have names, and check every label."""
    notes: dict[str, list[str]] = {}
    for source in sources:
        if not source.has_classes:
            continue
        numbering = Numbering(Classes.of_model(config), source.class_names, source.has_text_labels)
        source.numbering = numbering
        if not source.is_stream:
            _check_labels(source, numbering)
        if note := numbering.note:
            notes.setdefault(note, []).append(source.name)
    for note, names in notes.items():
        logger.warning(f"The labels of {', '.join(names)} {note}.")


def _check_labels(source: Source, numbering: Numbering) -> None:
    classes, names, labels = numbering.classes, source.class_names or [], source.labels
    if source.has_text_labels and not classes.has_names and (labels < 0).any():
        raise UnlearningError(
            f"The labels of {source.name} are text ({names[0]!r}, ...), and the model has no names for its classes; expected "
            "class numbers, or the names in model.config.id2label and model.config.label2id."
        )
    bad = np.flatnonzero((labels < 0) | (labels >= classes.size))
    if len(bad):
        stored = source.positions[bad[0]]
        is_named = numbering.numbers is not None and 0 <= stored < len(names)
        what = f"label {names[stored]!r}" if is_named else "no label" if stored == -1 else f"label {stored}"
        mend = (
            "; name the classes of both alike, or cast the column to numbers (datasets.Value) that count as the model's do"
            if is_named
            else ""
        )
        raise UnlearningError(
            f"{len(bad)} of the {len(source)} samples of {source.name} have labels the model does not have (row {bad[0]}: "
            f"{what}); expected {classes}{mend}."
        )
    if (numbers := numbering.numbers) is not None:
        present = np.unique(source.positions)
        found, first = np.unique(numbers[present], return_index=True)
        if len(found) < len(present):
            double = np.setdiff1d(present, present[first])[0]
            other = next(i for i in present if numbers[i] == numbers[double])
            raise UnlearningError(
                f"The labels {names[other]!r} and {names[double]!r} of {source.name} would both be the model's class "
                f"{numbers[double]}; expected one name for each class."
            )


def check_samples(sources: Iterable[Source], collate: Collator, model: nn.Module) -> None:
    """Refuse data that the model cannot read, or would read wrongly, by some rows of every set."""
    sources = list(sources)
    _check_padding(collate, model)
    first = None
    for source in sources:
        if source.is_stream:
            source.rows(source.first(STREAMED))
        rows = looked_at(source)
        with seeded(0):
            batch = collate.read(source, rows)
        _check_labels_of(batch, source, rows)
        for name, value in batch.inputs.items():
            if isinstance(value, Tensor):
                _check_numbers(name, value, source, rows)
        if "pixel_values" in batch and first is not None and batch["pixel_values"].shape[1:] != first.shape[1:]:
            raise UnlearningError(
                f"The pixel_values of {source.name} are of shape {tuple(batch['pixel_values'].shape[1:])}, and those of "
                f"{sources[0].name} of shape {tuple(first.shape[1:])}; expected one shape in all sets."
            )
        if first is None and "pixel_values" in batch:
            first = batch["pixel_values"]
            _dry_run(model, batch, source)


def looked_at(source: Source) -> list[int]:
    """Evenly spread rows, the first and the last among them; the first ones of a stream."""
    n = min(len(source), SAMPLES)
    return source.first(n) if source.is_stream else np.linspace(0, len(source) - 1, n).round().astype(int).tolist()


def _check_padding(collate: Collator, model: nn.Module) -> None:
    tokenizer = collate.tokenizer
    if not tokenizer or not collate.holds_tokens or not models.finds_end_by_padding(model):
        return
    padding, known = tokenizer.pad_token_id, models.pretrained(model).config.pad_token_id
    if padding != known:
        raise UnlearningError(
            f"The tokenizer pads with the token {padding}, and model.config.pad_token_id is {known}, by which the model tells "
            "padding from text; set it to tokenizer.pad_token_id."
        )


def _check_labels_of(batch: Batch, source: Source, rows: list[int]) -> None:
    if not source.has_classes:
        return
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or tuple(labels.shape) != (len(rows),):
        raise UnlearningError(
            f"A batch of {source.name} has {'no labels' if labels is None else f'labels of type {type(labels).__name__}'}; "
            "expected the data_collator to give one class number a sample, as labels."
        )
    if source.is_stream:
        return
    if len(odd := np.flatnonzero(labels.numpy() != source.labels[rows])):
        row = rows[odd[0]]
        raise UnlearningError(
            f"Row {row} of {source.name} has the label {source.labels[row]} as it is stored, and {labels[odd[0]].item()} in a "
            "batch; expected a transform or data_collator that leaves labels alone."
        )


def _check_numbers(name: str, value: Tensor, source: Source, rows: list[int]) -> None:
    if name in ("pixel_values", "inputs_embeds") and not value.is_floating_point():
        raise UnlearningError(
            f"The {name} of {source.name} are of type {str(value.dtype).removeprefix('torch.')}; expected fractions, as the image "
            "processor makes them of pictures (raw ones belong in a column named image)."
        )
    if value.is_floating_point() and not (whole := value.isfinite().flatten(1).all(dim=1)).all():
        row = rows[int((~whole).nonzero()[0])]
        raise UnlearningError(
            f"The {name} of row {row} of {source.name} are NaN or infinite; mend or remove that sample."
        )


@torch.no_grad()
def _dry_run(model: nn.Module, batch: Batch, source: Source) -> None:
    """Refuse pictures of a size, or a number of channels, that the model does not read.

    A pass on the meta device, where tensors have a shape and nothing else, needs no memory, and is made once for models and
    pictures of the same shapes. Not every model can do that, so one sample has the last word.
    """
    base = models.base_of(model)
    if not isinstance(base, PreTrainedModel):
        return
    meta = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    inputs = {name: value[:1] for name, value in batch.inputs.items() if isinstance(value, Tensor)}
    shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in (*meta.items(), *inputs.items()))
    if (known := (type(base), base.config.to_json_string(), shapes)) in _read_as_shapes:
        return
    with evaluating(model):
        try:
            torch.func.functional_call(model, meta, (), {name: value.to("meta") for name, value in inputs.items()})
            _read_as_shapes.add(known)
            return
        except Exception:  # of the model, of which transformers has hundreds
            pass
        try:
            model(**to_model(Batch(inputs), model, base.device).inputs)
        except Exception as error:
            raise UnlearningError(
                f"The model cannot read {source.name}, whose pixel_values are of shape {tuple(batch['pixel_values'].shape[1:])} "
                f"({reason(error)}); expected the model's own image processor, or pictures of its size."
            ) from error
