"""What a language model answers: truth ratio, ROUGE-L, answer probability, and model utility as TOFU has them."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UnlearningError
from .checks import checked, from_torch

TOFU_UTILITIES = 9  # probability, ROUGE-L and truth ratio on retained questions, real authors and world facts

# ---- Losses of answers in, TOFU's numbers out -----------------------------------------------------------------------


def truth_ratio(paraphrased: ArrayLike, perturbed: ArrayLike) -> np.ndarray:
    """How much likelier wrong answers are than a right one, for each question.

        R = (Π_j P(ã_j | q)^{1/|ã_j|})^{1/K} / P(â | q)^{1/|â|} = exp(ℓ(â) − mean_j ℓ(ã_j))

    with the right answer â, in other words than it was trained on, K wrong ones ã_j of the same form, and ℓ the mean
    loss over an answer's tokens. Near 0 the model knows the fact; a model that never saw it is near 1. Forgetting moves
    it, hiding an answer does not.

    Args:
        paraphrased: [N], the mean token loss of each question's paraphrased answer.
        perturbed: [N, K], those of its wrong answers.

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, COLM 2024, arXiv 2401.06121.

    Example:
        >>> truth_ratio([1.0, 2.0], [[3.0, 3.0], [1.5, 2.5]]).round(4).tolist()
        [0.1353, 1.0]
    """
    right = checked(paraphrased, "paraphrased", "signal")
    with np.errstate(over="ignore"):  # of a model that is broken
        return np.exp(right - _answers(perturbed, "perturbed", len(right)).mean(axis=1))


def truth_score(ratios: ArrayLike, *, forget: bool = False) -> float:
    """The mean of a set's truth ratios, scaled so that 1 is best.

        of forget questions                              mean min(R, 1/R)
        of questions whose answers the model should know  mean max(0, 1 − R)

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, COLM 2024, arXiv 2401.06121.

    Example:
        >>> truth_score([0.5, 2.0], forget=True), truth_score([0.25, 2.0])
        (0.5, 0.375)
    """
    r = checked(ratios, "ratios", "scores")
    if r.min() < 0:
        raise ValueError(f"`ratios` has {r.min():.3g}, but truth ratios are positive: pass what `truth_ratio` gives.")
    with np.errstate(divide="ignore"):
        return float((np.minimum(r, 1 / r) if forget else np.maximum(0.0, 1 - r)).mean())


def answer_probability(losses: ArrayLike, perturbed: ArrayLike | None = None) -> float:
    """The mean over questions of P(a | q)^{1/|a|} = exp(−ℓ(a)), ℓ being the mean loss over the answer's tokens.

    With the losses of wrong answers, the right one's share: P(a) / (P(a) + Σ_j P(ã_j)), all to the power of one over
    their length. TOFU asks its real authors and world facts so, which are questions with options.

    Args:
        losses: [N], the mean token loss of each question's right answer.
        perturbed: [N, K], those of its wrong answers.

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, COLM 2024, arXiv 2401.06121.

    Example:
        >>> round(answer_probability([0.0, np.log(2)]), 6), round(answer_probability([1.0], [[1.0, 1.0, 1.0]]), 6)
        (0.75, 0.25)
    """
    right = checked(losses, "losses", "signal")
    if perturbed is None:
        return float(np.exp(-right).mean())
    wrong = _answers(perturbed, "perturbed", len(right))
    with np.errstate(over="ignore"):
        return float((1 / (1 + np.exp(right[:, None] - wrong).sum(axis=1))).mean())  # no probability rounds to 0


def _answers(losses: ArrayLike, name: str, length: int) -> np.ndarray:
    try:
        array = np.asarray(from_torch(losses), dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` is ragged, but as many answers to every question were expected.") from None
    if array.ndim != 2 or len(array) != length or not array.shape[1] or not np.isfinite(array).all():
        raise ValueError(
            f"`{name}` has shape {array.shape}, but {length} x K finite numbers were expected: pass the losses of the K "
            "wrong answers of every question, in the order of the right ones."
        )
    return array


def model_utility(scores: ArrayLike) -> float:
    """The harmonic mean of TOFU's nine numbers: probability, ROUGE-L recall and truth score on three sets.

        9 / Σ_i 1/s_i over {`answer_probability`, `rouge_l`, `truth_score`} × {retained, real authors, world facts}

    In [0, 1]; 0 as soon as one of them is.

    Args:
        scores: nine fractions, in any order and shape.

    References:
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, COLM 2024, arXiv 2401.06121.

    Example:
        >>> round(model_utility([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]), 4)
        0.6
    """
    s = np.asarray(from_torch(scores), dtype=np.float64).ravel()
    if s.size != TOFU_UTILITIES or not ((s >= 0) & (s <= 1)).all():
        raise ValueError(
            f"`scores` are {s.tolist()}, but {TOFU_UTILITIES} fractions were expected: probability, ROUGE-L and truth score of "
            "retained questions, real authors and world facts."
        )
    return float(TOFU_UTILITIES / (1 / s).sum()) if s.all() else 0.0


# ---- Texts in -------------------------------------------------------------------------------------------------------


def rouge_l(generated: Sequence[str], references: Sequence[str]) -> float:
    """ROUGE-L recall: the share of the true answer's words that stand in the generated one, in the same order.

        mean over answers of LCS(generated, reference) / |reference|

    with the longest common subsequence LCS of their words. Words are lower case, of ASCII letters and digits, and
    stemmed, as in TOFU's code. Of the package `rouge-score` (extra `lm`).

    References:
        Lin, *ROUGE: A Package for Automatic Evaluation of Summaries*, 2004.
        Maini et al., *TOFU: A Task of Fictitious Unlearning for LLMs*, COLM 2024, arXiv 2401.06121.

    Example:
        >>> rouge_l(["the dog barked loudly"], ["A dog was barking"])
        0.5
    """
    return float(np.mean([score.recall for score in _rouge_l(generated, references, stem=True)]))


def verbatim_memorisation(generated: Sequence[str], references: Sequence[str]) -> float:
    """MUSE's VerbMem: how much of a text the model continues as it was, from its beginning.

        mean over texts of the ROUGE-L F1 of the continuation f(x[:l]) and the true one x[l+1:]

    Words are not stemmed, as in MUSE's code. Of the package `rouge-score` (extra `lm`).

    References:
        Shi et al., *MUSE: Machine Unlearning Six-Way Evaluation for Language Models*, ICLR 2025, arXiv 2407.06460.

    Example:
        >>> verbatim_memorisation(["the dog barked", "a cat"], ["the dog barked", "two fish"])
        0.5
    """
    return float(np.mean([score.fmeasure for score in _rouge_l(generated, references, stem=False)]))


def check_rouge() -> None:
    """Refuse where the package `rouge-score` is not installed."""
    if find_spec("rouge_score") is None:
        raise UnlearningError(
            "ROUGE-L needs the package rouge-score, which is not installed: pip install 'hf_unlearn[lm]'."
        )


def _rouge_l(generated: Sequence[str], references: Sequence[str], stem: bool) -> list[Any]:
    check_rouge()
    from rouge_score import rouge_scorer  # pyright: ignore[reportMissingImports]  (an extra; and it takes long)

    if (
        isinstance(generated, str)
        or isinstance(references, str)
        or len(generated) != len(references)
        or not references
    ):
        raise ValueError(
            "`generated` and `references` are to be lists of as many texts, one or more: pass one answer for each question."
        )
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stem)
    return [scorer.score(target, text)["rougeL"] for text, target in zip(generated, references, strict=True)]
