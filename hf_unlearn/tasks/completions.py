"""Prompts and completions of a language model, as token ids and labels."""

import os.path
from collections.abc import Callable, Sequence
from functools import partial
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
MESSAGES = ("messages",)
ALTERNATIVE = "alternative"  # the column of what shall be answered in the place of the completion
PREFERENCE = (
    ("rejected", "completion"),
    ("chosen", ALTERNATIVE),
)  # the answer that the model has learnt, and the other one
# How a question and its answer are written for a model without a chat template.
QUESTION = "Question: {question}\nAnswer: {answer}"
WRITTEN: dict[tuple[str, ...], str] = {
    ("question", "answer"): QUESTION,
    ("instruction", "output"): "{question}\n{answer}",
}
COMPLETIONS = Layout(
    (("input_ids",), PROMPT_COLUMNS, MESSAGES, *WRITTEN, *((name,) for name in TEXT_COLUMNS)),
    f"{' and '.join(PROMPT_COLUMNS)}, a text ({', '.join(TEXT_COLUMNS)}), messages, {', '.join(map(' and '.join, WRITTEN))} or "
    "input_ids. Name yours with text_column= (the prompt, or the whole text) and text_pair_column= (the completion).",
    renamed=PREFERENCE,
)


def writer(tokenizer: Any, prompt: str | None = None) -> Callable[[str, str], dict[str, Any]]:
    """A function of question and answer that gives a row with `prompt` and `completion`: as messages where the tokenizer has
    a chat template, unless a `prompt` says how."""
    if prompt is None and tokenizer.chat_template:
        return lambda question, answer: {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
    head = (prompt or QUESTION).partition("{answer}")[0]
    blank = head[len(head.rstrip(" ")) :]  # belongs to the answer's first word, as tokenizers have it
    return lambda question, answer: {
        "prompt": head.rstrip(" ").replace("{question}", question),
        "completion": blank + answer,
    }


class CompletionCollator(Collator):
    """Rows to a `Batch` whose labels are the token ids of the completion, and -100 everywhere else.

    A row is one of
    - a `prompt` and a `completion`, both text or both lists of messages, which the tokenizer's chat template writes out
    - `messages`, of which the last one, the assistant's, is the completion
    - a `question` and an `answer`, or an `instruction` (with an `input`) and an `output`: messages where the tokenizer has a
      chat template, else text, see `WRITTEN`
    - a text, of which all is completion
    - `input_ids`, with `labels` or a `completion_mask`; without either, all is completion
    - a `prompt` with `rejected`, which is the completion, and `chosen`, which is an `alternative` to it

    Prompt and completion are tokenized as one text: the completion begins at the first token that the prompt by itself
    does not have. Text ends with the tokenizer's end-of-sequence token. What is longer than `max_length` is cut off on the
    right, where the padding is too; without that, what is longer than the model or the tokenizer allows is refused. A row's
    `chat_template_kwargs` are arguments of the chat template.
    """

    pads = False  # by itself, with any token: what is padding has no label
    cuts = True

    def __init__(self, example: Source, *args: Any, **kwargs: Any):
        super().__init__(example, *args, **kwargs)
        tokenizer = self.processing_class
        self.longest = self.max_length or self.limit
        ids = [getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos")]
        self.padding = next((i for i in ids if i is not None), 0)
        columns = tuple(self.raw_columns)
        self.write = None
        if columns in WRITTEN and not self.example.given.text:
            self.write = writer(tokenizer, None if tokenizer.chat_template else WRITTEN[columns])
        first = self.example.first_row[columns[0]] if columns else None
        self.conversations = is_conversation(first) or bool(self.write and tokenizer.chat_template)
        if self.conversations and not tokenizer.chat_template:
            raise UnlearningError(
                f"The {self.raw_columns[0]} of {self.example.name} is a list of messages, and the tokenizer has no chat "
                "template; set tokenizer.chat_template, or pass text."
            )

    def check(self, source: Source) -> None:
        if source.is_renamed and source.name == "retain":
            raise UnlearningError(
                "The retained set has the columns chosen and rejected, and only one answer of each sample can be held; expected a "
                "prompt and a completion."
            )
        super().check(source)

    def answered(self, row: dict, answer: Any) -> dict:
        """The row with another answer, as it stands in the data: a text, messages, or token ids where the row has these."""
        columns = self.raw_columns
        if self.data_collator is not None or len(columns) == 1 and tuple(columns) != MESSAGES:
            raise UnlearningError(
                f"The samples of {self.example.name} are "
                + ("read by a data_collator" if self.data_collator else "texts without a question")
                + ", and each is to be given another answer; expected a prompt and a completion, or a question and an answer."
            )
        if not columns:
            ids, labels = _processed(row)
            start = next((i for i, label in enumerate(labels) if label != IGNORED), len(labels))
            new = self._answer_ids(answer) if isinstance(answer, str) else list(answer)
            return {"input_ids": ids[:start] + new, "labels": [IGNORED] * start + new}
        column, own = columns[-1], row[columns[-1]]
        if isinstance(answer, str) and is_conversation(own):
            answer = [*own[:-1], {**own[-1], "content": answer}]
        elif tuple(columns) == MESSAGES:
            answer = [*own[:-1], *answer]
        elif isinstance(answer, str) and isinstance(own, str) and not answer[:1].isspace():
            answer = own[: len(own) - len(own.lstrip())] + answer  # the blank between prompt and completion
        return {**row, column: answer}

    def pieces(self, source: Source, length: int, overlap: int) -> list[list[dict[str, list[int]]]]:
        """Each text as token ids in rows of at most `length`. The first `overlap` tokens of a row are the last ones of the row
        before, and no completion, so that each token of a text is predicted once."""
        texts = []
        for start in range(0, len(source), 64):
            for ids, labels in self._tokenized(source.rows(range(start, min(start + 64, len(source))))):
                rows = []
                for first in range(0, max(1, len(ids) - overlap), length - overlap):
                    old = [IGNORED] * (overlap if first else 0)
                    piece = slice(first, first + length)
                    rows.append({"input_ids": ids[piece], "labels": old + labels[piece][len(old) :]})
                texts.append(rows)
        return texts

    def _answer_ids(self, answer: str) -> list[int]:
        if self.processing_class is None:
            raise UnlearningError(
                f"The samples of {self.example.name} are token ids, and the other answers are texts; pass processing_class=, "
                "the model's tokenizer."
            )
        eos = self.processing_class.eos_token_id
        return [*self.processing_class(answer, add_special_tokens=False)["input_ids"], *([] if eos is None else [eos])]

    def __call__(self, rows: list[dict]) -> Batch:
        if self.data_collator is not None:
            return Batch(self.data_collator(rows))
        samples = [_processed(row) for row in rows] if not self.raw_columns else self._tokenized(rows)
        longest = max(len(ids) for ids, _ in samples)
        if self.max_length is None and longest > self.longest:
            raise UnlearningError(
                f"The text has {longest} tokens, and the model or the tokenizer reads {self.longest}; set max_length={self.longest} "
                "to have it cut off, or shorten it."
            )
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
        values = self._values(row)
        for column, value in zip(self.raw_columns, values, strict=False):
            if not (is_conversation(value) if self.conversations else isinstance(value, str)):
                expected = "a list of messages" if self.conversations else "text"
                raise UnlearningError(
                    f"A {column} is {repr(value)[:60]}; expected {expected}, as in the first row of {self.example.name}."
                )
        prompt = values[0] if len(values) == 2 else None
        if not self.conversations:
            return prompt or "", "".join(values)
        write = partial(
            self.processing_class.apply_chat_template, tokenize=False, **(row.get("chat_template_kwargs") or {})
        )
        whole = write([message for value in values for message in value])
        return write(prompt, add_generation_prompt=True) if prompt else "", whole

    def _values(self, row: dict) -> list[Any]:
        """Prompt and completion, or the whole text."""
        values = [row[column] for column in self.raw_columns]
        if self.write and all(isinstance(value, str) for value in values):
            question, answer = values
            more = row.get("input") if self.raw_columns[0] == "instruction" else None
            return list(self.write(f"{question}\n\n{more}" if more else question, answer).values())
        if tuple(self.raw_columns) == MESSAGES and is_conversation(values[0]):
            if values[0][-1].get("role") != "assistant":
                raise UnlearningError(
                    f"The last of the messages is of the role {values[0][-1].get('role')!r}; expected the assistant's, which is the "
                    "completion."
                )
            return [values[0][:-1], values[0][-1:]]
        return values

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

    def sizes(self, sources: dict[str, Source], progress: bool = False) -> np.ndarray | None:
        """The number of completion tokens that are predicted in each sample. Refuses samples without one.

        None where a set is a stream: its tokens are counted in each step.
        """
        counts = {name: self._count(source, progress) for name, source in sources.items() if not source.is_stream}
        for name, source in sources.items():
            if source.is_stream:
                rows = source.first(16)
                self.sizes_of(self.read(source, rows), [(name, row) for row in rows])
                return None
        return np.concatenate([counts[name] for name in ("forget", "retain") if name in counts])

    def sizes_of(self, batch: Batch, places: Sequence[tuple[str, int]]) -> Tensor:
        counts = (next_tokens(batch.labels) != IGNORED).sum(dim=1)
        if len(empty := (counts == 0).nonzero()):
            name, row = places[int(empty[0])]
            raise UnlearningError(f"Row {row} of {name} has no completion token to predict: {self._why_nothing}")
        return counts

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
                f"first is row {empty[0]}): {self._why_nothing}"
            )
        return counts

    @property
    def _why_nothing(self) -> str:
        return (
            f"it is empty, or behind the {self.longest} tokens that are read, or all of its labels are {IGNORED}. Remove the row, "
            "or shorten its prompt."
        )


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
