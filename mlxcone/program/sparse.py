"""Matrices of which only the entries are kept: products by gathering, with no scatter.

Each row is padded to a width and the rows of one width stand together (ELLPACK in slabs), so that
(A x)_i is a sum over gathered entries of x; A' has slabs of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import scipy.sparse as sp

from mlxcone.backend.gather import gather


class Slab(NamedTuple):
    """Rows of one width: columns (width, rows) of the entries, and their values, 0 for padding."""

    columns: mx.array
    values: mx.array

    def gathered(self, x: mx.array) -> mx.array:
        """Entries times those of x (B, columns): (B, width, rows)."""
        return gather(x, self.columns) * self.values


class Slabs(NamedTuple):
    """All rows of a matrix, and where in the slabs each of them is, (rows,).

    ``ordered`` says that they stand in order, ``padded`` that there is padding.
    """

    slabs: tuple[Slab, ...]
    places: mx.array
    ordered: bool
    padded: bool

    @classmethod
    def of(cls, matrix: Any, padding: int = 0) -> Slabs:
        """Of a SciPy CSR matrix; ``padding`` is the column that fills up rows, times zero."""
        counts = np.diff(matrix.indptr)
        # Widths are powers of two: at most half of the entries are padding.
        width = 2 ** np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64)
        order = np.argsort(width, kind="stable")
        slabs = []
        for size in np.unique(width):
            rows = order[width[order] == size]
            at = matrix.indptr[rows][None, :] + np.arange(size)[:, None]
            inside = np.arange(size)[:, None] < counts[rows][None, :]
            columns, values = np.full(at.shape, padding), np.zeros(at.shape)
            columns[inside], values[inside] = matrix.indices[at[inside]], matrix.data[at[inside]]
            slabs.append(
                Slab(mx.array(columns.astype(np.int32)), mx.array(values, dtype=mx.float64))
            )
        places = np.argsort(order).astype(np.int32)
        ordered = bool((places == np.arange(places.size)).all())
        return cls(tuple(slabs), mx.array(places), ordered, bool((counts < width).any()))

    def _each(self, rows: Callable[[Slab], mx.array]) -> mx.array:
        """Something of each row, (B, rows), in the order of the rows."""
        parts = [rows(slab) for slab in self.slabs]
        whole = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
        return whole if self.ordered else gather(whole, self.places)

    def times(self, x: mx.array) -> mx.array:
        """The product with each x (B, columns), (B, rows)."""
        return self._each(lambda slab: mx.sum(slab.gathered(x), axis=1))

    def largest(self, x: mx.array) -> mx.array:
        """Largest size of entry times that of x (columns,) in each row, (rows,)."""
        return self._each(lambda slab: mx.max(mx.abs(slab.gathered(x[None])), axis=1))[0]

    def scaled(self, left: mx.array, right: mx.array) -> Slabs:
        """diag(left) M diag(right)."""
        slabs, at = [], 0
        # Row k of the slabs is row order[k].
        order = mx.argsort(self.places)
        for slab in self.slabs:
            count = slab.columns.shape[1]
            rows = gather(left, order[at : at + count])
            slabs.append(slab._replace(values=slab.values * rows * gather(right, slab.columns)))
            at += count
        return self._replace(slabs=tuple(slabs))

    def map(self, change: Callable[[mx.array], mx.array]) -> Slabs:
        """With all values changed."""
        return self._replace(slabs=tuple(s._replace(values=change(s.values)) for s in self.slabs))


class Sparse(NamedTuple):
    """A matrix (m, n), shared by all lanes, that stands where an `operators.Rectangular` may."""

    rows: Slabs
    columns: Slabs

    @classmethod
    def of(cls, matrix: Any) -> Sparse:
        """Of a SciPy sparse matrix, in float64."""
        wide = sp.csr_matrix(matrix, dtype=np.float64)
        wide.sum_duplicates()
        return cls(Slabs.of(wide), Slabs.of(sp.csr_matrix(wide.T)))

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.places.shape[0], self.columns.places.shape[0]

    @property
    def places(self) -> tuple[()]:
        """Of diagonal blocks: none that are of use here."""
        return ()

    def times(self, x: mx.array) -> mx.array:
        """A x, (B, m)."""
        return self.rows.times(x)

    def transpose_times(self, y: mx.array) -> mx.array:
        """A'y, (B, n)."""
        return self.columns.times(y)

    def square_columns(self, weights: mx.array) -> mx.array:
        """Diagonal of A'diag(weights) A, (B, n), for weights (B, m)."""
        return self.columns.map(mx.square).times(weights)

    def square_rows(self, weights: mx.array) -> mx.array:
        """Diagonal of A diag(weights) A', (B, m), for weights (B, n)."""
        return self.rows.map(mx.square).times(weights)

    def scaled(self, left: mx.array, right: mx.array) -> Sparse:
        """diag(left) A diag(right)."""
        return Sparse(self.rows.scaled(left, right), self.columns.scaled(right, left))

    def astype(self, dtype: mx.Dtype) -> Sparse:
        """With values in another dtype."""
        return Sparse(*(part.map(lambda v: v.astype(dtype)) for part in self))

    def diagonal(self) -> mx.array:
        """Of a square one, (n,)."""
        order, parts, at = mx.argsort(self.rows.places), [], 0
        for slab in self.rows.slabs:
            own = order[at : at + slab.columns.shape[1]]
            parts.append(mx.sum(mx.where(slab.columns == own, slab.values, 0.0), axis=0))
            at += slab.columns.shape[1]
        return gather(mx.concatenate(parts), self.rows.places)


class SparseProgram(NamedTuple):
    """A `problem.Program` whose P and A are sparse and shared; q (B, n), b (B, m)."""

    P: Sparse | None
    q: mx.array
    A: Sparse
    b: mx.array

    @property
    def lanes(self) -> int:
        return self.q.shape[0]

    @property
    def n(self) -> int:
        return self.q.shape[1]

    @property
    def m(self) -> int:
        return self.b.shape[1]

    @property
    def shared(self) -> bool:
        """Whether P and A serve every lane."""
        return True

    def P_times(self, x: mx.array) -> mx.array:
        """P x, (B, n)."""
        return mx.zeros_like(x) if self.P is None else self.P.times(x)

    def astype(self, dtype: mx.Dtype) -> SparseProgram:
        """All arrays in another dtype."""
        P = None if self.P is None else self.P.astype(dtype)
        return SparseProgram(P, self.q.astype(dtype), self.A.astype(dtype), self.b.astype(dtype))

    def take(self, lanes: mx.array) -> SparseProgram:
        """The sub-batch of some lanes."""
        return self._replace(q=self.q[lanes], b=self.b[lanes])
