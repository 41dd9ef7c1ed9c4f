"""What a model may be given as."""

import os
from collections.abc import Callable
from typing import TypeAlias

from torch import nn

# The model itself (a `PreTrainedModel`, a `PeftModel`, or one of the user's own), a Hub id or a local folder.
ModelOrName: TypeAlias = nn.Module | str | os.PathLike[str]
# One that is only read when it is needed: also a function that returns a model.
ModelSource: TypeAlias = ModelOrName | Callable[[], nn.Module]
