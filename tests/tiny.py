"""Tiny random models, processors and inputs: real architectures, built in milliseconds, without a download.

Every builder is deterministic in `seed`, leaves the global random state alone, and returns a model in eval mode without
dropout, so that two trajectories can be compared to the last bit.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD, UNK, CLS, SEP = range(4)
SENTENCE = "a the cat dog bird fish sees eats likes is was not very good bad red blue big small and"
WORDS = SENTENCE.split()
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
MAX_LENGTH = 32

# With the usual 0.02 a network this narrow gives nearly the same logits for every input.
INITIAL_STD = 0.2

# The arguments that BERT, RoBERTa, ModernBERT, ViT and Llama share.
SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": INITIAL_STD,
}
TEXT = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 2 * MAX_LENGTH, "pad_token_id": PAD}


def _build(model_class: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()


def tiny_resnet(num_labels: int = 4, image_size: int = 16, seed: int = 0, **model_args) -> PreTrainedModel:
    """A timm ResNet-18 with one narrow block a stage, and normalisation statistics as if it had been trained.

    A convolutional network takes any image size; the config only remembers it (`model.config.image_size`, as in ViT).
    """
    narrow = {"layers": [1, 1, 1, 1], "channels": [16, 24, 32, 40], "stem_type": "deep", "stem_width": 8}
    config = TimmWrapperConfig(
        architecture="resnet18",
        model_args=narrow | model_args,
        num_labels=num_labels,
        image_size=image_size,
        initializer_range=INITIAL_STD,
    )
    model = _build(TimmWrapperForImageClassification, config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                # timm starts the last one of a block at zero, and a dead branch would hide what is wrong inside it
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
                module.running_mean.uniform_(-0.2, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.num_batches_tracked.fill_(100)
    return model


def tiny_vit(num_labels: int = 4, image_size: int = 16, seed: int = 0) -> PreTrainedModel:
    config = ViTConfig(image_size=image_size, patch_size=4, num_labels=num_labels, **SIZE)
    return _build(ViTForImageClassification, config, seed)


def tiny_bert(num_labels: int = 3, seed: int = 0) -> PreTrainedModel:
    config = BertConfig(
        num_labels=num_labels, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZE, **TEXT
    )
    return _build(BertForSequenceClassification, config, seed)


def tiny_distilbert(num_labels: int = 3, seed: int = 0) -> PreTrainedModel:
    config = DistilBertConfig(
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        initializer_range=INITIAL_STD,
        num_labels=num_labels,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        **TEXT,
    )
    return _build(DistilBertForSequenceClassification, config, seed)


def tiny_roberta(num_labels: int = 3, seed: int = 0) -> PreTrainedModel:
    config = RobertaConfig(
        num_labels=num_labels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=CLS,
        eos_token_id=SEP,
        **SIZE,
        **TEXT,
    )
    return _build(RobertaForSequenceClassification, config, seed)


def tiny_modernbert(num_labels: int = 3, seed: int = 0) -> PreTrainedModel:
    config = ModernBertConfig(
        num_labels=num_labels,
        bos_token_id=CLS,
        eos_token_id=SEP,
        cls_token_id=CLS,
        sep_token_id=SEP,
        **SIZE,
        **TEXT,
    )
    return _build(ModernBertForSequenceClassification, config, seed)


def tiny_gpt2_classifier(num_labels: int = 3, seed: int = 0) -> PreTrainedModel:
    config = GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=INITIAL_STD,
        n_positions=2 * MAX_LENGTH,
        vocab_size=len(VOCABULARY),
        num_labels=num_labels,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=CLS,
        eos_token_id=SEP,
        pad_token_id=PAD,
    )
    return _build(GPT2ForSequenceClassification, config, seed)


def tiny_llama_lm(seed: int = 0, tie_word_embeddings: bool = False) -> PreTrainedModel:
    config = LlamaConfig(
        num_key_value_heads=2,
        bos_token_id=CLS,
        eos_token_id=SEP,
        tie_word_embeddings=tie_word_embeddings,
        **SIZE,
        **TEXT,
    )
    return _build(LlamaForCausalLM, config, seed)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, `[CLS] ... [SEP]` around the text; words outside `WORDS` become `[UNK]`."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=MAX_LENGTH,
    )


def tiny_image_processor(image_size: int = 16, **settings) -> ViTImageProcessor:
    """Resizes to `image_size`, rescales to [0, 1] and normalises to [-1, 1]."""
    size = {"height": image_size, "width": image_size}
    return ViTImageProcessor(
        **({"size": size, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]} | settings)
    )


def random_inputs(model: PreTrainedModel, batch_size: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of the kind that the model takes, in its dtype; the texts are padded to different lengths."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        shape = (batch_size, 3, model.config.image_size, model.config.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64).to(model.dtype)}
    length = 12
    input_ids = torch.randint(len(SPECIAL_TOKENS), len(VOCABULARY), (batch_size, length), generator=generator)
    lengths = torch.randint(4, length + 1, (batch_size, 1), generator=generator)
    attention_mask = (torch.arange(length) < lengths).long()
    return {"input_ids": input_ids.masked_fill(attention_mask == 0, PAD), "attention_mask": attention_mask}
