"""The distance to a retrained model by similarity to the forget set."""

import dataclasses
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from peft import LoraConfig
from scipy.stats import spearmanr

from hf_unlearn import UnlearningError, models, unlearn
from hf_unlearn.audits import Locality, compare_locally, locality
from hf_unlearn.audits.locality import MEASURES
from hf_unlearn.methods.local_teacher import similarity
from hf_unlearn.metrics import avg_gap
from tests.runs import make_trainer
from tests.samples import arguments, fitted, learnt
from tests.tiny import tiny_vit

PEOPLE = np.random.default_rng(0)


def about(s, bins=10, **changes) -> Locality:
    values = dict.fromkeys(MEASURES, np.asarray(s) ** 2) | changes
    return compare_locally(s, values, bins)


def lines(svg: str) -> dict[str, int]:
    """The lines of a picture and the number of their points."""
    groups = [g for g in ET.fromstring(svg).findall(".//{*}g") if "-series-" in g.get("id", "")]
    return {g.get("id").rpartition("-")[2]: len(g.findall(".//{*}use")) for g in groups}


def result(folder, **changes):
    settings = {"method": "finetune", "args": arguments(folder, learning_rate=3e-3)} | changes
    return unlearn(fitted(), **learnt(), **settings)


class TestBins:
    def test_by_hand(self):
        s = [0.0, 0.1, 0.25, 0.5, 0.5, 0.99, 1.0]
        found = compare_locally(s, dict.fromkeys(MEASURES, [1, 2, 3, 4, 5, 6, 7]), bins=4)
        assert found.edges == [0, 0.25, 0.5, 0.75, 1]
        assert found.counts == [2, 1, 2, 2]  # the last bin is closed
        assert found.bins["accuracy"] == [1.5, 3, 4.5, 6.5]

    def test_an_empty_bin(self):
        found = about([0.0, 0.05, 1.0], bins=4)
        assert found.counts == [2, 0, 0, 1] and found.bins["confidence"][1] is None

    def test_near_and_far(self):
        s = PEOPLE.permutation(np.linspace(0, 1, 200))
        found = about(s)
        ordered = np.sort(s)
        assert found.near["total_variation"] == pytest.approx((ordered[-10:] ** 2).mean())
        assert found.far["total_variation"] == pytest.approx((ordered[:100] ** 2).mean())
        assert found.ratio == pytest.approx(found.near["total_variation"] / found.far["total_variation"])
        assert found.correlation == pytest.approx(1)

    def test_rank_correlation(self):
        s, variation = PEOPLE.random(50), PEOPLE.random(50)
        found = about(s, total_variation=variation)
        assert found.correlation == pytest.approx(spearmanr(s, variation).statistic)

    def test_nothing_to_divide_or_to_rank(self):
        found = about(PEOPLE.random(20), total_variation=np.zeros(20))
        assert found.ratio is None and found.correlation is None
        one = about(np.ones(20))
        assert one.counts[-1] == 20 and one.correlation is None and one.ratio == 1

    def test_a_picture_and_a_summary(self):
        floor = about(np.linspace(0, 1, 50), bins=4)
        found = dataclasses.replace(about([0.0, 0.1, 1.0], bins=4), floor=floor)
        assert lines(found.svg()) == {"unlearned": 2, "retrained": 4}  # two bins are empty
        assert lines(floor.svg("accuracy")) == {"unlearned": 4}
        assert "two retrained models: 0." in found.summary() and "near/far ratio" in floor.summary()
        assert Locality(**json.loads(json.dumps(dataclasses.asdict(floor)))) == floor

    def test_a_scattered_forget_set_is_said(self):
        s = np.linspace(0, 1, 50)
        near, scattered, unknown = (
            compare_locally(s, dict.fromkeys(MEASURES, s), forget_similarities=own)
            for own in ([1, 0.9], [0.8, 0.2], None)
        )
        assert near.forget_nearer == pytest.approx(0.95, abs=0.02) and scattered.forget_nearer == 0.5
        assert unknown.forget_nearer is None and "scattered" not in near.summary() + unknown.summary()
        assert scattered.summary().endswith(
            "a forget sample is nearer to the centroid than these in only 50 % of pairs: the forget set is scattered, and what "
            "is near it or far says little"
        )


class TestModels:
    def test_a_model_with_itself(self, tmp_path):
        run = result(tmp_path)
        found = locality(run, retrained=run.model, second=run.model)
        assert set(found) == {"retain", "unseen"}
        for place in found.values():
            for measure in MEASURES:
                assert all(value in (None, 0) for value in place.bins[measure])
                assert place.near[measure] == place.far[measure] == 0
            assert place.ratio is None
        rows = run.compare(run.model)
        assert avg_gap(rows["unlearned"], rows["retrained"]) == 0

    def test_swapped(self, tmp_path):
        run, other = result(tmp_path), tiny_vit(seed=5)
        one = locality(run, retrained=other)["unseen"]
        run.model, other = other, run.model
        two = locality(run, retrained=other)["unseen"]
        assert one.edges == two.edges and one.counts == two.counts
        for measure, sign in (("accuracy", -1), ("confidence", -1), ("total_variation", 1)):
            for a, b in zip(one.bins[measure], two.bins[measure], strict=True):
                assert a == b if a is None else a == pytest.approx(sign * b, abs=1e-12)

    def test_by_hand(self, tmp_path):
        run, retrained, second = result(tmp_path), tiny_vit(seed=5), tiny_vit(seed=6)
        found = locality(run, retrained, second, bins=3)["unseen"]
        data, rows = learnt(), run.trainer.indices["evidence"][1]
        x, y = data["unseen"]["pixel_values"][:][rows], torch.as_tensor(data["unseen"]["label"][:])[rows]
        with torch.no_grad():
            original = fitted()
            with models.reading_features(original, 4) as read:
                h, f = (read(original(pixel_values=z).logits) for z in (x, data["forget"]["pixel_values"][:]))
            run.model.eval()
            p, q, r = (m(pixel_values=x).logits.double().softmax(-1) for m in (retrained, run.model, second))
        s = similarity(h, f)
        near = s.argmax()
        assert found.edges[0] == pytest.approx(s.min().item(), abs=1e-5)
        assert found.near["total_variation"] == pytest.approx((p - q)[near].abs().sum().item() / 2, rel=1e-4)
        assert found.near["confidence"] == pytest.approx((p - q)[near, y[near]].item(), rel=1e-4)
        assert found.near["accuracy"] == float(p[near].argmax() == y[near]) - float(q[near].argmax() == y[near])
        assert found.floor.near["total_variation"] == pytest.approx((p - r)[near].abs().sum().item() / 2, rel=1e-4)
        assert sum(found.counts) == len(rows)
        pairs = similarity(f, f)[:, None] > s
        assert found.forget_nearer == pytest.approx(pairs.float().mean().item(), abs=1e-3)

    def test_without_a_retrained_model(self, tmp_path):
        """The change to the original."""
        run = result(tmp_path)
        found = locality(run)
        with run.trainer.original_model() as original:
            same = locality(run, retrained=original)
        for name, place in found.items():
            assert (place.reference, same[name].reference) == ("original", "retrained")
            assert dataclasses.replace(place, reference="retrained") == same[name]
            assert place.summary().startswith("original − unlearned, by similarity to the forget set\nnearest 5%: ")
            assert "original − unlearned, accuracy" in place.svg("accuracy")
            assert "retrained − unlearned, accuracy" in same[name].svg("accuracy")
        assert found["unseen"].floor is None and found["unseen"].near["total_variation"] > 0

    def test_in_an_adapter(self, tmp_path):
        lora = LoraConfig(r=2, target_modules="all-linear")
        run = result(tmp_path, peft_config=lora)
        found, expected = locality(run)["unseen"], locality(run, retrained=fitted())["unseen"]
        assert found.near["total_variation"] > 0
        assert found.bins["total_variation"] == pytest.approx(expected.bins["total_variation"], abs=1e-6)

    def test_without_unseen_samples(self, tmp_path):
        run = unlearn(fitted(), **learnt() | {"unseen": None}, method="finetune", args=arguments(tmp_path))
        assert set(locality(run)) == {"retain"}

    def test_refused(self, tmp_path):
        run = result(tmp_path)
        with pytest.raises(UnlearningError, match="A second retrained model is given without a first one"):
            locality(run, second=tiny_vit())
        trainer = make_trainer("finetune", "llama", tmp_path / "llama")
        run.trainer = trainer
        with pytest.raises(
            UnlearningError, match="locality compares the classes of predictions, and the model is for"
        ):
            locality(run)
