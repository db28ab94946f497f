"""Functions that have been in use for a while become compiled graphs.

`mx.compile` joins elementwise operations into kernels that a C++ compiler builds, which takes ten
seconds to minutes and pays only for shapes that come again. So the first solves of a kind run
operation by operation, and compiled once they have taken a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx


class Calls:
    """How the functions of one solve are called; operation by operation without a cache."""

    def __init__(self, compiled: dict[Any, _Compiled] | None = None) -> None:
        self._compiled = compiled

    def call(self, function: Callable[..., Any], fixed: tuple[Hashable, ...], *trees: Any) -> Any:
        """``function(*fixed, *trees)``.

        Args:
            function: looks at no value of an array, and returns a tree.
            fixed: what is part of the graph.
            trees: arrays, or tuples and lists of trees; whatever else they hold is part of the
                graph, too.
        """
        if self._compiled is None:
            return function(*fixed, *trees)
        leaves: list[mx.array] = []
        what = function, fixed, _flatten(trees, leaves)
        # A graph stays on the device that it was made for. Equal devices have different hashes.
        device: Any = mx.default_device()
        key = device.type, what
        if key not in self._compiled:
            self._compiled[key] = _Compiled(*what)
        return self._compiled[key](leaves)


EAGER = Calls()


class Repeated:
    """The compiled functions of one kind of problem, per thread.

    Args:
        after (float): seconds that solves of one shape take before they are compiled; 0 is never.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        self._spent: dict[Hashable, float] = {}
        # Streams and lazy arrays belong to a thread; so do graphs.
        self._local = threading.local()

    @contextmanager
    def solve(self, shape: Hashable) -> Iterator[Calls]:
        """One solve of a shape: how to call its functions."""
        spent, began = self._spent.get(shape, 0.0), time.monotonic()
        if not self._after or spent < self._after:
            yield EAGER
        else:
            if not hasattr(self._local, "compiled"):
                self._local.compiled = {}
            yield Calls(self._local.compiled)
        self._spent[shape] = spent + time.monotonic() - began


class _Compiled:
    """One function, compiled for trees of one layout, with arrays of any shape."""

    def __init__(self, function: Callable[..., Any], fixed: tuple[Hashable, ...], layout: Any):
        self._result: Any = None  # layout of what it returns
        self._works: set[tuple[Any, ...]] = set()

        def flat(leaves: list[mx.array]) -> list[mx.array]:
            out: list[mx.array] = []
            trees = _unflatten(layout, iter(leaves))
            self._result = _flatten(function(*fixed, *trees), out)
            return out

        self._eager, self._graph = flat, mx.compile(flat)

    def __call__(self, leaves: list[mx.array]) -> Any:
        shapes = tuple((a.shape, a.dtype) for a in leaves)
        if shapes in self._works:
            return self._rebuilt(self._graph(leaves))
        try:
            out = self._graph(leaves)
            mx.eval(out)
            self._works.add(shapes)
        except (RuntimeError, IndexError):
            # There may be no C++ compiler, which some versions of MLX cannot do without, and
            # there are graphs of which `mx.compile` loses a part. A fault of ours comes again.
            self._graph = self._eager
            out = self._eager(leaves)
        return self._rebuilt(out)

    def _rebuilt(self, out: list[mx.array]) -> Any:
        return _unflatten(self._result, iter(out))


def _flatten(tree: Any, leaves: list[mx.array]) -> Any:
    """The layout of a tree; its arrays are appended to ``leaves``."""
    if isinstance(tree, mx.array):
        leaves.append(tree)
        return mx.array
    if isinstance(tree, (tuple, list)):
        return type(tree), tuple(_flatten(part, leaves) for part in tree)
    return None, tree


def _unflatten(layout: Any, leaves: Iterator[mx.array]) -> Any:
    """The tree of a layout."""
    if layout is mx.array:
        return next(leaves)
    kind, parts = layout
    if kind is None:
        return parts
    built = [_unflatten(part, leaves) for part in parts]
    return kind(*built) if hasattr(kind, "_fields") else kind(built)
