"""J reduced to n x n: factor and solve.

With sigma, eps > 0 in place of the zero blocks, M = J + diag(sigma I, -eps I) has
E = (1 + eps) I - D in its corner, which is easy to invert cone by cone. With W = D E^-1 (so that
E^-1 = (I + W) / (1 + eps)) and H = P + sigma I + A'W A (symmetric positive definite),

    M (dx, dz) = (r, t):    H dx = r + A'W t,            dz = E^-1 (A dx - t),
    M'(gx, gz) = (r, t):    H gx = r + A'E^-1 t,         gz = W A gx - E^-1 t.

Sweeps of iterative refinement on J itself remove the bias of sigma and eps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxcone import residual_map
from mlxcone._linalg import spd_inverse
from mlxcone.cones.product import Product
from mlxcone.operators import row_times
from mlxcone.problem import Program
from mlxcone.residual_map import Pair

EPSILON = 1e-7  # on the cone block
SIGMA = 1e-8  # on the x block


def normal_matrix(program: Program, weighted: mx.array, sigma: float | mx.array) -> mx.array:
    """P + sigma I + A'(weighted), where ``weighted`` is W A, (m, n) or (B, m, n)."""
    eye = mx.eye(program.n, dtype=program.q.dtype)
    base = sigma * eye if program.P is None else program.P + sigma * eye
    if program.m == 0:
        return base
    return base + program.A.transposed @ weighted


def _penalty(eps: float) -> Callable[[mx.array], mx.array]:
    return lambda eigenvalue: eigenvalue / ((1.0 + eps) - eigenvalue)


def weighted_rows(program: Program, cones: Product, atoms: list[Any], function: Any) -> mx.array:
    """function(D) A, (B, m, n)."""
    matrix = program.A.matrix
    return cones.spectral(atoms, function, matrix if matrix.ndim == 3 else matrix[None])


def reduced_inverse(
    program: Program, cones: Product, atoms: list[Any], eps: float = EPSILON, sigma: float = SIGMA
) -> tuple[mx.array, mx.array]:
    """H^-1, (B, n, n), and whether H could be factored, (B,)."""
    weighted = weighted_rows(program, cones, atoms, _penalty(eps))
    H = normal_matrix(program, weighted, sigma)
    if H.ndim == 2:
        H = mx.broadcast_to(H[None], (program.lanes, *H.shape))
    return spd_inverse(H)


class Jacobian:
    """J at one point, with an approximate H^-1, ready to solve with J and J'.

    Args:
        program (Program): equilibrated program.
        cones (Product): its cones.
        atoms (list): D at the point.
        inverse (mx.array): H^-1 there or near it, (B, n, n).
        sweeps (int): sweeps of iterative refinement.
    """

    def __init__(
        self,
        program: Program,
        cones: Product,
        atoms: list[Any],
        inverse: mx.array,
        sweeps: int = 2,
        eps: float = EPSILON,
    ) -> None:
        self.program, self.cones, self.atoms = program, cones, atoms
        self.inverse, self.sweeps, self.eps = inverse, sweeps, eps

    def _weight(self, v: mx.array) -> mx.array:
        return self.cones.spectral(self.atoms, _penalty(self.eps), v)

    def _reduced(self, r: mx.array, t: mx.array) -> Pair:
        A = self.program.A
        dx = row_times(r + A.transpose_times(self._weight(t)), self.inverse)
        v = A.times(dx) - t
        return dx, (v + self._weight(v)) / (1.0 + self.eps)

    def _reduced_transpose(self, r: mx.array, t: mx.array) -> Pair:
        A = self.program.A
        u = (t + self._weight(t)) / (1.0 + self.eps)
        gx = row_times(r + A.transpose_times(u), self.inverse)
        return gx, self._weight(A.times(gx)) - u

    def solve(self, r: mx.array, t: mx.array) -> Pair:
        """(dx, dz) with J (dx, dz) = (r, t)."""
        return self._refine(self._reduced, residual_map.jacobian_times, (r, t))

    def solve_transpose(self, r: mx.array, t: mx.array) -> Pair:
        """(gx, gz) with J'(gx, gz) = (r, t)."""
        return self._refine(self._reduced_transpose, residual_map.transpose_times, (r, t))

    def _refine(self, solve: Callable[..., Pair], product: Callable[..., Pair], rhs: Pair) -> Pair:
        w = solve(*rhs)
        for _ in range(self.sweeps):
            image = product(self.program, self.cones, self.atoms, w)
            step = solve(rhs[0] - image[0], rhs[1] - image[1])
            w = (w[0] + step[0], w[1] + step[1])
        return w
