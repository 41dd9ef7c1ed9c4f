"""What of a text is known by heart, from what a language model says of its true tokens: N x L arrays and a mask.

`right` is whether a token is the likeliest one after the true tokens before it, log_p its log-probability there. `mask` is where
a token counts, such as those of a completion; without it all do.
"""

import numpy as np
from numpy.typing import ArrayLike

from .checks import checked_tokens


def extraction_strength(right: ArrayLike, mask: ArrayLike | None = None) -> float:
    """The mean over texts of the share that greedy decoding gives right after the shortest prefix from which it does.

        ES = 1 − k/T with the smallest k such that greedy decoding from y_1 … y_k gives y_{k+1} … y_T exactly

    of the T tokens that count. Greedy decoding gives the rest exactly if and only if every token of it is the likeliest
    one after the true tokens before it, so T − k is the length of the run of right predictions that ends the text. 1: all
    of it from the prompt alone; 0: not even the last token.

    References:
        Carlini et al., *Extracting Training Data from Large Language Models*, USENIX Security 2021, arXiv 2012.07805;
        as a metric: Wang et al., *Towards Effective Evaluations and Comparisons for LLM Unlearning Methods*, ICLR 2025,
        arXiv 2406.09179.

    Example:
        >>> extraction_strength([[0, 1, 1, 1], [1, 1, 1, 0]])
        0.375
    """
    return float(extraction_strength_rows(right, mask).mean())


def extraction_strength_rows(right: ArrayLike, mask: ArrayLike | None = None) -> np.ndarray:
    """`extraction_strength` of every text by itself.

    Example:
        >>> extraction_strength_rows([[0, 1, 1, 1], [1, 1, 1, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]]).tolist()
        [0.75, 1.0]
    """
    values, counts = checked_tokens(right, mask, "right")
    run = np.where(counts, values != 0, True)[:, ::-1].cumprod(axis=1)[:, ::-1]
    return (run * counts).sum(axis=1) / counts.sum(axis=1)


def exact_memorisation(right: ArrayLike, mask: ArrayLike | None = None) -> float:
    """The mean over texts of the share of tokens that are the likeliest one after the true tokens before them.

        EM = 1/T Σ_t 1[argmax_y p(y | y_<t) = y_t]

    References:
        Tirumala et al., *Memorization Without Overfitting*, NeurIPS 2022, arXiv 2205.10770.

    Example:
        >>> exact_memorisation([[0, 1, 1, 1], [1, 1, 0, 0]])
        0.625
    """
    return float(exact_memorisation_rows(right, mask).mean())


def exact_memorisation_rows(right: ArrayLike, mask: ArrayLike | None = None) -> np.ndarray:
    """`exact_memorisation` of every text by itself.

    Example:
        >>> exact_memorisation_rows([[0, 1, 1, 1], [1, 1, 0, 0]]).tolist()
        [0.75, 0.5]
    """
    values, counts = checked_tokens(right, mask, "right")
    return ((values != 0) & counts).sum(axis=1) / counts.sum(axis=1)


def token_mean(values: ArrayLike, mask: ArrayLike | None = None) -> np.ndarray:
    """The mean of every text over its tokens that count: of −log_p the text's loss ℓ, of log_p its log-likelihood.

    Example:
        >>> token_mean([[-1.0, -3.0, -7.0]], [[1, 1, 0]]).tolist()
        [-2.0]
    """
    values, counts = checked_tokens(values, mask, "values")
    return values.sum(axis=1) / counts.sum(axis=1)
