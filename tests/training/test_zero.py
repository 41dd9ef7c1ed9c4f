"""DeepSpeed: what is refused, and whole runs in two processes where it is installed."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import ViTForImageClassification
from transformers.integrations.deepspeed import is_deepspeed_available

from hf_unlearn import UnlearningError
from hf_unlearn.methods import AutoConfig, ScrubConfig, create_method
from hf_unlearn.training.zero import check_zero
from tests.distributed import zero
from tests.runs import distance, launch, make_trainer, weights
from tests.training.test_trajectory import KEY_BIASES


def checked(method="lotus", stage=2, dtype=torch.float32, mismatches=(), **config) -> dict:
    found = SimpleNamespace(config={"zero_optimization": {"stage": stage}, **config}, mismatches=mismatches)
    plugin = SimpleNamespace(zero_stage=stage, hf_ds_config=found)
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    check_zero(create_method(method), accelerator, SimpleNamespace(max_grad_norm=0.5), nn.Linear(2, 2, dtype=dtype))
    return found.config


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"method": "pcgrad"},
            "pcgrad makes a step of several gradients, which DeepSpeed's engine does not give back",
        ),
        ({"method": "ssd"}, "ssd edits the weights once, and has no steps for DeepSpeed to take; expected DDP"),
        ({"method": AutoConfig(keeps=[0.3, 0.5], race=0.5)}, "auto changes weights between two steps"),
        ({"method": "salun"}, "salun changes weights between two steps"),
        (
            {"stage": 3, "method": "l1_sparse"},
            "l1_sparse adds the norm of all weights to its loss, and ZeRO stage 3 cuts the weights up; expected stage 2, or DDP",
        ),
        (
            {"stage": 3, "method": ScrubConfig(rewind=True)},
            r"scrub keeps the weights of the best epoch \(rewind\), and",
        ),
        ({"stage": 3, "method": "task_vector"}, "task_vector takes what it has learnt from the weights, and"),
        ({"optimizer": {}}, "has a part 'optimizer', which would take the place of the method's; leave it out"),
        ({"scheduler": {}}, "has a part 'scheduler'"),
        (
            {"mismatches": ["- ds a=1 vs hf b=2"]},
            r"differ \(a=1, and b=2\); leave these values of DeepSpeed's out, or set",
        ),
        ({"dtype": torch.float64}, "2 weights are in float64, which DeepSpeed would round to float32"),
    ],
)
def test_refused(about, message):
    with pytest.raises(UnlearningError, match=message):
        checked(**about)


def test_a_model_that_was_loaded_in_pieces_is_refused():
    model = nn.Linear(2, 2)
    setattr(model.weight, "ds_id", 0)  # noqa: B010
    plugin = SimpleNamespace(zero_stage=3, hf_ds_config=SimpleNamespace(config={}, mismatches=()))
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    with pytest.raises(
        UnlearningError, match="The model was cut up when it was loaded; expected a whole one: load it before any"
    ):
        check_zero(create_method("lotus"), accelerator, SimpleNamespace(max_grad_norm=0.5), model)


def test_gradients_are_clipped_by_the_engine():
    assert checked() == {"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}
    check_zero(
        create_method("ssd"), SimpleNamespace(state=SimpleNamespace()), None, nn.Identity()
    )  # nobody asks for it


@pytest.mark.slow
@pytest.mark.skipif(not is_deepspeed_available(), reason="DeepSpeed is not installed")
def test_whole_runs(tmp_path):
    """As one process does, but for rounding, which Adam makes whole steps of where there is no gradient."""
    launch("zero", tmp_path)
    found, other = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert found == other
    for name, (method, family, settings) in zero.CASES.items():
        alone = make_trainer(
            method, family, tmp_path / "one" / name, num_train_epochs=1, lora=settings.get("lora", False)
        )
        start = weights(alone.model)
        alone.train()
        sides = load_file(tmp_path / f"{name}.safetensors"), weights(alone.model), start
        a, b, start = ({k: v for k, v in side.items() if not k.endswith(KEY_BIASES)} for side in sides)
        assert distance(a, b, start) < 1e-4, name
        assert found[name]["after"]["forget_loss"] == pytest.approx(alone.metrics["after"]["forget_loss"], rel=1e-3)
    for name in ("lotus", "lotus-3"):
        saved = ViTForImageClassification.from_pretrained(tmp_path / f"saved-{name}")
        assert distance(weights(saved), load_file(tmp_path / f"{name}.safetensors")) == 0
