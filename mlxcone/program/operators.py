"""Products with shared or batched matrices, in the row-vector form that MLX runs fastest."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone.backend.gather import gather
from mlxcone.backend.keyed import Keyed
from mlxcone.program.pairs import Pairs

# Row, column and length of a run of rows with one entry each, in as many columns one by one.
Place = tuple[int, int, int]


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


def outers(left: list[mx.array], right: list[mx.array], shared: bool) -> mx.array:
    """The sum of several `outer`, as one product."""
    if shared:
        return mx.concatenate(left, axis=0).T @ mx.concatenate(right, axis=0)
    return mx.swapaxes(mx.stack(left, axis=1), 1, 2) @ mx.stack(right, axis=1)


def padded(v: mx.array, before: int, size: int) -> mx.array:
    """``v`` (B, k) from entry ``before`` on among ``size``, zero elsewhere."""
    if v.shape[1] == size:
        return v
    return mx.pad(v, [(0, 0), (before, size - before - v.shape[1])])


class Columns(Keyed):
    """The rows in which each column of a sparse matrix has its entries.

    Args:
        rows (np.ndarray): (n, k), -1 where a column has fewer than k.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self._key = rows.shape, rows.tobytes()


class Entries(Keyed):
    """Where a matrix has entries.

    Args:
        full (np.ndarray): boolean, (m, n).
    """

    def __init__(self, full: np.ndarray) -> None:
        self._key = full.shape, np.packbits(full).tobytes()

    @property
    def full(self) -> np.ndarray:
        """The boolean matrix."""
        shape, packed = self._key
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=shape[0] * shape[1])
        return bits.reshape(shape).astype(bool)


class Sparsity(NamedTuple):
    """What is known of a matrix.

    Places of its diagonal blocks, rows of its columns' entries if these are few, and pairs of
    entries in one row if these are. Where its rows, or its columns, have one entry at most each,
    ``single`` says where that is: columns of the transpose, and of the matrix. ``entries`` are
    those of a matrix that has few.
    """

    places: tuple[Place, ...] = ()
    columns: Columns | None = None
    pairs: Pairs | None = None
    single: tuple[Columns | None, Columns | None] = (None, None)
    entries: Entries | None = None


_DENSE = Sparsity()


class Single(NamedTuple):
    """A shared matrix whose rows have one entry at most: its column and value, (rows,)."""

    columns: mx.array
    values: mx.array

    @classmethod
    def both(cls, matrix: mx.array, sparsity: Sparsity) -> tuple[Single | None, Single | None]:
        """Of a shared matrix and of its transpose, if they are known to be such."""
        if matrix.ndim == 3:
            return None, None
        m, n = matrix.shape
        flat, (rows, columns) = matrix.reshape(-1), sparsity.single
        return (
            None if rows is None else cls._of(flat, rows, n * np.arange(m), 1),
            None if columns is None else cls._of(flat, columns, np.arange(n), n),
        )

    @classmethod
    def _of(cls, flat: mx.array, known: Columns, begin: np.ndarray, stride: int) -> Single:
        there, at = known.rows[:, 0] >= 0, np.maximum(known.rows[:, 0], 0)
        values = mx.take(flat, mx.array((begin + stride * at).astype(np.int32)))
        values = mx.where(mx.array(there.tolist()), values, mx.array(0.0, dtype=flat.dtype))
        return cls(mx.array(at.astype(np.int32)), values)

    def times(self, x: mx.array) -> mx.array:
        """The product with each x (B, columns), (B, rows)."""
        return gather(x, self.columns) * self.values


class Rectangular(NamedTuple):
    """A matrix (m, n) or (B, m, n) beside a contiguous copy of its transpose, ``turned``.

    If ``places`` are given, its rows there are diagonal blocks: ``entries`` holds their diagonals,
    (k,) or (B, k) each, ``dense`` the other rows and the transpose of those, and that of the whole
    is not kept. ``single`` are the entries of rows, and of columns, that have one at most.
    """

    matrix: mx.array
    turned: mx.array | None
    sparsity: Sparsity = _DENSE
    entries: tuple[mx.array, ...] = ()
    dense: tuple[mx.array, mx.array] | None = None
    single: tuple[Single | None, ...] = (None, None)

    @classmethod
    def of(cls, matrix: mx.array, sparsity: Sparsity = _DENSE) -> Rectangular:
        """Keep both orders, so that neither product strides through memory."""
        places = sparsity.places
        if not places:
            return cls(matrix, _turned(matrix), sparsity, single=Single.both(matrix, sparsity))
        entries = tuple(
            mx.diagonal(matrix[..., i : i + k, j : j + k], axis1=-2, axis2=-1) for i, j, k in places
        )
        gaps = _gaps(places, matrix.shape[-2])
        rest = [matrix[..., low:high, :] for low, high in gaps]
        if not rest:
            return cls(matrix, None, sparsity, entries)
        rows = mx.contiguous(rest[0] if len(rest) == 1 else mx.concatenate(rest, axis=-2))
        return cls(matrix, None, sparsity, entries, (rows, _turned(rows)))

    @property
    def transposed(self) -> mx.array:
        """The transpose, contiguous."""
        return _turned(self.matrix) if self.turned is None else self.turned

    @property
    def places(self) -> tuple[Place, ...]:
        """Those of the diagonal blocks."""
        return self.sparsity.places

    @property
    def others(self) -> int:
        """Number of rows that are in no diagonal block."""
        return self.matrix.shape[-2] - sum(k for _, _, k in self.places)

    def map(self, change: Callable[[mx.array, int], mx.array]) -> Rectangular:
        """All arrays changed; ``change`` gets each with the number of axes it has with lanes."""
        dense = None if self.dense is None else tuple(change(a, 3) for a in self.dense)
        return Rectangular(
            change(self.matrix, 3),
            None if self.turned is None else change(self.turned, 3),
            self.sparsity,
            tuple(change(a, 2) for a in self.entries),
            dense,  # type: ignore[arg-type]  # a pair stays one, which `tuple` does not tell
            tuple(part and part._replace(values=change(part.values, 2)) for part in self.single),
        )

    def times(self, x: mx.array) -> mx.array:
        """A x, (B, m)."""
        if self.single[0] is not None:
            return self.single[0].times(x)
        if not self.places:
            return row_times(x, self.transposed)
        blocks = [
            (x if k == x.shape[1] else x[:, j : j + k]) * entries
            for (_, j, k), entries in zip(self.places, self.entries, strict=True)
        ]
        return self.in_order(blocks, None if self.dense is None else row_times(x, self.dense[1]))

    def in_order(self, blocks: list[mx.array], others: mx.array | None) -> mx.array:
        """Rows (B, m) from those of each diagonal block and all others; undoes `other_rows`."""
        parts = {i: block for (i, _, _), block in zip(self.places, blocks, strict=True)}
        at = 0
        for low, high in _gaps(self.places, self.matrix.shape[-2]):
            assert others is not None
            parts[low] = others[:, at : at + high - low]
            at += high - low
        ordered = [parts[row] for row in sorted(parts)]
        return ordered[0] if len(ordered) == 1 else mx.concatenate(ordered, axis=1)

    def transpose_times(self, y: mx.array) -> mx.array:
        """A'y, (B, n)."""
        if self.single[1] is not None:
            return self.single[1].times(y)
        if not self.places:
            return row_times(y, self.matrix)
        total = self.sum_blocks([y[:, i : i + k] for i, _, k in self.places])
        return total if self.dense is None else total + row_times(self.other_rows(y), self.dense[0])

    def transpose_product(self, rows: mx.array) -> mx.array:
        """A'M for M (m, k) or (B, m, k)."""
        if not self.places:
            return self.transposed @ rows
        n, total = self.matrix.shape[-1], None
        for (i, j, k), entries in zip(self.places, self.entries, strict=True):
            here = entries[..., None] * rows[..., i : i + k, :]
            if k < n:
                width = [(0, 0)] * (here.ndim - 2) + [(j, n - j - k), (0, 0)]
                here = mx.pad(here, width)
            total = here if total is None else total + here
        assert total is not None
        if self.dense is None:
            return total
        rest = [rows[..., low:high, :] for low, high in _gaps(self.places, rows.shape[-2])]
        return total + self.dense[1] @ (rest[0] if len(rest) == 1 else mx.concatenate(rest, -2))

    def sum_blocks(self, parts: list[mx.array]) -> mx.array:
        """The diagonal blocks, transposed, times parts (B, k), summed: (B, n)."""
        n, total = self.matrix.shape[-1], None
        for (_, j, _), entries, part in zip(self.places, self.entries, parts, strict=True):
            here = padded(part * entries, j, n)
            total = here if total is None else total + here
        assert total is not None
        return total

    def other_rows(self, y: mx.array) -> mx.array:
        """Those of ``y`` (B, m) that are in no diagonal block."""
        parts = [y[:, low:high] for low, high in _gaps(self.places, y.shape[1])]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


def _turned(matrix: mx.array) -> mx.array:
    return mx.contiguous(mx.swapaxes(matrix, -1, -2))


def _gaps(places: tuple[Place, ...], rows: int) -> list[tuple[int, int]]:
    """Ranges of rows between the blocks."""
    ends = [0, *(i + k for i, _, k in places)]
    starts = [*(i for i, _, _ in places), rows]
    return [(low, high) for low, high in zip(ends, starts, strict=True) if low < high]
