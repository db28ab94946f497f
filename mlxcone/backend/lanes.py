"""Working on part of a batch: which lanes, and how to take and put them back.

Sub-batches are padded to powers of two by repeating a lane, so that shapes repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx


def where_true(mask: mx.array) -> list[int]:
    """Lanes where a boolean array (B,) holds; evaluates it."""
    holds: Any = mask.tolist()
    return [lane for lane, here in enumerate(holds) if here]


def all_true(mask: mx.array) -> bool:
    """Whether a boolean array holds everywhere; False where transforms left it no values."""
    try:
        return bool(mx.all(mask).item())
    except (RuntimeError, ValueError):
        return False


def few(mask: mx.array) -> list[int] | None:
    """Lanes where a boolean array (B,) does not hold if they are less than half of the batch.

    None if they are more, or if transforms left it no values.
    """
    try:
        others = where_true(mx.logical_not(mask))
    except (RuntimeError, ValueError):
        return None
    return others if 2 * len(others) < mask.shape[0] else None


def bucket(lanes: Iterable[int], total: int) -> mx.array:
    """Indices of the lanes, padded to a power of two or to all of them."""
    chosen = list(lanes)
    size = 1
    while size < len(chosen):
        size *= 2
    size = min(size, max(total, len(chosen)))
    return mx.array(chosen + chosen[:1] * (size - len(chosen)), dtype=mx.int32)


def some(lanes: list[int], total: int) -> mx.array | None:
    """`bucket`, or None for all lanes, which `pick`, `take` and `put` then leave where they are."""
    return None if lanes == list(range(total)) else bucket(lanes, total)


def pick(array: mx.array, lanes: mx.array | None) -> mx.array:
    """Some lanes of an array."""
    return array if lanes is None else array[lanes]


def take(tree: Any, lanes: mx.array | None) -> Any:
    """The lanes of a tuple whose fields all carry every lane."""
    return tree if lanes is None else _like(tree, [field[lanes] for field in tree])


def each(tree: Any, change: Callable[[mx.array], mx.array]) -> Any:
    """A tuple or list of arrays, or of such, with every array changed."""
    if isinstance(tree, mx.array):
        return change(tree)
    return _like(tree, [each(part, change) for part in tree])


def _like(tree: Any, parts: list[Any]) -> Any:
    """The parts as such a tuple or list."""
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def take_tree(tree: Any, lanes: mx.array) -> Any:
    """`take` for tuples and lists of such, too."""
    return each(tree, lambda array: array[lanes])


def put(array: mx.array, lanes: mx.array | None, values: mx.array) -> mx.array:
    """A copy of ``array`` with some lanes replaced."""
    if lanes is None:
        return values
    if array.size == 0:
        return array
    # A copy first: item assignment on a NamedTuple's field would reach its other holders.
    copy = mx.array(array)
    copy[lanes] = values
    return copy


def put_tree(tree: Any, lanes: mx.array, values: Any) -> Any:
    """`put` for every array of a NamedTuple, or of one inside of it."""
    if isinstance(tree, mx.array):
        return put(tree, lanes, values)
    return type(tree)(*(put_tree(a, lanes, v) for a, v in zip(tree, values, strict=True)))
