"""Euclidean projections on convex sets, as layers."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxcone.backend.devices import on_cpu
from mlxcone.backend.gather import gather
from mlxcone.nn import checks
from mlxcone.program.problem import as_array
from mlxcone.solution import Solution
from mlxcone.solver import Solver

_ROUNDING = 1e-13


class Projection(nn.Module):
    r"""The point of a convex set nearest to the input.

    \[
    \Pi(v) = \arg\min_x \tfrac12 \|x - v\|^2 \quad
    \text{subject to } A (x, t) + s = b, \; s \in K
    \]

    The set is a slice of the cone K, possibly with auxiliary variables t. Its derivative is that of
    `mlxcone.solve`. `Simplex`, `L1Ball`, `L2Ball`, `BoxSimplex` are such sets.

    Args:
        size (int): entries of x.
        A: ``(m, size + auxiliary)``, NumPy or SciPy sparse.
        b: ``(m,)``, NumPy.
        cones: `mlxcone.Cones` or an SCS dict; rows of A in that order.
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: shapes, cones or settings do not fit.
    """

    def __init__(self, size: int, A: Any, b: Any, cones: Any, **settings: Any) -> None:
        super().__init__()
        self._count = checks.size("size", size)
        self._extra = A.shape[1] - size
        if self._extra < 0:
            raise ValueError(f"A: expected at least {size} columns, got {A.shape[1]}")
        P = np.diag([1.0] * size + [0.0] * self._extra)
        self._level = np.asarray(b, dtype=np.float64)
        self._solver = Solver(P.astype(np.float32), A, cones, **settings)

    @on_cpu
    def __call__(self, v: mx.array) -> mx.array:
        """Project the last axis of v, ``(..., size)``.

        Raises:
            ValueError: the last axis has another size.
        """
        v = as_array("v", v)
        if v.ndim < 1 or v.shape[-1] != self._count:
            raise ValueError(f"v: expected shape (..., {self._count}), got {v.shape}")
        lanes = v.size // self._count
        q = mx.pad(-v.reshape(lanes, self._count), [(0, 0), (0, self._extra)])
        # Of the input's dtype: a float64 level would make the answer float64.
        level = mx.array(self._level, dtype=mx.float64).astype(v.dtype)
        return self._nearest(self._solver.solve(q, level)).reshape(v.shape)

    def _nearest(self, found: Solution) -> mx.array:
        """X of a solution, (lanes, size)."""
        return found.x[:, : self._count]


def _without_rounding(slack: mx.array, size: float) -> mx.array:
    """What is left of the rounding of float64 taken for zero, with the gradient it had."""
    rounding = mx.where(slack <= _ROUNDING * size, slack, 0.0)
    return slack - mx.stop_gradient(rounding)


class Simplex(Projection):
    """Projection on {x >= 0, sum x = total} (Duchi et al. 2008).

    Args:
        size (int): entries of x.
        total (float): their sum.
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: size or total is not positive, or a setting does not fit.
    """

    def __init__(self, size: int, total: float = 1.0, **settings: Any) -> None:
        n = checks.size("size", size)
        A = np.vstack([np.ones((1, n)), -np.eye(n)]).astype(np.float32)
        b = np.concatenate([[checks.positive("total", total)], np.zeros(n)])
        super().__init__(n, A, b, {"z": 1, "l": n}, **settings)

    def _nearest(self, found: Solution) -> mx.array:
        # Slacks are in their cone to the last bit: zeros are zeros, but for rounding at a tie.
        return _without_rounding(found.s[:, 1:], self._level.max())


class BoxSimplex(Projection):
    """Projection on {lower <= x <= upper, sum x = total}.

    Args:
        size (int): entries of x.
        lower (float): least value of every entry.
        upper (float): largest value of every entry.
        total (float): their sum, between ``size * lower`` and ``size * upper``.
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: the set is empty, size is not positive, or a setting does not fit.
    """

    def __init__(
        self, size: int, lower: float, upper: float, total: float, **settings: Any
    ) -> None:
        n = checks.size("size", size)
        if not lower <= upper:
            raise ValueError(f"upper: expected at least lower = {lower!r}, got {upper!r}")
        if not n * lower <= total <= n * upper:
            raise ValueError(
                f"total: expected a number from {n * lower} to {n * upper}, got {total!r}"
            )
        A = np.vstack([np.ones((1, n)), np.eye(n), -np.eye(n)]).astype(np.float32)
        b = np.concatenate([[total], np.full(n, upper), np.full(n, -lower)])
        super().__init__(n, A, b, {"z": 1, "l": 2 * n}, **settings)
        self._limits = float(lower), float(upper)

    def _nearest(self, found: Solution) -> mx.array:
        # As exact as slacks are, at either end.
        lower, upper = self._limits
        slack = _without_rounding(found.s[:, 1:], upper - lower)
        below, above = mx.split(slack, 2, axis=1)
        return mx.where(above <= below, lower + above, upper - below)


class L1Ball(Projection):
    """Projection on {sum |x| <= radius} (Duchi et al. 2008).

    Args:
        size (int): entries of x.
        radius (float): largest 1-norm.
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: size or radius is not positive, or a setting does not fit.
    """

    def __init__(self, size: int, radius: float = 1.0, **settings: Any) -> None:
        n = checks.size("size", size)
        eye = np.eye(n)
        # |x| <= t, and the t sum to the radius at most.
        total = np.concatenate([np.zeros(n), np.ones(n)])[None]
        A = np.vstack([np.hstack([eye, -eye]), np.hstack([-eye, -eye]), total])
        b = np.concatenate([np.zeros(2 * n), [checks.positive("radius", radius)]])
        super().__init__(n, A.astype(np.float32), b, {"l": 2 * n + 1}, **settings)


class L2Ball(Projection):
    """Projection on {|x|_2 <= radius}, a slice of the second-order cone.

    Args:
        size (int): entries of x.
        radius (float): largest 2-norm.
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: size or radius is not positive, or a setting does not fit.
    """

    def __init__(self, size: int, radius: float = 1.0, **settings: Any) -> None:
        n = checks.size("size", size)
        A = np.vstack([np.zeros((1, n)), -np.eye(n)]).astype(np.float32)
        b = np.concatenate([[checks.positive("radius", radius)], np.zeros(n)])
        super().__init__(n, A, b, {"q": [n + 1]}, **settings)


class Semidefinite(nn.Module):
    r"""The positive semidefinite matrix nearest to a symmetric one, in the Frobenius norm.

    Args:
        order (int): rows of the matrix.
        unit_diagonal (bool): of those with ones on the diagonal: the nearest correlation matrix
            (Higham 2002).
        **settings: of the solver, see `mlxcone.Settings`.

    Raises:
        ValueError: order is not positive, or a setting does not fit.
    """

    def __init__(self, order: int, unit_diagonal: bool = False, **settings: Any) -> None:
        super().__init__()
        n = self._order = checks.size("order", order)
        # SCS's order: the lower triangle by columns, off the diagonal times sqrt 2.
        columns, rows = np.triu_indices(n)
        size = len(rows)
        self._places = mx.array(rows * n + columns)
        self._factor = np.where(rows == columns, 1.0, math.sqrt(2.0))
        back = np.zeros((n, n), dtype=np.int32)
        back[rows, columns] = back[columns, rows] = np.arange(size)
        self._back = mx.array(back.ravel())
        pinned = np.eye(size)[rows == columns] if unit_diagonal else np.zeros((0, size))
        A = np.vstack([pinned, -np.eye(size)]).astype(np.float32)
        b = np.concatenate([np.ones(len(pinned)), np.zeros(size)])
        cones = {"z": len(pinned), "s": [n]}
        self._project = Projection(size, A, b, cones, **settings)

    @on_cpu
    def __call__(self, matrix: mx.array) -> mx.array:
        """Project ``(..., n, n)``; of a matrix that is not symmetric, its symmetric part.

        Raises:
            ValueError: the last axes have another size.
        """
        n = self._order
        matrix = as_array("matrix", matrix)
        if matrix.ndim < 2 or tuple(matrix.shape[-2:]) != (n, n):
            raise ValueError(f"matrix: expected shape (..., {n}, {n}), got {matrix.shape}")
        factor = mx.array(self._factor, dtype=mx.float64).astype(matrix.dtype)
        symmetric = 0.5 * (matrix + mx.swapaxes(matrix, -1, -2))
        flat = gather(symmetric.reshape(*matrix.shape[:-2], n * n), self._places)
        found = self._project(flat * factor)
        return gather(found / factor, self._back).reshape(matrix.shape)
