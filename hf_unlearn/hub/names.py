"""Names: the files of a release, what may be pushed and what each is for; and repositories, branches and tags."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import UnlearningError

MAIN = "main"
# Not a name that stands for something else: refs/heads/main is main, @ is HEAD, and 40 hexadecimal digits are a commit. The
# rest is git's own rule (git check-ref-format), which holds for each part between slashes; and no quotes, for the card.
PART = r"(?!\.)(?:(?!\.\.|@\{)[^\s~^:?*\[\\/\x00-\x1f\x7f\x22`])+(?<!\.lock)(?<!\.)"
BRANCH = re.compile(rf"(?!refs/|-|(?:HEAD|@|[0-9a-f]{{40}})$){PART}(?:/{PART})*")

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
RELEASED = (*WEIGHT_FILES, *PROCESSORS, *CONFIGS, *EVIDENCE, CARD)
# LICENSE, LICENSE.txt, LICENSE-APACHE-2.0, NOTICE.md: plain text, never LICENSE.pkl nor NOTICE.py.
LEGAL = re.compile(r"(?:LICEN[SC]E|NOTICE|COPYING)(?:[-_][A-Za-z0-9_-]+(?:\.\d+)*)?(?:\.(?:txt|md|rst|LESSER))?")


def is_released(name: str) -> bool:
    """Whether a file of this path may be pushed; PEFT has a folder of the adapter's name for each adapter."""
    *folders, file = name.split("/")
    if folders:
        is_adapter = file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG)
        return is_adapter and len(folders) == 1 and not folders[0].startswith(("_", "checkpoint-"))
    return fits(file, RELEASED) or is_legal(file)


def is_legal(name: str) -> bool:
    """Whether a file is a licence or a notice."""
    return LEGAL.fullmatch(name) is not None


def fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_model_name(name: str) -> bool:
    """Whether this may be the name of a model on the Hub: `OWNER/NAME`, or an old one without an owner, such as gpt2."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_repository(name: str) -> bool:
    """Whether this is `OWNER/NAME` as the Hub allows it."""
    return is_model_name(name) and "/" in name


def check_names(repo_id: str, revision: str | None = None, tag: str | None = None, to_main: bool = False) -> None:
    """Refuse what can be no name of a repository, a branch or a tag, or not this one of a branch."""
    if not is_repository(repo_id):
        raise UnlearningError(f"{repo_id!r} is no name of a repository; expected owner/name, as in me/vit-cifar10.")
    for what, name in (("branch", revision), ("tag", tag)):
        if name is not None and not BRANCH.fullmatch(name):
            raise UnlearningError(f"{name!r} is no name of a {what}; expected one such as unlearned/request-42.")
    if tag is not None and tag in (MAIN, revision):
        raise UnlearningError(f"The tag {tag!r} would have the name of a branch; choose another one.")
    if to_main and revision not in (None, MAIN):
        raise UnlearningError(f"to_main is True and revision is {revision!r}; expected only one of them.")
    if revision == MAIN and not to_main:
        raise UnlearningError(
            "revision is 'main', which a push leaves as it is; pass to_main=True to replace its content."
        )


def is_commit(revision: str) -> bool:
    """Whether this is the whole id of a commit."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None
