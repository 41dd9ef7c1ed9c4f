"""What a language model says of given answers, and what it answers: as one text at a time, whatever the batch."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from hf_unlearn import UnlearningError
from hf_unlearn.metrics import extraction_strength_rows, min_k_score, token_statistics
from hf_unlearn.tasks.answers import Answers
from hf_unlearn.tasks.causal_lm import completion_statistics
from tests.tiny import MAX_LENGTH, SEP, WORDS, tiny_bert, tiny_llama_lm, tiny_tokenizer

ROWS = [
    {"prompt": "the cat sees", "completion": " a dog"},
    {"prompt": "a", "completion": " very big bird and a small fish"},
    {"prompt": "the bad red dog likes the blue", "completion": " bird"},
    {"prompt": "was the fish", "completion": " very good"},
    {"prompt": "is", "completion": " not"},
]


def asked(batch_size: int = 2, seed: int = 0) -> tuple[Answers, list]:
    answers = Answers(tiny_llama_lm(seed=seed).double(), tiny_tokenizer(), batch_size)
    return answers, answers.read(ROWS, "rows")


def greedy(model: torch.nn.Module, ids: torch.Tensor, steps: int, end: int) -> list[int]:
    """Without a cache, a batch or padding."""
    new: list[int] = []
    while len(new) < steps:
        with torch.no_grad():
            token = int(
                model(input_ids=torch.cat([ids, torch.tensor(new, dtype=torch.long)])[None]).logits[0, -1].argmax()
            )
        if token == end:
            break
        new.append(token)
    return new


class TestScores:
    def test_as_the_statistics_of_one_text(self):
        answers, samples = asked()
        scores = answers.scores(samples)
        assert scores.mask.sum(axis=1).tolist() == [3, 8, 2, 3, 2]  # with the end of the text
        for row, (ids, prompt) in enumerate(samples):
            labels = ids.masked_fill(torch.arange(len(ids)) < prompt, -100)[None]
            with torch.no_grad():
                logits = answers.model(input_ids=ids[None]).logits
            expected = token_statistics(logits, labels)
            kept = scores.mask[row]
            assert -scores.log_p[row][kept].mean() == pytest.approx(expected["loss"].item(), rel=1e-12)
            assert scores.right[row][kept].mean() == expected["correct"].item()
            audit = completion_statistics(logits, labels)
            assert min_k_score(scores.log_p, scores.mask)[row] == pytest.approx(audit["min_k"].item(), rel=1e-12)
            assert extraction_strength_rows(scores.right, scores.mask)[row] == audit["extraction"].item()

    def test_moments(self):
        """Mean and deviation of the log-probabilities over the whole vocabulary."""
        answers, samples = asked()
        scores = answers.scores(samples, moments=True)
        for row, (ids, prompt) in enumerate(samples):
            with torch.no_grad():
                log_p = answers.model(input_ids=ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1)
            mean = (log_p.exp() * log_p).sum(-1, keepdim=True)
            deviation = (log_p.exp() * (log_p - mean) ** 2).sum(-1).sqrt()
            kept = scores.mask[row]
            np.testing.assert_allclose(scores.mean[row][kept], mean[:, 0], rtol=1e-10)
            np.testing.assert_allclose(scores.deviation[row][kept], deviation, rtol=1e-10)

    def test_gradient_norms(self):
        answers, samples = asked()
        for (ids, prompt), found in zip(samples, answers.gradient_norms(samples), strict=True):
            answers.model.zero_grad()
            log_p = answers.model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            (-log_p.gather(1, ids[1:, None])[prompt - 1 :].mean()).backward()
            norm = torch.stack([w.grad.norm() for w in answers.model.parameters()]).norm()
            assert found == pytest.approx(-norm.item(), rel=1e-10)
        assert answers.model.lm_head.weight.requires_grad and torch.is_grad_enabled()

    def test_one_by_one(self):
        (one, samples), (many, _) = asked(1), asked(5)
        a, b = one.scores(samples), many.scores(samples)
        assert abs(a.log_p - b.log_p).max() < 1e-12 and (a.right == b.right).all()

    def test_refusals(self):
        answers, samples = asked()
        with pytest.raises(UnlearningError, match="The answer of row 1 of mine has no token"):
            answers.read([ROWS[0], {"prompt": "a cat", "completion": ""}], "mine")
        with pytest.raises(UnlearningError, match="Row 1 of mine cannot be read: the text has .* set max_length="):
            answers.read([ROWS[0], {"prompt": "a cat " * MAX_LENGTH, "completion": " sees"}], "mine")
        with torch.no_grad():
            answers.model.lm_head.weight[5] = torch.nan
        with pytest.raises(UnlearningError, match="outputs for answer 0 of answers are NaN or infinite"):
            answers.scores(samples)
        with pytest.raises(UnlearningError, match="for text-classification, and has no answers; expected a language"):
            Answers(tiny_bert(), tiny_tokenizer())


class TestGenerate:
    @pytest.mark.parametrize("batch_size", [1, 5])
    def test_greedy(self, batch_size):
        """Padded on the left, with a cache, and whatever the model's own settings are."""
        answers, samples = asked(batch_size, seed=3)
        model, tokenizer = answers.model, answers.tokenizer
        own = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=8.0, max_length=5, eos_token_id=SEP)
        model.generation_config = own
        found = answers.generate(samples, max_new_tokens=12)
        expected = [tokenizer.decode(greedy(model, ids[:n], 12, SEP), skip_special_tokens=True) for ids, n in samples]
        assert found == [text.strip() for text in expected] and len(set(found)) > 1
        assert model.generation_config is own

    def test_ends(self):
        """At the tokenizer's end, and at those of the model's own settings."""
        answers, samples = asked(seed=3)
        words = answers.generate(samples, max_new_tokens=12)[1].split()
        end = next(word for word in words if word in WORDS[1:])
        answers.model.generation_config.eos_token_id = [answers.tokenizer.convert_tokens_to_ids(end)]
        assert answers.generate(samples, max_new_tokens=12)[1].split() == words[: words.index(end)]

    def test_limit_of_positions(self):
        answers, samples = asked()
        longest = max(prompt for _, prompt in samples)
        answers.model.config.max_position_embeddings = longest + 3
        assert max(len(text.split()) for text in answers.generate(samples)) <= 3
        answers.model.config.max_position_embeddings = longest
        with pytest.raises(
            UnlearningError, match=f"has {longest} tokens, and the model reads {longest}, so no answer fits"
        ):
            answers.generate(samples)
