"""Runs the cases of a JSON file in all processes of a launch; the first process writes what became of each."""

import json
import os
from pathlib import Path

from accelerate.utils import gather_object
from safetensors.torch import save_file

from hf_unlearn.models.weights import weights_digest
from tests.runs import make_trainer, weights


def main(folder: Path) -> None:
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        trainer = make_trainer(folder=folder / name, **case)
        assert int(os.environ["WORLD_SIZE"]) == trainer.accelerator.num_processes == 2
        trainer.train()
        assert len(set(gather_object([weights_digest(trainer.model)]))) == 1, f"{name}: the processes have parted"
        if trainer.is_world_process_zero():
            save_file(weights(trainer.model), folder / f"{name}.safetensors")
            about = {"metrics": trainer.metrics, "logs": trainer.state.log_history}
            about["world_size"] = int(os.environ["WORLD_SIZE"])
            (folder / f"{name}.json").write_text(json.dumps(about))
