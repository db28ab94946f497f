"""The optimality system F(x, z) = 0 and its Jacobian J, written once for three uses.

With z = y - s and Pi the projection onto K*, y = Pi(z) and s = Pi(z) - z lie in their cones and
are complementary for every z, and

    F(x, z) = [ P x + A'Pi(z) + q ;  A x + Pi(z) - z - b ],     J = [ P, A'D ; A, D - I ].

(Busseti, Moursi, Boyd, arXiv 1811.02157, for the embedding; here with a quadratic objective:
docs/mathematics.md, equation 3.)
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxcone.cones.product import Product
from mlxcone.program.problem import Program

Pair = tuple[mx.array, mx.array]


def evaluate(program: Program, cones: Product, x: mx.array, z: mx.array) -> Pair:
    """F(x, z), (B, n) and (B, m)."""
    return at(program, x, z, cones.project_dual(z))


def at(program: Program, x: mx.array, z: mx.array, y: mx.array) -> Pair:
    """F(x, z) where y = Pi(z) is known."""
    dual = program.P_times(x) + program.A.transpose_times(y) + program.q
    return dual, program.A.times(x) + y - z - program.b


def jacobian_times(program: Program, cones: Product, atoms: list[Any], w: Pair) -> Pair:
    """J w for w = (dx, dz)."""
    dx, dz = w
    dy = cones.apply_derivative(atoms, dz)
    return (
        program.P_times(dx) + program.A.transpose_times(dy),
        program.A.times(dx) + dy - dz,
    )


def transpose_times(program: Program, cones: Product, atoms: list[Any], g: Pair) -> Pair:
    """J'g for g = (g_x, g_z)."""
    gx, gz = g
    return (
        program.P_times(gx) + program.A.transpose_times(gz),
        cones.apply_derivative(atoms, program.A.times(gx) + gz) - gz,
    )
