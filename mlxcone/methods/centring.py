"""The minimizers x_mu of cone programs with a logarithmic barrier, by Newton's method.

    P x + A'y + q = 0,    A x + s = b,    s = mu g(y),

g minus the gradient of the barrier of K*. The barriers of K are -sum log s, -log(t^2 - |u|^2),
-log det S, and of the other cones the conjugates of those in `cones.barrier`. A box counts as its
inequalities. A lane without a strictly feasible point, or whose solutions are unbounded, has no
x_mu.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone.backend import lanes
from mlxcone.backend.devices import on_cpu
from mlxcone.cones.exponential import Exponential
from mlxcone.cones.linear import Linear
from mlxcone.cones.power import Power
from mlxcone.cones.power_nd import PowerND
from mlxcone.cones.product import Product
from mlxcone.cones.second_order import SecondOrder
from mlxcone.cones.semidefinite import Semidefinite2
from mlxcone.kkt import reduced as kkt
from mlxcone.kkt.scaled_system import Reduced
from mlxcone.methods import interior
from mlxcone.program import equilibrate
from mlxcone.program.equilibrate import Scaling
from mlxcone.program.problem import Program
from mlxcone.program.residuals import dot

_NEAR = 0.99  # share of the way to the boundary
_FASTEST = 0.1  # of the complementarity is aimed at, until that is mu
_SHORT = 0.5  # size of a step that needs no look at the boundary
_PATIENCE = 15  # steps that do not halve the size
_STUCK = 1e-8  # a shorter step ends a lane
_STEPS = 60  # of centring
_LOCAL_STEPS = 16  # of the start, cone by cone
_CENTRED = 1e-7  # step beside s and y from which one more lands at the last digit
_EXACT = 1e-13  # the last digit
EPSILON, _SIGMA = 1e-9, 1e-10  # regularization of the factor


class Central(NamedTuple):
    """The points x_mu of a batch, and a factor there.

    x (B, n) is in original units, y and s are equilibrated, with inequalities for boxes;
    ``root`` is that of the equilibrated H^-1 (`kkt.Root`). In lanes that are not ``centred``, (B,),
    all of them are numbers without meaning.
    """

    x: mx.array
    y: mx.array
    s: mx.array
    root: mx.array
    centred: mx.array


def _by_rows(cones: Product, value: Callable[[Any], float], dtype: mx.Dtype) -> mx.array:
    """A number of each group on each of its rows, (m,)."""
    parts = [mx.full((group.rows,), value(group), dtype=dtype) for group in cones.groups]
    return mx.concatenate(parts) if parts else mx.zeros((0,), dtype=dtype)


def _weight(group: Any) -> float:
    """What the barrier of a group is multiplied with: `SecondOrder` has half of it."""
    return 2.0 if isinstance(group, SecondOrder | Semidefinite2) else 1.0


def _without_scaling(group: Any) -> bool:
    return isinstance(group, Exponential | Power | PowerND)


class _Point(NamedTuple):
    """x (B, n); y and s (B, m)."""

    x: mx.array
    y: mx.array
    s: mx.array


class _Centring:
    """Newton's method on the equations of x_mu, for some lanes of an equilibrated program.

    Args:
        program (Program): without boxes.
        cones (Product): its cones.
        mu (mx.array): (B, 1), in the units of the program.
    """

    def __init__(self, program: Program, cones: Product, mu: mx.array) -> None:
        self.program, self.cones, self.mu = program, cones, mu
        self.weights = _by_rows(cones, _weight, mu.dtype)
        # Where the scaling is the barrier's Hessian at y alone, s has no say: it follows from y.
        self.follows = _by_rows(cones, _without_scaling, mx.bool_)
        groups: list[Any] = cones.groups
        self.degree = sum(_weight(group) * group.degree for group in groups)

    def inverse(self, y: mx.array) -> mx.array:
        """g(y), (B, m)."""
        return self.weights * self.cones.barrier_inverse(y)

    def _length(self, y: mx.array, dy: mx.array, dual: bool) -> mx.array:
        return mx.minimum(_NEAR * self.cones.room(y, dy, dual), 1.0)

    def start(self, x: mx.array, y: mx.array, s: mx.array) -> _Point:
        """From a solution: y - s = mu g(y) - y becomes what it was, cone by cone."""
        z = y - s
        y = y + mx.sqrt(self.mu) * self.cones.centre(y.dtype)
        for _ in range(_LOCAL_STEPS):
            s = self.mu * self.inverse(y)
            atoms = self.cones.scaling(s, y, self.mu)
            left = z + s - y
            dy = self.cones.spectral(atoms, lambda w: 1.0 / (1.0 + w), left)
            # Equalities have y = z already.
            y = y + self._length(y, dy, True) * dy
        return _Point(x, y, self.mu * self.inverse(y))

    def advance(self, at: _Point) -> tuple[_Point, mx.array, mx.array]:
        """The next point; length of the step; size of the whole step beside s and y, (B, 1)."""
        program, cones = self.program, self.cones
        now = dot(at.s, at.y)[:, None] / max(self.degree, 1.0)
        aim = mx.maximum(self.mu, _FASTEST * now)
        at = at._replace(s=mx.where(self.follows, aim * self.inverse(at.y), at.s))
        system = Reduced(program, cones, cones.scaling(at.s, at.y, aim))
        rx = program.P_times(at.x) + program.A.transpose_times(at.y) + program.q
        rz = program.A.times(at.x) + at.s - program.b
        c = aim * self.inverse(at.y) - at.s
        dx, dy, _ = system.solve(-rx, -rz - c)
        square = system.square(dy)
        ds = c - square
        unsquared = cones.spectral(system.atoms, lambda w: 1.0 / w, ds)
        size = mx.sqrt(mx.abs(dot(dy, square) + dot(ds, unsquared))[:, None] / aim)
        size = mx.where(aim > self.mu, mx.inf, size)
        fall = mx.where(self.follows, 0.0, ds)
        length = mx.minimum(self._length(at.s, fall, False), self._length(at.y, dy, True))
        # Barriers are self-concordant: a step this short ends inside.
        length = mx.where(size < _SHORT, 1.0, length)
        sane = system.ok & mx.isfinite(length)
        for part in (dx, dy, ds):
            sane = sane & mx.all(mx.isfinite(part), axis=1, keepdims=True)
        length = mx.where(sane, length, 0.0)
        step = _Point(*(mx.where(sane, part, 0.0) for part in (dx, dy, ds)))
        moved = _Point(*(v + length * d for v, d in zip(at, step, strict=True)))
        return moved, length, mx.where(sane, size, mx.inf)


def _follow(
    program: Program,
    cones: Product,
    mu: mx.array,
    at: _Point,
    which: list[int],
    deadline: float,
) -> tuple[_Point, mx.array]:
    """Centres some lanes; the points of all, and the size (B, 1) of the last step of each."""
    total = program.lanes
    size = mx.full((total, 1), mx.inf, dtype=mu.dtype)
    if not which:
        return at, size
    chosen = lanes.bucket(which, total)
    steps = _Centring(program.take(chosen), cones, mu[chosen])
    here = steps.start(*lanes.take(at, chosen))
    least = last = size[chosen]
    idle = mx.zeros(last.shape, dtype=mx.int32)
    for _ in range(_STEPS):
        moved, length, new = steps.advance(here)
        # Newton's method squares the size; where it does not, rounding has been met.
        better = mx.logical_not((last <= _CENTRED) & (new > 0.5 * last))
        here = _Point(*(mx.where(better, a, b) for a, b in zip(moved, here, strict=True)))
        last = mx.where(better, new, last)
        idle = mx.where((new <= 0.5 * least) | mx.isinf(new), 0, idle + 1)
        least = mx.where(idle == 0, new, least)
        done = mx.logical_not(better) | (new <= _EXACT) | (length <= _STUCK) | (idle > _PATIENCE)
        mx.eval(here, last, done, idle, least)
        at = _Point(*(lanes.put(a, chosen, v) for a, v in zip(at, here, strict=True)))
        size = lanes.put(size, chosen, last)
        left = lanes.where_true(mx.logical_not(done[:, 0]))
        if not left or time.monotonic() > deadline:
            break
        if 2 * len(left) <= chosen.shape[0]:
            keep = lanes.bucket(left, chosen.shape[0])
            chosen, here = chosen[keep], lanes.take(here, keep)
            last, least, idle = (v[keep] for v in (last, least, idle))
            steps = _Centring(program.take(chosen), cones, mu[chosen])
    return at, size


@on_cpu
def centre(
    program: Program,
    scaling: Scaling,
    cones: Product,
    x: mx.array,
    y: mx.array,
    s: mx.array,
    mu: float,
    which: list[int],
    deadline: float = math.inf,
) -> Central:
    """The points x_mu, from solutions.

    Args:
        program (Program): float64, original units, rows in internal order.
        scaling (Scaling): its equilibration; x_mu does not depend on it.
        cones (Product): its cones.
        x, y, s (mx.array): the solutions, (B, n), (B, m), (B, m), in original units.
        mu (float): weight of the barrier, in units of the objective; positive.
        which (list): lanes that have a solution.
        deadline (float): value of ``time.monotonic()`` at which to stop.

    Returns:
        Central: lanes that are not in ``which`` or have no x_mu are not centred.
    """
    boxed = equilibrate.apply(scaling, program)
    x, y, s = scaling.scale(x, y, s)
    # Inequalities of a box start from their slacks; Newton's method finds their multipliers.
    slack = interior.split_boxes(boxed._replace(b=s), cones)[0].b
    scaled, plain = interior.split_boxes(boxed, cones)
    y = _multipliers(cones, y)
    here = mx.broadcast_to(mu * scaling.primal * scaling.dual, (program.lanes, 1))
    at, size = _follow(scaled, plain, here, _Point(x, y, slack), which, deadline)
    centred = size <= _CENTRED
    middle = mx.broadcast_to(plain.centre(y.dtype), slack.shape)
    x = mx.where(centred, at.x, 0.0)
    y, s = (mx.where(centred, v, middle) for v in (at.y, at.s))
    factor, ok = kkt.root(scaled, plain, atoms(plain, y, s, here), EPSILON, _SIGMA)
    x = x * scaling.d / scaling.primal
    central = Central(x, y, s, factor.root, centred[:, 0] & ok)
    mx.eval(central)
    return central


def _multipliers(cones: Product, y: mx.array) -> mx.array:
    """Multipliers (B, m) with zeros for those of a box's inequalities."""
    parts = [
        y[:, lo:hi] if box is None else mx.zeros((y.shape[0], box.inequalities.rows), dtype=y.dtype)
        for lo, hi, box in cones.boxes
    ]
    return mx.concatenate(parts, axis=1) if parts else y


def atoms(cones: Product, y: mx.array, s: mx.array, mu: mx.array) -> list[Any]:
    """Of D = (I + W^2)^-1, the identity on equalities."""
    found = []
    for group, at in zip(cones.groups, cones.scaling(s, y, mu), strict=True):
        linear = isinstance(group, Linear)
        square = at[0] * group.inequalities(y.dtype) if linear else at[0]
        found.append(at._replace(eigenvalues=1.0 / (1.0 + square)))
    return found
