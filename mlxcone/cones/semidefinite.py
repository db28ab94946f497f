"""The cone of positive semidefinite matrices, as scaled lower triangles; self-dual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import mlx.core as mx

from mlxcone._linalg import symmetric_eigen
from mlxcone.cones.base import Spectral

_ROOT = math.sqrt(2.0)


class Atoms(NamedTuple):
    """D V = Q (theta * (Q'V Q)) Q' for the eigenvectors Q of the point.

    ``eigenvalues`` theta and ``vectors`` Q are (B, count, order, order).
    """

    eigenvalues: mx.array
    vectors: mx.array


@dataclass(frozen=True)
class Semidefinite:
    """``count`` cones of ``order`` x ``order`` matrices, order >= 2.

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
        return mx.take(v, mx.array(rows), axis=-1).reshape(*v.shape[:-1], self.order, self.order)

    def _triangles(self, matrices: mx.array) -> mx.array:
        """(..., order, order) to (..., size)."""
        _, entries, scale = self._places
        flat = matrices.reshape(*matrices.shape[:-2], self.order * self.order)
        return mx.take(flat, mx.array(entries), axis=-1) * mx.array(scale, dtype=flat.dtype)

    def _blocks(self, z: mx.array) -> mx.array:
        return self._matrices(z.reshape(z.shape[0], self.count, self._size))

    def project_dual(self, z: mx.array) -> mx.array:
        values, vectors = symmetric_eigen(self._blocks(z))
        scaled = vectors * mx.maximum(values, 0.0)[..., None, :]
        return self._triangles(scaled @ mx.swapaxes(vectors, -1, -2)).reshape(z.shape)

    def derivative(self, z: mx.array) -> Atoms:
        values, vectors = symmetric_eigen(self._blocks(z))
        positive, size = mx.maximum(values, 0.0), mx.abs(values)
        # Nothing cancels, and equal eigenvalues need no case of their own (Malick, Sendov 2006).
        above = positive[..., :, None] + positive[..., None, :]
        whole = size[..., :, None] + size[..., None, :]
        return Atoms(above / mx.where(whole > 0, whole, 1.0), vectors)

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        columns = v.reshape(v.shape[0], self.count, self._size, v.shape[-1])
        inner = self._matrices(mx.swapaxes(columns, -1, -2))
        Q = atoms.vectors[:, :, None]
        Qt = mx.swapaxes(Q, -1, -2)
        weighted = function(atoms.eigenvalues)[:, :, None] * (Qt @ inner @ Q)
        out = mx.swapaxes(self._triangles(Q @ weighted @ Qt), -1, -2)
        return out.reshape(out.shape[0], self.rows, v.shape[-1])

    def signature(self, atoms: Atoms) -> mx.array:
        # D on two vectors: eigenvectors of equal eigenvalues may turn, and D does not.
        places = mx.arange(self.rows, dtype=mx.float32).astype(atoms.vectors.dtype)
        probes = mx.stack([mx.cos(places * places), mx.sin(1.0 + places * places)], axis=-1)
        image = self.spectral(atoms, lambda eigenvalue: eigenvalue, probes[None])
        return image.reshape(image.shape[0], -1)

    def uniform(self, weights: mx.array) -> mx.array:
        blocks = weights.reshape(weights.shape[0], self.count, self._size)
        largest = mx.max(blocks, axis=-1, keepdims=True)
        return mx.broadcast_to(largest, blocks.shape).reshape(weights.shape)
