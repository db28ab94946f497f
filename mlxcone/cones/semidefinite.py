"""The cone of positive semidefinite matrices, as scaled lower triangles; self-dual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone.backend.gather import gather
from mlxcone.backend.linalg import symmetric_eigen
from mlxcone.cones import positive_part, probes, second_order, sign_iteration
from mlxcone.cones.base import Spectral, root
from mlxcone.cones.positive_part import Eigen
from mlxcone.cones.second_order import SecondOrder

_ROOT = math.sqrt(2.0)
_SPARSE = 4  # entries of a column, times this, that are worth a sum over them, beside the order
_LEAST = 1e-150  # eigenvalues below have been lost to rounding


class Atoms(NamedTuple):
    """D in the eigenvectors of the point: ``eigenvalues`` is (B, count, order, order)."""

    eigenvalues: mx.array
    eigen: Eigen


class Scaling(NamedTuple):
    """W^2 V = G V G in the eigenvectors of G; eigenvalues and vectors (B, count, order, order).

    G = R R', and R'Y R = R^-1 S R^-T = diag(middle): ``root`` is R, ``unroot`` is R^-1.
    """

    eigenvalues: mx.array
    vectors: mx.array
    middle: mx.array
    root: mx.array
    unroot: mx.array


def _powers(matrix: mx.array, *exponents: float) -> list[mx.array]:
    """Powers of positive definite matrices."""
    values, vectors = symmetric_eigen(matrix)
    values = mx.maximum(values, _LEAST)
    turned = mx.swapaxes(vectors, -1, -2)
    return [(vectors * mx.power(values, e)[..., None, :]) @ turned for e in exponents]


def _by_products(dtype: mx.Dtype) -> bool:
    """Whether to project without eigenvalues: LAPACK would leave the GPU in every iteration.

    On a CPU, eigenvalues are faster (bench/semidefinite_projection.py).
    """
    return dtype == mx.float32 and mx.default_device() == mx.gpu


@dataclass(frozen=True)
class Semidefinite:
    """``count`` cones of ``order`` x ``order`` matrices; order 2 has `Semidefinite2`.

    Rows hold the lower triangle column by column, with what is off the diagonal times sqrt 2, so
    that inner products are those of matrices (SCS's order).
    """

    count: int
    order: int

    @property
    def rows(self) -> int:
        return self.count * self._size

    @property
    def _size(self) -> int:
        return self.order * (self.order + 1) // 2

    @cached_property
    def _places(self) -> tuple[list[int], list[int], list[float]]:
        """Row of the triangle for each entry of the matrix; entry, and scale, for each row."""
        k = self.order
        lower = [(i, j) for j in range(k) for i in range(j, k)]
        row_of = {entry: row for row, entry in enumerate(lower)}
        rows = [row_of[max(i, j), min(i, j)] for i in range(k) for j in range(k)]
        entries = [i * k + j for i, j in lower]
        return rows, entries, [1.0 if i == j else _ROOT for i, j in lower]

    def _matrices(self, v: mx.array) -> mx.array:
        """(..., size) to (..., order, order)."""
        rows, _, scale = self._places
        v = v / mx.array(scale, dtype=v.dtype)
        return gather(v, mx.array(rows)).reshape(*v.shape[:-1], self.order, self.order)

    def _triangles(self, matrices: mx.array) -> mx.array:
        """(..., order, order) to (..., size)."""
        _, entries, scale = self._places
        flat = matrices.reshape(*matrices.shape[:-2], self.order * self.order)
        return gather(flat, mx.array(entries)) * mx.array(scale, dtype=flat.dtype)

    def _blocks(self, z: mx.array) -> mx.array:
        return self._matrices(z.reshape(z.shape[0], self.count, self._size))

    def project_dual(self, z: mx.array) -> mx.array:
        blocks = self._blocks(z)
        if _by_products(z.dtype):
            projected = sign_iteration.project(blocks)
        else:
            projected = positive_part.value(positive_part.decompose(blocks))
        return self._triangles(projected).reshape(z.shape)

    def derivative(self, z: mx.array) -> Atoms:
        return self.linearize(z)[1]

    def linearize(self, z: mx.array) -> tuple[mx.array, Atoms]:
        eigen = positive_part.decompose(self._blocks(z))
        y = self._triangles(positive_part.value(eigen)).reshape(z.shape)
        return y, Atoms(positive_part.slopes(eigen.values), eigen)

    def _columns(self, v: mx.array) -> mx.array:
        """(B, rows, k) as matrices, (B, count, k, order, order)."""
        columns = v.reshape(v.shape[0], self.count, self._size, v.shape[-1])
        return self._matrices(mx.swapaxes(columns, -1, -2))

    def _rows(self, matrices: mx.array) -> mx.array:
        """The other way."""
        out = mx.swapaxes(self._triangles(matrices), -1, -2)
        return out.reshape(out.shape[0], self.rows, out.shape[-1])

    def spectral(self, atoms: Atoms | Scaling, function: Spectral, v: mx.array) -> mx.array:
        inner = self._columns(v)
        if isinstance(atoms, Scaling):
            Q = atoms.vectors[:, :, None]
            Qt = mx.swapaxes(Q, -1, -2)
            image = Q @ (function(atoms.eigenvalues)[:, :, None] * (Qt @ inner @ Q)) @ Qt
        else:
            image = positive_part.derivative_times(atoms.eigen, atoms.eigenvalues, function, inner)
        return self._rows(image)

    def turned(self, atoms: Scaling, v: mx.array, back: bool) -> mx.array:
        """The columns of v (B or 1, rows, k) in the eigenvectors of W^2, or ``back`` from there."""
        Q, Qt = atoms.vectors[:, :, None], mx.swapaxes(atoms.vectors, -1, -2)[:, :, None]
        inner = self._columns(v)
        return self._rows(Q @ inner @ Qt if back else Qt @ inner @ Q)

    def diagonal(self, atoms: Scaling) -> mx.array:
        """W^2 there, (B, rows)."""
        return self._lower(atoms).reshape(atoms.eigenvalues.shape[0], self.rows)

    def half(
        self,
        atoms: Atoms | Scaling,
        function: Spectral,
        v: mx.array,
        rows_of: np.ndarray | None = None,
    ) -> mx.array:
        """`base.half` with half of the products, or fewer where columns have few entries.

        ``rows_of`` (columns, most) are the rows of the entries of v, or below 0 or beyond.
        """
        vectors = atoms.vectors if isinstance(atoms, Scaling) else atoms.eigen.vectors
        entries = None if rows_of is None else self._entries(rows_of)
        if entries is None:
            inner, Q = self._columns(v), vectors[:, :, None]
            turned = mx.swapaxes(Q, -1, -2) @ inner @ Q
        else:
            turned = self._turned(vectors, v, entries)
        flat = self._triangles(turned) * root(function, self._lower(atoms))[:, :, None]
        return mx.swapaxes(flat, 1, 2).reshape(flat.shape[0], v.shape[-1], -1)

    def _lower(self, atoms: Atoms | Scaling) -> mx.array:
        """The eigenvalues in the order of the rows, (B, count, size)."""
        flat = mx.flatten(atoms.eigenvalues, -2, -1)
        return gather(flat, mx.array(self._places[1]))

    def _entries(self, rows_of: np.ndarray) -> tuple[np.ndarray, ...] | None:
        """Row, two indices into all the rows of the matrices, and share, (count, columns, most).

        None where there are too many of them in one matrix.
        """
        k, columns = self.order, rows_of.shape[0]
        column, at = np.nonzero((rows_of >= 0) & (rows_of < self.rows))
        row = rows_of[column, at]
        block = row // self._size
        order = np.lexsort((row, column, block))
        column, row, block = column[order], row[order], block[order]
        group = block * columns + column
        counts = np.bincount(group, minlength=self.count * columns)
        most = max(int(counts.max()), 1)
        if most * _SPARSE > k:
            return None
        place = np.arange(group.size) - (np.cumsum(counts) - counts)[group]
        entry = np.array(self._places[1])[row % self._size]
        i, j = entry // k, entry % k
        share = np.where(i == j, 0.5, math.sqrt(0.5))
        out = []
        for values, dtype in (
            (row, np.int32),
            (block * k + i, np.int32),
            (block * k + j, np.int32),
        ):
            table = np.zeros((self.count, columns, most), dtype=dtype)
            table[block, column, place] = values
            out.append(table)
        shares = np.zeros((self.count, columns, most))
        shares[block, column, place] = share
        return *out, shares

    def _turned(self, vectors: mx.array, v: mx.array, entries: tuple[np.ndarray, ...]) -> mx.array:
        """Q'V Q for the columns V of ``v``, (B, count, columns, k, k), from their entries."""
        row, i, j, shares = entries
        at = mx.array((row * v.shape[-1] + np.arange(v.shape[-1])[:, None]).reshape(-1))
        values = mx.take(v.reshape(v.shape[0], -1), at, axis=1).reshape(-1, *row.shape)
        both = bool((i == j).all())  # on the diagonal, the halves are the same
        values = values * mx.array(2.0 * shares if both else shares, dtype=v.dtype)
        Q = vectors.reshape(vectors.shape[0], -1, self.order)
        left, right = (
            mx.take(Q, mx.array(index.reshape(-1)), axis=1).reshape(-1, *row.shape, self.order)
            for index in (i, j)
        )
        left = mx.swapaxes(values[..., None] * left, -1, -2)
        half = left * right if row.shape[-1] == 1 else left @ right
        return half if both else half + mx.swapaxes(half, -1, -2)

    def signature(self, atoms: Atoms) -> mx.array:
        return probes.images(self, atoms, atoms.eigenvalues.dtype)

    @property
    def degree(self) -> int:
        return self.count * self.order

    def centre(self, dtype: mx.Dtype) -> mx.array:
        eye = mx.broadcast_to(mx.eye(self.order, dtype=dtype), (self.count, *(self.order,) * 2))
        return self._triangles(eye).reshape(-1)

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Scaling:
        half, unhalf = _powers(self._blocks(s), 0.5, -0.5)
        # G Y G = S (Nesterov and Todd 1997).
        squares, Q = symmetric_eigen(half @ self._blocks(y) @ half)
        middle = mx.sqrt(mx.maximum(squares, _LEAST))
        root = (half @ Q) * mx.rsqrt(middle)[..., None, :]
        unroot = mx.sqrt(middle)[..., None] * (mx.swapaxes(Q, -1, -2) @ unhalf)
        G = root @ mx.swapaxes(root, -1, -2)
        values, vectors = symmetric_eigen(0.5 * (G + mx.swapaxes(G, -1, -2)))
        values = mx.maximum(values, _LEAST)
        return Scaling(values[..., :, None] * values[..., None, :], vectors, middle, root, unroot)

    def correction(self, atoms: Scaling, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        R, inverse = atoms.root, atoms.unroot
        S = inverse @ self._blocks(ds) @ mx.swapaxes(inverse, -1, -2)
        product = S @ (mx.swapaxes(R, -1, -2) @ self._blocks(dy) @ R)
        both = product + mx.swapaxes(product, -1, -2)
        left = both / (atoms.middle[..., :, None] + atoms.middle[..., None, :])
        return self._triangles(R @ left @ mx.swapaxes(R, -1, -2)).reshape(y.shape)

    def inverse(self, y: mx.array) -> mx.array:
        return self._triangles(_powers(self._blocks(y), -1.0)[0]).reshape(y.shape)

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        (half,) = _powers(self._blocks(v), -0.5)
        slope = half @ self._blocks(dv) @ half
        least = symmetric_eigen(0.5 * (slope + mx.swapaxes(slope, -1, -2)))[0][..., 0]
        steps = mx.where(least < 0, -1.0 / mx.where(least < 0, least, -1.0), mx.inf)
        return mx.min(steps, axis=1, keepdims=True)


@dataclass(frozen=True)
class Semidefinite2:
    """``count`` cones of 2 x 2 matrices: second-order cones of dimension 3, turned.

    [[a, b], [b, c]] is positive semidefinite if and only if a + c >= |(2 b, a - c)|. So rows
    (a, sqrt 2 b, c) belong to ((a + c) / sqrt 2, sqrt 2 b, (a - c) / sqrt 2) in a second-order
    cone; this map is an isometry and its own inverse.
    """

    count: int

    @property
    def rows(self) -> int:
        return self._turned.rows

    @cached_property
    def _turned(self) -> SecondOrder:
        return SecondOrder(self.count, 3)

    def _turn(self, v: mx.array) -> mx.array:
        """The map, applied to (B, rows) or to the columns of (B, rows, k)."""
        blocks = v.reshape(v.shape[0], self.count, 3, -1)
        a, b, c = (blocks[:, :, i] for i in range(3))
        half = math.sqrt(0.5)
        return mx.stack([half * (a + c), b, half * (a - c)], axis=2).reshape(v.shape)

    def project_dual(self, z: mx.array) -> mx.array:
        return self._turn(self._turned.project_dual(self._turn(z)))

    def derivative(self, z: mx.array) -> second_order.Atoms:
        return self._turned.derivative(self._turn(z))

    def spectral(self, atoms: second_order.Atoms, function: Spectral, v: mx.array) -> mx.array:
        return self._turn(self._turned.spectral(atoms, function, self._turn(v)))

    def signature(self, atoms: second_order.Atoms) -> mx.array:
        return self._turned.signature(atoms)

    @property
    def degree(self) -> int:
        # Of the second-order cones: a multiple of a barrier serves as well.
        return self._turned.degree

    def centre(self, dtype: mx.Dtype) -> mx.array:
        return self._turn(self._turned.centre(dtype)[None])[0]

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> second_order.Atoms:
        return self._turned.scaling(self._turn(s), self._turn(y), mu)

    def correction(
        self, atoms: second_order.Atoms, y: mx.array, ds: mx.array, dy: mx.array
    ) -> mx.array:
        return self._turn(self._turned.correction(atoms, *(self._turn(v) for v in (y, ds, dy))))

    def inverse(self, y: mx.array) -> mx.array:
        return self._turn(self._turned.inverse(self._turn(y)))

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        return self._turned.room(self._turn(v), self._turn(dv), dual)
