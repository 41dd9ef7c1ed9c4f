"""Language models: prompts and completions, means over tokens, what is measured, and whole runs."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_unlearn import UnlearningArguments, UnlearningError, split_dataset, unlearn
from hf_unlearn.commands import recipe, steps
from hf_unlearn.data.batches import Batch
from hf_unlearn.data.overlap import check_overlaps
from hf_unlearn.data.samples import DrawnSamples, TrainingCollator
from hf_unlearn.data.schedule import Draw, Schedule
from hf_unlearn.data.source import Columns, Source
from hf_unlearn.methods import list_methods
from hf_unlearn.metrics import jsd_rows, sample_statistics, token_statistics
from hf_unlearn.tasks.causal_lm import CausalLM
from hf_unlearn.tasks.completions import COMPLETIONS, CompletionCollator, writer
from hf_unlearn.tasks.losses import cross_entropy
from hf_unlearn.training import reading
from hf_unlearn.training.trainer import UnlearningTrainer
from tests.marks import slow_but
from tests.runs import OwnDifference, distance
from tests.samples import arguments, for_trainer, same_bits, sentences, weights
from tests.tiny import CLS, PAD, SEP, VOCABULARY, WORDS, tiny_bert, tiny_llama_lm, tiny_tokenizer

CHAT = (
    "{% for m in messages %}{{ '[CLS] ' if m['role'] == 'user' else '[SEP] ' }}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[SEP] {% endif %}"
)


def ids(text: str) -> list[int]:
    return [VOCABULARY[word] for word in text.split()]


@functools.cache
def questions(n: int, seed: int = 0, longest: int = 18) -> datasets.Dataset:
    """Prompts, and completions of very different lengths."""
    rng = np.random.default_rng([seed, n])
    words = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(n)]
    lengths = np.where(np.arange(n) % 3 == 0, 1, rng.integers(2, longest, n))
    answers = [" " + " ".join(rng.choice(WORDS, length)) for length in lengths]
    return datasets.Dataset.from_dict({"prompt": words, "completion": answers})


def request(n_forget: int = 7, n_retain: int = 25, n_unseen: int = 12) -> dict[str, datasets.Dataset]:
    sizes = {"forget": n_forget, "retain": n_retain, "unseen": n_unseen}
    return {name: questions(n, seed=i) for i, (name, n) in enumerate(sizes.items())}


def plain_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a word and nothing else: no beginning, no end, no padding."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)


def collate(
    rows: list[dict] | datasets.Dataset, tokenizer: Any = None, max_tokens: int | None = None, **columns: Any
) -> Batch:
    data = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(rows)
    source = Source(data, "forget", Columns(**columns), layout=COMPLETIONS)
    collator = CompletionCollator(source, tokenizer, None, max_tokens=max_tokens)
    return collator(source.rows(range(len(data))))


class TestLoss:
    logits = torch.randn(3, 6, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[-100, -100, 4, 9, 1, 7], [-100, 3, 8, -100, -100, -100], [5, -100, -100, 2, -100, -100]])
    places = [[2, 3, 4, 5], [1, 2], [3]]  # the label of a first token is predicted by nothing

    def test_mean_over_own_tokens(self):
        log_p = self.logits.log_softmax(-1)
        expected = [
            -np.mean([log_p[i, t - 1, self.labels[i, t]] for t in places]) for i, places in enumerate(self.places)
        ]
        losses = cross_entropy(self.logits, self.labels)
        assert losses.dtype == torch.float64
        np.testing.assert_allclose(losses, expected, rtol=1e-12)
        assert cross_entropy(self.logits.bfloat16(), self.labels).dtype == torch.float32

    def test_as_in_transformers(self):
        model, batch = tiny_llama_lm(), collate(questions(1), tiny_tokenizer())
        loss = model(**batch.inputs, labels=batch.labels).loss
        torch.testing.assert_close(cross_entropy(model(**batch.inputs).logits, batch.labels)[0], loss)

    def test_of_a_classifier(self):
        logits, labels = self.logits[0], torch.arange(6)
        torch.testing.assert_close(cross_entropy(logits, labels), -logits.log_softmax(-1)[labels, labels])

    def test_statistics(self):
        found = token_statistics(self.logits, self.labels)
        for i, places in enumerate(self.places):
            rows = [t - 1 for t in places]
            expected = sample_statistics(self.logits[i, rows], self.labels[i, places])
            for name in ("loss", "entropy", "confidence", "correct"):
                assert found[name][i].item() == pytest.approx(expected[name].mean().item(), rel=1e-12), name
        torch.testing.assert_close(found["margin"], -cross_entropy(self.logits, self.labels))
        arrays = token_statistics(self.logits.numpy(), self.labels.numpy())
        np.testing.assert_array_equal(arrays["loss"], found["loss"])

    def test_statistics_in_parts(self, monkeypatch):
        whole = token_statistics(self.logits, self.labels)
        monkeypatch.setattr("hf_unlearn.metrics.rows_at_once", lambda columns: 2)
        for name, value in token_statistics(self.logits, self.labels).items():
            torch.testing.assert_close(value, whole[name])

    def test_statistics_refused(self):
        with pytest.raises(ValueError, match="N x L x V and N x L were expected"):
            token_statistics(self.logits, self.labels[:, :3])
        with pytest.raises(ValueError, match="no token that counts in row 1"):
            token_statistics(self.logits, self.labels.where(torch.arange(3)[:, None] != 1, -100))


class TestCollator:
    def test_prompt_and_completion(self):
        batch = collate(
            [{"prompt": "the cat", "completion": " sees a dog"}, {"prompt": "a", "completion": " bird"}],
            tiny_tokenizer(),
        )
        the_cat, answer, bird = ids("the cat"), ids("sees a dog"), ids("bird")
        short = [CLS, *ids("a"), *bird, SEP]
        assert batch["input_ids"].tolist() == [[CLS, *the_cat, *answer, SEP], [*short, PAD, PAD, PAD]]
        assert batch["attention_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3]
        assert batch.labels.tolist() == [[-100] * 3 + [*answer, SEP], [-100] * 2 + [*bird, SEP] + [-100] * 3]
        assert set(batch.inputs) == {"input_ids", "attention_mask"}

    def test_text(self):
        batch = collate([{"text": "the cat sees"}], tiny_tokenizer())
        assert batch.labels.tolist() == batch["input_ids"].tolist() == [[CLS, *ids("the cat sees"), SEP]]

    @pytest.mark.parametrize(
        ("special", "end"),
        [({}, []), ({"eos_token": "[SEP]"}, [SEP]), ({"bos_token": "[CLS]", "sep_token": "[SEP]"}, [])],
    )
    def test_end_of_sequence(self, special, end):
        rows = [{"prompt": "the", "completion": " cat"}]
        assert collate(rows, plain_tokenizer(**special))["input_ids"].tolist() == [[*ids("the cat"), *end]]

    def test_end_that_is_there_already(self):
        rows = [{"prompt": "the", "completion": " cat [SEP]"}]
        for tokenizer, start in ((plain_tokenizer(eos_token="[SEP]"), []), (tiny_tokenizer(), [CLS])):
            assert collate(rows, tokenizer)["input_ids"].tolist() == [[*start, *ids("the cat"), SEP]]

    def test_an_end_that_is_not_the_model_s(self):
        """A tokenizer for encoders ends every text with a token that a language model does not end with."""
        tokenizer = tiny_tokenizer()
        tokenizer.eos_token = "and"
        batch = collate([{"prompt": "the", "completion": " cat"}], tokenizer)
        assert batch["input_ids"].tolist() == [[CLS, *ids("the cat and")]]

    def test_a_token_across_the_border_is_completion(self):
        tokenizer = plain_tokenizer()
        batch = collate([{"prompt": "the do", "completion": "g sees"}], tokenizer)
        assert batch["input_ids"].tolist() == [ids("the dog sees")]
        assert batch.labels.tolist() == [[-100, *ids("dog sees")]]

    def test_truncated_on_the_right(self):
        rows = [{"prompt": "the cat", "completion": " " + "dog " * 60}, {"prompt": "a", "completion": " dog"}]
        assert collate(rows, tiny_tokenizer(), max_length=32)["input_ids"].shape == (2, 32)
        for given, limit in (({}, 32), ({"max_tokens": 5}, 5)):
            with pytest.raises(
                UnlearningError, match=f"text has 64 tokens, and the model or the tokenizer reads {limit}; set"
            ):
                collate(rows, tiny_tokenizer(), **given)
        batch = collate(rows, tiny_tokenizer(), max_tokens=7, max_length=5)
        assert batch["input_ids"].tolist() == [[CLS, *ids("the cat dog dog")], [CLS, *ids("a dog"), SEP, PAD]]
        assert batch.labels.tolist()[0] == [-100] * 3 + ids("dog dog")
        assert collate(rows, plain_tokenizer())["input_ids"].shape == (2, 62)

    @pytest.mark.parametrize("columns", [("question", "answer"), ("instruction", "output")])
    def test_questions_and_instructions(self, columns):
        """As messages where there is a template; else a question as the evaluation of TOFU writes it."""
        rows = [
            dict(zip(columns, ("the cat", "sees a dog"), strict=True)),
            dict(zip(columns, ("a", "bird"), strict=True)),
        ]
        tokenizer = tiny_tokenizer()
        head = "Question: {}\nAnswer:" if columns[0] == "question" else "{}\n"
        blank = " " if columns[0] == "question" else ""
        plain = [{"prompt": head.format(a), "completion": blank + b} for a, b in (row.values() for row in rows)]
        found, expected = collate(rows, tokenizer), collate(plain, tokenizer)
        assert torch.equal(found["input_ids"], expected["input_ids"]) and torch.equal(found.labels, expected.labels)
        if columns[0] == "question":
            assert writer(tokenizer)(*rows[0].values()) == plain[0]
        tokenizer.chat_template = CHAT
        batch = collate(rows, tokenizer)
        assert batch["input_ids"].tolist()[0] == [CLS, *ids("the cat"), SEP, *ids("sees a dog")]
        assert batch.labels.tolist()[0] == [-100] * 4 + ids("sees a dog")
        named = collate(rows, tiny_tokenizer(), text=columns[0], text_pair=columns[1])  # as they are
        assert named["input_ids"].tolist()[1][:4] == [CLS, *ids("[UNK]"), SEP, PAD]

    def test_an_instruction_with_its_input(self):
        rows = [
            {"instruction": "the", "input": "cat", "output": "sees"},
            {"instruction": "a", "input": "", "output": "dog"},
        ]
        batch = collate(rows, tiny_tokenizer())
        assert batch["input_ids"].tolist() == [[CLS, *ids("the cat sees"), SEP], [CLS, *ids("a dog"), SEP, PAD]]
        assert batch.labels.tolist()[0] == [-100] * 3 + [*ids("sees"), SEP]

    def test_messages(self):
        """The last one is the completion; a row may have arguments for the template."""
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{% if big %}big {% endif %}" + CHAT
        talk = [{"role": r, "content": c} for r, c in zip(("user", "assistant") * 2, WORDS, strict=False)]
        rows = [{"messages": talk, "chat_template_kwargs": {"big": True}}]
        batch = collate(rows, tokenizer)
        assert batch["input_ids"].tolist() == [ids("big [CLS] {} [SEP] {} [CLS] {} [SEP] {}".format(*WORDS))]
        assert batch.labels.tolist() == [[-100] * 8 + ids(WORDS[3])]
        with pytest.raises(
            UnlearningError, match="last of the messages is of the role 'user'; expected the assistant's"
        ):
            collate([{"messages": talk[:3]}], tokenizer)
        tokenizer.chat_template = None
        with pytest.raises(UnlearningError, match="messages of forget is a list of messages.* no chat template"):
            collate(rows, tokenizer)

    @pytest.mark.parametrize("stride", [1, 3])
    def test_pieces_of_long_texts(self, stride):
        """Every token is predicted once, after the last ones of the row before."""
        texts = [" ".join(WORDS[i % len(WORDS)] for i in range(n)) for n in (30, 4, 6)]
        source = Source(datasets.Dataset.from_dict({"text": texts}), "forget", layout=COMPLETIONS)
        pieces = CausalLM(tiny_llama_lm()).pieces(source, tiny_tokenizer(), 8, stride)
        assert len(pieces) == 3
        rows = [row for of_text in pieces for row in of_text]
        whole = [[CLS, *ids(text), SEP] for text in texts]
        assert all(len(row["input_ids"]) == len(row["labels"]) <= 8 for row in rows)
        joined, new = [], []
        for row in rows:
            begins = row["input_ids"][0] == CLS
            assert row["labels"] == [-100] * (0 if begins else stride) + row["input_ids"][0 if begins else stride :]
            assert begins or row["input_ids"][:stride] == joined[-1][-stride:]
            new = row["input_ids"] if begins else joined.pop() + row["input_ids"][stride:]
            joined.append(new)
        assert joined == whole
        assert len(rows) == {1: 5, 3: 6}[stride] + 2

    def test_refused_before_a_row_is_read(self):
        with pytest.raises(
            UnlearningError, match="forget has the column chosen and no rejected; expected both answers"
        ):
            collate([{"prompt": "a", "chosen": " dog"}], tiny_tokenizer())
        with pytest.raises(UnlearningError, match="max_length is 40, and the model or the tokenizer reads 32 tokens"):
            collate([{"text": "a"}], tiny_tokenizer(), max_length=40)

    @pytest.mark.parametrize(("special", "padding"), [({}, 0), ({"eos_token": "[SEP]"}, SEP)])
    def test_no_padding_token(self, special, padding):
        tokenizer = plain_tokenizer(**special)
        batch = collate([{"text": "the cat sees"}, {"text": "a"}], tokenizer)
        assert batch["input_ids"][1, -1] == padding and batch["attention_mask"][1, -1] == 0
        assert batch.labels[1, -1] == -100 and tokenizer.pad_token is None

    def test_conversations(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = CHAT
        rows = [
            {
                "prompt": [{"role": "user", "content": f"the {animal}"}],
                "completion": [{"role": "assistant", "content": "sees a bird"}],
            }
            for animal in ("cat", "dog")
        ]
        batch = collate(rows, tokenizer)
        assert batch["input_ids"].tolist()[1] == [CLS, *ids("the dog"), SEP, *ids("sees a bird")]
        assert batch.labels.tolist()[1] == [-100] * 4 + ids("sees a bird")
        tokenizer.chat_template = None
        with pytest.raises(UnlearningError, match="prompt of forget is a list of messages.* no chat template"):
            collate(rows, tokenizer)

    def test_overlap_of_conversations(self):
        rows = [
            {"prompt": [{"role": "user", "content": word}], "completion": [{"role": "a", "content": "x"}]}
            for word in WORDS
        ]
        forget, other, same = (datasets.Dataset.from_list(part) for part in (rows[:5], rows[5:], rows[4:]))
        check_overlaps(
            {
                "forget": Source(forget, "forget", layout=COMPLETIONS),
                "retain": Source(other, "retain", layout=COMPLETIONS),
            }
        )
        with pytest.raises(
            UnlearningError, match=r"1 of the 5 forget samples stand in retain too \(rows 4 of forget\)"
        ):
            check_overlaps(
                {
                    "forget": Source(forget, "forget", layout=COMPLETIONS),
                    "retain": Source(same, "retain", layout=COMPLETIONS),
                }
            )

    @pytest.mark.parametrize(
        ("about", "labels"),
        [
            ({}, [7, 8, 9]),
            ({"labels": [-100, 8, 9]}, [-100, 8, 9]),
            ({"completion_mask": [0, 0, 1]}, [-100, -100, 9]),
            ({"attention_mask": [1, 1, 0]}, [7, 8]),
        ],
    )
    def test_processed(self, about, labels):
        batch = collate(
            [{"input_ids": [7, 8, 9], **about}, {"input_ids": [5], **{k: v[:1] for k, v in about.items()}}]
        )
        assert batch["input_ids"].tolist() == [[7, 8, 9][: len(labels)], [5, 0, 0][: len(labels)]]
        assert batch.labels.tolist()[0] == labels
        rows = datasets.Dataset.from_list([{"input_ids": [7, 8, 9], **about}]).with_format("torch")
        assert collate(rows).labels.tolist() == [labels]

    def test_named_columns(self):
        data = questions(3)
        renamed = data.rename_columns({"prompt": "question", "completion": "answer"})
        source = Source(renamed, "forget", Columns(text="question", text_pair="answer"), layout=COMPLETIONS)
        found = CompletionCollator(source, tiny_tokenizer(), None)(source.rows(range(3)))
        assert torch.equal(found.labels, collate(data, tiny_tokenizer()).labels)

    def test_sizes(self):
        sources = {name: Source(data, name, layout=COMPLETIONS) for name, data in request().items()}
        collator = CompletionCollator(sources["forget"], tiny_tokenizer(), None)
        words = [len(row["completion"].split()) for name in ("forget", "retain") for row in sources[name].dataset]
        assert collator.sizes(sources).tolist() == [n + 1 for n in words]  # and the end of the sequence


class TestWeights:
    sizes = np.array([1, 9, 2, 5, 1, 7, 3, 30])  # of 3 forget samples and 5 retained ones

    def plan(self, kind: str, **settings: Any) -> Schedule:
        return Schedule([kind], n_forget=3, n_retain=5, batch_size=4, seed=1, **{"sizes": self.sizes} | settings)

    def size(self, draw: Draw) -> int:
        return self.sizes[draw.index + 3 * (draw.source == "retain")]

    @pytest.mark.parametrize("kind", ["mixed", "paired", "retain"])
    @pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 4), (2, 2), (3, 1)])
    def test_shares_of_each_group(self, kind, world, accumulation):
        plan = self.plan(kind)
        ranks = [list(plan.micro_batches(0, rank, world, accumulation)) for rank in range(world)]
        for step in range(len(plan)):
            drawn = [
                draw
                for rank in ranks
                for part in rank[step * accumulation : (step + 1) * accumulation]
                for draw in part
            ]
            for group, members in plan.step(step).items():
                total = sum(map(self.size, members))
                found = [draw for draw in drawn if draw.group == group and draw.weight > 0]
                assert len(found) == len(members)
                for draw in found:
                    assert draw.weight == pytest.approx(world * self.size(draw) / total, rel=1e-14)

    def test_columns(self):
        sizes = np.array([[1, 0], [1, 1], [0, 0], [1, 0], [1, 0], [0, 1], [1, 0], [1, 0]])
        plan = self.plan("paired", sizes=sizes)
        for batch in plan.micro_batches(0, 0, 1, 1):
            for group in ("forget", "retain"):
                members = [draw for draw in batch if draw.group == group]
                counts = np.array([sizes[draw.index + 3 * (group == "retain")] for draw in members])
                found = np.array([draw.weight for draw in members])
                np.testing.assert_allclose(found, counts / np.maximum(counts.sum(axis=0), 1))
        weights = torch.tensor([[0.5, 0.0], [0.5, 1.0]], dtype=torch.float64)
        batch = Batch(weight=weights)
        assert batch.mean(torch.tensor([2.0, 4.0]), column=0) == 3 and batch.mean(torch.tensor([2.0, 4.0]), 1) == 4
        padded = next(self.plan("retain", sizes=sizes).micro_batches(1, 1, 2, 1))  # a step of one sample
        assert all(len(draw.weight) == 2 for draw in padded)

    def test_equal_sizes_are_no_sizes(self):
        one, none = self.plan("mixed", sizes=np.ones(8, int)), self.plan("mixed", sizes=None)
        assert list(one.micro_batches(0, 1, 2, 2)) == list(none.micro_batches(0, 1, 2, 2))


class OwnLanguageDifference(OwnDifference):
    """A gradient method with paired batches: g = g_retain − g_forget / 2."""

    info = dataclasses.replace(OwnDifference.info, applies_to=("causal-lm",))


def make(folder: Path, method: Any = "finetune", model: Any = None, **changes: Any) -> UnlearningTrainer:
    changes = {"num_train_epochs": 1, "learning_rate": 3e-3, "use_cpu": True} | changes
    return UnlearningTrainer(
        model or tiny_llama_lm().double(),
        arguments(folder, **changes),
        method=method,
        processing_class=tiny_tokenizer(),
        base_model=tiny_llama_lm(seed=1).double(),
        **for_trainer(request()),
    )


LAYOUTS = {"8": (8, 1), "2x4": (4, 2), "4x2": (2, 4)}


class TestTraining:
    @pytest.mark.parametrize(
        "method", slow_but([OwnLanguageDifference], ["finetune", "retrain", OwnLanguageDifference])
    )
    def test_batches_of_8_and_2_by_4(self, tmp_path, method):
        found = {}
        for name, (batch, accumulation) in LAYOUTS.items():
            trainer = make(
                tmp_path / name,
                method if isinstance(method, str) else method(),
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
                measure=False,
                **({} if isinstance(method, str) else {"optim": "sgd", "weight_decay": 0.0}),
            )
            trainer.train()
            found[name] = weights(trainer.model)
            assert trainer.state.global_step == 4
        start = weights(tiny_llama_lm(seed=1 if method == "retrain" else 0).double())
        assert distance(found["8"], start) > 1e-3
        for name in ("2x4", "4x2"):
            assert distance(found[name], found["8"], start) < 1e-10

    @pytest.mark.parametrize("kind", ["paired", "mixed"])
    @pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 2), (2, 1), (2, 2)])
    def test_loss_is_the_mean_over_all_tokens_of_a_group(self, kind, world, accumulation):
        model = tiny_llama_lm().double()
        sources = {name: Source(data, name, layout=COMPLETIONS) for name, data in request().items()}
        collator = CompletionCollator(sources["forget"], tiny_tokenizer(), None)
        plan = Schedule([kind], n_forget=7, n_retain=25, batch_size=8, sizes=collator.sizes(sources))
        samples, collate_groups = DrawnSamples(sources), TrainingCollator(collator)
        for step in (0, len(plan) - 1):
            expected = {}
            for group, draws in plan.step(step).items():
                total, count = 0.0, 0
                for draw in draws:
                    batch = collator(sources[draw.source].rows([draw.index]))
                    log_p = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)[0]
                    for t in range(1, batch.labels.shape[1]):
                        if (label := batch.labels[0, t]) != -100:
                            total, count = total - log_p[t - 1, label].item(), count + 1
                expected[group] = total / count
            found = dict.fromkeys(expected, 0.0)
            for rank in range(world):
                parts = list(plan.micro_batches(0, rank, world, accumulation))
                for part in parts[step * accumulation : (step + 1) * accumulation]:
                    batches = collate_groups(samples.__getitems__(part))
                    for group, batch in (batches if kind == "paired" else {kind: batches}).items():
                        losses = cross_entropy(model(**batch.inputs).logits, batch.labels)
                        found[group] += batch.mean(losses).item() / world
            assert found == pytest.approx(expected, rel=1e-12)

    def test_prompt_tokens_count_for_nothing(self, tmp_path):
        rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, {"input_ids": [9, 5], "labels": [-100, 5]}]
        found = []
        for mask in (True, False):
            kept = [{**row, "completion_mask": [int(i != -100) for i in row["labels"]]} for row in rows]
            kept = [{k: v for k, v in row.items() if k != ("labels" if mask else "completion_mask")} for row in kept]
            data = datasets.Dataset.from_list(kept)
            args = arguments(tmp_path, measure=False)
            model = unlearn(
                tiny_llama_lm(), forget=questions(2).map(_ids), retain=data, method="finetune", args=args
            ).model
            found.append(weights(model))
        assert same_bits(*found)

    @pytest.mark.slow
    def test_whole_run(self, tmp_path):
        data = request()
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = None
        original = tiny_llama_lm()
        args = arguments(tmp_path / "run", learning_rate=1e-2, num_train_epochs=3)
        result = unlearn(original, **data, method="finetune", args=args, processing_class=tokenizer)
        before, after = result.metrics["before"], result.metrics["after"]
        assert after["retain_loss"] < before["retain_loss"]
        assert {k for k, v in after.items() if v is None} == {"rf_jsd"}
        assert result.metrics["reasons"]["rf_jsd"].startswith("a language model has no classes")
        assert tokenizer.pad_token is None and 0 <= after["auc"] <= 1 and after["gap"] >= 0
        assert "rf_jsd: a language model has no classes" in result.summary()

        result.save(tmp_path / "saved")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert same_bits(weights(loaded), weights(result.model))
        assert AutoTokenizer.from_pretrained(tmp_path / "saved").eos_token == "[SEP]"
        assert json.loads((tmp_path / "saved" / "metrics.json").read_text())["after"]["rf_jsd"] is None
        again = unlearn(
            str(tmp_path / "saved"),
            **data,
            method="retrain",
            base_model="scratch",
            args=arguments(tmp_path / "again", per_device_train_batch_size=16),
        )
        assert again.metrics["before"]["forget_loss"] == pytest.approx(after["forget_loss"], rel=1e-5)
        assert again.metrics["before"]["forget_loss"] != again.metrics["after"]["forget_loss"]
        rows = again.compare(result.model)
        assert rows["original"]["jsd"] == pytest.approx(0, abs=1e-9) and rows["unlearned"]["jsd"] > 0

    def test_adapter(self, tmp_path):
        data = request()
        args = arguments(tmp_path, learning_rate=1e-2)
        peft_config = LoraConfig(r=2, target_modules="all-linear")
        result = unlearn(
            tiny_llama_lm(),
            **data,
            method="finetune",
            args=args,
            processing_class=tiny_tokenizer(),
            peft_config=peft_config,
        )
        assert result.metrics["after"]["retain_loss"] < result.metrics["before"]["retain_loss"]

    def test_resumed(self, tmp_path):
        make(tmp_path / "whole", max_steps=6, save_strategy="steps", save_steps=3, measure=False).train()
        whole = make(tmp_path / "whole", max_steps=6, save_strategy="steps", save_steps=3, measure=False)
        whole.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        once = make(tmp_path / "once", max_steps=6, measure=False)
        once.train()
        assert same_bits(weights(whole.model), weights(once.model))


def _ids(row: dict) -> dict:
    return {"input_ids": ids(row["prompt"])}


class TestEvaluation:
    def test_signals_by_hand(self, tmp_path):
        trainer = make(tmp_path, per_device_eval_batch_size=5)
        other = tiny_llama_lm(seed=3).double()
        measured = trainer.measure()
        for split, (name, indices) in trainer.indices.items():
            signals, distances = {name: [] for name in measured[split].signals}, []
            for row in trainer.sources[name].rows(indices):
                tokens = [CLS, *ids(row["prompt"] + row["completion"]), SEP]
                start = 1 + len(row["prompt"].split())
                with torch.no_grad():
                    p, q = (
                        m(input_ids=torch.tensor([tokens])).logits[0].softmax(-1)[start - 1 : -1]
                        for m in (trainer.model, other)
                    )
                true = torch.tensor(tokens[start:])
                p_true = p[range(len(true)), true]
                signals["loss"].append(-p_true.log().mean())
                signals["entropy"].append(-(p * p.log()).sum(-1).mean())
                signals["confidence"].append(p_true.mean())
                signals["margin"].append(p_true.log().mean())
                signals["correct"].append((p.argmax(-1) == true).double().mean())
                signals["extraction"].append((p.argmax(-1) == true).flip(0).cumprod(0).double().mean())
                signals["tokens"].append(torch.tensor(float(len(true))))
                distances.append(jsd_rows(p, q).mean())
            for key, values in signals.items():
                np.testing.assert_allclose(measured[split].signals[key], torch.stack(values), rtol=1e-9, err_msg=key)
            assert (measured[split].labels == 0).all() and measured[split].class_sums is None
            assert trainer.evaluator.accuracy(trainer.model, name, indices) == pytest.approx(measured[split].accuracy)
            compared = trainer.evaluator.compare(trainer.model, other, name, indices)
            assert compared["jsd"] == pytest.approx(np.mean(distances), rel=1e-9)

        values = trainer.evaluate()
        assert values["eval_forget_accuracy"] == pytest.approx(measured["forget"].signals["correct"].mean())
        assert values["eval_forget_loss"] == pytest.approx(measured["forget"].signals["loss"].mean())
        expected = np.exp(-measured["forget"].signals["loss"]).mean()
        assert values["eval_forget_probability"] == pytest.approx(expected) != np.exp(-values["eval_forget_loss"])
        assert values["eval_forget_extraction"] == measured["forget"].signals["extraction"].mean()
        margins = [measured[split].signals["margin"] for split in ("forget", "evidence")]
        higher = (margins[0][:, None] > margins[1]).mean()
        assert values["eval_auc"] == pytest.approx(higher)
        a = {split: m.accuracy for split, m in measured.items()}
        assert values["eval_gap"] == pytest.approx(abs(a["forget"] - a["control"]))
        assert "eval_rf_jsd" not in values and "eval_mia" in values

    def test_measured_the_same_in_any_batch(self, tmp_path):
        found = [make(tmp_path, per_device_eval_batch_size=size).measure() for size in (1, 128)]
        for split in found[0]:
            for key, values in found[0][split].signals.items():
                np.testing.assert_allclose(values, found[1][split].signals[key], rtol=1e-10)

    def test_nan_names_the_row(self, tmp_path):
        trainer = make(tmp_path)
        torch.nn.init.constant_(trainer.model.lm_head.weight, float("nan"))
        with pytest.raises(UnlearningError, match="outputs for row 0 of forget are NaN"):
            trainer.measure()


class TestRefused:
    def run(self, tmp_path, message: str, model: Any = None, args: dict | None = None, **changes: Any) -> None:
        given = request() | {"method": "finetune", "processing_class": tiny_tokenizer()} | changes
        with pytest.raises(UnlearningError, match=message):
            unlearn(model or tiny_llama_lm(), args=arguments(tmp_path / "out", **(args or {})), **given)
        assert not (tmp_path / "out").exists()

    def changed(self, completion: Any = None, prompt: Any = None) -> datasets.Dataset:
        rows = questions(6, seed=9).to_list()
        rows[4] = {"prompt": rows[4]["prompt"] if prompt is None else prompt, "completion": completion}
        return datasets.Dataset.from_list(rows)

    @pytest.mark.parametrize("which", ["forget", "retain", "unseen"])
    @pytest.mark.parametrize(("completion", "prompt"), [("", None), ("  ", None), (" cat", "a " * 40)])
    def test_empty_completion(self, tmp_path, which, completion, prompt):
        message = (
            rf"1 of the 6 samples of {which} have no completion token to predict \(the first is row 4\): it is empty, or "
            "behind the 32 tokens"
        )
        args = {"max_length": 32} if prompt else {}
        self.run(tmp_path, message, args=args, **{which: self.changed(completion, prompt)})
        if prompt:
            message = f"Row 4 of {which} cannot be read: the text has 43 tokens, and the model or the tokenizer reads 32; set"
            self.run(tmp_path, message, **{which: self.changed(completion, prompt)})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"stride": 2}, "stride is 2, and max_length is None; expected a max_length above it"),
            ({"stride": 8, "max_length": 8}, "stride is 8, and max_length is 8; expected a max_length above it"),
            ({"stride": 0, "max_length": 8}, "stride is 0; expected 1 or more"),
            (
                {"stride": 2, "max_length": 8},
                "cuts whole texts into pieces, and forget has prompt and completion; expected a",
            ),
            ({"stride": 2, "max_length": 64}, "max_length is 64, and the model or the tokenizer reads 32 tokens"),
        ],
    )
    def test_pieces(self, tmp_path, settings, message):
        texts = {name: rows.rename_column("completion", "text") for name, rows in request().items()}
        data = (
            request() if "prompt" in message else {name: rows.remove_columns("prompt") for name, rows in texts.items()}
        )
        self.run(tmp_path, message, args=settings, **data)

    def test_labels_that_are_all_masked(self, tmp_path):
        rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5, 6, 8], "labels": [-100] * 3}]
        data = dict.fromkeys(("forget", "retain", "unseen"), datasets.Dataset.from_list(rows))
        self.run(
            tmp_path, "1 of the 2 samples of forget .*row 1.*or all of its labels are -100", **data, overlap="allow"
        )

    def test_empty_text(self, tmp_path):
        data = {name: sentences(n, seed=n) for name, n in {"forget": 4, "retain": 8, "unseen": 6}.items()}
        data["forget"] = datasets.Dataset.from_dict({"text": ["a cat", "", "a dog"]})
        self.run(tmp_path, "1 of the 3 samples of forget .* row 1", args={"max_length": 32}, **data)

    def test_missing_completion(self, tmp_path):
        self.run(tmp_path, "Row 4 of retain cannot be read .nothing is stored", retain=self.changed())
        self.run(tmp_path, "a completion is None; expected text", retain=self.changed(), overlap="allow")

    def test_stream(self, tmp_path):
        message = "Row 4 of retain has no completion token to predict: it is empty, or behind the 32 tokens"
        self.run(tmp_path, message, args={"retain_size": 6}, retain=self.changed("").to_iterable_dataset())

    def test_augmentation(self, tmp_path):
        self.run(tmp_path, "samples are different every time.*expected fixed texts", augment=str.upper)

    def test_a_set_that_changes_is_tried_once(self, tmp_path, monkeypatch):
        tried: list[str] = []
        monkeypatch.setattr(reading, "is_deterministic", lambda source, collator: bool(tried.append(source.name)))
        self.run(tmp_path, "samples are different every time.*expected fixed texts")
        assert tried == ["forget", "retain"]

    def test_overlap(self, tmp_path):
        self.run(tmp_path, "1 of the 7 forget samples stand in retain too", retain=request()["forget"].select([3]))
        shared_prompt = [{"prompt": row["prompt"], "completion": " good"} for row in request()["forget"]]
        args = arguments(tmp_path / "fine", max_steps=1, measure=False)
        data = request() | {"retain": datasets.Dataset.from_list(shared_prompt)}
        unlearn(tiny_llama_lm(), **data, method="finetune", processing_class=tiny_tokenizer(), args=args)

    def test_columns(self, tmp_path):
        data = {name: rows.rename_column("completion", "answer") for name, rows in request().items()}
        message = "forget has the columns prompt, answer; expected prompt and completion, a text .*text_pair_column="
        self.run(tmp_path, message, **data)
        self.run(tmp_path, "retain has the columns text, label.*expected the same input", retain=sentences(8))
        self.run(tmp_path, "raw columns .prompt, completion. but there is no processing class", processing_class=None)

    def test_labels_of_another_length(self, tmp_path):
        rows = datasets.Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [6]}])
        self.run(
            tmp_path,
            r"input_ids of shape \(3,\) and labels of shape \(1,\)",
            forget=rows,
            retain=rows,
            unseen=rows,
            overlap="allow",
        )

    def test_data_collator_without_token_labels(self, tmp_path):
        self.run(
            tmp_path,
            r"data collator made labels of shape \(7,\) of 7 samples of forget",
            data_collator=lambda rows: {"labels": torch.zeros(len(rows))},
        )

    def test_method_for_classifiers(self, tmp_path):
        self.run(tmp_path, "random_label works on .* and this model is for causal-lm", method="random_label")
        assert {"finetune", "retrain"} <= set(list_methods(task="causal-lm"))


def test_long_texts_in_pieces(tmp_path):
    """From texts that the model could not read to a result, by a column of another name; a classifier's are refused."""
    rng, sets = np.random.default_rng(0), {}
    for name, n in (("forget", 2), ("retain", 4), ("unseen", 3), ("test", 3)):
        sets[name] = datasets.Dataset.from_dict({"story": [" ".join(rng.choice(WORDS, 40)) for _ in range(n)]})
    args = arguments(tmp_path, max_length=16, stride=4, text_column="story", max_steps=1)
    trainer = unlearn(tiny_llama_lm(), **sets, method="npo", args=args, processing_class=tiny_tokenizer()).trainer
    found = {name: len(source) for name, source in trainer.sources.items()}
    assert found == {"forget": 8, "retain": 16, "unseen": 12, "test": 12}
    assert trainer.sizes.sum() == 6 * 41  # every token but the first
    with pytest.raises(
        UnlearningError, match="both halves had pieces of one text; with stride, pass other texts as test"
    ):
        unlearn(tiny_llama_lm(), **sets | {"test": None}, method="npo", args=args, processing_class=tiny_tokenizer())
    with pytest.raises(
        UnlearningError, match="stride is 4, and the model is for text-classification; it cuts the texts"
    ):
        data = {name: sentences(8, seed=i) for i, name in enumerate(("forget", "retain"))}
        given = {"method": "finetune", "processing_class": tiny_tokenizer()}
        unlearn(tiny_bert(), **data, **given, args=arguments(tmp_path / "bert", max_length=16, stride=4))


def test_own_data_collator(tmp_path):
    def pad_to_40(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = collate(rows, tiny_tokenizer())
        return {
            key: torch.nn.functional.pad(value, (0, 40 - value.shape[1]), value=-100 if key == "labels" else 0)
            for key, value in batch.items()
        }

    found = [
        unlearn(
            tiny_llama_lm().double(),
            **request(),
            method="finetune",
            data_collator=collator,
            processing_class=tiny_tokenizer(),
            args=arguments(tmp_path, max_steps=3, measure=False),
        ).model
        for collator in (pad_to_40, None)
    ]
    assert distance(*map(weights, found)) < 1e-12


def test_split():
    parts = split_dataset(questions(10), indices=[1, 4])
    assert len(parts["forget"]) == 2 and len(parts["retain"]) == 8
    assert len(split_dataset(questions(10), where=lambda row: "cat" in row["prompt"])["forget"]) > 0
    assert len(split_dataset(questions(10), fraction=0.3)["forget"]) == 3


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    tiny_llama_lm().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    questions(30).to_json(folder / "data.jsonl")
    return folder


class TestRecipe:
    def settings(self, files: Path, *more: str) -> list[str]:
        base = [f"model={files}/model", f"dataset={files}/data.jsonl", "method=finetune", "train_split=train[:70%]"]
        quick = ["unseen_split=train[70%:]", "max_steps=2", "disable_tqdm=true", "save_strategy=no", "use_cpu=true"]
        return [*base, *quick, *more]

    def test_runs(self, files, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        more = ["task=causal-lm", "forget_fraction=0.3", f"output_dir={tmp_path}/out"]
        result = steps.run(*recipe.parse(self.settings(files, *more)))
        assert len(result.trainer.sources["forget"]) == 6 and result.metrics["after"]["forget_loss"] > 0
        assert "6 forget and 15 retain samples" in capsys.readouterr().out
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
        assert same_bits(weights(loaded), weights(result.model))

    def test_labels_are_refused(self, files, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        with pytest.raises(UnlearningError, match="forget_labels names classes, .* have none; expected forget_ids"):
            steps.run(*recipe.parse(self.settings(files, "forget_labels=[0]", f"output_dir={tmp_path}/out")))


def test_classifiers_have_no_sizes(tmp_path):
    trainer = UnlearningTrainer(
        tiny_bert(),
        UnlearningArguments(output_dir=str(tmp_path), report_to="none"),
        method="finetune",
        processing_class=tiny_tokenizer(),
        **for_trainer({"forget": sentences(4), "retain": sentences(8, seed=1)}),
    )
    assert trainer.sizes is None and trainer.schedule.sizes is None
