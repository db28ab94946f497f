"""From the solution of the cone program to the variables of the user."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from cvxpylayers_mlx.leaves import Part


@dataclass(frozen=True)
class Entries:
    """Where the entries of a real array, row by row, stand in a vector.

    Index 0 means the constant 0, k means ``factor`` times entry k - 1; no factor is 1.
    """

    index: mx.array
    # NumPy, for a pickled float64 mx.array comes back as float32.
    factor: np.ndarray | None = None


@dataclass(frozen=True)
class Recovery:
    """A variable in x, or a dual variable in y.

    With ``imag`` the value is complex; ``real`` is then None if it is purely imaginary.
    ``logarithm`` says that the vector holds the logarithm of the value.
    """

    shape: tuple[int, ...]
    real: Entries | None
    imag: Entries | None = None
    is_dual: bool = False
    logarithm: bool = False


def entries(size: int, start: int, part: Part) -> Entries:
    """Entries of a variable of some size, one of whose parts begins at ``start`` in x."""
    index, factor = np.zeros(size, dtype=np.int32), np.ones(size)
    index[part.mirror] = index[part.index] = start + 1 + np.arange(part.index.size)
    factor[part.mirror] = part.sign
    factor[part.index] = 1.0
    return located(index, factor)


def located(index: np.ndarray, factor: np.ndarray) -> Entries:
    """Entries from NumPy arrays; a factor of ones is left out."""
    places = mx.array(index.ravel().astype(np.int32))
    if np.all(factor[index != 0] == 1.0):
        return Entries(places)
    return Entries(places, factor.ravel())


def value(x: mx.array, y: mx.array, recovery: Recovery, dtype: mx.Dtype) -> mx.array:
    """Value (B, *shape) of one variable from x (B, n) and y (B, m).

    It has ``dtype``, or complex64 if the variable is complex.
    """
    vector = y if recovery.is_dual else x
    padded = mx.concatenate([mx.zeros((vector.shape[0], 1), dtype=vector.dtype), vector], axis=1)
    shape = (vector.shape[0], *recovery.shape)
    if recovery.imag is None:
        found = mx.zeros(shape) if recovery.real is None else _read(padded, recovery.real)
        return (exp(found) if recovery.logarithm else found).reshape(shape).astype(dtype)
    # MLX has no complex type of double precision.
    found = _read(padded, recovery.imag).astype(mx.float32) * mx.array(1j)
    if recovery.real is not None:
        found = found + _read(padded, recovery.real).astype(mx.float32)
    return found.reshape(shape)


def _read(padded: mx.array, where: Entries) -> mx.array:
    # Unlike that of mx.take, the gradient of this has every derivative.
    index = mx.broadcast_to(where.index, (padded.shape[0], where.index.size))
    found = mx.take_along_axis(padded, index, axis=1)
    if where.factor is None:
        return found
    return found * mx.array(where.factor, dtype=padded.dtype)


def exp(v: mx.array) -> mx.array:
    """e^v, to the last digits of its dtype."""
    # mx.exp rounds float64 to float32.
    return mx.power(mx.array(math.e, dtype=v.dtype), v)
