"""How often a gradient method reduces: once for each named gradient, whatever the number of micro-batches."""

import json
from pathlib import Path

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from tests.runs import make_trainer


class Count(TrainerCallback):
    """Of the reduced numbers, in parameters of the model, for each step."""

    def __init__(self):
        self.trainer, self.numbers, self.steps = None, 0, []

    def on_train_begin(self, args, state, control, **kwargs):
        def hook(group, bucket):
            self.numbers += bucket.buffer().numel()
            return allreduce_hook(group, bucket)

        assert isinstance(self.trainer.model_wrapped, DistributedDataParallel)
        self.trainer.model_wrapped.register_comm_hook(None, hook)

    def on_step_end(self, args, state, control, **kwargs):
        total = sum(p.numel() for p in self.trainer.model.parameters())
        self.steps.append(self.numbers / total)
        self.numbers = 0


def main(folder: Path) -> None:
    found = {}
    for accumulation in (1, 4):
        for method in ("own_difference", "hamu"):
            count = Count()
            trainer = make_trainer(
                method, "vit", folder / "run", batch=2, accumulation=accumulation, callbacks=[count], max_steps=3
            )
            assert trainer.accelerator.num_processes == 2
            count.trainer = trainer
            trainer.train()
            found[f"{method} {accumulation}"] = count.steps
    if trainer.is_world_process_zero():
        (folder / "reductions.json").write_text(json.dumps(found))
