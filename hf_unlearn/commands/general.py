"""General ability of a language model, by the tasks of lm-eval (extra `lm-eval`)."""

from importlib.util import find_spec
from typing import Any

from .. import models
from ..errors import UnlearningError


def check_general() -> None:
    """Refuse where lm-eval, or the Hub that its tasks come from, is missing."""
    if find_spec("lm_eval") is None:
        raise UnlearningError(
            "--suite lm-eval needs the package lm-eval, which is not installed: pip install 'hf_unlearn[lm-eval]'."
        )
    if not models.hub_is_reachable():
        raise UnlearningError(
            "--suite lm-eval reads its tasks from the Hub, which cannot be reached: check the connection, or take --suite tofu "
            "with --data."
        )


def evaluate_general(
    model: Any, tokenizer: Any, tasks: list[str], limit: int | None, batch_size: int
) -> dict[str, dict[str, float]]:
    """task -> metric -> value."""
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]  (an extra)
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=tasks,
        limit=limit,
        bootstrap_iters=0,  # without standard errors
        log_samples=False,
    )
    return {
        task: {
            name.split(",")[0]: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and "stderr" not in name
        }
        for task, values in (found or {"results": {}})["results"].items()
    }
