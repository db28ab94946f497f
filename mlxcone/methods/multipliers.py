"""Proximal method of multipliers with semismooth Newton steps, for lanes where Newton stalls.

Outer iteration (Rockafellar 1976; as in QPALM and ProxQP; docs/mathematics.md, equation 8):
minimize over x the smooth convex

    phi(x) = 1/2 x'Px + q'x + sigma/2 |x - x_k|^2 + |Pi(y_k + R (A x - b))|^2 / (2 R)

(Pi: projection onto K*), then y_{k+1} = Pi(y_k + R (A x - b)). Inner iteration: Newton with
H = P + sigma I + R A'D A and a line search on the derivative of phi, which is monotone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from mlxcone.backend import lanes
from mlxcone.backend.linalg import spd_inverse
from mlxcone.backend.repeated import EAGER, Calls
from mlxcone.cones.product import Product
from mlxcone.kkt import reduced as kkt
from mlxcone.program.operators import row_times
from mlxcone.program.problem import Program
from mlxcone.program.residuals import dot, norm

_INNER = 0.05  # inner gradient, relative to the outer residual, at which y is updated
_PATIENCE = 20  # Newton steps on one inner problem before it counts as failed
_SEARCH = 12  # evaluations in a line search
_SLOPE = 0.1  # share of the initial slope that ends a line search
_MOST_PENALTY, _LEAST_PENALTY = 1e9, 1e-3
_FIRST_PROXIMAL = 1e-4
_MOST_PROXIMAL, _LEAST_PROXIMAL = 1.0, 1e-11

Judge = Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]


class Effort(NamedTuple):
    """What is spent on a lane: its first penalty, when it ends, and how near it is to come.

    ``patience`` is the number of rounds without halving the violation that end it, if any do.
    """

    penalty: float = 10.0
    patience: int | None = None
    aim: float = 1.0


THOROUGH = Effort()
BRIEF = Effort(1e3, 6, 1e3)  # from a point so near that Newton's method almost found the rest


class Point(NamedTuple):
    """x (B, n); centre x_k, y_k; R and sigma (B, 1); last primal residual; inner steps."""

    x: mx.array
    x_centre: mx.array
    y_centre: mx.array
    penalty: mx.array
    proximal: mx.array
    last_primal: mx.array
    inner_steps: mx.array


class Best(NamedTuple):
    """Best x, y, s met, and its violation (B,)."""

    x: mx.array
    y: mx.array
    s: mx.array
    violation: mx.array


def start(x: mx.array, y: mx.array, penalty: float) -> Point:
    """Begin from (x, y)."""
    one = mx.ones((x.shape[0], 1), dtype=x.dtype)
    return Point(x, x, y, penalty * one, _FIRST_PROXIMAL * one, mx.inf * one, 0.0 * one)


def _multiplier(program: Program, cones: Product, point: Point) -> tuple[mx.array, mx.array]:
    u = point.y_centre + point.penalty * (program.A.times(point.x) - program.b)
    return u, cones.project_dual(u)


def _smooth(program: Program, point: Point) -> mx.array:
    """The gradient of phi without its last part."""
    return program.P_times(point.x) + program.q + point.proximal * (point.x - point.x_centre)


def _updated(program: Program, cones: Product, point: Point) -> Point:
    """The next inner problem, in lanes that have solved theirs or failed to."""
    R, sigma, none = point.penalty, point.proximal, mx.zeros_like(point.penalty)
    smaller, larger = mx.maximum(R / 5.0, _LEAST_PENALTY), mx.minimum(5.0 * R, _MOST_PENALTY)
    looser = mx.minimum(10.0 * sigma, _MOST_PROXIMAL)
    y = _multiplier(program, cones, point)[1]
    gradient = _smooth(program, point) + program.A.transpose_times(y)
    primal = norm((y - point.y_centre) / R)[:, None]
    dual = norm(gradient - sigma * (point.x - point.x_centre))[:, None]
    solved = norm(gradient)[:, None] <= mx.maximum(_INNER * mx.maximum(primal, dual), 1e-14)
    slow = primal > 0.2 * point.last_primal
    failed = point.inner_steps >= _PATIENCE

    def choose(if_solved: mx.array, if_failed: mx.array, otherwise: mx.array) -> mx.array:
        return mx.where(solved, if_solved, mx.where(failed, if_failed, otherwise))

    return Point(
        choose(point.x, point.x_centre, point.x),
        choose(point.x, point.x_centre, point.x_centre),
        choose(y, point.y_centre, point.y_centre),
        choose(mx.where(slow, larger, R), smaller, R),
        choose(mx.maximum(0.3 * sigma, _LEAST_PROXIMAL), looser, sigma),
        choose(primal, point.last_primal, point.last_primal),
        choose(none, none, point.inner_steps),
    )


class Ray(NamedTuple):
    """A Newton step dx from x and the derivative of phi along it.

    phi'(t) = slope + t curve + row'Pi(u + t R row); slope and curve (B, 1), u and row (B, m).
    """

    dx: mx.array
    u: mx.array
    row: mx.array
    penalty: mx.array
    slope: mx.array
    curve: mx.array

    def derivative(self, cones: Product, t: mx.array) -> mx.array:
        """phi'(t), (B, 1)."""
        y = cones.project_dual(self.u + t * self.penalty * self.row)
        return self.slope + t * self.curve + dot(self.row, y)[:, None]


class Bracket(NamedTuple):
    """Steps between which phi' changes its sign, its values there, the step so far, all (B, 1).

    ``goal`` is the size of phi' that ends the search, ``done`` whether it has.
    """

    low: mx.array
    high: mx.array
    at_low: mx.array
    at_high: mx.array
    step: mx.array
    goal: mx.array
    done: mx.array


def _whole(cones: Product, ray: Ray, unused: mx.array) -> Bracket:
    """The whole step, which most take; lanes that make none are not waited for."""
    low, high = mx.zeros_like(ray.slope), mx.ones_like(ray.slope)
    at_low, at_high = ray.derivative(cones, low), ray.derivative(cones, high)
    goal = _SLOPE * mx.abs(at_low)
    return Bracket(low, high, at_low, at_high, high, goal, unused | (at_high <= goal))


def _trial(cones: Product, bisects: bool, ray: Ray, at: Bracket) -> Bracket:
    """One step of regula falsi, or of bisection."""
    secant = at.low - at.at_low * (at.high - at.low) / mx.maximum(at.at_high - at.at_low, 1e-300)
    trial = 0.5 * (at.low + at.high) if bisects else mx.clip(secant, at.low, at.high)
    value = ray.derivative(cones, trial)
    left = value < 0
    return Bracket(
        mx.where(left, trial, at.low),
        mx.where(left, at.high, trial),
        mx.where(left, value, at.at_low),
        mx.where(left, at.at_high, value),
        mx.where(at.done, at.step, trial),
        at.goal,
        at.done | (mx.abs(value) <= at.goal),
    )


def _direction(
    program: Program, cones: Product, point: Point, u: mx.array, gradient: mx.array
) -> tuple[mx.array, mx.array]:
    """Newton direction -H^-1 gradient (B, n), and whether H could be factored (B, 1)."""
    R, sigma = point.penalty, point.proximal
    atoms = cones.derivative(u)
    H = sigma[..., None] * mx.eye(program.n, dtype=R.dtype)
    H = H if program.P is None else H + program.P
    if program.m:
        H = H + R[..., None] * kkt.gram(program, cones, atoms, lambda e: e)
    inverse, ok = spd_inverse(H)

    def times(v: mx.array) -> mx.array:
        rows = R * cones.apply_derivative(atoms, program.A.times(v))
        return program.P_times(v) + sigma * v + program.A.transpose_times(rows)

    dx = -row_times(gradient, inverse)
    # One sweep of refinement: sigma may be 1e-18 of the largest entry of H.
    return dx - row_times(gradient + times(dx), inverse), ok[:, None]


def _begin(cones: Product, program: Program, point: Point) -> tuple[Point, Ray, Bracket, mx.array]:
    """The outer update, in lanes whose inner problem is solved, and an inner Newton direction.

    The last is which lanes have none, (B, 1).
    """
    point = _updated(program, cones, point)
    u, y = _multiplier(program, cones, point)
    smooth = _smooth(program, point)
    dx, ok = _direction(program, cones, point, u, smooth + program.A.transpose_times(y))
    curve = dot(dx, program.P_times(dx))[:, None] + point.proximal * dot(dx, dx)[:, None]
    slope, row = dot(dx, smooth)[:, None], program.A.times(dx)
    ray, failed = Ray(dx, u, row, point.penalty, slope, curve), mx.logical_not(ok)
    return point, ray, _whole(cones, ray, failed), failed


def _end(
    cones: Product, program: Program, point: Point, ray: Ray, step: mx.array, failed: mx.array
) -> tuple[Point, mx.array, mx.array]:
    """Where the step leads, and y and s there."""
    point = point._replace(
        x=mx.where(failed, point.x, point.x + step * ray.dx),
        inner_steps=mx.where(failed, float(_PATIENCE), point.inner_steps + 1.0),
    )
    u, y = _multiplier(program, cones, point)
    return point, y, (y - u) / point.penalty


def _advance(
    calls: Calls, cones: Product, program: Program, point: Point
) -> tuple[Point, mx.array, mx.array]:
    """A Newton step with a line search; and y and s where it leads."""
    point, ray, at, failed = calls.call(_begin, (cones,), program, point)
    for trial in range(_SEARCH):
        if bool(mx.all(at.done).item()):
            break
        # Every third trial bisects: regula falsi creeps towards a kink.
        at = calls.call(_trial, (cones, trial % 3 == 2), ray, at)
    return calls.call(_end, (cones,), program, point, ray, at.step, failed)


def _compared(
    old: Best, new: Best, reference: mx.array, idle: mx.array
) -> tuple[Best, mx.array, mx.array]:
    """The better point of each lane, and for how many rounds none has halved the violation."""
    better = new.violation < old.violation  # False for NaN
    best = [
        mx.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        for a, b in zip(new, old, strict=True)
    ]
    progress = new.violation < 0.5 * reference
    reference = mx.where(progress, new.violation, reference)
    return Best(*best), reference, mx.where(progress, 0, idle + 1)


def solve(
    program: Program,
    cones: Product,
    x: mx.array,
    y: mx.array,
    judge: Judge,
    most: int,
    deadline: float,
    effort: Effort = THOROUGH,
    calls: Calls = EAGER,
) -> tuple[Best, int]:
    """Run every lane until ``judge`` is content, or the budget is spent.

    Args:
        program (Program): equilibrated, float64.
        cones (Product): the cones.
        x, y (mx.array): start, (B, n) and (B, m).
        judge: ``judge(lanes, x, y, s)`` gives the violation of a sub-batch, (len(lanes),).
        most (int): factorizations per lane.
        deadline (float): value of ``time.monotonic()`` at which to stop.
        effort (Effort): and what may end a lane.
        calls (Calls): how its functions are called.

    Returns:
        tuple: the best iterate of every lane and the number of rounds.
    """
    total, rounds = program.lanes, 0
    infinite = mx.full((total,), mx.inf, dtype=x.dtype)
    best = Best(x, y, cones.project(program.b - program.A.times(x)), infinite)
    chosen, point = mx.arange(total), start(x, y, effort.penalty)
    # Of the chosen lanes alone, from here on.
    kept, reference, idle = best, infinite, mx.zeros((total,), dtype=mx.int32)
    while rounds < most:
        rounds += 1
        point, y, s = _advance(calls, cones, program, point)
        now = Best(point.x, y, s, judge(chosen, point.x, y, s))
        kept, reference, idle = calls.call(_compared, (), kept, now, reference, idle)
        mx.eval(point, kept, reference, idle)
        goes_on = kept.violation > effort.aim
        if effort.patience is not None:
            goes_on = goes_on & (idle < effort.patience)
        left = lanes.where_true(goes_on)
        if not left or time.monotonic() > deadline:
            break
        if 2 * len(left) <= chosen.shape[0]:
            best = lanes.put_tree(best, chosen, kept)
            keep = lanes.bucket(left, chosen.shape[0])
            chosen, program = chosen[keep], program.take(keep)
            point, kept = lanes.take(point, keep), lanes.take(kept, keep)
            reference, idle = reference[keep], idle[keep]
    return lanes.put_tree(best, chosen, kept), rounds
