"""One-shot edits of the weights, and what they are made of: who reads an activation, and its class means."""

from .. import methods  # noqa: F401, I001  (first: the method table imports the modules of this package)
from .damp import damp_edit
from .operators import find_plan
from .ssd import ssd_edit

__all__ = ["damp_edit", "find_plan", "ssd_edit"]
