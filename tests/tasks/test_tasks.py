"""Several tasks in one model: which labels go, which stay, what is measured, and whole runs on images and texts."""

import copy
import functools
import json

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoModel

from hf_unlearn import MultiTaskModel, UnlearningError, UnlearningTrainer, unlearn
from hf_unlearn.data.digits import Samples
from hf_unlearn.data.source import Source
from hf_unlearn.methods import Multitask, MultitaskConfig
from hf_unlearn.models.multitask_labels import sample_losses, stack_labels
from hf_unlearn.tasks import task_of
from hf_unlearn.tasks.several import TaskCollator, Tasks, request_mask
from hf_unlearn.training.context import Context
from hf_unlearn.training.request import Request
from tests.marks import slow_but
from tests.samples import arguments, for_trainer, images, same_bits, sentences, weights
from tests.samples import request as plain_request
from tests.scenes import TASKS as SCENE_TASKS
from tests.scenes import scenes
from tests.tiny import WORDS, tiny_bert, tiny_resnet, tiny_tokenizer, tiny_vit

NAMES = ["depth", "seg", "shape"]
PICTURE_TASKS = {"shape": {"kind": "classification", "size": 2}, "distance": {"kind": "regression", "tolerance": 0.4}}
TEXT_TASKS = {"topic": {"kind": "classification", "size": 3}, "tone": {"kind": "classification", "size": 2}}
FAST = {"batches": 6, "basis_batch_size": 4, "samples": 4, "refresh": 2}


# ---------------------------------------------------------------------------------------------------------------------
# The request


class TestMask:
    def test_all(self):
        assert request_mask(None, NAMES, 4).all() and request_mask(None, NAMES, 4).shape == (4, 3)

    @pytest.mark.parametrize("given", ["seg", ["seg"], ("seg",), {"seg"}])
    def test_names(self, given):
        assert (request_mask(given, NAMES, 2) == [[False, True, False]] * 2).all()

    def test_several_names(self):
        assert (request_mask(["shape", "depth"], NAMES, 2) == [[True, False, True]] * 2).all()

    @pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda x: np.array(x, dtype=int)])
    def test_table(self, make):
        table = [[True, False, False], [False, True, True]]
        mask = request_mask(make(table), NAMES, 2)
        assert mask.dtype == bool and (mask == table).all()

    @pytest.mark.parametrize("make", [list, np.array, torch.tensor])
    def test_columns(self, make):
        mask = request_mask({"shape": make([True, False]), "depth": make([True, True])}, NAMES, 2)
        assert mask.dtype == bool and (mask == [[True, False, True], [True, False, False]]).all()

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (["edges"], "tasks names 'edges', which the model does not have; its tasks are depth, seg, shape"),
            ("edges", "tasks names 'edges'"),
            ({"edges": [True, True]}, "tasks names 'edges'"),
            ({"seg": [True]}, r"tasks\['seg'\] has the shape \(1,\); expected one truth value for each of the 2"),
            ({"seg": True}, r"tasks\['seg'\] has the shape \(\)"),
            ([[True, False]], r"tasks has the shape \(1, 2\); expected \(2, 3\)"),
            (np.ones((3, 2), bool), r"tasks has the shape \(3, 2\); expected \(2, 3\)"),
            (np.ones(2, bool), r"tasks has the shape \(2,\); expected \(2, 3\)"),
            (3, "tasks is a int; expected names of tasks, or which tasks of which forget samples"),
            ([[True], [True, False, False]], r"tasks has rows of different lengths; expected \(2, 3\)"),
            ([[True], [True]], r"tasks has the shape \(2, 1\)"),
            ({"seg": ["yes", "no"]}, r"tasks\['seg'\] holds yes; expected true or false only"),
            ({"seg": [1, 2]}, r"tasks\['seg'\] holds 2; expected true or false only"),
            ({"seg": [1, None]}, r"tasks\['seg'\] holds None; expected true or false only"),
            ([[1, 0, float("nan")]] * 2, "tasks holds nan; expected true or false only"),
            ([], "tasks asks nothing of 2 of the 2 forget samples"),
            ({}, "tasks asks nothing of 2 of the 2 forget samples"),
            ({"seg": [True, False]}, r"asks nothing of 1 of the 2 forget samples \(the first is row 1\)"),
            ([[False] * 3, [True] * 3], r"\(the first is row 0\)"),
        ],
        ids=str,
    )
    def test_refused(self, asked, message):
        with pytest.raises(UnlearningError, match=message) as caught:
            request_mask(asked, NAMES, 2)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


# ---------------------------------------------------------------------------------------------------------------------
# Data and models


def tiny(tasks=None, build=tiny_vit, seed: int = 0) -> MultiTaskModel:
    torch.manual_seed(seed)
    return MultiTaskModel.from_backbone(build(seed=seed), tasks or PICTURE_TASKS)


def pictures(**sizes: int) -> dict[str, datasets.Dataset]:
    sizes = {"forget": 8, "retain": 24, "unseen": 24} | sizes
    return {name: scenes(n, seed=i) for i, (name, n) in enumerate(sizes.items())}


def texts(**sizes: int) -> dict[str, datasets.Dataset]:
    """Raw sentences; the topic is the first word's, the tone is random."""
    sets = {}
    for i, (name, n) in enumerate(({"forget": 8, "retain": 24, "unseen": 24} | sizes).items()):
        rng = np.random.default_rng(i)
        words = [list(rng.choice(WORDS, rng.integers(4, 20))) for _ in range(n)]
        rows = {"text": [" ".join(w) for w in words], "topic": [WORDS.index(w[0]) % 3 for w in words]}
        sets[name] = datasets.Dataset.from_dict(rows | {"tone": rng.integers(0, 2, n)})
    return sets


def inputs_of(rows: datasets.Dataset) -> dict[str, Tensor]:
    if "text" in rows.column_names:
        return dict(tiny_tokenizer()(list(rows["text"]), padding=True, return_tensors="pt"))
    return {"pixel_values": rows["pixel_values"][:]}


def fit(model: MultiTaskModel, sets: list[datasets.Dataset], steps: int = 30) -> MultiTaskModel:
    rows = datasets.concatenate_datasets([s.with_format(None) for s in sets]).with_format("torch")
    inputs, tasks = inputs_of(rows), model.config.tasks
    labels = {name: stack_labels(list(rows[name][:]), task) for name, task in tasks.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def blanked(rows: datasets.Dataset, column: str, which) -> datasets.Dataset:
    """None in place of some labels."""
    chosen = set(which)
    return rows.map(lambda row, i: {column: None if i in chosen else row[column]}, with_indices=True)


def as_rows(data: datasets.Dataset, **absent) -> list[dict]:
    """A torch dataset of the same samples; `absent` names tasks with the rows that have no label there."""
    rows = [dict(row) for row in data]
    for name, which in absent.items():
        for i in which:
            rows[i][name] = None
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Refused, in one sentence and before any compute


def refused(tmp_path, message: str, model=None, args: dict | None = None, **changes) -> None:
    model = tiny() if model is None else model
    before, data = weights(model), pictures() | {"method": "multitask"} | changes
    with pytest.raises(UnlearningError, match=message) as caught:
        unlearn(model, **data, args=arguments(tmp_path / "out", **(args or {})))
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 400, text
    assert same_bits(before, weights(model))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Perceptron(nn.Module):
    def __init__(self, tasks=("a", "b")):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
            self.heads = nn.ModuleDict({task: nn.Linear(16, 3) for task in tasks})

    def forward(self, x):
        features = self.body(x)
        return {task: head(features) for task, head in self.heads.items()}


def losses_of(model, batch):
    outputs = model(batch.inputs["x"])
    return {t: F.cross_entropy(o, batch.labels[t].long(), reduction="none") for t, o in outputs.items()}


def own_request(n: int = 8) -> dict[str, Samples]:
    g = torch.Generator().manual_seed(0)
    return {
        name: Samples(x=torch.randn(k, 6, generator=g), a=torch.arange(k) % 3, b=torch.arange(k) // 2 % 3)
        for name, k in {"forget": n, "retain": 3 * n, "unseen": 2 * n}.items()
    }


class TestRefused:
    def test_tasks(self, tmp_path):
        refused(tmp_path, "tasks names 'edges'.* its tasks are distance, shape", tasks=["edges"])
        refused(tmp_path, r"shape \(8, 3\); expected \(8, 2\)", tasks=np.ones((8, 3)))
        refused(tmp_path, "asks nothing of 1 of the 8 .*row 3", tasks={"shape": [i != 3 for i in range(8)]})

    def test_a_forget_sample_without_the_label_to_forget(self, tmp_path):
        data = pictures()
        forget = blanked(data["forget"], "shape", [2, 5])
        message = r"2 of the 8 samples of forget have no label on the tasks it is to forget \(the first is row 2\)"
        refused(tmp_path, message, **data | {"forget": forget}, tasks=["shape"])

    def test_a_retained_sample_without_any_label(self, tmp_path):
        data = pictures()
        retain = blanked(blanked(data["retain"], "shape", [2, 5]), "distance", [1, 5])
        message = r"1 of the 24 samples of retain have no label on any task \(the first is row 5\)"
        refused(tmp_path, message, **data | {"retain": retain})

    @pytest.mark.parametrize("which", ["forget", "retain", "unseen"])
    @pytest.mark.parametrize("label", [2, -1])
    def test_a_label_that_the_head_does_not_have(self, tmp_path, which, label):
        rows = as_rows(pictures()[which])
        rows[3]["shape"] = label
        refused(tmp_path, "'shape'", **pictures() | {which: rows})

    def test_a_label_of_the_wrong_shape(self, tmp_path):
        rows = as_rows(pictures()["retain"])
        rows[3]["distance"] = torch.zeros(2)
        refused(tmp_path, "'distance'", **pictures() | {"retain": rows})

    @pytest.mark.parametrize("which", ["forget", "retain", "unseen"])
    def test_a_missing_column(self, tmp_path, which):
        data = pictures()
        data[which] = data[which].remove_columns("shape")
        refused(tmp_path, f"{which} has the columns .*, and none for the task 'shape'", **data)

    def test_a_stream(self, tmp_path):
        data = pictures()
        message = "retained set is a stream, and the labels of each task are counted before the first step"
        refused(tmp_path, message, **data | {"retain": data["retain"].to_iterable_dataset()})
        stream = data["forget"].to_iterable_dataset()
        refused(tmp_path, "forget is a stream; only the retained set may be one", **data | {"forget": stream})

    @pytest.mark.parametrize("which", ["forget", "retain", "unseen"])
    def test_a_set_that_is_not_given(self, tmp_path, which):
        refused(tmp_path, "multitask needs .*, which was not given", **pictures() | {which: None})

    def test_no_unseen_label_on_a_task_to_forget(self, tmp_path):
        data = pictures()
        unseen = blanked(data["unseen"], "shape", range(24))
        refused(tmp_path, "no label on the task 'shape'", **data | {"unseen": unseen}, tasks=["shape"])

    def test_forget_samples_among_the_retained(self, tmp_path):
        data = pictures()
        both = datasets.concatenate_datasets([data["retain"], data["forget"]])
        refused(tmp_path, "8 of the 8 forget samples stand in retain too", **data | {"retain": both})

    @pytest.mark.parametrize("method", ["hamu", "lotus", "random_label", "orthograd"])
    def test_another_method(self, tmp_path, method):
        refused(tmp_path, f"{method} works on .*, and this model is for multi-task", method=method)

    def test_a_classifier(self, tmp_path):
        data = plain_request(images)
        message = "multitask works on multi-task, and this model is for image-classification"
        refused(tmp_path, message, tiny_vit(), **data)
        refused(tmp_path, "tasks is given, and the model is for image-classification", tiny_vit(), **data,
                method="finetune", tasks=["shape"])  # fmt: skip

    @pytest.mark.parametrize(
        "args",
        [{"optim": "adamw_torch"}, {"optim_args": "momentum=0.9", "optim": "sgd"}, {"weight_decay": 0.1}],
        ids=lambda a: next(iter(a)),
    )
    def test_another_optimizer(self, tmp_path, args):
        refused(tmp_path, "its guarantee holds for the exact update only; expected plain SGD", args=args)

    def test_losses_of_ones_own(self, tmp_path):
        data = own_request()
        refused(
            tmp_path,
            "was given the tasks None; expected a list of the names",
            Perceptron(),
            **data,
            method=Multitask(losses=losses_of),
        )
        with pytest.raises(UnlearningError, match="The losses function gave losses of a; expected a, b"):
            method = Multitask(losses=lambda model, batch: {"a": losses_of(model, batch)["a"]}, tasks=["a", "b"])
            unlearn(Perceptron(), **data, method=method, args=arguments(tmp_path))

    def test_no_losses_for_a_model_of_ones_own(self, tmp_path):
        refused(tmp_path, "Perceptron", Perceptron(), **own_request())

    def test_a_best_checkpoint(self, tmp_path):
        args = {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"}
        refused(tmp_path, "no gap because a multi-task model has a score for each task", args=args)
        refused(tmp_path, "which is measured on the half of the unseen samples", args=args | {
            "metric_for_best_model": "uis"})  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Labels and batches


class TestLabelled:
    def test_scalars(self):
        tasks, data = Tasks(tiny()), scenes(6)
        absent = blanked(blanked(data, "shape", [0, 4]), "distance", [4, 5])
        expected = np.array([[i not in (4, 5), i not in (0, 4)] for i in range(6)])  # distance, shape
        assert tasks.names == ["distance", "shape"]
        for rows in (absent, absent.with_format(None), as_rows(data, shape=[0, 4], distance=[4, 5])):
            assert (tasks.labelled(Source(rows, "forget", layout=tasks.layout)) == expected).all()
        rows = as_rows(data)
        rows[1]["shape"], rows[2]["distance"] = -100, float("nan")
        found = tasks.labelled(Source(rows, "forget", layout=tasks.layout))
        assert (~found == [[i == 2, i == 1] for i in range(6)]).all()

    @pytest.mark.parametrize("as_torch", [False, True])
    def test_dense(self, as_torch):
        model, data = tiny({k: SCENE_TASKS[k] for k in ("seg", "depth", "normals")}, tiny_resnet), scenes(5)
        tasks = Tasks(model)
        rows = as_rows(data, seg=[1], depth=[2], normals=[3])
        rows[0]["seg"] = torch.full((16, 16), -100)
        rows[0]["depth"] = torch.full((16, 16), float("nan"))
        rows[4]["seg"][:8], rows[4]["depth"][:8], rows[4]["normals"][:, :8] = -100, float("nan"), float("nan")
        if not as_torch:
            columns = {
                name: [None if row[name] is None else np.asarray(row[name]) for row in rows] for name in rows[0]
            }
            rows = datasets.Dataset.from_dict(columns, features=data.features).with_format("torch")
        missing = {"depth": [0, 2], "normals": [3], "seg": [0, 1]}
        expected = np.array([[i not in missing[name] for name in tasks.names] for i in range(5)])
        assert (tasks.labelled(Source(rows, "forget", layout=tasks.layout)) == expected).all()

    def test_of_ones_own(self):
        tasks = Tasks(Perceptron(), losses_of, ["a", "b"])
        rows = [{"x": torch.zeros(6), "a": 1, "b": None}, {"x": torch.zeros(6), "a": float("nan"), "b": 2.0}]
        assert tasks.kinds == {"a": None, "b": None}
        assert (tasks.labelled(Source(rows, "forget", layout=tasks.layout)) == [[True, False], [False, True]]).all()
        stacked = tasks.stack("b", [None, 2.0])
        assert stacked.dtype == torch.float32 and stacked.isnan().tolist() == [True, False]
        assert tasks.stack("a", [1, 2]).dtype == torch.float32  # whether one is missing or not
        classes = Tasks(Perceptron(), losses_of, {"a": "classification", "b": "classification"})
        assert classes.stack("a", [1, None]).tolist() == [1, -100]
        assert classes.stack("a", [1, 2]).dtype == torch.int64
        assert tasks.stack("a", [torch.ones(2, 3), torch.zeros(2, 3)]).shape == (2, 2, 3)
        assert tasks.stack("a", [np.ones(2), None]).isnan().tolist() == [[False] * 2, [True] * 2]


class TestCollator:
    def collator(self, model, data, **options) -> TaskCollator:
        tasks = Tasks(model)
        source = Source(data, "forget", layout=tasks.layout)
        about = {"processing_class": None, "data_collator": None, "accepts": {"pixel_values", "input_ids"}, **options}
        return TaskCollator(tasks, source, **about)

    def test_pictures(self):
        data = scenes(4)
        rows = as_rows(data, shape=[1], distance=[2])
        batch = self.collator(tiny(), rows)(rows)
        assert set(batch) == {"pixel_values", "labels"} and set(batch.inputs) == {"pixel_values"}
        assert torch.equal(batch["pixel_values"], data["pixel_values"][:])
        shapes = [int(s) for s in data["shape"][:]]
        assert batch.labels["shape"].tolist() == [shapes[0], -100, *shapes[2:]]
        assert batch.labels["distance"].isnan().tolist() == [False, False, True, False]

    def test_raw_texts(self):
        data = texts()["forget"]
        model = tiny(TEXT_TASKS, tiny_bert)
        rows = [data[i] for i in range(3)]
        batch = self.collator(model, data, processing_class=tiny_tokenizer())(rows)
        expected = tiny_tokenizer()([row["text"] for row in rows], padding=True, return_tensors="pt")
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert batch.labels["topic"].tolist() == [row["topic"] for row in rows]

    def test_tokens(self):
        model = tiny(TEXT_TASKS, tiny_bert)
        rows = [{"input_ids": list(range(2, 4 + n)), "topic": n, "tone": None} for n in range(3)]
        batch = self.collator(model, rows, processing_class=tiny_tokenizer())(rows)
        assert batch["input_ids"].shape == (3, 4) and batch.labels["topic"].tolist() == [0, 1, 2]
        assert batch.labels["tone"].tolist() == [-100] * 3

    def test_a_data_collator_of_ones_own(self):
        rows = as_rows(scenes(3))

        def collate(rows):
            return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]) * 2}

        batch = self.collator(tiny(), rows, data_collator=collate)(rows)
        assert torch.equal(batch["pixel_values"], 2 * torch.stack([row["pixel_values"] for row in rows]))
        assert batch.labels["shape"].tolist() == [int(row["shape"]) for row in rows]


def make_request(asked, data=None, model=None) -> tuple[Request, dict]:
    data, task = data or pictures(), task_of(model or tiny())
    args = arguments("unused")
    sets = data | {"test": data.get("test")}
    return Request(sets, Multitask(), task, args, "error", asked), data


def test_request():
    asked = {"shape": [i < 5 for i in range(8)], "distance": [i >= 3 for i in range(8)]}
    data = pictures()
    data["forget"] = blanked(data["forget"], "distance", [0])
    request, _ = make_request(asked, data)
    mask = np.array([[i >= 3, i < 5] for i in range(8)])
    assert (request.mask == mask).all()
    assert request.kept == {1: 24, 2: 25, 5: 26, 6: 27, 7: 28}  # 0 has no other label, 3 and 4 forget both
    sizes = np.ones((8 + 24 + 5, 2), int)
    sizes[:8], sizes[32:] = mask, ~mask[[1, 2, 5, 6, 7]]
    assert (request.sizes == sizes).all()
    assert len(request.sources["retain"]) == 29 and len(request.indices["retain"][1]) == 24
    assert (request.counted["forget"] == mask).all()
    for row, place in request.kept.items():
        (found,) = request.sources["retain"].rows([place])
        assert torch.equal(found["pixel_values"], data["forget"][row]["pixel_values"])
    assert len(data["retain"]) == 24  # the user's own set is left alone


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def by_hand(model, rows, counted, tasks) -> dict[str, tuple[float, float]]:
    """Score and mean loss of each task, sample after sample."""
    found = {}
    for i, (name, task) in enumerate(tasks.items()):
        losses, hits, labelled = [], 0.0, 0
        intersection, union = np.zeros(task.get("size", 0)), np.zeros(task.get("size", 0))
        for j, row in enumerate(rows):
            if not counted[j, i]:
                continue
            label = stack_labels([row[name]], task)
            with torch.no_grad():
                out = model(pixel_values=row["pixel_values"][None]).logits[name]
            losses.append(sample_losses(out, label, task["kind"]).item())
            out, label = out[0], label[0]
            if task["kind"] == "classification":
                hits, labelled = hits + (out.argmax() == label).item(), labelled + 1
            elif task["kind"] == "regression":
                hits, labelled = hits + (abs(out - label) <= task["tolerance"]).item(), labelled + 1
            elif task["kind"] == "depth":
                seen = ~label.isnan()
                ratio = torch.maximum(out / label, label / out)[seen]
                hits, labelled = hits + (ratio < 1.25).sum().item(), labelled + seen.sum().item()
            elif task["kind"] == "normals":
                close = (out * label).sum(0) / label.norm(dim=0) >= np.cos(np.pi / 6)
                hits, labelled = hits + close.sum().item(), labelled + close.numel()
            else:
                said, seen = out.argmax(0), label != -100
                for c in range(task["size"]):
                    intersection[c] += ((said == c) & (label == c) & seen).sum().item()
                    union[c] += (((said == c) | (label == c)) & seen).sum().item()
        if task["kind"] == "segmentation":
            hits, labelled = (intersection[union > 0] / union[union > 0]).sum(), (union > 0).sum()
        found[name] = (hits / labelled, float(np.mean(losses)))
    return found


@pytest.mark.parametrize("eval_batch", slow_but([3], [3, 128]))
def test_figures_by_hand(tmp_path, eval_batch):
    """Of forget samples count, on target tasks, the labels that must go, and on others all of them."""
    model = tiny(SCENE_TASKS, tiny_resnet)
    data = pictures(forget=7, retain=10, unseen=12)
    rows = {name: as_rows(s) for name, s in data.items()}
    rows["forget"][2]["depth"], rows["retain"][3]["seg"], rows["unseen"][4]["normals"] = None, None, None
    rows["retain"][1]["seg"] = torch.where(torch.arange(16) < 5, -100, rows["retain"][1]["seg"])
    rows["retain"][2]["depth"] = torch.where(torch.arange(16) < 5, torch.nan, rows["retain"][2]["depth"])
    asked = {"shape": [True] * 5 + [False] * 2, "seg": [False] * 3 + [True] * 4}
    args = arguments(tmp_path, per_device_eval_batch_size=eval_batch)
    trainer = UnlearningTrainer(model, args, method="multitask", tasks=asked, **for_trainer(rows))
    tasks = model.config.tasks
    assert trainer.targets == ["seg", "shape"]
    measured = trainer.measure()
    trainer.original = measured
    for split, (source, indices) in trainer.indices.items():
        chosen = [rows[source][i] for i in indices]
        labelled = np.array([[row[name] is not None for name in tasks] for row in chosen])
        if split == "forget":
            for name, which in asked.items():
                labelled[:, list(tasks).index(name)] &= which
        expected = by_hand(model, chosen, labelled, tasks)
        for i, name in enumerate(tasks):
            score, loss = expected[name]
            assert measured[split].scores[name] == pytest.approx(score, abs=1e-9), (split, name)
            assert measured[split].losses[name] == pytest.approx(loss, rel=1e-5), (split, name)
            assert len(measured[split].sample_losses[name]) == labelled[:, i].sum()
    assert {split: len(indices) for split, (_, indices) in trainer.indices.items()} == {
        "forget": 7, "retain": 10, "control": 6, "evidence": 6}  # fmt: skip
    figures, reasons = trainer.evaluator.figures(measured, measured)
    for name in tasks:
        assert figures[f"forget_{name}"] == measured["forget"].scores[name]
        assert figures[f"retain_{name}"] == measured["retain"].scores[name]
        assert figures[f"unseen_{name}"] == measured["evidence"].scores[name]
    aucs = {key for key in figures if key.startswith("auc_")}
    assert aucs == {f"auc_{task}{end}" for task in ("seg", "shape") for end in ("", "_low", "_high")}
    f, u = (-measured[split].sample_losses["shape"] for split in ("forget", "evidence"))
    auc = np.mean((f[:, None] > u) + 0.5 * (f[:, None] == u))
    assert figures["auc_shape"] == pytest.approx(auc)


def test_measuring_leaves_the_model_alone(tmp_path):
    model = tiny(build=tiny_resnet)
    trainer = UnlearningTrainer(model, arguments(tmp_path), method="multitask", **for_trainer(pictures()))
    before = weights(model)
    model.train()
    first, second = trainer.measure(), trainer.measure()
    assert model.training and same_bits(before, weights(model))
    assert first["retain"].scores == second["retain"].scores


def test_scores_of_ones_own(tmp_path):
    """Without scores, exp(−mean loss) is the score; with them, their mean."""
    data = own_request()
    for scored in (False, True):

        def losses(model, batch, scored=scored):
            found = losses_of(model, batch)
            return {t: (loss, torch.full_like(loss, 0.25)) if scored else loss for t, loss in found.items()}

        method = Multitask(losses=losses, tasks=["a", "b"])
        trainer = UnlearningTrainer(Perceptron(), arguments(tmp_path), method=method, **for_trainer(data))
        measured = trainer.measure()["retain"]
        with torch.no_grad():
            out = trainer.model(data["retain"].columns["x"])
        for task in ("a", "b"):
            loss = F.cross_entropy(out[task], data["retain"].columns[task]).item()
            assert measured.losses[task] == pytest.approx(loss, rel=1e-5)
            assert measured.scores[task] == pytest.approx(0.25 if scored else np.exp(-loss), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs

RUNS = {
    "vit": (PICTURE_TASKS, tiny_vit, pictures, None),
    "resnet": ({k: SCENE_TASKS[k] for k in ("seg", "depth", "normals")}, tiny_resnet, pictures, None),
    "bert": (TEXT_TASKS, tiny_bert, texts, tiny_tokenizer),
}
TARGET = {"vit": "shape", "resnet": "depth", "bert": "tone"}


def known(name: str, retrained: bool = False) -> MultiTaskModel:
    """A model that knows its training samples, or one that has never seen those to forget."""
    tasks, build, *_ = RUNS[name]
    model = tiny(tasks, build)
    model.load_state_dict(_known(name, retrained))
    return model.eval()


@functools.cache
def _known(name: str, retrained: bool) -> dict[str, Tensor]:
    tasks, build, make, _ = RUNS[name]
    data = make()
    sets = [data["retain"]] if retrained else [data["forget"], data["retain"]]
    return fit(tiny(tasks, build, seed=int(retrained)), sets).state_dict()


def start(name: str, asked, folder, method=None, args=None, **options):
    _, _, make, processor = RUNS[name]
    data, model = make(), known(name)
    if name == "resnet":  # its maps are read much faster from a torch dataset
        data = {part: as_rows(rows) for part, rows in data.items()}
    settings = {"learning_rate": 0.03, "num_train_epochs": 2, **(args or {})}
    return unlearn(
        model, **data, tasks=asked, method=method or MultitaskConfig(**FAST), args=arguments(folder, **settings),
        processing_class=processor and processor(), **options
    )  # fmt: skip


@pytest.mark.parametrize("partial", [pytest.param(False, marks=pytest.mark.slow), True], ids=["full", "partial"])
@pytest.mark.parametrize("name", slow_but(["vit"], RUNS))
def test_unlearn(name, partial, tmp_path):
    tasks = RUNS[name][0]
    asked = [TARGET[name]] if partial else None
    result = start(name, asked, tmp_path / "run")
    before, after = result.metrics["before"], result.metrics["after"]
    assert not same_bits(weights(known(name)), weights(result.model))
    assert result.trainer.targets == (asked or sorted(tasks))
    for figures in (before, after):
        for split in ("forget", "retain", "unseen"):
            assert all(0 <= figures[f"{split}_{task}"] <= 1 for task in tasks)
        assert figures["uis"] >= 0 and (figures["uis_nontarget"] is None) == (not partial)
        assert (figures["task_interference"] is None) == (not partial)
    assert before["instance_interference"] == 0 and before.get("uis_nontarget") in (None, 0)
    assert after["forget_" + TARGET[name]] <= before["forget_" + TARGET[name]]
    assert all(np.isfinite(x) for x in after.values() if x is not None)

    folder = result.save(tmp_path / "result")
    loaded = AutoModel.from_pretrained(folder)
    assert isinstance(loaded, MultiTaskModel)
    assert same_bits(weights(loaded), weights(result.model))
    saved = json.loads((folder / "metrics.json").read_text())
    assert saved["after"] == after and set(saved["report"]["kept"]) <= set(tasks)
    assert json.loads((folder / "unlearning_config.json").read_text())["method"] == "multitask"

    rows = result.compare(known(name, retrained=True))
    assert list(rows) == ["original", "unlearned", "retrained"]
    assert rows["retrained"]["uis_retrained"] == 0 and rows["original"]["uis_retrained"] > 0
    assert rows["unlearned"]["uis"] == after["uis"] and rows["original"]["uis"] == before["uis"]

    text = result.summary()
    lines = text.splitlines()
    assert lines[0].split() == ["original", "unlearned"]
    figures = {line.rsplit(maxsplit=2)[0].strip() for line in lines[1:] if len(line.split()) > 2}
    assert {f"{split} {task}" for split in ("forget", "retain", "unseen") for task in tasks} <= figures
    assert "UIS" in figures and "instance interference" in figures
    assert ("task interference" in figures) == partial
    assert "nan" not in text.lower() and "None" not in text


@pytest.mark.slow
def test_only_labels_that_must_go_are_forgotten(tmp_path):
    """A request of its own for each sample, with a test set, which all of unseen then steers."""
    asked = {"shape": [i < 4 for i in range(8)], "distance": [i >= 4 for i in range(8)]}
    result = start("vit", asked, tmp_path, test=scenes(10, seed=9))
    assert len(result.trainer.indices["control"][1]) == 24 and len(result.trainer.indices["evidence"][1]) == 10
    assert len(result.trainer.unlearned["forget"].sample_losses["shape"]) == 4
    assert len(result.trainer.request.kept) == 8


@pytest.mark.slow
def test_hinge_objective(tmp_path):
    """Of maps, forgetting ends at the mean loss of the original on unseen samples, and has no slope beyond it."""
    data = pictures()
    trainer = UnlearningTrainer(known("resnet"), arguments(tmp_path), method=MultitaskConfig(**FAST), tasks=["depth"],
                                **for_trainer(data))  # fmt: skip
    method, context = trainer.method, Context(trainer)
    method.prepare(context)
    assert method.tau == {"depth": trainer.measure()["control"].losses["depth"]}
    samples = [[("forget", i)] for i in range(8)]
    plain = context.gradients(method._task_loss("depth"), samples)
    for tau in (1e6, 0.0):  # all losses are below the first and above the second
        method.tau = {"depth": tau}
        for g, hinge in zip(plain, context.gradients(method._forget_loss("depth"), samples), strict=True):
            for x, y in zip(g, hinge, strict=True):
                assert torch.allclose(x, y, atol=1e-7) if tau else not y.any()


@pytest.mark.slow
def test_an_adapter(tmp_path):
    """LoRA in the attention of the backbone: nothing else moves, heads included, and the original is still there."""
    data, model = pictures(), known("vit")
    before = weights(model)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    result = unlearn(copy.deepcopy(model), **data, tasks=["shape"], method=MultitaskConfig(**FAST, rank_guard=1.0),
                     peft_config=lora, args=arguments(tmp_path / "run", learning_rate=0.3))  # fmt: skip
    assert isinstance(result.model, PeftModel)
    base = {n.replace("base_model.model.", "").replace(".base_layer", ""): t for n, t in weights(result.model).items()}
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())
    adapters = {name: tensor for name, tensor in base.items() if name not in before}
    assert adapters and all(".lora_" in name for name in adapters)
    assert any(tensor.any() for name, tensor in adapters.items() if "lora_B" in name)
    assert result.metrics["after"]["uis"] is not None
    pixels = data["forget"]["pixel_values"][:]
    with torch.no_grad(), result.trainer.original_model() as original:
        found = original(pixel_values=pixels).logits
        for task, expected in model(pixel_values=pixels).logits.items():
            assert torch.allclose(found[task], expected, atol=1e-6)
    folder = result.save(tmp_path / "result")
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), str(folder / "unlearn")).eval()
    with torch.no_grad():
        for task, expected in result.model.eval()(pixel_values=pixels).logits.items():
            assert torch.allclose(loaded(pixel_values=pixels).logits[task], expected, atol=1e-6)


@pytest.mark.slow
def test_evaluated_in_every_epoch(tmp_path):
    result = start("vit", ["shape"], tmp_path, args={"eval_strategy": "epoch", "learning_rate": 1e-4})
    logs = [line for line in result.trainer.state.log_history if "eval_uis" in line]
    assert len(logs) >= 2
    assert {f"eval_{split}_{task}" for split in ("forget", "retain") for task in PICTURE_TASKS} <= set(logs[-1])


@pytest.mark.slow
def test_bfloat16(tmp_path):
    """Autocast, and weights in bfloat16."""
    for args, dtype in (({"bf16": True, "use_cpu": True}, torch.float32), ({}, torch.bfloat16)):
        data, model = pictures(), known("vit").to(dtype)
        result = unlearn(model, **data, tasks=["shape"], method=MultitaskConfig(**FAST), args=arguments(
            tmp_path / str(dtype), learning_rate=0.1, **args))  # fmt: skip
        assert all(tensor.isfinite().all() for tensor in weights(result.model).values())


def test_sentences_of_the_shared_samples_are_refused_without_tasks(tmp_path):
    """The columns of a classifier are none for the tasks."""
    data = {name: sentences(8, seed=i) for i, name in enumerate(("forget", "retain", "unseen"))}
    refused(tmp_path, "none for the task 'tone'|none for the task 'topic'", tiny(TEXT_TASKS, tiny_bert), **data,
            processing_class=tiny_tokenizer())  # fmt: skip
