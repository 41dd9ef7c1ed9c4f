"""Whole runs of models that FSDP2 cuts up over two processes: trained, measured, saved, resumed, audited, compared, merged and pushed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from hf_unlearn import UnlearningError, UnlearningResult
from hf_unlearn.hub import verify
from hf_unlearn.methods import AutoConfig, GruConfig, HamuConfig, MethodConfig, RewindConfig, ScrubConfig
from hf_unlearn.training.output import COMPLETE
from hf_unlearn.training.trainer import UnlearningTrainer
from recipes.experiments.communication import SHARDED, shard_on_cpus
from tests.hub.server import WRITER
from tests.runs import distance, make_trainer, rows
from tests.streamed import opened, trainer_of


def of_a_class() -> dict[str, list[dict]]:
    """All samples of the first class, to be forgotten."""
    sets = rows("vit")
    known = sets["forget"] + sets["retain"]
    return sets | {
        "forget": [row for row in known if row["labels"] == 0],
        "retain": [row for row in known if row["labels"] != 0],
    }


STEPS = {"save_strategy": "steps", "save_steps": 1}
CASES = {  # method, model, adapter, settings
    "lotus": ("lotus", "vit", None, STEPS),
    "hamu": ("hamu", "vit", None, {}),
    "npo": ("npo", "llama", None, {}),
    "rmu": ("rmu", "llama", None, {}),
    "grad_diff": ("grad_diff", "llama", True, {}),
}
# As the first ones, not measured. What they keep of weights and gradients beside the model is cut up as it is, and saved whole.
UNMEASURED = {"measure": False}
MORE: dict[str, tuple[str | MethodConfig, str, dict[str, Any]]] = {
    "scrub": (ScrubConfig(rewind=True), "vit", {"num_train_epochs": 3} | STEPS | UNMEASURED),
    "gru": (GruConfig(gamma=0.5, until="end"), "vit", STEPS | UNMEASURED),
    "rewind": (RewindConfig(original_epochs=30), "vit", {"data": of_a_class()} | UNMEASURED),
    "ct": ("ct", "vit", UNMEASURED),
    "pcgrad": ("pcgrad", "llama", UNMEASURED),
    "undial": ("undial", "llama", UNMEASURED),  # whose teacher's head answers outside of its forward pass
    "auto": (AutoConfig(original_epochs=30, keeps=[0.4, 0.6], race=0.5), "vit", {"num_train_epochs": 8} | UNMEASURED),
}
STREAM: dict[str, Any] = {"method": "bad_teacher", "family": "vit", "num_train_epochs": 1}
REFUSED = {"ssd": "edits whole weights", "orthograd": "takes gradients of single samples"}


def made(method: str | MethodConfig, family: str, folder: Path, **settings) -> UnlearningTrainer:
    settings = {"batch": 4, "num_train_epochs": 1, "dtype": "float64"} | settings
    trainer = make_trainer(method, family, folder, **settings, **SHARDED)
    assert trainer.accelerator.is_fsdp2 and trainer.accelerator.num_processes == 2
    return trainer


def keep(name: str, weights: dict[str, torch.Tensor], folder: Path) -> None:
    if weights:  # of the first process
        save_file(weights, folder / f"{name}.safetensors")


def whole(trainer: UnlearningTrainer) -> dict[str, torch.Tensor]:
    return trainer.sharding.whole_weights(trainer.model)


def resumed(folder: Path, expected: dict[str, torch.Tensor], case: tuple = ("lotus", "vit", STEPS)) -> float:
    """How far a run ends from where it did, if it goes on from its first checkpoint, as when it was killed while it wrote the
    second; of the first process, which has weights.

    Not the same bits: what is gathered lies elsewhere, and kernels then add in another order.
    """
    method, family, settings = case
    again = made(method, family, folder, **settings)
    if again.is_world_process_zero():
        for path in folder.glob(f"checkpoint-*/{COMPLETE}"):
            if path.parent.name != "checkpoint-1":
                path.unlink()
    again.accelerator.wait_for_everyone()
    again.train(resume_from_checkpoint=True)
    weights = whole(again)
    return distance(weights, expected) if expected else 0.0


def of_lotus(result: UnlearningResult, folder: Path) -> dict[str, Any]:
    """A release with an audit; and the run goes on from checkpoints of both kinds."""
    report = result.audit()
    pushed = result.push_to_hub("me/sharded", "unlearned/a", report=report, token=WRITER)
    found: dict[str, Any] = {"pushed": pushed and verify(pushed.repo_id, revision=pushed.commit).ok}
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
        keep(name, weights, folder)
    about: dict[str, Any] = {"cases": found, "resumed": {}}
    for name, (method, family, settings) in MORE.items():
        trainer = made(method, family, folder / name, **settings)
        trainer.train()
        keep(name, weights := whole(trainer), folder)
        if "save_steps" in settings:
            about["resumed"][name] = resumed(folder / name, weights, (method, family, settings))
    trainer = made(HamuConfig(stop="stop", stop_slack=1e9, stop_patience=2), "vit", folder / "stopped", **UNMEASURED)
    trainer.train()
    keep("stopped", whole(trainer), folder)
    trainer, rank = trainer_of(folder / "stream", **STREAM, batch=4, **SHARDED), torch.distributed.get_rank()
    opened(folder / "stream", rank)  # by the checks
    trainer.train()
    keep("stream", whole(trainer), folder)
    about["opened"] = sorted(opened(folder / "stream", rank))
    (folder / f"found-{rank}.json").write_text(json.dumps(about))
