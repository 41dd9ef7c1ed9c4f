"""Prompts and completions of a language model, as token ids and labels."""

import os.path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..data.batches import Batch
from ..data.collator import Collator
from ..data.layout import TEXT_COLUMNS, Layout
from ..data.source import Source, is_conversation
from ..errors import UnlearningError
from .losses import IGNORED, next_tokens

PROMPT_COLUMNS = ("prompt", "completion")
COMPLETIONS = Layout(
    (("input_ids",), PROMPT_COLUMNS, *((name,) for name in TEXT_COLUMNS)),
    f"{' and '.join(PROMPT_COLUMNS)}, a text ({', '.join(TEXT_COLUMNS)}) or input_ids. Name yours with text_column= (the "
    "prompt, or the whole text) and text_pair_column= (the completion).",
)


class CompletionCollator(Collator):
    """Rows to a `Batch` whose labels are the token ids of the completion, and -100 everywhere else.

    A row is one of
    - a `prompt` and a `completion`, both text or both lists of messages, which the tokenizer's chat template writes out
    - a text, of which all is completion
    - `input_ids`, with `labels` or a `completion_mask`; without either, all is completion

    Prompt and completion are tokenized as one text: the completion begins at the first token that the prompt by itself
    does not have. Text ends with the tokenizer's end-of-sequence token. What is longer than the model or the tokenizer
    allows is cut off on the right, where the padding is too.
    """

    pads = False  # by itself, with any token: what is padding has no label

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        tokenizer = self.processing_class
        lengths = [self.max_tokens, getattr(tokenizer, "model_max_length", None)]
        self.longest = min([length for length in lengths if length] or [2**20])
        ids = [getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos")]
        self.padding = next((i for i in ids if i is not None), 0)
        self.conversations = bool(self.raw_columns) and is_conversation(self.example.first_row[self.raw_columns[0]])
        if self.conversations and not tokenizer.chat_template:
            raise UnlearningError(
                f"The {self.raw_columns[0]} of {self.example.name} is a list of messages, and the tokenizer has no chat "
                "template; set tokenizer.chat_template, or pass text."
            )

    def __call__(self, rows: list[dict]) -> Batch:
        if self.data_collator is not None:
            return Batch(self.data_collator(rows))
        samples = [_processed(row) for row in rows] if not self.raw_columns else self._tokenized(rows)
        samples = [(ids[: self.longest], labels[: self.longest]) for ids, labels in samples]

        def padded(values: list[Tensor], padding: int) -> Tensor:
            return pad_sequence(values, batch_first=True, padding_value=padding)

        batch = Batch(
            input_ids=padded([torch.tensor(ids, dtype=torch.long) for ids, _ in samples], self.padding),
            attention_mask=padded([torch.ones(len(ids), dtype=torch.long) for ids, _ in samples], 0),
            labels=padded([torch.tensor(labels, dtype=torch.long) for _, labels in samples], IGNORED),
        )
        return self.checked(batch)

    def _tokenized(self, rows: list[dict]) -> list[tuple[list[int], list[int]]]:
        prompts, wholes = zip(*map(self._texts, rows), strict=True)
        samples = []
        for prompt, ids in zip(self._ids(prompts), self._ids(wholes), strict=True):
            start = len(os.path.commonprefix([prompt, ids]))
            eos = None if self.conversations else self.processing_class.eos_token_id  # a chat template ends by itself
            if eos is not None and start < len(ids) and ids[-1] != eos:
                ids = [*ids, eos]
            samples.append((ids, [IGNORED] * start + ids[start:]))
        return samples

    def _texts(self, row: dict) -> tuple[str, str]:
        """The prompt, and prompt and completion together."""
        values = [row[column] for column in self.raw_columns]
        for column, value in zip(self.raw_columns, values, strict=True):
            if not (is_conversation(value) if self.conversations else isinstance(value, str)):
                expected = "a list of messages" if self.conversations else "text"
                raise UnlearningError(
                    f"A {column} is {repr(value)[:60]}; expected {expected}, as in the first row of {self.example.name}."
                )
        prompt = values[0] if len(values) == 2 else None
        if not self.conversations:
            return prompt or "", "".join(values)
        write = self.processing_class.apply_chat_template
        whole = write([message for value in values for message in value], tokenize=False)
        return write(prompt, tokenize=False, add_generation_prompt=True) if prompt else "", whole

    def _ids(self, texts: tuple[str, ...]) -> list[list[int]]:
        """Token ids, without what the tokenizer puts behind a text."""
        encoded = self.processing_class(
            list(texts),
            add_special_tokens=not self.conversations,  # a chat template writes them
            return_special_tokens_mask=not self.conversations,
            verbose=False,  # that a text is too long for the model
        )
        if self.conversations:
            return encoded["input_ids"]
        stripped = []
        for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            end = next((i for i in range(len(ids), 0, -1) if not special[i - 1]), 0)
            stripped.append(ids[:end])
        return stripped

    def sizes(self, sources: dict[str, Source], progress: bool = False) -> np.ndarray:
        """The number of completion tokens that are predicted in each sample. Refuses samples without one."""
        counts = {name: self._count(source, progress) for name, source in sources.items()}
        return np.concatenate([counts[name] for name in ("forget", "retain") if name in counts])

    def _count(self, source: Source, progress: bool, chunk: int = 256) -> np.ndarray:
        starts, counts = range(0, len(source), chunk), []
        for start in tqdm(
            starts, desc=f"tokens of {source.name}", leave=False, disable=not progress or len(starts) < 8
        ):
            rows = range(start, min(start + chunk, len(source)))
            labels = self.read(source, rows).get("labels")
            if labels is None or labels.ndim != 2 or len(labels) != len(rows):
                raise UnlearningError(
                    f"The data collator made labels of shape {None if labels is None else tuple(labels.shape)} of "
                    f"{len(rows)} samples of {source.name}; expected one row of token labels (-100: no loss) for each."
                )
            counts.append((next_tokens(labels) != IGNORED).sum(dim=1).numpy())
        counts = np.concatenate(counts)
        if len(empty := np.flatnonzero(counts == 0)):
            raise UnlearningError(
                f"{len(empty)} of the {len(source)} samples of {source.name} have no completion token to predict (the "
                f"first is row {empty[0]}): it is empty, or behind the {self.longest} tokens that are read. Remove the "
                "row, or shorten its prompt."
            )
        return counts


def _processed(row: dict) -> tuple[list[int], list[int]]:
    """Token ids and labels of a row that is tokenized already, without its padding."""
    ids = np.asarray(row["input_ids"])
    read = np.asarray(row.get("attention_mask", np.ones_like(ids))).astype(bool)
    if row.get("labels") is not None:
        labels = np.asarray(row["labels"])
    else:
        labels = np.where(np.asarray(row.get("completion_mask", np.ones_like(ids))).astype(bool), ids, IGNORED)
    if not ids.shape == read.shape == labels.shape or ids.ndim != 1:
        raise UnlearningError(
            f"A sample has input_ids of shape {ids.shape} and labels of shape {labels.shape}; expected one label for each "
            "token (-100: no loss), or no labels."
        )
    return ids[read].tolist(), labels[read].tolist()
