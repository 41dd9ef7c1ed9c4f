"""Rewind: the pull, the repair, and what is known of the original's training."""

import copy
import functools
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_unlearn import MultiTaskModel, UnlearningArguments, UnlearningError, UnlearningTrainer, unlearn
from hf_unlearn.methods.rewind import Rewind, RewindConfig, pull, rewind
from tests import runs
from tests.samples import arguments, fitted, for_trainer, images, learnt, request, same_bits, sentences, weights
from tests.tiny import tiny_bert, tiny_resnet, tiny_tokenizer, tiny_vit

START = functools.partial(tiny_vit, seed=1)


def run(folder, method, model=None, data=None, **changes):
    given = {"base_model": START} | changes.pop("given", {})
    args = arguments(folder, **{"lr_scheduler_type": "constant", "optim": "sgd", "warmup_steps": 0} | changes)
    return unlearn(fitted() if model is None else model, **(data or learnt()), method=method, args=args, **given)


def test_the_pull():
    weight, start = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.allclose(pull(weight, start, 0.3), 0.3 * weight + 0.7 * start)
    assert torch.equal(pull(weight, start, 1), weight) and torch.equal(pull(weight, start, 0), start)


@pytest.mark.slow
def test_to_keep_all_is_fine_tuning_and_to_keep_nothing_is_retraining(tmp_path):
    about = {"weight_decay": 0.01, "max_grad_norm": 1.0, "freeze_batchnorm": False}
    for keep, other in ((1, "finetune"), (0, "retrain")):
        mine = run(tmp_path / f"{keep}", RewindConfig(keep=keep), **about)
        theirs = run(tmp_path / other, other, **about)
        assert same_bits(weights(mine.model), weights(theirs.model))
    assert not same_bits(weights(mine.model), weights(fitted()))


def test_no_forget_sample_is_read_in_the_repair(tmp_path):
    result = run(tmp_path, RewindConfig())
    schedule = result.trainer.schedule
    assert set(schedule.epochs) == {"retain"} and (schedule.used() >= schedule.n_forget).all()
    data = learnt() | {"forget": images(8, seed=50)}
    assert same_bits(weights(result.model), weights(run(tmp_path / "other", RewindConfig(), data=data).model))


@pytest.mark.slow
def test_of_some_tasks_alone_the_budget_counts_each_sample_once(tmp_path):
    """A forget sample that keeps a label is read in the repair, for that label, and stands there among the retained ones."""
    data, config = runs.rows("multitask"), RewindConfig(budget=0.5, original_epochs=4)
    for tasks in ([next(iter(runs.HEADS))], None):
        args = UnlearningArguments(tmp_path / str(tasks is None), per_device_train_batch_size=1, report_to="none")
        model = runs.original("multitask")
        result = unlearn(model, **data, method=config, args=args, tasks=tasks, base_model="scratch")
        samples = len(data["forget"]) + len(data["retain"])
        assert len(result.trainer.schedule) == pytest.approx(2 * samples, abs=2)
        assert result.trainer.method.report["share_of_original"] == pytest.approx(0.5, rel=0.05)


def test_of_a_backbone_it_goes_back_to_that_with_new_heads(tmp_path):
    """Which the model says in its config; `base_model` may name it too."""
    tiny_vit(seed=1).save_pretrained(tmp_path / "base")
    model = MultiTaskModel.from_backbone(tmp_path / "base", runs.HEADS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.save_pretrained(tmp_path / "original")
    shutil.copytree(tmp_path / "base", tmp_path / "named")
    about = {**runs.rows("multitask"), "tasks": ["colour"], "method": RewindConfig(keep=0, original_epochs=2)}
    for original, given, start in ((model, {}, "base"), (str(tmp_path / "original"), {}, "base"),
                                   (str(tmp_path / "original"), {"base_model": str(tmp_path / "named")}, "named")):  # fmt: skip
        args = arguments(
            tmp_path / f"out-{start}-{type(original).__name__}", learning_rate=1e-30, max_steps=1, optim="sgd"
        )
        result = unlearn(original, **about, **given, args=args)
        assert result.trainer.method.report["start"] == str(tmp_path / start)
        assert not any(
            "Nothing says what the original was trained from" in note for note in result.trainer.method.notes
        )
        own = result.model.backbone.state_dict()
        theirs = MultiTaskModel.from_backbone(tmp_path / "base", runs.HEADS).backbone.state_dict()
        assert all(torch.allclose(own[name], theirs[name], atol=1e-6) for name in own)


def test_of_a_whole_class_the_row_of_the_head_is_drawn_anew(tmp_path):
    samples = images(32, seed=3)
    is_gone = np.array(samples["label"]) == 2
    data = {"forget": samples.select(np.flatnonzero(is_gone)), "retain": samples.select(np.flatnonzero(~is_gone))}
    model, start = fitted(), START()
    before = copy.deepcopy(model)
    run(tmp_path, RewindConfig(keep=0.5), model, data | {"unseen": images(16, seed=4)}, learning_rate=1e-30)
    row = model.classifier.weight
    assert torch.allclose(row[2], start.classifier.weight[2])
    assert torch.allclose(row[1], pull(before.classifier.weight[1], start.classifier.weight[1], 0.5))


def test_statistics_of_batchnorm_are_estimated_anew(tmp_path):
    model = fitted(tiny_resnet)
    given = {"base_model": functools.partial(tiny_resnet, seed=1)}
    steps = {"learning_rate": 1e-30, "max_steps": 3, "per_device_train_batch_size": 24}
    run(tmp_path, RewindConfig(keep=0.5), model, given=given, **steps)
    module = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    found = module.running_mean.clone()
    module.reset_running_stats()
    module.train()
    module.momentum = 1.0
    with torch.no_grad():
        model(pixel_values=learnt()["retain"]["pixel_values"][:])
    assert torch.allclose(found, module.running_mean, atol=1e-5)


def test_frozen_statistics_of_batchnorm_stay_and_no_run_leaves_another_momentum(tmp_path):
    def modules(model):
        return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]

    frozen, other = fitted(tiny_resnet), fitted(tiny_resnet)
    before = modules(frozen)[0].running_mean.clone()
    given = {"base_model": functools.partial(tiny_resnet, seed=1)}
    run(tmp_path / "frozen", RewindConfig(), frozen, given=given, max_steps=1, freeze_batchnorm=True)
    assert torch.equal(modules(frozen)[0].running_mean, before)
    momenta = [m.momentum for m in modules(other)]
    run(tmp_path / "other", RewindConfig(), other, given=given, max_steps=1)
    assert [m.momentum for m in modules(other)] == momenta


def test_what_is_frozen_is_not_pulled(tmp_path):
    model = fitted()
    model.vit.embeddings.requires_grad_(False)
    before = weights(model)
    run(tmp_path, RewindConfig(), model, max_steps=1)
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed and not any("embeddings" in name for name in changed)


def test_weights_of_half_precision_are_pulled_in_float32():
    model, start = fitted().to(torch.bfloat16), {n: t.to(torch.bfloat16) for n, t in START().state_dict().items()}
    name, weight = "classifier.weight", model.classifier.weight
    expected = pull(weight.detach().float(), start[name].float(), 0.3).to(torch.bfloat16)
    rewind(model, start, 0.3)
    assert torch.equal(weight, expected)


def test_a_second_run_says_its_notes_once(tmp_path):
    args = arguments(tmp_path, max_steps=1, measure=False)
    trainer = UnlearningTrainer(fitted(), args, method="rewind", **for_trainer(learnt()))
    trainer.train()
    notes = list(trainer.method.notes)
    with pytest.raises(
        UnlearningError, match="changed its model, which is not the original .*original. any more; make"
    ):
        trainer.train()
    with trainer.original_model() as original:
        assert same_bits(weights(original), weights(fitted()))
    trainer.model.load_state_dict(fitted().state_dict())
    trainer.train()
    assert trainer.method.notes == notes


def test_an_adapter_that_is_no_plain_lora_is_refused_and_its_trained_head_is_not(tmp_path):
    def adapted(**about):
        return get_peft_model(fitted(), LoraConfig(r=2, target_modules="all-linear", **about))

    with pytest.raises(UnlearningError, match="it is no plain LoRA of linear layers or convolutions"):
        run(tmp_path, RewindConfig(), adapted(use_dora=True), given={"peft_config": True})
    with_head = adapted(modules_to_save=["classifier"], exclude_modules=["classifier"])
    head = weights(with_head)["base_model.model.classifier.modules_to_save.default.weight"]
    run(tmp_path, RewindConfig(), with_head, given={"peft_config": True}, max_steps=1)
    assert torch.equal(weights(with_head)["base_model.model.classifier.modules_to_save.default.weight"], head)


def test_an_adapter_is_pulled_by_its_own_factor(tmp_path):
    def adapted():
        torch.manual_seed(0)
        model = get_peft_model(fitted(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        return model.eval()

    pixels, keep = learnt()["forget"]["pixel_values"][:], 0.25
    model = adapted()
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= keep
    expected, original = (one(pixel_values=pixels).logits for one in (model, adapted()))
    result = run(tmp_path, RewindConfig(keep=keep), adapted(), learning_rate=1e-30, given={"peft_config": True})
    with torch.no_grad():
        assert torch.allclose(result.model.eval()(pixel_values=pixels).logits, expected, atol=1e-5)
        with result.trainer.original_model() as before:
            assert torch.allclose(before.eval()(pixel_values=pixels).logits, original, atol=1e-5)
    small = LoraConfig(r=1, target_modules="all-linear")
    with pytest.raises(UnlearningError, match="has a smaller rank or adapts other layers"):
        run(tmp_path / "small", RewindConfig(), adapted(), given={"peft_config": small})


CARD = "---\nbase_model: {}\n---\n### Training hyperparameters\n\n- learning_rate: 0.002\n- num_epochs: 7.0\n- train_batch_size: 4\n"


def saved(folder, base, state=None):
    fitted().save_pretrained(folder)
    START().save_pretrained(base)
    (folder / "README.md").write_text(CARD.format(base))
    if state:
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return str(folder)


def known(folder, model, **given):
    args = arguments(folder, learning_rate=None, num_train_epochs=None, per_device_train_batch_size=None)
    method = Rewind(RewindConfig(**given))
    return UnlearningTrainer(model, args, method=method, **for_trainer(learnt())).args, method


def test_how_the_original_was_trained_is_read_beside_it(tmp_path):
    model = saved(tmp_path / "model", tmp_path / "base")
    args, method = known(tmp_path / "out", model)
    seen = (8 + 24) / 24
    assert args.num_train_epochs == pytest.approx(0.2 * 7 * seen) and args.train_batch_size == 4
    assert args.learning_rate == pytest.approx(0.002)
    assert method.past.base == str(tmp_path / "base")
    state = {"num_train_epochs": 9, "log_history": [{"learning_rate": 1e-3}, {"learning_rate": 5e-3}, {"loss": 1.0}]}
    args, _ = known(tmp_path / "out", saved(tmp_path / "model", tmp_path / "base", state))
    assert args.num_train_epochs == pytest.approx(0.2 * 9 * seen) and args.learning_rate == pytest.approx(5e-3)
    args, _ = known(tmp_path / "out", model, original_epochs=2, original_learning_rate=0.1, budget=0.5)
    assert args.num_train_epochs == pytest.approx(0.5 * 2 * seen) and args.learning_rate == pytest.approx(0.1)


def test_a_convolutional_network_is_repaired_as_it_was_trained(tmp_path):
    for rate, optim, share, keep in ((0.1, "sgd", 0.4, 0.3), (2e-3, "adamw_torch", 1.0, 0.4)):
        args = arguments(tmp_path / optim, learning_rate=None)
        method = Rewind(RewindConfig(original_epochs=3, original_learning_rate=rate))
        found = UnlearningTrainer(tiny_resnet(), args, method=method, **for_trainer(learnt())).args
        assert found.optim == optim and found.learning_rate == pytest.approx(share * rate) and method.keeps == [keep]


def test_of_a_fine_tuned_model_more_is_kept(tmp_path):
    _, method = known(tmp_path / "out", saved(tmp_path / "model", tmp_path / "base"))
    assert method.keeps == [0.7]


def test_a_training_that_was_stopped_early_is_as_long_as_it_was(tmp_path):
    state = {"num_train_epochs": 30, "epoch": 3.2, "log_history": []}
    _, method = known(tmp_path / "out", saved(tmp_path / "model", tmp_path / "base", state))
    assert method.past.epochs == 3.2


@pytest.mark.parametrize("rates", [5, ["learning_rate"], [{"learning_rate": r} for r in ("x", None, float("nan"))]])
def test_what_is_no_figure_in_a_record_says_nothing(tmp_path, rates):
    state = {"num_train_epochs": float("inf"), "train_batch_size": [], "log_history": rates}
    model = saved(tmp_path / "model", tmp_path / "base", state)
    (tmp_path / "model" / "README.md").write_text("---\nbase_model: [\n---\n- learning_rate: -\n- num_epochs: 1e999\n")
    _, method = known(tmp_path / "out", model)
    past = method.past
    assert (past.base, past.epochs, past.learning_rate, past.batch_size) == ("scratch", None, None, None)


def test_the_record_of_an_unlearning_is_not_that_of_the_original(tmp_path):
    model = saved(tmp_path / "model", tmp_path / "base", {"num_train_epochs": 2})
    (tmp_path / "model" / "unlearning_config.json").write_text("{}")
    _, method = known(tmp_path / "out", model)
    assert method.past.epochs == 7  # of the card


def test_what_is_saved_knows_where_its_original_began(tmp_path):
    saved(tmp_path / "model", tmp_path / "base")
    given = {"base_model": START, "original_epochs": 5.0, "args": arguments(tmp_path / "out", max_steps=1)}
    unlearn(str(tmp_path / "model"), **learnt(), method="rewind", **given).save(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "unlearning_config.json").read_text())
    assert written["start"] == {"num_epochs": 7.0, "learning_rate": 0.002, "train_batch_size": 4}  # no path, no model
    _, method = known(tmp_path / "again", str(tmp_path / "saved"))
    assert (method.past.epochs, method.past.learning_rate, method.past.base) == (5.0, 0.002, "scratch")
    written["start"]["base"] = "org/base"
    (tmp_path / "saved" / "unlearning_config.json").write_text(json.dumps(written))
    with pytest.raises(UnlearningError, match="'org/base' stands beside the original"):
        known(tmp_path / "again", str(tmp_path / "saved"))


def test_rates_that_are_texts_are_read(tmp_path):
    state = {"log_history": [{"learning_rate": "1e-3"}, {"learning_rate": float("nan")}, {"learning_rate": 5e-4}]}
    _, method = known(tmp_path / "out", saved(tmp_path / "model", tmp_path / "base", state))
    assert method.past.learning_rate == 1e-3


def test_a_model_that_got_a_new_head_in_memory_was_trained_from_what_was_loaded(tmp_path):
    base, model = tiny_vit(num_labels=7, seed=1), fitted()
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(CARD.format(tmp_path / "older"))
    model.config.name_or_path = str(tmp_path / "base")  # as `from_pretrained` has it
    _, method = known(tmp_path / "out", model)
    assert method.past.base == str(tmp_path / "base") and method.past.epochs is None


def test_a_base_that_was_found_and_cannot_be_is_told_by_its_name(tmp_path):
    model = saved(tmp_path / "model", tmp_path / "base")
    fitted().save_pretrained(tmp_path / "base")
    with pytest.raises(
        UnlearningError, match="base' stands beside the original as .* base_model has the very weights"
    ):
        known(tmp_path / "out", model)


def test_an_unlearned_model_goes_back_to_where_its_original_began(tmp_path):
    base, original, release = (str(tmp_path / name) for name in ("base", "original", "release"))
    saved(tmp_path / "original", tmp_path / "base")
    saved(tmp_path / "release", tmp_path / "other")
    (tmp_path / "release" / "README.md").write_text(f"---\nbase_model: {original}\n---\n")
    receipt = tmp_path / "release" / "unlearning_receipt.json"
    receipt.write_text(json.dumps({"parent": {"repo": original, "commit": None}}))
    _, method = known(tmp_path / "out", release)
    assert method.past.base == base and method.past.epochs == 7
    (tmp_path / "original" / "unlearning_receipt.json").write_text(json.dumps({"parent": {"repo": release}}))
    (tmp_path / "original" / "README.md").write_text(f"---\nbase_model: {release}\n---\n")
    _, method = known(tmp_path / "out", release)
    assert method.past.base == "scratch" and method.past.base_is_assumed


def test_what_is_assumed_is_said(tmp_path):
    args = arguments(tmp_path, measure=False)
    notes = unlearn(fitted(), **learnt(), method="rewind", args=args).trainer.method.notes
    assert [note.partition(";")[0] for note in notes] == [
        "Nothing says what the original was trained from",
        "Nothing says how long the original was trained",
        "Nothing says at which learning rate the original was trained",
    ]
    assert (
        "30 epochs from random weights are assumed, of which this run is 0.05" in notes[1]
    )  # 2 · 24 of 30 · 32 samples
    about = RewindConfig(original_epochs=10, original_learning_rate=0.1)
    assert run(tmp_path / "told", about, measure=False).trainer.method.notes == []


def test_what_is_spent_beyond_the_budget_is_said(tmp_path):
    about = RewindConfig(original_epochs=3, original_learning_rate=0.1)
    (note,) = run(tmp_path, about, measure=False).trainer.method.notes  # 2 · 24 of 3 · 32 samples
    assert note.startswith("This run takes 0.5 of the original's training, and its budget is 0.2: num_train_epochs")


def test_a_model_of_texts_is_never_taken_for_one_from_random_weights(tmp_path):
    data = request(make=sentences)
    about = {"processing_class": tiny_tokenizer(), "args": arguments(tmp_path / "out"), "method": "rewind"}
    with pytest.raises(UnlearningError, match="Nothing says what the original was trained from, and models of texts"):
        unlearn(tiny_bert(), **data, **about)
    assert not (tmp_path / "out").exists()
    assert unlearn(tiny_bert(), **data, **about, base_model="scratch").trainer.method.base == "scratch"


def test_bad_input_is_refused_before_compute(tmp_path):
    for budget in (0, 1.01, -0.2):
        with pytest.raises(UnlearningError, match="rewind: budget is .* expected a share of the original's training"):
            RewindConfig(budget=budget)
    with pytest.raises(UnlearningError, match="rewind: original_epochs is 0; expected a number above 0"):
        RewindConfig(original_epochs=0)
    with pytest.raises(UnlearningError, match="rewind: keep is 1.5; expected a share from 0 to 1"):
        RewindConfig(keep=1.5)
    about = {**for_trainer(learnt()), "method": "rewind", "args": arguments(tmp_path / "out")}
    with pytest.raises(UnlearningError, match="whose weights do not fit the original"):
        UnlearningTrainer(fitted(), **about, base_model=tiny_resnet())
    with pytest.raises(UnlearningError, match='no-such-model.*; pass as base_model what the original .* "scratch"'):
        UnlearningTrainer(fitted(), **about, base_model="no-such-model")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_ends_nearer_to_what_never_saw_the_samples(tmp_path):
    """A model that knows wrong labels by heart: after it, they are no more likely than those of unseen samples."""
    data = request(n_forget=32, n_retain=128, n_unseen=64)
    for name in ("forget", "unseen"):
        data[name] = data[name].map(lambda row: {"label": (int(row["label"]) + 1) % 4})
    model = tiny_vit()
    both = datasets.concatenate_datasets([data["forget"], data["retain"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        torch.nn.functional.cross_entropy(
            model(pixel_values=both["pixel_values"][:]).logits, both["label"][:]
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    method = RewindConfig(original_epochs=60, original_learning_rate=3e-3)
    args = arguments(tmp_path, num_train_epochs=None, learning_rate=None, per_device_train_batch_size=64)
    result = unlearn(model, **data, method=method, args=args)
    before, after = result.metrics["before"], result.metrics["after"]
    assert before["forget_accuracy"] > 0.9 and after["forget_accuracy"] < 0.2 and after["retain_accuracy"] > 0.95


def test_what_unlearn_is_told_of_the_original_reaches_the_method(tmp_path):
    about = {"budget": 0.5, "original_epochs": 4, "original_learning_rate": 2e-3}
    args = arguments(tmp_path, num_train_epochs=None, learning_rate=None)
    trainer = unlearn(fitted(), **learnt(), method="rewind", args=args, **about).trainer
    assert trainer.args.num_train_epochs == pytest.approx(0.5 * 4 * 32 / 24) and trainer.args.learning_rate == 2e-3
    assert {name: getattr(trainer.method.config, name) for name in about} == about
    own = RewindConfig(budget=0.1)
    args = arguments(tmp_path / "own")
    assert unlearn(fitted(), **learnt(), method=own, args=args).trainer.method.config.budget == 0.1
    for name, value in about.items():
        with pytest.raises(UnlearningError, match=f"{name} is given, and lotus spends no share of the original's"):
            unlearn(fitted(), **learnt(), method="lotus", args=args, **{name: value})
    with pytest.raises(UnlearningError, match="auto: budget is 1.5; expected a share of the original's training"):
        unlearn(fitted(), **learnt(), budget=1.5)


def test_what_is_left_of_a_request_for_the_whole_training_set(tmp_path):
    data = learnt() | {"retain": learnt()["retain"].select([])}
    with pytest.raises(UnlearningError, match="The retain set is empty.* what is left is the model from before that"):
        unlearn(fitted(), **data, args=arguments(tmp_path))
