"""Copies in float32 of weights that are trained in half precision, so that small steps add up."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

KEY = "masters"  # of the copies in the optimizer's state


Masters = list[tuple[Tensor, Tensor]]  # weights, and the copies of them


def finest(weight: Tensor, master: Tensor) -> Tensor:
    """The copy, but for what something else than the optimizer has changed of the weight."""
    return torch.where(weight == master.to(weight.dtype), master, weight.float())


def keep_masters(optimizer: Optimizer) -> Masters:
    """Let an optimizer step on copies in float32 of its half-precision weights, which are given the rounded copies after each step.

    In bfloat16 a step of less than 1/512 of a weight is lost, as most are at a low learning rate. A weight that something else has
    changed since the last step takes its copy with it. The copies are saved with the state of the optimizer, so that a resumed run
    goes on as if it had not been stopped; in memory they are four bytes a weight, and what the optimizer keeps is in float32 too.
    """
    pairs: Masters = []
    for group in optimizer.param_groups:
        for place, weight in enumerate(group["params"]):
            if torch.finfo(weight.dtype).bits < 32:
                group["params"][place] = master = weight.detach().float().requires_grad_()
                pairs.append((weight, master))
    if not pairs:
        return pairs

    @torch.no_grad()
    def before(*_: Any) -> None:
        for weight, master in pairs:
            master.copy_(finest(weight, master))
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    @torch.no_grad()
    def after(*_: Any) -> None:
        for weight, master in pairs:
            weight.copy_(master)
            master.grad = None

    def saved(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return state | {KEY: [master.detach() for _, master in pairs]}

    @torch.no_grad()
    def loaded(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
        for (_, master), kept in zip(pairs, state[KEY], strict=True):
            master.copy_(kept)
        return {name: value for name, value in state.items() if name != KEY}

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    optimizer.register_state_dict_post_hook(saved)
    optimizer.register_load_state_dict_pre_hook(loaded)
    return pairs
