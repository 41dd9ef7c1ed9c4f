"""What a language model says of given answers, token by token, and what it answers by itself. No logits are kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from .. import models
from ..data.source import Source
from ..errors import UnlearningError
from ..metrics.text_membership import gradient_norm_score
from ..models import heads
from ..models.modes import evaluating
from . import task_of
from .causal_lm import CausalLM
from .losses import IGNORED, next_tokens


@dataclass(frozen=True)
class TokenScores:
    """Of n completions, padded to the longest: what `metrics.tokens` and `metrics.text_membership` take.

    Attributes:
        log_p: [n, L], of each true token after those before it; 0 where there is none.
        right: bool [n, L], whether it is the likeliest one there.
        mask: bool [n, L], whether there is a token.
        mean, deviation: [n, L], those of log p(y | y_<t) over y ~ p(· | y_<t); None where they were not asked for.
    """

    log_p: np.ndarray
    right: np.ndarray
    mask: np.ndarray
    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None


def language_task(model: nn.Module) -> CausalLM:
    """The task of a language model; any other model is refused."""
    task = task_of(model)
    if not isinstance(task, CausalLM):
        raise UnlearningError(f"The model is for {task.name}, and has no answers; expected a language model.")
    return task


class Answers:
    """Reads prompts with their completions, as training does, and asks one model about them.

    Args:
        processing_class: the model's tokenizer.
        batch_size: texts of one forward pass.
        progress: whether to show bars.
    """

    def __init__(
        self, model: nn.Module, processing_class: PreTrainedTokenizerBase, batch_size: int = 16, progress: bool = False
    ):
        self.task = language_task(model)
        self.model, self.tokenizer = model, processing_class
        self.batch_size, self.progress = batch_size, progress
        self.device = next(model.parameters()).device

    def read(self, rows: Sequence[dict[str, Any]], name: str) -> list[tuple[Tensor, int]]:
        """(token ids, how many of them are the prompt's) of rows with a `prompt` and a `completion`."""
        source = Source(datasets.Dataset.from_list(list(rows)), name, layout=self.task.layout)
        collator, samples = self.task.collator(source, self.tokenizer, None), []
        for start in range(0, len(rows), 256):
            batch = collator.read(source, range(start, min(start + 256, len(rows))))
            for ids, kept, labels in zip(
                batch["input_ids"], batch["attention_mask"].bool(), batch.labels, strict=True
            ):
                prompt = int((labels[kept] == IGNORED).sum())
                if prompt in (0, int(kept.sum())):
                    part = "answer" if prompt else "question"
                    raise UnlearningError(
                        f"The {part} of row {len(samples)} of {name} has no token, or lies behind those that the model can "
                        "read; leave the row out, or shorten its question."
                    )
                samples.append((ids[kept], prompt))
        return samples

    def scores(
        self, samples: Sequence[tuple[Tensor, int]], description: str = "answers", *, moments: bool = False
    ) -> TokenScores:
        """What the model says of the completions: one forward pass over each. `moments` asks for mean and deviation too."""
        shape = len(samples), max(len(ids) - prompt for ids, prompt in samples)
        columns, mask = np.zeros((4 if moments else 2, *shape)), np.zeros(shape, bool)
        with evaluating(self.model), torch.no_grad():
            for rows in self._batches([len(ids) for ids, _ in samples], description):
                texts = [samples[row][0] for row in rows]
                ids = pad_sequence(texts, batch_first=True).to(self.device)
                lengths = torch.tensor([[len(text)] for text in texts])
                attention = (torch.arange(ids.shape[1]) < lengths).long().to(self.device)
                prompts = torch.tensor([[samples[row][1]] for row in rows])
                places = torch.arange(ids.shape[1])
                places = ((places >= prompts - 1) & (places < lengths - 1)).to(self.device)
                score = heads.scored(next_tokens(ids)[places], heads.token_moments if moments else heads.likelihoods)
                found, _ = heads.read(self.model, {"input_ids": ids, "attention_mask": attention}, places, score)
                sizes = places.sum(dim=1).tolist()
                for row, size, of_row in zip(rows, sizes, found.double().cpu().split(sizes), strict=True):
                    columns[:, row, :size], mask[row, :size] = of_row.T.numpy(), True
        log_p, right, *rest = columns
        if not np.isfinite(log_p).all():
            row = int((~np.isfinite(log_p)).any(axis=1).argmax())
            raise UnlearningError(
                f"The model's outputs for answer {row} of {description} are NaN or infinite; check the model, or run it in "
                "float32."
            )
        return TokenScores(log_p, right != 0, mask, *rest)

    def gradient_norms(self, samples: Sequence[tuple[Tensor, int]], description: str = "gradients") -> np.ndarray:
        """`metrics.gradient_norm_score` of each completion's mean loss, over the weights that can be trained."""
        weights, found = [w for w in self.model.parameters() if w.requires_grad], []
        with evaluating(self.model), torch.enable_grad():
            for ids, prompt in tqdm(samples, desc=description, leave=False, disable=not self.progress):
                text = ids.to(self.device)
                places = (torch.arange(len(text), device=self.device)[None] >= prompt - 1) & (
                    next_tokens(text[None]) != IGNORED
                )
                score = heads.scored(text[prompt:], heads.log_probabilities)
                log_p, _ = heads.read(self.model, {"input_ids": text[None]}, places, score)
                gradients = torch.autograd.grad(-log_p.mean(), weights, allow_unused=True)
                found.append(gradient_norm_score(g for g in gradients if g is not None))
        return np.array(found)

    def generate(
        self, samples: Sequence[tuple[Tensor, int]], max_new_tokens: int = 200, description: str = "generation"
    ) -> list[str]:
        """The model's own completions by greedy decoding, whatever it is set to do, up to an end-of-sequence token.

        Prompts of a batch are padded on the left. A model with a limit of positions answers no longer than fits behind the
        longest prompt.
        """
        model, prompts = models.pretrained(self.model), [ids[:prompt] for ids, prompt in samples]
        limit = models.max_tokens(model)
        longest = min(max_new_tokens, limit - max(map(len, prompts))) if limit else max_new_tokens
        if longest < 1:
            raise UnlearningError(
                f"A question has {max(map(len, prompts))} tokens, and the model reads {limit}, so no answer fits behind it; leave "
                "it out."
            )
        own, answers = model.generation_config, [""] * len(prompts)
        tokenizer: Any = self.tokenizer
        found: Any = own.eos_token_id if own is not None else None
        ends = {*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id} - {None}
        padding = next((i for i in (tokenizer.pad_token_id, *sorted(ends)) if i is not None), 0)
        greedy = GenerationConfig(
            max_new_tokens=longest, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=padding
        )
        model.generation_config = greedy  # in place of its own, which `generate` would fill what is unset with
        try:
            with evaluating(self.model), torch.no_grad():
                for rows in self._batches([len(prompt) for prompt in prompts], description):
                    chosen = [prompts[row] for row in rows]
                    ids = pad_sequence(chosen, batch_first=True, padding_value=padding, padding_side="left")
                    lengths = torch.tensor([[len(prompt)] for prompt in chosen])
                    attention = (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths).long()
                    output = cast(Any, self.model).generate(
                        input_ids=ids.to(self.device), attention_mask=attention.to(self.device)
                    )
                    for row, new in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
                        end = next((i for i, token in enumerate(new) if token in ends), len(new))
                        answers[row] = tokenizer.decode(new[:end], skip_special_tokens=True).strip()
        finally:
            model.generation_config = own
        return answers

    def _batches(self, lengths: Sequence[int], description: str) -> Iterator[list[int]]:
        """Rows of like lengths, the longest first, so that what does not fit shows at once."""
        order = np.argsort(lengths, kind="stable")[::-1].tolist()
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, desc=description, leave=False, disable=not self.progress):
            yield order[start : start + self.batch_size]
