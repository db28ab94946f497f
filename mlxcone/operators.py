"""Products with shared or batched matrices, in the row-vector form that MLX runs fastest."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


def row_times(x: mx.array, matrix: mx.array) -> mx.array:
    """Product x' M per lane: ``x`` (B, k), ``matrix`` (k, l) shared or (B, k, l)."""
    if matrix.ndim == 2:
        return x @ matrix
    return (x[:, None, :] @ matrix)[:, 0, :]


def outer(left: mx.array, right: mx.array, shared: bool) -> mx.array:
    """Sum over lanes of left right' if ``shared``, else one outer product a lane."""
    if shared:
        return left.T @ right
    return left[:, :, None] * right[:, None, :]


class Rectangular(NamedTuple):
    """A matrix (m, n) or (B, m, n) beside a contiguous copy of its transpose."""

    matrix: mx.array
    transposed: mx.array

    @classmethod
    def of(cls, matrix: mx.array) -> Rectangular:
        """Keep both orders, so that neither product strides through memory."""
        return cls(matrix, mx.contiguous(mx.swapaxes(matrix, -1, -2)))

    def times(self, x: mx.array) -> mx.array:
        """A x, (B, m)."""
        return row_times(x, self.transposed)

    def transpose_times(self, y: mx.array) -> mx.array:
        """A'y, (B, n)."""
        return row_times(y, self.matrix)
