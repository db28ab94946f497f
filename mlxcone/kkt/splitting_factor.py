"""The splitting's linear system (P + rho_x I + A'R A)^-1, factored for one scale or for all.

R = scale * diag(unit). Where lanes share P and A but want scales of their own, the generalized
eigenvectors of (A'diag(unit) A, P + rho_x I) diagonalize the system for every scale at once:

    V'(P + rho_x I) V = I,  V'A'diag(unit) A V = diag(l):   (...)^-1 = V diag(1/(1 + scale l)) V'.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlxcone.backend import lanes
from mlxcone.backend.linalg import spd_inverse, spd_pencil
from mlxcone.kkt import low_rank
from mlxcone.kkt import reduced as kkt
from mlxcone.kkt.conjugate import Conjugate
from mlxcone.kkt.low_rank import LowRank
from mlxcone.program.operators import row_times
from mlxcone.program.problem import Program, take_lanes


class Explicit(NamedTuple):
    """The inverse itself, (n, n) for all lanes or (B, n, n)."""

    inverse: mx.array

    def times(self, v: mx.array) -> mx.array:
        """Solve for ``v``, (B, n)."""
        return row_times(v, self.inverse)

    def take(self, chosen: mx.array) -> Explicit:
        """Some lanes."""
        return Explicit(take_lanes(self.inverse, chosen, 3))

    def put(self, chosen: mx.array, new: Explicit) -> Explicit:
        """With those of some lanes replaced."""
        return Explicit(lanes.put(self.inverse, chosen, new.inverse))

    def astype(self, dtype: mx.Dtype) -> Explicit:
        """In another dtype."""
        return Explicit(self.inverse.astype(dtype))


class Spectral(NamedTuple):
    """V (n, n), V' (n, n), and 1 / (1 + scale l) per lane, (B, n)."""

    basis: mx.array
    transposed: mx.array
    damping: mx.array

    def times(self, v: mx.array) -> mx.array:
        """Solve for ``v``, (B, n)."""
        return ((v @ self.basis) * self.damping) @ self.transposed

    def take(self, chosen: mx.array) -> Spectral:
        """Some lanes."""
        return self._replace(damping=self.damping[chosen])

    def astype(self, dtype: mx.Dtype) -> Spectral:
        """In another dtype."""
        return Spectral(*(a.astype(dtype) for a in self))


Factor = Explicit | Spectral | LowRank | Conjugate


def factor(program: Program, scale: mx.array, unit: mx.array, rho_x: float) -> Factor:
    """The inverse at scales (1 or B, 1), in the form that fits the program."""
    if low_rank.fits(program):
        return low_rank.factor(program, scale * unit, rho_x)
    return explicit(program, scale, unit, rho_x)


def explicit(program: Program, scale: mx.array, unit: mx.array, rho_x: float) -> Explicit:
    """Inverse at ``scale`` (1 or B, 1); one for all lanes if scale and matrices are.

    Args:
        program (Program): equilibrated, float64.
        scale (mx.array): (1 or B, 1).
        unit (mx.array): weights of the rows at scale 1, (m,).
        rho_x (float): proximal weight on x.
    """
    weights = scale * unit
    shared = weights.shape[0] == 1 and program.A.matrix.ndim == 2
    rows = weights[0][:, None] if shared else weights[:, :, None]
    inverse, _ = spd_inverse(kkt.normal_matrix(program, rows * program.A.matrix, rho_x))
    return Explicit(inverse)


class Pencil(NamedTuple):
    """V and l of the shared matrices."""

    basis: mx.array
    values: mx.array

    @classmethod
    def of(cls, program: Program, unit: mx.array, rho_x: float) -> Pencil:
        """Arguments as in `explicit`; the matrices are shared."""
        A = program.A.matrix
        eye = mx.eye(program.n, dtype=program.q.dtype)
        base = rho_x * eye if program.P is None else program.P + rho_x * eye
        return cls(*spd_pencil(base, program.A.transposed @ (unit[:, None] * A)))

    def at(self, scale: mx.array) -> Spectral:
        """The factor for scales (B, 1)."""
        damping = 1.0 / (1.0 + scale * mx.maximum(self.values, 0.0))
        return Spectral(self.basis, mx.contiguous(self.basis.T), damping)
