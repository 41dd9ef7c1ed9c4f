"""The model card, and the folder that a release is: what is in them, and what never is."""

import functools
import json
import re
import shutil
from pathlib import Path

import cards
import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageClassification

from hf_unlearn import UnlearningError, UnlearningResult, metrics, unlearn
from hf_unlearn.audits.report import AuditReport
from hf_unlearn.hub import card, release
from hf_unlearn.hub.card import base_model, controlled, figures_table, make_card, show, wilson, with_uis, write_card
from hf_unlearn.hub.names import AUDIT_PAGE
from hf_unlearn.hub.repository import Parent
from hf_unlearn.hub.withholding import SOME, coarse, publishable, rounded
from tests.audit_contents import HOSTILE, audit_content
from tests.runs import launch, make_trainer, request
from tests.samples import arguments, fitted, images, learnt, same_bits, weights
from tests.tiny import random_inputs, tiny_image_processor, tiny_resnet

MARKER = "zebra4711"  # in what is forgotten
SECTIONS = (
    *("Verdict", "Request", "Method", "Before and after", "Audit", "Locality", "Cost", "How to load", "Limits"),
    "How it was made",
)
PARENT = Parent("me/vit", "c0ffee" + 34 * "0")
PARENT_CARD = {
    "license": "other",
    "license_name": "house-rules",
    "license_link": "https://example.org/rules",
    "language": ["en", "fr"],
    "datasets": ["uoft-cs/cifar10"],
    "base_model": ["me/vit", "google/vit-base-patch16-224"],
    "base_model_relation": "quantized",
    "tags": ["cats"],
}


@functools.cache
def run(folder: str, kind: str = "vit") -> UnlearningResult:
    """Results of each kind of model, made once."""
    out = f"{folder}/{kind}-run"
    if kind == "vit":
        return unlearn(fitted(), **learnt(), args=arguments(out), processing_class=tiny_image_processor())
    if kind == "timm":  # a whole class
        parts = images(32), images(16, seed=3)
        keep, go = (parts[0].filter(lambda row, want=want: (row["label"] == 1) == want) for want in (False, True))
        about = {"method": "damp", "args": arguments(out), "processing_class": tiny_image_processor()}
        return unlearn(tiny_resnet(), forget=go, retain=keep, unseen=parts[1], **about)
    if kind == "unmeasured":
        return unlearn(fitted(), **learnt(), method="finetune", args=arguments(out, measure=False))
    if kind == "adapter":  # of a model whose folder is named as if it were on the Hub
        base = Path(folder, "base/model")
        fitted().save_pretrained(base)
        lora = LoraConfig(r=2, target_modules="all-linear")
        return unlearn(str(base), **learnt(), method="finetune", args=arguments(out), peft_config=lora)
    data = request(kind)
    if kind == "bert":
        data["forget"] = data["forget"].map(lambda row: {"text": f"{MARKER} {row['text']}"})
    methods = {"multitask": "multitask", "llama": "npo"}
    trainer = make_trainer(methods.get(kind, "lotus"), kind, out, data=data)
    trainer.train()
    return UnlearningResult(trainer.model, trainer, trainer.metrics, trainer.runtime)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("runs"))
    yield functools.partial(run, folder)
    run.cache_clear()


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory) -> Path:
    """A release without an audit, with the figures of its eight samples."""
    return release.prepare(runs(), tmp_path_factory.mktemp("release") / "vit", fewest=1)


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def check_card(text: str, *private: str) -> dict[str, str]:
    """What holds for every card."""
    assert text.startswith("---\n") and ModelCard(text).data.to_dict() == yaml.safe_load(text.split("---\n")[1])
    found = sections(text)
    assert [name for name in found if name != "Citation"] == list(SECTIONS)
    assert all(body.strip() for body in found.values())
    filled = text.split("## Citation")[0].replace("\nNone.\n", "")  # BibTeX has braces
    assert not re.search(r"{{|}}|{%|{#|\bNone\b|\bnan\b|undefined|TODO|More Information", filled)
    for path in ("/tmp", "/root", "/home", "/Users", "~/", "file://", *private):
        assert path not in text
    assert set(card.TAGS) < set(ModelCard(text).data.tags)
    assert "Old revisions still hold the data" in found["Limits"]
    return found


def cells(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {name: values for name, *values in (rows[:1] + rows[2:])}


def audited(folder: Path, **about) -> dict:
    """The content of an audit of a folder, whose figures are of the samples of the run."""
    content, found = audit_content(**about), json.loads((folder / card.METRICS).read_text())
    content["figures"] |= {"original": found["before"], "unlearned": found["after"]}
    return content


def card_with(audit: dict, folder: Path, copy: Path) -> ModelCard:
    """The card of a folder that had an audit."""
    for path in folder.glob("*.json"):
        (copy / path.name).write_bytes(path.read_bytes())
    AuditReport(audit).to_json(copy / card.AUDIT)
    return make_card(copy)


class TestEveryCard:
    @pytest.mark.parametrize("kind", ["vit", "timm", "bert", "adapter", "multitask", "llama", "unmeasured"])
    def test_pattern(self, runs, tmp_path, kind):
        result = runs(kind)
        to = {"repo_id": "you/new", "revision": "unlearned/request-42", "parent": None}
        out = release.prepare(result, tmp_path / "release", **to)
        found = check_card((out / "README.md").read_text(), str(tmp_path), MARKER, "base/model")
        n = {name: f"{len(source):,}" for name, source in result.trainer.sources.items()}
        assert cells(found["Request"])["to forget"] == [n["forget"]]
        assert cells(found["Request"])["retained"] == [n["retain"]]
        assert 'revision="unlearned/request-42"' in found["How to load"] and '"you/new"' in found["How to load"]
        assert ("(extraction strength)" in found["Before and after"]) == (kind == "llama")
        info = result.trainer.method.info
        assert (
            info.name in found["Method"]
            and info.summary in found["Method"]
            and ", ".join(info.needs) in found["Method"]
        )
        if info.paper:
            assert info.paper.url in found["Method"] and info.paper.bibtex in found["Citation"]
        for name in ("README.md", "metrics.json", "unlearning_config.json", "unlearning_receipt.json"):
            assert (out / name).is_file()
        for path in out.rglob("*"):
            assert path.suffix in ("", ".json", ".safetensors", ".md")
            if path.is_file():
                content = path.read_bytes()
                assert MARKER.encode() not in content and str(tmp_path.parent).encode() not in content, path

    def test_a_name_with_markup(self, folder):
        found = check_card(str(make_card(folder, repo_id="me/a_b__c", parent_card={})))
        assert found and card.escape("a|b\n<i>*c*") == "a\\|b \\<i\\>\\*c\\*"

    def test_nothing_is_recorded(self, tmp_path):
        """A folder of an earlier version, or of another tool."""
        (tmp_path / "metrics.json").write_text("{}")
        found = check_card(str(make_card(tmp_path)))
        assert "was not recorded" in found["Request"] and "Nothing was measured" in found["Before and after"]


class TestFigures:
    def test_interval(self):
        """Wilson's, by solving |p − s| = z·sqrt(p(1 − p)/n) for p."""
        for share, n in ((0.0, 10), (0.3, 50), (1.0, 8)):
            for p in wilson(share, n):
                assert abs(p - share) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5, abs=1e-9)

    def test_the_table_is_of_the_metrics(self, folder):
        found = json.loads((folder / "metrics.json").read_text())
        table = cells(check_card((folder / "README.md").read_text())["Before and after"])
        assert table.pop("") == ["original", "unlearned"]
        keys = {**{v: k for k, v in card.NAMES.items()}, "unseen acc. (never-seen control)": "unseen_accuracy"}
        assert {keys[name] for name in table} == {
            *("forget_accuracy", "unseen_accuracy", "retain_accuracy", "mia", "auc", "rf_jsd", "uis"),
        }
        for name, shown in table.items():
            key = keys[name]
            for when, text in zip(("before", "after"), shown, strict=True):
                if key == "uis":
                    task = [
                        {"t": {"test": found[w]["unseen_accuracy"], "forget": found[w]["forget_accuracy"]}}
                        for w in (when, "before")
                    ]
                    assert text == f"{metrics.uis(*task, ['t'])['uis']:.1f}"
                    continue
                value, *ends = re.findall(r"[\d.]+", text)
                assert value == show(key, found[when][key])
                if key == "auc":
                    assert ends == [show(key, found[when]["auc_low"]), show(key, found[when]["auc_high"])]
                elif key in card.SETS:
                    n = found["run"]["measured"][card.SETS[key]]
                    assert ends == [show(key, end) for end in wilson(found[when][key], n)]
                else:
                    assert not ends

    def test_a_forget_figure_only_beside_its_control(self, runs, tmp_path):
        given = {"forget_accuracy": 0.9, "unseen_accuracy": None, "forget_a": 1.0, "unseen_a": 0.5, "forget_b": 1.0}
        assert controlled(given) == {"forget_a": 1.0, "unseen_a": 0.5}
        data = learnt() | {"unseen": None}
        result = unlearn(fitted(), **data, method="finetune", args=arguments(tmp_path / "run"))
        out = release.prepare(result, tmp_path / "release", fewest=1)
        found = check_card((out / "README.md").read_text())
        assert "forget acc." not in found["Before and after"] and "retain acc." in found["Before and after"]
        assert "is not shown, because there is nothing of unseen samples" in found["Before and after"]
        assert [r.dataset_type for r in ModelCard.load(out / "README.md").data.eval_results] == ["unlearning-retain"]

    def test_tasks(self, runs, tmp_path):
        out = release.prepare(runs("multitask"), tmp_path / "release", fewest=1)
        after = json.loads((out / "metrics.json").read_text())["after"]
        table = cells(sections((out / "README.md").read_text())["Before and after"])
        for task in ("colour", "shape", "size"):
            for split in ("forget", "unseen", "retain"):
                assert table[f"{split} {task}"][1] == f"{after[f'{split}_{task}']:.3f}"
        assert list(table)[1:4] == ["forget colour", "unseen colour", "retain colour"]
        assert table["UIS"][1] == f"{after['uis']:.1f}"

    def test_uis_of_whole_classes(self):
        """T and U are of the classes that stay, and nothing of the class that goes is the aim."""
        rows = {"original": {"unseen_accuracy": 0.9, "kept_accuracy": 0.8, "forget_accuracy": 1.0}}
        rows["unlearned"] = {"unseen_accuracy": 0.7, "kept_accuracy": 0.6, "forget_accuracy": 0.2}
        found = with_uis(rows, is_class=True)
        assert found["unlearned"]["uis"] == pytest.approx(50 * (0.2 / 0.8 + 0.2 / 0.8))
        assert found["original"]["uis"] == pytest.approx(50 * (0 + 1 / 0.8))
        assert with_uis({}, False) == {} and with_uis({"original": {"uis": 1.0}}, False) == {"original": {"uis": 1.0}}

    def test_no_intervals_for_shares_of_tokens(self):
        row = {"forget_accuracy": 0.5, "unseen_accuracy": 0.5}
        assert "(" not in figures_table({"unlearned": row}, {"forget": 9}, intervals=False).replace("(never", "")


class TestMetadata:
    def test_round_trip(self, folder):
        found = json.loads((folder / "metrics.json").read_text())["after"]
        data = make_card(folder, repo_id="you/new", parent=PARENT, parent_card=PARENT_CARD).data
        again = ModelCardData(**yaml.safe_load(data.to_yaml()))
        assert again.to_dict() == data.to_dict() and again.eval_results == data.eval_results
        assert all(isinstance(result, EvalResult) for result in data.eval_results)
        values = {(r.dataset_type, r.metric_type): r.metric_value for r in data.eval_results}
        for name in ("forget", "retain", "unseen"):
            assert values["unlearning-" + name, "accuracy"] == found[f"{name}_accuracy"]
        (divergence,) = card.results({"rf_jsd": 0.03}, "image-classification")
        assert (divergence.dataset_type, divergence.metric_value) == ("unlearning-request", 0.03)
        assert values["unlearning-request", "roc_auc"] == found["auc"] and values["unlearning-request", "uis"] >= 0
        index = eval_results_to_model_index("you/new", data.eval_results)
        assert data.to_dict()["model-index"] == index and data.model_name == "you/new"

    def test_four_digits(self):
        (uis,) = card.results({"uis": 43.22916666666667}, "image-classification")
        assert uis.metric_value == 43.23

    def test_what_the_parent_says_is_kept(self, folder):
        data = make_card(folder, repo_id="you/new", parent=PARENT, parent_card=PARENT_CARD).data.to_dict()
        for key in ("license", "license_name", "license_link", "language", "datasets"):
            assert data[key] == PARENT_CARD[key]
        assert data["pipeline_tag"] == "image-classification" and data["library_name"] == "transformers"
        assert data["tags"] == ["machine-unlearning", "unlearning", "hf_unlearn", "auto"]
        assert data["hf_unlearn"]["parent_revision"] == PARENT.commit
        given = make_card(folder, parent=PARENT, parent_card={"pipeline_tag": "zero-shot-image-classification"}).data
        assert given.pipeline_tag == "zero-shot-image-classification" and given.license is None
        assert (
            "not stated by the parent's card"
            in sections(make_card(folder, parent=PARENT, parent_card={}).text)["Limits"]
        )
        assert "not stated, as no parent is named" in sections(make_card(folder, parent_card={}).text)["Limits"]

    def test_base_model(self):
        """Of a new repository the original; of a revision of the parent's repository what the parent had, never itself."""
        assert base_model("me/vit", "you/new", PARENT_CARD, "timm") == {
            "base_model": "me/vit",
            "base_model_relation": "finetune",
        }
        assert base_model("me/vit", None, {}, "peft")["base_model_relation"] == "adapter"
        inherited = {"base_model": "google/vit-base-patch16-224", "base_model_relation": "quantized"}
        assert base_model("me/vit", "me/vit", PARENT_CARD, "transformers") == inherited
        assert base_model("me/vit", "me/vit", {"base_model": "me/vit"}, "transformers") == {}
        assert base_model("me/vit", "me/vit", {}, "transformers") == {}
        assert base_model(None, "you/new", {"base_model": ["a/b", "c/d"]}, None) == {"base_model": ["a/b", "c/d"]}

    def test_libraries(self, runs, tmp_path):
        expected = {"vit": "transformers", "timm": "timm", "adapter": "peft", "bert": "transformers"}
        for kind, library in expected.items():
            out = runs(kind).save(tmp_path / kind)
            data = make_card(out, repo_id="you/new", revision="main", parent=PARENT, parent_card={}).data
            assert data.library_name == library
            assert data.base_model_relation == ("adapter" if kind == "adapter" else "finetune")

    def test_the_card_of_a_parent_on_the_hub(self, hub, folder):
        text = str(ModelCard(f"---\n{ModelCardData(**PARENT_CARD).to_yaml()}\n---\n# Mine\n"))
        hub.put("me/parent", {"README.md": text.encode()})
        hub.put("me/bare", {"config.json": b"{}"})
        hub.put("me/broken", {"README.md": b"---\nlicense: [mit\n---\n"})
        about = {"repo_id": "you/new", "revision": "a"}
        data = make_card(folder, **about, parent=Parent("me/parent", hub.branches("me/parent")["main"])).data
        assert data.license == "other" and data.language == ["en", "fr"] and data.base_model == "me/parent"
        for name in ("me/bare", "me/broken"):
            data = make_card(folder, **about, parent=Parent(name, hub.branches(name)["main"])).data
            assert data.license is None and data.base_model == name

    def test_a_parent_that_cannot_be_read(self, hub, folder):
        """No card says that a licence is not stated which nobody has asked for."""
        hub.put("me/parent", {"README.md": b"---\nlicense: mit\n---\n"})
        parent = Parent("me/parent", hub.branches("me/parent")["main"])
        hub.fail("drop")
        with pytest.raises(
            UnlearningError, match="The card of me/parent, whose licence goes on, cannot be read: the Hub"
        ):
            make_card(folder, parent=parent)
        hub.recover()
        hub.fail(409, times=1)
        assert make_card(folder, parent=parent).data.license == "mit"
        with pytest.raises(
            UnlearningError, match="The card of me/none, whose licence goes on, cannot be read: there is"
        ):
            make_card(folder, parent=Parent("me/none", "0" * 40))


class TestLoading:
    def test_transformers(self, folder):
        text = sections(make_card(folder, repo_id="me/vit", revision="unlearned/a", parent_card={}).text)[
            "How to load"
        ]
        assert 'AutoModelForImageClassification.from_pretrained("me/vit", revision="unlearned/a")' in text
        assert 'AutoImageProcessor.from_pretrained("me/vit", revision="unlearned/a")' in text
        on_main = make_card(folder, repo_id="me/vit", revision="main", parent_card={}).text
        assert 'from_pretrained("me/vit")' in on_main and "Without it you get" not in on_main

    def test_what_stands_there_runs(self, runs, folder, monkeypatch):
        monkeypatch.chdir(folder)
        names = {}
        for code in re.findall(
            r"```python\n(.*?)```", sections((folder / "README.md").read_text())["How to load"], re.S
        ):
            exec(code, names)
        assert same_bits(weights(names["model"]), weights(runs().model)) and "processor" in names

    @pytest.mark.parametrize("kind", ["timm", "multitask"])
    def test_in_a_folder(self, runs, tmp_path, monkeypatch, kind):
        out = release.prepare(runs(kind), tmp_path / "release")
        monkeypatch.chdir(out)
        blocks = re.findall(r"```python\n(.*?)```", sections((out / "README.md").read_text())["How to load"], re.S)
        assert len(blocks) == (2 if kind == "timm" else 1)
        for code in blocks:
            names = {}
            exec(code, names)
            state = {key.removeprefix("timm_model."): value for key, value in weights(runs(kind).model).items()}
            assert same_bits({k.removeprefix("timm_model."): v for k, v in weights(names["model"]).items()}, state)
        if kind == "timm":
            text = make_card(out, repo_id="me/resnet", revision="unlearned/a", parent_card={}).text
            assert 'create_model("hf-hub:me/resnet@unlearned/a", pretrained=True)' in text

    def test_adapter(self, runs, tmp_path, monkeypatch):
        """PEFT's own card and the path of the base model are gone; the card says what the adapter is not."""
        out = release.prepare(runs("adapter"), tmp_path / "release", parent=None)
        config = json.loads((out / "unlearn/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] is None
        text = (out / "README.md").read_text()
        assert "the base model gives the data back" in sections(text)["Limits"] and "Model Card for" not in text
        release._clean(runs("adapter").save(tmp_path / "saved"), PARENT, None)
        config = json.loads((tmp_path / "saved/unlearn/adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == (PARENT.repo_id, PARENT.commit)
        given = make_card(out, repo_id="me/vit", revision="unlearned/a", parent=PARENT, parent_card={}).text
        assert f'from_pretrained("me/vit", revision="{PARENT.commit}")' in given
        assert 'PeftModel.from_pretrained(model, "me/vit", subfolder="unlearn", revision="unlearned/a")' in given
        monkeypatch.chdir(out)
        names = {
            "model": AutoModelForImageClassification.from_pretrained(
                Path(runs("adapter").trainer.args.output_dir).parent / "base/model"
            )
        }
        exec(re.search(r"```python\n(.*?)```", sections(text)["How to load"], re.S)[1], names)
        assert isinstance(names["model"], PeftModel)

    def test_adapter_on_the_adapter_of_the_original(self, tmp_path, monkeypatch):
        own = get_peft_model(fitted(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        about = {"method": "finetune", "args": arguments(tmp_path / "run")}
        result = unlearn(own, **learnt(), **about, peft_config=LoraConfig(r=2, target_modules="all-linear"))
        out = release.prepare(result, tmp_path / "release")
        monkeypatch.chdir(out)
        names, inputs = {"model": fitted()}, random_inputs(fitted())
        exec(re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1], names)
        with torch.no_grad():
            one, two = (model.eval()(**inputs).logits for model in (names["model"], result.model))
            assert torch.equal(one, two) and not torch.equal(one, fitted()(**inputs).logits)


class TestAudit:
    def test_without_one(self, folder):
        found = sections((folder / "README.md").read_text())
        assert "No audit was made" in found["Verdict"] and found["Audit"].strip() == "None."
        assert "There is no retrained model to compare with" in found["Verdict"]
        assert "quantised copies" in found["Limits"]

    @pytest.mark.parametrize("retrained", [True, False])
    def test_with_one(self, folder, tmp_path, retrained):
        content = audited(folder, retrained=retrained, level=1)
        found = check_card(str(card_with(content, folder, tmp_path)))
        assert content["verdict"]["headline"] in found["Verdict"]
        for finding in content["verdict"]["findings"]:
            assert finding["sentence"] in found["Audit"]
        assert ("There is no retrained model" in found["Verdict"]) is not retrained
        assert "0.290 for the nearest 5 %" in found["Locality"]
        assert "a reference model" in found["Limits"] and "quantised copies" not in found["Limits"]
        table = cells(found["Before and after"])
        assert table[""] == ["original", "unlearned"] + ["retrained"] * retrained
        if retrained:
            value = content["figures"]["retrained"]["retain_accuracy"]
            assert table["retain acc."][2].startswith(f"{value:.3f} (")

    def test_a_scattered_forget_set_is_said(self, folder, tmp_path):
        content = audited(folder)
        content["locality"]["retain"]["forget_nearer"] = 0.93
        found = check_card(str(card_with(content, folder, tmp_path)))
        expected = "in only 51 % of pairs: the forget set is scattered, and what is near it or far says little\n"
        assert found["Locality"].count("scattered") == 1 and expected in found["Locality"] + "\n"
        assert "unseen samples in a share of 0.512 of pairs only: the forget set is scattered" in found["Audit"]
        for about in content["locality"].values():
            del about["forget_nearer"]  # of an audit made before it was measured
        assert "scattered" not in str(card_with(content, folder, tmp_path))

    def test_figures_of_other_samples_are_not_put_side_by_side(self, folder, tmp_path):
        content = audit_content()
        found = sections(str(card_with(content, folder, tmp_path)))
        assert cells(found["Before and after"])[""] == ["original", "unlearned"]
        assert f"{content['figures']['retrained']['retain_accuracy']:.3f}" in found["Audit"]

    @pytest.mark.slow
    def test_in_a_release(self, runs, tmp_path):
        content, result = audit_content(level=0, layers=0), runs()
        content["request"]["samples"]["forget"] = len(result.trainer.sources["forget"])
        report = AuditReport(content)
        to = {"repo_id": "you/new", "revision": "unlearned/request-42"}
        out = release.prepare(result, tmp_path / "release", report=report, fewest=1, **to)
        assert "[audit.html](audit.html)" in check_card((out / "README.md").read_text())["Audit"]
        expected = publishable(report.content, fewest=1)
        expected["models"]["unlearned"] = "you/new@unlearned/request-42"
        assert AuditReport.from_json(out / "audit.json").content == expected
        assert (
            report.content["models"]["unlearned"] == content["models"]["unlearned"] != "you/new@unlearned/request-42"
        )
        release.name_models(expected, None, None, PARENT)
        assert expected["models"]["original"] == f"{PARENT.repo_id}@{PARENT.commit}"
        title = re.search("<title>(.*)</title>", (out / "audit.html").read_text())[1]
        assert "forgotten samples" in title and "you/new@unlearned/request-42" in title
        assert report.content["verdict"]["headline"] in (out / "audit.html").read_text()
        assert {"audit.json", "audit.html"} < json.loads((out / "unlearning_receipt.json").read_text())["files"].keys()

    def test_what_is_published_of_one(self):
        content = audit_content()
        content["request"] |= {"forget_classes": [3, 4], "class_names": [HOSTILE]}
        content["models"] |= {"original": "/data/me/vit", "unlearned": "me/vit", "retrained": "me/vit@c0ffee"}
        content["models"]["reference"] = "a model in memory"
        for asked in (False, True):  # of single samples, no class is told though it were asked for
            found = publishable(content, class_names=asked)
            assert found["request"]["forget_classes"] == found["classes"] == []
            assert found["request"]["class_names"] is None
        assert found["models"].pop("reference") == "a model in memory"
        assert found["models"] == {"original": "original", "unlearned": "me/vit", "retrained": "me/vit@c0ffee"}
        content["request"]["kind"] = "class"
        found = publishable(content)
        assert found["request"]["forget_classes"] == found["classes"] == []
        found = publishable(content, class_names=True)
        assert found["request"]["class_names"] == [HOSTILE] and found["classes"] == rounded(content["classes"])

    @pytest.mark.parametrize("n", [29, 30])
    def test_of_few_samples_no_figure_tells_a_guess_from_another(self, n):
        content = audit_content()
        content["request"]["samples"]["forget"] = n
        content["figures"]["original"] |= {"forget_loss": 2.34567891, "forget_accuracy": 2 / 3, "unseen_loss": 1 / 7}
        found = publishable(content)
        row = found["figures"]["original"]
        assert row["unseen_loss"] == 0.1429 and (row.get("forget_accuracy"), row.get("forget_loss")) == (
            (None, None) if n < 30 else (0.6667, 2.346)
        )
        assert all(all(key.startswith("unseen_") for key in row) for row in found["figures"].values()) is (n < 30)
        for part in (
            "distributions",
            "connectivity",
            "locality",
            "worst",
            "stages",
            "relearning",
            "canary",
            "membership",
        ):
            assert (part in found) == (n >= 30) and part in content
        assert found["verdict"]["outcome"] == ("cannot judge" if n < 30 else content["verdict"]["outcome"])
        assert "findings" not in found["verdict"] or bool(found["verdict"]["findings"]) == (n >= 30)
        few = {"unseen_accuracy": 0.25}
        given = {"forget_loss": 2.34567891, "retain_accuracy": 1.0, "rf_jsd": 0.1, "mia": 0.25} | few
        assert coarse(given, n) == (few if n < 30 else given | {"forget_loss": 2.346})
        assert coarse(given, n, fewest=10)["mia"] == 0.25 and coarse(given, n, fewest=100) == few
        apart = publishable(content, retained=False)  # as a row of releases has it
        assert not [key for row in apart["figures"].values() for key in row if key.startswith(("retain", "mia"))]
        assert apart["verdict"]["withheld"] and "membership" not in apart
        assert coarse(given, n, retained=False) == (few if n < 30 else {"forget_loss": 2.346} | few)

    def test_how_few_is_checked(self, runs, tmp_path):
        for fewest in (0, -1, True, 2.5, "30", None):
            with pytest.raises(
                UnlearningError, match="fewest is .*; expected a whole number of forget samples, from 1 on"
            ):
                release.prepare(runs(), tmp_path / "release", fewest=fewest)
        assert not (tmp_path / "release").exists()

    def test_sentences_that_name_classes(self, tmp_path):
        """A forget class without unseen samples, with telling names: the audit says which, the release does not."""
        model = fitted()
        model.config.id2label = {i: f"secret {name}" for i, name in enumerate("ABCD")}
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
        for unseen in (2, 1):  # some forget class is unmatched, all are
            args = arguments(tmp_path / f"run-{unseen}")
            go = images(40, seed=9).filter(lambda row: row["label"] != 0)
            data = learnt() | {"forget": go, "unseen": images(40, seed=8, num_labels=unseen)}
            report = unlearn(model, **data, method="finetune", args=args).audit()
            said = json.dumps(report.content["verdict"])
            assert "secret" in said
            found = publishable(report.content)
            assert "secret" not in json.dumps(found) and SOME in json.dumps(found["verdict"])
            assert not re.search(
                r"beside \d|With \d", json.dumps(found["verdict"])
            )  # a number of one class may be its name
            assert publishable(report.content, class_names=True) == found
            report.content["request"]["kind"] = "class"
            named = publishable(report.content, class_names=True)["verdict"]
            said = [
                [finding["sentence"] for finding in verdict["findings"]]
                for verdict in (named, report.content["verdict"])
            ]
            assert said[0] == said[1] and named["cannot"] == report.content["verdict"]["cannot"]


class TestPrepare:
    def test_a_merged_adapter(self, runs, tmp_path):
        result = runs("adapter")
        with_adapter = result.model
        try:
            result.merge()
            out = release.prepare(result, tmp_path / "release")
        finally:
            result.model = with_adapter
        assert ModelCard.load(out / "README.md").data.library_name == "transformers"
        assert "This is an adapter" not in check_card((out / "README.md").read_text())["Limits"]

    def test_class_names_only_if_asked_for(self, runs, tmp_path):
        result = runs("timm")
        result.model.config.id2label[1] = "seven|teen"
        note = "Stage 1: nothing was removed for class 1, whose mean lies within 0.02 of its length"  # as damp's are
        result.trainer.method.notes.append(note)
        try:
            one = release.prepare(result, tmp_path / "one", parent=None, fewest=1)
            two = release.prepare(result, tmp_path / "two", class_names=True, fewest=1)
        finally:
            result.model.config.id2label[1] = "LABEL_1"
            result.trainer.method.notes.remove(note)
        about = [sections((out / "README.md").read_text())["Request"] for out in (one, two)]
        assert "1 whole class: no sample" in about[0] and "teen" not in about[0]
        assert "1 whole class (seven\\|teen): no sample" in about[1]
        texts = ["".join(path.read_text() for path in out.rglob("*.[jm][sd]*")) for out in (one, two)]
        assert [bool(re.search(r"class(es)? \d", text)) for text in texts] == [False, True]
        assert "nothing was removed for some classes, whose mean" in texts[0]

    def test_no_lists_of_classes(self, runs, tmp_path):
        """Reasons for missing figures name classes of forget samples."""
        data = learnt() | {"unseen": images(16, num_labels=2)}
        result = unlearn(fitted(), **data, method="finetune", args=arguments(tmp_path / "run"))
        assert re.search(r"\[[\d, ]+\]", result.metrics["reasons"]["rf_jsd"])
        out = release.prepare(result, tmp_path / "release", fewest=1)
        saved = json.loads((out / "metrics.json").read_text())
        assert saved["reasons"]["rf_jsd"] == "no unseen sample of some classes"
        assert not any(re.search(r"\[\d", why) for why in saved["reasons"].values()) and "report" not in saved
        assert "`rf_jsd`: no unseen sample of some classes" in (out / "README.md").read_text()

    def test_no_local_path_in_a_config(self, runs, tmp_path):
        method = runs().trainer.method
        method.config.arguments["teacher"] = str(tmp_path)
        try:
            out = release.prepare(runs(), tmp_path / "release")
        finally:
            del method.config.arguments["teacher"]
        assert str(tmp_path) not in "".join(path.read_text() for path in out.glob("*.json"))
        assert "(a local path)" in (out / "unlearning_config.json").read_text()

    def test_whole_or_not_at_all(self, runs, tmp_path, monkeypatch):
        def broken(*args, **kwargs):
            raise OSError("no more room")

        out = release.prepare(runs(), tmp_path / "there")
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        for what in ("write_card", "make_receipt", "_clean"):
            with monkeypatch.context() as patch:
                patch.setattr(release, what, broken)
                for name in ("there", "new"):
                    with pytest.raises(OSError, match="no more room"):
                        release.prepare(runs(), tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["there"]
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        (out / "LICENSE").touch()
        assert not (release.prepare(runs(), out) / "LICENSE").exists()  # an earlier release is replaced

    @pytest.mark.slow
    def test_two_processes(self, tmp_path):
        launch("release", tmp_path)

    def test_a_folder_of_something_else(self, runs, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(UnlearningError, match=r"holds files that are no release \(thesis.tex is among them\)"):
            release.prepare(runs(), tmp_path)
        (tmp_path / "metrics.json").touch()  # as in the folder of a run, which holds the original and the secrets too
        with pytest.raises(UnlearningError, match=r"thesis.tex is among them"):
            release.prepare(runs(), tmp_path)
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain/model.safetensors").touch()
        with pytest.raises(UnlearningError, match=r"metrics.json is not among them"):
            release.prepare(runs(), tmp_path / "plain")
        with pytest.raises(UnlearningError, match="is a file; expected the name of a folder"):
            release.prepare(runs(), tmp_path / "thesis.tex")

    def test_a_parent_in_a_folder(self, runs, tmp_path):
        """Its licence is kept, its path is not told."""
        fitted().save_pretrained(tmp_path / "parent")
        text = f"---\n{ModelCardData(license='mit', base_model='google/vit').to_yaml()}\n---\n"
        (tmp_path / "parent/README.md").write_text(text)
        out = release.prepare(runs(), tmp_path / "release", repo_id="you/new", parent=tmp_path / "parent")
        data = ModelCard.load(out / "README.md").data
        assert data.license == "mit" and data.base_model == "google/vit"
        assert str(tmp_path) not in (out / "README.md").read_text()

    def test_a_card_for_a_new_address(self, folder, tmp_path):
        """What a push from a folder does."""
        before = (folder / "README.md").read_text()
        try:
            path = write_card(folder, repo_id="me/vit", revision="unlearned/a", parent=PARENT, parent_card=PARENT_CARD)
            assert 'from_pretrained("me/vit", revision="unlearned/a")' in path.read_text()
            assert ModelCard.load(path).data.base_model == "google/vit-base-patch16-224"
        finally:
            (folder / "README.md").write_text(before)
        assert not list(folder.glob("*.unfinished"))


def test_only_what_there_is(runs, folder, tmp_path):
    """No processor that is not there, no parent that nobody has named, no settings of a training that was none."""
    about = {"repo_id": "me/vit", "revision": "unlearned/a"}
    with_processor = make_card(folder, **about, parent_card={}).text
    assert (
        "The image processor is the original's" in with_processor and "its weights and its figures" in with_processor
    )
    assert "`main`, which is not this model, and may be empty" in with_processor
    of_parent = make_card(folder, **about, parent=Parent("me/vit", "0" * 40), parent_card={}).text
    assert "`main`, which is another model" in of_parent
    for file in folder.iterdir():
        if file.suffix == ".json" and file.name != "preprocessor_config.json":
            shutil.copy(file, tmp_path)
    rewritten = json.loads((tmp_path / "unlearning_receipt.json").read_text()) | {
        "parent": {"repo": "a/b", "commit": "0"}
    }
    (tmp_path / "unlearning_receipt.json").write_text(json.dumps(rewritten))
    without = make_card(tmp_path, **about, parent_card={}).text
    assert "processor is the original's" not in without and "its weights, its parent and its figures" in without
    surgery = make_card(runs("timm").save(tmp_path / "damp")).text
    assert '"seed": 42' in surgery and not re.search("learning_rate|num_train_epochs|optim|batch_size", surgery)
    assert '"learning_rate"' in with_processor


def test_receipt_in_the_card(folder, tmp_path):
    text = make_card(folder, repo_id="me/vit", revision="unlearned/a", parent_card={}).text
    assert "`hf-unlearn verify me/vit --revision unlearned/a`" in text
    content = json.loads((folder / "unlearning_receipt.json").read_text())
    content |= {
        "previous": {"repo": "me/vit", "commit": "0", "receipt": "0"},
        "drift": {"parent": 0.0123, "first": 0.5},
    }
    row = {"accuracy": 0.9, "loss": 1.0, "auc": 0.611}
    content["earlier"] = [{"name": "request|1", "samples": 1500, "before": row, "after": row | {"auc": None}}]
    (tmp_path / "metrics.json").write_bytes((folder / "metrics.json").read_bytes())
    (tmp_path / "unlearning_receipt.json").write_text(json.dumps(content))
    found = check_card(str(make_card(tmp_path, repo_id="me/vit", revision="unlearned/a", parent_card={})))[
        "How to load"
    ]
    assert "0.0123 of the parent's norm, and by 0.5000 of the first original's" in found
    assert "| request\\|1 | 1,500 | 0.611 | - |" in found and "is an unlearned model too" in found


class TestReferenceCards:
    """The cards in `model_cards/`, and the figures beside them."""

    def test_there_are_three(self):
        assert (
            {path.name for path in cards.CARDS.iterdir() if path.is_dir()}
            == set(cards.RUNS)
            == {"vit", "timm", "text"}
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["vit", "timm", "text"])
    def test_page(self, name, tmp_path, monkeypatch):
        """As the script draws it today, to the last byte."""
        folder = cards.CARDS / name
        shutil.copytree(folder, tmp_path / name)
        monkeypatch.setattr(cards, "CARDS", tmp_path)
        cards.render(name)
        again, there = ((where / name / AUDIT_PAGE).read_text() for where in (tmp_path, folder.parent))
        assert again == there, "the page has changed: python recipes/experiments/cards.py --render"

    @pytest.mark.parametrize("name", ["vit", "timm", "text"])
    def test_card(self, name, tmp_path, monkeypatch):
        """As the script makes it today from the figures that lie there, so no sentence in it is out of date."""
        folder = cards.CARDS / name
        text = (folder / "README.md").read_text()
        check_card(text.split("\n---\n\nA reference card")[0])
        assert f"python recipes/experiments/cards.py {name}" in text
        shutil.copytree(folder, tmp_path / name)
        monkeypatch.setattr(cards, "CARDS", tmp_path)
        monkeypatch.setattr(cards.AuditReport, "to_html", lambda self, path: path)  # drawing takes seconds
        cards.render(name)
        again = (tmp_path / name / "README.md").read_text()
        assert again == text, "the template has changed: python recipes/experiments/cards.py --render"
        library = {"vit": "transformers", "timm": "timm", "text": "transformers"}[name]
        data = ModelCard.load(folder / "README.md").data
        assert data.library_name == library and data.license == "apache-2.0"
        after = json.loads((folder / "metrics.json").read_text())["after"]
        values = {(r.dataset_type, r.metric_type): r.metric_value for r in data.eval_results}
        assert values["unlearning-forget", "accuracy"] == after["forget_accuracy"]
        for path in folder.iterdir():
            assert not re.search(r"/(root|home|tmp|work|Users)/", path.read_text()), path
