"""What is installed: the wheel and what it holds, away from the checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from hf_unlearn import UnlearningError, __version__
from hf_unlearn.commands import main
from hf_unlearn.commands.recipes import KINDS, about, copy, recipes

ROOT = Path(__file__).parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
RECIPES = {path.relative_to(ROOT / "recipes").as_posix() for kind in KINDS for path in (ROOT / "recipes").glob(kind)}


def test_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines[: lines.index("")] if line[0] != " "}
    assert named == RECIPES and len(RECIPES) >= 10 and all(len(line) <= 100 for line in lines)
    assert all(len(about(path)) > 20 for path in recipes().values())


def test_a_recipe_is_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "lotus_vit_cifar10"]) == main(["recipes", "copy", "lotus_vit_cifar"]) - 2 == 0
    said = capsys.readouterr()
    assert said.out == "Copied to lotus_vit_cifar10.yaml\n"
    assert said.err == "error: There is no recipe 'lotus_vit_cifar'; did you mean 'lotus_vit_cifar10.yaml'?\n"
    assert (
        copy("accelerate_configs/fsdp2", "new/folder").read_bytes()
        == recipes()["accelerate_configs/fsdp2.yaml"].read_bytes()
    )
    for argv, message in (
        (["lotus_vit_cifar10.yaml"], "lotus_vit_cifar10.yaml is there already; name another folder, or remove it."),
        (["nothing_like_it"], "There is no recipe 'nothing_like_it'; expected one of "),
        ([], "recipes copy names no recipe; expected one of "),
        (["lotus_bert_imdb", "lotus_vit_cifar10.yaml"], "cannot be written"),
    ):
        assert main(["recipes", "copy", *argv]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UnlearningError):
        copy("README", ".")


def test_the_version_is_dated():
    (released,) = re.findall(rf"^## \[{re.escape(__version__)}\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\ndate-released: {released}\n" in citation


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="needs hatchling, of the extra `test`")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_what_the_wheel_holds(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA"))
    package = {path for path in (ROOT / "hf_unlearn").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.relative_to(ROOT).as_posix() for path in package} | {
        f"hf_unlearn/recipes/{name}" for name in RECIPES
    } == names
    assert f"\nVersion: {__version__}\n" in metadata
    assert all(f"\nProject-URL: {name}, {url}\n" in metadata for name, url in URLS.items())
    links = re.findall(r"(?:\]\(|src(?:set)?=\")([^)\"]+)", metadata.split("\n\n", 1)[1])
    assert len(links) > 30 and all(link.startswith(("https://", "#")) for link in links)


@pytest.mark.slow
def test_the_wheel_in_a_clean_environment(wheel, tmp_path):
    """Installed beside nothing of the checkout, it copies a recipe and goes through the quickstart, here with a short training and
    without the method that is there to compare."""
    environment = tmp_path / "environment"
    venv.create(environment)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install", "-qq", "--no-index"]
    subprocess.run([*pip, "--no-deps", str(wheel)], cwd=tmp_path, check=True, capture_output=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # which are not installed again
    code = """
import functools
import hf_unlearn
from pathlib import Path
from hf_unlearn.commands import demo, main
assert Path(hf_unlearn.__file__).is_relative_to(Path("environment").resolve()), hf_unlearn.__file__
from hf_unlearn import metrics
from hf_unlearn.commands.recipe import parse
assert parse(["lotus_vit_cifar10.yaml"])[0].model and Path(metrics.path("rf_jsd")).exists()
demo.run, demo.METHODS = functools.partial(demo.run, epochs=2), ("auto",)
for argv in (["methods", "lotus"], ["quickstart"], ["verify", "quickstart/unlearned"]):
    assert main(argv) == 0, argv
"""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = []
    for command in (["hf-unlearn", "recipes", "copy", "lotus_vit_cifar10"], ["python", "-c", code]):
        command[0] = str(environment / "bin" / command[0])
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == "Copied to lotus_vit_cifar10.yaml\n"
    assert "The audit says: " in said[1] and "quickstart/unlearned/audit.html" in said[1]
    assert "quickstart/unlearned: Verified" in said[1]
