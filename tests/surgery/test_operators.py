"""Which operators read which activation, on real architectures."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

from hf_unlearn import UnlearningError
from hf_unlearn.surgery.operators import example_inputs, find_plan
from hf_unlearn.surgery.plan import Plan
from tests import tiny

SIZE = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 32, "patch_size": 8, "num_labels": 4}
TEXT = {"vocab_size": 50, "num_labels": 3, "pad_token_id": 0}


def timm_model(architecture: str, **model_args) -> PreTrainedModel:
    config = TimmWrapperConfig(architecture=architecture, num_labels=4, model_args=model_args)
    return TimmWrapperForImageClassification(config)


def resnet(*depths: int) -> PreTrainedModel:
    config = ResNetConfig(depths=depths, hidden_sizes=[16, 24, 32, 40], embedding_size=8, num_labels=4)
    return ResNetForImageClassification(config)


def vit(depth: int) -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(num_hidden_layers=depth, **SIZE, **IMAGE))


def bert(depth: int) -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(num_hidden_layers=depth, **SIZE, **TEXT))


def llama() -> PreTrainedModel:
    return LlamaForSequenceClassification(LlamaConfig(num_hidden_layers=6, **SIZE, **TEXT))


class PlainConfig(PreTrainedConfig):
    model_type = "plain"


class Plain(PreTrainedModel):
    """Convolutions one after the other, in no list, and a branch that leads nowhere."""

    config_class, main_input_name = PlainConfig, "pixel_values"

    def __init__(self, config: PlainConfig):
        super().__init__(config)
        self.one, self.two, self.three = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 3)
        self.unused, self.classifier = nn.Conv2d(4, 4, 1), nn.Linear(6, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        z = self.one(pixel_values).relu()
        self.unused(z)
        z = self.three(self.two(z).relu()).relu().mean(dim=(2, 3))
        return ImageClassifierOutput(logits=self.classifier(z))


def in_one_list() -> PreTrainedModel:
    """The same with everything in one `nn.Sequential`, the classifier too."""
    model = Plain(PlainConfig(num_labels=4))
    layers = [
        model.one,
        nn.ReLU(),
        model.two,
        nn.ReLU(),
        model.three,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        model.classifier,
    ]
    model.net = nn.Sequential(*layers)
    del model.one, model.two, model.three, model.unused, model.classifier
    model.forward = lambda pixel_values: ImageClassifierOutput(logits=model.net(pixel_values))
    return model


def plan_of(model: PreTrainedModel, **kwargs) -> Plan:
    return find_plan(model.eval(), example_inputs(model), **kwargs)


def names(plan: Plan) -> list[list[str]]:
    """The operators of every stage."""
    stages = [[] for _ in range(plan.stages)]
    for reading in plan.readings:
        stages[reading.stage - 1] += [operator.name for operator in reading.operators]
    return stages


def qkv(prefix: str, *children: str) -> list[str]:
    return [f"{prefix}.{child}" for child in children]


VIT_QKV = ("q_proj", "k_proj", "v_proj")
BERT_QKV = ("query", "key", "value")
STAGES: dict[str, tuple[Callable[[], PreTrainedModel], list[list[str]], str | None]] = {
    "timm resnet18": (
        lambda: timm_model("resnet18"),
        [["timm_model.layer1.0.conv1"]]
        + [[f"timm_model.layer{i}.0.conv1", f"timm_model.layer{i}.0.downsample.0"] for i in (2, 3, 4)]
        + [["timm_model.fc"]],
        None,
    ),
    "timm resnet50": (
        lambda: timm_model("resnet50"),
        [[f"timm_model.layer{i}.0.conv1", f"timm_model.layer{i}.0.downsample.0"] for i in (1, 2, 3, 4)]
        + [["timm_model.fc"]],
        None,
    ),
    "resnet": (
        lambda: resnet(2, 1, 1, 2),
        [qkv(f"resnet.encoder.stages.{i}.layers.0", "layer.0.convolution", "shortcut.convolution") for i in range(4)]
        + [["classifier.1"]],
        None,
    ),
    "vit of 12": (
        lambda: vit(12),
        [qkv(f"vit.layers.{i}.attention", *VIT_QKV) for i in (2, 5, 7, 10)] + [["classifier"]],
        "first",
    ),
    "vit of 6": (
        lambda: vit(6),
        [qkv(f"vit.layers.{i}.attention", *VIT_QKV) for i in (1, 2, 4, 5)] + [["classifier"]],
        "first",
    ),
    "vit of 2": (lambda: vit(2), [qkv("vit.layers.1.attention", *VIT_QKV), ["classifier"]], "first"),
    "vit of 1": (lambda: vit(1), [["classifier"]], "first"),
    "timm vit": (
        lambda: timm_model("vit_tiny_patch16_224", depth=5, embed_dim=24, num_heads=2),
        [[f"timm_model.blocks.{i}.attn.qkv"] for i in (1, 2, 3, 4)] + [["timm_model.head"]],
        "first",
    ),
    "deit": (
        lambda: DeiTForImageClassification(DeiTConfig(num_hidden_layers=2, **SIZE, **IMAGE)),
        [qkv("deit.layers.1.attention", *VIT_QKV), ["classifier"]],
        "first",
    ),
    "deit of two heads": (
        lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(num_hidden_layers=2, **SIZE, **IMAGE)),
        [qkv("deit.layers.1.attention", *VIT_QKV), ["cls_classifier", "distillation_classifier"]],
        "first",
    ),
    "swin": (
        lambda: SwinForImageClassification(
            SwinConfig(image_size=224, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], num_labels=4)
        ),
        [qkv(f"swin.encoder.layers.{i}.blocks.0.attention", *VIT_QKV) for i in range(4)] + [["classifier"]],
        "all",
    ),
    "convnext": (
        lambda: ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], image_size=64, num_labels=4)
        ),
        [["convnext.encoder.stages.0.layers.0.pwconv1"]]
        + [[f"convnext.encoder.stages.{i}.downsampling_layer.1"] for i in (1, 2, 3)]
        + [["classifier"]],
        None,
    ),
    "mobilenet": (
        lambda: MobileNetV2ForImageClassification(
            MobileNetV2Config(num_labels=4, depth_multiplier=0.35, image_size=64)
        ),
        [[f"mobilenet_v2.layer.{i}.expand_1x1.convolution"] for i in (2, 6, 9, 13)]
        + [["mobilenet_v2.conv_1x1.convolution", "classifier"]],
        None,
    ),
    "gates": (  # squeeze and excitation in the first block
        lambda: timm_model("mobilenetv3_small_050"),
        [[f"timm_model.blocks.{i}"] for i in ("0.0.conv_pw", "2.0.conv_pw", "3.0.conv_pw", "5.0.conv")]
        + [["timm_model.conv_head", "timm_model.classifier"]],
        None,
    ),
    "bert of 6": (
        lambda: bert(6),
        [qkv(f"bert.encoder.layer.{i}.attention.self", *BERT_QKV) for i in (1, 2, 4, 5)]
        + [["bert.pooler.dense", "classifier"]],
        "first",
    ),
    "distilbert": (
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(n_layers=3, dim=24, n_heads=2, hidden_dim=32, **TEXT)
        ),
        [qkv(f"distilbert.transformer.layer.{i}.attention", "q_lin", "k_lin", "v_lin") for i in (1, 2)]
        + [["pre_classifier", "classifier"]],
        "first",
    ),
    "modernbert": (tiny.tiny_modernbert, [["model.layers.1.attn.Wqkv"], ["head.dense", "classifier"]], "first"),
    "gpt2": (
        lambda: GPT2ForSequenceClassification(GPT2Config(n_layer=3, n_embd=24, n_head=2, **TEXT)),
        [["transformer.h.1.attn.c_attn"], ["transformer.h.2.attn.c_attn"], ["score"]],
        "last",
    ),
    "llama": (
        llama,
        [qkv(f"model.layers.{i}.self_attn", *VIT_QKV) for i in (1, 2, 4, 5)] + [["score"]],
        "last",
    ),
    "plain": (lambda: Plain(PlainConfig(num_labels=4)), [["two"], ["three"], ["classifier"]], None),
    "in one list": (in_one_list, [["net.2"], ["net.4"], ["net.7"]], None),
}


@pytest.mark.parametrize("family", STAGES)
def test_stages(family: str):
    build, expected, tokens = STAGES[family]
    plan = plan_of(build())
    assert names(plan) == expected
    assert plan.tokens == tokens
    heads = [operator.name for reading in plan.readings if reading.is_head for operator in reading.operators]
    assert heads == (expected[-1] if "two heads" in family else expected[-1][-1:])
    modules = dict(build().named_modules())
    for reading in plan.readings:
        for operator in reading.operators:
            assert operator.module.weight.shape == modules[operator.name].weight.shape


def test_operators_of_one_reading_read_the_same_tensor():
    model = vit(2)
    plan = plan_of(model)
    seen = {}
    for reading in plan.readings:
        for operator in reading.operators:
            operator.module.register_forward_pre_hook(lambda module, args: seen.update({module: args[0]}))
    model(**example_inputs(model))
    for reading in plan.readings:
        tensors = [seen[operator.module] for operator in reading.operators]
        assert all(tensor is tensors[0] for tensor in tensors)


def test_a_shortcut_with_a_pool_of_its_own_is_a_reading_of_its_own():
    plan = plan_of(timm_model("resnet26d"))
    second = [[o.name for o in reading.operators] for reading in plan.readings if reading.stage == 2]
    assert second == [["timm_model.layer2.0.conv1"], ["timm_model.layer2.0.downsample.1"]]


def test_batchnorm_behind_a_convolution():
    plan = plan_of(resnet(1, 1, 1, 1))
    operator = plan.readings[0].operators[0]
    assert operator.norm_name == "resnet.encoder.stages.0.layers.0.layer.0.normalization"
    assert isinstance(operator.norm, nn.BatchNorm2d)
    assert plan.readings[-1].operators[0].norm is None
    assert all(o.norm is None for reading in plan_of(vit(2)).readings for o in reading.operators)


def test_readers_of_the_residual_sum():
    plan = plan_of(vit(6), readers="all_residual")
    assert names(plan)[0] == [*qkv("vit.layers.1.attention", *VIT_QKV), "vit.layers.1.mlp.fc1"]
    second = names(plan)[1]
    assert second == [
        *qkv("vit.layers.2.attention", *VIT_QKV),
        "vit.layers.2.mlp.fc1",
        *qkv("vit.layers.3.attention", *VIT_QKV),
        "vit.layers.3.mlp.fc1",
    ]
    assert names(plan)[-1] == ["classifier"]
    convolutions = plan_of(resnet(3, 1, 1, 1), readers="all_residual")
    assert names(convolutions)[0] == [
        "resnet.encoder.stages.0.layers.0.layer.0.convolution",
        "resnet.encoder.stages.0.layers.0.shortcut.convolution",
        "resnet.encoder.stages.0.layers.1.layer.0.convolution",
        "resnet.encoder.stages.0.layers.2.layer.0.convolution",
    ]


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5, 8, 20])
def test_number_of_stages(stages: int):
    plan = plan_of(vit(8), stages=stages)
    assert plan.stages == min(stages, 8)
    blocks = [round(8 * k / plan.stages) for k in range(1, plan.stages)]
    assert [stage[0] for stage in names(plan)[:-1]] == [f"vit.layers.{b}.attention.q_proj" for b in blocks]


def test_stages_by_hand():
    model = vit(4)
    plan = plan_of(model, stages=[["vit.layers.2.mlp.fc1", "vit.layers.2.mlp.fc2"], ["classifier"]])
    assert names(plan) == [["vit.layers.2.mlp.fc1", "vit.layers.2.mlp.fc2"], ["classifier"]]
    assert [len(reading.operators) for reading in plan.readings] == [1, 1, 1]  # fc1 and fc2 read different tensors
    assert plan.tokens == "first"
    with pytest.raises(UnlearningError, match="name 'vit.layernorm', which is no linear layer or convolution"):
        plan_of(model, stages=[["vit.layernorm"], ["classifier"]])


def test_what_is_passed_over_is_said():
    plan = plan_of(STAGES["convnext"][0]())
    assert plan.notes == [
        "convnext.encoder.stages.0.layers.0.dwconv and 4 more are passed over (grouped convolutions, which mix no channels, or "
        "gates): the operators behind are edited in their place."
    ]
    assert plan_of(vit(2)).notes == []
    narrow = {"depth_multiplier": 0.25, "image_size": 32}
    first, second = MobileNetV1Config(**narrow), MobileNetV2Config(**narrow)
    for model in (MobileNetV1ForImageClassification(first), MobileNetV2ForImageClassification(second)):
        (note,) = plan_of(model).notes
        assert "passed over (grouped convolutions" in note


def test_a_head_that_attends_to_all_tokens_reads_them_all():
    args = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}
    config = TimmWrapperConfig(architecture="vit_base_patch16_siglip_224", num_labels=3, model_args=args)
    model = TimmWrapperForImageClassification(config).eval()
    plan = find_plan(model, {"pixel_values": torch.randn(1, 3, 32, 32)})
    assert plan.tokens == "all" and "timm_model.attn_pool.kv" in names(plan)[-1]


def test_a_norm_behind_two_convolutions_is_nobody_s():
    model = Plain(PlainConfig(num_labels=4))
    model.two, model.three, model.norm = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(4)

    def forward(pixel_values: torch.Tensor) -> ImageClassifierOutput:
        z = model.norm(model.two(model.norm(model.one(pixel_values)).relu()))
        return ImageClassifierOutput(logits=model.classifier(model.three(z.relu()).relu().mean(dim=(2, 3))))

    model.forward = forward
    operators = [operator for reading in plan_of(model).readings for operator in reading.operators]
    assert "two" in [operator.name for operator in operators] and not any(operator.norm for operator in operators)


def test_shared_layers_are_refused():
    config = AlbertConfig(num_hidden_layers=4, embedding_size=16, **SIZE, **TEXT)
    with pytest.raises(
        UnlearningError, match=r"is used 4 times in one forward pass.*give the stages by hand: stages="
    ):
        plan_of(AlbertForSequenceClassification(config))


def test_logits_that_do_not_depend_on_the_input():
    model = Plain(PlainConfig(num_labels=4))
    model.forward = lambda pixel_values: ImageClassifierOutput(logits=torch.zeros(len(pixel_values), 4))
    with pytest.raises(UnlearningError, match="does not follow the data of Plain .* give the stages by hand"):
        plan_of(model)


def test_stages_by_hand_where_autograd_does_not_follow():
    model = Plain(PlainConfig(num_labels=4))
    forward = model.forward
    model.forward = torch.no_grad()(forward)
    stages = [["two"], ["three"], ["classifier"]]
    plan = plan_of(model, stages=stages)
    assert names(plan) == stages and [reading.is_head for reading in plan.readings] == [False, False, True]
    assert plan.tokens == "all"
    with pytest.raises(UnlearningError, match="name 'unused2', which is no linear layer"):
        plan_of(model, stages=[["unused2"], ["classifier"]])
    with pytest.raises(UnlearningError, match="not in the order of the data"):
        plan_of(model, stages=[["classifier"], ["two"]])
    model.two, model.three = nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 6, 3)
    with pytest.raises(UnlearningError, match="'two', a grouped convolution"):
        plan_of(model, stages=[["two"], ["classifier"]])
    model.two = model.one = nn.Conv2d(3, 3, 3)
    model.unused, model.three = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 6, 3)
    with pytest.raises(UnlearningError, match="one is used more than once"):
        plan_of(model, stages=[["one"], ["classifier"]])
    decoder = llama()
    decoder.forward = torch.no_grad()(decoder.forward)
    qkv_names = qkv("model.layers.1.self_attn", *VIT_QKV)
    plan = plan_of(decoder, stages=[qkv_names, ["score"]])
    assert names(plan) == [qkv_names, ["score"]] and len(plan.readings) == 2 and plan.tokens == "last"


def test_stages_by_hand_that_make_no_sense():
    model = Plain(PlainConfig(num_labels=4))
    with pytest.raises(UnlearningError, match="name 'two' twice; expected every operator in one stage"):
        plan_of(model, stages=[["two"], ["two"], ["classifier"]])
    with pytest.raises(UnlearningError, match="not in the order of the data"):
        plan_of(model, stages=[["classifier"], ["two"]])


def test_a_head_is_what_gives_the_logits():
    model = Plain(PlainConfig(num_labels=4))
    classifier, forward = model.classifier, model.forward
    model.classifier = nn.Linear(6, 9)  # features for a product with fixed vectors, which is no module
    vectors = torch.randn(9, 4)
    model.forward = lambda pixel_values: ImageClassifierOutput(logits=forward(pixel_values).logits @ vectors)
    assert not any(reading.is_head for reading in plan_of(model).readings)
    model.classifier = classifier


def test_a_text_model_with_a_float_mask():
    model, inputs = tiny.tiny_bert(), tiny.random_inputs(tiny.tiny_bert())
    plan = find_plan(model, inputs | {"attention_mask": inputs["attention_mask"].float()})
    assert names(plan) == names(find_plan(model, inputs))


def test_a_network_of_nothing_but_its_classifier():
    model = Plain(PlainConfig(num_labels=4))
    model.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    del model.one, model.two, model.three, model.unused, model.classifier
    model.forward = lambda pixel_values: ImageClassifierOutput(logits=model.net(pixel_values))
    inputs = {"pixel_values": torch.randn(1, 3, 2, 2)}
    with pytest.raises(UnlearningError, match="No stages are found in Plain; give the stages by hand"):
        find_plan(model, inputs)
    assert names(find_plan(model, inputs, stages=[["net.1"]])) == [["net.1"]]


def test_too_few_stages():
    with pytest.raises(UnlearningError, match="stages is 0; expected 1 or more"):
        plan_of(vit(2), stages=0)


@pytest.mark.parametrize("build", [tiny.tiny_resnet, tiny.tiny_vit, tiny.tiny_bert, tiny.tiny_gpt2_classifier])
def test_the_model_is_left_as_it_was(build: Callable[[], PreTrainedModel]):
    model = build().train()
    next(model.parameters()).requires_grad = False
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    find_plan(model, tiny.random_inputs(model))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0] and parameter.grad is None
        assert torch.equal(parameter, before[name][1])
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_padded_texts_of_a_decoder():
    model = tiny.tiny_gpt2_classifier()
    inputs = tiny.random_inputs(model)
    with torch.no_grad():
        assert find_plan(model, inputs).tokens == "last"
    inputs["attention_mask"][0, 1:] = 0
    inputs["input_ids"][0, 1:] = model.config.pad_token_id
    assert find_plan(model, inputs).tokens == "last"  # though the first text is read at its first token


def test_a_language_model_is_no_classifier():
    model = tiny.tiny_llama_lm()
    with pytest.raises(UnlearningError, match="logits of 3 dimensions; expected a classifier's"):
        plan_of(model)


def test_attention_that_projects_by_itself_is_named():
    model = Plain(PlainConfig(num_labels=4))
    model.attention = nn.MultiheadAttention(8, 2)
    assert any("attention projects queries, keys and values by itself" in note for note in plan_of(model).notes)


def test_as_text():
    text = str(plan_of(resnet(1, 1, 1, 1)))
    assert "1  resnet.encoder.stages.0.layers.0.layer.0.convolution  Conv2d, before resnet.encoder" in text
    assert text.splitlines()[-1] == "5  classifier.1  Linear (4, 40)  head"
    assert str(plan_of(vit(2))).splitlines()[-1] == "The head reads the first token."
