"""Recipes from end to end: raw images and texts from files, through the command line and through `accelerate launch`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from hf_unlearn import UnlearningError, audit
from hf_unlearn import commands as cli
from hf_unlearn.commands import recipe, sets, steps
from hf_unlearn.hub import prepare, verify
from hf_unlearn.hub.receipt import SECRETS, Secrets, record_digests
from tests.marks import slow_but
from tests.runs import tiny_multitask
from tests.tiny import WORDS, tiny_bert, tiny_image_processor, tiny_llama_lm, tiny_tokenizer, tiny_vit

ROOT = Path(__file__).parents[2]
ANIMALS, MOODS = ["cat", "dog", "bird", "fish"], ["sad", "calm", "glad"]
QUICK = ["num_train_epochs=1", "per_device_train_batch_size=8", "disable_tqdm=true", "save_strategy=no"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def named(model: PreTrainedModel, names: list[str]) -> PreTrainedModel:
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Saved models and what goes with them, in `vit` and `bert`."""
    folder = tmp_path_factory.mktemp("models")
    for name, model, processing in (
        ("vit", named(tiny_vit(), ANIMALS), tiny_image_processor()),
        ("bert", named(tiny_bert(), MOODS), tiny_tokenizer()),
    ):
        model.save_pretrained(folder / name)
        processing.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """PNG files of another size than the model's, in a folder for each class; 24 to train on, 16 unseen."""
    folder, rng = tmp_path_factory.mktemp("data") / "images", np.random.default_rng(0)
    for split, size in (("train", 24), ("test", 16)):
        for i in range(size):
            path = folder / split / ANIMALS[i % 4] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A csv file for each split; the labels are words, every user wrote three rows, and some rows are flagged."""
    folder, rng = tmp_path_factory.mktemp("data") / "texts", np.random.default_rng(0)
    folder.mkdir()
    for split, size in (("train", 24), ("validation", 12), ("test", 9)):
        rows = [
            {
                "text": " ".join(rng.choice(WORDS, 12)),
                "mood": MOODS[i % 3],
                "user": f"u{i // 3}",
                "flagged": i % 6 == 1,
                "note": "no",
            }
            for i in range(size)
        ]
        datasets.Dataset.from_list(rows).to_csv(folder / f"{split}.csv")
    return folder


def load(*argv: str) -> dict[str, datasets.Dataset]:
    settings, _, args = recipe.parse(argv)
    model, _ = steps.load_model(settings, args)
    return steps.load_data(settings, args, model)


def hf_unlearn(*argv: str, folder: Path) -> str:
    """What `hf-unlearn` prints, run as a program of its own in `folder`."""
    return run([sys.executable, "-m", "hf_unlearn", *argv], folder)


def run(argv: list[str], folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_result(run: Path) -> None:
    folder = run / "model"  # nothing else is for others
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "unlearning_config.json", "metrics.json"} <= names
    assert not [name for name in names if Path(name).suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")]
    assert not {"_unlearn"} & names and not list(folder.glob("checkpoint-*"))
    assert not list(run.glob("_unlearn/teacher*")), "what the original said of the forget set is left behind"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["before"]["forget_accuracy"] is not None and metrics["after"]["forget_accuracy"] is not None


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", slow_but(["npo"], ["npo", "simnpo", "rmu"]))
def test_tofu(name, tmp_path, monkeypatch):
    """Questions and answers as they are, by the recipe alone: 10 passes through the forget set."""
    monkeypatch.chdir(tmp_path)
    model = tiny_llama_lm()
    model.save_pretrained("llama")
    tiny_tokenizer().save_pretrained("llama")
    rows = [{"question": f"the {word}", "answer": f"{word} sees a {word}"} for word in WORDS[:12]]
    Path("tofu.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("forget01.txt").write_text("9\n10\n11\n")
    given = [
        "model=llama",
        "dataset=tofu.jsonl",
        "dataset_config=null",
        "max_length=20",
        "bf16=false",
        "output_dir=out",
    ]
    given += ["layer=1"] if name == "rmu" else []
    argv = [
        str(ROOT / "recipes" / f"tofu_{name}_llama.yaml"),
        *given,
        "gradient_accumulation_steps=1",
        "disable_tqdm=true",
    ]
    assert cli.main(["run", *argv]) in (None, 0)
    metrics = json.loads(Path("out", "model", "metrics.json").read_text())
    assert metrics["after"]["forget_loss"] != metrics["before"]["forget_loss"]


def test_muse(tmp_path, monkeypatch):
    """Texts that are longer than a sample, by the recipe alone."""
    monkeypatch.chdir(tmp_path)
    tiny_llama_lm().save_pretrained("llama")
    tiny_tokenizer().save_pretrained("llama")
    rows = [{"text": f"the {word} sees a bird " * 3, "forget": i > 8} for i, word in enumerate(WORDS[:12])]
    Path("news.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [
        "model=llama",
        "dataset=news.jsonl",
        "max_length=8",
        "stride=2",
        "bf16=false",
        "output_dir=out",
        "max_steps=2",
    ]
    assert cli.main(["run", str(ROOT / "recipes" / "muse_text_chunks.yaml"), *given, "disable_tqdm=true"]) in (None, 0)
    metrics = json.loads(Path("out", "model", "metrics.json").read_text())
    assert metrics["after"]["forget_loss"] != metrics["before"]["forget_loss"]


# ---------------------------------------------------------------------------------------------------------------------
# What has to go


@pytest.fixture
def text_recipe(models, texts) -> list[str]:
    return [f"model={models / 'bert'}", f"dataset={texts}", "label_column=mood"]


def test_forget_ids_are_rows(text_recipe, texts, tmp_path):
    (tmp_path / "rows.txt").write_text("3\n\n 17 \n0\n3\n")
    data = load(*text_recipe, f"forget_ids={tmp_path / 'rows.txt'}")
    train = datasets.Dataset.from_csv(str(texts / "train.csv"))
    assert data["forget"]["text"][:] == [train["text"][row] for row in (0, 3, 17)]
    assert len(data["retain"]) == 21 and len(data["unseen"]) == 12 and data["test"] is None


def test_forget_ids_are_values_of_a_column(text_recipe, tmp_path):
    (tmp_path / "users.txt").write_text("﻿u2\nu5\n", encoding="utf-8")
    data = load(*text_recipe, f"forget_ids={tmp_path / 'users.txt'}", "id_column=user")
    assert data["forget"]["user"][:] == ["u2"] * 3 + ["u5"] * 3
    assert not {"u2", "u5"} & set(data["retain"]["user"])


def test_forget_where(text_recipe):
    data = load(*text_recipe, "forget_where=flagged")
    assert len(data["forget"]) == 4 and all(data["forget"]["flagged"]) and not any(data["retain"]["flagged"])


def test_forget_labels_and_a_share_of_them(text_recipe):
    for labels in ("glad", "2"):  # text in the file; the numbers are the model's
        data = load(*text_recipe, f"forget_labels={labels}")
        assert data["forget"]["mood"][:] == ["glad"] * 8 and "glad" not in data["retain"]["mood"][:]
    data = load(*text_recipe, "forget_labels=glad,sad", "forget_fraction=0.25")
    assert len(data["forget"]) == 4 and set(data["forget"]["mood"]) <= {"sad", "glad"}


def test_forget_a_random_share_by_the_seed(text_recipe):
    first, same, other = (load(*text_recipe, "forget_fraction=0.25", f"seed={seed}")["forget"] for seed in (1, 1, 2))
    assert first["text"][:] == same["text"][:] != other["text"][:] and len(first) == 6


def test_class_names_of_the_model_serve_for_numbers(models, tmp_path):
    rows = [{"sentence": "a cat", "label": i % 3} for i in range(9)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = [f"model={models / 'bert'}", f"dataset={tmp_path / 'train.jsonl'}", "method=finetune"]
    data = load(*argv, "forget_labels=calm")
    assert data["forget"]["label"][:] == [1, 1, 1] and data["unseen"] is None


def test_splits_and_slices(text_recipe, texts, models):
    data = load(*text_recipe, "forget_fraction=0.5", "unseen_split=test", "test_split=validation[:50%]")
    assert (len(data["unseen"]), len(data["test"])) == (9, 6)
    data = load(*text_recipe, "forget_fraction=0.5", "test_split=validation")
    assert (len(data["unseen"]), len(data["test"])) == (9, 12)  # not measured on what steers
    one_file = [text_recipe[0], f"dataset={texts / 'train.csv'}", text_recipe[2], "forget_fraction=0.5"]
    data = load(*one_file, "train_split=train[:75%]", "unseen_split=train[75%:]")
    assert [len(data[name]) for name in ("forget", "retain", "unseen")] == [9, 9, 6]
    assert not set(data["unseen"]["text"]) & {*data["forget"]["text"], *data["retain"]["text"]}
    with pytest.raises(
        UnlearningError, match="auto needs unseen samples, and the dataset .* has only the split train"
    ):
        load(*one_file)


def test_a_dataset_saved_to_disk(models, tmp_path):
    feature = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=MOODS)})
    rows = [{"text": f"cat {i}", "label": i % 3} for i in range(12)]
    split = datasets.Dataset.from_list(rows, features=feature)
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "both")
    split.save_to_disk(tmp_path / "one")
    argv = [f"model={models / 'bert'}", "forget_labels=sad"]
    data = load(*argv, f"dataset={tmp_path / 'both'}")
    assert data["forget"]["label"][:] == [0] * 4 and len(data["unseen"]) == 12
    data = load(*argv, f"dataset={tmp_path / 'one'}", "method=finetune")
    assert len(data["retain"]) == 8 and data["unseen"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["forget_ids=FILE"], "FILE has the line 'u1'; expected row numbers, or id_column with the name"),
        (["forget_ids=nowhere.txt"], "forget_ids is 'nowhere.txt', which cannot be read: No such file or directory"),
        (["forget_ids=FILE", "id_column=usr"], "id_column is 'usr'; the dataset has text, mood, user, flagged, note"),
        (["forget_ids=FILE", "id_column=user"], "1 of the 2 values in FILE are not in the column 'user' (the first one "),
        (["forget_where=flag"], "There is no column 'flag'"),
        (["forget_where=note"], "The column 'note' holds text ('no', ...); expected true or false"),
        (["forget_labels=angry"], "There is no class named 'angry'"),
        (["forget_fraction=2"], "fraction is 2.0; expected a share between 0 and 1"),
        (["forget_fraction=0.5", "train_split=training"], "train_split is 'training'; the dataset has train, validation"),
        (["forget_fraction=0.5", "unseen_split=test[x]"], "unseen_split is 'test[x]'; the dataset has train, validation"),
        (["forget_fraction=0.5", "dataset=FILE"], "dataset is the file 'FILE'; expected one of .csv, .json"),
        (["forget_fraction=0.5", "dataset=/no/such"], "The dataset '/no/such' cannot be loaded: Couldn't find any data"),
        (["forget_fraction=0.5", "model=/no/such"], "'/no/such' "),
        (["forget_fraction=0.5", "push_to=vit"], "'vit' is no name of a repository; expected owner/name"),
        (["forget_fraction=0.5", "push_revision=new"], "push_revision names a branch, and there is no push_to"),
        (["forget_fraction=0.5", "task=image-classification"], "cannot be loaded: Unrecognized configuration class"),
    ],
)  # fmt: skip
def test_mistakes_are_named(text_recipe, tmp_path, settings, message):
    file = tmp_path / "ids.txt"
    file.write_text("u1\nu99\n")
    with pytest.raises(UnlearningError) as caught:
        load(*text_recipe, *(setting.replace("FILE", str(file)) for setting in settings))
    assert message.replace("FILE", str(file)) in str(caught.value)


def test_an_unreachable_hub_is_named(text_recipe, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnlearningError, match="The dataset 'some/name' cannot be loaded: .*or give a local folder or"):
        load(text_recipe[0], "dataset=some/name", "forget_fraction=0.5")


def test_a_broken_file_is_named(text_recipe, tmp_path):
    (tmp_path / "train.json").write_text("{not json")
    with pytest.raises(UnlearningError, match="The dataset .*train.json' cannot be loaded: .*Check its files"):
        load(text_recipe[0], f"dataset={tmp_path / 'train.json'}", "forget_fraction=0.5")


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


@pytest.mark.slow
def test_image_recipe(models, images, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        f"model: {models / 'vit'}\ndataset: {images}\nforget_labels: dog\nclass_mode: true\noutput_dir: out\n"
        "learning_rate: 1e-3\nmethod: lotus\n"
    )
    out = hf_unlearn("run", "recipe.yaml", *QUICK, folder=tmp_path)
    assert "lotus: 6 forget and 18 retain samples; processes: 1; steps: " in out
    assert "original  unlearned\n" in out and out.endswith("Saved in out/model\n")
    check_result(tmp_path / "out")
    config = json.loads((tmp_path / "out/model/unlearning_config.json").read_text())
    assert config["method"] == "lotus" and config["config"]["class_mode"] is True
    assert config["training"]["learning_rate"] == 1e-3

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out/model")
    original = AutoModelForImageClassification.from_pretrained(models / "vit")
    assert model.config.id2label == dict(enumerate(ANIMALS))
    assert any((a != b).any() for a, b in zip(model.parameters(), original.parameters(), strict=True))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out/model")
    image = Image.open(next(images.glob("test/*/*.png")))
    assert model(**processor(image, return_tensors="pt")).logits.isfinite().all()


@pytest.mark.slow
def test_text_recipe(models, texts, tmp_path):
    (tmp_path / "users.txt").write_text("u1\nu4\n")
    settings = [f"model={models / 'bert'}", f"dataset={texts}", "label_column=mood", "forget_ids=users.txt"]
    out = hf_unlearn("run", *settings, "id_column=user", "method=lotus", "output_dir=out", *QUICK, folder=tmp_path)
    assert "lotus: 6 forget and 18 retain samples; processes: 1; steps: " in out
    check_result(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    assert model(**tokenizer("the cat sees a bird", return_tensors="pt")).logits.isfinite().all()


def test_an_audit_that_cannot_be_is_refused_before_the_run(models, texts, images, tmp_path):
    tiny_multitask().save_pretrained(tmp_path / "multitask")
    words = ["method=finetune", "forget_fraction=0.25", f"output_dir={tmp_path / 'out'}"]
    for about, message in (
        (
            [f"model={models / 'bert'}", f"dataset={texts / 'train.csv'}", "label_column=mood", "audit=1"],
            "audit is 1, which",
        ),
        (
            [f"model={tmp_path / 'multitask'}", f"dataset={images}", "audit=0"],
            "the model is for multi-task, which cannot",
        ),
    ):
        with pytest.raises(UnlearningError, match=message):
            steps.run(*recipe.parse([*words, *about]))
    assert not (tmp_path / "out").exists()


def test_the_readme_names_every_command():
    text = (ROOT / "README.md").read_text()
    assert [name for name in cli.COMMANDS if f"\n| `{name}" not in text] == []


@pytest.mark.slow
def test_the_first_lines_of_the_readme(hub, models, images, tmp_path, monkeypatch, capsys):
    """A model from the Hub, unlearned, audited and pushed, as they stand there."""
    monkeypatch.chdir(tmp_path)
    hub.put("me/vit-cifar10", {path.name: path.read_bytes() for path in (models / "vit").iterdir()})
    before = hub.files("me/vit-cifar10")
    data = load(f"model={models / 'vit'}", f"dataset={images}", "forget_fraction=0.25")
    names = {"forget": data["forget"], "retain": data["retain"], "validation": data["unseen"]}
    exec(re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1], names)
    assert "forget samples" in capsys.readouterr().out
    assert hub.files("me/vit-cifar10") == before
    assert verify("me/vit-cifar10", revision="unlearned/request-42").ok


@pytest.mark.slow
def test_from_the_hub_to_the_hub(hub, models, images, tmp_path, capsys):
    """A recipe that audits what it made and pushes it as a revision of the repository it began with."""
    hub.put("me/vit", {path.name: path.read_bytes() for path in (models / "vit").iterdir()})
    before = hub.files("me/vit")
    settings = ["model=me/vit", f"dataset={images}", "forget_fraction=0.25", f"output_dir={tmp_path / 'out'}"]
    settings += ["method=lotus", "stop_margin=1", "audit=0", "push_to=me/vit", "push_revision=unlearned/one"]
    assert cli.main(["run", *settings, *QUICK]) == 0
    said = capsys.readouterr().out
    assert "Pushed to" in said and "forget samples" in said
    assert hub.files("me/vit") == before
    files, checked = hub.files("me/vit", "unlearned/one"), verify("me/vit", revision="unlearned/one")
    assert {"README.md", "audit.json", "audit.html", "metrics.json", "unlearning_receipt.json"} <= set(files)
    assert checked.ok and checked.unchecked == ["signature", "records"], checked.line
    assert checked.receipt["parent"] == {"repo": "me/vit", "commit": hub.branches("me/vit")["main"]}

    report = audit("me/vit", "me/vit@unlearned/one", **load(*settings))
    assert report.content["models"]["unlearned"] == "me/vit@unlearned/one"
    assert report.content["verdict"]["outcome"] != "unchanged"

    settings[-1] = "push_revision=unlearned/two"
    settings[3] = f"output_dir={tmp_path / 'two'}"
    assert cli.main(["run", *settings, "revision=unlearned/one", *QUICK]) == 0
    second = verify("me/vit", revision="unlearned/two")
    assert second.ok and second.receipt["previous"]["receipt"] == checked.receipt["digest"]


@pytest.mark.slow
def test_two_processes_through_accelerate(models, images, tmp_path):
    """Two processes do the same as one with twice the batch size."""
    settings = [f"--model={models / 'vit'}", f"--dataset={images}", "--forget_fraction=0.25", "--num_train_epochs=1"]
    settings += ["--disable_tqdm", "--save_strategy=no", "--use_cpu", "--method=lotus", "--stop_margin=1"]
    settings += [
        "--optim=sgd",
        "--learning_rate=0.1",
    ]  # Adam would make much of a gradient that is zero but for rounding
    config = ROOT / "recipes" / "accelerate_configs" / "cpu_two_processes.yaml"
    script = ROOT / "recipes" / "unlearn_image_classification.py"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    launch += ["--main_process_port", "0", str(script)]
    out = run([*launch, *settings, "--per_device_train_batch_size=4", "--output_dir=two"], tmp_path)
    assert out.count("processes: 2;") == 1 and out.count("Saved in two/model") == 1
    check_result(tmp_path / "two")

    assert cli.main(["run", *settings, "--per_device_train_batch_size=8", f"--output_dir={tmp_path / 'one'}"]) == 0
    one, two, original = (
        weights(folder) for folder in (tmp_path / "one/model", tmp_path / "two/model", models / "vit")
    )
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-5
    assert max((one[name] - original[name]).abs().max() for name in one) > 1e-4


@pytest.mark.slow
def test_a_script_leaves_out_no_setting(models, images, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    from unlearn_image_classification import main

    settings = [f"--model={models / 'vit'}", f"--dataset={images}", "--forget_fraction=0.25", "--method=finetune"]
    settings += ["--lora", "--lora_r=2", "--audit=0", "--max_steps=1", f"--output_dir={tmp_path / 'out'}"]
    main([*settings, *QUICK])
    assert (tmp_path / "out" / "audit.html").exists()
    saved = tmp_path / "out" / "model"
    assert json.loads((saved / "unlearn" / "adapter_config.json").read_text())["r"] == 2
    assert not (saved / "README.md").exists()  # PEFT's would be an empty form


@pytest.mark.slow
def test_text_script_and_a_resumed_run(models, texts, tmp_path, capsys):
    """A run that lost its last checkpoint and its result, and goes on from the one before, ends the same."""
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        from unlearn_text_classification import main
    finally:
        sys.path.remove(str(ROOT / "recipes"))
    argv = [f"--model={models / 'bert'}", f"--dataset={texts}", "--label_column=mood", "--forget_where=flagged"]
    argv += [
        "--method=lotus",
        "--num_train_epochs=3",
        "--per_device_train_batch_size=8",
        "--save_strategy=epoch",
        "--disable_tqdm",
    ]
    argv += ["--report_to=none", f"--output_dir={tmp_path / 'out'}"]
    main(argv)
    expected = weights(tmp_path / "out/model")
    checkpoints = sorted(tmp_path.glob("out/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) == 3
    shutil.rmtree(checkpoints[-1])
    (tmp_path / "out/model/model.safetensors").unlink()
    main([*argv, "--resume"])
    resumed = weights(tmp_path / "out/model")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    check_result(tmp_path / "out")


def test_the_checkpoints_of_another_request(models, texts, tmp_path, capsys):
    """They are not resumed, so that the records of a receipt are those that were forgotten."""
    rows = {"first": [0, 1, 2, 3], "second": [4, 5, 6, 7]}
    for name, lines in rows.items():
        (tmp_path / name).write_text("\n".join(map(str, lines)))
    settings = [f"model={models / 'bert'}", f"dataset={texts}", "label_column=mood", "method=finetune"]
    settings += [*QUICK, "save_strategy=epoch", "measure=false", f"output_dir={tmp_path / 'out'}"]
    assert cli.main(["run", *settings, f"forget_ids={tmp_path / 'first'}"]) == 0
    first = weights(tmp_path / "out/model")
    capsys.readouterr()
    assert cli.main(["run", *settings, f"forget_ids={tmp_path / 'second'}", "resume=true"]) != 0
    refused = capsys.readouterr().err
    assert "forget has other samples than it had" in refused and "resume=false in a recipe" in refused
    assert all(torch.equal(tensor, first[name]) for name, tensor in weights(tmp_path / "out/model").items())

    for name, argv in (("first", ["resume=true"]), ("second", [f"output_dir={tmp_path / 'another'}"])):
        result = steps.run(*recipe.parse([*settings, f"forget_ids={tmp_path / name}", *argv]))
        out = Path(result.trainer.args.output_dir)
        prepare(result, tmp_path / "release")
        train = sets.read_dataset(str(texts))["train"]
        forgotten = record_digests(train.select(rows[name]), ["text"])
        records = Secrets.load(out / "_unlearn" / SECRETS).records
        assert records == sorted(forgotten)
        assert all(torch.equal(tensor, first[k]) for k, tensor in weights(out / "model").items()) == (name == "first")


def test_nothing_is_measured_when_that_is_off(models, texts, tmp_path, capsys):
    settings = [f"model={models / 'bert'}", f"dataset={texts}", "label_column=mood", "forget_where=flagged"]
    settings += ["method=finetune", "measure=false", "max_steps=1", f"output_dir={tmp_path / 'out'}"]
    assert cli.main(["run", *settings, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "finetune: 4 forget and 20 retain samples" in out and "original  unlearned" not in out
