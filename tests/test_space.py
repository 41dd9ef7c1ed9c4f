"""The Space that audits, with a Hub of its own, and opened in a browser."""

import importlib.util
import json
import time
import zipfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hf_unlearn import UnlearningArguments, unlearn
from hf_unlearn.data.digits import load_digits
from hf_unlearn.hub import prepare
from hf_unlearn.models.small import small_resnet
from hf_unlearn.models.weights import save_model
from tests.browser import CHROMIUM, Browser
from tests.releases import publish

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SPLITS = ("forget", "retain", "unseen")
BOX = """((label, text) => {
    const box = [...document.querySelectorAll('label')].find(one => one.innerText.startsWith(label)).querySelector('input, textarea');
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), 'value').set.call(box, text);
    box.dispatchEvent(new Event('input', {bubbles: true}));
})"""
CLICK = "(text => [...document.querySelectorAll('button')].find(one => one.innerText.trim() == text && one.offsetParent).click())"
TAB = "[...document.querySelectorAll('button[role=tab]')].find(one => one.innerText.trim() == 'A release').click()"
SHOWN = "document.querySelector('%s')?.innerText ?? ''"


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("gradio", reason="needs gradio, of the extra `space`")
    spec = importlib.util.spec_from_file_location("audit_space", ROOT / "spaces/audit/app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release of a run of one step, and the original in a folder beside it."""
    folder, sizes = tmp_path_factory.mktemp("run"), {"forget": 40, "retain": 80, "unseen": 160}
    sets = {name: [load_digits()[name][i] for i in range(sizes[name])] for name in SPLITS}
    model = small_resnet()
    save_model(model, folder / "original")
    args = UnlearningArguments(
        str(folder / "args"), max_steps=1, report_to="none", disable_tqdm=True, save_strategy="no"
    )
    result = unlearn(model, **sets, method="finetune", args=args)
    prepare(result, folder / "release", report=result.audit())
    rows = {
        name: [{key: value.tolist() for key, value in row.items()} for row in those] for name, those in sets.items()
    }
    for name, those in rows.items():
        datasets.Dataset.from_list(those).to_parquet(folder / f"data/data/{name}.parquet")
    return folder


@pytest.fixture
def there(hub, release):
    publish(hub, "me/before", release / "original")
    publish(hub, "me/after", release / "release")
    data = {f"data/{name}.parquet": (release / f"data/data/{name}.parquet").read_bytes() for name in SPLITS}
    splits = [{"split": name, "path": f"data/{name}.parquet"} for name in SPLITS]
    card = json.dumps({"configs": [{"config_name": "default", "data_files": splits}]})
    hub.put("me/digits", data | {"README.md": f"---\n{card}\n---\n".encode()}, kind="datasets")
    return hub


def test_two_models_of_the_hub(app, there):
    said, page = app.audit_two("me/before", " me/after@main", "me/digits", *SPLITS)
    assert said.startswith("## ") and "What now" in said
    assert page.startswith("<iframe sandbox ") and "40</data> forgotten samples" in page.replace("&lt;", "<").replace(
        "&gt;", ">"
    )


def test_what_cannot_be_done_is_one_sentence(app, there, release):
    for given, message in (
        ((str(release / "original"), "me/after", "me/digits", *SPLITS), "expected the name of a model on the Hub"),
        (("../me/x", "me/after", "me/digits", *SPLITS), "expected the name of a model on the Hub"),
        (("me/none", "me/after", "me/digits", *SPLITS), "is not a public model on the Hub"),
        (("me/before", "me/after@gone", "me/digits", *SPLITS), "or not at that revision"),
        (("me/before", "me/after", "me/digits", "forget", "", "unseen"), "The retain samples have no split"),
        (("me/before", "me/after", "me/digits", "forget", "retain", "new"), "the dataset has forget, retain, unseen"),
        (("", "me/after", "me/digits", *SPLITS), "expected the name of a model"),
    ):
        said, page = app.audit_two(*given)
        assert (
            said.startswith("### That did not work\n\n") and message in said.replace("\\", "") and page == app.NOTHING
        )
        assert said.count("\n") == 2 and "Traceback" not in said


def test_models_and_data_are_small(app, there, monkeypatch):
    for limit, what in (("MODEL", "The original me/before"), ("DATA", "The dataset me/digits")):
        with monkeypatch.context() as patch:
            patch.setattr(app, limit, 1000)
            assert f"{what} has" in app.audit_two("me/before", "me/after", "me/digits", *SPLITS)[0].replace("\\", "")


def test_pictures_that_are_paths_are_not_opened(app, there, release):
    secret = release / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    alone, empty, held = (
        {"bytes": b, "path": p} for b, p in ((None, str(secret)), (b"", str(secret)), (secret.read_bytes(), None))
    )
    pictures = datasets.Image()
    for value, kind, refused in (
        (alone, None, True),
        (alone, pictures, True),
        (empty, None, True),
        (empty, pictures, True),
        ([held], datasets.List(pictures), True),  # what lies deeper is not looked at
        (held, pictures, False),
    ):
        data = datasets.Dataset.from_list([{"image": value, "label": 0}])
        data = data.cast_column("image", kind) if kind else data
        data.to_parquet(release / "paths.parquet")
        there.put("me/paths", {"data/forget.parquet": (release / "paths.parquet").read_bytes()}, kind="datasets")
        said, _ = app.audit_two("me/before", "me/after", "me/paths", *["train"] * 3)
        assert ("samples name files in the column 'image', which this Space does not open" in said) == refused, said


def zipped(folder: Path, target: Path, **others: bytes) -> str:
    with zipfile.ZipFile(target, "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, Path("release") / path.relative_to(folder))
        for name, content in others.items():
            archive.writestr(name, content)
    return str(target)


def test_a_release_and_its_receipt(app, hub, release, tmp_path):
    files = [str(path) for path in (release / "release").iterdir()]
    said, page = app.check_release(files)
    assert (
        said.startswith("### The release fits its receipt")
        and "has not repeated" in said
        and "<iframe sandbox" in page
    )
    assert app.check_release([zipped(release / "release", tmp_path / "a.zip")])[0].startswith("### The release fits")
    changed = tmp_path / "metrics.json"
    changed.write_text((release / "release/metrics.json").read_text().replace("before", "after_", 1))
    said, _ = app.check_release([str(changed), *(file for file in files if not file.endswith("metrics.json"))])
    assert said.startswith("### The release does not fit its receipt")


def test_uploads_that_are_no_release(app, hub, release, tmp_path, monkeypatch):
    (tmp_path / "model.pkl").write_bytes(b"x")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    (tmp_path / "config.json").write_text("{}")
    for files, message in (
        (None, "No file was given"),
        ([str(tmp_path / "model.pkl")], "is no file of a release"),
        ([str(tmp_path / "broken.zip")], "cannot be read as a zip"),
        ([str(tmp_path / "config.json")], "holds no unlearning_receipt.json"),
        ([zipped(release / "release", tmp_path / "out.zip", **{"../../evil.json": b"{}"})], "leads out of it"),
        ([zipped(release / "release", tmp_path / "code.zip", **{"model.py": b""})], "is no file of a release"),
    ):
        said, page = app.check_release(files)
        assert message in said.replace("\\", "") and page == app.NOTHING, said
    monkeypatch.setattr(app, "UPLOAD", 1000)
    assert "That is more than" in app.check_release([str(p) for p in (release / "release").iterdir()])[0]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser(app, there, release, tmp_path, monkeypatch):
    monkeypatch.undo()  # of the fixture `hub`, by which nobody sleeps: a server that never sleeps takes all of the core
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    browser = Browser(tmp_path / "profile")
    try:
        for width in (390, 1280):
            browser.open(url, width=width)
            browser.wait_for(
                "!!document.querySelector('#said') || document.body.innerText.includes('Split of unseen')"
            )
            for label, text in (
                ("Original", "me/before"),
                ("Unlearned", "me/after"),
                ("Dataset", "me/digits" if width > 390 else "no"),
            ):
                browser.evaluate(f"{BOX}({json.dumps(label)}, {json.dumps(text)})")
            time.sleep(0.2)
            browser.evaluate(f"{CLICK}('Audit')")
            browser.wait_for(f"/What now|did not work/.test({SHOWN % '#said'})")
            assert ("What now" in browser.evaluate(SHOWN % "#said")) == (width > 390)
            if width > 390:
                browser.wait_for("document.querySelector('iframe')?.srcdoc.startsWith('<!doctype html>')")
                time.sleep(0.5)  # in which the frame is drawn
            browser.picture(tmp_path / f"{width}.png")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            browser.evaluate(TAB)
            browser.wait_for(
                "[...document.querySelectorAll('button')].some(one => one.innerText == 'Check' && one.offsetParent)"
            )
            browser.picture(tmp_path / f"release-{width}.png")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            asked = [
                e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"
            ]
            assert [one for one in asked if not one.startswith((url, "data:", "blob:", "about:"))] == []
    finally:
        browser.close()
        app.gr.close_all()
