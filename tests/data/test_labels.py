"""Labels of the data and classes of the model are matched by name, in `unlearn`, in recipes and in `audit` alike."""

import logging
import weakref
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hf_unlearn import UnlearningError, UnlearningTrainer, audit, split_dataset, unlearn
from hf_unlearn.commands.sets import read_dataset
from hf_unlearn.data.labels import Classes, Numbering
from hf_unlearn.data.source import Columns, Source
from hf_unlearn.tasks.checks import number_classes
from tests.samples import arguments, for_trainer, images, pictures, request, sentences
from tests.tiny import tiny_image_processor, tiny_vit

ANIMALS = ["cat", "dog", "bird", "fish"]


def knowing(names: list[str], generic: bool = False) -> SimpleNamespace:
    """What matters of a model's config."""
    label2id = None if generic else {name: i for i, name in enumerate(names)}
    return SimpleNamespace(id2label=dict(enumerate(names)), label2id=label2id, num_labels=len(names))


GENERIC = knowing([f"LABEL_{i}" for i in range(4)], generic=True)


def labelled(labels: list, names: list[str] | None = None) -> datasets.Dataset:
    feature = datasets.ClassLabel(names=names) if names else None
    data = datasets.Dataset.from_dict({"text": ["a"] * len(labels), "label": labels})
    return data.cast_column("label", feature) if names else data


def numbered(data, config, name: str = "forget") -> Source:
    source = Source(data, name)
    number_classes([source], config)
    return source


def animal_vit():
    model = tiny_vit()
    model.config.id2label, model.config.label2id = dict(enumerate(ANIMALS)), {n: i for i, n in enumerate(ANIMALS)}
    return model


class TestNames:
    @pytest.mark.parametrize(
        ("names", "label", "number"),
        [
            (ANIMALS, "bird", 2),
            (ANIMALS, " BIRD ", 2),
            (["tabby cat", "sea_horse"], "Sea-Horse", 1),
            (["tabby cat", "sea_horse"], "tabby_cat", 0),
            (["Cat", "cat"], "cat", 1),  # as it is written
            (["Cat", "cat"], "CAT", -1),  # could be either
            (ANIMALS, "horse", -1),
            (ANIMALS, "3", 3),  # a number, where no class is called so
            (["3", "1", "2"], "1", 1),
            (["LABEL_0", "LABEL_1"], "1", 1),
            (["LABEL_0", "LABEL_1"], "label 1", 1),
            (["LABEL_0", "LABEL_1"], "2", -1),
            (["LABEL_0", "LABEL_1"], "cat", -1),
        ],
    )
    def test_found(self, names, label, number):
        assert Classes.of_model(knowing(names)).find(label) == number

    def test_twins_are_told_apart_by_position(self):
        """ImageNet has two cranes; label2id can only name one of them."""
        config = knowing(["crane", "cat", "crane"])
        config.label2id = {"crane": 2, "cat": 1}
        classes = Classes.of_model(config)
        assert Numbering(classes, ["crane", "cat"]).numbers.tolist() == [0, 1]
        assert classes.find("crane") == -1

    def test_one_map_may_be_missing_or_generic(self):
        for label2id in (None, {f"LABEL_{i}": i for i in range(4)}):
            config = SimpleNamespace(id2label=dict(enumerate(ANIMALS)), label2id=label2id, num_labels=4)
            assert Classes.of_model(config).find("bird") == 2
        config = SimpleNamespace(id2label={i: f"LABEL_{i}" for i in range(3)}, label2id={"dog": 0}, num_labels=3)
        assert Classes.of_model(config).find("Dog") == 0


class TestNumbering:
    @pytest.mark.parametrize(
        ("labels", "names", "expected"),
        [
            ([0, 1, 2, 3], ["Fish", "Bird", "Dog", "Cat"], [3, 2, 1, 0]),
            ([0, 0], ["dog"], [1, 1]),
            ([0, 1], ["bird", "dog"], [2, 1]),
            ([0, 1, 2, 3], ANIMALS, [0, 1, 2, 3]),
            ([3, 0], ["cat", "cow", "horse", "dog"], [1, 0]),  # cows and horses do not occur
            ([0, 2], ["0", "1", "2"], [0, 2]),  # no names, only numbers
            ([2, 0], None, [2, 0]),
        ],
    )
    def test_by_name(self, labels, names, expected):
        source = numbered(labelled(labels, names), knowing(ANIMALS))
        assert source.labels.tolist() == expected
        assert [row["label"] for row in source.rows(range(len(labels)))] == expected
        stream = numbered_stream(labelled(labels, names), knowing(ANIMALS))
        assert [row["label"] for row in stream.rows(range(len(labels)))] == expected

    @pytest.mark.parametrize(
        ("labels", "config", "expected"),
        [
            (["Bird", "cat", "BIRD ", "fish"], knowing(ANIMALS), None),
            (["bird", "cat", "fish"], knowing(ANIMALS), [2, 0, 3]),
            (["Bird", "Cat"], knowing(ANIMALS), [2, 0]),
            (["3", "0", "1"], GENERIC, [3, 0, 1]),
            (["LABEL_3", "LABEL_1"], GENERIC, [3, 1]),
        ],
    )
    def test_text(self, labels, config, expected):
        if expected is None:
            with pytest.raises(
                UnlearningError, match="'BIRD ' and 'Bird' of forget would both be the model's class 2"
            ):
                numbered(labelled(labels), config)
            return
        for data in (labelled(labels), [{"text": "a", "label": label} for label in labels]):
            source = numbered(data, config)
            assert source.labels.tolist() == expected
            assert [row["label"] for row in source.rows(range(len(labels)))] == expected

    @pytest.mark.parametrize(
        ("labels", "names", "config", "message"),
        [
            ([0, 1], ["cow", "dog"], knowing(ANIMALS), r"1 of the 2 samples .*\(row 0: label 'cow'\).*\(cat, dog, bird, fish\)"),
            ([0, 1, 2], ["apple", "pear", "plum"], knowing(ANIMALS), "3 of the 3 samples .*label 'apple'.*datasets.Value"),
            (["cow", "dog"], None, knowing(ANIMALS), r"1 of the 2 samples .*row 0: label 'cow'"),
            (["cat", "dog"], None, GENERIC, r"labels of forget are text \('cat', ...\).*no names.*label2id"),
            ([0, 1], ["3", "7"], GENERIC, r"row 1: label '7'\); expected 0 to 3, the classes of the model's head"),
            ([0, 1], ["cat", "Cat"], knowing(ANIMALS), "labels 'cat' and 'Cat' of forget would both be the model's class 0"),
            ([None, "cat"], None, knowing(ANIMALS), r"1 of the 2 samples .*\(row 0: no label\)"),
            ([0, 9], None, knowing(ANIMALS), r"row 1: label 9\); expected one of the model's classes \(cat, dog"),
        ],
    )  # fmt: skip
    def test_refused(self, labels, names, config, message):
        with pytest.raises(UnlearningError, match=message) as caught:
            numbered(labelled(labels, names), config)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)

    def test_partly_text(self):
        rows = [{"text": "a", "label": "cat"}, {"text": "b", "label": 1}]
        with pytest.raises(UnlearningError, match=r"labels of forget are partly text \('cat'\) and partly not \(1\)"):
            numbered(rows, knowing(ANIMALS))

    def test_a_missing_label_stays_missing(self):
        data = labelled([0, 1, 0], ["dog", "cat"]).map(
            lambda row, i: {"label": None} if i == 1 else {}, with_indices=True
        )
        with pytest.raises(UnlearningError, match=r"row 1: no label"):
            numbered(data, knowing(ANIMALS))

    def test_renamed_by_a_transform(self):
        data = labelled([0, 1], ["dog", "cat"]).with_transform(
            lambda rows: {"text": rows["text"], "labels": rows["label"]}
        )
        assert [row["labels"] for row in numbered(data, knowing(ANIMALS)).rows([0, 1])] == [1, 0]

    def test_a_stream_is_checked_as_it_comes(self):
        rows = [{"text": "a", "label": label} for label in ("Dog", "cow")]
        stream = numbered_stream(datasets.IterableDataset.from_generator(lambda: iter(rows)), knowing(ANIMALS))
        assert stream.rows([0])[0]["label"] == 1
        with pytest.raises(
            UnlearningError, match="A sample of retain has the label 'cow'; expected one of the model's cl"
        ):
            stream.rows([1])


def numbered_stream(data, config) -> Source:
    stream = data if isinstance(data, datasets.IterableDataset) else data.to_iterable_dataset()
    source = Source(stream, "retain", size=len(data) if isinstance(data, datasets.Dataset) else 2)
    number_classes([source], config)
    return source


class TestNotice:
    """One line says what was numbered anew, or that names could not be used."""

    def said(self, caplog, config, **sets) -> list[str]:
        with caplog.at_level(logging.INFO, "hf_unlearn"):
            number_classes([Source(data, name) for name, data in sets.items()], config)
        return [record.getMessage() for record in caplog.records]

    def test_numbered_anew(self, caplog):
        data = labelled([0, 1], ["dog", "cat"])
        (line,) = self.said(caplog, knowing(ANIMALS), forget=data, retain=data)
        assert line == (
            "The labels of forget, retain are matched to the model's classes by name, and so numbered anew ('dog' (0) is 1, "
            "'cat' (1) is 0)."
        )

    def test_the_model_has_no_names(self, caplog):
        (line,) = self.said(caplog, GENERIC, forget=labelled([0, 1], ["dog", "cat"]))
        assert "labels of forget are taken by position ('dog' is 0, 'cat' is 1, 2 for 4 classes)" in line
        assert "id2label" in line

    @pytest.mark.parametrize("names", [ANIMALS, None, ["0", "1"]])
    def test_nothing_to_say(self, caplog, names):
        assert self.said(caplog, knowing(ANIMALS), forget=labelled([0, 1], names)) == []


class TestEverywhere:
    """The same in all that reads labels."""

    @pytest.fixture
    def folder(self, tmp_path):
        """Pictures of two of the model's four classes, in a folder of their name each."""
        for name in ("Fish", "dog"):
            (tmp_path / "data" / name).mkdir(parents=True)
            for i in range(8):
                pixels = np.random.default_rng([i, len(name)]).integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
        return tmp_path / "data"

    def test_trainer(self, tmp_path):
        names = list(reversed(ANIMALS))
        data = {name: part.cast_column("label", datasets.ClassLabel(names=names)) for name, part in request().items()}
        trainer = UnlearningTrainer(animal_vit(), arguments(tmp_path), **for_trainer(data))
        for source in trainer.sources.values():
            assert source.labels[:5].tolist() == [3, 2, 1, 0, 3]
        batch = next(iter(trainer.get_train_dataloader()))
        pixels = {name: part["pixel_values"][:] for name, part in data.items()}
        for i in range(len(batch.labels)):
            name = "forget" if batch.is_forget[i] else "retain"
            row = int(batch.sample_index[i]) - (0 if batch.is_forget[i] else 8)
            assert torch.equal(batch["pixel_values"][i], pixels[name][row])
            assert batch.labels[i] == 3 - row % 4

    def test_sets_of_different_orders_meet_in_one_batch(self, tmp_path):
        data = request()
        data["forget"] = data["forget"].cast_column("label", datasets.ClassLabel(names=list(reversed(ANIMALS))))
        data["retain"] = data["retain"].cast_column("label", datasets.ClassLabel(names=ANIMALS))
        trainer = UnlearningTrainer(animal_vit(), arguments(tmp_path), **for_trainer(data))
        for batch in trainer.get_train_dataloader():
            rows = batch.sample_index - torch.where(batch.is_forget, 0, 8)
            assert torch.equal(batch.labels, torch.where(batch.is_forget, 3 - rows % 4, rows % 4))

    def test_a_folder_of_two_of_the_classes(self, folder, tmp_path):
        data = read_dataset(str(folder))["train"]
        parts = split_dataset(data, indices=range(0, 16, 4))
        trainer = UnlearningTrainer(
            animal_vit(),
            arguments(tmp_path / "out"),
            forget_dataset=parts["forget"],
            retain_dataset=parts["retain"],
            method="finetune",
            processing_class=tiny_image_processor(),
        )
        assert trainer.sources["forget"].labels.tolist() == [3, 3, 1, 1]

    @pytest.mark.parametrize("names", [["apple", "pear", "plum", "fig"], ["cat", "dog", "bird", "cow"]])
    def test_other_classes_are_refused(self, tmp_path, names):
        data = request()
        data["unseen"] = data["unseen"].cast_column("label", datasets.ClassLabel(names=names))
        with pytest.raises(
            UnlearningError, match="samples of unseen have labels the model does not have .*'(apple|cow)'"
        ):
            unlearn(animal_vit(), **data, args=arguments(tmp_path / "out"))
        with pytest.raises(
            UnlearningError, match="samples of unseen have labels the model does not have .*'(apple|cow)'"
        ):
            audit(animal_vit(), animal_vit(), **data)
        assert not (tmp_path / "out").exists()

    def test_audit(self):
        names = list(reversed(ANIMALS))
        data = {name: part.cast_column("label", datasets.ClassLabel(names=names)) for name, part in request().items()}
        model = animal_vit()
        model.classifier.bias.data[0] += 50  # it says cat of everything
        figures = audit(model, model, **data).content["figures"]["original"]
        shares = np.mean(np.asarray(data["forget"]["label"][:]) == names.index("cat"))
        assert figures["forget_accuracy"] == pytest.approx(shares) and shares > 0


class TestTwoColumns:
    def both(self, labels: list) -> datasets.Dataset:
        return sentences(4).add_column("labels", labels)

    def test_the_same_twice(self):
        assert Source(self.both([0, 1, 2, 0]), "forget").labels.tolist() == [0, 1, 2, 0]

    @pytest.mark.parametrize("labels", [[0, 1, 1, 0], [0, 1, None, 0], [[0], [1], [2], [0]], ["0", "1", "2", "0"]])
    def test_different_ones_are_refused(self, labels):
        with pytest.raises(
            UnlearningError, match=r"forget has the columns labels and label, which differ \(row \d: .*=\."
        ):
            _ = Source(self.both(labels), "forget").labels
        rows = [{**row} for row in self.both(labels)]
        with pytest.raises(UnlearningError, match="columns labels and label, which differ"):
            _ = Source(rows, "forget").labels

    def test_one_is_named(self):
        source = Source(self.both([0, 1, 1, 0]), "forget", Columns(label="label"))
        assert source.labels.tolist() == [0, 1, 2, 0]


class TestSplit:
    def test_text_labels(self):
        data = labelled(["cat", "dog", "cat", "bird"])
        assert split_dataset(data, labels="cat")["forget"]["label"][:] == ["cat", "cat"]
        assert len(split_dataset(data, labels=["Dog", "bird"])["forget"]) == 2

    @pytest.mark.parametrize("labels", [{1}, (1,), np.array([1]), np.float64(1), 1.0, True])
    def test_numbers(self, labels):
        assert split_dataset(labelled([0, 1, 2, 1]), labels=labels)["forget"]["label"][:] == [1, 1]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (1.9, r"labels holds 1.9; expected class numbers or names"),
            ([0, float("nan")], "labels holds nan; expected"),
            ([0, None], "labels holds None; expected"),
            (float("inf"), "labels holds inf; expected"),
            ([[0], [1]], r"labels holds \[0\]; expected"),
            ([0, 7], "No row is chosen by the label 7: no sample has it"),
            (["cat", "fish"], "No row is chosen by the label 'fish': no sample has it"),
            (["cat", "cow"], "There is no class named 'cow'"),
        ],
    )
    def test_refused(self, labels, message):
        data = labelled([0, 1, 2, 1], ANIMALS)
        with pytest.raises(UnlearningError, match=message):
            split_dataset(data, labels=labels)

    def test_numbers_of_text_labels(self):
        with pytest.raises(
            UnlearningError, match=r"labels holds 1, and the dataset's are text; expected names among \['ca"
        ):
            split_dataset(labelled(["cat", "dog"]), labels=1)

    @pytest.mark.parametrize(
        ("values", "shown"),
        [
            ([True, None, False], "None in row 1"),
            ([1.0, 0.0, float("nan")], "nan in row 2"),
            ([0.2, 1.0, 0.0], "0.2 in row 0"),
            ([1, 2, 0], "2 in row 1"),
            ([[True], [False], [True]], r"\[True\] in row 0"),
            (["no", "yes", "no"], r"text \('no', ...\)"),
        ],
    )
    def test_where(self, values, shown):
        data = datasets.Dataset.from_dict({"bad": values, "label": [0, 1, 2]})
        with pytest.raises(UnlearningError, match=f"The column 'bad' holds {shown}; expected true or false"):
            split_dataset(data, where="bad")
        with pytest.raises(UnlearningError, match=f"where gives {shown}; expected true or false"):
            split_dataset(data, where=lambda row: row["bad"])

    def test_where_fails(self):
        with pytest.raises(
            UnlearningError, match="where cannot be asked about row 0 .KeyError: 'nope'.; mend the function"
        ):
            split_dataset(labelled([0, 1]), where=lambda row: row["nope"])

    @pytest.mark.parametrize("values", [[1, 0, 1], [1.0, 0.0, 1.0], [True, False, True]])
    def test_truths(self, values):
        data = datasets.Dataset.from_dict({"bad": values, "label": [0, 1, 2]})
        assert split_dataset(data, where="bad")["forget"]["label"][:] == [0, 2]

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"indices": [[0], [1]]}, "indices are nested"),
            ({"indices": [[0], [1, 2]]}, "indices are nested"),
            ({"indices": ["0"]}, "indices are of type <U1; expected row numbers"),
            ({"fraction": "0.5"}, "fraction is '0.5'; expected a share"),
            ({"fraction": float("nan")}, "fraction is nan; expected a share"),
            ({"fraction": 0.5, "seed": -1}, "seed is -1; expected a whole number"),
            ({"fraction": 0.5, "seed": None}, "seed is None; expected a whole number"),
        ],
    )
    def test_other_choices(self, choice, message):
        with pytest.raises(UnlearningError, match=message):
            split_dataset(labelled([0, 1, 2]), **choice)

    def test_tables_and_lists(self):
        rows = [{"text": "a", "label": "cat"}, {"text": "b", "label": "dog"}]
        one = datasets.DatasetDict(train=datasets.Dataset.from_list(rows))  # as load_dataset makes of a file
        for data in (rows, pd.DataFrame(rows, index=[7, 8]), one):
            assert Source(data, "forget").rows([1]) == rows[1:]
            parts = split_dataset(data, labels="dog")
            assert parts["forget"]["text"][:] == ["b"] and parts["retain"].column_names == ["text", "label"]


def test_labels_of_pictures_stay_theirs():
    """`number_classes` changes no dataset."""
    data = pictures(4).cast_column("label", datasets.ClassLabel(names=list(reversed(ANIMALS))))
    assert numbered(data, knowing(ANIMALS)).labels.tolist() == [3, 2, 1, 0]
    assert data["label"][:] == [0, 1, 2, 3] and images(4)["label"][:].tolist() == [0, 1, 2, 3]


class TestNumbersAsNames:
    @pytest.mark.parametrize("label", ["1", "LABEL_0", "label 1"])
    def test_of_text_labels_are_no_names(self, label):
        data = datasets.Dataset.from_dict({"text": list("abcd"), "label": ["cat", "dog", "cat", "dog"]})
        with pytest.raises(UnlearningError, match=f"There is no class named '{label}'"):
            split_dataset(data, labels=label)
        assert split_dataset(data, labels="DOG")["forget"]["text"][:] == ["b", "d"]

    def test_from_one_on_of_a_head_without_names(self, caplog):
        source = numbered(labelled([0, 3, 1], ["1", "2", "3", "4"]), GENERIC)
        assert source.labels.tolist() == [0, 3, 1] and "are taken by position ('1' is 0" in caplog.text
        assert numbered(labelled([0, 1], ["1", "3"]), GENERIC).labels.tolist() == [1, 3]
        in_order_of_text = ["0", "1", "10", *map(str, range(2, 10))]
        head = knowing([f"LABEL_{i}" for i in range(11)], generic=True)
        assert numbered(labelled([2, 3], in_order_of_text), head).labels.tolist() == [10, 2]

    def test_of_a_model_that_counts_from_one(self, caplog):
        model = knowing(["1", "2", "3", "4"])
        assert numbered(labelled([0, 3], ["1", "2", "3", "4"]), model).labels.tolist() == [0, 3] and not caplog.text
        assert numbered(labelled([0, 3], ["4", "3", "2", "1"]), model).labels.tolist() == [3, 0]
        caplog.clear()
        assert numbered(labelled([0, 3], ["0", "1", "2", "3"]), model).labels.tolist() == [0, 3]
        assert (
            "are taken by position ('0' is 0" in caplog.text
            and "the model's names are other numbers (1, 2" in caplog.text
        )


def test_a_model_that_contradicts_itself():
    config = SimpleNamespace(id2label={0: "dog", 1: "cat"}, label2id={"cat": 0, "dog": 1}, num_labels=2)
    with pytest.raises(
        UnlearningError, match="calls class 1 'cat' in config.id2label, and class 0 in config.label2id"
    ):
        numbered(labelled([0, 1], ["cat", "dog"]), config)
    twice = SimpleNamespace(id2label={0: "crane", 1: "dog", 2: "crane"}, label2id={"crane": 2, "dog": 1}, num_labels=3)
    assert numbered(labelled([0], ["dog"]), twice).labels.tolist() == [1]


def test_labels_are_read_without_keeping_the_rows():
    class Rows(torch.utils.data.Dataset):
        alive = most = 0

        def __len__(self):
            return 50

        def __getitem__(self, index):
            row = {"pixel_values": torch.zeros(3, 4, 4), "label": index % 4}
            Rows.alive += 1
            Rows.most = max(Rows.most, Rows.alive)
            weakref.finalize(row["pixel_values"], self.gone)
            return row

        def gone(self):
            Rows.alive -= 1

    assert numbered(Rows(), GENERIC).labels.tolist() == [i % 4 for i in range(50)]
    assert Rows.most < 5
