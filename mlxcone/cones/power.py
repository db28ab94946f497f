"""The power cone {(x, y, z): x^a y^(1-a) >= |z|, x, y >= 0} and its dual; b = 1 - a throughout.

Outside of the cone and of its polar, w = (x, y, |z|) = alpha p + beta n with alpha, beta > 0 and,
for some A, B > 0 with A^a B^b = 1,

    p = (1/A, 1/B, 1) on the boundary,    n = (-a A, -b B, 1) normal there,    n'p = 0,

so with A = e^(b tau), B = e^(-a tau) the projection alpha p is given by the root tau of
(p x n)'w = 0. The equation is equivalent to that of Hien (Mathematical Methods of Operations
Research 82, 2015, Proposition 2.2), but p (p'w) / |p|^2 is as accurate as the equation is solved,
at any magnitude. Newton's method finds tau: monotonically, from one side, because the functions
below are convex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxcone.backend.linalg import symmetric_eigen
from mlxcone.cones import barrier, spectral3
from mlxcone.cones.base import Spectral
from mlxcone.cones.spectral3 import Atoms

_TINY = 1e-30  # relative size that counts as zero; representable in float32
_FLAT = -80.0  # below this t, r is |z|, and p is (x, y, z) where x, y >= _TINY
_LEVEL = 1e-6  # slope that is more than rounding, in float32 nearly
# Newton steps that reach the last digit from the starting points below (measured on 10^6 points).
_STEPS = {mx.float32: 8, mx.float64: 9}


def _exp(x: mx.array) -> mx.array:
    """e^x; ``mx.exp`` has float32's error in float64."""
    return mx.power(mx.array(math.e, dtype=x.dtype), x)


def _log(x: mx.array) -> mx.array:
    return mx.log(mx.maximum(x, _TINY))


def _mixed_root(log_x: mx.array, log_y: mx.array, a: mx.array) -> mx.array:
    """Root tau for x >= 0 >= y from the logarithms of x / |z| and -y / |z|.

    (p x n)'w = 0 reads x e^((1+a) t) + b x e^(b t) - y e^(a t) - a y e^((1+b) t) + a e^(2t) = b:
    a log-sum-exp of increasing terms, at most log 5 at the first t at which one term reaches b.
    """
    b = 1.0 - a
    log_a, log_b = mx.log(a), mx.log(b)
    at_0 = mx.stack([log_x, log_b + log_x, log_y, log_a + log_y, log_a + 0.0 * log_x]) - log_b
    slope = mx.stack([1.0 + a, b, a, 1.0 + b, 0.0 * a + 2.0])
    t = mx.min(-at_0 / slope, axis=0)
    for _ in range(_STEPS[t.dtype]):
        # From the right: between 1/5 and 1 for the largest term.
        terms = _exp(at_0 + slope * t)
        total = mx.sum(terms, axis=0)
        t = t - mx.log(total) * total / mx.sum(slope * terms, axis=0)
    return t


def _same_sign_root(x: mx.array, y: mx.array, log_k: mx.array, a: mx.array) -> mx.array:
    """log(p_y / p_x) for x, y > 0 in units of |z|, where the cone is x^a y^b >= k |z|.

    The roots of Hien's p_i (p_i - v_i) = a_i r (1 - r) at the logit -2t of r are, in full,
    p_i = sqrt(a_i r (1 - r)) e^(h_i) with sinh h_i = v_i cosh t / sqrt(a_i). So the equation is

        g(t) = t + a h_x + b h_y - middle = 0,    middle = log k - (a log a + b log b) / 2.

    g is convex and increasing, and e^g concave in 1 - r, so that both Newton's step on the former
    and the secant of the latter through r = 1 stay to the right of the root.
    """
    weights = mx.stack([a, 1.0 - a])[:, None]
    log_weights = mx.log(weights)
    v = mx.stack([x, y])
    log_v = _log(v)

    def mean(u: mx.array) -> mx.array:
        return mx.sum(weights * u, axis=0, keepdims=True)

    at_1 = mean(log_v) - log_k  # g at r = 1: negative outside of the cone
    gap = mx.maximum(-mx.expm1(mx.minimum(at_1, 0.0)), _TINY)
    middle = log_k - 0.5 * mean(log_weights)
    scaled = v / mx.sqrt(weights)
    t = middle
    for _ in range(_STEPS[t.dtype]):
        h = mx.arcsinh(scaled * mx.cosh(t))
        g = t - middle + mean(h)
        # What rounding leaves of a smaller slope is not used: there the secant is as good.
        slope = mx.maximum(1.0 + mx.tanh(t) * mean(mx.tanh(h)), _LEVEL)
        secant = 0.5 * mx.log1p(mx.expm1(mx.maximum(g, 0.0)) / gap)
        t = mx.maximum(t - mx.maximum(g / slope, secant), _FLAT)
    # sinh h >= e^(log v - t) / 2 / sqrt(a), whose logarithm does not overflow.
    h = mx.arcsinh(mx.minimum(scaled * mx.cosh(t), 1.0 / _TINY))
    h = mx.maximum(h, log_v - 0.5 * log_weights - t)
    return h[1] - h[0] + 0.5 * (log_weights[1] - log_weights[0])


def _root(x: mx.array, y: mx.array, size: mx.array, a: mx.array) -> mx.array:
    """Root tau for w = (x, y, size > 0); finite also where w has no boundary projection."""
    b = 1.0 - a
    log_a, log_b = mx.log(a), mx.log(b)
    flip = y > x
    far_x, far_y = _log(mx.abs(x)) - mx.log(size), _log(mx.abs(y)) - mx.log(size)
    mixed = _mixed_root(
        mx.where(flip, far_y, far_x), mx.where(flip, far_x, far_y), mx.where(flip, b, a)
    )
    mixed = mx.where(flip, -mixed, mixed)
    # -K* is a power cone too, with k = a^a b^b, on which p and n change places.
    negative = x < 0
    log_k = mx.where(negative, a * log_a + b * log_b, 0.0)
    same = _same_sign_root(mx.abs(x) / size, mx.abs(y) / size, log_k, a)
    same = mx.where(negative, log_b - log_a - same, same)
    return mx.where((x > 0) & (y > 0) | (x < 0) & (y < 0), same, mixed)


class _Split(NamedTuple):
    """w = alpha p + beta n; ``share`` and ``rest`` = 1 - share: D's third eigenvalue on K.

    p and n are (B, count, 3), the rest (B, count); ``inside`` is K, ``polar`` its polar.
    """

    p: mx.array
    n: mx.array
    alpha: mx.array
    share: mx.array
    rest: mx.array
    inside: mx.array
    polar: mx.array


def _dot(u: tuple[mx.array, ...], v: tuple[mx.array, ...]) -> mx.array:
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


def _split(w: mx.array, a: mx.array) -> _Split:
    """Split w (B, count, 3), of size 1, along the boundary of K and its normal."""
    b = 1.0 - a
    x, y, z = (w[..., i] for i in range(3))
    size = mx.maximum(mx.abs(z), _TINY)
    sign = mx.where(z < 0, -1.0, 1.0).astype(w.dtype)
    v = (x, y, size)

    def frame(tau: mx.array) -> tuple[mx.array, ...]:
        log_A, log_B = b * tau, -a * tau
        largest = mx.maximum(log_A, log_B)
        A, B, one = (_exp(v - largest) for v in (log_A, log_B, mx.zeros_like(largest)))
        small = _exp(mx.minimum(log_A, log_B))
        # p times min(A, B) and n over max(A, B): nothing overflows.
        p, n = (B, A, small), (-a * A, -b * B, one)
        pp, nn = _dot(p, p), _dot(n, n)
        alpha, beta = mx.maximum(_dot(p, v) / pp, 0.0), mx.maximum(_dot(n, v) / nn, 0.0)
        return *p, *n, alpha, nn * alpha * small, a * b * pp * beta * one

    still_x, still_y, still_z = (mx.stop_gradient(u) for u in v)
    tau = mx.stop_gradient(_root(still_x, still_y, still_z, a))
    px, py, pz, nx, ny, nz, _, along, across = frame(tau)
    cross = (py * nz - pz * ny) * x + (pz * nx - px * nz) * y + (px * ny - py * nx) * size
    step = cross / mx.stop_gradient(mx.maximum(along + across, _TINY))
    # Newton on (p x n)'w; also carries the derivative of tau, by the implicit function theorem.
    tau = mx.where(mx.abs(step) < 0.1, tau - step, tau)
    px, py, pz, nx, ny, nz, alpha, along, across = frame(tau)
    total = along + across
    total = mx.where(total > 0, total, 1.0)
    share, rest = along / total, across / total
    # At z = 0 the limit is 0 or 1 (Hien, Theorem 3.1), reached too slowly for _TINY to show it.
    exponent = mx.where(x > 0, a, b)
    low, high = (z == 0) & (exponent < 0.5), (z == 0) & (exponent > 0.5)
    share = mx.where(low, 0.0, mx.where(high, 1.0, share))
    rest = mx.where(low, 1.0, mx.where(high, 0.0, rest))

    def reaches(x: mx.array, y: mx.array) -> mx.array:
        # The same floor as in the root: what is inside for one is inside for the other.
        log_x, log_y = (mx.where(u > 0, _log(u), -mx.inf) for u in (x, y))
        outside = a * log_x + b * log_y < mx.log(still_z)
        return (x >= 0) & (y >= 0) & ((z == 0) | mx.logical_not(outside))

    p = mx.stack([px, py, pz * sign], axis=-1)
    n = mx.stack([nx, ny, nz * sign], axis=-1)
    inside, polar = reaches(still_x, still_y), reaches(-still_x / a, -still_y / b)
    return _Split(p, n, alpha, share, rest, inside, polar)


@dataclass(frozen=True)
class Power:
    """One cone of three rows (x, y, z) for every exponent; a negative one means the dual cone.

    Args:
        alphas (tuple[float, ...]): SCS's ``p``; 0 < |alpha| < 1.

    Raises:
        ValueError: an exponent is not in that range.
    """

    alphas: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "alphas", tuple(float(alpha) for alpha in self.alphas))
        if not all(0.0 < abs(alpha) < 1.0 for alpha in self.alphas):
            raise ValueError(f"cones: an exponent of a power cone is in (0, 1), got {self.alphas}")

    @property
    def rows(self) -> int:
        return 3 * len(self.alphas)

    @property
    def count(self) -> int:
        return len(self.alphas)

    def _prepare(self, z: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Exponents, whether a cone is primal, blocks of z of size 1, and their sizes."""
        blocks = z.reshape(z.shape[0], len(self.alphas), 3)
        a = mx.array([abs(alpha) for alpha in self.alphas], dtype=z.dtype)
        primal = mx.array([alpha > 0 for alpha in self.alphas])
        size = mx.stop_gradient(mx.max(mx.abs(blocks), axis=-1, keepdims=True))
        size = mx.maximum(size, _TINY)
        return a, primal, blocks / size, size

    def project_dual(self, z: mx.array) -> mx.array:
        return self.linearize(z)[0]

    def _flat(self, parts: _Split, primal: mx.array) -> tuple[mx.array, mx.array]:
        """Where the projection is 0 and where it is the point itself, (B, count, 1)."""
        zero = mx.where(primal, parts.inside, parts.polar)[..., None]
        return zero, mx.where(primal, parts.polar, parts.inside)[..., None]

    def derivative(self, z: mx.array) -> Atoms:
        return self.linearize(z)[1]

    def linearize(self, z: mx.array) -> tuple[mx.array, Atoms]:
        a, primal, v, size = self._prepare(z)
        w = mx.where(primal[:, None], -v, v)
        parts = _split(w, a)
        on_K = mx.where(parts.inside[..., None], w, parts.p * parts.alpha[..., None])
        # Moreau: the projection onto K* is z plus that of -z onto K.
        y = mx.where(primal[:, None], v + on_K, on_K) * size
        zero, one = self._flat(parts, primal)
        # z itself, not to move by a rounding what is inside.
        y = mx.where(one, z.reshape(y.shape), y)
        y = mx.where(zero, 0.0, y).reshape(z.shape)
        third = mx.where(primal, parts.rest, parts.share)
        third = mx.stack([mx.ones_like(third), third, mx.zeros_like(third)], axis=-1)
        values = mx.where(zero, 0.0, mx.where(one, 1.0, third))
        along = mx.where(primal[:, None], parts.n, parts.p)
        across = mx.where(primal[:, None], parts.p, parts.n)
        return y, Atoms(values, spectral3.frame(along, across))

    def spectral(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        return spectral3.spectral(atoms, function, v)

    def half(self, atoms: Atoms, function: Spectral, v: mx.array) -> mx.array:
        """`base.half`."""
        return spectral3.half(atoms, function, v)

    def signature(self, atoms: Atoms) -> mx.array:
        return spectral3.signature(atoms)

    @property
    def degree(self) -> int:
        return 3 * len(self.alphas)

    def centre(self, dtype: mx.Dtype) -> mx.array:
        points = [(math.sqrt(1 + abs(a)), math.sqrt(2 - abs(a)), 0.0) for a in self.alphas]
        return mx.array([v for point in points for v in point], dtype=dtype)

    def _powers(self, dual: bool, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Exponents (count, 2), and by what the cone or its dual divides its first two rows."""
        pairs = [(abs(a), 1.0 - abs(a)) for a in self.alphas]
        scale = [
            p if dual == (a > 0) else (1.0, 1.0) for p, a in zip(pairs, self.alphas, strict=True)
        ]
        return mx.array(pairs, dtype=dtype), mx.array(scale, dtype=dtype)

    def _barrier(self, y: mx.array) -> barrier.Barrier:
        blocks = y.reshape(y.shape[0], len(self.alphas), 3)
        return barrier.of_powers(blocks, *self._powers(True, y.dtype))

    def scaling(self, s: mx.array, y: mx.array, mu: mx.array) -> Atoms:
        return Atoms(*symmetric_eigen(mu[:, :, None, None] * self._barrier(y).hessian))

    def inverse(self, y: mx.array) -> mx.array:
        return self._barrier(y).inverse.reshape(y.shape)

    def correction(self, atoms: Atoms, y: mx.array, ds: mx.array, dy: mx.array) -> mx.array:
        return mx.zeros_like(y)

    def room(self, v: mx.array, dv: mx.array, dual: bool) -> mx.array:
        shape = (v.shape[0], len(self.alphas), 3)
        alphas, scale = (a[:, None] for a in self._powers(dual, v.dtype))

        def inside(points: mx.array) -> mx.array:
            return barrier.in_powers(points, alphas, scale)

        return barrier.longest(inside, v.reshape(shape), dv.reshape(shape))
