"""TOFU: what a language model still says of 2 to 20 invented authors, and of what it should go on knowing.

Four sets of questions: forgotten authors, retained ones, real authors, and facts about the world. Of each, whether the model
finds the true answer likely, says it, and prefers it to wrong ones. The first two numbers are easily hidden; the truth ratio is
not, so it is what `forget_quality` holds against a model that was retrained without the forgotten authors.

References:
    Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, COLM 2024, arXiv 2401.06121.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from .. import metrics
from ..errors import UnlearningError
from ..tasks.answers import Answers
from ..tasks.completions import QUESTION, writer

SETS = {"forget": "forget", "retain": "retain", "authors": "real authors", "facts": "world facts"}
WITH_OPTIONS = ("authors", "facts")  # whose wrong answers share the probability with the right one


@dataclass(frozen=True)
class Questions:
    """One set: each question's answer, the same in other words, and wrong ones of that form."""

    name: str
    questions: list[str]
    answers: list[str]
    paraphrased: list[str]
    perturbed: list[list[str]]

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], name: str, limit: int | None = None) -> "Questions":
        """From rows as TOFU has them. Without a paraphrased answer, the answer stands for it."""
        rows = rows[:limit]
        if not rows:
            raise UnlearningError(f"{name} has no questions; expected rows of TOFU.")
        for i, row in enumerate(rows):
            wrong = row.get("perturbed_answer")
            texts = [row.get("question"), row.get("answer"), row.get("paraphrased_answer", ""), *(wrong or [None])]
            if not isinstance(wrong, list) or not all(isinstance(text, str) for text in texts):
                raise UnlearningError(
                    f"Row {i} of {name} has the columns {', '.join(row)}; expected texts as question and answer, and a list of them "
                    "as perturbed_answer."
                )
            if len(wrong) != len(rows[0]["perturbed_answer"]):
                raise UnlearningError(
                    f"Row {i} of {name} has {len(wrong)} wrong answers, and row 0 has {len(rows[0]['perturbed_answer'])}; expected "
                    "as many to every question."
                )
        return cls(
            name,
            [row["question"] for row in rows],
            [row["answer"] for row in rows],
            [row.get("paraphrased_answer", row["answer"]) for row in rows],
            [row["perturbed_answer"] for row in rows],
        )

    def part(self, places: Iterable[int]) -> "Questions":
        """Some of them, in this order."""
        columns: list[list[Any]] = [self.questions, self.answers, self.paraphrased, self.perturbed]
        return Questions(self.name, *([column[i] for i in places] for column in columns))


def check_order(
    perturbed: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], name: str, of: str
) -> None:
    """Refuse a perturbed set that does not ask the questions of the set `of` in their order, as far as it goes."""
    for i, (row, expected) in enumerate(zip(perturbed, plain, strict=False)):
        if row.get("question") != expected.get("question"):
            raise UnlearningError(
                f"Row {i} of {name} asks {str(row.get('question'))[:40]!r}, and row {i} of {of} {str(expected.get('question'))[:40]!r}; "
                "expected the same questions in the same order."
            )
    if len(perturbed) > len(plain):
        raise UnlearningError(f"{name} has {len(perturbed)} rows, and {of} {len(plain)}; expected no more than these.")


@dataclass(frozen=True)
class SetScores:
    """What a model says of one set; fractions, and higher is what it knows (of `truth` on the forget set: what it does not).

    Attributes:
        probability: `answer_probability`; of real authors and facts, beside their wrong answers.
        rouge_l: recall of the generated answers.
        truth: the `truth_score` of the set.
        extraction_strength, exact_memorisation: of the answers' tokens, the end of the text left out.
        truth_ratios: of each question.
    """

    probability: float
    rouge_l: float
    truth: float
    extraction_strength: float
    exact_memorisation: float
    truth_ratios: np.ndarray


FIGURES = ("probability", "rouge_l", "truth", "extraction_strength", "exact_memorisation")
HEADS = ("likely", "ROUGE-L", "truth", "extraction", "exact")
NOTE = (
    "likely: probability of the true answer; of real authors and facts, its share\n"
    "truth: of forget, mean min(R, 1/R), near 1 where nothing is known; of others,\n"
    "mean max(0, 1 - R), near 1 where all is. R, the truth ratio, does not move where\n"
    "answers are only hidden."
)


def evaluate(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase,
    sets: Mapping[str, Questions],
    *,
    prompt: str | None = None,
    max_new_tokens: int = 200,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, SetScores]:
    """Ask a language model the questions of TOFU. The model stays where it is, and as it is.

    Args:
        sets: a `Questions` for each name of `SETS`.
        prompt: how question and answer are written, with `{question}` and, at the end, `{answer}`; default: the tokenizer's
            chat template, or `QUESTION` where it has none.
        max_new_tokens: of a generated answer.
    """
    check_prompt(prompt)
    answers = Answers(model, processing_class, batch_size, progress)
    write = writer(processing_class, prompt)
    # All is read before the first forward pass.
    read = {
        name: [
            answers.read([write(q, a) for q, a in zip(*pair, strict=True)], questions.name)
            for pair in _pairs(questions)
        ]
        for name, questions in sets.items()
    }
    return {name: _scores(answers, name, questions, read[name], max_new_tokens) for name, questions in sets.items()}


def _pairs(questions: Questions) -> list[tuple[list[str], list[str]]]:
    """Questions with their answers, with these in other words, and with the wrong ones, all of a question in a row."""
    asked, wrong = questions.questions, questions.perturbed
    each = len(wrong[0])
    every = [question for question in asked for _ in range(each)], [answer for row in wrong for answer in row]
    own = [(asked, questions.answers)]
    return [*own, *([(asked, questions.paraphrased)] if questions.paraphrased != questions.answers else []), every]


def _scores(answers: Answers, name: str, questions: Questions, read: list[Any], max_new_tokens: int) -> SetScores:
    own, *rest = (answers.scores(samples, questions.name) for samples in read)
    losses = [-metrics.token_mean(scores.log_p, scores.mask) for scores in (own, *rest)]
    wrong = losses[-1].reshape(len(questions.questions), -1)
    ratios = metrics.truth_ratio(losses[-2], wrong)  # of the paraphrased answers, or the answers themselves
    generated = answers.generate(read[0], max_new_tokens, f"answers to {questions.name}")
    # The end of the text is no part of the answer. An answer of one token is kept whole.
    words = own.mask & (np.cumsum(own.mask, axis=1) < np.maximum(own.mask.sum(axis=1, keepdims=True), 2))
    return SetScores(
        probability=metrics.answer_probability(losses[0], wrong if name in WITH_OPTIONS else None),
        rouge_l=metrics.rouge_l(generated, questions.answers),
        truth=metrics.truth_score(ratios, forget=name == "forget"),
        extraction_strength=metrics.extraction_strength(own.right, words),
        exact_memorisation=metrics.exact_memorisation(own.right, words),
        truth_ratios=ratios,
    )


def utility(scores: Mapping[str, SetScores]) -> float:
    """`model_utility` of the three sets that the model should go on knowing."""
    return metrics.model_utility(
        [[s.probability, s.rouge_l, s.truth] for name, s in scores.items() if name != "forget"]
    )


def kept(scores: SetScores) -> float:
    """What `utility` is of one set alone, where a model is too small to know of real authors and the world: the harmonic mean of
    its probability, ROUGE-L recall and truth score."""
    return harmonic_mean([scores.probability, scores.rouge_l, scores.truth])


def check_prompt(prompt: str | None) -> None:
    if prompt is None:
        return
    head, found, tail = prompt.partition("{answer}")
    if head.count("{question}") != 1 or not found or tail.strip() or not head.strip():
        raise UnlearningError(
            f"The prompt is {prompt!r}; expected {{question}} once and {{answer}} at the end, as in {QUESTION!r}."
        )


# ---- What is shown and kept -----------------------------------------------------------------------------------------


def as_json(scores: Mapping[str, SetScores], sets: Mapping[str, Questions]) -> dict[str, Any]:
    """All figures, and the truth ratios of the forget questions, which another model may be held against later."""
    return {
        "sets": {
            name: {"questions": len(s.truth_ratios)} | {figure: getattr(s, figure) for figure in FIGURES}
            for name, s in scores.items()
        },
        "model_utility": utility(scores),
        "asked": digest(sets["forget"]),
        "truth_ratios": scores["forget"].truth_ratios.tolist(),
    }


def digest(questions: Questions) -> str:
    """Of what was asked, so that truth ratios are compared question by question."""
    asked = [questions.questions, questions.paraphrased, questions.perturbed]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def against(figures: Mapping[str, Any], retrained: Mapping[str, Any]) -> dict[str, float]:
    """Forget quality, and the distance that it judges, from what `as_json` gives of the two models."""
    pair = figures["truth_ratios"], retrained["truth_ratios"]
    return {"forget_quality": metrics.forget_quality(*pair), "ks_distance": metrics.ks_distance(*pair)}


def table(figures: Mapping[str, Any]) -> str:
    """The sets' figures, from `as_json`, in 80 columns."""
    lines = [f"{'':<13}{'questions':>9}" + "".join(f"{head:>11}" for head in HEADS)]
    for name, called in SETS.items():
        row = figures["sets"][name]
        lines.append(f"{called:<13}{row['questions']:>9}" + "".join(f"{row[figure]:>11.3f}" for figure in FIGURES))
    return "\n".join(lines)
