"""The evaluation of TOFU on a tiny model that knows its answers, and on one that does not."""

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from real_data import stories15m
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unlearn import UnlearningError, audit, metrics
from hf_unlearn.audits import answers as answers_of_audits
from hf_unlearn.audits import tofu
from hf_unlearn.audits.text_membership import membership_scores
from hf_unlearn.commands import eval as command
from hf_unlearn.commands import main
from hf_unlearn.commands.tofu_sets import read_tofu
from hf_unlearn.models import View
from hf_unlearn.tasks.answers import Answers
from hf_unlearn.tasks.causal_lm import CausalLM
from hf_unlearn.tasks.completions import writer
from tests.tiny import tiny_llama_lm, tiny_tokenizer, tiny_vit

SUBJECTS = ("cat", "dog", "bird", "fish")
OTHERS = ("red", "blue", "big", "small")


def rows(verb: str, values: tuple[str, ...], paraphrased: bool = True) -> list[dict[str, Any]]:
    """Four questions, in the words of the tiny tokenizer."""
    found = []
    for subject, value in zip(SUBJECTS, values, strict=True):
        row = {"question": f"the {subject} {verb}", "answer": f"a {subject} {verb} {value}"}
        if paraphrased:
            row["paraphrased_answer"] = f"{value} is the {subject}"
        row["perturbed_answer"] = [f"{wrong} is the {subject}" for wrong in OTHERS if wrong != value]
        found.append(row)
    return found


FILES = {
    "forget01_perturbed": rows("was", ("red", "blue", "big", "small")),
    "retain_perturbed": rows("sees", ("blue", "red", "small", "big")),
    "real_authors_perturbed": rows("eats", ("big", "small", "red", "blue"), paraphrased=False),
    "world_facts_perturbed": rows("likes", ("small", "big", "blue", "red"), paraphrased=False),
}
PLAIN = {"forget01": FILES["forget01_perturbed"], "retain90": FILES["retain_perturbed"] * 2}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder as TOFU's, made by hand: one file with a list, the others with a question a line."""
    folder = tmp_path / "tofu"
    folder.mkdir()
    for name, content in (FILES | PLAIN).items():
        lines = json.dumps(content) if name == "retain90" else "\n".join(map(json.dumps, content)) + "\n"
        (folder / f"{name}.json").write_text(lines)
    return folder


@functools.cache
def taught(with_forget: bool) -> dict[str, torch.Tensor]:
    """Weights that know the answers, those of the forget set too or not."""
    model = tiny_llama_lm(seed=1)
    answers, write = Answers(model, tiny_tokenizer()), writer(tiny_tokenizer(), "{question} {answer}")
    learnt = [row for name, content in FILES.items() if with_forget or "forget" not in name for row in content]
    samples = answers.read([write(row["question"], row["answer"]) for row in learnt], "learnt")
    ids = torch.nn.utils.rnn.pad_sequence([ids for ids, _ in samples], batch_first=True)
    labels = ids.masked_fill(ids == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def model_of(with_forget: bool = True) -> torch.nn.Module:
    model = tiny_llama_lm()
    model.load_state_dict(taught(with_forget))
    return model.eval()


def saved(folder: Path, with_forget: bool = True) -> str:
    model_of(with_forget).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


SETTINGS = {"prompt": "{question} {answer}", "max_new_tokens": 8}


class TestEvaluate:
    @pytest.mark.slow
    def test_what_is_known(self, data):
        sets = read_tofu("forget01", str(data))
        scores = tofu.evaluate(model_of(), tiny_tokenizer(), sets, batch_size=3, **SETTINGS)
        for name, s in scores.items():
            assert s.rouge_l == s.extraction_strength == s.exact_memorisation == 1, name
            assert s.probability > 0.9 and s.truth_ratios.shape == (4,), name
        other = tofu.evaluate(model_of(False), tiny_tokenizer(), sets, **SETTINGS)
        assert other["forget"].probability < 0.5 and other["forget"].extraction_strength < 0.5
        assert other["retain"].probability > 0.9 and tofu.utility(other) > 0

    def test_figures_by_hand(self, data):
        """From the loss of each text by itself, which transformers works out, in float32."""
        sets, model = read_tofu("forget01", str(data)), model_of(False).double()
        scores = tofu.evaluate(model, tiny_tokenizer(), sets, **SETTINGS)

        def loss(question: str, answer: str) -> float:
            ids = tiny_tokenizer()(f"{question} {answer}", return_tensors="pt")["input_ids"]
            labels = ids.clone()
            labels[:, : 1 + len(question.split())] = -100
            with torch.no_grad():
                return model(input_ids=ids, labels=labels).loss.item()

        for name, file in (("forget", "forget01_perturbed"), ("facts", "world_facts_perturbed")):
            right, paraphrased, wrong = [], [], []
            for row in FILES[file]:
                right.append(loss(row["question"], row["answer"]))
                paraphrased.append(loss(row["question"], row.get("paraphrased_answer", row["answer"])))
                wrong.append([loss(row["question"], answer) for answer in row["perturbed_answer"]])
            ratios = np.exp(np.array(paraphrased) - np.mean(wrong, axis=1))
            np.testing.assert_allclose(scores[name].truth_ratios, ratios, rtol=1e-5)
            p, others = np.exp(-np.array(right)), np.exp(-np.array(wrong)).sum(axis=1)
            expected = p if name == "forget" else p / (p + others)
            assert scores[name].probability == pytest.approx(expected.mean(), rel=1e-5)
            closeness = np.minimum(ratios, 1 / ratios) if name == "forget" else np.maximum(0, 1 - ratios)
            assert scores[name].truth == pytest.approx(closeness.mean(), rel=1e-5)
        nine = [[s.probability, s.rouge_l, s.truth] for name, s in scores.items() if name != "forget"]
        assert tofu.utility(scores) == metrics.model_utility(nine)

    def test_the_chat_template_is_used(self):
        tokenizer = tiny_tokenizer()
        assert writer(tokenizer, None)("the cat", "a dog") == {
            "prompt": "Question: the cat\nAnswer:",
            "completion": " a dog",
        }
        tokenizer.chat_template = "{{ messages }}"
        assert writer(tokenizer, None)("the cat", "a dog")["prompt"] == [{"role": "user", "content": "the cat"}]
        own = writer(tokenizer, "[INST] {question} [/INST]{answer}")("{answer}?", "a dog")
        assert own == {"prompt": "[INST] {answer}? [/INST]", "completion": "a dog"}
        for bad in ("{question}", "{answer} {question}", "{question} {answer} end", "{question} {question} {answer}"):
            with pytest.raises(UnlearningError, match="expected {question} once and {answer} at the end"):
                tofu.check_prompt(bad)


class TestQuestions:
    def test_the_cache_folder(self, data, monkeypatch):
        monkeypatch.setenv("HF_UNLEARN_CACHE", str(data.parent))
        sets = read_tofu("forget01", limit=2)
        assert list(sets) == list(tofu.SETS) and all(len(s.questions) == 2 for s in sets.values())
        assert sets["facts"].paraphrased == sets["facts"].answers and sets["forget"].paraphrased[0] == "red is the cat"

    def test_offline_without_data(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
        with pytest.raises(UnlearningError, match="TOFU is not in the cache folder, and locuslab/TOFU cannot be had"):
            read_tofu("forget10")

    def test_another_order(self, data):
        content = FILES["forget01_perturbed"]
        (data / "forget01_perturbed.json").write_text(json.dumps([content[0], content[2], content[1], content[3]]))
        message = (
            "Row 1 of forget01_perturbed asks 'the bird was', and row 1 of forget01 'the dog was'; expected the same "
            "questions in the same order."
        )
        with pytest.raises(UnlearningError, match=message):
            read_tofu("forget01", str(data))

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("forget01_perturbed", None, "has no forget01_perturbed.json; expected the json files of TOFU"),
            ("forget01_perturbed", "{", "cannot be read; expected a json list of questions, or one question a line"),
            ("forget01_perturbed", FILES["forget01_perturbed"] * 2, "has 8 rows, and forget01 4; expected no more"),
            ("world_facts_perturbed", [], "world_facts_perturbed has no questions"),
            (
                "world_facts_perturbed",
                [{"question": "is", "answer": "a"}],
                "Row 0 of .* has the columns question, answer;",
            ),
            (
                "world_facts_perturbed",
                [FILES["world_facts_perturbed"][0], FILES["world_facts_perturbed"][1] | {"perturbed_answer": ["a"]}],
                "Row 1 of world_facts_perturbed has 1 wrong answers, and row 0 has 3",
            ),
        ],
    )
    def test_files_that_are_not_tofu_s(self, data, name, content, message):
        path = data / f"{name}.json"
        if content is None:
            path.unlink()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(UnlearningError, match=message):
            read_tofu("forget01", str(data))
        with pytest.raises(UnlearningError, match="--data is 'nowhere', which is no folder"):
            read_tofu("forget01", "nowhere")


class TestCommand:
    def options(self, folder: Path, model: str, **more: Any) -> list[str]:
        given = {"data": folder, "forget": "forget01", "prompt": "{question} {answer}", "max-new-tokens": 8} | more
        return ["eval", model, *(text for name, value in given.items() for text in (f"--{name}", str(value)))]

    def test_a_model_beside_a_retrained_one(self, data, tmp_path, capsys):
        names = {known: saved(tmp_path / str(known), known) for known in (True, False)}
        files = [tmp_path / f"{i}.json" for i in range(3)]
        assert main(self.options(data, names[False], json=files[0])) == 0
        assert "forget quality: not known without --retrained" in capsys.readouterr().out
        for retrained, file in ((names[False], files[1]), (str(files[0]), files[2])):
            assert main(self.options(data, names[True], json=file, retrained=retrained)) == 0
        output = capsys.readouterr().out
        assert [line for line in output.splitlines() if len(line) > 80 and str(tmp_path) not in line] == []
        alone, by_model, by_file = (json.loads(file.read_text()) for file in files)
        assert by_model == by_file and by_model["retrained"].items() <= alone.items()
        assert by_model["suite"] == "tofu" and by_model["forget"] == "forget01" and len(by_model["truth_ratios"]) == 4
        assert 0 < by_model["forget_quality"] <= 1 and by_model["ks_distance"] > 0
        assert by_model["sets"]["forget"]["rouge_l"] == 1 > alone["sets"]["forget"]["rouge_l"]
        assert f"forget quality p {by_model['forget_quality']:.3g}" in output

    def test_refused_before_any_model_is_loaded(self, data, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(command, "_load", lambda name: pytest.fail("a model was loaded"))
        name, earlier = saved(tmp_path / "model"), tmp_path / "earlier.json"
        for given, message in (
            ({"limit": 0}, "--limit is 0; expected 1 or more."),
            ({"prompt": "{question}"}, "expected {question} once"),
            ({"retrained": tmp_path / "nowhere"}, "nowhere' is neither"),
            ({"data": tmp_path / "no"}, "which is no folder"),
            ({"tasks": "mmlu"}, "--tasks is of --suite lm-eval, and the suite is tofu; leave it out."),
            ({"suite": "lm-eval", "tasks": "mmlu"}, "--forget is of --suite tofu"),
        ):
            assert main(self.options(data, name, **given)) == 2
            assert message in capsys.readouterr().err, message
        for content, message in (
            ("{}", "which no evaluation has written"),
            (
                json.dumps({"model": "x", "sets": {}, "model_utility": 1, "asked": "other", "truth_ratios": []}),
                "which is of other forget questions",
            ),
        ):
            earlier.write_text(content)
            assert main(self.options(data, name, retrained=earlier)) == 2
            assert message in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main(["eval", name, "--suite", "muse"])
        assert "invalid choice: 'muse'" in capsys.readouterr().err

    def test_models_that_cannot_answer(self, data, tmp_path, capsys):
        tiny_vit().save_pretrained(tmp_path / "vit")
        model_of().save_pretrained(tmp_path / "bare")
        for name, message in (
            ("bare", "has no tokenizer"),
            ("vit", "The model is for image-classification, and has no answers"),
        ):
            assert main(self.options(data, str(tmp_path / name))) == 2
            assert message in capsys.readouterr().err


class TestMembership:
    def test_of_what_was_learnt(self, data):
        """A model that learnt the forget answers tells them from those of a model that did not."""
        write, tokenizer = writer(tiny_tokenizer(), "{question} {answer}"), tiny_tokenizer()
        known, other = (Answers(model_of(with_forget), tokenizer) for with_forget in (True, False))
        mine = known.read([write(row["question"], row["answer"]) for row in FILES["forget01_perturbed"]], "forget")
        wrong = [write(row["question"], f"{row['perturbed_answer'][0]}") for row in FILES["forget01_perturbed"]]
        unseen = known.read(wrong, "unseen")
        scores = [
            membership_scores(known, samples, reference=other, gradients=True, share=0.4) for samples in (mine, unseen)
        ]
        names = ["loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradient_norm"]
        assert list(scores[0]) == names and all(scores[0][name].shape == (4,) for name in names)
        assert all(metrics.membership_auc(scores[0][name], scores[1][name]) == 1 for name in names)
        retrained = [membership_scores(other, samples)["min_k"] for samples in (mine, unseen)]
        assert metrics.privleak(scores[0]["min_k"], scores[1]["min_k"], *retrained) == -100
        said = known.scores(mine)
        np.testing.assert_allclose(scores[0]["min_k"], metrics.min_k_score(said.log_p, said.mask, 0.4))
        assert set(membership_scores(known, mine)) == set(names[:4])


class TestGeneralAbility:
    def test_refused(self, capsys, monkeypatch):
        assert main(["eval", "me/llama", "--suite", "lm-eval"]) == 2
        assert "needs --tasks" in capsys.readouterr().err
        monkeypatch.setattr("hf_unlearn.commands.general.find_spec", lambda name: None)
        assert main(["eval", "me/llama", "--suite", "lm-eval", "--tasks", "mmlu"]) == 2
        assert "pip install 'hf_unlearn[lm-eval]'" in capsys.readouterr().err
        monkeypatch.setattr("hf_unlearn.commands.general.find_spec", lambda name: object())
        monkeypatch.setattr("hf_unlearn.models.hub_is_reachable", lambda: False)
        assert main(["eval", "me/llama", "--suite", "lm-eval", "--tasks", "mmlu"]) == 2
        assert "reads its tasks from the Hub, which cannot be reached" in capsys.readouterr().err

    def test_what_is_asked_and_shown(self, tmp_path, capsys, monkeypatch):
        """With a stand-in for lm-eval, whose tasks cannot be had here."""
        calls = []

        def simple_evaluate(**kwargs: Any) -> dict[str, Any]:
            calls.append(kwargs)
            return {"results": {"mmlu": {"alias": "mmlu", "acc,none": 0.5, "acc_stderr,none": 0.1}}}

        monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=simple_evaluate))
        monkeypatch.setitem(sys.modules, "lm_eval.models", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", SimpleNamespace(HFLM=lambda **given: given))
        monkeypatch.setattr("hf_unlearn.commands.general.check_general", lambda: None)
        file = tmp_path / "out.json"
        arguments = ["eval", saved(tmp_path / "model"), "--suite", "lm-eval", "--tasks", "mmlu", "--limit", "3"]
        assert main([*arguments, "--json", str(file)]) == 0
        assert capsys.readouterr().out.splitlines() == ["task  metric  value", "mmlu  acc     0.5000"]
        assert json.loads(file.read_text())["results"] == {"mmlu": {"acc": 0.5}}
        assert calls[0]["tasks"] == ["mmlu"] and calls[0]["limit"] == 3 and calls[0]["model"]["batch_size"] == 16


@pytest.mark.slow
def test_on_stories15m(data):
    """A real tokenizer and a real model, which learns the answers of the forget set and is then asked again."""
    try:
        folder = stories15m()
    except RuntimeError as error:
        pytest.skip(f"stories15M is not here and cannot be fetched: {error}")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sets, settings = read_tofu("forget01", str(data)), {"max_new_tokens": 12}
    before = tofu.evaluate(model, tokenizer, sets, **settings)["forget"]
    write = writer(tokenizer, None)
    rows = [write(row["question"], row["answer"]) for row in FILES["forget01_perturbed"]]
    samples = Answers(model, tokenizer).read(rows, "rows")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(20):
        for ids, prompt in samples:
            labels = ids.masked_fill(torch.arange(len(ids)) < prompt, -100)
            model(input_ids=ids[None], labels=labels[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = tofu.evaluate(model, tokenizer, sets, **settings)["forget"]
    assert after.rouge_l == after.extraction_strength == 1 and after.probability > 0.8
    assert before.rouge_l < 0.9 and before.extraction_strength < 0.5 and before.probability < 0.2
    assert metrics.ks_distance(before.truth_ratios, after.truth_ratios) > 0


class TestInAnAudit:
    """Of level 1, where the forget set has wrong answers."""

    @pytest.fixture(autouse=True)
    def no_other_part(self, monkeypatch):
        monkeypatch.setattr(CausalLM, "audit_parts", {1: ("answers",)})

    def test_answers(self, capsys, monkeypatch):
        monkeypatch.setattr(answers_of_audits, "ENOUGH", 4)
        sets = {"forget": FILES["forget01_perturbed"], "retain": FILES["retain_perturbed"]}
        sets |= {"unseen": rows("is", ("red", "blue", "big", "small"))}
        given = {name: datasets.Dataset.from_list(of) for name, of in sets.items()} | {
            "processing_class": tiny_tokenizer()
        }
        original, retrained = model_of(True), model_of(False)
        report = audit(original, retrained, retrained=retrained, **given, level=1)
        found = report.content["answers"]["models"]
        questions = {"forget": tofu.Questions.of_rows(sets["forget"], "forget")}
        for name, model in (("original", original), ("unlearned", retrained)):
            asked = tofu.evaluate(model, tiny_tokenizer(), questions)["forget"]
            assert found[name]["rouge_l"] == pytest.approx(asked.rouge_l)
            ratio = np.exp(np.log(asked.truth_ratios).mean())
            assert found[name]["truth_ratio"] == pytest.approx(ratio, rel=1e-5)
        assert found["original"]["truth_ratio"] < found["unlearned"]["truth_ratio"]
        assert (
            found["unlearned"]["quality"] == 1 and found["unlearned"]["distance"] == 0 < found["original"]["distance"]
        )
        assert set(found["retrained"]) == {"truth_ratio", "rouge_l"} and report.content["answers"]["questions"] == 4
        assert (
            "## Answers to forgotten questions" in report.to_markdown() and "answers about" in capsys.readouterr().err
        )
        given["forget"] = given["forget"].remove_columns("perturbed_answer")
        assert "answers" not in audit(original, retrained, **given, level=1).content

    def test_few_questions_have_no_p_and_what_cannot_be_asked_has_a_reason(self, monkeypatch):
        sets = {"forget": FILES["forget01_perturbed"], "retain": FILES["retain_perturbed"]}
        sets |= {"unseen": rows("is", ("red", "blue", "big", "small"))}
        model, given = model_of(True), {name: datasets.Dataset.from_list(of) for name, of in sets.items()}
        given |= {"processing_class": tiny_tokenizer()}
        found = audit(model, model, retrained=model_of(False), **given, level=1).content["answers"]["models"]
        assert set(found["unlearned"]) == {"truth_ratio", "rouge_l"}
        uneven = [
            row | {"perturbed_answer": row["perturbed_answer"][i == 1 :]} for i, row in enumerate(sets["forget"])
        ]
        content = audit(model, model, **given | {"forget": datasets.Dataset.from_list(uneven)}, level=1).content
        assert "wrong answers" in content["reasons"]["answers"] and "answers" not in content
        monkeypatch.setattr(answers_of_audits, "find_spec", lambda name: None)
        assert "rouge-score" in audit(model, model, **given, level=1).content["reasons"]["answers"]

    def test_a_model_with_its_adapter_off_answers_as_without(self):
        adapted = get_peft_model(model_of(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        write = writer(tiny_tokenizer(), SETTINGS["prompt"])
        asked = FILES["forget01_perturbed"]
        answers = Answers(View(adapted, adapted.disable_adapter), tiny_tokenizer())
        said = answers.generate(answers.read([write(row["question"], row["answer"]) for row in asked], "forget"), 8)
        assert said == [row["answer"] for row in asked]
