"""Which cases of a parametrised test are quick enough for `make test-fast`."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(fast: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """All values as parameters of a test, marked as slow but for `fast`, which stand for the others."""
    values, fast = list(values), list(fast)
    assert fast and all(value in values for value in fast), fast
    return [
        value
        if value in fast
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]
