"""One pass over each set, in which every sample is read once and goes through all models of the audit."""

import contextlib
import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..data.batches import to_model
from ..errors import UnlearningError
from ..methods.local_teacher import similarity
from ..models import adapters
from ..models.modes import evaluating
from ..models.weights import whole
from ..tasks.evaluation import Tally
from .context import AuditContext
from .locality import Locality, Reference, compare_locally


def measure(ctx: AuditContext) -> tuple[dict[str, Locality], str | None]:
    """Fill in `ctx.measured`; gives, for a classifier, where the unlearned model differs from its reference by similarity
    to the forget set, on `retain` and `unseen`, or why that cannot be had.

    The reference is the retrained model, or the original where there is none. Distances to a retrained model are measured
    in the same pass, on the forget set.
    """
    evaluator, device = ctx.evaluator, ctx.evaluator.accelerator.device
    reference = "retrained" if "retrained" in ctx.models else "original"
    order = sorted(
        ctx.models, key=("retrained", "original", "unlearned").index
    )  # each is held against those before it
    gone = torch.as_tensor(np.unique(ctx.labels["forget"]), device=device) if ctx.is_class else None
    forget, forget_sum = [], torch.zeros((), dtype=torch.float64, device=device)
    why, found = None, {}
    ctx.measured = {name: {} for name in ctx.models}
    with contextlib.ExitStack() as stack:
        for model in ctx.models.values():
            stack.enter_context(evaluating(model))
        read = None
        if ctx.task.has_classes:
            read = stack.enter_context(models.reading_features(ctx.models["original"], ctx.num_labels))
        for name, (source, indices) in ctx.sets.items():
            tallies = {model: Tally(evaluator, name, indices) for model in order}
            for positions, batch in evaluator.batches(source, indices, evaluator.shard, name):
                predicted, similarities = {}, {}
                for model in order:
                    ready = to_model(batch, ctx.models[model], device)
                    predicted[model] = evaluator.predict(ctx.models[model], ready)
                    if model == "original" and read:
                        try:
                            features = read(predicted[model]).double()
                        except UnlearningError:
                            read = None
                        else:
                            if name == "forget":
                                forget.append(features)
                                forget_sum = forget_sum + features[ready.weight > 0].sum(dim=0)
                            else:
                                similarities = {"similarity": similarity(features, forget_sum[None])}
                    columns = ctx.task.audit_statistics(predicted[model])
                    if gone is not None:
                        columns["forget_classes"] = predicted[model].double().softmax(dim=-1)[:, gone].sum(dim=-1)
                    if name == "forget" and "retrained" in predicted and model != "retrained":
                        columns |= evaluator.distances(predicted[model], predicted["retrained"], ready)
                    if model == "unlearned" and ctx.task.has_classes:
                        p, q = (predicted[m].double().softmax(dim=-1) for m in (reference, "unlearned"))
                        columns |= similarities | {"total_variation": (p - q).abs().sum(dim=-1) / 2}
                    tallies[model].add(positions, ready, predicted[model], **columns)
            if name == "forget" and read:
                forget_sum = cast(Tensor, evaluator.accelerator.reduce(forget_sum, "sum"))
                tallies["unlearned"].columns["similarity"] = [similarity(torch.cat(forget), forget_sum[None])]
            for model, tally in tallies.items():
                ctx.measured[model][name] = tally.result()
            ctx.labels[name] = ctx.measured["original"][name].labels
            if name != "forget" and read:
                beside, after = (ctx.measured[model][name].signals for model in (reference, "unlearned"))
                own = ctx.measured["unlearned"]["forget"].signals["similarity"]
                found[name] = _locality(beside, after, own, reference)
    if not read:
        why = "locality compares the features that a classifier's linear head reads, and there are none"
    return found, why


def _locality(reference: dict, model: dict, own: np.ndarray, name: Reference) -> Locality:
    differences = {
        "accuracy": reference["correct"] - model["correct"],
        "confidence": reference["confidence"] - model["confidence"],
        "total_variation": model["total_variation"],
    }
    return compare_locally(model["similarity"], differences, forget_similarities=own, reference=name)


@torch.no_grad()
def distance(original: nn.Module, unlearned: nn.Module) -> dict | None:
    """How far the weights have moved, ‖W_un − W_or‖ / ‖W_or‖ for each layer and in total, and whether in the head alone.

    None where the two models do not have the same tensors. The relative distance of a layer that was all zero is None. Of
    two precisions the coarser one is compared: what its rounding alone has moved has not moved.
    """
    before, after = adapters.tensors(original), adapters.tensors(unlearned)
    if before.keys() != after.keys():
        return None
    layers: dict[str, list[float]] = {}
    moved = []
    for key in before:
        tensor, other = before[key](), after[key]()
        if tensor.shape != other.shape:
            return None
        if not tensor.is_floating_point():
            continue
        coarse = max(tensor.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        wide = torch.promote_types(tensor.dtype, torch.float32)
        a, b = tensor.to(coarse).to(wide), other.to(tensor.device).to(coarse).to(wide)
        squares = [float(whole((b - a).square().sum())), float(whole(a.square().sum()))]
        sums = layers.setdefault(key.rpartition(".")[0], [0.0, 0.0])
        sums[0], sums[1] = sums[0] + squares[0], sums[1] + squares[1]
        if squares[0]:
            moved.append(key)

    # Of a model whose network has no name of its own, nothing can be told from the head.
    in_network = {key for key in before if not models.in_head(models.pretrained(original), key)}

    def relative(change: float, size: float) -> float | None:
        return math.sqrt(change / size) if size else None if change else 0.0

    total = [sum(sums[i] for sums in layers.values()) for i in (0, 1)]
    return {
        "total": relative(*total),
        "head_only": bool(moved) and not in_network & set(moved) and bool(in_network),
        "layers": [{"name": name, "relative": relative(*sums)} for name, sums in layers.items()],
    }
