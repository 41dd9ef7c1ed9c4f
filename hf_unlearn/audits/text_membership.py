"""Which texts a language model was trained on: the six usual scores of each, from the model itself."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .. import metrics
from ..tasks.answers import Answers


def membership_scores(
    answers: Answers,
    samples: Sequence[tuple[Tensor, int]],
    *,
    reference: Answers | None = None,
    gradients: bool = False,
    share: float = 0.2,
) -> dict[str, np.ndarray]:
    """Scores of every completion, higher for what the model was trained on, for `membership_auc` and `privleak`.

    Args:
        samples: what `answers.read` gives.
        reference: a model of the same tokenizer that was not trained on them, for the score `reference`.
        gradients: whether to take the score `gradient_norm` too: a backward pass for each text.
        share: of the tokens that min-k and min-k++ read.

    Returns:
        `loss`, `zlib`, `min_k`, `min_k_plus_plus` and, where they were asked for, `reference` and `gradient_norm`.
    """
    said = answers.scores(samples, "membership", moments=True)
    assert said.mean is not None and said.deviation is not None  # were asked for
    texts = [str(answers.tokenizer.decode(ids[prompt:], skip_special_tokens=True)) for ids, prompt in samples]
    found = {
        "loss": metrics.loss_score(said.log_p, said.mask),
        "zlib": metrics.zlib_score(said.log_p, texts, said.mask),
        "min_k": metrics.min_k_score(said.log_p, said.mask, share),
        "min_k_plus_plus": metrics.min_k_plus_plus_score(said.log_p, said.mean, said.deviation, said.mask, share),
    }
    if reference is not None:
        other = reference.scores(samples, "membership, reference")
        found["reference"] = metrics.reference_score(said.log_p, other.log_p, said.mask)
    if gradients:
        found["gradient_norm"] = answers.gradient_norms(samples)
    return found
