"""Gradients of a model that `fully_shard` has cut up, on a mesh of two processes: the updates made of them are those of the
whole model."""

import json
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from hf_unlearn.methods.gradients import clip_, dots
from hf_unlearn.methods.gru import gru_update
from hf_unlearn.methods.hamu import hamu_update
from hf_unlearn.methods.pcgrad import pcgrad_update
from hf_unlearn.training.gradients import NamedGradients, reduce_every_micro_batch


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7, bias=False), nn.Tanh(), nn.Linear(7, 3)).double()


def gradients(model: nn.Module, rows: slice) -> list[torch.Tensor]:
    model.zero_grad()
    loss(model, rows).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def loss(model: nn.Module, rows: slice) -> torch.Tensor:
    """A mean over the rows, which the processes share out among them if the model is sharded."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 5, generator=generator, dtype=torch.float64)[rows]
    labels = torch.randint(3, (24,), generator=generator)[rows]
    if isinstance(next(model.parameters()), DTensor):
        inputs, labels = (x.chunk(2)[torch.distributed.get_rank()] for x in (inputs, labels))
    return nn.functional.cross_entropy(model(inputs), labels)


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    assert torch.distributed.get_world_size() == 2
    mesh = init_device_mesh("cpu", (2,))
    whole, sharded = network(), network()
    fully_shard(sharded, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float64))
    expected, found = ([gradients(m, rows) for rows in (slice(0, 12), slice(12, 24))] for m in (whole, sharded))
    assert all(isinstance(tensor, DTensor) for gradient in found for tensor in gradient)

    errors = {}

    def compare(name: str, a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
        assert all(isinstance(tensor, DTensor) for tensor in a)
        errors[name] = max((x.full_tensor() - y).abs().max().item() for x, y in zip(a, b, strict=True))

    errors["dots"] = (dots(*found) - dots(*expected)).abs().max().item()
    for gradient in (*found, *expected):
        clip_(gradient, 0.1)
    compare("clipped", found[0], expected[0])
    assert abs(dots(expected[0], expected[0]).sum().sqrt() - 0.1) < 1e-12
    for variant in ("q", "u"):
        for groups in (None, [[0, 1], [2], [3, 4]], [[0, 1, 2, 3, 4]]):
            how = {"lr": 0.1, "ratio": 0.5, "variant": variant, "groups": groups, "quota_scale": "relative"}
            (a, hard), (b, reference) = hamu_update(*found, **how), hamu_update(*expected, **how)
            compare(f"hamu {variant} {groups}", a, b)
            assert hard.branches == reference.branches and abs(hard.kappa - reference.kappa) < 1e-15
    # Two named losses over two micro-batches, where the Trainer does not sync the first.
    parameters, named = list(sharded.parameters()), NamedGradients(max_norm=0.0)
    for micro in range(2):
        sharded.set_requires_gradient_sync(micro == 1)
        reduce_every_micro_batch(sharded)
        for name, start in (("a", 0), ("b", 12)):
            rows = slice(start + 6 * micro, start + 6 * micro + 6)
            with named.of(name, parameters):
                loss(sharded, rows).backward()
    for name, start in (("a", 0), ("b", 12)):
        halves = [gradients(whole, slice(start + 6 * micro, start + 6 * micro + 6)) for micro in range(2)]
        compare(f"accumulated {name}", named.by_name[name], [x + y for x, y in zip(*halves, strict=True)])
    same, hard = hamu_update(found[0], found[0], lr=0.1, ratio=0.5, quota_scale="relative")
    assert hard.unavoidable and hard.branches["collinear"] == 5
    compare("parallel", same, [0.05 * g for g in expected[0]])
    compare("pcgrad", pcgrad_update(*found), pcgrad_update(*expected))
    compare("gru", gru_update(*found), gru_update(*expected))
    if torch.distributed.get_rank() == 0:
        (folder / "errors.json").write_text(json.dumps(errors))
