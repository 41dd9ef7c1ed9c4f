"""One thread, here and in every process that a test starts: the same bits in each, and nobody waits for a busy core.

And no test reaches the real Hub: the clients, which read these variables when they are imported, are given the address
of a local one, which answers where a test asks for the fixture `hub`.
"""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

gc.disable()  # until the tests begin: all that is imported stays, and to look through it again and again takes seconds

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tests.hub.server import WRITER, LocalHub, Port  # noqa: E402

PORT = Port()
HOME = tempfile.mkdtemp(prefix="hf-home-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE"):
    os.environ.pop(name, None)
os.environ |= {"HF_ENDPOINT": PORT.url, "HF_HOME": HOME, "HF_HUB_DISABLE_XET": "1"}
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


atexit.register(gc.unfreeze)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Every run ends in a gc.collect(), which takes a twentieth of a second over all that is imported by now."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """An empty local Hub that the test may write to; clients do not wait between their tries."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with PORT.serving(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def unlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at some samples of every set before the run, so that a poisoned set comes as far as training."""
    monkeypatch.setattr("hf_unlearn.training.reading.check_samples", lambda *_: None)
