"""Models as they come in and go out: every kind loads, saves and reloads to the last bit, and refusals say what to do."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    MixtralConfig,
    MixtralForCausalLM,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

from hf_unlearn.errors import UnlearningError
from hf_unlearn.models.kinds import architecture_family, batchnorm_modules, check_single_label, num_labels, task_of
from hf_unlearn.models.load import load_model, load_processor, load_weights
from hf_unlearn.models.weights import own_memory, save_model, weights_digest
from tests import tiny

AUTO = {
    "image-classification": AutoModelForImageClassification,
    "text-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
}
BUILDERS = {
    tiny.tiny_resnet: ("image-classification", "convolutional"),
    tiny.tiny_vit: ("image-classification", "transformer"),
    tiny.tiny_bert: ("text-classification", "transformer"),
    tiny.tiny_distilbert: ("text-classification", "transformer"),
    tiny.tiny_roberta: ("text-classification", "transformer"),
    tiny.tiny_modernbert: ("text-classification", "transformer"),
    tiny.tiny_gpt2_classifier: ("text-classification", "transformer"),
    tiny.tiny_llama_lm: ("causal-lm", "transformer"),
}
each_model = pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These models are too small to share out, and threads that wait for each other take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def logits(model, inputs=None):
    return model(**(inputs or tiny.random_inputs(model))).logits


def tiny_timm(architecture="resnet18", classes=4, **model_args):
    config = TimmWrapperConfig(
        architecture=architecture, model_args=model_args or None, num_labels=classes, image_size=32
    )
    torch.manual_seed(0)
    return TimmWrapperForImageClassification(config).eval()


def tiny_mixtral():
    """Transformers keeps Mixtral's experts in one tensor, and each in its own in the file."""
    torch.manual_seed(0)
    size = tiny.SIZE | {"num_hidden_layers": 1}
    config = MixtralConfig(num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, **size, **tiny.TEXT)
    return MixtralForCausalLM(config).eval()


def timm_export(folder, model, safe_serialization=True):
    """What timm itself writes, of the model inside the wrapper."""
    save_for_hf(model.timm_model, folder, safe_serialization=safe_serialization)
    return folder


@torch.no_grad()
def scramble(model):
    for tensor in model.state_dict().values():
        tensor.add_(1)


def edit_config(folder, **changes):
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder, change):
    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# What kind of model is this


@each_model
def test_task_and_family(build):
    model = build()
    task, family = BUILDERS[build]
    assert task_of(model) == task
    assert architecture_family(model) == family
    model.config.architectures = [type(model).__name__]
    assert task_of(model.config) == task


def test_task_of_a_subclass_and_of_a_timm_config():
    class Mine(type(tiny.tiny_vit())):
        pass

    assert task_of(Mine(tiny.tiny_vit().config)) == "image-classification"
    assert task_of(TimmWrapperConfig(architecture="resnet18")) == "image-classification"


def test_no_known_head_is_refused():
    with pytest.raises(UnlearningError, match="BertModel has no head.*ForSequenceClassification"):
        task_of(BertModel(tiny.tiny_bert().config))


def test_a_peft_model_is_seen_through():
    model = get_peft_model(tiny.tiny_resnet(num_labels=5), LoraConfig(r=2, target_modules=r".*layer\d.*conv\d"))
    assert task_of(model) == "image-classification"
    assert num_labels(model) == 5
    assert architecture_family(model) == "convolutional"


@pytest.mark.parametrize(
    "architecture, model_args, family",
    [
        ("seresnet18", {}, "convolutional"),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, "convolutional"),
        ("resnet50_clip", {}, "convolutional"),
        ("cait_xxs24_224", {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 3}, "transformer"),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "depths": (1,), "num_heads": (2,)}, "transformer"),
    ],
)
def test_family_of_timm_architectures(architecture, model_args, family):
    with torch.device("meta"):
        assert architecture_family(timm.create_model(architecture, **model_args)) == family


def test_family_of_other_models():
    convnext = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4))
    assert architecture_family(convnext) == "convolutional"
    assert architecture_family(nn.TransformerEncoderLayer(8, 2)) == "transformer"
    assert architecture_family(nn.LSTM(8, 8)) == "transformer"


def test_batchnorm_modules():
    resnet = tiny.tiny_resnet()
    assert len(batchnorm_modules(resnet)) == sum("running_mean" in name for name, _ in resnet.named_buffers()) > 5
    fused = timm.create_model("mobilenetv3_small_050")
    names = {type(module).__name__ for module in batchnorm_modules(fused)}
    assert "BatchNormAct2d" in names
    assert batchnorm_modules(tiny.tiny_vit()) == []


def test_num_labels_and_single_label():
    model = tiny.tiny_bert(num_labels=5)
    assert num_labels(model) == 5
    check_single_label(model)
    model.config.problem_type = "single_label_classification"
    check_single_label(model)
    for problem in ("multi_label_classification", "regression"):
        model.config.problem_type = problem
        with pytest.raises(UnlearningError, match=f"problem_type='{problem}'.*single_label_classification"):
            check_single_label(model)
    with pytest.raises(UnlearningError, match="num_labels=1.*regression"):
        check_single_label(tiny.tiny_vit(num_labels=1))


def test_language_models_have_no_classes():
    check_single_label(tiny.tiny_llama_lm())
    assert num_labels(tiny.tiny_llama_lm()) == 0


# The tiny models themselves


@each_model
def test_tiny_models_are_deterministic_and_depend_on_seed_and_input(build):
    state = torch.get_rng_state()
    model = build(seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert weights_digest(model) == weights_digest(build(seed=3)) != weights_digest(build(seed=4))
    assert sum(parameter.numel() for parameter in model.parameters()) < 200_000
    outputs = logits(model)
    assert torch.equal(outputs, logits(model.train()) if build is not tiny.tiny_resnet else logits(model))
    assert outputs.flatten(1).std(dim=0).max() > 0.02


def test_tiny_tokenizer_and_image_processor():
    tokenizer = tiny.tiny_tokenizer()
    encoded = tokenizer(["the cat", "a zebra sees the bird"], padding=True)
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in encoded["input_ids"]]
    assert words[0] == ["[CLS]", "the", "cat", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert words[1] == ["[CLS]", "a", "[UNK]", "sees", "the", "bird", "[SEP]"]
    white = torch.full((3, 20, 20), 255, dtype=torch.uint8)
    pixels = tiny.tiny_image_processor(8)(white, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, torch.ones(1, 3, 8, 8))


# Saved and loaded again


@each_model
def test_round_trip(build, tmp_path):
    model = build()
    save_model(model, tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    plain = AUTO[task_of(model)].from_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    for other in (plain, loaded):
        own_memory(other)
        assert type(other) is type(model) and not other.training
        assert weights_digest(other) == weights_digest(model)
        assert torch.equal(logits(other), logits(model))


def test_weights_are_taken_out_of_the_file(tmp_path):
    model = tiny.tiny_llama_lm(tie_word_embeddings=True)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(bytes(os.path.getsize(file.name)))
    assert weights_digest(loaded) == weights_digest(model)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in (*loaded.parameters(), *loaded.buffers()))


@pytest.mark.parametrize(
    "architecture, model_args",
    [
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}),
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "in_chans": 1}),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "embed_dim": 24, "init_values": 0.1}),
        ("test_resnet", {}),
    ],
)
def test_timm_reads_what_we_save_however_the_model_came(architecture, model_args, tmp_path):
    built = tiny_timm(architecture, classes=5, **model_args)
    pixels = torch.randn(2, model_args.get("in_chans", 3), 32, 32)
    expected = logits(built, {"pixel_values": pixels})
    save_model(built, tmp_path / "built")
    from_transformers = load_model(tmp_path / "built")
    save_model(from_transformers, tmp_path / "reloaded")
    from_timm = load_model(timm_export(tmp_path / "exported", built))
    save_model(from_timm, tmp_path / "from_timm")
    for name in ("built", "reloaded", "from_timm"):
        loaded = load_model(tmp_path / name)
        assert loaded.config.num_labels == 5
        assert weights_digest(loaded) == weights_digest(built)
        assert torch.equal(logits(loaded, {"pixel_values": pixels}), expected)
        in_timm = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
        with torch.no_grad():
            assert torch.equal(in_timm(pixels), expected)


def test_loading_leaves_a_timm_export_alone(tmp_path):
    model = tiny.tiny_resnet()
    timm_export(tmp_path, model)
    before = (tmp_path / "config.json").read_bytes()
    assert json.loads(before)["model_args"]["num_classes"] == 4
    assert torch.equal(logits(load_model(tmp_path), tiny.random_inputs(model)), logits(model))
    assert (tmp_path / "config.json").read_bytes() == before


def test_saving_says_nothing_about_weights_that_are_not_there(tmp_path):
    save_model(tiny.tiny_resnet(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["first_conv"] == "conv1"
    assert (
        config["pretrained_cfg"].keys().isdisjoint({"url", "hf_hub_id", "tag", "license", "paper_ids", "num_classes"})
    )


def test_what_described_the_downloaded_file_does_not_describe_ours(tmp_path):
    """A background class in the original file must not make timm cut a row off ours."""
    timm_export(tmp_path / "exported", tiny.tiny_resnet())
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    edit_config(tmp_path / "exported", pretrained_cfg=config["pretrained_cfg"] | {"label_offset": 1})
    model = load_model(tmp_path / "exported")
    save_model(model, tmp_path / "saved")
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert torch.equal(in_timm.fc.weight, model.timm_model.fc.weight)


def test_a_given_state_dict_is_what_is_saved(tmp_path):
    for build in (tiny.tiny_resnet, tiny.tiny_bert):
        model, other = build(seed=0), build(seed=1)
        save_model(model, tmp_path / build.__name__, state_dict=other.state_dict())
        assert weights_digest(load_model(tmp_path / build.__name__)) == weights_digest(other)


@each_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_keep_every_bit(build, dtype, tmp_path):
    model = build().to(dtype)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.dtype == dtype
    assert weights_digest(loaded) == weights_digest(model)
    live = build(seed=1).to(dtype)
    load_weights(live, tmp_path)
    assert weights_digest(live) == weights_digest(model)


def test_a_fresh_head_only_where_it_is_asked_for(tmp_path):
    model = tiny.tiny_resnet(num_labels=4)
    timm_export(tmp_path / "timm", model)
    loaded = load_model(tmp_path / "timm", num_labels=7)
    assert logits(loaded, tiny.random_inputs(model)).shape == (3, 7)
    assert torch.equal(loaded.timm_model.conv1[0].weight, model.timm_model.conv1[0].weight)
    save_model(loaded, tmp_path / "seven")
    again = load_model(tmp_path / "seven")
    assert again.config.num_labels == len(again.config.id2label) == 7
    assert torch.equal(again.timm_model.fc.weight, loaded.timm_model.fc.weight)

    bert = tiny.tiny_bert()
    bert.bert.save_pretrained(tmp_path / "bert")  # an encoder without a head
    with pytest.raises(UnlearningError, match="BertModel has no head"):
        load_model(tmp_path / "bert")
    with pytest.raises(UnlearningError, match="classifier.bias, classifier.weight.*num_labels= for a fresh head"):
        load_model(tmp_path / "bert", task="text-classification")
    loaded = load_model(tmp_path / "bert", task="text-classification", num_labels=6)
    assert loaded.classifier.out_features == 6
    assert torch.equal(loaded.bert.pooler.dense.weight, bert.bert.pooler.dense.weight)

    edit_weights(tmp_path / "bert", lambda tensors: tensors.pop("pooler.dense.weight"))
    load_model(tmp_path / "bert", task="text-classification", num_labels=6)
    edit_weights(tmp_path / "bert", lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(UnlearningError, match="layer.1.output.dense.weight.*stay random"):
        load_model(tmp_path / "bert", task="text-classification", num_labels=6)


def test_the_names_of_classes_survive(tmp_path):
    for build in (tiny.tiny_resnet, tiny.tiny_vit):
        model = build()
        model.config.id2label = dict(enumerate(["cat", "dog", "bird", "fish"]))
        save_model(model, tmp_path / build.__name__)
        assert load_model(tmp_path / build.__name__, num_labels=4).config.id2label[3] == "fish"
        five = load_model(tmp_path / build.__name__, num_labels=5)
        assert five.config.id2label[3] == "LABEL_3"
        save_model(five, tmp_path / "five")
        assert load_model(tmp_path / "five").config.id2label == {index: f"LABEL_{index}" for index in range(5)}
        five.config.id2label = dict(enumerate("abcde"))
        save_model(five, tmp_path / "five")
        assert load_model(tmp_path / "five").config.id2label == dict(enumerate("abcde"))


# Weights back into a live model


@each_model
def test_load_weights_into_the_same_model(build, tmp_path):
    model = build()
    save_model(model, tmp_path)
    expected, digest = logits(model), weights_digest(model)
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    scramble(model)
    assert weights_digest(model) != digest
    state = torch.get_rng_state()
    load_weights(model, tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert weights_digest(model) == digest
    assert torch.equal(logits(model), expected)
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (len(parameters) - 1)


@pytest.mark.parametrize("saved_by", ["us", "transformers", "transformers in shards"])
def test_load_weights_undoes_key_conversions(saved_by, tmp_path):
    """The keys in these files are not the keys of the models: a plain load_state_dict would lose them."""
    timm_export(tmp_path / "timm", tiny.tiny_resnet())
    for number, model in enumerate((load_model(tmp_path / "timm"), tiny_mixtral())):
        folder, live, digest = tmp_path / str(number), copy.deepcopy(model), weights_digest(model)
        if saved_by == "us":
            save_model(model, folder)
        else:
            model.save_pretrained(folder, max_shard_size="50GB" if saved_by == "transformers" else 2000)
        files = list(folder.glob("model*.safetensors"))
        assert (len(files) > 1) == (saved_by == "transformers in shards")
        assert {key for file in files for key in load_file(file)} != model.state_dict().keys()
        scramble(live)
        load_weights(live, folder)
        assert weights_digest(live) == digest


def test_load_weights_with_tied_weights_and_mixed_dtypes(tmp_path):
    model = tiny.tiny_llama_lm(tie_word_embeddings=True).to(torch.bfloat16)
    model.model.norm.weight.data = torch.randn(16)
    save_model(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    live = copy.deepcopy(model)
    scramble(live)
    load_weights(live, tmp_path)
    assert weights_digest(live) == weights_digest(model)
    assert live.lm_head.weight is live.model.embed_tokens.weight


@each_model
def test_load_weights_is_strict(build, tmp_path):
    model = build()
    digest = weights_digest(model)
    key = next(key for key in sorted(model.state_dict()) if key.endswith("weight")).removeprefix("timm_model.")
    changes = {
        "less": (lambda tensors: tensors.pop(key), f"lacks .*{key}"),
        "more": (lambda tensors: tensors.update({"surplus.weight": torch.ones(2)}), "beyond.*surplus.weight"),
        "shape": (lambda tensors: tensors.update({key: torch.ones(3, 3, 3)}), rf"{key} with shape \(3, 3, 3\)"),
        "dtype": (
            lambda tensors: tensors.update({key: tensors[key].double() for key in tensors}),
            "saved in torch.float64 and the model is in torch.float32",
        ),
    }
    for name, (change, sentence) in changes.items():
        save_model(build(seed=1), tmp_path / name)
        edit_weights(tmp_path / name, change)
        with pytest.raises(UnlearningError, match=sentence):
            load_weights(model, tmp_path / name)
    assert weights_digest(model) == digest


def test_load_weights_refuses_what_is_no_folder_of_weights(tmp_path):
    model = tiny.tiny_bert()
    with pytest.raises(UnlearningError, match="no-such-folder' is no folder"):
        load_weights(model, "no-such-folder")
    with pytest.raises(UnlearningError, match="no model.safetensors"):
        load_weights(model, tmp_path)
    save_model(get_peft_model(tiny.tiny_bert(), LoraConfig(target_modules=["query"])), tmp_path)
    with pytest.raises(UnlearningError, match="holds a PEFT adapter"):
        load_weights(model, tmp_path)
    with pytest.raises(UnlearningError, match="holds a PEFT adapter and not a model"):
        load_model(tmp_path)


def two_adapters(build, target_modules, modules_to_save):
    model = get_peft_model(
        build(),
        LoraConfig(r=2, target_modules=target_modules, modules_to_save=modules_to_save, init_lora_weights=False),
    )
    model.add_adapter("unlearn", LoraConfig(r=3, target_modules=target_modules, init_lora_weights=False))
    model.base_model.set_adapter(["default", "unlearn"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            parameter.requires_grad_(False)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "build, target_modules, modules_to_save",
    [
        (tiny.tiny_resnet, r".*layer\d.*conv\d", ["fc"]),
        (tiny.tiny_vit, ["q_proj", "v_proj"], ["classifier"]),
        (tiny.tiny_llama_lm, "all-linear", None),
    ],
    ids=["resnet", "vit", "llama"],
)
def test_load_weights_of_two_adapters(build, target_modules, modules_to_save, dtype, tmp_path):
    model = two_adapters(lambda: build().to(dtype), target_modules, modules_to_save)
    save_model(model, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "unlearn" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    digest, flags = weights_digest(model), [p.requires_grad for p in model.parameters()]
    changed = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default." in name or ".unlearn." in name:
                parameter.add_(1)
                changed += 1
    assert changed and weights_digest(model) != digest
    load_weights(model, tmp_path)
    assert weights_digest(model) == digest
    assert [p.requires_grad for p in model.parameters()] == flags
    assert set(flags) == {True, False}


def test_load_weights_of_adapters_is_strict(tmp_path):
    model = two_adapters(tiny.tiny_bert, ["query"], None)
    save_model(model, tmp_path / "saved")
    for adapter in ("", "unlearn"):
        shutil.copytree(tmp_path / "saved", tmp_path / f"less{adapter}")
        path = tmp_path / f"less{adapter}" / adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        lost = sorted(tensors)[0]
        tensors.pop(lost)
        save_file(tensors, path)
        with pytest.raises(UnlearningError, match=f"lacks {lost}"):
            load_weights(model, tmp_path / f"less{adapter}")
        tensors["surplus"] = torch.ones(2)
        tensors[lost] = load_file(tmp_path / "saved" / adapter / "adapter_model.safetensors")[lost]
        save_file(tensors, path)
        with pytest.raises(UnlearningError, match="beyond what the model has, .*surplus"):
            load_weights(model, tmp_path / f"less{adapter}")
    one = get_peft_model(tiny.tiny_bert(), LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(UnlearningError, match="holds the adapters default, unlearn, and the model has default"):
        load_weights(one, tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnlearningError, match=r"holds the adapters \(none\)"):
        load_weights(one, tmp_path / "empty")
    other_rank = get_peft_model(tiny.tiny_bert(), LoraConfig(r=5, target_modules=["query"]))
    shutil.rmtree(tmp_path / "saved" / "unlearn")
    with pytest.raises(UnlearningError, match="size mismatch"):
        load_weights(other_rank, tmp_path / "saved")


# The digest


def test_digest_does_not_see_files(tmp_path):
    for build in (tiny.tiny_bert, tiny.tiny_resnet):
        model = build()
        folder = tmp_path / build.__name__
        model.save_pretrained(folder, max_shard_size=4000)
        assert len(list(folder.glob("*.safetensors"))) > 3
        assert weights_digest(load_model(folder)) == weights_digest(model)
        other = build(seed=1)
        save_model(other, folder)
        assert [path.name for path in folder.glob("model*")] == ["model.safetensors"]
        assert weights_digest(load_model(folder)) == weights_digest(other) != weights_digest(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_digest_sees_one_flipped_bit(dtype):
    model = tiny.tiny_resnet().to(dtype)
    digest = weights_digest(model)
    for name in ("fc.bias", "bn1.running_var", "bn1.num_batches_tracked"):
        tensor = model.timm_model.state_dict()[name]
        tensor.flatten().view(torch.uint8)[0] ^= 1
        assert weights_digest(model) != digest
        tensor.flatten().view(torch.uint8)[0] ^= 1
    assert weights_digest(model) == digest


def test_digest_sees_names_shapes_and_dtypes():
    def holding(**tensors):
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_digest(module)

    zeros = torch.zeros(4)
    different = [
        holding(a=zeros),
        holding(b=zeros),
        holding(a=zeros.reshape(2, 2)),
        holding(a=zeros.int()),
        holding(a=zeros.bfloat16()),
        holding(a=zeros[:2], b=zeros[:2]),
        holding(a=zeros[0]),
        holding(a=zeros[:0]),
    ]
    assert len(set(different)) == len(different)
    assert holding(a=zeros, b=zeros + 1) == holding(b=zeros + 1, a=zeros.clone())
    square = torch.arange(6.0).reshape(2, 3)
    assert holding(a=square.T) == holding(a=square.T.contiguous()) != holding(a=square)


# Processors


def test_tokenizer_or_none(tmp_path):
    model = tiny.tiny_bert()
    save_model(model, tmp_path)
    assert load_processor(tmp_path, model) is None  # AutoTokenizer would make one up, without words
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_processor(tmp_path, get_peft_model(model, LoraConfig(target_modules=["query"])))
    assert loaded("the cat")["input_ids"] == tiny.tiny_tokenizer()("the cat")["input_ids"]


def test_image_processor_or_none(tmp_path):
    for build in (tiny.tiny_vit, tiny.tiny_resnet):
        model, folder = build(), tmp_path / build.__name__
        model.save_pretrained(folder)
        assert load_processor(folder, model) is None
        save_model(model, folder)
        tiny.tiny_image_processor(16).save_pretrained(folder)
        loaded = load_processor(folder, model)  # the one that was saved, although timm's config describes another
        assert isinstance(loaded, ViTImageProcessor)
        white = torch.full((3, 20, 20), 255, dtype=torch.uint8)
        assert torch.equal(loaded(white, return_tensors="pt")["pixel_values"], torch.ones(1, 3, 16, 16))


def test_image_processor_of_a_timm_export(tmp_path):
    timm_export(tmp_path, tiny.tiny_resnet())
    pretrained = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    edit_config(tmp_path, pretrained_cfg=pretrained | {"input_size": [3, 32, 32]})
    processor = load_processor(tmp_path, load_model(tmp_path))
    assert processor(torch.zeros(3, 50, 50), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


# Refusals


def test_refusals_of_paths(tmp_path):
    for path in ("./missing", "a/b/c", str(tmp_path / "missing"), ""):
        with pytest.raises(UnlearningError, match=f"'{path}' is neither an existing folder nor a Hub id"):
            load_model(path)
    with pytest.raises(UnlearningError, match="holds no model"):
        load_model(tmp_path)


def test_refusals_of_checkpoints(tmp_path):
    def saved(name, **changes):
        save_model(tiny.tiny_bert(), tmp_path / name)
        edit_config(tmp_path / name, **changes)
        return tmp_path / name

    folder = saved("good")
    with pytest.raises(UnlearningError, match="task='regression' is unknown: pass one of image-classification"):
        load_model(folder, task="regression")
    with pytest.raises(UnlearningError, match="AutoModelForImageClassification"):
        load_model(folder, task="image-classification")
    with pytest.raises(UnlearningError, match="never run here"):
        load_model(folder, trust_remote_code=True)
    with pytest.raises(UnlearningError, match="BertForMaskedLM has no head"):
        load_model(saved("masked", architectures=["BertForMaskedLM"]))
    with pytest.raises(UnlearningError, match="pass task="):
        load_model(saved("anonymous", architectures=None))
    with pytest.raises(UnlearningError, match="model type `new`"):
        load_model(saved("new", model_type="new"))
    own_code = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    with pytest.raises(UnlearningError, match="custom code"):
        load_model(saved("custom", model_type="own", auto_map=own_code))
    with pytest.raises(UnlearningError, match=r"encoder.layer.2.*and 13 more.*stay random"):
        load_model(saved("deeper", num_hidden_layers=3))
    (saved("garbled") / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(UnlearningError, match="garbled' cannot be loaded"):
        load_model(tmp_path / "garbled")
    (saved("config") / "config.json").write_text("{")
    with pytest.raises(UnlearningError, match="not a valid JSON"):
        load_model(tmp_path / "config")


class Exploding:
    def __reduce__(self):
        return os._exit, (66,)


def test_pickled_weights_are_never_opened(tmp_path):
    save_model(tiny.tiny_bert(), tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    (tmp_path / "bert" / "pytorch_model.bin").write_bytes(pickle.dumps(Exploding()))
    timm_export(tmp_path / "timm", tiny.tiny_resnet(), safe_serialization=False)
    for name in ("bert", "timm"):
        with pytest.raises(
            UnlearningError, match="no model.safetensors, and pickled weights are never loaded: convert"
        ):
            load_model(tmp_path / name)


def test_a_backbone_of_timm_needs_a_head(tmp_path):
    timm_export(tmp_path, tiny_timm(layers=[1, 1, 1, 1], channels=[8, 8, 8, 8], classes=3))
    edit_config(tmp_path, num_classes=0)
    with pytest.raises(UnlearningError, match="backbone without a head: pass num_labels="):
        load_model(tmp_path)


# The Hub, played by a small server; its own process, because the client reads the address when it is imported.

HUB = r"""
import hashlib, http.server, json, os, sys, threading, time
from pathlib import Path

REPOSITORIES, REFUSED = Path(sys.argv[1]), {
    "none/gated": (403, "GatedRepo"), "none/missing": (401, "RepoNotFound"), "none/revision": (404, "RevisionNotFound"),
    "none/forbidden": (403, ""),
}

class Hub(http.server.BaseHTTPRequestHandler):
    def answer(self):
        owner, name, *rest = self.path.removeprefix("/api/models").strip("/").split("?")[0].split("/")
        path = REPOSITORIES / owner / name / "/".join(rest[2:])
        status, code, body = 200, None, b""
        if f"{owner}/{name}" in REFUSED:
            status, code = REFUSED[f"{owner}/{name}"]
        elif rest[:1] == ["resolve"] and path.is_file():
            body = path.read_bytes()
        else:
            status, code = 404, "EntryNotFound"
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", hashlib.sha256(body).hexdigest())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
    do_GET = do_HEAD = answer
    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
time.sleep = lambda seconds: None  # the client waits longer and longer between its tries

import torch
torch.set_num_threads(1)
from hf_unlearn.errors import UnlearningError
from hf_unlearn.models import load_model, load_processor, weights_digest

def attempt(name, **kwargs):
    try:
        return weights_digest(load_model(name, **kwargs))
    except UnlearningError as error:
        return str(error)

answers = {name: attempt(name) for name in ("me/bert", "me/timm", "me/pickled", "none/gated", "none/missing")}
answers["none/revision"] = attempt("none/revision", revision="v2")
answers["none/forbidden"] = attempt("none/forbidden")
answers["token"] = attempt("none/missing", token="hf_given")
bert = load_model("me/bert")
answers["processor"] = str(load_processor("me/bert", bert))
answers["timm processor"] = type(load_processor("me/timm", load_model("me/timm"))).__name__
server.shutdown()
server.server_close()
answers["unreachable"] = attempt("me/other")
answers["cached"] = attempt("me/bert")
answers["cached processor"] = str(load_processor("me/bert", bert))
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_the_hub(tmp_path):
    repositories = tmp_path / "repositories"
    bert, resnet = tiny.tiny_bert(), tiny.tiny_resnet()
    save_model(bert, repositories / "me/bert")
    timm_export(repositories / "me/timm", resnet)
    timm_export(repositories / "me/pickled", resnet, safe_serialization=False)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", HUB, str(repositories)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    answers = json.loads(run.stdout.splitlines()[-1])
    assert answers["me/bert"] == answers["cached"] == weights_digest(bert)
    assert answers["me/timm"] == weights_digest(resnet)
    assert "'me/pickled' has no model.safetensors" in answers["me/pickled"]
    assert "'none/gated' is gated: accept its terms" in answers["none/gated"]
    assert "'none/missing' is neither a local folder nor a repository that you can read" in answers["none/missing"]
    assert "'none/revision' has no revision 'v2'" in answers["none/revision"]
    assert "'none/forbidden' may not be read with this token: log in again" in answers["none/forbidden"]
    assert "'me/other' is not in the local cache, and the Hub cannot be reached" in answers["unreachable"]
    assert answers["processor"] == answers["cached processor"] == "None"
    assert answers["timm processor"] == "TimmWrapperImageProcessor"
    for secret in ("hf_secret", "hf_given"):
        assert secret not in run.stdout + run.stderr
