"""A'W A for a diagonal W and a shared A with few entries, from those that stand in one row."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxcone.backend.keyed import Keyed

_COST = 500  # multiplications of a dense product that take as long as one pair
_LEAST = 32  # rows of a matrix worth looking at


def _pay(pairs: int, rows: int, n: int) -> bool:
    return _COST * pairs <= rows * n * n


class Pairs(Keyed):
    """Pairs of entries of a matrix (m, n) that stand in one row.

    Args:
        rows, left, right (np.ndarray): the row of each pair, and its columns, left <= right.
        shape (tuple): (m, n).
    """

    def __init__(
        self, rows: np.ndarray, left: np.ndarray, right: np.ndarray, shape: tuple[int, int]
    ) -> None:
        self.rows, self.left, self.right, self.shape = rows, left, right, shape
        self._key = shape, rows.tobytes(), left.tobytes(), right.tobytes()

    @classmethod
    def of(cls, full: np.ndarray) -> Pairs | None:
        """Of the entries of a boolean matrix, if they are few enough to be worth it."""
        m, n = full.shape
        counts = full.sum(axis=1)
        if m < _LEAST or not _pay(int((counts * (counts + 1) // 2).sum()), m, n):
            return None
        row, column = np.nonzero(full)
        first = np.cumsum(counts) - counts
        place = np.arange(row.size) - first[row]
        # Entry k of a row makes a pair with itself and with the k before it.
        rows = np.repeat(row, place + 1)
        right = np.repeat(column, place + 1)
        begins = np.cumsum(place + 1) - (place + 1)
        left = column[first[rows] + np.arange(rows.size) - np.repeat(begins, place + 1)]
        rows, left, right = (v.astype(np.int64) for v in (rows, left, right))
        return cls(rows, left, right, (m, n))

    def pay(self, rows: int) -> bool:
        """Whether they are less work than that many rows of the matrix as a dense one."""
        return _pay(self.rows.size, rows, self.shape[1])

    def gram(self, matrix: mx.array, weights: mx.array) -> mx.array:
        """A'diag(w) A, (B, n, n), for A (m, n) and w (B, k) on its first k rows."""
        n, k = self.shape[1], weights.shape[1]
        some = self.rows < k
        rows, left, right = self.rows[some], self.left[some], self.right[some]
        flat = matrix.reshape(-1)
        at_left, at_right = (mx.array(rows * n + column) for column in (left, right))
        values = mx.take(flat, at_left) * mx.take(flat, at_right)
        values = values * mx.array(np.where(left == right, 0.5, 1.0), dtype=matrix.dtype)
        moved = mx.take(weights.T, mx.array(rows), axis=0) * values[:, None]
        upper = mx.zeros((n * n, weights.shape[0]), dtype=matrix.dtype)
        upper = upper.at[mx.array(left * n + right)].add(moved).T.reshape(-1, n, n)
        return upper + mx.swapaxes(upper, -1, -2)
