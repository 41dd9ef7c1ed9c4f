"""Whole runs of models that FSDP2 cuts up over two processes: trained, measured, saved, resumed, audited, compared and merged."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from hf_unlearn import UnlearningError, UnlearningResult
from hf_unlearn.hub import prepare, verify
from hf_unlearn.training.trainer import UnlearningTrainer
from recipes.experiments.communication import SHARDED, shard_on_cpus
from tests.runs import StopAt, make_trainer, same_bits

CASES = {  # method, model, adapter
    "finetune": ("finetune", "vit", None),
    "lotus": ("lotus", "vit", None),
    "hamu": ("hamu", "vit", None),
    "npo": ("npo", "llama", None),
    "rmu": ("rmu", "llama", None),
    "grad_diff": ("grad_diff", "llama", True),
}
REFUSED = {"damp": "edits whole weights", "orthograd": "takes gradients of single samples"}


def made(method: str, family: str, folder: Path, **settings) -> UnlearningTrainer:
    settings = {"batch": 4, "num_train_epochs": 1, "dtype": "float64"} | settings
    trainer = make_trainer(method, family, folder, **settings, **SHARDED)
    assert trainer.accelerator.is_fsdp2 and trainer.accelerator.num_processes == 2
    return trainer


def whole(trainer: UnlearningTrainer) -> dict[str, torch.Tensor]:
    return trainer.sharding.whole_weights(trainer.model)


def result_of(trainer: UnlearningTrainer) -> UnlearningResult:
    return UnlearningResult(trainer.model, trainer, trainer.metrics, trainer.runtime)


def runs(folder: Path) -> None:
    """As in one process, see the test."""
    for name, (method, family, lora) in CASES.items():
        trainer = made(method, family, folder / name, lora=lora)
        trainer.train()
        assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
        weights, result = whole(trainer), result_of(trainer)
        rows = result.compare(result.run.folder / "_unlearn" / "original") if name == "npo" else {}
        if trainer.is_world_process_zero():
            save_file(weights, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps({"metrics": trainer.metrics, "rows": rows}))


def resumed(folder: Path) -> dict[str, bool]:
    """The same bits after a stop, from the checkpoint before it; in both ways of saving the state of a run."""
    found = {}
    for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "num_train_epochs": 2}
        SHARDED["fsdp_config"]["state_dict_type"] = kind
        uninterrupted = made("lotus", "vit", folder / f"{kind}-1", **settings)
        uninterrupted.train()
        expected = whole(uninterrupted)
        stopped = made("lotus", "vit", folder / f"{kind}-2", **settings, callbacks=[StopAt(2)])
        try:
            stopped.train()
        except RuntimeError as error:
            assert str(error) == "killed"
        again = made("lotus", "vit", folder / f"{kind}-2", **settings)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 3
        found[kind] = same_bits(whole(again), expected)
    return found


def saved(folder: Path) -> dict[str, Any]:
    """A release of a sharded model; and one with an adapter, as it is and merged."""
    trainer = made("lotus", "vit", folder / "saved")
    trainer.train()
    result = result_of(trainer)
    report = result.audit()
    release = verify(prepare(result, folder / "release", report=report))
    adapted = result_of(made("lotus", "vit", folder / "adapted", lora=True))
    adapted.trainer.train()
    adapted.save(folder / "adapter")
    before = adapted.audit().content
    adapted.merge()
    adapted.save(folder / "merged")
    after = adapted.audit().content
    return {
        "release": release.ok,
        "outcome": report.content["verdict"]["outcome"],
        "same weights": before["weights"] == after["weights"],
        "distance": [report.content["distance"]["total"], before["distance"]["total"]],
        "accuracy": [content["figures"]["unlearned"]["forget_accuracy"] for content in (before, after)],
    }


def main(folder: Path) -> None:
    shard_on_cpus()
    refused = {}
    for method, why in REFUSED.items():
        try:
            made(method, "vit", folder / method)
        except UnlearningError as error:
            refused[method] = why in str(error)
    runs(folder)
    found = {"refused": refused, "resumed": resumed(folder), "saved": saved(folder)}
    assert gather_object([found]) == 2 * [found]
    if torch.distributed.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
