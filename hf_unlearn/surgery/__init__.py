"""One-shot edits of the weights, and what they are made of: who reads an activation, and its class means."""

from .damp import damp_edit, damp_probe
from .operators import find_plan
from .ssd import ssd_edit

__all__ = ["damp_edit", "damp_probe", "find_plan", "ssd_edit"]
