"""The README as it goes on PyPI, where links into the repository must be whole addresses."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(\]\(|src=\"|srcset=\")(?!https?://|#)([^)\"#\s]+)")


def whole_links(text: str, source: str, root: Path) -> str:
    """`text` with every path below `root` that it links to as an address in the repository at `source`."""

    def whole(found: re.Match[str]) -> str:
        before, path = found.groups()
        if not (root / path).exists():
            raise ValueError(f"README.md links to {path}, which is not there")
        kind = "raw" if "src" in before else "tree" if (root / path).is_dir() else "blob"
        return f"{before}{source}/{kind}/main/{path.rstrip('/')}"

    return LINK.sub(whole, text)


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        text = whole_links(text, metadata["urls"]["Source"], root)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
