"""A release under two processes, of which one writes: what fails on it fails on both, and then it is written once."""

from pathlib import Path

import pytest
from accelerate.utils import gather_object

from hf_unlearn import UnlearningError, UnlearningResult
from hf_unlearn.hub import prepare, verify
from hf_unlearn.models.weights import save_model
from tests.runs import make_trainer
from tests.tiny import tiny_vit


def main(folder: Path) -> None:
    trainer = make_trainer("finetune", "vit", folder / "run", max_steps=1)
    trainer.train()
    assert trainer.accelerator.num_processes == 2
    result = UnlearningResult(trainer.model, trainer, trainer.metrics, trainer.runtime)
    if trainer.args.should_save:
        save_model(tiny_vit(seed=9), folder / "other")
    trainer.accelerator.wait_for_everyone()
    with pytest.raises(UnlearningError, match="other weights than the model that was unlearned"):
        prepare(result, folder / "release", parent=folder / "other")
    with pytest.raises(UnlearningError, match="holds files that are no release"):
        prepare(result, folder)
    assert gather_object([not list(folder.glob("*release*"))]) == [True, True]
    assert verify(prepare(result, folder / "release")).ok
