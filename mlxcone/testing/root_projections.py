"""Projections that come down to one scalar equation: onto box, exponential and power cones.

Every equation is solved by bisection on its sign, down to neighbouring floats: slow, and safe for
any point. Nothing here is meant to be fast.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# SCS takes a bound of this size for infinite.
INFINITE_BOUND = 1e15
# sinh of it is 1e18: rays of the exponential cone beyond that are the limit rays in float64.
_LAST_RAY = 42.0
# Logits beyond this are 0 or 1 for any purpose, and no square of them underflows.
_LAST_LOGIT = 300.0


def _turn(above: Callable[[float], bool], low: float, high: float) -> float:
    """Where a predicate that is False at first and True from there on turns, to the last digit.

    An end of the interval where it does not turn inside.
    """
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (low, middle) if above(middle) else (middle, high)
    return low if above(low) else high


def project_box(v: Array, lower: Array, upper: Array) -> Array:
    """Project v = (w0, w) onto ``{(t, s) : t lower <= s <= t upper, t >= 0}``.

    The squared distance, minimized over s, is convex in t; its derivative vanishes at the answer.

    Args:
        v: Point, shape (1 + k,).
        lower: Bounds, shape (k,); -1e15 and less means none, also where t = 0.
        upper: Bounds, shape (k,); 1e15 and more means none.

    Returns:
        The nearest point, shape (1 + k,).
    """
    has_low, has_high = lower > -INFINITE_BOUND, upper < INFINITE_BOUND
    w, low, high = v[1:], lower[has_low], upper[has_high]

    def rises(t: float) -> bool:
        over = np.maximum(w[has_high] - t * high, 0.0)
        under = np.maximum(t * low - w[has_low], 0.0)
        return float(t - v[0] - high @ over + low @ under) > 0.0

    def at(t: float) -> Array:
        s = w.copy()
        s[has_low] = np.maximum(s[has_low], t * low)
        s[has_high] = np.minimum(s[has_high], t * high)
        return np.concatenate(([t], s))

    if v[0] >= 0.0 and np.array_equal(at(v[0]), v):
        return v.copy()
    end = float(np.max(np.abs(v)))
    while 0.0 < end < math.inf and not rises(end):
        end *= 2.0
    return at(0.0 if rises(0.0) else _turn(rises, 0.0, end))


def project_exponential(v: Array) -> Array:
    """Project v onto the closure of ``{(x, y, z) : y exp(x / y) <= z, y > 0}``, shape (3,).

    The curved part of the boundary consists of the rays g(rho) = (rho, 1, exp rho) with the normals
    n(rho) = (1, 1 - rho, -exp -rho). The answer lies on the ray for which v is a nonnegative
    combination of g and n (Friberg 2023, "Projection onto the exponential cone: a univariate
    root-finding problem"); on the interval where neither share is negative, v crosses the plane
    of g and n once.
    """
    size = float(np.max(np.abs(v)))
    if size == 0.0:
        return v.copy()
    x, y, z = (float(entry) for entry in v / size)
    if y > 0.0 and z > 0.0 and x / y <= math.log(z) - math.log(y):
        return v.copy()
    if x > 0.0 and z < 0.0 and y / x <= math.log(-z) - math.log(x) + 1.0:
        return np.zeros(3)
    if x <= 0.0 and y <= 0.0:
        return size * np.array([x, 0.0, max(z, 0.0)])

    def passed(angle: float) -> bool:
        # The product of v with the cross product of g and n, times exp -|rho|.
        rho = math.sinh(angle)
        along, across = (rho - 1.0) * x + y, x - rho * y
        small = math.exp(-abs(rho))
        along, across = (along, small**2 * across) if rho > 0.0 else (small**2 * along, across)
        return along - across > (rho * (rho - 1.0) + 1.0) * small * z

    low = math.asinh(1.0 - y / x) if x > 0.0 else -_LAST_RAY
    high = math.asinh(x / y) if y > 0.0 else _LAST_RAY
    low, high = (min(max(end, -_LAST_RAY), _LAST_RAY) for end in (low, high))
    rho = math.sinh(_turn(passed, low, high))
    decay = math.exp(-max(rho, 0.0))
    ray = np.array([rho * decay, decay, math.exp(min(rho, 0.0))])
    return size * max(float(ray @ (x, y, z)), 0.0) / float(ray @ ray) * ray


def project_power(v: Array, exponents: Array) -> Array:
    """Project v onto ``{(w, z) : prod w_i^a_i >= |z|, w >= 0}``, shape (k + 1,).

    With the multiplier m >= 0 of ``sum a_i log w_i >= log |z|``, the optimality conditions are
    quadratics, W (W - w) = a m in each entry and Z (|z| - Z) = m. Their positive roots depend on
    the share Z / |z| alone, which is found by its logit (Hien 2015, Mathematical Methods of
    Operations Research 82, Proposition 2.2).

    Args:
        v: Point, shape (k + 1,).
        exponents: a, shape (k,), positive with sum 1.

    Returns:
        The nearest point, shape (k + 1,).
    """
    size = float(np.max(np.abs(v)))
    if size == 0.0:
        return v.copy()
    w, length = v[:-1] / size, abs(float(v[-1])) / size
    if np.all(w >= 0.0) and np.prod(w**exponents) >= length:
        return v.copy()
    if np.all(w <= 0.0) and np.prod((-w / exponents) ** exponents) >= length:
        return np.zeros_like(v)
    if length < 1e-30:  # no projection moves by more than its point
        return size * np.append(np.maximum(w, 0.0), 0.0)

    def entries(logit: float) -> tuple[Array, float]:
        small = math.exp(-abs(logit))
        share = 1.0 / (1.0 + small) if logit > 0.0 else small / (1.0 + small)
        multiplier_root = length * math.sqrt(small) / (1.0 + small)
        return _positive_roots(w, np.sqrt(exponents) * multiplier_root), length * share

    def outside(logit: float) -> bool:
        roots, last = entries(logit)
        return float(exponents @ np.log(roots)) < math.log(last)

    roots, last = entries(_turn(outside, -_LAST_LOGIT, _LAST_LOGIT))
    return size * np.append(roots, math.copysign(last, v[-1]))


def _positive_roots(linear: Array, root_of_constant: Array) -> Array:
    """The roots X > 0 of ``X (X - linear) = root_of_constant^2``."""
    double = np.abs(linear) + np.hypot(linear, 2.0 * root_of_constant)
    small = 2.0 * root_of_constant * (root_of_constant / double)
    return np.where(linear > 0.0, 0.5 * double, small)
