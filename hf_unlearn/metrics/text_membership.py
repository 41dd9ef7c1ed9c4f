"""Whether a language model was trained on a text: scores of every text, higher for what it was trained on, and PrivLeak.

`log_p` [N, L] are log-probabilities of the true tokens, each after those before it; `mask` is where they count.
"""

import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .checks import checked, checked_tokens, from_torch
from .membership import matched_auc
from .tokens import token_mean


def loss_score(log_p: ArrayLike, mask: ArrayLike | None = None) -> np.ndarray:
    """−ℓ: the mean log-probability of a text's tokens.

    References:
        Yeom et al., *Privacy Risk in Machine Learning*, CSF 2018, arXiv 1709.01604.

    Example:
        >>> loss_score([[-1.0, -3.0], [-0.5, -0.5]]).tolist()
        [-2.0, -0.5]
    """
    return token_mean(log_p, mask)


def zlib_score(log_p: ArrayLike, texts: Sequence[str], mask: ArrayLike | None = None) -> np.ndarray:
    """−ℓ / bytes(zlib(text)): a text that compresses well is likely without having been seen.

    References:
        Carlini et al., *Extracting Training Data from Large Language Models*, USENIX Security 2021, arXiv 2012.07805.

    Example:
        >>> score = zlib_score([[-1.0, -3.0]], ["to be or not to be"])
        >>> round(float(score[0]) * len(zlib.compress(b"to be or not to be")), 6)
        -2.0
    """
    score = loss_score(log_p, mask)
    if isinstance(texts, str) or len(texts) != len(score):
        raise ValueError(f"`texts` is not a list of {len(score)} texts: pass one text for each row of `log_p`.")
    return score / [len(zlib.compress(text.encode())) for text in texts]


def min_k_score(log_p: ArrayLike, mask: ArrayLike | None = None, share: float = 0.2) -> np.ndarray:
    """Min-K%: the mean of the ⌈share · T⌉ lowest log-probabilities of a text's T tokens.

    References:
        Shi et al., *Detecting Pretraining Data from Large Language Models*, ICLR 2024, arXiv 2310.16789.

    Example:
        >>> min_k_score([[-1.0, -5.0, -3.0, -0.1]], share=0.5).tolist()
        [-4.0]
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` is {share}, but a fraction above 0, at most 1, was expected.")
    values, counts = checked_tokens(log_p, mask, "log_p")
    lowest = (np.sort(row[kept])[: math.ceil(share * kept.sum())] for row, kept in zip(values, counts, strict=True))
    return np.array([row.mean() for row in lowest])


def min_k_plus_plus_score(
    log_p: ArrayLike, mean: ArrayLike, deviation: ArrayLike, mask: ArrayLike | None = None, share: float = 0.2
) -> np.ndarray:
    """Min-K%++: Min-K% of log-probabilities that are standardised at each place over the vocabulary.

        (log p(y_t | y_<t) − μ_t) / σ_t,   μ_t, σ_t: mean and standard deviation of log p(y | y_<t) over y ~ p(· | y_<t)

    Args:
        mean, deviation: [N, L], μ and σ at each place. A deviation below 1e-3 (the model is sure) counts as that.

    References:
        Zhang et al., *Min-K%++: Improved Baseline for Detecting Pre-Training Data from LLMs*, ICLR 2025,
        arXiv 2404.02936.

    Example:
        >>> min_k_plus_plus_score([[-1.0, -5.0]], mean=[[-2.0, -2.0]], deviation=[[1.0, 2.0]], share=0.5).tolist()
        [-1.5]
    """
    (x, _), (mu, _), (sigma, _) = (
        checked_tokens(v, mask, name) for v, name in ((log_p, "log_p"), (mean, "mean"), (deviation, "deviation"))
    )
    if not x.shape == mu.shape == sigma.shape:
        raise ValueError(
            f"`log_p` has shape {x.shape}, `mean` {mu.shape} and `deviation` {sigma.shape}, but one shape was expected: "
            "pass all three of the same tokens."
        )
    return min_k_score((x - mu) / np.maximum(sigma, 1e-3), mask, share)


def reference_score(log_p: ArrayLike, reference_log_p: ArrayLike, mask: ArrayLike | None = None) -> np.ndarray:
    """ℓ_reference − ℓ: how much likelier a text is to the model than to one that was not trained on it.

    References:
        Carlini et al., *Extracting Training Data from Large Language Models*, USENIX Security 2021, arXiv 2012.07805.

    Example:
        >>> reference_score([[-1.0, -2.0]], [[-3.0, -4.0]]).tolist()
        [2.0]
    """
    own, reference = token_mean(log_p, mask), token_mean(reference_log_p, mask)
    if own.shape != reference.shape:
        raise ValueError(f"`log_p` has {len(own)} rows and `reference_log_p` {len(reference)}: pass the same texts.")
    return own - reference


def gradient_norm_score(gradients: Iterable[ArrayLike]) -> float:
    """−‖∇ℓ‖₂ of one text, over all weights: what a model was trained on pulls at it no more.

    Args:
        gradients: that of the text's loss to each weight tensor.

    References:
        Wang et al., *Pandora's White-Box: Precise Training Data Detection and Extraction in Large Language Models*,
        2024, arXiv 2402.17012.

    Example:
        >>> gradient_norm_score([[[3.0, 0.0]], [4.0]])
        -5.0
    """
    squares = [float(np.square(np.asarray(from_torch(g), dtype=np.float64)).sum()) for g in gradients]
    if not squares or not np.isfinite(squares).all():
        raise ValueError("`gradients` is empty or not finite: pass the gradient of one text's loss to each weight.")
    return -math.sqrt(sum(squares))


def membership_auc(forget: ArrayLike, unseen: ArrayLike) -> float:
    """AUC = P(forget score > unseen score) + ½ P(equal). ½ where nothing tells them apart.

    Example:
        >>> membership_auc([3.0, 2.0], [1.0, 2.0])
        0.875
    """
    f, u = checked(forget, "forget", "scores"), checked(unseen, "unseen", "scores")
    auc = matched_auc(f, np.zeros(len(f), int), u, np.zeros(len(u), int), bootstrap=0).auc
    assert auc is not None  # all are of one class
    return auc


def privleak(forget: ArrayLike, unseen: ArrayLike, retrained_forget: ArrayLike, retrained_unseen: ArrayLike) -> float:
    """MUSE's PrivLeak, in percent: how much more, or less, forget texts look like unseen ones than to a retrained model.

        PrivLeak = 100 (A − A_retrained) / A_retrained,   A = P(unseen score > forget score) + ½ P(equal) = 1 − AUC

    0: as the retrained model. Near −100 forget texts are recognised as trained on; far above 0 they stand out as forgotten.
    The sign is that of MUSE's code and tables, whose AUC takes unseen texts for the positive ones.

    Args:
        forget, unseen: a score of every text from the unlearned model, higher for what was trained on; MUSE takes
            `min_k_score(share=0.4)`.
        retrained_forget, retrained_unseen: the same from a model that was retrained without the forget texts.

    References:
        Shi et al., *MUSE: Machine Unlearning Six-Way Evaluation for Language Models*, ICLR 2025, arXiv 2407.06460.

    Example:
        >>> privleak([9.0, 9.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]), privleak([0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0])
        (-100.0, 100.0)
    """
    retrained = 1 - membership_auc(retrained_forget, retrained_unseen)
    if retrained == 0:
        raise ValueError(
            "the retrained model tells every forget text from the unseen ones, so there is nothing to relate to: pass unseen "
            "texts that are like the forget ones."
        )
    return 100 * (1 - membership_auc(forget, unseen) - retrained) / retrained
