"""A Space that audits two models of the Hub, and holds a release against its receipt: `python app.py`.

Visitors name public models and data; a card that names files elsewhere is refused, no code of a repository is run, only safetensors are
read, no file that a row names is opened, and what is uploaded is small. What cannot be done is told in one sentence.
"""

import html
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a visitor reads what everyone may read, not what the Space's owner may
    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"

import datasets  # noqa: E402
import gradio as gr  # noqa: E402
import pyarrow as pa  # noqa: E402
from huggingface_hub import HfApi  # noqa: E402
from huggingface_hub.errors import HfHubHTTPError  # noqa: E402

from hf_unlearn import AuditReport, UnlearningError, audit  # noqa: E402
from hf_unlearn.commands.sets import drawn, read_set  # noqa: E402
from hf_unlearn.hub import verify  # noqa: E402

MEGABYTE = 2**20
MODEL, DATA, UPLOAD = 1024 * MEGABYTE, 512 * MEGABYTE, 512 * MEGABYTE  # what is read at most
FILES, SAMPLES = 100, 2000  # of a release; of each set
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
SUFFIXES = (".safetensors", ".json", ".md", ".html", ".txt", ".model", "")
NOTHING = "<p>The page of the audit will stand here.</p>"
INTRO = """# What is left of the forgotten samples?

An audit compares a model before and after unlearning on samples that had to go, samples that had to stay, and samples that neither model
was trained on. It is evidence, not a proof of deletion."""


def in_a_sentence(work: Callable[..., tuple[str, str]]) -> Callable[..., tuple[str, str]]:
    """What goes wrong as a sentence in the place of the verdict."""

    @wraps(work)
    def tried(*given: object) -> tuple[str, str]:
        try:
            return work(*given)
        except UnlearningError as error:
            return f"### That did not work\n\n{_plain(str(error))}", NOTHING
        except Exception as error:  # whatever a library says of input that nobody has seen before
            print(f"{type(error).__name__}: {error}", flush=True)
            return f"### That did not work\n\nThis Space could not do it ({type(error).__name__}).", NOTHING

    return tried


@in_a_sentence
def audit_two(original: str, unlearned: str, dataset: str, forget: str, retain: str, unseen: str) -> tuple[str, str]:
    """The verdict, and the page in a frame."""
    models = {"The original": original, "The unlearned model": unlearned}
    before, after = (_known(what, name, MODEL, "model") for what, name in models.items())
    name = _known("The dataset", dataset, DATA, "dataset")
    splits = {"forget": forget, "retain": retain, "unseen": unseen}
    for what, split in splits.items():
        if not split.strip():
            raise UnlearningError(f"The {what} samples have no split; expected one such as train or train[:500].")
    sets = {what: drawn(read_set(f"{name}:{split.strip()}", what), SAMPLES) for what, split in splits.items()}
    for what, data in sets.items():
        _check_no_paths(what, data)
    report = audit(before, after, **sets)
    return _said(report), _page(report)


@in_a_sentence
def check_release(files: list[str] | None) -> tuple[str, str]:
    """What the receipt shows, and the verdict and the page of the release's own audit."""
    if not files:
        raise UnlearningError("No file was given; choose the files of a release, or a zip of its folder.")
    with tempfile.TemporaryDirectory() as work:
        folder = _release([Path(file) for file in files], Path(work) / "release")
        found = verify(folder, max_parent_bytes=MODEL)
        mark = "The release fits its receipt" if found.ok else "The release does not fit its receipt"
        said = f"### {mark}\n\n{_plain(found.line)}"
        written = folder / "audit.json"
        if not written.is_file():
            return f"{said}\n\nIt has no `audit.json`: no audit was made, or none was published.", NOTHING
        report = AuditReport.from_json(written)  # its page is made anew: what was uploaded as one may be anything
        return f"{said}\n\nIts own audit, which this Space has not repeated:\n\n{_said(report)}", _page(report)


def _known(what: str, name: str, most: int, kind: str) -> str:
    """The name, of a public repository on the Hub that is not too large; a model's with its revision."""
    repo, _, revision = name.strip().partition("@")
    if not HUB_ID.fullmatch(repo) or Path(repo).exists() or (kind == "dataset" and revision):
        example = "me/cifar10" if kind == "dataset" else "me/vit, or me/vit@REVISION"
        raise UnlearningError(
            f"{what} is {name.strip()!r}; expected the name of a {kind} on the Hub, such as {example}."
        )
    try:
        info = HfApi().repo_info(repo, revision=revision or None, repo_type=kind, files_metadata=True)
    except HfHubHTTPError as error:
        raise UnlearningError(
            f"{what} {name.strip()} is not a public {kind} on the Hub, or not at that revision."
        ) from error
    files, card = info.siblings or [], getattr(info, "card_data", None)
    if kind == "dataset" and any(map(_is_elsewhere, _strings(card and card.to_dict().get("configs")))):
        raise UnlearningError(f"{what} {repo} names files outside of its repository, which this Space does not read.")
    read = [file.size or 0 for file in files if kind == "dataset" or file.rfilename.endswith(".safetensors")]
    if kind == "model" and not read:
        raise UnlearningError(f"{what} {repo} has no safetensors; nothing else is read here.")
    if sum(read) > most:
        raise UnlearningError(
            f"{what} {repo} has {sum(read) / MEGABYTE:,.0f} MB, and this Space reads {most / MEGABYTE:,.0f}; run "
            "`hf-unlearn audit` on a machine of your own."
        )
    return name.strip()


def _strings(value: Any) -> Iterator[str]:
    """All strings in what a card says, however deep."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(part)


def _is_elsewhere(path: str) -> bool:
    return "://" in path or path.startswith(("/", "~")) or ".." in path


def _check_no_paths(what: str, data: datasets.Dataset) -> None:
    """A row may name a file where it should hold one, and whatever lies there on this machine would be opened."""
    for field in data.with_format("arrow")[:0].schema:
        if not re.search(r"\bpath: ", str(field.type)):
            continue
        column = data.select_columns([field.name]).with_format("arrow")
        if any(_names_files(batch[field.name].combine_chunks()) for batch in column.iter(100)):
            raise UnlearningError(
                f"The {what} samples name files in the column {field.name!r}, which this Space does not open; expected pictures that "
                "the dataset holds, as `push_to_hub` of a dataset writes them."
            )


def _names_files(values: pa.Array) -> bool:
    """Whether a picture is a path alone, without the bytes of its file; of what has pictures deeper down, that it may be."""
    if not pa.types.is_struct(values.type) or values.type.get_field_index("path") < 0:
        return True
    named = values.drop_null().to_pylist()
    return any(row["path"] and not row.get("bytes") for row in named)


def _release(files: list[Path], folder: Path) -> Path:
    """The uploaded files, or those in the uploaded zip, as a folder."""
    folder.mkdir()
    if len(files) == 1 and files[0].suffix == ".zip":
        try:
            with zipfile.ZipFile(files[0]) as archive:
                _unpack(archive, folder)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # broken, locked, of another kind
            raise UnlearningError(
                f"{files[0].name} cannot be read as a zip; make it anew from the release's folder."
            ) from error
        inner = list(folder.iterdir())
        return inner[0] if len(inner) == 1 and inner[0].is_dir() else folder
    _check([(file.name, file.stat().st_size) for file in files])
    for file in files:
        shutil.copy(file, folder / file.name)
    return folder


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    parts = [part for part in archive.infolist() if not part.is_dir()]
    _check([(part.filename, part.file_size) for part in parts])
    for part in parts:
        target = (folder / part.filename).resolve()
        if not target.is_relative_to(folder.resolve()) or stat.S_ISLNK(part.external_attr >> 16):
            raise UnlearningError(
                f"The zip holds {part.filename!r}, which leads out of it; expected a release's folder."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            archive.open(part) as source,
            open(target, "wb") as copy,
        ):  # which checks that the size is the one that was named
            shutil.copyfileobj(source, copy)


def _check(files: list[tuple[str, int]]) -> None:
    other = [name for name, _ in files if Path(name).suffix not in SUFFIXES]
    if other:
        raise UnlearningError(f"{other[0]!r} is no file of a release; expected {', '.join(filter(None, SUFFIXES))}.")
    if len(files) > FILES or sum(size for _, size in files) > UPLOAD:
        raise UnlearningError(
            f"That is more than {FILES} files or {UPLOAD / MEGABYTE:,.0f} MB; run `hf-unlearn verify` on a machine of your own."
        )


def _said(report: AuditReport) -> str:
    verdict = report.verdict
    return f"## {_plain(verdict.plain)}\n\n{_plain(verdict.headline)}\n\n**What now** {_plain(report.next_step)}"


def _page(report: AuditReport) -> str:
    with tempfile.TemporaryDirectory() as work:
        page = report.to_html(Path(work) / "audit.html").read_text(encoding="utf-8")
    return f'<iframe sandbox title="The page of the audit" class="page" srcdoc="{html.escape(page)}"></iframe>'


def _plain(text: str) -> str:
    """As it is: names of repositories are others' words, and Markdown is not to read them."""
    return re.sub(r"([\\*_{}\[\]<>#|$~])", r"\\\1", text)


THEME = gr.themes.Base(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)  # no font from elsewhere
STYLE = """
.page { width: 100%; height: 80vh; border: 1px solid var(--border-color-primary); border-radius: 8px; }
@media (max-width: 40rem) { .page { width: 100vw; margin-left: calc(50% - 50vw); border-width: 1px 0; border-radius: 0; } }
"""


def build() -> gr.Blocks:
    with gr.Blocks(title="Audit of unlearning", analytics_enabled=False, delete_cache=(600, 3600)) as space:
        gr.Markdown(INTRO)
        with gr.Tab("Two models"):
            with gr.Row():
                original = gr.Textbox(label="Original", placeholder="me/vit-cifar10")
                unlearned = gr.Textbox(label="Unlearned", placeholder="me/vit-cifar10@unlearned/request-42")
            dataset = gr.Textbox(label="Dataset", placeholder="me/cifar10")
            with gr.Row():
                forget = gr.Textbox("forget", label="Split of forget samples", info="or a slice: train[:500]")
                retain = gr.Textbox("retain", label="Split of retained samples", info="of the training as well")
                unseen = gr.Textbox("unseen", label="Split of unseen samples", info="in no training, of the same kind")
            ask = gr.Button("Audit", variant="primary")
            outputs = gr.Markdown(elem_id="said"), gr.HTML(NOTHING)
            ask.click(
                audit_two,
                [original, unlearned, dataset, forget, retain, unseen],
                list(outputs),
                api_visibility="private",
            )
        with gr.Tab("A release"):
            gr.Markdown(
                "The files of a release, or a zip of its folder (with an adapter, the zip). They are deleted after about an hour."
            )
            files = gr.File(label="Release", file_count="multiple", file_types=[".zip", *filter(None, SUFFIXES)])
            check = gr.Button("Check", variant="primary")
            shown = gr.Markdown(elem_id="checked"), gr.HTML(NOTHING)
            check.click(check_release, files, list(shown), api_visibility="private")
    return space


def launch(**options: object):
    """Uploads are limited and kept for an hour at most; one audit at a time."""
    space = build().queue(default_concurrency_limit=1, max_size=10)
    return space.launch(
        max_file_size=UPLOAD, css=STYLE, theme=THEME, ssr_mode=False, footer_links=["gradio"], **options
    )


if __name__ == "__main__":
    launch()
