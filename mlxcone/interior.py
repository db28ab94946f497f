"""Interior-point steps in float64 for lanes where Newton's method does not find its active set.

The homogeneous embedding of a quadratic cone program (Goulart and Chen, arXiv 2405.12762),

    P x + A'y + q tau = 0,   A x + s = b tau,   kappa + x'P x / tau + q'x + b'y = 0,

with s in K, y in K* and tau, kappa >= 0, always has a solution: tau > 0 gives one of the program,
kappa > 0 a certificate that there is none. Steps follow its central path s = mu g(y), with g minus
the gradient of the barrier of K*, in Nesterov and Todd's scaling where K is symmetric and in the
dual one elsewhere, with Mehrotra's predictor and, on inequalities, his correction. The system

    [ P  A' ; A  -W^2 ] (dx, dy) = (r, t)

is reduced to H = P + A'W^-2 A on the inequalities and, for the equalities E, to E H^-1 E' (as in
CVXOPT): W^-2 spans twenty orders of magnitude, which Cholesky's method survives as long as no large
weight stands for an equality.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone import lanes
from mlxcone._linalg import spd_root
from mlxcone.cones.product import Product
from mlxcone.operators import Rectangular, row_times
from mlxcone.problem import Program
from mlxcone.residuals import dot, norm

_DAMP = 1e-13  # beside W^2
_SHIFTS = (1e-14, 1e-12, 1e-10, 1e-8, 1e-6)  # beside a unit diagonal, until Cholesky goes through
_SWEEPS = 8  # of iterative refinement, while each halves the residual
_NEAR = 0.99  # share of the way to the boundary
_SHORT = 0.1  # a shorter step is tried again towards the centre
_STUCK = 1e-6
_RAY = 1e-8  # drift of a certificate, beside its value, that ends a lane
_AIM = 1e-3  # violation aimed at: Newton's method begins closer
_PATIENCE = 2  # steps that hardly help a lane that is good enough

Judge = Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]


class Best(NamedTuple):
    """Best x, y and s met, in the order of the program, and the violation there (B,)."""

    x: mx.array
    y: mx.array
    s: mx.array
    violation: mx.array


class Rays(NamedTuple):
    """Directions that resemble certificates most: x, y, and their drift beside their value (B,)."""

    x: mx.array
    y: mx.array
    unbounded: mx.array
    infeasible: mx.array


class Point(NamedTuple):
    """x (B, n); y, s (B, m); tau, kappa (B, 1)."""

    x: mx.array
    y: mx.array
    s: mx.array
    tau: mx.array
    kappa: mx.array

    def moved(self, step: mx.array, by: Point) -> Point:
        """A step (B, 1) along a direction."""
        return Point(*(v + step * d for v, d in zip(self, by, strict=True)))


def _split_boxes(program: Program, cones: Product) -> tuple[Program, Product]:
    """The program with inequalities for boxes."""
    if not any(box for _, _, box in cones.boxes):
        return program, cones
    A, b = program.A.matrix, program.b[..., None]
    rows = [
        [m[..., lo:hi, :] if box is None else box.to_inequalities(m[..., lo:hi, :]) for m in (A, b)]
        for lo, hi, box in cones.boxes
    ]
    A, b = (mx.concatenate(list(part), axis=-2) for part in zip(*rows, strict=True))
    return program._replace(A=Rectangular.of(A), b=b[..., 0]), cones.without_boxes()


def _join_boxes(cones: Product, y: mx.array) -> mx.array:
    """Multipliers of that program as those of the given one."""
    parts, at = [], 0
    for lo, hi, box in cones.boxes:
        rows = hi - lo if box is None else box.inequalities.rows
        part = y[:, at : at + rows]
        parts.append(part if box is None else box.from_multipliers(part))
        at += rows
    return mx.concatenate(parts, axis=1) if parts else y


class _System:
    """[P A'; A -W^2], factored."""

    def __init__(self, program: Program, cones: Product, atoms: list[Any]) -> None:
        self.program, self.cones, self.atoms = program, cones, atoms
        self.equalities = cones.zero_rows
        A = program.A.matrix
        weighted = self._weight(A if A.ndim == 3 else A[None])
        H = program.A.transposed @ weighted
        if program.P is not None:
            H = H + program.P
        self.root, self.unit, ok = self._factor(H)
        if self.equalities:
            E = mx.swapaxes(A[..., : self.equalities, :], -1, -2)
            E = E if E.ndim == 3 else E[None]
            self.half = self.root @ (self.unit[..., None] * E)
            S = mx.swapaxes(self.half, -1, -2) @ self.half
            self.schur, self.schur_unit, fits = self._factor(S)
            ok = ok & fits
        self.ok = ok[:, None]

    def _factor(self, matrix: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """R and d with diag(d) R'R diag(d) = matrix^-1, and where there are any."""
        diagonal = mx.diagonal(matrix, axis1=-2, axis2=-1)
        unit = mx.rsqrt(mx.maximum(diagonal, 1e-30))
        scaled = unit[..., :, None] * matrix * unit[..., None, :]
        root, ok = spd_root(0.5 * (scaled + mx.swapaxes(scaled, -1, -2)), _SHIFTS)
        return root, unit, ok

    def _weight(self, v: mx.array) -> mx.array:
        """(W^2 + damp)^-1 v, and v on the equalities."""
        return self.cones.spectral(self.atoms, lambda e: 1.0 / (e + _DAMP), v)

    def square(self, v: mx.array) -> mx.array:
        """W^2 v; nothing on the equalities."""
        out = self.cones.apply_derivative(self.atoms, v)
        return mx.concatenate(
            [mx.zeros_like(v[:, : self.equalities]), out[:, self.equalities :]], 1
        )

    def _solve_once(self, r: mx.array, t: mx.array) -> tuple[mx.array, mx.array]:
        A, k = self.program.A, self.equalities
        # H includes E'E, so r gets E't: what is true does not change.
        right = self.unit * (r + A.transpose_times(self._weight(t)))
        half = row_times(right, mx.swapaxes(self.root, -1, -2))
        if not k:
            dx = self.unit * row_times(half, self.root)
            return dx, self._weight(A.times(dx) - t)
        off = self.schur_unit * (row_times(half, self.half) - t[:, :k])
        dy = row_times(row_times(off, mx.swapaxes(self.schur, -1, -2)), self.schur)
        dy = self.schur_unit * dy
        half = half - row_times(dy, mx.swapaxes(self.half, -1, -2))
        dx = self.unit * row_times(half, self.root)
        rest = self._weight(A.times(dx) - t)
        return dx, mx.concatenate([dy, rest[:, k:]], axis=1)

    def solve(self, r: mx.array, t: mx.array) -> tuple[mx.array, mx.array]:
        """(dx, dy), by iterative refinement."""
        program = self.program
        dx, dy = mx.zeros_like(r), mx.zeros_like(t)
        left, last = (r, t), mx.full((r.shape[0], 1), mx.inf, dtype=r.dtype)
        for _ in range(_SWEEPS):
            more_x, more_y = self._solve_once(*left)
            x, y = dx + more_x, dy + more_y
            new = (
                r - program.P_times(x) - program.A.transpose_times(y),
                t - program.A.times(x) + self.square(y),
            )
            size = mx.maximum(norm(new[0]), norm(new[1]))[:, None]
            better = size < last  # False for NaN
            dx, dy = mx.where(better, x, dx), mx.where(better, y, dy)
            left = tuple(mx.where(better, a, b) for a, b in zip(new, left, strict=True))
            worth = bool(mx.any(better & (size < 0.5 * last)).item())
            last = mx.where(better, size, last)
            if not worth:
                break
        return dx, dy


class _Steps:
    """Steps on some lanes."""

    def __init__(self, program: Program, cones: Product) -> None:
        self.program, self.cones = program, cones
        self.degree = cones.degree + 1.0
        # Rows of inequalities, where Mehrotra's correction is taken.
        self.plain = mx.array(cones.is_inequality, dtype=mx.bool_)

    def mu(self, at: Point) -> mx.array:
        """Mean complementarity, (B, 1)."""
        return (dot(at.s, at.y)[:, None] + at.tau * at.kappa) / self.degree

    def advance(self, at: Point) -> tuple[Point, mx.array]:
        """The next point, and the length of the step, (B, 1); 0 where there is none."""
        program, cones = self.program, self.cones
        mu = self.mu(at)
        system = _System(program, cones, cones.scaling(at.s, at.y, mu))
        inverse = cones.barrier_inverse(at.y)
        Px, tau = program.P_times(at.x), at.tau
        rx = Px + program.A.transpose_times(at.y) + program.q * tau
        rz = program.A.times(at.x) + at.s - program.b * tau
        bend = dot(at.x, Px)[:, None] / tau
        slope = 2.0 * Px / tau + program.q
        q_x, b_y = dot(program.q, at.x)[:, None], dot(program.b, at.y)[:, None]
        rt = at.kappa + bend + q_x + b_y
        x2, y2 = system.solve(-program.q, program.b)
        bottom = dot(slope, x2)[:, None] + dot(program.b, y2)[:, None]
        bottom = bottom - bend / tau - at.kappa / tau

        def direction(sigma: mx.array, rows: mx.array | float, corner: mx.array | float) -> Point:
            """The step towards sigma mu; rows and corner are second-order corrections."""
            c = sigma * mu * inverse - at.s - rows
            k = sigma * mu - at.kappa * tau - corner
            keep = 1.0 - sigma
            x1, y1 = system.solve(-keep * rx, -keep * rz - c)
            top = -keep * rt - k / tau - dot(slope, x1)[:, None] - dot(program.b, y1)[:, None]
            dtau = top / bottom
            dx, dy = x1 + dtau * x2, y1 + dtau * y2
            ds = c - system.square(dy)
            return Point(dx, dy, ds, dtau, (k - at.kappa * dtau) / tau)

        zero = mx.zeros_like(mu)
        affine = direction(zero, 0.0, 0.0)
        first = self._room(at, affine)
        sigma = mx.maximum(mx.power(1.0 - mx.minimum(first, 1.0), 3.0), 1e-4)
        second = mx.where(self.plain, affine.y * affine.s / at.y, 0.0)
        move = direction(sigma, second, affine.tau * affine.kappa)
        length = self._length(at, move)
        short = length < _SHORT
        if bool(mx.any(short).item()):
            central = direction(mx.maximum(sigma, 0.5), 0.0, 0.0)
            other = self._length(at, central)
            swap = short & (other > length)
            length = mx.where(swap, other, length)
            move = Point(*(mx.where(swap, a, b) for a, b in zip(central, move, strict=True)))
        sane = mx.isfinite(length)
        for part in move:
            sane = sane & mx.all(mx.isfinite(part), axis=1, keepdims=True)
        length = mx.where(sane & system.ok, length, 0.0)
        move = Point(*(mx.where(length > 0, part, 0.0) for part in move))
        return at.moved(length, move), length

    def _room(self, at: Point, move: Point) -> mx.array:
        rooms = [self.cones.room(at.s, move.s, False), self.cones.room(at.y, move.y, True)]
        for v, d in ((at.tau, move.tau), (at.kappa, move.kappa)):
            rooms.append(mx.where(d < 0, -v / mx.where(d < 0, d, -1.0), mx.inf))
        return mx.min(mx.concatenate(rooms, axis=1), axis=1, keepdims=True)

    def _length(self, at: Point, move: Point) -> mx.array:
        return mx.minimum(_NEAR * self._room(at, move), 1.0)


def _drifts(program: Program, at: Point) -> tuple[mx.array, mx.array]:
    """How far x and y are from certificates, beside their values; infinite where of no use."""
    q_x, b_y = dot(program.q, at.x), dot(program.b, at.y)
    off = mx.maximum(norm(program.P_times(at.x)), norm(program.A.times(at.x) + at.s))
    unbounded = mx.where(q_x < 0, off / mx.where(q_x < 0, -q_x, 1.0), mx.inf)
    off = norm(program.A.transpose_times(at.y))
    infeasible = mx.where(b_y < 0, off / mx.where(b_y < 0, -b_y, 1.0), mx.inf)
    return unbounded, infeasible


def solve(
    program: Program, cones: Product, judge: Judge, most: int, deadline: float
) -> tuple[Best, Rays, int]:
    """Follow the central path in every lane well beyond what ``judge`` accepts, or to its end.

    Args:
        program (Program): equilibrated, float64.
        cones (Product): the cones.
        judge: ``judge(lanes, x, y, s)`` gives the violation of a sub-batch, (len(lanes),).
        most (int): steps, with a factorization each.
        deadline (float): value of ``time.monotonic()`` at which to stop.

    Returns:
        tuple: the best point and the best rays of every lane, and the number of steps.
    """
    total, wide = program.lanes, program.q.dtype
    infinite = mx.full((total,), mx.inf, dtype=wide)
    zero_x, zero_y = mx.zeros((total, program.n), dtype=wide), mx.zeros_like(program.b)
    best = Best(zero_x, zero_y, zero_y, infinite)
    rays = Rays(zero_x, zero_y, infinite, infinite)
    local, inner = _split_boxes(program, cones)
    original, chosen = program, mx.arange(total)
    centre = mx.broadcast_to(inner.centre(wide)[None], local.b.shape)
    one = mx.ones((total, 1), dtype=wide)
    at = Point(zero_x, centre, centre, one, one)
    idle = mx.zeros((total,), dtype=mx.int32)
    steps = _Steps(local, inner)
    for count in range(1, most + 1):
        at, length = steps.advance(at)
        x, y = at.x / at.tau, _join_boxes(cones, at.y / at.tau)
        s = cones.project(original.b - original.A.times(x))
        violation = judge(chosen, x, y, s)
        unbounded, infeasible = _drifts(local, at)
        before = best.violation[chosen]
        idle = mx.where(violation < 0.5 * before, 0, idle + 1)
        best = _keep(best, chosen, Best(x, y, s, violation), violation < before)
        ray_y = _join_boxes(cones, at.y)
        here = Rays(at.x, ray_y, unbounded, infeasible)
        rays = _keep_rays(rays, chosen, here)
        mx.eval(at, best, rays)
        reached = best.violation[chosen]
        done = (reached <= _AIM) | ((reached <= 1.0) & (idle >= _PATIENCE))
        done = done | (mx.minimum(unbounded, infeasible) <= _RAY)
        open_ = mx.logical_not(done) & (length[:, 0] > _STUCK)
        left = lanes.where_true(open_)
        if not left or time.monotonic() > deadline:
            return best, rays, count
        if 2 * len(left) <= chosen.shape[0]:
            keep = lanes.bucket(left, chosen.shape[0])
            chosen, at, idle = chosen[keep], lanes.take(at, keep), idle[keep]
            local, original = local.take(keep), original.take(keep)
            steps = _Steps(local, inner)
    return best, rays, most


def _keep(old: Any, chosen: mx.array, new: Any, better: mx.array) -> Any:
    """The fields of ``new`` where it is better, put among all lanes."""
    return type(old)(
        *(
            lanes.put(a, chosen, mx.where(better.reshape(-1, *[1] * (v.ndim - 1)), v, a[chosen]))
            for a, v in zip(old, new, strict=True)
        )
    )


def _keep_rays(rays: Rays, chosen: mx.array, here: Rays) -> Rays:
    by_x = here.unbounded < rays.unbounded[chosen]
    by_y = here.infeasible < rays.infeasible[chosen]
    left = _keep(rays, chosen, here, by_x)
    right = _keep(rays, chosen, here, by_y)
    return Rays(left.x, right.y, left.unbounded, right.infeasible)
