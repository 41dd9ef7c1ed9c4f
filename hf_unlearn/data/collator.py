"""Rows to batches of model inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import UnlearningError
from .batches import Batch
from .pictures import as_picture
from .reasons import reason
from .source import Source
from .types import DataCollator, ProcessingClass


class Collator:
    """Rows to a `Batch`: raw columns through the processing class, processed ones through the data collator.

    Args:
        accepts: names of the model's inputs; other columns stay out of the batch.
        max_tokens: of a text, for the model.
        vocabulary: the number of tokens that the model knows.
    """

    pads = True  # texts with the tokenizer's padding token
    cuts = False  # samples that are token ids already

    def __init__(
        self,
        example: Source,
        processing_class: ProcessingClass | None,
        data_collator: DataCollator | None,
        image_channels: int | None = 3,
        max_tokens: int | None = None,
        accepts: set[str] | None = None,
        vocabulary: int | None = None,
    ):
        self.processing_class: Any = processing_class
        self.data_collator = data_collator
        self.example, self.image_channels, self.max_tokens = example, image_channels, max_tokens
        self.accepts, self.vocabulary = accepts, vocabulary
        for name, given in (("processing_class", processing_class), ("data_collator", data_collator)):
            if given is not None and not callable(given):
                raise UnlearningError(
                    f"{name} is a {type(given).__name__}; expected "
                    + (
                        "AutoImageProcessor or AutoTokenizer.from_pretrained(...)."
                        if name[0] == "p"
                        else "a function of rows."
                    )
                )
        self.raw_columns: list[str] = []
        self.label_column = example.label_column
        if not example.processed_inputs and data_collator is None:
            self.raw_columns = example.input_columns
            if processing_class is None:
                raise UnlearningError(
                    f"The data has raw columns ({', '.join(self.raw_columns)}) but there is no processing class to make "
                    "model inputs of them: pass processing_class=AutoImageProcessor or AutoTokenizer.from_pretrained(...)."
                )
        tokenizer = self.tokenizer
        self.max_length = example.given.max_length
        if self.max_length and (data_collator is not None or not (self.cuts or (tokenizer and self.raw_columns))):
            raise UnlearningError(
                f"max_length is {self.max_length}, and the samples are not read as texts by a tokenizer; leave it out, and cut them "
                "off yourself."
            )
        if self.max_length and self.max_length > (limit := self.limit):
            raise UnlearningError(
                f"max_length is {self.max_length}, and the model or the tokenizer reads {limit} tokens; expected no more."
            )
        if tokenizer and tokenizer.pad_token is None and self.pads and data_collator is None and self.holds_tokens:
            raise UnlearningError(
                "The tokenizer has no padding token, and texts of one batch are padded to one length; set tokenizer.pad_token "
                "(often to tokenizer.eos_token) and model.config.pad_token_id to its id."
            )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.processing_class if isinstance(self.processing_class, PreTrainedTokenizerBase) else None

    @property
    def limit(self) -> int:
        """How many tokens the model and the tokenizer read."""
        lengths = [self.max_tokens, getattr(self.processing_class, "model_max_length", None)]
        return min([length for length in lengths if length] or [2**20])

    @property
    def holds_tokens(self) -> bool:
        return bool(self.raw_columns) or "input_ids" in self.example.processed_inputs

    def check(self, source: Source) -> None:
        """Refuse a set that cannot stand in one batch with the example."""
        expected, found = (
            (s.processed_inputs or s.input_columns, s.label_column) if self.data_collator is None else s.label_column
            for s in (self.example, source)
        )
        if found != expected:
            raise UnlearningError(
                f"{source.name} has the columns {', '.join(source.column_names)}, and {self.example.name} has "
                f"{', '.join(self.example.column_names)}; expected the same input and label columns in both."
            )

    def sizes(self, sources: dict[str, Source], progress: bool = False) -> np.ndarray | None:
        """How much each sample counts in a mean, by `sample_index`; None: all count the same."""
        return None

    def sizes_of(self, batch: Batch, places: Sequence[tuple[str, int]]) -> Tensor:
        """The same of the samples of a batch, which stand at these places: (name of the set, row)."""
        return torch.ones(len(places), dtype=torch.int64)

    def read(self, source: Source, indices: Sequence[int]) -> Batch:
        """The batch of some rows of a set; an error says which row it is about."""
        return self.collate(source.rows(indices), [(source.name, int(index)) for index in indices])

    def collate(self, rows: list[dict], places: Sequence[tuple[str, int]]) -> Batch:
        """The batch of rows that stand at these places: (name of the set, row)."""
        try:
            return self(rows)
        except Exception as error:  # of a processor, of a data collator of the user's, of rows that are not alike
            self._blame(rows, places)
            name, index = places[0]
            raise UnlearningError(
                f"{len(rows)} rows (the first is row {index} of {name}) cannot stand in one batch ({reason(error)}); make them "
                "alike, or pass a data_collator."
            ) from error

    def _blame(self, rows: list[dict], places: Sequence[tuple[str, int]]) -> None:
        """Say which row it is of which no batch can be made, or that is unlike the first one."""
        shapes = []
        for row, (name, index) in zip(rows, places, strict=True):
            try:
                inputs = self([row]).inputs
            except Exception as error:
                raise UnlearningError(f"Row {index} of {name} cannot be read: {_lower(reason(error))}.") from error
            shapes.append({key: tuple(value.shape)[1:] for key, value in inputs.items() if isinstance(value, Tensor)})
        odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if odd is not None and "input_ids" not in shapes[0]:
            (first_name, first_index), (name, index) = places[0], places[odd]
            key = next((key for key in shapes[0] if shapes[0][key] != shapes[odd].get(key)), "other inputs")
            raise UnlearningError(
                f"Row {index} of {name} has {key} of shape {shapes[odd].get(key)}, and row {first_index} of {first_name} of shape "
                f"{shapes[0].get(key)}; expected one shape for all, or a data_collator that makes them one."
            )

    def __call__(self, rows: list[dict]) -> Batch:
        if not self.raw_columns:
            return self.checked(Batch(self._labelled(self._collate(rows))))
        values: list[list[Any]] = [[row.get(column) for row in rows] for column in self.raw_columns]
        if self.tokenizer:
            for column, texts in zip(self.raw_columns, values, strict=True):
                if odd := [text for text in texts if not isinstance(text, str)]:
                    raise UnlearningError(
                        f"The column {column!r} holds {repr(odd[0])[:60]}, and the tokenizer reads text; expected text in every row."
                    )
            longest = min(self.max_length or self.limit, 2**20)  # 1e30: not known
            text, pair = values if len(values) == 2 else (values[0], None)
            inputs = self.tokenizer(text, pair, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        else:
            inputs = self.processing_class([self._image(image) for image in values[0]], return_tensors="pt")
        return self.checked(Batch(inputs, labels=self._labels(rows)))

    def checked(self, batch: Batch) -> Batch:
        """Refuse token ids that the model does not have, and texts of no token, which it would read as padding."""
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if not isinstance(ids, Tensor) or not self.vocabulary:
            return batch
        if ids.is_floating_point() or ids.is_complex():
            raise UnlearningError(f"The input_ids are of type {ids.dtype}; expected whole numbers.")
        if self.pads and (not ids.numel() or (isinstance(mask, Tensor) and not mask.any(dim=-1).all())):
            raise UnlearningError(
                "The text is empty: it has no token, and the model would read padding instead; expected text in every row."
            )
        if (odd := ids[(ids < 0) | (ids >= self.vocabulary)]).numel():
            raise UnlearningError(
                f"A token has the id {odd[0].item()}, and the model knows 0 to {self.vocabulary - 1}; expected the "
                "tokenizer of this model."
            )
        if self.max_tokens and ids.shape[-1] > self.max_tokens:
            raise UnlearningError(
                f"The text has {ids.shape[-1]} tokens, and the model reads {self.max_tokens}; cut it off (truncation=True)."
            )
        return batch

    def _collate(self, rows: list[dict]) -> dict:
        if self.data_collator is not None:
            return dict(self.data_collator(rows))
        return {**self._processed(rows), "labels": self._labels(rows)}

    def _processed(self, rows: list[dict]) -> Mapping[str, Any]:
        if "input_ids" in rows[0] and self.tokenizer:
            keep = set(self.tokenizer.model_input_names)
            return self.tokenizer.pad([{k: row[k] for k in keep & set(row)} for row in rows], return_tensors="pt")
        labels = {self.label_column, "labels"}
        keep = [key for key, value in rows[0].items() if key not in labels and self._is_input(key, value)]
        batch = default_collate([{key: _tensor(row[key]) for key in keep} for row in rows])
        if self.accepts and (odd := [key for key, value in batch.items() if not isinstance(value, Tensor)]):
            raise UnlearningError(f"The column {odd[0]!r} holds {repr(rows[0][odd[0]])[:60]}; expected numbers.")
        return batch

    def _is_input(self, name: str, value: Any) -> bool:
        return name in self.accepts if self.accepts else not isinstance(value, str)

    def _labels(self, rows: list[dict]) -> Tensor:
        column = self.label_column if self.label_column in rows[0] else "labels"  # a transform may have renamed it
        return torch.tensor([int(row[column]) for row in rows])

    def _labelled(self, batch: dict) -> dict:
        if self.label_column != "labels" and self.label_column in batch:
            batch["labels"] = batch.pop(self.label_column)
        return batch

    def _image(self, image: Any) -> Any:
        if isinstance(image, (str, bytes)):  # which an image processor would open, or fetch
            raise UnlearningError(
                f"The column {self.raw_columns[0]!r} holds text ({image[:40]!r}), and the model reads images; expected pictures "
                "(cast the column to datasets.Image() where it holds paths), or image_column= with the name of theirs."
            )
        return as_picture(image, self.image_channels, getattr(self.processing_class, "do_rescale", False))


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:] if sentence.startswith(("The ", "A ", "Some ")) else sentence


def _tensor(value: Any) -> Any:
    return torch.as_tensor(np.asarray(value)) if isinstance(value, (list, np.ndarray)) else value
