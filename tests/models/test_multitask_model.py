"""Several tasks on one backbone: the model, its labels, and losses and scores against closed forms."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertForMaskedLM,
    BertModel,
    ConvNextConfig,
    DeiTConfig,
    Dinov2WithRegistersConfig,
    PreTrainedConfig,
    ResNetConfig,
    SwinConfig,
    T5Config,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTModel,
)

from hf_unlearn.errors import UnlearningError
from hf_unlearn.models.load import load_weights
from hf_unlearn.models.multitask import MultiTaskModel, MultiTaskModelConfig, feature_map
from hf_unlearn.models.multitask_labels import SHAPES, missing, sample_counts, sample_losses, score, stack_labels
from hf_unlearn.models.weights import own_memory, save_model, weights_digest
from tests import tiny
from tests.scenes import TASKS, WALL, scenes

NAN = math.nan
TEXT_TASKS = {"topic": {"kind": "classification", "size": 4}, "angle": {"kind": "regression", "tolerance": 0.2}}
IMAGE_TASKS = TEXT_TASKS | {
    "seg": {"kind": "segmentation", "size": 5},
    "depth": {"kind": "depth"},
    "normals": {"kind": "normals"},
}
POOLING = {
    tiny.tiny_vit: "first",
    tiny.tiny_resnet: "pooler",
    tiny.tiny_bert: "pooler",
    tiny.tiny_distilbert: "first",
    tiny.tiny_roberta: "first",
    tiny.tiny_modernbert: "first",
    tiny.tiny_gpt2_classifier: "last",
    tiny.tiny_llama_lm: "last",
}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 3}
TIMM_SWIN = {"img_size": 32, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 16}
SMALL = {key: value for key, value in tiny.SIZE.items() if key != "intermediate_size"}
NARROW = {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]}
IMAGE_CONFIGS = {
    "resnet": lambda: ResNetConfig(embedding_size=8, **NARROW),
    "convnext": lambda: ConvNextConfig(**NARROW),
    "swin": lambda: SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "deit": lambda: DeiTConfig(image_size=32, patch_size=8, **SMALL),
    "dinov2 with registers": lambda: Dinov2WithRegistersConfig(image_size=32, patch_size=8, **SMALL),
    "timm vit": lambda: TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=TIMM_VIT),
    "timm swin": lambda: TimmWrapperConfig(architecture="swin_tiny_patch4_window7_224", model_args=TIMM_SWIN),
    "timm mobilenet": lambda: TimmWrapperConfig(architecture="mobilenetv3_small_050"),
}
each_model = pytest.mark.parametrize("build", POOLING, ids=lambda build: build.__name__)
each_kind = pytest.mark.parametrize("kind", SHAPES)


def tasks_of(backbone):
    return IMAGE_TASKS if backbone.main_input_name == "pixel_values" else TEXT_TASKS


def tiny_multitask(build=tiny.tiny_vit, tasks=None, seed=0):
    backbone = build(seed=seed)
    torch.manual_seed(seed)
    return MultiTaskModel.from_backbone(backbone, tasks or tasks_of(backbone))


@torch.no_grad()
def logits(model, inputs):
    own_memory(model)
    return model(**inputs).logits


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def task_of(kind, **options):
    return {"kind": kind} | ({"size": 3} if kind in ("classification", "segmentation") else {}) | options


def random_labels(tasks, n, size=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = {}
    for name, task in tasks.items():
        shape = (n, 3, size, size) if task["kind"] == "normals" else (n, size, size)
        shape = (n,) if SHAPES[task["kind"]] == () else shape
        values = rng.integers(0, task["size"], shape) if "size" in task else rng.uniform(0.5, 2, shape)
        labels[name] = stack_labels(list(values), task)
    return labels


def random_output(kind, n, size=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    channels = {"classification": (3,), "regression": (), "segmentation": (3,), "depth": (), "normals": (3,)}[kind]
    pixels = () if SHAPES[kind] == () else (size, size)
    return (torch.rand(n, *channels, *pixels, generator=generator) + 0.1).to(dtype)


# The model


@each_model
def test_round_trip(build, tmp_path):
    model = tiny_multitask(build)
    inputs = tiny.random_inputs(build())
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path)
    assert model.config.pooling == POOLING[build]
    assert model.main_input_name == build().main_input_name
    for loaded in (MultiTaskModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is MultiTaskModel and not loaded.training
        assert weights_digest(loaded) == weights_digest(model)
        assert loaded.config.tasks == model.config.tasks == tasks_of(build())
        assert list(loaded.state_dict()) == list(model.state_dict())  # an optimizer knows weights by their order
        assert loaded.config.backbone.to_dict() == model.config.backbone.to_dict()
        assert type(loaded.config.backbone) is type(build().config)
        assert same(logits(loaded, inputs), expected)
    other = tiny_multitask(build, seed=1)
    load_weights(other, tmp_path)
    assert same(logits(copy.deepcopy(other), inputs), expected)


@pytest.mark.parametrize("name", IMAGE_CONFIGS)
def test_other_image_backbones(name, tmp_path):
    torch.manual_seed(0)
    model = MultiTaskModel(MultiTaskModelConfig(backbone=IMAGE_CONFIGS[name](), tasks=IMAGE_TASKS)).eval()
    nn.init.ones_(model.heads["normals"].bias)  # an untrained MobileNet returns hardly anything
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    expected = logits(model, inputs)
    shapes = {name: tuple(output.shape) for name, output in expected.items()}
    maps = {"seg": (2, 5, 32, 32), "depth": (2, 32, 32), "normals": (2, 3, 32, 32)}
    assert shapes == {"topic": (2, 4), "angle": (2,)} | maps
    assert expected["depth"].min() > 0
    assert torch.allclose(expected["normals"].norm(dim=1), torch.ones(2, 32, 32))
    model.save_pretrained(tmp_path)
    assert same(logits(AutoModel.from_pretrained(tmp_path), inputs), expected)


@pytest.mark.slow
def test_a_fresh_process_loads_it(tmp_path):
    model, inputs = tiny_multitask(tiny.tiny_resnet), tiny.random_inputs(tiny.tiny_resnet())
    model.save_pretrained(tmp_path)
    save_file(inputs, tmp_path / "inputs")
    code = f"""if True:
        from safetensors.torch import load_file, save_file
        from transformers import AutoModel
        import hf_unlearn.models.multitask
        from hf_unlearn.models import own_memory
        model = AutoModel.from_pretrained({str(tmp_path)!r})
        own_memory(model)
        outputs = model(**load_file({str(tmp_path / "inputs")!r})).logits
        save_file({{name: output.contiguous() for name, output in outputs.items()}}, {str(tmp_path / "outputs")!r})
    """
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert same(load_file(tmp_path / "outputs"), logits(model, inputs))


@each_model
def test_a_trained_backbone_stays_as_it_was(build, tmp_path):
    given = build()
    digest = weights_digest(given)
    model = tiny_multitask(build)
    own = model.backbone.state_dict()
    body = given if build is tiny.tiny_resnet else given.base_model
    assert own.keys() <= body.state_dict().keys()
    assert all(torch.equal(tensor, body.state_dict()[key]) for key, tensor in own.items())
    assert weights_digest(given) == digest

    save_model(given, tmp_path)
    from_folder = MultiTaskModel.from_backbone(tmp_path, tasks_of(given))
    assert weights_digest(from_folder.backbone) == weights_digest(model.backbone)
    assert from_folder.config.pooling == POOLING[build]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert weights_digest(given) == digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("build", [tiny.tiny_vit, tiny.tiny_resnet, tiny.tiny_llama_lm], ids=lambda b: b.__name__)
def test_other_dtypes(build, dtype, tmp_path):
    given = build().to(dtype)
    model = MultiTaskModel.from_backbone(given, tasks_of(given))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    inputs = tiny.random_inputs(given)
    assert weights_digest(loaded) == weights_digest(model)
    assert same(logits(loaded, inputs), logits(model, inputs))


@pytest.mark.parametrize(
    "build, head",
    [
        (tiny.tiny_vit, "classifier"),
        (tiny.tiny_resnet, "timm_model.fc"),
        (tiny.tiny_bert, "classifier"),
        (tiny.tiny_gpt2_classifier, "score"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_reads_what_a_classifier_of_the_family_reads(build, head):
    classifier = build(num_labels=4)
    model = MultiTaskModel.from_backbone(classifier, {"topic": TEXT_TASKS["topic"]})
    model.heads["topic"].load_state_dict(classifier.get_submodule(head).state_dict(), strict=False)
    inputs = tiny.random_inputs(classifier)
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits["topic"], classifier(**inputs).logits, atol=1e-6)


@pytest.mark.parametrize("build", [tiny.tiny_gpt2_classifier, tiny.tiny_llama_lm], ids=lambda b: b.__name__)
def test_decoders_are_read_at_their_last_token(build):
    model = tiny_multitask(build)
    tokens = torch.tensor([[tiny.CLS, 5, 6, 7, tiny.SEP]])
    expected = logits(model, {"input_ids": tokens})
    right = nn.functional.pad(tokens, (0, 3), value=tiny.PAD)
    padded = [{"input_ids": right}, {"input_ids": right, "attention_mask": (right != tiny.PAD).long()}]
    if build is tiny.tiny_llama_lm:  # GPT-2 has absolute positions
        left = nn.functional.pad(tokens, (3, 0), value=tiny.PAD)
        padded.append({"input_ids": left, "attention_mask": (left != tiny.PAD).long()})
    for inputs in padded:
        for name, output in logits(model, inputs).items():
            assert torch.allclose(output, expected[name], atol=1e-5)


def test_mean_pooling_leaves_padding_out():
    backbone = tiny.tiny_bert()
    model = MultiTaskModel.from_backbone(backbone, TEXT_TASKS, pooling="mean")
    inputs = tiny.random_inputs(backbone)
    hidden = backbone.bert(**inputs).last_hidden_state
    pooled = torch.stack(
        [row[keep].mean(0) for row, keep in zip(hidden, inputs["attention_mask"].bool(), strict=True)]
    )
    assert torch.allclose(model(**inputs).logits["topic"], model.heads["topic"](pooled), atol=1e-5)
    assert model.backbone.pooler is None
    convolutional = MultiTaskModel.from_backbone(tiny.tiny_resnet(), TEXT_TASKS, pooling="mean")
    convolutional.heads.load_state_dict((by_pooler := tiny_multitask(tiny.tiny_resnet, TEXT_TASKS)).heads.state_dict())
    inputs = tiny.random_inputs(tiny.tiny_resnet())
    assert torch.allclose(logits(convolutional, inputs)["topic"], logits(by_pooler, inputs)["topic"], atol=1e-5)


def test_tokens_become_a_grid():
    tokens = torch.randn(2, 1 + 2 * 4, 16)
    grid = feature_map(tokens, (8, 16), tiny.tiny_vit())  # patches of 4 x 4 pixels
    assert grid.shape == (2, 16, 2, 4)
    assert torch.equal(grid[:, :, 1, 2], tokens[:, 1 + 4 + 2])


@pytest.mark.parametrize("labelled", ["all", "none"])
@each_model
def test_every_weight_gets_a_gradient(build, labelled):
    """Otherwise DDP waits for ever, or has to look for unused weights in each step."""
    backbone = build()
    inputs, tasks = tiny.random_inputs(backbone), tasks_of(backbone)
    dense = {name: task for name, task in tasks.items() if SHAPES[task["kind"]]}
    for chosen in filter(None, (tasks, TEXT_TASKS, dense)):
        model = tiny_multitask(build, chosen).train()
        labels = random_labels(chosen, 3) if labelled == "all" else {}
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert without == []
        if labelled == "none":
            assert loss.item() == 0 and all(parameter.grad.abs().max() == 0 for parameter in model.parameters())


def test_fresh_heads():
    model = tiny_multitask(tiny.tiny_vit, {"big": {"kind": "classification", "size": 2000}})
    head = model.heads["big"]
    assert head.weight.std().item() == pytest.approx(16**-0.5, rel=0.05) and not head.bias.any()
    built = MultiTaskModel(MultiTaskModelConfig(backbone=tiny.tiny_vit().config, tasks=IMAGE_TASKS))
    assert built.backbone.layers[0].mlp.fc1.weight.std().item() == pytest.approx(tiny.INITIAL_STD, rel=0.2)
    assert built.config.pooling == "first" and built.backbone.pooler is None


def test_an_untrained_pooler_is_not_read(tmp_path):
    bert = tiny.tiny_bert().config
    BertModel(bert, add_pooling_layer=False).save_pretrained(tmp_path)
    for backbone in (tmp_path, BertForMaskedLM(bert)):
        model = MultiTaskModel.from_backbone(backbone, TEXT_TASKS)
        assert model.config.pooling == "first" and model.backbone.pooler is None
    with pytest.raises(UnlearningError, match="no trained weights for pooler.dense.weight"):
        MultiTaskModel.from_backbone(tmp_path, TEXT_TASKS, pooling="pooler")


def test_timm_backbones_with_and_without_a_head():
    whole = tiny.tiny_resnet()
    body = TimmWrapperModel(copy.deepcopy(whole.config))
    body.load_state_dict(whole.state_dict(), strict=False)
    digests = {weights_digest(MultiTaskModel.from_backbone(given, IMAGE_TASKS).backbone) for given in (whole, body)}
    assert digests == {weights_digest(body)}


# Labels and losses


def test_loss_is_the_sum_over_tasks_of_means_over_labelled_samples():
    model, inputs = tiny_multitask(), tiny.random_inputs(tiny.tiny_vit(), batch_size=6)
    labels = random_labels(IMAGE_TASKS, 6)
    outputs = model(**inputs).logits
    means = [sample_losses(outputs[name], labels[name], task["kind"]).mean() for name, task in IMAGE_TASKS.items()]
    assert torch.allclose(model(**inputs, labels=labels).loss, sum(means))
    some = {name: labels[name] for name in ("seg", "angle")}
    assert torch.allclose(model(**inputs, labels=some).loss, means[1] + means[2])  # angle and seg


def test_a_plain_trainer_trains_it(tmp_path):
    """The lines of docs/multitask.md, on columns as they are in a dataset."""
    lines = (Path(__file__).parents[2] / "docs" / "multitask.md").read_text().split("```python\n")[1].split("```")[0]
    args, train = (line for line in lines.splitlines() if line.startswith(("args = ", "Trainer(")))
    args = args.replace('"trained"', 'folder, max_steps=8, use_cpu=True, report_to="none", learning_rate=1e-2')
    model, rows = MultiTaskModel.from_backbone(tiny.tiny_vit(), tasks=TASKS), scenes(16)
    labels = {name: rows[name][:] for name in TASKS}
    before = model(pixel_values=rows["pixel_values"][:], labels=labels).loss.item()
    exec(f"{args}\n{train}", {**vars(transformers), "folder": str(tmp_path), "model": model, "train": rows})
    assert model.eval()(pixel_values=rows["pixel_values"][:], labels=labels).loss.item() < 0.8 * before
    assert torch.equal(
        model(pixel_values=rows["pixel_values"][:], **labels).loss,
        model(pixel_values=rows["pixel_values"][:], labels=labels).loss,
    )


def test_missing_labels_are_as_if_the_samples_were_not_there():
    model, inputs = tiny_multitask(), tiny.random_inputs(tiny.tiny_vit(), batch_size=6)
    whole, rows = random_labels(IMAGE_TASKS, 6), torch.arange(6)
    expected = torch.tensor(0.0)
    labels = {}
    for position, (name, task) in enumerate(IMAGE_TASKS.items()):
        present = rows % 5 != position
        values = [value if keep else None for value, keep in zip(whole[name], present, strict=True)]
        labels[name] = stack_labels(values, task)
        assert torch.equal(missing(labels[name], task["kind"]), ~present)
        subset = {"pixel_values": inputs["pixel_values"][present]}
        expected = expected + model(**subset, labels={name: whole[name][present]}).loss
    loss = model(**inputs, labels=labels).loss
    assert torch.allclose(loss, expected)
    ours = torch.autograd.grad(loss, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all() and torch.allclose(a, b, atol=1e-5)


def test_a_task_leaves_the_heads_of_others_alone():
    model, inputs = tiny_multitask(), tiny.random_inputs(tiny.tiny_vit())
    labels = random_labels(IMAGE_TASKS, 3)
    for name, task in IMAGE_TASKS.items():
        model.zero_grad()
        sample_losses(model(**inputs).logits[name], labels[name], task["kind"]).sum().backward()
        moved = {head for head in model.heads if model.heads[head].weight.grad is not None}
        assert moved == {name}
        model.zero_grad()
        model(**inputs, labels={name: labels[name]}).loss.backward()
        moved = {head for head in model.heads if model.heads[head].weight.grad.any()}
        assert moved == {name}


@each_kind
def test_nothing_leaks_out_of_what_is_not_labelled(kind):
    output = random_output(kind, 4)
    labels = stack_labels([None, *random_labels({"t": task_of(kind)}, 3, size=4)["t"]], task_of(kind))
    if SHAPES[kind]:
        labels[1, ..., 0, 0] = labels[0, ..., 0, 0]  # one pixel that is not labelled
        output[1, ..., 0, 0] = math.inf
    output[0] = NAN
    output.requires_grad_()
    losses = sample_losses(output, labels, kind)
    losses.sum().backward()
    assert losses[0] == 0 and (losses[1:] > 0).all() and torch.isfinite(output.grad).all()
    assert not output.grad[0].any() and output.grad[1].any()
    assert not sample_counts(output, labels, task_of(kind))[0].any()


@each_kind
def test_a_batch_without_labels(kind):
    labels = stack_labels([None, None], task_of(kind))
    assert labels.shape == (2, *SHAPES[kind]) and missing(labels, kind).all()
    output = random_output(kind, 2).requires_grad_()
    losses = sample_losses(output, labels, kind)
    losses.sum().backward()
    assert losses.tolist() == [0, 0] and not output.grad.any()
    counts = sample_counts(output, labels, task_of(kind))
    assert not counts.any() and math.isnan(score(counts.sum(0), task_of(kind)))


@each_kind
def test_precision(kind):
    labels = random_labels({"t": task_of(kind)}, 2, size=4)["t"]
    assert sample_losses(random_output(kind, 2, dtype=torch.bfloat16), labels, kind).dtype == torch.float32
    output = random_output(kind, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sample_losses(x, labels, kind), output)


def test_classification_loss():
    output = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0], [1.0, 2.0, 3.0]])
    losses = sample_losses(output, torch.tensor([2, 0, -100]), "classification")
    assert losses.tolist() == pytest.approx([math.log(3), math.log(2), 0])


def test_regression_loss():
    assert sample_losses(torch.tensor([1.0, 2.0]), torch.tensor([3.0, NAN]), "regression").tolist() == [4, 0]


def test_segmentation_loss():
    output = torch.zeros(1, 2, 1, 3)
    output[0, 0, 0, 1] = math.log(3)
    labels = torch.tensor([[[1, 0, -100]]])
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert sample_losses(output, labels, "segmentation").item() == pytest.approx(expected)


def test_depth_loss():
    output, labels = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[2.0, 5.0, NAN]]])
    assert sample_losses(output, labels, "depth").item() == 2


def turned(*degrees):
    """Unit vectors at these angles to the viewing direction: [1, 3, 1, pixels]."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.sin(), torch.zeros_like(angles), angles.cos()])[None, :, None]


def test_normals_loss():
    labels = turned(0.0, 0.0, NAN)
    losses = sample_losses(turned(60.0, 90.0, 5.0), labels, "normals")
    assert losses.item() == pytest.approx(0.75)
    assert sample_losses(turned(60.0, 90.0, 5.0), 7 * labels, "normals").item() == pytest.approx(0.75)


# Scores


def test_accuracy():
    task = {"kind": "classification", "size": 3}
    output = torch.eye(3)[[0, 1, 2, 2]]
    counts = sample_counts(output, torch.tensor([0, 1, 1, -100]), task)
    assert counts.tolist() == [[1, 1], [1, 1], [0, 1], [0, 0]]
    assert score(counts.sum(0), task) == pytest.approx(2 / 3)


@pytest.mark.parametrize("options, share", [({}, 1 / 3), ({"tolerance": 0.3}, 2 / 3), ({"tolerance": 5}, 1)])
def test_share_within_tolerance(options, share):
    task = {"kind": "regression"} | options
    counts = sample_counts(torch.tensor([1.05, 0.8, 3.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, NAN]), task)
    assert score(counts.sum(0), task) == pytest.approx(share)


def test_mean_iou_by_hand():
    task = {"kind": "segmentation", "size": 4}
    said = torch.tensor([[[0, 1], [1, 2]], [[0, 0], [1, 1]]])
    true = torch.tensor([[[0, 0], [1, -100]], [[0, 0], [0, 1]]])
    output = torch.nn.functional.one_hot(said, 4).movedim(-1, 1).float()
    counts = sample_counts(output, true, task)
    # class 0: 1 of 2 and 2 of 3 pixels; class 1: 1 of 2 and 1 of 2; class 2 is said only where nothing is labelled
    assert counts.tolist() == [[1, 1, 0, 0, 2, 2, 0, 0], [2, 1, 0, 0, 3, 2, 0, 0]]
    assert score(counts.sum(0), task) == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert score(sample_counts(output, said, task).sum(0), task) == 1


def test_depth_share():
    output = torch.tensor([[[1.2, 1.3, 0.81, 0.79, 9.0]]])
    labels = torch.tensor([[[1.0, 1.0, 1.0, 1.0, NAN]]])
    counts = sample_counts(output, labels, {"kind": "depth"})
    assert counts.tolist() == [[2, 4]] and score(counts[0], {"kind": "depth"}) == 0.5


def test_normals_share():
    counts = sample_counts(turned(0.0, 29.9, 30.1, 90.0, 3.0), turned(0.0, 0.0, 0.0, 0.0, NAN), {"kind": "normals"})
    assert counts.tolist() == [[2, 4]] and score(counts[0], {"kind": "normals"}) == 0.5


@each_kind
def test_scores_do_not_depend_on_batches(kind):
    task, output = task_of(kind), random_output(kind, 6)
    labels = random_labels({"t": task}, 6, size=4)["t"]
    whole = sample_counts(output, labels, task)
    parts = [sample_counts(a, b, task) for a, b in zip(output.split(2), labels.split(2), strict=True)]
    assert torch.equal(whole, torch.cat(parts)) and 0 <= score(whole.sum(0), task) <= 1


# Stacking


def test_stack_numbers():
    classes, angles = TEXT_TASKS["topic"], TEXT_TASKS["angle"]
    labels = stack_labels([3, None, NAN, -100, np.int64(2), torch.tensor(1), 0.0], classes)
    assert labels.dtype == torch.int64 and labels.tolist() == [3, -100, -100, -100, 2, 1, 0]
    labels = stack_labels([1.5, None, torch.tensor(-100.0), 2], angles)
    assert labels.dtype == torch.float32 and torch.equal(missing(labels, "regression"), labels.isnan())
    assert labels[[0, 2, 3]].tolist() == [1.5, -100, 2]


def test_stack_maps():
    seg = stack_labels([None, np.array([[0, 1]], np.uint8), [[2, -100]], -100], IMAGE_TASKS["seg"])
    assert seg.dtype == torch.int64 and seg.tolist() == [[[-100, -100]], [[0, 1]], [[2, -100]], [[-100, -100]]]
    depth = stack_labels([[[1, None]], torch.tensor([[2.0, 3.0]]), NAN], IMAGE_TASKS["depth"])
    assert (
        depth.shape == (3, 1, 2)
        and depth[1].tolist() == [[2, 3]]
        and depth[0, 0, 1].isnan()
        and depth[2].isnan().all()
    )
    assert missing(depth, "depth").tolist() == [False, False, True]
    normals = stack_labels([None, torch.ones(3, 2, 4)], IMAGE_TASKS["normals"])
    assert normals.shape == (2, 3, 2, 4) and missing(normals, "normals").tolist() == [True, False]


@pytest.mark.parametrize(
    "values, task, message",
    [
        ([1, 4], "topic", "A label of the task 'topic' is 4: expected one of its 4 classes .0 to 3."),
        ([-1], "topic", "is -1"),
        ([0.5], "topic", "is 0.5"),
        ([[[0, 255]]], "seg", "the task 'seg' is 255: expected one of its 5 classes"),
        ([1.0, [2.0]], "angle", r"shape \(1,\): expected one number"),
        ([torch.ones(4, 4), torch.ones(4, 5)], "depth", r"shape \(4, 5\): expected \(H, W\), and the same"),
        ([torch.ones(4, 4, 3)], "normals", r"shape \(4, 4, 3\): expected \(3, H, W\)"),
        ([7], "seg", r"shape \(\): expected \(H, W\)"),
    ],
)
def test_refusals_of_labels(values, task, message):
    with pytest.raises(UnlearningError, match=message):
        stack_labels(values, IMAGE_TASKS[task], task)


def test_other_refusals_of_labels():
    with pytest.raises(UnlearningError, match="A label of a classification task is 9"):
        stack_labels([9], TEXT_TASKS["topic"])
    with pytest.raises(UnlearningError, match=r"shape \(2, 1\), and the model's outputs ask for \(2,\)"):
        sample_losses(torch.rand(2), torch.rand(2, 1), "regression")
    with pytest.raises(
        UnlearningError, match=r"shape \(2, 8, 8\), and the model's outputs ask for \(2, 4, 4\): stack"
    ):
        sample_losses(torch.rand(2, 4, 4), torch.rand(2, 8, 8), "depth")
    with pytest.raises(UnlearningError, match="labels for 'other': the tasks are angle, topic"):
        tiny_multitask(tiny.tiny_bert)(**tiny.random_inputs(tiny.tiny_bert()), labels={"other": torch.zeros(3)})


# Refusals


@pytest.mark.parametrize(
    "tasks, message",
    [
        ({"a": {"kind": "ranking"}}, "task 'a' is .*'ranking'.*pass its kind, one of classification, regression"),
        ({"a": "depth"}, "task 'a' is 'depth': pass its kind"),
        ({"a": {"kind": "depth", "size": 3}}, "nothing else"),
        ({"a": {"kind": "classification"}}, "task 'a' has size=None: pass the number of its classes"),
        ({"a": {"kind": "segmentation", "size": 1}}, "task 'a' has size=1"),
        ({"a": {"kind": "regression", "tolerance": -1}}, "task 'a' has tolerance=-1"),
        ({"": {"kind": "depth"}}, "'' cannot be the name of a task"),
        ({"a.b": {"kind": "depth"}}, "'a.b' cannot be the name"),
        ({3: {"kind": "depth"}}, "3 cannot be the name"),
        ({"pixel_values": {"kind": "depth"}}, "'pixel_values' cannot be the name"),
        ({"values": {"kind": "depth"}}, "'values' cannot be the name"),
        ({"training": {"kind": "depth"}}, "'training' cannot be the name"),
        (["a"], "is no dictionary"),
    ],
)
def test_refusals_of_tasks(tasks, message):
    with pytest.raises(UnlearningError, match=message):
        MultiTaskModelConfig(backbone=tiny.tiny_vit().config, tasks=tasks)


def test_refusals_of_backbones(tmp_path):
    vit = tiny.tiny_vit()
    with pytest.raises(UnlearningError, match="is no config: pass that of a model"):
        MultiTaskModelConfig(backbone="google/vit", tasks=IMAGE_TASKS)
    with pytest.raises(UnlearningError, match="pooling='max' is unknown: pass one of pooler, first"):
        MultiTaskModelConfig(backbone=vit.config, tasks=IMAGE_TASKS, pooling="max")
    with pytest.raises(UnlearningError, match="has no task: pass"):
        MultiTaskModel(MultiTaskModelConfig(backbone=vit.config))
    with pytest.raises(UnlearningError, match="has no backbone: pass"):
        MultiTaskModel(MultiTaskModelConfig(tasks=IMAGE_TASKS))
    with pytest.raises(UnlearningError, match="model_type='own', which transformers does not know"):
        MultiTaskModelConfig(backbone={"model_type": "own"}, tasks=IMAGE_TASKS)
    with pytest.raises(UnlearningError, match="'depth' labels pixels and bert reads input_ids"):
        MultiTaskModel.from_backbone(tiny.tiny_bert(), IMAGE_TASKS)
    with pytest.raises(UnlearningError, match="t5 is an encoder with a decoder"):
        MultiTaskModel(MultiTaskModelConfig(backbone=T5Config(), tasks=TEXT_TASKS))
    with pytest.raises(UnlearningError, match="backbone is a Linear: pass a Hub id"):
        MultiTaskModel.from_backbone(nn.Linear(2, 2), IMAGE_TASKS)
    with pytest.raises(UnlearningError, match="revision is for loading"):
        MultiTaskModel.from_backbone(vit, IMAGE_TASKS, revision="main")


def test_refusals_of_folders(tmp_path):
    def saved(name):
        tiny.tiny_bert().bert.save_pretrained(tmp_path / name)
        return tmp_path / name / "model.safetensors"

    with pytest.raises(UnlearningError, match="never run here"):
        MultiTaskModel.from_backbone("me/model", TEXT_TASKS, trust_remote_code=True)
    with pytest.raises(UnlearningError, match="missing' cannot be loaded as a backbone"):
        MultiTaskModel.from_backbone(tmp_path / "missing", TEXT_TASKS)
    weights = saved("partial")
    tensors = load_file(weights)
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UnlearningError, match="no weights for encoder.layer.1.output.dense.weight of BertModel"):
        MultiTaskModel.from_backbone(weights.parent, TEXT_TASKS)
    weights = saved("pickled")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UnlearningError, match="pass a folder or a Hub id with model.safetensors"):
        MultiTaskModel.from_backbone(weights.parent, TEXT_TASKS)


@pytest.mark.slow
def test_config_is_registered():
    config = AutoConfig.for_model("hf_unlearn_multitask", backbone=ViTConfig().to_dict(), tasks=IMAGE_TASKS)
    assert isinstance(config, MultiTaskModelConfig) and isinstance(config.backbone, ViTConfig)
    assert isinstance(config.backbone, PreTrainedConfig) and MultiTaskModelConfig().tasks == {}
    assert isinstance(MultiTaskModel(config).backbone, ViTModel)


# Training


def test_scenes():
    data = scenes(32, seed=3)[:]
    assert torch.equal(data["depth"], scenes(32, seed=3)[:]["depth"])
    assert data["seg"].unique().tolist() == [0, 1, 2] and data["shape"].unique().tolist() == [0, 1]
    assert data["depth"].min() > 0 and data["depth"].max() == WALL
    assert torch.allclose(data["normals"].norm(dim=1), torch.ones(32, 16, 16)) and data["normals"][:, 2].min() > 0
    for name, task in TASKS.items():
        assert torch.equal(stack_labels(list(data[name]), task, name), data[name])
        assert not missing(data[name], task["kind"]).any()


@pytest.mark.slow
def test_dense_tasks_are_learnt():
    torch.manual_seed(0)
    tasks = {name: TASKS[name] for name in ("seg", "depth", "normals")}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    backbone = ViTConfig(image_size=16, patch_size=2, initializer_range=0.1, **size)
    model = MultiTaskModel(MultiTaskModelConfig(backbone=backbone, tasks=tasks))
    train, test = scenes(256, seed=0)[:], scenes(128, seed=1)[:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(12):
        for rows in torch.randperm(256).split(32):
            labels = {name: train[name][rows] for name in tasks}
            model(pixel_values=train["pixel_values"][rows], labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        outputs = model.eval()(pixel_values=test["pixel_values"]).logits
    wall = {  # what is said where nothing but the wall is seen
        "seg": nn.functional.one_hot(torch.zeros_like(test["seg"]), 3).movedim(-1, 1).float(),
        "depth": torch.full_like(test["depth"], WALL),
        "normals": torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand_as(test["normals"]),
    }
    for name, task in tasks.items():
        learnt, naive = (score(sample_counts(said[name], test[name], task).sum(0), task) for said in (outputs, wall))
        assert learnt > naive + 0.15, (name, learnt, naive)
