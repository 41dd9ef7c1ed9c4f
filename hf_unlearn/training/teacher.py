"""The frozen original as a teacher: a table of its logits, computed once."""

import os
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.streams import in_parts
from ..tasks.evaluation import Evaluator


class TableTeacher:
    """The original's logits in one memory-mapped table by `sample_index`; only rows that are needed are filled.

    Every node keeps its own file, which its processes fill together. `forget_accuracy` comes for free.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        model: nn.Module,
        path: Path,
        forget: np.ndarray,
        retain: np.ndarray,
        n_forget: int,
        n_retain: int,
    ):
        accelerator = evaluator.accelerator
        node = accelerator.process_index // max(1, _local_processes(accelerator))
        self.path = path.with_name(f"{path.name}-{node}")
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self._type = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
        self._shape = (n_forget + n_retain, evaluator.num_labels)
        if accelerator.is_local_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.memmap(self.path, self._type, "w+", shape=self._shape).flush()
        accelerator.wait_for_everyone()
        self.table = np.memmap(self.path, self._type, "r+", shape=self._shape)
        shard = accelerator.local_process_index, _local_processes(accelerator)
        correct = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        for name, indices, offset in (("forget", forget, 0), ("retain", retain, n_forget)):
            if len(indices) == 0:
                continue
            mine, part = indices, shard
            if (source := evaluator.samples.sources[name]).is_stream:  # each process opens lanes of its own
                mine, part = in_parts(source.lane_starts, indices, shard[1])[shard[0]], (0, 1)
            for positions, batch, logits in evaluator.predictions(model, name, mine, part, f"teacher on {name}"):
                self.table[offset + mine[positions]] = logits.cpu().numpy()
                if name == "forget":
                    correct += ((logits.argmax(dim=-1) == batch.labels) & (batch.weight > 0)).sum()
        self.table.flush()
        nodes = accelerator.num_processes // shard[1]
        self.forget_accuracy = cast(Tensor, accelerator.reduce(correct, "sum")).item() / nodes / max(1, len(forget))
        accelerator.wait_for_everyone()

    def logits(self, batch: Batch) -> Tensor:
        return torch.from_numpy(self.table[batch["rows"]]).to(batch.sample_index.device, non_blocking=True)


def remove_tables(folder: Path, accelerator: Accelerator) -> None:
    """They hold what the original said of the forget set, and nobody needs them any more."""
    accelerator.wait_for_everyone()
    if accelerator.is_local_main_process:
        for path in folder.glob("teacher-*"):
            path.unlink()


def _local_processes(accelerator: Accelerator) -> int:
    """Processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
