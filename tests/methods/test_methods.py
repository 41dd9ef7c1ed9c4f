"""The method table and the baselines: retraining, fine-tuning, random labels."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from scipy import stats

from hf_unlearn import UnlearningError, UnlearningTrainer, get_method, list_methods, methods, unlearn
from hf_unlearn.data.randomness import uniform
from hf_unlearn.methods import (
    METHODS,
    Finetune,
    FinetuneConfig,
    Lotus,
    LotusConfig,
    Method,
    MethodInfo,
    RandomLabelConfig,
    create_method,
    datasheets,
)
from hf_unlearn.methods import random_label as random_label_module
from hf_unlearn.methods.base import TASKS, MethodConfig, Paper
from hf_unlearn.methods.random_label import wrong_labels
from tests.marks import slow_but
from tests.samples import arguments, fitted, for_trainer, learnt, request, same_bits, weights
from tests.tiny import tiny_resnet, tiny_vit


class TestTable:
    def test_listed(self):
        assert {"lotus", "retrain", "finetune", "random_label"} <= set(list_methods())
        assert list_methods("*label*") == ["random_label"]
        assert list_methods("l*") == [name for name in list_methods() if name.startswith("l")]
        assert list_methods("no such method") == []
        assert set(list_methods(task="image-classification")) <= set(list_methods())
        assert "lotus" not in list_methods(task="causal-lm")
        assert list_methods(task="protein-folding") == []

    def test_by_name(self):
        assert get_method("lotus") is Lotus
        with pytest.raises(
            UnlearningError,
            match="There is no method 'lotsu'; did you mean 'lotus'. The methods are auto, rewind, lot",
        ):
            get_method("lotsu")
        for given, meant in (("LoTUS", "lotus"), ("NegGrad+", "neggrad_plus"), ("L1-sparse", "l1_sparse")):
            with pytest.raises(
                UnlearningError, match=f"There is no method {re.escape(repr(given))}; did you mean '{meant}'"
            ):
                get_method(given)

    def test_every_name_is_there(self):
        for name, method in METHODS.items():
            assert name in METHODS and METHODS[name] is method and method.info.name == name
            for cls in (method, method.config_class):
                assert getattr(methods, cls.__name__) is cls and cls.__name__ in dir(methods)
        assert len(METHODS) == len(list_methods()) and "nonsense" not in METHODS
        with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
            _ = methods.Nonsense

    def test_type_checkers_see_the_classes(self):
        """The imports under TYPE_CHECKING, which nothing executes; those of surgery come from there."""
        source = Path(methods.__file__).read_text().split("if TYPE_CHECKING:")[1].split("_HOME")[0]
        namespace = {"__name__": "hf_unlearn.methods", "__package__": "hf_unlearn.methods"}
        exec(inspect.cleandoc(source), namespace)
        own = {cls for m in METHODS.values() if m.info.kind != "surgery" for cls in (m, m.config_class)}
        seen = {value for name, value in namespace.items() if not name.startswith("__")}
        assert seen == own | {Method, MethodConfig, MethodInfo, Paper}

    def test_created_from_a_name_a_config_or_a_method(self):
        assert create_method("lotus").config == LotusConfig()
        config = LotusConfig(alpha=3)
        method = create_method(config)
        assert type(method) is Lotus and method.config is config
        assert create_method(method) is method
        assert type(create_method(RandomLabelConfig())).info.name == "random_label"

    def test_a_method_of_ones_own(self, tmp_path):
        class Halfway(Finetune):
            info = MethodInfo("halfway", "loss", "stops after the first epoch", needs=("forget", "retain"))

            def on_epoch_begin(self, epoch):
                return epoch < 1

        result = unlearn(tiny_vit(), **request(), method=Halfway(), args=arguments(tmp_path, num_train_epochs=4))
        assert result.trainer.state.global_step == 3
        assert len(result.trainer.schedule) == 12


def test_datasheets_say_what_the_classes_say():
    assert datasheets.FILE.read_text(encoding="utf-8") == datasheets.as_json(), "run `make style`"
    assert list(datasheets.datasheets()) == list_methods()


@pytest.mark.parametrize("name", list_methods())
class TestDatasheets:
    def test_complete(self, name):
        method = METHODS[name]
        info = method.info
        assert info.name == name == method.config_class.method
        assert info.kind in ("loss", "gradient", "surgery")
        assert (
            info.summary and info.summary[0].islower() and not info.summary.endswith(".") and "\n" not in info.summary
        )
        assert "forget" in info.needs and set(info.needs) <= {"forget", "retain", "unseen", "base_model"}
        assert set(info.applies_to) <= {*TASKS, "multi-task"} and info.applies_to
        assert info.cost > 0
        assert method.__doc__ and method.config_class.__doc__

    def test_paper(self, name):
        paper = METHODS[name].info.paper
        if paper is None:
            assert name in ("auto", "rewind", "retrain", "finetune", "gradient_ascent", "grad_diff"), (
                "whose method is it?"
            )
            return
        assert re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv) and paper.url == f"https://arxiv.org/abs/{paper.arxiv}"
        assert re.match(r"@\w+\{\w+,\n", paper.bibtex) and paper.bibtex.endswith("\n}")
        assert paper.bibtex.count("{") == paper.bibtex.count("}")
        fields = dict(re.findall(r"^  (\w+)=\{(.*)\},?$", paper.bibtex, flags=re.MULTILINE))
        assert {"title", "author", "year"} <= set(fields)
        assert fields["title"].replace("{", "").replace("}", "") == paper.title

    def test_config(self, name):
        config = METHODS[name].config_class()
        values = json.loads(json.dumps(dataclasses.asdict(config)))
        assert type(config).from_dict(values) == config
        undocumented = [f.name for f in dataclasses.fields(config) if not f.metadata.get("help")]
        assert not undocumented
        with pytest.raises(UnlearningError, match=f"{type(config).__name__} has no field 'nonsense'; it has "):
            type(config).from_dict({"nonsense": 1})


class TestRetrain:
    def retrained(self, folder, original, base_model, **changes):
        args = arguments(folder, seed=5, **changes)
        return unlearn(original, **learnt(), method="retrain", base_model=base_model, args=args)

    @pytest.mark.parametrize(
        ("base", "build"),
        slow_but(
            [("scratch", tiny_resnet), ("folder", tiny_vit)],
            [
                ("scratch", tiny_vit),
                ("function", tiny_vit),
                ("model", tiny_vit),
                ("folder", tiny_vit),
                ("scratch", tiny_resnet),
                ("folder", tiny_resnet),
            ],
        ),
    )
    def test_depends_on_the_base_and_not_on_the_original(self, tmp_path, base, build):
        tiny_base = build(seed=11)
        tiny_base.save_pretrained(tmp_path / "base")
        bases = {
            "scratch": "scratch",
            "function": lambda: build(seed=11),
            "model": tiny_base,
            "folder": str(tmp_path / "base"),
        }
        short = {"lr_scheduler_type": "constant", "max_steps": 3, "measure": False}
        found = [
            self.retrained(tmp_path / folder, original, bases[base], **short)
            for folder, original in {"one": fitted(build), "two": build(seed=1)}.items()
        ]
        a, b = (weights(result.model) for result in found)
        assert same_bits(a, b)
        # What it starts from: the same training begins there without any original.
        start = bases[base] if base != "scratch" else None
        if start is not None:
            args = arguments(tmp_path / "three", seed=5, **short)
            trained = unlearn(build(seed=11), **learnt(), method="finetune", args=args)
            assert all(torch.allclose(a[name], tensor, atol=1e-6) for name, tensor in weights(trained.model).items())

    def test_scratch_depends_on_the_seed(self, tmp_path):
        result = self.retrained(tmp_path, fitted(), "scratch", max_steps=1, learning_rate=1e-60, weight_decay=0.0)
        assert not any(
            torch.equal(tensor, weights(fitted())[name])
            for name, tensor in weights(result.model).items()
            if tensor.std() > 0
        )
        other = unlearn(
            fitted(),
            **learnt(),
            method="retrain",
            base_model="scratch",
            args=arguments(tmp_path, seed=6, max_steps=1, learning_rate=1e-60, weight_decay=0.0),
        )
        assert not same_bits(weights(result.model), weights(other.model))

    def test_never_starts_from_the_original(self, tmp_path):
        model = fitted()
        model.save_pretrained(tmp_path / "original")
        for base in (model, fitted(), lambda: fitted(), str(tmp_path / "original")):
            with pytest.raises(
                UnlearningError, match="base_model has the very weights of the original; pass what it was"
            ):
                self.retrained(tmp_path / "out", fitted() if base is not model else model, base)
            assert not list((tmp_path / "out").glob("checkpoint-*"))

    def test_another_architecture_is_refused(self, tmp_path):
        before = weights(fitted())
        for base in (tiny_resnet(), tiny_vit(num_labels=3), tiny_vit(image_size=32)):
            model = fitted()
            with pytest.raises(
                UnlearningError, match="base_model is a .* whose weights do not fit the original .*; expect"
            ):
                self.retrained(tmp_path, model, base)
            assert same_bits(weights(model), before)

    def test_what_cannot_be_a_base(self, tmp_path):
        with pytest.raises(
            UnlearningError, match="base_model is a int; expected a model, a Hub id, a folder or a functi"
        ):
            self.retrained(tmp_path, fitted(), 3)

    def test_a_base_with_another_head_gets_a_new_one(self, tmp_path):
        """A public checkpoint was trained on other classes."""
        tiny_vit(num_labels=9, seed=11).save_pretrained(tmp_path / "base")
        config = {"max_steps": 1, "learning_rate": 1e-60, "weight_decay": 0.0}
        result = self.retrained(tmp_path / "out", fitted(), str(tmp_path / "base"), **config)
        base, found, original = weights(tiny_vit(num_labels=9, seed=11)), weights(result.model), weights(fitted())
        assert found["classifier.weight"].shape == (4, 16)
        assert not torch.equal(found["classifier.weight"], original["classifier.weight"])
        assert all(torch.equal(found[name], base[name]) for name in base if not name.startswith("classifier."))

    def test_knows_the_retained_and_not_the_forgotten_labels(self, tmp_path):
        args = {"num_train_epochs": 15, "learning_rate": 5e-3}
        result = self.retrained(tmp_path, fitted(), "scratch", **args)
        assert result.metrics["before"]["forget_accuracy"] == 1
        assert result.metrics["after"]["forget_accuracy"] == 0  # they are wrong, and only the original was told
        assert result.metrics["after"]["retain_accuracy"] == 1


class TestFinetune:
    @pytest.mark.parametrize("method", ["finetune", "retrain"])
    def test_never_reads_a_forget_sample(self, tmp_path, method, unlooked):
        """The forget samples are poison: one of them in a step, and every weight is NaN."""
        data = request()
        data["forget"] = data["forget"].map(lambda row: {"pixel_values": row["pixel_values"] * float("nan")})
        args = arguments(tmp_path, measure=False, num_train_epochs=3)
        model = unlearn(tiny_vit(), **data, method=method, base_model="scratch", args=args).model
        assert all(tensor.isfinite().all() for tensor in weights(model).values())

    def test_poison_would_be_noticed(self, tmp_path, unlooked):
        data = request()
        data["forget"] = data["forget"].map(lambda row: {"pixel_values": row["pixel_values"] * float("nan")})
        with pytest.raises(UnlearningError, match="NaN or infinite"):
            unlearn(tiny_vit(), **data, method="random_label", args=arguments(tmp_path, measure=False))

    def test_every_retained_sample_once_an_epoch(self, tmp_path):
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), method=FinetuneConfig(), **for_trainer(request()))
        seen = [batch.sample_index for batch in trainer.get_train_dataloader()]
        assert sorted(torch.cat(seen[:3]).tolist()) == sorted(torch.cat(seen[3:]).tolist()) == list(range(8, 32))
        assert torch.cat(seen[:3]).tolist() != torch.cat(seen[3:]).tolist()


class TestRandomLabel:
    @pytest.mark.parametrize("classes", [2, 3, 10])
    def test_never_the_true_label_and_uniform_over_the_others(self, classes):
        n = 5000
        for label in range(classes):
            index = torch.arange(n) + n * label
            labels = torch.full((n,), label)
            drawn = wrong_labels(labels, uniform(0, torch.zeros_like(index), index, 1)[:, 0], classes)
            counts = torch.bincount(drawn, minlength=classes)
            assert counts[label] == 0 and counts.sum() == n
            others = [int(count) for c, count in enumerate(counts) if c != label]
            assert classes == 2 or stats.chisquare(others).pvalue > 1e-4

    @pytest.mark.parametrize("u", [0.0, 0.4999999, 0.5, 1 - 1e-12])
    def test_at_the_ends_of_the_interval(self, u):
        labels = torch.arange(5)
        drawn = wrong_labels(labels, torch.full((5,), u, dtype=torch.float64), 5)
        assert (drawn != labels).all() and ((drawn >= 0) & (drawn < 5)).all()

    def labels_of_a_run(self, tmp_path, monkeypatch, **config):
        """(epoch, sample) -> the label it was trained on."""
        found, plain = {}, random_label_module.cross_entropy
        batches = []
        losses = random_label_module.RandomLabel.losses

        def recording_losses(self, model, batch):
            batches.append(batch)
            return losses(self, model, batch)

        def recording(logits, labels):
            batch = batches[-1]
            for i, label in enumerate(labels.tolist()):
                key = int(batch.epoch[i]), int(batch.sample_index[i])
                found[key] = label, int(batch.labels[i]), bool(batch.is_forget[i])
            return plain(logits, labels)

        monkeypatch.setattr(random_label_module.RandomLabel, "losses", recording_losses)
        monkeypatch.setattr(random_label_module, "cross_entropy", recording)
        method = RandomLabelConfig(**config)
        changes = {"num_train_epochs": 4, "per_device_train_batch_size": 7}
        unlearn(tiny_vit(), **request(), method=method, args=arguments(tmp_path, **changes))
        assert len(found) == 4 * 32
        for used, true, is_forget in found.values():
            assert (used != true) == is_forget
        return found

    def test_once(self, tmp_path, monkeypatch):
        found = self.labels_of_a_run(tmp_path, monkeypatch, relabel="once")
        assert all(len({found[epoch, sample] for epoch in range(4)}) == 1 for sample in range(32))

    def test_epoch(self, tmp_path, monkeypatch):
        found = self.labels_of_a_run(tmp_path, monkeypatch, relabel="epoch")
        different = [len({found[epoch, sample][0] for epoch in range(4)}) for sample in range(8)]
        assert sum(count > 1 for count in different) >= 6  # one of 27 samples gets the same label four times
        assert all(found[epoch, sample][0] == found[0, sample][0] for epoch in range(4) for sample in range(8, 32))

    def test_the_papers_values(self):
        assert RandomLabelConfig.paper().relabel == "once"

    def test_what_it_does(self, tmp_path):
        args = arguments(tmp_path, num_train_epochs=5, learning_rate=3e-3)
        result = unlearn(fitted(flipped=False), **learnt(flipped=False), method="random_label", args=args)
        assert result.metrics["before"]["forget_accuracy"] == 1
        assert result.metrics["after"]["forget_loss"] > result.metrics["before"]["forget_loss"] + 0.2


def test_gradient_ascent_of_ones_own_raises_the_loss(tmp_path):
    """The signs of a loss arrive: one step up on forget samples raises their loss, one down lowers it."""

    class Signed(Finetune):
        info = MethodInfo("signed", "loss", "one step on forget samples", needs=("forget",))

        def epochs(self, epochs):
            return ["forget"] * epochs

        def losses(self, model, batch):
            return {"loss": self.sign * super().losses(model, batch)["loss"]}

    found = {}
    for sign in (-1, 1):
        method: Method = Signed()
        method.sign = sign
        args = arguments(tmp_path, optim="sgd", learning_rate=0.05, max_steps=1)
        metrics = unlearn(tiny_vit(), **request(), method=method, args=args).metrics
        found[sign] = metrics["after"]["forget_loss"] - metrics["before"]["forget_loss"]
    assert found[-1] > 1e-3 and found[1] < -1e-3
