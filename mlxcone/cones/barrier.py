"""What interior-point steps need of cones that are not symmetric: barriers of K*, by rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

# Steps to try, the longest first: a line search on a grid, for all cones at once.
_STEPS = [1.0 - k / 32 for k in range(31)] + [2.0**-k for k in range(5, 40)]


class Barrier(NamedTuple):
    """Minus the gradient (..., d), and the Hessian (..., d, d), of a barrier."""

    inverse: mx.array
    hessian: mx.array


def of_root(
    root: mx.array, slope: mx.array, bend: mx.array, others: mx.array, share: mx.array
) -> Barrier:
    """Of -log(root(v)) - sum share_i log(v_i).

    Args:
        root (mx.array): (..., 1), positive.
        slope, bend (mx.array): its gradient (..., d) and Hessian (..., d, d).
        others, share (mx.array): v_i where share_i > 0, else 1; and share_i; (..., d).
    """
    first = slope / root
    inverse = first + share / others
    eye = mx.eye(slope.shape[-1], dtype=slope.dtype)
    diagonal = eye * (share / mx.square(others))[..., None, :]
    hessian = first[..., :, None] * first[..., None, :] - bend / root[..., None] + diagonal
    return Barrier(inverse, hessian)


def of_powers(v: mx.array, alphas: mx.array, scale: mx.array) -> Barrier:
    """Of the cone prod (v_i / scale_i)^alpha_i >= |z|, rows (v, z), (..., k + 1).

    -log(prod (v_i / scale_i)^(2 alpha_i) - z^2) - sum (1 - alpha_i) log v_i (Chares 2009).
    """
    u, z = v[..., :-1], v[..., -1:]
    phi = _product(u, alphas, scale)
    ratio = 2.0 * alphas / u
    slope = mx.concatenate([phi * ratio, -2.0 * z], axis=-1)
    k = u.shape[-1]
    curved = ratio[..., :, None] * ratio[..., None, :]
    curved = phi[..., None] * (curved - mx.eye(k, dtype=v.dtype) * (ratio / u)[..., None, :])
    bend = mx.pad(curved, [(0, 0)] * (v.ndim - 1) + [(0, 1), (0, 1)])
    last = mx.zeros((k + 1,), dtype=v.dtype)
    last[k] = 2.0
    bend = bend - mx.diag(last)
    one = mx.ones_like(z)
    share = mx.concatenate([mx.broadcast_to(1.0 - alphas, u.shape), 0.0 * z], axis=-1)
    return of_root(phi - z * z, slope, bend, mx.concatenate([u, one], axis=-1), share)


def in_powers(v: mx.array, alphas: mx.array, scale: mx.array) -> mx.array:
    """Whether rows (v, z) are inside of that cone, (...)."""
    u, z = v[..., :-1], v[..., -1:]
    positive = mx.all(u > 0, axis=-1)
    phi = _product(mx.where(u > 0, u, 1.0), alphas, scale)
    return mx.logical_and(positive, (phi > z * z)[..., 0])


def _product(u: mx.array, alphas: mx.array, scale: mx.array) -> mx.array:
    return mx.prod(mx.power(u / scale, 2.0 * alphas), axis=-1, keepdims=True)


def of_exponential(v: mx.array) -> Barrier:
    """Of the exponential cone: -log(y log(z / y) - x) - log y - log z."""
    x, y, z = (v[..., i] for i in range(3))
    one, zero = mx.ones_like(x), mx.zeros_like(x)
    ratio = mx.log(z / y)
    slope = mx.stack([-one, ratio - 1.0, y / z], axis=-1)
    mixed = 1.0 / z
    rows = [[zero, zero, zero], [zero, -1.0 / y, mixed], [zero, mixed, -y / (z * z)]]
    bend = mx.stack([mx.stack(row, axis=-1) for row in rows], axis=-2)
    others, share = mx.stack([one, y, z], axis=-1), mx.stack([zero, one, one], axis=-1)
    return of_root((y * ratio - x)[..., None], slope, bend, others, share)


def in_exponential(v: mx.array) -> mx.array:
    """Whether (x, y, z) is inside of the exponential cone."""
    x, y, z = (v[..., i] for i in range(3))
    positive = mx.logical_and(y > 0, z > 0)
    safe_y, safe_z = mx.where(positive, y, 1.0), mx.where(positive, z, 1.0)
    return mx.logical_and(positive, safe_y * mx.log(safe_z / safe_y) > x)


def of_exponential_dual(v: mx.array) -> Barrier:
    """Of the dual exponential cone: -log(y - x - x log(z / -x)) - log(-x) - log z."""
    x, y, z = (v[..., i] for i in range(3))
    one, zero = mx.ones_like(x), mx.zeros_like(x)
    ratio = mx.log(-z / x)
    slope = mx.stack([-ratio, one, -x / z], axis=-1)
    mixed = -1.0 / z
    rows = [[1.0 / x, zero, mixed], [zero, zero, zero], [mixed, zero, x / (z * z)]]
    bend = mx.stack([mx.stack(row, axis=-1) for row in rows], axis=-2)
    others, share = mx.stack([x, one, z], axis=-1), mx.stack([one, zero, one], axis=-1)
    return of_root((y - x - x * ratio)[..., None], slope, bend, others, share)


def in_exponential_dual(v: mx.array) -> mx.array:
    """Whether (x, y, z) is inside of the dual exponential cone."""
    x, y, z = (v[..., i] for i in range(3))
    right = mx.logical_and(x < 0, z > 0)
    safe_x, safe_z = mx.where(right, x, -1.0), mx.where(right, z, 1.0)
    return mx.logical_and(right, y - safe_x - safe_x * mx.log(-safe_z / safe_x) > 0)


def longest(inside: Callable[[mx.array], mx.array], v: mx.array, dv: mx.array) -> mx.array:
    """The longest step of a grid, at most 1, to stay inside; ``v`` is (B, count, d), result (B, 1).

    ``inside`` maps (..., d) to booleans (...).
    """
    steps = mx.array(_STEPS, dtype=v.dtype)
    points = v[:, :, None] + steps[:, None] * dv[:, :, None]
    allowed = mx.all(inside(points), axis=1)
    return mx.max(mx.where(allowed, steps, 0.0), axis=1, keepdims=True)
