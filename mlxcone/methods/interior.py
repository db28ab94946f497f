"""Interior-point steps in float64 for lanes where Newton's method does not find its active set.

The homogeneous embedding of a quadratic cone program (Goulart and Chen, arXiv 2405.12762;
docs/mathematics.md, equation 7),

    P x + A'y + q tau = 0,   A x + s = b tau,   kappa + x'P x / tau + q'x + b'y = 0,

with s in K, y in K* and tau, kappa >= 0, always has a solution: tau > 0 gives one of the program,
kappa > 0 a certificate that there is none. Steps follow its central path s = mu g(y), with g minus
the gradient of the barrier of K*, in Nesterov and Todd's scaling where K is symmetric and in the
dual one elsewhere, with Mehrotra's predictor and, on inequalities, his correction. Lanes whose
steps become inexact go on with a costlier factorization of their linear system.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone.backend import lanes
from mlxcone.cones.product import Product
from mlxcone.kkt.scaled_system import Reduced, System, Whole
from mlxcone.program.operators import Rectangular
from mlxcone.program.problem import Program
from mlxcone.program.residuals import dot, norm

_NEAR = 0.99  # share of the way to the boundary
_SHORT = 0.5  # a shorter step is tried again towards the centre
_STUCK = 1e-6
_RAY = 1e-10  # drift of a certificate, beside its value, that ends a lane
_AIM = 1e-3  # violation aimed at: Newton's method begins closer
_PATIENCE = 2  # steps that hardly help a lane that is good enough
_SLOW = 8  # steps without halving the complementarity that end a lane
_INEXACT = 1e-3  # relative error of a step that calls for the whole system
_LARGEST = 3000  # rows of a whole system
_ENTRIES = 3 * 10**7  # of the whole systems that are factored at once

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


def split_boxes(program: Program, cones: Product) -> tuple[Program, Product]:
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


def join_boxes(cones: Product, y: mx.array) -> mx.array:
    """Multipliers of that program as those of the given one."""
    parts, at = [], 0
    for lo, hi, box in cones.boxes:
        rows = hi - lo if box is None else box.inequalities.rows
        part = y[:, at : at + rows]
        parts.append(part if box is None else box.from_multipliers(part))
        at += rows
    return mx.concatenate(parts, axis=1) if parts else y


class _Steps:
    """Steps on some lanes."""

    def __init__(self, program: Program, cones: Product, kind: type[System]) -> None:
        self.program, self.cones, self.kind = program, cones, kind
        self.degree = cones.degree + 1.0

    def mu(self, at: Point) -> mx.array:
        """Mean complementarity, (B, 1)."""
        return (dot(at.s, at.y)[:, None] + at.tau * at.kappa) / self.degree

    def advance(self, at: Point) -> tuple[Point, mx.array, mx.array]:
        """The next point; length, (B, 1), and relative error of the step; 0 where there is none."""
        program, cones = self.program, self.cones
        mu = self.mu(at)
        system = self.kind(program, cones, cones.scaling(at.s, at.y, mu))
        inverse = cones.barrier_inverse(at.y)
        Px, tau = program.P_times(at.x), at.tau
        rx = Px + program.A.transpose_times(at.y) + program.q * tau
        rz = program.A.times(at.x) + at.s - program.b * tau
        bend = dot(at.x, Px)[:, None] / tau
        slope = 2.0 * Px / tau + program.q
        q_x, b_y = dot(program.q, at.x)[:, None], dot(program.b, at.y)[:, None]
        rt = at.kappa + bend + q_x + b_y
        x2, y2, _ = system.solve(-program.q, program.b)
        bottom = dot(slope, x2)[:, None] + dot(program.b, y2)[:, None]
        bottom = bottom - bend / tau - at.kappa / tau

        def direction(
            sigma: mx.array, rows: mx.array | float, corner: mx.array | float
        ) -> tuple[Point, mx.array]:
            """The step towards sigma mu; rows and corner are second-order corrections."""
            c = sigma * mu * inverse - at.s - rows
            k = sigma * mu - at.kappa * tau - corner
            keep = 1.0 - sigma
            x1, y1, error = system.solve(-keep * rx, -keep * rz - c)
            top = -keep * rt - k / tau - dot(slope, x1)[:, None] - dot(program.b, y1)[:, None]
            dtau = top / bottom
            dx, dy = x1 + dtau * x2, y1 + dtau * y2
            ds = c - system.square(dy)
            return Point(dx, dy, ds, dtau, (k - at.kappa * dtau) / tau), error

        zero = mx.zeros_like(mu)
        affine, _ = direction(zero, 0.0, 0.0)
        first = self._room(at, affine)
        sigma = mx.maximum(mx.power(1.0 - mx.minimum(first, 1.0), 3.0), 1e-4)
        second = cones.correction(system.atoms, at.y, affine.s, affine.y)
        move, error = direction(sigma, second, affine.tau * affine.kappa)
        length = self._length(at, move)
        short = length < _SHORT
        if bool(mx.any(short).item()):
            central, off = direction(mx.maximum(sigma, 0.5), 0.0, 0.0)
            other = self._length(at, central)
            swap = short & (other > length)
            length = mx.where(swap, other, length)
            move = Point(*(mx.where(swap, a, b) for a, b in zip(central, move, strict=True)))
            error = mx.where(swap, off, error)
        sane = mx.isfinite(length)
        for part in move:
            sane = sane & mx.all(mx.isfinite(part), axis=1, keepdims=True)
        length = mx.where(sane & system.ok, length, 0.0)
        move = Point(*(mx.where(length > 0, part, 0.0) for part in move))
        return at.moved(length, move), length, error

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


class _Path:
    """The central path of every lane, followed with one kind of system or another."""

    def __init__(self, program: Program, cones: Product, judge: Judge, deadline: float) -> None:
        self.original, self.given, self.judge, self.deadline = program, cones, judge, deadline
        self.program, self.cones = split_boxes(program, cones)
        total, wide = program.lanes, program.q.dtype
        infinite = mx.full((total,), mx.inf, dtype=wide)
        x, y = mx.zeros((total, program.n), dtype=wide), mx.zeros_like(program.b)
        self.best, self.rays = Best(x, y, y, infinite), Rays(x, y, infinite, infinite)
        centre = mx.broadcast_to(self.cones.centre(wide)[None], self.program.b.shape)
        one = mx.ones((total, 1), dtype=wide)
        self.at = Point(x, centre, centre, one, one)

    def follow(
        self, which: list[int], kind: type[System], most: int, exact: float
    ) -> tuple[list[int], int]:
        """Steps on some lanes, each to its end.

        Returns:
            tuple: lanes that did not get there because a step had no length or a relative error
            above ``exact``, and the number of steps.
        """
        chosen = lanes.bucket(which, self.original.lanes)
        original, at = self.original.take(chosen), lanes.take(self.at, chosen)
        steps = _Steps(self.program.take(chosen), self.cones, kind)
        idle = slow = mx.zeros((chosen.shape[0],), dtype=mx.int32)
        goal = steps.mu(at)
        ended: set[int] = set()
        count = 0
        while count < most:
            count += 1
            moved, length, error = steps.advance(at)
            good = mx.logical_and(length > _STUCK, error <= exact)
            at = Point(*(mx.where(good, new, old) for new, old in zip(moved, at, strict=True)))
            before = self.best.violation[chosen]
            self._record(chosen, original, steps.program, at)
            after = self.best.violation[chosen]
            idle = mx.where(after < 0.5 * before, 0, idle + 1)
            mu = steps.mu(at)
            slow = mx.where((mu <= 0.5 * goal)[:, 0], 0, slow + 1)
            goal = mx.where(mu <= 0.5 * goal, mu, goal)
            good = mx.logical_and(good, slow[:, None] < _SLOW)
            drift = mx.minimum(self.rays.unbounded[chosen], self.rays.infeasible[chosen])
            done = (after <= _AIM) | ((after <= 1.0) & (idle >= _PATIENCE)) | (drift <= _RAY)
            self.at = Point(*(lanes.put(a, chosen, v) for a, v in zip(self.at, at, strict=True)))
            mx.eval(self.at, idle, slow, done, good, self.best, self.rays)
            places: Any = chosen.tolist()
            good = good[:, 0]
            ended |= {places[k] for k in lanes.where_true(mx.logical_not(good | done))}
            left = lanes.where_true(good & mx.logical_not(done))
            if not left or time.monotonic() > self.deadline:
                break
            if 2 * len(left) <= chosen.shape[0]:
                keep = lanes.bucket(left, chosen.shape[0])
                chosen, at, original = chosen[keep], lanes.take(at, keep), original.take(keep)
                idle, slow, goal = idle[keep], slow[keep], goal[keep]
                steps = _Steps(steps.program.take(keep), self.cones, kind)
        violation: Any = self.best.violation.tolist()
        return sorted(lane for lane in ended if violation[lane] > 1.0), count

    def _record(self, chosen: mx.array, original: Program, program: Program, at: Point) -> None:
        """Keep the points and the rays that are the best so far."""
        x, y = at.x / at.tau, join_boxes(self.given, at.y / at.tau)
        s = self.given.project(original.b - original.A.times(x))
        violation = self.judge(chosen, x, y, s)
        better = violation < self.best.violation[chosen]
        self.best = _keep(self.best, chosen, Best(x, y, s, violation), better)
        unbounded, infeasible = _drifts(program, at)
        here = Rays(at.x, join_boxes(self.given, at.y), unbounded, infeasible)
        by_x = _keep(self.rays, chosen, here, unbounded < self.rays.unbounded[chosen])
        by_y = _keep(self.rays, chosen, here, infeasible < self.rays.infeasible[chosen])
        self.rays = Rays(by_x.x, by_y.y, by_x.unbounded, by_y.infeasible)


def _keep(old: Any, chosen: mx.array, new: Any, better: mx.array) -> Any:
    """The fields of ``new`` where it is better, put among all lanes."""
    return type(old)(
        *(
            lanes.put(a, chosen, mx.where(better.reshape(-1, *[1] * (v.ndim - 1)), v, a[chosen]))
            for a, v in zip(old, new, strict=True)
        )
    )


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
    path = _Path(program, cones, judge, deadline)
    size = path.program.n + path.program.m
    whole = size <= _LARGEST
    everyone = list(range(program.lanes))
    left, count = path.follow(everyone, Reduced, most, _INEXACT if whole else mx.inf)
    if not whole:
        return path.best, path.rays, count
    at_once = max(1, _ENTRIES // size**2)
    used = count
    for first in range(0, len(left), at_once):
        if time.monotonic() > deadline:
            break
        _, more = path.follow(left[first : first + at_once], Whole, most - count, mx.inf)
        used = max(used, count + more)
    return path.best, path.rays, used
