"""The zero cone {0}; its dual is the whole space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxcone.cones.base import Spectral


class Atoms(NamedTuple):
    """D = I."""

    eigenvalues: mx.array


@dataclass(frozen=True)
class Zero:
    """``count`` equality rows."""

    count: int

    @property
    def rows(self) -> int:
        return self.count

    def project_dual(self, z: mx.array) -> mx.array:
        return z

    def derivative(self, z: mx.array) -> Atoms:
        return Atoms(mx.ones_like(z))

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        return function(atoms.eigenvalues)[..., None] * v

    def signature(self, atoms: Atoms) -> mx.array:
        return atoms.eigenvalues

    degree = 0

    def centre(self, dtype: mx.Dtype) -> mx.array:
        return mx.zeros((self.count,), dtype=dtype)

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Atoms:
        # Equalities have s = 0 and no scaling: whoever solves with it keeps them apart.
        return Atoms(mx.ones_like(y))

    def inverse(self, y: mx.array) -> mx.array:
        return mx.zeros_like(y)

    def correction(self, atoms: Atoms, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        return mx.zeros_like(y)

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        return mx.full((v.shape[0], 1), mx.inf, dtype=v.dtype)
