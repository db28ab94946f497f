"""A smoothed derivative, for a training signal where the solution map is flat or has kinks.

At a vertex of a linear program x does not move with q. With mu > 0 the answer stays exact, but is
differentiated as if it were x_mu, the minimizer of

    1/2 x'P x + q'x + mu f(s)    subject to    A x + s = b,

f the logarithmic barrier of K: a smooth function of the data, with (docs/mathematics.md, equation
13)

    P x + A'y + q = 0,    A x + s = b,    s = mu g(y),

g minus the gradient of the barrier of K*. There ds = -W^2 dy with W^2 = mu times the Hessian of
that barrier. So dy = D dz for z = y - s and D = (I + W^2)^-1: the optimality system has the
Jacobian of `kkt`, with this D for the derivative of the projection.

A lane that has no x_mu (`centring`) keeps the ordinary derivative.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxcone.backend.devices import on_cpu
from mlxcone.cones.product import Product
from mlxcone.derivatives import implicit as derivative
from mlxcone.derivatives.implicit import DEFAULT, Accuracy, Anchor, Gradients
from mlxcone.kkt import reduced as kkt
from mlxcone.methods import centring, interior
from mlxcone.methods.centring import Central
from mlxcone.program import equilibrate
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.operators import Rectangular, outer, outers, row_times
from mlxcone.program.problem import Program

_SWEEPS = 4


def _refuse(*_: Any) -> Any:
    raise NotImplementedError(
        "smoothing: the smoothed derivative has no derivative itself; set smoothing=0 for second "
        "derivatives"
    )


# The identity, on arrays that a derivative stands on: a second one would miss their motion.
_once = mx.custom_function(lambda *arrays: arrays)
_once.jvp(_refuse)
_once.vjp(_refuse)


@_once.vmap
def _once_vmap(arrays: Any, axes: Any) -> Any:
    return tuple(arrays), tuple(axes)


class _Smooth:
    """The linear system at x_mu, and x and y there in original units and rows.

    Args:
        cones (Product): the cones of the program.
        scaling (Scaling): its equilibration.
        central (Central): of `centre`.
        mu (float): what it was made with.
    """

    def __init__(self, cones: Product, scaling: Scaling, central: Central, mu: float) -> None:
        self.cones = cones
        self.scaling = Scaling(*(mx.stop_gradient(a) for a in scaling))
        still: Any = _once(*central[:4])
        self.x, self._y, self._s, root = still
        self._factor = kkt.Root(root)
        self.y = interior.join_boxes(cones, self._y) * self.scaling.e / self.scaling.dual
        self._mu = mu * self.scaling.primal * self.scaling.dual

    def system(self, boxed: Program) -> tuple[kkt.Jacobian, mx.array, mx.array]:
        """J of an equilibrated program, and its q and b, with inequalities for boxes in b.

        J has neither of these, so that they may be any right-hand sides.
        """
        program, cones = interior.split_boxes(boxed, self.cones)
        atoms = centring.atoms(cones, self._y, self._s, self._mu)
        jacobian = kkt.Jacobian(program, cones, atoms, self._factor, _SWEEPS, centring.EPSILON)
        return jacobian, program.q, program.b

    def tangent(
        self, program: Program, dP: mx.array | None, dq: mx.array, dA: mx.array, db: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        moved = Rectangular.of(dA)
        r = dq + moved.transpose_times(self.y)
        if dP is not None:
            x, turned = self.x, mx.swapaxes(dP, -1, -2)
            r = r + 0.5 * (row_times(x, dP) + row_times(x, turned))
        t = moved.times(self.x) - db
        scaling = self.scaling
        J, right, rows = self.system(equilibrate.apply(scaling, program._replace(q=r, b=t)))
        dx, dz = J.solve(-right, -rows)
        dy = interior.join_boxes(self.cones, J.cones.apply_derivative(J.atoms, dz))
        dx, dy, _ = scaling.unscale(dx, dy, dy)
        return dx, dy, -t - program.A.times(dx)

    def adjoint(
        self, program: Program, x_bar: mx.array, y_bar: mx.array, s_bar: mx.array
    ) -> Gradients:
        # s = b - A x: its cotangent is one of b, of A and of x.
        x_bar = x_bar - program.A.transpose_times(s_bar)
        scaling = self.scaling
        x_bar, y_bar, _ = scaling.unscale(x_bar, y_bar, s_bar)
        boxed = equilibrate.apply(scaling, program)
        J, right, rows = self.system(boxed._replace(q=x_bar, b=y_bar))
        gx, gz = J.solve_transpose(-right, -J.cones.apply_derivative(J.atoms, rows))
        gx = gx * scaling.d * scaling.dual
        gz = interior.join_boxes(self.cones, gz) * scaling.e * scaling.primal - s_bar
        A_bar = outers([self.y, gz], [gx, self.x], program.A.matrix.ndim == 2)
        P_bar = None
        if program.P is not None:
            half = outer(gx, self.x, program.P.ndim == 2)
            P_bar = 0.5 * (half + mx.swapaxes(half, -1, -2))
        return Gradients(P_bar, gx, A_bar, -gz)


@on_cpu
def tangent(
    program: Program,
    cones: Product,
    anchor: Anchor,
    central: Central,
    mu: float,
    dP: mx.array | None,
    dq: mx.array,
    dA: mx.array,
    db: mx.array,
    accuracy: Accuracy = DEFAULT,
) -> tuple[mx.array, mx.array, mx.array]:
    """Directional derivative of x_mu, y and s there; of the solution in lanes not centred.

    Args:
        program (Program): float64, original units, rows in internal order.
        cones (Product): its cones.
        anchor (Anchor): the solution.
        central (Central): of `centre`.
        mu (float): what ``central`` was made with.
        dP, dq, dA, db (mx.array): direction, shapes of the data.
        accuracy (Accuracy): of the derivatives of lanes that are not centred.

    Returns:
        tuple: dx (B, n), dy and ds (B, m), float64.

    Raises:
        NotImplementedError: when this is differentiated.
    """
    smooth = _Smooth(cones, anchor.scaling, central, mu).tangent(program, dP, dq, dA, db)
    plain = derivative.tangent(program, cones, anchor, dP, dq, dA, db, accuracy)
    centred = central.centred[:, None]
    dx, dy, ds = (mx.where(centred, a, b) for a, b in zip(smooth, plain, strict=True))
    return dx, dy, ds


@on_cpu
def adjoint(
    program: Program,
    cones: Product,
    anchor: Anchor,
    central: Central,
    mu: float,
    x_bar: mx.array,
    y_bar: mx.array,
    s_bar: mx.array,
    accuracy: Accuracy = DEFAULT,
) -> Gradients:
    """Cotangents of P, q, A and b from those of x, y and s, as if these were at x_mu.

    Args:
        program (Program): float64, original units, rows in internal order.
        cones (Product): its cones.
        anchor (Anchor): the solution, for the lanes that are not centred.
        central (Central): of `centre`.
        mu (float): what ``central`` was made with.
        x_bar (mx.array): (B, n) float64.
        y_bar, s_bar (mx.array): (B, m) float64.
        accuracy (Accuracy): of the derivatives of lanes that are not centred.

    Returns:
        Gradients: q (B, n) and b (B, m) per lane; P and A summed over the lanes if shared. P's
        is symmetric.

    Raises:
        NotImplementedError: when this is differentiated.
    """
    bars, centred = (x_bar, y_bar, s_bar), central.centred[:, None]
    # Matrices may be shared by lanes of both kinds, so each kind gets its own cotangents.
    smooth = _Smooth(cones, anchor.scaling, central, mu).adjoint(
        program, *(mx.where(centred, v, 0.0) for v in bars)
    )
    bars = (mx.where(centred, 0.0, v) for v in bars)
    plain = derivative.adjoint(program, cones, anchor, *bars, accuracy=accuracy)
    P_bar = None if smooth.P is None or plain.P is None else smooth.P + plain.P
    return Gradients(P_bar, smooth.q + plain.q, smooth.A + plain.A, smooth.b + plain.b)
