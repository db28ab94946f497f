"""Tangent and adjoint of the solution map by the implicit function theorem on F(x, z) = 0.

Equations 11 and 12 of docs/mathematics.md.

Tangent:  J (dx, dz) = -(r ; t),  r = dP x + dA'y + dq,  t = dA x - db,  dy = D dz, ds = dy - dz.
Adjoint:  J'g = -(x_bar ; D y_bar + (D - I) s_bar),  g = (g_x, g_z), then
          P_bar = sym(g_x x'),  q_bar = g_x,  A_bar = y g_x' + g_z x',  b_bar = -g_z.

Both come from one system, symmetric up to D, so that the tangent is the adjoint's transpose to the
last sweep. With s^ = (I - D) s_bar,

    J'(dx, dy) = -(r ; D t),                             ds = -(I - D)(A dx + dy + t);
    J'(g_x, h) = -(x_bar - A's^ ; D (y_bar - s^)),       g_z = h - s^.

Where J is singular, both are least-norm, in x and y, in equilibrated variables
(`kkt.Jacobian.solve_range`): a direction in which the solution is not unique is no part of them,
and gradients stay bounded.

Both are plain graphs of `mlx.core` operations around a constant factor, so that vmap applies to
them as to any other graph, and differentiating them once more differentiates the sweeps of
iterative refinement, whose fixed point does not depend on that factor.
(Agrawal et al., arXiv 1904.09043; with a quadratic objective arXiv 2508.17522.)
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone.backend import lanes
from mlxcone.backend.devices import on_cpu
from mlxcone.cones.product import Product
from mlxcone.kkt import reduced as kkt
from mlxcone.program import equilibrate
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.operators import Rectangular, outer, outers, row_times
from mlxcone.program.problem import Program
from mlxcone.program.structure import Structure
from mlxcone.settings import Settings
from mlxcone.status import DerivativeWarning


class Accuracy(NamedTuple):
    """Sweeps of iterative refinement, and what they may leave of an adjoint without a warning.

    ``eps`` is relative, 0 for anything.
    """

    sweeps: int = Settings.derivative_sweeps
    eps: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Accuracy:
        return cls(settings.derivative_sweeps, settings.derivative_eps)

    def check(self, remainder: mx.array) -> None:
        """A `DerivativeWarning` if it exceeds eps in a lane, as far as there are values."""
        if not self.eps:
            return
        try:
            sizes: Any = remainder.tolist()
        except (RuntimeError, ValueError):
            return  # traced by vmap or compile
        above = {lane: size for lane, size in enumerate(sizes) if size > self.eps}
        if above:
            warnings.warn(DerivativeWarning(above, self.eps), stacklevel=3)


DEFAULT = Accuracy()


class Anchor(NamedTuple):
    """Where to differentiate: the solution in original units, x (B, n), y and s (B, m), float64.

    The factor alone makes use of the ``structure``: zeros of the data are variables, too. No value
    is looked at if ``traced``.
    """

    x: mx.array
    y: mx.array
    s: mx.array
    scaling: Scaling
    structure: Structure = Structure()
    traced: bool = True


class Gradients(NamedTuple):
    """Cotangents of the data, each of the data's own shape; P is None if there is none."""

    P: mx.array | None
    q: mx.array
    A: mx.array
    b: mx.array


def _linearize(program: Program, cones: Product, anchor: Anchor, sweeps: int) -> kkt.Jacobian:
    scaling = Scaling(*(mx.stop_gradient(a) for a in anchor.scaling))
    _, y, s = scaling.scale(anchor.x, anchor.y, anchor.s)
    scaled = equilibrate.apply(scaling, program)
    atoms = cones.derivative(y - s)
    return kkt.Jacobian(scaled, cones, atoms, _factor(scaled, cones, atoms, anchor), sweeps)


def _factor(program: Program, cones: Product, atoms: list[Any], anchor: Anchor) -> kkt.Factor:
    """A constant factor of an equilibrated program at D."""
    still = Program(
        None if program.P is None else mx.stop_gradient(program.P),
        mx.stop_gradient(program.q),
        Rectangular.of(mx.stop_gradient(program.A.matrix), anchor.structure.of_factors),
        mx.stop_gradient(program.b),
    )
    if anchor.structure.diagonal and not anchor.traced:
        with contextlib.suppress(RuntimeError, ValueError):  # traced by vmap
            still = equilibrate.with_diagonal(still)
    return kkt.factor(still, cones, lanes.each(atoms, mx.stop_gradient))


@on_cpu
def tangent(
    program: Program,
    cones: Product,
    anchor: Anchor,
    dP: mx.array | None,
    dq: mx.array,
    dA: mx.array,
    db: mx.array,
    accuracy: Accuracy = DEFAULT,
) -> tuple[mx.array, mx.array, mx.array]:
    """Directional derivative of x, y and s.

    Args:
        program (Program): float64, original units, rows in internal order.
        cones (Product): its cones.
        anchor (Anchor): the solution.
        dP, dq, dA, db (mx.array): direction, shapes of the data.
        accuracy (Accuracy): of the linear solve.

    Returns:
        tuple: dx (B, n), dy and ds (B, m), float64.
    """
    system = _linearize(program, cones, anchor, accuracy.sweeps)
    x, y, scaling = anchor.x, anchor.y, anchor.scaling
    moved = Rectangular.of(dA)
    r = dq + moved.transpose_times(y)
    if dP is not None:
        r = r + 0.5 * (row_times(x, dP) + row_times(x, mx.swapaxes(dP, -1, -2)))
    t = moved.times(x) - db
    # Rows of F scale by gamma D and beta E.
    r, t = r * scaling.d * scaling.dual, t * scaling.e * scaling.primal
    rows = cones.apply_derivative(system.atoms, t)
    # What is left is not looked at: in the rule of mx.jvp that would cut the graph of mx.grad.
    (dx, dy), _ = system.solve_range(-r, -rows)
    dz = system.program.A.times(dx) + dy + t
    ds = cones.apply_derivative(system.atoms, dz) - dz
    return scaling.unscale(dx, dy, ds)


@on_cpu
def adjoint(
    program: Program,
    cones: Product,
    anchor: Anchor,
    x_bar: mx.array,
    y_bar: mx.array,
    s_bar: mx.array,
    accuracy: Accuracy = DEFAULT,
) -> Gradients:
    """Cotangents of P, q, A and b from those of x, y and s.

    Args:
        program (Program): float64, original units, rows in internal order.
        cones (Product): its cones.
        anchor (Anchor): the solution.
        x_bar (mx.array): (B, n) float64.
        y_bar, s_bar (mx.array): (B, m) float64.
        accuracy (Accuracy): of the linear solve.

    Returns:
        Gradients: q (B, n) and b (B, m) per lane; P and A summed over the lanes if shared. P's
        is symmetric.
    """
    system = _linearize(program, cones, anchor, accuracy.sweeps)
    scaling = anchor.scaling
    # x = D x^ / beta and so on: cotangents scale as the variables do.
    x_bar, y_bar, s_bar = scaling.unscale(x_bar, y_bar, s_bar)
    s_bar = s_bar - cones.apply_derivative(system.atoms, s_bar)
    rows = cones.apply_derivative(system.atoms, y_bar - s_bar)
    r = system.program.A.transpose_times(s_bar) - x_bar
    (gx, gz), remainder = system.solve_range(r, -rows, look=not anchor.traced)
    gx, gz = gx * scaling.d * scaling.dual, (gz - s_bar) * scaling.e * scaling.primal
    A_bar = outers([anchor.y, gz], [gx, anchor.x], program.A.matrix.ndim == 2)
    P_bar = None
    if program.P is not None:
        half = outer(gx, anchor.x, program.P.ndim == 2)
        P_bar = 0.5 * (half + mx.swapaxes(half, -1, -2))
    accuracy.check(remainder)
    return Gradients(P_bar, gx, A_bar, -gz)
