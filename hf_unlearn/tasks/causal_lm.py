"""Language models: a sample is a completion, and every sample counts the same, however long it is."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .. import models
from ..data.samples import DrawnSamples, TrainingCollator
from ..data.source import Source
from ..data.types import DataCollator, ProcessingClass
from ..errors import UnlearningError
from ..metrics.text_membership import min_k_score
from ..metrics.tokens import extraction_strength_rows
from ..models import heads
from .base import Supervision, Task
from .completions import COMPLETIONS, MESSAGES, CompletionCollator
from .losses import next_tokens, predicting
from .token_evaluation import TokenEvaluator, Tokens

MIN_K = 0.2


class CausalLM(Task):
    name = "causal-lm"
    noun = "a language model"
    outputs = "words"
    layout = COMPLETIONS
    counted = "the tokens of a language model's samples"
    counts_in_steps = True
    is_fixed = True
    is_whole = True  # of which the head is told the places that count
    right_or_wrong = False  # most tokens of a text are right in unseen ones too
    epoch = "forget"  # as those who compare such methods count
    lora = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    scores = {"margin": "likelihood", "min_k": "min-k %", "extraction": "extraction strength"}
    audit_parts = {1: ("relearning", "answers")}
    conventions = (
        "Of each text: the mean log-likelihood of its completion tokens; min-k %: that of the 20% least likely ones; "
        "extraction strength: the share of the completion that greedy decoding gives right after the shortest prefix "
        "from which it does.",
        "AUC: P(forget > unseen) + ½ P(equal) by the mean log-likelihood; 95% bootstrap interval.",
    )
    pipeline_tag = "text-generation"
    auto_class = "AutoModelForCausalLM"

    def __init__(self, model: nn.Module):
        self.limits = models.limits(model)
        self.config = models.pretrained(model).config
        self.num_outputs = self.config.get_text_config().vocab_size

    def collator(
        self, example: Source, processing_class: ProcessingClass | None, data_collator: DataCollator | None
    ) -> CompletionCollator:
        return CompletionCollator(example, processing_class, data_collator, **self.limits)

    def pieces(
        self, source: Source, processing_class: ProcessingClass | None, length: int, stride: int
    ) -> list[list[dict[str, list[int]]]]:
        columns = source.processed_inputs or source.input_columns
        if source.is_stream or source.processed_inputs or len(columns) > 1 or columns == list(MESSAGES):
            what = "is a stream" if source.is_stream else f"has {' and '.join(columns)}"
            raise UnlearningError(
                f"stride is {stride}, which cuts whole texts into pieces, and {source.name} {what}; expected a text alone, or no stride."
            )
        return self.collator(source, processing_class, None).pieces(source, length, stride)

    def eval_batch_size(self, eval_size: int, train_size: int) -> int:
        return min(eval_size, train_size)  # activations of long texts

    def evaluator(
        self,
        accelerator: Accelerator,
        samples: DrawnSamples,
        collator: TrainingCollator,
        supervision: Supervision | None = None,
        **about: Any,
    ) -> TokenEvaluator:
        return TokenEvaluator(accelerator, samples, collator, self.num_labels, **about)

    def audit_statistics(self, predicted: Tokens) -> dict[str, Tensor]:
        return {"min_k": _on_device(min_k_score(predicted.by_sample(0), predicted.places, MIN_K), predicted.places)}


@torch.no_grad()
def completion_statistics(logits: Tensor, labels: Tensor, share: float = MIN_K) -> dict[str, Tensor]:
    """What of a completion is known by heart, for each sample of a language model, from its T completion tokens y_t.

        min_k       mean of the ⌈share · T⌉ lowest log p(y_t | y_<t)
        extraction  1 − k/T with the smallest k such that greedy decoding from the prompt and y_1 … y_k gives the rest,
                    y_{k+1} … y_T, exactly

    Greedy decoding gives the rest exactly if and only if every token of it is the likeliest one after the true tokens
    before it. One forward pass over the true tokens tells: T − k is the length of the run of right argmax predictions that
    ends the completion. 1: all of it from the prompt alone; 0: not even the last token.

    Args:
        logits: [n, L, V]; those at one place predict the token at the next.
        labels: [n, L], -100 outside the completion.

    References:
        Shi et al., *Detecting Pretraining Data from Large Language Models*, ICLR 2024, arXiv 2310.16789 (min-k % prob).
        Carlini et al., *Extracting Training Data from Large Language Models*, USENIX Security 2021, arXiv 2012.07805;
        as a metric: Wang et al., *Towards Effective Evaluations and Comparisons for LLM Unlearning Methods*, ICLR 2025,
        arXiv 2406.09179 (extraction strength).
    """
    kept = predicting(labels)
    scores = heads.in_chunks(heads.token_scores, logits[kept], next_tokens(labels)[kept]).double()
    log_p, right = heads.padded(scores[:, 0], kept), heads.padded(scores[:, 1], kept)
    found = {"min_k": min_k_score(log_p, kept, share), "extraction": extraction_strength_rows(right, kept)}
    return {name: _on_device(values, kept) for name, values in found.items()}


def _on_device(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)
