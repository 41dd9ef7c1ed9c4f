"""Number formats, checkpointed activations, compiled models, BatchNorm and adapters."""

import copy
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hf_unlearn import UnlearningError, UnlearningTrainer, unlearn
from hf_unlearn.methods import LotusConfig
from hf_unlearn.methods.frozen import OnlineTeacher
from hf_unlearn.models import adapters, batchnorm_modules
from hf_unlearn.models.modes import single_values
from hf_unlearn.training.masters import keep_masters
from hf_unlearn.training.teacher import TableTeacher
from tests.marks import slow_but
from tests.samples import arguments, fitted, for_trainer, images, learnt, request, same_bits, sentences, weights
from tests.tiny import random_inputs, tiny_bert, tiny_resnet, tiny_tokenizer, tiny_vit


def losses(result) -> list[float]:
    return [entry["loss"] for entry in result.trainer.state.log_history if "loss" in entry]


class TestHalfPrecision:
    @pytest.mark.parametrize(
        ("build", "method"),
        slow_but(
            [(tiny_vit, "lotus"), (tiny_resnet, "finetune")],
            [
                (tiny_vit, "finetune"),
                (tiny_vit, "random_label"),
                (tiny_vit, "lotus"),
                (tiny_resnet, "finetune"),
                (tiny_resnet, "random_label"),
            ],
        ),
    )
    def test_bf16_autocast(self, tmp_path, build, method):
        # At 16 pixels a ResNet ends in a 1 x 1 map, for which torch's bf16 convolution on CPUs has NaN gradients.
        data = learnt() if build is tiny_vit else request(size=32)
        args = arguments(tmp_path, bf16=True, use_cpu=True, logging_strategy="steps", logging_steps=1)
        model = fitted() if method == "lotus" else build()
        before = weights(model)
        result = unlearn(model, **data, method=method, args=args)
        assert torch.tensor(losses(result)).isfinite().all() and len(losses(result)) >= 4
        assert all(p.dtype == torch.float32 for p in result.model.parameters())
        assert not same_bits(before, weights(result.model))
        if method == "lotus":
            teacher = result.trainer.method.teacher
            assert isinstance(teacher, TableTeacher) and teacher.table.dtype == "float32"

    def test_bf16_autocast_improves(self, tmp_path):
        args = arguments(tmp_path, bf16=True, use_cpu=True, num_train_epochs=10, learning_rate=5e-3)
        metrics = unlearn(tiny_vit(), **request(), method="finetune", args=args).metrics
        assert metrics["before"]["retain_accuracy"] < 0.6 and metrics["after"]["retain_accuracy"] > 0.9
        assert metrics["after"]["retain_loss"] < 0.5 * metrics["before"]["retain_loss"]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("method", slow_but(["lotus"], ["finetune", "lotus"]))
    def test_weights_in_another_precision(self, tmp_path, dtype, method):
        args = arguments(tmp_path, num_train_epochs=5, learning_rate=5e-3, logging_strategy="epoch")
        model = (fitted() if method == "lotus" else tiny_vit()).to(dtype)
        result = unlearn(model, **learnt(), method=method, args=args)
        assert all(p.dtype == dtype and p.isfinite().all() for p in result.model.parameters())
        assert losses(result) and torch.tensor(losses(result)).isfinite().all()
        if method == "finetune":
            assert losses(result)[-1] < 0.7 * losses(result)[0]
        else:
            wanted = "float64" if dtype == torch.float64 else "float32"
            assert result.trainer.method.teacher.table.dtype == wanted
        with result.trainer.original_model() as original:
            assert next(original.parameters()).dtype == dtype
        result.save(tmp_path / "saved")
        saved = type(result.model).from_pretrained(tmp_path / "saved")
        assert saved.dtype == dtype and same_bits(weights(saved), weights(result.model))

    def test_small_steps_add_up(self, tmp_path):
        """As they do in float32, up to rounding. Without copies in float32 most of them are lost."""
        start = weights(fitted().bfloat16())
        moved = {}
        for name in ("float32", "bfloat16", "without copies"):
            model = fitted().bfloat16().to(torch.float32 if name == "float32" else torch.bfloat16)
            args = arguments(tmp_path / name, num_train_epochs=4, learning_rate=1e-4, measure=False)
            trainer = UnlearningTrainer(model, args, method="finetune", **for_trainer(learnt()))
            if name == "without copies":
                trainer.given_optimizer = trainer.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
            trainer.train()
            after = weights(trainer.model)
            assert all(tensor.dtype == model.dtype for tensor in after.values())
            moved[name] = torch.cat([(after[key].bfloat16() != tensor).flatten() for key, tensor in start.items()])
        shares = {name: changed.float().mean().item() for name, changed in moved.items()}
        assert shares["float32"] > 0.5 and abs(shares["bfloat16"] - shares["float32"]) < 0.05
        assert shares["without copies"] < 0.8 * shares["float32"]

    def test_what_changes_a_weight_changes_its_copy(self):
        weight = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.bfloat16))
        optimizer = torch.optim.SGD([weight], lr=1e-3)
        keep_masters(optimizer)
        (master,) = optimizer.param_groups[0]["params"]
        for changed in (False, True):
            weight.grad = torch.ones_like(weight)
            if changed:
                weight.data[0] = 3.0
            optimizer.step()
        torch.testing.assert_close(master.detach(), torch.tensor([2.999, 0.998]))
        assert weight.tolist() == master.to(torch.bfloat16).tolist() and weight.grad is None

    def test_a_resumed_run_has_the_same_copies(self, tmp_path):
        found = []
        for resumed in (None, str(tmp_path / "checkpoint-2")):
            args = arguments(
                tmp_path, max_steps=4, save_strategy="steps", save_steps=2, learning_rate=1e-4, measure=False
            )
            trainer = UnlearningTrainer(fitted().bfloat16(), args, method="finetune", **for_trainer(learnt()))
            trainer.train(resume_from_checkpoint=resumed)
            masters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
            assert all(p.dtype == torch.float32 for p in masters)
            found.append((weights(trainer.model), masters))
        (a, copies_a), (b, copies_b) = found
        assert same_bits(a, b) and all(map(torch.equal, copies_a, copies_b))


class TestMemoryAndSpeed:
    @pytest.mark.parametrize("method", slow_but(["lotus"], ["finetune", "lotus"]))
    def test_gradient_checkpointing_changes_nothing(self, tmp_path, method):
        found = {}
        for on in (False, True):
            args = arguments(tmp_path, gradient_checkpointing=on, learning_rate=3e-3)
            result = unlearn(fitted(), **learnt(), method=method, args=args)
            assert any(getattr(m, "gradient_checkpointing", False) for m in result.model.modules()) == on
            found[on] = weights(result.model)
        assert not same_bits(found[True], weights(fitted()))
        assert all(torch.allclose(found[True][name], tensor, atol=1e-6) for name, tensor in found[False].items())

    def test_gradient_checkpointing_under_an_adapter(self, tmp_path):
        """The teacher is this very model: what is computed again in the backward pass is still the student."""
        found = {}
        for on in (False, True):
            args = arguments(tmp_path, gradient_checkpointing=on, learning_rate=3e-3)
            config = LotusConfig(cache_teacher="never")
            result = unlearn(fitted(), **learnt(), method=config, args=args, peft_config=lora())
            found[on] = weights(result.model)
        assert all(torch.allclose(found[True][name], tensor, atol=1e-6) for name, tensor in found[False].items())

    @pytest.mark.slow
    @pytest.mark.parametrize(("backend", "method"), [("eager", "lotus"), ("inductor", "finetune")])
    def test_compiled_model(self, tmp_path, backend, method):
        if backend == "inductor" and not (shutil.which("c++") or shutil.which("g++")):
            pytest.skip("there is no C++ compiler")
        found = {}
        for compiled in (False, True):
            changes = {"torch_compile": True, "torch_compile_backend": backend} if compiled else {}
            args = arguments(tmp_path, optim="sgd", learning_rate=0.05, weight_decay=0.0, **changes)
            result = unlearn(fitted(), **learnt(), method=method, args=args)
            assert hasattr(result.trainer.model_wrapped, "_orig_mod") == compiled
            found[compiled] = weights(result.model)
        assert all(torch.allclose(found[True][name], tensor, atol=1e-5) for name, tensor in found[False].items())
        assert not same_bits(found[True], weights(fitted()))
        result.save(tmp_path / "saved")
        assert same_bits(weights(type(fitted()).from_pretrained(tmp_path / "saved")), found[True])


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_buffers() if "running" in name or "tracked" in name}


class TestBatchNorm:
    @pytest.mark.parametrize("method", slow_but(["lotus"], ["finetune", "random_label", "lotus"]))
    @pytest.mark.parametrize("frozen", [True, False])
    def test_statistics(self, tmp_path, method, frozen):
        model = fitted(tiny_resnet)
        before = statistics(model)
        args = arguments(tmp_path, freeze_batchnorm=frozen)
        result = unlearn(model, **learnt(), method=method, args=args)
        assert result.trainer.state.global_step > 0 and len(before) > 20
        after = statistics(result.model)
        if frozen:
            assert same_bits(before, after)
        else:
            assert not any(torch.equal(before[name], after[name]) for name in before)

    def test_affine_weights_are_trained_all_the_same(self, tmp_path):
        model = fitted(tiny_resnet)
        before = weights(model)
        unlearn(model, **learnt(), method="lotus", args=arguments(tmp_path, freeze_batchnorm=True))
        assert not torch.equal(before["timm_model.bn1.weight"], model.timm_model.bn1.weight)

    def test_frozen_under_an_adapter_whatever_is_asked(self, tmp_path):
        model = fitted(tiny_resnet)
        before = statistics(model)
        config = LoraConfig(r=2, target_modules=r".*layer\d.*conv1")
        args = arguments(tmp_path, freeze_batchnorm=False, learning_rate=1e-2)
        result = unlearn(model, **learnt(), method="lotus", peft_config=config, args=args)
        after = {name.removeprefix("base_model.model."): tensor for name, tensor in statistics(result.model).items()}
        assert result.trainer.state.global_step > 0 and same_bits(before, after)

    @pytest.mark.parametrize("size", [(16, 1), (2, 8)])
    def test_a_sample_alone_in_its_batch(self, size, tmp_path):
        """The last of 17 samples, in a network that ends in maps of one pixel."""
        batch = {"per_device_train_batch_size": size[0], "gradient_accumulation_steps": size[1]}
        data = learnt() | {"retain": images(17, seed=9)}
        model = tiny_resnet()
        args = arguments(tmp_path, freeze_batchnorm=False, num_train_epochs=1, measure=False, **batch)
        unlearn(model, **data, method="finetune", args=args)
        norms = batchnorm_modules(model)
        assert all(int(norm.num_batches_tracked) > 100 for norm in norms)  # the others were learnt from
        assert not any(norm._forward_pre_hooks or norm._forward_hooks for norm in norms)

    def test_training_goes_on_after_an_error_in_such_a_batch(self):
        norm = torch.nn.BatchNorm2d(3)
        with pytest.raises(ValueError), single_values(norm):
            norm.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(ValueError()))
            norm(torch.zeros(1, 3, 1, 1))
        assert norm.training


def lora(**changes) -> LoraConfig:
    return LoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj", "fc1"], "lora_dropout": 0.1} | changes))


def logits(model: nn.Module) -> torch.Tensor:
    pixels = images(6, seed=20)["pixel_values"][:]
    model.eval()
    with torch.no_grad():
        return model(pixel_values=pixels.to(next(model.parameters()).dtype)).logits


def with_own_adapter(task_type: str | None = None) -> PeftModel:
    """A model with a trained adapter of its own (and, for a task type, a trained copy of the head)."""
    base = fitted() if task_type is None else tiny_bert()
    target_modules = ["q_proj", "o_proj"] if task_type is None else ["query", "dense"]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=target_modules, task_type=task_type))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert "lora" in name or "modules_to_save" in name
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


class TestAdapter:
    @pytest.mark.parametrize("method", slow_but(["lotus"], ["lotus", "finetune", "random_label"]))
    def test_only_the_adapter_is_trained(self, tmp_path, method):
        before, answers = weights(fitted()), logits(fitted())
        args = arguments(tmp_path, learning_rate=1e-2)
        result = unlearn(fitted(), **learnt(), method=method, peft_config=lora(), args=args)
        assert isinstance(result.model, PeftModel) and list(result.model.peft_config) == ["unlearn"]
        trained = {name for name, p in result.model.named_parameters() if p.requires_grad}
        assert trained and all(".unlearn." in name for name in trained)
        for name, tensor in weights(result.model).items():
            if ".unlearn." not in name:
                plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
                assert torch.equal(tensor, before[plain]), name
        assert (logits(result.model) - answers).abs().max() > 0.05
        with result.trainer.adapter.disabled():
            assert torch.equal(logits(result.model), answers)
        with result.trainer.original_model() as original:
            assert torch.equal(logits(original), answers)
        assert (logits(result.model) - answers).abs().max() > 0.05

    def test_bits_of_a_resnet(self, tmp_path):
        """Convolutions and BatchNorm."""
        answers = logits(fitted(tiny_resnet))
        config = LoraConfig(r=2, target_modules=r".*layer\d.*(conv1|conv2)")
        args = arguments(tmp_path, learning_rate=1e-2)
        result = unlearn(fitted(tiny_resnet), **learnt(), method="lotus", peft_config=config, args=args)
        assert not torch.equal(logits(result.model), answers)
        with result.trainer.adapter.disabled():
            assert torch.equal(logits(result.model), answers)

    @pytest.mark.parametrize("cache", ["auto", "never"])
    def test_teacher(self, tmp_path, cache):
        model, config, args = fitted(), LotusConfig(cache_teacher=cache), arguments(tmp_path)
        dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        for module in dropouts:
            module.p = 0.3
        assert dropouts
        trainer = UnlearningTrainer(model, args, method=config, peft_config=lora(), **for_trainer(learnt()))
        trainer.train()
        teacher = trainer.method.teacher
        assert isinstance(teacher, TableTeacher if cache == "auto" else OnlineTeacher)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        flags = {name: p.requires_grad for name, p in trainer.model.named_parameters()}
        modes = {name: module.training for name, module in trainer.model.named_modules()}
        expected = fitted()(pixel_values=batch["pixel_values"]).logits
        assert torch.allclose(teacher.logits(batch), expected, atol=1e-5)
        assert not teacher.logits(batch).requires_grad
        assert flags == {name: p.requires_grad for name, p in trainer.model.named_parameters()}
        assert modes == {name: module.training for name, module in trainer.model.named_modules()}
        assert any(flags.values()) and any(modes.values())
        assert not torch.allclose(trainer.model(pixel_values=batch["pixel_values"]).logits, expected, atol=1e-3)

    def test_cached_and_online_teacher_give_the_same_trajectory(self, tmp_path):
        found = {}
        for cache in ("always", "never"):
            config = LotusConfig(cache_teacher=cache)
            peft_config = lora(lora_dropout=0.0)
            result = unlearn(fitted(), **learnt(), method=config, peft_config=peft_config, args=arguments(tmp_path))
            found[cache] = weights(result.model)
        assert all(torch.allclose(found["never"][name], tensor, atol=1e-5) for name, tensor in found["always"].items())

    def test_start_depends_on_the_seed_alone(self, tmp_path):
        def start(seed, noise):
            torch.manual_seed(noise)
            args = arguments(tmp_path, seed=seed)
            return weights(UnlearningTrainer(fitted(), args, peft_config=lora(), **for_trainer(learnt())).model)

        assert same_bits(start(1, 0), start(1, 5)) and not same_bits(start(1, 0), start(2, 0))

    def test_the_config_given_stays_as_it_is(self, tmp_path):
        config = lora(task_type="SEQ_CLS")
        before = copy.deepcopy(config)
        UnlearningTrainer(fitted(), arguments(tmp_path), peft_config=config, **for_trainer(learnt()))
        assert config == before

    def test_trained_biases_are_refused(self, tmp_path):
        with pytest.raises(
            UnlearningError, match="peft_config has bias='all', which trains biases of the model itself"
        ):
            about = {"method": "lotus", "peft_config": lora(bias="all")}
            unlearn(fitted(), **learnt(), **about, args=arguments(tmp_path))

    def test_task_type_does_not_train_the_head(self, tmp_path):
        """PEFT would train a whole copy of it, and without the adapter the model would not be the original."""
        inputs = random_inputs(tiny_bert())
        answers = tiny_bert()(**inputs).logits
        config = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
        data = request(sentences) | {"processing_class": tiny_tokenizer()}
        args = arguments(tmp_path, learning_rate=1e-2)
        result = unlearn(tiny_bert(), **data, method="finetune", peft_config=config, args=args)
        result.model.eval()
        assert all("lora_" in name for name, p in result.model.named_parameters() if p.requires_grad)
        assert not torch.allclose(result.model(**inputs).logits, answers, atol=1e-3)
        with result.trainer.adapter.disabled():
            assert torch.equal(result.model(**inputs).logits, answers)


class TestIncomingAdapter:
    @pytest.mark.parametrize("cache", slow_but(["never"], ["auto", "never"]))
    def test_is_kept_under_ours(self, tmp_path, cache):
        model = with_own_adapter()
        before, answers, bare = weights(model), logits(model), logits(fitted())
        assert not torch.allclose(answers, bare, atol=1e-2)
        data, config = request(), LotusConfig(cache_teacher=cache, alpha=8)
        data["forget"] = data["forget"].map(lambda row, i: {"label": int(answers_of(model)[i])}, with_indices=True)
        args = arguments(tmp_path, learning_rate=1e-2)
        trainer = UnlearningTrainer(model, args, method=config, peft_config=lora(), **for_trainer(data))
        assert torch.equal(logits(trainer.model), answers)  # the original, with its own adapter
        trainer.train()
        assert trainer.state.global_step > 0
        unlearned = trainer.model
        assert list(unlearned.peft_config) == ["default", "unlearn"]
        assert {name for name, p in unlearned.named_parameters() if p.requires_grad} == {
            name for name, _ in unlearned.named_parameters() if ".unlearn." in name
        }
        after = {n: t for n, t in weights(unlearned).items() if ".unlearn." not in n}
        renamed = {n: before.get(n, before.get(n.replace(".base_layer", ""))) for n in after}
        assert all(torch.equal(tensor, renamed[name]) for name, tensor in after.items())
        assert not torch.allclose(logits(unlearned), answers, atol=1e-2)
        with trainer.adapter.disabled():
            assert torch.equal(logits(unlearned), answers)
        batch = next(iter(trainer.get_train_dataloader()))
        expected = with_own_adapter()(pixel_values=batch["pixel_values"]).logits
        assert torch.allclose(trainer.method.teacher.logits(batch), expected, atol=1e-5)

    def test_with_a_trained_head(self, tmp_path):
        """A classifier as PEFT trains it: its head is part of the adapter."""
        model = with_own_adapter("SEQ_CLS")
        inputs = random_inputs(tiny_bert())
        answers = model(**inputs).logits.detach()
        assert not torch.allclose(answers, tiny_bert()(**inputs).logits, atol=1e-2)
        config = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
        data = request(sentences) | {"processing_class": tiny_tokenizer()}
        args = arguments(tmp_path, learning_rate=1e-2)
        result = unlearn(model, **data, method="finetune", peft_config=config, args=args)
        result.model.eval()
        assert not torch.allclose(result.model(**inputs).logits, answers, atol=1e-3)
        assert all(".unlearn." in name for name, p in result.model.named_parameters() if p.requires_grad)
        with result.trainer.adapter.disabled():
            assert torch.equal(result.model(**inputs).logits, answers)

    def test_a_merged_adapter_is_unmerged(self):
        model = with_own_adapter()
        answers = logits(model)
        model.merge_adapter()
        adapter = adapters.attach(model, lora())
        assert torch.allclose(logits(adapter.model), answers, atol=1e-5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".unlearn." in name:
                    parameter.add_(0.1)
        assert not torch.allclose(logits(adapter.model), answers, atol=1e-2)
        with adapter.disabled():
            assert torch.allclose(logits(adapter.model), answers, atol=1e-5)

    def test_another_kind_of_adapter_is_refused(self, tmp_path):
        from peft import IA3Config

        config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
        with pytest.raises(
            UnlearningError, match="adapter of type LORA and peft_config is of type IA3; expected the same"
        ):
            unlearn(with_own_adapter(), **request(), method="lotus", peft_config=config, args=arguments(tmp_path))

    def test_comparison_sees_the_unlearned_model(self, tmp_path):
        """Not the original, which is the same object with the adapter off."""
        args = arguments(tmp_path, learning_rate=1e-2)
        result = unlearn(fitted(), **learnt(), method="lotus", peft_config=lora(), args=args)
        rows = result.compare(fitted())
        assert rows["original"]["jsd"] == rows["retrained"]["jsd"] == 0
        assert rows["unlearned"]["jsd"] > 1e-3


def answers_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=request()["forget"]["pixel_values"][:]).logits.argmax(dim=1)
