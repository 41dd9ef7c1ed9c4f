"""print the versions of everything that matters, for a bug report"""

import importlib.metadata
import platform
from collections.abc import Sequence

from .. import __version__
from .text import command_parser

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "timm", "huggingface_hub")


def main(argv: Sequence[str]) -> None:
    command_parser("env", __doc__).parse_args(argv)
    import torch

    versions = {"hf_unlearn": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    if torch.cuda.is_available():
        versions["device"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        versions["device"] = "mps" if torch.backends.mps.is_available() else "cpu"
    for name, version in versions.items():
        print(f"- {name}: {version}")
