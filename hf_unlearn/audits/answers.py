"""What a language model says of the questions whose answers are forgotten: whether it prefers the right answer to wrong ones, and what
it answers by itself. Both can be asked where the forget set has TOFU's columns: `question`, `answer`, wrong ones of its form as
`perturbed_answer` and, if there is one, the answer in other words as `paraphrased_answer`.
"""

from importlib.util import find_spec
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from .. import metrics
from ..errors import UnlearningError
from .context import AuditContext
from .tofu import Questions, evaluate
from .verdict import ENOUGH, Finding

COLUMNS = ("question", "answer")
PERTURBED = "perturbed_answer"
MOST = 200  # questions that are asked, drawn by the seed
CONVENTION = (
    f"Truth ratio: e to the mean loss of a right answer (in other words, if there are any), less the mean over wrong ones; its "
    f"geometric mean over {MOST} questions at most. ROUGE-L recall: of greedy answers. p: of a Kolmogorov-Smirnov test, from {ENOUGH} "
    "questions on; a high one says that these could not be told apart, and with few questions hardly any can."
)


def questions(ctx: AuditContext) -> Questions | None:
    """None where there are no wrong answers, or the model reads questions and answers as plain text."""
    source, indices = ctx.sets["forget"]
    data = ctx.evaluator.samples.sources[source]
    is_written = tuple(ctx.collator.raw_columns) == COLUMNS and getattr(ctx.collator, "write", None)
    if not is_written or PERTURBED not in data.column_names:
        return None
    drawn = np.random.default_rng([ctx.seed, 21]).permutation(indices)[:MOST]
    return Questions.of_rows(data.rows(drawn.tolist()), "forget")


def samples(ctx: AuditContext) -> int | str:
    """How many go forward: every answer, and the one that is generated a few times as long; or why none does."""
    try:
        asked = questions(ctx)
    except UnlearningError as error:
        return f"left out. {str(error).rstrip('.')}"
    if asked is not None and find_spec("rouge_score") is None:
        return "left out, as it needs the package rouge-score: pip install 'hf_unlearn[lm]'"
    return 0 if asked is None else len(ctx.models) * len(asked.questions) * (len(asked.perturbed[0]) + 6)


def examine(ctx: AuditContext) -> tuple[dict[str, Any], list[Finding]]:
    """Truth ratio and ROUGE-L recall of each model, and of enough truth ratios how far they are from a retrained model's. None of
    them is a finding: what a model that never saw the answers would say is only known with one."""
    asked = cast(Questions, questions(ctx))
    tokenizer = cast(PreTrainedTokenizerBase, ctx.collator.processing_class)
    how: dict[str, Any] = {"batch_size": ctx.evaluator.batch_size, "progress": ctx.evaluator.progress}
    said = {name: evaluate(model, tokenizer, {"forget": asked}, **how)["forget"] for name, model in ctx.models.items()}
    found: dict[str, dict[str, float]] = {}
    for name, scores in said.items():
        with np.errstate(divide="ignore"):
            ratio = np.exp(np.clip(np.log(scores.truth_ratios).mean(), -700, 700))
        found[name] = {"truth_ratio": float(ratio), "rouge_l": scores.rouge_l}
        if "retrained" in said and name != "retrained" and len(asked.questions) >= ENOUGH:
            pair = scores.truth_ratios, said["retrained"].truth_ratios
            found[name] |= {"quality": metrics.forget_quality(*pair), "distance": metrics.ks_distance(*pair)}
    return {"answers": {"questions": len(asked.questions), "models": found}}, []
