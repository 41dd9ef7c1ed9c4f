"""the recipes that come with the library, and a copy of one to change: recipes [copy NAME [FOLDER]]"""

import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import UnlearningError
from .text import command_parser, listed

KINDS = ("*.yaml", "*.py", "accelerate_configs/*.yaml")


def main(argv: Sequence[str]) -> None:
    parser = command_parser("recipes", __doc__)
    parser.add_argument(
        "what", nargs="?", choices=("copy",), help="copy: write one to a folder; without it all are listed"
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="as it is listed, with or without what follows its dot"
    )
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", default=".", help="default: this one; made where it is missing"
    )
    options = parser.parse_args(argv)
    if options.what is None:
        print("\n".join(listed([(name, about(path)) for name, path in recipes().items()])))
        print("\nA copy to change: hf-unlearn recipes copy NAME")
    elif options.name is None:
        raise UnlearningError(f"recipes copy names no recipe; expected one of {', '.join(recipes())}.")
    else:
        print(f"Copied to {copy(options.name, options.folder)}")


def recipes() -> dict[str, Path]:
    """Every recipe by its name: of the installed package, or of the checkout that this is."""
    package = Path(__file__).parents[1]
    folder = next(at for at in (package / "recipes", package.parent / "recipes") if at.is_dir())
    return {path.relative_to(folder).as_posix(): path for kind in KINDS for path in sorted(folder.glob(kind))}


def about(path: Path) -> str:
    """What a recipe says of itself first."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.strip('#" ').rstrip(".")


def copy(name: str, folder: str) -> Path:
    """Copy a recipe to a folder, over nothing that is there; gives where it lies."""
    known = recipes()
    meant = {at.rpartition(".")[0]: at for at in known} | {at: at for at in known}
    if name not in meant:
        near = difflib.get_close_matches(name, meant, n=1)
        hint = f"did you mean {meant[near[0]]!r}?" if near else f"expected one of {', '.join(known)}."
        raise UnlearningError(f"There is no recipe {name!r}; {hint}")
    source = known[meant[name]]
    target = Path(folder, source.name)
    if target.exists():
        raise UnlearningError(f"{target} is there already; name another folder, or remove it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(source, target))
    except OSError as error:
        raise UnlearningError(f"{target} cannot be written: {error.strerror}; name another folder.") from error
