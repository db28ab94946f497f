"""Equalities, then inequalities: {0}^k x R_+^l, whose dual is R^k x R_+^l."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxcone.cones.base import Spectral


class Atoms(NamedTuple):
    """D is diagonal: 1 for equalities and where z > 0, else 0 (the least subgradient at 0)."""

    eigenvalues: mx.array


@functools.lru_cache(maxsize=256)
def _bounds(zero: int, nonneg: int) -> np.ndarray:
    return np.repeat(np.array([-np.inf, 0.0], dtype=np.float32), [zero, nonneg])


def _least(zero: int, nonneg: int, dtype: mx.Dtype) -> mx.array:
    """Lower bounds of the dual cone."""
    # Kept by NumPy: an mx.array made while mx.compile traces belongs to that trace.
    return mx.array(_bounds(zero, nonneg)).astype(dtype)


@dataclass(frozen=True)
class Linear:
    """``zero`` equality rows, then ``nonneg`` inequality rows."""

    zero: int
    nonneg: int

    @property
    def rows(self) -> int:
        return self.zero + self.nonneg

    @property
    def count(self) -> int:
        return self.rows

    def inequalities(self, dtype: mx.Dtype) -> mx.array:
        """1 where a row is an inequality, (rows,)."""
        return (_least(self.zero, self.nonneg, dtype) == 0).astype(dtype)

    def project(self, w: mx.array) -> mx.array:
        """Projection onto K."""
        if not self.nonneg:
            return mx.zeros_like(w)
        above = mx.maximum(w, 0.0)
        return above * self.inequalities(w.dtype) if self.zero else above

    def project_dual(self, z: mx.array) -> mx.array:
        if not self.nonneg:
            return z
        return mx.maximum(z, _least(self.zero, self.nonneg, z.dtype) if self.zero else 0.0)

    def derivative(self, z: mx.array) -> Atoms:
        if not self.nonneg:
            return Atoms(mx.ones_like(z))
        above = z > (_least(self.zero, self.nonneg, z.dtype) if self.zero else 0.0)
        return Atoms(above.astype(z.dtype))

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        return function(atoms.eigenvalues)[..., None] * v

    def signature(self, atoms: Atoms) -> mx.array:
        return atoms.eigenvalues

    @property
    def degree(self) -> int:
        return self.nonneg

    def centre(self, dtype: mx.Dtype) -> mx.array:
        return self.inequalities(dtype)

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Atoms:
        # Equalities have s = 0 and no scaling: whoever solves with it keeps them apart.
        return Atoms(self._where(s, y, 1.0))

    def inverse(self, y: mx.array) -> mx.array:
        return self._where(mx.ones_like(y), y, 0.0)

    def correction(self, atoms: Atoms, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        return self._where(ds * dy, y, 0.0)

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        if not self.nonneg:
            return mx.full((v.shape[0], 1), mx.inf, dtype=v.dtype)
        v, dv = v[:, self.zero :], dv[:, self.zero :]
        falls = dv < 0
        steps = mx.where(falls, -v / mx.where(falls, dv, -1.0), mx.inf)
        return mx.min(steps, axis=1, keepdims=True)

    def _where(self, over: mx.array, under: mx.array, other: float) -> mx.array:
        """A quotient on inequalities, something else on equalities."""
        if not self.zero:
            return over / under
        inequality = _least(self.zero, self.nonneg, under.dtype) == 0
        return mx.where(inequality, over / mx.where(inequality, under, 1.0), other)
