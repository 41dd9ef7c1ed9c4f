"""Links between pages, as they are where a page goes."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = "https://github.com/hf-unlearn/hf_unlearn"
LINK = re.compile(r"(\]\(|(?:src|srcset|href)=\")(?!https?://|mailto:|#)([^)\"#\s]+)")


def relinked(text: str, before: Path, after: Path | None = None) -> str:
    """`text` of a page that moves from one folder to another one of the site, with whole addresses for what is not part of that,
    or for everything if it leaves the site."""

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(before / found[2]))
        if after and target == ROOT / "README.md":
            return found[1] + os.path.relpath(DOCS / "index.md", after)
        if after and target.is_relative_to(DOCS) and not target.is_dir():
            return found[1] + os.path.relpath(target, after)
        kind = "raw" if "src" in found[1] else "tree" if target.is_dir() else "blob"
        return f"{found[1]}{SOURCE}/{kind}/main/{target.relative_to(ROOT).as_posix()}"

    return LINK.sub(link, text)
