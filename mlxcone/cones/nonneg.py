"""The nonnegative orthant; self-dual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxcone.cones.base import Spectral


class Atoms(NamedTuple):
    """D is diagonal: 1 where z > 0, else 0 (the least element of the subdifferential at 0)."""

    eigenvalues: mx.array


@dataclass(frozen=True)
class NonNeg:
    """``count`` inequality rows."""

    count: int

    @property
    def rows(self) -> int:
        return self.count

    def project_dual(self, z: mx.array) -> mx.array:
        return mx.maximum(z, 0.0)

    def derivative(self, z: mx.array) -> Atoms:
        return Atoms((z > 0).astype(z.dtype))

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        return function(atoms.eigenvalues)[..., None] * v

    def signature(self, atoms: Atoms) -> mx.array:
        return atoms.eigenvalues

    @property
    def degree(self) -> int:
        return self.count

    def centre(self, dtype: mx.Dtype) -> mx.array:
        return mx.ones((self.count,), dtype=dtype)

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Atoms:
        return Atoms(s / y)

    def inverse(self, y: mx.array) -> mx.array:
        return 1.0 / y

    def correction(self, atoms: Atoms, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        return ds * dy / y

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        falls = dv < 0
        steps = mx.where(falls, -v / mx.where(falls, dv, -1.0), mx.inf)
        return mx.min(steps, axis=1, keepdims=True)
