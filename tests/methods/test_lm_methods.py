"""DPO and its kin, UNDIAL, WGA, SatImp, CE-U, PDU and task vectors: formulas against hand transcriptions, and what short runs do."""

import copy
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel
from torch import nn

from hf_unlearn import UnlearningError, UnlearningTrainer, list_methods
from hf_unlearn.data.batches import Batch
from hf_unlearn.data.source import Source
from hf_unlearn.methods import METHODS, SalunConfig, create_method, idk_dpo
from hf_unlearn.methods.ce_u import CeU, CeUConfig, ce_u_loss
from hf_unlearn.methods.dpo import DpoConfig, dpo_loss
from hf_unlearn.methods.idk_dpo import IdkDpoConfig
from hf_unlearn.methods.npo import Npo, NpoConfig, npo_loss
from hf_unlearn.methods.pdu import PduConfig, dual_step, margin_loss
from hf_unlearn.methods.satimp import Satimp, SatimpConfig, satimp_weights
from hf_unlearn.methods.task_vector import SCALES, TaskVector, TaskVectorConfig, negate
from hf_unlearn.methods.undial import UndialConfig, undial_loss
from hf_unlearn.methods.wga import Wga, WgaConfig, wga_weights
from hf_unlearn.models import heads
from hf_unlearn.tasks.alternatives import Alternatives, alternatives_in
from hf_unlearn.tasks.completions import COMPLETIONS, CompletionCollator
from hf_unlearn.tasks.losses import log_likelihood, sample_losses
from tests.marks import slow_but
from tests.methods.test_lm_baselines import known
from tests.samples import arguments, for_trainer, same_bits, weights
from tests.tasks.test_causal_lm import request as questions
from tests.tiny import WORDS, tiny_llama_lm, tiny_tokenizer, tiny_vit

FAMILY = ("dpo", "idk_dpo", "altpo")
EACH = (*FAMILY, "undial", "wga", "satimp", "ce_u", "pdu", "task_vector", "gradient_ascent")
GENERATOR = torch.Generator().manual_seed(0)
LOGITS, ORIGINAL = (torch.randn(5, 7, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
TOKENS = torch.tensor([3, 0, 6, 2, 2])


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


def by_hand(loss, *logits) -> list[float]:
    """One token after the other, in numpy."""
    return [loss(*(z[t].numpy() for z in logits), int(y)) for t, y in enumerate(TOKENS)]


class TestFormulas:
    def test_dpo(self):
        chosen, rejected = np.array([0.3, -2.0, 0.0]), np.array([-1.0, 4.0, 0.0])
        for beta in (0.1, 2.0):
            expected = [
                -2 / beta * math.log(1 / (1 + math.exp(-beta * (c - r))))
                for c, r in zip(chosen, rejected, strict=True)
            ]
            found = dpo_loss(torch.from_numpy(chosen), torch.from_numpy(rejected), beta)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        log_p, log_p_ref = torch.tensor([-9.0, -2.0]), torch.tensor([-4.0, -3.0])
        torch.testing.assert_close(dpo_loss(torch.zeros(2), log_p - log_p_ref, 0.7), npo_loss(log_p, log_p_ref, 0.7))

    def test_undial(self):
        def loss(z, original, y, beta=3.0):
            lowered = original.copy()
            lowered[y] -= beta
            return -(softmax(lowered) * np.log(softmax(z))).sum()

        np.testing.assert_allclose(
            undial_loss(LOGITS, ORIGINAL, TOKENS, 3.0), by_hand(loss, LOGITS, ORIGINAL), rtol=1e-6
        )

    def test_undial_ends_at_its_target(self):
        """Where the model says what the original does with the true logit lowered, there is no gradient."""
        z = ORIGINAL.clone()
        z[torch.arange(5), TOKENS] -= 3.0
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(undial_loss(z, ORIGINAL, TOKENS, 3.0).sum(), z)
        assert gradient.abs().max() < 1e-12

    def test_ce_u(self):
        def loss(z, y):
            p, others = softmax(z), np.exp(z)
            others[y] = 0
            return -(others / others.sum() * np.log(p)).sum()

        np.testing.assert_allclose(ce_u_loss(LOGITS, TOKENS), by_hand(loss, LOGITS), rtol=1e-6)
        z = LOGITS.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ce_u_loss(z, TOKENS).sum(), z)
        p = LOGITS.softmax(-1)
        q = p.clone()
        q[torch.arange(5), TOKENS] = 0
        torch.testing.assert_close(gradient, p - q / q.sum(-1, keepdim=True))  # the target has no gradient

    def test_wga(self):
        log_p = LOGITS.log_softmax(-1)[torch.arange(5), TOKENS].requires_grad_()
        for alpha in (0.0, 1.0, 2.5):
            weighted = wga_weights(log_p, alpha)
            np.testing.assert_allclose(weighted, [math.exp(x) ** alpha for x in log_p.tolist()], rtol=1e-6)
            assert not weighted.requires_grad

    def test_satimp(self):
        log_p = LOGITS.log_softmax(-1)[torch.arange(5), TOKENS]
        expected = [math.exp(x) ** 5 * (1 - math.exp(x)) ** 0.5 for x in log_p]
        np.testing.assert_allclose(satimp_weights(log_p, 5.0, 0.5), expected, rtol=1e-6)
        torch.testing.assert_close(satimp_weights(log_p, 2.0, 0.0), wga_weights(log_p, 2.0))
        assert satimp_weights(torch.zeros(1), 1.0, 1.0) == 0  # a token that is certain

    def test_pdu(self):
        expected = by_hand(lambda z, y: (z.max() - z.mean()) ** 2, LOGITS)
        np.testing.assert_allclose(margin_loss(LOGITS, TOKENS), expected, rtol=1e-6)
        assert dual_step(100.0, 0.5, 0.3, 5.0) == pytest.approx(101.0) and dual_step(1.0, 0.0, 0.3, 5.0) == 0

    def test_task_vector(self):
        start, learnt = [torch.tensor([1.0, 2.0])], torch.tensor([3.0, 1.0])
        parameter = nn.Parameter(learnt.clone())
        negate([parameter], start, [learnt - start[0]], 0.5)
        assert parameter.tolist() == [0.0, 2.5]


class TestLossesOfBatches:
    """A whole batch of texts of different lengths, against logits of all places."""

    labels = torch.tensor(
        [[-100, -100, 4, 9, 1, 7], [-100, 3, 8, -100, -100, -100], [-100, -100, 5, -100, -100, -100]]
    )
    batch = Batch(input_ids=labels.clamp(min=0), labels=labels, weight=torch.tensor([4.0, 2.0, 1.0]) / 7)

    def expected(self, model, score, skip=0) -> float:
        """The mean over the tokens of all texts, or over those of each text that count, by its length."""
        total = 0.0
        with torch.no_grad():
            logits = model(**self.batch.inputs).logits
        for row, z in zip(self.labels.tolist(), logits, strict=True):
            places = [t for t, y in enumerate(row) if y != -100]
            counted = places[skip:] or places
            total += len(places) * np.mean([score(z[t - 1].double().numpy(), row[t]) for t in counted])
        return total / 7

    def test_wga_and_satimp(self):
        model = tiny_llama_lm()

        def p(z, y):
            return softmax(z)[y]

        found = Wga(WgaConfig(alpha=2.0)).forget_loss(model, self.batch)
        assert found.item() == pytest.approx(
            self.expected(model, lambda z, y: p(z, y) ** 2 * np.log(p(z, y))), rel=1e-5
        )
        found = Satimp(SatimpConfig(beta1=1.0, beta2=0.5)).forget_loss(model, self.batch)
        wanted = self.expected(model, lambda z, y: p(z, y) * (1 - p(z, y)) ** 0.5 * np.log(p(z, y)))
        assert found.item() == pytest.approx(wanted, rel=1e-5)

    @pytest.mark.parametrize("skip", [0, 1, 2])
    def test_ce_u_leaves_out_the_first_tokens(self, skip):
        model = tiny_llama_lm()

        def score(z, y):
            others = np.where(np.arange(len(z)) == y, 0, softmax(z))
            return -(others / others.sum() * np.log(softmax(z))).sum()

        found = CeU(CeUConfig(skip=skip)).forget_loss(model, self.batch)
        assert found.item() == pytest.approx(self.expected(model, score, skip), rel=1e-5)


def with_alternatives(n: int = 2) -> dict[str, datasets.Dataset]:
    data, rng = questions(), np.random.default_rng(3)
    answers = [[" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(n)] for _ in data["forget"]]
    return data | {"forget": data["forget"].add_column("alternative", answers)}


def trainer_of(folder: Path, method: Any, data: Any = None, **settings: Any) -> UnlearningTrainer:
    given = {"peft_config": None} | {k: settings.pop(k) for k in ("peft_config",) if k in settings}
    model = settings.pop("model", None)
    if model is None:
        model = tiny_llama_lm()
        model.load_state_dict(known())
    return UnlearningTrainer(
        model,
        arguments(folder, **{"learning_rate": 3e-3} | settings),
        method=method,
        **for_trainer(data or with_alternatives()),
        processing_class=tiny_tokenizer(),
        **given,
    )


class TestRuns:
    @pytest.mark.parametrize("name", slow_but(["dpo", "pdu", "task_vector"], EACH))
    def test_directions(self, tmp_path, name):
        """The forget loss rises, by far more than the retained one."""
        trainer = trainer_of(tmp_path, name, num_train_epochs=12)
        trainer.train()
        before, after = trainer.metrics["before"], trainer.metrics["after"]
        gained, lost = (after[f"{of}_loss"] - before[f"{of}_loss"] for of in ("forget", "retain"))
        assert gained > 0.3 and lost < (1.0 if name in ("task_vector", "gradient_ascent") else 0.3) * gained
        assert list(trainer.model.peft_config) == ["unlearn"]

    @pytest.mark.parametrize("alone", [True, False])
    def test_the_head_s_gradient_is_written_in_backward_alone(self, tmp_path, monkeypatch, alone):
        """Not while a method asks for gradients of its own, and not where processes share them."""
        asked, back = [], []

        class Asks(Npo):
            def forget_loss(self, model, part):
                loss = super().forget_loss(model, part)
                head = model.get_output_embeddings().weight
                asked.append(float(torch.autograd.grad(loss, [head], retain_graph=True)[0].norm()))
                return loss

        monkeypatch.setattr(UnlearningTrainer, "_is_alone", alone)
        model = tiny_llama_lm(tie_word_embeddings=True)
        model.model.norm.weight.register_hook(lambda _: back.append(heads._INTO_GRADIENTS))
        method = Asks(NpoConfig(until="end"))
        trainer = trainer_of(tmp_path, method, model=model, max_steps=2, measure=False, peft_config=False)
        trainer.train()
        assert len(asked) == 2 and min(asked) > 0
        assert back.count(alone) == 4 and not heads._INTO_GRADIENTS  # of two losses in a step

    def test_dpo_of_a_step_by_hand(self, tmp_path):
        """At the original every log-ratio is 0; after a step the loss is that of both answers beside the original's."""
        config, steps = DpoConfig(until="end", retain="none"), {"max_steps": 1, "measure": False}
        trainer = trainer_of(tmp_path, config, **steps, logging_strategy="steps", logging_steps=1)
        original = copy.deepcopy(trainer.model)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(20 * math.log(2), rel=1e-5)
        rows = trainer.sources["forget"].rows(range(7))
        part = trainer.collate(rows)
        part["sample_index"], part["rows"], part["epoch"] = torch.arange(7), np.arange(7), torch.full((7,), 2)
        part["sample_weight"] = torch.full((7,), 1 / 7)
        drawn = [
            row["alternative"][i - 2 * n]
            for n, (row, i) in enumerate(
                zip(rows, trainer.reading.alternatives.drawn(part.sample_index, part.epoch), strict=True)
            )
        ]
        assert {row["alternative"].index(text) for row, text in zip(rows, drawn, strict=True)} == {0, 1}
        other = trainer.collate([row | {"completion": f" {text}"} for row, text in zip(rows, drawn, strict=True)])
        with torch.no_grad():
            chosen, rejected = (
                log_likelihood(trainer.model, batch) - log_likelihood(original, batch) for batch in (other, part)
            )
            found = trainer.method.forget_loss(trainer.model, part)
        assert found.item() == pytest.approx(dpo_loss(chosen, rejected, 0.1).mean().item(), rel=1e-5)
        assert chosen.mean() > rejected.mean()

    def test_undial_holds_the_original(self, tmp_path):
        """The target is the frozen original's, while the adapter moves."""
        trainer = trainer_of(tmp_path, UndialConfig(until="end"), max_steps=3, measure=False)
        original = copy.deepcopy(trainer.model)
        trainer.train()
        part = trainer.collate(trainer.sources["forget"].rows(range(7)))
        part["weight"] = torch.full((7,), 1 / 7)
        places = part.labels[:, 1:] != -100
        with torch.no_grad():
            z, teacher = (model(**part.inputs).logits[:, :-1] for model in (trainer.model, original))
            found = trainer.method.forget_loss(trainer.model, part)
        losses = torch.zeros(places.shape)
        losses[places] = undial_loss(z[places], teacher[places], part.labels[:, 1:][places], 10.0)
        expected = (losses.sum(1) / places.sum(1)).mean()
        assert found.item() == pytest.approx(expected.item(), rel=1e-5) and not torch.allclose(z, teacher)

    @pytest.mark.parametrize("accumulation", [1, 4])
    def test_the_weight_of_pdu_follows_the_retained_loss(self, tmp_path, accumulation):
        config = PduConfig(until="end", epsilon=0.01, warmup=1, retain_weight=3.0, dual_rate=2.0)
        settings = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        log = {"logging_strategy": "steps", "logging_steps": 1, "measure": False}
        trainer = trainer_of(tmp_path, config, num_train_epochs=4, **settings, **log)
        trainer.train()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        weight, steps = 3.0, len(trainer.schedule) // 4
        for step, line in enumerate(lines):
            if step >= steps:
                weight = max(0.0, weight + 2.0 * (line["retain_loss"] - 0.01))
            assert line["retain_weight"] == pytest.approx(weight, rel=1e-4)
        assert trainer.method.weight != 3.0
        state = trainer.method.state_dict()
        other = create_method(config)
        other.load_state_dict(state)
        assert (other.weight, other.epsilon) == (trainer.method.weight, 0.01)

    def test_the_bound_of_pdu_is_read_off_the_original(self, tmp_path):
        """As the mean that its own loss is, where answers are of unlike lengths too."""
        data = with_alternatives()
        rows = data["retain"].to_list()
        for row in rows[5:]:
            row["completion"] = " ".join(row["completion"].split(" ")[:2])  # one word
        trainer = trainer_of(tmp_path, "pdu", data | {"retain": datasets.Dataset.from_list(rows)}, max_steps=1)
        original = copy.deepcopy(trainer.model)
        trainer.train()
        method = trainer.method
        with torch.no_grad():
            whole = method.retain_loss(original, method.context.batch([("retain", i) for i in range(len(rows))]))
        assert method.epsilon == pytest.approx(whole.item() + 0.1)
        assert abs(trainer.metrics["before"]["retain_loss"] + 0.1 - method.epsilon) > 0.01

    def test_pdu_ends_within_its_bound_only(self, tmp_path):
        """Where nothing is left to forget it goes on as long as the retained samples are worse off than is allowed, and says so."""
        data = questions()
        data = {"forget": data["unseen"], "retain": data["retain"], "unseen": data["forget"]}
        trainer = trainer_of(
            tmp_path, PduConfig(epsilon=0.0, look=1), data, max_steps=3, learning_rate=3e-2, measure=False
        )
        trainer.method.on_epoch_begin = lambda epoch: True
        trainer.train()
        assert trainer.state.global_step == 3 and trainer.method.found > 0
        assert trainer.method.notes[0].startswith("pdu has used up its 3 steps, and the loss of retained samples is ")
        trainer = trainer_of(tmp_path / "met", PduConfig(epsilon=1e3, look=1), data, max_steps=3, measure=False)
        trainer.method.on_epoch_begin = lambda epoch: True
        trainer.train()
        assert trainer.state.global_step == 1 and trainer.method.notes == []

    @pytest.mark.parametrize("peft_config", [None, False], ids=["adapter", "weights"])
    def test_task_vector_takes_away_what_was_learnt(self, tmp_path, peft_config):
        found = []
        for scale in (1e-9, 0.5, 1.0):
            config = TaskVectorConfig(scale=scale)
            trainer = trainer_of(
                tmp_path / str(scale), config, num_train_epochs=2, peft_config=peft_config, measure=False
            )
            start = weights(trainer.model)
            trainer.train()
            assert trainer.method.report == {"scale": scale}
            found.append({k: v - start[k] for k, v in weights(trainer.model).items() if "lora_A" not in k})
        nothing, half, whole = found
        for name, change in whole.items():
            torch.testing.assert_close(2 * half[name], change, rtol=1e-3, atol=1e-6)
            assert nothing[name].abs().max() < 1e-6
        assert any(change.abs().max() > 1e-3 for change in whole.values())

    def test_task_vector_of_weights_in_bfloat16(self, tmp_path):
        """What is learnt in steps that bfloat16 rounds away is taken away too, much as of weights in float32."""
        config, found = TaskVectorConfig(scale=200.0), []
        for dtype in (torch.bfloat16, torch.float32):
            model = tiny_llama_lm()
            model.load_state_dict(known())
            model = model.to(torch.bfloat16).to(dtype)
            about = {"model": model, "peft_config": False, "max_steps": 2, "learning_rate": 2e-6, "measure": False}
            trainer = trainer_of(tmp_path / str(dtype), config, **about)
            start = weights(trainer.model)
            trainer.train()
            after = weights(trainer.model)
            found.append(torch.cat([(after[k] - start[k]).float().flatten() for k in start if "norm" not in k]))
        rounded, exact = found
        assert torch.cosine_similarity(rounded, exact, dim=0) > 0.6 and rounded.norm() > 0.6 * exact.norm()

    def test_task_vector_takes_the_least_scale_that_is_enough(self, tmp_path):
        class Near(TaskVector):
            def prepare(self, context):
                super().prepare(context)
                self.aim = aim

        for aim, notes in ((1.0, 0), (100.0, 1)):
            trainer = trainer_of(tmp_path / str(aim), Near(), num_train_epochs=12, measure=False)
            trainer.train()
            method = trainer.method
            assert len(method.notes) == notes and (method.known() >= aim) == (not notes)
            if notes:
                assert method.report == {"scale": SCALES[-1]}
                assert "and the aim is 100. Raise num_train_epochs" in method.notes[0]
            elif method.scale > SCALES[0]:
                vector = [(s - w) / method.scale for w, s in zip(method.weights, method.start, strict=True)]
                negate(method.weights, method.start, vector, method.scale / 1.25)
                trainer.looks.forget()
                assert method.known() < aim

    @pytest.mark.slow
    def test_gradient_ascent_ends_at_the_loss_of_unseen_samples(self, tmp_path):
        trainer = trainer_of(tmp_path, "gradient_ascent", questions(), num_train_epochs=60, learning_rate=3e-3)
        trainer.train()
        method = trainer.method
        assert trainer.state.global_step < len(trainer.schedule)
        assert trainer.metrics["after"]["forget_loss"] >= method.level > trainer.metrics["before"]["forget_loss"]
        data = questions()
        data = {"forget": data["unseen"], "retain": data["retain"], "unseen": data["forget"]}
        again = trainer_of(tmp_path / "again", "gradient_ascent", data)
        again.train()
        assert "knows the forget samples no better than unseen ones, and nothing was changed" in again.method.notes[0]

    def test_a_run_is_resumed_with_its_own_answers_only(self, tmp_path):
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "measure": False}
        trainer_of(tmp_path, "dpo", **settings).train()
        checkpoint = str(tmp_path / "checkpoint-1")
        with pytest.raises(UnlearningError, match="other answers to the forget samples"):
            trainer_of(tmp_path, "dpo", with_alternatives(3), **settings).train(resume_from_checkpoint=checkpoint)
        trainer_of(tmp_path, "dpo", **settings).train(resume_from_checkpoint=checkpoint)

    def test_salun_asks_the_method_inside_for_other_answers(self, tmp_path):
        trainer = trainer_of(tmp_path, SalunConfig(inner="dpo"), max_steps=1, measure=False)
        before = weights(trainer.model)
        trainer.train()
        assert not same_bits(before, weights(trainer.model))

    @pytest.mark.slow
    def test_rewind_of_a_language_models_adapter(self, tmp_path):
        """What the original's own LoRA adds is pulled back, and repaired in a new one of the same kind."""
        model = PeftModel(tiny_llama_lm(), LoraConfig(r=4, target_modules="all-linear"), adapter_name="own")
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-2)
        data = questions()
        reader = trainer_of(tmp_path / "reader", "finetune", data, model=copy.deepcopy(model), peft_config=True)
        batch = reader.collate([*data["forget"], *data["retain"]])
        for _ in range(40):
            sample_losses(model, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        about = {"peft_config": True, "learning_rate": 2e-2, "num_train_epochs": 8}
        trainer = trainer_of(tmp_path / "out", "rewind", data, model=model, **about)
        trainer.train()
        before, after = trainer.metrics["before"], trainer.metrics["after"]
        gained, lost = (after[f"{of}_loss"] - before[f"{of}_loss"] for of in ("forget", "retain"))
        assert gained > 0.3 and lost < 0.5 * gained


class TestAlternatives:
    def collator(self, rows: list[dict], **columns: Any) -> tuple[Source, CompletionCollator]:
        source = Source(datasets.Dataset.from_list(rows), "forget", layout=COMPLETIONS)
        return source, CompletionCollator(source, tiny_tokenizer(), None)

    @pytest.mark.parametrize(
        ("given", "found"),
        [
            ("a dog", ["a dog"]),
            (["a dog", "", "a cat"], ["a dog", "a cat"]),
            ([7, 8], [[7, 8]]),
            ([[7, 8], [9]], [[7, 8], [9]]),
            ([{"role": "assistant", "content": "a"}], [[{"role": "assistant", "content": "a"}]]),
            (None, []),
            ("", []),
            (float("nan"), []),
        ],
    )
    def test_in_a_row(self, given, found):
        assert alternatives_in({"alternative": given}) == found
        assert alternatives_in({}) == []

    def test_preferences(self):
        """The rejected answer is what the model has learnt; a list of dicts is read in the same way."""
        rows = [{"prompt": "the cat", "chosen": " sees a dog", "rejected": " sees a bird"}]
        plain = [{"prompt": "the cat", "completion": " sees a bird"}]
        source, collator = self.collator(rows)
        assert source.input_columns == ["prompt", "completion"]
        expected = self.collator(plain)[1](plain)
        for data in (source, Source(rows, "forget", layout=COMPLETIONS)):
            found = collator(data.rows([0]))
            assert all(torch.equal(found[key], expected[key]) for key in expected)
        others = Alternatives(source, collator, alternatives_in, seed=0)
        wanted = collator([{"prompt": "the cat", "completion": " sees a dog"}])
        assert torch.equal(collator(others.source.rows([0]))["input_ids"], wanted["input_ids"])
        with pytest.raises(
            UnlearningError, match="The retained set has the columns chosen and rejected, and only one"
        ):
            collator.check(Source(rows, "retain", layout=COMPLETIONS))

    def test_of_rows_of_every_kind(self):
        cases = [
            ({"prompt": "the cat", "completion": " sees"}, "a dog", {"prompt": "the cat", "completion": " a dog"}),
            ({"prompt": "the ", "completion": "cat"}, "dog", {"prompt": "the ", "completion": "dog"}),
            ({"question": "the", "answer": "cat"}, "dog", {"question": "the", "answer": "dog"}),
        ]
        for row, answer, expected in cases:
            source, collator = self.collator([row])
            assert collator.answered(source.rows([0])[0], answer) == expected
        ids = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
        _, collator = self.collator([ids])
        eos = tiny_tokenizer().eos_token_id
        assert collator.answered(ids, [9]) == {"input_ids": [5, 6, 9], "labels": [-100, -100, 9]}
        words = tiny_tokenizer()("a dog", add_special_tokens=False)["input_ids"]
        assert collator.answered(ids, "a dog")["input_ids"] == [5, 6, *words, eos]

    def test_of_messages(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
        asked, said = ({"role": role, "content": text} for role, text in (("user", "the cat"), ("assistant", "sees")))
        for row, column in (
            ({"messages": [asked, said]}, "messages"),
            ({"prompt": [asked], "completion": [said]}, "completion"),
        ):
            source = Source(datasets.Dataset.from_list([row]), "forget", layout=COMPLETIONS)
            collator = CompletionCollator(source, tokenizer, None)
            found = collator.answered(source.rows([0])[0], "a dog")
            assert found[column][-1] == {"role": "assistant", "content": "a dog"} and len(found[column]) == len(
                row[column]
            )
            given = collator.answered(source.rows([0])[0], [{"role": "assistant", "content": "a bird"}])
            assert given[column][-1]["content"] == "a bird"

    def test_are_drawn_by_seed_epoch_and_sample(self):
        rows = [
            {"prompt": "the", "completion": " cat", "alternative": [f" {word}" for word in WORDS[:n]]}
            for n in (1, 3, 2)
        ]
        source, collator = self.collator(rows)
        draws = set()
        for seed in range(2):
            others = Alternatives(source, collator, alternatives_in, seed)
            assert others.starts == [0, 1, 4, 6]
            for epoch in range(20):
                found = others.drawn(torch.arange(3), torch.full((3,), epoch))
                assert found == [others.drawn(torch.tensor([i]), torch.tensor([epoch]))[0] for i in range(3)]
                draws.add(tuple(found))
        assert draws == {(0, b, c) for b in (1, 2, 3) for c in (4, 5)}

    def test_refusals_are_ours_or_given(self, tmp_path):
        trainer = trainer_of(tmp_path, "idk_dpo", questions())
        assert len(trainer.reading.alternatives.source) == 7 * len(idk_dpo.REFUSALS)
        config = IdkDpoConfig(refusals=["the dog", "a cat"])
        rows = trainer_of(tmp_path, config, questions()).reading.alternatives.source.rows([0, 1])
        assert [row["completion"] for row in rows] == [" the dog", " a cat"]


class TestRefused:
    @pytest.mark.parametrize(
        ("config", "values", "message"),
        [
            (WgaConfig, {"alpha": -1.0}, "wga: alpha is -1.0; expected a number of 0 or more"),
            (SatimpConfig, {"beta2": -1.0}, "satimp: beta2 is -1.0; expected a number of 0 or more"),
            (UndialConfig, {"beta": 0.0}, "undial: beta is 0.0; expected a positive number"),
            (CeUConfig, {"skip": -1}, "ce_u: skip is -1; expected a whole number of 0 or more"),
            (PduConfig, {"retain": "none"}, "pdu: retain is 'none'; expected ce or kl, which is bounded"),
            (PduConfig, {"epsilon": -1.0}, "pdu: epsilon is -1.0; expected a loss of 0 or more, or null"),
            (TaskVectorConfig, {"scale": 0.0}, "task_vector: scale is 0.0; expected a positive number, or null"),
            (IdkDpoConfig, {"refusals": []}, r"idk_dpo: refusals is \[\]; expected some texts, or null"),
            (IdkDpoConfig, {"refusals": ["no", " "]}, "idk_dpo: refusals is .*; expected some texts, or null"),
            (DpoConfig, {"beta": -0.1}, "dpo: beta is -0.1; expected a positive number"),
        ],
    )
    def test_values(self, config, values, message):
        with pytest.raises(UnlearningError, match=message):
            config(**values)

    @pytest.mark.parametrize("name", ["dpo", "altpo"])
    def test_without_other_answers(self, tmp_path, name):
        expected = "Row 0 of forget has no other answer that could be given to it; expected a column alternative"
        with pytest.raises(UnlearningError, match=expected):
            trainer_of(tmp_path, name, questions())

    def test_one_answer_of_two(self, tmp_path):
        for column in ("chosen", "rejected"):
            data = questions()
            data["forget"] = data["forget"].rename_column("completion", column)
            missing = {"chosen": "rejected", "rejected": "chosen"}[column]
            with pytest.raises(
                UnlearningError, match=f"forget has the column {column} and no {missing}; expected both"
            ):
                trainer_of(tmp_path, "dpo", data)

    def test_texts_without_a_question(self, tmp_path):
        data = {
            name: datasets.Dataset.from_list([{"text": row["prompt"] + row["completion"]} for row in rows])
            for name, rows in questions().items()
        }
        with pytest.raises(
            UnlearningError, match="forget are texts without a question, and each is to be given another"
        ):
            trainer_of(tmp_path, "idk_dpo", data)

    def test_token_ids_without_a_tokenizer(self, tmp_path):
        rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
        sets = {f"{name}_dataset": rows for name in ("forget", "retain")}
        with pytest.raises(
            UnlearningError, match="are token ids, and the other answers are texts; pass processing_class"
        ):
            UnlearningTrainer(tiny_llama_lm(), arguments(tmp_path), method="idk_dpo", **sets, overlap="allow")

    def test_another_adapter_than_lora(self, tmp_path):
        config = LoHaConfig(r=2, target_modules=["q_proj"])
        with pytest.raises(UnlearningError, match="task_vector: peft_config is for another adapter than a plain LoRA"):
            trainer_of(tmp_path, "task_vector", peft_config=config, measure=False).train()

    def test_other_models(self, tmp_path):
        for name in set(EACH) - {"gradient_ascent"}:
            assert METHODS[name].info.applies_to == ("causal-lm",)
        assert set(EACH) <= set(list_methods(task="causal-lm"))
        with pytest.raises(
            UnlearningError, match="wga works on causal-lm, and this model is for image-classification"
        ):
            UnlearningTrainer(tiny_vit(), arguments(tmp_path), method="wga", **for_trainer(questions()))


def test_the_papers_values():
    assert WgaConfig.paper().alpha == 1.0
    assert (SatimpConfig.paper().beta1, SatimpConfig.paper().beta2, SatimpConfig.paper().retain_weight) == (
        5.0,
        1.0,
        10.0,
    )
    paper = UndialConfig.paper()
    assert (paper.beta, paper.retain, paper.arguments["learning_rate"]) == (10.0, "none", 1e-4)
    paper = PduConfig.paper()
    assert (paper.retain_weight, paper.epsilon, paper.dual_rate, paper.warmup) == (100.0, 0.3, 5.0, 5)
    assert CeUConfig.paper().retain == "none" and CeUConfig.paper().skip == 1
    for name in FAMILY:
        paper = METHODS[name].config_class.paper()
        assert type(paper) is METHODS[name].config_class and (paper.beta, paper.retain_weight) == (0.1, 1.0)
    for name in set(EACH) - {"task_vector"}:
        assert METHODS[name].config_class.paper().until == "end"
    paper = METHODS["gradient_ascent"].config_class.paper
    assert paper("tofu").arguments["learning_rate"] == 1e-5
    with pytest.raises(UnlearningError, match="Gradient ascent has no setting 'wmdp'; expected salun or tofu"):
        paper("wmdp")
