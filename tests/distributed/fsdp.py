"""Whole runs of models that FSDP2 cuts up over two processes: trained, measured, saved, resumed, audited, compared and merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from hf_unlearn import UnlearningError, UnlearningResult
from hf_unlearn.hub import prepare, verify
from hf_unlearn.training.trainer import UnlearningTrainer
from recipes.experiments.communication import SHARDED, shard_on_cpus
from tests.runs import distance, make_trainer

STEPS = {"save_strategy": "steps", "save_steps": 1}
CASES = {  # method, model, adapter, settings
    "lotus": ("lotus", "vit", None, STEPS),
    "hamu": ("hamu", "vit", None, {}),
    "npo": ("npo", "llama", None, {}),
    "rmu": ("rmu", "llama", None, {}),
    "grad_diff": ("grad_diff", "llama", True, {}),
}
REFUSED = {"ssd": "edits whole weights", "orthograd": "takes gradients of single samples"}


def made(method: str, family: str, folder: Path, **settings) -> UnlearningTrainer:
    settings = {"batch": 4, "num_train_epochs": 1, "dtype": "float64"} | settings
    trainer = make_trainer(method, family, folder, **settings, **SHARDED)
    assert trainer.accelerator.is_fsdp2 and trainer.accelerator.num_processes == 2
    return trainer


def whole(trainer: UnlearningTrainer) -> dict[str, torch.Tensor]:
    return trainer.sharding.whole_weights(trainer.model)


def resumed(folder: Path, expected: dict[str, torch.Tensor]) -> float:
    """How far a run ends from where it did, if it goes on from its first checkpoint; of the first process, which has weights.

    Not the same bits: what is gathered lies elsewhere, and kernels then add in another order.
    """
    again = made("lotus", "vit", folder, **STEPS)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    weights = whole(again)
    return distance(weights, expected) if expected else 0.0


def of_lotus(result: UnlearningResult, folder: Path) -> dict[str, Any]:
    """A release with an audit; and the run goes on from checkpoints of both kinds."""
    report = result.audit()
    found: dict[str, Any] = {"release": verify(prepare(result, folder / "release", report=report)).ok}
    found["distance"] = report.content["distance"]["total"]
    found["whole"] = resumed(folder / "lotus", whole(result.trainer))
    SHARDED["fsdp_config"]["state_dict_type"] = "SHARDED_STATE_DICT"
    pieces = made("lotus", "vit", folder / "pieces", **STEPS)
    pieces.train()
    found["pieces"] = resumed(folder / "pieces", whole(pieces))
    pieces.save_model(folder / "saved")
    SHARDED["fsdp_config"]["state_dict_type"] = "FULL_STATE_DICT"
    return found


def of_npo(result: UnlearningResult, folder: Path) -> dict[str, Any]:
    rows = result.compare(folder / "npo" / "_unlearn" / "original")
    return {name: row["jsd"] for name, row in rows.items()}


def of_grad_diff(result: UnlearningResult, folder: Path) -> dict[str, Any]:
    """Its adapter, as it is and merged."""
    result.save(folder / "adapter")
    before = result.audit().content
    result.merge()
    result.save(folder / "merged")
    after = result.audit().content
    return {"same weights": before["weights"] == after["weights"], "distance": before["distance"]["total"]}


def main(folder: Path) -> None:
    shard_on_cpus()
    for method, why in REFUSED.items():
        with pytest.raises(UnlearningError, match=f"{method} {why}, and the weights are sharded"):
            made(method, "vit", folder / method)
    found = {}
    for name, (method, family, lora, settings) in CASES.items():
        trainer = made(method, family, folder / name, lora=lora, **settings)
        trainer.train()
        assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
        weights = whole(trainer)
        result = UnlearningResult(trainer.model, trainer, trainer.metrics, trainer.runtime)
        more = globals().get(f"of_{name}")
        found[name] = {"metrics": trainer.metrics, "more": more(result, folder) if more else None}
        if trainer.is_world_process_zero():
            save_file(weights, folder / f"{name}.safetensors")
    (folder / f"found-{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
