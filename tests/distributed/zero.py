"""Whole runs under DeepSpeed's ZeRO of stages 2 and 3, in two processes on CPUs: trained, measured, saved and resumed; and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from hf_unlearn import UnlearningError, UnlearningResult
from hf_unlearn.training.trainer import UnlearningTrainer
from tests.runs import distance, make_trainer, weights

ZERO = {"zero_optimization": {"stage": 2}}
THREE = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}  # or small tensors stay whole
STEPS = {"save_strategy": "steps", "save_steps": 1}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # method, model, settings
    "lotus": ("lotus", "vit", STEPS),
    "scrub": ("scrub", "vit", {"accumulation": 2, "batch": 2}),
    "npo": ("npo", "llama", {}),
    "adapter": ("grad_diff", "llama", {"lora": True}),
    "lotus-3": ("lotus", "vit", STEPS | {"zero": THREE}),
    "scrub-3": ("scrub", "vit", {"accumulation": 2, "batch": 2, "zero": THREE}),
    "npo-3": ("npo", "llama", {"zero": THREE}),
    "adapter-3": ("grad_diff", "llama", {"lora": True, "zero": THREE}),
}
REFUSED = {
    "hamu": "hamu makes a step of several gradients, which DeepSpeed's engine does not give back; expected DDP or FSDP2",
    "ssd": "ssd edits the weights once",
}


def made(method: str, family: str, folder: Path, zero: dict[str, Any] = ZERO, **settings: Any) -> UnlearningTrainer:
    trainer = make_trainer(method, family, folder, **{"batch": 4, "num_train_epochs": 1} | settings, deepspeed=zero)
    assert trainer.is_deepspeed_enabled and trainer.accelerator.num_processes == 2
    return trainer


def main(folder: Path) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}  # the latter as its launcher has it
    import deepspeed.comm.torch as communication

    communication.build_shm_op = lambda: None  # which would be compiled first, and is not needed
    for method, message in REFUSED.items():
        with pytest.raises(UnlearningError, match=message):
            made(method, "vit", folder / method)
    with pytest.raises(
        UnlearningError,
        match="l1_sparse adds the norm of all weights to its loss, and ZeRO stage 3 cuts the weights up",
    ):
        made("l1_sparse", "vit", folder / "three", THREE)
    metrics = {}
    for name, (method, family, settings) in CASES.items():
        trainer = made(method, family, folder / name, **settings)
        trainer.train()
        assert isinstance(trainer.args.hf_deepspeed_config, HfTrainerDeepSpeedConfig)
        metrics[name] = trainer.metrics
        if trainer.is_world_process_zero():
            save_file(weights(trainer.model), folder / f"{name}.safetensors")
        if method == "lotus":
            result = UnlearningResult(trainer.model, trainer, trainer.metrics, trainer.runtime)
            result.save(folder / f"saved-{name}")
            assert result.compare(folder / name / "_unlearn" / "original")["original"]["jsd"] == 0
            again = made(method, family, folder / name, **settings)
            again.train(resume_from_checkpoint=str(folder / name / "checkpoint-1"))
            assert distance(weights(again.model), weights(trainer.model)) < 1e-6
    (folder / f"found-{torch.distributed.get_rank()}.json").write_text(json.dumps(metrics))
