"""Bad arguments, one a row: each is refused in one sentence, before any forward pass, and leaves no file behind."""

import json
import math
import resource
import socket
import time
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig
from transformers import TrainerCallback, pipeline

from hf_unlearn import UnlearningError, UnlearningTrainer, models, unlearn
from hf_unlearn.commands import recipe, sets, steps
from hf_unlearn.methods import LotusConfig
from hf_unlearn.methods.finetune import Finetune
from tests.samples import arguments, for_trainer, request, same_bits, weights
from tests.tiny import tiny_image_processor, tiny_vit


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def counted() -> tuple[torch.nn.Module, list[int]]:
    """A model, and its forward passes, but for those of shapes alone."""
    model, passes = tiny_vit(), []
    model.register_forward_hook(lambda _, __, output: None if output.logits.is_meta else passes.append(1))
    return model, passes


def one_sentence(error: UnlearningError) -> str:
    text = str(error)
    assert "\n" not in text and text.endswith(".") and len(text) < 500, text
    return text


ARGUMENTS = {
    "learning rate 0": ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a number above 0"),
    "learning rate below 0": ({"learning_rate": -1e-3}, "learning_rate is -0.001; expected a number above 0"),
    "learning rate as text": ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; expected a number"),
    "infinite learning rate": ({"learning_rate": math.inf}, "learning_rate is inf; expected a finite number"),
    "negative weight decay": ({"weight_decay": -0.1}, "weight_decay is -0.1; expected 0 or more"),
    "label smoothing": (
        {"label_smoothing_factor": 0.1},
        "label_smoothing_factor is 0.1, which has no effect, because",
    ),
    "no samples in a batch": ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; expected 1 or"),
    "negative accumulation": ({"gradient_accumulation_steps": -2}, "gradient_accumulation_steps is -2; expected 1 or"),
    "negative seed": ({"seed": -1}, "seed is -1; expected 0 or more"),
    "huge seed": ({"data_seed": 2**40}, "data_seed is 1099511627776; expected less than 4294967296"),
    "negative workers": ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1; expected 0 or more"),
    "no steps": ({"max_steps": 0}, "max_steps is 0; expected 1 or more, or -1 for none"),
    "save_steps 0": ({"save_strategy": "steps", "save_steps": 0}, "save_steps is 0; expected a number above 0"),
    "negative save_steps": ({"save_strategy": "steps", "save_steps": -5}, "save_steps is -5; expected a number above"),
    "no checkpoint is kept": ({"save_total_limit": 0}, "save_total_limit is 0; expected 1 or more"),
    "clipping below 0": ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0; expected 0 or more"),
    "beta of 1": ({"adam_beta1": 1.0}, "adam_beta1 is 1.0; expected less than 1"),
    "last batch dropped": ({"dataloader_drop_last": True}, "dataloader_drop_last is True, which has no effect"),
    "misspelt optim_args": (
        {"optim": "sgd", "optim_args": "momentun=0.9"},
        "optim_args is 'momentun=0.9', and optim='sgd' has no argument 'momentun' there; check its spelling",
    ),
    "one misspelt of two": ({"optim": "sgd", "optim_args": "momentum=0.9,nesterof=true"}, "no argument 'nesterof'"),
    "optim_args that AdamW does not read": (
        {"optim": "adamw_torch", "optim_args": "eps=1"},
        "no argument 'eps' there",
    ),
    "optim_args that are no pairs": (
        {"optim": "sgd", "optim_args": "momentum"},
        "optim='sgd' with optim_args='momentum'",
    ),
    "optim_args that are no number": ({"optim": "sgd", "optim_args": "momentum=much"}, "could not convert string to"),
    "an optimizer without its package": (
        {"optim": "galore_adamw"},
        "optim='galore_adamw' cannot be used: You need to",
    ),
    "an optimizer without its extension": (
        {"optim": "apollo_adamw"},
        "optim='apollo_adamw' cannot be used: You need to",
    ),
    "a schedule without its argument": (
        {"lr_scheduler_type": "warmup_stable_decay"},
        "lr_scheduler_type='warmup_stable_decay' with lr_scheduler_kwargs=None cannot be used: ",
    ),
    "another schedule without its argument": ({"lr_scheduler_type": "cosine_with_min_lr"}, "cannot be used: "),
    "an argument that a schedule does not have": (
        {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"num_cycles": 2}},
        "lr_scheduler_type='linear' with lr_scheduler_kwargs={'num_cycles': 2} cannot be used: ",
    ),
    "cycles as text": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "two"}},
        "cannot be used: ",
    ),
    "the best of other moments": (
        {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "steps"},
        "The training arguments cannot be used: --load_best_model_at_end requires the save and eval strategy to match",
    ),
    "no output folder": ({"output_dir": ""}, "output_dir is ''; expected a path"),
    "a folder with too long a name": ({"output_dir": "/tmp/" + "n" * 300}, "which no file can be called"),
    "a folder below one with too long a name": ({"output_dir": "/tmp/none/" + "n" * 300}, "which no file can be"),
    "a zero byte in the path": ({"output_dir": "/tmp/a\0b"}, "which no file can be called"),
    "a folder that is a device": ({"output_dir": "/dev/null/out"}, "/dev/null is not a writable folder"),
    "a flag as text": ({"measure": "no"}, "measure is 'no'; expected true or false"),
}

CALLS = {
    "a callback's name": ({"callbacks": "EarlyStopping"}, "callbacks has 'EarlyStopping'; expected a list of Trainer"),
    "names of callbacks": ({"callbacks": ["EarlyStopping"]}, "callbacks has 'EarlyStopping'; expected a list of"),
    "one callback and no list": ({"callbacks": TrainerCallback()}, "callbacks has a TrainerCallback; expected a list"),
    "a processor's name": (
        {"processing_class": "me/vit"},
        "processing_class is 'me/vit'; expected an image processor",
    ),
    "a processor's class": ({"processing_class": type(tiny_image_processor())}, "expected an image processor or a"),
    "a collator's name": ({"data_collator": "default"}, "data_collator is 'default'; expected a function of a list"),
    "an augmentation's name": ({"augment": "flip"}, "augment is 'flip'; expected a function of the raw image or text"),
    "a teacher that nobody asks": (
        {"teacher": tiny_vit(seed=3)},
        "auto has no use for teacher=; leave it out, or use",
    ),
    "no name of a base": ({"base_model": ""}, "base_model is ''; expected a model, a Hub id, a folder or a function"),
    "a number as base": ({"base_model": 3}, "base_model is a int; expected a model, a Hub id, a folder or a function"),
    "a dictionary as peft_config": ({"peft_config": {"r": 8}}, "peft_config is a dict; expected a config of peft"),
    "prompt tuning": ({"peft_config": PromptTuningConfig(num_virtual_tokens=4)}, "puts tokens before the text and"),
    "prefix tuning": (
        {"peft_config": PrefixTuningConfig(num_virtual_tokens=4)},
        "a PrefixTuningConfig, which puts tok",
    ),
    "a method's class": ({"method": Finetune}, "method is <class .*; expected a name, a config such as LotusConfig"),
    "a method's settings": (
        {"method": LotusConfig(arguments={"weight_decay": "high"})},
        "weight_decay is 'high'; expected a number",
    ),
    "a method's unknown setting": (
        {"method": LotusConfig(arguments={"seed": 1})},
        "has a default for 'seed'; expected",
    ),
    "arguments as a dictionary": ({"args": {"learning_rate": 1}}, "args is a dict; expected UnlearningArguments"),
    "arguments as nothing at all": ({"args": False}, "args is a bool; expected UnlearningArguments"),
    "an unknown overlap": ({"overlap": "ignore"}, "overlap is 'ignore'; expected"),
    "a checkpoint that is none": ({"resume_from_checkpoint": "nowhere"}, "nowhere is not a complete checkpoint"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_training_arguments(tmp_path, case):
    settings, message = ARGUMENTS[case]
    model, passes = counted()
    before = weights(model)
    with pytest.raises(UnlearningError) as caught:
        folder = {"output_dir": str(tmp_path / "out")} | settings
        made = arguments(folder.pop("output_dir"), **{k: v for k, v in settings.items() if k != "output_dir"})
        unlearn(model, **request(), args=made)
    assert message in one_sentence(caught.value)
    assert not passes and same_bits(before, weights(model)) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", CALLS)
def test_calls(tmp_path, case):
    changes, message = CALLS[case]
    model, passes = counted()
    before = weights(model)
    with pytest.raises(UnlearningError, match=message) as caught:
        unlearn(model, **{**request(), "args": arguments(tmp_path / "out"), **changes})
    one_sentence(caught.value)
    assert not passes and same_bits(before, weights(model)) and files(tmp_path) == []


@pytest.mark.parametrize("model", [None, "", 3, {}, type(tiny_vit())], ids=str)
def test_what_is_no_model(tmp_path, model):
    with pytest.raises(UnlearningError, match="model is .*; expected a model, a Hub id or a folder") as caught:
        unlearn(model, **request(), args=arguments(tmp_path / "out"))
    one_sentence(caught.value)


def test_a_pipeline_as_model(tmp_path):
    pipe = pipeline("image-classification", model=tiny_vit(), image_processor=tiny_image_processor())
    with pytest.raises(
        UnlearningError, match=r"model is a ImageClassificationPipeline; .*ImageClassificationPipeline.model"
    ):
        unlearn(pipe, **request(), args=arguments(tmp_path / "out"))


def test_all_weights_frozen(tmp_path):
    model, passes = counted()
    model.requires_grad_(False)
    with pytest.raises(
        UnlearningError, match="All weights of the model are frozen, and none would be trained; expected"
    ):
        UnlearningTrainer(model, arguments(tmp_path / "out"), **for_trainer(request()))
    assert not passes and list(tmp_path.iterdir()) == []
    lora = UnlearningTrainer(model, arguments(tmp_path / "lora"), peft_config=True, **for_trainer(request()))
    assert lora.trained()


@pytest.mark.parametrize(
    "name", ["train_dataset", "eval_dataset", "compute_metrics", "compute_loss_func", "model_init"]
)
def test_arguments_of_the_trainer_without_effect(tmp_path, name):
    with pytest.raises(UnlearningError, match=f"{name} is given, which has no effect here: ") as caught:
        UnlearningTrainer(tiny_vit(), arguments(tmp_path / "out"), **for_trainer(request()), **{name: print})
    one_sentence(caught.value)


class Broken(Finetune):
    """A user's own method, with a mistake in it."""

    where = "losses"

    def prepare(self, context):
        if self.where == "prepare":
            raise KeyError("gamma")
        super().prepare(context)

    def losses(self, model, batch):
        if self.where == "losses":
            return {"loss": batch.nonsense}
        raise torch.OutOfMemoryError("CUDA out of memory") if self.where == "memory" else KeyboardInterrupt


class TestBorder:
    def broken(self, where: str) -> Broken:
        method = Broken()
        method.where = where
        return method

    @pytest.mark.parametrize(("where", "kind"), [("losses", AttributeError), ("prepare", KeyError)])
    def test_a_mistake_in_a_method_of_one_s_own(self, tmp_path, where, kind):
        """One sentence, the mistake as its cause with its own traceback, and no file."""
        model = tiny_vit()
        before = weights(model)
        with pytest.raises(UnlearningError, match=f"Unlearning failed with a {kind.__name__}: ") as caught:
            unlearn(model, **request(), method=self.broken(where), args=arguments(tmp_path / "a" / "out"))
        one_sentence(caught.value)
        assert type(caught.value.__cause__) is kind
        lines, trace = set(), caught.value.__cause__.__traceback__
        while trace:
            lines.add(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert where in lines
        assert same_bits(before, weights(model)) and list(tmp_path.iterdir()) == []

    def test_memory_and_interrupts_stay_what_they_are(self, tmp_path):
        for where, kind in (("memory", torch.OutOfMemoryError), ("keys", KeyboardInterrupt)):
            with pytest.raises(kind):
                unlearn(tiny_vit(), **request(), method=self.broken(where), args=arguments(tmp_path / where))
        assert not (tmp_path / "memory").exists()

    def test_only_what_the_call_made_is_taken_away(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "checkpoint-7").mkdir()
        unlearn(tiny_vit(), **request(), method="finetune", args=arguments(tmp_path, save_strategy="epoch"))
        before = {path: path.read_bytes() for path in files(tmp_path)}
        with pytest.raises(UnlearningError):
            unlearn(tiny_vit(), **request(), method=self.broken("losses"), args=arguments(tmp_path))
        assert {path: path.read_bytes() for path in files(tmp_path)} == before
        trainer = UnlearningTrainer(tiny_vit(), arguments(tmp_path), method="finetune", **for_trainer(request()))
        assert trainer._last_complete() is not None  # checkpoints of the run before still count

    def test_what_one_goes_on_from_is_kept(self, tmp_path):
        """A callback fails in the second epoch: the checkpoint of the first one, and the original, are still there."""

        class Failing(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 5:
                    raise RuntimeError("no more")

        model = tiny_vit()
        before = weights(model)
        args = arguments(tmp_path / "out", save_strategy="epoch")
        trainer = UnlearningTrainer(model, args, method="finetune", callbacks=[Failing()], **for_trainer(request()))
        with pytest.raises(UnlearningError, match="Unlearning failed with a RuntimeError: no more."):
            trainer.train()
        assert trainer._last_complete().name.startswith("checkpoint-")
        with trainer.original_model() as original:
            assert same_bits(before, weights(original))

    def test_the_description_of_the_original_is_damaged(self, tmp_path):
        about = tmp_path / "out" / "_unlearn" / "original.json"
        about.parent.mkdir(parents=True)
        for text in ("", "{", "[]", '"x"', '{"run": 1}', "\ufffd\0"):
            about.write_text(text)
            for resume in (None, True):
                model, passes = counted()
                with pytest.raises(
                    UnlearningError, match="original.json cannot be read: it is damaged; choose "
                ) as caught:
                    args = arguments(tmp_path / "out")
                    unlearn(model, **request(), args=args, resume_from_checkpoint=resume)
                one_sentence(caught.value)
                assert not passes and about.read_text() == text


@pytest.fixture
def nobody(monkeypatch) -> list[float]:
    """Nothing listens where the Hub should be; the seconds that its client waits between its tries."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


class TestUnreachableHub:
    def test_said_at_once(self, tmp_path, nobody):
        """Nobody listens: one sentence, where the client of the Hub would have tried for 47 seconds."""
        started = time.perf_counter()
        for model in ("nobody/vit", "nobody/vit@v2"):
            with pytest.raises(
                UnlearningError, match="'nobody/vit' is not in the local cache, and the Hub cannot be reached"
            ):
                unlearn(model, **request(), args=arguments(tmp_path / "out"))
        assert nobody == [] and time.perf_counter() - started < 5 and list(tmp_path.iterdir()) == []

    def test_a_model_in_the_cache_is_read_without_waiting(self, tmp_path, hub, monkeypatch):
        tiny_vit().save_pretrained(tmp_path / "model")
        hub.put("me/cached", {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()})
        online = weights(models.load_model("me/cached"))
        waited = []
        monkeypatch.setattr("time.sleep", waited.append)
        monkeypatch.setattr(models, "hub_is_reachable", lambda: False)
        assert same_bits(weights(models.load_model("me/cached")), online)
        assert models.commit_of("me/cached") == hub.branches("me/cached")["main"]
        assert waited == []

    def test_a_dataset(self, nobody):
        with pytest.raises(
            UnlearningError, match="The dataset 'me/data' cannot be loaded: .*give a local folder or file"
        ):
            sets.read_dataset("me/data")
        assert nobody == []


class TestOutput:
    def test_the_folder_of_the_original(self, tmp_path):
        tiny_vit().save_pretrained(tmp_path / "model")
        before = {path: path.read_bytes() for path in files(tmp_path)}
        model = type(tiny_vit()).from_pretrained(tmp_path / "model")
        (tmp_path / "link").symlink_to("model")
        for given in (str(tmp_path / "model"), model):
            result = unlearn(given, **request(), method="finetune", args=arguments(tmp_path / "out", max_steps=1))
            for path in (tmp_path / "model", tmp_path / "link", tmp_path / "out" / ".." / "model"):
                with pytest.raises(
                    UnlearningError, match="is the folder that the original was loaded from, which would"
                ):
                    result.save(path)
            with pytest.raises(UnlearningError, match="output_dir .* is the folder that the original was loaded from"):
                unlearn(given, **request(), args=arguments(tmp_path / "model"))
            model = type(model).from_pretrained(tmp_path / "model")
        assert {path: path.read_bytes() for path in before} == before

    def test_what_others_wrote(self, tmp_path, monkeypatch):
        result = unlearn(tiny_vit(), **request(), method="finetune", args=arguments(tmp_path / "out", max_steps=1))
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "metrics.json").write_text('{"accuracy": 0.9}')
        tiny_vit(seed=2).save_pretrained(tmp_path / "theirs")
        before = {path: path.read_bytes() for path in files(tmp_path)}
        monkeypatch.chdir(tmp_path)
        for path, message in (
            ("", "path is ''; expected a path"),
            (None, "path is None; expected a path"),
            ("mine", "mine has a metrics.json that is of something else; expected another folder"),
            ("theirs", "theirs holds a model that no unlearning has written"),
            ("mine/metrics.json", "is not a writable folder"),
            ("n" * 300, "which no file can be called"),
        ):
            with pytest.raises(UnlearningError, match=message) as caught:
                result.save(path)
            one_sentence(caught.value)
        assert {path: path.read_bytes() for path in files(tmp_path)} == before
        saved = result.save(tmp_path / "saved")
        assert result.save(saved) == saved  # its own is replaced

    def test_a_second_request_over_the_first(self, tmp_path):
        """Another request, and another original, are refused before a pass; the same request may be tried again."""
        args = arguments(tmp_path / "out", max_steps=1)
        original = tiny_vit()
        unlearn(original, **request(), method="finetune", args=args)
        before = {path: path.read_bytes() for path in files(tmp_path)}
        other = request() | {"forget": request()["forget"].select(range(1, 8))}
        for build, data, message in (
            (tiny_vit, other, "holds a run of another request, whose original and receipts it keeps; choose another"),
            (
                lambda: tiny_vit(seed=4),
                request(),
                "holds a run on another original model, whose original and receipts",
            ),
            (lambda: original, request(), "holds a run on another original model"),  # what the first request has made
        ):
            model = build()
            passes = []
            model.register_forward_hook(
                lambda _, __, output, passes=passes: None if output.logits.is_meta else passes.append(1)
            )
            with pytest.raises(UnlearningError, match=message) as caught:
                unlearn(model, **data, method="finetune", args=args)
            one_sentence(caught.value)
            assert not passes and {path: path.read_bytes() for path in files(tmp_path)} == before
        shuffled = request() | {"forget": request()["forget"].select(range(7, -1, -1))}
        unlearn(tiny_vit(), **shuffled, method="random_label", args=args)

    def test_a_recipe_that_would_save_over_its_model(self, tmp_path):
        tiny_vit().save_pretrained(tmp_path / "out" / "model")
        words = [f"model={tmp_path / 'out' / 'model'}", "dataset=me/none", "forget_fraction=0.1"]
        with pytest.raises(UnlearningError, match="is the folder that the original was loaded from"):
            steps.run(*recipe.parse([*words, f"output_dir={tmp_path / 'out'}"]))

    def test_a_full_disk_at_the_end(self, tmp_path):
        """Half a result is taken away again, and what was in the folder stays."""
        result = unlearn(tiny_vit(), **request(), method="finetune", args=arguments(tmp_path / "out", max_steps=1))
        whole = result.save(tmp_path / "whole")
        weights_size = (whole / "model.safetensors").stat().st_size
        metrics = json.loads((whole / "metrics.json").read_text())
        result.runtime["padding"] = "x" * weights_size  # so that the last file is the one that does not fit
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "notes.txt").write_text("mine")
        for limit in (10_000, weights_size + 10):
            for folder in ("new", "there"):
                try:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                    with pytest.raises(UnlearningError, match="could not be written: the disk is full"):
                        result.save(tmp_path / folder)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert not (tmp_path / "new").exists()
            assert [path.name for path in (tmp_path / "there").iterdir()] == ["notes.txt"]
        assert metrics["runtime"]
