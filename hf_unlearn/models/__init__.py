"""Models: what kind they are, loading and saving them, their weights and adapters."""

from .find import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    IMAGE_PROCESSOR,
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    check_token,
    commit_of,
    explain,
    find_file,
    folder_of,
    hub_is_reachable,
    split_revision,
)
from .kinds import (
    View,
    architecture_family,
    attends,
    base_of,
    batchnorm_modules,
    check_single_label,
    embedding_of,
    finds_end_by_padding,
    image_channels,
    in_head,
    inputs,
    limits,
    max_tokens,
    num_labels,
    pretrained,
    reading_features,
    task_of,
    vocabulary,
    width,
)
from .load import (
    load_model,
    load_processor,
    load_weights,
    task_of_named,
)
from .weights import (
    digest_tensors,
    keep_unpacked,
    own_memory,
    save_model,
    weights_digest,
)
