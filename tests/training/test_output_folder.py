"""An output folder is of one request on one original, however its samples are read and wherever the original is; and what
others wrote is not overwritten."""

import pytest

from hf_unlearn import UnlearningArguments, UnlearningError, UnlearningTrainer, models, unlearn
from tests.releases import contents, write_release
from tests.samples import arguments, request
from tests.tiny import tiny_image_processor, tiny_vit

SAVED = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(folder, model=None, data=None, augment=None, peft_config=None, resume_from_checkpoint=None, **changes):
    args = arguments(folder, **SAVED | changes)
    return unlearn(
        tiny_vit() if model is None else model,
        **data or request(),
        method="finetune",
        args=args,
        augment=augment,
        peft_config=peft_config,
        resume_from_checkpoint=resume_from_checkpoint,
    )


def other_request():
    return request() | {"forget": request()["forget"].select(range(1, 8))}


def test_another_request_with_augmented_samples(tmp_path):
    run(tmp_path / "out", augment=lambda picture: picture)
    before = files(tmp_path)
    with pytest.raises(UnlearningError, match="holds a run of another request"):
        run(tmp_path / "out", data=other_request(), augment=lambda picture: picture)
    assert files(tmp_path) == before
    run(tmp_path / "out", augment=lambda picture: picture)


@pytest.mark.parametrize("peft_config", [None, True])
def test_another_original_of_the_hub(tmp_path, hub, peft_config):
    for seed in (0, 1):
        folder = write_release(tmp_path / str(seed), tiny_vit(seed=seed), tiny_image_processor(), unlearned=False)
        hub.put(f"me/vit-{seed}", contents(folder))
    run(tmp_path / "out", model="me/vit-0", peft_config=peft_config)
    before = files(tmp_path / "out")
    with pytest.raises(UnlearningError, match="holds a run on another original model"):
        run(tmp_path / "out", model="me/vit-1", peft_config=peft_config)
    assert files(tmp_path / "out") == before
    run(tmp_path / "out", model="me/vit-0", peft_config=peft_config)


@pytest.mark.slow
def test_resumed_from_another_folder(tmp_path):
    """A checkpoint of one folder does not make another folder its own."""
    run(tmp_path / "a")
    run(tmp_path / "b", data=other_request())
    before = files(tmp_path)
    checkpoint = str(tmp_path / "b" / "checkpoint-1")
    with pytest.raises(UnlearningError, match="a holds a run of another request"):
        run(tmp_path / "a", data=other_request(), resume_from_checkpoint=checkpoint)
    assert files(tmp_path) == before
    run(tmp_path / "b", data=other_request(), resume_from_checkpoint=checkpoint)
    run(tmp_path / "new", data=other_request(), resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize("given", [5, 1.5, ["checkpoint-1"]])
def test_resumed_from_what_is_no_folder(tmp_path, given):
    with pytest.raises(UnlearningError, match="resume_from_checkpoint is .*; expected"):
        run(tmp_path / "out", resume_from_checkpoint=given)
    assert files(tmp_path) == {}


def test_a_marker_without_its_request(tmp_path):
    run(tmp_path)
    marker = tmp_path / "checkpoint-1" / "complete.json"
    marker.write_text(marker.read_text().replace('"request"', '"other"'))
    with pytest.raises(UnlearningError, match="was written by an older version of hf_unlearn"):
        run(tmp_path, resume_from_checkpoint=True)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "preprocessor_config.json", "tokenizer.json"])
def test_saved_over_a_part_of_another_model(tmp_path, name):
    result = run(tmp_path / "out", save_strategy="no")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_text("{}")
    with pytest.raises(UnlearningError, match=rf"no unlearning has written, or a part of one \({name}\)"):
        result.save(tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == [name]


def test_original_note_of_a_model_in_memory(tmp_path):
    trainer = run(tmp_path, save_strategy="no").trainer
    digest = models.weights_digest(tiny_vit())
    assert trainer._about() == {"digest": digest, "adapter": False, "run": trainer.run_id(), "folder": "original"}


def test_a_folder_for_each_request_where_none_is_named(tmp_path, monkeypatch, capsys):
    """Another request, or another original, has another folder; the same has its own again. The first line says which."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # it is wrapped in a narrow terminal
    quick = {"max_steps": 1, "save_strategy": "no", "measure": False, "report_to": "none"}

    def first_line(model, data, **about):
        unlearn(model, **data, method="finetune", args=UnlearningArguments(**quick), **about)
        return capsys.readouterr().out.splitlines()[0]

    changed = tiny_vit()
    said = "finetune: 8 forget samples. The model you passed is changed in place. What the run keeps goes to "
    assert first_line(changed, request()) == f"{said}unlearned/."
    assert first_line(tiny_vit(), request()) == f"{said}unlearned/ (again: a run of this request is there)."
    assert first_line(changed, request()) == f"{said}unlearned-2/."  # which is another original by now
    assert first_line(tiny_vit(), other_request()) == f"{said}unlearned-3/.".replace("8", "7")
    adapted = first_line(tiny_vit(), request(), peft_config=True)
    assert "The model you passed gets an adapter. What the run keeps goes to unlearned/" in adapted
    tiny_vit().save_pretrained("model")
    trainer = UnlearningTrainer("model", method="finetune", **{f"{k}_dataset": v for k, v in request().items()})
    assert trainer.args.output_dir == "unlearned-finetune"
    named = UnlearningArguments("unlearned", **quick)
    with pytest.raises(UnlearningError, match="unlearned holds a run of another request"):
        unlearn(tiny_vit(), **other_request(), method="finetune", args=named)
