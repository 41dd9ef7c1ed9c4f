"""Edits of the weights in two processes, each of which reads its share of the samples."""

from pathlib import Path

from safetensors.torch import save_file

from hf_unlearn import UnlearningTrainer
from hf_unlearn.training.edits import Share
from tests.samples import arguments, for_trainer
from tests.surgery.test_surgery import METHODS, a_class, knowing
from tests.tiny import tiny_resnet, tiny_vit


def main(folder: Path) -> None:
    for name, method in METHODS.items():
        for family, build in (("vit", tiny_vit), ("resnet", tiny_resnet)):
            args = arguments(folder / f"{name}-{family}")
            trainer = UnlearningTrainer(knowing(build), args, method=method, **for_trainer(a_class()))
            assert trainer.accelerator.num_processes == 2
            shares = [
                sum(len(batch.labels) for batch in Share(trainer.evaluator, trainer.model, name))
                for name in ("forget", "retain")
            ]
            assert shares == [12, 36]  # of 24 and 72 samples
            trainer.train()
            save_file(trainer.model.state_dict(), folder / f"{name}-{family}-{trainer.args.process_index}.safetensors")
