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
from typing import Any, NamedTuple

import mlx.core as mx

from mlxcone import kkt, lanes
from mlxcone._linalg import spd_inverse
from mlxcone.cones.product import Product
from mlxcone.operators import row_times
from mlxcone.problem import Program
from mlxcone.residuals import dot, norm

_INNER = 0.05  # inner gradient, relative to the outer residual, at which y is updated
_PATIENCE = 20  # Newton steps on one inner problem before it counts as failed
_SEARCH = 12  # evaluations in a line search
_SLOPE = 0.1  # share of the initial slope that ends a line search
_MOST_PENALTY, _LEAST_PENALTY = 1e9, 1e-3
_MOST_PROXIMAL, _LEAST_PROXIMAL = 1.0, 1e-11

Judge = Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]


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


def start(x: mx.array, y: mx.array) -> Point:
    """Begin from (x, y)."""
    one = mx.ones((x.shape[0], 1), dtype=x.dtype)
    return Point(x, x, y, 10.0 * one, 1e-4 * one, mx.inf * one, 0.0 * one)


def _multiplier(program: Program, cones: Product, point: Point) -> tuple[mx.array, mx.array]:
    u = point.y_centre + point.penalty * (program.A.times(point.x) - program.b)
    return u, cones.project_dual(u)


def _search(
    cones: Product,
    u: mx.array,
    row: mx.array,
    penalty: mx.array,
    slope: mx.array,
    curve: mx.array,
    unused: mx.array,
) -> mx.array:
    """Step length (B, 1): regula falsi on phi'(t) = slope + t curve + row'Pi(u + t R row).

    Lanes that make no step are not waited for.
    """

    def derivative(t: mx.array) -> mx.array:
        return slope + t * curve + dot(row, cones.project_dual(u + t * penalty * row))[:, None]

    low, high = mx.zeros_like(slope), mx.ones_like(slope)
    at_low, at_high = derivative(low), derivative(high)
    goal = _SLOPE * mx.abs(at_low)
    done = unused | (at_high <= goal)
    step = mx.ones_like(slope)
    for k in range(_SEARCH):
        if bool(mx.all(done).item()):
            break
        secant = low - at_low * (high - low) / mx.maximum(at_high - at_low, 1e-300)
        # Every third trial bisects: regula falsi creeps towards a kink.
        trial = 0.5 * (low + high) if k % 3 == 2 else mx.clip(secant, low, high)
        value = derivative(trial)
        step = mx.where(done, step, trial)
        done = done | (mx.abs(value) <= goal)
        left = value < 0
        low, at_low = mx.where(left, trial, low), mx.where(left, value, at_low)
        high, at_high = mx.where(left, high, trial), mx.where(left, at_high, value)
    return step


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


def advance(program: Program, cones: Product, point: Point) -> Point:
    """An inner Newton step; in lanes whose inner problem is solved, the outer update instead."""
    R, sigma = point.penalty, point.proximal
    u, y = _multiplier(program, cones, point)
    smooth = program.P_times(point.x) + program.q + sigma * (point.x - point.x_centre)
    gradient = smooth + program.A.transpose_times(y)
    primal = norm((y - point.y_centre) / R)[:, None]
    dual = norm(gradient - sigma * (point.x - point.x_centre))[:, None]
    solved = norm(gradient)[:, None] <= mx.maximum(_INNER * mx.maximum(primal, dual), 1e-14)

    dx, ok = _direction(program, cones, point, u, gradient)
    curve = dot(dx, program.P_times(dx))[:, None] + sigma * dot(dx, dx)[:, None]
    slope = dot(dx, smooth)[:, None]
    failed = mx.logical_not(ok) | (point.inner_steps >= _PATIENCE)
    step = _search(cones, u, program.A.times(dx), R, slope, curve, solved | failed)

    slow = primal > 0.2 * point.last_primal
    penalty = mx.minimum(mx.where(slow, 5.0 * R, R), _MOST_PENALTY)
    proximal = mx.maximum(0.3 * sigma, _LEAST_PROXIMAL)

    def choose(if_solved: mx.array, if_failed: mx.array, otherwise: mx.array) -> mx.array:
        return mx.where(solved, if_solved, mx.where(failed, if_failed, otherwise))

    none = mx.zeros_like(R)
    return Point(
        choose(point.x, point.x_centre, point.x + step * dx),
        choose(point.x, point.x_centre, point.x_centre),
        choose(y, point.y_centre, point.y_centre),
        choose(penalty, mx.maximum(R / 5.0, _LEAST_PENALTY), R),
        choose(proximal, mx.minimum(10.0 * sigma, _MOST_PROXIMAL), sigma),
        choose(primal, point.last_primal, point.last_primal),
        choose(none, none, point.inner_steps + 1.0),
    )


def solve(
    program: Program,
    cones: Product,
    x: mx.array,
    y: mx.array,
    judge: Judge,
    most: int,
    deadline: float,
    patience: int | None = None,
) -> tuple[Best, int]:
    """Run every lane until ``judge`` says at most 1, or the budget is spent.

    Args:
        program (Program): equilibrated, float64.
        cones (Product): the cones.
        x, y (mx.array): start, (B, n) and (B, m).
        judge: ``judge(lanes, x, y, s)`` gives the violation of a sub-batch, (len(lanes),).
        most (int): factorizations per lane.
        deadline (float): value of ``time.monotonic()`` at which to stop.
        patience (int): rounds without halving the violation that end a lane; None for any number.

    Returns:
        tuple: the best iterate of every lane and the number of rounds.
    """
    total = program.lanes
    everyone = mx.arange(total)
    s = cones.project(program.b - program.A.times(x))
    best = Best(x, y, s, mx.full((total,), mx.inf, dtype=x.dtype))
    chosen, local, point = everyone, program, start(x, y)
    reference, idle = best.violation, mx.zeros((total,), dtype=mx.int32)
    for count in range(1, most + 1):
        point = advance(local, cones, point)
        u, y_now = _multiplier(local, cones, point)
        s_now = (y_now - u) / point.penalty
        violation = judge(chosen, point.x, y_now, s_now)
        better = violation < best.violation[chosen]  # False for NaN
        now: Any = (point.x, y_now, s_now, violation)
        kept = [
            mx.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old[chosen])
            for old, new in zip(best, now, strict=True)
        ]
        best = Best(*(lanes.put(a, chosen, v) for a, v in zip(best, kept, strict=True)))
        progress = violation < 0.5 * reference
        reference = mx.where(progress, violation, reference)
        idle = mx.where(progress, 0, idle + 1)
        mx.eval(point, best, reference, idle)
        goes_on = best.violation[chosen] > 1.0
        left = lanes.where_true(goes_on if patience is None else goes_on & (idle < patience))
        if not left or time.monotonic() > deadline:
            return best, count
        if 2 * len(left) <= chosen.shape[0]:
            keep = lanes.bucket(left, chosen.shape[0])
            chosen, local, point = chosen[keep], local.take(keep), lanes.take(point, keep)
            reference, idle = reference[keep], idle[keep]
    return best, most
