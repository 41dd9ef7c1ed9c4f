"""Which operator reads what, found by one forward pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UnlearningError
from ..models.kinds import embedding_of
from ..models.modes import evaluating
from .plan import BY_HAND, LISTS, OPERATORS, Activation, LinearMap, Node, Operator


@dataclass(eq=False)
class _Call:
    """One call of a module: the activation it read, and the one it gave."""

    name: str
    module: nn.Module
    read: Activation | None
    shape: tuple[int, ...]  # of what it read
    given: Activation | None = None
    output: Tensor | None = None

    @property
    def begin(self) -> Node:
        """Where the data comes into an operator of the flow."""
        return cast(Activation, self.read)[0]

    @property
    def end(self) -> Node:
        """Where it comes out."""
        return cast(Activation, self.given)[0]


class Untracked(UnlearningError):
    pass


class Flow:
    """The recorded forward pass."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor]):
        self.model, self.notes = model, []
        self.calls: dict[str, list[_Call]] = {}
        with _frozen(model), evaluating(model), torch.enable_grad():
            self.logits = self._record(inputs)
        if self.logits.ndim != 2:
            raise UnlearningError(
                f"{type(model).__name__} gives logits of {self.logits.ndim} dimensions; expected a classifier's, [n, classes]."
            )
        self.notes += [
            f"{name} projects queries, keys and values by itself, which is passed over: what reads its output is edited."
            for name, module in model.named_modules()
            if isinstance(module, nn.MultiheadAttention)
        ]
        nodes = _nodes(self.logits.grad_fn)
        self.consumers: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in nodes:
            for producer in _producers(node):
                self.consumers[producer].append(node)
        self.place, self.cuts = self._order()
        self.owner: dict[Node, _Call] = {}  # of a node inside an operator
        self.operators: list[_Call] = []  # that can be edited
        inside = [
            c for calls in self.calls.values() for c in calls if isinstance(c.module, OPERATORS) and self._is_inside(c)
        ]
        self.linear = sorted(inside, key=lambda call: self.place[call.end])
        for call in self.linear:
            self._take(call)
        if passed := [call.name for call in self.linear if call not in self.operators]:
            several = f" and {len(passed) - 1} more are" if len(passed) > 1 else " is"
            self.notes.append(
                f"{passed[0]}{several} passed over (grouped convolutions, which mix no channels, or gates): the operators behind are "
                "edited in their place."
            )

    def _record(self, inputs: dict[str, Tensor]) -> Tensor:
        def before(name: str):
            def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
                tensor = _first_tensor((*args, *kwargs.values()))
                shape = () if tensor is None else tuple(tensor.shape)
                self.calls.setdefault(name, []).append(_Call(name, module, _activation(tensor), shape))

            return hook

        def after(name: str):
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                call = next(call for call in reversed(self.calls[name]) if call.given is None)
                call.output = _first_tensor(output)
                call.given = _activation(call.output)

            return hook

        def track(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return output.detach().requires_grad_().clone()

        with ExitStack() as stack:
            tracked = {}
            if "input_ids" not in inputs:
                tracked = {k: v.clone().requires_grad_().clone() for k, v in inputs.items() if v.is_floating_point()}
            else:
                stack.enter_context(removed(embedding_of(self.model).register_forward_hook(track)))
            for name, module in self.model.named_modules():
                stack.enter_context(removed(module.register_forward_pre_hook(before(name), with_kwargs=True)))
                stack.enter_context(removed(module.register_forward_hook(after(name))))
            logits = self.model(**(inputs | tracked)).logits
        if logits.grad_fn is None:
            raise Untracked(
                f"Autograd does not follow the data of {type(self.model).__name__} from input to logits; {BY_HAND}."
            )
        return logits

    def _order(self) -> tuple[dict[Node, int], list[Node]]:
        """The place of every node in the flow from input to logits, and the nodes through which everything goes."""
        waiting = {node: len(consumers) for node, consumers in self.consumers.items()}
        order, cuts, ready, met = [], [], [self.logits.grad_fn], 1
        while ready:
            node = ready.pop()
            if met == len(order) + 1:  # no other node that was met is still to come: nothing goes around this one
                cuts.append(node)
            order.append(node)
            for producer in _producers(node):
                met += waiting[producer] == len(self.consumers[producer])
                waiting[producer] -= 1
                if waiting[producer] == 0:
                    ready.append(producer)
        return {node: len(order) - i for i, node in enumerate(order)}, cuts[::-1]

    def _is_inside(self, call: _Call) -> bool:
        return all(end is not None and end[0] in self.place for end in (call.read, call.given))

    def _take(self, call: _Call) -> None:
        """Note which nodes are this operator's. The data is followed through others as through any function: grouped
        convolutions, which mix no channels, and gates (squeeze and excitation), which read the mean of a map to scale it."""
        if isinstance(call.module, nn.Conv2d):
            is_gate = call.shape[2:] == (1, 1) and call.begin not in self.cuts
            if call.module.groups > 1 or is_gate:
                return
        self.operators.append(call)
        todo = [call.end]
        while todo:
            node = todo.pop()
            if node is not call.begin and node not in self.owner:
                self.owner[node] = call
                todo += _producers(node)

    def readers(self, cut: Node) -> list[_Call]:
        """The operators that the data meets first behind a cut, before the next cut that has an operator in front of it."""
        behind = [call for call in self.operators if self.place[call.begin] >= self.place[cut]]
        first = min((self.place[call.end] for call in behind), default=0)
        end = next((self.place[node] for node in self.cuts if self.place[node] >= first), 0)
        found, seen, todo = [], set(), [cut]
        while todo:
            for node in self.consumers[todo.pop()]:
                if node in seen or self.place[node] > end:
                    continue
                seen.add(node)
                if node in self.owner:
                    found.append(self.owner[node])
                else:
                    todo.append(node)
        return sorted(set(found), key=self.operators.index)

    def readings(self, calls: list[_Call]) -> Iterator[tuple[list[Operator], bool]]:
        """Those of them that read the same activation together, and whether they give the logits."""
        groups: dict[Activation | None, list[_Call]] = {}
        for call in calls:
            if len(self.calls[call.name]) > 1:
                raise UnlearningError(
                    f"{call.name} is used {len(self.calls[call.name])} times in one forward pass, so an edit for one stage would "
                    f"change the others; {BY_HAND}, without this one."
                )
            groups.setdefault(call.read, []).append(call)
        for group in groups.values():
            width = self.logits.shape[-1]
            is_head = all(cast(Tensor, c.output).shape[-1] == width and not self.readers(c.end) for c in group)
            yield [Operator(call.name, cast(LinearMap, call.module), *self._norm(call)) for call in group], is_head

    def _norm(self, call: _Call) -> tuple[_BatchNorm | None, str | None]:
        for name, (other, *more) in self.calls.items():
            if isinstance(other.module, _BatchNorm) and other.read == call.given and other.module.affine:
                alone = not more and len(self.consumers[call.end]) == 1
                return (other.module, name) if alone else (None, None)
        return None, None

    def named(self, names: list[str]) -> list[_Call]:
        known = {call.name: call for call in self.operators}
        for name in names:
            if name not in known:
                raise UnlearningError(
                    f"The stages name {name!r}, which is no linear layer or convolution (without groups) between the input "
                    f"and the logits of {type(self.model).__name__}; expected names such as {', '.join(list(known)[-3:])}."
                )
        return [known[name] for name in names]

    def blocks(self, wanted: int) -> tuple[list[Node], Node]:
        """Where blocks begin, and where the last one ends: all cuts, in the order of the flow.

        The outermost lists of modules are opened until there are as many beginnings as wanted stages, the head counted.
        """
        items = self._outermost("")
        spans = self._spans(items)
        while items and len(self._entries(spans)) + 1 < wanted:
            opened = [inner for item in items for inner in self._opened(item)]
            if opened == items:
                break
            items, spans = opened, self._spans(opened)
        if not items:  # no lists: every operator that a cut lies in front of is a block of its own
            spans = [(call.begin, call.end) for call in self.operators]
        entries = self._entries(spans)
        last = max((end for _, end in spans), key=self.place.__getitem__, default=None)
        behind = last is not None and any(self.place[call.begin] >= self.place[last] for call in self.operators)
        if not (entries or (items and behind)):
            raise UnlearningError(f"No stages are found in {type(self.model).__name__}; {BY_HAND}.")
        if not behind:
            last = entries.pop()  # the classifier is the last item of a list
        return entries, last

    def _outermost(self, prefix: str) -> list[str]:
        """The outermost lists below a module, in the order of the flow; lists of what is not in the flow are left out."""
        found = []
        for name, module in self.model.get_submodule(prefix).named_children():
            name = f"{prefix}.{name}" if prefix else name
            if isinstance(module, LISTS):
                found += [name] if self._span(name) else []
            else:
                found += self._outermost(name)
        return sorted(found, key=lambda name: self.place[self._spans([name])[0][0]])

    def _opened(self, item: str) -> list[str]:
        """What a list holds, or the lists in a module; the item itself if data goes around these."""
        module = self.model.get_submodule(item)
        inner = (
            [f"{item}.{name}" for name, _ in module.named_children()]
            if isinstance(module, LISTS)
            else self._outermost(item)
        )
        inner = [name for name in inner if self._span(name)]
        return inner if inner and all(end in self.cuts for span in self._spans(inner) for end in span) else [item]

    def _span(self, item: str) -> tuple[Node, Node] | None:
        """The nodes at which a module with operators begins and ends; a list is not called, what it holds is."""
        inside = [call for call in self.operators if call.name == item or call.name.startswith(f"{item}.")]
        if not inside:
            return None
        own = self.calls.get(item, [])
        if len(own) == 1 and self._is_inside(own[0]):
            return own[0].begin, own[0].end
        children = [f"{item}.{name}" for name, _ in self.model.get_submodule(item).named_children()]
        spans = self._spans(children)
        if not spans:
            return None
        place = self.place.__getitem__
        return min((b for b, _ in spans), key=place), max((e for _, e in spans), key=place)

    def _spans(self, items: list[str]) -> list[tuple[Node, Node]]:
        return [span for span in map(self._span, items) if span]

    def _entries(self, spans: list[tuple[Node, Node]]) -> list[Node]:
        """Where the spans begin, as far as all data goes through there.

        Not with the input itself; and where all blocks read the same shape, stages end behind a block, not before the first.
        """
        begins = dict.fromkeys(begin for begin, _ in spans if begin in self.cuts)
        behind = self.place[self.linear[0].end]
        entries = sorted((begin for begin in begins if self.place[begin] >= behind), key=self.place.__getitem__)
        first = min((begin for begin, _ in spans), key=self.place.__getitem__)
        if entries and entries[0] is first and len(set(map(self._shape, entries))) == 1:
            return entries[1:]
        return entries

    def _shape(self, node: Node) -> tuple[int, ...]:
        """Of the activation of this node, as the modules that read it have found it."""
        return next(c.shape for calls in self.calls.values() for c in calls if c.read and c.read[0] is node)

    def tokens(self) -> str | None:
        """Which tokens the logits come from, of the last ones through which all data goes."""
        calls = [c for calls in self.calls.values() for c in calls if c.given and c.given[0] in self.cuts]
        calls.sort(key=lambda c: self.place[c.end])
        outputs = [c.output for c in calls if c.output is not None and c.output.ndim == 3]
        outputs = [
            output for output in outputs if output.shape[1] > 1
        ] or outputs  # not the one that a head has pooled
        if not outputs:
            return None
        one = torch.ones_like(self.logits)
        (gradient,) = torch.autograd.grad(self.logits, outputs[-1], one, retain_graph=True)
        read = gradient.abs().sum(dim=2) > 0  # a row for each sample, as texts end at different tokens
        most, is_first = int(read.sum(dim=1).max()), bool(read[:, 0].all())
        if most > 2 or 1 < most == read.shape[1]:
            return "all"
        if is_first:
            return "first"
        at_head = any(len(call.shape) == 3 for call in self.operators[-1:])
        return (
            "last" if at_head else "all"
        )  # or one token that is taken before the head, which cannot be told from here


# ---------------------------------------------------------------------------------------------------------------------
# Autograd's graph


def _nodes(last: Node) -> list[Node]:
    found, todo = {last: None}, [last]
    while todo:
        for producer in _producers(todo.pop()):
            if producer not in found:
                found[producer] = None
                todo.append(producer)
    return list(found)


def _producers(node: Node) -> list[Node]:
    return list(dict.fromkeys(producer for producer, _ in node.next_functions if producer is not None))


def _first_tensor(values: Any) -> Tensor | None:
    if isinstance(values, Tensor):
        return values if values.is_floating_point() else None
    if isinstance(values, dict):
        values = values.values()
    if not isinstance(values, (tuple, list)) and not hasattr(values, "__iter__"):
        return None
    return next((v for v in map(_first_tensor, values) if v is not None), None)


def _activation(tensor: Tensor | None) -> Activation | None:
    return None if tensor is None or tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


@contextmanager
def removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True
