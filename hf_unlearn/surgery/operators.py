"""Which operators read which activation: the stages of a network, found by the flow of its data.

One forward pass is recorded with the weights frozen and the input tracked, so that autograd's graph holds exactly what lies
between the input and the logits. A *cut* is a node of that graph through which everything goes, such as the sum at the end
of a residual block. Where the blocks of the network begin is read off its lists of modules (`nn.ModuleList`,
`nn.Sequential`); the operators of a stage are those that the data meets first behind such a cut. No name and no
architecture is known here.
"""

import itertools
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .. import models
from ..errors import UnlearningError
from ..models.modes import evaluating
from ..models.timm import timm_model_of
from .plan import OPERATORS, LinearMap, Operator, Plan, Reading
from .tracing import Flow, Untracked, removed

IMAGE_SIZE = 224


def find_plan(
    model: nn.Module, inputs: dict[str, Tensor], stages: int | list[list[str]] = 5, readers: str = "next"
) -> Plan:
    """The operators that read the activation of each stage.

    Args:
        inputs: of one sample or more, without labels; nothing is learned from them but the way they take.
        stages: into how many stages the network is cut, if it has so many cuts, evenly by depth. Or, by hand, for each stage
            the names of the operators that read its activation.
        readers: `next`: the operators that the data meets first behind the stage; `all_residual`: also those that read
            the sum of later blocks and half-blocks, up to the next stage.
    """
    if readers not in ("next", "all_residual"):
        raise UnlearningError(f"readers is {readers!r}; expected next or all_residual.")
    if not isinstance(stages, int):
        return _by_hand(model, inputs, stages)
    if stages < 1:
        raise UnlearningError(f"stages is {stages}; expected 1 or more.")
    flow = Flow(model, inputs)
    entries, exit_ = flow.blocks(stages)
    if len(entries) >= stages:
        depth = len(entries) + 1
        entries = [entries[round(depth * k / stages) - 1] for k in range(1, stages)]
    readings = []
    for stage, entry in enumerate(entries, 1):
        found = flow.readers(entry)
        if readers == "all_residual":
            end = flow.place[entries[stage]] if stage < len(entries) else flow.place[exit_]
            for cut in flow.cuts:
                if flow.place[entry] < flow.place[cut] < end:
                    more = (call for call in flow.readers(cut) if flow.place[call.begin] < end)
                    found += [call for call in more if call not in found]
        readings += [Reading(stage, *about) for about in flow.readings(found)]
    head = [call for call in flow.operators if flow.place[call.begin] >= flow.place[exit_]]
    readings += [Reading(len(entries) + 1, *about) for about in flow.readings(head)]
    return Plan(readings, len(entries) + 1, flow.tokens(), flow.notes)


def _by_hand(model: nn.Module, inputs: dict[str, Tensor], stages: list[list[str]]) -> Plan:
    names = [name for stage in stages for name in stage]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UnlearningError(f"The stages name {twice[0]!r} twice; expected every operator in one stage.")
    try:
        flow = Flow(model, inputs)
    except Untracked:
        return _by_tensors(model, inputs, stages)
    calls = [flow.named(stage) for stage in stages]
    _check_order([[flow.place[call.begin] for call in stage] for stage in calls])
    readings = [Reading(stage, *about) for stage, named in enumerate(calls, 1) for about in flow.readings(named)]
    return Plan(readings, len(stages), flow.tokens(), flow.notes)


def _check_order(places: list[list[int]]) -> None:
    """Of the operators of each stage, in the flow of the data."""
    if any(min(after) < min(before) for before, after in itertools.pairwise(places)):
        raise UnlearningError(
            "The stages are not in the order of the data; expected the one nearest to the input first."
        )


@torch.no_grad()
def _by_tensors(model: nn.Module, inputs: dict[str, Tensor], stages: list[list[str]]) -> Plan:
    """The named operators, by the tensors that they are called with, where autograd does not follow the data."""
    modules, read, given = dict(model.named_modules()), {}, {}
    operators: dict[str, LinearMap] = {}
    with ExitStack() as stack:
        for name in (name for stage in stages for name in stage):
            if not isinstance(module := modules.get(name), OPERATORS):
                raise UnlearningError(
                    f"The stages name {name!r}, which is no linear layer or convolution of the model."
                )

            if isinstance(module, nn.Conv2d) and module.groups > 1:
                raise UnlearningError(f"The stages name {name!r}, a grouped convolution, which mixes no channels.")

            def hook(_: nn.Module, args: tuple, output: Tensor, name: str = name) -> None:
                if name in read:
                    raise UnlearningError(
                        f"{name} is used more than once in one forward pass, so an edit for one stage would change the others; "
                        "give the stages without it."
                    )
                read[name], given[name] = args[0], output

            stack.enter_context(removed(module.register_forward_hook(hook)))
            operators[name] = module
        stack.enter_context(evaluating(model))
        logits = model(**inputs).logits
    readings, tokens, met = [], "all", list(read)
    if missing := [name for stage in stages for name in stage if name not in read]:
        raise UnlearningError(f"The stages name {missing[0]!r}, which is not used in a forward pass.")
    _check_order([[met.index(name) for name in stage] for stage in stages])
    for number, stage in enumerate(stages, 1):
        groups: dict[int, list[str]] = {}
        for name in stage:
            groups.setdefault(id(read[name]), []).append(name)
        for group in groups.values():
            is_head = number == len(stages) and all(given[name].shape[-1] == logits.shape[-1] for name in group)
            tokens = "last" if is_head and read[group[0]].ndim == 3 else tokens
            readings.append(Reading(number, [Operator(name, operators[name]) for name in group], is_head))
    return Plan(readings, len(stages), tokens)


def example_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """A random sample of the kind that the model takes."""
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "input_ids":
        ids = torch.randint(model.config.vocab_size, (1, 16), generator=generator)
        end = getattr(model.config, "eos_token_id", None)
        if isinstance(end, int) and end < model.config.vocab_size:
            ids[:, -1] = end  # some heads read what stands at the end
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.model_type == "timm_wrapper":
        size = timm_model_of(model).pretrained_cfg["input_size"][1:]
    else:
        config = getattr(model.config, "vision_config", model.config)
        size = getattr(config, "image_size", IMAGE_SIZE)  # a convolutional network need not say
    size = (size, size) if isinstance(size, int) else size
    return {
        "pixel_values": torch.randn(1, models.image_channels(model) or 3, *size, generator=generator).to(model.dtype)
    }
