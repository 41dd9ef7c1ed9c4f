"""α beyond the paper (ours): more of it in the head, and less below, where forget samples would be left otherwise."""

import dataclasses
import math

import torch
from torch import Tensor, nn

from .damp_config import HIGHEST, DampConfig
from .edits import Edit, Removal, edits_of, write
from .plan import Plan
from .statistics import Statistics, at_head, collect

LEFT = 0.01  # of the forget samples may still be given a forgotten class
EASED = (1.0, 0.5, 0.0)  # of α below the head
EXAMPLES = 200  # samples of each side that are seen once more, through the edited layers below the head


def fitted(
    model: nn.Module, plan: Plan, removals: list[Removal], sides: tuple[Statistics, ...], config: DampConfig
) -> tuple[list[Removal], tuple[Statistics, ...], float | None, list[str]]:
    """The removals with α as `ease` and `overshoot` have it, what the operators read behind them, the share of forget samples
    that is left, and notes."""
    whole = tuple(at_head(plan, side) for side in sides)
    eases = config.ease and config.alpha is None
    overshoots = config.overshoot and config.alpha is None and config.force_head_alpha is None
    forgotten, tries = list(whole[0].counts), []
    for share in EASED if eases else EASED[:1]:
        tried = [_eased(removal, share) for removal in removals]
        behind = _behind_edits(model, plan, tried, sides, config)
        seen = tuple(at_head(plan, side) for side in behind)
        if overshoots:
            tried = _overshot(tried, [whole, seen], forgotten)
        left = _left(tried, seen[0], forgotten)
        tries.append((tried, behind, left, _explain_coefficients(tried, share)))
        if (left or 0.0) <= LEFT:
            break
    first, best = tries[0], min(tries, key=lambda of: of[2] or 0.0)
    return best if (best[2] or 0.0) <= max(LEFT, (first[2] or 0.0) / 2) else first


def _eased(removal: Removal, share: float) -> Removal:
    return removal if removal.reading.is_head else dataclasses.replace(removal, alpha=share * removal.alpha)


def _overshot(removals: list[Removal], seen: list[tuple[Statistics, ...]], forgotten: list[int]) -> list[Removal]:
    """With the coefficient that the head needs for single samples of both sides, if that is more than it has."""
    found, head = [], -1
    for removal in removals:
        head += removal.reading.is_head
        alpha = removal.alpha
        for operator in removal.reading.operators if removal.reading.is_head and removal.directions.numel() else []:
            whole = Edit(operator, dataclasses.replace(removal, alpha=1.0))
            for pair in seen:
                logits = [whole.logits(side.samples[head].double()) for side in pair]
                forget, retain = ((z, z - without) for z, without in logits)
                alpha = max(alpha, overshoot(forget, retain, forgotten, removal.alpha))
        raised = {"alpha": alpha, "raised_from": removal.alpha} if alpha > removal.alpha else {}
        found.append(dataclasses.replace(removal, **raised))
    return found


def overshoot(
    forget: tuple[Tensor, Tensor], retain: tuple[Tensor, Tensor], forgotten: list[int], least: float
) -> float:
    """The least α, from `least` to 5, that leaves a forgotten class in front for at most 1 % of the forget samples, and above
    the average of the retained classes for at most half of them, which is the margin that unseen samples need (ours).

    Both sides are (ℓ, v), a row for each sample: its logits are ℓ(α) = ℓ − αv. Where no α does that, the one that leaves the
    fewest. Only those α count that change the class of at most 1 % more of the retained samples than `least` does.

    >>> logits, removed = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> overshoot((logits, removed), (logits.flip(1), 0 * removed), [0], least=1.0)
    2.05
    """

    (logits, removed), (retain_logits, retain_removed) = forget, retain
    classes, given = torch.tensor(forgotten), retain_logits.argmax(dim=1)
    retained = [c for c in range(logits.shape[1]) if c not in forgotten]

    def changed(alpha: float) -> float:
        return ((retain_logits - alpha * retain_removed).argmax(dim=1) != given).double().mean().item()

    def remaining(alpha: float) -> tuple[float, float]:
        """The shares of forget samples with a forgotten class in front, and above the average of the retained ones."""
        now = logits - alpha * removed
        above = now[:, forgotten].amax(dim=1) > now[:, retained].mean(dim=1)
        return torch.isin(now.argmax(dim=1), classes).double().mean().item(), above.double().mean().item()

    most, best = changed(least) + 0.01, (math.inf, math.inf, least)
    for alpha in (least, *(i / 20 for i in range(math.ceil(20 * least), round(20 * HIGHEST) + 1))):
        if changed(alpha) > most:
            continue
        left, above = remaining(alpha)
        if left <= LEFT and above <= 0.5:
            return alpha
        best = min(best, (left, above, alpha))
    return best[2]


def _behind_edits(
    model: nn.Module, plan: Plan, removals: list[Removal], sides: tuple[Statistics, ...], config: DampConfig
) -> tuple[Statistics, ...]:
    """The same of a few samples, once the layers below the head are edited: they change what those behind them read."""
    edits = [edit for removal in removals if not removal.reading.is_head for edit in edits_of(removal)]
    if not edits:
        return sides
    about = {"conv": config.conv, "pooling": config.pooling, "samples": EXAMPLES}
    changes = [change for edit in edits for change in edit.changes()]
    kept = [tensor.detach().clone() for tensor, _ in changes]
    try:
        write(changes)
        return tuple(collect(model, plan, side.batches(), **about) for side in sides)
    finally:
        write([(tensor, values) for (tensor, _), values in zip(changes, kept, strict=True)])


def _left(removals: list[Removal], seen: Statistics, forgotten: list[int]) -> float | None:
    """The share of forget samples that are given a forgotten class behind all edits, among those seen once more."""
    heads = [removal for removal in removals if removal.reading.is_head]
    shares = [
        torch.isin(Edit(o, removal).logits(z.double())[1].argmax(dim=1), torch.tensor(forgotten))
        .double()
        .mean()
        .item()
        for removal, z in zip(heads, seen.samples, strict=True)
        for o in removal.reading.operators
        if len(z)
    ]
    return max(shares, default=None)


def _explain_coefficients(removals: list[Removal], share: float) -> list[str]:
    notes = [
        f"The coefficient of the head is {r.alpha:.2f} and not {r.raised_from:.2f} (ours): with that more than 1 % of the forget "
        "samples would still be given a forgotten class."
        for r in removals
        if r.raised_from is not None
    ]
    if share < 1:
        notes.append(
            f"The coefficients below the head are {share:g} of what depth and probe give (ours): with more of that, over 1 % of the "
            "forget samples would still be given a forgotten class, as the head cannot undo it."
        )
    return notes
