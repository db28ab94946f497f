"""The only caller of `mx.linalg`: names the CPU stream, masks bad lanes, gives each a verdict.

`mx.linalg` runs on the CPU stream alone, has no derivatives, and raises for a whole batch when one
matrix is bad. Everything that needs a factorization goes through here.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxcone.backend.devices import CPU, on_cpu

_WORTH = 10**5  # batch times order^3 that is worth a stream of its own
_MOST_STREAMS, _STREAMS_IN_ALL = 8, 64


class _Streams(threading.local):
    """More streams of the CPU for this thread: each works on a core of its own."""

    in_all = 0  # of every thread: MLX keeps them when their thread has gone

    def __init__(self) -> None:
        self._made: list[Any] = []

    def get(self, count: int) -> list[Any]:
        """As many, or fewer where many threads have asked."""
        while len(self._made) < count and _Streams.in_all < _STREAMS_IN_ALL:
            _Streams.in_all += 1
            self._made.append(mx.new_stream(CPU))
        return self._made[:count]


_streams = _Streams()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))  # type: ignore[attr-defined]
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _spread(function: Callable[[mx.array], Any]) -> Callable[[mx.array], Any]:
    """Spread a function of (..., n, n), whose results have lanes first, over the cores.

    LAPACK goes through a batch one by one.
    """

    @functools.wraps(function)
    def spread(matrix: mx.array) -> Any:
        batch, n = matrix.shape[:-2], matrix.shape[-1]
        flat = matrix.reshape(-1, n, n)
        total = flat.shape[0]
        parts = min(_cores(), _MOST_STREAMS, total, total * n**3 // _WORTH)
        streams = _streams.get(parts) if parts > 1 else []
        if len(streams) < 2:
            return function(matrix)
        bounds = [total * k // len(streams) for k in range(len(streams) + 1)]
        found = []
        for stream, low, high in zip(streams, bounds, bounds[1:], strict=False):
            with mx.stream(stream):
                found.append(function(flat[low:high]))
        whole = [mx.concatenate(list(part), axis=0) for part in zip(*found, strict=True)]
        return tuple(part.reshape(*batch, *part.shape[1:]) for part in whole)

    return spread


def _finite(matrix: mx.array) -> mx.array:
    """Whether the entries of matrices (..., n, n) are finite: their sum is."""
    return mx.isfinite(mx.sum(mx.flatten(matrix, -2, -1), axis=-1))


def _cholesky(matrix: mx.array) -> tuple[mx.array, mx.array]:
    """Cholesky factor, the identity where there is none, and where there is one."""
    eye = mx.eye(matrix.shape[-1], dtype=matrix.dtype)
    finite = _finite(matrix)
    factor = mx.linalg.cholesky(mx.where(finite[..., None, None], matrix, eye), stream=mx.cpu)
    # LAPACK stops at the first non-positive pivot and MLX hands back what is there.
    pivots = mx.diagonal(factor, axis1=-2, axis2=-1)
    ok = finite & _finite(factor) & (mx.min(pivots, axis=-1) > 0)
    return mx.where(ok[..., None, None], factor, eye), ok


@on_cpu
@_spread
def spd_inverse(matrix: mx.array) -> tuple[mx.array, mx.array]:
    """Explicit inverse of symmetric positive definite matrices by Cholesky.

    An explicit inverse is applied as one row-vector product, ten times faster in MLX than two
    triangular solves; iterative refinement around it restores the lost digits.

    Args:
        matrix (mx.array): shape ``(..., n, n)``, n >= 1.

    Returns:
        tuple: the inverse (the identity where the factorization failed) and a boolean array of
        shape ``(...)``: whether the matrix was finite and numerically positive definite.
    """
    factor, ok = _cholesky(matrix)
    return mx.linalg.cholesky_inv(factor, stream=mx.cpu), ok


@on_cpu
def is_positive_definite(matrix: mx.array) -> mx.array:
    """Whether symmetric matrices (..., n, n), n >= 1, are finite and have a Cholesky factor."""
    return _cholesky(matrix)[1]


@on_cpu
@_spread
def spd_root(matrix: mx.array) -> tuple[mx.array, mx.array]:
    """Inverse R of a Cholesky factor, R'R = matrix^-1, (..., n, n), and where there is one, (...).

    R is that of the identity where there is none.
    """
    factor, ok = _cholesky(matrix)
    return mx.linalg.tri_inv(factor, stream=mx.cpu), ok


@on_cpu
def shifted_root(matrix: mx.array, shifts: tuple[float, ...]) -> tuple[mx.array, mx.array]:
    """Inverse of a Cholesky factor, R with R'R = (matrix + shift I)^-1, and where there is one.

    Args:
        matrix (mx.array): symmetric, (B, n, n), of unit diagonal.
        shifts (tuple): each is tried in the lanes where those before it failed.

    Returns:
        tuple: R (B, n, n), lower triangular, and a boolean array (B,).
    """
    eye = mx.eye(matrix.shape[-1], dtype=matrix.dtype)
    root, ok = _cholesky(matrix + shifts[0] * eye)
    for shift in shifts[1:]:
        if bool(mx.all(ok).item()):
            break
        factor, fits = _cholesky(matrix + shift * eye)
        root = mx.where(ok[:, None, None], root, factor)
        ok = ok | fits
    return mx.linalg.tri_inv(root, stream=mx.cpu), ok


@on_cpu
def lu_inverses(matrix: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Inverses of the factors of an LU decomposition with pivots, for products with row vectors.

    Args:
        matrix (mx.array): (B, n, n), n >= 1.

    Returns:
        tuple: L and U, (B, n, n), with (v L) U = v matrix^-T for rows v, and a boolean array (B,):
        whether the matrix was finite and no pivot zero.
    """
    finite = _finite(matrix)
    eye = mx.eye(matrix.shape[-1], dtype=matrix.dtype)
    rows, lower, upper = mx.linalg.lu(mx.where(finite[:, None, None], matrix, eye), stream=mx.cpu)
    pivots = mx.diagonal(upper, axis1=-2, axis2=-1)
    ok = finite & mx.all(mx.abs(pivots) > 0, axis=-1)
    # One zero pivot would make LAPACK raise for the whole batch.
    upper = mx.where(ok[:, None, None], upper, eye)
    lower = mx.linalg.tri_inv(lower, stream=mx.cpu)
    # Row i of the matrix is row rows[i] of L U.
    lower = mx.take_along_axis(mx.swapaxes(lower, -1, -2), rows[..., None], axis=1)
    upper = mx.linalg.tri_inv(upper, upper=True, stream=mx.cpu)
    return lower, mx.contiguous(mx.swapaxes(upper, -1, -2)), ok


@on_cpu
@_spread
def symmetric_eigen(matrix: mx.array) -> tuple[mx.array, mx.array]:
    """Eigenvalues (..., n), ascending, and eigenvectors as columns, (..., n, n).

    Args:
        matrix (mx.array): symmetric, (..., n, n); NaN where it is not finite.
    """
    finite = _finite(matrix)
    # One NaN would make LAPACK raise for the whole batch.
    safe = mx.where(finite[..., None, None], matrix, 0.0)
    # LAPACK's error in float32 is ten times a rounding, and it runs here anyway.
    values, vectors = mx.linalg.eigh(safe.astype(mx.float64), stream=mx.cpu)
    values = mx.where(finite[..., None], values, mx.nan)
    return values.astype(matrix.dtype), vectors.astype(matrix.dtype)


@on_cpu
def spd_pencil(base: mx.array, matrix: mx.array) -> tuple[mx.array, mx.array]:
    """V (n, n) and l (n,) with V'base V = I and V'matrix V = diag(l).

    Args:
        base (mx.array): symmetric positive definite, (n, n), finite.
        matrix (mx.array): symmetric, (n, n), finite.
    """
    factor = mx.linalg.cholesky(base, stream=mx.cpu)
    half = mx.linalg.tri_inv(factor, stream=mx.cpu)
    values, vectors = mx.linalg.eigh(half @ matrix @ half.T, stream=mx.cpu)
    return half.T @ vectors, values


def poison() -> mx.array:
    """A float32 scalar that raises when, and only when, it is evaluated.

    Added to placeholders, so that a graph that would return them (``mx.compile``) fails loudly.
    """
    return mx.linalg.inv(mx.zeros((1, 1), dtype=mx.float32), stream=mx.cpu)[0, 0]
