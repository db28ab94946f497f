"""(P + rho_x I + A'R A)^-1 v by conjugate gradients, for matrices too large to factor.

Hestenes and Stiefel (1952), preconditioned by the diagonal. A lane stops where its residual is
small enough, whatever the others do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone.residuals import dot
from mlxcone.sparse import SparseProgram

_TINY = 1e-30


class Conjugate(NamedTuple):
    """The matrices, R (1 or B, m), rho_x, the diagonal (1 or B, n), and when to stop.

    ``rtol`` is relative to the right-hand side, ``most`` a number of iterations.
    """

    program: SparseProgram
    weights: mx.array
    rho_x: float
    diagonal: mx.array
    rtol: float
    most: int

    @classmethod
    def of(
        cls, program: SparseProgram, weights: mx.array, rho_x: float, rtol: float, most: int
    ) -> Conjugate:
        """For weights (1 or B, m)."""
        diagonal = program.A.square_columns(weights) + rho_x
        if program.P is not None:
            diagonal = diagonal + program.P.diagonal()
        return cls(program, weights, rho_x, diagonal, rtol, most)

    def _product(self, p: mx.array) -> mx.array:
        A = self.program.A
        bent = A.transpose_times(self.weights * A.times(p))
        return self.program.P_times(p) + self.rho_x * p + bent

    def times(self, v: mx.array) -> mx.array:
        """Solve for ``v``, (B, n)."""
        x, r = mx.zeros_like(v), v
        z = r / self.diagonal
        p, rz = z, dot(r, z)[:, None]
        goal = self.rtol * self.rtol * rz
        for _ in range(self.most):
            Kp = self._product(p)
            open_ = rz > goal
            step = mx.where(open_, rz / mx.maximum(dot(p, Kp)[:, None], _TINY), 0.0)
            x, r = x + step * p, r - step * Kp
            z = r / self.diagonal
            before, rz = rz, mx.where(open_, dot(r, z)[:, None], rz)
            p = z + rz / mx.maximum(before, _TINY) * p
            left: Any = mx.any(rz > goal).item()
            if not left:
                break
        return x

    def take(self, chosen: mx.array) -> Conjugate:
        """Some lanes."""
        weights, diagonal = (
            a if a.shape[0] == 1 else a[chosen] for a in (self.weights, self.diagonal)
        )
        return self._replace(program=self.program.take(chosen), weights=weights, diagonal=diagonal)

    def astype(self, dtype: mx.Dtype) -> Conjugate:
        """In another dtype."""
        return self._replace(
            program=self.program.astype(dtype),
            weights=self.weights.astype(dtype),
            diagonal=self.diagonal.astype(dtype),
        )
