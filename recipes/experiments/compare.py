"""What `hf-unlearn choose` and `hf-unlearn compare` print for a small ResNet on digits, as docs/compare.md shows it."""

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path

import datasets
import torch
from study import record

from hf_unlearn import commands
from hf_unlearn.commands.demo import train
from hf_unlearn.data.digits import load_digits
from hf_unlearn.models.small import small_resnet

DOCS = Path(__file__).parents[2] / "docs"
KNOWN = ["--original-epochs", "30", "--original-learning-rate", "2e-3", "--base-model", "scratch"]


def saved(folder: Path) -> list[str]:
    """The original and its request, in files; what names them on the command line."""
    data = load_digits(0)
    everything = torch.utils.data.ConcatDataset([data["forget"], data["retain"]])
    train(small_resnet(0), everything, 30, 0, folder / "training").save_pretrained(folder / "resnet")
    for name, samples in data.items():
        columns = {column: values.numpy() for column, values in samples.columns.items()}
        features = datasets.Features(
            pixel_values=datasets.Array3D(columns["pixel_values"].shape[1:], "float32"), labels=datasets.Value("int64")
        )
        datasets.Dataset.from_dict(columns, features=features).with_format("torch").save_to_disk(str(folder / name))
    return [str(folder / "resnet"), *(word for name in data for word in (f"--{name}", str(folder / name)))]


def printed(*argv: str) -> str:
    """What a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if commands.main(argv):
            raise SystemExit(f"hf-unlearn {argv[0]} failed")
    return out.getvalue().strip()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = [*saved(folder), *KNOWN]
        texts = {
            command: printed(command, *request, *more)
            for command, more in (("choose", []), ("compare", ["--output", str(folder / "compare")]))
        }
        found = json.loads((folder / "compare" / "compare.json").read_text())
        shutil.copy(folder / "compare" / "compare.svg", DOCS / "compare.svg")
        texts["compare"] = texts["compare"].replace(f"{folder}/", "")
    record("compare", {"texts": texts, "original": found["original"], "rows": found["rows"]})
