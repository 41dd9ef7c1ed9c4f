"""Runs the cases of a JSON file in all processes of a launch; the first process writes what became of each.

torchrun --nproc_per_node 2 tests/distributed/trajectories.py FOLDER
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file

from hf_unlearn.models import weights_digest
from tests.runs import make_trainer, weights


def main(folder: Path) -> None:
    torch.set_num_threads(1)
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
    del trainer
    gc.collect()  # DDP's threads end before the process group does
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # or the process that ends first may take the other one down


if __name__ == "__main__":
    main(Path(sys.argv[1]))
