"""What an audit says of itself in words: how its figures were made, and which classes it is about."""

import numpy as np
from transformers import BaseImageProcessor

from . import plain
from .context import AuditContext
from .findings import HARM
from .verdict import LEVEL


def conventions(ctx: AuditContext) -> list[str]:
    """How the figures were made, and what is taken for granted."""
    said = ["Natural logarithms; statistics in float64 after the forward pass."]
    processor = ctx.collator.processing_class
    if isinstance(processor, BaseImageProcessor) and ctx.collator.raw_columns:
        backend = getattr(processor, "backend", "its own")  # that of timm has none
        said.append(f"Images are read by {type(processor).__name__}; backend: {backend}.")
    if "unseen" in ctx.sets:
        said.append(f"Unseen samples are {ctx.split}.")
        said.append(
            "They are taken for what the forget samples would be to a model that was never trained on these. Mislabelled, "
            "poisoned or hand-picked forget samples need unseen samples of the same kind."
        )
    said += ctx.task.conventions
    said += [
        "MIA: logistic regression on the entropy, members are retained samples, fitted on one half and asked on the other, "
        "halves swapped; the share of forget samples called members.",
        *([plain.CONVENTION] if "unseen" in ctx.sets else []),
        *([plain.BESIDE] if "retrained" in ctx.models else []),
        f"Harm: accuracy on the same samples, more than {100 * HARM['retain']:.0f} points (retained) or {100 * HARM['unseen']:.0f} "
        f"(unseen) below the {'retrained' if 'retrained' in ctx.models else 'original'} model's.",
        f"All tests that may fail the model are corrected together (Holm): a model that has never seen the forget samples "
        f"fails in {LEVEL:.0%} of audits.",
    ]
    said.append(
        "Harm is judged beside the retrained model, and memory beside it and the unseen samples."
        if "retrained" in ctx.models
        else "Memory is judged beside unseen samples; no retrained model was given."
    )
    return said


def why_unmatched(ctx: AuditContext) -> str:
    if "unseen" not in ctx.sets:
        return "There are no unseen samples to compare forget samples with."
    return f"There is no unseen sample of {classes(ctx, np.unique(ctx.labels['forget']).tolist())} to compare forget samples with."


def classes(ctx: AuditContext, classes: list[int]) -> str:
    names = ctx.task.class_names
    said = [names[c] if names else str(c) for c in classes[:5]]
    more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
    return f"class {', '.join(said)}{more}"
