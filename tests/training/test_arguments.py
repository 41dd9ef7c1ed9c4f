"""Training arguments: what is given is taken as transformers takes it, has an effect, or is refused in one sentence."""

import numpy as np
import pytest
from peft import LoraConfig

from hf_unlearn import UnlearningArguments, UnlearningError, unlearn
from hf_unlearn.training.checks import check_values
from tests.samples import request, same_bits, weights
from tests.tiny import tiny_vit


def made(**changes):
    return UnlearningArguments(output_dir="out", report_to="none", **changes)


@pytest.mark.parametrize("fsdp", [None, False, True, "", "full_shard auto_wrap", ["full_shard"]])
def test_fsdp_as_transformers_takes_it(fsdp):
    args = made(fsdp=fsdp, fsdp_config={"version": 2} if fsdp else None)
    check_values(args)
    assert bool(args.fsdp) == bool(fsdp)


def test_fsdp_that_is_neither():
    with pytest.raises(UnlearningError, match="fsdp is 3; expected true or false, or text"):
        made(fsdp=3)


def test_flags_of_numpy():
    assert made(bf16=np.False_).bf16 is False


def test_a_split_seed_below_zero():
    with pytest.raises(UnlearningError, match="split_seed is -1; expected 0 or more"):
        check_values(made(split_seed=-1))


def refused(message, method="finetune", data=None, peft_config=None, **changes):
    """Before the first step."""
    model = tiny_vit()
    before = weights(model)
    with pytest.raises(UnlearningError, match=message) as caught:
        args = made(**{"learning_rate": 1e-3, "per_device_train_batch_size": 8, "disable_tqdm": True} | changes)
        unlearn(model, **data or request(), method=method, args=args, peft_config=peft_config)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert same_bits(before, weights(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}},
            "has no arguments; leave it out",
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"num_cycles": 2}},
            "'constant_with_warmup' has no arguments",
        ),
        ({"lr_scheduler_type": "constant", "warmup_steps": 2}, "the schedule is constant, which has no warm-up"),
        ({"optim_target_modules": ["q_proj"]}, "which only GaLore and APOLLO optimizers read"),
        ({"retain_size": 30}, "retain_size is 30, and there are 24 retained samples; .* leave it out"),
        (
            {"load_best_model_at_end": True, "save_strategy": "no"},
            "load_best_model_at_end is True, which has no effect",
        ),
        (
            {"metric_for_best_model": "forget_acuracy", "eval_strategy": "epoch"},
            "metric_for_best_model is 'forget_acuracy'; expected one of .*forget_accuracy",
        ),
    ],
)
def test_settings_that_would_be_ignored(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    refused(message, **changes)
    assert list(tmp_path.rglob("*")) == []


def test_an_adapter_that_is_scaled_to_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = LoraConfig(target_modules=["q_proj"], lora_alpha=8, alpha_pattern={"q_proj": 0})
    refused("has an alpha of 0", peft_config=config)
