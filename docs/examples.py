"""`Example:` in a docstring is a section of examples, as `Examples:` is. An extension of griffe, which reads the docstrings."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
