"""What is the same if it is made of the same: patterns as keys of functions made for them."""

from __future__ import annotations

from typing import Any


class Keyed:
    """Equal to others of its kind with the same key, and hashable."""

    _key: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)
