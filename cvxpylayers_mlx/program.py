"""What a layer solves: arrays of a program, and the way back from its solution.

A program class reads its arrays from the maps of a canonical form, turns warm starts of the whole
program into its own, and restores solutions of the whole program. ``turned`` says that statuses
are exchanged on the way back, ``weight`` multiplies the setting ``scale``. `Whole` does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

import mlxcone
from cvxpylayers_mlx.affine import DataMap
from cvxpylayers_mlx.canonicalize import Canonical

Read = Callable[[DataMap], mx.array]


class Data(NamedTuple):
    """P, q, A, b as `mlxcone.solve` takes them, the dtype they came from, and for the way back."""

    P: mx.array | None
    q: mx.array
    A: mx.array
    b: mx.array
    dtype: mx.Dtype
    link: Any = None


class Whole:
    """A program as CVXPY made it."""

    turned, weight = False, 1.0

    def __init__(self, form: Canonical) -> None:
        self._form, self.cones, self.pattern = form, form.cones, form.A.pattern

    def read(self, read: Read) -> Data:
        """Its data; ``read`` gives the arrays of maps."""
        form = self._form
        q, A, b = map(read, (form.q, form.A, form.b))
        return Data(None if form.P is None else read(form.P), q, A, b, q.dtype)

    def start(self, warm: Any) -> Any:
        """A warm start."""
        return warm

    def restore(self, found: mlxcone.Solution, data: Data) -> mlxcone.Solution:
        """The solution."""
        return found


def spoiled(data: Data, wrong: mx.array | None) -> Data:
    """Data with NaN in the lanes that are ``wrong``, (B,) or ()."""
    if wrong is None:
        return data
    blot = mx.where(wrong, mx.nan, 0.0)[..., None]
    return data._replace(q=data.q + blot.astype(data.q.dtype))


def mapped(by: mlxcone.SparseMap, v: mx.array) -> mx.array:
    """A map of v (k,) or (B, k)."""
    return by(v) if v.ndim == 2 else mx.squeeze(by(v[None]), 0)


def row_times(v: mx.array, matrix: mx.array) -> mx.array:
    """Row vectors v (k,) or (B, k) times a matrix (k, l) or (B, k, l)."""
    return v @ matrix if matrix.ndim == 2 else (v[..., None, :] @ matrix)[..., 0, :]


def blot(v: mx.array, solved: mx.array) -> mx.array:
    """Zero in a lane that is solved; else NaN if v is, and with the derivatives of v."""
    total = mx.sum(v, axis=-1, keepdims=True)
    return mx.where(solved, mx.array(0.0, dtype=v.dtype), total - mx.stop_gradient(total))


def finished(
    x: mx.array, y: mx.array, s: mx.array, info: mlxcone.Info, dtype: mx.Dtype
) -> mlxcone.Solution:
    """A solution in the dtype of the data."""
    info = mlxcone.Info(*(v.astype(dtype) if v.dtype == mx.float64 else v for v in info))
    return mlxcone.Solution(x.astype(dtype), y.astype(dtype), s.astype(dtype), info)


def warm_parts(warm: Any, n: int, m: int) -> list[mx.array] | None:
    """x, y and s of a warm start of the whole program; None for what `mlxcone.solve` refuses.

    Raises:
        ValueError: one has not the size of the whole program.
    """
    if not isinstance(warm, (tuple, list)) or len(warm) not in (3, 4):
        return None
    parts = []
    for name, value, size in zip("xys", warm, (n, m, m), strict=False):
        array = mlxcone.as_array(f"warm_start.{name}", value)
        if array.ndim not in (1, 2) or array.shape[-1] != size:
            raise ValueError(
                f"warm_start.{name}: expected shape ({size},) or (B, {size}), "
                f"got {tuple(array.shape)}"
            )
        parts.append(array)
    return parts


def grid(rows: np.ndarray, columns: np.ndarray, width: int) -> np.ndarray:
    """Where a block stands in the flat entries of a matrix."""
    return rows[:, None] * width + columns


def constants(part: DataMap, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The constants that entries of a matrix are; NaN for those that depend on a parameter."""
    maps = part.matrix
    begin, end = (maps.indptr[i * part.shape[-1] + j + k] for k in (0, 1))
    constant = (end - begin == 1) & (maps.indices[begin] == maps.shape[1] - 1)
    return np.where(constant, maps.data[begin], np.nan)
