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

# Steps of `_root` after which one of Newton's is enough, measured on 10^6 points of every kind.
_STEPS = {mx.float32: 3, mx.float64: 6}
_LAST = 0.5  # longest last step; a longer one is rounding where rho hardly matters
# Where y is minus the gradient at y of the barrier of K*, for K = the cone and for K = its dual.
_CENTRE = [-1.0513839437502288, 0.5564096186043385, 1.2589678864644602]
_DUAL_CENTRE = [-0.8278383990656786, 0.8051020015847954, 1.290927709856958]
# Entries that count as zero beside the largest: their quotients are squared.
_TINY = {mx.float32: 1e-18, mx.float64: 1e-140}


_Triple = tuple[mx.array, mx.array, mx.array]  # the entries of vectors, (B, count) each


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


def _dot(a: _Triple, b: _Triple) -> mx.array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


class _Ray(NamedTuple):
    """A ray of the cone or of its polar.

    Its direction, of length 1, how far along it v is, and how fast what is there moves across as
    rho moves; ``size`` is the length of the direction as it is written.
    """

    unit: _Triple
    along: mx.array
    bend: mx.array
    size: mx.array


def _rays(rho: mx.array, v: _Triple) -> tuple[_Ray, _Ray]:
    """Where v is on the rays g of the cone and w of its polar that belong to rho."""
    # The smaller of e^rho and e^-rho may underflow, the larger must not overflow: with
    # e^rho = growth / decay, p is along decay (rho, 1, e^rho), d along growth (1, 1 - rho, ..).
    growth, decay = _exp(mx.minimum(rho, 0.0)), _exp(-mx.maximum(rho, 0.0))
    square_g, square_w, other = mx.square(decay), mx.square(growth), 1.0 - rho
    round_g, round_w = mx.square(rho) + 1.0, mx.square(other) + 1.0

    def ray(x: mx.array, y: mx.array, z: mx.array, square: mx.array, bend: mx.array) -> _Ray:
        size = mx.sqrt(square)
        unit = x / size, y / size, z / size
        # Orthogonal projections are as accurate as v, whatever cancels in alpha.
        along = _dot(unit, v)
        return _Ray(unit, along, mx.maximum(along, 0.0) * (bend / size), size)

    bend_g, bend_w = square_g + square_w * round_w, square_w + square_g * round_g
    g = ray(rho * decay, decay, growth, square_g * round_g + square_w, decay * bend_g)
    w = ray(growth, other * growth, -decay, square_w * round_w + square_g, growth * bend_w)
    return g, w


class _Split(NamedTuple):
    """v = p + d: where v is in one of the two, or on the edge between, and else on which rays."""

    v: _Triple
    in_cone: mx.array
    in_polar: mx.array
    on_edge: mx.array
    g: _Ray
    w: _Ray

    def _pick(
        self, cone: _Triple, polar: _Triple, edge: _Triple, curve: _Triple, shape: tuple[int, ...]
    ) -> mx.array:
        parts = []
        for inside, opposite, face, beyond in zip(cone, polar, edge, curve, strict=True):
            out = mx.where(self.on_edge, face, beyond)
            parts.append(mx.where(self.in_cone, inside, mx.where(self.in_polar, opposite, out)))
        return mx.stack(parts, axis=-1).reshape(shape)

    def on_cone(self, shape: tuple[int, ...]) -> mx.array:
        """P."""
        (r, _, t), (x, y, z), zero = self.v, self.g.unit, mx.zeros_like(self.v[0])
        curve = self.g.along * x, self.g.along * y, self.g.along * z
        edge = mx.minimum(r, 0.0), zero, mx.maximum(t, 0.0)
        return self._pick(self.v, (zero, zero, zero), edge, curve, shape)

    def on_polar(self, shape: tuple[int, ...]) -> mx.array:
        """D."""
        (r, s, t), (x, y, z), zero = self.v, self.w.unit, mx.zeros_like(self.v[0])
        curve = self.w.along * x, self.w.along * y, self.w.along * z
        edge = mx.maximum(r, 0.0), s, mx.minimum(t, 0.0)
        return self._pick((zero, zero, zero), self.v, edge, curve, shape)

    def atoms(self, polar: bool) -> Atoms:
        """Of the derivative of p, or of d."""
        v = self.v
        one, zero = mx.ones_like(v[0]), mx.zeros_like(v[0])
        shape = (*one.shape, 3)
        total = self.g.bend + self.w.bend
        total = mx.where(total > 0, total, 1.0)
        positive = (v[2] > 0).astype(one.dtype)
        ones, zeros = (one, one, one), (zero, zero, zero)
        if polar:
            edge, curve = (zero, one, 1.0 - positive), (zero, self.w.bend / total, one)
            values = self._pick(zeros, ones, edge, curve, shape)
        else:
            edge, curve = (one, zero, positive), (one, self.g.bend / total, zero)
            values = self._pick(ones, zeros, edge, curve, shape)
        flat = mx.logical_or(self.on_edge, mx.logical_or(self.in_cone, self.in_polar))
        eye = mx.broadcast_to(mx.eye(3, dtype=one.dtype), (*shape, 3))
        frame = spectral3.frame(
            mx.stack([*self.g.unit], axis=-1), mx.stack([*self.w.unit], axis=-1)
        )
        return Atoms(values, mx.where(flat[..., None, None], eye, frame))


def _split(v: mx.array) -> _Split:
    """Split v, (B, count, 3) with entries in [-1, 1]."""
    tiny = _TINY[v.dtype]
    moving = v[..., 0], v[..., 1], v[..., 2]
    r, s, t = (mx.stop_gradient(a) for a in moving)
    still = r, s, t
    up, right = s > 0, r > 0
    in_cone = mx.logical_and(up, s * _exp(r / mx.where(up, s, 1.0)) <= t)
    in_polar = mx.logical_and(right, r * _exp(s / mx.where(right, r, 1.0) - 1.0) <= -t)
    on_edge = mx.logical_and(r <= tiny, s <= tiny)

    r_far = mx.where(on_edge, 1.0, mx.where(mx.abs(r) > tiny, r, 0.0))
    s_far = mx.where(on_edge, 1.0, mx.where(mx.abs(s) > tiny, s, 0.0))
    rho = mx.stop_gradient(_root(r_far, s_far, t))
    # One Newton step on n'v = 0, n = g x w, also carries the derivative of rho.
    g, w = _rays(rho, still)
    (g0, g1, g2), (w0, w1, w2) = ([mx.stop_gradient(a) for a in ray.unit] for ray in (g, w))
    across = g1 * w2 - g2 * w1, g2 * w0 - g0 * w2, g0 * w1 - g1 * w0
    slope = mx.maximum(g.bend + w.bend, tiny) / (g.size * w.size)
    step = _dot(across, moving) / mx.stop_gradient(slope)
    step = step + mx.stop_gradient(mx.clip(step, -_LAST, _LAST) - step)
    return _Split(moving, in_cone, in_polar, on_edge, *_rays(rho - step, moving))


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

    def _split(self, z: mx.array) -> tuple[_Split, mx.array]:
        unit, size = self._scaled(z)
        return _split(unit if self.dual else -unit), size

    def _projected(self, split: _Split, size: mx.array, shape: tuple[int, ...]) -> mx.array:
        # The dual of the exponential cone is minus its polar.
        rows = (*size.shape[:2], 3)
        y = split.on_cone(rows) if self.dual else -split.on_polar(rows)
        return (size * y).reshape(shape)

    def project_dual(self, z: mx.array) -> mx.array:
        return self._projected(*self._split(z), z.shape)

    def derivative(self, z: mx.array) -> Atoms:
        return self._split(z)[0].atoms(not self.dual)

    def linearize(self, z: mx.array) -> tuple[mx.array, Atoms]:
        split, size = self._split(z)
        return self._projected(split, size, z.shape), split.atoms(not self.dual)

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        return spectral3.spectral(atoms, function, v)

    def half(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        """`base.half`."""
        return spectral3.half(atoms, function, v)

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
