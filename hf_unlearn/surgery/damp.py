"""DAMP: class unlearning by depth-aware removal of forget-specific directions (2026)."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from accelerate.utils import extract_model_from_parallel, gather_object
from peft import LoraConfig
from torch import Tensor, nn

from ..errors import UnlearningError
from ..methods.base import CLASSIFICATION, Method, MethodInfo, Paper
from .checks import check_operators, check_weights, ready
from .damp_config import DampConfig
from .directions import centre, depth_coefficient, directions_of, forget_directions, remove_directions, residuals
from .edits import Edit, Removal, edits_of, write
from .explain import explain, explain_read, head_test, named, read, row_of, still_given
from .fitting import EXAMPLES, fitted
from .lora import Factors, load_lora, to_lora
from .operators import find_plan
from .plan import Operator, Plan, Reading
from .probe import probe_accuracy
from .statistics import Statistics, at_head, collect

__all__ = [
    "Damp",
    "DampConfig",
    "damp_edit",
    "damp_lora",
    "damp_probe",
    "depth_coefficient",
    "forget_directions",
    "remove_directions",
]

logger = logging.getLogger(__name__)


def damp_edit(
    model: nn.Module,
    forget_loader: Iterable[Mapping],
    retain_loader: Iterable[Mapping],
    *,
    config: DampConfig | None = None,
    stages: int | list[list[str]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Edit a classifier in place so that it forgets the classes of `forget_loader`; the report of what was done.

    One pass over both loaders, nothing is trained. Everything is computed before anything is changed: the statistics of a
    stage are those that an edit from deep to shallow would find, as only deeper stages are edited by then.

    Args:
        forget_loader: batches of samples of the classes to forget, mappings with the model's inputs and `labels`; training
            samples, not augmented. Of several processes each gives its share. A `DataLoader` does, if that is all there is.
        retain_loader: the same of all other classes, a hundred samples of each being plenty.
        stages: instead of the config's.
    """
    report, edits = _edits(model, forget_loader, retain_loader, config or DampConfig(), stages, seed)
    write([change for edit in edits for change in edit.changes()])
    return report


def damp_lora(
    model: nn.Module,
    forget_loader: Iterable[Mapping],
    retain_loader: Iterable[Mapping],
    *,
    config: DampConfig | None = None,
    stages: int | list[list[str]] | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], LoraConfig, Factors]:
    """The edit of `damp_edit` as a LoRA adapter, which leaves the model as it is: the report, and what `get_peft_model` and
    `load_lora` take."""
    report, edits = _edits(model, forget_loader, retain_loader, config or DampConfig(), stages, seed, as_adapter=True)
    factors = {edit.operator.name: edit.lora() for edit in edits}
    return report, to_lora(factors), factors


def damp_probe(
    model: nn.Module,
    forget_loader: Iterable[Mapping],
    retain_loader: Iterable[Mapping],
    *,
    config: DampConfig | None = None,
    stages: int | list[list[str]] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """How well a linear probe tells the forgotten classes from the others, by what the operators of each stage read: of a
    retrained model, to be held beside `still_read` in the report of an edit. Nothing is changed."""
    config, model = config or DampConfig(), extract_model_from_parallel(model, keep_torch_compile=False)
    example, retain_loader = _example(retain_loader, model)
    plan = _plan(model, example, stages, config)
    about = {"conv": config.conv, "pooling": config.pooling, "seed": seed, "samples": EXAMPLES}
    return read(plan, *(collect(model, plan, loader, **about) for loader in (forget_loader, retain_loader)))


def _plan(
    model: nn.Module, example: dict[str, Tensor], stages: int | list[list[str]] | None, config: DampConfig
) -> Plan:
    plan = find_plan(model, example, stages or config.stages, config.readers)
    if config.conv == "unfold":
        plan = dataclasses.replace(plan, readings=[one for reading in plan.readings for one in _by_patch(reading)])
    return plan


def _edits(
    model: nn.Module,
    forget_loader: Iterable[Mapping],
    retain_loader: Iterable[Mapping],
    config: DampConfig,
    stages: int | list[list[str]] | None,
    seed: int,
    as_adapter: bool = False,
) -> tuple[dict[str, Any], list[Edit]]:
    """The report, and the edits that are to be made."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    check_weights(model, "damp")
    example, retain_loader = _example(retain_loader, model)
    plan = _plan(model, example, stages, config)
    check_operators(model, plan, as_adapter)
    about = {"conv": config.conv, "pooling": config.pooling, "seed": seed}
    about["samples"] = config.probe_samples // 2 if config.alpha is None else 0
    pair = (forget_loader, retain_loader)
    forget, retain = (collect(model, plan, loader, examples=EXAMPLES, **about) for loader in pair)
    _check_classes(forget, retain, config)

    accuracies = _probe(forget, retain, config)
    alphas = [_alpha(*pair, plan.stages, config) for pair in zip(plan.readings, accuracies, strict=True)]
    removals, notes = _removals(plan, alphas, forget, retain, config, as_adapter)
    removals, behind, left, why = fitted(model, plan, removals, (forget, retain), config)
    notes += why
    head = head_test(removals, at_head(plan, forget), at_head(plan, behind[0]))
    edits = [edits_of(removal) for removal in removals]
    rows = [
        row_of(removal, accuracy, config.tau, [edit.verify(mu, means, config.rcond) for edit in of_reading])
        for removal, accuracy, of_reading, mu, means in zip(
            removals, accuracies, edits, forget.means, retain.means, strict=True
        )
    ]
    still_read = {"original": read(plan, forget, retain), "edited": read(plan, *behind)}
    notes = [
        *explain_read(**still_read),
        *plan.notes,
        *notes,
        *explain(rows, head, left, {*forget.counts, *retain.counts}, removals, config.tau),
    ]
    for note in notes:
        logger.warning(note)
    report = {
        "still_read": still_read,
        "stages": plan.stages,
        "forget_classes": {str(c): n for c, n in forget.counts.items()},
        "retain_classes": {str(c): n for c, n in retain.counts.items()},
        "readings": rows,
        "head": head,
        "left": left,
        "notes": notes,
    }
    return report, [edit for of_reading in edits for edit in of_reading]


def _probe(forget: Statistics, retain: Statistics, config: DampConfig) -> list[float | None]:
    """a_ℓ of every reading; None where α is given."""
    if config.alpha is not None:
        return [None] * len(forget.means)
    n_f, n_r = (sum(side.counts.values()) for side in (forget, retain))
    share = 0.5 if config.balanced else n_f / (n_f + n_r)
    pairs = zip(forget.samples, retain.samples, strict=True)
    return [probe_accuracy(*pair, share, config.probe) for pair in pairs]


def _alpha(reading: Reading, accuracy: float | None, stages: int, config: DampConfig) -> float:
    if reading.is_head and config.force_head_alpha is not None:
        return config.force_head_alpha
    return depth_coefficient(cast(float, accuracy), reading.stage, stages) if config.alpha is None else config.alpha


def _removals(
    plan: Plan, alphas: list[float], forget: Statistics, retain: Statistics, config: DampConfig, as_adapter: bool
) -> tuple[list[Removal], list[str]]:
    """The removals, and notes. Affine ones only where biases can be changed."""
    holds = [all(_holds_bias(o, as_adapter) for o in reading.operators) for reading in plan.readings]
    if as_adapter:  # PEFT has biases in all layers of an adapter or in none, and merges them into biases only
        holds = [all(holds)] * len(holds)
    without = [reading.operators[0].name for reading, held in zip(plan.readings, holds, strict=True) if not held]
    if config.span == "affine" and without:
        raise UnlearningError(
            f"The affine span changes biases, and there is none behind {without[0]}; expected span='linear', or 'auto', which "
            "leaves such operators to the linear span."
        )

    def remove(span: str) -> list[Removal]:
        found = []
        each = zip(plan.readings, alphas, forget.means, retain.means, holds, strict=True)
        for reading, alpha, mu, means, held in each:
            span_here = span if held else "linear"
            d, relative = residuals(mu, means, span_here, config.rcond)
            q = directions_of(d, relative, config.tau)
            relative = dict(zip(forget.counts, relative.tolist(), strict=True))
            found.append(Removal(reading, span_here, alpha, q, centre(means, span_here), relative, held))
        return found

    notes, here = [], at_head(plan, forget)
    removals = remove("affine" if config.span == "affine" else "linear")
    if config.span == "auto" and any(holds) and (left := still_given(head_test(removals, here, here))):
        notes.append(
            f"Without the directions outside the linear span (the paper's) the head would still give a forgotten class for "
            f"{named(left)}, so the affine span was used (ours)."
        )
        if without:
            notes.append(f"There is no bias to change behind {', '.join(without)}: edited in the linear span.")
        removals = remove("affine")
    return removals, notes


def _by_patch(reading: Reading) -> list[Reading]:
    """Patches are of one convolution."""
    if any(isinstance(operator.module, nn.Conv2d) for operator in reading.operators):
        return [dataclasses.replace(reading, operators=[operator]) for operator in reading.operators]
    return [reading]


def _holds_bias(operator: Operator, as_adapter: bool) -> bool:
    norm = None if as_adapter else operator.norm
    return operator.module.bias is not None or (norm is not None and norm.track_running_stats)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be edited


def _example(loader: Iterable[Mapping] | None, model: nn.Module) -> tuple[dict[str, Tensor], Iterable[Mapping]]:
    """Inputs of two retained samples, the same in every process, and the loader with nothing taken out of it."""
    loader = () if loader is None else loader
    batches = iter(loader)
    first = next(batches, None)
    if batches is loader:  # it can be read only once
        loader = itertools.chain(() if first is None else [first], batches)
    own = {} if first is None else {name: values[:2].cpu() for name, values in ready(first, model).inputs.items()}
    found = next((example for example in gather_object([own]) if example), None)
    if found is None:
        raise UnlearningError(
            "There are no retained samples; DAMP keeps what the means of the retained classes span: pass samples of them."
        )
    device = next(model.parameters()).device
    return {name: values.to(device) for name, values in found.items()}, loader


def _check_classes(forget: Statistics, retain: Statistics, config: DampConfig) -> None:
    for side, statistics in (("forget", forget), ("retained", retain)):
        if not statistics.counts:
            raise UnlearningError(f"There are no {side} samples; DAMP needs samples of the classes on both sides.")
    if both := sorted(forget.counts.keys() & retain.counts.keys()):
        raise UnlearningError(
            f"There are forget and retained samples of {named(both)}, and DAMP forgets whole classes, as the span of what stays holds "
            "the mean of a part; move all samples of a class to one side, or take rewind, local_teacher or auto."
        )
    if config.alpha is None and (few := min(sum(forget.counts.values()), sum(retain.counts.values()))) < 2:
        raise UnlearningError(
            f"There is {few} sample on one side, and the probe trains on some and is judged on others; pass 2 or more, or set "
            "alpha."
        )


class Damp(Method):
    """For each activation z that enters stage ℓ + 1 of L, with μ_c its mean over class c:

        d_f = μ_f − RR⁺μ_f,   R = [μ_c of the retained classes],   Q = orth{d_f / ‖d_f‖}
        α_ℓ = min{1, max{0, 2a_ℓ − 1}} · ℓ/L,   a_ℓ: accuracy of a linear probe, forget against retain
        W ← W(I − α_ℓQQᵀ)   for the operators W that read z

    Means of retained classes are mapped as before. Where the head still gives the forgotten class, the affine span is used
    (ours): R and μ_f are taken from the mean of R's columns, and biases make up for it.
    """

    info = MethodInfo(
        name="damp",
        kind="surgery",
        summary="takes the directions that only the forgotten classes have out of the weights, in one shot",
        needs=("forget", "retain"),
        applies_to=CLASSIFICATION,
        cost=0.3,
        paper=Paper(
            title="Class Unlearning via Depth-Aware Removal of Forget-Specific Directions",
            arxiv="2604.15166",
            bibtex="@article{hatami2026class,\n  title={Class Unlearning via Depth-Aware Removal of Forget-Specific "
            "Directions},\n  author={Hatami, Arman and Aalishah, Romina and Monosov, Ilya E.},\n  "
            "journal={arXiv preprint arXiv:2604.15166},\n  year={2026}\n}",
        ),
    )
    config_class = DampConfig
    config: DampConfig
    whole_classes = True

    def __init__(self, config: DampConfig | None = None):
        super().__init__(config)
        self._report: dict[str, Any] = {}

    def prepare(self, context) -> None:
        self.context = context

    def edit(
        self, model: nn.Module, forget_loader: Iterable[Mapping], retain_loader: Iterable[Mapping]
    ) -> dict[str, Any]:
        return self._done(damp_edit(model, forget_loader, retain_loader, config=self.config, seed=self.context.seed))

    def edit_as_adapter(
        self, model: nn.Module, forget_loader: Iterable[Mapping], retain_loader: Iterable[Mapping]
    ) -> tuple[LoraConfig, Callable]:
        about = {"config": self.config, "seed": self.context.seed}
        report, config, factors = damp_lora(model, forget_loader, retain_loader, **about)
        self._done(report)
        return config, functools.partial(load_lora, factors=factors)

    def _done(self, report: dict[str, Any]) -> dict[str, Any]:
        self._report = report
        self.notes += report["notes"]
        return report

    @property
    def report(self) -> dict[str, Any]:
        return self._report
