"""CT: kernels are transposed, a transformer gets noise, and no forget sample is read."""

import copy

import pytest
import torch

from hf_unlearn import UnlearningError, UnlearningTrainer, unlearn
from hf_unlearn.methods import CtConfig
from hf_unlearn.methods.ct import transposed
from hf_unlearn.training.context import Context
from tests.samples import arguments, for_trainer, request, weights
from tests.tiny import tiny_resnet, tiny_vit


def prepared(folder, model, config=None, **changes):
    trainer = UnlearningTrainer(
        model, arguments(folder, use_cpu=True, **changes), method=config or CtConfig(), **for_trainer(request())
    )
    trainer.method.prepare(Context(trainer))
    return model


def test_transposed():
    kernels = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    found = transposed(kernels)
    assert all(
        found[o, i, a, b] == kernels[o, i, b, a]
        for o in range(3)
        for i in range(2)
        for a in range(5)
        for b in range(5)
    )
    assert torch.equal(transposed(found), kernels)


def test_every_kernel_and_nothing_else(tmp_path):
    original = tiny_resnet()
    model = prepared(tmp_path, copy.deepcopy(original))
    kernels = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    before, after = weights(original), weights(model)
    for name, tensor in after.items():
        assert torch.equal(tensor, transposed(before[name]) if name in kernels else before[name]), name
    assert any(not torch.equal(after[name], before[name]) for name in kernels)
    prepared(tmp_path, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_kernels_that_are_not_square_stay(tmp_path):
    model = tiny_resnet()
    last = next(
        module for module in model.modules() if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3)
    )
    last.weight = torch.nn.Parameter(last.weight[..., 1:2, :].detach().clone())
    last.kernel_size, last.padding = (1, 3), (0, 1)
    before = last.weight.detach().clone()
    prepared(tmp_path, model)
    assert torch.equal(last.weight, before)


def test_without_kernels(tmp_path):
    model = tiny_resnet()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.requires_grad_(False)
    before = weights(model)
    with pytest.raises(
        UnlearningError, match="ct transposes the kernels of convolutions, and the model has none that is"
    ):
        prepared(tmp_path, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_a_transformer_gets_noise(tmp_path):
    found = []
    for seed, sigma in ((0, 0.02), (0, 0.02), (1, 0.02), (0, 0.2), (0, 0.0)):
        model = prepared(tmp_path, tiny_vit(), CtConfig(sigma=sigma), seed=seed)
        before = dict(tiny_vit().named_parameters())
        found.append(torch.cat([(p - before[name]).detach().flatten() for name, p in model.named_parameters()]))
    first, again, other, wide, none = found
    assert torch.equal(first, again) and not torch.equal(first, other) and not none.any()
    assert first.mean().abs() < 1e-3 and first.std() == pytest.approx(0.02, rel=0.05)
    assert torch.allclose(wide, 10 * first, atol=1e-5)


def test_never_reads_a_forget_sample(tmp_path, unlooked):
    data = request()
    data["forget"] = data["forget"].map(lambda row: {"pixel_values": row["pixel_values"] * float("nan")})
    model = unlearn(tiny_resnet(), **data, method="ct", args=arguments(tmp_path, measure=False, max_steps=2)).model
    assert all(tensor.isfinite().all() for tensor in weights(model).values())


def test_bad_values():
    with pytest.raises(UnlearningError, match=r"^ct: sigma is -1; expected a standard deviation of 0 or more\.$"):
        CtConfig(sigma=-1)


def test_the_contests_values():
    expected = {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 5e-4, "learning_rate": 1e-3}
    expected |= {"num_train_epochs": 3, "lr_scheduler_type": "cosine"}
    assert CtConfig.paper().arguments.items() >= expected.items() and CtConfig.paper().sigma == 0.02
