"""Runs on streams in two processes, of which each reads shards of its own."""

import json
from pathlib import Path

from accelerate.utils import gather_object
from safetensors.torch import save_file

from hf_unlearn.models.weights import weights_digest
from hf_unlearn.training import request
from tests.runs import weights
from tests.streamed import CASES, opened, trainer_of


def main(folder: Path) -> None:
    checked, check = [], request.check_overlaps
    request.check_overlaps = lambda sources: checked.append(1) or check(sources)
    for name, case in CASES.items():
        trainer = trainer_of(folder / name, **case | {"batch": case.get("batch", 8) // 2})
        rank = trainer.accelerator.process_index
        opened(folder / name, rank)  # by the checks, which read the first samples
        assert trainer.accelerator.num_processes == 2
        trainer.train()
        assert len(set(gather_object([weights_digest(trainer.model)]))) == 1, f"{name}: the processes have parted"
        seen = gather_object([sorted(opened(folder / name, rank))])
        if rank == 0:
            save_file(weights(trainer.model), folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(seen))
    counts = gather_object([len(checked)])
    assert counts == [len(CASES), 0], f"sets were compared {counts} times"
