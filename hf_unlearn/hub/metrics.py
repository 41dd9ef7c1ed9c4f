"""Metrics of this package as Spaces of the Hub, which `evaluate.load("NAMESPACE/NAME")` reads."""

import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd

from .. import metrics
from ..errors import UnlearningError
from .client import client, retry, telling
from .names import MAIN
from .repository import Repository, as_meant, blobs_of
from .weights import files_in

OURS = re.compile(r"from hf_unlearn\.metrics\.(\w+) import")


def write_space(name: str, repo_id: str, folder: str | Path) -> Path:
    """Write what the Space `repo_id` of a metric holds: its module with the pure functions beside it, so that it works
    without this package; its card, its page and its requirements."""
    folder = Path(folder)
    shutil.copytree(metrics.path(name), folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    script = folder / f"{name}.py"
    (folder / "functional.py").write_text(_functions_of(script.read_text()))
    for path in (script, folder / "README.md"):
        text = OURS.sub("from .functional import", path.read_text())
        text = text.replace(f'hf_unlearn.metrics.path("{name}")', f'"{repo_id}"')
        path.write_text(re.sub(r"^ *>>> import hf_unlearn\n", "", text, flags=re.MULTILINE))
    return folder


def _functions_of(script: str) -> str:
    """The files of pure functions that a metric's script imports as one, because `evaluate` fetches none that they import."""
    files = [Path(metrics.__file__).with_name(f"{name}.py") for name in ("checks", *OURS.findall(script))]
    return "\n\n".join(
        re.sub(r"^from \.checks import .*\n", "", file.read_text(), flags=re.MULTILINE) for file in files
    )


def push_metric(name: str, repo_id: str, token: str | None = None, private: bool | None = None) -> str:
    """Push a metric to the Hub as a Space, created if it does not exist; gives its address.

    Args:
        name: avg_gap, jsd, rf_jsd, uis or unlearning_mia.
        repo_id: `NAMESPACE/NAME`, with the metric's own name: that is the script `evaluate.load` looks for.
        token: default: the one of the login.
        private: of a new Space; default: as the namespace has it.
    """
    metrics.path(name)
    if repo_id.count("/") != 1 or repo_id.split("/")[1] != name:
        raise UnlearningError(
            f"The repository is {repo_id!r}; expected NAMESPACE/{name}, because evaluate.load looks for a script with the "
            "name of the repository."
        )
    with telling(f"The metric {name} was not pushed to {repo_id}"), tempfile.TemporaryDirectory() as folder:
        space = Repository(client(token), repo_id, "space")
        write_space(name, repo_id, folder)
        retry(space.api.create_repo, repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        start = space.head(MAIN)
        additions = [CommitOperationAdd(file, Path(folder, file)) for file in files_in(Path(folder))]
        meant = as_meant(space.tree(start)) | {add.path_in_repo: blobs_of(add) for add in additions}
        space.commit(MAIN, additions, f"The metric {name} of hf_unlearn", start, meant)
    return f"{space.api.endpoint}/spaces/{repo_id}"
