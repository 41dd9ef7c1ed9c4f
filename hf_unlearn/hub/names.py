"""The files of a release by their names: what may be pushed, and what each is for."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

CARD, RECEIPT, METRICS = "README.md", "unlearning_receipt.json", "metrics.json"
AUDIT, AUDIT_PAGE = "audit.json", "audit.html"
# Those that `models` and `methods.base` name too; the commands of this package do without importing torch for them.
CONFIG = "unlearning_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

# All that a release is made of. Whatever else lies in the folder stays there: checkpoints, optimizer states, pickles.
SHARDS = "model-*-of-*.safetensors"
WEIGHT_FILES = (WEIGHTS, SHARDS, ADAPTER_WEIGHTS)
VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "tekken.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "*.spm", "normalizer.json"),
)
PROCESSORS = (
    *VOCABULARIES,
    *("preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "chat_template.json"),
)
CONFIGS = ("config.json", "generation_config.json", ADAPTER_CONFIG, WEIGHTS_INDEX)
EVIDENCE = (CONFIG, RECEIPT, METRICS, AUDIT, AUDIT_PAGE)
LEGAL = ("LICENSE*", "NOTICE*", "COPYING*")
RELEASED = (*WEIGHT_FILES, *PROCESSORS, *CONFIGS, *EVIDENCE, *LEGAL, CARD)


def is_released(name: str) -> bool:
    """Whether a file of this path may be pushed; PEFT has a folder of the adapter's name for each adapter."""
    *folders, file = name.split("/")
    if folders:
        is_adapter = file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG)
        return is_adapter and len(folders) == 1 and not folders[0].startswith(("_", "checkpoint-"))
    return fits(file, RELEASED)


def fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
