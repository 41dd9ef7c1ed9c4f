"""SSD: the formula by hand, importances against gradients of single samples, and what one edit does to a model."""

import copy
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_unlearn.data.batches import Batch
from hf_unlearn.data.digits import load_digits
from hf_unlearn.errors import UnlearningError
from hf_unlearn.methods import Ssd, SsdConfig
from hf_unlearn.models.small import small_vit
from hf_unlearn.surgery import ssd
from hf_unlearn.surgery.ssd import dampen, importances, ssd_edit
from tests.runs import launch
from tests.samples import same_bits, weights
from tests.tiny import random_inputs, tiny_bert, tiny_gpt2_classifier, tiny_llama_lm, tiny_resnet, tiny_vit

FAMILIES = {"vit": tiny_vit, "resnet": tiny_resnet, "bert": tiny_bert}


def samples(model: nn.Module, n: int, seed: int = 0) -> Batch:
    """Random inputs, texts padded to one length, with labels of all classes."""
    return Batch(random_inputs(model, n, seed), labels=torch.arange(n) % model.config.num_labels)


def batches(rows: Batch, size: int) -> list[Batch]:
    n = len(rows.labels)
    return [Batch({k: v[i : i + size] for k, v in rows.items()}) for i in range(0, n, size)]


def share(rows: Batch, rank: int, processes: int) -> Batch:
    """As the trainer shares samples out: short shares repeat samples, with weight 0."""
    n = len(rows.labels)
    places = torch.arange(rank, rank + processes * math.ceil(n / processes), processes)
    return Batch({key: value[places % n] for key, value in rows.items()}, weight=(places < n).float())


def by_hand(model: nn.Module, rows: Batch) -> dict[str, Tensor]:
    """The mean of squared gradients, one backward pass a sample."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in batches(rows, 1):
        model.zero_grad()
        F.cross_entropy(model(**row.inputs).logits, row.labels).backward()
        for name, p in model.named_parameters():
            total[name] += 0 if p.grad is None else p.grad**2 / len(rows.labels)
    model.zero_grad()
    return total


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a tensor. That of the keys' bias, whose gradient is rounding alone, counts as none."""
    assert found.keys() == expected.keys()
    noise = 1e-10 * max(t.norm().item() for t in expected.values())
    return max(((found[k] - t).norm() / (t.norm() + noise)).item() for k, t in expected.items())


class TestDampen:
    def test_by_hand(self):
        weight = torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0, 6.0])
        forget = torch.tensor([0.0, 4.0, 20.0, 50.0, 10.0, 0.0])
        full = torch.tensor([0.0, 1.0, 1.0, 2.0, 1.0, 5.0])
        # I_f/I_D is -, 4, 20, 25, 10 (not more than α), 0
        found = dampen(weight, forget, full, 10, 1)
        torch.testing.assert_close(found, torch.tensor([1, -2, 3 / 20, 4 / 25, 5, 6]))
        assert torch.equal(found[[0, 1, 4, 5]], weight[[0, 1, 4, 5]])
        torch.testing.assert_close(dampen(weight, forget, full, 3, 2), torch.tensor([1, -1, 0.3, 0.32, 1, 6]))
        # λ > α: no weight grows
        torch.testing.assert_close(dampen(weight, forget, full, 3, 15), torch.tensor([1, -2, 3 * 0.75, 2.4, 5, 6]))
        assert torch.equal(
            dampen(weight, forget, full, 3, 0), torch.tensor([1.0, 0, 0, 0, 0, 6]).mul(weight.sign().abs())
        )

    def test_keeps_precision_and_bits(self):
        weight = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
        forget, full = torch.rand(2, 50, generator=torch.Generator().manual_seed(1))
        found, chosen = dampen(weight, forget, full, 1.5, 1), forget > 1.5 * full
        assert found.dtype == torch.bfloat16 and 5 < chosen.sum() < 45
        assert torch.equal(found[~chosen], weight[~chosen])
        assert torch.equal(found[chosen], (weight.float() * full / forget)[chosen].bfloat16())


@pytest.mark.parametrize("family", FAMILIES)
class TestImportances:
    @pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
    def test_are_squared_gradients_of_single_samples(self, family, dtype, rtol):
        model = FAMILIES[family]().to(dtype)
        rows = samples(model, 7)
        found = importances(model, batches(rows, 3), SsdConfig())
        assert (found.samples, found.terms, found.how) == (7, 7, "layers" if family == "resnet" else "loop")
        assert all(t.dtype == dtype and not t.requires_grad for t in found.values.values())
        assert distance(found.values, by_hand(model, rows)) < rtol

    def test_do_not_depend_on_batches(self, family):
        model = FAMILIES[family]()
        rows = samples(model, 33)
        one, eight, many = (importances(model, batches(rows, size), SsdConfig()).values for size in (1, 8, 32))
        assert distance(eight, one) < 1e-5 and distance(many, one) < 1e-5

    def test_of_batches_depend_on_batches(self, family):
        model, config = FAMILIES[family](), SsdConfig(importance="batch")
        rows = samples(model, 32)
        single = importances(model, batches(rows, 1), config)
        assert distance(single.values, by_hand(model, rows)) < 1e-5
        eight = importances(model, batches(rows, 8), config)
        assert (eight.samples, eight.terms, eight.how) == (32, 4, "batch")
        smaller = [eight.values[name].sum() < 0.9 * t.sum() for name, t in single.values.items()]
        assert sum(smaller) > 0.8 * len(smaller)  # noise cancels inside a batch
        # the gradient of the mean, squared
        loss = F.cross_entropy(model(**rows.inputs).logits, rows.labels)
        squares = [g**2 for g in torch.autograd.grad(loss, list(model.parameters()))]
        whole = importances(model, [rows], config).values
        assert distance(whole, dict(zip(whole, squares, strict=True))) < 1e-5

    def test_padding_does_not_count(self, family):
        model = FAMILIES[family]()
        rows = samples(model, 8)
        weight = torch.tensor([1.0, 0, 1, 1, 0, 0.5, 0, 0])
        padded = batches(Batch(rows, weight=weight), 3) + [Batch(rows, weight=torch.zeros(8))]
        settings = ({}, {"importance": "batch"}, {"per_sample": "vmap"}, {"per_sample": "loop"})
        for config in (SsdConfig(**of) for of in settings):
            if family == "bert" and config.per_sample == "vmap":
                continue
            counted = [
                Batch({key: value[batch.weight > 0] for key, value in batch.items() if key != "weight"})
                for batch in padded
            ]
            counted = [batch for batch in counted if len(batch.labels)]
            found, expected = importances(model, padded, config), importances(model, counted, config)
            assert (found.samples, found.terms) == (expected.samples, expected.terms) and found.samples == 4
            assert distance(found.values, expected.values) < 1e-5

    def test_vmap(self, family, monkeypatch):
        model = FAMILIES[family]().double()
        rows = samples(model, 7)
        if family == "bert":
            with pytest.raises(UnlearningError, match='does not work on BertForSeq.* use per_sample="loop"'):
                importances(model, [rows], SsdConfig(per_sample="vmap"))
            return
        monkeypatch.setattr(ssd, "VMAP_NUMBERS", 3 * sum(p.numel() for p in model.parameters()))
        found = importances(model, batches(rows, 5), SsdConfig(per_sample="vmap"))
        assert found.how == "vmap"
        assert distance(found.values, by_hand(model, rows)) < 1e-12

    def test_auto_takes_vmap_where_it_is_right(self, family, monkeypatch):
        model = FAMILIES[family]()
        rows = samples(model, 5)
        monkeypatch.setattr(ssd, "ON_CPU", "vmap")
        found = importances(model, [rows], SsdConfig())
        assert distance(found.values, by_hand(model, rows)) < 1e-5
        if family == "bert":
            why = "vmap does not work on BertForSequenceClassification"
            assert (found.how, found.why_loop) == ("loop", why)
            assert ssd_edit(model, [rows], [rows])["notes"][0] == f"Gradients were taken sample by sample: {why}."
            return
        assert (found.how, found.why_loop) == ("vmap", None)
        by_vmap = ssd.add_squares_by_vmap

        def wrong(model, weights, sums, batch):
            by_vmap(model, weights, sums, batch)
            next(iter(sums.values())).mul_(1.001)

        monkeypatch.setitem(ssd.TOGETHER, "vmap", wrong)
        found = importances(model, [rows], SsdConfig())
        assert found.how == "loop" and "is off by 1.0e-03 on two samples" in found.why_loop
        assert importances(model, [rows], SsdConfig(per_sample="vmap")).how == "vmap"


def test_padding_of_texts_changes_nothing():
    model = tiny_bert().double()
    rows = samples(model, 6)
    longer = Batch({k: F.pad(v, (0, 7)) if v.ndim == 2 else v for k, v in rows.items()})
    a, b = (importances(model, [batch], SsdConfig()).values for batch in (rows, longer))
    assert distance(a, b) < 1e-12


@pytest.mark.slow
def test_importances_of_two_processes(tmp_path):
    launch("importances", tmp_path)
    counts = json.loads((tmp_path / "counts.json").read_text())
    for family, build in FAMILIES.items():
        model = build()
        expected = importances(model, batches(samples(model, 9, seed=9), 4), SsdConfig())
        assert counts[family]["samples"] == 9
        assert counts[family]["report"]["samples"] == {"forget": 9, "retain": 33}
        assert distance(load_file(tmp_path / f"{family}.safetensors"), expected.values) < 1e-5


class TestEdit:
    def test_is_the_formula(self):
        model = tiny_resnet().double()
        forget, retain = samples(model, 6), samples(model, 30, seed=1)
        i_f, i_r, before = by_hand(model, forget), by_hand(model, retain), weights(model)
        report = ssd_edit(model, batches(forget, 4), batches(retain, 8), config=SsdConfig(alpha=2, lam=0.9))
        chosen, factors, largest = {}, [], 0.0
        for name, weight in model.named_parameters():
            i_d = (6 * i_f[name] + 30 * i_r[name]) / 36
            expected = dampen(before[name], i_f[name], i_d, 2, 0.9)
            torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-15)
            chosen[name] = (i_f[name] > 2 * i_d).sum().item()
            factors.append((0.9 * i_d / i_f[name])[i_f[name] > 2 * i_d])
            largest = max(largest, (i_f[name] / i_d).nan_to_num().max().item())
        buffers = dict(model.named_buffers())
        assert same_bits({name: before[name] for name in buffers}, buffers)
        factors, total = torch.cat(factors), sum(p.numel() for p in model.parameters())
        assert report["dampened"] == len(factors) == sum(chosen.values()) > 100
        assert report["weights"] == total and report["share"] == len(factors) / total
        assert report["factors"] == pytest.approx(
            {"min": factors.min().item(), "median": factors.median().item(), "max": factors.max().item()}
        )
        assert report["largest_ratio"] == pytest.approx(largest)
        assert len(report["tensors"]) == 10 and report["notes"] == []
        shares = [entry["share"] for entry in report["tensors"]]
        assert shares == sorted(shares, reverse=True)
        assert all(entry["dampened"] == chosen[entry["name"]] for entry in report["tensors"])
        assert json.loads(json.dumps(report)) == report

    @pytest.mark.parametrize("family", FAMILIES)
    def test_everything_to_forget_changes_nothing(self, family):
        model = FAMILIES[family]()
        rows, before = batches(samples(model, 8), 4), weights(model)
        report = ssd_edit(model, rows, rows, config=SsdConfig(alpha=1))
        assert same_bits(before, weights(model)) and report["dampened"] == 0 and report["factors"] is None
        assert report["largest_ratio"] == 1

    def test_says_which_alpha_would_begin_to_dampen(self):
        model = tiny_vit()
        forget, retain = [samples(model, 8)], [samples(model, 32, seed=1)]
        method, before = Ssd(SsdConfig.paper()), weights(model)
        report = method.edit(model, forget, retain)
        largest = report["largest_ratio"]
        assert same_bits(before, weights(model)) and method.report == report and method.notes == report["notes"]
        assert f"an alpha below {largest:.4g} begins to dampen" in method.notes[0]
        assert "It cannot be more than 5 times, as 20 % of all samples are to be forgotten." in method.notes[0]
        assert ssd_edit(model, forget, retain, config=SsdConfig(alpha=1.001 * largest))["dampened"] == 0
        assert ssd_edit(model, forget, retain, config=SsdConfig(alpha=0.999 * largest))["dampened"] > 0

    def test_leaves_modes_gradients_and_requires_grad_as_found(self):
        model = tiny_resnet().train()
        model.timm_model.layer2.eval()
        forget, retain = samples(model, 6), samples(model, 12, seed=1)
        frozen = [p for name, p in model.named_parameters() if "layer1" in name]
        for i, p in enumerate(model.parameters()):
            p.grad = torch.full_like(p, i) if i % 2 else None
        for p in frozen:
            p.requires_grad_(False)
        modes = [module.training for module in model.modules()]
        flags, before = [p.requires_grad for p in model.parameters()], weights(model)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        state = torch.get_rng_state()
        for config in (SsdConfig(alpha=1.5), SsdConfig(alpha=1.5, per_sample="vmap")):
            with torch.no_grad():
                ssd_edit(model, [forget], [retain], config=config)
        with pytest.raises(UnlearningError, match="label 9"):
            ssd_edit(model, [forget], [retain | {"labels": torch.full((12,), 9)}])
        assert [module.training for module in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(p.grad is None if i % 2 == 0 else (p.grad == i).all() for i, p in enumerate(model.parameters()))
        assert same_bits(buffers, dict(model.named_buffers())) and torch.equal(state, torch.get_rng_state())
        assert not torch.equal(before["timm_model.layer1.0.conv1.weight"], frozen[0])  # frozen weights are edited too

    def test_tied_weights_are_dampened_once(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
                self.b.weight = self.a.weight

            def forward(self, x):
                return type("Output", (), {"logits": self.b(torch.tanh(self.a(x)))})

        torch.manual_seed(0)
        model = Tied()
        rows = [Batch(x=torch.randn(n, 3), labels=torch.arange(n) % 3) for n in (3, 12)]
        loop, vmap = (importances(model, rows, SsdConfig(per_sample=how)).values for how in ("loop", "vmap"))
        assert list(loop) == ["a.weight"] and distance(vmap, loop) < 1e-5
        expected = importances(model, rows[:1], SsdConfig()).values["a.weight"]
        full, before = loop["a.weight"], model.a.weight.detach().clone()
        assert ssd_edit(model, rows[:1], rows[1:], config=SsdConfig(alpha=1.2))["weights"] == 9
        torch.testing.assert_close(model.a.weight.detach(), dampen(before, expected, full, 1.2, 1))
        assert model.b.weight is model.a.weight

    def test_weights_in_half_precision(self):
        model = tiny_vit().bfloat16()
        forget, retain, before = samples(model, 4), samples(model, 16, seed=1), weights(model)
        assert all(t.dtype == torch.float32 for t in importances(model, [forget], SsdConfig()).values.values())
        report = ssd_edit(model, [forget], [retain], config=SsdConfig(alpha=1.5))
        changed = sum((before[name] != p).sum().item() for name, p in model.named_parameters())
        assert 0 < changed <= report["dampened"] and model.dtype == torch.bfloat16

    def test_plain_batches(self):
        """Of a user's own DataLoader: dicts of inputs and labels, in another precision than the model's."""
        model, same = tiny_vit(), tiny_vit()
        forget, retain = samples(model, 4), samples(model, 16, seed=1)
        plain = [[dict(rows, pixel_values=rows["pixel_values"].double())] for rows in (forget, retain)]
        ssd_edit(model, *plain, config=SsdConfig(alpha=1.5))
        ssd_edit(same, [forget], [retain], config=SsdConfig(alpha=1.5))
        assert same_bits(weights(model), weights(same))

    @pytest.mark.slow
    def test_forgets_a_class(self):
        """As the retrained model: the class is gone, the others stay. Measured on samples that none was trained on."""
        data = {name: part.columns for name, part in load_digits(flipped=0.0, forget_class=3).items()}

        def train(*parts):
            pixels, labels = (torch.cat([data[p][c] for p in parts]) for c in ("pixel_values", "labels"))
            model, generator = small_vit(), torch.Generator().manual_seed(0)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            for _ in range(6):
                for rows in torch.randperm(len(labels), generator=generator).split(64):
                    F.cross_entropy(model(pixel_values=pixels[rows]).logits, labels[rows]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
            return model.eval()

        def accuracies(model):
            labels = data["unseen"]["labels"]
            with torch.no_grad():
                right = (model(pixel_values=data["unseen"]["pixel_values"]).logits.argmax(1) == labels).float()
            return right[labels == 3].mean().item(), right[labels != 3].mean().item()

        model, retrained = train("forget", "retain"), train("retain")
        original = accuracies(model)
        loaders = [batches(Batch(data[name]), 64) for name in ("forget", "retain")]
        report = ssd_edit(model, *loaders, config=SsdConfig(alpha=3))
        forgotten, kept = accuracies(model)
        assert original[0] > 0.6 and accuracies(retrained)[0] == 0 and forgotten < 0.1
        assert kept > original[1] - 0.02 and kept > accuracies(retrained)[1] - 0.06
        assert 0.01 < report["share"] < 0.05
        # The paper's alpha would do nothing: 11 % are to be forgotten. The default is a third of what is possible.
        assert report["largest_ratio"] < 1000 / 109 < SsdConfig.paper().alpha
        untouched = copy.deepcopy(model)
        assert ssd_edit(untouched, *loaders)["alpha"] == pytest.approx(1000 / 109 / 3)


class TestRefusals:
    def refused(self, message, model, forget=None, retain=None, **settings):
        before = weights(model)
        rows = samples(tiny_vit(), 4)
        loaders = [rows] if forget is None else forget, [rows] if retain is None else retain
        with pytest.raises(UnlearningError, match=message) as caught:
            ssd_edit(model, *loaders, config=SsdConfig(alpha=1, **settings))
        text = str(caught.value)
        assert "\n" not in text and text.endswith(".") and len(text) < 400, text
        after = weights(model)
        assert before.keys() == after.keys()
        assert all(t.is_meta or torch.equal(t.nan_to_num(), after[k].nan_to_num()) for k, t in before.items())

    def test_samples(self):
        rows = samples(tiny_vit(), 4)
        self.refused("there are no forget samples; expected at least one", tiny_vit(), forget=[])
        self.refused("there are no retain samples", tiny_vit(), retain=[Batch(rows, weight=torch.zeros(4))])
        for label in (4, -1, -100):
            wrong = Batch(rows, labels=torch.tensor([0, 1, label, 2]))
            message = f"A sample has the label {label}; expected 0 to 3, the classes"
            self.refused(message, tiny_vit(), retain=[rows, wrong])
            assert (
                importances(tiny_vit(), [Batch(wrong, weight=torch.tensor([1.0, 1, 0, 1]))], SsdConfig()).samples == 3
            )
        self.refused("its labels are missing; expected a tensor", tiny_vit(), forget=[rows.inputs])
        message = r"its labels are torch.float32 of shape .4, 4."
        self.refused(message, tiny_vit(), forget=[Batch(rows, labels=torch.zeros(4, 4))])
        self.refused("its labels are torch.float32 of shape", tiny_vit(), forget=[Batch(rows, labels=torch.zeros(4))])

    def test_gradients_that_are_not_finite(self):
        rows = samples(tiny_vit(), 4)
        broken = Batch(rows, pixel_values=rows["pixel_values"].clone())
        broken["pixel_values"][2, 0, 0, 0] = float("nan")
        self.refused("gradients of the forget samples are not finite, those of vit.* for one", tiny_vit(), [broken])
        self.refused("gradients of the retain samples are not finite", tiny_vit(), retain=[rows, broken])
        model = tiny_vit()
        model.classifier.weight.data[0, 0] = float("inf")
        for how in ("loop", "vmap"):
            self.refused("gradients of the forget samples are not finite", model, per_sample=how)

    def test_models(self, tmp_path):
        adapted = get_peft_model(tiny_vit(), LoraConfig(target_modules="all-linear"))
        self.refused(r"PeftModel\w* has adapters; pass model.merge_and_unload", adapted)
        self.refused("ViTForImageClassification has adapters", adapted.get_base_model())
        self.refused("sharded, offloaded or on the meta device", tiny_vit().to("meta"))
        quantised = tiny_vit()
        quantised.classifier.weight = nn.Parameter(torch.zeros(4, 16, dtype=torch.int8), requires_grad=False)
        self.refused("quantised; pass model.dequantize", quantised)
        quantised = tiny_vit()
        quantised.is_quantized = True
        self.refused("quantised", quantised)
        language = tiny_llama_lm()
        rows = Batch(random_inputs(language, 3), labels=torch.zeros(3, dtype=torch.long))
        self.refused("LlamaForCausalLM gives logits of 3 dimensions; expected a classifier", language, [rows], [rows])
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            sharded = nn.Sequential(nn.Linear(3, 3))
            fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
            with pytest.raises(UnlearningError, match="sharded"):
                ssd_edit(sharded, [], [])
        finally:
            torch.distributed.destroy_process_group()

    def test_a_model_that_vmap_cannot_take(self):
        for build in (tiny_bert, tiny_gpt2_classifier):
            model = build()
            rows = [samples(model, 4)]
            self.refused("vmap does not work on", model, rows, rows, per_sample="vmap")
            self.refused("layers does not work on", model, rows, rows, per_sample="layers")


def test_samples_without_a_gradient_tell_nothing_of_a_way():
    model = tiny_resnet()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([1e4, 0.0, 0.0, 0.0])  # so sure that the loss is 0
    rows = Batch(samples(model, 4), labels=torch.zeros(4, dtype=torch.long))
    assert importances(model, [rows], SsdConfig()).how == "loop"
    assert importances(model, [rows], SsdConfig(per_sample="layers")).how == "layers"


def test_layers_of_every_kind():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), nn.BatchNorm2d(4)
            self.fc, self.layer_norm, self.head = nn.Linear(16, 5), nn.LayerNorm([4, 5]), nn.Linear(20, 3, bias=False)

        def forward(self, pixel_values):
            x = torch.relu(self.norm(self.conv(pixel_values))).flatten(2)  # [B, 4, 16]: a linear layer at 4 places
            return type("Output", (), {"logits": self.head(torch.tanh(self.layer_norm(self.fc(x))).flatten(1))})

    torch.manual_seed(0)
    model = Net().double()
    model(torch.randn(20, 3, 9, 9).double())  # running statistics of its own
    rows = [Batch(pixel_values=torch.randn(n, 3, 9, 9).double(), labels=torch.arange(n) % 3) for n in (1, 20, 7)]
    loop, layers = (importances(model, rows, SsdConfig(per_sample=how)) for how in ("loop", "layers"))
    assert layers.how == "layers" and distance(layers.values, loop.values) < 1e-12
    assert importances(model, rows, SsdConfig()).how == "layers"
    model.forward = lambda pixel_values: Net.forward(model, pixel_values + model.conv(pixel_values).mean())
    assert importances(model, rows, SsdConfig()).how == "loop"  # as one is used twice
    for p in model.parameters():
        assert p.grad is None


class TestConfig:
    def test_round_trip(self, tmp_path):
        config = SsdConfig(alpha=3.5, lam=0.5, importance="batch", per_sample="vmap")
        config.save(tmp_path)
        saved = json.loads((tmp_path / "unlearning_config.json").read_text())
        assert saved["method"] == "ssd" and SsdConfig.from_dict(saved["config"]) == config
        assert (SsdConfig.paper().alpha, SsdConfig.paper().lam, SsdConfig.paper().importance) == (10, 1, "sample")
        assert all(f.metadata["help"] for f in dataclasses.fields(SsdConfig))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"alpha": 0}, "ssd: alpha is 0; expected a number above 0"),
            ({"alpha": math.nan}, "alpha is nan"),
            ({"lam": -1}, "ssd: lam is -1; expected a number of at least 0"),
            ({"lam": math.inf}, "lam is inf"),
            ({"importance": "mean"}, "importance is 'mean'; expected sample or batch"),
            ({"per_sample": "hooks"}, "per_sample is 'hooks'; expected auto, vmap, layers or loop"),
        ],
    )
    def test_refusals(self, values, message):
        with pytest.raises(UnlearningError, match=message):
            SsdConfig(**values)

    def test_datasheet(self):
        info = Ssd.info
        assert (info.name, info.kind, info.needs, info.cost) == ("ssd", "surgery", ("forget", "retain"), 1.5)
        assert info.paper.arxiv == "2308.07707" and "causal-lm" not in info.applies_to
        assert Ssd().report == {} and Ssd().notes == []
