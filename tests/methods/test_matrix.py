"""Every method on every kind of model that it applies to, in the weights and in an adapter, through the same checks.

A method that is added to the table is in this one too.
"""

import functools
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_unlearn import UnlearningError, UnlearningResult, get_method, list_methods, unlearn
from hf_unlearn.methods import LocalTeacherConfig, MultitaskConfig, UnsirConfig
from hf_unlearn.models.kinds import base_of
from hf_unlearn.models.load import load_model
from tests import runs
from tests.samples import arguments
from tests.tiny import random_inputs, tiny_tokenizer
from tests.training.test_trajectory import KEY_BIASES, Run, check_same

FAMILIES = {
    "resnet": "image-classification",
    "vit": "image-classification",
    "bert": "text-classification",
    "distilbert": "text-classification",
    "gpt2": "text-classification",
    "llama": "causal-lm",
    "multitask": "multi-task",
}

# In steps of 8 an epoch ends with a few samples, of retained ones (18), of those to forget (7), and of both (25): some
# micro-batches are padding.
SIZES = {"forget": 7, "retain": 18, "unseen": 12}

SHORT = {
    "local_teacher": LocalTeacherConfig(teacher_epochs=1),
    "multitask": MultitaskConfig(refresh=2, batches=3, basis_batch_size=5),
    "unsir": UnsirConfig(samples=4, steps=5, tokens=8),
}

# What a method cannot do on a model of its tasks, and what it says of that. A family of None stands for all of them.
REFUSED: dict[tuple[str, str | None, str], str | None] = {
    ("rmu", "resnet", "weights"): "TimmWrapperForImageClassification has no list of blocks",
    ("rmu", "resnet", "adapter"): "TimmWrapperForImageClassification has no list of blocks",
    ("retrain", None, "adapter"): "retrain goes back to where training began with the weights themselves",
    ("rewind", None, "adapter"): "rewind goes back to where training began with the weights themselves",
    ("auto", None, "adapter"): "auto goes back to where training began with the weights themselves",
    ("auto", "llama", "adapter"): None,  # where it is rmu
    ("auto", "multitask", "adapter"): "rewind goes back to where training began with the weights themselves",
    ("l1_sparse", None, "adapter"): "makes the weights of a whole model sparse, and an adapter is trained",
    ("msg", None, "adapter"): "msg draws some of the weights of a whole model anew, and an adapter is trained",
    ("ct", None, "adapter"): "ct disturbs the weights of a whole model, and an adapter is trained",
    ("ssd", None, "adapter"): "ssd changes single weights, which no LoRA adapter can; leave out peft_config",
}


def applies(method: str) -> list[str]:
    return [family for family, task in FAMILIES.items() if task in get_method(method).info.applies_to]


def first(method: str) -> str:
    return "vit" if "vit" in applies(method) else applies(method)[0]


def refusal(method: str, family: str, where: str) -> str | None:
    return REFUSED.get((method, family, where), REFUSED.get((method, None, where)))


def cells(refused: bool) -> list[Any]:
    """(method, family, where). Fast are one family of each method, and one method on each family."""
    found = []
    for method in list_methods():
        for family in applies(method):
            for where in ("weights", "adapter"):
                fast = (family, where) == (first(method), "weights") or method == "finetune" or refused
                if bool(refusal(method, family, where)) == refused:
                    which = f"{method}-{family}-{where}"
                    marks = () if fast else pytest.mark.slow
                    found.append(pytest.param((method, family, where), id=which, marks=marks))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# A run


@functools.cache
def samples(family: str, is_class: bool) -> dict[str, Any]:
    """A few samples to forget, or all of a class."""
    sets = {name: rows[: SIZES[name]] for name, rows in runs.rows(family, torch.float64).items()}
    if is_class:
        known = sets["forget"] + sets["retain"]
        sets["forget"] = [row for row in known if row["labels"] == 0]
        sets["retain"] = [row for row in known if row["labels"] != 0]
    return {name: runs.as_given(family, rows) for name, rows in sets.items()}


class Start(TrainerCallback):
    """The weights before the first step, those of an adapter included."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.weights = runs.weights(model)


class Cell(NamedTuple):
    method: str
    family: str
    where: str
    result: UnlearningResult
    start: dict[str, Tensor]
    frozen: str  # the parameter that the caller had frozen

    @property
    def run(self) -> Run:
        return Run(
            runs.weights(self.result.model), self.result.metrics, self.result.trainer.state.log_history, self.start
        )


def run(folder: Path, method: str, family: str, where: str, **changes: Any) -> Cell:
    """One epoch in float64, of a model with one frozen parameter."""
    model, start = runs.original(family, torch.float64), Start()
    frozen, parameter = next(model.named_parameters())
    parameter.requires_grad = False
    if where == "weights":
        adapter = False
    elif get_method(method).info.kind == "surgery":
        adapter = True
    else:
        linear = ["q_proj", "v_proj"] if family == "multitask" else "all-linear"
        adapter = LoraConfig(r=2, target_modules=linear)
    logged = {"logging_strategy": "steps", "logging_steps": 1}
    base = functools.partial(runs.build, family, torch.float64, seed=1)
    result = unlearn(
        model,
        **samples(family, get_method(method).whole_classes),
        method=SHORT.get(method, method),
        args=arguments(folder, num_train_epochs=1, freeze_batchnorm=True, use_cpu=True, **logged, **changes),
        processing_class=tiny_tokenizer() if family in (*runs.TEXTS, "llama") else None,
        peft_config=adapter,
        base_model=None if (method, family) == ("auto", "llama") else base,  # where it goes back to none
        callbacks=[start],
    )
    # Of an edit as an adapter, which is none before the edit, the start is 0.
    before = {plain(name): tensor for name, tensor in start.weights.items()}
    before = {k: before.get(plain(k), torch.zeros_like(v)) for k, v in runs.weights(result.model).items()}
    return Cell(method, family, where, result, before, frozen)


def plain(name: str) -> str:
    """The name that a weight has without an adapter around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


@pytest.fixture(scope="module", params=cells(refused=False))
def cell(request, tmp_path_factory) -> Cell:
    """One run, which all checks look at."""
    return run(tmp_path_factory.mktemp("cell"), *request.param, measure=is_cut(*request.param))


def is_cut(method: str, family: str, where: str) -> bool:
    """Adapters only on one family for each method, and on the language model, where they are what one uses."""
    return where == "weights" or family in (first(method), "llama")


# Fast is one method on every family; tests/training/test_trajectory.py has one of each kind.
CUT = [
    which if which.values[0][0] == "finetune" else pytest.param(*which.values, id=which.id, marks=pytest.mark.slow)
    for which in cells(refused=False)
    if is_cut(*which.values[0])
]


# ---------------------------------------------------------------------------------------------------------------------
# The checks


def test_it_changes_what_it_should_and_nothing_else(cell):
    model, method = cell.result.model, cell.result.trainer.method
    after = runs.weights(model)
    assert all(tensor.isfinite().all() for tensor in after.values())
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, cell.start[name])}
    weights = {name for name, _ in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if cell.where == "adapter":
        assert changed and all(".lora_" in name for name in changed)
    else:
        assert trained == weights - {cell.frozen}
    if only := method.trained_modules(base_of(model)):
        assert changed and all(any(f"{module}." in name for module in only) for name in changed)
    elif cell.where == "weights" and method.info.kind == "surgery":
        assert changed and changed <= weights
    elif cell.where == "weights":  # every weight that has a say
        assert changed <= trained and all(name.endswith(KEY_BIASES) for name in trained - changed)


def test_it_is_saved_and_loaded(cell, tmp_path):
    folder = cell.result.save(tmp_path)
    if cell.where == "weights":
        loaded = load_model(folder)
    else:
        adapter = next(path.parent for path in folder.rglob("adapter_config.json"))
        loaded = PeftModel.from_pretrained(runs.original(cell.family, torch.float64), adapter)
    assert torch.equal(*(logits(model, cell.family) for model in (loaded, cell.result.model)))


@torch.no_grad()
def logits(model: nn.Module, family: str) -> Tensor:
    inputs = random_inputs(runs.build("vit" if family == "multitask" else family, torch.float64))
    found = model.eval()(**inputs).logits
    return torch.cat([found[task].flatten() for task in sorted(found)]) if isinstance(found, dict) else found


@pytest.mark.parametrize("cell", CUT, indirect=True)
def test_it_is_the_same_however_it_is_cut(cell, tmp_path):
    layout = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 5}
    random.seed(), np.random.seed(), torch.seed()  # nothing depends on these
    before = random_states()
    other = run(tmp_path, *cell[:3], **layout)
    assert random_states() == before  # and they are left as they are
    if get_method(cell.method).info.kind == "surgery":  # rounding decides whether a weight without gradient is edited
        check_same(without_key_biases(other.run), without_key_biases(cell.run), "float64", lines=0)
    else:
        check_same(other.run, cell.run, "float64", lines=2)


def without_key_biases(run: Run) -> Run:
    parts = {
        name: {k: v for k, v in getattr(run, name).items() if not k.endswith(KEY_BIASES)}
        for name in ("weights", "start")
    }
    return run._replace(**parts)


def random_states() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()


@pytest.mark.parametrize("cell", cells(refused=True))
def test_what_cannot_be_is_refused(cell, tmp_path):
    with pytest.raises(UnlearningError, match=refusal(*cell)):
        run(tmp_path, *cell)


@pytest.mark.parametrize(
    ("method", "need"), [(method, need) for method in list_methods() for need in get_method(method).info.needs]
)
def test_what_it_needs_is_asked_for(method, need, tmp_path):
    family = first(method)
    given = samples(family, get_method(method).whole_classes) | {"base_model": lambda: runs.build(family, seed=1)}
    message = rf"{method} needs .*\({need}=.*which was not given"
    check_refused(tmp_path, method, family, message, given | {need: None})


@pytest.mark.parametrize(
    ("method", "family"),
    [
        (method, family)
        for method in list_methods()
        for family in ("vit", "bert", "llama", "multitask")
        if FAMILIES[family] not in get_method(method).info.applies_to
    ],
)
def test_a_model_of_another_task_is_refused(method, family, tmp_path):
    message = f"{method} works on .*, and this model is for {FAMILIES[family]}; list_methods"
    given = samples(family, False) | {"base_model": lambda: runs.build(family, seed=1)}
    check_refused(tmp_path, method, family, message, given)


def check_refused(folder: Path, method: str, family: str, message: str, given: dict[str, Any]) -> None:
    """In one sentence, before anything is computed."""
    model = runs.build(family, torch.float64)
    before = runs.weights(model)
    with pytest.raises(UnlearningError, match=message) as caught:
        unlearn(model, **given, method=method, args=arguments(folder / "out"))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert runs.same_bits(before, runs.weights(model)) and not list(folder.iterdir())


@pytest.mark.parametrize("method", list_methods())
def test_it_is_in_the_matrix(method):
    assert applies(method)
