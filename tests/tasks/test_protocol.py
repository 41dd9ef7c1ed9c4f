"""The protocol of tasks: what every kind says of itself, and that `task_of` makes the right one."""

import pytest

from hf_unlearn import UnlearningError
from hf_unlearn.tasks import TASKS, task_of
from hf_unlearn.tasks.causal_lm import CausalLM
from hf_unlearn.tasks.multitask import MultiTask
from tests.tiny import tiny_bert, tiny_llama_lm, tiny_vit


@pytest.mark.parametrize("name", TASKS)
def test_a_class_says_all_that_is_asked_by_name(name):
    kind = TASKS[name]
    assert kind.name == name and kind.noun.startswith("a ") and kind.outputs and kind.auto_class.startswith("Auto")
    assert bool(kind.scores) == bool(kind.audit_parts) == kind.is_audited
    assert kind.has_classes == (
        kind.counted is None
    )  # labels are read as they come, tokens and tasks are counted first
    assert kind.pipeline_tag or not kind.is_audited


@pytest.mark.parametrize(("build", "name"), [(tiny_vit, "image-classification"), (tiny_bert, "text-classification")])
def test_classifiers(build, name):
    model = build()
    task = task_of(model)
    assert task.name == name and task.num_labels == task.num_outputs == model.config.num_labels
    assert task.class_names is None and task.layout.has_classes and task.eval_batch_size(128, 8) == 128
    model.config.id2label = {i: f"animal {i}" for i in range(model.config.num_labels)}
    assert task_of(model).class_names[1] == "animal 1"
    with pytest.raises(UnlearningError, match=f"tasks is given, and the model is for {name}"):
        task.supervision({}, ["shape"])


def test_a_language_model():
    task = task_of(tiny_llama_lm())
    assert isinstance(task, CausalLM) and task.num_labels == 0 and task.num_outputs == task.config.vocab_size
    assert task.eval_batch_size(128, 8) == 8 and task.supervision({}, None).mask is None


def test_losses_of_ones_own_make_several_tasks():
    task = task_of(tiny_vit(), lambda model, batch: {}, ["a", "b"])
    assert isinstance(task, MultiTask) and task.tasks.names == ["a", "b"] and task.layout.task_columns == ("a", "b")
