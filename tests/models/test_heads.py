"""The head at the places that count: the values and gradients of the plain computation, without its tensors."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from hf_unlearn.data.batches import Batch
from hf_unlearn.methods.frozen import OnlineTeacher
from hf_unlearn.methods.preference import kl_to_original
from hf_unlearn.metrics import token_statistics
from hf_unlearn.models import heads
from hf_unlearn.tasks.causal_lm import completion_statistics
from hf_unlearn.tasks.losses import cross_entropy, divergence, log_likelihood, next_tokens, predicting, sample_losses
from hf_unlearn.tasks.token_evaluation import TokenEvaluator, tokens_of
from tests.tiny import SIZE, TEXT, tiny_llama_lm

VOCABULARY = TEXT["vocab_size"]


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=VOCABULARY)).eval()


def scaled() -> nn.Module:
    """Its forward pass divides what the head says."""
    return GraniteForCausalLM(GraniteConfig(logits_scaling=3.0, num_key_value_heads=2, **SIZE, **TEXT)).eval()


def adapted() -> nn.Module:
    """With the head itself in an adapter that is not at its start."""
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return get_peft_model(tiny_llama_lm(), config, adapter_name="unlearn").eval()


FAMILIES = {
    "llama": tiny_llama_lm,
    "tied": lambda: tiny_llama_lm(tie_word_embeddings=True),
    "gpt2": gpt2,
    "scaled": scaled,
    "adapted": adapted,
}


def family(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FAMILIES[name]().double()


def texts(n: int = 5, length: int = 12) -> Batch:
    """Completions of different lengths, the first token of a text among the labels of one, and padding."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCABULARY, (n, length), generator=random)
    labels = ids.clone()
    for row in range(n):
        labels[row, : 2 * row] = -100
    labels[1:, -2:] = -100
    mask = torch.ones_like(ids)
    mask[1:, -2:] = 0
    return Batch(input_ids=ids, attention_mask=mask, labels=labels)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [g for g in torch.autograd.grad(loss, weights, allow_unused=True) if g is not None]


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    monkeypatch.setattr(heads, "CHUNK", 8)


@pytest.mark.parametrize("name", FAMILIES)
class TestAsThePlainComputation:
    def test_likelihood(self, name):
        model, batch = family(name), texts()
        plain = cross_entropy(model(**batch.inputs).logits, batch.labels)
        found = sample_losses(model, batch)
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
        sums = -found * predicting(batch.labels).sum(dim=1)
        torch.testing.assert_close(log_likelihood(model, batch), sums, rtol=1e-10, atol=1e-12)
        weights = torch.arange(1.0, 6.0, dtype=torch.float64)  # of the samples in some loss
        pair = [gradients(model, (weights * losses).sum()) for losses in (found, plain)]
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12)

    def test_kl(self, name):
        model, batch = family(name), texts()
        other = copy.deepcopy(model)
        with torch.no_grad():
            for weight in other.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        places = predicting(batch.labels)
        found = kl_to_original(model, batch, OnlineTeacher(other).places(batch, places))
        with torch.no_grad():
            original = other(**batch.inputs).logits
        by_place = divergence(original, model(**batch.inputs).logits)
        plain = torch.where(places, by_place, 0.0).sum(dim=1) / places.sum(dim=1)
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
        pair = [gradients(model, losses.sum()) for losses in (found, plain)]
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12)

    def test_statistics(self, name):
        model, batch = family(name), texts()
        predicted = tokens_of(model, batch)
        evaluator = TokenEvaluator(SimpleNamespace(is_local_main_process=True, autocast=nullcontext), None, None, 0)
        with torch.no_grad():
            expected = token_statistics(model(**batch.inputs).logits, batch.labels)
        expected["tokens"] = predicting(batch.labels).sum(dim=1).double()
        with torch.no_grad():
            expected["extraction"] = completion_statistics(model(**batch.inputs).logits, batch.labels)["extraction"]
        torch.testing.assert_close(evaluator.statistics(predicted, batch), expected, rtol=1e-10, atol=1e-12)
        same = evaluator.distances(predicted, predicted, batch)
        assert max(values.abs().max() for values in same.values()) < 1e-12

    def test_the_model_is_as_before(self, name):
        model, batch = family(name), texts()
        before = model(**batch.inputs).logits
        sample_losses(model, batch)
        assert torch.equal(model(**batch.inputs).logits, before)
        assert not any("forward" in vars(module) for module in model.modules())


def test_the_adapter_s_own_head_is_the_original_s():
    """The teacher of a model with an adapter is the same model with it switched off, at its head too."""
    model, batch = family("adapted"), texts()
    places = predicting(batch.labels)
    teacher = OnlineTeacher(model, model.disable_adapter)
    found = teacher.places(batch, places)
    with model.disable_adapter(), torch.no_grad():
        expected = model(**batch.inputs).logits[places]
    torch.testing.assert_close(found.logits(found.states), expected)


def of_backward(model: nn.Module, inside: bool, autocast: bool = False) -> list[Tensor]:
    """`.grad` of all weights, of two passes, the first of which is added up by `backward` as ever."""
    model.zero_grad()
    for into in (False, inside):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = sample_losses(model, texts()).square().sum()
        with heads.into_gradients(into):
            loss.backward()
    return [w.grad.clone() for w in model.parameters() if w.grad is not None]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_past_autograd(name):
    """Those that `backward` would hand on, added to what is there."""
    model = family(name)
    pair = [of_backward(model, inside) for inside in (True, False)]
    torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12)
    loss = 2 * cross_entropy(model(**texts().inputs).logits, texts().labels).square().sum()
    torch.testing.assert_close(pair[0], gradients(model, loss), rtol=1e-10, atol=1e-12)


class TestOnlyWhereItMay:
    """A gradient that nothing hands on is the head's own, of a weight that nobody waits for, in `backward`."""

    def test_what_waits_for_it(self):
        model, seen = family("tied"), []
        weight = model.get_output_embeddings().weight
        weight.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad.clone()))
        whole = of_backward(model, True)
        torch.testing.assert_close(seen[-1], whole[0], rtol=1e-10, atol=1e-12)

    def test_a_frozen_head(self):
        model = family("llama")
        model.get_output_embeddings().requires_grad_(False)
        found = of_backward(model, True)
        assert model.get_output_embeddings().weight.grad is None
        torch.testing.assert_close(found, of_backward(model, False), rtol=1e-10, atol=1e-12)

    def test_autocast(self):
        model = tiny_llama_lm(tie_word_embeddings=True)
        pair = [of_backward(model, inside, autocast=True) for inside in (True, False)]
        torch.testing.assert_close(*pair)
        plain = of_backward(model, False)
        assert all((a - b).norm() < 0.02 * b.norm() for a, b in zip(pair[0], plain, strict=True))


@pytest.mark.slow
def test_small_chunks_reach_a_large_sum_in_half_precision(monkeypatch):
    """As near to the sum as the ordinary way comes, which adds up a step before it adds it to what is there."""
    monkeypatch.setattr(heads, "CHUNK", 1)
    model = tiny_llama_lm().bfloat16()
    weight = model.get_output_embeddings().weight
    loss = sample_losses(model.double(), texts()).sum()
    (exact,) = torch.autograd.grad(32 * loss, weight)
    model.bfloat16()

    def error(inside: bool) -> float:
        model.zero_grad()
        for _ in range(32):
            loss = sample_losses(model, texts()).sum()
            with heads.into_gradients(inside):
                loss.backward()
        return float((weight.grad.double() - exact).norm() / exact.norm())

    assert error(True) < 1.2 * error(False)


def test_masked_words():
    """Words that a model never says have the logit −inf, and count for nothing."""
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, -1.0, 0.5]])
    log_p, right, mean, deviation = heads.token_moments(logits, torch.tensor([1, 0])).T
    p = logits[0, :2].softmax(0)
    assert log_p[0].item() == pytest.approx(p[1].log().item()) and right.tolist() == [1, 1]
    assert mean[0].item() == pytest.approx((p * p.log()).sum().item())
    assert deviation[0].item() == pytest.approx((p * (p.log() - mean[0]) ** 2).sum().sqrt().item())


def test_dtypes():
    model, batch = tiny_llama_lm().bfloat16(), texts()
    assert sample_losses(model, batch).dtype == torch.float32
    assert tokens_of(model, batch).scores.dtype == torch.float32
    places = predicting(batch.labels)
    score = heads.scored(next_tokens(batch.labels)[places], heads.log_probabilities)
    assert heads.read(model, batch.inputs, places, score)[0].shape == (int(places.sum()), 1)


def test_a_cap_is_seen_in_half_precision_too():
    """Of small numbers it is the identity there: 30·tanh(1/30) is 1 in bfloat16."""
    size = SIZE | {"head_dim": 8, "num_key_value_heads": 2}
    model = Gemma2ForCausalLM(Gemma2Config(final_logit_softcapping=30.0, **size, **TEXT)).eval().bfloat16()
    model.get_output_embeddings().weight.data.mul_(100)  # logits that the cap changes
    batch = texts()
    with torch.no_grad():
        heads.read(model, batch.inputs, predicting(batch.labels), heads.states)
        plain = cross_entropy(model(**batch.inputs).logits, batch.labels)
        assert torch.allclose(sample_losses(model, batch), plain, rtol=0.02)


@pytest.mark.slow
def test_a_compiled_model_is_compiled_once():
    """However many places of a batch count."""
    model, graphs = tiny_llama_lm(), []

    def backend(graph: nn.Module, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    compiled = cast(nn.Module, torch.compile(model, backend=backend))
    for n in (5, 3):
        batch = texts()
        batch.labels[n:, 3:] = -100
        assert torch.equal(sample_losses(compiled, batch)[:n], sample_losses(model, batch)[:n])
        assert len(graphs) == 1


def test_autocast_does_not_round_what_is_summed_over_words():
    random = torch.Generator().manual_seed(0)
    p = 3 * torch.randn(4, 1000, generator=random)
    q, tokens = p + 0.05 * torch.randn(4, 1000, generator=random) + 2, torch.arange(4)
    pairs = [
        (heads.divergences, (p, q)),
        (heads.token_scores, (p, tokens)),
        (heads.token_moments, (p, tokens)),
    ]
    for function, given in pairs:
        plain = function(*given)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(function(*given), plain)
