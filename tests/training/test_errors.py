"""Every mistake is refused in one sentence, before the first step, and leaves nothing behind."""

import json
import re
import resource
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, TrainingArguments, ViTConfig, ViTModel
from transformers.integrations.deepspeed import is_deepspeed_available

from hf_unlearn import UnlearningError, UnlearningTrainer, unlearn
from hf_unlearn.data.source import Source
from hf_unlearn.methods import LotusConfig, RandomLabelConfig
from hf_unlearn.models.load import load_model
from hf_unlearn.tasks.checks import looked_at
from hf_unlearn.training.context import Context
from tests.marks import slow_but
from tests.samples import arguments, for_trainer, images, pictures, request, same_bits, sentences, weights
from tests.tiny import tiny_bert, tiny_image_processor, tiny_llama_lm, tiny_resnet, tiny_tokenizer, tiny_vit


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def refused(folder: Path, message: str, model=None, args: dict | None = None, **changes) -> None:
    """The call is refused in one sentence that holds `message`; model and disk are as they were."""
    model = tiny_vit() if model is None else model
    before = weights(model)
    with pytest.raises(UnlearningError, match=message) as caught:
        unlearn(model, **{**request(), **changes, "args": arguments(folder, **(args or {}))})
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 400, text
    assert same_bits(before, weights(model)) and files(folder) == []


def refused_late(folder: Path, message: str, args: dict | None = None, **data) -> None:
    """Refused when it is found; no checkpoint is saved."""
    args = {"save_strategy": "steps", "save_steps": 1} | (args or {})
    with pytest.raises(UnlearningError, match=message):
        unlearn(tiny_vit(), **data, args=arguments(folder, **args))
    assert not list(folder.glob("checkpoint-*"))


def labelled(labels, make=images) -> datasets.Dataset:
    data = make(len(labels), seed=7).remove_columns("label").with_format(None)
    return data.add_column("label", labels)


class TestData:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"forget": None}, r"auto needs the samples to forget \(forget=\), which was not given"),
            ({"retain": None}, r"auto needs samples to keep \(retain=\), which was not given"),
            ({"unseen": None}, r"auto needs samples the model was never trained on \(unseen=\), which was not given"),
            (
                {"method": "retrain"},
                r"retrain needs what the original was trained from \(base_model=: a Hub id, a mod",
            ),
            ({"forget": images(4).select([])}, "The forget set is empty; expected at least one sample"),
            ({"retain": images(4).select([])}, "The retain set is empty"),
            ({"unseen": images(4).select([])}, "The unseen set is empty"),
            ({"test": images(4).select([])}, "The test set is empty"),
            (
                {"forget": datasets.DatasetDict(a=images(4), b=images(2))},
                "forget is a DatasetDict with a, b; pass one",
            ),
            (
                {"retain": datasets.DatasetDict(train=images(4), test=images(2))},
                "retain is a DatasetDict with train, test; pass one of them",
            ),
            ({"forget": images(4).to_iterable_dataset()}, "forget is a stream; only the retained set may be one"),
            ({"unseen": images(4).to_iterable_dataset()}, "unseen is a stream; only the retained set may be one"),
            ({"retain": images(4).to_iterable_dataset()}, "retained set is a stream; say how many .* retain_size="),
            ({"forget": 3}, r"forget is a int; expected a datasets.Dataset or a torch Dataset of dicts"),
            ({"forget": [(1, 2)]}, "row of forget is a tuple; expected a dict such as"),
            ({"forget": images(4).rename_column("label", "kind")}, "no label column .*Name yours with label_column="),
            (
                {"retain": pictures(4)},
                "retain has the columns image, label, and forget has pixel_values, label; expected",
            ),
            ({"retain": images(8, seed=1)}, '8 of the 8 forget samples stand in retain too .*pass overlap="allow"'),
            ({"overlap": "ignore"}, 'overlap is \'ignore\'; expected "error" or "allow"'),
        ],
        ids=lambda value: value[:40] if isinstance(value, str) else "",
    )
    def test_sets(self, tmp_path, changes, message):
        refused(tmp_path / "out", message, **changes)

    @pytest.mark.parametrize("which", ["forget", "retain", "unseen", "test"])
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, None, 1], r"1 of the 3 samples of {} have labels the model does not have \(row 1: no label\)"),
            ([0, 1, -1, -1], r"2 of the 4 samples of {} .*\(row 2: no label\); expected 0 to 3"),
            (
                [0, 4],
                r"1 of the 2 samples of {} .*\(row 1: label 4\); expected 0 to 3, the classes of the model's head",
            ),
            (["cat", "dog"], r"labels of {} are text \('cat', ...\).*model.config.label2id"),
            ([[0, 1], [1, 1]], r"labels of {} are not one class number a sample \(\[0, 1\]\)"),
        ],
    )
    def test_labels(self, tmp_path, which, labels, message):
        refused(tmp_path / "out", message.format(which), **{which: labelled(labels)})

    @pytest.mark.parametrize("label", [None, 4, "cat"])
    def test_labels_of_a_stream(self, tmp_path, label):
        rows = [{**row, "label": label if i == 20 else int(row["label"])} for i, row in enumerate(request()["retain"])]
        retain = datasets.IterableDataset.from_generator(lambda: iter(rows))
        message = f"A sample of retain has the label {label!r}; expected 0 to 3, the classes of the model's head"
        refused(tmp_path / "out", message, args={"retain_size": 24}, retain=retain)

    def test_unreadable_image(self, tmp_path):
        broken = pictures(6).cast_column("image", datasets.Image(decode=False))
        broken = broken.map(lambda row, i: {"image": row["image"] if i != 4 else {"bytes": b"x"}}, with_indices=True)
        broken = broken.cast_column("image", datasets.Image())
        data = request(pictures) | {"processing_class": tiny_image_processor()}
        for which in ("forget", "retain", "unseen"):
            refused(tmp_path / "out", f"Row 4 of {which} cannot be read", **(data | {which: broken}))
            with pytest.raises(UnlearningError, match=f"Row 4 of {which} cannot be read"):
                args = arguments(tmp_path / "unchecked")
                unlearn(tiny_vit(), **(data | {which: broken}), overlap="allow", args=args)

    def test_raw_columns_without_a_processing_class(self, tmp_path):
        refused(tmp_path / "out", "raw columns .image. but there is no processing class", **request(pictures))
        texts = request(sentences)
        message = "raw columns .text. but there is no processing class"
        refused(tmp_path / "out", message, tiny_bert(), **texts, base_model="scratch")


class TestModel:
    def test_language_model(self, tmp_path):
        message = "lotus works on image-classification and text-classification, and this model is for causal-lm"
        data = request(sentences) | {"processing_class": tiny_tokenizer()}
        refused(tmp_path / "out", message, tiny_llama_lm(), method="lotus", **data)

    def test_no_head(self, tmp_path):
        refused(tmp_path / "out", "ViTModel has no head that can be unlearned", ViTModel(ViTConfig(hidden_size=12)))

    def test_regression_and_multi_label(self, tmp_path):
        refused(tmp_path / "out", "num_labels=1, which transformers treats as regression", tiny_vit(num_labels=1))
        model = tiny_vit()
        model.config.problem_type = "multi_label_classification"
        refused(tmp_path / "out", "problem_type='multi_label_classification', and .* single-label", model)

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(UnlearningError, match="neither an existing folder nor a Hub id"):
            unlearn(str(tmp_path / "no" / "model"), **request(), args=arguments(tmp_path / "out"))
        assert files(tmp_path) == []

    def test_adapters(self, tmp_path):
        lora = LoraConfig(target_modules=["q_proj"])
        model = get_peft_model(tiny_vit(), lora)
        refused(tmp_path / "out", "model is a PeftModel and peft_config is not given: pass one", model)
        full = LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])
        nowhere = LoraConfig(target_modules=["no_such_layer"])
        again = get_peft_model(tiny_vit(), lora, adapter_name="unlearn")
        for model, config, message in (
            (None, full, r"modules_to_save=\['classifier'\], which would be trained in full"),
            (None, nowhere, "peft_config does not fit the model: .*no_such_layer.* not found"),
            (again, lora, "already carries an adapter named 'unlearn'.*merge"),
        ):
            refused(tmp_path / "out", message, model, method="lotus", peft_config=config)


class TestMethod:
    @pytest.mark.parametrize(
        ("name", "near"), [("lotos", "lotus"), ("retrian", "retrain"), ("finetuning", "finetune")]
    )
    def test_unknown(self, tmp_path, name, near):
        refused(tmp_path / "out", f"no method '{name}'; did you mean '{near}'. The methods are auto", method=name)

    def test_unlike_any(self, tmp_path):
        refused(tmp_path / "out", "no method 'xyz'; the methods are", method="xyz")

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: LotusConfig(alpha=-1), "lotus: alpha is -1; expected a positive number"),
            (lambda: LotusConfig(retain_fraction=0), r"retain_fraction is 0; expected a share in \(0, 1\]"),
            (lambda: LotusConfig(retain_fraction=1.1), "retain_fraction is 1.1; expected a share"),
            (lambda: LotusConfig(stop_margin=-0.1), "stop_margin is -0.1; expected a margin of 0 or more"),
            (lambda: LotusConfig(tau_max=0.5), "tau_max is 0.5; expected a temperature of at least 1"),
            (lambda: LotusConfig(class_cure="pray"), "class_cure is 'pray'; expected mask, monotone, stop or none"),
            (lambda: LotusConfig(cache_teacher="yes"), "cache_teacher is 'yes'; expected auto, always or never"),
            (lambda: RandomLabelConfig(relabel="always"), "relabel is 'always'; expected once or epoch"),
            (lambda: LotusConfig.from_dict({"alfa": 2}), "LotusConfig has no field 'alfa'; it has alpha, arguments"),
        ],
    )
    def test_config(self, make, message):
        with pytest.raises(UnlearningError, match=message):
            make()

    def test_cached_teacher_of_augmented_samples(self, tmp_path):
        with pytest.raises(UnlearningError, match='cache_teacher is "always", but reading a sample twice'):
            method = LotusConfig(cache_teacher="always")
            unlearn(tiny_vit(), **request(), augment=abs, method=method, args=arguments(tmp_path / "out"))


class TestArguments:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ({"fp16": True}, "fp16 needs a GPU; pass bf16=True and use_cpu=True"),
            ({"num_train_epochs": 0}, "num_train_epochs is 0; expected a positive number"),
            ({"auto_find_batch_size": True}, "auto_find_batch_size would change the schedule"),
            ({"push_to_hub": True}, "hub_strategy='every_save' would push several commits to main .*push the result"),
            (
                {"deepspeed": {"bf16": {}}},
                "DeepSpeed is asked for, and its package is not installed; pip install deepspeed",
            ),
        ],
    )
    def test_refused(self, tmp_path, args, message):
        if "deepspeed" in args and is_deepspeed_available():
            pytest.skip("DeepSpeed is installed")
        if "fp16" in args and torch.cuda.is_available():
            pytest.skip("there is a GPU")
        refused(tmp_path / "out", message, args=args)

    def test_plain_training_arguments(self, tmp_path):
        with pytest.raises(UnlearningError, match="args is a TrainingArguments; expected UnlearningArguments"):
            unlearn(tiny_vit(), **request(), args=TrainingArguments(str(tmp_path / "out"), report_to="none"))
        assert files(tmp_path) == []

    def test_resume_from_nothing(self, tmp_path):
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path / "out"), **for_trainer(request()))
        with pytest.raises(
            UnlearningError, match="no complete checkpoint in .*out; start without resume_from_checkpoin"
        ):
            trainer.train(resume_from_checkpoint=True)
        (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
        with pytest.raises(
            UnlearningError, match="checkpoint-3 is not a complete checkpoint .no complete.json.; pass"
        ):
            trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))

    def test_other_data_cannot_be_evaluated(self, tmp_path):
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path / "out"), **for_trainer(request()))
        with pytest.raises(UnlearningError, match=r"evaluate\(\) measures the trainer's own sets; use measure"):
            trainer.evaluate(images(4))
        with pytest.raises(UnlearningError, match=r"predict\(\) has no use here; evaluate\(\) and measure\(\)"):
            trainer.predict(images(4))

    def test_push_to_hub_of_the_trainer(self, tmp_path):
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path / "out"), **for_trainer(request()))
        with pytest.raises(UnlearningError, match="No repository was named; pass repo_id="):
            trainer.push_to_hub()


class TestDisk:
    def test_output_folder_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("x")
        refused(tmp_path / "file" / "out", "output_dir .* cannot be written to .*file is not a writable folder")

    def test_output_folder_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(UnlearningError, match="file is not a writable folder"):
            unlearn(tiny_vit(), **request(), args=arguments(tmp_path / "file"))
        assert (tmp_path / "file").read_text() == "x"

    def test_too_little_room(self, tmp_path, monkeypatch):
        usage = shutil._ntuple_diskusage(2**20, 2**20 - 2**10, 2**10)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        refused(tmp_path / "out", "out has 0 MiB free, and this run needs about .* MiB; free some space")

    def test_too_little_room_for_the_teachers_table(self, tmp_path, monkeypatch):
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), **for_trainer(request()))
        needed = 4 * (8 + int(0.3 * 24)) * 4  # bytes of the used rows
        for free in (needed - 1, needed):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(2**30, 0, free))
            if free < needed:
                with pytest.raises(UnlearningError, match="MiB free"):
                    Context(trainer).teacher("auto")
            else:
                Context(trainer).teacher("auto")

    @pytest.mark.parametrize("save_strategy", ["no", "steps"])
    def test_room_for_checkpoints_is_asked_for_only_with_checkpoints(self, tmp_path, monkeypatch, save_strategy):
        model = tiny_vit()
        free = int(2.5 * sum(p.numel() * p.element_size() for p in model.parameters()))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 0, free))
        if save_strategy == "no":
            unlearn(model, **request(), args=arguments(tmp_path / "out", max_steps=1))
        else:
            refused(tmp_path / "out", "MiB free", model, args={"save_strategy": "steps"})

    @pytest.mark.parametrize("file", slow_but(["optimizer.pt"], ["model.safetensors", "optimizer.pt"]))
    def test_full_while_a_checkpoint_is_written(self, tmp_path, file):
        args = arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=5, save_total_limit=1)
        whole = UnlearningTrainer(tiny_vit(), args, method="finetune", **for_trainer(request()))
        whole.train()
        size = (tmp_path / "checkpoint-5" / file).stat().st_size
        assert size > 10_000 and (file == "model.safetensors" or size > whole.model.num_parameters() * 4)

        class Full(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 4:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, resource.RLIM_INFINITY))

        trainer = UnlearningTrainer(tiny_vit(), args, method="finetune", callbacks=[Full()], **for_trainer(request()))
        try:
            with pytest.raises(
                UnlearningError, match="checkpoint-4 could not be written: the disk is full. The model is"
            ):
                trainer.train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert trainer.state.global_step == 4
        trainer.save_model(str(tmp_path / "saved"))  # the model is still in memory
        assert same_bits(weights(trainer.model), weights(load_model(str(tmp_path / "saved"))))
        assert trainer._last_complete().name == "checkpoint-2"

        resumed = UnlearningTrainer(tiny_vit(), args, method="finetune", **for_trainer(request()))
        resumed.train(resume_from_checkpoint=True)
        assert same_bits(weights(resumed.model), weights(whole.model))

    def test_full_while_the_result_is_written(self, tmp_path):
        result = unlearn(tiny_vit(), **request(), method="finetune", args=arguments(tmp_path))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
            with pytest.raises(
                UnlearningError, match="saved could not be written: the disk is full. The model is still"
            ):
                result.save(tmp_path / "saved")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        result.save(tmp_path / "saved")
        assert same_bits(weights(result.model), weights(load_model(str(tmp_path / "saved"))))


class WarmUp(TrainerCallback):
    """No learning rate in the first step."""

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        if state.global_step == 0:
            optimizer.param_groups[0]["lr"] = 0.0


class TestNotFinite:
    def poisoned(self, data) -> datasets.Dataset:
        """In a row that is not among those looked at before the first pass, if there are more than these."""
        assert len(data) < 17 or 3 not in looked_at(Source(data, "data"))
        return data.map(
            lambda row, i: {"pixel_values": row["pixel_values"] * float("nan" if i == 3 else 1)}, with_indices=True
        )

    def test_nan_inputs(self, tmp_path):
        data = request()
        for which in ("forget", "unseen"):
            message = f"The pixel_values of row 3 of {which} are NaN or infinite; mend or remove that sample"
            refused(tmp_path / which, message, **{which: self.poisoned(data[which])})

    @pytest.mark.parametrize("which", slow_but(["unseen"], ["forget", "retain", "unseen"]))
    def test_nan_inputs_deep_in_a_set(self, tmp_path, which):
        data = request(n_forget=60, n_retain=64, n_unseen=64)
        message = f"outputs for row 3 of {which} are NaN or infinite; check that sample"
        refused_late(tmp_path, message, **(data | {which: self.poisoned(data[which])}))

    @pytest.mark.slow
    def test_nan_inputs_unmeasured(self, tmp_path):
        data = request(n_forget=60)
        data["forget"] = self.poisoned(data["forget"])
        args = {"measure": False, "logging_strategy": "steps", "logging_steps": 1}
        message = r"loss was NaN or infinite by step \d \(learning rate 0.001\).*start again from the original"
        args |= {"per_device_train_batch_size": 128}  # the poisoned sample is in the first step
        refused_late(tmp_path, message, method="random_label", args=args, **data)

    @pytest.mark.parametrize("model", [tiny_vit, tiny_resnet])
    def test_huge_learning_rate(self, tmp_path, model):
        """Found within ten steps, although nothing is logged."""
        args = arguments(tmp_path / "out", learning_rate=1e20, optim="sgd", max_steps=40)
        with pytest.raises(
            UnlearningError, match=r"by step \d+ \(.*1e\+20\); lower learning_rate or set max_grad_norm"
        ):
            unlearn(model(), **request(), method="finetune", args=args)

    def test_the_kept_original_is_whole(self, tmp_path):
        model = tiny_vit()
        before = weights(model)
        args = arguments(tmp_path / "out", learning_rate=1e20, optim="sgd", max_steps=40)
        trainer = UnlearningTrainer(model, args, method="finetune", **for_trainer(request()))
        with pytest.raises(UnlearningError, match="start again from the original, .*out/_unlearn/original, without"):
            trainer.train()
        with trainer.original_model() as original:
            assert same_bits(before, weights(original))

    @pytest.mark.slow
    def test_the_advice_works(self, tmp_path):
        """Followed to the letter, in the same folder; a checkpoint does not go on with another learning rate."""
        settings = {"optim": "sgd", "save_strategy": "steps", "save_steps": 1, "max_steps": 4}
        args = arguments(tmp_path / "out", learning_rate=1e20, **settings)
        ruined, before = tiny_vit(), weights(tiny_vit())
        slow = WarmUp()  # the first step is harmless, so that there is a checkpoint
        with pytest.raises(UnlearningError) as refused:
            unlearn(ruined, **request(), method="finetune", args=args, callbacks=[slow])
        assert (tmp_path / "out" / "checkpoint-1" / "complete.json").exists()
        advice = r"lower learning_rate .* start again from the original, (\S+), without resume_from_checkpoint"
        original = re.search(advice, str(refused.value)).group(1)
        lower = arguments(tmp_path / "out", learning_rate=1e-3, **settings)
        with pytest.raises(UnlearningError, match="learning_rate is 0.001 and was 1e.20"):
            unlearn(original, **request(), method="finetune", args=lower, resume_from_checkpoint=True)
        result = unlearn(original, **request(), method="finetune", args=lower)
        assert result.trainer.state.global_step == 4
        assert all(tensor.isfinite().all() for tensor in weights(result.model).values())
        with result.trainer.original_model() as kept:
            assert same_bits(weights(kept), before)
        expected = unlearn(tiny_vit(), **request(), method="finetune", args=lower)
        assert same_bits(weights(result.model), weights(expected.model))

    @pytest.mark.parametrize("at", ["a step that saves", "the last step"])
    def test_no_poisoned_checkpoint(self, tmp_path, at):
        """The step that ruins the weights still had a finite loss."""
        saving = {"save_strategy": "steps", "save_steps": 1} if at == "a step that saves" else {}
        args = arguments(tmp_path / "out", max_steps=3, optim="sgd", **saving)

        trainer = UnlearningTrainer(tiny_vit(), args, method="finetune", **for_trainer(request()))

        def ruin(optimizer, *_):
            if trainer.state.global_step == 2:
                trainer.model.classifier.weight.data[0, 0] = float("nan")

        trainer.create_optimizer()
        trainer.optimizer.register_step_post_hook(ruin)
        with pytest.raises(
            UnlearningError, match="weights are NaN or infinite after step 3 .*start again from the original"
        ):
            trainer.train()
        saved = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
        assert saved == (["checkpoint-1", "checkpoint-2"] if at == "a step that saves" else [])


class TestMissingFigures:
    """A figure that cannot be had is None, with a reason; the run succeeds."""

    def test_without_unseen_samples(self, tmp_path):
        data = request() | {"unseen": None}
        result = unlearn(tiny_vit(), **data, method="finetune", args=arguments(tmp_path))
        for metrics in (result.metrics["before"], result.metrics["after"]):
            assert metrics["forget_accuracy"] is not None and metrics["retain_accuracy"] is not None
            for name in ("unseen_accuracy", "unseen_loss", "mia", "auc", "rf_jsd", "gap"):
                assert metrics[name] is None
        assert result.metrics["reasons"]["mia"] == "needs unseen samples"
        assert "needs unseen samples" in result.summary()
        result.save(tmp_path / "saved")
        assert json.loads((tmp_path / "saved" / "metrics.json").read_text())["after"]["mia"] is None

    def test_a_single_unseen_sample_is_not_called_missing(self, tmp_path):
        data = request() | {"unseen": request()["unseen"].select([0])}
        reasons = unlearn(tiny_vit(), **data, method="ssd", args=arguments(tmp_path)).metrics["reasons"]
        assert reasons["unseen_accuracy"] == "the only unseen sample may steer, and none is left to measure"

    def test_without_retained_samples_for_a_metric(self, tmp_path):
        data = request() | {"retain": images(24, seed=5).to_iterable_dataset()}
        args = arguments(tmp_path, retain_size=24, retain_eval_size=0)
        result = unlearn(tiny_vit(), **data, method="finetune", args=args)
        assert result.metrics["after"]["retain_accuracy"] is None
        assert result.metrics["reasons"]["retain_accuracy"] == "no retain samples were given"

    def test_a_class_absent_from_unseen(self, tmp_path):
        data = request()
        data["unseen"] = data["unseen"].filter(lambda row: int(row["label"]) != 2)
        result = unlearn(tiny_vit(), **data, args=arguments(tmp_path))
        after, reasons = result.metrics["after"], result.metrics["reasons"]
        assert after["rf_jsd"] is None and reasons["rf_jsd"] == "no unseen sample of the forget classes [2]"
        assert after["gap"] is None and reasons["gap"] == "some forget class has no unseen sample"
        assert after["unseen_accuracy"] is not None and "unseen_accuracy" not in reasons

    def test_class_request(self, tmp_path):
        data = request()
        data["forget"] = data["forget"].filter(lambda row: int(row["label"]) == 1)
        data["retain"] = data["retain"].filter(lambda row: int(row["label"]) != 1)
        result = unlearn(tiny_vit(), **data, method=LotusConfig(class_mode=True), args=arguments(tmp_path))
        assert result.trainer.request.is_class
        assert result.metrics["after"]["rf_jsd"] is None
        assert result.metrics["reasons"]["rf_jsd"].startswith("a whole class is forgotten")
        assert result.metrics["after"]["gap"] is not None

    def test_evaluation_in_every_epoch_goes_on(self, tmp_path):
        data = request() | {"unseen": None}
        args = arguments(tmp_path, eval_strategy="epoch")
        result = unlearn(tiny_vit(), **data, method="finetune", args=args)
        evaluated = [entry for entry in result.trainer.state.log_history if "eval_runtime" in entry]
        assert [entry["epoch"] for entry in evaluated] == [1, 2]
        assert all("eval_mia" not in entry and "eval_retain_accuracy" in entry for entry in evaluated)

    def test_the_best_checkpoint_needs_its_metric(self, tmp_path):
        data = request() | {"unseen": None}
        args = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
        with pytest.raises(
            UnlearningError, match="smallest gap, and there is no gap because no unseen samples were given"
        ):
            unlearn(tiny_vit(), **data, method="finetune", args=arguments(tmp_path / "out", **args))
        args["metric_for_best_model"] = "retain_accuracy"
        result = unlearn(tiny_vit(), **data, method="finetune", args=arguments(tmp_path / "other", **args))
        assert result.trainer.state.best_metric == max(
            entry["eval_retain_accuracy"] for entry in result.trainer.state.log_history if "eval_runtime" in entry
        )
