"""What the arguments of a layer must be."""

from __future__ import annotations

import math


def positive(name: str, value: float) -> float:
    """The value, if it is a positive number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return float(value)


def size(name: str, value: int) -> int:
    """The value, if it can be a size."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return value
