"""Gradient difference, NPO, SimNPO and RMU: formulas against closed forms, and what short runs do."""

import copy
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stories
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import ConcatDataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_unlearn import (
    GradDiffConfig,
    HamuConfig,
    NpoConfig,
    RmuConfig,
    SalunConfig,
    SimnpoConfig,
    UnlearningArguments,
    UnlearningError,
    UnlearningTrainer,
    unlearn,
)
from hf_unlearn.data.batches import Batch
from hf_unlearn.data.schedule import Schedule
from hf_unlearn.methods import METHODS, create_method, rmu
from hf_unlearn.methods.frozen import OnlineTeacher
from hf_unlearn.methods.npo import npo_loss
from hf_unlearn.methods.preference import completion_lengths, kl_to_original
from hf_unlearn.methods.salun import Salun
from hf_unlearn.methods.simnpo import simnpo_loss
from hf_unlearn.models import heads, pretrained
from hf_unlearn.tasks import task_of
from hf_unlearn.tasks.causal_lm import CausalLM
from hf_unlearn.tasks.losses import cross_entropy, log_likelihood, predicting
from tests.marks import slow_but
from tests.runs import make_trainer, original, weights
from tests.samples import arguments, fitted, for_trainer, learnt
from tests.tasks.test_causal_lm import request as questions
from tests.tiny import (
    TEXT,
    tiny_bert,
    tiny_distilbert,
    tiny_gpt2_classifier,
    tiny_llama_lm,
    tiny_modernbert,
    tiny_resnet,
    tiny_tokenizer,
    tiny_vit,
)

LOGITS = torch.randn(3, 6, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([[-100, -100, 4, 9, 1, 7], [-100, 3, 8, -100, -100, -100], [5, -100, -100, 2, -100, -100]])
PLACES = [[2, 3, 4, 5], [1, 2], [3]]  # the label of a first token is predicted by nothing
EACH = [GradDiffConfig, NpoConfig, SimnpoConfig, RmuConfig]


class TestNpo:
    log_p_ref = torch.tensor([-3.0, -20.0, -0.1], dtype=torch.float64)
    log_p = torch.tensor([-3.0, -25.0, -7.0], dtype=torch.float64)

    def test_at_the_original(self):
        for beta in (0.01, 0.1, 3.0):
            losses = npo_loss(self.log_p_ref, self.log_p_ref, beta)
            torch.testing.assert_close(losses, torch.full_like(losses, 2 / beta * math.log(2)))

    def test_closed_form(self):
        ratio = (self.log_p - self.log_p_ref).exp()
        for beta in (0.1, 1.0):
            torch.testing.assert_close(npo_loss(self.log_p, self.log_p_ref, beta), 2 / beta * (1 + ratio**beta).log())

    def test_is_gradient_ascent_for_a_small_beta(self):
        """Up to a constant: to (2/β)·log 2, and to the reference."""
        beta = 1e-6
        found = npo_loss(self.log_p, self.log_p_ref, beta) - 2 / beta * math.log(2)
        torch.testing.assert_close(found, self.log_p - self.log_p_ref, rtol=1e-4, atol=1e-4)

    def test_weights_of_the_gradient(self):
        beta, log_p = 0.7, self.log_p.clone().requires_grad_()
        (found,) = torch.autograd.grad(npo_loss(log_p, self.log_p_ref, beta).sum(), log_p)
        p, q = (beta * self.log_p).exp(), (beta * self.log_p_ref).exp()
        torch.testing.assert_close(found, 2 * p / (p + q))
        assert found[0] == pytest.approx(1) and found[2] < 0.02

    def test_bounded_below(self):
        assert (npo_loss(self.log_p_ref - 1e6, self.log_p_ref, 0.1) >= 0).all()


class TestSimnpo:
    def test_by_hand(self):
        log_p, lengths = torch.tensor([-4.0, -4.0, 0.0]), torch.tensor([4, 1, 7])
        # The means over tokens are −1, −4 and 0: (2/β)·log(1 + e^(β·mean + γ))
        means = np.array([-1.0, -4.0, 0.0])
        for beta, gamma in ((2.5, 0.0), (1.0, 0.5)):
            expected = 2 / beta * np.log1p(np.exp(beta * means + gamma))
            np.testing.assert_allclose(simnpo_loss(log_p, lengths, beta, gamma), expected, rtol=1e-6)

    def test_is_npo_of_one_token_at_a_certain_reference(self):
        log_p = torch.tensor([-3.0, -0.5])
        torch.testing.assert_close(simnpo_loss(log_p, torch.ones(2), 0.3), npo_loss(log_p, torch.zeros(2), 0.3))


class TestOfSamples:
    def test_log_likelihood(self):
        log_p = LOGITS.log_softmax(-1)
        expected = [sum(log_p[i, t - 1, LABELS[i, t]] for t in places) for i, places in enumerate(PLACES)]
        found = -cross_entropy(LOGITS, LABELS) * completion_lengths(LABELS)
        torch.testing.assert_close(found, torch.stack(expected))
        assert completion_lengths(LABELS).tolist() == [4, 2, 1]

    def test_kl(self):
        """From the original's predictions to the model's, as the papers' code has it."""
        model, other = tiny_llama_lm().double(), tiny_llama_lm(seed=1).double()
        batch = Batch(input_ids=LABELS.clamp(min=0), labels=LABELS)
        with torch.no_grad():
            original = OnlineTeacher(other).places(batch, predicting(LABELS))
            q, p = (m(**batch.inputs).logits.softmax(-1) for m in (model, other))
            expected = [
                np.mean([(p * (p / q).log()).sum(-1)[i, t - 1] for t in places]) for i, places in enumerate(PLACES)
            ]
            np.testing.assert_allclose(kl_to_original(model, batch, original), expected)
            assert kl_to_original(other, batch, original).abs().max() < 1e-12

    @pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 2), (2, 2), (2, 4)])
    def test_means_over_samples(self, world, accumulation):
        """However many tokens they have, and however a step is split; its last one has fewer samples than parts."""
        sizes = np.arange(1, 14)
        plan = Schedule(["paired"], n_forget=4, n_retain=9, batch_size=8, sizes=sizes)
        values = torch.arange(13.0, dtype=torch.float64) ** 2
        ranks = [list(plan.micro_batches(0, rank, world, accumulation)) for rank in range(world)]
        for step in range(len(plan)):
            for group, members in plan.step(step).items():
                index = [d.index + 4 * (group == "retain") for d in members]
                found = 0.0
                for rank in ranks:
                    for part in rank[step * accumulation : (step + 1) * accumulation]:
                        draws = [d for d in part if d.group == group]
                        shares = torch.tensor([d.sample_weight for d in draws], dtype=torch.float64)
                        of_draws = values[[d.index + 4 * (group == "retain") for d in draws]]
                        found += Batch(sample_weight=shares).mean_over_samples(of_draws).item() / world
                assert found == pytest.approx(values[index].mean().item(), rel=1e-12)


def language_trainer(folder: Path, method: Any, model: Any = None, **settings: Any) -> UnlearningTrainer:
    given = {"peft_config": None} | {k: settings.pop(k) for k in ("peft_config",) if k in settings}
    model = model or tiny_llama_lm()
    if model.config.model_type == "llama":
        model.load_state_dict(known())
    return UnlearningTrainer(
        model,
        arguments(folder, **{"learning_rate": 3e-3} | settings),
        method=method,
        **for_trainer(questions()),
        processing_class=tiny_tokenizer(),
        **given,
    )


@functools.cache
def known() -> dict[str, Tensor]:
    """The weights of a model that knows the forget and the retained answers."""
    model, data = tiny_llama_lm(), questions()
    reader = UnlearningTrainer(
        model, arguments(Path("unused")), method="finetune", processing_class=tiny_tokenizer(), **for_trainer(data)
    )
    batch = reader.collate([*data["forget"], *data["retain"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        cross_entropy(model(**batch.inputs).logits, batch.labels).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


class TestRuns:
    @pytest.mark.parametrize("config", slow_but([GradDiffConfig], EACH[:3]))
    def test_directions(self, tmp_path, config):
        """The forget loss rises to that of unseen samples, and the retain loss holds."""
        trainer = language_trainer(tmp_path, config(look=1, epoch="retain"), num_train_epochs=12, learning_rate=3e-3)
        trainer.train()
        before, after = trainer.metrics["before"], trainer.metrics["after"]
        gained, lost = (after[f"{name}_loss"] - before[f"{name}_loss"] for name in ("forget", "retain"))
        assert gained > 1 and lost < 0.2 * gained
        if config is GradDiffConfig:  # the others slow down by themselves, and are still on their way
            assert trainer.state.global_step < len(trainer.schedule)
        assert list(trainer.model.peft_config) == ["unlearn"]

    @pytest.mark.parametrize("config", EACH[:3])
    def test_loss_of_a_step_by_hand(self, tmp_path, config):
        """A mean over forget samples, and one over retained tokens."""
        steps = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 1, "measure": False}
        trainer = language_trainer(tmp_path, config(until="end"), **steps)
        model = copy.deepcopy(trainer.model)
        trainer.train()
        found, loss = trainer.state.log_history[0], {}
        for group, draws in trainer.schedule.step(0).items():
            rows = [trainer.sources[group].rows([draw.index])[0] for draw in draws]
            values = []
            for batch in (trainer.collate([row]) for row in rows):
                with torch.no_grad():
                    log_p = log_likelihood(model, batch)
                values.append((log_p.item(), completion_lengths(batch.labels).item()))
            loss[group] = np.array(values).T
        (log_p, lengths), retain = loss["forget"], -loss["retain"][0].sum() / loss["retain"][1].sum()
        forget = {
            "grad_diff": -log_p.sum() / lengths.sum(),
            "npo": 20 * math.log(2),
            "simnpo": np.mean(0.8 * np.log1p(np.exp(2.5 * log_p / lengths))),
        }[config.method]
        assert found["forget_loss"] == pytest.approx(forget, rel=1e-4)
        assert found["retain_loss"] == pytest.approx(retain, rel=1e-4)
        sign = -1 if config is GradDiffConfig else 1
        weight = 20 if config is NpoConfig else 1
        assert found["loss"] == pytest.approx(sign * forget + weight * retain, rel=1e-3)

    @pytest.mark.parametrize("peft_config", [None, False], ids=["adapter", "weights"])
    def test_the_reference_is_the_original(self, tmp_path, peft_config):
        trainer = language_trainer(tmp_path, "npo", num_train_epochs=1, peft_config=peft_config, measure=False)
        before = trainer.evaluator.measure(trainer.model, *trainer.indices["forget"]).signals["loss"]
        trainer.train()
        np.testing.assert_array_equal(trainer.method.original_losses, before)
        after = trainer.evaluator.measure(trainer.model, *trainer.indices["forget"]).signals["loss"]
        assert (after > before).mean() > 0.5
        assert (trainer.adapter is None) == (peft_config is False)

    @pytest.mark.parametrize("peft_config", [None, False], ids=["adapter", "weights"])
    def test_kl_to_the_original(self, tmp_path, peft_config):
        config = NpoConfig(retain="kl", until="end")
        steps = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 3, "measure": False}
        trainer = language_trainer(tmp_path, config, peft_config=peft_config, **steps)
        trainer.train()
        first, *others = [line["retain_loss"] for line in trainer.state.log_history if "loss" in line]
        assert first == pytest.approx(0, abs=1e-6) and all(value > 1e-6 for value in others)

    def test_without_a_retain_term(self, tmp_path):
        found = []
        for retain in ("none", "ce"):
            config = SimnpoConfig(retain=retain, retain_weight=0.0, until="end")
            trainer = language_trainer(tmp_path / retain, config, num_train_epochs=1, measure=False)
            trainer.train()
            found.append(weights(trainer.model))
        torch.testing.assert_close(*found)

    def test_gradient_difference_of_a_classifier(self, tmp_path):
        args = arguments(tmp_path, num_train_epochs=8, learning_rate=1e-3)
        config = GradDiffConfig(look=1)
        trainer = UnlearningTrainer(fitted(flipped=True), args, method=config, **for_trainer(learnt()))
        trainer.train()
        before, after = trainer.metrics["before"], trainer.metrics["after"]
        assert after["forget_loss"] > before["forget_loss"] + 0.5
        assert after["retain_accuracy"] > 0.9


class Widest(TorchDispatchMode):
    """The most rows over the vocabulary that any operation gives, forwards or backwards, but for the head's own weights."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.vocabulary, self.width = model.config.vocab_size, model.config.hidden_size
        self.rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            shape = tensor.shape if isinstance(tensor, Tensor) else ()
            if len(shape) > 1 and shape[-1] == self.vocabulary and shape[-2] != self.width:
                self.rows = max(self.rows, math.prod(shape[:-1]))
        return found


@pytest.mark.parametrize(
    ("config", "peft_config"),
    [(NpoConfig(retain="kl"), None), *((c(), False) for c in (SimnpoConfig, GradDiffConfig, RmuConfig, HamuConfig))],
)
def test_no_logits_of_all_places(tmp_path, monkeypatch, config, peft_config):
    """Neither while it is measured nor trained is there a row over the vocabulary for each token, but for a few at a time."""
    monkeypatch.setattr(heads, "CHUNK", 8)
    trainer = language_trainer(tmp_path, config, max_steps=2, peft_config=peft_config)
    with Widest(pretrained(trainer.model)) as found:
        trainer.train()
    assert 0 < found.rows <= 8


def tiny_gpt2() -> GPT2LMHeadModel:
    config = {"n_embd": 16, "n_layer": 7, "n_head": 2, "n_positions": 64, "vocab_size": TEXT["vocab_size"]}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(initializer_range=0.2, **config, **dropout)).eval()


class TestRmuFormulas:
    def test_direction(self):
        u = rmu.random_direction(64, seed=3)
        assert u.norm().item() == pytest.approx(1) and (u >= 0).all()
        assert torch.equal(u, rmu.random_direction(64, seed=3)) and not torch.equal(u, rmu.random_direction(64, 4))

    def test_displacement(self):
        h, target = torch.randn(2, 3, 4), torch.randn(4)
        read = torch.tensor([[True, True, False], [False, True, False]])
        squares = (h - target).square().sum(-1) / 4
        expected = torch.stack([squares[0, :2].mean(), squares[1, 1]])
        torch.testing.assert_close(rmu.displacement(h, target, read), expected)
        h[~read] = 1e9  # padding counts for nothing
        torch.testing.assert_close(rmu.displacement(h, target, read), expected)

    @pytest.mark.parametrize(
        ("build", "blocks", "layers"),
        [
            (tiny_llama_lm, "model.layers", ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
            (tiny_gpt2_classifier, "transformer.h", ["mlp.c_fc", "mlp.c_proj"]),
            (tiny_bert, "bert.encoder.layer", ["intermediate.dense", "output.dense"]),
            (tiny_distilbert, "distilbert.transformer.layer", ["ffn.lin1", "ffn.lin2"]),
            (tiny_modernbert, "model.layers", ["mlp.Wi", "mlp.Wo"]),
            (tiny_vit, "vit.layers", ["mlp.fc1", "mlp.fc2"]),
        ],
    )
    def test_blocks_by_structure(self, build, blocks, layers):
        model = build()
        found = rmu.find_blocks(model)
        assert [name for name, _ in found] == [f"{blocks}.{i}" for i in range(len(found))] and len(found) == 2
        assert rmu.mlp_layers(found[0][1]) == layers
        assert rmu.Rmu().trained_modules(model) == [f"{blocks}.0.{name}" for name in layers]  # 2 // 3 is block 0

    def test_three_blocks(self):
        blocks = {layer: rmu.Rmu(RmuConfig(layer=layer)).trained_modules(tiny_gpt2()) for layer in (None, 1, 5)}
        numbers = {k: sorted({int(name.split(".")[2]) for name in names}) for k, names in blocks.items()}
        assert numbers == {None: [0, 1, 2], 1: [0, 1], 5: [3, 4, 5]}

    def test_through_an_adapter(self):
        config = LoraConfig(target_modules="all-linear")
        adapted = PeftModel(tiny_llama_lm(), config).get_base_model()
        assert rmu.Rmu().trained_modules(adapted) == rmu.Rmu().trained_modules(tiny_llama_lm())


FAMILIES = {
    "llama": lambda: original("llama"),
    "bert": lambda: original("bert"),
    "vit": lambda: original("vit"),
}


class TestRmu:
    def check(self, trainer: UnlearningTrainer) -> None:
        """Forget activations come nearer to c·u, retained ones stay, and nothing but the declared weights changes."""
        method = trainer.method
        before, means = weights(trainer.model), []
        frozen = copy.deepcopy(trainer.model)
        trained = {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()}
        trainer.train()
        after = weights(trainer.model)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        only = tuple(method.trained_modules(trainer.model.get_base_model() if trainer.adapter else trainer.model))
        allowed = {name for name in before if name.removeprefix("base_model.model.").startswith(only)}
        assert changed and changed <= allowed
        assert all("lora" in name for name in changed) or not trainer.adapter
        assert {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()} == trained

        for group in ("forget", "retain"):
            source = trainer.sources[group]
            batch = trainer.collate(source.rows(range(len(source))))
            with torch.no_grad():
                found = [rmu.activations(m, method.steered(m), batch) for m in (frozen, trainer.model)]
            read = rmu.read_tokens(batch, found[0])
            target = method.config.steering * rmu.random_direction(found[0].shape[-1], trainer.args.seed)
            means.append([rmu.displacement(h, target, read).mean().item() for h in found])
            means[-1].append(rmu.displacement(found[1], found[0], read).mean().item())
        (start, end, moved), (_, _, held) = means
        assert end < 0.9 * start and held < 0.5 * moved

    @pytest.mark.parametrize("family", slow_but(["vit"], FAMILIES))
    def test_only_mlp_weights(self, tmp_path, family):
        settings = {"num_train_epochs": 16, "learning_rate": 1e-2, "weight_decay": 0.1, "measure": False}
        config = RmuConfig(until="end", retain_weight=10.0)
        trainer = make_trainer(config, family, tmp_path, model=FAMILIES[family](), **settings)
        if family == "llama":
            assert trainer.adapter is not None
            trainer = language_trainer(tmp_path, config, **settings, peft_config=False)
        self.check(trainer)

    @pytest.mark.parametrize(
        "peft_config",
        slow_but([None], [None, LoraConfig(r=4, target_modules="all-linear")]),
        ids=["own", "given"],
    )
    def test_in_an_adapter(self, tmp_path, peft_config):
        settings = {"num_train_epochs": 12, "learning_rate": 3e-2, "measure": False}
        config = RmuConfig(until="end", retain_weight=10.0)
        trainer = language_trainer(tmp_path, config, **settings, peft_config=peft_config)
        if peft_config is None:
            layers = {name.split(".lora_")[0] for name, p in trainer.model.named_parameters() if p.requires_grad}
            prefix = "base_model.model."
            assert {name.removeprefix(prefix) for name in layers} == set(
                trainer.method.trained_modules(tiny_llama_lm())
            )
        self.check(trainer)

    def test_gpt2_in_an_adapter(self, tmp_path):
        trainer = language_trainer(tmp_path, RmuConfig(), tiny_gpt2(), max_steps=2, measure=False)
        trainer.train()
        adapted = {name.split(".lora_")[0] for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert len(adapted) == 6 and all(".mlp.c_" in name for name in adapted)


class TestRefused:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ((NpoConfig, {"beta": 0.0}), "npo: beta is 0.0; expected a positive number"),
            ((SimnpoConfig, {"retain": "l2"}), "simnpo: retain is 'l2'; expected ce, kl or none"),
            ((NpoConfig, {"retain_weight": -1.0}), "npo: retain_weight is -1.0; expected a weight of 0 or more"),
            ((RmuConfig, {"steering": 0}), "rmu: steering is 0; expected a positive number"),
            ((RmuConfig, {"layer": -1}), "rmu: layer is -1; expected the number of a block, from 0, or null"),
            ((GradDiffConfig, {"until": "never"}), "grad_diff: until is 'never'; expected unseen or end"),
        ],
    )
    def test_values(self, values, message):
        config, given = values
        with pytest.raises(UnlearningError, match=message):
            config(**given)

    def test_models(self, tmp_path):
        args = arguments(tmp_path)
        with pytest.raises(
            UnlearningError, match="rmu steers .* TimmWrapperForImageClassification has no list of blo"
        ):
            UnlearningTrainer(tiny_resnet(), args, method="rmu", **for_trainer(learnt()))
        with pytest.raises(UnlearningError, match="rmu: layer is 7; expected one of the model's blocks, 0 to 1"):
            UnlearningTrainer(tiny_vit(), args, method=RmuConfig(layer=7), **for_trainer(learnt()))
        for name in ("npo", "simnpo"):
            with pytest.raises(UnlearningError, match=f"{name} works on causal-lm, and this model is for image-class"):
                UnlearningTrainer(tiny_vit(), args, method=name, **for_trainer(learnt()))

    def test_quantised_weights(self, tmp_path):
        """A stand-in for those of bitsandbytes: whole numbers, without a gradient."""
        model = tiny_gpt2()
        model.transformer.h[0].mlp.c_fc.weight = torch.nn.Parameter(torch.ones(64, 16, dtype=torch.uint8), False)
        with pytest.raises(
            UnlearningError, match=r"npo trains the weights .* quantised \(uint8\); train an adapter beside"
        ):
            language_trainer(tmp_path, "npo", model, peft_config=False)

    def test_an_adapter_elsewhere(self, tmp_path):
        trainer = language_trainer(tmp_path, "rmu", peft_config=LoraConfig(target_modules=["q_proj"]))
        with pytest.raises(UnlearningError, match="rmu trains model.layers.0.mlp.gate_proj.*peft_config adapts other"):
            trainer.train()


@pytest.mark.parametrize(("peft_config", "own", "notes"), [(False, False, 0), (False, True, 1), (None, False, 0)])
def test_weights_in_half_precision(tmp_path, peft_config, own, notes):
    """Steps that bfloat16 would lose add up in copies in float32; an optimizer of the user's own loses them, and the result says so."""
    model = tiny_gpt2().bfloat16()
    settings = {"max_steps": 1, "measure": False, "learning_rate": 1e-5}
    trainer = language_trainer(tmp_path, "npo", model, peft_config=peft_config, **settings)
    if own:
        trainer.given_optimizer = trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-5)
    trainer.train()
    found = [
        note for note in trainer.method.notes if "are in bfloat16, where a step of less than 0.002 of a weight" in note
    ]
    assert len(found) == notes


@pytest.mark.parametrize("name", ["npo", "simnpo"])
def test_steps_of_the_papers(name):
    """On TOFU's forget01, in batches of 32; and by default epochs of a classifier are those of its retained samples."""
    method = create_method(METHODS[name].config_class.paper())
    method.learn_task(CausalLM(tiny_llama_lm()))
    assert len(Schedule(method.epochs(10), n_forget=40, n_retain=3960, batch_size=32)) == 20


@pytest.mark.parametrize(
    ("model", "given", "kind"),
    [
        (tiny_llama_lm, None, "forget-paired"),
        (tiny_llama_lm, "retain", "paired"),
        (tiny_vit, None, "paired"),
        (tiny_vit, "forget", "forget-paired"),
    ],
)
def test_what_an_epoch_passes_through(model, given, kind):
    for config in (GradDiffConfig, RmuConfig):
        for method in (create_method(config(epoch=given)), Salun(SalunConfig(inner=config(epoch=given)))):
            method.learn_task(task_of(model()))
            assert method.epochs(2) == [kind] * 2


def test_tokens_that_rmu_reads():
    batch = Batch(labels=LABELS, attention_mask=(torch.arange(6) < 5).long().repeat(3, 1))
    read = rmu.read_tokens(batch, torch.zeros(3, 6, 4))
    assert read.sum(dim=1).tolist() == [4, 2, 1]
    assert rmu.read_tokens(batch, torch.zeros(3, 6, 4), whole=True).sum(dim=1).tolist() == [5, 5, 5]


def test_the_papers_values():
    assert (NpoConfig.paper().beta, NpoConfig.paper().arguments["learning_rate"]) == (0.1, 1e-5)
    paper = SimnpoConfig.paper()
    assert (paper.beta, paper.gamma, 1 / paper.retain_weight) == (2.5, 0.0, pytest.approx(0.1375))
    paper = RmuConfig.paper()
    assert (paper.layer, paper.steering, paper.retain_weight, paper.tokens) == (7, 6.5, 1200.0, "all")
    for config in EACH:
        assert METHODS[config.method].config_class is config


@pytest.fixture(scope="module")
def animals():
    """Made-up animals, half as many as in the experiment, and stories15M that has learnt those to forget and to retain.

    It is downloaded if it is not there.
    """
    try:
        parts = stories.data(0)
    except RuntimeError as error:  # no npm, or no network
        pytest.skip(str(error))
    parts = {name: stories.Rows(part.rows[::2]) for name, part in parts.items()}
    return parts, stories.fit(ConcatDataset([parts["forget"], parts["retain"]]), 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grad_diff", "npo", "simnpo", "rmu"])
def test_defaults_on_stories(tmp_path, animals, method):
    """Without tuning, the forget loss rises by far more than the retain loss."""
    parts, model = animals
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    args = UnlearningArguments(str(tmp_path), **quiet)
    metrics = unlearn(copy.deepcopy(model), **parts, method=method, args=args, overlap="allow").metrics
    before, after = metrics["before"], metrics["after"]
    gained, lost = (after[f"{name}_loss"] - before[f"{name}_loss"] for name in ("forget", "retain"))
    assert gained > 0.4 and lost < 0.5 * gained


@pytest.mark.parametrize("config", EACH)
@pytest.mark.parametrize("adapted", slow_but([True], [False, True]))
def test_salun_keeps_what_is_not_in_its_mask(tmp_path, config, adapted):
    """Bit by bit, in the weights and in an adapter."""
    method = create_method(SalunConfig(inner=config.method, density=0.3))
    changes = {"weight_decay": 0.1, "learning_rate": 1e-2, "max_grad_norm": 0.5, "measure": False}
    trainer = language_trainer(tmp_path, method, **changes, **({} if adapted else {"peft_config": False}))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    masks = {id(p): mask for p, mask in zip(method.parameters, method.masks, strict=True)}
    moved = 0
    for name, parameter in trainer.model.named_parameters():
        mask = masks.get(id(parameter), torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(before[name][~mask], parameter[~mask]), name
        moved += (before[name] != parameter).sum().item()
    kept = sum(mask.sum().item() for mask in masks.values())
    assert 0.5 * kept < moved <= kept < sum(mask.numel() for mask in masks.values())
