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

    def uniform(self, weights: mx.array) -> mx.array:
        return weights
