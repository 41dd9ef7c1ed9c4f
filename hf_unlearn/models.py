"""What kind of model is this; load it, and save it so that transformers and timm can both read it."""

import functools
import hashlib
import inspect
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import safetensors.torch
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .errors import UnlearningError
from .multitask_model import MultiTaskModel

# A task is told by what the name of the model's class contains: GPT2LMHeadModel, DeiTForImageClassificationWithTeacher.
HEADS = {
    "image-classification": ("ForImageClassification",),
    "text-classification": ("ForSequenceClassification",),
    "causal-lm": ("ForCausalLM", "LMHeadModel"),
    "multi-task": (MultiTaskModel.__name__,),
}
AUTO_CLASSES = {
    "image-classification": AutoModelForImageClassification,
    "text-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
    "multi-task": AutoModel,
}

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
IMAGE_PROCESSOR = "preprocessor_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)

# What timm has to know of an architecture to load and feed it. The rest of its `pretrained_cfg` (where weights were
# downloaded, their licence and paper) is about weights that a model built from a config never had.
TIMM_INPUT_KEYS = (
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "pool_size",
    "first_conv",
    "classifier",
)
TIMM_PREFIX = "timm_model."

# Attention between tokens is in classes named *Attention* or *Attn*; these only pool, or reweight channels and places.
ATTENTION_NAMES = ("Attention", "Attn", "XCA")
REWEIGHTING_NAMES = (
    "Channel",
    "Spatial",
    "Strip",
    "Coord",
    "SelectiveKernel",
    "Split",
    "NonLocal",
    "Bilinear",
    "ConvAtt",
    "Pool2d",
    "PoolLatent",
    "PoolPrr",
)

# What goes wrong between a name and a model, beside a mistake in the code.
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, EntryNotFoundError, SafetensorError, httpx.HTTPError)


def task_of(model_or_config: nn.Module | PreTrainedConfig) -> str:
    """One of "image-classification", "text-classification", "causal-lm" and "multi-task", from the head that the model
    has."""
    if isinstance(model_or_config, PreTrainedConfig):
        names = model_or_config.architectures or []
        if not names and model_or_config.model_type == "timm_wrapper":
            return "image-classification"  # a config exported by timm names its architecture, not a class
    else:
        names = [cls.__name__ for cls in type(base_of(model_or_config)).__mro__]
    for name in names:
        for task, heads in HEADS.items():
            if any(head in name for head in heads):
                return task
    known = ", ".join(f"*{head}" for heads in HEADS.values() for head in heads)
    raise UnlearningError(
        f"{names[0] if names else 'A config without `architectures`'} has no head that can be unlearned: "
        f"expected a class such as {known}; load the model with one of these heads (or pass task=)."
    )


def num_labels(model: nn.Module) -> int:
    """The number of classes of a classifier; 0 for a model that is none."""
    return base_of(model).config.num_labels if task_of(model) in ("image-classification", "text-classification") else 0


def check_single_label(model: nn.Module) -> None:
    """Refuses classifiers whose targets are not exactly one class out of two or more; what is no classifier passes."""
    if task_of(model) not in ("image-classification", "text-classification"):
        return
    name, config = type(base_of(model)).__name__, base_of(model).config
    if config.problem_type not in (None, "single_label_classification"):
        raise UnlearningError(
            f"{name} has problem_type={config.problem_type!r}, and unlearning works on single-label classification: "
            'train with problem_type="single_label_classification" and one class per sample.'
        )
    if config.num_labels < 2:
        raise UnlearningError(
            f"{name} has num_labels={config.num_labels}, which transformers treats as regression, and unlearning needs "
            "two classes or more: pass a classifier with num_labels >= 2."
        )


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    task: str | None = None,
    num_labels: int | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Loads a model from the Hub or a local folder, written by transformers or by timm, from safetensors only.

    Args:
        name_or_path: A Hub id (`owner/name`) or a folder.
        revision: Branch, tag or commit on the Hub.
        task: Which head to load; read from the config when left out.
        num_labels: Asks for a fresh head of this size where the checkpoint has none or one of another size. Without
            it, every weight must come from the checkpoint.
        kwargs: For `from_pretrained`: `dtype`, `attn_implementation`, `device_map`, `token`, `cache_dir`, ...
    """
    name = os.fspath(name_or_path)
    if kwargs.pop("trust_remote_code", False):
        raise UnlearningError(
            f"{name!r} was given with trust_remote_code=True, but code from a repository is never run here: "
            "use an architecture that transformers or timm has."
        )
    if task is not None and task not in AUTO_CLASSES:
        raise UnlearningError(f"task={task!r} is unknown: pass one of {', '.join(AUTO_CLASSES)}.")
    _check_no_revision(name, revision)
    kwargs |= _reachable(name)
    where = {"revision": revision} | {
        key: kwargs[key] for key in ("token", "cache_dir", "subfolder", "local_files_only") if key in kwargs
    }
    try:
        _check_holds_model(name, where)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        _mend_config(name, config, num_labels)
        model_class = AUTO_CLASSES[task or task_of(config)]
        _check_has_weights(name, where)
        model, info = model_class.from_pretrained(
            name,
            config=config,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **kwargs,
        )
    except UnlearningError:
        raise
    except _LOAD_ERRORS as error:
        raise UnlearningError(explain(error, name, revision)) from error
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if num_labels is not None:
        absent = {key for key in absent if not in_head(model, key)}
    if absent:
        raise UnlearningError(
            f"{name!r} has no fitting weights for {_few(absent)} of {type(model).__name__}, which would stay random: "
            + (
                "pass a trained model."
                if num_labels is not None
                else "pass a trained model, or num_labels= for a fresh head."
            )
        )
    own_memory(model)
    model.config._commit_hash = _commit_of(name, where)  # as transformers did before version 5
    return model


def commit_of(name_or_path: str | os.PathLike[str], revision: str | None = None) -> str | None:
    """The commit at which a revision of a Hub repository is now; None of a folder, or where there is no model."""
    name = os.fspath(name_or_path)
    if os.path.isdir(name):
        return None
    try:
        path = find_file(name, "config.json", {"revision": revision} | _reachable(name))
    except _LOAD_ERRORS:
        return None
    return path and Path(path).parent.name  # in the cache: snapshots/COMMIT/config.json


def folder_of(model: nn.Module) -> str | None:
    """The local folder that a model was loaded from; None of one that was not."""
    name = getattr(getattr(base_of(model), "config", None), "name_or_path", None)
    return os.path.realpath(name) if name and os.path.isdir(name) else None


def hub_is_reachable() -> bool:
    """Whether anything listens at the address of the Hub, or of the proxy before it.

    Where nothing does, its client tries for 23 seconds to read one file, and again for the next.
    """
    url, proxies = urlsplit(constants.ENDPOINT), getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname):
        url = urlsplit(proxy)
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), timeout=5).close()
    except OSError:
        return False
    return True


def _reachable(name: str) -> dict[str, bool]:
    """The argument of the Hub's client that makes it read its cache only, where it would wait for nobody."""
    read_on = os.path.isdir(name) or constants.HF_HUB_OFFLINE or hub_is_reachable()
    return {} if read_on else {"local_files_only": True}


def _check_no_revision(name: str, revision: str | None) -> None:
    if revision is not None and os.path.isdir(name):
        raise UnlearningError(
            f"{name!r} is a local folder and {revision!r} a revision, which only repositories of the Hub have; leave it out, or "
            "give a Hub id."
        )


def split_revision(name: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The name and the revision of `OWNER/NAME@REVISION`; a folder has none.

    >>> split_revision("me/vit@unlearned/request-42")
    ('me/vit', 'unlearned/request-42')
    """
    if os.path.exists(name) or "@" not in str(name):
        return str(name), None
    repo, revision = str(name).split("@", 1)
    return repo, revision


def load_processor(
    name_or_path: str | os.PathLike[str], model: nn.Module, revision: str | None = None
) -> BaseImageProcessor | PreTrainedTokenizerBase | None:
    """The image processor or the tokenizer, whichever the model's task needs, or None where there is none."""
    name = os.fspath(name_or_path)
    offline = _reachable(name)
    where = {"revision": revision} | offline
    try:
        if image_channels(model) is None:
            # Without a vocabulary AutoTokenizer makes up an empty tokenizer instead of failing.
            if not any(find_file(name, file, where) for file in TOKENIZER_FILES):
                return None
            return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **offline)
        if find_file(name, IMAGE_PROCESSOR, where):
            # Named, because in a local folder AutoImageProcessor prefers timm's entry in config.json to this file.
            return AutoImageProcessor.from_pretrained(
                name, revision=revision, trust_remote_code=False, image_processor_filename=IMAGE_PROCESSOR, **offline
            )
        config = find_file(name, "config.json", where)
        if config is None or "pretrained_cfg" not in json.loads(Path(config).read_text()):
            return None
        return AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False, **offline)
    except _LOAD_ERRORS as error:
        raise UnlearningError(explain(error, name, revision)) from error


def save_model(
    model: PreTrainedModel | PeftModel, folder: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Saves weights (safetensors) and config; of a `PeftModel` its adapters, of a plain torch module the weights.

    A timm model is saved under timm's own names, so that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads
    it as well as `from_pretrained` does, whether it was built from a config or loaded from either library.

    Args:
        model: The unwrapped model.
        folder: Where to; made if it does not exist, and weights of an earlier save in it are replaced.
        state_dict: The weights, when they had to be gathered from several processes.
    """
    folder = Path(folder)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), state_dict=state_dict)
        return
    if not isinstance(model, PreTrainedModel):
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(model, str(folder / WEIGHTS))
        return
    (folder / WEIGHTS_INDEX).unlink(missing_ok=True)  # of an earlier save: save_pretrained removes only its shards
    if not _is_timm(model.config):
        model.save_pretrained(folder, state_dict=state_dict)
        return
    state_dict = model.state_dict() if state_dict is None else state_dict
    state_dict = {key.removeprefix(TIMM_PREFIX): tensor for key, tensor in state_dict.items()}
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size="1000GB")  # timm reads a single file
    path = folder / "config.json"
    path.write_text(json.dumps(_timm_readable(json.loads(path.read_text()), model), indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def load_weights(model: PreTrainedModel | PeftModel, folder: str | os.PathLike[str]) -> None:
    """Loads what `save_model` or `save_pretrained` wrote into this very model, bit for bit, and strictly.

    The keys in a file need not be the keys of the model: transformers renames, splits and merges weights when it loads
    and undoes it when it saves. So `from_pretrained` reads a second copy, and that one is copied over. Of a `PeftModel`
    the adapters that the folder holds are loaded. What requires a gradient stays as it is.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UnlearningError(f"{str(folder)!r} is no folder: pass one that save_model or save_pretrained wrote.")
    if isinstance(model, PeftModel):
        _load_adapters(model, folder)
        return
    if not isinstance(model, PreTrainedModel):
        try:
            safetensors.torch.load_model(model, folder / WEIGHTS)
        except _LOAD_ERRORS as error:
            raise UnlearningError(explain(error, str(folder), None)) from error
        return
    if (folder / ADAPTER_CONFIG).is_file():
        # from_pretrained would follow the adapter to its base model and load that instead.
        raise UnlearningError(
            f"{str(folder)!r} holds a PEFT adapter, and {type(model).__name__} has none: pass a folder with whole "
            "weights, or the PeftModel that the adapter belongs to."
        )
    try:
        dtypes, saved_dtypes = _floating_dtypes(model.state_dict().values()), _floating_dtypes(_saved_tensors(folder))
        if dtypes != saved_dtypes:
            raise UnlearningError(
                f"{str(folder)!r} was saved in {_few(map(str, saved_dtypes))} and the model is in "
                f"{_few(map(str, dtypes))}: build the model with the dtype= that was saved."
            )
        saved, info = type(model).from_pretrained(
            folder,
            config=model.config,
            # It casts to one dtype: in the widest that the model has, no bit of any weight is lost.
            dtype=functools.reduce(torch.promote_types, dtypes),
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except UnlearningError:
        raise
    except _LOAD_ERRORS as error:
        raise UnlearningError(explain(error, str(folder), None)) from error
    _check_keys(folder, info["missing_keys"], info["unexpected_keys"])
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        raise UnlearningError(
            f"{str(folder)!r} has {key} with shape {tuple(found)} where the model has {tuple(expected)}: "
            "pass a folder that was saved from this model."
        )
    model.load_state_dict(saved.state_dict())


@torch.no_grad()
def own_memory(model: nn.Module) -> None:
    """Copies weights on a CPU out of the memory-mapped file in which `from_pretrained` leaves them.

    There they start at any address, and kernels then add in another order: the same weights and inputs give logits that
    differ in the last bit. They also change when the file is overwritten in place.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def batchnorm_modules(model: nn.Module) -> list[nn.Module]:
    """Every BatchNorm layer, timm's fused norm-and-activation ones and SyncBatchNorm included."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def weights_digest(model: nn.Module) -> str:
    """The digest of all tensors in the state dict."""
    return digest_tensors(sorted(model.state_dict().items()))


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, given in the order of their names.

    Files are not hashed: sharding and metadata change files, not weights.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # numpy has no bfloat16, and a tensor without dimensions cannot be viewed as bytes before it is flattened
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def architecture_family(model: nn.Module) -> Literal["convolutional", "transformer"]:
    """Whether anything attends over tokens ("transformer") or else convolves images ("convolutional").

    Attention that only pools or reweights channels (CLIP's ResNets, squeeze-and-excitation) leaves a network
    convolutional. What does neither, such as a recurrent language model, is trained like a transformer.
    """
    modules = list(base_of(model).modules())
    if any(attends(module) for module in modules) or not any(isinstance(module, nn.Conv2d) for module in modules):
        return "transformer"
    return "convolutional"


def attends(module: nn.Module) -> bool:
    """Whether a module is attention between tokens."""
    name = type(module).__name__
    return isinstance(module, nn.MultiheadAttention) or (
        any(word in name for word in ATTENTION_NAMES) and not any(word in name for word in REWEIGHTING_NAMES)
    )


def inputs(model: nn.Module) -> set[str]:
    """The names of what the model is called with."""
    return set(inspect.signature(_network(model).forward).parameters)


def limits(model: nn.Module) -> dict[str, Any]:
    """What the model can read, for a `Collator`."""
    return {
        "image_channels": image_channels(model),
        "max_tokens": max_tokens(model),
        "accepts": inputs(model),
        "vocabulary": vocabulary(model),
    }


def vocabulary(model: nn.Module) -> int | None:
    """The number of tokens that a model of texts knows."""
    network = _network(model)
    try:
        embeddings = network.get_input_embeddings() if isinstance(network, PreTrainedModel) else None
    except NotImplementedError:  # of a class of the user's own
        embeddings = None
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else None


def finds_end_by_padding(model: nn.Module) -> bool:
    """Whether a classifier reads the last token before the padding, which it knows by `config.pad_token_id` alone."""
    forward = inspect.unwrap(type(base_of(model)).forward)
    return task_of(model) == "text-classification" and "pad_token_id" in forward.__code__.co_names


def max_tokens(model: nn.Module) -> int | None:
    """The longest text that the model has positions for."""
    config = getattr(_network(model), "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa counts positions from behind the padding token
    return positions - config.pad_token_id - 1 if positions and "roberta" in config.model_type else positions


def width(model: nn.Module) -> int:
    """The number of features of a transformer's tokens."""
    model = _network(model)
    config = getattr(model, "config", None)
    return model.timm_model.num_features if _is_timm(config) else getattr(config, "hidden_size", 768)


@contextmanager
def reading_features(model: nn.Module, num_labels: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, `read(logits)` gives what the head has read in the forward pass of these logits, a row for each sample.

    The head is the layer that ran last of those with an output for each class. Where it is applied to every token of a
    text, the row is that of the token whose output the logits are.
    """
    passed: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        passed.update(inputs=inputs[0].detach(), output=output.detach())

    def read(logits: Tensor) -> Tensor:
        if not passed:
            raise UnlearningError(
                f"{type(base_of(model)).__name__} has no layer that makes {num_labels} logits of features; expected a "
                "classifier that ends in a linear layer."
            )
        features, output = passed["inputs"], passed["output"]
        if output.ndim == 3:
            token = (output == logits.to(output.dtype)[:, None]).all(dim=-1).int().argmax(dim=1)
            features = features[torch.arange(len(features), device=features.device), token]
        return features.flatten(1).to(torch.promote_types(features.dtype, torch.float32))

    outputs = ("out_features", "out_channels")
    layers = [
        module
        for name, module in model.named_modules()
        if "lora_" not in name and num_labels in [getattr(module, o, None) for o in outputs]
    ]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def image_channels(model: nn.Module) -> int | None:
    """The number of colour channels that an image model reads; None for a model of texts."""
    model = _network(model)
    if getattr(model, "main_input_name", None) == "input_ids":
        return None
    if _is_timm(getattr(model, "config", None)):
        return model.timm_model.pretrained_cfg["input_size"][0]
    return getattr(getattr(model, "config", None), "num_channels", 3)


def base_of(model: nn.Module) -> nn.Module:
    """The model without adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _network(model: nn.Module) -> nn.Module:
    """What reads the inputs."""
    model = base_of(model)
    return model.backbone if isinstance(model, MultiTaskModel) else model


def _is_timm(config: PreTrainedConfig | None) -> bool:
    return config is not None and config.model_type == "timm_wrapper"


def _few(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _check_keys(folder: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    for keys, problem in ((missing, "lacks"), (unexpected, "has, beyond what the model has,")):
        if keys:
            raise UnlearningError(
                f"{str(folder)!r} {problem} {_few(keys)}: pass a folder that was saved from this model."
            )


def find_file(name: str, filename: str, where: Mapping[str, Any]) -> str | None:
    """The path of one file of a local folder or a Hub repository, or None where it does not have it."""
    if os.path.isdir(name):
        path = os.path.join(name, where.get("subfolder") or "", filename)
        return path if os.path.isfile(path) else None
    try:
        return hf_hub_download(name, filename, **where)
    except LocalEntryNotFoundError:
        # The Hub did not answer. A repository in the cache still answers, for the files that it has.
        cached = {key: where[key] for key in ("revision", "cache_dir") if key in where}
        if isinstance(try_to_load_from_cache(name, "config.json", **cached), str):
            return None
        raise
    except EntryNotFoundError:
        return None


def _commit_of(name: str, where: Mapping[str, Any]) -> str | None:
    """The commit of a model that was just loaded from the Hub, by its place in the cache; None of a local folder."""
    if os.path.isdir(name) or where.get("subfolder"):
        return None
    cached = {key: where[key] for key in ("revision", "cache_dir") if key in where}
    path = try_to_load_from_cache(name, "config.json", **cached)
    return Path(path).parent.name if isinstance(path, str) else None


def _check_holds_model(name: str, where: Mapping[str, Any]) -> None:
    if find_file(name, ADAPTER_CONFIG, where):
        raise UnlearningError(
            f"{name!r} holds a PEFT adapter and not a model: load its base model, then "
            f"PeftModel.from_pretrained(base, {name!r}), and pass that."
        )
    if find_file(name, "config.json", where) is None:
        if find_file(name, f"unlearn/{ADAPTER_CONFIG}", where):
            raise UnlearningError(
                f"{name!r} holds the adapter of an unlearned model: load its base model, then PeftModel.from_pretrained(base, "
                f'{name!r}, subfolder="unlearn"), with the revision if there is one, and pass that.'
            )
        raise UnlearningError(f"{name!r} holds no model (no config.json): pass a folder or Hub id of a saved model.")


def _check_has_weights(name: str, where: Mapping[str, Any]) -> None:
    if find_file(name, WEIGHTS, where) is None and find_file(name, WEIGHTS_INDEX, where) is None:
        raise UnlearningError(
            f"{name!r} has no {WEIGHTS}, and pickled weights are never loaded: convert them once, where you trust "
            "them, with from_pretrained(..., use_safetensors=False) and save_pretrained (timm: save_for_hf(..., "
            "safe_serialization=True)), and pass the new folder."
        )


def _floating_dtypes(tensors: Iterable[Tensor]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def _saved_tensors(folder: Path) -> Iterator[Tensor]:
    _check_has_weights(str(folder), {})
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        files = sorted(set(json.loads((folder / WEIGHTS_INDEX).read_text())["weight_map"].values()))
    for file in files:
        with safe_open(folder / file, framework="pt") as tensors:
            yield from (tensors.get_tensor(key) for key in tensors.keys())  # noqa: SIM118  (it is no dictionary)


def _mend_config(name: str, config: PreTrainedConfig, num_labels: int | None) -> None:
    """Makes a config fit for `from_pretrained`: the number of classes is said once, and it is the one asked for."""
    if _is_timm(config) and config.model_args:
        # timm exports the number of classes here as well, and TimmWrapper would pass it to timm twice.
        config.model_args.pop("num_classes", None)
    if num_labels is not None and num_labels != config.num_labels:
        config.num_labels = num_labels
    if config.num_labels == 0:
        raise UnlearningError(f"{name!r} is a backbone without a head: pass num_labels= for a fresh one.")


def in_head(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight may be fresh in a model that gets a new head; encoders are published without their pooler."""
    if _is_timm(model.config):
        classifiers = model.timm_model.pretrained_cfg.get("classifier") or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
        return any(key.startswith(f"{TIMM_PREFIX}{classifier}.") for classifier in classifiers)
    return not key.startswith(f"{model.base_model_prefix}.") or "pooler" in key.split(".")


def _timm_readable(config: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """The config.json of a TimmWrapper as timm can read it too."""
    if config.get("model_args") is None:
        config.pop("model_args", None)  # timm takes null for a dictionary
    # The names that the file had when it was loaded would otherwise win over those that the model has now.
    config["label_names"] = list(model.config.id2label.values())
    if "pretrained_cfg" not in config:
        config["pretrained_cfg"] = {
            key: model.timm_model.pretrained_cfg[key]
            for key in TIMM_INPUT_KEYS
            if key in model.timm_model.pretrained_cfg
        }
    # These describe the file that was downloaded: a background class to cut off, another file name, another format.
    for key in ("label_offset", "hf_hub_filename", "custom_load"):
        config["pretrained_cfg"].pop(key, None)
    return config


def _load_adapters(model: PeftModel, folder: Path) -> None:
    # PEFT puts the adapter `default` at the top of the folder and each other one in a folder of its name.
    paths = {
        path.parent for path in (folder / ADAPTER_WEIGHTS, *folder.glob(f"*/{ADAPTER_WEIGHTS}")) if path.is_file()
    }
    held = {"default" if path == folder else path.name: path for path in sorted(paths)}
    if not held or not held.keys() <= model.peft_config.keys():
        raise UnlearningError(
            f"{str(folder)!r} holds the adapters {_few(held) or '(none)'}, and the model has {_few(model.peft_config)}: "
            "pass a folder that was saved from this model."
        )
    for name, path in held.items():
        try:
            saved = load_peft_weights(str(path), device="cpu")
            own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
            _check_keys(path, own.keys() - saved.keys(), ())
            result = set_peft_model_state_dict(model, saved, adapter_name=name)
        except (RuntimeError, KeyError, SafetensorError) as error:
            raise UnlearningError(explain(error, str(path), None)) from error
        _check_keys(path, (), result.unexpected_keys)


def explain(error: BaseException, name: str, revision: str | None) -> str:
    """One sentence for what went wrong, found along the chain of causes; the first reason that applies wins."""
    chain, cause = [], error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    answer = next((cause.response.status_code for cause in chain if isinstance(cause, HfHubHTTPError)), None)
    if answer in (401, 403):
        refusal = (
            "may not be read with this token: log in again with `hf auth login`, or pass a token that may read it"
        )
    else:
        refusal = (
            f"cannot be had, because the Hub answers {answer}: check the name, try again later, or pass a local folder"
        )
    reasons: tuple[tuple[Any, str], ...] = (
        (GatedRepoError, "is gated: accept its terms on the Hub and log in with `hf auth login`"),
        (RevisionNotFoundError, f"has no revision {revision!r}: pass a branch, a tag or a commit that it has"),
        (
            RepositoryNotFoundError,
            "is neither a local folder nor a repository that you can read on the Hub: check the spelling, or log in "
            "with `hf auth login` if it is private",
        ),
        (
            HFValidationError,
            "is neither an existing folder nor a Hub id of the form owner/name: check the path",
        ),
        (HfHubHTTPError, refusal),
        (
            (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError),
            "is not in the local cache, and the Hub cannot be reached: check the connection (and HF_HUB_OFFLINE), or "
            "pass a local folder",
        ),
    )
    for kind, reason in reasons:
        if any(isinstance(cause, kind) for cause in chain):
            return f"{name!r} {reason}."
    lines = [line.strip(" \t.") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    what = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{name!r} cannot be loaded: {what}."
