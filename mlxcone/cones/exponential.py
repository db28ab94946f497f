"""The exponential cone, the closure of {(x, y, z): y > 0, y e^(x/y) <= z}, and its dual.

Friberg, "Projection onto the exponential cone: a univariate root-finding problem" (Optimization
Methods and Software, 2023): a point (r, s, t) outside of the cone K and of its polar, with r > 0
or s > 0, is p + d with p = alpha (rho, 1, e^rho) its projection onto K, d = beta (1, 1 - rho,
-e^-rho) the one onto the polar, q = rho^2 - rho + 1, alpha = ((rho - 1) r + s) / q > 0,
beta = (r - rho s) / q > 0, and rho the root of alpha e^rho - beta e^-rho = t. Here the equation
is solved for e^rho first and the logarithm taken, which makes it nearly linear (`_root`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxcone._linalg import symmetric_eigen
from mlxcone.cones import barrier, spectral3
from mlxcone.cones.base import Spectral
from mlxcone.cones.spectral3 import Atoms

# Steps of `_root` to the last digit, measured on 10^6 points of every kind and size.
_STEPS = {mx.float32: 6, mx.float64: 9}
# Where y is minus the gradient at y of the barrier of K*, for K = the cone and for K = its dual.
_CENTRE = [-1.0513839437502288, 0.5564096186043385, 1.2589678864644602]
_DUAL_CENTRE = [-0.8278383990656786, 0.8051020015847954, 1.290927709856958]
# Entries that count as zero beside the largest: their quotients are squared.
_TINY = {mx.float32: 1e-18, mx.float64: 1e-140}


class _Split(NamedTuple):
    """v = p + d, in units of the largest entry of v.

    ``p`` and ``d`` are (B, count, 3), ``vectors`` the frame of D (B, count, 3, 3); ``on_cone``
    (B, count, 3) holds the eigenvalues of the derivative of p, ``on_polar`` those of d.
    """

    p: mx.array
    d: mx.array
    vectors: mx.array
    on_cone: mx.array
    on_polar: mx.array


def _exp(x: mx.array) -> mx.array:
    """e^x; ``mx.exp`` has float32's error in float64, ``mx.power`` more than that in float32."""
    return mx.power(math.e, x) if x.dtype == mx.float64 else mx.exp(x)


def _root(r: mx.array, s: mx.array, t: mx.array) -> mx.array:
    """The root rho for r > 0 or s > 0; finite also for (r, s, t) in K or in its polar.

    Exchanging r and s, alpha and beta, rho and 1 - rho changes the sign of t and multiplies the
    exponentials by 1/e, so let t >= 0. With c = 0 or 1 the equation is the quadratic
    alpha E^2 - t E - beta = 0 for E = e^(rho - c), and phi(rho) = rho - c - log E increases
    between lower = 1 - s/r (if r > 0), where alpha = 0, and upper = r/s (if s > 0), where beta = 0.
    Near lower, phi is like log(rho - lower): a Newton step down is taken in this logarithm, so
    that it cannot pass the end, and a step up in log(upper - rho), or, if longer, by the secant
    through upper, where phi is finite if t > 0.
    """
    tiny = _TINY[r.dtype]
    flip = t < 0
    r, s, t = mx.where(flip, s, r), mx.where(flip, r, s), mx.abs(t)
    c = flip.astype(r.dtype)
    has_lower, has_upper = r > 0, s > 0
    lower = 1.0 - s / mx.where(has_lower, r, 1.0)
    upper = r / mx.where(has_upper, s, 1.0)
    top = mx.log(mx.maximum(s, tiny)) + upper - c - mx.log(mx.maximum(t, tiny))
    secant_is_safe = has_upper & (t > tiny)

    reach = mx.where(has_lower & has_upper, mx.minimum(0.5 * (upper - lower), 1.0), 1.0)
    from_lower = has_lower & (mx.logical_not(has_upper) | (r >= s))
    rho = mx.where(from_lower, lower + reach, upper - reach)
    for _ in range(_STEPS[rho.dtype]):
        below = mx.maximum(rho - lower, tiny)
        above = mx.maximum(upper - rho, tiny)
        q = rho * (rho - 1.0) + 1.0
        alpha = mx.maximum(mx.where(has_lower, r * below, (rho - 1.0) * r + s) / q, tiny)
        beta = mx.maximum(mx.where(has_upper, s * above, r - rho * s) / q, tiny)
        root = mx.sqrt(t * t + 4.0 * (alpha * beta))
        both = t + root
        phi = rho - c + mx.log(2.0 * alpha / both)
        slope = (0.5 * r * both / alpha + 2.0 * s * alpha / both - (2.0 * rho - 1.0) * t) / root
        step = phi / mx.maximum(1.0 + slope / q, 1e-3)
        down = mx.where(has_lower, below * mx.expm1(-mx.maximum(step, 0.0) / below), -step)
        up = mx.where(has_upper, -above * mx.expm1(mx.minimum(step, 0.0) / above), -step)
        rise = top - phi
        # Rounding may put the root a little past upper.
        secant = mx.minimum(-phi / mx.where(rise > 0, rise, 1.0), 1.0) * above
        longer = secant_is_safe & (rise > 0) & (secant > up)
        rho = rho + mx.where(phi > 0, down, mx.where(longer, secant, up))
    return mx.where(flip, 1.0 - rho, rho)


def _unit(x: mx.array, y: mx.array, z: mx.array) -> tuple[mx.array, mx.array]:
    """(x, y, z) of length 1, (B, count, 3), and the length it had."""
    length = mx.sqrt(x * x + y * y + z * z)
    return mx.stack([x, y, z], axis=-1) / length[..., None], length


class _Curve(NamedTuple):
    """v = p_length g + d_length w, but for what is along n = g x w.

    As rho moves, n'v changes by ``bend_p`` + ``bend_d``, p's share and d's; n is of length
    ``n_length`` in units of both.
    """

    g: mx.array
    w: mx.array
    p_length: mx.array
    d_length: mx.array
    bend_p: mx.array
    bend_d: mx.array
    n_length: mx.array


def _curve(rho: mx.array, v: mx.array) -> _Curve:
    # The smaller of e^rho and e^-rho may underflow, the larger must not overflow: with
    # e^rho = growth / decay, p is along decay (rho, 1, e^rho), d along growth (1, 1 - rho, ..).
    growth, decay = _exp(mx.minimum(rho, 0.0)), _exp(-mx.maximum(rho, 0.0))
    g, g_length = _unit(rho * decay, decay, growth)
    w, w_length = _unit(growth, (1.0 - rho) * growth, -decay)
    # Orthogonal projections onto g and w are as accurate as v, whatever cancels in alpha.
    p_length, d_length = mx.sum(g * v, axis=-1), mx.sum(w * v, axis=-1)
    square_g, square_w = mx.square(decay), mx.square(growth)
    bend_p = decay * (square_g + square_w * (mx.square(rho - 1.0) + 1.0)) / g_length
    bend_d = growth * (square_w + square_g * (mx.square(rho) + 1.0)) / w_length
    return _Curve(
        g,
        w,
        p_length,
        d_length,
        mx.maximum(p_length, 0.0) * bend_p,
        mx.maximum(d_length, 0.0) * bend_d,
        g_length * w_length,
    )


def _split(v: mx.array) -> _Split:
    """Split v, (B, count, 3) with entries in [-1, 1]."""
    tiny = _TINY[v.dtype]
    still = mx.stop_gradient(v)
    r, s, t = (still[..., i] for i in range(3))
    in_cone = (s > 0) & (s * _exp(r / mx.where(s > 0, s, 1.0)) <= t)
    in_polar = (r > 0) & (r * _exp(s / mx.where(r > 0, r, 1.0) - 1.0) <= -t)
    on_edge = (r <= tiny) & (s <= tiny)

    r_far = mx.where(mx.abs(r) > tiny, r, 0.0)
    s_far = mx.where(mx.abs(s) > tiny, s, 0.0)
    rho = _root(mx.where(on_edge, 1.0, r_far), mx.where(on_edge, 1.0, s_far), t)
    # One Newton step of length 0 carries the derivative of rho: n'v = 0 by implicit functions.
    rho = mx.stop_gradient(rho)
    at = _Curve(*(mx.stop_gradient(a) for a in _curve(rho, still)))
    moved = at.n_length * mx.sum(spectral3.cross(at.g, at.w) * (v - still), axis=-1)
    at = _curve(rho - moved / mx.maximum(at.bend_p + at.bend_d, tiny), v)
    # The eigenvalue of D on n is p's share.
    total = at.bend_p + at.bend_d
    total = mx.where(total > 0, total, 1.0)
    share, rest = at.bend_p / total, at.bend_d / total

    r, s, t = (v[..., i] for i in range(3))
    zero, one = mx.zeros_like(r), mx.ones_like(r)
    eye = mx.broadcast_to(mx.eye(3, dtype=v.dtype), (*v.shape, 3))
    positive = (t > 0).astype(v.dtype)

    def pick(cone: mx.array, polar: mx.array, face: list[mx.array], curve: mx.array) -> mx.array:
        out = mx.where(on_edge[..., None], mx.stack(face, axis=-1), curve)
        return mx.where(in_cone[..., None], cone, mx.where(in_polar[..., None], polar, out))

    ones, zeros = mx.ones_like(v), mx.zeros_like(v)
    flat = on_edge | in_cone | in_polar
    edge_p = [mx.minimum(r, 0.0), zero, mx.maximum(t, 0.0)]
    edge_d = [mx.maximum(r, 0.0), s, mx.minimum(t, 0.0)]
    return _Split(
        p=pick(v, zeros, edge_p, at.p_length[..., None] * at.g),
        d=pick(zeros, v, edge_d, at.d_length[..., None] * at.w),
        vectors=mx.where(flat[..., None, None], eye, spectral3.frame(at.g, at.w)),
        on_cone=pick(ones, zeros, [one, zero, positive], mx.stack([one, share, zero], axis=-1)),
        on_polar=pick(zeros, ones, [zero, one, 1.0 - positive], mx.stack([zero, rest, one], -1)),
    )


@dataclass(frozen=True)
class Exponential:
    """``count`` exponential cones K, or with ``dual`` their duals, of three rows each."""

    count: int
    dual: bool

    @property
    def rows(self) -> int:
        return 3 * self.count

    def _scaled(self, z: mx.array) -> tuple[mx.array, mx.array]:
        z = z.reshape(z.shape[0], self.count, 3)
        size = mx.stop_gradient(mx.max(mx.abs(z), axis=-1, keepdims=True))
        return z / mx.where(size == 0, 1.0, size), size

    def project_dual(self, z: mx.array) -> mx.array:
        # The dual of the exponential cone is minus its polar.
        return self.linearize(z)[0]

    def derivative(self, z: mx.array) -> Atoms:
        return self.linearize(z)[1]

    def linearize(self, z: mx.array) -> tuple[mx.array, Atoms]:
        unit, size = self._scaled(z)
        split = _split(unit if self.dual else -unit)
        y, values = (split.p, split.on_cone) if self.dual else (-split.d, split.on_polar)
        return (size * y).reshape(z.shape), Atoms(values, split.vectors)

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        return spectral3.spectral(atoms, function, v)

    def signature(self, atoms: Atoms) -> mx.array:
        return spectral3.signature(atoms)

    @property
    def degree(self) -> int:
        return 3 * self.count

    def centre(self, dtype: mx.Dtype) -> mx.array:
        return mx.array((_DUAL_CENTRE if self.dual else _CENTRE) * self.count, dtype=dtype)

    def _barrier(self, y: mx.array) -> barrier.Barrier:
        blocks = y.reshape(y.shape[0], self.count, 3)
        of_dual = barrier.of_exponential if self.dual else barrier.of_exponential_dual
        return of_dual(blocks)

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Atoms:
        return Atoms(*symmetric_eigen(mu[:, :, None, None] * self._barrier(y).hessian))

    def inverse(self, y: mx.array) -> mx.array:
        return self._barrier(y).inverse.reshape(y.shape)

    def correction(self, atoms: Atoms, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        return mx.zeros_like(y)

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        shape = (v.shape[0], self.count, 3)
        is_dual = dual != self.dual
        inside = barrier.in_exponential_dual if is_dual else barrier.in_exponential
        return barrier.longest(inside, v.reshape(shape), dv.reshape(shape))
